"""How far a loader has been read, and how it is taken to the same place again.

A loader with a state of its own (`state_dict`, `load_state_dict`: brewer's, torchdata's) is asked for it. Any other is read
again from the start of the pass, with the random states that were then, and what it gives is passed over.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader

from brewer_core.errors import DataError, RequestError
from brewer_core.randomness import random_states, restore_random_states, undisturbed
from brewer_core.utils import set_epoch


@runtime_checkable
class StatefulLoader(Protocol):
    """A loader that knows its own place."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]:
        """Its place."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a place when it is iterated next."""
        ...


class TrackedLoader:
    """A loader that is iterated, and how far it has been read.

    device: whose generator is kept beside those of the CPU. name: what errors call the loader. passes: how many were begun.
    """

    def __init__(self, loader: Any, device: torch.device, name: str = "the loader") -> None:
        self.loader = loader
        self._device, self._name = device, name
        self.passes = self._read = 0
        self._start: dict[str, Any] | None = None
        self._resumed = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self._resumed:
            self._resumed = False
            remaining = self._remaining()
            for first in remaining:
                yield first
                yield from remaining
                return
        yield from self._from_start()

    def state_dict(self) -> dict[str, Any]:
        """Passes begun, batches read of the latest, and what it takes to come there again."""
        own = self.loader.state_dict() if isinstance(self.loader, StatefulLoader) else None
        generators = [] if own is not None else _states(self.loader)
        return {"passes": self.passes, "read": self._read, "start": self._start, "generators": generators, "own": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be at that place when it is iterated next. Raises RequestError where this loader cannot be."""
        self.passes, self._read, self._start = state["passes"], state["read"], state["start"]
        self._resumed = self.passes > 0
        if not self._resumed:
            return
        if isinstance(self.loader, StatefulLoader):
            self.loader.load_state_dict(state["own"])
            return
        _restore(self.loader, state["generators"])
        if not self._at_end():
            self._check_repeatable()

    def _from_start(self) -> Iterator[Any]:
        if not isinstance(self.loader, StatefulLoader):
            self._start = {"states": random_states(self._device), "generators": _states(self.loader)}
        set_epoch(self.loader, self.passes)
        self.passes += 1
        self._read = 0
        return self._counted(iter(self.loader))

    def _remaining(self) -> Iterator[Any]:
        """The batches of the pass that was under way, after those that were read of it."""
        if isinstance(self.loader, StatefulLoader):
            with undisturbed(self._device):
                stream = iter(self.loader)
            return self._counted(stream)
        return iter(()) if self._at_end() else self._counted(self._replayed())

    def _replayed(self) -> Iterator[Any]:
        assert self._start is not None
        generators = _states(self.loader)
        with undisturbed(self._device):
            restore_random_states(self._start["states"], self._device)
            _restore(self.loader, self._start["generators"])
            set_epoch(self.loader, self.passes - 1)
            stream: Iterator[Any] = iter(self.loader)
            if sum(1 for _ in itertools.islice(stream, self._read)) < self._read:
                raise DataError(
                    f"{self._name} gave fewer than the {self._read} batches that were read of it before; it must give the same ones "
                    "for a training to go on where it stopped."
                )
        _restore(self.loader, generators)
        return stream

    def _counted(self, stream: Iterator[Any]) -> Iterator[Any]:
        for batch in stream:
            self._read += 1
            yield batch

    def _at_end(self) -> bool:
        try:
            return self._read >= len(self.loader)
        except TypeError:  # it has no length
            return False

    def _check_repeatable(self) -> None:
        kind = type(self.loader).__name__
        if isinstance(self.loader, Iterator):
            raise RequestError(
                f"{self._name} is a {kind}, which gives its batches only once, so the training cannot go on exactly where it stopped; "
                "pass a DataLoader, a list, or a loader with state_dict and load_state_dict."
            )
        if isinstance(self.loader, DataLoader) and self.loader.num_workers > 0:
            raise RequestError(
                f"{self._name} is a {kind} with {self.loader.num_workers} workers, and what those draw cannot be repeated, so the "
                "training cannot go on exactly where it stopped; use num_workers=0, or a loader with state_dict such as "
                "torchdata's StatefulDataLoader."
            )


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers draw from, each once."""
    if not isinstance(loader, DataLoader):
        return []
    samplers = [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    found = [getattr(each, "generator", None) for each in (loader, *samplers)]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _states(loader: Any) -> list[torch.Tensor]:
    return [generator.get_state() for generator in _generators(loader)]


def _restore(loader: Any, states: list[torch.Tensor]) -> None:
    for generator, state in zip(_generators(loader), states, strict=True):
        generator.set_state(state)
