"""Which tokens of a batch count: masks as losses use them, and what stands at padding taken out.

Shapes: B rows, L tokens, H heads, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brewer_builtins.shapes import shown
from brewer_core import ShapeError


def valid_tokens(mask: Tensor, tensor: Tensor) -> Tensor:
    """[B, L]: the mask as bool, for [B, L, D], or attention."""
    rows_and_tokens = (tensor.shape[0], tensor.shape[-2]) if tensor.dim() > 2 else ()
    if tuple(mask.shape) != rows_and_tokens:
        raise ShapeError(
            f"the mask is {shown(mask)} and the student's tensor {shown(tensor)}; the mask must have its rows and tokens."
        )
    return mask.bool()


def all_or_valid(mask: Tensor | None, tensor: Tensor) -> Tensor:
    """[B, L]: the mask as bool; all tokens of [B, L, D], or of attention, where there is none."""
    if mask is None:
        return torch.ones(tensor.shape[0], tensor.shape[-2], dtype=torch.bool, device=tensor.device)
    return valid_tokens(mask, tensor)


def without_padding(states: Tensor, valid: Tensor) -> Tensor:
    """[B, L, D], or [N, D] of items [N]: the same states, 0 at padding. Raises ShapeError for what has other axes, such as attention."""
    if states.shape[:-1] != valid.shape:
        raise ShapeError(
            f"the states are {shown(states)} and the mask of their tokens {shown(valid)}; this loss compares states of tokens, [B, L, D]."
        )
    return torch.where(valid.unsqueeze(-1), states, 0)


def keys_of(valid: Tensor, attention: Tensor) -> Tensor:
    """[B, 1, 1, L], or [B, 1, L] for attention without heads."""
    return valid[:, None, None] if attention.dim() == 4 else valid[:, None]


def queries_of(valid: Tensor, attention: Tensor) -> Tensor:
    """[B, 1, L, 1], or [B, L, 1] for attention without heads."""
    return keys_of(valid, attention).mT


def pairs_of(valid: Tensor, attention: Tensor) -> Tensor:
    """[B, 1, L, L], or [B, L, L] for attention without heads: the pairs of valid query and valid key."""
    return queries_of(valid, attention) & keys_of(valid, attention)


def mean(values: Tensor) -> Tensor:
    """The mean of all values; 0, with a graph, where there are none."""
    return values.sum() / max(values.numel(), 1)


def token_count(valid: Tensor) -> Tensor:
    """How many tokens are valid, at least 1, so that a loss without any is 0."""
    return valid.sum().clamp(min=1)


def pair_count(valid: Tensor) -> Tensor:
    """How many pairs of valid tokens of one row there are, at least 1."""
    return valid.sum(dim=1).square().sum().clamp(min=1)
