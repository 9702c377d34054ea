"""Students and settings of recipes that follow from a teacher's sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brewer_builtins.models import longest_input
from brewer_builtins.surgery import student_from_teacher
from brewer_builtins.surgery.families import FAMILIES
from brewer_core.run.fitting import (
    DECODERS,
    ENCODERS,
    ROTARY_ENCODERS,
    Share,
    TeacherSizes,
    cut,
    patience,
    relation_heads,
    teaching_layer,
    told,
)
from brewer_core.run.library import recipe_names
from brewer_core.run.recipes import Teacher, filled, recipe

transformers = pytest.importorskip("transformers", reason="students are cut out of models of transformers")

BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
LARGE = {**BASE, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {**BASE, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
MODERN = {**BASE, "model_type": "modernbert", "num_hidden_layers": 22, "intermediate_size": 1152}


def of(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The config of a recipe for a teacher of these settings."""
    return filled(recipe(name), None, Teacher({"name": "hf", "path": "x"}, settings))


def student(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = of(name, settings)["models"]["student"]["from_teacher"]
    return own


def match(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    (found,) = of(name, settings)["stages"][1]["distillation"]["intermediate_matches"]
    return dict(found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "tinybert",
            {
                "layers": {"count": 4, "by": "uniform"},
                "hidden_size": 312,
                "num_attention_heads": 12,
                "intermediate_size": 1200,
            },
        ),
        ("minilm", {"layers": {"count": 6, "by": "uniform"}, "hidden_size": 384, "num_attention_heads": 12}),
        ("minilmv2", {"layers": {"count": 6, "by": "uniform"}, "hidden_size": 384, "num_attention_heads": 12}),
        ("distilbert", {"layers": {"count": 6, "by": "skip"}}),
        ("pkd", {"layers": {"count": 6, "by": "first"}}),
        ("bert-emd", {"layers": {"count": 6, "by": "first"}}),
        ("kd", {"layers": {"count": 6, "by": "skip"}}),
    ],
)
def test_of_bert_base_the_students_are_those_of_the_papers(name: str, expected: dict[str, Any]) -> None:
    assert student(name, BASE) == expected


def test_the_relation_heads_of_minilmv2_are_the_papers_and_its_layer_is_the_21st_of_24() -> None:
    assert (match("minilmv2", BASE)["loss"]["relation_heads"], match("minilmv2", BASE)["layer_T"]) == (48, -1)
    assert (match("minilmv2", LARGE)["loss"]["relation_heads"], match("minilmv2", LARGE)["layer_T"]) == (64, 20)
    assert match("minilmv2", SMALL)["loss"]["relation_heads"] == 24
    assert [teaching_layer(depth) for depth in (6, 12, 23, 24, 32)] == [-1, -1, -1, 20, 27]


@pytest.mark.parametrize(("widths", "heads"), [((768, 312), 24), ((100, 60), 5), ((8, 4), 1), ((1024, 768), 64)])
def test_relation_heads_divide_both_widths(widths: tuple[int, int], heads: int) -> None:
    assert relation_heads(*widths) == heads


def test_the_weight_of_pkd_follows_from_layers_and_width() -> None:
    assert of("pkd", BASE)["stages"][1]["strategy"]["weight"] == 0.026  # 100 / (5 * 768)
    assert of("pkd", SMALL)["stages"][1]["strategy"]["weight"] == 0.13  # 100 / (2 * 384)
    assert patience(1, 50) == 2.0


def test_heads_that_rotary_positions_are_bound_to_stay_whole() -> None:
    assert student("tinybert", MODERN) == {"layers": {"count": 7, "by": "skip"}}
    assert student("minilm", MODERN) == {"layers": {"count": 11, "by": "skip"}}
    narrower = {"layers": {"count": 11, "by": "skip"}, "hidden_size": 384, "num_attention_heads": 6}
    assert student("minilmv2", MODERN) == narrower


def test_a_student_is_not_as_wide_as_embeddings_that_its_teacher_projects() -> None:
    electra = {**BASE, "model_type": "electra", "hidden_size": 256, "num_attention_heads": 4, "embedding_size": 128}
    assert student("minilm", electra)["hidden_size"] == 4 * 36
    assert match("minilmv2", electra)["loss"]["relation_heads"] == 16
    assert student("minilm", {**electra, "embedding_size": 256})["hidden_size"] == 4 * 32


def test_a_teacher_whose_width_nobody_knows_how_to_change_gives_layers_alone() -> None:
    assert student("minilm", {**BASE, "model_type": "albert"}) == {"layers": {"count": 6, "by": "uniform"}}
    assert student("minilm", {**BASE, "num_attention_heads": 7}) == {"layers": {"count": 6, "by": "uniform"}}


def test_nothing_but_words_is_said_of_a_teacher_that_is_not_here() -> None:
    for name, word in (("tinybert", "uniform"), ("distilbert", "skip"), ("pkd", "first"), ("distillm", "skip")):
        assert student(name, {}) == {"layers": word}
    assert (match("minilmv2", {})["loss"]["relation_heads"], match("minilmv2", {})["layer_T"]) == (48, -1)
    assert of("pkd", {})["stages"][1]["strategy"]["weight"] == 0.026


def test_few_layers_are_enough() -> None:
    for name in recipe_names():
        assert student(name, {**BASE, "num_hidden_layers": 1})["layers"]["count"] == 1
    assert student("pkd", {**BASE, "num_hidden_layers": 2})["layers"]["count"] == 2
    assert student("tinybert", {**BASE, "num_hidden_layers": 3})["layers"]["count"] == 2


def test_sizes_are_found_by_the_names_of_each_architecture() -> None:
    assert TeacherSizes.of({"model_type": "distilbert", "dim": 8, "n_layers": 2, "n_heads": 4, "hidden_dim": 16}) == (
        TeacherSizes("distilbert", 2, 8, 4, 16)
    )
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 4, "n_inner": None}
    assert TeacherSizes.of(gpt2) == TeacherSizes("gpt2", 2, 8, 4, None)
    bart = {"d_model": 8, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 16}
    assert TeacherSizes.of(bart) == TeacherSizes(None, 2, 8, 4, 16)
    assert TeacherSizes.of({}) == TeacherSizes()


def test_the_kinds_of_models_are_those_that_students_can_be_cut_out_of() -> None:
    assert {*ENCODERS, *ROTARY_ENCODERS, *DECODERS} == {*FAMILIES} - {"t5", "mt5", "bart"}
    for kind in ENCODERS:
        assert not FAMILIES[kind].rotary
        assert not FAMILIES[kind].free_heads
    for kind in ROTARY_ENCODERS:
        assert FAMILIES[kind].rotary


def teacher(kind: str) -> Any:
    """A model of a family: 4 layers, 4 heads of 4 dimensions."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
    if kind == "distilbert":
        sizes = {"dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 32}
    config = transformers.AutoConfig.for_model(kind, vocab_size=30, pad_token_id=0, **sizes)
    return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("name", ["tinybert", "minilm", "minilmv2", "pkd", "distilbert"])
@pytest.mark.parametrize("kind", [*ENCODERS, *ROTARY_ENCODERS])
def test_a_student_can_be_cut_out_of_an_encoder_of_each_family(kind: str, name: str) -> None:
    model = teacher(kind)
    own = cut(recipe(name).student, TeacherSizes.of(model.config.to_dict()))
    made = student_from_teacher(model, method="truncate", **own)
    sizes = TeacherSizes.of(made.config.to_dict())
    assert sizes.layers == own["layers"]["count"]
    assert sizes.width == own.get("hidden_size", 16)
    if recipe(name).student.heads:
        assert sizes.heads == 4


def test_a_student_is_told_of_in_words() -> None:
    def words(name: str, settings: dict[str, Any]) -> str:
        return told(of(name, settings), TeacherSizes.of(settings))

    assert words("tinybert", BASE) == (
        "4 of the teacher's 12 layers, evenly spaced up to the last, 312 of 768 wide, 12 heads of 26, 1200 neurons"
    )
    assert words("minilm", BASE) == (
        "6 of the teacher's 12 layers, evenly spaced up to the last, 384 of 768 wide, 12 heads of 32"
    )
    assert words("pkd", BASE) == "6 of the teacher's 12 layers, the first ones, as wide"
    assert words("kd", {}) == (
        "half of the teacher's layers, evenly spaced from the first on, and as wide; the teacher's sizes are not known here, and "
        "settings are those for BERT base"
    )


def test_a_share_counts_layers_down_and_never_more_than_there_are() -> None:
    assert [Share("skip", 2).count(depth) for depth in (1, 2, 5, 12)] == [1, 1, 2, 6]
    assert [Share("first", 2, at_least=2).count(depth) for depth in (1, 2, 3, 12)] == [1, 2, 2, 6]


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        "roberta",
        "mpnet",
        "distilbert",
        "electra",
        "deberta-v2",
        "modernbert",
        "gpt2",
        "llama",
        "qwen3",
        "t5",
        "bart",
        "xlnet",
    ],
)
def test_the_longest_text_is_that_which_the_model_takes_in_a_run(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind)
    settings = json.loads(config.to_json_string(use_diff=False))
    assert TeacherSizes.of(settings).tokens == longest_input(config)
