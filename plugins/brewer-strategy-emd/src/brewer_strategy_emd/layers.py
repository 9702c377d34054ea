"""What a layer of the student differs by from a layer of the teacher, for every pair that is asked for.

Shapes: B rows, L tokens, D width, H heads, S layers of the student, T layers of the teacher. Masks are [B, L], bool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brewer_core import ShapeError
from brewer_strategy_emd.transport import Array

PADDING_SCORE = -1e2
"""Without a mask attention up to this is a score of padding, and counts as 0 as in the authors' code."""


@dataclass(frozen=True)
class Layers:
    """The layers of one feature, all of one shape, and 0 where they do not count.

    items: how many numbers of a layer count, at least 1.
    """

    student: Sequence[Tensor]
    teacher: Sequence[Tensor]
    items: Tensor | int

    def cost(self, student_layer: int, teacher_layer: int) -> Tensor:
        """The mean squared difference of two layers over what counts; 0 where nothing does."""
        own, taught = self.student[student_layer], self.teacher[teacher_layer]
        return F.mse_loss(own, taught, reduction="sum") / self.items

    def costs(self) -> Array:
        """[S, T]: the cost of every pair, without gradient. Waits for the device."""
        with torch.no_grad():
            pairs = [self.cost(s, t) for s in range(len(self.student)) for t in range(len(self.teacher))]
            costs = torch.stack(pairs).cpu().double().numpy()
        return np.asarray(costs).reshape(len(self.student), len(self.teacher))

    def moved(self, plan: Array) -> Tensor:
        """The sum of plan times cost, with gradient through the costs."""
        # pair by pair: a plan of S + T - 1 entries needs no graph for all S times T
        pairs = np.argwhere(plan)
        return torch.stack([self.cost(s, t) * float(plan[s, t]) for s, t in pairs]).sum()


def of_states(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Layers:
    """Hidden states, [B, L, D]; without a mask of any shape. The mean is over valid tokens and D.

    Raises ShapeError where shapes differ.
    """
    _check_alike(student, teacher, "hidden states")
    teacher = [layer.detach() for layer in teacher]
    if mask is None:
        return Layers(student, teacher, max(1, student[0].numel()))
    return _counting(student, teacher, _valid(mask, student[0], "hidden states").unsqueeze(-1))


def of_attention(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None) -> Layers:
    """Attention, [B, H, L, L] or [B, L, L], scores or probabilities. The mean is over heads and pairs of valid tokens.

    Raises ShapeError where shapes differ, the number of heads too.
    """
    _check_alike(student, teacher, "attention")
    teacher = [layer.detach() for layer in teacher]
    if mask is None:
        student, teacher = ([torch.where(a <= PADDING_SCORE, 0, a) for a in side] for side in (student, teacher))
        return Layers(student, teacher, max(1, student[0].numel()))
    valid = _valid(mask, student[0], "attention")
    pairs = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    return _counting(student, teacher, pairs.unsqueeze(1) if student[0].dim() == 4 else pairs)


def without_padding(states: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L, D]: the same states, 0 at padding."""
    return states if mask is None else torch.where(_valid(mask, states, "hidden states").unsqueeze(-1), states, 0)


def _counting(student: Sequence[Tensor], teacher: Sequence[Tensor], counts: Tensor) -> Layers:
    """The layers where `counts` holds, which has a 1 for the axes that it says nothing of."""
    numbers = student[0].numel() // max(1, counts.numel())
    own, taught = ([torch.where(counts, layer, 0) for layer in side] for side in (student, teacher))
    return Layers(own, taught, (counts.sum() * numbers).clamp(min=1))


def _valid(mask: Tensor, layer: Tensor, what: str) -> Tensor:
    """[B, L]: the mask. Raises ShapeError where it has other rows or tokens than the layer."""
    if tuple(mask.shape) != (layer.shape[0], layer.shape[-2]):
        raise ShapeError(
            f"strategy `emd`: the student's inputs_mask is {tuple(mask.shape)} and its {what} {tuple(layer.shape)}; the mask "
            "must have their rows and tokens."
        )
    return mask


def _check_alike(student: Sequence[Tensor], teacher: Sequence[Tensor], what: str) -> None:
    first = student[0].shape
    for side, layers in (("student", student), ("teacher", teacher)):
        for layer in layers:
            if layer.shape != first:
                hint = "; set attention_weight to 0 where heads differ" if what == "attention" else ""
                raise ShapeError(
                    f"strategy `emd`: {what} must have one shape in all layers of both models, and the student's first layer is "
                    f"{tuple(first)} and a layer of the {side} {tuple(layer.shape)}{hint}."
                )
