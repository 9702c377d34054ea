"""A run config out of a script: all that its text tells, and a text that no run accepts wherever it tells nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brewer_core.config import parse_run_config
from brewer_core.config.taskrefs import MEAN
from brewer_core.errors import ConfigError, RequestError
from brewer_core.migration.bindings import dotted
from brewer_core.migration.judging import Examination
from brewer_core.migration.judging_trainings import name_their_teacher
from brewer_core.migration.names import DISTILLER_ARGUMENTS
from brewer_core.migration.optimizing import REPLACE, Training, replace, written
from brewer_core.migration.uses import ConfigUse, DistillerUse, TrainUse, Uses, is_given
from brewer_core.migration.values import Unknown
from brewer_core.registry import Registry

_STRATEGIES = {"MultiTeacherDistiller": "multi_teacher", "MultiTaskDistiller": "multi_task"}
_OF_THE_COMMAND = {
    "output_dir": "`brewer run --output` names the folder of the run",
    "log_dir": "TensorBoard's log is in the folder of the run",
    "device": "`brewer run --device` names it",
    "ckpt_frequency": "training.checkpoint_every_steps counts steps",
    "ckpt_epoch_frequency": "training.checkpoint_every_steps counts steps",
    "fp16_opt_level": "torch.amp has one level",
    "data_parallel": "torchrun starts a process for each device",
    "local_rank": "torchrun tells each process which it is",
}
"""Settings of a TrainingConfig that a stage does not have."""


@dataclass(frozen=True)
class RunDocument:
    """A run config as JSON values.

    to_replace: the paths of what must be filled in, each with what belongs there. left_out: what has no counterpart.
    """

    document: Mapping[str, Any]
    to_replace: Sequence[tuple[str, str]]
    left_out: Sequence[str]


def run_document(examination: Examination, registry: Registry) -> RunDocument:
    """The run config that a script or a config comes to.

    Raises RequestError where there is nothing to write, ConfigError where a value of the file is one that brewer refuses.
    """
    uses = examination.uses
    if not (uses.configs or uses.distillers):
        where = uses.source.path
        raise RequestError(f"{where}: there is no config and no distiller in it, so there is nothing to write.")
    draft = _Draft(uses)
    document = draft.document()
    texts = list(_texts(document))
    to_replace = [(path, text.removeprefix(REPLACE)) for path, text in texts if text.startswith(REPLACE)]
    unregistered = "is written into a preset by the script; make it a plugin of this name"
    to_replace += [
        (p, f"{text} {unregistered}") for p, text in texts if ".distillation" in p and text in uses.registered
    ]
    _refuse_problems(document, [path for path, _ in to_replace], registry, str(uses.source.path))
    return RunDocument(document, to_replace, list(dict.fromkeys(draft.left_out)))


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{i}]")


def _refuse_problems(document: Any, open_paths: Sequence[str], registry: Registry, source: str) -> None:
    """Raise ConfigError for every problem but those of what is still to be filled in."""
    try:
        parse_run_config(document, source, registry)
    except ConfigError as error:
        found = [problem for problem in error.problems if not _is_open(problem.partition(": ")[0], open_paths)]
        if found:
            raise ConfigError(found, source) from error


def _is_open(path: str, open_paths: Sequence[str]) -> bool:
    return any(path.startswith(other) or other.startswith(path) for other in open_paths)


class _Draft:
    """A run config in the making."""

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        self.models: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.left_out: list[str] = []
        alone = DistillerUse("", training=self._first("TrainingConfig"), distillation=self._first("DistillationConfig"))
        self._distillers = list(uses.distillers.values()) or [alone]
        self._trains = {id(train.distiller): train for train in reversed(uses.trains)}
        self._has_tasks = any(distiller.kind == "MultiTaskDistiller" for distiller in self._distillers)
        self._tasks = list(dict.fromkeys(task for distiller in self._distillers for task in self._tasks_of(distiller)))

    def document(self) -> dict[str, Any]:
        """The whole of it."""
        stages = [self._stage(i, distiller) for i, distiller in enumerate(self._distillers)]
        training = self._first("TrainingConfig")
        head: dict[str, Any] = {"schema_version": 1}
        fp16 = training.value("fp16", False) if training else False
        if fp16:
            said = replace(f'"fp16" or "no", as {fp16.text} says') if isinstance(fp16, Unknown) else "fp16"
            head["precision"] = said
        if self._has_tasks:
            head["tasks"] = {task: {} for task in self._tasks} or replace("the names of the tasks, each with {}")
        self.left_out.append(
            "the task: a script does not tell it, and the config says nothing, so it is text classification"
        )
        return {
            **head,
            "tokenizer": {"from": "teacher", "max_length": replace("tokens a row, at most")},
            "data": self.data,
            "models": self.models,
            "stages": stages,
            "evaluation": {"data": self._evaluated(), "metrics": ["accuracy"]},
            "trackers": ["tensorboard"] if training and training.value("log_dir") is not None else [],
        }

    def _first(self, kind: str) -> ConfigUse | None:
        return next((config for config in self.uses.configs.values() if config.kind == kind), None)

    # Stages

    def _stage(self, number: int, distiller: DistillerUse) -> dict[str, Any]:
        train = self._trains.get(id(distiller))
        before = [d.kind == "BasicTrainer" for d in self._distillers[: number + 1]]
        training = self._training(distiller, train)
        if distiller.kind == "BasicTrainer":
            model, count = self._model(distiller.arguments.get("model"), "model"), before.count(True)
            name = f"train-{model}".replace("_", "-") + (f"-{count}" if count > 1 else "")
            rows = self._rows(distiller)
            return {"kind": "supervised", "name": name, "model": model, "train": rows, "training": training}
        count = before.count(False)
        return {
            "kind": "distill",
            "name": f"distil-{count}" if count > 1 else "distil",
            "student": self._model(distiller.arguments.get("model_S"), "student"),
            "teachers": self._teachers(distiller),
            "train": self._rows(distiller),
            "strategy": self._strategy(distiller, train),
            "distillation": self._distillation(number, distiller),
            "training": training,
        }

    def _training(self, distiller: DistillerUse, train: TrainUse | None) -> dict[str, Any]:
        read, config = Training(self.uses, train), distiller.training
        section = read.section()
        self.left_out += read.left_out
        if config is None:
            return {**section, "accumulation": replace("micro-batches in one step")}
        self.left_out += [f"{key}: {said}" for key, said in _OF_THE_COMMAND.items() if config.value(key) is not None]
        section["accumulation"] = written(config.value("gradient_accumulation_steps", 1))
        if "steps" in section and config.value("ckpt_steps") is not None:
            section["checkpoint_every_steps"] = written(config.value("ckpt_steps"))
        return section

    def _strategy(self, distiller: DistillerUse, train: TrainUse | None) -> Any:
        if distiller.own is not None:
            name = distiller.own.name
            emd = ', {"name": "emd"} of brewer-strategy-emd for TextBrewer\'s example' if "emd" in name.lower() else ""
            return replace(f"the strategy that takes the place of {name}{emd}")
        name = _STRATEGIES.get(distiller.kind, "general")
        tau = train.arguments.get("tau") if train is not None else None
        return name if tau is None else {"name": name, "tau": written(self.uses.values.of(tau))}

    def _distillation(self, number: int, distiller: DistillerUse) -> Any:
        config = distiller.distillation
        if config is None or (config.unread and not config.settings):
            return replace("the settings of DistillationConfig")
        self.left_out += [f"stages[{number}].distillation: the settings in {unread.text}" for unread in config.unread]
        settings = {key: setting.value for key, setting in config.settings.items()}
        matches = settings.get("intermediate_matches")
        kept = distiller.kind == "MultiTeacherDistiller" and name_their_teacher(matches)
        if matches and distiller.kind in ("BasicDistiller", "MultiTeacherDistiller") and not kept:
            del settings["intermediate_matches"]
            named = (
                ', and here each match names its teacher, "teacher": 0' if distiller.kind.startswith("Multi") else ""
            )
            self.left_out.append(f"intermediate_matches: TextBrewer's {distiller.kind} ignored them{named}")
        return {key: written(value) for key, value in settings.items() if value not in (None, "none")}

    # Tasks, models and data

    def _tasks_of(self, distiller: DistillerUse) -> list[str]:
        """The tasks of a MultiTaskDistiller by the keys of its teachers and loaders; none where they are not known."""
        if distiller.kind != "MultiTaskDistiller":
            return []
        keys = [*self._by_task(distiller.arguments.get("model_T")), *self._by_task(self._loaders(distiller))]
        usable = all(key != MEAN and key.replace("-", "_").isidentifier() for key in keys)
        return list(dict.fromkeys(keys)) if usable else []

    def _by_task(self, node: ast.expr | None) -> dict[str, ast.expr]:
        return (self.uses.bindings.entries(node) if node is not None else None) or {}

    def _loaders(self, distiller: DistillerUse) -> ast.expr | None:
        train = self._trains.get(id(distiller))
        return train.loaders if train is not None else None

    @property
    def _some_task(self) -> str:
        return replace(f"one of {', '.join(self._tasks)}" if self._tasks else "one of the tasks")

    def _teachers(self, distiller: DistillerUse) -> list[Any]:
        self._note_arguments(distiller)
        node = distiller.arguments.get("model_T")
        made = self.uses.bindings.definition(node) if node is not None else None
        models, tasks = self._by_task(node), self._tasks_of(distiller)
        if tasks:
            return [{"model": self._model(models.get(task), f"teacher_{task}"), "task": task} for task in tasks]
        if distiller.kind not in _STRATEGIES:
            teachers = [self._model(node, "teacher")]
        elif isinstance(made, (ast.List, ast.Tuple)):
            teachers = [self._model(teacher, f"teacher_{i}") for i, teacher in enumerate(made.elts, 1)]
        else:
            teachers = [replace(f"a model for each of {ast.unparse(node) if node is not None else 'the teachers'}")]
        return [{"model": teacher, "task": self._some_task} for teacher in teachers] if self._has_tasks else teachers

    def _note_arguments(self, distiller: DistillerUse) -> None:
        for name, node in distiller.arguments.items():
            text = f"{name}={ast.unparse(node)}"
            if name.startswith("adaptor"):
                self.left_out.append(f"{text}: runs take adaptors from plugins, by default `text_classification`")
            elif name == "custom_matches" and is_given(node):
                self.left_out.append("custom_matches: name the modules in intermediate_matches")
            elif name not in DISTILLER_ARGUMENTS:
                self.left_out.append(f"{text}: a stage says it in its teachers and its strategy")

    def _model(self, node: ast.expr | None, otherwise: str) -> str:
        name = _named(node, otherwise)
        self.models.setdefault(
            name, {"name": "hf", "path": replace(f"the folder of {name}, or its name on the Hugging Face hub")}
        )
        return name

    def _rows(self, distiller: DistillerUse) -> list[str]:
        """Names of data: one for each task."""
        node = self._loaders(distiller)
        loaders = self._by_task(node)
        return [self._data(loaders.get(task), task) for task in self._tasks_of(distiller)] or [self._data(node)]

    def _data(self, node: ast.expr | None, task: str = "") -> str:
        name = _named(node, f"data_{task}" if task else "data")
        known = self.data.get(name, {}).get("task", task)
        if task and known not in (task, self._some_task):
            name = f"{name}_{task}"
        files = {
            "train": replace(f"file with the rows of {name}"),
            "eval": replace("file with the rows to evaluate on"),
        }
        columns = {"text": replace("column with the text"), "label": replace("column with the label")}
        entry = self.data.setdefault(name, {"source": {"name": "csv", "path": files}, **columns})
        if self._has_tasks and (task or "task" not in entry):
            entry["task"] = task or self._some_task
        return name

    def _evaluated(self) -> Any:
        """The data to evaluate on: the first, or the first of each task."""
        names = {entry.get("task"): name for name, entry in reversed(self.data.items())}
        first = next(iter(self.data))
        return [names[task] for task in self._tasks if task in names] or ([first] if self._has_tasks else first)


def _named(node: ast.expr | None, otherwise: str) -> str:
    """A name for what an expression stands for: its own, where it has one."""
    name = dotted(node) if node is not None else None
    return name.removeprefix("self.").replace(".", "_") if name else otherwise
