"""What hears of a training as it goes: progress bars, trackers, checkpoints, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from brewer_core.errors import SaveError
from brewer_core.files import system_reason
from brewer_core.protocols import ResumableTracker, Tracker


class Listener:
    """Told of a training's events, in order; each method does nothing until a subclass says otherwise.

    key: the name under which a checkpoint holds its state; "" where it has none.
    """

    key: ClassVar[str] = ""

    def begin(self, total_steps: int) -> None:
        """Training starts."""

    def resumed(self, step: int) -> None:
        """Training goes on after this step, of which everything that was heard later is void; 0: from the beginning."""

    def stepped(self, step: int) -> None:
        """An optimizer step is done; `step` steps are done in all."""

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of the steps since the last log: losses by term, `total_loss`, `learning_rate`, `steps_per_s`."""

    def saving(self, step: int) -> None:
        """A checkpoint is about to be written."""

    def checkpoint(self, step: int) -> None:
        """A checkpoint is due."""

    def end(self) -> None:
        """Training is over, whether it finished or failed."""

    def state_dict(self) -> dict[str, Any]:
        """What it must know to go on: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""


class TrackerListener(Listener):
    """Passes figures on to a tracker, under names of its own; to one that can be taken up, checkpoints as well."""

    def __init__(self, tracker: Tracker, rename: Callable[[str], str] = lambda name: name) -> None:
        self.tracker = tracker
        self.rename = rename

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures."""
        with self._writing():
            self.tracker.log(step, {self.rename(name): value for name, value in values.items()})

    def resumed(self, step: int) -> None:
        """Drop what was logged later."""
        if isinstance(self.tracker, ResumableTracker):
            with self._writing():
                self.tracker.resume(step)

    def saving(self, step: int) -> None:
        """Hand over to the disk what was logged."""
        del step
        if isinstance(self.tracker, ResumableTracker):
            with self._writing():
                self.tracker.flush()

    def end(self) -> None:
        """Close the tracker."""
        with self._writing():
            self.tracker.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What the system refuses, a full disk say, becomes a SaveError."""
        try:
            yield
        except OSError as error:
            raise SaveError(
                f"figures could not be written by {type(self.tracker).__name__}: {system_reason(error) or str(error)}; what was "
                "saved before is kept. Mend that, and take the run up again with --resume."
            ) from error
