"""A loss that takes the divergence apart: of the target class from the others, and among the others."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.distributions import kl_divergence
from brewer_builtins.kd_losses.softened import (
    Standardise,
    TSquared,
    check_dense,
    log_sum,
    mean_loss,
    renormalised,
    softened,
)
from brewer_core import RequestError, ShapeError, component


@component(
    over="logits",
    source="Zhao et al. 2022, arXiv:2203.08679, eq. 7",
    name="Decoupled knowledge distillation",
    claims=("t_squared", "standardise", "vocabulary_padding"),
)
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    labels: Tensor | None = None,
    alpha: Annotated[
        float, Field(ge=0, description="The weight of the divergence of the target class from all others.")
    ] = 1.0,
    beta: Annotated[float, Field(ge=0, description="The weight of the divergence among the other classes.")] = 8.0,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Decoupled knowledge distillation: divergence of the target class from the others, and among the others, times T squared.

    Formula: T² (α KL(b_p‖b_q) + β KL(p̂‖q̂)), with b_p = (p_y, 1 - p_y) and p̂ = p without the target class y, renormalised; p =
    softmax(teacher / T) and q = softmax(student / T)
    labels: [N] or [B, L], the target class of each position. Where it is negative, such as -100, or there are no labels, the teacher's
    most likely class is the target.
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, at least 0, and 0 where the distributions agree or there are no positions. At α = 1 and β = 1 - p_y it would be
    `kl`. A class that the teacher rules out with a logit of -inf adds nothing; where it rules out all but the target, there is no
    divergence among the others. A part whose weight is 0 is not computed.
    Needs all of the teacher's logits, for the target may not be among those that a cache keeps.
    Raises ShapeError where student, teacher, temperature and labels do not belong together, and RequestError where both weights are 0
    and for SparseLogits.
    Cost: O(N V).
    Source: Zhao et al. 2022, arXiv:2203.08679, eq. 7, with the weights of the authors' code for CIFAR-100. The classes are left
    out exactly, not by a logit that is lower by 1000.
    """
    if not (alpha or beta):
        raise RequestError("dkd: with alpha 0 and beta 0 the loss is 0 for every student; give one of them a weight.")
    check_dense("dkd", teacher_logits)
    both = softened(student_logits, teacher_logits, temperature, standardise)
    target = _targets(teacher_logits, labels).unsqueeze(-1)
    parts = [_apart(side, target) for side in (both.teacher, both.student)]
    losses = []
    if alpha:
        binary = (torch.stack([of_target, log_sum(others)], -1) for of_target, others in parts)
        losses.append(alpha * kl_divergence(*binary))
    if beta:
        losses.append(beta * kl_divergence(*(renormalised(others) for _, others in parts)))
    return mean_loss(sum(losses[1:], losses[0]), temperature, t_squared)


def _targets(teacher: Tensor, labels: Tensor | None) -> Tensor:
    """The target class of each position: its label, or the teacher's most likely class where it has none."""
    likely = teacher.detach().argmax(-1) if teacher.numel() else teacher.new_zeros(teacher.shape[:-1]).long()
    if labels is None:
        return likely
    if labels.shape != teacher.shape[:-1] or labels.is_floating_point():
        raise ShapeError(
            f"dkd: labels {tuple(labels.shape)} ({str(labels.dtype).removeprefix('torch.')}) do not belong to logits "
            f"{tuple(teacher.shape)}; give each position the number of its class, or -100 where it has none."
        )
    return torch.where(labels < 0, likely, labels)


def _apart(log_probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of the target, [...], and those of all classes with the target ruled out, [..., V]."""
    return log_probabilities.gather(-1, target).squeeze(-1), log_probabilities.scatter(-1, target, -math.inf)
