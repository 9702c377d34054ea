"""Learner and optimizer in checkpoints: in one piece, or in parts that all processes write."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from brewer_core.checkpoints import Checkpoints, why_unsavable
from brewer_core.errors import BrewerError, SaveError
from brewer_core.learner import Learner
from brewer_core.processes import Processes
from brewer_core.sharding import read_shards, write_shards

_PARTS = "parts"


@runtime_checkable
class Stateful(Protocol):
    """What optimizers and schedules are unless a user wrote or wrapped them, who need not give them more than a `step()`."""

    def state_dict(self) -> dict[str, Any]:
        """What it must know to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state."""
        ...


class Saving:
    """Saves a learner and its optimizer, and reads them back. in_parts: each process holds, and writes, a part of them."""

    def __init__(
        self, learner: Learner, optimizer: torch.optim.Optimizer, processes: Processes, in_parts: bool
    ) -> None:
        self._learner, self._optimizer = learner, optimizer
        self._processes, self._in_parts = processes, in_parts
        self._savable = States()

    def state_dict(self) -> dict[str, Any]:
        """Both in one piece; nothing where they are in parts, which `save` writes beside the state."""
        if self._in_parts:
            return {}
        return {"learner": self._learner.state_dict(), "optimizer": self._savable.of(self._optimizer, "optimizer")}

    def load_state_dict(self, state: Mapping[str, Any], checkpoints: Checkpoints | None) -> None:
        """Take them from a state, or, where it does not hold them, from the parts beside it in the checkpoints."""
        if "learner" in state:
            self._learner.load_state_dict(state["learner"])
            if state["optimizer"] is not None:
                self._optimizer.load_state_dict(state["optimizer"])
        elif checkpoints is not None:
            read_shards(checkpoints.path(int(state["step"])) / _PARTS, self._learner, self._optimizer)

    def save(self, checkpoints: Checkpoints, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint. Raises SaveError on every process where that fails on one."""
        if self._in_parts:
            self._save_parts(checkpoints, step, state)
        else:
            self._processes.of_first(lambda: checkpoints.save(step, state))

    def _save_parts(self, checkpoints: Checkpoints, step: int, state: Mapping[str, Any]) -> None:
        """The first process writes a checkpoint, into whose draft all of them write their parts."""

        def write_part(draft: Path | None) -> None:
            folder = self._processes.of_first(lambda: draft)
            assert folder is not None
            write_shards(folder / _PARTS, self._learner, self._optimizer)

        failed: BrewerError | None = None
        try:
            if self._processes.first:
                checkpoints.save(step, state, write_part)
            else:
                write_part(None)
        except (BrewerError, OSError) as error:
            failed = error if isinstance(error, BrewerError) else SaveError(str(error))
        self._processes.of_first(lambda: _raise(failed))


class States:
    """The states of optimizers and schedules, as far as a checkpoint can hold them, of which each is asked once."""

    def __init__(self) -> None:
        self._savable: dict[str, bool] = {}

    def of(self, part: Any, what: str) -> dict[str, Any] | None:
        """The state of a part; None where it has none, or one that cannot be saved, of which is warned."""
        if not isinstance(part, Stateful) or not self._savable.get(what, True):
            return None
        state = part.state_dict()
        if what not in self._savable:
            reason = why_unsavable(state)
            self._savable[what] = reason is None
            if reason is not None:
                _warn(part, what, reason)
        return state if self._savable[what] else None


def _warn(part: Any, what: str, reason: str) -> None:
    warnings.warn(
        f"checkpoints hold no state of the {what} {type(part).__name__}, for it {reason}; keep functions and objects out of it, "
        "or give it a state_dict() without them.",
        stacklevel=5,
    )


def _raise(error: BrewerError | None) -> None:
    if error is not None:
        raise error
