"""The value of an expression, as far as the text tells: literals, names of literals, and little sums of them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brewer_core.migration.bindings import Ambiguous, Bindings, dotted

_DEEPEST = 40
_LARGEST = 1e300
_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "tuple": tuple,
}
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_JSON: Mapping[str, Any] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Unknown:
    """A value that only a run of the script would tell. text: the expression. why: the reason, half a sentence."""

    text: str
    why: str

    @property
    def sentence(self) -> str:
        """The reason as a sentence without its full stop."""
        return self.why if f"`{self.text}`" in self.why else f"`{self.text}` is not known, as {self.why}"


class Written(dict[str, Any]):
    """A mapping of the text, with the lines of its keys."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}

    def put(self, key: Any, value: Any, line: int) -> None:
        """Set a key that stands in a line."""
        self[key], self.lines[key] = value, line

    def take(self, other: Mapping[str, Any]) -> None:
        """Set every key of another mapping."""
        for key, value in other.items():
            self.put(key, value, other.lines[key] if isinstance(other, Written) else self.line)


class Values:
    """Reads values off a module. json: whether the text is JSON, whose words for constants then stand for them."""

    def __init__(self, bindings: Bindings, json: bool = False) -> None:
        self._bindings = bindings
        self._json = json

    def of(self, node: ast.AST, depth: int = 0) -> Any:
        """The value of an expression; Unknown, or a list or mapping with Unknown in it, where the text does not tell."""
        if depth > _DEEPEST:
            return _unknown(node)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return self._sequence(node, depth)
        if isinstance(node, ast.Dict):
            return self._mapping(node, depth)
        if isinstance(node, (ast.UnaryOp, ast.BinOp)):
            return self._computed(node, depth)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._named(node, depth)
        if isinstance(node, ast.Subscript):
            return self._part(node, depth)
        return self._called(node, depth) if isinstance(node, ast.Call) else _unknown(node)

    def _sequence(self, node: ast.List | ast.Tuple | ast.Set, depth: int) -> Any:
        items: list[Any] = []
        for element in node.elts:
            if not isinstance(element, ast.Starred):
                items.append(self.of(element, depth + 1))
                continue
            inner = self.of(element.value, depth + 1)
            if not isinstance(inner, (list, tuple)):
                return _unknown(node)
            items += inner
        return tuple(items) if isinstance(node, ast.Tuple) else items

    def _mapping(self, node: ast.Dict, depth: int) -> Any:
        made = Written(node.lineno)
        for key, value in zip(node.keys, node.values, strict=True):
            read = self.of(value, depth + 1)
            name = None if key is None else self.of(key, depth + 1)
            if key is None and isinstance(read, Mapping):
                made.take(read)
            elif key is not None and isinstance(name, (str, int)):
                made.put(name, read, key.lineno)
            else:
                return _unknown(node)
        return made

    def _computed(self, node: ast.UnaryOp | ast.BinOp, depth: int) -> Any:
        if isinstance(node, ast.UnaryOp):
            operand = self.of(node.operand, depth + 1)
            if isinstance(node.op, ast.Not) and isinstance(operand, bool):
                return not operand
            if not _number(operand) or not isinstance(node.op, (ast.USub, ast.UAdd)):
                return _unknown(node)
            return -operand if isinstance(node.op, ast.USub) else operand
        left, right = self.of(node.left, depth + 1), self.of(node.right, depth + 1)
        combine = _OPERATORS.get(type(node.op))
        joined = combine is operator.add and type(left) is type(right) and isinstance(left, (list, tuple, str))
        if combine is None or not (joined or (_number(left) and _number(right))):
            return _unknown(node)
        try:
            return combine(left, right)
        except ArithmeticError:
            return _unknown(node)

    def _named(self, node: ast.Name | ast.Attribute, depth: int) -> Any:
        if self._json and isinstance(node, ast.Name) and node.id in _JSON:
            return _JSON[node.id]
        try:
            binding = self._bindings.one(node)
        except Ambiguous as error:
            return Unknown(ast.unparse(node), str(error))
        if binding is not None and isinstance(binding.value, ast.expr):
            return self.of(binding.value, depth + 1)
        module = (binding.origin or "").rpartition(".")[0] if binding is not None else ""
        return Unknown(_text(node), f"`{_text(node)}` comes from the module {module}") if module else _unknown(node)

    def _part(self, node: ast.Subscript, depth: int) -> Any:
        whole, key = self.of(node.value, depth + 1), self.of(node.slice, depth + 1)
        if isinstance(whole, Unknown) and whole.why != _why(whole.text):
            return Unknown(_text(node), whole.why)
        try:
            return whole[key] if isinstance(whole, (list, tuple, Mapping)) else _unknown(node)
        except (KeyError, IndexError, TypeError):
            return _unknown(node)

    def _called(self, node: ast.Call, depth: int) -> Any:
        name = dotted(node.func)
        if name is None or name not in _CONSTRUCTORS or self._bindings.every(node.func):
            return _unknown(node)
        if name == "dict":
            return self._dict_of(node, depth)
        arguments = [self.of(argument, depth + 1) for argument in node.args]
        if node.keywords or len(arguments) != 1 or isinstance(arguments[0], Unknown):
            return _unknown(node)
        try:
            return _CONSTRUCTORS[name](arguments[0])
        except (TypeError, ValueError, OverflowError):
            return _unknown(node)

    def _dict_of(self, node: ast.Call, depth: int) -> Any:
        made = Written(node.lineno)
        parts = [(None, argument) for argument in node.args] + [(k.arg, k.value) for k in node.keywords]
        for key, value in parts:
            read = self.of(value, depth + 1)
            if key is not None:
                made.put(key, read, value.lineno)
            elif isinstance(read, Mapping):
                made.take(read)
            else:
                return _unknown(node)
        return made


def holds_unknown(value: Any) -> Unknown | None:
    """The first part of a value that is not known; None where all of it is."""
    if isinstance(value, Unknown):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return next((found for part in parts if (found := holds_unknown(part)) is not None), None)


def plain(value: Any, stand_in: Callable[[Unknown], Any]) -> Any:
    """The value with lists for tuples and plain mappings, and something else for what is not known."""
    if isinstance(value, Unknown):
        return stand_in(value)
    if isinstance(value, Mapping):
        return {key: plain(inner, stand_in) for key, inner in value.items()}
    return [plain(inner, stand_in) for inner in value] if isinstance(value, (list, tuple)) else value


def source_text(value: Any) -> str:
    """A value as a script would write it, cut where it is long."""
    return _cut(repr(plain(value, lambda unknown: _Bare(unknown.text))))


class _Bare(str):
    """A text whose repr is the text itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def _unknown(node: ast.AST) -> Unknown:
    return Unknown(_text(node), _why(_text(node)))


def _why(text: str) -> str:
    return f"`{text}` is only known when the script runs"


def _text(node: ast.AST) -> str:
    return _cut(" ".join(ast.unparse(node).split()))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
