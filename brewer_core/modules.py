"""The walk over a model's modules that every step takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def all_modules(model: nn.Module) -> Iterator[nn.Module]:
    """A module and all inside it, one that stands in several places as often; torch's own walk, which gives names, takes thrice as long."""
    left = [model]
    while left:
        module = left.pop()
        yield module
        left += [inner for inner in module._modules.values() if inner is not None]
