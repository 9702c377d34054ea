"""Learner, optimizer and schedule in checkpoints: in one piece, or in parts that all processes write."""

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
class _Stateful(Protocol):
    """What optimizers and schedules are unless a user wrote or wrapped them, who need not give them more than a `step()`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Saving:
    """Saves a learner, its optimizer and its schedule, and reads them back.

    in_parts: of learner and optimizer each process holds, and writes, a part.
    """

    def __init__(
        self, learner: Learner, optimizer: torch.optim.Optimizer, schedule: Any, processes: Processes, in_parts: bool
    ) -> None:
        self._learner, self._optimizer, self._schedule = learner, optimizer, schedule
        self._processes, self._in_parts = processes, in_parts
        self._savable: dict[str, bool] = {}

    def state_dict(self) -> dict[str, Any]:
        """All in one piece; without learner and optimizer where those are in parts, which `save` writes beside the state."""
        schedule = {"scheduler": self._state_of(self._schedule, "schedule")}
        if self._in_parts:
            return schedule
        optimizer = self._state_of(self._optimizer, "optimizer")
        return {"learner": self._learner.state_dict(), "optimizer": optimizer, **schedule}

    def load_state_dict(self, state: Mapping[str, Any], checkpoints: Checkpoints | None) -> None:
        """Take them from a state, or, where it does not hold them, from the parts beside it in the checkpoints."""
        if "learner" in state:
            self._learner.load_state_dict(state["learner"])
            if state["optimizer"] is not None:
                self._optimizer.load_state_dict(state["optimizer"])
        elif checkpoints is not None:
            read_shards(checkpoints.path(int(state["step"])) / _PARTS, self._learner, self._optimizer)
        if isinstance(self._schedule, _Stateful) and state["scheduler"] is not None:
            self._schedule.load_state_dict(state["scheduler"])

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

    def _state_of(self, part: Any, what: str) -> dict[str, Any] | None:
        """The state of a part; None where it has none, or one that cannot be saved, of which is warned once."""
        if not isinstance(part, _Stateful) or not self._savable.get(what, True):
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
