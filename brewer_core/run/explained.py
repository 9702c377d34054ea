"""What `explain` tells of a run: each stage's total, its terms, what they read and what they use.

Values alone, without torch; `explaining` finds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Used:
    """A component that a stage uses, and what for. origin: its distribution, version and entry point."""

    role: str
    name: str
    options: Mapping[str, Any]
    origin: str
    changed: Mapping[str, Any] = field(default_factory=dict)
    """The options that differ from their defaults."""

    def call(self, *arguments: str, **more: str) -> str:
        """It as a formula has it: `kl(student.logits, teacher.logits; T = 2)`."""
        told = [f"{name} = {value}" for name, value in more.items()]
        told += [f"{name} = {json.dumps(value)}" for name, value in self.changed.items()]
        return f"{self.name}({', '.join(arguments)}{'; ' if told and arguments else ''}{', '.join(told)})"


@dataclass(frozen=True)
class Read:
    """Tensors that a term reads. name: `student.hidden[2]`. axes: `B L D`; shapes: one for each tensor."""

    name: str
    axes: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Projected:
    """What brings the student's width to the teacher's. group: settings of its own in the optimizer."""

    width: int
    to: int
    parameters: int
    group: Mapping[str, Any]


@dataclass(frozen=True)
class Balanced:
    """What a balancer makes of a term on the batch, at the start: factor * value + penalty."""

    factor: float
    penalty: float

    def of(self, value: float) -> float:
        """The balanced value."""
        return self.factor * value + self.penalty


@dataclass(frozen=True)
class ExplainedTerm:
    """One term of a total.

    factor: its weight as a formula. weights: at the steps of the stage. value: unweighted, on the batch.
    over: what its mean is over. trained: whether anything that is trained changes it. balance: None where nothing is done to it.
    """

    name: str
    expression: str
    factor: str
    weights: tuple[float, ...]
    value: float
    over: str
    trained: bool
    reads: tuple[Read, ...]
    used: tuple[Used, ...]
    projection: Projected | None = None
    temperature: float | None = None
    balance: Balanced | None = None

    @property
    def weighted(self) -> float:
        """Its part of the total at the start."""
        return self.weights[0] * (self.value if self.balance is None else self.balance.of(self.value))


@dataclass(frozen=True)
class ExplainedTask:
    """The total of one task's batches; the task of a run of one bears the name "". left_out: terms with the reason.

    balancer: the name of the one that weighs the terms.
    """

    task: str
    rows: int
    terms: tuple[ExplainedTerm, ...]
    left_out: Mapping[str, str]
    balancer: str = ""

    @property
    def total(self) -> float:
        """The loss of the batch, at the start."""
        return sum(term.weighted for term in self.terms)

    @property
    def formula(self) -> tuple[str, ...]:
        """The summands of the total."""
        return tuple(f"{term.factor} * {self._summand(term)}" for term in self.terms)

    def _summand(self, term: ExplainedTerm) -> str:
        return term.expression if term.balance is None else f"{self.balancer}({term.expression})"


@dataclass(frozen=True)
class ExplainedTeacher:
    """A teacher of a stage, with its weight among several and the task that it teaches."""

    name: str
    weight: float
    task: str
    used: tuple[Used, ...]


@dataclass(frozen=True)
class ExplainedStage:
    """What a stage minimises. at: the steps at which weights are told, its start, middle and end."""

    name: str
    kind: str
    student: str
    at: tuple[int, int, int]
    loss_normalization: str
    accumulation: int
    used: tuple[Used, ...]
    strategy_parameters: int
    teachers: tuple[ExplainedTeacher, ...]
    tasks: tuple[ExplainedTask, ...]
    balancer: Used | None = None
    balancer_parameters: int = 0


def number(value: float) -> str:
    """A number in as few digits as tell it exactly."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
