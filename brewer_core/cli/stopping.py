"""What becomes of signals while a run goes on: the first one lets it save, the second stops it at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from brewer_core.stopping import StopReason, StopRequest

_REASONS = {signal.SIGINT: StopReason.INTERRUPT, signal.SIGTERM: StopReason.TERMINATE}


@contextmanager
def stopping_gracefully(stop: StopRequest) -> Iterator[None]:
    """Inside it the first SIGINT or SIGTERM ends a training after its step; the second one, or one elsewhere, ends at once."""
    asked: list[int] = []

    def heard(number: int, frame: Any) -> None:
        del frame
        if asked or not stop.heeded:
            end(number)
        asked.append(number)
        stop.ask(_REASONS[signal.Signals(number)])
        print("brewer: finishing the step and saving; once more stops at once", file=sys.stderr)

    before = {number: signal.signal(number, heard) for number in _REASONS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(number: int) -> NoReturn:
    """End at once, with the exit status of a signal."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    print("brewer: stopped by a signal before it was done", file=sys.stderr)
    raise SystemExit(128 + number)
