"""Files and folders written whole: drafted beside their place, flushed to the disk, and renamed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

REPLACED = ".replaced"
_CHUNK_BYTES = 1 << 20


def draft_of(target: Path) -> Path:
    """Where a file or folder is drafted: a hidden name beside it."""
    return target.with_name(f".{target.name}.partial")


def replaced_of(target: Path) -> Path:
    """Where a folder stands aside while the new one takes its place."""
    return target.with_name(target.name + REPLACED)


def findable(target: Path) -> Path:
    """A folder; the one that stands aside where a kill between two renames has left only that."""
    aside = replaced_of(target)
    return aside if aside.exists() and not target.exists() else target


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by way of a draft: at every instant the former one is there, or the new one, and neither in part.

    write: given the draft's path, writes the file. Where it raises, the draft is removed and the former file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    remove(draft)
    try:
        write(draft)
        flush(draft)
        os.replace(draft, path)
    except BaseException:
        _try_to_remove(draft)
        raise
    flush(path.parent)


@contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """A draft to write a folder in, which takes its place when the block ends; where the block raises, it is removed.

    At every instant `findable(target)` is the former folder, or the new one, and neither in part.
    """
    draft = draft_of(target)
    remove(draft)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            flush(path)
        _move_in(draft, target)
    except BaseException:
        _try_to_remove(draft)
        raise


def remove_whole(target: Path) -> None:
    """Remove a folder, and one that stands aside for it, so that a kill leaves a draft and no folder with files missing."""
    remove(draft_of(target))
    for path in (replaced_of(target), target):
        if path.exists():
            os.replace(path, draft_of(target))
            remove(draft_of(target))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk, where the system can be asked for it."""
    if path.is_dir() and os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Digest(Protocol):
    """A hash that is made piece by piece, of hashlib or a library like it."""

    def update(self, data: bytes, /) -> None:
        """Add a piece."""
        ...

    def hexdigest(self) -> str:
        """The hash of all pieces."""
        ...


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    return digest_of(path, hashlib.sha256())


def digest_of(path: Path, digest: Digest) -> str:
    """The hash of a file, read in pieces. digest: the one to make, with nothing in it yet."""
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def system_reason(error: BaseException) -> str | None:
    """What the system says is wrong, also where a library has put it in words of its own; None where it is another error."""
    code = error_code(error)
    return os.strerror(code).lower() if code else None


def error_code(error: BaseException | None) -> int | None:
    """The system's number for what went wrong: an error's own, that of one under it, or that in safetensors' words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        told = re.search(r"os error (\d+)", str(error))
        if told:
            return int(told.group(1))
        error = error.__cause__ or error.__context__
    return None


def _move_in(draft: Path, target: Path) -> None:
    aside = replaced_of(target)
    if target.exists():
        remove(aside)
        os.replace(target, aside)
    os.replace(draft, target)
    flush(target.parent)
    remove(aside)


def _try_to_remove(draft: Path) -> None:
    """Remove a draft while an error is on its way, which one of the removal must not hide."""
    try:
        remove(draft)
    except OSError:
        return
