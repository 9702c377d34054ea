"""Builds the learner and the teachers of a stage, and trains it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from brewer_core.batches import call_model, move_to_device
from brewer_core.cache import RememberingTeacher
from brewer_core.checkpoints import Checkpoints
from brewer_core.config import ComponentRef, DistillationConfig, DistillStage, SupervisedStage
from brewer_core.config.run import Optimization, TeacherRef
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import ConfigError
from brewer_core.features import Features
from brewer_core.learner import Learner
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.objective import Objective
from brewer_core.protocols import LoadedModel, ModelInfo, Needs, Strategy, Teacher
from brewer_core.run.assembly import Assembly, model_inputs
from brewer_core.run.evaluation import EvaluationListener, Evaluator
from brewer_core.run.folder import RunFolder
from brewer_core.run.optimization import make_optimizer, make_schedule
from brewer_core.run.reporting import Reporter
from brewer_core.teachers import LiveTeacher, evaluating

DEFAULT_ADAPTOR = ComponentRef("adaptor", "text_classification")


@dataclass(frozen=True)
class Lesson:
    """What a stage trains: a learner, on batches, with teachers."""

    learner: Learner
    teachers: Mapping[str, Teacher]
    loader: Any
    training: Optimization

    @property
    def duration(self) -> Duration:
        """How long it is trained."""
        return Duration(self.training.epochs, self.training.steps)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all."""
        return self.duration.total_steps(self.loader, self.training.accumulation)


@dataclass(frozen=True)
class Outcome:
    """What a training brought: optimizer steps, seconds without evaluation, and the figures of the weights that it left."""

    steps: int
    seconds: float
    best_step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def supervised_lesson(
    assembly: Assembly,
    stage: SupervisedStage | DistillStage,
    path: str,
    model: LoadedModel,
    purpose: str,
    steps: int | None = None,
) -> Lesson:
    """The lesson of a supervised stage; or, with steps, that of a distillation's baseline on its labelled rows."""
    training = stage.training.model_copy(update={"steps": steps, "epochs": None}) if steps else stage.training
    dataset = assembly.training_set(stage, path, labelled_only=True)
    if all(label < 0 for label in dataset.labels):
        raise ConfigError([f"{path}.train: no row has a label, so there is nothing to learn from"], "config")
    ref = stage.adaptors.student if isinstance(stage, DistillStage) else DEFAULT_ADAPTOR
    strategy = assembly.registry.bind("strategy", "supervised")()
    learner = Learner(
        model.model.to(assembly.device),
        assembly.bind(ref).target,
        Objective(None),
        strategy,
        precision=assembly.config.precision,
        arguments=model.forward_arguments(frozenset({"logits"})),
        model_inputs=model_inputs,
    )
    return Lesson(learner, {}, assembly.training_loader(dataset, training, purpose), training)


def distill_lesson(assembly: Assembly, stage: DistillStage, path: str, student: LoadedModel) -> Lesson:
    """The lesson of a distillation: teachers as far as they are trained, and the student."""
    config = stage.distillation
    strategy = assembly.bind(stage.strategy)()
    needs = _needs(strategy, config)
    dataset = assembly.training_set(stage, path)
    batches = assembly.training_loader(dataset, stage.training, stage.name)
    student_adaptor = assembly.bind(stage.adaptors.student).target
    arguments = dict(student.forward_arguments(needs.student))
    live = {ref.model: _live_teacher(assembly, stage, ref, needs) for ref in stage.teachers}
    sample = move_to_device(next(iter(assembly.training_loader(dataset, stage.training, "sample"))), assembly.device)
    known = _features(student.model.to(assembly.device), student_adaptor, sample, arguments)
    infos = {
        ref.model: ModelInfo.of(ref.model, live[ref.model].features(sample, needs.teacher(ref.model)), ref.weight)
        for ref in stage.teachers
    }
    own = ModelInfo.of(stage.student, known)
    with seeded(assembly.seed("parts", stage.name), assembly.device):  # projections are drawn
        try:
            objective = Objective.from_config(config, assembly.registry, own, infos)
        except ConfigError as error:
            raise ConfigError([f"{path}.distillation.{problem}" for problem in error.problems], "config") from error
        parts = strategy.build(own, infos)
    learner = Learner(
        student.model,
        student_adaptor,
        objective,
        strategy,
        parts=parts,
        precision=assembly.config.precision,
        arguments=arguments,
        model_inputs=model_inputs,
    )
    teachers: dict[str, Teacher] = dict(live)
    if config.is_caching_logits:
        teachers = {name: RememberingTeacher(teacher) for name, teacher in live.items()}
    return Lesson(learner, teachers, batches, stage.training)


def train(
    assembly: Assembly,
    lesson: Lesson,
    folder: Path,
    tracking: str,
    run_folder: RunFolder,
    evaluator: Evaluator,
    reporter: Reporter,
) -> Outcome:
    """Train a lesson. What is drawn (dropout) comes from a seed of its own; the caller's generators stay as they were.

    tracking: the name of the stage in figures. Afterwards the student holds its best weights, where a best is asked for.
    """
    config, training = assembly.config, lesson.training
    always = ComponentRef("tracker", "jsonl")
    refs = (always, *(ref for ref in config.trackers if ref.name != always.name))
    trackers = [_tracker(assembly, ref, run_folder, tracking) for ref in refs]
    checkpoints = Checkpoints(folder / "checkpoints", training.keep_last) if training.checkpoint_every_steps else None
    evaluation = EvaluationListener(
        lambda: evaluator(lesson.learner.student, lesson.learner.adaptor_for("")),
        lesson.learner.student,
        every_steps=config.evaluation.every_steps,
        best=config.evaluation.best if training.keep_best else None,
        report=lambda step, figures: _report(trackers, step, figures),
        keep=checkpoints.pin if checkpoints else None,
    )
    with seeded(assembly.seed("train", tracking), assembly.device):
        lesson.learner.train()
        engine = Engine(
            lesson.learner,
            make_optimizer(training.optimizer, lesson.learner.student),
            device=assembly.device,
            teachers=lesson.teachers,
            schedule=lambda optimizer: make_schedule(training.schedule, optimizer, lesson.total_steps),
            settings=_settings(training, config.precision),
            listeners=[reporter.bar(tracking), evaluation, *trackers],
            checkpoints=checkpoints,
            generator=numpy.random.default_rng(assembly.seed("tasks", tracking)),
        )
        started = time.perf_counter()
        steps = engine.train(lesson.loader, lesson.duration)
    evaluation.restore_best()
    seconds = time.perf_counter() - started - evaluation.seconds
    return Outcome(steps, seconds, evaluation.best_step, evaluation.kept)


def _settings(training: Optimization, precision: str) -> Settings:
    every = training.checkpoint_every_steps
    return Settings(
        accumulation=training.accumulation,
        max_grad_norm=training.max_grad_norm,
        loss_normalization=training.loss_normalization,
        precision=precision,
        log_every_steps=training.log_every_steps,
        checkpoint_due=lambda step, _epoch: every is not None and step % every == 0,
    )


def _needs(strategy: Strategy, config: DistillationConfig) -> Needs:
    """What the models must give: asked before the objective is there, which needs their widths."""
    read = frozenset({"logits", *(match.feature for match in config.matches)})
    own = strategy.needs(Objective(None))
    return Needs(own.student | read, own.every_teacher | read, own.by_teacher)


def _live_teacher(assembly: Assembly, stage: DistillStage, ref: TeacherRef, needs: Needs) -> LiveTeacher:
    loaded = assembly.model(ref.model)
    return LiveTeacher(
        loaded.model,
        assembly.bind(ref.adaptor or stage.adaptors.teacher).target,
        assembly.device,
        precision=assembly.config.precision,
        arguments=loaded.forward_arguments(needs.teacher(ref.model)),
        model_inputs=model_inputs,
    )


def _features(model: nn.Module, adaptor: Callable[..., Any], batch: Any, arguments: Mapping[str, Any]) -> Features:
    with evaluating(model), torch.no_grad():
        return Features.of(adaptor(batch, call_model(model, model_inputs(batch), arguments)))


def _tracker(assembly: Assembly, ref: ComponentRef, run_folder: RunFolder, tracking: str) -> TrackerListener:
    return TrackerListener(assembly.bind(ref)(run_folder.path, tracking))


def _report(trackers: Sequence[Listener], step: int, figures: Mapping[str, float]) -> None:
    for tracker in trackers:
        tracker.logged(step, {f"eval/{name}": value for name, value in figures.items()})


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws from torch's generators come from the seed inside it; afterwards they are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
