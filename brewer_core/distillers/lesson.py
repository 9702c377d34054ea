"""What a distiller teaches: a student, its teachers, and the terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from brewer_core.objective import Objective
from brewer_core.protocols import ModelInfo, Strategy

Adaptor: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class TaughtBy:
    """One teacher. position: its place in a list. weight: in the mean of several. tasks: its own; all if there are none."""

    name: str
    model: nn.Module
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
    teachers: Sequence[TaughtBy] = ()
    remembering: bool = False
