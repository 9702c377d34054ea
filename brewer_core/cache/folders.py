"""The caches that lie in a folder: what they are of, how large, whether they are whole, and how they go."""

from __future__ import annotations

import json
import secrets
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
from filelock import FileLock, Timeout

from brewer_core.cache.about import ABOUT, read_about
from brewer_core.cache.index import Index
from brewer_core.cache.layout import Layout
from brewer_core.cache.parts import SUFFIX, OpenFiles, Part, read_part, write_part
from brewer_core.cache.store import LOCK, PARTS, POLL_S, WAIT_S
from brewer_core.cache.teacher import TEACHERS
from brewer_core.errors import DataError, RequestError, SaveError
from brewer_core.files import remove, remove_whole, system_reason

FIDELITY = "fidelity.json"
FIGURES = "figures"
"""The folder of what was measured of teachers, inside a folder of caches."""
SHOWN_DIGITS = 12
"""How much of an id people are shown; it may be given back like that."""


@dataclass(frozen=True)
class Entry:
    """A cache of one teacher.

    about: what it says of itself; empty where that is damaged. rows: those that have a record in a part that can be read.
    building: whether a process is adding to it now. problems: what is damaged, as far as that is seen without reading records.
    """

    folder: Path
    about: Mapping[str, Any]
    parts: int
    rows: int
    size_bytes: int
    used: datetime
    building: bool
    problems: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name of its folder, 32 digits."""
        return self.folder.name

    @property
    def state(self) -> str:
        """In a word."""
        if self.building:
            return "building"
        return "damaged" if self.problems else "whole" if self.parts else "empty"


@dataclass(frozen=True)
class Laid:
    """Records of one layout. size_bytes: of the records; by_feature: of each feature."""

    layout: Layout
    rows: int
    size_bytes: int
    by_feature: Mapping[str, int]


@dataclass(frozen=True)
class Verified:
    """What reading a cache against its checksums has brought.

    rows: those with a record, by their latest. whole, damaged: of these. unreadable: parts whose index is damaged, so that nobody
    can tell which rows they have. drafts: what writers left that were killed. about: whether it says right what it is of.
    """

    rows: int
    damaged: int
    unreadable: tuple[str, ...]
    drafts: tuple[str, ...]
    about: bool

    @property
    def whole(self) -> int:
        """Rows whose record is what was written."""
        return self.rows - self.damaged

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged; drafts are not in the way."""
        return self.about and not self.damaged and not self.unreadable


def entries(root: Path) -> list[Entry]:
    """All teacher caches in a folder of caches, what was used last first."""
    return sorted(map(entry_in, folders_in(root)), key=lambda entry: entry.used, reverse=True)


def folders_in(root: Path) -> list[Path]:
    """The folders of all teacher caches in a folder of caches, by their ids."""
    folder = root / TEACHERS
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and not path.name.startswith("."))


def entry_in(folder: Path) -> Entry:
    """The cache in a folder."""
    parts, index, count = _part_files(folder), Index(), 0
    about, problems = _about(folder)
    for path in parts:
        try:
            part = read_part(path)
            index.add(part.keys, count)
            count += len(part)
        except DataError as error:
            problems.append(str(error))
    size_bytes, used = _size_and_use(folder)
    return Entry(folder, about, len(parts), len(index), size_bytes, used, is_building(folder), tuple(problems))


def chosen_id(given: str, ids: Sequence[str], root: Path) -> str:
    """The id that begins with what is given. Raises RequestError where none does, or several do."""
    found = [each for each in ids if each.startswith(given)]
    if len(found) == 1 or given in found:
        return given if given in found else found[0]
    if not found:
        raise RequestError(f"{root} has no cache whose id begins with {given!r}; `brewer cache ls` lists them.")
    shown = ", ".join(each[: max(SHOWN_DIGITS, len(given) + 1)] for each in found)
    raise RequestError(f"{given!r} begins the ids of {len(found)} caches, {shown}; give more digits.")


def laid_out(entry: Entry) -> list[Laid]:
    """How records lie in a cache, for each of its layouts."""
    rows, sizes, features = Counter[Layout](), Counter[Layout](), dict[Layout, Counter[str]]()
    for part in filter(None, map(_part, _part_files(entry.folder))):
        rows[part.layout] += len(part)
        sizes[part.layout] += int(part.places[-1])
        features.setdefault(part.layout, Counter()).update(_feature_bytes(part))
    return [Laid(layout, rows[layout], sizes[layout], features[layout]) for layout in rows]


def verify(entry: Entry) -> Verified:
    """Read all of a cache against its checksums, a record at a time. The index of its keys is in memory, 24 bytes a row."""
    index, unreadable, lost, count = Index(), list[str](), list[tuple[bytes, int]](), 0
    for path in _part_files(entry.folder):
        part = _part(path)
        if part is None:
            unreadable.append(path.name)
            continue
        index.add(part.keys, count)
        lost += [(part.keys[row].tobytes(), count + row) for row in _damaged_rows(part)]
        count += len(part)
    latest = index.find([key for key, _ in lost]) if lost else []
    damaged = sum(number == own for number, (_, own) in zip(latest, lost, strict=True))
    drafts = () if is_building(entry.folder) else tuple(path.name for path in _drafts(entry.folder))
    return Verified(len(index), damaged, tuple(unreadable), drafts, not _about(entry.folder)[1])


def repair(entry: Entry) -> None:
    """Remove what is damaged: parts that cannot be read, records that are not what was written, and drafts.

    A run that is reading meanwhile computes what it no longer finds. Raises RequestError while the cache is being built,
    SaveError where the folder cannot be written.
    """
    with _alone(entry):
        for path in _drafts(entry.folder):
            remove(path)
        for path in _part_files(entry.folder):
            part = _part(path)
            damaged = None if part is None else _damaged_rows(part)
            if part is not None and damaged and len(damaged) < len(part):
                _write_without(part, frozenset(damaged))
            if damaged is None or damaged:
                remove(path)


def remove_entry(entry: Entry) -> None:
    """Remove a cache. Raises RequestError while it is being built, SaveError where the folder cannot be written."""
    with _alone(entry):
        remove_whole(entry.folder)


def is_building(folder: Path) -> bool:
    """Whether a process has the lock of a cache; not where that cannot be told."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def fidelity_of(entry: Entry) -> Mapping[str, Any] | None:
    """What was last measured between the cache and its teacher; None where nothing was."""
    with suppress(OSError, ValueError):
        measured: Mapping[str, Any] = json.loads((entry.folder / FIDELITY).read_text(encoding="utf-8"))
        return measured
    return None


@contextmanager
def _alone(entry: Entry) -> Iterator[None]:
    """With the lock of a cache, which nobody adds to meanwhile."""
    lock = FileLock(entry.folder / LOCK)
    try:
        with lock.acquire(timeout=WAIT_S, poll_interval=POLL_S):
            yield
    except Timeout as error:
        raise RequestError(
            f"the cache {entry.id[:SHOWN_DIGITS]} is being built now; wait until that is done, or stop it, and ask again."
        ) from error
    except OSError as error:
        raise SaveError(f"{entry.folder} cannot be changed: {system_reason(error) or error}.") from error


def _part_files(folder: Path) -> list[Path]:
    """The parts of a cache, in the order in which later ones take the place of earlier ones."""
    return sorted(path for path in (folder / PARTS).glob(f"*{SUFFIX}") if not path.name.startswith("."))


def _drafts(folder: Path) -> list[Path]:
    """Files that were being written when their writer was killed."""
    return sorted(path for each in (folder, folder / PARTS) for path in each.glob(".*.partial"))


def _part(path: Path) -> Part | None:
    try:
        return read_part(path)
    except DataError:
        return None


def _damaged_rows(part: Part) -> list[int]:
    """The rows whose record is not what was written."""
    files = OpenFiles()
    try:
        return [row for row in range(len(part)) if part.record(files, row) is None]
    finally:
        files.close()


def _write_without(part: Part, damaged: frozenset[int]) -> None:
    """Write the other records of a part, under a name of its own, which sorts as the part's does."""
    kept, files = [row for row in range(len(part)) if row not in damaged], OpenFiles()
    try:
        records = [part.record(files, row) or b"" for row in kept]
    finally:
        files.close()
    name = f"{part.path.stem.rpartition('-')[0]}-{secrets.token_hex(4)}{SUFFIX}"
    write_part(part.path.with_name(name), part.layout, [part.keys[row].tobytes() for row in kept], records)


def _feature_bytes(part: Part) -> Counter[str]:
    """What each feature takes in the records of a part, whose sizes tell their tokens."""
    taken, layout = Counter[str](), part.layout
    for size, rows in Counter(numpy.diff(part.places).tolist()).items():
        tokens = bisect_left(range(size + 1), size, key=layout.size)  # no token takes less than a byte
        for kept in layout.features:
            taken[kept.name] += rows * sum(piece.size(tokens) for piece in kept.pieces if piece is not None)
    return taken


def _size_and_use(folder: Path) -> tuple[int, datetime]:
    """What all files of a cache take, and when it was last used; where it does not say, when it was last written."""
    size_bytes, latest, used = 0, 0.0, None
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.stat()
            size_bytes += status.st_size if path.is_file() else 0
            latest = max(latest, status.st_mtime)
            used = status.st_mtime if path == folder / ABOUT else used
    return size_bytes, datetime.fromtimestamp(latest if used is None else used, timezone.utc)


def _about(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a cache says of itself, and what is wrong with that; nothing is where nothing was kept yet."""
    try:
        return read_about(folder), []
    except DataError as error:
        begun = bool(_part_files(folder)) or (folder / ABOUT).exists()
        return {}, [str(error)] if begun else []
