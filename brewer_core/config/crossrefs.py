"""Problems of a run config that lie between its parts: names of models, data and stages, and what excludes what.

Read off the JSON itself, so that they are told together with problems of shape; what is malformed is left to those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brewer_core.errors import did_you_mean


def reference_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each problem, with its path."""
    data, models = _keys(document, "data"), _keys(document, "models")
    stages = [
        (f"stages[{i}]", stage) for i, stage in enumerate(_items(document, "stages")) if isinstance(stage, Mapping)
    ]
    for path, stage in stages:
        yield from _stage_problems(path, stage, data, models)
    yield from _stage_names(stages)
    yield from _evaluation_problems(document, data)
    if _items(document, "baselines") and stages and stages[-1][1].get("kind") == "supervised":
        yield "baselines: labels_only needs a distill stage at the end, whose student it trains"


def _stage_problems(path: str, stage: Mapping[str, Any], data: list[str], models: list[str]) -> Iterator[str]:
    for key in ("model", "student"):
        yield from _unknown(f"{path}.{key}", stage.get(key), "model", models)
    for i, teacher in enumerate(_items(stage, "teachers")):
        named = teacher.get("model") if isinstance(teacher, Mapping) else teacher
        yield from _unknown(f"{path}.teachers[{i}]", named, "model", models)
        if named is not None and named == stage.get("student"):
            yield f"{path}.teachers[{i}]: {named!r} is the student itself; name another model"
    for key in ("train", "unlabelled"):
        for i, name in enumerate(_items(stage, key)):
            yield from _unknown(f"{path}.{key}[{i}]", name, "data", data)
    training = stage.get("training")
    if isinstance(training, Mapping) and (training.get("epochs") is None) == (training.get("steps") is None):
        yield f"{path}.training: expected one of epochs and steps"


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
        yield from _unknown(f"evaluation.{key}", evaluation.get(key), "data", data)


def _unknown(path: str, name: Any, what: str, known: list[str]) -> Iterator[str]:
    plain = name.partition(".")[0] if what == "data" and isinstance(name, str) else name
    if isinstance(plain, str) and plain not in known:
        yield f"{path}: no {what} is called {plain!r}{did_you_mean(plain, known)}"


def _keys(document: Mapping[str, Any], key: str) -> list[str]:
    value = document.get(key)
    return list(value) if isinstance(value, Mapping) else []


def _items(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return list(value) if isinstance(value, (list, tuple)) else []
