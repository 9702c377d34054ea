"""What a loss may return."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from brewer_core.errors import ShapeError


def scalar_loss(loss: Any, owner: str) -> Tensor:
    """What a loss returned. Raises ShapeError where that is no scalar; owner: the loss, for the text."""
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ShapeError(f"the {owner} returned {got}; a loss returns the mean over its items, a scalar.")
    return loss
