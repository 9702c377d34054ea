"""Where the record of each key is: which part, and which row of it. 24 bytes a row, and no object for any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]

_RECENT = 20_000
"""How many rows are looked up one by one before they are sorted in with the rest."""


class Index:
    """Numbers by keys of 16 bytes, -1 where one was forgotten. What is added later takes the place of what has the same key."""

    def __init__(self) -> None:
        self._keys: Array = numpy.empty((0, 2), numpy.uint64)  # sorted by the first half
        self._numbers: Array = numpy.empty(0, numpy.int64)
        self._recent: dict[bytes, int] = {}
        self._alike = 1

    def __len__(self) -> int:
        self._sort_in()
        return int((self._numbers >= 0).sum())

    def add(self, keys: Array, first: int) -> None:
        """Add keys, [R, 16] bytes, under the numbers from `first` on."""
        if len(keys) > _RECENT:
            self._sort_in()
            self._merge(_halves(keys), numpy.arange(first, first + len(keys)))
            return
        held = keys.tobytes()
        self._recent |= {held[16 * i : 16 * i + 16]: first + i for i in range(len(keys))}
        if len(self._recent) > _RECENT:
            self._sort_in()

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        """The number of each key; None where it has none."""
        at, sorted_in = self._places(keys), numpy.full(len(keys), -1)
        sorted_in[at >= 0] = self._numbers[at[at >= 0]]
        return [self._recent.get(key, None if n < 0 else n) for key, n in zip(keys, sorted_in.tolist(), strict=True)]

    def forget(self, key: bytes) -> None:
        """Have no number for a key."""
        self._recent.pop(key, None)
        (at,) = self._places([key])
        if at >= 0:
            self._numbers[at] = -1

    def _places(self, keys: Sequence[bytes]) -> Array:
        """Where each key stands among those that are sorted in; -1 where it does not."""
        wanted = numpy.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        at = numpy.searchsorted(self._keys[:, 0], wanted[:, 0])
        found = numpy.full(len(keys), -1)
        for _ in range(self._alike):  # keys of which the first halves are equal stand side by side
            within = at < len(self._keys)
            same = within.copy()
            same[within] = (self._keys[at[within]] == wanted[within]).all(1)
            found[same] = at[same]
            at = at + 1
        return found

    def _sort_in(self) -> None:
        if self._recent:
            held = numpy.frombuffer(b"".join(self._recent), numpy.uint8).reshape(-1, 16)
            numbers = numpy.fromiter(self._recent.values(), numpy.int64, len(self._recent))
            self._recent = {}
            self._merge(_halves(held), numbers)

    def _merge(self, keys: Array, numbers: Array) -> None:
        every, at = numpy.concatenate([self._keys, keys]), numpy.concatenate([self._numbers, numbers])
        order = numpy.lexsort((at, every[:, 1], every[:, 0]))
        every, at = every[order], at[order]
        latest = numpy.append((every[1:] != every[:-1]).any(1), True)  # of equal keys the one with the largest number
        self._keys, self._numbers = every[latest], at[latest]
        repeated = self._keys[1:, 0] == self._keys[:-1, 0]
        self._alike = 1 + (_longest_run(repeated) if repeated.any() else 0)


def _halves(keys: Array) -> Array:
    return numpy.ascontiguousarray(keys).view("<u8").reshape(-1, 2)


def _longest_run(marks: Array) -> int:
    """The most marks in a row."""
    ends = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], marks.astype(int), [0]])))
    return int((ends[1::2] - ends[::2]).max())
