"""Batches as loaders yield them: moved, counted, and passed to models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from brewer_core.errors import DataError
from brewer_core.protocols import Batch

if TYPE_CHECKING:
    import torch
    from torch import nn


def move_to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device. Mappings become dicts, sequences tuples; the loader's own is not changed."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: move_to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return tuple(move_to_device(value, device) for value in batch)
    return batch


def call_model(model: nn.Module, batch: Batch, arguments: Mapping[str, Any]) -> Any:
    """`model(**batch, **arguments)` for a mapping, `model(*batch, **arguments)` for a sequence."""
    if isinstance(batch, Mapping):
        return model(**batch, **arguments)
    if isinstance(batch, (list, tuple)):
        return model(*batch, **arguments)
    return model(batch, **arguments)


def side(batch: Batch, role: str) -> Batch:
    """The part of a batch for `teacher` or `student`, where it holds one for each; else the batch itself."""
    return batch[role] if _two_sided(batch) else batch


def teacher_cache(batch: Batch) -> Any:
    """The teacher's outputs, where a batch with a part for each model brings them along; else None."""
    return batch.get("teacher_cache") if _two_sided(batch) else None


def rows(batch: Batch) -> int:
    """The number of rows: the first axis of the first tensor. Raises DataError where there is none."""
    for _, tensor in _named_tensors(batch):
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    raise DataError("the batch holds no tensor with rows; a loader must yield tensors in a tuple, a list or a mapping.")


def row_keys(batch: Batch) -> list[bytes]:
    """A key for each row, the same wherever a row holds the same: a hash of its tensors with their names or positions.

    Padding does not count where `attention_mask` tells it. Raises DataError for a tensor that has no axis of rows.
    """
    from hashlib import blake2b

    count, valid = rows(batch), valid_tokens(batch)
    hashes = [blake2b(digest_size=16) for _ in range(count)]
    for name, tensor in _named_tensors(batch):
        if tensor.dim() == 0 or tensor.shape[0] != count:
            raise DataError(
                f"is_caching_logits: the tensor {name!r} of shape {tuple(tensor.shape)} has not one entry for each of the "
                f"{count} rows; leave it out of the batch, or set is_caching_logits to false."
            )
        for i, row in enumerate(_row_bytes(tensor.detach().cpu(), valid)):
            hashes[i].update(f"{name}:{tensor.dtype}:{tuple(tensor.shape[2:])}:{len(row)};".encode())
            hashes[i].update(row)
    return [h.digest() for h in hashes]


def valid_tokens(batch: Batch) -> torch.Tensor | None:
    """[B, L], bool, on the CPU: the tokens that are no padding, by the batch's `attention_mask`; None without one."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.detach().bool().cpu() if mask is not None and mask.dim() == 2 else None


def _row_bytes(tensor: torch.Tensor, valid: torch.Tensor | None) -> Iterator[bytes]:
    import torch

    of_tokens = valid is not None and tensor.shape[:2] == valid.shape
    for i, row in enumerate(tensor):
        part = row[valid[i]] if of_tokens and valid is not None else row
        yield part.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _named_tensors(batch: Batch, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(batch, torch.Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key in batch:
            yield from _named_tensors(batch[key], f"{name}/{key}")
    elif isinstance(batch, (list, tuple)):
        for i, value in enumerate(batch):
            yield from _named_tensors(value, f"{name}/{i}")


def _two_sided(batch: Batch) -> bool:
    return isinstance(batch, Mapping) and "teacher" in batch and "student" in batch
