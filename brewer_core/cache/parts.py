"""Parts of a cache: files of safetensors, each with the records of some rows, an index of them, and checksums of both.

A part holds `records` (bytes), `keys` [R, 16], `places` [R + 1] (where each record begins among the records), and `checksums` [R] (xxh3 of
each record). It is written whole and never changed. Records are read by `preadv`, not through a memory map: that is as
quick, counts as no memory of the process, and a file that was cut short is an answer and not the end of the process.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy
import xxhash

from brewer_core.cache.layout import Layout
from brewer_core.cache.rows import KEY_BYTES
from brewer_core.errors import DataError
from brewer_core.files import write_whole

SUFFIX = ".safetensors"
INDEX_BYTES = KEY_BYTES + 8 + 8
"""What a part holds of each row beside its record."""
_BUFFERS_AT_ONCE = 1024
"""IOV_MAX of Linux and macOS."""
_INDEX = ("keys", "places", "checksums")
_DTYPES = {"U8": numpy.uint8, "I64": numpy.int64, "U64": numpy.uint64}


@dataclass(frozen=True)
class Part:
    """A part on disk, with its index in memory and its records there.

    begins: the place of the first record in the file.
    """

    path: Path
    layout: Layout
    keys: numpy.ndarray[Any, Any]
    places: array[int]
    checksums: array[int]
    begins: int

    def __len__(self) -> int:
        return len(self.checksums)

    def read(self, files: OpenFiles, row: int, buffers: list[memoryview]) -> bool:
        """Read a record into buffers, one after the other; False where it is not what was written, by its checksum."""
        at = self.places[row]
        size = self.places[row + 1] - at
        try:
            got = files.read_into(self.path, self.begins + at, buffers)
        except OSError:
            return False
        if got != size or sum(map(len, buffers)) != size:
            return False
        return _checksum(buffers) == self.checksums[row]

    def record(self, files: OpenFiles, row: int) -> bytes | None:
        """A record; None where it is not what was written."""
        held = bytearray(self.places[row + 1] - self.places[row])
        return bytes(held) if self.read(files, row, [memoryview(held)]) else None


def write_part(path: Path, layout: Layout, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
    """Write a part whole."""
    from safetensors.numpy import save_file

    sizes = [len(record) for record in records]
    index: dict[str, numpy.ndarray[Any, Any]] = {
        "keys": numpy.frombuffer(b"".join(keys), numpy.uint8).reshape(len(keys), KEY_BYTES),
        "places": numpy.concatenate([[0], numpy.cumsum(sizes)]).astype(numpy.int64),
        "checksums": numpy.array([_checksum([memoryview(record)]) for record in records], numpy.uint64),
    }
    told = json.dumps(layout.to_json())
    tensors = {**index, "records": numpy.frombuffer(b"".join(records), numpy.uint8)}
    metadata = {"layout": told, "checksum": _index_checksum(told, index)}
    write_whole(path, lambda draft: save_file(tensors, draft, metadata=metadata))


def read_part(path: Path) -> Part:
    """The part in a file. Raises DataError where its index is not what was written."""
    try:
        return _read_part(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the index of this part of a teacher cache is damaged; its rows are computed again."
        ) from error


def _read_part(path: Path) -> Part:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size < path.stat().st_size:
            raise ValueError("no header")
        header = json.loads(file.read(size))
        index = {name: _held(file.fileno(), header[name], 8 + size) for name in _INDEX}
    metadata: Mapping[str, str] = header["__metadata__"]
    if metadata["checksum"] != _index_checksum(metadata["layout"], index):
        raise ValueError("checksum")
    begins, ends = header["records"]["data_offsets"]
    if ends - begins != int(index["places"][-1]):
        raise ValueError("records")
    layout, places = Layout.from_json(json.loads(metadata["layout"])), array("q", index["places"].tobytes())
    checksums = array("Q", index["checksums"].tobytes())
    return Part(path, layout, index["keys"], places, checksums, 8 + size + int(begins))


def _held(descriptor: int, described: Mapping[str, Any], offset: int) -> numpy.ndarray[Any, Any]:
    begins, ends = described["data_offsets"]
    held = os.pread(descriptor, ends - begins, offset + begins)
    flat: numpy.ndarray[Any, Any] = numpy.frombuffer(held, _DTYPES[described["dtype"]])
    shaped: numpy.ndarray[Any, Any] = flat.reshape(described["shape"])
    return shaped


def _checksum(buffers: Sequence[memoryview]) -> int:
    if len(buffers) == 1:
        return xxhash.xxh3_64_intdigest(buffers[0])
    digest = xxhash.xxh3_64()
    for buffer in buffers:
        digest.update(buffer)
    return digest.intdigest()


def _index_checksum(layout: str, index: Mapping[str, numpy.ndarray[Any, Any]]) -> str:
    digest = xxhash.xxh3_128(layout.encode())
    for name in _INDEX:
        digest.update(numpy.ascontiguousarray(index[name]).tobytes())
    return digest.hexdigest()


def _read_into(descriptor: int, buffers: list[memoryview], at: int) -> int:
    """Fill buffers; the system takes so many at once, and may fill them in part."""
    got, rest = 0, buffers
    while rest:
        some = os.preadv(descriptor, rest[:_BUFFERS_AT_ONCE], at + got)
        got += some
        rest = _unfilled(rest, some)
        if not some and any(rest):
            break
    return got


def _unfilled(buffers: list[memoryview], filled: int) -> list[memoryview]:
    """What is left of buffers after so many bytes."""
    for i, buffer in enumerate(buffers):
        if filled < len(buffer):
            return [buffer[filled:], *buffers[i + 1 :]]
        filled -= len(buffer)
    return []


class OpenFiles:
    """Files that are read again and again, the latest opened of which stay open."""

    _AT_ONCE = 256

    def __init__(self) -> None:
        self._open: OrderedDict[Path, FileIO] = OrderedDict()

    def read_into(self, path: Path, at: int, buffers: list[memoryview]) -> int:
        """Fill buffers from a place in a file; how many bytes there were."""
        file = self._open.get(path)
        if file is None:
            if len(self._open) >= self._AT_ONCE:
                self._open.popitem(last=False)[1].close()
            file = self._open[path] = FileIO(path)
        if hasattr(os, "preadv"):
            return _read_into(file.fileno(), buffers, at)
        file.seek(at)
        return sum(file.readinto(buffer) or 0 for buffer in buffers)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close them all."""
        while self._open:
            self._open.popitem()[1].close()
