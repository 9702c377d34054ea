"""The value of an expression, as far as the text tells: literals, lists and dicts of them, and names of those."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brewer_core.migration.bindings import Bindings


@dataclass(frozen=True, repr=False)
class Unknown:
    """A value that only a run of the script would tell. text: the expression. why: the reason, a sentence without its full stop."""

    text: str
    why: str

    def __repr__(self) -> str:
        return self.text


class Written(dict[str, Any]):
    """A mapping of the text, with its line."""

    line = 0


class Values:
    """Reads values off a module."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._known: dict[ast.AST, Any] = {}

    def of(self, node: ast.AST) -> Any:
        """The value of an expression; Unknown, or a list or mapping with Unknown in it, where the text does not tell."""
        if node not in self._known:
            self._known[node] = _unknown(node)  # while it is read: names may go round in a circle
            self._known[node] = self._read(node)
        return self._known[node]

    def unknown(self, node: ast.AST) -> Unknown:
        """Why the text does not tell the whole of an expression."""
        value = self.of(node)
        return value if isinstance(value, Unknown) else _unknown(node)

    def _read(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                starred = any(isinstance(part, ast.Starred) for part in parts)
                return _unknown(node) if starred else [self.of(part) for part in parts]
            case ast.Dict() | ast.Call():
                return self._mapping(node)
            case ast.Name() | ast.Attribute():
                return self._named(node)
        return _unknown(node)

    def _mapping(self, node: ast.Dict | ast.Call) -> Any:
        entries = self._bindings.entries(node)
        if entries is None:
            return _unknown(node)
        made = Written({key: self.of(value) for key, value in entries.items()})
        made.line = node.lineno
        return made

    def _named(self, node: ast.Name | ast.Attribute) -> Any:
        made = self._bindings.definition(node)
        if made is None:
            return Unknown(_text(node), f"`{_text(node)}` is set or changed in more than one place")
        if not isinstance(made, (ast.Name, ast.Attribute)):
            return self.of(made) if isinstance(made, ast.expr) else _unknown(node)
        module = next(iter(self._bindings.origins(made)), "").rpartition(".")[0]
        return Unknown(_text(node), f"`{_text(node)}` comes from the module {module}") if module else _unknown(made)


def first_unknown(value: Any) -> Unknown | None:
    """The first part of a value that is not known; None where all of it is."""
    if isinstance(value, Unknown):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next(filter(None, map(first_unknown, parts)), None)


def cut(text: str, length: int = 60) -> str:
    """A text on one line, of some length at most."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _unknown(node: ast.AST) -> Unknown:
    return Unknown(_text(node), f"`{_text(node)}` is only known when the script runs")


def _text(node: ast.AST) -> str:
    return cut(ast.unparse(node))
