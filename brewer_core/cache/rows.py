"""The rows of a batch: keys by which they are known again, and where in a row its tokens stand.

Shapes: B rows, L tokens of the longest row of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy
import torch
import xxhash

from brewer_core.batches import rows as count_rows
from brewer_core.errors import DataError, RequestError
from brewer_core.protocols import Batch

Array: TypeAlias = "numpy.ndarray[Any, Any]"

KEY_BYTES = 16
_DECODER = "decoder_"

Key: TypeAlias = str | Callable[[Batch], Sequence[Any]]
"""How a caller says what a row is: the name of a column, or a function from a batch to a key for each row."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch.

    keys: 16 bytes each. length: L, where the batch says by `attention_mask` which tokens are padding, else None; then
    starts and ends are the places of each row's first token and behind its last.
    lengths: of what the batch holds the different sizes of the second axis, in order; what cannot be cut to a row's tokens is known
    again at the same ones alone. alone: whether nothing of a decoder is as long as L, so that what is, is that of the row's tokens.
    """

    keys: tuple[bytes, ...]
    length: int | None = None
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    alone: bool = True

    def __len__(self) -> int:
        return len(self.keys)

    def tokens(self, row: int) -> int:
        """The tokens of a row between its paddings; 0 where the batch does not say."""
        return self.ends[row] - self.starts[row] if self.length is not None else 0


def rows_of(batch: Batch, key: Key | None = None, ignore: Collection[str] = (), decodes_labels: bool = False) -> Rows:
    """The rows of a batch on the CPU.

    key: what a row is known by; where None, all that the batch holds of it, with names or positions, but for what is ignored. What
    stands alike in all places that `attention_mask` marks as padding does not count; for what is called `decoder_...` those that
    `decoder_attention_mask` marks. decodes_labels: the model makes its decoder's inputs from `labels` where it is given no others, so that
    they count. Padding before a row moves its tokens, and counts, unless the batch has `position_ids`.
    Raises DataError for what has not one entry a row, or a key that is not one for each.
    """
    count, places = count_rows(batch), _Places.of(valid_tokens(batch))
    if key is not None:
        keys = tuple(_hashed(given) for given in _given_keys(batch, key, count))
    batch = _with_labels_decoded(batch) if decodes_labels else batch
    if key is None:
        of_decoder = _Places.of(valid_tokens(batch, "decoder_attention_mask"))
        keys = tuple(_content_keys(batch, ignore, count, {"": places, _DECODER: of_decoder}))
    shapes = {name: tuple(leaf.shape) for name, leaf in _leaves(batch, count, ()) if isinstance(leaf, torch.Tensor)}
    lengths = tuple(dict.fromkeys(shape[1] for shape in shapes.values() if len(shape) > 1))
    if places is None:
        return Rows(keys, lengths=lengths)
    decoded = {shape[1] for name, shape in shapes.items() if name.startswith(_DECODER) and len(shape) > 1}
    return Rows(keys, places.shape[1], places.starts, places.ends, lengths, places.shape[1] not in decoded)


def without_key(batch: Batch, key: Key | None) -> Batch:
    """The batch without the column that is its key, which is none of the model's inputs."""
    if not isinstance(key, str) or not isinstance(batch, Mapping) or key not in batch:
        return batch
    return {name: value for name, value in batch.items() if name != key}


def _with_labels_decoded(batch: Batch) -> Batch:
    """The batch with its labels under a name of the decoder's inputs, unless it holds these themselves."""
    if not isinstance(batch, Mapping) or "decoder_input_ids" in batch or "labels" not in batch:
        return batch
    return {f"{_DECODER}labels" if name == "labels" else name: value for name, value in batch.items()}


def valid_tokens(batch: Batch, name: str = "attention_mask") -> Array | None:
    """[B, L], bool: the tokens that are no padding, by the batch's mask of this name; None without one."""
    mask = batch.get(name) if isinstance(batch, Mapping) else None
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    valid: Array = mask.detach().cpu().numpy() != 0
    return valid


@dataclass(frozen=True)
class _Places:
    """Where the tokens of a batch's rows stand. shape: (B, L). before, behind: [B, L], the places of padding on either side."""

    shape: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    before: Array | None
    behind: Array | None

    @classmethod
    def of(cls, valid: Array | None) -> _Places | None:
        """By a mask, [B, L]; None without one. A row without any token has none between its places."""
        if valid is None:
            return None
        count, length = valid.shape
        some = valid.any(1) if length else numpy.zeros(count, bool)
        ends = numpy.where(some, length - valid[:, ::-1].argmax(1), 0) if length else some.astype(int)
        starts = numpy.where(some, valid.argmax(1), 0) if length else some.astype(int)
        places = numpy.arange(length)
        before = places < starts[:, None] if starts.any() else None
        behind = places >= ends[:, None] if (ends < length).any() else None
        return cls((count, length), tuple(starts.tolist()), tuple(ends.tolist()), before, behind)

    def alike(self, array: Array) -> list[bool] | None:
        """Of each row of [B, L, ...], whether the same stands in all places of padding on one side; None where it does in all."""
        flat, different = array.reshape(*self.shape, -1), numpy.zeros(self.shape[0], bool)
        for side, at in ((self.before, 0), (self.behind, -1)):
            if side is not None:
                different |= ((flat != flat[:, [at]]).any(-1) & side).any(1)
        return (~different).tolist() if different.any() else None


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


def _content_keys(
    batch: Batch, ignore: Collection[str], count: int, places: Mapping[str, _Places | None]
) -> Iterator[bytes]:
    headers: list[str] = []
    parts: list[list[bytes]] = []
    for name, value in _leaves(batch, count, ignore):
        header, own = _row_parts(name, value, count, places[_DECODER if name.startswith(_DECODER) else ""])
        headers.append(header)
        parts += own
    source = places[""]
    positioned = isinstance(batch, Mapping) and "position_ids" in batch
    if source is not None and source.before is not None and not positioned:
        parts.append([b"after %d" % start if start else b"" for start in source.starts])
    if not parts:
        raise DataError("CachedTeacher: the batch holds nothing but what is ignored, so its rows cannot be told apart.")
    start = ";".join(headers).encode()
    for row in zip(*parts, strict=True):
        yield xxhash.xxh3_128_digest(b"".join((start, *row)))


def _row_parts(name: str, value: Any, count: int, places: _Places | None) -> tuple[str, list[list[bytes]]]:
    """What a leaf of a batch is called, and what each row holds of it."""
    if isinstance(value, torch.Tensor):
        if value.dim() == 0 or value.shape[0] != count:
            raise _not_by_row(f"the tensor {name!r} of shape {tuple(value.shape)}", count)
        return f"{name}:{value.dtype}:{tuple(value.shape[2:])}", _row_bytes(value.detach().cpu(), places)
    if _is_plain(value):
        return f"{name}={value!r}", []
    if isinstance(value, (list, tuple)):
        return name, _told([repr(each).encode() for each in value])
    raise _not_by_row(f"{name!r}, a {type(value).__name__},", count)


def _row_bytes(tensor: torch.Tensor, places: _Places | None) -> list[list[bytes]]:
    """What each row holds, with how much that is; between its first and its last token, where it has such places."""
    count = tensor.shape[0]
    shown = tensor.contiguous()
    array: Array = (shown.view(torch.int16) if shown.dtype == torch.bfloat16 else shown).numpy()
    held, size = array.tobytes(), array.nbytes // max(1, count)
    if places is None or tensor.shape[:2] != places.shape or not size:
        return [[b"%d:" % size] * count, [held[row * size : (row + 1) * size] for row in range(count)]]
    token, alike = size // array.shape[1], places.alike(array)
    starts = range(0, size * count, size)
    spans = zip(starts, places.starts, places.ends, strict=True)
    cut = [held[at + start * token : at + end * token] for at, start, end in spans]
    if alike is None:
        return _told(cut)
    return _told([own if same else held[at : at + size] for own, same, at in zip(cut, alike, starts, strict=True)])


def _told(parts: list[bytes]) -> list[list[bytes]]:
    """What each row holds, after how much it is."""
    return [[b"%d:" % len(part) for part in parts], parts]


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
