"""A loss on correlations: of each position's classes, and of each class over the positions of a batch."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.kd_losses.softened import Standardise, check_dense, softened
from brewer_core import component


@component(
    over="batch",
    source="Huang et al. 2022, arXiv:2205.10536, L_inter and L_intra",
    name="Distillation from a stronger teacher",
    claims=("standardise",),
)
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    beta: Annotated[
        float, Field(ge=0, description="The weight of the correlation over the classes of each position.")
    ] = 1.0,
    gamma: Annotated[
        float, Field(ge=0, description="The weight of the correlation over the positions of each class.")
    ] = 1.0,
    t_squared: Annotated[
        bool,
        Field(
            description="Multiply by the squared temperature, as the authors' code does. Without it gradients keep their size."
        ),
    ] = True,
    standardise: Standardise = False,
) -> Tensor:
    """Distillation from a stronger teacher (DIST): how far each position's and each class's probabilities are from correlated.

    Formula: T² (β mean_i(1 - ρ(p_i, q_i)) + γ mean_c(1 - ρ(p_·c, q_·c))), with ρ Pearson's correlation, over the classes of a position i
    and over the positions of a class c, p = softmax(teacher / T) and q = softmax(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position; for the classes' part its square is then averaged.
    Returns a scalar from 0 to 2 T² (β + γ); 0 where there are no positions, and where the distributions agree, but for what has no
    correlation: a constant, such as a class that is ruled out everywhere, or any class where there is one position, counts as
    uncorrelated, which is 1.
    Needs all of the teacher's logits. It is of a batch as a whole, so it depends on how a batch is cut into micro-batches.
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for SparseLogits.
    Cost: O(N V).
    Source: Huang et al. 2022, arXiv:2205.10536, L_inter and L_intra, with T squared as in the authors' code. Nothing is added to norms:
    the code's 1e-8 draws the correlations of unlikely classes, whose probabilities are near it, to 0.
    """
    check_dense("dist", teacher_logits)
    both = softened(student_logits, teacher_logits, temperature, standardise)
    log_p, log_q = both.teacher.flatten(0, -2), both.student.flatten(0, -2)
    if not log_q.numel():
        return log_q.sum()
    of_positions, of_classes = 1 - _correlation(log_p, log_q, -1), 1 - _correlation(log_p, log_q, 0)
    squares = torch.as_tensor(temperature, dtype=log_q.dtype, device=log_q.device).flatten() ** 2
    factors = squares if t_squared else torch.ones_like(squares)
    return beta * (factors * of_positions).mean() + gamma * factors.mean() * of_classes.mean()


def _correlation(log_p: Tensor, log_q: Tensor, axis: int) -> Tensor:
    """Pearson's correlation along an axis of numbers whose logarithms are given; 0 where either side is constant."""
    return (_centred(log_p, axis) * _centred(log_q, axis)).sum(axis)


def _centred(logarithms: Tensor, axis: int) -> Tensor:
    """The numbers less their mean, divided by their norm; 0 where they are constant but for rounding."""
    # a correlation does not see the scale, so the largest is made 1: the probabilities of an unlikely class would underflow
    largest = logarithms.detach().amax(axis, keepdim=True)
    numbers = (logarithms - largest.masked_fill(largest == -math.inf, 0)).exp()
    centred = numbers - numbers.mean(axis, keepdim=True)
    squared = centred.square().sum(axis, keepdim=True)
    noise = 4 * torch.finfo(numbers.dtype).eps
    constant = squared <= noise**2 * numbers.detach().square().sum(axis, keepdim=True)
    return torch.where(constant, 0, centred / torch.where(constant, 1, squared).sqrt())
