"""Recipes: methods with their papers' settings, as run configs that `brewer init` fills in for one's own data and teacher.

Each is a JSON file in `configs/recipes`, whose `config` is a whole run config: of the complaints that ship with brewer, and of a small
teacher that is trained on them. The student is cut out of whatever teacher there is; `fitting` has its sizes.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brewer_core.config.tasks import CAUSAL_LM, TEXT_CLASSIFICATION
from brewer_core.errors import RequestError, did_you_mean
from brewer_core.run.fitting import DECODERS, ENCODERS, ROTARY_ENCODERS, Share, TeacherSizes, fit
from brewer_core.run.library import recipe_names, recipe_text
from brewer_core.run.model_folders import folders_of

if TYPE_CHECKING:
    from brewer_core.run.columns import Columns

DEFAULT = {TEXT_CLASSIFICATION: "kd", CAUSAL_LM: "kd-lm"}
"""The recipe of each kind of task where none is named."""
DATA, TEACHER = "own", "teacher"
"""What recipes call their data and their teacher."""

FROM_SCRATCH_RATE, FROM_SCRATCH_EPOCHS = 1e-3, 10
"""How stages train where no weights are pretrained."""

ANY, ENCODERS_ALONE, DECODERS_ALONE = "any", "encoders", "decoders"
"""What teachers a recipe is for."""
_LEFT_TO_RIGHT, _BOTH_WAYS = ("ForCausalLM", "LMHeadModel"), "ForMaskedLM"
"""How the class of a language model ends, as a config.json names it."""
_ONE_LAYER_FOR_ALL = ("albert",)


@dataclass(frozen=True)
class Recipe:
    """A method and its settings.

    source: the paper. notes: which settings are the paper's, and what is done otherwise. needs: distributions beside brewer's own that it
    takes. teachers: what teachers it is for. student: how much of its teacher the student is. config: a run config.
    """

    name: str
    title: str
    source: str
    summary: str
    notes: tuple[str, ...]
    needs: tuple[str, ...]
    teachers: str
    student: Share
    config: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The kind of task."""
        return str((self.config.get("task") or {}).get("kind", TEXT_CLASSIFICATION))


@dataclass(frozen=True)
class Teacher:
    """A teacher to be filled in.

    ref: its model as a config has it. settings: what its config.json says; nothing where that is not here. hub: whether it is one of
    the Hugging Face hub.
    """

    ref: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    hub: bool = False

    @property
    def sizes(self) -> TeacherSizes:
        """Its sizes, as far as they are known."""
        return TeacherSizes.of(self.settings)

    @property
    def reads_left_to_right(self) -> bool | None:
        """Whether it is a decoder; None where that is not known."""
        kind, classes = self.settings.get("model_type"), self.settings.get("architectures") or ()
        if kind in DECODERS or self.settings.get("is_decoder") is True:
            return True
        if kind in (*ENCODERS, *ROTARY_ENCODERS) or self.encodes_and_decodes:
            return False
        if any(str(each).endswith(_LEFT_TO_RIGHT) for each in classes):
            return True
        return False if any(str(each).endswith(_BOTH_WAYS) for each in classes) else None

    @property
    def encodes_and_decodes(self) -> bool:
        """Whether it is an encoder-decoder, such as T5."""
        return self.settings.get("is_encoder_decoder") is True

    def answers(self, classes: Sequence[str]) -> bool:
        """Whether it was trained for classes of these names already."""
        return bool(classes) and sorted((self.settings.get("id2label") or {}).values()) == sorted(classes)


@dataclass(frozen=True)
class OwnData:
    """Data to be filled in. source: the data set as a config has it. rows: to train on. evaluation: what models are evaluated on."""

    source: Mapping[str, Any]
    columns: Columns
    rows: int
    evaluation: str = DATA


def recipe(name: str) -> Recipe:
    """The recipe of a name. Raises RequestError where there is none."""
    if name not in recipe_names():
        close = did_you_mean(name, recipe_names())
        known = "" if "known" in close else f" Known: {', '.join(recipe_names())}"
        raise RequestError(f"--recipe {name}: there is no such recipe{close}{known}")
    told = json.loads(recipe_text(name))
    return Recipe(
        name,
        told["title"],
        told["source"],
        told["summary"],
        tuple(told["notes"]),
        tuple(told["needs"]),
        told["teachers"],
        Share(**told["student"]),
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
    brought = folders_of(name)
    if brought is not None:
        if not brought:
            raise RequestError(f"--teacher {name}: this distribution holds no model's folder; give a folder.")
        return Teacher({"name": "hf", "distribution": name}, _settings(brought[0] / "config.json"))
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise RequestError(f"--teacher {name}: there is no such folder.")
    return Teacher({"name": "hf", "path": name}, _downloaded(name), hub=True)


def check_teacher(chosen: Recipe, teacher: Teacher, name: str) -> None:
    """Raises RequestError for a teacher that a recipe is not for, as far as its config.json tells."""
    decoder, kind, layers = teacher.reads_left_to_right, teacher.settings.get("model_type"), teacher.sizes.layers
    if kind in _ONE_LAYER_FOR_ALL:
        raise RequestError(
            f"--teacher {name}: is {kind}, which has one layer for all, and recipes cut the student out of the teacher's layers; "
            "take another teacher, or write a config with a student of its own."
        )
    if layers is not None and layers < chosen.student.at_least:
        raise RequestError(
            f"--teacher {name}: has {layers} layer{'s' * (layers != 1)}, and the recipe {chosen.name} needs a student of "
            f"{chosen.student.at_least} or more; take another recipe, or a deeper teacher."
        )
    if chosen.teachers == ENCODERS_ALONE and decoder:
        others = ", ".join(_those_for(DECODERS_ALONE))
        raise RequestError(
            f"--teacher {name}: is a decoder ({kind}), and the recipe {chosen.name} is for encoders such as BERT; take the recipe kd for "
            f"classes, or one of language models: {others}."
        )
    if chosen.teachers == DECODERS_ALONE and decoder is False:
        what = "encoder-decoder" if teacher.encodes_and_decodes else "encoder"
        raise RequestError(
            f"--teacher {name}: is an {what} ({kind}), which sees the tokens that it would have to predict, and the recipe {chosen.name} "
            f"is for decoders such as GPT-2 or Llama; take one of classes: {', '.join(_those_for(ANY, ENCODERS_ALONE))}."
        )


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
    fit(document, chosen.student, sizes_in(document, teacher))
    return document


def sizes_in(document: Mapping[str, Any], teacher: Teacher | None) -> TeacherSizes:
    """The sizes of the teacher of a filled recipe: those of the one that was filled in, else of the recipe's own."""
    return TeacherSizes.of(document["models"][TEACHER]["config"]) if teacher is None else teacher.sizes


def last_steps(document: Mapping[str, Any], rows: int) -> int:
    """The optimizer steps of the last stage of a filled recipe, on so many rows."""
    training = document["stages"][-1]["training"]
    per_epoch: int = math.ceil(rows / training["batch_size"])
    return per_epoch * int(training["epochs"])


def _fill_in_data(document: dict[str, Any], chosen: Recipe, data: OwnData) -> None:
    columns = data.columns
    pair = not isinstance(columns.text, str)
    own: dict[str, Any] = {"source": dict(data.source), "text": list(columns.text) if pair else columns.text}
    if chosen.task == TEXT_CLASSIFICATION:
        own["label"] = columns.label
        # named, for a class of few rows may be held out as a whole
        task = {**(document.get("task") or {"kind": TEXT_CLASSIFICATION}), "labels": list(columns.classes)}
        document["task"] = {**task, "pair": True} if pair else task
    document["data"] = {DATA: own}
    document["evaluation"]["data"] = data.evaluation


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"--teacher: {file} cannot be read as JSON: {error}") from error
    return settings if isinstance(settings, Mapping) else {}


def _downloaded(name: str) -> Mapping[str, Any]:
    """The settings of a model of the hub, where it was downloaded before; nothing is downloaded for it."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return {}
    found = try_to_load_from_cache(name, "config.json")
    return _settings(Path(found)) if isinstance(found, str) else {}


def _those_for(*teachers: str) -> list[str]:
    """The recipes for such teachers."""
    return [name for name in recipe_names() if recipe(name).teachers in teachers]
