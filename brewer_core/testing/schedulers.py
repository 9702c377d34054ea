"""What schedules of weights and of temperatures promise.

Shapes: B rows, L tokens, V classes, N positions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from brewer_core.sparse_logits import SparseLogits
from brewer_core.testing.conformance import Conformance, does_not_apply, require
from brewer_core.testing.tensors import CLASSES, LENGTH, ROWS, close, same_bits, seeded_tensors

STEPS = 20
BASE = 4.0


class WeightSchedulerConformance(Conformance):
    """Properties of a schedule of weights, at 21 points of a run.

    bounds: the least and the greatest factor that it gives.
    """

    kind: ClassVar[str] = "weight_scheduler"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def test_a_number(self) -> None:
        """It gives a plain number, which is no tensor."""
        for value in self._factors():
            require(isinstance(value, (int, float)), f"gives a {type(value).__name__}; a factor is a float")

    def test_finite(self) -> None:
        """Every factor is finite, from the first step to the last."""
        for step, value in enumerate(self._factors()):
            require(math.isfinite(value), f"is {value} at a progress of {step / STEPS:g}")

    def test_in_bounds(self) -> None:
        """Every factor is between the bounds, 0 and 1 unless the test says otherwise."""
        low, high = self.bounds
        for step, value in enumerate(self._factors()):
            inside = not math.isfinite(value) or low - 1e-9 <= value <= high + 1e-9
            require(inside, f"is {float(value):.4g} at a progress of {step / STEPS:g}; expected {low:g} to {high:g}")

    def test_pure(self) -> None:
        """A factor depends on the progress alone, not on what was asked before."""
        method = self.bound()
        forth = [self._at(method, step) for step in range(STEPS + 1)]
        back = [self._at(method, step) for step in reversed(range(STEPS + 1))]
        require(
            str(forth) == str(back[::-1]),
            "gives another factor when it is asked again; it must depend on progress alone",
        )

    def _factors(self) -> list[Any]:
        method = self.bound()
        return [self._at(method, step) for step in range(STEPS + 1)]

    def _at(self, method: Any, step: int) -> Any:
        return method(step / STEPS, step=step, total_steps=STEPS)


class TemperatureSchedulerConformance(Conformance):
    """Properties of a schedule of temperatures, around a base temperature of 4.

    bounds: the least and the greatest temperature that it gives.
    """

    kind: ClassVar[str] = "temperature_scheduler"
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def logits(self) -> list[tuple[Tensor, Tensor]]:
        """Logits of student and teacher: ordinary, alike, all 0, and of 10,000."""
        student, teacher = seeded_tensors(ROWS, CLASSES, seed=1), seeded_tensors(ROWS, CLASSES, seed=2)
        none, sure = torch.zeros_like(student), 1e4 * student.sign()
        return [(student, teacher), (student, student), (none, none), (sure, sure), (sure, -sure)]

    def test_shape(self) -> None:
        """It gives a number, or one for each position: [N] for [N, V] and [B, L] for [B, L, V]."""
        for shape in ((ROWS, CLASSES), (ROWS, LENGTH, CLASSES)):
            found = self._at(seeded_tensors(*shape, seed=1), seeded_tensors(*shape, seed=2))
            if isinstance(found, Tensor):
                fits = tuple(found.shape) in ((), shape[:-1])
                require(fits, f"gives {tuple(found.shape)} for {shape}; expected a number or {shape[:-1]}")
            else:
                require(
                    isinstance(found, (int, float)), f"gives a {type(found).__name__}; expected a float or a tensor"
                )

    def test_finite(self) -> None:
        """Every temperature is finite, for any logits at any progress."""
        for student, teacher in self.logits():
            for progress in (0.0, 0.5, 1.0):
                found = torch.as_tensor(self._at(student, teacher, progress))
                require(bool(found.isfinite().all()), f"is not finite for logits like {student[0, :2].tolist()}")

    def test_in_bounds(self) -> None:
        """Every temperature is above 0, and between the bounds that the test gives."""
        low, high = self.bounds
        for student, teacher in self.logits():
            for progress in (0.0, 0.5, 1.0):
                found = torch.as_tensor(self._at(student, teacher, progress))
                known = found[found.isfinite()]
                inside = bool(((known > 0) & (known >= low) & (known <= high)).all())
                require(inside, f"gives {known.flatten().tolist()}; expected more than {low:g}, up to {high:g}")

    def test_pure(self) -> None:
        """Temperatures depend on the logits and the progress alone, bit by bit."""
        method, (student, teacher) = self.bound(), self.logits()[0]
        values = [
            torch.as_tensor(method(student, teacher, BASE, progress=p, mask=None))
            for p in (0.0, 0.5, 1.0, 1.0, 0.5, 0.0)
        ]
        same = all(map(same_bits, values[:3], values[:2:-1]))
        require(same, "gives another temperature when it is asked again")

    def test_sparse_teacher(self) -> None:
        """Where it declares `sparse=True`, it gives for SparseLogits of the teacher what it gives for the tensor."""
        if not self.subject.facts.sparse:
            does_not_apply("it needs all of the teacher's logits: it does not declare @component(sparse=True)")
        student, teacher = self.logits()[0]
        expected = torch.as_tensor(self._at(student, teacher))
        for kept in (1, CLASSES):
            found = torch.as_tensor(self._at(student, SparseLogits.top_k(teacher, kept)))
            require(close(found, expected), f"gives another temperature where {kept} of {CLASSES} classes are kept")

    def test_inputs_unchanged(self) -> None:
        """The logits are left as they were."""
        student, teacher = self.logits()[0]
        before = student.clone(), teacher.clone()
        self._at(student, teacher)
        require(all(map(same_bits, before, (student, teacher))), "changes its inputs in place; make new tensors")

    def _at(self, student: Tensor, teacher: Tensor | SparseLogits, progress: float = 0.5) -> Any:
        mask = torch.ones(student.shape[:-1], dtype=torch.bool) if student.dim() == 3 else None
        return self.bound()(student, teacher, BASE, progress=progress, mask=mask)
