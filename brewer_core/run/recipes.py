"""Recipes: methods with their papers' settings, as run configs that `brewer init` fills in for one's own data and teacher.

Each is a JSON file in `configs/recipes`, whose `config` is a whole run config: of the complaints that ship with brewer, and of a small
teacher that is trained on them.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from brewer_core.config.tasks import CAUSAL_LM, TEXT_CLASSIFICATION
from brewer_core.errors import RequestError, did_you_mean
from brewer_core.run.columns import Columns

DEFAULT = {TEXT_CLASSIFICATION: "kd", CAUSAL_LM: "kd-lm"}
"""The recipe of each kind of task where none is named."""
DATA, TEACHER, STUDENT = "own", "teacher", "student"
"""What recipes call their data and their models."""

FROM_SCRATCH_RATE, FROM_SCRATCH_EPOCHS = 1e-3, 10
"""How stages train where no weights are pretrained."""

_LAYERS: Mapping[str, Callable[[int], list[int]]] = {
    "every_second": lambda depth: list(range(0, depth, 2)),
    "first_half": lambda depth: list(range(max(2, depth // 2))),
}
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_USUAL_DEPTH = 12


@dataclass(frozen=True)
class Recipe:
    """A method and its settings.

    source: the paper. notes: which settings are the paper's, and what is done otherwise. needs: distributions beside brewer's own that it
    takes. student_layers: how the teacher's layers are chosen that the student keeps; None where it keeps none. config: a run config.
    """

    name: str
    title: str
    source: str
    summary: str
    notes: tuple[str, ...]
    needs: tuple[str, ...]
    student_layers: str | None
    config: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The kind of task."""
        return str((self.config.get("task") or {}).get("kind", TEXT_CLASSIFICATION))

    def kept_layers(self, depth: int) -> list[int]:
        """The layers of a teacher of this depth that the student keeps."""
        return _LAYERS[self.student_layers](depth) if self.student_layers else []


@dataclass(frozen=True)
class Teacher:
    """A teacher to be filled in. ref: its model as a config has it. settings: what its config.json says; nothing where that is not here."""

    ref: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def depth(self) -> int | None:
        """How many layers it has; None where that is not known."""
        return next((int(self.settings[name]) for name in _DEPTHS if isinstance(self.settings.get(name), int)), None)

    def answers(self, classes: Sequence[str]) -> bool:
        """Whether it was trained for classes of these names already."""
        return bool(classes) and sorted((self.settings.get("id2label") or {}).values()) == sorted(classes)


@dataclass(frozen=True)
class OwnData:
    """Data to be filled in. source: the data set as a config has it. evaluation: what models are evaluated on."""

    source: Mapping[str, Any]
    columns: Columns
    evaluation: str = DATA


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def recipe(name: str) -> Recipe:
    """The recipe of a name. Raises RequestError where there is none."""
    if name not in recipe_names():
        close = did_you_mean(name, recipe_names())
        known = "" if "known" in close else f" Known: {', '.join(recipe_names())}"
        raise RequestError(f"--recipe {name}: there is no such recipe{close}{known}")
    told = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return Recipe(
        name,
        told["title"],
        told["source"],
        told["summary"],
        tuple(told["notes"]),
        tuple(told["needs"]),
        told["student_layers"],
        told["config"],
    )


def teacher_named(name: str, relative: Callable[[Path], str]) -> Teacher:
    """A teacher by a folder, an installed distribution, or a name on the Hugging Face hub, in this order.

    relative: a folder as the config is to name it. Raises RequestError where it can be none of these.
    """
    folder = Path(name)
    if folder.is_dir():
        file = folder / "config.json"
        if not file.is_file():
            raise RequestError(
                f"--teacher {name}: the folder holds no config.json; give one that `save_pretrained` wrote."
            )
        return Teacher({"name": "hf", "path": relative(folder)}, _settings(file))
    installed = _files_of(name)
    if installed is not None:
        found = next((file for file in installed if file.name == "config.json"), None)
        if found is None:
            raise RequestError(f"--teacher {name}: this distribution holds no model's folder; give a folder.")
        return Teacher({"name": "hf", "distribution": name}, _settings(Path(str(found.locate()))))
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise RequestError(f"--teacher {name}: there is no such folder.")
    return Teacher({"name": "hf", "path": name})


def filled(
    chosen: Recipe, data: OwnData | None, teacher: Teacher | None, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """The config of a recipe for one's own data and teacher; with its own where there is none.

    classes: the labels of the data, for a teacher that was trained for them and needs no more. Without a teacher there are no pretrained
    weights, for which the rates and epochs of recipes are made: all is trained longer and with a higher one.
    """
    document = copy.deepcopy(dict(chosen.config))
    if data is not None:
        _fill_in_data(document, chosen, data)
    if teacher is None:
        for stage in document["stages"]:
            stage["training"]["epochs"] = FROM_SCRATCH_EPOCHS
            stage["training"]["optimizer"]["learning_rate"] = FROM_SCRATCH_RATE
    else:
        document["models"][TEACHER] = dict(teacher.ref)
        document["tokenizer"]["from"] = "teacher"
        if teacher.answers(classes):
            names = teacher.settings["id2label"]
            ordered = [names[number] for number in sorted(names, key=int)]
            document["task"] = {**document.get("task", {"kind": TEXT_CLASSIFICATION}), "labels": ordered}
            document["stages"] = [stage for stage in document["stages"] if stage.get("model") != TEACHER]
    student = document["models"][STUDENT]
    if "keep_layers" in student:
        student["keep_layers"] = chosen.kept_layers(_depth(document, teacher))
    return document


def _depth(document: Mapping[str, Any], teacher: Teacher | None) -> int:
    if teacher is not None:
        return teacher.depth or _USUAL_DEPTH
    return int(document["models"][TEACHER]["config"]["num_hidden_layers"])


def _fill_in_data(document: dict[str, Any], chosen: Recipe, data: OwnData) -> None:
    columns = data.columns
    pair = not isinstance(columns.text, str)
    own: dict[str, Any] = {"source": dict(data.source), "text": list(columns.text) if pair else columns.text}
    if chosen.task == TEXT_CLASSIFICATION:
        own["label"] = columns.label
        if pair:
            document["task"] = {**(document.get("task") or {"kind": TEXT_CLASSIFICATION}), "pair": True}
    document["data"] = {DATA: own}
    document["evaluation"]["data"] = data.evaluation


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"--teacher: {file} cannot be read as JSON: {error}") from error
    return settings if isinstance(settings, Mapping) else {}


def _files_of(distribution: str) -> Sequence[metadata.PackagePath] | None:
    """The files of an installed distribution; None where it is not installed."""
    try:
        return metadata.files(distribution) or []
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _folder() -> Any:
    return resources.files("brewer_core") / "run" / "configs" / "recipes"
