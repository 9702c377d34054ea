"""What is found of TextBrewer in a file: configs, distillers, calls of `train`, and what is written into presets."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brewer_core.errors import BrewerError
from brewer_core.migration.bindings import Bindings, dotted, origin_of
from brewer_core.migration.names import (
    CONFIGS,
    DISTILLER_ARGUMENTS,
    DISTILLERS,
    LISTS,
    PRESETS,
    SETTINGS,
    TRAIN_ARGUMENTS,
    TRAINER_ARGUMENTS,
    OfTextBrewer,
    of_textbrewer,
)
from brewer_core.migration.sources import Source, read_source
from brewer_core.migration.values import Unknown, Values, Written

_WRITING = ("update", "setdefault", "pop", "popitem", "clear", "append", "extend", "insert", "remove")


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
    unread: Sequence[Unknown] = ()

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a setting, or a default."""
        return self.settings[key].value if key in self.settings else default


@dataclass(frozen=True)
class DistillerUse:
    """A distiller that is built. kind: TextBrewer's class. own: the script's, where it is a subclass."""

    kind: str
    line: int = 1
    own: ast.ClassDef | None = None
    arguments: Mapping[str, ast.expr] = field(default_factory=dict)
    training: ConfigUse | None = None
    distillation: ConfigUse | None = None


@dataclass(frozen=True)
class TrainUse:
    """A call of `train`. receiver: the text before it. arguments: by the names of the signature that it follows."""

    line: int
    receiver: str
    distiller: DistillerUse | None
    arguments: Mapping[str, ast.expr]
    unread: bool
    old_order: bool
    in_context: bool
    order_unknown: bool = False

    @property
    def loaders(self) -> ast.expr | None:
        """The loader, or the dict of them."""
        return self.arguments.get("dataloader", self.arguments.get("dataloaders"))


@dataclass(frozen=True)
class Registration:
    """A change of a preset. names: of the components that are written into it."""

    preset: str
    node: ast.AST
    names: Sequence[str]


class Uses:
    """All uses of TextBrewer in a file, by their nodes, and what its names and values are."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.bindings = Bindings(source.tree)
        self.values = Values(self.bindings)
        self.nodes = list(ast.walk(source.tree))
        self.configs: dict[ast.AST, ConfigUse] = {}
        self.distillers: dict[ast.AST, DistillerUse] = {}
        self.trains: list[TrainUse] = []
        self.registrations: dict[ast.AST, Registration] = {}

    def __bool__(self) -> bool:
        return bool(self.configs) or any(map(imported, self.nodes))

    @property
    def registered(self) -> frozenset[str]:
        """Names that the script writes into presets."""
        return frozenset(name for registration in self.registrations.values() for name in registration.names)

    def name(self, node: ast.AST) -> OfTextBrewer | None:
        """The name of TextBrewer that an expression stands for."""
        return next(filter(None, map(of_textbrewer, self.bindings.origins(node))), None)

    def class_of(self, node: ast.AST, below: Sequence[ast.AST] = ()) -> tuple[str, ast.ClassDef | None] | None:
        """TextBrewer's config or distiller that an expression stands for, and the script's class where it is a subclass."""
        for made in self.bindings.definitions(node):
            if isinstance(made, ast.ClassDef) and made not in below:
                found = next(filter(None, (self.class_of(base, [*below, made]) for base in made.bases)), None)
                if found is not None:
                    return found[0], made
        name = self.name(node)
        return (name.name, None) if name and name.name in (*CONFIGS, *DISTILLERS) and not name.rest else None

    def is_config(self, node: ast.AST) -> bool:
        """Whether an expression may stand for a config: one that is built here, or that of a distiller."""
        if isinstance(node, ast.Attribute) and node.attr in ("d_config", "t_config"):
            return self.is_distiller(node.value)
        return any(made in self.configs for made in self.bindings.definitions(node))

    def is_distiller(self, node: ast.AST) -> bool:
        """Whether an expression may stand for a distiller or its class."""
        built = any(made in self.distillers for made in self.bindings.definitions(node))
        return built or (self.class_of(node) or ("", None))[0] in DISTILLERS

    def arguments(self, call: ast.Call, order: Sequence[str]) -> tuple[dict[str, ast.expr], list[Unknown]]:
        """Arguments by name, and what gives others that the text does not tell."""
        starred = [argument for argument in call.args if isinstance(argument, ast.Starred)]
        given = {} if starred else dict(zip(order, call.args, strict=False))
        unread = [self.values.unknown(argument) for argument in starred]
        for keyword in call.keywords:
            entries = {keyword.arg: keyword.value} if keyword.arg else self.bindings.entries(keyword.value)
            given |= entries or {}
            unread += [self.values.unknown(keyword.value)] if entries is None else []
        return given, unread


def find_uses(source: Source) -> Uses:
    """The uses of TextBrewer in a file."""
    uses = Uses(source)
    if source.kind == "config":
        _find_settings(uses)
        return uses
    calls = sorted((n for n in uses.nodes if isinstance(n, ast.Call)), key=lambda n: (n.lineno, n.col_offset))
    for find in (_find_config, _find_distiller, _find_train):
        for call in calls:
            find(uses, call)
    for node in uses.nodes:
        _find_registration(uses, node)
    return uses


def imported(node: ast.AST) -> list[tuple[ast.alias, OfTextBrewer]]:
    """What an import brings in of TextBrewer; nothing for any other node."""
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
        return []
    return [(alias, name) for alias in node.names if (name := of_textbrewer(origin_of(node, alias)))]


def is_given(node: ast.AST | None) -> bool:
    """Whether an argument is there, and not None."""
    return node is not None and not (isinstance(node, ast.Constant) and node.value is None)


# Configs


def _find_settings(uses: Uses) -> None:
    """The configs of a JSON document: the whole of it, or the objects in it."""
    document = uses.source.tree.body[-1]
    whole = document.value if isinstance(document, ast.Expr) else None
    for node in [whole, *whole.values] if isinstance(whole, ast.Dict) else []:
        kind = _kind_of(set(uses.bindings.entries(node) or ()))
        if kind is not None:
            uses.configs[node] = ConfigUse(kind, node.lineno, kind, *_settings_in(uses, node))


def _kind_of(keys: set[str]) -> str | None:
    """The config that has the most of some settings; None where none has any."""
    shared = {kind: len(keys & set(names)) for kind, names in SETTINGS.items()}
    best = max(shared, key=lambda kind: shared[kind])
    return best if shared[best] else None


def _find_config(uses: Uses, call: ast.Call) -> None:
    found, reader = uses.class_of(call.func), ""
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("from_dict", "from_json_file"):
        found, reader = uses.class_of(call.func.value), call.func.attr
    if found is None or found[0] not in CONFIGS:
        return
    given, unread = uses.arguments(call, ["given"] if reader else SETTINGS[found[0]])
    settings = _settings(uses, given)
    if reader and given:
        read = _settings_in if reader == "from_dict" else _settings_of_file
        settings, unread = read(uses, next(iter(given.values())))
    uses.configs[call] = ConfigUse(found[0], call.lineno, ast.unparse(call.func), settings, unread)


def _settings(uses: Uses, given: Mapping[str, ast.expr]) -> dict[str, Setting]:
    return {name: Setting(uses.values.of(value), value.lineno) for name, value in given.items()}


def _settings_in(uses: Uses, node: ast.expr) -> tuple[dict[str, Setting], list[Unknown]]:
    """The settings in a dict."""
    entries = uses.bindings.entries(node)
    return ({}, [uses.values.unknown(node)]) if entries is None else (_settings(uses, entries), [])


def _settings_of_file(uses: Uses, node: ast.expr) -> tuple[dict[str, Setting], list[Unknown]]:
    """The settings in a JSON file that the script reads; its folder is taken for the one where it runs."""
    file = uses.values.of(node)
    if not isinstance(file, str):
        return {}, [uses.values.unknown(node)]
    try:
        found = list(find_uses(read_source(uses.source.path.parent / file)).configs.values())
    except BrewerError:
        return {}, [Unknown(file, f"`{file}` cannot be read from the folder of the script")]
    settings = found[0].settings if found else {}
    return {key: Setting(setting.value, node.lineno) for key, setting in settings.items()}, []


# Distillers and their training


def _find_distiller(uses: Uses, call: ast.Call) -> None:
    found = uses.class_of(call.func)
    if found is None or found[0] not in DISTILLERS:
        return
    kind, own = found
    given, _ = uses.arguments(call, TRAINER_ARGUMENTS if kind == "BasicTrainer" else DISTILLER_ARGUMENTS)
    nodes = [uses.bindings.definition(given[name]) if name in given else None for name in DISTILLER_ARGUMENTS[:2]]
    configs = [uses.configs.get(node) if node is not None else None for node in nodes]
    uses.distillers[call] = DistillerUse(kind, call.lineno, own, given, *configs)


def _find_train(uses: Uses, call: ast.Call) -> None:
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "train":
        return
    receiver, made = call.func.value, uses.bindings.definitions(call.func.value)
    built = [uses.distillers[node] for node in made if node in uses.distillers]
    if not built and not ("distill" in (dotted(receiver) or "").lower() and len(call.args) + len(call.keywords) > 1):
        return
    old, tasks = _is_old_order(uses, call), any(distiller.kind == "MultiTaskDistiller" for distiller in built)
    given, unread = uses.arguments(call, TRAIN_ARGUMENTS[tasks, old])
    text, distiller = ast.unparse(receiver), built[0] if len(built) == len(made) == 1 else None
    held = _is_held(uses, call, text)
    unsure = not old and len(call.args) > 1 and _is_parameter(uses, call.args[1])
    uses.trains.append(TrainUse(call.lineno, text, distiller, given, bool(unread), old, held, unsure))


def _is_held(uses: Uses, call: ast.Call, receiver: str) -> bool:
    """Whether a `with` on the object is around a call."""
    statements = [node for node in uses.nodes if isinstance(node, (ast.With, ast.AsyncWith)) and call in ast.walk(node)]
    items = [item for statement in statements for item in statement.items]
    return receiver in [
        ast.unparse(p) for item in items for p in (item.context_expr, item.optional_vars) if p is not None
    ]


def _is_old_order(uses: Uses, call: ast.Call) -> bool:
    """Whether the scheduler stands where the loader belongs."""
    if len(call.args) < 2 or any(isinstance(argument, ast.Starred) for argument in call.args):
        return False
    second, third = call.args[1], call.args[2] if len(call.args) > 2 else None
    named = {keyword.arg for keyword in call.keywords}
    taken_twice = named & {"dataloader", "dataloaders", "num_epochs" if third is not None else None}
    looks_old = _looks(uses, second, "sched", "lr_") or _looks(uses, third, "loader", "dataset")
    return bool(taken_twice) or looks_old or not is_given(second)


def _is_parameter(uses: Uses, node: ast.AST) -> bool:
    """Whether an argument is a parameter of the function around, whose name does not tell a loader."""
    bound = uses.bindings.every(node)
    unknown = bool(bound) and all(binding.value is None and binding.origin is None for binding in bound)
    return unknown and not _looks(uses, node, "load", "data", "batch", "train", "iter")


def _looks(uses: Uses, node: ast.AST | None, *parts: str) -> bool:
    """Whether a name, or what makes it, has a word in it."""
    made = uses.bindings.definition(node) if node is not None else None
    texts = [(dotted(n) or "").lower() for n in (node, made.func if isinstance(made, ast.Call) else None) if n]
    return any(part in text for part in parts for text in texts)


# Presets


def _find_registration(uses: Uses, node: ast.AST) -> None:
    """Note a name of TextBrewer that is written to: `PRESET[name] =`, `PRESET.update(...)`, `register_new(...)`."""
    name = uses.name(node) if isinstance(node, (ast.Name, ast.Attribute)) else None
    outer = uses.bindings.parent(node)
    if name is None or outer is None or name.name not in (*PRESETS, *LISTS, "register_new"):
        return
    match outer:
        case ast.Subscript(ctx=ast.Store() | ast.Del(), slice=key) if not name.rest:
            written, names = uses.bindings.parent(outer) or outer, [key]
        case ast.AugAssign(target=target) if target is node:
            written, names = outer, []
        case ast.Call(func=function, args=args) if function is node and name.name == "register_new":
            written, names = outer, args[1:2]
        case ast.Call(func=function, args=args) if function is node and name.rest and name.rest[0] in _WRITING:
            written, names = outer, args[:1]
        case _:
            return
    uses.registrations[node] = Registration(name.name, written, _names_in(uses, names))


def _names_in(uses: Uses, nodes: Sequence[ast.AST]) -> list[str]:
    """The texts that expressions stand for, or the keys of the dicts."""
    found: list[str] = []
    for value in map(uses.values.of, nodes):
        found += [value] if isinstance(value, str) else value if isinstance(value, Written) else []
    return found
