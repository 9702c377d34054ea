"""Builds the learner and the teachers of a stage, and trains it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import nn

from brewer_core.batches import call_model, move_to_device, rows, split
from brewer_core.checkpoints import Checkpoints
from brewer_core.config import ComponentRef, DistillationConfig, DistillStage, SupervisedStage
from brewer_core.config.optimization import Optimization
from brewer_core.config.run import TeacherRef
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import ConfigError
from brewer_core.features import Features, features_read
from brewer_core.learner import Learner
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.objective import Objective
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, LoadedModel, ModelInfo, Needs, Strategy, Teacher
from brewer_core.randomness import seeded
from brewer_core.run.assembly import Assembly, JoinedText, model_inputs
from brewer_core.run.caching import Asked, Decision, cached, check_form, closing_caches, decided, notes
from brewer_core.run.evaluation import EvaluationListener, TaskEvaluators
from brewer_core.run.folder import RunFolder
from brewer_core.run.loading import TextLoader
from brewer_core.run.manifest import made_with
from brewer_core.run.optimization import make_optimizer, make_schedule
from brewer_core.run.reporting import Reporter
from brewer_core.run.tasks import best_for, named_teachers, trained_model
from brewer_core.run.training_modes import training_modes
from brewer_core.stopping import StopRequest
from brewer_core.teachers import LiveTeacher, evaluating

CHECKPOINTS = "checkpoints"
DEFAULT_ADAPTOR = ComponentRef("adaptor", "text_classification")


@dataclass(frozen=True)
class Lesson:
    """What a stage trains: a learner, on batches, with teachers.

    loader: one, or a mapping from task to loader. adaptors: the trained model's, for each of its tasks.
    taught_by: the modules of its teachers. notes: what is said of it when it begins. asked, decisions: what is asked of each teacher,
    and whether it is cached.
    """

    learner: Learner
    teachers: Mapping[str, Teacher]
    loader: Any
    training: Optimization
    adaptors: Mapping[str, Callable[..., Any]]
    taught_by: tuple[nn.Module, ...] = ()
    notes: Sequence[str] = ()
    asked: Mapping[str, Asked] = field(default_factory=dict)
    decisions: Mapping[str, Decision] = field(default_factory=dict)

    @property
    def duration(self) -> Duration:
        """How long it is trained; an epoch of tasks that are drawn is as many steps as have their batches together."""
        epochs = self.training.epochs
        if not self.drawn:
            return Duration(epochs, self.training.steps, whole_passes=True)
        return Duration(steps=self.training.steps or (epochs or 0) * sum(len(each) for each in self.loader.values()))

    @property
    def drawn(self) -> bool:
        """Whether a task is drawn for every step, whose rows are then one batch, however it is run."""
        return isinstance(self.loader, Mapping)

    @property
    def accumulation(self) -> int:
        """Batches of the loader in an optimizer step."""
        return 1 if self.drawn else self.training.accumulation

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all."""
        return self.duration.total_steps(self.loader, self.accumulation)


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
    sets = assembly.training_sets(stage, path, labelled_only=True)
    loaders = _loaders(assembly, sets, training, purpose, drawn=len(sets) > 1)
    ref = stage.adaptors.student if isinstance(stage, DistillStage) else DEFAULT_ADAPTOR
    adaptors = assembly.adaptors(trained_model(stage), ref)
    strategy = assembly.registry.bind("strategy", "supervised", _drawing(stage))()
    alone = next(iter(loaders)) if len(loaders) == 1 else None
    learner = Learner(
        model.model.to(assembly.trying_device),
        adaptors if alone is None else adaptors[alone],
        Objective(None),
        strategy,
        precision=assembly.config.precision,
        arguments=model.forward_arguments(frozenset({"logits"})),
        model_inputs=model_inputs,
    )
    return Lesson(learner, {}, loaders if alone is None else loaders[alone], training, adaptors)


def distill_lesson(
    assembly: Assembly, stage: DistillStage, path: str, student: LoadedModel, caching: bool = True
) -> Lesson:
    """The lesson of a distillation: teachers as far as they are trained, and the student.

    caching: teachers are cached, as far as the config says; without, they are live, and nothing is kept of a trial.
    """
    config = stage.distillation
    strategy = assembly.bind(stage.strategy)()
    sets = assembly.training_sets(stage, path)
    _check_tasks(strategy, stage, path, list(sets))
    refs, adaptors = named_teachers(stage), assembly.adaptors(stage.student, stage.adaptors.student)
    needs = _needs(strategy, config, list(refs))
    asked = _asked_of_models(needs, stage.student, refs)
    models = {name: assembly.model(name) for name in asked if name != stage.student} | {stage.student: student}
    given = {name: models[name].forward_arguments(features) for name, features in asked.items()}
    arguments = dict(given[stage.student])
    live = {name: _live_teacher(assembly, stage, ref, given[ref.model]) for name, ref in refs.items()}
    samples = {
        task: move_to_device(few_rows(next(iter(sample)), stage.training), assembly.trying_device)
        for task, sample in _loaders(assembly, sets, stage.training, "sample", drawn=False).items()
    }
    first, sample = next(iter(samples.items()))
    known = _features(student.model.to(assembly.trying_device), adaptors[first], sample, arguments)
    answers = {
        name: live[name].features(samples[ref.task or ""], features_read(needs.teacher(name)))
        for name, ref in refs.items()
    }
    infos = {
        name: ModelInfo.of(name, answers[name], ref.weight, (ref.task,) if ref.task else ())
        for name, ref in refs.items()
    }
    own = ModelInfo.of(stage.student, known)
    with seeded(assembly.seed("parts", stage.name), assembly.device):  # projections are drawn
        try:
            objective = Objective.from_config(config, assembly.registry, own, infos)
        except ConfigError as error:
            raise ConfigError([f"{path}.distillation.{problem}" for problem in error.problems], "config") from error
        parts = strategy.build(own, infos)
    loaders = _loaders(assembly, sets, stage.training, stage.name, drawn=strategy.several_tasks)
    learner = Learner(
        student.model,
        adaptors if strategy.several_tasks else adaptors[first],
        objective,
        strategy,
        parts=parts,
        precision=assembly.config.precision,
        arguments=arguments,
        model_inputs=model_inputs,
    )
    taught = {
        name: Asked(
            name,
            live[name],
            learner.needs.teacher(name),
            samples[task],
            answers[name],
            sets[task],
            task if strategy.several_tasks else "",
        )
        for name, task in ((name, ref.task or "") for name, ref in refs.items())
    }
    decisions = {name: decided(assembly, strategy, each) for name, each in taught.items()}
    check_form(assembly, f"{path}.distillation", learner, decisions, taught)
    teachers: dict[str, Teacher] = dict(live)
    if caching:
        teachers |= {
            name: cached(assembly, decisions[name], each) for name, each in taught.items() if decisions[name].folder
        }
    return Lesson(
        learner,
        teachers,
        loaders if strategy.several_tasks else loaders[first],
        stage.training,
        adaptors,
        tuple(teacher.model for teacher in live.values()),
        notes(decisions),
        taught,
        decisions,
    )


def few_rows(batch: Batch, training: Optimization) -> Batch:
    """What is tried of a batch before training: with batch_size `auto` two rows, which hardly any memory is too small for."""
    return split(batch, math.ceil(rows(batch) / 2))[0] if training.batch_size == "auto" else batch


class Stopwatch(Listener):
    """How long a training has taken, also before it was interrupted."""

    key: ClassVar[str] = "stopwatch"

    def __init__(self) -> None:
        self._before, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """The seconds until now."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count from those of a checkpoint on."""
        self._before, self._started = state["seconds"], time.perf_counter()


@dataclass(frozen=True)
class Session:
    """What one call of a run brings to each of its trainings.

    evaluators: those that are asked while a model is trained. resuming: trainings go on where they were interrupted.
    """

    run_folder: RunFolder
    evaluators: TaskEvaluators
    reporter: Reporter
    stop: StopRequest
    resuming: bool = False


def train(assembly: Assembly, lesson: Lesson, folder: Path, tracking: str, session: Session) -> Outcome:
    """Train a lesson. What is drawn (dropout) comes from a seed of its own; the caller's generators stay as they were.

    tracking: the name of the stage in figures. Afterwards the student holds its best weights, where a best is asked for.
    Raises Stopped where the session is asked to stop.
    """
    config, training, processes = assembly.config, lesson.training, assembly.processes
    trackers = _trackers(assembly, session.run_folder, tracking)
    checkpoints = Checkpoints(folder / CHECKPOINTS, training.keep_last, made_with(config, assembly.registry))
    evaluated = [task for task in session.evaluators.evaluators if task in lesson.adaptors]
    evaluation = EvaluationListener(
        lambda: session.evaluators(lesson.learner.student, lesson.adaptors),
        lesson.learner.student,
        every_steps=config.evaluation.every_steps,
        best=best_for(config.evaluation.best, evaluated) if training.keep_best else None,
        report=lambda step, figures: _report(trackers, step, figures),
        keep=checkpoints.pin if training.checkpoint_every_steps else None,
    )
    modes, stopwatch = training_modes(lesson.learner.student, training, teachers=lesson.taught_by), Stopwatch()
    with seeded(assembly.seed("train", tracking, *_of_process(processes)), assembly.device), modes:
        lesson.learner.train()
        engine = Engine(
            lesson.learner,
            make_optimizer(training.optimizer, lesson.learner.student),
            device=assembly.device,
            teachers=lesson.teachers,
            schedule=lambda optimizer: make_schedule(training.schedule, optimizer, lesson.total_steps),
            settings=_settings(assembly, lesson, session.stop),
            listeners=[stopwatch, session.reporter.bar(tracking), evaluation, *trackers],
            checkpoints=checkpoints,
            generator=numpy.random.default_rng(assembly.seed("tasks", tracking)),
            processes=processes,
            in_parts="student" in config.fsdp,
        )
        if session.resuming:
            _take_up(engine, checkpoints, tracking, session.reporter)
        with session.stop.heeding(), closing_caches(lesson.teachers):
            steps = engine.train(lesson.loader, lesson.duration)
    evaluation.restore_best()
    return Outcome(steps, stopwatch.seconds - evaluation.seconds, evaluation.best_step, evaluation.kept)


def _take_up(engine: Engine, checkpoints: Checkpoints, tracking: str, reporter: Reporter) -> None:
    """Go on from the newest whole checkpoint; from the beginning where there is none."""
    state = engine.processes.of_first(checkpoints.newest)
    if state is None:
        for listener in engine.listeners:
            listener.resumed(0)
        return
    engine.load_state_dict(state)
    reporter.say(f"{tracking}: going on after step {engine.step}")


def _trackers(assembly: Assembly, run_folder: RunFolder, tracking: str) -> list[TrackerListener]:
    """The trackers of a training; the first process alone has any."""
    if not assembly.processes.first:
        return []
    always = ComponentRef("tracker", "jsonl")
    refs = (always, *(ref for ref in assembly.config.trackers if ref.name != always.name))
    return [TrackerListener(assembly.bind(ref)(run_folder.path, tracking)) for ref in refs]


def _of_process(processes: Processes) -> tuple[str, ...]:
    """What tells the draws of a process from those of the first."""
    return () if processes.first else (f"process {processes.rank}",)


def _settings(assembly: Assembly, lesson: Lesson, stop: StopRequest) -> Settings:
    training = lesson.training
    every, minutes = training.checkpoint_every_steps, training.save_every_minutes
    return Settings(
        accumulation=lesson.accumulation,
        parts=training.accumulation if lesson.drawn else 1,
        max_grad_norm=training.max_grad_norm,
        loss_normalization=training.loss_normalization,
        precision=assembly.config.precision,
        log_every_steps=training.log_every_steps,
        checkpoint_due=lambda step, _epoch: every is not None and step % every == 0,
        save_at_checkpoints=every is not None,
        save_every_s=None if minutes is None else 60 * minutes,
        stop=lambda: stop.reason,
        on_nonfinite=training.on_nonfinite,
        nonfinite_limit=training.nonfinite_limit,
        split_when_full=training.batch_size == "auto",
        teachers_beside="teachers" not in assembly.config.fsdp and training.compile != "cudagraphs",
        name_rows=assembly.named_rows,
    )


def _loaders(
    assembly: Assembly, sets: Mapping[str, JoinedText], training: Optimization, purpose: str, drawn: bool
) -> dict[str, TextLoader]:
    """A loader for each task, in an order of its own. drawn: a task is drawn for every step, so batches are whole steps."""
    purposes = {task: purpose if len(sets) == 1 else f"{purpose}/{task}" for task in sets}
    return {task: assembly.training_loader(rows, training, purposes[task], drawn) for task, rows in sets.items()}


def _drawing(stage: SupervisedStage | DistillStage) -> dict[str, Any]:
    """The options with which labels are learnt: a baseline draws its tasks as the distillation does."""
    tau = stage.strategy.options.get("tau") if isinstance(stage, DistillStage) else None
    return {} if tau is None else {"tau": tau}


def _check_tasks(strategy: Strategy, stage: DistillStage, path: str, tasks: Sequence[str]) -> None:
    """Raises ConfigError where there are several tasks, and the strategy cannot draw among them."""
    if len(tasks) > 1 and not strategy.several_tasks:
        raise ConfigError(
            [
                f"{path}.strategy: `{stage.strategy.name}` trains on one task, and the data of the stage are of "
                f'{", ".join(tasks)}; use "multi_task", or a stage for each'
            ],
            "config",
        )


def _needs(strategy: Strategy, config: DistillationConfig, teachers: Sequence[str]) -> Needs:
    """What the models must give: asked before the objective is there, which needs the widths of all layers."""
    own = strategy.needs(Objective(None))
    logits = frozenset({"logits"})
    of_all = {match.feature for match in config.matches if match.teacher is None}
    of_all |= logits if config.kd_loss_weight else frozenset()
    by_teacher = {
        name: own.teacher(name) | {m.feature for m in config.matches if m.teacher in (name, i, i - len(teachers))}
        for i, name in enumerate(teachers)
    }
    matched = {match.feature for match in config.matches}
    return Needs(own.student | logits | matched, own.every_teacher | of_all, by_teacher)


def _asked_of_models(needs: Needs, student: str, teachers: Mapping[str, TeacherRef]) -> dict[str, frozenset[str]]:
    """The features that each model is asked for, by its name: one that stands for several teachers for those of all."""
    asked = {student: features_read(needs.student)}
    for name, ref in teachers.items():
        asked[ref.model] = asked.get(ref.model, frozenset()) | features_read(needs.teacher(name))
    return asked


def _live_teacher(
    assembly: Assembly, stage: DistillStage, ref: TeacherRef, arguments: Mapping[str, Any]
) -> LiveTeacher:
    return LiveTeacher(
        assembly.placed(assembly.model(ref.model).model, "teachers"),
        assembly.adaptors(ref.model, ref.adaptor or stage.adaptors.teacher)[ref.task or ""],
        assembly.device,
        precision=assembly.config.precision,
        arguments=arguments,
        model_inputs=model_inputs,
    )


def _features(model: nn.Module, adaptor: Callable[..., Any], batch: Any, arguments: Mapping[str, Any]) -> Features:
    with evaluating(model), torch.no_grad():
        return Features.of(adaptor(batch, call_model(model, model_inputs(batch), arguments)))


def _report(trackers: Sequence[Listener], step: int, figures: Mapping[str, float]) -> None:
    for tracker in trackers:
        tracker.logged(step, {f"eval/{name}": value for name, value in figures.items()})
