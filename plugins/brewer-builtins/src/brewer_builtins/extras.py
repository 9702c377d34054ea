"""The libraries of the extra `hf`: imported where they are used, and their errors told on one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from brewer_core import MissingExtraError


@contextmanager
def extra(user: str, library: str) -> Iterator[None]:
    """Import an optional library inside this; an ImportError becomes a MissingExtraError with the install command."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f"{user} needs {library}; install it with: pip install 'brewer-core[hf]'") from error


def reason(error: Exception) -> str:
    """What a library said, on one line and not for long."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
