"""The match loss `pkd`: the distance of two hidden states of the first token, both brought to unit length."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from brewer_core import ShapeError, component


@component(over="rows", source="Sun et al. 2019, arXiv:1908.09355, eq. 7", name="Patient knowledge distillation")
def pkd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    eps: Annotated[float, Field(gt=0, description="Added to norms, so that a zero state gives a finite loss.")] = 1e-8,
) -> Tensor:
    """Patient knowledge distillation: squared distance of unit-length first-token states.

    Formula: mean over rows of ‖h_S/‖h_S‖ - h_T/‖h_T‖‖², h the state of the first token.
    student, teacher: [B, L, D], or [B, D] where the first token was already taken; the mask has no effect.
    Returns a scalar in [0, 4]; 0 where the directions agree.
    Raises ShapeError where B or D differs (give the match a projection for D), and for pairs of layers.
    Cost: O(B D).
    Source: Sun et al. 2019, arXiv:1908.09355, eq. 7, averaged over the batch.
    """
    del mask
    student, teacher = first_token(student, "student"), first_token(teacher, "teacher")
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError(
            f"student is {student.shape[-1]} wide and teacher {teacher.shape[-1]}; give the match a projection."
        )
    if student.shape != teacher.shape:
        raise ShapeError(f"student has {len(student)} rows and teacher {len(teacher)}; both must see the same batch.")
    return (_unit(student, eps) - _unit(teacher.detach(), eps)).pow(2).sum(dim=-1).mean()


def first_token(states: Any, side: str) -> Tensor:
    """[B, D]: the states of the first token. side: whose they are, for the error's text."""
    if not isinstance(states, Tensor):
        raise ShapeError(f"the {side} gives {len(states)} layers and pkd compares single ones; name one layer.")
    if states.dim() not in (2, 3):
        raise ShapeError(f"the {side}'s states are {tuple(states.shape)}; pkd needs [B, L, D] or [B, D].")
    return states[:, 0] if states.dim() == 3 else states


def _unit(states: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return states / (norm + eps)
