"""The base of all conformance classes: what is tested, with which options, and which properties are switched off."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NoReturn

import torch

from brewer_core.components import KINDS, Component, Method
from brewer_core.components.facts import check_exempt
from brewer_core.errors import ComponentError, did_you_mean

PREFIX = "test_"
SEED = 0


class DoesNotApply(unittest.SkipTest):
    """A property that does not apply; the text is the reason. pytest and unittest show it as a skipped test."""


def does_not_apply(reason: str) -> NoReturn:
    """Skip the property, with a reason that the report shows."""
    raise DoesNotApply(reason)


def require(holds: bool, message: str) -> None:
    """Raise AssertionError where the property does not hold; unlike `assert` also under `python -O`."""
    if not holds:
        raise AssertionError(message)


class Conformance:
    """What every component of a kind promises, as tests: subclass the class of the kind and name the component.

    component: the function or class, or its name in the registry of what is installed.
    options: those to test it with. They come before the `example` that `@component` declares.
    exempt: properties that do not apply, each with the reason, beside those that `@component` declares.
    claims: properties that hold only where they are claimed, beside those that `@component` declares.
    """

    kind: ClassVar[str]
    component: ClassVar[Any]
    options: ClassVar[Mapping[str, Any]] = {}
    exempt: ClassVar[Mapping[str, str]] = {}
    claims: ClassVar[Sequence[str]] = ()

    @classmethod
    def properties(cls) -> tuple[str, ...]:
        """The names of the properties, in the order of their definition."""
        names = [name for base in reversed(cls.__mro__) for name in vars(base) if name.startswith(PREFIX)]
        return tuple(dict.fromkeys(name.removeprefix(PREFIX) for name in names))

    def setup_method(self, method: Callable[..., None]) -> None:
        """Skip what is switched off. pytest calls this before each test, and so does `brewer test-plugin`."""
        name = method.__name__.removeprefix(PREFIX)
        if name in self.exemptions:
            does_not_apply(self.exemptions[name])

    @cached_property
    def subject(self) -> Component:
        """The component that is tested. Raises ComponentError where the class names none, or one that breaks a rule."""
        # read past the descriptor protocol: a plain function would come back as a method of this instance
        owner = next((base for base in type(self).__mro__ if "component" in vars(base)), None)
        if owner is None:
            raise ComponentError(f"{type(self).__name__} names no component; write `component = ...` in it.")
        given = vars(owner)["component"]
        if isinstance(given, staticmethod):
            given = given.__func__
        if isinstance(given, Component):
            return given
        if isinstance(given, str):
            from brewer_core.plugins import default_registry

            return default_registry().get(self.kind, given)
        return Component.passed(self.kind, given)

    @cached_property
    def exemptions(self) -> Mapping[str, str]:
        """The properties that are switched off, with their reasons. Raises ComponentError where one does not exist."""
        check_exempt(self.exempt)
        merged = {**self.subject.facts.exempt, **self.exempt}
        known = self.properties()
        for name in merged:
            if name not in known:
                raise ComponentError(
                    f"{self.label} exempts {name!r}, which is no property of this kind{did_you_mean(name, known)}"
                )
        return merged

    @property
    def claimed(self) -> frozenset[str]:
        """The properties that are claimed."""
        return frozenset((*self.subject.facts.claims, *self.claims))

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that it is tested with."""
        return {**self.subject.facts.example, **self.options}

    @property
    def label(self) -> str:
        """The component as a message names it."""
        return f"{KINDS[self.kind].title} `{self.subject.name}`"

    def bound(self, **sizes: Any) -> Method:
        """The component with its options set; what it draws comes from a seed, and the global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.subject.bind(self.chosen, **sizes)
