"""Problems of a run config that lie between its parts: names of models, data and stages, and what excludes what.

Read off the JSON itself, so that they are told together with problems of shape; what is malformed is left to those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brewer_core.errors import did_you_mean


def reference_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each problem, with its path."""
    data, models = keys(document, "data"), keys(document, "models")
    stages = [
        (f"stages[{i}]", stage) for i, stage in enumerate(items(document, "stages")) if isinstance(stage, Mapping)
    ]
    for path, stage in stages:
        yield from _stage_problems(path, stage, data, models)
    yield from _stage_names(stages)
    yield from _evaluation_problems(document, data)
    if items(document, "baselines") and stages and stages[-1][1].get("kind") == "supervised":
        yield "baselines: labels_only needs a distill stage at the end, whose student it trains"


def _stage_problems(path: str, stage: Mapping[str, Any], data: list[str], models: list[str]) -> Iterator[str]:
    for key in ("model", "student"):
        yield from _unknown(f"{path}.{key}", stage.get(key), "model", models)
    yield from _teacher_problems(path, stage, models)
    for key in ("train", "unlabelled"):
        for i, name in enumerate(items(stage, key)):
            yield from _unknown(f"{path}.{key}[{i}]", name, "data", data)
    training = stage.get("training")
    if isinstance(training, Mapping) and (training.get("epochs") is None) == (training.get("steps") is None):
        yield f"{path}.training: expected one of epochs and steps"


def _teacher_problems(path: str, stage: Mapping[str, Any], models: list[str]) -> Iterator[str]:
    seen: list[tuple[Any, Any]] = []
    for i, teacher in enumerate(teachers_of(stage)):
        where, named, task = f"{path}.teachers[{i}]", teacher.get("model"), teacher.get("task")
        yield from _unknown(where, named, "model", models)
        if named is not None and named == stage.get("student"):
            yield f"{where}: {named!r} is the student itself; name another model"
        if named is not None and (named, task) in seen:
            once = f"once for the task {task!r}" if task else "once, with a weight"
            yield f"{where}: {named!r} is a teacher of the stage already; name it {once}"
        seen.append((named, task))


def teachers_of(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The teachers of a stage, each as an object."""
    return [teacher if isinstance(teacher, Mapping) else {"model": teacher} for teacher in items(stage, "teachers")]


def _stage_names(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for path, stage in stages:
        name = stage.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            yield f"{path}.name: {name!r} is the name of {seen[name]} already; give each stage its own"
        if not name.replace("-", "_").isidentifier():
            yield f"{path}.name: {name!r} becomes a folder's name; use letters, digits, - and _, beginning with a letter"
        seen.setdefault(name, path)


def _evaluation_problems(document: Mapping[str, Any], data: list[str]) -> Iterator[str]:
    evaluation = document.get("evaluation")
    if not isinstance(evaluation, Mapping):
        return
    for key in ("data", "test"):
        for path, name in names_of_data(evaluation, key):
            yield from _unknown(path, name, "data", data)


def names_of_data(evaluation: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """What `evaluation.data` or `evaluation.test` names, one or a list, each with its path."""
    path, value = f"evaluation.{key}", evaluation.get(key)
    if isinstance(value, (list, tuple)):
        return [(f"{path}[{i}]", name) for i, name in enumerate(value)]
    return [] if value is None else [(path, value)]


def _unknown(path: str, name: Any, what: str, known: list[str]) -> Iterator[str]:
    plain = name.partition(".")[0] if what == "data" and isinstance(name, str) else name
    if isinstance(plain, str) and plain not in known:
        yield f"{path}: no {what} is called {plain!r}{did_you_mean(plain, known)}"


def keys(document: Mapping[str, Any], key: str) -> list[str]:
    """The keys of the object under a key; none where there is no object."""
    value = document.get(key)
    return list(value) if isinstance(value, Mapping) else []


def items(document: Mapping[str, Any], key: str) -> list[Any]:
    """What the list under a key holds; nothing where there is no list."""
    value = document.get(key)
    return list(value) if isinstance(value, (list, tuple)) else []
