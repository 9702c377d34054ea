"""TextBrewer's classes under their signatures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brewer_core.config import DistillationConfig, TrainingConfig
from brewer_core.distillers.custom_matches import CustomMatch, custom_terms
from brewer_core.distillers.door import Adaptor, Callback, Door, Lesson, TaughtBy, TrainRequest, warn
from brewer_core.distillers.modes import Modes
from brewer_core.errors import RequestError
from brewer_core.objective import Builder, MatchTerm, Objective
from brewer_core.plugins import default_registry
from brewer_core.protocols import ModelInfo, Strategy
from brewer_core.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Self


_TEXTBREWERS_INTERNALS = (
    "train_on_batch",
    "compute_loss",
    "initialize_training",
    "train_with_num_steps",
    "train_with_num_epochs",
    "save_and_callback",
    "write_loss",
    "cache_logits",
    "add_match",
    "add_match_by_module",
)
"""Methods of TextBrewer's distillers that its users overrode."""


class Trains(ABC):
    """What all doors share: the context that holds the models' modes, and `train`."""

    _door: Door
    _modes: Modes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raises RequestError where a subclass overrides what TextBrewer's loop called: nothing here would call it."""
        super().__init_subclass__(**kwargs)
        overridden = [name for name in _TEXTBREWERS_INTERNALS if name in vars(cls)]
        if overridden:
            raise RequestError(
                f"{cls.__name__}.{overridden[0]} would never be called: distillers have no loop of their own. Write a "
                "brewer_core.Strategy with its `terms`, and pass it as strategy=..., or use a loss of your own in the config."
            )

    @abstractmethod
    def _lesson(self) -> Lesson:
        """What is trained, and who teaches."""

    def __enter__(self) -> Self:
        """Put the trained model in training mode and the teachers in eval mode until the context is left."""
        lesson = self._lesson()
        self._modes.enter(training=[lesson.student], evaluating=[teacher.model for teacher in lesson.teachers])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the models back in the modes in which they were."""
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
        """Train the model, or distil its teachers into the student.

        optimizer: over the parameters of the model that is trained; projections are added to it.
        dataloader: yields batches, tuples or mappings; passed as `model(*batch)` or `model(**batch)`.
        num_epochs, num_steps: passes over the loader, or optimizer steps; with num_steps the loader needs no length.
        scheduler_class, scheduler_args: the learning-rate schedule, built as `scheduler_class(optimizer=..., **scheduler_args)`
        once the optimizer is complete. scheduler: one that is built already.
        max_grad_norm: clip the gradients of all that is trained to this norm; not above 0 means no clipping.
        callback: called as `callback(model=model, step=global_step)` after each checkpoint.
        batch_postprocessor: applied to every batch.
        **args: passed to every call of the models.

        Raises RequestError for a call that cannot be meant, DataError where the loader gives too little, NonFiniteError
        before a step on a loss that is not finite.
        """
        request = TrainRequest(
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
        self._door.train(self._lesson(), request, args)


class BasicTrainer(Trains):
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
        self._door = Door(train_config, registry or default_registry())
        self._modes = Modes()

    def _lesson(self) -> Lesson:
        return Lesson(self.model, self.adaptor, Objective(None), self._door.strategy("supervised"))


class BasicDistiller(Trains):
    """Distillation of one teacher on one task, without intermediate matches.

    train_config: general settings. distill_config: the terms of the loss. model_T, model_S: teacher and student; the
    student is trained in place. adaptor_T, adaptor_S: turn (batch, model outputs) into features.
    registry: where components are looked up; the default one if None.
    strategy: who teaches what, by name, as `{"name": ..., options}`, or as a Strategy.
    Raises ConfigError where the distillation config names what does not exist.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
        *,
        registry: Registry | None = None,
        strategy: str | Mapping[str, Any] | Strategy | type[Strategy] = "general",
    ) -> None:
        self.t_config = train_config
        self.d_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        self._door = Door(train_config, registry or default_registry())
        self._modes = Modes()
        infos = self._infos()
        self._objective = Objective.from_config(
            self._terms(distill_config), self._door.registry, teachers=infos, extra=self._further_terms
        )
        self._strategy = self._door.strategy(strategy)
        self._parts = self._door.build(self._strategy, infos)

    def _taught_by(self) -> Sequence[TaughtBy]:
        return [TaughtBy("teacher", self.model_T, self.adaptor_T)]

    def _infos(self) -> dict[str, ModelInfo]:
        return {teacher.name: teacher.info for teacher in self._taught_by()}

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        if config.matches:
            warn("BasicDistiller leaves out intermediate_matches; use GeneralDistiller for them.")
        return config.model_copy(update={"intermediate_matches": None})

    def _further_terms(self, build: Builder) -> Sequence[tuple[MatchTerm, float]]:
        del build
        return ()

    def _lesson(self) -> Lesson:
        return Lesson(
            self.model_S,
            self.adaptor_S,
            self._objective,
            self._strategy,
            self._parts,
            self._taught_by(),
            remembering=self.d_config.is_caching_logits,
        )


class GeneralDistiller(BasicDistiller):
    """Distillation of one teacher on one task, with intermediate matches.

    The arguments are those of BasicDistiller. Projections are drawn here, in the order of `intermediate_matches`.
    custom_matches: losses between what modules inside the models return, each a CustomMatch or a dict of its fields.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
        custom_matches: Sequence[CustomMatch | Mapping[str, Any]] | None = None,
        *,
        registry: Registry | None = None,
        strategy: str | Mapping[str, Any] | Strategy | type[Strategy] = "general",
    ) -> None:
        self._custom_matches = tuple(custom_matches or ())
        super().__init__(
            train_config,
            distill_config,
            model_T,
            model_S,
            adaptor_T,
            adaptor_S,
            registry=registry,
            strategy=strategy,
        )

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        return config

    def _further_terms(self, build: Builder) -> Sequence[tuple[MatchTerm, float]]:
        return custom_terms(self._custom_matches, self.model_S, self.model_T)(build)


class MultiTeacherDistiller(BasicDistiller):
    """Distillation of several teachers of one task: of the mean of their logits, and of what matches name of each.

    The arguments are those of BasicDistiller, but for: model_T: a list of teachers. adaptor_T: one for all of them, or a
    list with one each.
    weights: the weight of each teacher in the mean, 1 if None. average: `logits`, or `probabilities` at the temperature.
    A match of `intermediate_matches` names its teacher by its place in the list: `"teacher": 0`.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Sequence[nn.Module],
        model_S: nn.Module,
        adaptor_T: Adaptor | Sequence[Adaptor],
        adaptor_S: Adaptor,
        *,
        weights: Sequence[float] | None = None,
        average: str = "logits",
        registry: Registry | None = None,
    ) -> None:
        self._weights = weights
        strategy = {"name": "multi_teacher", "average": average}
        super().__init__(
            train_config,
            distill_config,
            model_T,
            model_S,
            adaptor_T,
            adaptor_S,
            registry=registry,
            strategy=strategy,
        )

    def _taught_by(self) -> Sequence[TaughtBy]:
        models = _listed(self.model_T, "model_T", "teachers")
        adaptors = [self.adaptor_T] * len(models) if callable(self.adaptor_T) else self.adaptor_T
        weights = [1.0] * len(models) if self._weights is None else self._weights
        for name, given in (("adaptor_T", adaptors), ("weights", weights)):
            if not isinstance(given, Sequence):
                raise RequestError(f"{name} must be a list with one for each teacher, not a {type(given).__name__}.")
            if len(given) != len(models):
                raise RequestError(f"{name} has {len(given)} entries for {len(models)} teachers; give one each.")
        _check_weights(weights)
        return [
            TaughtBy(str(i), model, adaptor, position=i, weight=float(weight))
            for i, (model, adaptor, weight) in enumerate(zip(models, adaptors, weights, strict=True))
        ]

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        return config


class MultiTaskDistiller(GeneralDistiller):
    """Distillation of teachers of several tasks into one student, with intermediate matches.

    The arguments are those of BasicDistiller, but for: model_T: a dict from task to teacher. adaptor_T, adaptor_S: dicts
    from task to adaptor, or one for all tasks.
    A match of `intermediate_matches` holds for every task, or for the one that it names: `"teacher": "ner"`.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Mapping[str, nn.Module],
        model_S: nn.Module,
        adaptor_T: Adaptor | Mapping[str, Adaptor],
        adaptor_S: Adaptor | Mapping[str, Adaptor],
        *,
        registry: Registry | None = None,
    ) -> None:
        super().__init__(
            train_config,
            distill_config,
            model_T,
            model_S,
            adaptor_T,
            adaptor_S,
            registry=registry,
            strategy="multi_task",
        )

    def _taught_by(self) -> Sequence[TaughtBy]:
        if not isinstance(self.model_T, Mapping) or not self.model_T:
            raise RequestError("model_T must be a dict from task to teacher, with one task or more.")
        for name, adaptors in (("adaptor_T", self.adaptor_T), ("adaptor_S", self.adaptor_S)):
            if isinstance(adaptors, Mapping) and set(adaptors) != set(self.model_T):
                raise RequestError(
                    f"{name} has the tasks {', '.join(adaptors)}, and model_T {', '.join(self.model_T)}; they must be the same."
                )
        return [
            TaughtBy(
                task,
                model,
                self.adaptor_T[task] if isinstance(self.adaptor_T, Mapping) else self.adaptor_T,
                tasks=(task,),
            )
            for task, model in self.model_T.items()
        ]

    def train(  # type: ignore[override]  # TextBrewer's signature: several loaders, steps alone
        self,
        optimizer: torch.optim.Optimizer,
        dataloaders: Mapping[str, Any],
        num_steps: int,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        tau: float = 1,
        callback: Callback | None = None,
        batch_postprocessors: Mapping[str, Callable[[Any], Any]] | None = None,
        **args: Any,
    ) -> None:
        """Distil the teachers into the student, task by task as they are drawn.

        dataloaders: a dict from task to loader. num_steps: optimizer steps; each of its micro-batches draws its task from
        numpy's global generator.
        tau: a task is drawn with a probability proportional to its number of batches to this power; uniformly where
        any loader has no length.
        batch_postprocessors: a dict from task to what is applied to its batches.
        The other arguments are those of `GeneralDistiller.train`.

        Raises what that raises, and RequestError for loaders of tasks without a teacher.
        """
        request = TrainRequest(
            optimizer,
            dataloaders,
            None,
            scheduler_class,
            scheduler_args,
            scheduler,
            max_grad_norm,
            num_steps,
            callback,
            batch_postprocessors,
            tasks=tuple(self.model_T),
        )
        self._strategy = self._door.strategy({"name": "multi_task", "tau": tau})
        self._door.build(self._strategy, self._infos())
        self._door.train(self._lesson(), request, args)


Distillers: dict[str, type[Trains]] = {
    "Basic": BasicDistiller,
    "General": GeneralDistiller,
    "MultiTeacher": MultiTeacherDistiller,
    "MultiTask": MultiTaskDistiller,
    "Train": BasicTrainer,
}
"""The classes by TextBrewer's short names."""


def _listed(models: Any, name: str, what: str) -> list[nn.Module]:
    if isinstance(models, (nn.ModuleList, list, tuple)) and len(models):
        return list(models)
    raise RequestError(f"{name} must be a list of {what}, not {f'a {type(models).__name__}' if models else 'empty'}.")


def _check_weights(weights: Sequence[float]) -> None:
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise RequestError(f"weights must be numbers above 0, not {weight!r}.")
