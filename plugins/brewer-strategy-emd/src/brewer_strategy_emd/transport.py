"""Who learns from whom: the cheapest transport between the layers of a student and those of a teacher.

Shapes: S layers of the student, T layers of the teacher. Everything here is NumPy in float64, without gradient.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

SMALLEST_SHARE = 1e-6
"""No layer's weight falls below this share, for the cost of a unit of no weight at all is 0/0."""


class LayerWeights(NamedTuple):
    """What every layer of the student, [S], and of the teacher, [T], weighs; each side adds up to 1."""

    student: Array
    teacher: Array

    @classmethod
    def uniform(cls, student_layers: int, teacher_layers: int) -> LayerWeights:
        """Every layer of a side alike."""
        return cls(np.full(student_layers, 1 / student_layers), np.full(teacher_layers, 1 / teacher_layers))

    @classmethod
    def mean(cls, several: list[LayerWeights]) -> LayerWeights:
        """The mean, side by side."""
        student, teacher = zip(*several, strict=True)
        return cls(np.mean(student, axis=0), np.mean(teacher, axis=0))


class Transport(NamedTuple):
    """How much of the weight of each layer of the student goes to each of the teacher, [S, T], and what a unit costs."""

    plan: Array
    costs: Array
    weights: LayerWeights

    @classmethod
    def cheapest(cls, costs: Array, weights: LayerWeights) -> Transport:
        """The transport of which the sum of plan times cost is as small as can be.

        The plan's rows add up to the student's weights and its columns to the teacher's; at most S + T - 1 of its entries
        are not 0. Where a cost is not finite everything goes everywhere, so that the loss is not finite either.
        Source: Rubner et al. 2000, "The Earth Mover's Distance as a Metric for Image Retrieval", solved exactly by POT.
        """
        if not np.isfinite(costs).all():
            return cls(np.outer(weights.student, weights.teacher), costs, weights)
        # The solver's tolerance is absolute: costs of 1e-12, or of 1 that differ by as little, would all be alike to it.
        relative = costs - costs.min()
        plan = _solver()(weights.student, weights.teacher, relative / (relative.max() or 1.0))
        return cls(plan, costs, weights)

    def cost_attention(self, temperature: float) -> LayerWeights:
        """What layers are to weigh next: those that transport cheaply more, the others less."""
        work = self.plan * self.costs
        return LayerWeights(
            _cost_attention(work.sum(axis=1), self.weights.student, temperature),
            _cost_attention(work.sum(axis=0), self.weights.teacher, temperature),
        )


@functools.cache
def _solver() -> Callable[..., Array]:
    """POT's exact solver, whose import takes a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its docstrings, which Python warns of when it compiles them
        import ot
    solve: Callable[..., Array] = ot.emd
    return solve


def _cost_attention(work: Array, weights: Array, temperature: float) -> Array:
    """What each layer of a side weighs next, given what its transport costs.

    With c = work / weights, the cost of a unit of a layer, it is the softmax of (sum of all c) / c / temperature.
    Source: Li et al. 2020, arXiv:2010.06133, section 3.3, and the authors' code, which gives a layer that costs nothing the
    smallest weight; here it gets the greatest.
    """
    unit = work / weights
    total = unit.sum()
    if total == 0:
        return np.full(len(work), 1 / len(work))
    score = total / np.maximum(unit, SMALLEST_SHARE * total) / temperature
    shares = np.exp(score - score.max())
    shares = np.maximum(shares / shares.sum(), SMALLEST_SHARE)
    return np.asarray(shares / shares.sum())
