"""TextBrewer's distillers: thin doors, under the same signatures, to the one engine."""

from __future__ import annotations

import inspect
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import nn
from typing_extensions import Self

from brewer_core.checkpoints import Checkpoints, save_state_dict
from brewer_core.config import DistillationConfig, TrainingConfig
from brewer_core.engine import Duration, Engine, Settings, steps_per_epoch
from brewer_core.errors import RequestError
from brewer_core.learner import Learner
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.objective import Objective
from brewer_core.plugins import default_registry
from brewer_core.progress import ProgressBar
from brewer_core.protocols import Teacher
from brewer_core.registry import Registry
from brewer_core.teachers import LiveTeacher

Adaptor: TypeAlias = Callable[..., Any]
Callback: TypeAlias = Callable[..., Any]


class BasicTrainer:
    """Supervised training of one model, a teacher for example.

    train_config: general settings. model: trained in place. adaptor: must return `losses`.
    registry: where components are looked up; the default one if None.
    """

    def __init__(
        self, train_config: TrainingConfig, model: nn.Module, adaptor: Adaptor, *, registry: Registry | None = None
    ) -> None:
        self.t_config = train_config
        self.model = model
        self.adaptor = adaptor
        self._door = _Door(train_config, registry or default_registry())
        self._modes = _Modes()

    def __enter__(self) -> Self:
        """Put the model in training mode until the context is left."""
        self._modes.enter(training=[self.model])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the model back in the mode in which it was."""
        self._modes.leave()

    def train(
        self,
        optimizer: torch.optim.Optimizer,
        dataloader: Any,
        num_epochs: int | None = None,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        num_steps: int | None = None,
        callback: Callback | None = None,
        batch_postprocessor: Callable[[Any], Any] | None = None,
        **args: Any,
    ) -> None:
        """Train the model; the arguments are those of `BasicDistiller.train`."""
        learner = self._door.learner(self.model, self.adaptor, Objective(None), "supervised", args)
        request = _Request(
            optimizer,
            dataloader,
            num_epochs,
            scheduler_class,
            scheduler_args,
            scheduler,
            max_grad_norm,
            num_steps,
            callback,
            batch_postprocessor,
        )
        self._door.train(learner, {}, request)


class BasicDistiller:
    """Distillation of one teacher on one task, without intermediate matches.

    train_config: general settings. distill_config: the terms of the loss. model_T, model_S: teacher and student; the
    student is trained in place. adaptor_T, adaptor_S: turn (batch, model outputs) into features.
    registry: where components are looked up; the default one if None.
    Raises ConfigError where the distillation config names what does not exist.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: nn.Module,
        model_S: nn.Module,
        adaptor_T: Adaptor,
        adaptor_S: Adaptor,
        *,
        registry: Registry | None = None,
    ) -> None:
        self.t_config = train_config
        self.d_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        self._door = _Door(train_config, registry or default_registry())
        self._modes = _Modes()
        self._objective = Objective.from_config(self._terms(distill_config), self._door.registry)
        if distill_config.is_caching_logits:
            _warn("is_caching_logits is ignored: the teacher answers for every batch anew.")

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        if config.matches:
            _warn("BasicDistiller leaves out intermediate_matches; use GeneralDistiller for them.")
        return config.model_copy(update={"intermediate_matches": None})

    def __enter__(self) -> Self:
        """Put the student in training mode and the teacher in eval mode until the context is left."""
        self._modes.enter(training=[self.model_S], evaluating=[self.model_T])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put both models back in the modes in which they were."""
        self._modes.leave()

    def train(
        self,
        optimizer: torch.optim.Optimizer,
        dataloader: Any,
        num_epochs: int | None = None,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        num_steps: int | None = None,
        callback: Callback | None = None,
        batch_postprocessor: Callable[[Any], Any] | None = None,
        **args: Any,
    ) -> None:
        """Train the student.

        optimizer: over the student's parameters; projections are added to it.
        dataloader: yields batches, tuples or mappings; passed as `model(*batch)` or `model(**batch)`.
        num_epochs, num_steps: passes over the loader, or optimizer steps; with num_steps the loader needs no length.
        scheduler_class, scheduler_args: the learning-rate schedule, built as `scheduler_class(optimizer=..., **scheduler_args)`
        once the optimizer is complete. scheduler: one that is built already.
        max_grad_norm: clip the gradients of all that is trained to this norm; not above 0 means no clipping.
        callback: called as `callback(model=student, step=global_step)` after each checkpoint.
        batch_postprocessor: applied to every batch.
        **args: passed to every call of the models.

        Raises RequestError for a call that cannot be meant, DataError where the loader gives too little, NonFiniteError
        before a step on a loss that is not finite.
        """
        learner = self._door.learner(self.model_S, self.adaptor_S, self._objective, "general", args)
        teacher = LiveTeacher(
            self.model_T, self.adaptor_T, self._door.device, precision=self.t_config.autocast, arguments=args
        )
        request = _Request(
            optimizer,
            dataloader,
            num_epochs,
            scheduler_class,
            scheduler_args,
            scheduler,
            max_grad_norm,
            num_steps,
            callback,
            batch_postprocessor,
        )
        self._door.train(learner, {"teacher": teacher}, request)


class GeneralDistiller(BasicDistiller):
    """Distillation of one teacher on one task, with intermediate matches.

    The arguments are those of BasicDistiller. Projections are drawn here, in the order of `intermediate_matches`.
    custom_matches: not supported yet; anything but None or an empty list raises RequestError.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: nn.Module,
        model_S: nn.Module,
        adaptor_T: Adaptor,
        adaptor_S: Adaptor,
        custom_matches: list[Any] | None = None,
        *,
        registry: Registry | None = None,
    ) -> None:
        if custom_matches:
            raise RequestError(
                "custom_matches are not read by this version; have the adaptors return the modules' outputs under a name of "
                "your own, and match them with intermediate_matches and that name as `feature`."
            )
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S, registry=registry)

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        return config


class _Modes:
    """The modes that models were in when a context was entered."""

    def __init__(self) -> None:
        self._were: list[tuple[nn.Module, bool]] = []

    def enter(self, training: Iterable[nn.Module] = (), evaluating: Iterable[nn.Module] = ()) -> None:
        wanted = [(model, True) for model in training] + [(model, False) for model in evaluating]
        for model, mode in wanted:
            self._were += [(module, module.training) for module in model.modules()]
            model.train(mode)

    def leave(self) -> None:
        for module, mode in self._were:
            module.training = mode
        self._were = []


@dataclass(frozen=True)
class _Request:
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

    def checked(self) -> _Request:
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


class _Door:
    """From TextBrewer's calls to the engine."""

    def __init__(self, config: TrainingConfig, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.device = pick_device(config.device)
        _warn_of_ignored(config)

    def learner(
        self, student: nn.Module, adaptor: Adaptor, objective: Objective, strategy: str, arguments: Mapping[str, Any]
    ) -> Learner:
        built = self.registry.bind("strategy", strategy)()
        return Learner(student, adaptor, objective, built, precision=self.config.autocast, arguments=arguments)

    def train(self, learner: Learner, teachers: Mapping[str, Teacher], request: _Request) -> None:
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

    def _settings(self, request: _Request) -> Settings:
        return Settings(
            accumulation=self.config.gradient_accumulation_steps,
            max_grad_norm=request.max_grad_norm if request.max_grad_norm > 0 else None,
            loss_normalization=self.config.loss_normalization,
            precision=self.config.autocast,
            log_every_steps=self.config.log_every_steps,
            checkpoint_due=self._checkpoint_due(request),
            prepare=request.batch_postprocessor or (lambda batch: batch),
        )

    def _checkpoint_due(self, request: _Request) -> Callable[[int, int], bool]:
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
        _warn(f"device {name!r} is not available here; training on the CPU.")
        return torch.device("cpu")
    return device


def _tag(name: str) -> str:
    """TextBrewer's tag in TensorBoard."""
    return f"scalar/{name}" if name in ("total_loss", "learning_rate", "steps_per_s") else f"scalar/unweighted_{name}"


def _warn_of_ignored(config: TrainingConfig) -> None:
    if config.data_parallel:
        _warn("data_parallel is ignored: start one process for each device with torchrun in its place.")
    if config.fp16_opt_level != "O1":
        _warn(f"fp16_opt_level={config.fp16_opt_level!r} is ignored: torch.amp has one level.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            "this version trains in one process, and WORLD_SIZE is above 1; start the script without torchrun."
        )


def _warn(text: str) -> None:
    """Warn of the line that called into this file."""
    inside = itertools.takewhile(lambda frame: frame.filename == __file__, inspect.stack(context=0))
    warnings.warn(text, stacklevel=1 + len(list(inside)))
