"""How a component stands in a run config: an example of each, which validates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from brewer_core.components import Component

Schema = Mapping[str, Any]
IN_STAGE, IN_RUN = "in a distill stage", "in a run config"


@dataclass(frozen=True)
class Snippet:
    """A part of a run config. where: what it is a part of."""

    where: str
    document: dict[str, Any]


def snippet(component: Component) -> Snippet:
    """The place of a component in a config: its name, or an object with what it requires and what has examples."""
    where, place = _PLACES[component.kind.name]
    return Snippet(where, place(_reference(component), component))


def _reference(component: Component) -> str | dict[str, Any]:
    schema = component.options_schema()
    shown = {
        name: _value(component, name, field)
        for name, field in schema.get("properties", {}).items()
        if name in schema.get("required", []) or "examples" in field
    }
    return {"name": component.name, **shown} if shown else component.name


def _value(component: Component, option: str, field: Schema) -> Any:
    """The first plausible value that the option accepts."""
    plausible = list(_plausible(option, field))
    return next((value for value in plausible if component.accepts(option, value)), plausible[0])


def _plausible(option: str, field: Schema) -> Iterator[Any]:
    yield from field.get("examples", ())
    yield from field.get("enum", ())
    yield from [field["const"]] if "const" in field else []
    for choice in field.get("anyOf", ()):
        yield from _plausible(option, choice)
    yield from _OF_TYPE[field["type"]](option, field) if field.get("type") in _OF_TYPE else [option, {}, None]


def _text(option: str, field: Schema) -> Iterator[str]:
    least = field.get("minLength", 0)
    yield option.upper().ljust(least, "X")[: field.get("maxLength")]


def _number(option: str, field: Schema) -> Iterator[float]:
    del option
    low, high = field.get("exclusiveMinimum", field.get("minimum")), field.get("exclusiveMaximum", field.get("maximum"))
    yield from (1, 0.5, 0)
    yield from [low, low + 1] if low is not None else []
    yield from [high, high - 1] if high is not None else []
    yield from [(low + high) / 2] if low is not None and high is not None else []


def _list(option: str, field: Schema) -> Iterator[list[Any]]:
    fixed = [next(_plausible(option, item)) for item in field.get("prefixItems", ())]
    for each in _plausible(option, _inner(field, "items")):
        yield [*fixed, *([each] * max(field.get("minItems", 1) - len(fixed), 0 if fixed else 1))]


def _object(option: str, field: Schema) -> Iterator[dict[str, Any]]:
    yield {}
    yield from ({"KEY": value} for value in _plausible(option, _inner(field, "additionalProperties")))


def _inner(field: Schema, key: str) -> Schema:
    """What a list or an object holds; nothing in particular where the schema does not say."""
    found = field.get(key)
    return found if isinstance(found, dict) else {}


_OF_TYPE: Mapping[str, Callable[[str, Schema], Iterator[Any]]] = {
    "string": _text,
    "integer": _number,
    "number": _number,
    "boolean": lambda _option, _field: iter([True, False]),
    "array": _list,
    "object": _object,
    "null": lambda _option, _field: iter([None]),
}


_SUITED: tuple[tuple[str, str | list[str]], ...] = (
    ("(query, key, value)", ["query", "key", "value"]),
    ("attention [B, H, L, L] and values", ["attention", "value"]),
    ("scores before the softmax", "scores"),
    ("[B, H, L, L]", "attention"),
)
"""What a match loss reads, by what its docstring says; the first that is found counts."""


def _match(component: Component, **more: Any) -> dict[str, Any]:
    """A match of features that suit the loss, which its docstring tells by their shapes."""
    feature = next((feature for phrase, feature in _SUITED if phrase in component.text), "hidden")
    layer: int | list[int] = [0, 1] if "pairs of [" in component.text else 1
    match = {"layer_T": layer, "layer_S": layer, "feature": feature, **more, "weight": 1}
    return {"distillation": {"intermediate_matches": [match]}}


_PLACES: Mapping[str, tuple[str, Callable[[Any, Component], dict[str, Any]]]] = {
    "kd_loss": (IN_STAGE, lambda ref, _: {"distillation": {"kd_loss_type": ref}}),
    "match_loss": (IN_STAGE, lambda ref, component: _match(component, loss=ref)),
    "projection": (IN_STAGE, lambda ref, component: _match(component, loss="hidden_mse", proj=ref)),
    "weight_scheduler": (
        IN_STAGE,
        lambda ref, _: {"distillation": {"hard_label_weight": 1, "hard_label_weight_scheduler": ref}},
    ),
    "temperature_scheduler": (IN_STAGE, lambda ref, _: {"distillation": {"temperature_scheduler": ref}}),
    "adaptor": (IN_STAGE, lambda ref, _: {"adaptors": {"teacher": ref, "student": ref}}),
    "strategy": (IN_STAGE, lambda ref, _: {"strategy": ref}),
    "model": (IN_RUN, lambda ref, _: {"models": {"student": ref}}),
    "dataset": (IN_RUN, lambda ref, _: {"data": {"films": {"source": ref}}}),
    "augmentation": (
        IN_RUN,
        lambda ref, _: {"data": {"films": {"source": {"name": "csv", "path": "films.csv"}, "augmentations": [ref]}}},
    ),
    "metric": (IN_RUN, lambda ref, _: {"evaluation": {"data": "films", "metrics": [ref]}}),
    "balancer": (IN_STAGE, lambda ref, _: {"distillation": {"balancer": ref}}),
    "tracker": (IN_RUN, lambda ref, _: {"trackers": [ref]}),
}
