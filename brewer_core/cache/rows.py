"""The rows of a batch: keys by which they are known again, and where in a row its tokens stand.

Shapes: B rows, L tokens of the longest row of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import xxhash

from brewer_core.batches import rows as count_rows
from brewer_core.errors import DataError, RequestError
from brewer_core.protocols import Batch

KEY_BYTES = 16
_DECODER = "decoder_"

Key: TypeAlias = str | Callable[[Batch], Sequence[Any]]
"""How a caller says what a row is: the name of a column, or a function from a batch to a key for each row."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch.

    keys: 16 bytes each. length: L, where the batch says by `attention_mask` which tokens are padding, else None; then
    starts and ends are the places of each row's first token and behind its last.
    """

    keys: tuple[bytes, ...]
    length: int | None = None
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def tokens(self, row: int) -> int:
        """The tokens of a row between its paddings; 0 where the batch does not say."""
        return self.ends[row] - self.starts[row] if self.length is not None else 0


def rows_of(batch: Batch, key: Key | None = None, ignore: Collection[str] = ()) -> Rows:
    """The rows of a batch on the CPU.

    key: what a row is known by; where None, all that the batch holds of it, with names or positions, but for what is ignored. What
    stands alike in all places that `attention_mask` marks as padding does not count; for what is called `decoder_...` those that
    `decoder_attention_mask` marks. Padding before a row moves its tokens, and counts, unless the batch has `position_ids`.
    Raises DataError for what has not one entry a row, or a key that is not one for each.
    """
    count, valid = count_rows(batch), valid_tokens(batch)
    starts, ends = _spans(valid)
    decoded = valid_tokens(batch, "decoder_attention_mask")
    if key is not None:
        keys = tuple(_hashed(given) for given in _given_keys(batch, key, count))
    else:
        places = {"": _Places.of(valid), _DECODER: _Places.of(decoded)}
        keys = tuple(_content_keys(batch, ignore, count, places))
    return Rows(keys, None if valid is None else int(valid.shape[1]), starts, ends)


def without_key(batch: Batch, key: Key | None) -> Batch:
    """The batch without the column that is its key, which is none of the model's inputs."""
    if not isinstance(key, str) or not isinstance(batch, Mapping) or key not in batch:
        return batch
    return {name: value for name, value in batch.items() if name != key}


def valid_tokens(batch: Batch, name: str = "attention_mask") -> torch.Tensor | None:
    """[B, L], bool, on the CPU: the tokens that are no padding, by the batch's mask of this name; None without one."""
    mask = batch.get(name) if isinstance(batch, Mapping) else None
    return mask.detach().bool().cpu() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def _spans(valid: torch.Tensor | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where each row's first token is, and the place behind its last; a row without any has none between."""
    if valid is None:
        return (), ()
    length = valid.shape[1]
    places = torch.arange(length)
    ends = torch.where(valid, places + 1, 0).amax(1) if length else valid.sum(1)
    starts = torch.where(valid, places, length).amin(1).clamp(max=ends) if length else ends
    return tuple(starts.tolist()), tuple(ends.tolist())


def _given_keys(batch: Batch, key: Key, count: int) -> list[Any]:
    if callable(key):
        given: Any = key(batch)
        named = "the function `key` gave"
    else:
        if not isinstance(batch, Mapping) or key not in batch:
            held = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise RequestError(f"CachedTeacher: the batch has no column {key!r} to know its rows by; it has {held}.")
        given, named = batch[key], f"the column {key!r} has"
    keys = given.tolist() if isinstance(given, torch.Tensor) else list(given)
    if len(keys) != count:
        raise DataError(f"CachedTeacher: {named} {len(keys)} keys for {count} rows; expected one for each.")
    return keys


def _hashed(key: Any) -> bytes:
    return xxhash.xxh3_128_digest(f"{type(key).__name__}:{key!r}".encode())


@dataclass(frozen=True)
class _Places:
    """Where the tokens of a batch's rows stand. shape: (B, L). before, behind: [B, L], the places of padding on either side."""

    shape: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    before: torch.Tensor
    behind: torch.Tensor

    @classmethod
    def of(cls, valid: torch.Tensor | None) -> _Places | None:
        """By a mask; None without one."""
        if valid is None:
            return None
        spans = tuple(zip(*_spans(valid), strict=True))
        places, ends = torch.arange(valid.shape[1]), torch.tensor(spans).reshape(-1, 2)
        return cls(tuple(valid.shape), spans, places < ends[:, :1], places >= ends[:, 1:])

    def alike(self, tensor: torch.Tensor) -> list[bool]:
        """Of each row of [B, L, ...], whether the same stands in all places of padding on one side."""
        if not bool(self.before.any() or self.behind.any()):
            return [True] * self.shape[0]
        flat = tensor.reshape(*self.shape, -1)
        before = (flat == flat[:, :1]).all(-1) | ~self.before
        behind = (flat == flat[:, -1:]).all(-1) | ~self.behind
        alike: list[bool] = (before & behind).all(1).tolist()
        return alike


def _content_keys(
    batch: Batch, ignore: Collection[str], count: int, places: Mapping[str, _Places | None]
) -> Iterator[bytes]:
    parts: list[list[bytes]] = []
    for name, value in _leaves(batch, count, ignore):
        header, own = _row_parts(name, value, count, places[_DECODER if name.startswith(_DECODER) else ""])
        parts.append([header.encode()] * count)
        parts.append(own)
        parts.append([b"%d" % len(part) for part in own])
    source = places[""]
    positioned = isinstance(batch, Mapping) and "position_ids" in batch
    if source is not None and not positioned and any(start for start, _ in source.spans):
        parts.append([b"after %d" % start for start, _ in source.spans])
    if not parts:
        raise DataError("CachedTeacher: the batch holds nothing but what is ignored, so its rows cannot be told apart.")
    for row in zip(*parts, strict=True):
        yield xxhash.xxh3_128_digest(b";".join(row))


def _row_parts(name: str, value: Any, count: int, places: _Places | None) -> tuple[str, list[bytes]]:
    """What a leaf of a batch is called, and what each row holds of it."""
    if isinstance(value, torch.Tensor):
        if value.dim() == 0 or value.shape[0] != count:
            raise _not_by_row(f"the tensor {name!r} of shape {tuple(value.shape)}", count)
        return f"{name}:{value.dtype}:{tuple(value.shape[2:])}", _row_bytes(value.detach().cpu(), places)
    if _is_plain(value):
        return name, [repr(value).encode()] * count
    if isinstance(value, (list, tuple)):
        return name, [repr(each).encode() for each in value]
    raise _not_by_row(f"{name!r}, a {type(value).__name__},", count)


def _row_bytes(tensor: torch.Tensor, places: _Places | None) -> list[bytes]:
    """What each row holds; between its first and its last token, where it has such places."""
    count = tensor.shape[0]
    if not tensor.numel():
        return [b""] * count
    held = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    size = len(held) // count
    whole = [held[i * size : (i + 1) * size] for i in range(count)]
    if places is None or tensor.shape[:2] != places.shape:
        return whole
    token, alike = size // tensor.shape[1], places.alike(tensor)
    return [
        row[start * token : end * token] if same else row
        for row, (start, end), same in zip(whole, places.spans, alike, strict=True)
    ]


def _not_by_row(what: str, count: int) -> DataError:
    return DataError(
        f"CachedTeacher: {what} has not one entry for each of the {count} rows, so rows cannot be told by what they hold; name the "
        "column that tells them, `key=`, or a function from a batch to the keys of its rows."
    )


def _leaves(batch: Batch, count: int, ignore: Collection[str], name: str = "") -> Iterator[tuple[str, Any]]:
    """What a batch holds inside its mappings and sequences; `count` texts or numbers in a row are one leaf."""
    if isinstance(batch, Mapping):
        for key in sorted(batch, key=str):
            if key not in ignore:
                yield from _leaves(batch[key], count, ignore, f"{name}/{key}" if name else str(key))
    elif isinstance(batch, (list, tuple)) and not (len(batch) == count and all(map(_is_plain, batch))):
        for i, value in enumerate(batch):
            yield from _leaves(value, count, ignore, f"{name}/{i}" if name else str(i))
    else:
        yield name, batch


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bytes, bool, int, float))
