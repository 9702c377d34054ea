"""Which expression a name stands for in a Python module, as far as its text tells. Nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_CHANGING = frozenset(
    {"append", "extend", "insert", "remove", "pop", "clear", "update", "setdefault", "sort", "reverse", "add"}
)
"""Methods that change the object that they are called on."""


@dataclass(frozen=True)
class Branch:
    """One arm of a statement that may run once, never or often."""

    node: int
    arm: int
    loop: bool


Block = tuple[Branch, ...]


@dataclass(frozen=True)
class Binding:
    """One place where a name is given a value.

    value: the expression or class; None where the text does not tell. origin: the dotted name that an import brings in.
    """

    value: ast.AST | None
    position: tuple[int, int]
    block: Block
    origin: str | None = None


@dataclass
class Scope:
    """The names of a module, a class or a function."""

    kind: Literal["module", "class", "function"]
    parent: Scope | None = None
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    """Names whose value is changed in place, each with a line where that happens."""


@dataclass(frozen=True)
class Place:
    """Where a node stands."""

    scope: Scope
    block: Block


class Ambiguous(Exception):
    """A name whose value the text does not tell; the message says why."""


class Bindings:
    """The names of a module, by the place where they are used."""

    def __init__(self, tree: ast.Module) -> None:
        reader = _Reader()
        reader.visit(tree)
        self._places = reader.places
        self._parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        for key, scope, line in reader.changes:
            owner = _owner(key, scope)
            if owner is not None:
                owner.changes.setdefault(key, line)

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, from the inside out."""
        while node in self._parents:
            node = self._parents[node]
            yield node

    def every(self, node: ast.AST) -> Sequence[Binding]:
        """All that a name, or a dotted one, is ever given where the node stands."""
        key, place = dotted(node), self._places.get(node)
        owner = _owner(key, place.scope) if key and place else None
        return owner.bindings[key] if owner and key else ()

    def one(self, node: ast.AST) -> Binding | None:
        """What a name is given there; None where it is no name of this module. Raises Ambiguous where it may be several."""
        key, place = dotted(node), self._places.get(node)
        owner = _owner(key, place.scope) if key and place else None
        if owner is None or key is None or place is None:
            return None
        if key in owner.changes:
            raise Ambiguous(f"`{key}` is changed in line {owner.changes[key]}")
        found = owner.bindings[key]
        if len(found) == 1:
            return found[0]
        before = [b for b in found if b.position <= _position(node)] if owner is place.scope else []
        if before and _surely_before(before[-1], node, place, found):
            return before[-1]
        raise Ambiguous(f"`{key}` is given in {len(found)} places")


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` for a name or attributes of one; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else None
    return None


def _surely_before(last: Binding, node: ast.AST, place: Place, found: Sequence[Binding]) -> bool:
    """Whether the binding is what the node sees: it ran on every way there, and no later one comes round in a loop."""
    later = [b for b in found if b.position > _position(node)]
    loops = {branch for branch in place.block if branch.loop} - set(last.block)
    return place.block[: len(last.block)] == last.block and not any(loops & set(b.block) for b in later)


def _owner(key: str | None, scope: Scope) -> Scope | None:
    """The scope in which a name is bound, seen from another; the classes around a function are passed over."""
    start: Scope = scope
    current: Scope | None = scope
    while current is not None and key is not None:
        visible = current is start or current.kind != "class" or key.startswith("self.")
        if visible and key in current.bindings:
            return current
        current = current.parent
    return None


def _position(node: ast.AST) -> tuple[int, int]:
    return (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))


def _end(node: ast.AST) -> tuple[int, int]:
    return (getattr(node, "end_lineno", None) or 0, getattr(node, "end_col_offset", None) or 0)


class _Reader(ast.NodeVisitor):
    """Walks a module and notes every place and every binding."""

    def __init__(self) -> None:
        self.places: dict[ast.AST, Place] = {}
        self.changes: list[tuple[str, Scope, int]] = []
        self._scope = Scope("module")
        self._block: Block = ()

    def visit(self, node: ast.AST) -> Any:
        self.places[node] = Place(self._scope, self._block)
        return super().visit(node)

    # Scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._bind(node.name, node, node)
        for outer in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(outer)
        self._inside("function", node.body, node.args)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._inside("function", [node.body], node.args)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._bind(node.name, node, node)
        for outer in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(outer)
        self._inside("class", node.body)

    def _comprehension(self, node: ast.AST) -> None:
        outer, self._scope = self._scope, Scope("function", self._scope)
        self.generic_visit(node)
        self._scope = outer

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._targets(node.target, None, node.target)
        self.generic_visit(node)

    def _inside(self, kind: Any, body: Sequence[ast.AST], arguments: ast.arguments | None = None) -> None:
        outer, block = self._scope, self._block
        self._scope, self._block = Scope(kind, outer), ()
        for name in _parameters(arguments):
            self._bind(name.arg, None, name)
        for statement in body:
            self.visit(statement)
        self._scope, self._block = outer, block

    # Branches

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        if ast.unparse(node.test).startswith("__name__ =="):
            self._arm(node, 0, node.body, apart=False)
        else:
            self._arm(node, 0, node.body)
        self._arm(node, 1, node.orelse)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._targets(node.target, None, node.target)
        self.visit(node.target)
        self._arm(node, 0, node.body, loop=True)
        self._arm(node, 1, node.orelse)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self.visit_For(node)

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._arm(node, 0, node.body, loop=True)
        self._arm(node, 1, node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        self._arm(node, 0, node.body)
        for arm, handler in enumerate(node.handlers, 3):
            if handler.name:
                self._bind(handler.name, None, handler)
            self._arm(node, arm, [handler])
        self._arm(node, 1, node.orelse)
        self._arm(node, 2, node.finalbody, apart=False)

    def visit_TryStar(self, node: Any) -> None:
        self.visit_Try(node)

    def visit_match_case(self, node: ast.match_case) -> None:
        self._arm(node, 0, [node.pattern, *([node.guard] if node.guard else []), *node.body])

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self._bind(node.name, None, node)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        self.visit_MatchAs(node)

    def _arm(self, node: ast.AST, arm: int, body: Sequence[ast.AST], loop: bool = False, apart: bool = True) -> None:
        outer = self._block
        self._block = (*outer, Branch(id(node), arm, loop)) if apart else outer
        for statement in body:
            self.visit(statement)
        self._block = outer

    # Bindings

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            top = alias.name.partition(".")[0]
            self._bind(alias.asname or top, None, node, alias.name if alias.asname else top)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            self._bind(alias.asname or alias.name, None, node, f"{module}.{alias.name}")

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._targets(target, node.value, node)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._targets(node.target, node.value, node)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._targets(node.target, node.value, node)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._change(node.target, node)
        self.generic_visit(node)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self._targets(item.optional_vars, item.context_expr, item.optional_vars)
        self.generic_visit(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self.visit_With(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._change(target, node)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> None:
        for name in node.names:
            self._note_change(name, self._scope.parent or self._scope, node)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.visit_Global(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGING:
            self._change(node.func.value, node)
        self.generic_visit(node)

    def _targets(self, target: ast.AST, value: ast.AST | None, statement: ast.AST) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            parts = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
            matched = len(parts) == len(target.elts) and not any(
                isinstance(p, ast.Starred) for p in (*parts, *target.elts)
            )
            for i, part in enumerate(target.elts):
                self._targets(part, parts[i] if matched else None, statement)
        elif isinstance(target, ast.Starred):
            self._targets(target.value, None, statement)
        elif isinstance(target, ast.Subscript):
            self._change(target, statement)
        else:
            key = dotted(target)
            if key is not None:
                self._bind(key, value, statement)

    def _change(self, target: ast.AST, statement: ast.AST) -> None:
        while isinstance(target, ast.Subscript):
            target = target.value
        key = dotted(target)
        if key is not None:
            self._note_change(key, self._scope, statement)

    def _note_change(self, key: str, scope: Scope, statement: ast.AST) -> None:
        self.changes.append((key, scope, getattr(statement, "lineno", 0)))

    def _bind(self, key: str, value: ast.AST | None, statement: ast.AST, origin: str | None = None) -> None:
        scope = self._scope
        while key.startswith("self.") and scope.kind == "function" and scope.parent is not None:
            scope = scope.parent
        scope.bindings.setdefault(key, []).append(Binding(value, _end(statement), self._block, origin))


def _parameters(arguments: ast.arguments | None) -> list[ast.arg]:
    if arguments is None:
        return []
    extra = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]
