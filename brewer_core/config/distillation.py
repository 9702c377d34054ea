"""What is distilled and how it is weighed, under TextBrewer's names."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from brewer_core.config.base import NAME_SCHEMA, Bool, Config, Float, FrozenOptions, Int, plain_number, shown
from brewer_core.config.kd_loss import OF_KD_LOSS, KDLoss, OneOrSeveral, TeacherCorrection
from brewer_core.config.positional import PositionalConfig
from brewer_core.config.refs import ComponentRef, OfKind
from brewer_core.feature_names import PREFIX, FeatureName

if TYPE_CHECKING:
    from typing_extensions import Self


def _layers(value: Any) -> int | tuple[int, ...]:
    several = value if isinstance(value, (list, tuple)) else [value]
    if several and all(map(_is_layer, several)):
        layers = tuple(map(int, several))
        return layers if several is value else layers[0]
    raise PydanticCustomError(
        "text", "expected a layer such as 3, or several such as [3, 4], not {value}", {"value": shown(value)}
    )


def _optional_layers(value: Any) -> int | tuple[int, ...] | None:
    return None if value is None else _layers(value)


def _feature(value: Any) -> str | tuple[str, ...] | None:
    several = value if isinstance(value, (list, tuple)) else [value]
    if value is None or (several and all(isinstance(name, str) and name for name in several)):
        return tuple(several) if several is value else value
    raise PydanticCustomError(
        "text",
        "expected a feature such as hidden, query[11] or the path of a module, or several of them in a list, not {value}",
        {"value": shown(value)},
    )


def _teacher(value: Any) -> str | int | None:
    if value is None or isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise PydanticCustomError(
        "text", "expected a teacher's name, or its position in the list, not {value}", {"value": shown(value)}
    )


LAYER_MAPS = ("uniform", "skip", "last", "first", "cka")
"""Words for which layer of the teacher teaches which of the student."""


def _layer_map(value: Any) -> str | tuple[tuple[int, int], ...]:
    if isinstance(value, str) and value in LAYER_MAPS:
        return value
    if isinstance(value, (list, tuple)) and value and all(map(_is_pair, value)):
        return tuple((int(teacher), int(student)) for teacher, student in value)
    raise PydanticCustomError(
        "text",
        "expected {words}, or pairs of a teacher's layer and a student's such as [[3, 1], [6, 2]], not {value}",
        {"words": ", ".join(LAYER_MAPS), "value": shown(value)},
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_layer, value))


def _is_layer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


_LAYERS_SCHEMA: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 1},
]
Layers = Annotated[
    Any, PlainValidator(_optional_layers), WithJsonSchema({"anyOf": [*_LAYERS_SCHEMA, {"type": "null"}]})
]

_NAMES_SCHEMA: list[dict[str, Any]] = [
    NAME_SCHEMA,
    {"type": "array", "items": NAME_SCHEMA, "minItems": 1},
]
LayerMap = Annotated[
    Any,
    PlainValidator(lambda value: None if value is None else _layer_map(value)),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(LAYER_MAPS)},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                    "minItems": 1,
                },
                {"type": "null"},
            ]
        }
    ),
]
FeatureNames = Annotated[Any, PlainValidator(_feature), WithJsonSchema({"anyOf": [*_NAMES_SCHEMA, {"type": "null"}]})]

_PROJ_FORM = '"linear", {"name": "linear"} or ["linear", student_dim, teacher_dim, optimizer group]'


class IntermediateMatch(Config):
    """A loss between intermediate features of teacher and student."""

    layer_T: Layers = None
    """The teacher's layer, counted from either end; a list of two for losses on pairs of layers. Left out where the feature names it."""
    layer_S: Layers = None
    """The student's layer, likewise."""
    layers: LayerMap = None
    """In place of both: `uniform`, `skip`, `last`, `first`, `cka`, or pairs `[[teacher's layer, student's layer], ...]`; a match for
    each pair, with this weight each."""
    weight: Float
    """The factor of this loss in the total."""
    loss: Annotated[ComponentRef, OfKind("match_loss", callables=True)]
    """The match loss."""
    feature: FeatureNames = None
    """What is read of both: a short name (`hidden`, `query[11]`), what the adaptors return, a module's path, or a list of them."""
    feature_T: FeatureNames = None
    """What is read of the teacher, where it is called otherwise there."""
    feature_S: FeatureNames = None
    """What is read of the student, likewise."""
    proj: Annotated[
        ComponentRef | None, OfKind("projection", optional=True, widths=True, callables=True, expected=_PROJ_FORM)
    ] = None
    """The projection of the student's features to the teacher's width; with `layers` one for each pair, which is `linear` where it is
    absent, the widths differ and the loss compares equal ones."""
    proj_dims: tuple[Int, Int] | None = None
    """Student and teacher width, for `proj` (its list form has them) or a loss that is built for them; else the models tell."""
    proj_optimizer: FrozenOptions | None = None
    """Settings of the projection's own parameter group, such as `{"lr": 0.001}`."""
    teacher: Annotated[
        Any,
        PlainValidator(_teacher),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
    ] = None
    """Which of several teachers: its name, or its position in the list."""

    def reads(self, side: Literal["T", "S"]) -> tuple[FeatureName, ...]:
        """What is read of the teacher, T, or of the student, S. Raises ValueError where the names are none."""
        own = getattr(self, f"feature_{side}") or self.feature
        names = own if isinstance(own, tuple) else (own,)
        return tuple(FeatureName.of(name, getattr(self, f"layer_{side}")) for name in names)

    def key(self, side: Literal["T", "S"]) -> str:
        """The key under which the features of a side stand."""
        return "feature" if getattr(self, f"feature_{side}") is None else f"feature_{side}"

    @model_validator(mode="after")
    def _check_names(self) -> IntermediateMatch:
        """Raises an error for a side without a feature, and for a name that is none."""
        for side in ("T", "S"):
            if getattr(self, f"feature_{side}") is None and self.feature is None:
                raise PydanticCustomError(
                    "text",
                    "feature is required, or both feature_T and feature_S; {key} is missing",
                    {"key": f"feature_{side}"},
                )
            try:
                self.reads(side)
            except ValueError as error:
                raise PydanticCustomError("text", "{error}", {"at": self.key(side), "error": str(error)}) from error
        if None not in (self.feature, self.feature_T, self.feature_S):
            raise PydanticCustomError(
                "text",
                "it is read of neither side, as feature_T and feature_S name both; leave it out",
                {"at": "feature"},
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_name_layers(self) -> Self:
        """Raises an error where layers are named beside their map, and where there is nothing to map."""
        if self.layers is None:
            return self
        if self.layer_T is not None or self.layer_S is not None:
            raise PydanticCustomError(
                "text", "they stand in place of layer_T and layer_S; give one or the other", {"at": "layers"}
            )
        for side in ("T", "S"):
            for read in self.reads(side):
                if read.layers is not None or read.feature.startswith(PREFIX):
                    raise PydanticCustomError(
                        "text",
                        "they map those of a feature such as `hidden`, and {key} names {what}; leave layers out",
                        {
                            "at": "layers",
                            "key": self.key(side),
                            "what": "a module" if read.layers is None else "a layer itself",
                        },
                    )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_ours(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As TextBrewer has it, where both sides read the same and the layers are named."""
        whole: dict[str, Any] = serialize(self)
        ours = ("feature_T", "feature_S", "layers")
        return {name: value for name, value in whole.items() if name not in ours or value is not None}

    @model_validator(mode="before")
    @classmethod
    def _read_list_form(cls, data: Any) -> Any:
        """TextBrewer's `proj: [name, student_dim, teacher_dim, optimizer group]` as three keys."""
        proj = data.get("proj") if isinstance(data, Mapping) else None
        if not isinstance(proj, (list, tuple)):
            return data
        dims = [plain_number(width) for width in proj[1:3]]
        if len(proj) not in (3, 4) or any(isinstance(d, bool) or not isinstance(d, int) for d in dims):
            return data  # the field itself refuses it, with its path
        for key in ("proj_dims", "proj_optimizer")[: len(proj) - 2]:
            if data.get(key) is not None:
                raise PydanticCustomError("text", "{key} is given twice, in the list of proj too", {"key": key})
        group = proj[3] if len(proj) == 4 else data.get("proj_optimizer")
        return {**data, "proj": proj[0], "proj_dims": tuple(dims), "proj_optimizer": None if group == {} else group}


class DistillationConfig(PositionalConfig):
    """The terms of a distillation: `kd_loss_weight * kd_loss + hard_label_weight * sum(losses) + matches`.

    Frozen: `config.model_copy(update={...})` gives another. Names of components are looked up when something is built
    from it; a field that names a component also takes a callable in Python.
    Raises ConfigError where a value is out of range or of the wrong type.
    """

    temperature: Annotated[Float, Field(gt=0)] = 4
    """Student and teacher logits are divided by it."""
    temperature_scheduler: Annotated[
        ComponentRef | None, OfKind("temperature_scheduler", optional=True, listed=True, callables=True)
    ] = None
    """Adjusts the temperature to the logits: `["flsw", 1, 2]` or `{"name": "flsw", "beta": 1, "gamma": 2}`."""
    hard_label_weight: Float = 0
    """The factor of the sum of the `losses` that the student's adaptor returns."""
    hard_label_weight_scheduler: Annotated[
        ComponentRef | None, OfKind("weight_scheduler", optional=True, callables=True)
    ] = None
    """Multiplies `hard_label_weight` over the run."""
    kd_loss_type: Annotated[Annotated[ComponentRef, OF_KD_LOSS] | tuple[KDLoss, ...], OneOrSeveral()] = ComponentRef(
        "kd_loss", "ce"
    )
    """The loss between the logits; or a list of several, each a loss or `{"loss": "jsd", "weight": 0.5}`, and each a term of its own."""
    kd_loss_weight: Float = 1
    """The factor of the losses between the logits; with 0 they are not computed."""
    kd_loss_weight_scheduler: Annotated[
        ComponentRef | None, OfKind("weight_scheduler", optional=True, callables=True)
    ] = None
    """Multiplies `kd_loss_weight` over the run."""
    probability_shift: Bool = False
    """Exchange the teacher's largest logit with that of the true label, where they differ."""
    intermediate_matches: tuple[IntermediateMatch, ...] | None = None
    """Losses between intermediate features."""
    is_caching_logits: Bool = False
    """Compute what is read of the teacher once for each row, and keep it on disk: in `output_dir`, unless the training has a cache."""
    balancer: Annotated[ComponentRef | None, OfKind("balancer", optional=True, callables=True)] = None
    """Weighs the terms against one another beside their weights: `fixed`, `ratio`, `uncertainty`, `gradnorm`."""

    teacher_correction: TeacherCorrection | None = None
    """How labels correct the teacher's logits before they are compared: `"mft"`, or `{"name": "mix", "weight": 0.3}`."""

    _keyword_only: ClassVar[tuple[str, ...]] = ("balancer", "teacher_correction")
    _positional_defaults: ClassVar[dict[str, Any]] = {
        "temperature_scheduler": "none",
        "hard_label_weight_scheduler": "none",
        "kd_loss_type": "ce",
        "kd_loss_weight_scheduler": "none",
    }

    @property
    def matches(self) -> tuple[IntermediateMatch, ...]:
        """The intermediate matches, none where there are none."""
        return self.intermediate_matches or ()

    @property
    def kd_losses(self) -> tuple[KDLoss, ...]:
        """The losses between the logits, one or several."""
        given = self.kd_loss_type
        return (KDLoss.model_construct(loss=given),) if isinstance(given, ComponentRef) else given

    @property
    def compares_logits(self) -> bool:
        """Whether any loss between the logits ever counts: one of weight 0 is not computed."""
        return self.kd_loss_weight != 0 and any(each.weight != 0 for each in self.kd_losses)

    @property
    def correction(self) -> TeacherCorrection | None:
        """How labels correct the teacher, by whichever of the two fields says so; None where they do not."""
        return TeacherCorrection(name="swap") if self.probability_shift else self.teacher_correction

    @model_validator(mode="after")
    def _check_correction(self) -> DistillationConfig:
        if self.probability_shift and self.teacher_correction is not None:
            raise PydanticCustomError(
                "text", 'probability_shift is teacher_correction "swap" by its older name; give one of the two'
            )
        return self
