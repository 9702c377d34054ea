"""Ways to keep features on disk and read them into padded batches, beside a plain copy of as many bytes in memory.

Shapes: B rows, L tokens of the longest row of a batch, N rows in all, T tokens of all rows, n tokens of a row, D numbers of a token; for
logits each row counts as one token.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from bench.loops import Data
from bench.work import Work
from brewer_core.cache import CachedTeacher
from brewer_core.cache.rows import Rows
from brewer_core.features import Features

PASSES = 5


@dataclass(frozen=True)
class Case:
    """What is kept of each row. by_token: D numbers for each of its tokens, else for the row."""

    name: str
    numbers: int
    by_token: bool

    @property
    def feature(self) -> str:
        return "hidden" if self.by_token else "logits"


CASES = (Case("hidden states, 768 wide", 768, True), Case("logits of 8 classes", 8, False))


@dataclass(frozen=True)
class Kept:
    """The features of all rows in memory, and the batches in which they are to be read.

    values: [T, D]. offsets: [N + 1], where each row begins among the tokens.
    """

    case: Case
    values: Tensor
    offsets: list[int]
    batches: Sequence[tuple[list[int], dict[str, Tensor]]]

    def of(self, row: int) -> Tensor:
        """[n, D]."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def framed(self, numbers: Sequence[int], read: Callable[[int], Tensor]) -> Tensor:
        """Rows in a padded batch: [B, L, D], or [B, D] where there is nothing by token. read: gives the n tokens of a row."""
        offsets, width = self.offsets, self.values.shape[1]
        if not self.case.by_token:
            return torch.cat([read(row) for row in numbers])
        lengths = [offsets[row + 1] - offsets[row] for row in numbers]
        batch = torch.empty(len(numbers), max(lengths), width)
        for i, (row, n) in enumerate(zip(numbers, lengths, strict=True)):
            batch[i, :n] = read(row)
            batch[i, n:] = 0
        return batch


class Way:
    """A way to keep rows in a folder. write: all rows. reader: what gives the padded features of a batch, each pass anew."""

    def write(self, kept: Kept, folder: Path) -> None:
        raise NotImplementedError

    def reader(self, kept: Kept, folder: Path) -> Callable[[int], Tensor]:
        raise NotImplementedError


class BrewerCache(Way):
    """`CachedTeacher`. Its rows are looked up and their layout told while they are read; their keys are known."""

    def write(self, kept: Kept, folder: Path) -> None:
        with CachedTeacher(_Said(kept), "row", folder=folder) as teacher:
            for _, batch in kept.batches:
                teacher.features(batch, _needs(kept.case))

    def reader(self, kept: Kept, folder: Path) -> Callable[[int], Tensor]:
        teacher, needs = CachedTeacher(_Unasked(), "row", folder=folder), _needs(kept.case)
        rows: list[Rows] = [teacher.rows(batch) for _, batch in kept.batches]

        def read(i: int) -> Tensor:
            tensor: Tensor = teacher.features(kept.batches[i][1], needs, rows[i])[kept.case.feature][0]
            return tensor

        return read


class ArrowFile(Way):
    """An Arrow IPC file mapped into memory, a list of numbers in each row; slices without a copy go into the batch."""

    def write(self, kept: Kept, folder: Path) -> None:
        import pyarrow
        from pyarrow import ipc

        width = kept.values.shape[1]
        offsets = pyarrow.array([width * at for at in kept.offsets], pyarrow.int64())
        column = pyarrow.LargeListArray.from_arrays(offsets, pyarrow.array(kept.values.numpy().reshape(-1)))
        table = pyarrow.table({"values": column})
        with (folder / "rows.arrow").open("wb") as file, ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        _flush(folder / "rows.arrow")

    def reader(self, kept: Kept, folder: Path) -> Callable[[int], Tensor]:
        import pyarrow
        from pyarrow import ipc

        chunks = ipc.open_file(pyarrow.memory_map(str(folder / "rows.arrow"))).read_all().column("values").chunks
        width = kept.values.shape[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would have it written to, and nobody does
            values = [torch.from_numpy(chunk.values.to_numpy()).view(-1, width) for chunk in chunks]
        offsets = [(chunk.offsets.to_numpy() // width).tolist() for chunk in chunks]

        def row(number: int) -> Tensor:
            chunk, at = divmod(number, 1000)
            return values[chunk][offsets[chunk][at] : offsets[chunk][at + 1]]

        return lambda i: kept.framed(kept.batches[i][0], row)


class SafetensorsSlices(Way):
    """One tensor of all tokens in a safetensors file; `get_slice` for each row."""

    def write(self, kept: Kept, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({"values": kept.values, "offsets": torch.tensor(kept.offsets)}, folder / "rows.safetensors")
        _flush(folder / "rows.safetensors")

    def reader(self, kept: Kept, folder: Path) -> Callable[[int], Tensor]:
        from safetensors import safe_open

        with safe_open(folder / "rows.safetensors", "pt") as file:
            values, offsets = file.get_slice("values"), file.get_tensor("offsets").tolist()
        return lambda i: kept.framed(kept.batches[i][0], lambda row: values[offsets[row] : offsets[row + 1]])


class SafetensorsMapped(SafetensorsSlices):
    """The same file mapped into memory by `load_file`; slices without a copy go into the batch."""

    def reader(self, kept: Kept, folder: Path) -> Callable[[int], Tensor]:
        from safetensors.torch import load_file

        held = load_file(folder / "rows.safetensors")
        values, offsets = held["values"], held["offsets"].tolist()
        return lambda i: kept.framed(kept.batches[i][0], lambda row: values[offsets[row] : offsets[row + 1]])


class FileOfARow(Way):
    """A file for each row by `torch.save`, read by `torch.load`, as other tools do."""

    def write(self, kept: Kept, folder: Path) -> None:
        for row in range(len(kept.offsets) - 1):
            torch.save(kept.of(row).clone(), folder / f"{row}.pt")

    def reader(self, kept: Kept, folder: Path) -> Callable[[int], Tensor]:
        def row(number: int) -> Tensor:
            held: Tensor = torch.load(folder / f"{number}.pt", weights_only=True)
            return held

        return lambda i: kept.framed(kept.batches[i][0], row)


WAYS: Mapping[str, Way] = {
    "brewer's cache": BrewerCache(),
    "Arrow, mapped": ArrowFile(),
    "safetensors, mapped": SafetensorsMapped(),
    "safetensors, sliced": SafetensorsSlices(),
    "a file for each row": FileOfARow(),
}


def measure(work: dict[str, Any]) -> list[dict[str, Any]]:
    """Each way for each case: seconds to write and to read all rows once, in batches of the work."""
    asked = Work.from_json(work)
    with tempfile.TemporaryDirectory(dir=asked.setup.folder) as folder:
        return [each for case in CASES for each in _measured(_kept(case, asked), Path(folder) / case.feature)]


def _measured(kept: Kept, folder: Path) -> Iterator[dict[str, Any]]:
    width, order = 4 * kept.values.shape[1], range(len(kept.batches))
    sizes = [width * sum(kept.offsets[r + 1] - kept.offsets[r] for r in numbers) for numbers, _ in kept.batches]
    source = torch.ones(sum(sizes), dtype=torch.uint8)
    places = numpy.cumsum([0, *sizes]).tolist()
    common = {"case": kept.case.name, "rows": len(kept.offsets) - 1, "bytes": sum(sizes)}
    copying = _passes(lambda i: source[places[i] : places[i + 1]].clone(), order)
    yield {**common, "way": "a copy in memory", "read_s": statistics.median(copying)}
    for name, way in WAYS.items():
        own = folder / type(way).__name__
        own.mkdir(parents=True)
        started = time.perf_counter()
        way.write(kept, own)
        written = time.perf_counter() - started
        read = way.reader(kept, own)
        first, *later = _passes(read, order)
        for i in order:
            if not torch.equal(read(i), kept.framed(kept.batches[i][0], kept.of)):
                raise SystemExit(f"{name}: batch {i} is not what was written.")
        yield {
            **common,
            "way": name,
            "write_s": written,
            "first_read_s": first,
            "read_s": statistics.median(later),
            "disk_bytes": sum(512 * file.stat().st_blocks for file in own.rglob("*") if file.is_file()),
        }


def _passes(read: Callable[[int], Tensor], order: Sequence[int]) -> list[float]:
    seconds = []
    for _ in range(1 + PASSES):
        started = time.perf_counter()
        for i in order:
            read(i)
        seconds.append(time.perf_counter() - started)
    return seconds


def _kept(case: Case, work: Work) -> Kept:
    data = Data(work)
    lengths = data.lengths if case.by_token else [1] * len(data.lengths)
    torch.manual_seed(0)
    offsets = numpy.cumsum([0, *lengths]).tolist()
    # rows that hold the same text are two here, with numbers of their own
    batches = [(numbers, {**batch, "row": torch.tensor(numbers)}) for numbers, batch in data.batches(1)]
    return Kept(case, torch.randn(offsets[-1], case.numbers), offsets, batches)


def _needs(case: Case) -> frozenset[str]:
    return frozenset({case.feature})


class _Said:
    """A teacher whose answers are there."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._answers = iter(kept.batches)

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        numbers, _ = next(self._answers)
        case = self._kept.case
        values = self._kept.framed(numbers, self._kept.of)
        masked = {"inputs_mask": batch["attention_mask"]}
        return Features.of({case.feature: (values,) if case.by_token else values, **masked})

    def identity(self) -> str:
        return "said"

    def described(self) -> Mapping[str, Any]:
        return {}


class _Unasked(_Said):
    """The same, where all of it is in the cache."""

    def __init__(self) -> None:
        pass

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        raise SystemExit("a row that was kept is not found.")


def _flush(path: Path) -> None:
    """Have a file on the disk, as brewer's parts are when they are written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
