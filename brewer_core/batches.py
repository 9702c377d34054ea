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
    import torch

    for _, value in _leaves(batch):
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return int(value.shape[0])
    raise DataError("the batch holds no tensor with rows; a loader must yield tensors in a tuple, a list or a mapping.")


def row_keys(batch: Batch) -> list[bytes]:
    """A key for each row, the same wherever a row holds the same: a hash of its tensors and texts with their names.

    Padding at the end does not count: what stands alike in all places after the last that `attention_mask` marks.
    Raises DataError for what has not one entry a row.
    """
    from hashlib import blake2b

    count, valid = rows(batch), valid_tokens(batch)
    hashes = [blake2b(digest_size=16) for _ in range(count)]
    for name, value in _leaves(batch, count):
        header, parts = _row_parts(name, value, count, valid)
        for row_hash, part in zip(hashes, parts, strict=True):
            row_hash.update(f"{header}:{len(part)};".encode())
            row_hash.update(part)
    return [row_hash.digest() for row_hash in hashes]


def valid_tokens(batch: Batch) -> torch.Tensor | None:
    """[B, L], bool, on the CPU: the tokens that are no padding, by the batch's `attention_mask`; None without one."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.detach().bool().cpu() if mask is not None and mask.dim() == 2 else None


def _row_parts(name: str, value: Any, count: int, valid: torch.Tensor | None) -> tuple[str, list[bytes]]:
    """What a leaf of a batch is called, and what each row holds of it."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.dim() == 0 or value.shape[0] != count:
            raise _not_by_row(f"the tensor {name!r} of shape {tuple(value.shape)}", count)
        return f"{name}:{value.dtype}:{tuple(value.shape[2:])}", list(_row_bytes(value.detach().cpu(), valid))
    if _is_plain(value):
        return name, [repr(value).encode()] * count
    if isinstance(value, (list, tuple)):
        return name, [repr(each).encode() for each in value]
    raise _not_by_row(f"{name!r}, a {type(value).__name__},", count)


def _row_bytes(tensor: torch.Tensor, valid: torch.Tensor | None) -> Iterator[bytes]:
    import torch

    count = tensor.shape[0]
    size = tensor.numel() // max(count, 1) * tensor.element_size()
    whole = tensor.contiguous().flatten().view(torch.uint8).reshape(count, size).numpy()
    if valid is None or tensor.shape[:2] != valid.shape or not size:
        yield from (row.tobytes() for row in whole)
        return
    by_token = whole.reshape(*valid.shape, -1)
    for row, end in zip(by_token, _ends(valid), strict=True):
        padding = row[end:]
        yield row[:end].tobytes() if (padding == padding[:1]).all() else row.tobytes()


def _ends(valid: torch.Tensor) -> list[int]:
    """The place after each row's last valid token."""
    import torch

    places = torch.arange(1, valid.shape[1] + 1)
    return [int(end) for end in torch.where(valid, places, 0).amax(1)]


def _not_by_row(what: str, count: int) -> DataError:
    return DataError(
        f"is_caching_logits: {what} has not one entry for each of the {count} rows; leave it out of the batch, or set "
        "is_caching_logits to false."
    )


def _leaves(batch: Batch, count: int | None = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """What a batch holds inside its mappings and sequences; `count` texts or numbers in a row are one leaf."""
    if isinstance(batch, Mapping):
        for key in batch:
            yield from _leaves(batch[key], count, f"{name}/{key}" if name else str(key))
    elif isinstance(batch, (list, tuple)) and not (len(batch) == count and all(map(_is_plain, batch))):
        for i, value in enumerate(batch):
            yield from _leaves(value, count, f"{name}/{i}" if name else str(i))
    else:
        yield name, batch


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bytes, bool, int, float))


def _two_sided(batch: Batch) -> bool:
    return isinstance(batch, Mapping) and "teacher" in batch and "student" in batch
