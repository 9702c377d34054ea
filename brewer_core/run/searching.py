"""Which layers learn from which, where they are searched: the rows that they are compared on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from brewer_core.batches import move_to_device, rows, split
from brewer_core.config import DistillStage
from brewer_core.config.optimization import Optimization
from brewer_core.features import Features
from brewer_core.objective import Pairs, searched
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, ModelInfo
from brewer_core.run.assembly import Assembly, JoinedText
from brewer_core.run.teaching import Teaching


def searched_layers(
    assembly: Assembly,
    stage: DistillStage,
    teaching: Teaching,
    sets: Mapping[str, JoinedText],
    teachers: Mapping[str, ModelInfo],
    student: Callable[[str, Batch], Features],
) -> dict[int, Pairs]:
    """The pairs of layers of each match that has them searched, by its position.

    Layers are compared on the first rows that are trained on, of the task that the match's teacher teaches. Every process runs all of
    them, for a teacher in parts needs each process; so neither how many there are nor how a step is cut decides what is found.
    sets: the rows of each task. student: its features for a batch of a task. Raises ConfigError where layers cannot be compared.
    """

    def compared(teacher: str) -> Iterator[tuple[Features, Features]]:
        task = teaching.task_of(teacher)
        for batch in _parts(assembly, stage, sets[task]):
            yield student(task, batch), teaching.answer(teacher, batch)

    found = searched(stage.distillation, compared, teachers)
    return assembly.processes.of_first(lambda: found)


def _parts(assembly: Assembly, stage: DistillStage, dataset: JoinedText) -> Iterator[Batch]:
    """The batches of one process alone, in parts that can be tried."""
    for batch in assembly.training_loader(dataset, stage.training, "sample", processes=Processes()):
        for part in tried_parts(batch, stage.training):
            yield move_to_device(part, assembly.trying_device)


def tried_parts(batch: Batch, training: Optimization) -> Sequence[Batch]:
    """A batch as it is tried before training: with batch_size `auto` in parts of two rows, which hardly any memory is too small for."""
    return split(batch, math.ceil(rows(batch) / 2)) if training.batch_size == "auto" else [batch]
