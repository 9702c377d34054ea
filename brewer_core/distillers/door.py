"""From the calls of TextBrewer's classes to the engine."""

from __future__ import annotations

import inspect
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from brewer_core.checkpoints import Checkpoints, save_state_dict
from brewer_core.config import TrainingConfig
from brewer_core.engine import Duration, Engine, Settings, steps_per_epoch
from brewer_core.errors import RequestError
from brewer_core.learner import Learner
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.objective import Objective
from brewer_core.progress import ProgressBar
from brewer_core.protocols import Teacher
from brewer_core.registry import Registry

Adaptor: TypeAlias = Callable[..., Any]
Callback: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class TrainRequest:
    """What `train` was called with."""

    optimizer: torch.optim.Optimizer
    dataloader: Any
    num_epochs: int | None
    scheduler_class: Callable[..., Any] | None
    scheduler_args: Mapping[str, Any] | None
    scheduler: Any
    max_grad_norm: float
    num_steps: int | None
    callback: Callback | None
    batch_postprocessor: Callable[[Any], Any] | None

    def checked(self) -> TrainRequest:
        """The same request. Raises RequestError where it cannot be meant."""
        if not isinstance(self.dataloader, Iterable) and not hasattr(type(self.dataloader), "__getitem__"):
            given = type(self.dataloader).__name__
            hint = "; the schedule comes after it: train(optimizer, dataloader, num_epochs, scheduler_class=..., scheduler_args=...)"
            raise RequestError(f"train: expected a dataloader as the second argument, not a {given}{hint}.")
        if (self.num_epochs is None) and (self.num_steps is None):
            raise RequestError("train: give num_epochs or num_steps.")
        if self.scheduler_class is None and self.scheduler_args is not None:
            raise RequestError("train: scheduler_args come with scheduler_class, which is None.")
        return self

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


class Door:
    """From TextBrewer's calls to the engine."""

    def __init__(self, config: TrainingConfig, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.device = pick_device(config.device)
        _warn_of_ignored(config)

    def learner(
        self, student: nn.Module, adaptor: Adaptor, objective: Objective, strategy: str, arguments: Mapping[str, Any]
    ) -> Learner:
        """What is trained, under a strategy of the registry."""
        built = self.registry.bind("strategy", strategy)()
        return Learner(student, adaptor, objective, built, precision=self.config.autocast, arguments=arguments)

    def train(self, learner: Learner, teachers: Mapping[str, Teacher], request: TrainRequest) -> None:
        """Train it as TextBrewer does: `gs{N}.pkl` and the callback at its checkpoints, its tags in TensorBoard."""
        request.checked()
        output = Path(self.config.output_dir)
        listeners: list[Listener] = [ProgressBar("training"), *self._trackers()]
        listeners.append(_SavesStudent(learner.student, output, request.callback))
        engine = Engine(
            learner,
            request.optimizer,
            device=self.device,
            teachers=teachers,
            schedule=request.schedule,
            settings=self._settings(request),
            listeners=listeners,
            checkpoints=Checkpoints(output / "checkpoints", self.config.keep_last),
        )
        engine.train(request.dataloader, request.duration())

    def _settings(self, request: TrainRequest) -> Settings:
        return Settings(
            accumulation=self.config.gradient_accumulation_steps,
            max_grad_norm=request.max_grad_norm if request.max_grad_norm > 0 else None,
            loss_normalization=self.config.loss_normalization,
            precision=self.config.autocast,
            log_every_steps=self.config.log_every_steps,
            checkpoint_due=self._checkpoint_due(request),
            prepare=request.batch_postprocessor or (lambda batch: batch),
        )

    def _checkpoint_due(self, request: TrainRequest) -> Callable[[int, int], bool]:
        """TextBrewer's checkpoints: by ckpt_steps, or ckpt_frequency times in every ckpt_epoch_frequency-th epoch."""
        config = self.config
        if request.num_steps is not None:
            every = config.ckpt_steps or int(request.num_steps)
            return lambda step, _epoch: step % every == 0
        length = steps_per_epoch(request.dataloader, config.gradient_accumulation_steps)
        points = {int(length * i / config.ckpt_frequency) for i in range(config.ckpt_frequency)}
        epochs = int(request.num_epochs or 0)
        return lambda step, epoch: (
            step % length in points and ((epoch + 1) % config.ckpt_epoch_frequency == 0 or epoch + 1 == epochs)
        )

    def _trackers(self) -> list[Listener]:
        if self.config.log_dir is None:
            return []
        tracker = self.registry.bind("tracker", "tensorboard")(Path(self.config.log_dir), "")
        return [TrackerListener(tracker, _tag)]


class _SavesStudent(Listener):
    """Writes `gs{N}.pkl`, a plain state dict of the student, and calls the user's callback with the student itself."""

    def __init__(self, student: nn.Module, folder: Path, callback: Callback | None) -> None:
        self.student, self.folder, self.callback = student, folder, callback

    def checkpoint(self, step: int) -> None:
        save_state_dict(self.student.state_dict(), self.folder / f"gs{step}.pkl")
        if self.callback is not None:
            self.callback(model=self.student, step=step)
            self.student.train()


def pick_device(name: str) -> torch.device:
    """The device of a name; `cuda` without a GPU is the CPU, with a warning. Raises RequestError for no such device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"device {name!r} is none that torch knows; use cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        warn(f"device {name!r} is not available here; training on the CPU.")
        return torch.device("cpu")
    return device


def _tag(name: str) -> str:
    """TextBrewer's tag in TensorBoard."""
    return f"scalar/{name}" if name in ("total_loss", "learning_rate", "steps_per_s") else f"scalar/unweighted_{name}"


def _warn_of_ignored(config: TrainingConfig) -> None:
    if config.data_parallel:
        warn("data_parallel is ignored: start one process for each device with torchrun in its place.")
    if config.fp16_opt_level != "O1":
        warn(f"fp16_opt_level={config.fp16_opt_level!r} is ignored: torch.amp has one level.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            "this version trains in one process, and WORLD_SIZE is above 1; start the script without torchrun."
        )


def warn(text: str) -> None:
    """Warn of the line that called into this folder."""
    here = str(Path(__file__).parent)
    inside = itertools.takewhile(lambda frame: frame.filename.startswith(here), inspect.stack(context=0))
    warnings.warn(text, stacklevel=1 + len(list(inside)))
