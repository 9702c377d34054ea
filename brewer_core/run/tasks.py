"""Several tasks in one run: who learns which, and how they share the head of a model.

A run of one task is one of a task without a name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from brewer_core.config import ComponentRef, DistillStage, RunConfig, SupervisedStage
from brewer_core.config.run import Best, TeacherRef
from brewer_core.config.taskrefs import MEAN
from brewer_core.errors import AdaptorError
from brewer_core.features import Counts
from brewer_core.protocols import Batch, CountingAdaptor, Task

Stage = SupervisedStage | DistillStage


def trained_model(stage: Stage) -> str:
    """The name of the model that a stage trains."""
    return stage.student if isinstance(stage, DistillStage) else stage.model


def adaptor_of(config: RunConfig, stage: Stage) -> ComponentRef:
    """The adaptor of the model that a stage trains; in a supervised stage that of the tasks' kind."""
    return stage.adaptors.student if isinstance(stage, DistillStage) else config.kind.adaptor


def task_of(config: RunConfig, data: str) -> str:
    """The task of some data, `NAME` or `NAME.SPLIT`."""
    return config.data[data.partition(".")[0]].task or ""


def tasks_of_stage(config: RunConfig, stage: Stage) -> list[str]:
    """The tasks of the data that a stage trains on, in the order of the config."""
    learnt = {task_of(config, data) for data in (*stage.train, *_unlabelled(stage))}
    return [task for task in config.tasks_by_name if task in learnt]


def tasks_of_model(config: RunConfig, name: str) -> list[str]:
    """The tasks that a model learns or teaches, in the order of the config; all of them for a model of no stage."""
    has: set[str] = set()
    for stage in config.stages:
        has |= {teacher.task or "" for teacher in _teachers(stage) if teacher.model == name}
        if trained_model(stage) == name:
            has |= set(tasks_of_stage(config, stage))
    return [task for task in config.tasks_by_name if task in has or not has]


def named_teachers(stage: DistillStage) -> dict[str, TeacherRef]:
    """The teachers of a stage by the names of their models; `MODEL.TASK` where one stands there for several tasks."""
    models = [teacher.model for teacher in stage.teachers]
    return {
        teacher.model if models.count(teacher.model) == 1 else f"{teacher.model}.{teacher.task}": teacher
        for teacher in stage.teachers
    }


def side_by_side(tasks: Mapping[str, Task]) -> Task:
    """Several tasks as one, whose classes are theirs one after the other, as `TASK: CLASS`; a single one as it is."""
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    labels = tuple(f"{name}: {label}" for name, task in tasks.items() for label in task.labels)
    first = next(iter(tasks.values()))
    return Task(first.kind, labels, any(task.pair for task in tasks.values()))


def columns(tasks: Mapping[str, Task]) -> dict[str, slice]:
    """Where the classes of each task stand among those that are side by side."""
    found, start = {}, 0
    for name, task in tasks.items():
        found[name] = slice(start, start + len(task.labels))
        start += len(task.labels)
    return found


def best_for(best: Best | None, tasks: Sequence[str]) -> Best | None:
    """What chooses among the weights of a model of these tasks.

    None where the figure is another task's, so that the last weights stay. The mean over one task is its figure.
    """
    if best is None or list(tasks) == [""]:
        return best
    task, _, metric = best.metric.partition("/")
    if task == MEAN and len(tasks) == 1:
        return best.model_copy(update={"metric": f"{tasks[0]}/{metric}"})
    return best if task in tasks or (task == MEAN and tasks) else None


class TaskAdaptor:
    """An adaptor of one task: it sees the task's own columns of the logits that a model gives for several."""

    def __init__(self, adaptor: Callable[..., Any], own: slice) -> None:
        self.adaptor = adaptor
        self.own = own

    def __call__(self, batch: Batch, model_outputs: Any) -> Any:
        """What the adaptor makes of the task's columns. Raises AdaptorError for outputs without `logits`."""
        return self.adaptor(batch, self._cut(model_outputs))

    def _cut(self, outputs: Any) -> Any:
        mine = copy.copy(outputs)  # shallow: the caller's outputs keep all columns
        if isinstance(outputs, MutableMapping) and "logits" in outputs:
            mine["logits"] = outputs["logits"][..., self.own]
        elif getattr(outputs, "logits", None) is not None:
            mine.logits = outputs.logits[..., self.own]
        else:
            raise AdaptorError(
                f"the model returned a {type(outputs).__name__} without `logits`, of which each of its tasks has a part; "
                "it must return a mapping or an object with `logits`."
            )
        return mine


class CountingTaskAdaptor(TaskAdaptor):
    """The same around an adaptor that can count."""

    adaptor: CountingAdaptor

    def counts(self, batch: Batch) -> Counts:
        """What the adaptor counts."""
        return self.adaptor.counts(batch)


def for_columns(adaptor: Callable[..., Any], own: slice) -> TaskAdaptor:
    """The adaptor of the task that has these columns."""
    return (CountingTaskAdaptor if isinstance(adaptor, CountingAdaptor) else TaskAdaptor)(adaptor, own)


def _teachers(stage: Stage) -> Sequence[TeacherRef]:
    return stage.teachers if isinstance(stage, DistillStage) else ()


def _unlabelled(stage: Stage) -> Sequence[str]:
    return stage.unlabelled if isinstance(stage, DistillStage) else ()
