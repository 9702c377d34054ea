"""One cache on disk: the records of rows for one teacher, asked for the same features in the same format.

A folder holds `about.json`, which says what is in it, `parts/`, and `lock`, which one builder at a time has. Readers need no lock: a part
is written whole and never changed.
"""

from __future__ import annotations

import math
import secrets
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout

from brewer_core.cache.about import ABOUT, mark_used, write_about
from brewer_core.cache.index import Index
from brewer_core.cache.layout import Frame, Layout
from brewer_core.cache.parts import SUFFIX, OpenFiles, Part, read_part, write_part
from brewer_core.cache.rows import Rows
from brewer_core.errors import DataError
from brewer_core.features import Features
from brewer_core.files import system_reason

PARTS, LOCK = "parts", "lock"
PART_BYTES = 32 << 20
WAIT_S, POLL_S = 0.3, 0.02
"""How long a lock that is held is tried again: its holder may be another that only looks whether it is held."""


@dataclass
class _Pending:
    """Records that are not on disk yet, all of one layout."""

    layout: Layout
    keys: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    size_bytes: int = 0

    def read(self, files: OpenFiles, row: int, buffers: list[memoryview]) -> bool:
        """Copy a record into buffers, one after the other."""
        del files
        return copied(self.records[row], buffers)

    def record(self, files: OpenFiles, row: int) -> bytes:
        """A record."""
        del files
        return self.records[row]


class Store:
    """The records of one cache. Nothing is written, and no folder made, before the first record is kept.

    about: what `about.json` says of the cache. limit_bytes: the folder grows no further; None for no limit.
    builder: the number of the process among several that build together; each writes parts of its own. shares_lock: another of
    them has the lock for all.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        *,
        limit_bytes: int | None = None,
        builder: int = 0,
        shares_lock: bool = False,
    ) -> None:
        self.folder = folder
        self.about = dict(about)
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self.damaged = 0
        self._builder, self._lock = builder, None if shares_lock else FileLock(folder / LOCK, is_singleton=True)
        self._builds = False
        self._index, self._files = Index(), OpenFiles()
        self._parts: list[Part] = []
        self._known: set[str] = set()
        self._first: list[int] = []
        self._pending: _Pending | None = None
        self._unflushed: dict[bytes, int] = {}
        self._bound = False  # whether some records hold for batches of certain lengths alone
        self._closed_to: str | None = None
        self.refresh()
        mark_used(folder, self.about)

    def __len__(self) -> int:
        return len(self._index) + len(self._unflushed)

    @property
    def keeps_no_more(self) -> str | None:
        """Why nothing more is kept: another builder, the limit, the disk; None while it is."""
        return self._closed_to

    def refresh(self) -> None:
        """See the parts that other processes have written since. Warns of one that is damaged, whose rows count as missing."""
        new = list[Path]()
        with suppress(OSError):  # there is no such folder, or none that may be read
            new = sorted(p for p in (self.folder / PARTS).glob(f"*{SUFFIX}") if p.name not in self._known)
        for path in new:
            self._known.add(path.name)
            try:
                self._take(read_part(path))
            except DataError as error:
                self.damaged += 1
                warnings.warn(str(error), stacklevel=2)

    def find(self, rows: Rows) -> list[int | None]:
        """The number of each row's record, which holds until the next one is kept; None where it is not here, or does not fit the batch."""
        found = self._numbers(rows.keys)
        if self._bound and None in found:
            at_lengths = self._numbers([_at_lengths(key, rows.lengths) for key in rows.keys])
            found = [other if own is None else own for own, other in zip(found, at_lengths, strict=True)]
        return [None if n is None or not self._layout_of(n).fits(rows.lengths) else n for n in found]

    def _numbers(self, keys: Sequence[bytes]) -> list[int | None]:
        found, kept = self._index.find(keys), self._unflushed
        return [-1 - kept[key] if key in kept else n for key, n in zip(keys, found, strict=True)] if kept else found

    def read(self, rows: Rows, numbers: Sequence[int], pinned: bool = False) -> Features | None:
        """The features of a batch from the records of its rows; None where one is lost, or they cannot stand in one batch.

        pinned: they are to be copied to a GPU.
        """
        places = [self._place(number) for number in numbers]
        layout = places[0][0].layout
        if any(held.layout is not layout for held, _ in places):
            return None
        frame, files = Frame(layout, rows, pinned), self._files

        def read(row: int, buffers: list[memoryview]) -> bool:
            held, at = places[row]
            return held.read(files, at, buffers)

        lost = frame.read(read)
        for row in lost:
            self._lose(numbers[row])
        return None if lost else frame.features

    def record(self, number: int, layout: Layout) -> bytes | None:
        """The record of a number, where it is of this layout."""
        held, at = self._place(number)
        if held.layout != layout:
            return None
        record = held.record(self._files, at)
        if record is None:
            self._lose(number)
        return record

    def keep(self, layout: Layout, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Keep records, unless another builder has the lock, or the limit is reached; each key once."""
        if self._closed_to is not None or not self._has_lock():
            return
        if self._pending is not None and self._pending.layout != layout:
            self.flush()
        known = next((each.layout for each in reversed(self._parts) if each.layout == layout), layout)
        pending = self._pending = self._pending or _Pending(known)
        bound_to = layout.padded_to
        self._bound |= bound_to is not None
        stored = keys if bound_to is None else [_at_lengths(key, bound_to) for key in keys]
        for key, record in zip(stored, records, strict=True):
            if key in self._unflushed:
                continue
            if self.limit_bytes is not None and self.size_bytes + pending.size_bytes + len(record) > self.limit_bytes:
                self._close_to(f"it has reached its limit of {readable(self.limit_bytes)}")
                break
            self._unflushed[key] = len(pending.records)
            pending.keys.append(key)
            pending.records.append(record)
            pending.size_bytes += len(record)
        if pending.size_bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Have all that was kept on the disk. Where it cannot be written, warn, and keep no more."""
        pending = self._pending
        if pending is None or not pending.keys:
            return
        path = (
            self.folder / PARTS / f"{self._next():06d}-{self._builder}-{secrets.token_hex(4)}{SUFFIX}"
        )  # no other's name
        try:
            if self._lock is not None and not (self.folder / ABOUT).exists():  # one of those that build together
                write_about(self.folder, self.about)
            write_part(path, pending.layout, pending.keys, pending.records)
        except Exception as error:  # safetensors raises an error of its own
            reason = system_reason(error)
            if reason is None:
                raise
            self._close_to(f"{path.parent} cannot be written: {reason}")
        else:
            self._known.add(path.name)
            self._take(read_part(path))
        self._pending, self._unflushed = None, {}

    def close(self) -> None:
        """Flush, and let others build."""
        self.flush()
        self._files.close()
        if self._lock is not None and self._builds:
            self._lock.release()
            self._builds = False

    def reserve(self) -> bool:
        """Have the lock before there is anything to keep; False where another builder has it. Raises OSError."""
        if self._lock is None or self._builds:
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=WAIT_S, poll_interval=POLL_S)
        except Timeout:
            return False
        self._builds = True
        return True

    def _has_lock(self) -> bool:
        try:
            if self.reserve():
                return True
            self._close_to("another process is building it")
        except OSError as error:
            self._close_to(f"{self.folder} cannot be written: {system_reason(error) or error}")
        return False

    def _close_to(self, reason: str) -> None:
        self._closed_to = reason
        warnings.warn(
            f"the teacher cache in {self.folder} keeps no more rows, as {reason}; those that are not in it are computed each time.",
            stacklevel=2,
        )

    def _take(self, part: Part) -> None:
        known = next((each.layout for each in reversed(self._parts) if each.layout == part.layout), part.layout)
        part = replace(part, layout=known)  # the same object, so that equal ones are known at once
        first = self._first[-1] + len(self._parts[-1]) if self._parts else 0
        self._parts.append(part)
        self._bound |= part.layout.padded_to is not None
        self._first.append(first)
        self._index.add(part.keys, first)
        with suppress(OSError):
            self.size_bytes += part.path.stat().st_size

    def _next(self) -> int:
        numbers = (name.partition("-")[0] for name in self._known)
        return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)  # another's file has none

    def _place(self, number: int) -> tuple[Part | _Pending, int]:
        """What holds a record, and where in it; numbers below 0 are of those that are not on disk yet."""
        if number < 0:
            assert self._pending is not None
            return self._pending, -1 - number
        at = bisect_right(self._first, number) - 1
        return self._parts[at], number - self._first[at]

    def _layout_of(self, number: int) -> Layout:
        return self._place(number)[0].layout

    def _lose(self, number: int) -> None:
        held, at = self._place(number)
        self._index.forget(bytes(held.keys[at]))
        self.damaged += 1
        if self.damaged == 1:
            warnings.warn(
                f"the teacher cache in {self.folder} is damaged; its rows are checked as they are read, and those that are not what was "
                "written are computed again. `brewer cache verify` tells how many.",
                stacklevel=2,
            )


def _at_lengths(key: bytes, lengths: Sequence[int]) -> bytes:
    """The key of a record that holds for batches of these lengths alone: a row may have one for each."""
    return xxhash.xxh3_128_digest(key + repr(tuple(lengths)).encode())


def readable(size_bytes: float) -> str:
    """A size as people write it: `12.5 MB`."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(1, size_bytes)) // 3))
    return f"{size_bytes / 1000**power:.3g} {units[power]}"


def copied(record: bytes, buffers: list[memoryview]) -> bool:
    """Fill buffers with a record, one after the other; False where it is of another size."""
    at = 0
    for buffer in buffers:
        if at + len(buffer) > len(record):
            return False
        buffer[:] = record[at : at + len(buffer)]
        at += len(buffer)
    return at == len(record)
