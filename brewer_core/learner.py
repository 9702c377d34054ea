"""The learner: all that is trained, in one module whose forward returns the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from brewer_core.batches import call_model, side
from brewer_core.captures import Captures, Notices
from brewer_core.errors import AdaptorError, RequestError
from brewer_core.features import Features
from brewer_core.objective import UNBALANCED, Balance, Balancer, Objective
from brewer_core.precision import autocast, full_precision
from brewer_core.protocols import Batch, Step, Strategy

Adaptor: TypeAlias = Callable[..., Any]


class Balanced(NamedTuple):
    """The unweighted losses of a batch by term, and what a balancer makes of them."""

    losses: dict[str, Tensor]
    balance: Balance


class Learner(nn.Module):
    """Student, its adaptor, the objective with its projections, its balancer, and what the strategy trains.

    One module, so that wrappers such as DDP and torch.compile see all of it. The student runs under autocast, the
    objective in float32. adaptor: for every task, or a mapping from task to adaptor. notices: of whoever has the student read elsewhere
    too.
    """

    def __init__(
        self,
        student: nn.Module,
        adaptor: Adaptor | Mapping[str, Adaptor],
        objective: Objective,
        strategy: Strategy,
        *,
        parts: nn.Module | None = None,
        balancer: Balancer | None = None,
        precision: str = "no",
        arguments: Mapping[str, Any] | None = None,
        model_inputs: Callable[[Batch], Batch] = lambda batch: batch,
        notices: Notices | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.adaptor = adaptor
        self.objective = objective
        self.strategy = strategy
        self.parts = parts
        self.balancer = balancer
        self.precision = precision
        self.arguments = dict(arguments or {})
        self.model_inputs = model_inputs
        self.needs = strategy.needs(objective)
        self._captures: Captures | None = None
        self._notices = notices or Notices()

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
            self._captures = Captures(self.student, self.needs.student, "student", self._notices)
        return self._captures

    def weights(self, step: Step) -> dict[str, float]:
        """The configured factor of every term at a step; the strategy has the last word."""
        return {**self.objective.weights(step), **self.strategy.weights(step)}

    def balance(self, losses: Mapping[str, Tensor], terms: Sequence[str], step: Step) -> Balance:
        """What the balancer makes of those of the losses that are named; nothing without one."""
        if self.balancer is None:
            return UNBALANCED
        given = {name: losses[name].detach() for name in terms if name in losses}
        made: Balance = self.balancer(given, step)
        return made

    def balanced_terms(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """The terms that the balancer weighs now: those that it knows, and whose weight is not 0."""
        known = () if self.balancer is None else self.balancer.terms
        return tuple(name for name in known if weights.get(name, 1.0) != 0)

    def forward(
        self,
        task: str,
        batch: Batch,
        teachers: Mapping[str, Features],
        step: Step,
        balanced: Sequence[str] | None = None,
    ) -> dict[str, Tensor] | Balanced:
        """The unweighted losses of a batch by term; beside them, where terms to be balanced are named, their balance.

        That is computed here, and not by who asks, because the balancer's parameters have to be seen by what wraps the learner.
        Raises AdaptorError where there is no loss.
        """
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
        if balanced is None:
            return losses
        with full_precision(device):
            return Balanced(losses, self.balance(losses, balanced, step))
