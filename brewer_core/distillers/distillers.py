"""TextBrewer's classes under their signatures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brewer_core.config import DistillationConfig, TrainingConfig
from brewer_core.distillers.door import Adaptor, Callback, Door, TrainRequest, warn
from brewer_core.distillers.modes import Modes
from brewer_core.errors import RequestError
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.plugins import default_registry
from brewer_core.protocols import Teacher
from brewer_core.registry import Registry
from brewer_core.teachers import LiveTeacher

if TYPE_CHECKING:
    from typing_extensions import Self


class Trains(ABC):
    """What all doors share: `train`, and the context that holds the models' modes."""

    _door: Door
    _modes: Modes

    @abstractmethod
    def _lesson(self, arguments: Mapping[str, Any]) -> tuple[Learner, Mapping[str, Teacher]]:
        """What is trained, and who teaches; arguments: for every call of the models."""

    @abstractmethod
    def _models(self) -> tuple[nn.Module, nn.Module | None]:
        """The model that is trained, and the one that teaches."""

    def __enter__(self) -> Self:
        """Put the trained model in training mode and the teacher in eval mode until the context is left."""
        trained, teacher = self._models()
        self._modes.enter(training=[trained], evaluating=[teacher] if teacher is not None else [])
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
        """Train the model, or distil the teacher into the student.

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
        self._door.train(*self._lesson(args), request)


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

    def _models(self) -> tuple[nn.Module, None]:
        return self.model, None

    def _lesson(self, arguments: Mapping[str, Any]) -> tuple[Learner, Mapping[str, Teacher]]:
        return self._door.learner(self.model, self.adaptor, Objective(None), "supervised", arguments), {}


class BasicDistiller(Trains):
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
        self._door = Door(train_config, registry or default_registry())
        self._modes = Modes()
        self._objective = Objective.from_config(self._terms(distill_config), self._door.registry)
        if distill_config.is_caching_logits:
            warn("is_caching_logits is ignored: the teacher answers for every batch anew.")

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        if config.matches:
            warn("BasicDistiller leaves out intermediate_matches; use GeneralDistiller for them.")
        return config.model_copy(update={"intermediate_matches": None})

    def _models(self) -> tuple[nn.Module, nn.Module]:
        return self.model_S, self.model_T

    def _lesson(self, arguments: Mapping[str, Any]) -> tuple[Learner, Mapping[str, Teacher]]:
        learner = self._door.learner(self.model_S, self.adaptor_S, self._objective, "general", arguments)
        precision = self.t_config.autocast
        teacher = LiveTeacher(self.model_T, self.adaptor_T, self._door.device, precision=precision, arguments=arguments)
        return learner, {"teacher": teacher}


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
