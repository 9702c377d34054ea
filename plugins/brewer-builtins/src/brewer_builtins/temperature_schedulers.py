"""Temperatures that follow the logits.

Shapes: N positions, B rows, L length, V classes or vocabulary. Each takes [N, V] or [B, L, V] and gives a temperature for
each position. Those that compare a position with the others of its batch are declared `over="batch"`: any loss under
them depends on the batch as a whole. Those that do not look at the teacher's logits are declared `sparse=True`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from brewer_core import ShapeError, SparseLogits, component, hookimpl

Beta = Annotated[
    float,
    Field(
        description="How far temperatures spread around the base temperature; "
        "above 0, positions of more than the mean weight get lower ones, hence sharper distributions."
    ),
]
Floor = Annotated[
    float,
    Field(gt=0, description="The lowest temperature given: a negative one would flip the teacher's ranking."),
]


@component(sparse=True)
def constant(student_logits: Tensor, teacher_logits: Tensor | SparseLogits, base_temperature: float) -> float:
    """The base temperature, whatever the logits."""
    del student_logits, teacher_logits
    return base_temperature


@component(
    over="batch",
    positional=("beta", "gamma", "eps"),
    source="Wen et al. 2019, arXiv:1911.07471",
    name="Focal loss style weights",
    example={"beta": 1.0, "gamma": 2.0},
)
def flsw(
    student_logits: Tensor,
    teacher_logits: Tensor,
    base_temperature: float,
    *,
    beta: Beta,
    gamma: Annotated[
        float, Field(ge=0, description="Power of the distance; the larger, the less near positions weigh.")
    ],
    eps: Annotated[
        float, Field(ge=0, description="Added to norms, so that zero logits give a finite temperature.")
    ] = 1e-4,
    floor: Floor = 0.1,
) -> Tensor:
    """Focal loss style weights: lower temperatures where student and teacher are further apart.

    A position weighs (1 - cos of the angle between its logits) ** gamma, and its temperature is the base temperature plus
    beta times (the mean weight of all positions - its own).
    Returns a Tensor [N] or [B, L], at least `floor`, without gradient.
    Raises ShapeError where the logits differ in shape.
    Source: Wen et al. 2019, arXiv:1911.07471, "Preparing Lessons", dynamic temperature. Departs from TextBrewer in the floor,
    and in that 1 - cos, which rounding can make negative, is at least 0, so that every power of it is a number.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"student logits are {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)}; "
            "the temperature scheduler flsw compares them and needs equal shapes."
        )
    student, teacher = _unit(student_logits.detach(), eps), _unit(teacher_logits.detach(), eps)
    weights = (1 - (student * teacher).sum(dim=-1)).clamp(min=0) ** gamma
    return _spread(weights, base_temperature, beta, floor)


@component(
    over="batch",
    positional=("beta",),
    source="Wen et al. 2019, arXiv:1911.07471",
    name="Confidence weighted by student max",
    example={"beta": 1.0},
    sparse=True,
)
def cwsm(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    base_temperature: float,
    *,
    beta: Beta,
    floor: Floor = 0.1,
) -> Tensor:
    """Confidence weighted by student max: lower temperatures where the student is less sure.

    A position weighs 1 / (the student's largest probability + 0.001), and its temperature is the base temperature plus beta
    times (the mean weight of all positions - its own).
    Returns a Tensor [N] or [B, L], at least `floor`, without gradient.
    Source: Wen et al. 2019, arXiv:1911.07471, "Preparing Lessons", dynamic temperature. Departs from TextBrewer in the floor.
    """
    del teacher_logits
    confidence = student_logits.detach().softmax(dim=-1).amax(dim=-1)
    return _spread(1 / (confidence + 1e-3), base_temperature, beta, floor)


@hookimpl
def brewer_temperature_schedulers() -> dict[str, Callable[..., float | Tensor]]:
    """The built-in temperature schedules."""
    return {"constant": constant, "cwsm": cwsm, "flsw": flsw}


def _unit(logits: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(logits, dim=-1, keepdim=True)
    return logits / (norm + eps)


def _spread(weights: Tensor, base_temperature: float, beta: float, floor: float) -> Tensor:
    """The base temperature where the weight is the mean one, lower where it is greater, never below the floor."""
    return (base_temperature + (weights.mean() - weights) * beta).clamp(min=floor)
