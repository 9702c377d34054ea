"""A component with its options model and provenance, and the bound method that a run calls."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema

from brewer_core.components.facts import Facts, facts_of
from brewer_core.components.kinds import KINDS, Kind
from brewer_core.components.signature import Option, Signature, read_signature
from brewer_core.errors import ComponentError, RequestError

if TYPE_CHECKING:
    from brewer_core.sparse_logits import Kept

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Provenance:
    """Where a component comes from: the distribution, its version, and the entry point that provides it."""

    distribution: str = "(passed in Python)"
    version: str = ""
    entry_point: str = ""

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.distribution}{version}" + (f" [{self.entry_point}]" if self.entry_point else "")


@dataclass(frozen=True)
class Component:
    """One named method of one kind.

    Raises ComponentError where the implementation breaks the rules for its kind.
    """

    kind: Kind
    name: str
    implementation: Callable[..., Any]
    provenance: Provenance = Provenance()
    signature: Signature = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ComponentError(f"{self.kind.title} {self.name!r} has a name that is not an identifier.")
        object.__setattr__(self, "signature", read_signature(self.kind, self.name, self.implementation))
        self._check_facts()
        for option in self.signature.options:
            self._check_type(option)

    @classmethod
    def passed(cls, kind: str, implementation: Callable[..., Any]) -> Component:
        """A component made of a callable that was passed in Python; its name is the callable's own."""
        name = getattr(implementation, "__name__", type(implementation).__name__)
        return cls(KINDS[kind], name if name.isidentifier() else "passed", implementation)

    @property
    def facts(self) -> Facts:
        """What `@component` declared about the implementation."""
        return facts_of(self.implementation)

    @property
    def text(self) -> str:
        """The docstring; the class's own, of a class, and the function's, of a partial."""
        implementation = self.implementation
        documented = implementation.func if isinstance(implementation, functools.partial) else implementation
        doc = vars(documented).get("__doc__") if isinstance(documented, type) else inspect.getdoc(documented)
        return inspect.cleandoc(doc or "").strip()

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.text.partition("\n")[0].strip()

    @property
    def stateful(self) -> bool:
        """Whether the implementation is a class, built once for each use."""
        return isinstance(self.implementation, type) and self.kind.life == "called"

    @cached_property
    def options_model(self) -> type[BaseModel]:
        """The pydantic model of the options. Its fields are numbered, so that an option may be called `copy`."""
        fields: dict[str, Any] = {f"option_{i}": _field(o) for i, o in enumerate(self.signature.options)}
        return create_model(f"{self.name}_options", __config__=_STRICT, **fields)

    def options_schema(self, generator: type[GenerateJsonSchema] = GenerateJsonSchema) -> dict[str, Any]:
        """The JSON Schema of the options as an object, whole: without references to definitions of its own."""
        schema = self.options_model.model_json_schema(schema_generator=generator)
        definitions = schema.pop("$defs", {})
        whole: dict[str, Any] = _inlined(schema, definitions)
        return whole

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, validated and completed with their defaults, as a plain dict.

        Strict, on JSON text: "3" is no int and "yes" no bool. Raises pydantic.ValidationError.
        """
        values = self.options_model.model_validate_json(_json(options))
        return {o.name: getattr(values, f"option_{i}") for i, o in enumerate(self.signature.options)}

    def accepts(self, option: str, value: Any) -> bool:
        """Whether a value is one that the option of this name may have."""
        (annotation,) = [known.annotation for known in self.signature.options if known.name == option]
        try:
            TypeAdapter(annotation, config=_STRICT).validate_json(json.dumps(value))
        except ValidationError:
            return False
        return True

    def bind(self, options: Mapping[str, Any] | None = None, **sizes: Any) -> Method:
        """The method with its options set: one instance of a class, or the function itself.

        sizes: `student_dim` and `teacher_dim`, passed on to an `__init__` that names them.
        Raises RequestError where an option is wrong.
        """
        checked = self._checked(options or {})
        if not self.stateful:
            return Method(self, checked, self.implementation, checked)
        wanted = {name: sizes.get(name) for name in self.signature.sizes}
        return Method(self, {}, self.implementation(**wanted, **checked), checked)

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.check(options)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise RequestError(f"options of the {self.kind.title} `{self.name}`: {problems}.") from error
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"options of the {self.kind.title} `{self.name}` are no JSON values: {error}."
            ) from error

    def _check_facts(self) -> None:
        if self.facts.sparse and "teacher_logits" not in self.kind.positional:
            raise ComponentError(
                f"{self.kind.title} `{self.name}` declares sparse=True; only what gets the teacher's logits may, a kd loss or "
                "a temperature scheduler."
            )
        if self.facts.lower_is_better and self.kind.name != "metric":
            raise ComponentError(f"{self.kind.title} `{self.name}` declares lower_is_better=True; only a metric may.")
        known = {option.name for option in self.signature.options}
        for name in self.facts.positional:
            if name not in known:
                raise ComponentError(
                    f"{self.kind.title} `{self.name}` declares positional option `{name}`, which it does not have."
                )
        for name in self.facts.example:
            if name not in known:
                raise ComponentError(
                    f"{self.kind.title} `{self.name}` declares an example of the option `{name}`, which it does not have."
                )

    def _check_type(self, option: Option) -> None:
        label = f"{self.kind.title} `{self.name}` has the option `{option.name}`"
        try:
            adapter = TypeAdapter(option.annotation, config=_STRICT)
        except Exception as error:
            raise ComponentError(f"{label} annotated {option.annotation}, which pydantic refuses: {error}.") from error
        if option.default is inspect.Parameter.empty:
            return
        try:
            adapter.validate_json(json.dumps(option.default, allow_nan=False))
        except (ValidationError, TypeError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ComponentError(
                f"{label} with the default {option.default!r}, which its own type refuses: {reason}."
            ) from error


@dataclass(frozen=True)
class Method:
    """A component with its options set, ready to be called.

    options: those that each call is given, none where the target is an instance that was built with them. chosen: the options in
    either case.
    """

    component: Component
    options: Mapping[str, Any]
    target: Callable[..., Any]
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def against_sparse(self, kept: Kept, otherwise: str) -> str:
        """What stands against teacher's logits of which only so many are kept, as a sentence after the component's name; "" if nothing.

        otherwise: what to use in its place where it needs all of them.
        """
        sparse = self.component.facts.sparse
        if callable(sparse):
            return sparse(kept, self.chosen)
        return (
            ""
            if sparse
            else f"needs all of the teacher's logits, and the cache keeps {kept}; use {otherwise}, or keep them dense"
        )

    def __call__(self, *positional: Any, **available: Any) -> Any:
        """Call it with the kind's positional inputs, and those of the available named inputs that it asks for.

        Raises RequestError where a required input is not there.
        """
        signature = self.component.signature
        inputs = {name: available[name] for name in signature.inputs if available.get(name) is not None}
        for name in signature.required:
            if name not in inputs:
                raise RequestError(
                    f"the {self.component.kind.title} `{self.component.name}` needs the input `{name}`, which this run does not have."
                )
        return self.target(*positional[: signature.positional], **inputs, **self.options)


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with definitions in the places that refer to them. They are of nested options, which end somewhere."""
    if isinstance(schema, list):
        return [_inlined(inner, definitions) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    own = {key: _inlined(inner, definitions) for key, inner in schema.items() if key != "$ref"}
    if "$ref" not in schema:
        return own
    return {**_inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions), **own}


def _field(option: Option) -> tuple[Any, Any]:
    annotation: Any = Annotated[option.annotation, Field(alias=option.name)]
    return (annotation, ... if option.default is inspect.Parameter.empty else option.default)


def _json(options: Mapping[str, Any]) -> str:
    return json.dumps(dict(options), allow_nan=False)
