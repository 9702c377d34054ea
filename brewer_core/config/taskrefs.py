"""Problems of a run config with its `tasks`: who is of which, and whether teachers and data of a stage meet.

Read off the JSON itself, as in `crossrefs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brewer_core.config.crossrefs import items, keys, names_of_data, teachers_of
from brewer_core.errors import did_you_mean

MEAN = "mean"
"""What figures over all tasks are called in the place of a task."""


def task_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each problem, with its path."""
    if document.get("tasks") is None:
        yield from _without_tasks(document)
        return
    if document.get("task") is not None:
        yield "tasks: `task` is given as well; give one of them"
    tasks = keys(document, "tasks")
    if tasks:
        yield from _Tasks(document, tasks).problems()


def _without_tasks(document: Mapping[str, Any]) -> Iterator[str]:
    for path, owner in [*_data(document), *_teachers(document)]:
        if owner.get("task") is not None:
            yield f"{path}.task: the run has no `tasks` to name one of; add them, or leave it out"
    for key in ("data", "test"):
        named = names_of_data(_evaluation(document), key)
        if len(named) > 1:
            yield f"evaluation.{key}: names {len(named)} data, and a run without `tasks` is evaluated on one; name one"


class _Tasks:
    """The tasks of a config with what names them."""

    def __init__(self, document: Mapping[str, Any], tasks: Sequence[str]) -> None:
        self.document = document
        self.tasks = tasks
        self.of_data = {path.removeprefix("data."): entry.get("task") for path, entry in _data(document)}
        self.trained = self._trained()

    def problems(self) -> Iterator[str]:
        for task in self.tasks:
            yield from self._name_problems(task)
        for path, owner in [*_data(self.document), *_teachers(self.document)]:
            yield from self._unknown(f"{path}.task", owner.get("task"))
        for path, stage in _stages(self.document):
            if stage.get("kind") == "distill" and self._is_whole(stage):
                yield from self._stage_problems(path, stage)
        for key in ("data", "test"):
            yield from self._evaluation_problems(key)

    def _name_problems(self, task: str) -> Iterator[str]:
        path = f"tasks.{task}"
        if task == MEAN:
            yield f"{path}: {MEAN!r} is what figures over all tasks are called; choose another name"
        elif not task.replace("-", "_").isidentifier():
            yield f"{path}: {task!r} becomes a part of names of figures; use letters, digits, - and _, beginning with a letter"
        used = [self._task_of(name) for _, stage in _stages(self.document) for _, name in _rows(stage)]
        if task not in used and None not in used:
            yield f"{path}: no stage trains on data of this task; name such data in a stage, or leave the task out"

    def _stage_problems(self, path: str, stage: Mapping[str, Any]) -> Iterator[str]:
        taught = [teacher["task"] for teacher in teachers_of(stage)]
        learnt = [self._task_of(name) for _, name in _rows(stage)]
        for where, name in _rows(stage):
            if self._task_of(name) not in taught:
                yield f"{path}.{where}: {name!r} is of the task {self._task_of(name)!r}, which no teacher of the stage teaches"
        for i, teacher in enumerate(teachers_of(stage)):
            task, trained = teacher["task"], self.trained.get(str(teacher.get("model")), [])
            if task not in learnt:
                yield f"{path}.teachers[{i}].task: the stage trains on no data of the task {task!r}"
            elif trained and task not in trained and None not in trained:
                others = ", ".join(dict.fromkeys(map(str, trained)))
                yield f"{path}.teachers[{i}].task: the run trains {teacher['model']!r} on {others}, not on {task!r}"

    def _evaluation_problems(self, key: str) -> Iterator[str]:
        seen: dict[str, str] = {}
        for path, name in names_of_data(_evaluation(self.document), key):
            task = self._task_of(name)
            if task in seen:
                yield f"{path}: {name!r} is of the task {task!r}, as {seen[task]!r} is; name one for each task"
            if task is not None:
                seen.setdefault(task, name)

    def _unknown(self, path: str, task: Any) -> Iterator[str]:
        if task is None:
            yield f"{path}: is required in a run with `tasks`; name one of {', '.join(self.tasks)}"
        elif isinstance(task, str) and task not in self.tasks:
            yield f"{path}: no task is called {task!r}{did_you_mean(task, self.tasks)}"

    def _task_of(self, name: Any) -> str | None:
        """The task of some data; None where that is a problem of its own."""
        task = self.of_data.get(name.partition(".")[0]) if isinstance(name, str) else None
        return task if isinstance(task, str) and task in self.tasks else None

    def _is_whole(self, stage: Mapping[str, Any]) -> bool:
        """Whether the tasks of all data and teachers of a stage are known."""
        taught = [teacher.get("task") for teacher in teachers_of(stage)]
        learnt = [self._task_of(name) for _, name in _rows(stage)]
        return bool(taught and learnt) and None not in learnt and all(task in self.tasks for task in taught)

    def _trained(self) -> dict[str, list[str | None]]:
        """The tasks that each model is trained on in the run."""
        trained: dict[str, list[str | None]] = {}
        for _, stage in _stages(self.document):
            model = str(stage.get("model") or stage.get("student"))
            trained.setdefault(model, []).extend(self._task_of(name) for _, name in _rows(stage))
        return trained


def _stages(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    stages = enumerate(items(document, "stages"))
    return [(f"stages[{i}]", stage) for i, stage in stages if isinstance(stage, Mapping)]


def _data(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    entries = [(f"data.{name}", document["data"][name]) for name in keys(document, "data")]
    return [(path, entry) for path, entry in entries if isinstance(entry, Mapping)]


def _teachers(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (f"{path}.teachers[{i}]", teacher)
        for path, stage in _stages(document)
        for i, teacher in enumerate(teachers_of(stage))
    ]


def _rows(stage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The data that a stage trains on, each with its place in the stage."""
    return [(f"{key}[{i}]", name) for key in ("train", "unlabelled") for i, name in enumerate(items(stage, key))]


def _evaluation(document: Mapping[str, Any]) -> Mapping[str, Any]:
    evaluation = document.get("evaluation")
    return evaluation if isinstance(evaluation, Mapping) else {}
