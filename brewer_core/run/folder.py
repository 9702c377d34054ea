"""A run's folder: made only where nothing can be lost, locked while the run goes on, each file written whole."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brewer_core.errors import DataError, OutputExistsError, RequestError
from brewer_core.files import draft_of, remove, replaced_of, write_whole
from brewer_core.run.lock import Lock

if TYPE_CHECKING:
    from brewer_core.objective import Pairs

CONFIG, MANIFEST, METRICS, SUMMARY, LOCK = "config.json", "manifest.json", "metrics.jsonl", "summary.json", "lock"
STAGES, BASELINES, STUDENT, PLUGINS = "stages", "baselines", "student", "plugins"
LAYERS = "layers.json"
"""In the folder of a stage: the layers that it has searched."""
_MATCHES = "intermediate_matches"
OWN_NAMES = (CONFIG, MANIFEST, METRICS, SUMMARY, LOCK, STAGES, BASELINES, STUDENT, PLUGINS)
"""All that a run writes into its folder, and all that overwriting removes."""

DRAFTS = tuple(draft_of(Path(name)).name for name in OWN_NAMES)
"""What a write leaves that was killed."""
ASIDE = tuple(replaced_of(Path(name)).name for name in OWN_NAMES)
"""What stands aside after a kill in the instant in which another took its place."""
TIME = "%Y%m%d-%H%M%S"
"""The time in the name of a folder that a run chose itself, in UTC."""


class RunFolder:
    """The folder of one run, open for writing and locked: to be used in a `with`."""

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def check(cls, path: Path, overwrite: bool) -> None:
        """Whether a run may be written to a path; nothing is changed.

        What a run left that was killed before its manifest was written is no hindrance. Raises OutputExistsError where the
        folder holds another run, or anything else, RequestError where it cannot be written.
        """
        if path.exists() and not path.is_dir():
            raise RequestError(f"output {path} is a file; name a folder with --output.")
        with _writable(path):
            _refuse_full(path, overwrite)  # first: what is not ours is not even looked at
            Lock(path / LOCK).refuse_held()
        _refuse_unwritable(path)

    @classmethod
    def check_going_on(cls, path: Path) -> None:
        """Whether the run of a folder may go on; nothing is changed. Raises what `reopen` raises."""
        _require_run(path)
        with _writable(path):
            Lock(path / LOCK).refuse_held()

    @classmethod
    def open(cls, path: Path, overwrite: bool) -> RunFolder:
        """Make the folder, or empty it of a former run, and lock it. Raises what `check` raises."""
        cls.check(path, overwrite)
        with _writable(path):
            path.mkdir(parents=True, exist_ok=True)
            folder = cls._locked(path)
            with folder._released_on_error():
                _refuse_full(path, overwrite)  # another run may have come and gone since
                folder._remove(*(name for name in OWN_NAMES if name != LOCK), *DRAFTS, *ASIDE)
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Lock the folder of a run that is to go on; what is removed is drafts alone.

        Raises RequestError where it holds no run or cannot be written, OutputExistsError where the run is going on.
        """
        _require_run(path)
        with _writable(path):
            folder = cls._locked(path)
            with folder._released_on_error():
                _require_run(path)  # it may have been removed since
                folder._remove(*DRAFTS)
        return folder

    @classmethod
    def _locked(cls, path: Path) -> RunFolder:
        lock = Lock(path / LOCK)
        lock.take()
        return cls(path, lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the folder."""
        self._lock.release()

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file whole: a kill leaves the former one."""
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        write_whole(self.path / name, lambda draft: draft.write_text(text, encoding="utf-8"))

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder. Raises DataError where it is missing or damaged."""
        return _read_json(self.path / name)

    def _remove(self, *names: str) -> None:
        for name in names:
            remove(self.path / name)

    @contextmanager
    def _released_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._lock.release()
            raise

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / STAGES / name

    def layers(self, stage: str) -> dict[int, Pairs] | None:
        """The pairs of layers that a stage has searched, by the position of the match; None where it has not kept any."""
        file = self.stage(stage) / LAYERS
        if not file.exists():
            return None
        kept = _read_json(file)[_MATCHES]
        return {int(position): tuple((int(t), int(s)) for t, s in pairs) for position, pairs in kept.items()}

    def write_layers(self, stage: str, layers: Mapping[int, Pairs]) -> None:
        """Keep the pairs of layers that a stage has searched."""
        self.stage(stage).mkdir(parents=True, exist_ok=True)
        pairs = {str(position): [list(pair) for pair in found] for position, found in layers.items()}
        self.write_json(f"{STAGES}/{stage}/{LAYERS}", {_MATCHES: pairs})

    def baseline(self, name: str) -> Path:
        """The folder of a baseline."""
        return self.path / BASELINES / name


class UnwrittenFolder(RunFolder):
    """The folder of a run that another process writes, or that is not open yet: what is written to it goes nowhere."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __exit__(self, *_: object) -> None:
        """It holds no lock."""

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write nothing."""


def holds_run(path: Path) -> bool:
    """Whether a folder holds a run, be it over or not."""
    return (path / MANIFEST).is_file()


def latest_run(parent: Path, stem: str) -> Path | None:
    """The newest of the folders `STEM-TIME` that holds a run which did not finish; None where there is none.

    Raises DataError where the manifest of a newer one is damaged: what became of it is not known.
    """
    folders = parent.glob(f"{glob.escape(stem)}-*") if parent.is_dir() else ()
    runs = [path for path in folders if _is_time(path.name[len(stem) + 1 :]) and holds_run(path)]
    unfinished = (
        path for path in sorted(runs, reverse=True) if _read_json(path / MANIFEST).get("status") != "finished"
    )
    return next(unfinished, None)


def _is_time(text: str) -> bool:
    try:
        return datetime.strptime(text, TIME).strftime(TIME) == text
    except ValueError:
        return False


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file} is missing: the run cannot be taken up; start another.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({error}): the run cannot be taken up; start another.") from error
    if not isinstance(values, dict):
        raise DataError(f"{file} holds no JSON object: the run cannot be taken up; start another.")
    return values


def _require_run(path: Path) -> None:
    if not holds_run(path):
        raise RequestError(
            f"output {path} holds no run that could be taken up; name the folder of one, with its {MANIFEST}."
        )


def _refuse_full(path: Path, overwrite: bool) -> None:
    inside = sorted(p.name for p in path.iterdir()) if path.exists() else []
    if MANIFEST in inside:
        if not overwrite:
            raise OutputExistsError(
                f"output {path} holds a run already; choose another folder with --output, or --overwrite it."
            )
    elif inside and not _left_by_a_kill(inside):
        raise OutputExistsError(
            f"output {path} holds {', '.join(inside[:3])}{' and more' if len(inside) > 3 else ''}, and no run; "
            "choose an empty or new folder with --output."
        )


def _left_by_a_kill(inside: list[str]) -> bool:
    """Whether these are all a run's. Without its lock they are not: a user's config.json has a run's name too."""
    return LOCK in inside and set(inside) <= {*OWN_NAMES, *DRAFTS, *ASIDE}


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """What the system refuses becomes a RequestError; permissions do not tell all: a read-only disk, /proc."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"output {path} cannot be written: {error.strerror}; choose another with --output."
        ) from error


def _refuse_unwritable(path: Path) -> None:
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise RequestError(
            f"output {path} cannot be written: {parent} is not a folder that you may write to; choose another with --output."
        )
