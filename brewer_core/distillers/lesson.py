"""What a distiller teaches: a student, its teachers, and the terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from brewer_core.objective import Balancer, Objective
from brewer_core.protocols import ModelInfo, Strategy, Teacher

Adaptor: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class TaughtBy:
    """One teacher. model: or a Teacher, which is asked as it is. position: its place in a list.

    weight: in the mean of several. tasks: its own; all if there are none.
    """

    name: str
    model: nn.Module | Teacher
    adaptor: Adaptor
    position: int | None = None
    weight: float = 1.0
    tasks: tuple[str, ...] = ()

    @property
    def info(self) -> ModelInfo:
        """What is known of it before training."""
        return ModelInfo(self.name, weight=self.weight, tasks=self.tasks)


@dataclass(frozen=True)
class Lesson:
    """What is trained, and who teaches. remembering: whether the teachers' logits are kept for each row."""

    student: nn.Module
    adaptor: Adaptor | Mapping[str, Adaptor]
    objective: Objective
    strategy: Strategy
    parts: nn.Module | None = None
    balancer: Balancer | None = None
    teachers: Sequence[TaughtBy] = ()
    remembering: bool = False

    @property
    def teacher_models(self) -> list[nn.Module]:
        """The models of the teachers that are models, and no teachers of their own making."""
        return [each.model for each in self.teachers if isinstance(each.model, nn.Module)]
