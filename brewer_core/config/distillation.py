"""What is distilled and how it is weighed, under TextBrewer's names."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from brewer_core.config.base import Bool, Config, Float, FrozenOptions, Int, Text, plain_number, shown
from brewer_core.config.kd_loss import OF_KD_LOSS, KDLoss, OneOrSeveral, TeacherCorrection
from brewer_core.config.positional import PositionalConfig
from brewer_core.config.refs import ComponentRef, OfKind


def _layers(value: Any) -> int | tuple[int, ...]:
    several = value if isinstance(value, (list, tuple)) else [value]
    if several and all(isinstance(layer, Integral) and not isinstance(layer, bool) for layer in several):
        layers = tuple(map(int, several))
        return layers if several is value else layers[0]
    raise PydanticCustomError(
        "text", "expected a layer such as 3, or several such as [3, 4], not {value}", {"value": shown(value)}
    )


def _teacher(value: Any) -> str | int | None:
    if value is None or isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise PydanticCustomError(
        "text", "expected a teacher's name, or its position in the list, not {value}", {"value": shown(value)}
    )


Layers = Annotated[
    Any,
    PlainValidator(_layers),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}),
]

_PROJ_FORM = '"linear", {"name": "linear"} or ["linear", student_dim, teacher_dim, optimizer group]'


class IntermediateMatch(Config):
    """A loss between intermediate features of teacher and student."""

    layer_T: Layers
    """The teacher's layer, an index into what its adaptor returns; a list of two for losses on pairs of layers."""
    layer_S: Layers
    """The student's layer, likewise."""
    weight: Float
    """The factor of this loss in the total."""
    loss: Annotated[ComponentRef, OfKind("match_loss", callables=True)]
    """The match loss."""
    feature: Text
    """What the adaptors return the layers under: `hidden`, `attention`, or a name of their own."""
    proj: Annotated[
        ComponentRef | None, OfKind("projection", optional=True, widths=True, callables=True, expected=_PROJ_FORM)
    ] = None
    """The projection of the student's features to the teacher's width."""
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

    teacher_correction: TeacherCorrection | None = None
    """How labels correct the teacher's logits before they are compared: `"mft"`, or `{"name": "mix", "weight": 0.3}`."""

    _keyword_only: ClassVar[tuple[str, ...]] = ("teacher_correction",)
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
