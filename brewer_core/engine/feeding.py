"""What the loop is fed: the micro-batches of each optimizer step that is left, from loaders whose places are kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from brewer_core.engine.position import TrackedLoader
from brewer_core.engine.settings import Duration, steps_per_epoch
from brewer_core.errors import DataError, RequestError
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, Draws, Strategy
from brewer_core.utils import cycle

MicroBatch = tuple[str, Batch]


class Feed:
    """The loaders of a training, and how far it has come in them.

    loader: one, or a mapping from task to one. read: groups that are read, which the loop counts; a group is the micro-batches of
    an optimizer step, done or left out.
    Raises RequestError where an epoch is of other lengths on other processes: they would wait for one another.
    """

    def __init__(
        self, loader: Any, duration: Duration, accumulation: int, device: torch.device, processes: Processes
    ) -> None:
        self._several = isinstance(loader, Mapping)
        named = {"": (loader, "the loader")}
        if isinstance(loader, Mapping):
            named = {task: (each, f"the loader of the task {task!r}") for task, each in loader.items()}
        self._loaders = {task: TrackedLoader(each, device, name) for task, (each, name) in named.items()}
        self._duration, self._accumulation = duration, accumulation
        self.total_steps = duration.total_steps(loader, accumulation)
        self.read = 0
        self.ends_pass = False
        if duration.epochs is not None and processes.several:
            _check_alike(processes.gathered(len(loader)))

    def state_dict(self) -> dict[str, Any]:
        """The place in each loader, by task."""
        return {task: loader.state_dict() for task, loader in self._loaders.items()}

    def load_state_dict(self, state: Mapping[str, Any], read: int) -> None:
        """Go to these places. Raises RequestError where a loader cannot."""
        self.read = read
        if read >= self.total_steps:  # nothing is left
            return
        for task, loader in self._loaders.items():
            if task not in state:
                had = "loaders for " + ", ".join(state) if "" not in state else "one loader"
                raise RequestError(f"the training that is taken up had {had}, and none for {task!r}; pass the same.")
            loader.load_state_dict(state[task])

    def groups(self, strategy: Strategy, generator: Draws) -> Iterator[tuple[int, Iterator[MicroBatch], int]]:
        """The groups that are left, each with its epoch and the number of its micro-batches, which are read as they are used."""
        passing = self._duration.epochs is not None or self._duration.whole_passes
        return self._passes(strategy, generator) if passing else self._stream(strategy, generator)

    @property
    def _passes_begun(self) -> int:
        """How many passes were begun over every loader."""
        return min(loader.passes for loader in self._loaders.values())

    def _stream(self, strategy: Strategy, generator: Draws) -> Iterator[tuple[int, Iterator[MicroBatch], int]]:
        """A step that a pass does not fill goes on in the next one."""
        loaders = self._loaders if self._several else cycle(self._loaders[""])
        stream, size = iter(strategy.batches(loaders, generator)), self._accumulation
        passes = self._passes_begun
        for _ in range(self.total_steps - self.read):
            begun = self._passes_begun
            self.ends_pass, passes = begun > passes > 0, begun
            yield 0, itertools.islice(stream, size), size

    def _passes(self, strategy: Strategy, generator: Draws) -> Iterator[tuple[int, Iterator[MicroBatch], int]]:
        """The trailing micro-batches of a pass make a step of their own."""
        loader, size = self._loaders[""], self._accumulation
        length, left = len(loader), self.total_steps - self.read
        first_epoch, done = divmod(self.read, steps_per_epoch(loader, size))
        for epoch in itertools.count(first_epoch):
            if left == 0:
                return
            stream = iter(strategy.batches(loader, generator))
            for first in itertools.islice(range(done * size, length, size), left):
                count = min(size, length - first)
                at_end = self.ends_pass = first + size >= length
                yield epoch, _exactly(stream, count, length), count
                left -= 1
            if at_end and next(iter(stream), None) is not None:
                raise DataError(_wrong_length(length, "more"))
            done = 0


def _check_alike(lengths: list[int]) -> None:
    if len(set(lengths)) > 1:
        raise RequestError(
            f"the loaders of the processes have {', '.join(map(str, lengths))} batches; all must have as many: use a "
            "DistributedSampler, or give a number of steps."
        )


def _exactly(stream: Iterable[MicroBatch], count: int, length: int) -> Iterator[MicroBatch]:
    given = 0
    for micro_batch in itertools.islice(stream, count):
        given += 1
        yield micro_batch
    if given < count:
        raise DataError(_wrong_length(length, "fewer"))


def _wrong_length(length: int, yielded: str) -> str:
    return f"the loader says that it has {length} batches and yielded {yielded}; its __len__ must be right, or give num_steps."
