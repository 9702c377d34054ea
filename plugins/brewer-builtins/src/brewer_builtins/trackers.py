"""Trackers: where a run's figures go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from brewer_core import hookimpl


class TensorBoard:
    """Curves for TensorBoard, in the folder of the stage or of the baseline; without a stage, in the run's own."""

    def __init__(self, run_dir: Path, stage: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run_dir / (stage if "/" in stage else f"stages/{stage}") / "tensorboard" if stage else run_dir
        self._writer = SummaryWriter(log_dir=str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        self._writer.close()


class JsonLines:
    """One JSON object a log, in `metrics.jsonl` of the run's folder, with its stage and step."""

    def __init__(self, run_dir: Path, stage: str) -> None:
        self._stage = stage
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        self._file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@hookimpl
def brewer_trackers() -> dict[str, type]:
    """The built-in trackers."""
    return {"jsonl": JsonLines, "tensorboard": TensorBoard}
