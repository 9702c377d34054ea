"""How a training is asked to stop after the step that is under way: by a signal, or because its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class StopReason(IntEnum):
    """Why a training stops. Where processes differ, the largest holds."""

    NONE = 0
    TIME = 1
    INTERRUPT = 2
    TERMINATE = 15

    @property
    def exit_status(self) -> int:
        """That of the command: 0 where it did what it was told."""
        return 0 if self in (StopReason.NONE, StopReason.TIME) else 128 + self

    @property
    def words(self) -> str:
        """For a sentence."""
        return {
            StopReason.NONE: "not at all",
            StopReason.TIME: "as its time was up",
            StopReason.INTERRUPT: "by an interrupt",
            StopReason.TERMINATE: "by a signal to terminate",
        }[self]


class StopRequest:
    """Whether, and why, a training is to stop after this step.

    max_time_s: seconds from now after which its time is up; None for no limit.
    """

    def __init__(self, max_time_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = None if max_time_s is None else clock() + max_time_s
        self._asked = StopReason.NONE
        self._heeded = 0

    @property
    def heeded(self) -> bool:
        """Whether a training is under way that will see it, or one has ended in an error."""
        return self._heeded > 0

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Around a training that asks for the reason after every step.

        An error in it is heeded too, until it has been told: it ends all that a signal could.
        """
        self._heeded += 1
        yield
        self._heeded -= 1

    def ask(self, reason: StopReason) -> None:
        """Ask it to stop; may be called by a signal handler."""
        self._asked = reason

    @property
    def reason(self) -> StopReason:
        """Why it is to stop; NONE for going on."""
        if self._asked is StopReason.NONE and self._ends is not None and self._clock() >= self._ends:
            return StopReason.TIME
        return self._asked
