"""A run's folder: made only where nothing can be lost, locked while the run goes on, each file written whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brewer_core.errors import OutputExistsError, RequestError
from brewer_core.files import write_whole

CONFIG, MANIFEST, METRICS, SUMMARY, LOCK = "config.json", "manifest.json", "metrics.jsonl", "summary.json", "lock"
STAGES, BASELINES, STUDENT, PLUGINS = "stages", "baselines", "student", "plugins"
OWN_NAMES = (CONFIG, MANIFEST, METRICS, SUMMARY, LOCK, STAGES, BASELINES, STUDENT, PLUGINS)
"""All that a run writes into its folder, and all that overwriting removes."""


class RunFolder:
    """The folder of one run, open for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def check(cls, path: Path, overwrite: bool) -> None:
        """Whether a run may be written to a path; nothing is changed.

        Raises OutputExistsError where the folder holds another run, or anything else, RequestError where it cannot be
        written.
        """
        if path.exists() and not path.is_dir():
            raise RequestError(f"output {path} is a file; name a folder with --output.")
        inside = sorted(p.name for p in path.iterdir()) if path.exists() else []
        if inside and MANIFEST not in inside:
            raise OutputExistsError(
                f"output {path} holds {', '.join(inside[:3])}{' and more' if len(inside) > 3 else ''}, and no run; "
                "choose an empty or new folder with --output."
            )
        if inside and not overwrite:
            raise OutputExistsError(
                f"output {path} holds a run already; choose another folder with --output, or --overwrite it."
            )
        _refuse_running(path)
        _refuse_unwritable(path)

    @classmethod
    def open(cls, path: Path, overwrite: bool) -> RunFolder:
        """Make the folder, or empty it of a former run, and lock it; to be used in a `with`. Raises what `check` raises."""
        cls.check(path, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in OWN_NAMES:
                _remove(path / name)
            (path / LOCK).write_text(f"{os.getpid()}\n", encoding="utf-8")
        except OSError as error:  # what permissions do not tell: a read-only disk, /proc
            raise RequestError(
                f"output {path} cannot be written: {error.strerror}; choose another with --output."
            ) from error
        return cls(path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the folder."""
        (self.path / LOCK).unlink(missing_ok=True)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file whole: a kill leaves the former one."""
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        write_whole(self.path / name, lambda draft: draft.write_text(text, encoding="utf-8"))

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / STAGES / name

    def baseline(self, name: str) -> Path:
        """The folder of a baseline."""
        return self.path / BASELINES / name


def _refuse_running(path: Path) -> None:
    lock = path / LOCK
    holder = lock.read_text(encoding="utf-8").strip() if lock.exists() else ""
    if holder.isdecimal() and _alive(int(holder)):
        raise OutputExistsError(
            f"output {path} belongs to a run that is going on (process {holder}); choose another folder with --output."
        )


def _refuse_unwritable(path: Path) -> None:
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise RequestError(
            f"output {path} cannot be written: {parent} is not a folder that you may write to; choose another with --output."
        )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
