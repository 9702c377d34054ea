"""What a distiller knows of its models before it trains: what a batch shows of them, where it is given one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from brewer_core.batches import rows, side
from brewer_core.captures import Notices
from brewer_core.config import DistillationConfig
from brewer_core.distillers.lesson import Adaptor, TaughtBy
from brewer_core.errors import DataError, RequestError
from brewer_core.features import Features
from brewer_core.objective import searched, with_pairs
from brewer_core.protocols import ModelInfo, Teacher
from brewer_core.teachers import LiveTeacher


@dataclass(frozen=True)
class Known:
    """What is known of the models, and the config with the layers that were searched."""

    student: ModelInfo
    teachers: Mapping[str, ModelInfo]
    config: DistillationConfig


@dataclass(frozen=True)
class Sampling:
    """Runs models on a batch. precision: of their forward passes. model_inputs: what the models take of a batch."""

    device: torch.device
    precision: str
    notices: Notices
    model_inputs: Callable[[Any], Any] = lambda batch: batch

    def __call__(
        self,
        sample: Any,
        student: nn.Module,
        adaptor: Adaptor | Mapping[str, Adaptor],
        teachers: Mapping[str, TaughtBy],
        config: DistillationConfig,
    ) -> Known:
        """What a sample shows: a batch, or a mapping from task to batch where teachers have tasks.

        Nothing is known where it is None. Raises RequestError where a task has no batch or a batch has no rows, and ConfigError
        where layers cannot be searched.
        """
        if sample is None:
            return Known(ModelInfo("student"), {name: each.info for name, each in teachers.items()}, config)
        batches = {name: _batch_of(sample, each) for name, each in teachers.items()}
        adaptors = {name: _adaptor_for(adaptor, each) for name, each in teachers.items()}

        def own(name: str) -> Features:
            """The student's features for the batch of a teacher."""
            asked = self._live(student, adaptors[name], owner="student")
            return asked.features(side(batches[name], "student"), _needs(config, "S"))

        needs = _needs(config, "T")
        known = ModelInfo.of("student", own(next(iter(teachers))))
        answers = {name: self._teacher(each).features(batches[name], needs) for name, each in teachers.items()}
        infos = {name: ModelInfo.of(name, answers[name], each.weight, each.tasks) for name, each in teachers.items()}
        found = searched(config, lambda name: [(own(name), answers[name])], infos)
        return Known(known, infos, with_pairs(config, found))

    def _teacher(self, taught_by: TaughtBy) -> Teacher:
        if not isinstance(taught_by.model, nn.Module):
            return taught_by.model
        return self._live(taught_by.model, taught_by.adaptor, taught_by.position)

    def _live(
        self, model: nn.Module, adaptor: Adaptor, position: int | None = None, owner: str = "teacher"
    ) -> LiveTeacher:
        return LiveTeacher(
            model,
            adaptor,
            self.device,
            precision=self.precision,
            model_inputs=self.model_inputs,
            position=position,
            owner=owner,
            notices=self.notices,
        )


def _needs(config: DistillationConfig, side: Literal["S", "T"]) -> frozenset[str]:
    """All layers of what matches read on a side."""
    return frozenset({"inputs_mask"}).union(read.feature for match in config.matches for read in match.reads(side))


def _adaptor_for(adaptor: Adaptor | Mapping[str, Adaptor], teacher: TaughtBy) -> Adaptor:
    """The student's adaptor for what a teacher teaches."""
    return adaptor[teacher.tasks[0]] if isinstance(adaptor, Mapping) else adaptor


def _batch_of(sample: Any, teacher: TaughtBy) -> Any:
    if not teacher.tasks:
        return _with_rows(sample, "sample")
    if not isinstance(sample, Mapping) or teacher.tasks[0] not in sample:
        raise RequestError(f"sample must be a dict from task to batch, with one for the task {teacher.tasks[0]!r}.")
    return _with_rows(sample[teacher.tasks[0]], f"sample[{teacher.tasks[0]!r}]")


def _with_rows(batch: Any, where: str) -> Any:
    """The batch. Raises RequestError where it has no rows; how many a batch of a class of its own has is not known here."""
    own = side(batch, "student")
    try:
        empty = rows(own) == 0
    except DataError:
        empty = isinstance(own, (Mapping, list, tuple))
    if empty:
        raise RequestError(
            f"{where} has no rows; the layers and widths of the models are read off a batch with at least one, so give one that the "
            "dataloader yields."
        )
    return batch
