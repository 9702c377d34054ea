"""Losses between the logits of student and teacher.

Shapes: N valid positions, B rows, L length, V classes or vocabulary. Each loss takes [N, V] or [B, L, V]. Those that are declared
`sparse=True` also take SparseLogits of the teacher: of `top_k`, all that is not kept is one class more, and of `sampled`, the
weights of the draws stand for the teacher's distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from brewer_core import ShapeError, SparseLogits, component, hookimpl

TSquared = Annotated[
    bool,
    Field(
        description="Multiply each position's loss by its squared temperature: gradients keep their size as it rises."
    ),
]


@component(
    over="logits", source="Hinton et al. 2015, arXiv:1503.02531, section 2", name="Soft cross-entropy", sparse=True
)
def ce(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    t_squared: TSquared = False,
) -> Tensor:
    """Cross-entropy of the student's softened distribution under the teacher's.

    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, no less than the teacher's mean entropy, which it reaches where the distributions agree; 0 where
    there are no positions. A class that the teacher rules out with a logit of -inf adds nothing.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, which at a temperature other than 1 count as equally
    likely, for student and teacher alike; `sampled` needs a temperature of 1, and is then unbiased, in value and gradient.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled` at another
    temperature.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2. As in TextBrewer the loss is not multiplied by T squared,
    which the paper recommends: there is `t_squared` for that.
    """
    _check_shapes(student_logits, teacher_logits, temperature)
    if isinstance(teacher_logits, SparseLogits):
        log_p, log_q = teacher_logits.compared_with(student_logits, temperature)
        losses = -_expectation(log_p.exp(), log_q)
    else:
        divisor = _beside_classes(temperature)
        probabilities = F.softmax(teacher_logits.detach() / divisor, dim=-1)
        losses = -_expectation(probabilities, F.log_softmax(student_logits / divisor, dim=-1))
    return _mean(losses * temperature**2 if t_squared else losses)


@component(
    over="logits",
    source="Hinton et al. 2015, arXiv:1503.02531, section 2",
    name="Forward KL divergence",
    claims=("t_squared",),
    sparse=True,
)
def kl(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    temperature: float | Tensor = 1.0,
    *,
    t_squared: TSquared = True,
) -> Tensor:
    """Forward KL divergence: from the student's softened distribution to the teacher's, times T squared.

    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, at least 0, and 0 where the distributions agree or there are no positions. A class that the teacher
    rules out with a logit of -inf adds nothing.
    Of SparseLogits: `top_k` compares the kept classes and all others as one, which at a temperature other than 1 count as equally
    likely, for student and teacher alike; `sampled` needs a temperature of 1. Its gradient is unbiased, and its value is the
    divergence from the draws' own weights, more on average than that from the whole distribution.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for `sampled` at another
    temperature.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, less the teacher's entropy, which has no gradient.
    """
    _check_shapes(student_logits, teacher_logits, temperature)
    if isinstance(teacher_logits, SparseLogits):
        log_p, log_q = teacher_logits.compared_with(student_logits, temperature)
    else:
        divisor = _beside_classes(temperature)
        log_p = F.log_softmax(teacher_logits.detach() / divisor, dim=-1)
        log_q = F.log_softmax(student_logits / divisor, dim=-1)
    losses = _expectation(log_p.exp(), log_p - log_q)
    return _mean(losses * temperature**2 if t_squared else losses)


@component(over="logits", source="Ba and Caruana 2014, arXiv:1312.6184, eq. 1", name="Squared error of logits")
def mse(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 1.0, *, t_squared: TSquared = False
) -> Tensor:
    """Mean squared difference of the logits, each divided by the temperature.

    temperature: a number, or a Tensor [N] or [B, L] with one for each position. With `t_squared` it cancels out.
    Returns a scalar, the mean over positions and classes; 0 where there are no positions.
    Raises ShapeError where student, teacher and temperature do not belong together.
    Source: Ba and Caruana 2014, arXiv:1312.6184, eq. 1, averaged over classes and softened as in TextBrewer.
    """
    _check_shapes(student_logits, teacher_logits, temperature)
    if not student_logits.numel():
        return student_logits.sum()
    divisor = 1.0 if t_squared else _beside_classes(temperature)
    return F.mse_loss(student_logits / divisor, teacher_logits.detach() / divisor)


@hookimpl
def brewer_kd_losses() -> dict[str, Callable[..., Tensor]]:
    """The built-in losses between logits."""
    return {"ce": ce, "kl": kl, "mse": mse}


def _expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """The mean of the values under the probabilities, by position; an impossible class adds 0, were its value infinite."""
    return (probabilities * torch.where(probabilities == 0, 0, values)).sum(dim=-1)


def _mean(losses: Tensor) -> Tensor:
    """The mean over positions; 0, with a graph, where there are none."""
    return losses.mean() if losses.numel() else losses.sum()


def _beside_classes(temperature: float | Tensor) -> float | Tensor:
    """The temperature of each position, with an axis for its classes."""
    return temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature


def _check_shapes(student: Tensor, teacher: Tensor | SparseLogits, temperature: float | Tensor) -> None:
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
