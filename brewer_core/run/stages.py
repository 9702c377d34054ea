"""Trains a stage: its checkpoints, figures and trackers, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy

from brewer_core.checkpoints import Checkpoints
from brewer_core.config import ComponentRef
from brewer_core.engine import Engine, Settings
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.processes import Processes
from brewer_core.randomness import seeded
from brewer_core.run.assembly import Assembly
from brewer_core.run.caching import closing_caches
from brewer_core.run.evaluation import EvaluationListener, TaskEvaluators
from brewer_core.run.folder import RunFolder
from brewer_core.run.lessons import Lesson
from brewer_core.run.manifest import made_with
from brewer_core.run.optimization import make_optimizer, make_schedule
from brewer_core.run.reporting import Reporter
from brewer_core.run.tasks import best_for
from brewer_core.run.training_modes import training_modes
from brewer_core.stopping import StopRequest

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What a training brought: optimizer steps, seconds without evaluation, and the figures of the weights that it left."""

    steps: int
    seconds: float
    best_step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


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
    balancer = lesson.learner.balancer
    modes = training_modes(
        lesson.learner.student,
        training,
        teachers=lesson.taught_by,
        several_backward=balancer is not None and balancer.reads_gradients,
    )
    stopwatch = Stopwatch()
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
    trackers: list[TrackerListener] = []
    with ExitStack() as opened:
        for ref in refs:
            trackers.append(TrackerListener(assembly.bind(ref)(run_folder.path, tracking)))
            opened.callback(trackers[-1].end)
        opened.pop_all()  # the training ends them
    return trackers


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


def _report(trackers: Sequence[Listener], step: int, figures: Mapping[str, float]) -> None:
    for tracker in trackers:
        tracker.logged(step, {f"eval/{name}": value for name, value in figures.items()})
