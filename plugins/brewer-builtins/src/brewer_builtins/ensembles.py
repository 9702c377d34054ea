"""The mean of several teachers.

Shapes: B rows, L length, V vocabulary or classes, N valid positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from brewer_core import Feature, Features, Kept, RequestError, ShapeError, SparseLogits

if TYPE_CHECKING:
    from torch import Tensor


def averaged(teachers: Mapping[str, Features], weights: Mapping[str, float], temperature: float | None) -> Features:
    """The first teacher's features with the mean logits of all that give any, head by head.

    weights: by teacher, more than 0; they need not sum to 1.
    temperature: the mean is one of probabilities at this temperature, given as logits whose softmax at it they are;
    where None, one of logits.
    Each teacher's own `logits_mask` says which of its positions count, or the first one's where it has none; the mean
    stands in the places of the first one's.
    Raises ShapeError where the teachers differ in heads, classes or the number of valid positions, and RequestError where
    one of several gives SparseLogits.
    """
    giving = {name: features for name, features in teachers.items() if features.get("logits")}
    if not giving:
        return next(iter(teachers.values()))
    first = next(iter(giving.values()))
    sparse = [each.kept for features in giving.values() for each in _heads(features) if isinstance(each, SparseLogits)]
    if sparse and len(giving) == 1:
        return first
    if sparse:
        raise RequestError(f"{no_mean(sparse[0])}.")
    _check_alike("heads of logits", {name: len(features["logits"]) for name, features in giving.items()})
    heads = [_mean(giving, i, [weights[name] for name in giving], temperature) for i in range(len(first["logits"]))]
    return first.replace(logits=Feature(tuple(heads), first.axes("logits")))


def no_mean(kept: Kept) -> str:
    """Why logits of which only some are kept have no mean, as a sentence with the key that it is about."""
    return (
        f"strategy: the mean of several teachers needs all of their logits, and the cache keeps {kept}; keep them dense, or give "
        "each task one teacher"
    )


def _heads(features: Features) -> tuple[Tensor | SparseLogits, ...]:
    return cast("tuple[Tensor | SparseLogits, ...]", features["logits"])


def _mean(teachers: Mapping[str, Features], head: int, weights: Sequence[float], temperature: float | None) -> Tensor:
    logits = {name: features["logits"][head] for name, features in teachers.items()}
    masks = {name: _mask(features, head) for name, features in teachers.items()}
    first = next(iter(logits.values()))
    if first.dim() != 3 or all(mask is None for mask in masks.values()):
        _check_alike("shapes of logits", {name: tuple(tensor.shape) for name, tensor in logits.items()})
        return _weighted(list(logits.values()), weights, temperature)
    shared = next(iter(masks.values()))
    valid = {name: _valid(tensor, masks[name], shared) for name, tensor in logits.items()}
    _check_alike("valid logits", {name: tuple(tensor.shape) for name, tensor in valid.items()})
    mean = _weighted(list(valid.values()), weights, temperature)
    if shared is None:
        return mean.reshape(first.shape)
    return first.masked_scatter(shared.unsqueeze(-1), mean)


def _weighted(logits: Sequence[Tensor], weights: Sequence[float], temperature: float | None) -> Tensor:
    """The weighted mean of tensors of one shape, [..., V]."""
    if temperature is None:
        first, *others = [weight * each for weight, each in zip(weights, logits, strict=True)]
        return sum(others, first) / sum(weights)
    import torch

    parts = [(each / temperature).log_softmax(-1) + math.log(w) for each, w in zip(logits, weights, strict=True)]
    return temperature * (torch.logsumexp(torch.stack(parts), 0) - math.log(sum(weights)))


def _mask(features: Features, head: int) -> Tensor | None:
    """[B, L], bool: the mask of a head of [B, L, V]; None where there is none."""
    masks, logits = features.get("logits_mask", ()), features["logits"]
    if not masks or logits[head].dim() != 3:
        return None
    mask = masks[head] if len(masks) == len(logits) else masks[0]
    return mask.bool().expand(logits[head].shape[:2])


def _valid(logits: Tensor, mask: Tensor | None, shared: Tensor | None) -> Tensor:
    """[N, V]: the logits of the valid positions; by the shared mask where there is no other, and it is of these positions."""
    if mask is None and shared is not None and shared.shape == logits.shape[:2]:
        mask = shared
    return logits.flatten(0, 1) if mask is None else logits[mask]


def _check_alike(what: str, of_teacher: Mapping[str, object]) -> None:
    if len(set(of_teacher.values())) > 1:
        each = ", ".join(f"{name} {value}" for name, value in of_teacher.items())
        raise ShapeError(f"the teachers differ in {what} ({each}), so they have no mean; they must agree.")
