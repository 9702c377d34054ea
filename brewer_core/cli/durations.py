"""Durations as people write them on a command line: `90s`, `15m`, `3h`, `1h30m`."""

from __future__ import annotations

import re

from brewer_core.errors import RequestError

SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
NUMBER = r"\d+(?:\.\d+)?"
PATTERN = re.compile("".join(f"(?:({NUMBER}){unit})?" for unit in SECONDS), re.ASCII)


def seconds_of(text: str) -> float:
    """The seconds of a duration: numbers with units, the larger ones first; without a unit they are seconds.

    Raises RequestError where it is none, or no time at all.
    """
    written = text.strip().lower()
    parts = PATTERN.fullmatch(f"{written}s" if re.fullmatch(NUMBER, written, re.ASCII) else written)
    numbers = parts.groups() if parts else ()
    seconds = sum(float(number) * size for number, size in zip(numbers, SECONDS.values(), strict=False) if number)
    if not 0 < seconds < float("inf"):
        raise RequestError(
            f"{text!r} is no duration; write it like 90s, 15m, 3h, 2d or 1h30m, and longer than nothing."
        )
    return seconds
