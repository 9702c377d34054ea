"""Trackers: where a run's figures go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from brewer_core import hookimpl


class TensorBoard:
    """Curves for TensorBoard, in the folder of the stage or of the baseline; without a stage, in the run's own.

    Taken up again, it drops what is later from every event file there, so that each reader sees each step once.
    """

    def __init__(self, run_dir: Path, stage: str) -> None:
        self._folder = run_dir / (stage if "/" in stage else f"stages/{stage}") / "tensorboard" if stage else run_dir
        self._open()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hand over to the disk what was logged."""
        self._writer.flush()
        for file in _event_files(self._folder):
            _sync(file)
        _sync(self._folder)

    def resume(self, step: int) -> None:
        """Leave each curve's points up to a step, the last one where there are several of one step."""
        self._writer.close()
        _drop_events(self._folder, step)
        self._open()

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        self._writer.close()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(self._folder))


class JsonLines:
    """One JSON object a log, in `metrics.jsonl` of the run's folder, with its stage and step.

    Taken up again, it drops the later lines of its stage, and lines that are no object: a kill left those.
    """

    def __init__(self, run_dir: Path, stage: str) -> None:
        self._path, self._stage = run_dir / "metrics.jsonl", stage
        self._open()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        self._file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")

    def flush(self) -> None:
        """Hand over to the disk what was logged."""
        self._file.flush()
        os.fsync(self._file.fileno())
        _sync(self._path.parent)

    def resume(self, step: int) -> None:
        """Leave the lines of other stages, and those of this one up to a step."""
        self._file.close()
        kept = [line + b"\n" for line in self._path.read_bytes().split(b"\n") if self._stays(line, step)]
        _write_whole(self._path, self._path.with_name(f".{self._path.name}.partial"), kept)
        self._open()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def _stays(self, line: bytes, step: int) -> bool:
        try:
            values = json.loads(line)
        except ValueError:
            return False
        return isinstance(values, dict) and (values.get("stage") != self._stage or values.get("step", 0) <= step)


@hookimpl
def brewer_trackers() -> dict[str, type]:
    """The built-in trackers."""
    return {"jsonl": JsonLines, "tensorboard": TensorBoard}


def _drop_events(folder: Path, step: int) -> None:
    """Leave the points up to a step, each once, in the event files of a folder, and whole records alone."""
    draft = folder / ".events.partial"
    draft.unlink(missing_ok=True)  # of a resume that was killed
    events = {file: _whole_events(file) for file in _event_files(folder)}
    seen: set[tuple[str, int]] = set()
    for file in reversed(events):  # what was logged last counts
        kept = [event for event in reversed(events[file]) if _reduced(event, step, seen)][::-1]
        if any(not event.HasField("file_version") for event in kept):
            _write_whole(file, draft, map(_record, kept))
        else:
            file.unlink()


def _event_files(folder: Path) -> list[Path]:
    """The event files of a folder, oldest first; readers take every file with this in its name for one."""
    return sorted(folder.glob("*tfevents*"))


def _whole_events(file: Path) -> list[Any]:
    """The events of a file, up to the record that a kill cut off."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return list(LegacyEventFileLoader(str(file)).Load())


def _reduced(event: Any, step: int, seen: set[tuple[str, int]]) -> bool:
    """Whether anything is left of an event without its points that are later, or were seen."""
    if not event.HasField("summary"):
        return bool(event.step <= step)
    kept = [
        value for value in reversed(event.summary.value) if event.step <= step and (value.tag, event.step) not in seen
    ]
    seen.update((value.tag, event.step) for value in kept)
    del event.summary.value[:]
    event.summary.value.extend(reversed(kept))
    return bool(kept)


def _record(event: Any) -> bytes:
    from io import BytesIO

    from tensorboard.summary.writer.record_writer import RecordWriter

    content = BytesIO()
    RecordWriter(content).write(event.SerializeToString())
    return content.getvalue()


def _write_whole(file: Path, draft: Path, parts: Iterable[bytes]) -> None:
    """Replace a file; a kill leaves the former one."""
    with draft.open("wb") as opened:
        opened.writelines(parts)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(draft, file)
    _sync(file.parent)


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
