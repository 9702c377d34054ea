"""Losses that are distances, of probabilities or of the logits themselves."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from brewer_builtins.kd_losses.softened import (
    Standardise,
    TSquared,
    check_dense,
    check_kept,
    check_shapes,
    divided,
    mean_loss,
    of_top_k,
    softened,
)
from brewer_core import SparseLogits, component


@component(
    over="logits",
    source="Wen et al. 2023, arXiv:2307.15190, TVD",
    name="Total variation distance",
    claims=("standardise", "vocabulary_padding"),
    sparse=of_top_k,
)
def tvd(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    standardise: Standardise = False,
) -> Tensor:
    """Total variation distance of the softened distributions.

    Formula: ½ Σ |p - q|, with p = softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar from 0 to 1; 0 where the distributions agree or there are no positions, 1 where no class is possible for both. Where
    they agree the gradient is 0. It falls with 1 / T as the temperature rises, so no T squared goes with it. Ruled-out classes, with
    logits of -inf, leave it finite.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, which is no more than the distance of all; `sampled`
    is refused.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled`, or
    SparseLogits to be standardised.
    Cost: O(N V).
    Source: Wen et al. 2023 (f-distill), arXiv:2307.15190, TVD, at each token, by sums over the vocabulary.
    """
    check_kept("tvd", teacher_logits, of_top_k, {"standardise": standardise})
    both = softened(student_logits, teacher_logits, temperature, standardise)
    return mean_loss((both.teacher.exp() - both.student.exp()).abs().sum(-1) / 2, temperature, t_squared=False)


@component(
    over="logits",
    source="Ba and Caruana 2014, arXiv:1312.6184, eq. 1",
    name="Squared error of logits",
    claims=("standardise",),
)
def mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    t_squared: TSquared = False,
    standardise: Standardise = False,
) -> Tensor:
    """Mean squared difference of the logits, each divided by the temperature.

    Formula: 1/V Σ (student / T - teacher / T)²
    temperature: a number, or a Tensor [N] or [B, L] with one for each position. With `t_squared` it cancels out.
    Returns a scalar, the mean over positions and classes, at least 0; 0 where the logits agree or there are no positions. A class
    that both rule out with a logit of -inf has no difference.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for SparseLogits.
    Cost: O(N V).
    Source: Ba and Caruana 2014, arXiv:1312.6184, eq. 1, averaged over classes and softened as in TextBrewer.
    """
    check_dense("mse", teacher_logits)
    check_shapes(student_logits, teacher_logits, temperature)
    if not student_logits.numel():
        return student_logits.sum()
    return _squared_error(*divided(student_logits, teacher_logits, 1.0 if t_squared else temperature, standardise))


@component(
    over="logits",
    source="Breiman and Shang 1996, Born again trees",
    name="Squared error of regressions",
    claims=("standardise",),
)
def regression_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    standardise: Standardise = False,
) -> Tensor:
    """Mean squared difference of what student and teacher predict, for models whose outputs are numbers and not classes.

    Formula: 1/V Σ (student - teacher)²
    student_logits, teacher_logits: [N, V] or [B, L, V], V the outputs of a position, 1 in most regressions.
    temperature: has no effect, for a number is not softened: this is what tells it from `mse`.
    Returns a scalar, the mean over positions and outputs, at least 0; 0 where they agree or there are no positions.
    Raises ShapeError where student, teacher and temperature do not belong together, or where one output alone is to be standardised;
    RequestError for SparseLogits.
    Cost: O(N V).
    Source: the squared error from a teacher's predictions in place of targets, as in Breiman and Shang 1996, Born again trees.
    """
    check_dense("regression_mse", teacher_logits)
    # times T squared: no temperature divides them
    return mse(student_logits, teacher_logits, temperature, t_squared=True, standardise=standardise)


def _squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference; of two that are both -inf it is 0."""
    both_ruled_out = (student == -math.inf) & (teacher == -math.inf)
    return F.mse_loss(torch.where(both_ruled_out, 0, student), torch.where(both_ruled_out, 0, teacher))
