"""A run config out of a script: all that its text tells, and a text that no run accepts wherever it tells nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brewer_core.config import parse_run_config
from brewer_core.errors import ConfigError, RequestError
from brewer_core.migration.judging import Examination
from brewer_core.migration.optimizing import Optimizing
from brewer_core.migration.uses import ConfigUse, DistillerUse, TrainUse, Uses
from brewer_core.migration.values import Unknown, plain
from brewer_core.registry import Registry

REPLACE = "REPLACE: "
"""How a text begins that stands for what the script does not tell."""

_STRATEGIES = {"MultiTeacherDistiller": "multi_teacher", "MultiTaskDistiller": "multi_task"}
_WITHOUT_MATCHES = ("BasicDistiller", "MultiTeacherDistiller")
"""Classes that left intermediate_matches out."""


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
        raise RequestError(
            f"{uses.source.path}: there is no config and no distiller in it, so there is nothing to write."
        )
    draft = _Draft(uses)
    document = draft.document()
    to_replace = [*_placeholders("", document), *draft.registered]
    _refuse_problems(document, [path for path, _ in to_replace], registry, str(uses.source.path))
    return RunDocument(document, to_replace, list(dict.fromkeys(draft.left_out)))


def _refuse_problems(document: Any, open_paths: Sequence[str], registry: Registry, source: str) -> None:
    """Raise ConfigError for every problem but those of what is still to be filled in."""
    try:
        parse_run_config(document, source, registry)
    except ConfigError as error:
        found = [p for p in error.problems if not any(_related(p.partition(": ")[0], path) for path in open_paths)]
        if found:
            raise ConfigError(found, source) from error


def _related(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _placeholders(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and value.startswith(REPLACE):
        yield path, value.removeprefix(REPLACE)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _placeholders(f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _placeholders(f"{path}[{i}]", inner)


def _stand_in(unknown: Unknown) -> str:
    return f"{REPLACE}{unknown.text}"


def _names_in(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _names_in(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _names_in(inner, f"{path}[{i}]")


@dataclass
class _Draft:
    """A run config in the making."""

    uses: Uses
    models: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    registered: list[tuple[str, str]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The whole of it."""
        stages = [self._stage(i, distiller) for i, distiller in enumerate(self.uses.distillers or [None])]
        self.left_out.append(
            "the task: a script does not tell it, and the config says nothing, so it is text classification"
        )
        training = self._first("TrainingConfig")
        document: dict[str, Any] = {"schema_version": 1}
        precision = self._precision(training)
        if precision != "no":
            document["precision"] = precision
        return {
            **document,
            "tokenizer": {"from": "teacher", "max_length": f"{REPLACE}tokens a row, at most"},
            "data": self.data,
            "models": self.models,
            "stages": stages,
            "evaluation": {"data": next(iter(self.data)), "metrics": ["accuracy"]},
            "trackers": ["tensorboard"] if training and training.value("log_dir") is not None else [],
        }

    def _first(self, kind: str) -> ConfigUse | None:
        return next((config for config in self.uses.configs if config.kind == kind), None)

    def _precision(self, config: ConfigUse | None) -> str:
        fp16 = config.value("fp16", False) if config else False
        if isinstance(fp16, Unknown):
            return f'{REPLACE}"fp16" or "no", as {fp16.text} says'
        return "fp16" if fp16 else "no"

    # Stages

    def _stage(self, number: int, distiller: DistillerUse | None) -> dict[str, Any]:
        train = next((use for use in self.uses.trains if distiller is not None and use.distiller is distiller), None)
        training = self._training(distiller, train)
        kinds = [use.kind == "BasicTrainer" for use in self.uses.distillers[: number + 1]]
        if distiller is not None and distiller.kind == "BasicTrainer":
            model = self._model(distiller.arguments.get("model"), "model")
            name = f"train-{model}".replace("_", "-")
            return {
                "kind": "supervised",
                "name": name if sum(kinds) == 1 else f"{name}-{sum(kinds)}",
                "model": model,
                "train": self._loaders(train),
                "training": training,
            }
        distilled = kinds.count(False)
        return {
            "kind": "distill",
            "name": "distil" if distilled <= 1 else f"distil-{distilled}",
            **self._people(distiller),
            "train": self._loaders(train),
            "strategy": self._strategy(distiller, train),
            "distillation": self._distillation(number, distiller),
            "training": training,
        }

    def _people(self, distiller: DistillerUse | None) -> dict[str, Any]:
        arguments = distiller.arguments if distiller is not None else {}
        for name in ("adaptor_T", "adaptor_S"):
            if name in arguments:
                text = ast.unparse(arguments[name])
                self.left_out.append(
                    f"{name}={text}: runs take adaptors from plugins, by default `text_classification`"
                )
        if "custom_matches" in arguments:
            self.left_out.append("custom_matches: name the modules in intermediate_matches")
        return {
            "student": self._model(arguments.get("model_S"), "student"),
            "teachers": [self._model(teacher, name) for name, teacher in self._teachers(arguments.get("model_T"))],
        }

    def _teachers(self, node: ast.expr | None) -> list[tuple[str, ast.expr | None]]:
        """The teachers of a list or a mapping, each with a name for where it has none."""
        made = self.uses.defined(node) if node is not None else None
        if isinstance(made, (ast.List, ast.Tuple)):
            return [(f"teacher_{i}", element) for i, element in enumerate(made.elts, 1)]
        if isinstance(made, ast.Dict):
            keys = [self.uses.values.of(key) if key is not None else None for key in made.keys]
            return [(f"teacher_{key}", value) for key, value in zip(keys, made.values, strict=True)]
        return [("teacher", node)]

    def _model(self, node: ast.expr | None, otherwise: str) -> str:
        named = isinstance(node, (ast.Name, ast.Attribute))
        name = ast.unparse(node).rpartition(".")[2] if node is not None and named else otherwise
        source = f"{REPLACE}the folder of {name}, or its name on the Hugging Face hub"
        self.models.setdefault(name, {"name": "hf", "path": source})
        return name

    def _loaders(self, train: TrainUse | None) -> list[str]:
        """Names of data: one for each loader."""
        node = train.arguments.get("dataloader", train.arguments.get("dataloaders")) if train else None
        made = self.uses.defined(node) if node is not None else None
        if not isinstance(made, ast.Dict):
            return [self._data(node)]
        self.left_out.append("the tasks: say which teacher and which data belong to which")
        return [self._data(loader) for loader in made.values]

    def _data(self, node: ast.expr | None) -> str:
        name = ast.unparse(node).rpartition(".")[2] if isinstance(node, (ast.Name, ast.Attribute)) else "data"
        files = {
            "train": f"{REPLACE}file with the rows of {name}",
            "eval": f"{REPLACE}file with the rows to evaluate on",
        }
        columns = {"text": f"{REPLACE}column with the text", "label": f"{REPLACE}column with the label"}
        self.data.setdefault(name, {"source": {"name": "csv", "path": files}, **columns})
        return name

    def _strategy(self, distiller: DistillerUse | None, train: TrainUse | None) -> Any:
        if distiller is not None and distiller.own is not None:
            emd = (
                ', {"name": "emd"} of brewer-strategy-emd for TextBrewer\'s example'
                if "emd" in distiller.own.lower()
                else ""
            )
            return f"{REPLACE}the strategy that takes the place of {distiller.own}{emd}"
        name = _STRATEGIES.get(distiller.kind, "general") if distiller is not None else "general"
        tau = train.arguments.get("tau") if train is not None else None
        if tau is None:
            return name
        return {"name": name, "tau": plain(self.uses.values.of(tau), _stand_in)}

    def _distillation(self, number: int, distiller: DistillerUse | None) -> Any:
        config = distiller.distillation if distiller is not None else self._first("DistillationConfig")
        path = f"stages[{number}].distillation"
        if config is None or (config.unread and not config.settings):
            return f"{REPLACE}the settings of DistillationConfig"
        for unread in config.unread:
            self.left_out.append(f"{path}: the settings in {unread.text}")
        settings = {key: setting.value for key, setting in config.settings.items()}
        if distiller is not None and distiller.kind in _WITHOUT_MATCHES and settings.pop("intermediate_matches", None):
            self.left_out.append(f"intermediate_matches: TextBrewer's {distiller.kind} ignored them")
        written = {key: plain(value, _stand_in) for key, value in settings.items() if value not in (None, "none")}
        own = self.uses.registered()
        self.registered += [
            (path + inner, f"{name} is written into a preset by the script; make it a plugin of this name")
            for inner, name in _names_in(written)
            if name in own
        ]
        return written

    def _training(self, distiller: DistillerUse | None, train: TrainUse | None) -> dict[str, Any]:
        config = distiller.training if distiller is not None else self._first("TrainingConfig")
        optimizing = Optimizing(self.uses, train, lambda text: f"{REPLACE}{text}")
        written = optimizing.settings()
        self.left_out += optimizing.left_out
        if config is None:
            return {**written, "accumulation": f"{REPLACE}micro-batches in one step"}
        self.left_out += _left_out_of(config)
        accumulation = plain(config.value("gradient_accumulation_steps", 1), _stand_in)
        every = plain(config.value("ckpt_steps"), _stand_in) if "steps" in written else None
        return {
            **written,
            "accumulation": accumulation,
            **({"checkpoint_every_steps": every} if every is not None else {}),
        }


def _left_out_of(config: ConfigUse) -> Iterator[str]:
    for key, said in _OF_THE_COMMAND.items():
        if config.value(key) is not None:
            yield f"{key}: {said}"


_OF_THE_COMMAND = {
    "output_dir": "`brewer run --output` names the folder of the run",
    "log_dir": "TensorBoard's log is in the folder of the run",
    "device": "`brewer run --device` names it",
    "ckpt_frequency": "training.checkpoint_every_steps counts steps",
    "ckpt_epoch_frequency": "training.checkpoint_every_steps counts steps",
    "fp16_opt_level": "torch.amp has one level",
    "data_parallel": "a run trains on one device",
    "local_rank": "a run trains in one process",
}
