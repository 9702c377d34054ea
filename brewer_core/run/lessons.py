"""What a stage trains, built from its config: the learner, the batches and the teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from brewer_core.batches import call_model, move_to_device
from brewer_core.cache import shared
from brewer_core.captures import PathError, capturing
from brewer_core.config import DistillationConfig, DistillStage, SupervisedStage
from brewer_core.config.optimization import Optimization
from brewer_core.engine import Duration
from brewer_core.errors import ConfigError
from brewer_core.features import Features
from brewer_core.learner import Learner
from brewer_core.objective import Objective, Pairs, balancer_of, path_problems, places_of, with_pairs
from brewer_core.protocols import Batch, LoadedModel, ModelInfo, Strategy, Teacher
from brewer_core.randomness import seeded
from brewer_core.run.assembly import Assembly, JoinedText, model_inputs
from brewer_core.run.caching import Asked, Decision, cached, check_form, decided, notes
from brewer_core.run.loading import TextLoader
from brewer_core.run.searching import searched_layers, tried_parts
from brewer_core.run.tasks import adaptor_of, trained_model
from brewer_core.run.teaching import Teaching, released
from brewer_core.teachers import evaluating


@dataclass(frozen=True)
class Lesson:
    """What a stage trains: a learner, on batches, with teachers.

    loader: one, or a mapping from task to loader. adaptors: the trained model's, for each of its tasks.
    taught_by: the modules of its teachers. notes: what is said of it when it begins. asked, decisions: what is asked of each teacher,
    and whether it is cached. layers: the pairs of layers that were searched, by the position of the match.
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
    layers: Mapping[int, Pairs] = field(default_factory=dict)

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
    adaptors = assembly.adaptors(trained_model(stage), adaptor_of(assembly.config, stage))
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
    assembly: Assembly,
    stage: DistillStage,
    path: str,
    student: LoadedModel,
    caching: bool = True,
    layers: Mapping[int, Pairs] | None = None,
) -> Lesson:
    """The lesson of a distillation: teachers as far as they are trained, and the student.

    caching: teachers are cached, as far as the config says; without, they are live, and nothing is kept of a trial.
    layers: the pairs of layers that a stage which goes on has found; searched where None.
    """
    strategy = assembly.bind(stage.strategy)()
    sets = assembly.training_sets(stage, path)
    _check_tasks(strategy, stage, path, list(sets))
    adaptors = assembly.adaptors(stage.student, stage.adaptors.student)
    teaching = Teaching(assembly, stage, strategy, student)
    samples = {
        task: move_to_device(few_rows(next(iter(sample)), stage.training), assembly.trying_device)
        for task, sample in _loaders(assembly, sets, stage.training, "sample", drawn=False).items()
    }
    first, sample = next(iter(samples.items()))
    _check_paths(stage.distillation, path, student.model, teaching)
    with _placed(stage.distillation, path):
        known = _features(student.model.to(assembly.trying_device), adaptors[first], sample, teaching)
        answers = teaching.answers(samples)
    own, infos = ModelInfo.of(stage.student, known), teaching.infos(answers)
    if layers is None:
        with _below(path):
            layers = searched_layers(
                assembly,
                stage,
                teaching,
                sets,
                infos,
                lambda task, batch: _features(student.model, adaptors[task], batch, teaching),
            )
    with seeded(assembly.seed("parts", stage.name), assembly.device):  # projections are drawn
        objective = _objective(assembly, with_pairs(stage.distillation, layers), path, own, infos)
        parts = strategy.build(own, infos)
        with _below(path):
            balancer = balancer_of(stage.distillation, assembly.registry, objective, strategy)
    learner = Learner(
        student.model,
        adaptors if strategy.several_tasks else adaptors[first],
        objective,
        strategy,
        parts=parts,
        balancer=balancer,
        precision=assembly.config.precision,
        arguments=teaching.arguments,
        model_inputs=model_inputs,
    ).to(assembly.trying_device)
    asked = teaching.asked(learner, samples, answers, sets)
    decisions = {name: decided(assembly, strategy, each) for name, each in asked.items()}
    check_form(assembly, f"{path}.distillation", learner, decisions, asked)
    teachers: dict[str, Teacher] = dict(teaching.live)
    if caching:
        teachers |= {
            name: cached(assembly, decisions[name], each) for name, each in asked.items() if decisions[name].folder
        }
        teachers = shared(teachers)
    gone = released(assembly, stage, teachers, asked) if caching else frozenset()
    loaders = _loaders(assembly, sets, stage.training, stage.name, drawn=strategy.several_tasks)
    return Lesson(
        learner,
        teachers,
        loaders if strategy.several_tasks else loaders[first],
        stage.training,
        adaptors,
        tuple(live.model for name, live in teaching.live.items() if name not in gone),
        [*teaching.notes, *notes(decisions)],
        asked,
        decisions,
        layers,
    )


def _objective(
    assembly: Assembly, config: DistillationConfig, path: str, student: ModelInfo, teachers: Mapping[str, ModelInfo]
) -> Objective:
    with _below(path):
        return Objective.from_config(config, assembly.registry, student, teachers)


@contextmanager
def _below(path: str) -> Iterator[None]:
    """Problems of a distillation config say which stage it is of."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([f"{path}.distillation.{problem}" for problem in error.problems], "config") from error


def _check_paths(config: DistillationConfig, path: str, student: nn.Module, teaching: Teaching) -> None:
    """Raises ConfigError where a match names a module that its model has not."""
    teachers = {name: live.model for name, live in teaching.live.items()}
    problems = path_problems(config.matches, student, teachers)
    if problems:
        raise ConfigError([f"{path}.distillation.{problem}" for problem in problems], "config")


@contextmanager
def _placed(config: DistillationConfig, path: str) -> Iterator[None]:
    """What is wrong with a path that a match names is told with its place in the config."""
    try:
        yield
    except PathError as error:
        places = places_of(error.name, config.matches) or [""]
        raise ConfigError(
            [f"{path}.distillation.{place}: {str(error).rstrip('.')}" for place in places], "config"
        ) from error


def few_rows(batch: Batch, training: Optimization) -> Batch:
    """What is tried of a batch before training."""
    return tried_parts(batch, training)[0]


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


def _features(model: nn.Module, adaptor: Callable[..., Any], batch: Any, teaching: Teaching) -> Features:
    """All layers of what is read of the student, for a few rows."""
    with evaluating(model), torch.no_grad(), capturing(model, teaching.needs.student, "student") as capture:
        outputs = call_model(model, model_inputs(batch), teaching.arguments)
        return capture.added_to(Features.of(adaptor(batch, outputs)))
