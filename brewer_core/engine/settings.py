"""How long the engine trains, and how it steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from brewer_core.errors import DataError, RequestError
from brewer_core.protocols import Batch
from brewer_core.stopping import StopReason

_ROWS_NAMED = 16


def numbered(rows: Sequence[int]) -> str:
    """Rows by their numbers, the first of many."""
    named = ", ".join(map(str, rows[:_ROWS_NAMED]))
    return f"rows {named}" + (f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else "")


@dataclass(frozen=True)
class Duration:
    """How long a training is: exactly one of epochs and steps.

    whole_passes: also with a number of steps, the trailing micro-batches of a pass make a step of their own, so that a step
    has the same rows however it is split; else it is filled up from the next pass.
    """

    epochs: int | None = None
    steps: int | None = None
    whole_passes: bool = False

    def total_steps(self, loader: Any, accumulation: int) -> int:
        """Optimizer steps in all; the trailing micro-batches of an epoch make a step of their own."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch(loader, accumulation)


@dataclass(frozen=True)
class Settings:
    """How the engine steps.

    parts: run each micro-batch that is read in so many parts, which make up one step as micro-batches do.
    max_grad_norm: clip the gradients of everything trained to this norm; None for no clipping.
    loss_normalization: `step` weighs each micro-batch by its share of the items of the whole step, over micro-batches and
    processes; `micro_batch` takes the mean of the micro-batches' means.
    checkpoint_due: told the steps done and the epoch, says whether a checkpoint is due; always after the last step.
    save_at_checkpoints: write the whole state at each of them. save_every_s: and this often between them; None for never.
    stop: asked after every step; anything but NONE saves, and ends the training with `Stopped`.
    prepare: applied to the task and every batch that its loader yields.
    only_gradients_stop: go on, with a warning, where a loss is not finite and its gradients are, as TextBrewer does: the
    cross-entropy of a batch in which no row has a label is such a loss.
    on_nonfinite: `skip` leaves out a step that is not finite, with a warning, nonfinite_limit times in a training.
    split_when_full: where the memory runs out, halve the micro-batches and do the step again.
    teachers_beside: on a GPU, teachers run on a stream of their own, beside the student: not where they are in parts, which all
    processes run in one order, nor where what they answer lasts only until they are asked again (CUDA graphs).
    name_rows: how an error names rows, by the numbers that the batches hold under `row`.
    """

    accumulation: int = 1
    parts: int = 1
    max_grad_norm: float | None = None
    loss_normalization: str = "micro_batch"
    precision: str = "no"
    log_every_steps: int = 10
    checkpoint_due: Callable[[int, int], bool] = lambda _step, _epoch: False
    save_at_checkpoints: bool = True
    save_every_s: float | None = None
    stop: Callable[[], StopReason] = lambda: StopReason.NONE
    prepare: Callable[[str, Batch], Batch] = lambda _task, batch: batch
    only_gradients_stop: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    nonfinite_limit: int = 10
    split_when_full: bool = False
    teachers_beside: bool = True
    name_rows: Callable[[Sequence[int]], str] = numbered

    @property
    def several_parts(self) -> bool:
        """Whether a step has more than one forward pass in a process."""
        return self.accumulation > 1 or self.parts > 1


def steps_per_epoch(loader: Any, accumulation: int) -> int:
    """Optimizer steps in one pass over a loader.

    Raises RequestError where it has no length, or there are several loaders, and DataError where it is empty.
    """
    if isinstance(loader, Mapping):
        raise RequestError("several loaders have no epochs in common; give a number of steps.")
    try:
        batches = len(loader)
    except TypeError as error:
        raise RequestError(
            "the loader has no length, so its epochs cannot be counted; give num_steps in place of num_epochs."
        ) from error
    if batches == 0:
        raise DataError("the loader is empty; it must yield at least one batch.")
    return math.ceil(batches / accumulation)
