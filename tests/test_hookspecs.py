"""The hook specifications: one a kind, without parameters, each with an example that compiles."""

from __future__ import annotations

import inspect
from textwrap import dedent

import pytest

from brewer_core import hookspecs
from brewer_core.components import KINDS

MARK = f"{hookspecs.NAMESPACE}_spec"
SPECIFICATIONS = {name: value for name, value in vars(hookspecs).items() if hasattr(value, MARK)}
each_hook = pytest.mark.parametrize("name", sorted(SPECIFICATIONS))


def documentation(name: str) -> str:
    return inspect.getdoc(SPECIFICATIONS[name]) or ""


def section(name: str, title: str) -> str:
    """The indented text under a title, `Example` or `Returns`."""
    _, found, rest = documentation(name).partition(f"\n{title}:\n")
    assert found, f"the docstring of {name} has no section {title!r}"
    lines = rest.splitlines()
    length = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return dedent("\n".join(lines[:length])).strip()


def example(name: str) -> str:
    return dedent(section(name, "Example").partition("::\n")[2])


def test_there_is_exactly_one_hook_a_kind() -> None:
    assert set(SPECIFICATIONS) == {kind.hook for kind in KINDS.values()}
    assert len(SPECIFICATIONS) == len(KINDS) == 13


def test_hooks_are_called_as_the_contract_says() -> None:
    assert sorted(SPECIFICATIONS) == [
        "brewer_adaptors",
        "brewer_augmentations",
        "brewer_balancers",
        "brewer_datasets",
        "brewer_kd_losses",
        "brewer_match_losses",
        "brewer_metrics",
        "brewer_models",
        "brewer_projections",
        "brewer_strategies",
        "brewer_temperature_schedulers",
        "brewer_trackers",
        "brewer_weight_schedulers",
    ]


@each_hook
def test_a_hook_has_no_parameters_and_returns_a_mapping(name: str) -> None:
    signature = inspect.signature(SPECIFICATIONS[name])

    assert list(signature.parameters) == []
    assert str(signature.return_annotation).startswith("Mapping[str, ")


@each_hook
def test_the_example_of_a_hook_is_a_plugin_that_compiles(name: str) -> None:
    code = example(name)

    compile(code, f"<example of {name}>", "exec")
    assert f"@hookimpl\ndef {name}():\n    return {{" in code


@each_hook
def test_a_hook_says_what_it_returns_and_since_when(name: str) -> None:
    assert section(name, "Returns").startswith("A mapping from ")
    assert documentation(name).rstrip().splitlines()[-1].startswith("Added in 0.")


@each_hook
def test_a_hook_names_the_inputs_of_its_kind(name: str) -> None:
    (kind,) = [kind for kind in KINDS.values() if kind.hook == name]
    text = documentation(name)

    missing = [word for word in (*kind.positional, *kind.named, *kind.sizes) if word not in text]
    assert missing == []


@each_hook
def test_the_example_of_a_hook_follows_the_rules_of_its_kind(name: str) -> None:
    from typing import Annotated

    from pydantic import Field

    import brewer_core
    from brewer_core.plugins import collect

    given = {
        "Annotated": Annotated,
        "Field": Field,
        "hookimpl": brewer_core.hookimpl,
        "component": brewer_core.component,
    }
    bases = {name: getattr(brewer_core, name) for name in ("Strategy", "Balancer", "Balance")}
    namespace = {**given, **bases, "__name__": "example"}
    exec(compile(example(name), f"<example of {name}>", "exec"), namespace)
    plugin = type("Example", (), {name: staticmethod(namespace[name])})()

    (made,) = collect(plugin).components

    assert made.kind.hook == name
    assert made.summary.endswith(".")
