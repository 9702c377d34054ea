"""Where what is computed once is kept for later runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(setting: str, base_dir: Path) -> Path | None:
    """The folder of a setting; None where nothing is to be kept. It need not be there yet.

    setting: `off`; a path, relative to base_dir; or `auto`, which is the folder that the environment variable BREWER_CACHE
    names, else `brewer` in the user's folder for caches, and nothing where the user has no folder of their own.
    """
    if setting == "off":
        return None
    return _of_user() if setting == "auto" else base_dir / setting


def _of_user() -> Path | None:
    if named := os.environ.get("BREWER_CACHE"):
        return Path(named)
    caches = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    if caches:
        return Path(caches) / "brewer"
    try:
        return Path.home() / ".cache" / "brewer"
    except RuntimeError:  # no home, as in a container under a number without a name
        return None
