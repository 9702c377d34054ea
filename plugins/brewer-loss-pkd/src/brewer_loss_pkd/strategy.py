"""The strategy `pkd`: every intermediate layer of the student learns from a layer of the teacher that a pattern gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, TypeAlias

import torch
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
    default_registry,
)
from brewer_loss_pkd.loss import first_token, pkd
from brewer_loss_pkd.patterns import Pattern, layers

TERM = "pkd"
Widths: TypeAlias = list[tuple[int, int]]
"""How wide each taught state of the student is, and the teacher's that it is compared with."""
Named: TypeAlias = str | dict[str, str | bool | int | float | None]


@component(name="Patient knowledge distillation", source="Sun et al. 2019, arXiv:1908.09355")
class PatientDistillation(Strategy):
    """Patient knowledge distillation: all layers of the student but its last learn from layers of the teacher.

    Beside the terms of the strategy `general`: `pkd`, the sum over these layers of the match loss `pkd`, which compares
    first-token states of unit length. It is what `intermediate_matches` with this loss and the layers of `patterns.layers`
    come to, with one weight.

    The feature holds the embeddings' output first and then a tensor a layer, [B, L, D] or [B, D].

    Source: Sun et al. 2019, arXiv:1908.09355, eq. 7, summed over layers and averaged over the batch. The authors' code takes the
    mean over layers and widths too: their factor b is here b / (layers taught * width).
    """

    def __init__(
        self,
        *,
        pattern: Annotated[
            Pattern,
            Field(
                description="Which layers of the teacher: every (teacher's layers / student's layers)-th, or the last ones before "
                "its final one."
            ),
        ] = "skip",
        weight: Annotated[float, Field(ge=0, description="The factor of the term.")] = 1.0,
        eps: Annotated[
            float, Field(gt=0, description="Added to norms, so that a zero state gives a finite loss.")
        ] = 1e-8,
        feature: Annotated[str, Field(min_length=1, description="The feature that is compared.")] = "hidden",
        projection: Annotated[
            Named | None,
            Field(
                description="What brings each taught state of the student to the teacher's width, trained with it: an installed "
                'projection such as "linear", or {"name": ..., options}; null where the widths are equal.'
            ),
        ] = None,
        student_layers: Annotated[
            int | None,
            Field(ge=2, description="How many layers the student has, for projections in a script; a run reads it."),
        ] = None,
        student_width: Annotated[
            int | None, Field(ge=1, description="How wide the student is, for projections in a script; a run reads it.")
        ] = None,
        teacher_width: Annotated[
            int | None, Field(ge=1, description="How wide the teacher is, for projections in a script; a run reads it.")
        ] = None,
    ) -> None:
        self.pattern: Pattern = pattern
        self.weight = weight
        self.eps = eps
        self.feature = feature
        self.projection = projection
        self.student_layers = student_layers
        self.student_width = student_width
        self.teacher_width = teacher_width
        self._widths: Widths = []
        self._projections: nn.ModuleList | None = None

    def needs(self, objective: Objective) -> Needs:
        """What the terms of the objective read, and the feature that is compared."""
        told = objective.needs()
        return replace(told, student=told.student | {self.feature}, every_teacher=told.every_teacher | {self.feature})

    def build(self, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> nn.ModuleList | None:
        """A projection for each taught layer, drawn in order; None without `projection`.

        Raises RequestError for several teachers, where the layers do not fit the pattern, for a projection that is not there, and
        where there is one and widths are neither known nor given.
        """
        if len(teachers) != 1:
            raise RequestError(
                f"the strategy `pkd` learns from one teacher, not from {', '.join(teachers) or 'none'}; "
                "`multi_teacher` learns from several."
            )
        (teacher,) = teachers.values()
        if self.projection is not None:
            self._widths = self._known(student, teacher)
            self._projections = nn.ModuleList([_made(self.projection, *widths) for widths in self._widths])
        return self._projections

    def weights(self, step: Step) -> Mapping[str, float]:
        """The factor of the term of this strategy."""
        del step
        return {TERM: self.weight}

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The losses of the objective, and that of the layers. Raises ShapeError where widths do not fit."""
        del task
        (teacher,) = teachers.values()
        return {
            **objective.kd_terms(student, teacher, step),
            **objective.match_terms(student, teachers, step),
            TERM: self._patience(student, teacher),
            **objective.label_terms(student),
        }

    def _patience(self, student: Features, teacher: Features) -> Tensor:
        own, taught = self._states(student, "student"), self._states(teacher, "teacher")
        pairs = self._pairs(len(own), len(taught))
        self._check_widths([(own[s].shape[-1], taught[t].shape[-1]) for t, s in pairs], len(own) - 1)
        losses = [
            pkd(project(first_token(own[s], "student")), taught[t], eps=self.eps)
            for project, (t, s) in zip(self._projections or [nn.Identity()] * len(pairs), pairs, strict=True)
        ]
        return torch.stack(losses).sum()

    def _states(self, features: Features, side: str) -> Sequence[Tensor]:
        found = features.get(self.feature, ())
        if len(found) < 2:
            raise AdaptorError(
                f"strategy `pkd`: the {side}'s adaptor returns {len(found)} tensors of {self.feature!r}, expected the embeddings' "
                f"output and that of each layer; it returns {', '.join(features) or 'nothing'}."
            )
        return found

    def _pairs(self, own: int, taught: int) -> list[tuple[int, int]]:
        """The layers that are compared, given how many states there are, the embeddings' among them."""
        try:
            return layers(self.pattern, own - 1, taught - 1)
        except RequestError as error:
            raise RequestError(f"strategy `pkd`: {error}") from error

    def _known(self, student: ModelInfo, teacher: ModelInfo) -> Widths:
        """The widths of what is compared, read off the models or given."""
        own, taught = student.widths.get(self.feature, ()), teacher.widths.get(self.feature, ())
        if own and taught:
            return [(own[s], taught[t]) for t, s in self._pairs(len(own), len(taught))]
        given = {
            "student_layers": self.student_layers,
            "student_width": self.student_width,
            "teacher_width": self.teacher_width,
        }
        if self.student_layers and self.student_width and self.teacher_width:
            return [(self.student_width, self.teacher_width)] * (self.student_layers - 1)
        raise RequestError(
            f"the strategy `pkd` projects hidden states, and the models' widths are not known before a batch is read: give it "
            f"{', '.join(name for name, value in given.items() if value is None)} too."
        )

    def _check_widths(self, widths: Widths, student_layers: int) -> None:
        fit = self._widths == widths if self._projections is not None else all(own == taught for own, taught in widths)
        if fit:
            return
        own, taught = next((pair for pair in widths if pair[0] != pair[1]), widths[0])
        advice = (
            'give it "projection": "linear", and in a script'
            if self._projections is None
            else "its projections do not fit: give it"
        )
        raise ShapeError(
            f"strategy `pkd`: the student has {student_layers} layers {own} wide and the teacher's are {taught} wide; {advice} "
            f"student_layers={student_layers}, student_width={own} and teacher_width={taught}."
        )


def _made(named: Named, width: int, wanted: int) -> nn.Module:
    """A projection, by its name or with options too."""
    name, options = (named, {}) if isinstance(named, str) else (named.get("name"), {**named})
    options.pop("name", None)
    if not isinstance(name, str):
        raise RequestError('strategy `pkd`: projection: a mapping needs a "name", that of a projection.')
    try:
        module = default_registry().bind("projection", name, options)(width, wanted)
    except RequestError as error:
        raise RequestError(f"strategy `pkd`: projection: {error}") from error
    if not isinstance(module, nn.Module):
        raise RequestError(
            f"strategy `pkd`: projection: `{name}` returned a {type(module).__name__}, not a torch.nn.Module."
        )
    return module
