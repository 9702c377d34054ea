"""Losses that compare one distribution with the other: cross-entropy, forward and reverse KL divergence."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from brewer_builtins.distributions import expectation, kl_divergence
from brewer_builtins.kd_losses.softened import (
    Standardise,
    TSquared,
    check_kept,
    check_shapes,
    divided,
    mean_loss,
    of_top_k,
    softened,
    unless_standardised,
)
from brewer_core import SparseLogits, component


@component(
    over="logits",
    source="Hinton et al. 2015, arXiv:1503.02531, section 2",
    name="Soft cross-entropy",
    claims=("standardise", "vocabulary_padding"),
    sparse=unless_standardised,
)
def ce(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    t_squared: TSquared = False,
    standardise: Standardise = False,
) -> Tensor:
    """Cross-entropy of the student's softened distribution under the teacher's.

    Formula: H(p, q) = -Σ p log q, with p = softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, no less than the teacher's mean entropy, which it reaches where the distributions agree; 0 where
    there are no positions. A class that the teacher rules out with a logit of -inf adds nothing.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, which at a temperature other than 1 count as equally
    likely, for student and teacher alike; `sampled` needs a temperature of 1, and is then unbiased, in value and gradient.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled` at another
    temperature, or SparseLogits to be standardised.
    Cost: O(N V).
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2. As in TextBrewer the loss is not multiplied by T squared,
    which the paper recommends: there is `t_squared` for that.
    """
    check_kept("ce", teacher_logits, unless_standardised, {"standardise": standardise})
    if isinstance(teacher_logits, SparseLogits):
        both = softened(student_logits, teacher_logits, temperature)
        losses = -expectation(both.teacher.exp(), both.student)
    else:
        check_shapes(student_logits, teacher_logits, temperature)
        own, taught = divided(student_logits, teacher_logits, temperature, standardise)
        losses = -expectation(F.softmax(taught, dim=-1), F.log_softmax(own, dim=-1))
    return mean_loss(losses, temperature, t_squared)


@component(
    over="logits",
    source="Hinton et al. 2015, arXiv:1503.02531, section 2",
    name="Forward KL divergence",
    claims=("t_squared", "standardise", "vocabulary_padding"),
    sparse=unless_standardised,
)
def kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Forward KL divergence: from the student's softened distribution to the teacher's, times T squared.

    Formula: T² KL(p‖q) = T² Σ p log(p/q), with p = softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, at least 0, and 0 where the distributions agree or there are no positions. A class that the teacher
    rules out with a logit of -inf adds nothing.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, which at a temperature other than 1 count as equally
    likely, for student and teacher alike; `sampled` needs a temperature of 1. Its gradient is unbiased, and its value is the
    divergence from the draws' own weights, more on average than that from the whole distribution.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled` at another
    temperature, or SparseLogits to be standardised.
    Cost: O(N V).
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, less the teacher's entropy, which has no gradient.
    """
    check_kept("kl", teacher_logits, unless_standardised, {"standardise": standardise})
    both = softened(student_logits, teacher_logits, temperature, standardise)
    return mean_loss(kl_divergence(both.teacher, both.student), temperature, t_squared)


@component(
    over="logits",
    source="Gu et al. 2023, arXiv:2306.08543, section 2.1; Agarwal et al. 2023, arXiv:2306.13649",
    name="Reverse KL divergence",
    claims=("t_squared", "standardise", "vocabulary_padding"),
    sparse=of_top_k,
)
def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Reverse KL divergence: from the teacher's softened distribution to the student's, times T squared.

    Formula: T² KL(q‖p) = T² Σ q log(q/p), with p = softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, at least 0, and 0 where the distributions agree or there are no positions. A class that the student rules
    out with a logit of -inf adds nothing; one that the teacher alone rules out makes it infinite: `skew_reverse_kl` stays finite.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, as `kl` does; `sampled` is refused.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled`, or
    SparseLogits to be standardised.
    Cost: O(N V).
    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.1, and Agarwal et al. 2023 (GKD), arXiv:2306.13649, at each token, not
    at sequences that the student wrote. Both have a temperature of 1 here, where T squared makes no difference.
    """
    check_kept("reverse_kl", teacher_logits, of_top_k, {"standardise": standardise})
    both = softened(student_logits, teacher_logits, temperature, standardise)
    return mean_loss(kl_divergence(both.student, both.teacher), temperature, t_squared)
