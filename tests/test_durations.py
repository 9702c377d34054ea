"""Durations on the command line."""

from __future__ import annotations

import pytest

from brewer_core.cli.durations import seconds_of
from brewer_core.errors import RequestError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("3h", 10800),
        ("2d", 172800),
        ("1h30m", 5400),
        ("1d2h3m4s", 93784),
        ("1d4s", 86404),
        ("90", 90),
        ("0.5", 0.5),
        ("1.5h", 5400),
        (" 3H ", 10800),
        ("90m", 5400),
    ],
)
def test_a_duration_is_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "h",
        "0",
        "0s",
        "0h0m",
        "-1h",
        "1h-1m",
        "30m1h",
        "1h1h",
        "1 h",
        "1h 30m",
        "3 hours",
        "1e3",
        "nan",
        "inf",
        "\N{ARABIC-INDIC DIGIT ONE}h",
        ".5h",
        "1.h",
        "1:30",
        "9" * 400,
    ],
)
def test_what_is_no_duration_is_refused_in_one_sentence(text):
    with pytest.raises(RequestError) as error:
        seconds_of(text)
    assert str(error.value) == (
        f"{text!r} is no duration; write it like 90s, 15m, 3h, 2d or 1h30m, and longer than nothing."
    )
