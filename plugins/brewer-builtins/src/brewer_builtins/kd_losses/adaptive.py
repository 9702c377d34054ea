"""A loss that weighs forward and reverse KL divergence by where the student is off: among the likely classes or the others."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from brewer_builtins.distributions import expectation
from brewer_builtins.kd_losses.softened import (
    Standardise,
    TSquared,
    check_kept,
    mean_loss,
    of_top_k,
    softened,
)
from brewer_core import SparseLogits, component


@component(
    over="logits",
    source="Wu et al. 2024, arXiv:2404.02657, AKL",
    name="Adaptive KL divergence",
    claims=("t_squared", "standardise", "vocabulary_padding"),
    sparse=of_top_k,
)
def adaptive_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    head_mass: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="The head: the teacher's most likely classes that together have no more than this, and always the first. "
            "At 1 all are in it, and the loss is that of `kl`.",
        ),
    ] = 0.5,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Adaptive KL divergence: forward and reverse, weighed by the student's error in the teacher's head and tail, times T squared.

    Formula: T² (w KL(p‖q) + (1-w) KL(q‖p)), with w = g_head / (g_head + g_tail), g = Σ |p - q| over the classes of each, p =
    softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, at least 0, and 0 where the distributions agree or there are no positions. The weights have no gradient, and are
    1/2 each where the distributions agree. A class that one side alone rules out
    with a logit of -inf makes it infinite.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, as `kl` does, and all others as one are the last
    of the tail; `sampled` is refused.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled`, or
    SparseLogits to be standardised.
    Cost: O(N V log V), for the classes are sorted.
    Source: Wu et al. 2024, arXiv:2404.02657, AKL. The head as the authors' code has it, where the class with which it would
    exceed `head_mass` belongs to the tail. At a temperature of 1, as there, T squared makes no difference.
    """
    check_kept("adaptive_kl", teacher_logits, of_top_k, {"standardise": standardise})
    both = softened(student_logits, teacher_logits, temperature, standardise)
    p, q = both.teacher.exp(), both.student.exp()
    forward = expectation(p, both.teacher - both.student)
    if head_mass == 1:  # rounding may take the sum of all classes above it
        return mean_loss(forward, temperature, t_squared)
    reverse = expectation(q, both.student - both.teacher)
    weight = _share_of_head(p, q.detach(), head_mass, both.bucket)
    return mean_loss(weight * forward + (1 - weight) * reverse, temperature, t_squared)


def _share_of_head(likely: Tensor, own: Tensor, head_mass: float, bucket: bool) -> Tensor:
    """How much of the student's error is in the teacher's head, of each position, [...]; a half where there is no error.

    likely, own: [..., C], the probabilities of teacher and student. bucket: whether the last class is all that were not kept.
    """
    ranked = likely.clone() if bucket else likely
    if bucket:
        ranked[..., -1] = -1  # each class in it is less likely than all that were kept
    ranked, order = ranked.sort(dim=-1, descending=True, stable=True)
    head = ranked.cumsum(-1) <= head_mass
    head[..., 0] = True
    if bucket:
        head[..., -1] = False
    errors = (likely - own).abs().gather(-1, order)
    of_head, of_all = errors.where(head, 0).sum(-1), errors.sum(-1)
    return (of_head / of_all.where(of_all > 0, 1)).where(of_all > 0, 0.5)
