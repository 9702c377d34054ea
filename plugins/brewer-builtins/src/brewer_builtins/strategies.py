"""Strategies: who teaches what, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from brewer_core import Features, Objective, Step, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class General(Strategy):
    """One teacher: logits, intermediate features, and the student's own losses on labels.

    Source: Hinton et al. 2015, arXiv:1503.02531, with intermediate matches as in TextBrewer, arXiv:2002.12620.
    """

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The losses against every teacher's features, and the student's own."""
        del task
        losses: dict[str, Tensor] = {}
        for teacher in teachers.values():
            losses |= objective.kd_terms(student, teacher, step)
            losses |= objective.match_terms(student, teacher, step)
        return losses | dict(objective.label_terms(student))


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
