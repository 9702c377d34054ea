"""What each micro-batch weighs in its optimizer step, which lies over micro-batches and processes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brewer_core.batches import Filler, rows, side
from brewer_core.features import Counts
from brewer_core.learner import Learner
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, CountingAdaptor


@dataclass(frozen=True)
class Counted:
    """A micro-batch of some process: its items, and the teachers that are asked for it. real: it is no stand-in."""

    counts: Counts
    asked: tuple[str, ...]
    real: bool = True


class Shares(dict[str, float]):
    """A micro-batch's share of the step for each term, computed when it is asked for.

    own: the micro-batch. step: those of all processes.
    """

    def __init__(self, learner: Learner, own: Counted, step: Sequence[Counted], by_items: bool) -> None:
        super().__init__()
        self._objective, self._own, self._step, self._by_items = learner.objective, own, step, by_items

    def __missing__(self, term: str) -> float:
        total = sum(self._items(term, counted) for counted in self._step)
        self[term] = self._items(term, self._own) / total if total else 0.0
        return self[term]

    @property
    def of_step(self) -> float:
        """The share of the step as such: each micro-batch alike."""
        return float(self._own.real) / sum(counted.real for counted in self._step)

    def _items(self, term: str, counted: Counted) -> float:
        if not counted.real:
            return 0.0
        return self._objective.items(term, counted.counts, counted.asked) if self._by_items else 1.0


def counted(learner: Learner, task: str, batch: Batch, asked: Sequence[str]) -> Counted:
    """The items of a batch, as the student's adaptor of the task counts them; else its rows."""
    own, adaptor = side(batch, "student"), learner.adaptor_for(task)
    counts = adaptor.counts(own) if isinstance(adaptor, CountingAdaptor) else Counts.of_rows(rows(own))
    return Counted(counts, tuple(asked), not isinstance(batch, Filler))


def of_all(processes: Processes, own: Sequence[Counted]) -> list[Counted]:
    """The micro-batches of all processes in a step."""
    return [counted for theirs in processes.gathered(list(own)) for counted in theirs]


def notice_counting(learner: Learner, stacklevel: int) -> None:
    """Warn where the student's adaptor cannot count, so that the shares are by rows."""
    adaptor = learner.adaptor
    adaptors = list(adaptor.values()) if isinstance(adaptor, Mapping) else [adaptor]
    if not all(isinstance(each, CountingAdaptor) for each in adaptors):
        warnings.warn(
            "the student's adaptor cannot count, so micro-batches are weighed by their rows; give it a method "
            "counts(batch) for means over tokens, logits or labels.",
            stacklevel=stacklevel + 1,
        )
