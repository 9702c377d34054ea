"""Tensors for tests: seeded, small, with lengths that tell rows, tokens and pairs of tokens apart.

Shapes: B rows, L tokens, H heads, D width, V classes. All of them differ, so that axes cannot be mistaken for one another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ROWS, LENGTH, HEADS, WIDTH, CLASSES = 4, 6, 3, 5, 7
LENGTHS = (6, 3, 1, 4)
PADDING_SCORE = -1e4
"""What models add to the attention scores of padding."""


def seeded_tensors(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers of a shape, the same for the same seed, from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def valid_tokens() -> Tensor:
    """[B, L]: a mask that is True for the first tokens of each row, of which every row has another number."""
    return torch.arange(LENGTH) < torch.tensor(LENGTHS).unsqueeze(1)


def each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same for a tensor, or for each of several in a tuple."""
    return tuple(map(change, value)) if isinstance(value, (tuple, list)) else change(value)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value: in mappings, lists and tuples, whatever else is there."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def finite(*tensors: Tensor) -> bool:
    """Whether all of them are."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether they differ by no more than this share of the greater one, as float32 may."""
    one, other = one.detach(), other.detach()
    scale = max(float(one.abs().max()), float(other.abs().max()), 1e-2) if one.numel() else 1.0
    return one.shape == other.shape and bool(((one - other).abs() <= tolerance * scale).all())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal, bit by bit; NaN equals NaN."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().contiguous()
    return plain.reshape(-1).view(torch.uint8) if plain.numel() else plain
