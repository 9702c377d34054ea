"""A component as configs name it: `"pkd"`, `{"name": "flsw", "beta": 1, "gamma": 2}`, or TextBrewer's lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from brewer_core.components import KINDS
from brewer_core.config.base import FrozenDict, freeze, shown
from brewer_core.errors import RequestError
from brewer_core.protocols import ComponentLookup

MARK = "x-brewer-component"
"""The key under which a JSON Schema holds the `OfKind` of a field, until it is completed."""


@dataclass(frozen=True)
class ComponentRef:
    """A component's kind, name and options; or, in place of a name to look up, a callable that was passed in Python.

    positional: values of a list form, until a registry has said which options they are.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=FrozenDict)
    positional: tuple[Any, ...] = ()
    implementation: Callable[..., Any] | None = None

    def __repr__(self) -> str:
        return repr(dumped(self))


@dataclass(frozen=True)
class OfKind:
    """Marks a config field as a reference to a component of a kind.

    optional: null and "none" mean absent. listed: the form `[name, *values]` is read. widths: so is `[name, student_dim,
    teacher_dim, group]`, by the config that holds the field. callables: so are functions.
    expected: the forms that a value may have, for the error text.
    """

    kind: str
    optional: bool = False
    listed: bool = False
    widths: bool = False
    callables: bool = False
    expected: str = 'a name or {"name": ..., options}'

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by `validated`; write the mapping form."""
        del source, handler
        return core_schema.with_info_plain_validator_function(
            self.validated, serialization=core_schema.plain_serializer_function_ser_schema(dumped)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A mark, which `config.schema` replaces by the components that there are."""
        del schema, handler
        return {MARK: self}

    def validated(self, value: Any, info: ValidationInfo) -> ComponentRef | None:
        """The reference that a value is; None where it means absent. Its name and options are checked where the context has a registry."""
        if self.optional and (value is None or value == "none"):
            return None
        ref = self._parse(value)
        lookup: ComponentLookup | None = (info.context or {}).get("registry")
        if lookup is None or ref.implementation is not None:
            return ref
        return ComponentRef(self.kind, ref.name, freeze(self._checked(lookup, ref)))

    def _parse(self, value: Any) -> ComponentRef:
        if isinstance(value, ComponentRef):
            return value
        if isinstance(value, str) and value:
            return ComponentRef(self.kind, value)
        if isinstance(value, Mapping):
            return self._parse_mapping(value)
        if self.listed and isinstance(value, Sequence) and value and isinstance(value[0], str):
            rest = value[1:]
            if len(rest) == 1 and isinstance(rest[0], Mapping):
                return ComponentRef(self.kind, value[0], freeze(rest[0]))
            return ComponentRef(self.kind, value[0], positional=freeze(list(rest)))
        if self.callables and callable(value):
            return ComponentRef(self.kind, getattr(value, "__name__", type(value).__name__), implementation=value)
        raise _problem(f"{shown(value)} names no {KINDS[self.kind].title}; expected {self.expected}")

    def _parse_mapping(self, value: Mapping[str, Any]) -> ComponentRef:
        if "callable" in value:
            raise _problem(f"{value['callable']!r} was passed in Python; pass it again or make it a plugin")
        name = value.get("name")
        if not isinstance(name, str) or not name:
            raise _problem(f'a mapping needs a "name", that of a {KINDS[self.kind].title}')
        return ComponentRef(self.kind, name, freeze({key: inner for key, inner in value.items() if key != "name"}))

    def _checked(self, lookup: ComponentLookup, ref: ComponentRef) -> dict[str, Any]:
        try:
            return lookup.check(self.kind, ref.name, ref.options, ref.positional)
        except ValidationError as error:
            raise _retold(error, f"{KINDS[self.kind].title} `{ref.name}`") from error
        except RequestError as error:
            raise _problem(str(error).rstrip(".")) from error
        except (TypeError, ValueError) as error:
            raise _problem(f"options that are no JSON values: {error}") from error


def component_refs(value: Any) -> Iterator[ComponentRef]:
    """Every component that a config names, wherever it stands in it."""
    if isinstance(value, ComponentRef):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from component_refs(getattr(value, name))
    elif isinstance(value, (Mapping, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from component_refs(inner)


def _retold(error: ValidationError, owner: str) -> ValidationError:
    """The same problems in our words; raised inside a validation, so that their paths stay whole."""
    details = [_option_problem(problem, owner) for problem in error.errors(include_url=False)]
    return ValidationError.from_exception_data(error.title, details)


def _option_problem(problem: Any, owner: str) -> InitErrorDetails:
    location, message = problem["loc"], str(problem["msg"])
    if problem["type"] == "extra_forbidden":
        text = f"the {owner} has no such option"
    elif problem["type"] == "missing":
        text = f"the {owner} requires this option"
    else:
        text = f"{message[0].lower()}{message[1:]}, not {shown(problem['input'])}"
    return InitErrorDetails(type=_problem(text), loc=location, input=problem["input"])


def _problem(text: str) -> PydanticCustomError:
    return PydanticCustomError("text", "{text}", {"text": text})


def dumped(ref: ComponentRef | None) -> Any:
    """A reference as JSON values: the mapping form, or the list form that no registry has read yet."""
    if ref is None:
        return None
    if ref.implementation is not None:
        where = ref.implementation
        return {
            "callable": f"{getattr(where, '__module__', '?')}:{getattr(where, '__qualname__', type(where).__qualname__)}"
        }
    if ref.positional:
        return [ref.name, *ref.positional]
    return {"name": ref.name, **_plain(ref.options)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
