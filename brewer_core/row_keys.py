"""Keys by which rows of data are known again: hashes of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch

from brewer_core.batches import rows
from brewer_core.errors import DataError
from brewer_core.protocols import Batch


def row_keys(batch: Batch) -> list[bytes]:
    """A key for each row, the same wherever a row holds the same: a hash of its tensors and texts with their names.

    Padding at the end does not count: what stands alike in all places after the last that `attention_mask` marks.
    Raises DataError for what has not one entry a row.
    """
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
    places = torch.arange(1, valid.shape[1] + 1)
    return [int(end) for end in torch.where(valid, places, 0).amax(1)]


def _not_by_row(what: str, count: int) -> DataError:
    return DataError(
        f"is_caching_logits: {what} has not one entry for each of the {count} rows; leave it out of the batch, or set "
        "is_caching_logits to false."
    )


def _leaves(batch: Batch, count: int, name: str = "") -> Iterator[tuple[str, Any]]:
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
