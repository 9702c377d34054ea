"""The rows that a run's config names, as they are read, and the classes that are read off them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brewer_core.config import DistillStage, RunConfig
from brewer_core.config.run import DataConfig
from brewer_core.errors import BrewerError, DataError
from brewer_core.objective import bind_ref
from brewer_core.protocols import Task
from brewer_core.registry import Registry
from brewer_core.run.task_kinds import TaskKind, kind_of
from brewer_core.run.tasks import task_of
from brewer_core.run.text import check_column, class_names, text_columns

Rows = Sequence[Mapping[str, Any]]
_SPLITS = {"train": ("train",), "unlabelled": ("transfer", "train"), "data": ("eval", "test"), "test": ("test", "eval")}
"""Which split a name without one means, by what it is used for."""


def seed_of(config: RunConfig, *purpose: str) -> int:
    """The seed of one purpose in a run, the same in every process and unlike those of other purposes."""
    return zlib.crc32("/".join([str(config.seed), *purpose]).encode())


class Sources:
    """The rows and the tasks of one run, each read when it is first needed.

    base_dir: what relative paths in the config are relative to.
    Every method raises a BrewerError where data are not as the config says.
    """

    def __init__(self, config: RunConfig, base_dir: Path, registry: Registry) -> None:
        self.config = config
        self._base_dir, self._registry = base_dir, registry
        self._tasks: dict[str, Task] = {}
        self._sources: dict[str, Mapping[str, Rows]] = {}

    def task(self, name: str = "") -> Task:
        """A task with its classes: those of the config, else the labels of its labelled training data."""
        if name not in self._tasks:
            declared = self._declared(name)
            known = declared.labels or not self.kind.has_classes
            self._tasks[name] = declared if known else replace(declared, labels=self._classes(name))
        return self._tasks[name]

    @property
    def kind(self) -> TaskKind:
        """What the run does for tasks of the kind that its tasks are of."""
        return kind_of(self.config.kind)

    def rows(self, name: str, split: str) -> Rows:
        """The rows of a split, those that `select` draws."""
        data = self.config.data[name]
        rows = self._source(name)[split]
        if data.select is None:
            return rows
        count = data.select.rows or max(1, round(len(rows) * (data.select.share or 1)))
        if count > len(rows):
            raise DataError(f"data.{name}.select.rows: {split} has {len(rows)} rows, fewer than {count}.")
        drawn = random.Random(seed_of(self.config, "select", name, split)).sample(range(len(rows)), count)
        return [rows[i] for i in sorted(drawn)]

    def split(self, ref: str, use: str, path: str) -> tuple[str, str]:
        """The data and the split that a name of data means. use: what for; path: where it stands, for the error."""
        name, _, wanted = ref.partition(".")
        splits = self._source(name)
        choices = (wanted,) if wanted else _SPLITS[use] if len(splits) > 1 else tuple(splits)
        for split in choices:
            if split in splits:
                return name, split
        raise DataError(
            f"{path}: data {name!r} has no split {' or '.join(map(repr, choices))}; it has {', '.join(splits) or 'none'}."
        )

    def training_texts(self) -> Iterable[str]:
        """The texts of all rows that are trained on."""
        for ref, use, path in self._uses():
            name, split = self.split(ref, use, path)
            columns = text_columns(self.config.data[name].text)
            for row in self.rows(name, split):
                for column in columns:
                    check_column(row, column, f"data.{name}.{split}.text")
                    if isinstance(row.get(column), str):
                        yield row[column]

    def _uses(self) -> Iterable[tuple[str, str, str]]:
        """Every name of data in the stages, with what it is used for and where it stands."""
        for i, stage in enumerate(self.config.stages):
            for j, ref in enumerate(stage.train):
                yield ref, "train", f"stages[{i}].train[{j}]"
            for j, ref in enumerate(stage.unlabelled if isinstance(stage, DistillStage) else ()):
                yield ref, "unlabelled", f"stages[{i}].unlabelled[{j}]"

    def _data(self, ref: str) -> DataConfig:
        return self.config.data[ref.partition(".")[0]]

    def _declared(self, task: str) -> Task:
        """A task as the config has it, without classes where those are to be read off the data."""
        return self.kind.task(self.config.tasks_by_name[task])

    def _classes(self, task: str) -> tuple[str, ...]:
        train = [
            (ref, self.split(ref, use, path))
            for ref, use, path in self._uses()
            if use == "train" and task_of(self.config, ref) == task
        ]
        rows = {".".join(where): self.rows(*where) for _, where in train}
        labels = {".".join(where): self._data(ref).label for ref, where in train}
        try:
            return class_names(rows, labels)
        except DataError as error:
            raise (DataError(f"tasks.{task}: {error}") if task else error) from error

    def _source(self, name: str) -> Mapping[str, Rows]:
        if name not in self._sources:
            build = bind_ref(self._registry, self.config.data[name].source)
            # The task's classes may still have to be read off these very rows.
            task = self._declared(task_of(self.config, name))
            try:
                self._sources[name] = build(task=task, seed=seed_of(self.config, "data", name), base_dir=self._base_dir)
            except BrewerError as error:
                raise DataError(f"data.{name}: {error}") from error
        return self._sources[name]
