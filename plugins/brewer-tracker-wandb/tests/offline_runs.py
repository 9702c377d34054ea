"""Reads what wandb keeps of offline runs: records in the blocks of a LevelDB log, each a protobuf message."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 2**15
FULL, LAST = 1, 4


@dataclass
class OfflineRun:
    """One run: its name, group, project, tags, and its rows by step. finished: whether its end is recorded."""

    name: str = ""
    group: str = ""
    project: str = ""
    tags: tuple[str, ...] = ()
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    finished: bool = False
    recorded: set[str] = field(default_factory=set)


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline runs below a folder, oldest first."""
    return [
        _run(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda f: f.stat().st_ctime)
    ]


def finished_runs(folder: Path, patience_s: float = 30) -> list[OfflineRun]:
    """The same, once the end of each is recorded: the process that writes them may have that to do yet when a run is finished."""
    until, pause = time.monotonic() + patience_s, threading.Event()
    runs = offline_runs(folder)
    while not all(run.finished for run in runs) and time.monotonic() < until:
        pause.wait(0.02)
        runs = offline_runs(folder)
    return runs


def _run(file: Path) -> OfflineRun:
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        run.recorded.add(kind)
        if kind == "run":
            told = record.run
            run.name, run.group, run.project = told.display_name, told.run_group, told.project
            run.tags = tuple(told.tags)
        elif kind == "history":
            run.rows[record.history.step.num] = _figures(record.history.item)
        run.finished |= kind == "exit"
    return run


def _figures(items: Any) -> dict[str, float]:
    """The figures of a row, without those that wandb adds."""
    values = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    position, whole = HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += HEADER
        whole += content[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield whole
            whole = b""
