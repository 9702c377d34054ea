"""Which of TextBrewer's names an expression of a script stands for."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from brewer_core.migration.bindings import Bindings
from brewer_core.migration.names import BY_KEY, CONFIGS, DISTILLERS, EXPORTS, MODULES, OfTextBrewer, of_textbrewer
from brewer_core.migration.values import Values


class Naming:
    """The names of TextBrewer in a script, under whatever aliases."""

    def __init__(self, bindings: Bindings, values: Values, nodes: Sequence[ast.AST]) -> None:
        self._bindings = bindings
        self._values = values
        self._stars = [
            star
            for node in nodes
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
            if (star := of_textbrewer(node.module or "")) is not None
        ]
        self._origins: dict[int, str | None] = {}
        """By the bindings of a name, so that names which stand for one another are asked once."""

    def name(self, node: ast.AST) -> OfTextBrewer | None:
        """The name of TextBrewer that an expression stands for."""
        origin = self._origin(node)
        return of_textbrewer(origin) if origin else None

    def of_class(self, node: ast.AST, below: tuple[str, ...] = ()) -> tuple[str, str | None] | None:
        """TextBrewer's class that an expression stands for, and the script's own where that is a subclass of it."""
        name = self.name(node)
        if name and name.name in (*CONFIGS, *DISTILLERS) and not name.rest:
            return name.name, None
        for binding in self._bindings.every(node):
            made = binding.value
            if isinstance(made, ast.ClassDef) and made.name not in below:
                bases = (self.of_class(base, (*below, made.name)) for base in made.bases)
                found = next(filter(None, bases), None)
                if found:
                    return found[0], made.name
        return None

    def definitions(self, node: ast.AST, seen: set[int] | None = None) -> Iterator[ast.AST]:
        """The expressions that a name may stand for."""
        seen = set() if seen is None else seen
        bound = [b.value for b in self._bindings.every(node) if b.value is not None]
        for value in bound:
            if id(value) not in seen:
                seen.add(id(value))
                yield from self.definitions(value, seen)
        if not bound:
            yield node

    def _origin(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Subscript):
            return self._by_key(node)
        bound = self._bindings.every(node)
        if bound:
            if id(bound) not in self._origins:
                self._origins[id(bound)] = None  # while it is looked for: names may go round in a circle
                self._origins[id(bound)] = self._first_origin(node)
            return self._origins[id(bound)]
        if isinstance(node, ast.Name):
            return self._from_star(node.id)
        inner = self._origin(node.value) if isinstance(node, ast.Attribute) else None
        return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else None

    def _first_origin(self, node: ast.AST) -> str | None:
        for binding in self._bindings.every(node):
            if binding.origin and of_textbrewer(binding.origin):
                return binding.origin
            if isinstance(binding.value, (ast.Name, ast.Attribute, ast.Subscript)):
                origin = self._origin(binding.value)
                if origin:
                    return origin
        return None

    def _by_key(self, node: ast.Subscript) -> str | None:
        """The class under a key of `Distillers`."""
        found, key = self.name(node.value), self._values.of(node.slice)
        chosen = BY_KEY.get(key) if found and found.name == "Distillers" and isinstance(key, str) else None
        return f"{found.root}.{chosen}" if found and chosen else None

    def _from_star(self, name: str) -> str | None:
        """The origin of a name that only `from textbrewer... import *` can bring in."""
        for star in self._stars:
            if name in MODULES.get(star.module, ()):
                return f"{star.root}.{star.module}.{name}"
            if name in EXPORTS:
                return f"{star.root}.{name}"
        return None
