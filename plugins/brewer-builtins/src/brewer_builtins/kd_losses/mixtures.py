"""Losses that compare a distribution with a mixture of both: the generalised Jensen-Shannon divergence and skewed KL divergences."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.distributions import expectation, kl_divergence
from brewer_builtins.kd_losses.softened import (
    Softened,
    Standardise,
    TSquared,
    check_kept,
    mean_loss,
    of_top_k,
    softened,
)
from brewer_core import RequestError, SparseLogits, component

_NEAR = 1.0
"""Up to this ratio of two probabilities, as a logarithm, that of their mixture is taken by `log1p`."""
_LARGE, _MOST = 1 / 16, 80.0
"""From this part on `log1p` alone will do, with ratios, as logarithms, cut here, where e^-80 is what is compared weighs."""

Beta = Annotated[
    float, Field(ge=0, le=1, description="The teacher's part in the mixture, and the weight of its divergence from it.")
]
Alpha = Annotated[
    float, Field(ge=0, lt=1, description="The part in the mixture of the distribution that is compared with it.")
]


@component(
    over="logits",
    source="Agarwal et al. 2023, arXiv:2306.13649, eq. 1",
    name="Generalised Jensen-Shannon divergence",
    claims=("t_squared", "standardise", "vocabulary_padding"),
    sparse=of_top_k,
)
def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    beta: Beta = 0.5,
    normalise: Annotated[
        bool,
        Field(
            description="Divide by beta (1 - beta): then it is continuous from the forward KL divergence at beta 0 to the "
            "reverse one at 1, and without it 0 at both."
        ),
    ] = False,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Generalised Jensen-Shannon divergence of the softened distributions, times T squared.

    Formula: T² (β KL(p‖M) + (1-β) KL(q‖M)), with M = β p + (1-β) q, p = softmax(teacher / T) and q = softmax(student / T); with
    `normalise` this divided by β(1-β)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, at least 0, and 0 where the distributions agree or there are no positions; without `normalise` at most T² log 2.
    With `normalise` it is exactly `kl` at beta 0 and `reverse_kl` at 1, in value and gradient, and tends to them in between. Classes
    that either side rules out with a logit of -inf leave it finite, but for those two ends.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, as `kl` does; `sampled` is refused.
    Raises RequestError for beta 0 or 1 without `normalise`, where the loss is 0 for every student, for `sampled`, and for SparseLogits
    to be standardised; ShapeError where student, teacher and temperature do not belong together.
    Cost: O(N V).
    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649, eq. 1, at a temperature of 1, where T squared makes no difference. The paper
    notes that divided by beta it tends to the forward KL divergence as beta goes to 0; `normalise` makes that so at both ends.
    """
    check_kept("jsd", teacher_logits, of_top_k, {"standardise": standardise})
    if beta in (0, 1) and not normalise:
        raise RequestError(
            f"jsd: at beta {beta:g} the loss is 0 for every student; set normalise to true, which makes it the "
            f"{'reverse' if beta else 'forward'} KL divergence there, or beta to a number between 0 and 1."
        )
    both = softened(student_logits, teacher_logits, temperature, standardise)
    normalised = _normalised_jsd(both, beta)
    return mean_loss(normalised if normalise else beta * (1 - beta) * normalised, temperature, t_squared)


@component(
    over="logits",
    source="Ko et al. 2024, arXiv:2402.03898, section 3.1",
    name="Skewed forward KL divergence",
    claims=("t_squared", "standardise", "vocabulary_padding"),
    sparse=of_top_k,
)
def skew_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    alpha: Alpha = 0.1,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Skewed forward KL divergence: from a mixture with a part of the teacher to the teacher, times T squared.

    Formula: T² KL(p‖α p + (1-α) q), with p = softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar from 0 to T² log(1/α), whatever is ruled out with logits of -inf; 0 where the distributions agree or there are no
    positions. At alpha 0 it is exactly `kl`.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, as `kl` does; `sampled` is refused.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled`, or
    SparseLogits to be standardised.
    Cost: O(N V).
    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3.1, at a temperature of 1, where T squared makes no difference.
    """
    check_kept("skew_kl", teacher_logits, of_top_k, {"standardise": standardise})
    both = softened(student_logits, teacher_logits, temperature, standardise)
    return mean_loss(_skewed(both.teacher, both.student, alpha), temperature, t_squared)


@component(
    over="logits",
    source="Ko et al. 2024, arXiv:2402.03898, section 3.1",
    name="Skewed reverse KL divergence",
    claims=("t_squared", "standardise", "vocabulary_padding"),
    sparse=of_top_k,
)
def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    alpha: Alpha = 0.1,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Skewed reverse KL divergence: from a mixture with a part of the student to the student, times T squared.

    Formula: T² KL(q‖(1-α) p + α q), with p = softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar from 0 to T² log(1/α), whatever is ruled out with logits of -inf; 0 where the distributions agree or there are no
    positions. At alpha 0 it is exactly `reverse_kl`.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, as `kl` does; `sampled` is refused.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled`, or
    SparseLogits to be standardised.
    Cost: O(N V).
    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3.1, at a temperature of 1, where T squared makes no difference.
    """
    check_kept("skew_reverse_kl", teacher_logits, of_top_k, {"standardise": standardise})
    both = softened(student_logits, teacher_logits, temperature, standardise)
    return mean_loss(_skewed(both.student, both.teacher, alpha), temperature, t_squared)


def _normalised_jsd(both: Softened, beta: float) -> Tensor:
    """The divergence of each position, divided by beta (1 - beta); at 0 and 1 its limit."""
    if beta == 0:
        return kl_divergence(both.teacher, both.student)
    if beta == 1:
        return kl_divergence(both.student, both.teacher)
    of_teacher = _from_mixture(both.teacher, both.student, own=beta, other=1 - beta)
    of_student = _from_mixture(both.student, both.teacher, own=1 - beta, other=beta)
    return of_teacher / (1 - beta) + of_student / beta


def _skewed(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """KL(p‖α p + (1-α) q) of each position."""
    return _from_mixture(log_p, log_q, own=alpha, other=1 - alpha) if alpha else kl_divergence(log_p, log_q)


def _from_mixture(log_p: Tensor, log_q: Tensor, own: float, other: float) -> Tensor:
    """KL(p‖own p + other q) of each position, for parts above 0 that are 1 together; to full precision however small `other` is."""
    ratio = torch.where(log_p == -math.inf, 0, log_q - log_p)
    if own >= _LARGE:
        return -expectation(log_p.exp(), torch.log1p(other * ratio.clamp(max=_MOST).expm1()))
    grown = other * ratio.detach().clamp(max=_NEAR).expm1()
    # log(own + other r) as log(1 + other (r - 1)), which has all its digits for tiny parts, but for r near 0 or large
    near = (ratio.detach() <= _NEAR) & (grown >= -0.5)
    close = torch.log1p(other * torch.where(near, ratio, 0).expm1())
    far = torch.logaddexp(ratio.new_full((), math.log(own)), math.log(other) + ratio)
    return -expectation(log_p.exp(), torch.where(near, close, far))
