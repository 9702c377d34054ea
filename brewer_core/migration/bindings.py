"""What the names of a Python module stand for, as far as its text tells. Nothing is executed.

A name is followed where it is given a value in one place, and never changed. Every other one may stand for several things.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

_CHANGING = frozenset(
    {"append", "extend", "insert", "remove", "pop", "clear", "update", "setdefault", "sort", "reverse", "add"}
)
"""Methods that change the object that they are called on."""


@dataclass(frozen=True)
class Binding:
    """One place where a name is given a value, or its value changed.

    value: the expression or definition; None where the text does not tell. origin: the dotted name that an import brings in.
    """

    value: ast.AST | None = None
    origin: str | None = None


@dataclass
class _Scope:
    """The names of a module, a class or a function."""

    node: ast.AST
    parent: _Scope | None = None
    names: dict[str, list[Binding]] = field(default_factory=dict)

    def owner(self, name: str) -> _Scope | None:
        """The scope in which a name is bound, seen from this one; the classes around a function are passed over."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names and (scope is self or not isinstance(scope.node, ast.ClassDef)):
                return scope
            scope = scope.parent
        return None


class Bindings:
    """The names of a module. Attributes are followed on `self` alone."""

    def __init__(self, tree: ast.Module) -> None:
        self._scopes: dict[ast.AST, _Scope] = {}
        self._parents: dict[ast.AST, ast.AST] = {}
        self._attributes: dict[str, list[Binding]] = {}
        self._changes: list[tuple[str, _Scope]] = []
        self._origins: dict[ast.AST, Sequence[str]] = {}
        self._walk(tree, _Scope(tree))
        for name, scope in self._changes:
            owner = scope.owner(name)
            if owner is not None:
                owner.names[name].append(Binding())

    def parent(self, node: ast.AST) -> ast.AST | None:
        """What a node stands in directly."""
        return self._parents.get(node)

    def every(self, node: ast.AST) -> Sequence[Binding]:
        """All that a name, or an attribute of `self`, is ever given where the node stands."""
        if isinstance(node, ast.Name) and node in self._scopes:
            owner = self._scopes[node].owner(node.id)
            return owner.names[node.id] if owner else ()
        return self._attributes.get(node.attr, ()) if isinstance(node, ast.Attribute) and _is_self(node.value) else ()

    def definitions(self, node: ast.AST) -> list[ast.AST]:
        """The expressions that a name may stand for; among them a name itself where the text does not tell."""
        found, waiting = [], [node]
        for one in waiting:  # it grows, by each expression once: names may go round in a circle
            bound = self.every(one)
            waiting += [b.value for b in bound if b.value is not None and b.value not in waiting]
            if not bound or any(binding.value is None for binding in bound):
                found.append(one)
        return found

    def definition(self, node: ast.AST) -> ast.AST | None:
        """The one expression that a name stands for; None where there may be several."""
        found = self.definitions(node)
        return found[0] if len(found) == 1 else None

    def entries(self, node: ast.AST, below: Sequence[ast.AST] = ()) -> dict[str, ast.expr] | None:
        """The values of a literal dict that an expression stands for, by their keys; None where the text does not tell."""
        made = self.definition(node)
        match made:
            case ast.Dict(keys=keys, values=values):
                parts = list(zip(keys, values, strict=True))
            case ast.Call(func=ast.Name(id="dict") as name, args=[], keywords=given) if not self.every(name):
                parts = [(ast.Constant(part.arg) if part.arg else None, part.value) for part in given]
            case _:
                return None
        found: dict[str, ast.expr] = {}
        for key, value in parts:
            inner = self.entries(value, [*below, made]) if key is None and made not in below else None
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                found[key.value] = value
            elif inner is None:
                return None
            else:
                found |= inner
        return found

    def origins(self, node: ast.AST) -> Sequence[str]:
        """The dotted names of imports that an expression may stand for."""
        if node not in self._origins:
            self._origins[node] = ()  # while they are looked for: names may go round in a circle
            self._origins[node] = [origin for made in self.definitions(node) for origin in self._origins_of(made)]
        return self._origins[node]

    def _origins_of(self, made: ast.AST) -> list[str]:
        found = [binding.origin for binding in self.every(made) if binding.origin]
        inner = self.origins(made.value) if isinstance(made, ast.Attribute) else ()
        return [*found, *(f"{origin}.{made.attr}" for origin in inner if isinstance(made, ast.Attribute))]

    # Reading

    def _walk(self, node: ast.AST, scope: _Scope) -> None:
        for child in ast.iter_child_nodes(node):
            self._parents[child], self._scopes[child] = node, scope
            self._note(child, scope)
            opens = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            self._walk(child, _Scope(child, scope) if opens else scope)

    def _note(self, node: ast.AST, scope: _Scope) -> None:
        """Note what a node binds or changes."""
        match node:
            case ast.Name(ctx=ast.Store() | ast.Del()):
                self._bind(node.id, scope, self._given(node))
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                self._attributes.setdefault(node.attr, []).append(self._given(node))
            case ast.Subscript(ctx=ast.Store() | ast.Del()):
                self._change(node.value, scope)
            case ast.Call(func=ast.Attribute(attr=method)) if method in _CHANGING:
                self._change(node.func.value, scope)  # type: ignore[attr-defined]  # the pattern says that it is one
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._bind(node.name, scope, Binding(node))
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    self._import(node, alias, scope)
            case ast.Global() | ast.Nonlocal():
                for name in node.names:
                    self._bind(name, scope, Binding())
                    self._changes.append((name, scope.parent or scope))
            case ast.arg(arg=str(name)) | ast.ExceptHandler(name=str(name)) | ast.MatchMapping(rest=str(name)):
                self._bind(name, scope, Binding())
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                self._bind(name, scope, Binding())

    def _bind(self, name: str, scope: _Scope, binding: Binding) -> None:
        scope.names.setdefault(name, []).append(binding)
        if isinstance(scope.node, ast.ClassDef):  # a default, which an instance may have another value for
            self._attributes.setdefault(name, []).append(Binding())

    def _given(self, target: ast.AST) -> Binding:
        """What a name is given where it alone stands left of a value."""
        match self._parents[target]:
            case ast.Assign(value=value) | ast.AnnAssign(value=value) | ast.NamedExpr(value=value):
                return Binding(value)
            case ast.withitem(context_expr=value):
                return Binding(value)
        return Binding()

    def _change(self, target: ast.AST, scope: _Scope) -> None:
        while isinstance(target, ast.Subscript):
            target = target.value
        if isinstance(target, ast.Name):
            self._changes.append((target.id, scope))
        elif isinstance(target, ast.Attribute):
            self._attributes.setdefault(target.attr, []).append(Binding())

    def _import(self, node: ast.Import | ast.ImportFrom, alias: ast.alias, scope: _Scope) -> None:
        whole = origin_of(node, alias)
        if isinstance(node, ast.Import) and alias.asname is None:
            whole = whole.partition(".")[0]  # `import a.b` gives `a`
        self._bind(alias.asname or whole.rpartition(".")[2], scope, Binding(origin=whole))


def origin_of(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    """The dotted name that a part of an import stands for."""
    if isinstance(node, ast.Import):
        return alias.name
    return f"{'.' * node.level}{node.module or ''}.{alias.name}"


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` for a name or attributes of one; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else None


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
