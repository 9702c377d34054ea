"""From the calls of TextBrewer's classes to the engine."""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from brewer_core.cache import CachedTeacher, shared, without_key
from brewer_core.cache_folder import cache_root
from brewer_core.captures import Notices
from brewer_core.checkpoints import Checkpoints, save_state_dict
from brewer_core.config import ComponentRef, DistillationConfig, TrainingConfig
from brewer_core.config.refs import OfKind
from brewer_core.distillers.draws import GlobalDraws
from brewer_core.distillers.lesson import Adaptor, Lesson, TaughtBy
from brewer_core.distillers.request import Callback, TrainRequest
from brewer_core.distillers.sampling import Known, Sampling
from brewer_core.engine import FACTOR, Engine, Settings, steps_per_epoch
from brewer_core.errors import RequestError, full_stop
from brewer_core.learner import Learner
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.objective import bind_ref
from brewer_core.processes import Processes, join, launched, own_gpu
from brewer_core.progress import ProgressBar
from brewer_core.protocols import ModelInfo, Strategy, Teacher
from brewer_core.registry import Registry
from brewer_core.teachers import LiveTeacher

_STRATEGY: TypeAdapter[ComponentRef] = TypeAdapter(Annotated[ComponentRef, OfKind("strategy", callables=True)])


class Door:
    """From TextBrewer's calls to the engine."""

    def __init__(self, config: TrainingConfig, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.device = pick_device(config.device)
        self._notices = Notices()
        _warn_of_ignored(config)

    def strategy(self, given: str | Mapping[str, Any] | Strategy | type[Strategy]) -> Strategy:
        """A strategy of the registry, or the one that was passed. Raises RequestError where it is none."""
        if isinstance(given, Strategy):
            return given
        try:
            ref = _STRATEGY.validate_python(given)
        except ValidationError as error:
            raise RequestError(full_stop(f"strategy: {error.errors()[0]['msg']}")) from error
        made = bind_ref(self.registry, ref)()
        if not isinstance(made, Strategy):
            raise RequestError(f"strategy: `{ref.name}` is no brewer_core.Strategy.")
        return made

    def known(
        self,
        sample: Any,
        student: nn.Module,
        adaptor: Adaptor | Mapping[str, Adaptor],
        teachers: Sequence[TaughtBy],
        config: DistillationConfig,
    ) -> Known:
        """What is known of the models before they are trained: what a sample shows, and nothing where that is None."""
        sampling = Sampling(self.device, self.config.autocast, self._notices, self._without_keys(teachers))
        return sampling(sample, student, adaptor, {each.name: each for each in teachers}, config)

    def build(self, strategy: Strategy, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> nn.Module | None:
        """What a strategy itself trains, on the device; the widths of models are known where there was a sample."""
        parts = strategy.build(student, teachers)
        return parts.to(self.device) if parts is not None else None

    def train(self, lesson: Lesson, request: TrainRequest, arguments: Mapping[str, Any]) -> None:
        """Train it as TextBrewer does: `gs{N}.pkl` and the callback at its checkpoints, its tags in TensorBoard.

        arguments: for every call of the models.
        """
        request.checked()
        processes = join()
        if processes.several:
            request.check_sharded()
        learner = Learner(
            lesson.student,
            lesson.adaptor,
            lesson.objective,
            lesson.strategy,
            parts=lesson.parts,
            balancer=lesson.balancer,
            precision=self.config.autocast,
            arguments=arguments,
            model_inputs=self._without_keys(lesson.teachers),
            notices=self._notices,
        )
        teachers = shared({each.name: self._teacher(each, lesson, processes, arguments) for each in lesson.teachers})
        output = Path(self.config.output_dir)
        listeners: list[Listener] = []
        if processes.first:
            listeners += [ProgressBar("training"), *self._trackers()]
            listeners.append(_SavesStudent(learner.student, output, request.callback))
        checkpoints = Checkpoints(output / "checkpoints", self.config.keep_last)
        engine = Engine(
            learner,
            request.optimizer,
            device=self.device,
            teachers=teachers,
            schedule=request.schedule,
            settings=self._settings(request),
            listeners=listeners,
            checkpoints=checkpoints,
            generator=GlobalDraws(),
            processes=processes,
        )
        state = processes.of_first(checkpoints.newest) if self.config.resume else None
        if state is not None:
            engine.load_state_dict(state)
        given = [each.model for each in lesson.teachers]
        with processes.noticing_loss(), ExitStack() as caches:
            for teacher in teachers.values():
                if isinstance(teacher, CachedTeacher) and teacher not in given:
                    caches.callback(teacher.close)
            engine.train(request.dataloader, request.duration())

    def _teacher(
        self, taught_by: TaughtBy, lesson: Lesson, processes: Processes, arguments: Mapping[str, Any]
    ) -> Teacher:
        if not isinstance(taught_by.model, nn.Module) and isinstance(taught_by.model, Teacher):
            return taught_by.model
        teacher = LiveTeacher(
            taught_by.model,
            taught_by.adaptor,
            self.device,
            precision=self.config.autocast,
            arguments=arguments,
            position=taught_by.position,
            notices=self._notices,
        )
        folder = self._cache_folder(lesson)
        if folder is None:
            return teacher
        return CachedTeacher(
            teacher,
            self.config.cache_key,
            folder=folder,
            builder=processes.rank,
            shares_lock=not processes.first,
        )

    def _without_keys(self, teachers: Sequence[TaughtBy]) -> Callable[[Any], Any]:
        """What takes a batch's columns out that tell its rows apart, which no model is given."""
        given = [each.model.key for each in teachers if isinstance(each.model, CachedTeacher)]
        keys = [key for key in (self.config.cache_key, *given) if isinstance(key, str)]
        return lambda batch: functools.reduce(without_key, keys, batch)

    def _cache_folder(self, lesson: Lesson) -> Path | None:
        if self.config.cache == "off" and lesson.remembering:
            return Path(self.config.output_dir) / "cache"
        return cache_root(self.config.cache, Path())

    def _settings(self, request: TrainRequest) -> Settings:
        return Settings(
            accumulation=self.config.gradient_accumulation_steps,
            max_grad_norm=request.max_grad_norm if request.max_grad_norm > 0 else None,
            loss_normalization=self.config.loss_normalization,
            precision=self.config.autocast,
            log_every_steps=self.config.log_every_steps,
            checkpoint_due=self._checkpoint_due(request),
            prepare=request.prepare,
            only_gradients_stop=True,
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
        save_state_dict(_unwrapped(self.student).state_dict(), self.folder / f"gs{step}.pkl")
        if self.callback is not None:
            self.callback(model=self.student, step=step)
            self.student.train()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a wrapper for several devices, whose names begin with `module.`."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def pick_device(name: str) -> torch.device:
    """The device of a name; `cuda` without a GPU is the CPU, with a warning, and under torchrun the process's own GPU.

    Raises RequestError for no such device, and for a process that has no GPU of its own.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"device {name!r} is none that torch knows; use cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        warn(f"device {name!r} is not available here; training on the CPU.")
        return torch.device("cpu")
    return own_gpu() if name == "cuda" and launched() else device


def _tag(name: str) -> str:
    """TextBrewer's tag in TensorBoard."""
    weighed = name not in ("total_loss", "learning_rate", "steps_per_s") and not name.startswith(FACTOR)
    return f"scalar/unweighted_{name}" if weighed else f"scalar/{name}"


def _warn_of_ignored(config: TrainingConfig) -> None:
    if config.data_parallel:
        warn("data_parallel is ignored: start one process for each device with torchrun in its place.")
    if config.fp16_opt_level != "O1":
        warn(f"fp16_opt_level={config.fp16_opt_level!r} is ignored: torch.amp has one level.")


def warn(text: str) -> None:
    """Warn of the line that called into this folder."""
    here = str(Path(__file__).parent)
    inside = itertools.takewhile(lambda frame: frame.filename.startswith(here), inspect.stack(context=0))
    warnings.warn(text, stacklevel=1 + len(list(inside)))
