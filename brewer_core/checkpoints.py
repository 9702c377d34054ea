"""Checkpoints on disk: written whole or not at all, and only the latest kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

STATE_FILE = "state.pt"
_STEP = re.compile(r"step-(\d+)")


class Checkpoints:
    """A folder of `step-{N}` folders.

    keep_last: how many of the latest to keep, those found in the folder being older than what is saved here; a pinned
    one, such as the best, stays beside them.
    """

    def __init__(self, folder: Path, keep_last: int = 1) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.pinned: int | None = None
        self._saved: list[int] = []

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state of a step, and remove what is no longer kept."""
        target = self.folder / f"step-{step}"
        draft = self.folder / f".step-{step}.partial"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        torch.save(dict(state), draft / STATE_FILE)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
        self._saved = [*(earlier for earlier in self._saved if earlier != step), step]
        self._prune()
        return target

    def load(self, step: int) -> dict[str, Any]:
        """The state of a step, on the CPU. Only tensors and plain values are read, never code."""
        return dict(torch.load(self.folder / f"step-{step}" / STATE_FILE, map_location="cpu", weights_only=True))

    def pin(self, step: int) -> None:
        """Keep a step beside the latest ones, in place of the one pinned before."""
        self.pinned = step
        self._prune()

    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        found = (_STEP.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match.group(1)) for match in found if match)

    def _prune(self) -> None:
        found = self.steps()
        oldest_first = [step for step in found if step not in self._saved] + [s for s in self._saved if s in found]
        for step in oldest_first[: -self.keep_last]:
            if step != self.pinned:
                shutil.rmtree(self.folder / f"step-{step}")


def save_state_dict(state: Mapping[str, Any], path: Path) -> None:
    """Write a state dict to one file, by way of a draft beside it, so that a kill leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    torch.save(dict(state), draft)
    os.replace(draft, path)
