"""Checkpoints on disk: written whole or not at all, and only the latest kept."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from brewer_core.errors import DataError

STATE_FILE = "state.pt"
_MADE_WITH = "made_with"
_STEP = re.compile(r"step-(\d+)")


class Checkpoints:
    """A folder of `step-{N}` folders.

    keep_last: how many of the latest to keep, those found in the folder being older than what is saved here; a pinned
    one, such as the best, stays beside them. made_with: versions of the distributions whose components are used, written
    into each checkpoint.
    """

    def __init__(self, folder: Path, keep_last: int = 1, made_with: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.made_with = dict(made_with or {})
        self.pinned: int | None = None
        self._saved: list[int] = []

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state of a step, and remove what is no longer kept."""
        target = self.folder / f"step-{step}"
        draft = self.folder / f".step-{step}.partial"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        versions = {_MADE_WITH: self.made_with} if self.made_with else {}
        torch.save({**state, **versions}, draft / STATE_FILE)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
        self._saved = [*(earlier for earlier in self._saved if earlier != step), step]
        self._prune()
        return target

    def load(self, step: int) -> dict[str, Any]:
        """The state of a step, on the CPU. Only tensors and plain values are read, never code.

        Warns where it was made with another version of a distribution than is used here. Raises DataError where the file
        is missing or damaged, or holds code.
        """
        file = self.folder / f"step-{step}" / STATE_FILE
        try:
            state = dict(torch.load(file, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
            raise DataError(f"checkpoint {file} cannot be read: {reason}; take an earlier one.") from error
        for distribution, version in state.pop(_MADE_WITH, {}).items():
            self._warn_of_other_version(file, distribution, version)
        return state

    def _warn_of_other_version(self, file: Path, distribution: str, version: str) -> None:
        here = self.made_with.get(distribution, version)
        if here != version:
            warnings.warn(
                f"checkpoint {file} was made with {distribution} {version}, and {here} is installed; results may differ.",
                stacklevel=3,
            )

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
