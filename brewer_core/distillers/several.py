"""TextBrewer's classes for several teachers, of one task or of a task each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from brewer_core.config import DistillationConfig, TrainingConfig
from brewer_core.config.base import plain_number
from brewer_core.distillers.lesson import Adaptor, TaughtBy
from brewer_core.distillers.request import Callback, TrainRequest
from brewer_core.distillers.single import BasicDistiller, GeneralDistiller
from brewer_core.errors import RequestError
from brewer_core.protocols import ModelInfo
from brewer_core.registry import Registry


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
        sample: Any = None,
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
            sample=sample,
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
    from task to adaptor, or one for all tasks. sample: a dict from task to batch.
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
        sample: Mapping[str, Any] | None = None,
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
            sample=sample,
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
        *,
        sharded: bool = False,
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
            sharded=sharded,
        )
        self._strategy = self._door.strategy({"name": "multi_task", "tau": plain_number(tau)})
        self._door.build(self._strategy, ModelInfo("student"), self._infos())
        self._door.train(self._lesson(), request, args)


def _listed(models: Any, name: str, what: str) -> list[nn.Module]:
    if isinstance(models, (nn.ModuleList, list, tuple)) and len(models):
        return list(models)
    raise RequestError(f"{name} must be a list of {what}, not {f'a {type(models).__name__}' if models else 'empty'}.")


def _check_weights(weights: Sequence[float]) -> None:
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise RequestError(f"weights must be numbers above 0, not {weight!r}.")
