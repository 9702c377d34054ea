"""Losses between the scores that rankers give the candidates of a query.

Shapes: B queries, C candidates of each. Scores are [B, C]; the mask is [B, C] too, True (or 1) where there is a candidate, for
queries with fewer of them. Scores of others, infinite ones and NaN too, reach neither a loss nor its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.distributions import Temperature, kl_divergence, log_softmax_over
from brewer_builtins.padding import mean
from brewer_builtins.shapes import check_single, shown
from brewer_builtins.states import in_full
from brewer_core import ShapeError, component


@component(over="rows", source="Hofstätter et al. 2020, arXiv:2010.02666, section 3", name="Margin MSE")
def margin_mse(
    student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], mask: Tensor | None = None
) -> Tensor:
    """Margin MSE: squared difference of the margins by which the positive candidate is ahead of each negative one.

    Formula: mean over queries, of each the mean over its negatives, of ((s⁺ - s⁻) - (t⁺ - t⁻))².
    student, teacher: scores [B, C], of which the first column is the positive candidate's; or a pair of the positives' scores,
    [B] or [B, 1], and the negatives', [B] or [B, N]. A query without its positive or without negatives adds 0.
    Returns a scalar, at least 0; 0 where the margins agree, whatever the scores.
    Raises ShapeError where B or C differs, for fewer than two candidates, and for other ranks.
    Cost: O(B C).
    Source: Hofstätter et al. 2020, arXiv:2010.02666, section 3, where a query has one negative; with several the mean is over them.
    """
    own, taught = _joined(student, "student"), _joined(teacher, "teacher")
    valid = _candidates(own, taught, mask)
    if own.shape[1] < 2:
        raise ShapeError(f"the scores are {shown(own)}; a margin needs a positive candidate and a negative one.")
    own, taught = (torch.where(valid, in_full(scores), 0) for scores in (own, taught.detach()))
    negatives = valid[:, 1:] & valid[:, :1]
    error = (own[:, :1] - own[:, 1:]) - (taught[:, :1] - taught[:, 1:])
    by_query = torch.where(negatives, error.square(), 0).sum(dim=1) / negatives.sum(dim=1).clamp(min=1)
    return mean(by_query)


@component(over="rows", source="Lin et al. 2020, arXiv:2010.11386", name="Listwise divergence of scores")
def listwise_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    student_temperature: Temperature = 1.0,
    teacher_temperature: Temperature = 1.0,
    t_squared: Annotated[
        bool, Field(description="Multiply by the student's squared temperature: gradients keep their size as it rises.")
    ] = True,
) -> Tensor:
    """KL divergence of the scores of a query's candidates.

    Formula: τ_S² · mean over queries of KL(softmax(t / τ_T) ‖ softmax(s / τ_S)).
    student, teacher: scores [B, C]. A query with fewer than two candidates adds 0.
    Returns a scalar, at least 0; 0 where the distributions agree.
    Raises ShapeError where B or C differs, and for other ranks.
    Cost: O(B C).
    Source: Lin et al. 2020, arXiv:2010.11386, with a temperature for each side, and the factor of Hinton et al. 2015,
    arXiv:1503.02531, section 2.
    """
    check_single(student, teacher)
    valid = _candidates(student, teacher, mask)
    log_q = log_softmax_over(in_full(student) / student_temperature, valid)
    log_p = log_softmax_over(in_full(teacher.detach()) / teacher_temperature, valid)
    loss = mean(kl_divergence(log_p, log_q))
    return loss * student_temperature**2 if t_squared else loss


def _joined(scores: Any, side: str) -> Tensor:
    """[B, C]: scores with the positive candidate's first, from a pair of positives and negatives too."""
    if isinstance(scores, Tensor):
        return scores
    columns = [part.unsqueeze(1) if part.dim() == 1 else part for part in scores]
    fits = len(columns) == 2 and all(c.dim() == 2 and len(c) == len(columns[0]) for c in columns)
    if not fits or columns[0].shape[1] != 1:
        shapes = ", ".join(map(shown, scores))
        raise ShapeError(
            f"the {side} gives {shapes}; a pair must be the positives' scores, [B] or [B, 1], and the negatives', [B] or [B, N]."
        )
    return torch.cat(columns, dim=1)


def _candidates(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """[B, C]: which candidates there are. Raises ShapeError where the sides' scores, or the mask, are of others."""
    for side, scores in (("student", student), ("teacher", teacher)):
        if scores.dim() != 2:
            raise ShapeError(f"the {side}'s scores are {shown(scores)}; this loss needs [B, C], a row for each query.")
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student scores are {shown(student)} and teacher scores {shown(teacher)}; both must be of the same candidates."
        )
    if mask is None:
        return torch.ones_like(student, dtype=torch.bool)
    if mask.shape != student.shape:
        raise ShapeError(
            f"the mask is {shown(mask)} and the scores {shown(student)}; the mask must have their candidates."
        )
    return mask.bool()
