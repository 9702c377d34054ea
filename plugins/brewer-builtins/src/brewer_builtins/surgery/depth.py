"""Which layers of a teacher a student takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from brewer_builtins.layers import check_layers
from brewer_builtins.surgery.settings import FORMS, By
from brewer_core import RequestError

WORDS = get_args(By)


def chosen(layers: Any, total: int, influence: Callable[[], Sequence[float]]) -> list[int]:
    """The numbers of the layers that are kept, from 0, in order.

    layers: a number of layers, evenly spaced; a list of them; one of `uniform`, `last`, `first`, `skip` and
    `block_influence`, for half of them; or {"count": M, "by": WORD}. influence: asked for only by `block_influence`.
    `uniform` is TinyBERT's map g(m) = floor(m N / M) for m = 1..M, counted from 1: the last layer of each of M parts of N
    layers. `skip` takes the first layer of each part, `first` and `last` M layers from an end, and `block_influence` the M
    layers of most influence. Raises RequestError where there are fewer layers, or where no number is meant.
    """
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        check_layers(layers, total)
        return list(layers)
    count, by = _count_and_word(layers, total)
    if not 0 < count <= total:
        raise RequestError(f"`layers` asks for {count} layers, and the teacher has {total}; ask for 1 to {total}.")
    if by == "block_influence":
        scores = torch.tensor(list(influence()))
        return sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())
    return {
        "uniform": [m * total // count - 1 for m in range(1, count + 1)],
        "skip": [m * total // count for m in range(count)],
        "first": list(range(count)),
        "last": list(range(total - count, total)),
    }[by]


def _count_and_word(layers: Any, total: int) -> tuple[int, str]:
    if isinstance(layers, int) and not isinstance(layers, bool):
        return layers, "uniform"
    if layers in WORDS:
        return max(1, total // 2), str(layers)
    if isinstance(layers, Mapping) and set(layers) == {"count", "by"} and layers["by"] in WORDS:
        return int(layers["count"]), str(layers["by"])
    raise RequestError(f"`layers` is {layers!r}; expected {FORMS}.")


class Influence:
    """The influence of a layer: 1 - E[cos(X_i, X_{i+1})] over tokens, of what goes into it and what comes out.

    Source: Men et al. 2024, ShortGPT, arXiv:2403.03853, eq. 1. It is 0 for a layer that changes nothing.
    """

    def __init__(self) -> None:
        self._sum, self._tokens = 0.0, 0

    def add(self, before: Tensor, after: Tensor, valid: Tensor) -> None:
        """States [B, L, D] on both sides of the layer, and which tokens [B, L] count."""
        cosines = torch.cosine_similarity(before[valid].double(), after[valid].double(), dim=-1)
        self._sum += float(cosines.sum())
        self._tokens += len(cosines)

    @property
    def value(self) -> float:
        """In [0, 2]."""
        return 1.0 - self._sum / max(self._tokens, 1)
