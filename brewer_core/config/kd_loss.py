"""The loss between the logits as configs name it: one, or several with a weight each; and a teacher that labels correct."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from brewer_core.config.base import Config, Float, shown
from brewer_core.config.refs import MARK, ComponentRef, OfKind, dumped

if TYPE_CHECKING:
    from typing_extensions import Self

OF_KD_LOSS = OfKind("kd_loss", callables=True)
_BESIDE = ("weight", "weight_scheduler")
_OWNERS = {"weight": "mix", "threshold": "mft"}
"""To which correction of a teacher an option belongs."""


class KDLoss(Config):
    """One of several losses between the logits, with its own weight. A name or `{"name": ..., options}` alone has a weight of 1."""

    loss: Annotated[ComponentRef, OF_KD_LOSS]
    """The loss."""
    weight: Float = 1
    """Its factor, beside `kd_loss_weight`, which multiplies all of them; with 0 it is not computed."""
    weight_scheduler: Annotated[ComponentRef | None, OfKind("weight_scheduler", optional=True, callables=True)] = None
    """Multiplies `weight` over the run."""

    @model_validator(mode="wrap")
    @classmethod
    def _read_loss_alone(cls, value: Any, handler: ModelWrapValidatorHandler[KDLoss], info: ValidationInfo) -> KDLoss:
        """A loss without a weight as one with a weight of 1."""
        if isinstance(value, cls) or (isinstance(value, Mapping) and "loss" in value):
            return handler(value)
        return cls.model_construct(loss=kd_loss(value, info))


class OneOrSeveral:
    """Marks a field as a loss between logits, or a list of such, each with a weight."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A reference, but for a list."""
        del source
        several = handler.generate_schema(tuple[KDLoss, ...])
        return core_schema.with_info_wrap_validator_function(
            _one_or_several, several, serialization=core_schema.plain_serializer_function_ser_schema(_dumped)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Either; what stands in the list may be a reference too."""
        items = handler(schema)
        either = {"anyOf": [{MARK: OF_KD_LOSS}, items["items"]]}
        return {"anyOf": [{MARK: OF_KD_LOSS}, {**items, "items": either, "minItems": 1}]}


def kd_loss(value: Any, info: ValidationInfo) -> ComponentRef:
    """A reference to a loss between logits, where a weight among its options is told apart from an option of that name."""
    try:
        ref = OF_KD_LOSS.validated(value, info)
    except ValidationError as error:
        misplaced = [name for name in _BESIDE if _unknown_option(error, name)]
        if not misplaced:
            raise
        raise PydanticCustomError("text", "{text}", {"text": misplaced_weight(value)}) from error
    assert ref is not None
    return ref


def misplaced_weight(value: Any) -> str:
    """What is said of a loss with a weight among its options, and the form that is right."""
    options = {key: inner for key, inner in value.items() if key not in _BESIDE}
    loss = options["name"] if len(options) == 1 else options
    right = {"loss": loss, **{key: value[key] for key in _BESIDE if key in value}}
    given = " and ".join(key for key in _BESIDE if key in value)
    return (
        f"the kd loss `{options['name']}` has no option {given}; to weigh one of several losses, write "
        f"{json.dumps(right, default=repr)} in the list of kd_loss_type, and to weigh all of them, kd_loss_weight"
    )


def _unknown_option(error: ValidationError, name: str) -> bool:
    return any(problem["loc"] == (name,) and "no such option" in problem["msg"] for problem in error.errors())


def _one_or_several(value: Any, several: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    listed = isinstance(value, (list, tuple)) and not callable(value)
    if listed and not value:
        raise PydanticCustomError("text", "an empty list names no kd loss; with kd_loss_weight 0 none is computed")
    if listed:
        return several(value)
    if isinstance(value, Mapping) and "loss" in value and "name" not in value:
        raise PydanticCustomError(
            "text", "a loss with a weight of its own stands in a list: write [{value}]", {"value": shown(value)}
        )
    return kd_loss(value, info)


def _dumped(value: Any) -> Any:
    return dumped(value) if isinstance(value, ComponentRef) else [each.to_dict() for each in value]


class TeacherCorrection(Config):
    """How labels correct a teacher where it is wrong. A name alone has the defaults: `"mft"`."""

    name: Literal["swap", "mix", "mft", "drop"]
    """`swap`: exchange its largest logit with that of the label, as `probability_shift` does. `mix`: mix its softened distribution with the
    label. `mft`: mix in as much of the label as makes it the most likely class, by a margin. `drop`: leave out what it gets wrong."""
    weight: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Of `mix`: the label's part in the mixture; 0.5 where it is not given."""
    threshold: Annotated[Float, Field(ge=0, lt=1)] | None = None
    """Of `mft`: by how much the label's probability exceeds that of the class the teacher took for it; 0.2 where it is not given."""

    @model_validator(mode="before")
    @classmethod
    def _read_name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Its name alone, or an object with the options of that name."""
        whole = handler(schema)
        owned = [
            {
                "if": {"properties": {option: {"type": "number"}}, "required": [option]},
                "then": {"properties": {"name": {"const": owner}}},
            }
            for option, owner in _OWNERS.items()
        ]
        return {"anyOf": [{"enum": whole["properties"]["name"]["enum"]}, {**whole, "allOf": owned}]}

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for option, owner in _OWNERS.items():
            if getattr(self, option) is not None and self.name != owner:
                raise PydanticCustomError(
                    "text",
                    "{option} is an option of {owner}, and {name} has none of that name",
                    {"option": option, "owner": owner, "name": self.name},
                )
        return self
