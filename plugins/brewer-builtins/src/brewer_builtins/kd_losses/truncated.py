"""A loss on the teacher's most likely classes, with all others as one or without them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.distributions import kl_divergence
from brewer_builtins.kd_losses.softened import (
    Softened,
    Standardise,
    TSquared,
    check_kept,
    log_sum,
    mean_loss,
    of_top_k,
    renormalised,
    softened,
)
from brewer_core import Kept, SparseLogits, component


def _if_as_many(kept: Kept, options: Mapping[str, Any]) -> str:
    """`top_k` of no fewer than k classes will do, without `standardise`."""
    against = of_top_k(kept, options)
    if against or kept.count >= options["k"] or kept.count == kept.size:
        return against
    return (
        f"needs the {options['k']} most likely classes, and the cache keeps {kept}; set k to {kept.count} or less, keep "
        f"{options['k']}, or keep them dense"
    )


@component(
    over="logits",
    source="Hinton et al. 2015, arXiv:1503.02531, on the classes of Anshumann et al. 2025, arXiv:2503.16870",
    name="Forward KL divergence of the most likely classes",
    claims=("t_squared", "standardise", "vocabulary_padding"),
    example={"k": 3},
    sparse=_if_as_many,
)
def top_k_kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    k: Annotated[
        int, Field(ge=1, description="How many of the teacher's most likely classes are compared.", examples=[64])
    ],
    tail: Annotated[
        bool,
        Field(
            description="Whether all other classes are compared as one more; if not, both distributions are those among the k "
            "alone, renormalised."
        ),
    ] = True,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Forward KL divergence of the teacher's k most likely classes, and of all others as one, times T squared.

    Formula: T² (Σ_k p log(p/q) + p_tail log(p_tail/q_tail)), with p_tail = 1 - Σ_k p, q_tail = 1 - Σ_k q, p = softmax(teacher / T) and q =
    softmax(student / T); with `tail` false T² Σ_k p̂ log(p̂/q̂), with p̂ and q̂ renormalised among the k
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, at least 0, and 0 where these classes agree or there are no positions; with the tail no more than `kl`, which it
    is where k is the number of classes or more. Without the tail, what the student gives to other classes does not count.
    Of SparseLogits, `top_k` with k classes or more will do; at a temperature other than 1, classes that are not kept count as
    equally likely, which they do not for a tensor. `sampled` is refused.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for fewer than k kept
    classes, for `sampled`, and for SparseLogits to be standardised.
    Cost: O(N V).
    Source: Hinton et al. 2015, arXiv:1503.02531, on the k most likely classes, as in Anshumann et al. 2025,
    arXiv:2503.16870, who show that without the tail its gradient is biased.
    """
    check_kept("top_k_kl", teacher_logits, _if_as_many, {"k": k, "standardise": standardise})
    both = softened(student_logits, teacher_logits, temperature, standardise)
    return mean_loss(_truncated(both, k, tail), temperature, t_squared)


def _truncated(both: Softened, k: int, tail: bool) -> Tensor:
    """The divergence of each position, [...]."""
    known = both.teacher.shape[-1] - both.bucket
    indices = both.teacher[..., :known].topk(min(k, known), dim=-1).indices
    likely = [side.gather(-1, indices) for side in (both.teacher, both.student)]
    if not tail:
        return kl_divergence(*(renormalised(side) for side in likely))
    if indices.shape[-1] == both.teacher.shape[-1]:
        return kl_divergence(*likely)
    rest = [log_sum(side.scatter(-1, indices, -math.inf)) for side in (both.teacher, both.student)]
    return kl_divergence(
        *(torch.cat([some, other.unsqueeze(-1)], -1) for some, other in zip(likely, rest, strict=True))
    )
