"""How the features of a row lie in a record: one run of bytes, with everything that is padding left out.

Shapes: B rows, L tokens of the longest row of a batch, n tokens of a row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from brewer_core.cache.format import CacheFormat, sizes_of_logits, whole
from brewer_core.cache.rows import Rows
from brewer_core.errors import AdaptorError
from brewer_core.features import Feature, Features, axes_of_rank

Read = Callable[[int, list[memoryview]], bool]
"""Reads the record of the i-th row of a batch into buffers, one after the other; False where it is lost."""

_MASKS = ("logits_mask", "inputs_mask")

_MASKED_BY = {"logits": "logits_mask", "logits_mask": "logits_mask"}
"""Which mask says that what stands in the padding is never read; `inputs_mask` for other features."""

_NOT_IN_NUMPY = (
    torch.bfloat16,
    torch.complex32,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
_SHOWN_AS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Piece:
    """One tensor of a row: its dtype, and its axes after B; None is the axis of the row's own tokens."""

    dtype: str
    dims: tuple[int | None, ...]

    @classmethod
    def of(cls, tensor: Tensor, by_token: Sequence[bool]) -> Piece:
        """That of a batch's tensor. by_token: of each axis after B, whether it is cut to the row's tokens."""
        dims = tuple(None if cut else int(n) for n, cut in zip(tensor.shape[1:], by_token, strict=True))
        return cls(str(tensor.dtype).removeprefix("torch."), dims)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def shape(self, tokens: int) -> tuple[int, ...]:
        """The shape of a row of so many tokens."""
        return tuple(tokens if n is None else n for n in self.dims)

    def size(self, tokens: int) -> int:
        """The bytes of a row of so many tokens."""
        return math.prod(self.shape(tokens)) * self.torch_dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether a row's tokens lie side by side in a padded batch."""
        return None not in self.dims[1:]


@dataclass(frozen=True)
class Kept:
    """One feature. pieces: of each layer or head; None where there is none to read."""

    name: str
    axes: str
    stated: bool
    pieces: tuple[Piece | None, ...]


@dataclass(frozen=True)
class Layout:
    """The features of a record, in order.

    padded_to: the lengths that the batch had, where some feature could not be cut to a row's tokens; else None.
    sizes: V of each head of the teacher's logits.
    """

    features: tuple[Kept, ...]
    padded_to: tuple[int, ...] | None = None
    sizes: tuple[int, ...] = ()

    @property
    def pieces(self) -> Iterator[Piece]:
        """All tensors of a record, in order."""
        return (piece for kept in self.features for piece in kept.pieces if piece is not None)

    def size(self, tokens: int) -> int:
        """The bytes of a record of so many tokens."""
        return sum(piece.size(tokens) for piece in self.pieces)

    def fits(self, lengths: tuple[int, ...]) -> bool:
        """Whether a record can stand in a batch of these lengths."""
        return self.padded_to in (None, lengths)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        features = [
            {
                "name": kept.name,
                "axes": kept.axes,
                "stated": kept.stated,
                "pieces": [None if p is None else {"dtype": p.dtype, "dims": list(p.dims)} for p in kept.pieces],
            }
            for kept in self.features
        ]
        padded_to = None if self.padded_to is None else list(self.padded_to)
        return {"features": features, "padded_to": padded_to, "sizes": list(self.sizes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Layout:
        """From what `to_json` gave."""
        features = tuple(
            Kept(
                each["name"],
                each["axes"],
                bool(each["stated"]),
                tuple(None if p is None else Piece(p["dtype"], tuple(p["dims"])) for p in each["pieces"]),
            )
            for each in value["features"]
        )
        padded_to = value["padded_to"]
        return cls(features, None if padded_to is None else tuple(padded_to), tuple(value["sizes"]))


def packed(given: Features, rows: Rows, form: CacheFormat) -> tuple[Layout, list[bytes]]:
    """How features lie in records in some form, and the record of each row.

    Raises AdaptorError for a feature that has not one entry a row.
    """
    for name in given:
        _check_by_row(name, given[name], len(rows))
    features = form.applied(given, rows)
    kept, tensors, bound = [], list[Tensor | None](), False
    for name in features:
        axes, stated = features.axes(name), features.stated(name)
        own: list[Tensor | None] = [
            None if t is None else _by_row(name, t.detach().cpu().resolve_conj(), len(rows)) for t in features[name]
        ]
        cut = stated and rows.length is not None and rows.alone and _padding_unread(name, features, rows)
        pieces = list[Piece | None]()
        for tensor in own:
            if tensor is None:
                pieces.append(None)
                continue
            own_axes = axes_of_rank(name, tensor.dim(), axes) if stated else None
            by_token = _cut_axes(tensor, own_axes, rows.length if cut else None)
            pieces.append(Piece.of(tensor, by_token))
            bound |= tensor.dim() > 1 if own_axes is None else sum(by_token) < own_axes.split().count("L")
        kept.append(Kept(name, axes, stated, tuple(pieces)))
        tensors += own
    layout = Layout(tuple(kept), rows.lengths if bound else None, sizes_of_logits(given))
    return layout, _records(layout, [t for t in tensors if t is not None], rows)


class Frame:
    """The padded tensors of a batch, which records of one layout are read into: at once where a row's bytes lie side by side.

    What stands in the padding is 0. pinned: they are to be copied to a GPU.
    """

    def __init__(self, layout: Layout, rows: Rows, pinned: bool = False) -> None:
        self._layout, self._rows = layout, rows
        self._length = rows.length or 0
        self._tensors = [
            torch.empty(len(rows), *piece.shape(self._length), dtype=piece.torch_dtype, pin_memory=pinned)
            for piece in layout.pieces
        ]
        self._targets = [_Target(piece, tensor) for piece, tensor in zip(layout.pieces, self._tensors, strict=True)]
        self._straight = all(target.contiguous for target in self._targets)

    def read(self, read: Read) -> list[int]:
        """Fill it, and the rows whose record is lost. read: gives the record of the i-th row."""
        rows, targets, lost = self._rows, self._targets, []
        spans = (
            zip(rows.starts, rows.ends, strict=True) if rows.length is not None else itertools.repeat((0, 0), len(rows))
        )
        for i, (start, end) in enumerate(spans):
            buffers = [target.buffer(i, start, end) for target in targets]
            if not read(i, buffers):
                lost.append(i)
            elif not self._straight:
                for target, buffer in zip(targets, buffers, strict=True):
                    target.place(i, start, end, buffer)
            if end - start < self._length:
                for target in targets:
                    target.pad(i, start, end)
        return lost

    @property
    def features(self) -> Features:
        """The features that were read."""
        tensors = iter(self._tensors)
        held = self._layout.features
        read = Features({kept.name: Feature(_with_gaps(kept, tensors), kept.axes, kept.stated) for kept in held})
        return whole(read, self._layout.sizes)


def _with_gaps(kept: Kept, tensors: Iterator[Tensor]) -> Any:
    """The tensors of a feature, and None where it has none."""
    return tuple(None if piece is None else next(tensors) for piece in kept.pieces)


class _Target:
    """One padded tensor of a frame. contiguous: whether a row's bytes lie side by side in it."""

    def __init__(self, piece: Piece, tensor: Tensor) -> None:
        self._piece, self._array, self.contiguous = piece, _as_array(tensor), piece.contiguous
        flat: Any = self._array.reshape(-1).view(numpy.uint8)
        self._bytes = memoryview(flat) if self._array.size else memoryview(bytearray())
        self._row_bytes = len(self._bytes) // max(1, tensor.shape[0])
        by_token = bool(piece.dims) and piece.dims[0] is None and tensor.shape[1] > 0
        self._token_bytes = self._row_bytes // tensor.shape[1] if by_token else 0

    def buffer(self, row: int, start: int, end: int) -> memoryview:
        """Where the record's piece of a row is to be read to."""
        if not self.contiguous:
            return memoryview(bytearray(self._piece.size(end - start)))
        at, token = row * self._row_bytes, self._token_bytes
        return self._bytes[at + start * token : at + end * token] if token else self._bytes[at : at + self._row_bytes]

    def place(self, row: int, start: int, end: int, buffer: memoryview) -> None:
        """Put what was read beside its place there."""
        if self.contiguous:
            return
        held = numpy.frombuffer(buffer, dtype=self._array.dtype).reshape(self._piece.shape(end - start))
        self._array[row][_cut(self._piece, start, end)] = held

    def pad(self, row: int, start: int, end: int) -> None:
        """Put zeros before and behind a row's tokens."""
        for axis, n in enumerate(self._piece.dims):
            if n is None:
                by_token = self._array[row].swapaxes(0, axis)
                by_token[:start] = 0
                by_token[end:] = 0


def _records(layout: Layout, tensors: Sequence[Tensor], rows: Rows) -> list[bytes]:
    arrays, pieces = [_as_array(tensor.contiguous()) for tensor in tensors], list(layout.pieces)
    made = []
    for i in range(len(rows)):
        start, end = (rows.starts[i], rows.ends[i]) if rows.length is not None else (0, 0)
        parts = [array[i][_cut(p, start, end)].tobytes() for p, array in zip(pieces, arrays, strict=True)]
        made.append(b"".join(parts))
    return made


def _cut(piece: Piece, start: int, end: int) -> tuple[slice, ...]:
    """The places of a row's tokens in each axis after B."""
    return tuple(slice(start, end) if n is None else slice(None) for n in piece.dims)


def _as_array(tensor: Tensor) -> numpy.ndarray[Any, Any]:
    """The same memory as an array; what numpy does not have, as bfloat16, is shown as integers."""
    shown = tensor.view(_SHOWN_AS[tensor.itemsize]) if tensor.dtype in _NOT_IN_NUMPY else tensor
    array: numpy.ndarray[Any, Any] = shown.numpy()
    return array


def _cut_axes(tensor: Tensor, axes: str | None, length: int | None) -> list[bool]:
    """Of each axis after B, whether it is cut to the row's tokens: those of length L. axes: None where they are not known."""
    if axes is None or length is None:
        return [False] * (tensor.dim() - 1)
    return [name == "L" and size == length for name, size in zip(axes.split()[1:], tensor.shape[1:], strict=True)]


def _padding_unread(name: str, features: Features, rows: Rows) -> bool:
    """Whether the adaptor's mask leaves out all that stands in the padding, so that nothing reads it."""
    masks = [
        mask for mask in features.get(_MASKED_BY.get(name.partition("/")[0], "inputs_mask"), ()) if mask is not None
    ]
    return bool(masks) and all(_within(mask, rows) for mask in masks)


def _within(mask: Tensor, rows: Rows) -> bool:
    if mask.dim() != 2 or tuple(mask.shape) != (len(rows), rows.length):
        return False
    places = torch.arange(rows.length or 0)
    starts, ends = torch.tensor(rows.starts), torch.tensor(rows.ends)
    inside = (places >= starts[:, None]) & (places < ends[:, None])
    return not bool((mask.detach().cpu().bool() & ~inside).any())


def _by_row(name: str, tensor: Tensor, count: int) -> Tensor:
    """A tensor; a mask as bool, and one of one row that stands for all of them, for each."""
    if name not in _MASKS or tensor.dim() != 2:
        return tensor
    return tensor.bool().expand(count, -1) if tensor.shape[0] == 1 else tensor.bool()


def _check_by_row(name: str, tensors: Sequence[Tensor | None], count: int) -> None:
    for tensor in tensors:
        for_all = name in _MASKS and tensor is not None and tensor.dim() == 2 and tensor.shape[0] == 1
        if tensor is not None and not for_all and (tensor.dim() == 0 or tensor.shape[0] != count):
            raise AdaptorError(
                f"the teacher's {name!r} of shape {tuple(tensor.shape)} has not one entry for each of {count} rows, so it cannot be "
                'kept by row; let the adaptor return it by row, or train with the cache "off".'
            )
