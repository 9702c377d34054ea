"""States as losses compare them: in full precision, one vector a row, of unit length.

Shapes: B rows, L tokens, D width. Masks are [B, L], True (or 1) where a token is valid.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.padding import all_or_valid, without_padding
from brewer_builtins.shapes import check_single, shown
from brewer_core import ShapeError

PoolName = Literal["mean", "first", "last"]

Pool = Annotated[
    PoolName,
    Field(
        description="How [B, L, D] becomes one vector a row: the mean over valid tokens, the first valid one, or the last. "
        "[B, D] stays as it is."
    ),
]


def in_full(tensor: Tensor) -> Tensor:
    """In float32 where it is in fewer bits, so that sums are; float64 stays."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def unit(states: Tensor) -> Tensor:
    """The same directions at length 1; a state of zeros has none and stays, with a finite gradient."""
    return states / lengths_of(states).unsqueeze(-1)


def lengths_of(states: Tensor) -> Tensor:
    """The lengths of states [..., D], to divide by: 1 for a state of zeros."""
    lengths: Tensor = torch.linalg.vector_norm(states, dim=-1)
    return torch.where(lengths == 0, 1, lengths)


def cosine_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos of the angle between states, by row of [..., D]; a state of zeros is at 1 from all."""
    return 1 - (student * teacher).sum(dim=-1) / (lengths_of(student) * lengths_of(teacher))


def rows_of(
    student: Any, teacher: Any, mask: Tensor | None, teacher_mask: Tensor | None, pool: PoolName
) -> tuple[Tensor, Tensor, Tensor]:
    """One vector a row: the student's [B, D], the teacher's [B, D'], detached, and [B], which rows have any valid token.

    student, teacher: [B, L, D] or [B, D], of the same rows; L may differ. teacher_mask: the mask of both where it is None.
    Rows without valid tokens on either side are of zeros.
    Raises ShapeError for anything else.
    """
    check_single(student, teacher)
    check_rows(student, teacher)
    taught_mask = mask if teacher_mask is None else teacher_mask
    valid = valid_rows(student, mask, "student") & valid_rows(teacher, taught_mask, "teacher")
    own = _pooled(in_full(student), mask, valid, pool)
    return own, _pooled(in_full(teacher.detach()), taught_mask, valid, pool), valid


def check_rows(student: Tensor, teacher: Tensor) -> None:
    """Raises ShapeError where states are not [B, L, D] or [B, D], or not of the same rows."""
    for side, states in (("student", student), ("teacher", teacher)):
        if states.dim() not in (2, 3):
            raise ShapeError(f"the {side}'s states are {shown(states)}; this loss needs [B, L, D] or [B, D].")
    if len(student) != len(teacher):
        raise ShapeError(f"student has {len(student)} rows and teacher {len(teacher)}; both must see the same batch.")


def valid_rows(states: Tensor, mask: Tensor | None, side: str) -> Tensor:
    """[B]: which rows have any valid token; all where there is no mask. Of [B, D] the mask may be [B] too."""
    if mask is None:
        return torch.ones(len(states), dtype=torch.bool, device=states.device)
    fits = mask.shape == states.shape[:2] if states.dim() == 3 else mask.dim() in (1, 2) and len(mask) == len(states)
    if not fits:
        raise ShapeError(
            f"the mask is {shown(mask)} and the {side}'s tensor {shown(states)}; the mask must have its rows and tokens."
        )
    return mask.bool().any(dim=1) if mask.dim() == 2 else mask.bool()


def valid_items(states: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L], or [B] for [B, D]: which of the student's states count."""
    return all_or_valid(mask, states) if states.dim() == 3 else valid_rows(states, mask, "student")


def _pooled(states: Tensor, mask: Tensor | None, valid: Tensor, pool: PoolName) -> Tensor:
    """[B, D]: one vector a row, of zeros where it has no valid token."""
    if states.dim() == 2:
        return without_padding(states, valid)
    tokens = all_or_valid(mask, states)
    if pool == "mean":
        means = without_padding(states, tokens).sum(dim=1) / tokens.sum(dim=1).clamp(min=1).unsqueeze(-1)
        return without_padding(means, valid)
    last = tokens.shape[1] - 1
    position = tokens.int().argmax(dim=1) if pool == "first" else last - tokens.flip(1).int().argmax(dim=1)
    return without_padding(states[torch.arange(len(states), device=states.device), position], valid)
