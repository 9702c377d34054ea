"""Weights of a narrower model's norms, so that they give what the teacher's give, as far as a norm can.

Shapes: H and K widths of teacher and student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from brewer_builtins.surgery.activity import Batches, listen, normal
from brewer_builtins.surgery.anatomy import Anatomy
from brewer_builtins.surgery.projection import Projection


@dataclass(frozen=True)
class Fitted:
    """A norm's weight and bias in the student, each [K], as they are used.

    scale: one factor in place of a weight, for a norm whose own weight goes into its readers.
    """

    weight: Tensor
    bias: Tensor
    scale: float


def fitted(anatomy: Anatomy, stream: Projection, pooled: Projection, batches: Batches) -> dict[str, Fitted]:
    """Weight and bias of each norm that come nearest to the teacher's outputs by least squares, channel by channel.

    The student's norm divides by the spread of K channels where the teacher's divided by that of H, so the teacher's weights
    alone would give states of another size. stream, pooled: what is kept of the stream, and of what a classifier's head makes.
    """
    norms = anatomy.norms | anatomy.pooled_norms
    fits = {
        name: _Fit(
            pooled if name in anatomy.pooled_norms else stream,
            normal(anatomy, norm),
            getattr(norm, "bias", None) is not None,
        )
        for name, norm in norms.items()
    }
    listen(anatomy.model, batches, {norm: fits[name].add for name, norm in norms.items()})
    return {name: fit.result for name, fit in fits.items()}


class _Fit:
    """y = w x + b for each channel: x what the student's norm makes of projected states, y the teacher's projected outputs."""

    def __init__(self, projection: Projection, core: Callable[[Tensor], Tensor], biased: bool) -> None:
        self._projection, self._core, self._biased = projection, core, biased
        self._sums: Mapping[str, Tensor] = {}
        self._tokens = 0

    def add(self, before: Tensor, after: Tensor, valid: Tensor) -> None:
        states = before[valid].double().flatten(0, -2)
        x, y = self._core(self._projection(states)), self._projection(after[valid].double().flatten(0, -2))
        target = self._projection(self._core(states))
        new = {"x": x, "y": y, "xx": x * x, "xy": x * y, "target": target * x}
        self._sums = {key: values.sum(0) + self._sums.get(key, 0.0) for key, values in new.items()}
        self._tokens += len(states)

    @property
    def result(self) -> Fitted:
        mean = {key: value / max(self._tokens, 1) for key, value in self._sums.items()}
        x, y = (mean["x"], mean["y"]) if self._biased else (torch.zeros_like(mean["x"]), torch.zeros_like(mean["y"]))
        spread = mean["xx"] - x * x
        # A channel that never moves has no slope: it gives its mean.
        weight = torch.where(spread > 1e-12, (mean["xy"] - x * y) / spread.clamp(min=1e-12), 0.0)
        return Fitted(weight, y - weight * x, float(mean["target"].sum() / mean["xx"].sum().clamp(min=1e-30)))


def folded_bias(weights: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """The bias b [K] of a norm for which W b is nearest to what readers without a bias of their own are to get.

    weights: W of each reader, [*, K]; wanted: W b of each in the teacher, [*].
    """
    matrix, target = torch.cat(weights).double(), torch.cat(wanted).double()
    # By the normal equations: W has a row for each entry of a vocabulary.
    bias: Tensor = torch.linalg.pinv(matrix.T @ matrix, hermitian=True) @ (matrix.T @ target)
    return bias
