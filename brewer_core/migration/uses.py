"""What is found of TextBrewer in a file: imports, configs, distillers, calls of `train`, and what is written to."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brewer_core.migration.bindings import Ambiguous, Bindings
from brewer_core.migration.names import OfTextBrewer
from brewer_core.migration.sources import Source
from brewer_core.migration.values import Unknown, Values


@dataclass(frozen=True)
class Setting:
    """A value that a config is given, and where."""

    value: Any
    line: int


@dataclass(frozen=True)
class ConfigUse:
    """A config of TextBrewer's. unread: what may give it further settings, and why it could not be read."""

    kind: str
    line: int
    text: str
    settings: Mapping[str, Setting]
    unread: tuple[Unknown, ...] = ()

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a setting, or a default."""
        return self.settings[key].value if key in self.settings else default


@dataclass(frozen=True)
class DistillerUse:
    """A distiller that is built. kind: TextBrewer's class. own: the script's class, where it is a subclass."""

    kind: str
    line: int
    text: str
    own: str | None
    arguments: Mapping[str, ast.expr]
    training: ConfigUse | None
    distillation: ConfigUse | None


@dataclass(frozen=True)
class TrainUse:
    """A call of `train`. receiver: the text before it. arguments: by the names of the signature that it follows."""

    line: int
    receiver: str
    distiller: DistillerUse | None
    arguments: Mapping[str, ast.expr]
    old_order: bool
    in_context: bool
    starred: bool = False


@dataclass(frozen=True)
class ImportUse:
    """An import of TextBrewer, with the names that it brings in."""

    line: int
    node: ast.Import | ast.ImportFrom
    names: Sequence[OfTextBrewer]


@dataclass(frozen=True)
class Mention:
    """A name of TextBrewer that is used, or written to, or subclassed: `kind` says which."""

    kind: str
    line: int
    text: str
    name: OfTextBrewer | None = None
    detail: str = ""


@dataclass
class Uses:
    """All uses of TextBrewer in a file, and what reads values there."""

    source: Source
    values: Values
    bindings: Bindings
    imports: list[ImportUse] = field(default_factory=list)
    configs: list[ConfigUse] = field(default_factory=list)
    distillers: list[DistillerUse] = field(default_factory=list)
    trains: list[TrainUse] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.imports or self.configs)

    def defined(self, node: ast.AST) -> ast.AST | None:
        """The expression that a name stands for; None where it may be several."""
        return definition(self.bindings, node)

    def registered(self) -> frozenset[str]:
        """Names that the script writes into presets."""
        return frozenset(mention.detail for mention in self.mentions if mention.kind == "registered" and mention.detail)


def definition(bindings: Bindings, node: ast.AST, depth: int = 0) -> ast.AST | None:
    """The one expression that a name stands for; None where there may be several."""
    try:
        binding = bindings.one(node)
    except Ambiguous:
        return None
    if binding is None or binding.value is None or depth > 20:
        return node
    return definition(bindings, binding.value, depth + 1)
