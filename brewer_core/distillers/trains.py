"""What all of TextBrewer's classes share: `train`, and the context that holds the models' modes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from brewer_core.distillers.door import Door
from brewer_core.distillers.lesson import Lesson
from brewer_core.distillers.modes import Modes
from brewer_core.distillers.request import Callback, TrainRequest
from brewer_core.errors import ReadOnlyError, RequestError

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

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises ReadOnlyError for another config: what is built of the first one would not follow."""
        if name in ("t_config", "d_config") and name in vars(self):
            raise ReadOnlyError(
                f"{type(self).__name__}.{name} cannot be replaced: the distiller is built of it; build another distiller "
                "with the new config."
            )
        super().__setattr__(name, value)

    @abstractmethod
    def _lesson(self) -> Lesson:
        """What is trained, and who teaches."""

    def __enter__(self) -> Self:
        """Put the trained model in training mode and the teachers in eval mode until the context is left."""
        lesson = self._lesson()
        self._modes.enter(training=[lesson.student], evaluating=lesson.teacher_models)
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
        *,
        sharded: bool = False,
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
        sharded: under torchrun, says that the loader of each process has rows of its own; a DataLoader with a
        DistributedSampler has, and anything else is refused without it. The callback is called in the first process.
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
            sharded=sharded,
        )
        self._door.train(self._lesson(), request, args)
