"""What losses between logits share: standardising, softening, sums that know of classes that are ruled out, and the mean.

Shapes: [..., V] logits, [...] positions; C classes that are compared: V, or those that a cache kept and all others as one more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from brewer_core import Kept, RequestError, ShapeError, SparseLogits

Temperature: TypeAlias = "float | Tensor"

TSquared = Annotated[
    bool,
    Field(
        description="Multiply each position's loss by its squared temperature: gradients keep their size as it rises."
    ),
]
Standardise = Annotated[
    bool,
    Field(
        description="Subtract from the logits of each position their mean and divide them by their standard deviation, on both "
        "sides, before the temperature divides them: only how they lie to one another counts. Logits of -1e30 or less are of "
        "classes that are ruled out, and count in neither; a milder one, such as -1e9, would count like any."
    ),
]


_RULED_OUT = -1e30
"""A logit up to this one, -inf or what models write in its place such as the least number of their type, is of a class that cannot be."""


@dataclass(frozen=True)
class Softened:
    """The softened log-probabilities of teacher and student, [..., C]. bucket: whether the last class is all that were not kept."""

    teacher: Tensor
    student: Tensor
    bucket: bool = False


def softened(
    student: Tensor, teacher: Tensor | SparseLogits, temperature: Temperature, standardise: bool = False
) -> Softened:
    """Both sides' log-probabilities at a temperature; the teacher's without a graph.

    Raises ShapeError where student, teacher and temperature do not belong together.
    """
    check_shapes(student, teacher, temperature)
    if isinstance(teacher, SparseLogits):
        log_p, log_q = teacher.compared_with(precise(student), temperature)
        return Softened(log_p, log_q, bucket=log_p.shape[-1] > teacher.indices.shape[-1])
    own, taught = divided(student, teacher, temperature, standardise)
    return Softened(F.log_softmax(taught, dim=-1), F.log_softmax(own, dim=-1))


def divided(
    student: Tensor, teacher: Tensor, temperature: Temperature, standardise: bool = False
) -> tuple[Tensor, Tensor]:
    """The logits of student and teacher, standardised if asked for, divided by the temperature; the teacher's without a graph."""
    divisor = beside_classes(temperature)
    own, taught = precise(student), precise(teacher.detach())
    if standardise:
        own, taught = standardised(own), standardised(taught)
    return own / divisor, taught / divisor


def standardised(logits: Tensor) -> Tensor:
    """Logits less their mean over classes, divided by their standard deviation, with V - 1 in it; ruled-out classes count in neither.

    Constant logits become 0, and are not divided by anything. Raises ShapeError where there is one class alone.
    Source: Sun et al. 2024, arXiv:2403.01427, algorithm 1; the standard deviation as in its figure 2 and the authors' code, while
    the algorithm has V in it. Their 1e-7, added to it, is not needed here.
    """
    if logits.shape[-1] < 2:
        raise ShapeError(
            f"logits {tuple(logits.shape)} have one class, and standardise needs two or more; set standardise to false."
        )
    ruled_out = logits <= _RULED_OUT
    count = logits.shape[-1] - ruled_out.sum(-1, keepdim=True)
    known = logits.masked_fill(ruled_out, 0)
    mean = known.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = (known - mean).masked_fill(ruled_out, 0)
    spread = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (count - 1).clamp(min=1).to(logits.dtype).sqrt()
    # no more than rounding makes of numbers that are all alike
    noise = 4 * torch.finfo(logits.dtype).eps * torch.linalg.vector_norm(known.detach(), math.inf, dim=-1, keepdim=True)
    deviation = torch.where(spread <= noise, 1, spread)
    return (centred / deviation).masked_fill(ruled_out, -math.inf)


def log_sum(log_probabilities: Tensor) -> Tensor:
    """The logarithm of the sum of the last axis, [...], with a gradient also where all are -inf, which is 0."""
    # the lowest number stands for -inf: of nothing but -inf, logsumexp has no gradient but NaN
    lowest = torch.finfo(log_probabilities.dtype).min
    total = log_probabilities.clamp(min=lowest).logsumexp(-1)
    return total.masked_fill(total <= lowest, -math.inf)


def renormalised(log_probabilities: Tensor) -> Tensor:
    """The same distribution over what is left of it; nothing of nothing stays nothing."""
    total = log_sum(log_probabilities)
    return log_probabilities - total.masked_fill(total == -math.inf, 0).unsqueeze(-1)


def mean_loss(losses: Tensor, temperature: Temperature, t_squared: bool) -> Tensor:
    """The mean over positions, each times its squared temperature if asked for; 0, with a graph, where there are none."""
    weighed = losses * temperature**2 if t_squared else losses
    return weighed.mean() if weighed.numel() else weighed.sum()


def precise(logits: Tensor) -> Tensor:
    """In float32 where they were less."""
    return logits.float() if logits.element_size() < 4 else logits


def beside_classes(temperature: Temperature) -> Temperature:
    """The temperature of each position, with an axis for its classes."""
    return temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature


def check_shapes(student: Tensor, teacher: Tensor | SparseLogits, temperature: Temperature) -> None:
    """Raises ShapeError where student, teacher and temperature do not belong together."""
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError(
            f"student logits are {student.shape[-1]} wide and teacher logits {teacher.shape[-1]}; "
            "both models must predict the same classes or vocabulary."
        )
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} are not of the same "
            "positions; give both models the same batch and mask."
        )
    if isinstance(temperature, Tensor) and temperature.dim() and temperature.shape != student.shape[:-1]:
        raise ShapeError(
            f"temperature {tuple(temperature.shape)} does not belong to logits {tuple(student.shape)}; "
            "it must be a number, or have one for each position."
        )


# What losses have against logits of which only some are kept


def check_dense(name: str, teacher: Tensor | SparseLogits) -> None:
    """Raises RequestError where a loss of this name, which needs all of the teacher's logits, gets some of them."""
    if isinstance(teacher, SparseLogits):
        raise RequestError(
            f"`{name}` needs all of the teacher's logits, and the cache keeps {teacher.kept}; keep them dense."
        )


def unless_standardised(kept: Kept, options: Mapping[str, Any]) -> str:
    """Any kind will do, without `standardise`."""
    if not options.get("standardise"):
        return ""
    return (
        f"needs all of the teacher's logits for their mean, and the cache keeps {kept}; "
        "set standardise to false, or keep them dense"
    )


def of_top_k(kept: Kept, options: Mapping[str, Any]) -> str:
    """`top_k` will do, without `standardise`; of draws nothing but a mean under the teacher follows."""
    if kept.kind != "sampled":
        return unless_standardised(kept, options)
    return (
        f"needs the teacher's probabilities, and the cache keeps {kept}; use ce or kl, or keep them as top_k or dense"
    )


def check_kept(
    name: str,
    teacher: Tensor | SparseLogits,
    refusal: Callable[[Kept, Mapping[str, Any]], str],
    options: Mapping[str, Any],
) -> None:
    """Raises RequestError where a loss of this name, called with these options, refuses what is kept of the teacher's logits."""
    against = refusal(teacher.kept, options) if isinstance(teacher, SparseLogits) else ""
    if against:
        raise RequestError(f"`{name}` {against}.")
