"""What a cache says of itself: `about.json`, with a checksum of its own. Its time is that of the last use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from brewer_core.errors import DataError
from brewer_core.files import write_whole

ABOUT = "about.json"
_CHECKSUM = "xxh3_128"


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write it whole."""
    text = json.dumps({**about, _CHECKSUM: _checksum(about)}, indent=2) + "\n"
    write_whole(folder / ABOUT, lambda draft: draft.write_text(text, encoding="utf-8"))


def read_about(folder: Path) -> dict[str, Any]:
    """What was written. Raises DataError where it is missing or damaged."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about.pop(_CHECKSUM) != _checksum(about):
            raise ValueError("checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / ABOUT}, which says what this teacher cache is of, is missing or damaged; the next run that uses the cache "
            "writes it again."
        ) from error
    held: dict[str, Any] = about
    return held


def mark_used(folder: Path, about: Mapping[str, Any]) -> None:
    """Note that a cache, if it is there, is used now; where it does not say what it is, have it say so."""
    with suppress(OSError):  # of another user, say
        if (folder / ABOUT).exists():
            os.utime(folder / ABOUT)
        elif not folder.exists():
            return
        try:
            read_about(folder)
        except DataError:
            write_about(folder, about)


def _checksum(about: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(about, sort_keys=True).encode())
