"""The strategy `emd`: every layer of the student may learn from every layer of the teacher.

Shapes: B rows, L tokens, D width, H heads, S layers of the student, T layers of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from brewer_core import (
    AdaptorError,
    Features,
    ModelInfo,
    Needs,
    Objective,
    RequestError,
    ShapeError,
    Step,
    Strategy,
    component,
)
from brewer_strategy_emd.layers import Layers, of_attention, of_states, without_padding
from brewer_strategy_emd.projections import Widths, draw, fit, paired
from brewer_strategy_emd.transport import Array, LayerWeights, Transport

HIDDEN_TERM, EMBEDDING_TERM, ATTENTION_TERM = "hidden_hidden_mse_emd", "embedding_hidden_mse", "attention_mse_emd"


@component(name="Earth mover's distance between layers", source="Li et al. 2020, arXiv:2010.06133")
class EMD(Strategy):
    """Many-to-many layer matching: the cheapest way to bring all layers of the student to all layers of the teacher.

    Beside the terms of the strategy `general`: `hidden_hidden_mse_emd`, the sum over pairs of layers of plan times squared
    difference, where the plan moves the weights of the student's layers to the teacher's at the least cost and has no
    gradient; `embedding_hidden_mse`, the squared difference of the embeddings' outputs; and, with `attention_weight`,
    `attention_mse_emd` between attention matrices, head by head.

    `hidden` holds the embeddings' output first and then a tensor [B, L, D] a layer; `attention` one [B, H, L, L] a layer. The
    student's `inputs_mask` says which tokens count; a batch without any gives 0. The terms are defined on a batch as
    a whole: the plan is that of the batch, or of the micro-batch where steps accumulate. The plan is found on the CPU, so each
    micro-batch waits for the device once, and once more with attention.

    Source: Li et al. 2020 (BERT-EMD), arXiv:2010.06133, section 3, and the example EMDDistiller of TextBrewer, whose seeded
    runs end with the same student.
    """

    def __init__(
        self,
        *,
        weight: Annotated[
            float,
            Field(ge=0, description="The factor of the terms of hidden states and embeddings; 0 leaves them out."),
        ] = 1.0,
        attention_weight: Annotated[
            float, Field(ge=0, description="The factor of the term of attention; 0 leaves it out.")
        ] = 0.0,
        embedding: Annotated[bool, Field(description="Whether the embeddings' outputs are compared too.")] = True,
        project: Annotated[
            Literal["auto", "linear", "none"],
            Field(
                description="Which hidden states of the student go through a linear layer that is trained: those of "
                "another width than the teacher's, all, or none."
            ),
        ] = "auto",
        layer_weights: Annotated[
            Literal["uniform", "cost_attention"],
            Field(
                description="What layers weigh: all alike, or the more the less their transport cost in the batch before."
            ),
        ] = "uniform",
        cost_temperature: Annotated[
            float, Field(gt=0, description="The temperature of cost_attention; high ones make layers weigh alike.")
        ] = 1.0,
        student_layers: Annotated[
            int | None,
            Field(ge=1, description="How many layers the student has, for projections in a script; a run reads it."),
        ] = None,
        student_width: Annotated[
            int | None, Field(ge=1, description="How wide the student is, for projections in a script; a run reads it.")
        ] = None,
        teacher_width: Annotated[
            int | None, Field(ge=1, description="How wide the teacher is, for projections in a script; a run reads it.")
        ] = None,
    ) -> None:
        self.weight = weight
        self.attention_weight = attention_weight
        self.embedding = embedding
        self.project = project
        self.layer_weights = layer_weights
        self.cost_temperature = cost_temperature
        self.student_layers = student_layers
        self.student_width = student_width
        self.teacher_width = teacher_width
        self._projections: nn.ModuleList | None = None
        self._shares: LayerWeights | None = None

    def needs(self, objective: Objective) -> Needs:
        """What the terms of the objective read, and the features that are compared."""
        told = objective.needs()
        compared = {"hidden": self.weight, "attention": self.attention_weight}
        read = frozenset(feature for feature, factor in compared.items() if factor)
        return replace(told, student=told.student | read | {"inputs_mask"}, every_teacher=told.every_teacher | read)

    def build(self, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> nn.ModuleList | None:
        """A projection for each hidden state of the student, drawn in order, the embeddings' first.

        Weights come from N(0, 0.02) of torch's global generator, after torch's own initialisation, as those of brewer's
        `linear` do. Raises RequestError for several teachers, and where widths are neither known nor given.
        """
        if len(teachers) != 1:
            raise RequestError(
                f"the strategy `emd` learns from one teacher, not from {', '.join(teachers) or 'none'}; "
                "`multi_teacher` learns from several."
            )
        (teacher,) = teachers.values()
        widths = self._widths(student, teacher) if self.weight and self.project != "none" else []
        self._projections = draw(widths, always=self.project == "linear")
        return self._projections

    def weights(self, step: Step) -> Mapping[str, float]:
        """The factors of the terms of this strategy."""
        del step
        return {HIDDEN_TERM: self.weight, EMBEDDING_TERM: self.weight, ATTENTION_TERM: self.attention_weight}

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The losses of the objective, and those between all layers. Raises ShapeError where layers do not fit."""
        del task
        (teacher,) = teachers.values()
        own_terms: dict[str, Tensor] = {}
        compared: dict[str, Layers] = {}
        if self.weight:
            embeddings, compared[HIDDEN_TERM] = self._states(student, teacher)
            own_terms |= {EMBEDDING_TERM: embeddings.cost(0, 0)} if embeddings else {}
        if self.attention_weight:
            own, taught = _tensors(student, "attention", "student"), _tensors(teacher, "attention", "teacher")
            compared[ATTENTION_TERM] = of_attention(own, taught, _mask(student, "attention"))
        return {
            **objective.kd_terms(student, teacher, step),
            **objective.match_terms(student, teachers, step),
            **self._transported(compared),
            **own_terms,
            **objective.label_terms(student),
        }

    def state_dict(self) -> Mapping[str, Any]:
        """The weights of layers that cost attention found."""
        return {} if self._shares is None else {side: w.tolist() for side, w in self._shares._asdict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the weights of layers."""
        self._shares = LayerWeights(**{side: np.array(w) for side, w in state.items()}) if state else None

    def _widths(self, student: ModelInfo, teacher: ModelInfo) -> Widths:
        """The widths of what is compared; none where they are unknown and nothing has to be projected."""
        own, taught = student.widths.get("hidden", ()), teacher.widths.get("hidden", ())
        given = {
            "student_layers": self.student_layers,
            "student_width": self.student_width,
            "teacher_width": self.teacher_width,
        }
        if not own and self.student_layers and self.student_width:
            own = (self.student_width,) * (1 + self.student_layers)
        if not taught and self.teacher_width:
            taught = (self.teacher_width,)
        if own and taught:
            return paired(own, taught, self.embedding)
        if self.project == "auto" and self.student_width == self.teacher_width:  # both may be None: the batch will tell
            return []
        raise RequestError(
            f"the strategy `emd` projects hidden states, and the models' widths are not known before a batch is read: "
            f"give it {', '.join(name for name, value in given.items() if value is None)} too."
        )

    def _states(self, student: Features, teacher: Features) -> tuple[Layers | None, Layers]:
        """The embeddings' outputs, where they are compared, and the layers' hidden states; the student's projected."""
        own, taught = _tensors(student, "hidden", "student", 2), _tensors(teacher, "hidden", "teacher", 2)
        if not fit(self._projections, paired(_widths(own), _widths(taught), self.embedding)):
            raise ShapeError(self._misfit(own, taught))
        mask, first = _mask(student, "hidden"), 0 if self.embedding else 1
        states = list(own[first:])
        if self._projections is not None:
            # padding may be infinite, and would reach the projection's gradient
            pairs = zip(self._projections, states, strict=True)
            states = [projection(without_padding(state, mask)) for projection, state in pairs]
        embeddings = of_states(states[:1], taught[:1], mask) if self.embedding else None
        return embeddings, of_states(states[1 - first :], taught[1:], mask)

    def _misfit(self, own: Sequence[Tensor], taught: Sequence[Tensor]) -> str:
        layers, width, wanted = len(own) - 1, own[-1].shape[-1], taught[-1].shape[-1]
        advice = (
            'set project to "auto"'
            if self.project == "none"
            else f"give the strategy student_layers={layers}, student_width={width} and teacher_width={wanted}"
        )
        return (
            f"strategy `emd`: the student has {layers} layers of hidden states {width} wide and the teacher's are {wanted} wide, "
            f"which its projections do not fit; {advice}."
        )

    def _transported(self, compared: Mapping[str, Layers]) -> dict[str, Tensor]:
        """What the cheapest transport costs, term by term; with cost attention, layers weigh otherwise from then on."""
        moves = {term: self._move(layers.costs()) for term, layers in compared.items()}
        if self.layer_weights == "cost_attention":
            self._shares = self._attended(list(moves.values()))
        return {term: layers.moved(moves[term].plan) for term, layers in compared.items()}

    def _move(self, costs: Array) -> Transport:
        return Transport.cheapest(costs, self._shares or LayerWeights.uniform(*costs.shape))

    def _attended(self, moves: Sequence[Transport]) -> LayerWeights | None:
        """The weights that follow from these transports; the ones that there are where a cost is not finite."""
        if len({move.costs.shape for move in moves}) > 1:
            raise ShapeError(_other_layers([move.costs.shape for move in moves]))
        if not all(np.isfinite(move.costs).all() for move in moves):
            return self._shares
        return LayerWeights.mean([move.cost_attention(self.cost_temperature) for move in moves])


def _tensors(features: Features, name: str, side: str, least: int = 1) -> Sequence[Tensor]:
    """All tensors of a feature. Raises AdaptorError where the features lack it."""
    found = features.get(name, ())
    if len(found) < least:
        expected = "the embeddings' output and that of a layer at least" if least > 1 else "that of a layer at least"
        raise AdaptorError(
            f"strategy `emd`: the {side}'s adaptor returns {len(found)} tensors of {name!r}, expected {expected}; it returns "
            f"{', '.join(features) or 'nothing'}."
        )
    return found


def _widths(states: Sequence[Tensor]) -> list[int]:
    return [state.shape[-1] for state in states]


def _other_layers(shapes: Sequence[tuple[int, ...]]) -> str:
    hidden, attention = (f"{s} of the student and {t} of the teacher" for s, t in shapes)
    return (
        "strategy `emd`: cost_attention weighs a layer by its hidden state and its attention together, and there are "
        f'{hidden} with hidden states, {attention} with attention; set attention_weight to 0, or layer_weights to "uniform".'
    )


def _mask(features: Features, name: str) -> Tensor | None:
    """[B, L]: the valid tokens, for a feature that has such a length."""
    mask = features.first("inputs_mask")
    if mask is None or "L" not in features.axes(name).split():
        return None
    return mask.bool()
