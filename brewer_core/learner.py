"""The learner: all that is trained, in one module whose forward returns the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from brewer_core.batches import call_model, side
from brewer_core.captures import Captures
from brewer_core.errors import AdaptorError, RequestError
from brewer_core.features import Features
from brewer_core.objective import Objective
from brewer_core.precision import autocast, full_precision
from brewer_core.protocols import Batch, Step, Strategy

Adaptor: TypeAlias = Callable[..., Any]


class Learner(nn.Module):
    """Student, its adaptor, the objective with its projections, and what the strategy trains.

    One module, so that wrappers such as DDP and torch.compile see all of it. The student runs under autocast, the
    objective in float32. adaptor: for every task, or a mapping from task to adaptor.
    """

    def __init__(
        self,
        student: nn.Module,
        adaptor: Adaptor | Mapping[str, Adaptor],
        objective: Objective,
        strategy: Strategy,
        *,
        parts: nn.Module | None = None,
        precision: str = "no",
        arguments: Mapping[str, Any] | None = None,
        model_inputs: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        super().__init__()
        self.student = student
        self.adaptor = adaptor
        self.objective = objective
        self.strategy = strategy
        self.parts = parts
        self.precision = precision
        self.arguments = dict(arguments or {})
        self.model_inputs = model_inputs
        self.needs = strategy.needs(objective)
        self._captures: Captures | None = None

    def adaptor_for(self, task: str) -> Adaptor:
        """The adaptor of a task. Raises RequestError where it has none."""
        if not isinstance(self.adaptor, Mapping):
            return self.adaptor
        if task not in self.adaptor:
            raise RequestError(
                f"task {task!r} has no adaptor of the student; there are ones for {', '.join(self.adaptor)}."
            )
        return self.adaptor[task]

    @property
    def _captured(self) -> Captures:
        """What is captured of the student."""
        if self._captures is None or self._captures.model is not self.student:
            self._captures = Captures(self.student, self.needs.student, "student")
        return self._captures

    def forward(self, task: str, batch: Batch, teachers: Mapping[str, Features], step: Step) -> dict[str, Tensor]:
        """The unweighted losses of a batch by term. Raises AdaptorError where there is none."""
        own = side(batch, "student")
        device = next(self.student.parameters(), torch.empty(0)).device
        with autocast(self.precision, device):
            with self._captured.noting(task) as capture:
                outputs = call_model(self.student, self.model_inputs(own), self.arguments)
            features = capture.added_to(Features.of(self.adaptor_for(task)(own, outputs), "the student's adaptor"))
        with full_precision(device):
            taught = {name: answer.to(device).float() for name, answer in teachers.items()}
            losses = dict(self.strategy.terms(task, features.float(), taught, self.objective, step))
        if not losses:
            raise AdaptorError(
                f"nothing to optimise: the student's adaptor returns {', '.join(features) or 'nothing'}; it must return "
                "`losses`, or `logits` or other features that a term compares with a teacher's."
            )
        return losses
