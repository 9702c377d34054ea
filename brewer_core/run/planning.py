"""What a run will do, found out by building all of it and trying one batch of each stage, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brewer_core.batches import move_to_device
from brewer_core.config import ComponentRef, DistillStage, RunConfig, SupervisedStage
from brewer_core.config.run import TeacherRef
from brewer_core.engine.balancing import GradientTrial
from brewer_core.errors import BrewerError, ConfigError
from brewer_core.precision import check_precision
from brewer_core.protocols import Step
from brewer_core.run.assembly import Assembly, attempt, model_inputs
from brewer_core.run.evaluation import Evaluator, TaskEvaluators, check_best
from brewer_core.run.lessons import Lesson, distill_lesson, few_rows, supervised_lesson
from brewer_core.run.optimization import check_training
from brewer_core.run.tasks import trained_model
from brewer_core.teachers import evaluating


@dataclass(frozen=True)
class Plan:
    """What a run will do, found out by building all of it and trying one batch of each task in each stage.

    The task of a run of one bears the name "".
    """

    stages: tuple[tuple[str, str, int], ...]
    """Name, model and optimizer steps of each stage."""
    rows: Mapping[str, Mapping[str, int]]
    """Rows that are evaluated on, by task and use."""
    classes: Mapping[str, tuple[str, ...]]
    """Names of the classes by task."""
    learnt: Mapping[str, str]
    """What is learnt, by task."""
    teachers: Mapping[str, tuple[str, ...]]
    """Names of the teachers by task."""
    parameters: Mapping[str, int]
    """Parameters by model."""
    terms: Mapping[str, Mapping[str, float]]
    """Terms of each stage with their values on one batch."""
    notes: Mapping[str, Sequence[str]]
    """What is said of each stage when it begins: of its teachers, which are cached and where."""


def plan(assembly: Assembly) -> Plan:
    """Build every part and try one batch of each task in each stage, without training.

    Raises ConfigError with every problem of data and models.
    """
    check_precision(assembly.config.precision, assembly.device)
    problems: list[str] = []
    tasks = {name: attempt(problems, assembly.sources.task, name) for name in assembly.config.tasks_by_name}
    if problems or attempt(problems, getattr, assembly, "tokenizer") is None:
        raise ConfigError(problems, "config")
    models = {name: attempt(problems, assembly.model, name) for name in assembly.config.models}
    for i, stage in enumerate(assembly.config.stages):
        attempt(problems, assembly.training_sets, stage, f"stages[{i}]", isinstance(stage, SupervisedStage))
    if assembly.config.baselines:
        last = len(assembly.config.stages) - 1
        attempt(problems, assembly.training_sets, assembly.config.stages[last], f"stages[{last}]", True)
    evaluators = {use: _try_evaluators(problems, assembly, use) for use in ("data", "test")}
    if problems:  # a batch is tried only of what could be built
        raise ConfigError(list(dict.fromkeys(problems)), "config")
    tried = {stage.name: attempt(problems, _try_stage, assembly, i) for i, stage in enumerate(assembly.config.stages)}
    attempt(problems, _check_best, assembly, evaluators["data"])
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), "config")
    rows = {use: evaluator.rows for use, evaluator in evaluators.items()}
    return Plan(
        stages=tuple((stage.name, trained_model(stage), tried[stage.name][0]) for stage in assembly.config.stages),
        rows={task: {use: count[task] for use, count in rows.items() if task in count} for task in tasks},
        classes={name: task.labels for name, task in tasks.items()},
        learnt={name: assembly.sources.kind.told(task, assembly.tokenizer) for name, task in tasks.items()},
        teachers={task: _teachers_of(assembly.config, task) for task in tasks},
        parameters={name: assembly.facts(name).parameters for name in models},
        terms={name: terms for name, (_, terms, _) in tried.items()},
        notes={name: notes for name, (_, _, notes) in tried.items()},
    )


def stage_lesson(assembly: Assembly, position: int) -> Lesson:
    """What the stage at a position trains, with the models as they are now."""
    stage, path = assembly.config.stages[position], f"stages[{position}]"
    if isinstance(stage, DistillStage):
        return distill_lesson(assembly, stage, path, assembly.model(stage.student), caching=False)
    return supervised_lesson(assembly, stage, path, assembly.model(stage.model), stage.name)


def first_batches(lesson: Lesson, device: torch.device) -> dict[str, Any]:
    """The first batch of each task, as the strategy prepares it."""
    loaders = lesson.loader if isinstance(lesson.loader, Mapping) else {"": lesson.loader}
    first = {task: few_rows(next(iter(loader)), lesson.training) for task, loader in loaders.items()}
    batches = {task: move_to_device(batch, device) for task, batch in first.items()}
    learner = lesson.learner
    with torch.no_grad():
        return {task: learner.strategy.prepare(task, batch, learner.student) for task, batch in batches.items()}


def try_batch(lesson: Lesson, task: str, batch: Any) -> Mapping[str, Tensor]:
    """The unweighted terms of a batch, at the start of the stage."""
    learner = lesson.learner
    asked = learner.strategy.teachers_for(task, tuple(lesson.teachers))
    answers = {name: lesson.teachers[name].features(batch, learner.needs.teacher(name)) for name in asked}
    losses: Mapping[str, Tensor] = learner(task, batch, answers, Step(0, lesson.total_steps))
    return losses


def _try_stage(assembly: Assembly, position: int) -> tuple[int, dict[str, float], Sequence[str]]:
    """Build a stage and compute its losses on one batch, without gradient; its steps, its terms, and what is said of it."""
    path = f"stages[{position}]"
    lesson, terms = stage_lesson(assembly, position), dict[str, float]()
    gradients = GradientTrial(lesson.learner)
    if gradients.needed and assembly.in_parts("student"):
        raise ConfigError(
            [
                f"{path}.distillation.balancer: it takes gradients by a weight of the student, of which each process has a part; leave "
                '"student" out of fsdp, or take another balancer'
            ],
            "config",
        )
    with evaluating(lesson.learner), torch.set_grad_enabled(gradients.needed):
        for task, batch in first_batches(lesson, assembly.trying_device).items():
            with located(path):
                losses = try_batch(lesson, task, batch)
            with located(f"{path}.distillation.balancer"):
                gradients.take(losses, Step(0, lesson.total_steps))
            terms |= {f"{name}/{task}" if task else name: loss.item() for name, loss in losses.items()}
    check_training(
        assembly.config.stages[position].training, lesson.learner.student, lesson.total_steps, f"{path}.training"
    )
    return lesson.total_steps, terms, lesson.notes


@contextmanager
def located(path: str) -> Iterator[None]:
    """Errors raised inside it say where in the config the cause is."""
    try:
        yield
    except BrewerError as error:
        raise ConfigError([_within(path, str(error).rstrip("."))], "config") from error


def _within(stage: str, problem: str) -> str:
    """A problem of a stage; one of a term of its losses, which begins with the term's path, has the whole path."""
    of_term = problem.startswith(("intermediate_matches[", "kd_loss_type"))
    return f"{stage}.distillation.{problem}" if of_term else f"{stage}: {problem}"


def evaluators_for(assembly: Assembly, use: str) -> TaskEvaluators:
    """The evaluators of each task, on `data` or on `test`."""
    return TaskEvaluators({task: _evaluator(assembly, use, task) for task in assembly.evaluated_on(use)})


def _try_evaluators(problems: list[str], assembly: Assembly, use: str) -> TaskEvaluators:
    """The evaluators of each task that has any; what is wrong with the others joins the problems."""
    tried = {task: attempt(problems, _evaluator, assembly, use, task) for task in assembly.evaluated_on(use)}
    return TaskEvaluators({task: evaluator for task, evaluator in tried.items() if evaluator is not None})


def _evaluator(assembly: Assembly, use: str, task: str) -> Evaluator:
    config = assembly.config
    metrics = {_metric_name(ref, i, config): assembly.bind(ref) for i, ref in enumerate(config.evaluation.metrics)}
    loader = assembly.evaluation_loader(use, task)
    return Evaluator(
        loader,
        metrics,
        assembly.sources.task(task),
        assembly.device,
        config.precision,
        model_inputs,
        assembly.processes,
    )


def _metric_name(ref: ComponentRef, position: int, config: RunConfig) -> str:
    before = [other.name for other in config.evaluation.metrics[:position]]
    return ref.name if ref.name not in before else f"{ref.name}_{before.count(ref.name) + 1}"


def teacher_models(teachers: Iterable[TeacherRef]) -> list[str]:
    """The names of the teachers' models, each once."""
    return list(dict.fromkeys(teacher.model for teacher in teachers))


def _teachers_of(config: RunConfig, task: str) -> tuple[str, ...]:
    """The models that teach a task in any stage."""
    stages = [stage for stage in config.stages if isinstance(stage, DistillStage)]
    return tuple(teacher_models(ref for stage in stages for ref in stage.teachers if (ref.task or "") == task))


def _check_best(assembly: Assembly, evaluators: TaskEvaluators) -> None:
    """Raises ConfigError where the best checkpoint is to be chosen by a figure that no metric gives, or in its worse direction."""
    best = assembly.config.evaluation.best
    if best is None:
        return
    check_best(best, evaluators.known())
    if best.mode == "max" and evaluators.lower_is_better(best.metric):
        raise ConfigError(
            [
                f'evaluation.best.mode: of {best.metric!r} less is better, and "max" would keep the worst; set it to "min"'
            ]
        )
