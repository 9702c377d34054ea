"""Batches as loaders yield them: moved, counted, and passed to models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from brewer_core.errors import DataError
from brewer_core.protocols import Batch

if TYPE_CHECKING:
    import torch
    from torch import nn


class Filler(dict[str, Any]):
    """A batch of a process for which no row is left, where others have some: it is run as any, and weighs nothing."""


def move_to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device. Mappings become dicts, sequences tuples; the loader's own is not changed."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Filler):
        return Filler({key: move_to_device(value, device) for key, value in batch.items()})
    if isinstance(batch, Mapping):
        return {key: move_to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return tuple(move_to_device(value, device) for value in batch)
    return batch


def call_model(model: nn.Module, batch: Batch, arguments: Mapping[str, Any]) -> Any:
    """`model(**batch, **arguments)` for a mapping, `model(*batch, **arguments)` for what else is iterable but a tensor."""
    import torch

    if isinstance(batch, Mapping):
        return model(**batch, **arguments)
    if isinstance(batch, Iterable) and not isinstance(batch, (torch.Tensor, str)):
        return model(*batch, **arguments)
    return model(batch, **arguments)


def side(batch: Batch, role: str) -> Batch:
    """The part of a batch for `teacher` or `student`, where it holds one for each; else the batch itself."""
    return batch[role] if two_sided(batch) else batch


def rows_named(batch: Batch) -> list[int]:
    """The numbers of a batch's rows, where it holds them under `row`."""
    numbers = side(batch, "student")
    found = numbers.get("row") if isinstance(numbers, Mapping) else None
    return [int(number) for number in found.tolist()] if found is not None else []


def split(batch: Batch, parts: int, exactly: bool = False) -> list[Batch]:
    """A batch in so many of about equal size, as far as it has rows; tensors of another length are in each of them.

    exactly: a `Filler` stands for each part that would have no row, of a batch that is a mapping.
    """
    count = rows(batch)
    size = max(1, math.ceil(count / parts))
    made = [_cut(batch, slice(start, start + size), count) for start in range(0, count, size)]
    missing = parts - len(made) if exactly and isinstance(batch, Mapping) else 0
    return made + [Filler(made[0]) for _ in range(missing)]


def _cut(batch: Batch, span: slice, count: int) -> Batch:
    import torch

    if isinstance(batch, torch.Tensor):
        return batch[span] if batch.shape[:1] == (count,) else batch
    if isinstance(batch, Filler):
        return Filler({key: _cut(value, span, count) for key, value in batch.items()})
    if isinstance(batch, Mapping):
        return {key: _cut(value, span, count) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return tuple(_cut(value, span, count) for value in batch)
    return batch


def teacher_cache(batch: Batch) -> Any:
    """The teacher's outputs, where a batch with a part for each model brings them along; else None."""
    return batch.get("teacher_cache") if two_sided(batch) else None


def rows(batch: Batch) -> int:
    """The number of rows: the first axis of the first tensor. Raises DataError where there is none."""
    for tensor in _tensors(batch):
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    raise DataError("the batch holds no tensor with rows; a loader must yield tensors in a tuple, a list or a mapping.")


def two_sided(batch: Batch) -> bool:
    """Whether a batch has a part for each model."""
    return isinstance(batch, Mapping) and "teacher" in batch and "student" in batch


def _tensors(batch: Batch) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)
