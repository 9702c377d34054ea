"""JSON Schema of the whole run config, with every component and its options, for editors and validators.

It accepts what `parse_run_config` accepts, and refuses what is wrong within one value: unknown keys, components and options,
types and ranges. What lies between values, such as the name of a model that is not there, only a run tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from brewer_core.components import KINDS, Component, Kind
from brewer_core.config.refs import MARK, ComponentRef, OfKind, dumped
from brewer_core.config.run import RunConfig

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "brewer run config"
_NESTED = ("properties", "$defs")  # from a name to a schema
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not")


def run_schema(components: Iterable[Component]) -> Schema:
    """The JSON Schema, draft 2020-12, of a run config that may name these components."""
    components = tuple(components)
    plain = RunConfig.model_json_schema(schema_generator=_Generator)
    completed = _changed(plain, lambda schema: _with_components(schema, components))
    own = {name: schema for kind in KINDS.values() for name, schema in _of_kind(kind, components)}
    return {"$schema": DIALECT, **completed, "title": TITLE, "$defs": completed["$defs"] | own}


class _Generator(GenerateJsonSchema):
    """Without titles made of names, and with defaults as configs write them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No: names say as much."""
        del schema
        return False

    def encode_default(self, dft: Any) -> Any:
        """The default, references to components in their shortest form."""
        return super().encode_default(_plain(dft))


def _plain(value: Any) -> Any:
    if isinstance(value, ComponentRef):
        return dumped(value) if value.options else value.name
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _changed(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """The schema with a change made to it and to every schema inside it."""
    made = dict(change(schema))
    for key in made:
        if key in _NESTED:
            made[key] = {name: _changed(inner, change) for name, inner in made[key].items()}
        elif key in _LISTED:
            made[key] = [_changed(inner, change) for inner in made[key]]
        elif key in _SINGLE and isinstance(made[key], dict):
            made[key] = _changed(made[key], change)
    return made


def _with_components(schema: Schema, components: Sequence[Component]) -> Schema:
    """What stands for a reference to a component replaced by the forms that such a reference may have."""
    if MARK not in schema:
        return schema
    mark: OfKind = schema[MARK]
    own = [component for component in components if component.kind.name == mark.kind]
    forms = [_reference(mark.kind)]
    forms += [form for component in own for form in _list_forms(component)] if mark.listed else []
    forms += [_with_widths(mark.kind)] if mark.widths else []
    forms += [{"enum": ["none", None]}] if mark.optional else []
    said = {key: inner for key, inner in schema.items() if key != MARK}
    return {**said, **(forms[0] if len(forms) == 1 else {"anyOf": forms})}


def _of_kind(kind: Kind, components: Sequence[Component]) -> Iterator[tuple[str, Schema]]:
    """The definition of a kind, and one of each of its components."""
    own = [component for component in components if component.kind == kind]
    alone = [component for component in own if not _options(component).get("required")]
    names: Schema = {"enum": [c.name for c in alone], "enumDescriptions": [c.summary for c in alone]}
    forms = [names] if alone else []
    forms += [_reference(_key(component)) for component in own]
    article = "An" if kind.title[0] in "aeiou" else "A"
    yield (
        kind.name,
        {"description": f"{article} {kind.title}: its name, or an object with its options.", "anyOf": forms or [False]},
    )
    for component in own:
        yield _key(component), _object(component, named=True)


def _object(component: Component, named: bool) -> Schema:
    """The schema of a component's options as an object, with the component's name among them or without."""
    options = _options(component)
    name: Schema = {"name": {"const": component.name, "description": component.summary}} if named else {}
    required = [*name, *options.get("required", [])]
    return {
        "description": component.summary,
        "type": "object",
        "properties": {**name, **options.get("properties", {})},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _list_forms(component: Component) -> Iterator[Schema]:
    """TextBrewer's lists: `[name, {options}]`, and `[name, *values]` with the values in their declared order."""
    first: Schema = {"const": component.name}
    yield _list([first, _object(component, named=False)], least=2)
    options, order = _options(component), component.facts.positional
    required = options.get("required", [])
    if set(required) <= set(order):
        values = [options["properties"][name] for name in order]
        yield _list([first, *values], least=1 + max((order.index(name) + 1 for name in required), default=0))


def _with_widths(kind: str) -> Schema:
    """TextBrewer's list of a projection."""
    either = {"anyOf": [_reference(kind), {"enum": ["none", None]}]}
    group = {"anyOf": [{"type": "object"}, {"type": "null"}], "description": "Settings of its own parameter group."}
    widths = [{"type": "integer", "description": f"Width of the {side}."} for side in ("student", "teacher")]
    return _list([either, *widths, group], least=3)


def _list(items: Sequence[Schema], least: int) -> Schema:
    return {"type": "array", "prefixItems": list(items), "items": False, "minItems": least}


def _options(component: Component) -> Schema:
    return component.options_schema(_Generator)


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _key(component: Component) -> str:
    return f"{component.kind.name}.{component.name}"
