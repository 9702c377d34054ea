"""Strategies: who teaches what, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from brewer_core import Features, ModelInfo, Objective, RequestError, Step, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class General(Strategy):
    """One teacher: logits, intermediate features, and the student's own losses on labels.

    Source: Hinton et al. 2015, arXiv:1503.02531, with intermediate matches as in TextBrewer, arXiv:2002.12620.
    """

    def build(self, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> None:
        """Nothing is trained here. Raises RequestError for several teachers, whose losses would stand for one another."""
        del student
        if len(teachers) != 1:
            raise RequestError(
                f"the strategy `general` learns from one teacher, not from {', '.join(teachers) or 'none'}."
            )

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The losses against the teacher's features, and the student's own."""
        del task
        (teacher,) = teachers.values()
        return {
            **objective.kd_terms(student, teacher, step),
            **objective.match_terms(student, teacher, step),
            **objective.label_terms(student),
        }


class Supervised(Strategy):
    """No teacher: the model's own losses on labels."""

    def teachers_for(self, task: str, teachers: Sequence[str]) -> Sequence[str]:
        """None."""
        del task, teachers
        return ()

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The model's own losses."""
        del task, teachers, step
        return objective.label_terms(student)


@hookimpl
def brewer_strategies() -> dict[str, type[Strategy]]:
    """The built-in strategies."""
    return {"general": General, "supervised": Supervised}
