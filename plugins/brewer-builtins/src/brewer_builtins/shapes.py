"""Whether what a match reads of student and teacher can be compared; the texts where it cannot."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from brewer_core import ShapeError


def shown(tensor: Tensor) -> str:
    """A tensor's shape as a text shows it."""
    return str(tuple(tensor.shape))


def check_single(student: Any, teacher: Any) -> None:
    """Raises ShapeError where a side gives several layers."""
    for side, layer in (("student", student), ("teacher", teacher)):
        if not isinstance(layer, Tensor):
            raise ShapeError(
                f"the {side} gives {len(layer)} layers and this loss compares single ones; name one layer."
            )


def check_pairs(student: Any, teacher: Any) -> None:
    """Raises ShapeError where a side gives anything but two layers."""
    for side, layers in (("student", student), ("teacher", teacher)):
        if isinstance(layers, Tensor) or len(layers) != 2:
            given = "a single layer" if isinstance(layers, Tensor) else f"{len(layers)} layers"
            raise ShapeError(
                f"the {side} gives {given} and this loss needs two layers; name them in a list, such as [0, 1]."
            )


def check_width(student: Tensor, teacher: Tensor) -> None:
    """Raises ShapeError where the last axes differ."""
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError(
            f"student is {student.shape[-1]} wide and teacher {teacher.shape[-1]}; give the match a projection."
        )


def check_same_tokens(student: Tensor, teacher: Tensor) -> None:
    """Raises ShapeError where states, whatever their widths, are not of the same rows and tokens."""
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ShapeError(not_the_same_tokens(student, teacher))


def check_states(student: Any, teacher: Any) -> None:
    """Raises ShapeError where states are no single layers of one shape."""
    check_single(student, teacher)
    check_width(student, teacher)
    check_same_tokens(student, teacher)


def check_tokens(student: Any, teacher: Any) -> None:
    """Raises ShapeError where states are no single layers [B, L, D] of the same rows and tokens; widths may differ."""
    check_single(student, teacher)
    for side, states in (("student", student), ("teacher", teacher)):
        if states.dim() != 3:
            raise ShapeError(f"the {side}'s states are {shown(states)}; this loss needs [B, L, D].")
    check_same_tokens(student, teacher)


def check_attention(student: Any, teacher: Any, other_losses: str = "attention_mse_sum or attention_ce_mean") -> None:
    """Raises ShapeError where attention is not of the same rows, heads and tokens; other_losses: those for other heads."""
    check_single(student, teacher)
    for side, attention in (("student", student), ("teacher", teacher)):
        if attention.dim() not in (3, 4):
            raise ShapeError(f"the {side}'s attention is {shown(attention)}; it must be [B, H, L, L] or [B, L, L].")
    if student.shape[0] != teacher.shape[0] or student.shape[-2:] != teacher.shape[-2:]:
        raise ShapeError(not_the_same_tokens(student, teacher))
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student is {shown(student)} and teacher {shown(teacher)}; match different numbers of heads with {other_losses}."
        )


def check_square(attention: Tensor) -> None:
    """Raises ShapeError where attention is of tokens to other tokens."""
    if attention.shape[-1] != attention.shape[-2]:
        raise ShapeError(f"the attention is {shown(attention)}; it must be of tokens to the same tokens, [B, H, L, L].")


def not_the_same_tokens(student: Tensor, teacher: Tensor) -> str:
    """The text about tensors of other rows or tokens."""
    return f"student is {shown(student)} and teacher {shown(teacher)}; both must be of the same rows and tokens."
