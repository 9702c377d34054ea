"""From rows as numbers to padded batches, in orders that the seed and the number of the pass give alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from brewer_core.batches import Filler
from brewer_core.processes import Processes
from brewer_core.run.collating import Collate, Item, RowView

T = TypeVar("T")
_MEGABATCH = 50
AHEAD = "brewer-batches"
"""What the threads are called that prepare batches."""


class Tokenized(Protocol):
    """What a loader needs: a `TextDataset`, or several in one."""

    collate: Collate

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Item: ...


@runtime_checkable
class Viewed(Protocol):
    """A data set whose rows can be seen as they are kept."""

    def view(self, index: int) -> RowView:
        """A row without a copy."""
        ...


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of row numbers, those of like length together, so that little is padded.

    An order depends on the seed and the number of the pass alone; every iteration is the next pass. A pass is cut into steps,
    and those into batches, so that however a step is cut, it has the same rows. The short step stands at the end, or is left
    out.

    lengths: tokens of each row. step_rows: rows of a step, a multiple of the batch size; the batch size if None.
    drop_last: leave out the rows that do not fill a step. shuffle: every pass is another order.
    group: sort by length within 50 steps at a time.
    number: of the next pass, from 0. skip: how many of its batches to leave out at its beginning.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        group: bool = True,
        step_rows: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.group = group
        self.step_rows = step_rows or batch_size
        self.used = len(lengths) - (len(lengths) % self.step_rows if drop_last else 0)
        self.number = 0
        self.skip = 0

    def __len__(self) -> int:
        return math.ceil(self.used / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        number, skip = self.number, self.skip
        self.number, self.skip = number + 1, 0
        return itertools.islice(self._pass(number), skip, None)

    def _pass(self, number: int) -> Iterator[list[int]]:
        draws = numpy.random.default_rng([self.seed, number])
        order = self._order(len(self.lengths), draws)[: self.used]
        if self.group:
            order = self._grouped(order)
        steps = _chunks(order, self.step_rows)
        whole = len(order) // self.step_rows
        places = self._order(whole, draws) if self.group else list(range(whole))
        for place in [*places, *range(whole, len(steps))]:
            yield from _chunks(steps[place], self.batch_size)

    def _order(self, count: int, draws: numpy.random.Generator) -> list[int]:
        order: list[int] = draws.permutation(count).tolist() if self.shuffle else list(range(count))
        return order

    def _grouped(self, order: Sequence[int]) -> list[int]:
        parts = _chunks(order, self.step_rows * _MEGABATCH)
        return [row for part in parts for row in sorted(part, key=self.lengths.__getitem__)]


class TextLoader(DataLoader[Item]):
    """Padded batches of a data set, those of one process among several, which share each batch row by row.

    A process for which a batch has no row gets a `Filler` in its place. Iterating it is one pass; `load_state_dict` makes the
    next one go on inside a pass, without reading what is passed over. Nothing is drawn from torch's global generator.

    numbered: ask the data set for (pass, row) in place of the row. ahead: prepare each batch in a thread while the one before
    it is worked on, in pinned memory where there is a GPU of CUDA; batches and their order are the same.
    """

    def __init__(
        self,
        dataset: Tokenized,
        batches: LengthGroupedBatches,
        processes: Processes,
        numbered: bool = False,
        ahead: bool = False,
    ) -> None:
        self._batches, self._processes, self._ahead = batches, processes, ahead
        self._read = 0
        super().__init__(
            cast("Dataset[Item]", dataset),
            batch_sampler=_OwnRows(batches, processes, numbered),
            collate_fn=dataset.collate,
            pin_memory=ahead and torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a pass, as seen by who iterates
        self._read = self._batches.skip
        with closing(prepared_ahead(self._prepared(), AHEAD) if self._ahead else self._prepared()) as batches:
            for batch in batches:
                filler = self._rows_of(self._read) <= self._processes.rank
                self._read += 1
                yield Filler(batch) if filler else batch

    def _prepared(self) -> Generator[dict[str, Tensor]]:
        # Not DataLoader's own way, which takes longer than all of this for a small batch, and draws from a generator.
        dataset: Any = self.dataset
        row = dataset.view if isinstance(dataset, Viewed) else dataset.__getitem__
        for indices in cast("_OwnRows", self.batch_sampler):
            batch = self.collate_fn([row(index) for index in indices])
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if self.pin_memory else batch

    def state_dict(self) -> dict[str, Any]:
        """The number of passes begun, and how many batches of the latest are read."""
        pending = self._batches.skip
        return {"begun": self._batches.number + bool(pending), "read": pending or self._read}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the latest pass; with the next one where all of it was read."""
        unfinished = 0 < state["read"] < len(self._batches)
        self._batches.number = state["begun"] - unfinished
        self._batches.skip = state["read"] if unfinished else 0
        self._read = state["read"]

    def _rows_of(self, position: int) -> int:
        """The rows of a batch of all processes."""
        return min(self._batches.batch_size, self._batches.used - position * self._batches.batch_size)


class _OwnRows(Sampler[list[Any]]):
    """A process's rows of each batch: every n-th, so that all have texts of like length; one to fill in where there is none."""

    def __init__(self, batches: LengthGroupedBatches, processes: Processes, numbered: bool) -> None:
        self._batches, self._processes, self._numbered = batches, processes, numbered

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Any]]:
        number = self._batches.number
        for batch in self._batches:
            own = batch[self._processes.rank :: self._processes.count] or batch[:1]
            yield [(number, row) for row in own] if self._numbered else own


def prepared_ahead(stream: Iterator[T], name: str) -> Generator[T]:
    """What a stream gives, made in a thread of this name, always one ahead of what is asked for.

    What the stream raises is raised in its place. The thread ends with the stream, and where iterating is given up.
    """
    end: Any = object()
    thread = ThreadPoolExecutor(1, name)
    try:
        coming = thread.submit(next, stream, end)
        while (given := coming.result()) is not end:
            coming = thread.submit(next, stream, end)
            yield given
    finally:
        # Without waiting: the garbage collector may be what ends this, in that very thread.
        thread.shutdown(wait=False, cancel_futures=True)


def _chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
