"""What `train` was called with, under TextBrewer's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.utils.data.distributed import DistributedSampler

from brewer_core.engine import Duration
from brewer_core.errors import RequestError

Callback: TypeAlias = Callable[..., Any]
Postprocessor: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class TrainRequest:
    """What `train` was called with. tasks: those that have a teacher, where there is a loader for each task.

    sharded: on several processes, each one's loader has rows of its own.
    """

    optimizer: torch.optim.Optimizer
    dataloader: Any
    num_epochs: int | None
    scheduler_class: Callable[..., Any] | None
    scheduler_args: Mapping[str, Any] | None
    scheduler: Any
    max_grad_norm: float
    num_steps: int | None
    callback: Callback | None
    batch_postprocessor: Postprocessor | Mapping[str, Postprocessor] | None
    tasks: tuple[str, ...] | None = None
    sharded: bool = False

    def check_sharded(self) -> None:
        """Raises RequestError for a loader that gives several processes the same rows, as far as can be seen."""
        loaders = self.dataloader.values() if isinstance(self.dataloader, Mapping) else [self.dataloader]
        if self.sharded or all(_shards(loader) for loader in loaders):
            return
        raise RequestError(
            "train: each process would train on all rows of its loader; give the DataLoader a DistributedSampler, or pass "
            "sharded=True where each process's loader has rows of its own."
        )

    def checked(self) -> TrainRequest:
        """The same request. Raises RequestError where it cannot be meant."""
        if not _is_loader(self.dataloader):
            given = type(self.dataloader).__name__
            call = "dataloader, num_epochs" if self.tasks is None else "dataloaders, num_steps"
            hint = f"; the schedule comes after it: train(optimizer, {call}, scheduler_class=..., scheduler_args=...)"
            raise RequestError(f"train: expected a dataloader as the second argument, not a {given}{hint}.")
        self._check_tasks()
        if (self.num_epochs is None) and (self.num_steps is None):
            raise RequestError(f"train: give {'num_epochs or num_steps' if self.tasks is None else 'num_steps'}.")
        if self.scheduler_class is None and self.scheduler_args is not None:
            raise RequestError("train: scheduler_args come with scheduler_class, which is None.")
        return self

    def _check_tasks(self) -> None:
        several = isinstance(self.dataloader, Mapping)
        if self.tasks is None:
            if several:
                raise RequestError(
                    "train: expected one dataloader, not a mapping; MultiTaskDistiller takes one for each task."
                )
            return
        if not several or not self.dataloader:
            raise RequestError("train: expected a dict from task to dataloader as the second argument.")
        for task, loader in self.dataloader.items():
            if not _is_loader(loader):
                raise RequestError(
                    f"train: expected a dataloader for the task {task!r} of dataloaders, not a {type(loader).__name__}."
                )
            if task not in self.tasks:
                raise RequestError(
                    f"train: the task {task!r} of dataloaders has no teacher; model_T has {', '.join(self.tasks)}."
                )

        for task in self.batch_postprocessor if isinstance(self.batch_postprocessor, Mapping) else ():
            if task not in self.tasks:
                raise RequestError(
                    f"train: the task {task!r} of batch_postprocessors is none of model_T, which has {', '.join(self.tasks)}."
                )

    def prepare(self, task: str, batch: Any) -> Any:
        """The batch after the user's postprocessor, that of its task where there is one for each."""
        given = self.batch_postprocessor
        made = given if self.tasks is None or callable(given) else _of_task(given, task)
        return made(batch) if callable(made) else batch

    def duration(self) -> Duration:
        """TextBrewer's rule: num_steps wins."""
        return (
            Duration(steps=int(self.num_steps))
            if self.num_steps is not None
            else Duration(epochs=int(self.num_epochs or 0))
        )

    def schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """The learning-rate schedule of the complete optimizer, or the one that was passed."""
        if self.scheduler_class is not None:
            return self.scheduler_class(optimizer=optimizer, **(self.scheduler_args or {}))
        return self.scheduler


def _of_task(given: Any, task: str) -> Any:
    """The postprocessor of a task; None where there is none for it."""
    if given is None:
        return None
    try:
        return given[task]  # and not `get`: a defaultdict makes one
    except KeyError:
        return None


def _shards(loader: Any) -> bool:
    samplers = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def _is_loader(given: Any) -> bool:
    return isinstance(given, Iterable) or hasattr(type(given), "__getitem__")
