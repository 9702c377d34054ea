"""Runs with a teacher cache: empty or filled, they end as live ones do; and what a config asks of a cache is checked before they begin."""

from __future__ import annotations

import gc
import json
import os
import re
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from brewer_builtins.adaptors import TextClassification
from brewer_core.cache.about import read_about, write_about
from brewer_core.cache.parts import read_part
from brewer_core.config import parse_run_config
from brewer_core.plugins import default_registry
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly, model_inputs
from brewer_core.run.lessons import distill_lesson
from brewer_core.teachers import LiveTeacher
from runs import bert, brewer, distill, document, films, labelled, supervised, weights_in, write_config, write_csv
from tiny import assert_same
from two_processes import in_each

pytest.importorskip("transformers", reason="runs need the extra hf")

STILL = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
STEADY = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
HIDDEN = {
    "feature": "hidden",
    "layer_T": -1,
    "layer_S": 1,
    "loss": "hidden_mse",
    "weight": 1,
    "proj": ["linear", 8, 16],
}
ATTENTION = {"feature": "attention", "layer_T": 1, "layer_S": 0, "loss": "attention_mse", "weight": 1}
DISTINCT = 28
"""Texts that are trained on: 16 with labels, 12 without."""


def config(cache: Any, **stage: Any) -> dict[str, Any]:
    """Three passes of steps of five rows in batches of other orders and lengths."""
    passes = {"epochs": 3, "batch_size": 5, "log_every_steps": 1, "optimizer": STEADY}
    return document(
        models={"teacher": bert(16, 2, **STILL), "other": bert(12, 3, **STILL), "student": bert(8, 1, **STILL)},
        stages=[supervised(), distill(**{"training": passes, **stage})],
        cache=cache,
    )


def with_matches(cache: Any) -> dict[str, Any]:
    terms = {"kd_loss_type": "kl", "hard_label_weight": 1, "intermediate_matches": [HIDDEN, ATTENTION]}
    return config(cache, distillation=terms)


def only_hidden(cache: Any) -> dict[str, Any]:
    """The logits are not read, so the teacher runs no further than its first layer."""
    return config(
        cache,
        distillation={"kd_loss_weight": 0, "hard_label_weight": 1, "intermediate_matches": [{**HIDDEN, "layer_T": 1}]},
    )


def several_teachers(cache: Any) -> dict[str, Any]:
    named = [{**HIDDEN, "teacher": "teacher"}]
    return config(
        cache,
        teachers=["teacher", {"model": "other", "weight": 2}],
        strategy="multi_teacher",
        distillation={"kd_loss_type": "kl", "intermediate_matches": named},
    )


def accumulating(cache: Any) -> dict[str, Any]:
    passes = {"epochs": 3, "batch_size": 3, "accumulation": 3, "group_by_length": False, "optimizer": STEADY}
    return config(cache, training=passes)


def several_tasks(cache: Any) -> dict[str, Any]:
    source = document()["data"]["films"]["source"]
    whole = config(cache)
    stage = distill(
        teachers=[{"model": "teacher", "task": "a"}, {"model": "other", "task": "b"}],
        train=["films", "more"],
        unlabelled=[],
        strategy="multi_task",
        training={"steps": 24, "batch_size": 3, "optimizer": STEADY},
    )
    return {
        **whole,
        "task": None,
        "tasks": {"a": {"kind": "text_classification"}, "b": {"kind": "text_classification"}},
        "data": {
            "films": {"source": source, "task": "a"},
            "more": {"source": source, "task": "b", "select": {"share": 0.5}},
        },
        "stages": [supervised(), stage],
        "evaluation": {"data": ["films", "more"]},
    }


CASES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "logits": config,
    "matches": with_matches,
    "hidden states alone": only_hidden,
    "several teachers": several_teachers,
    "accumulation": accumulating,
    "several tasks": several_tasks,
}


def student(folder: Path, name: str, made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    run_config(write_config(folder, dict(made), f"{name}.json"), output=folder / name)
    return weights_in(folder / name / "student")


def caches(folder: Path) -> dict[str, list[Path]]:
    """The parts of each cache in a folder."""
    return {each.name: sorted(each.rglob("*.safetensors")) for each in sorted((folder / "teachers").iterdir())}


@pytest.mark.parametrize("case", CASES)
def test_an_empty_and_a_filled_cache_give_the_student_that_a_live_teacher_gives(case: str, tmp_path: Path) -> None:
    films(tmp_path)
    live = student(tmp_path, "live", CASES[case]("off"))
    assert not (tmp_path / "kept").exists()
    cold = student(tmp_path, "cold", CASES[case]("kept"))
    before = caches(tmp_path / "kept")
    warm = student(tmp_path, "warm", CASES[case]("kept"))
    assert caches(tmp_path / "kept") == before  # the teacher was asked about nothing
    assert_same(warm, cold)
    assert_same(cold, live, atol=1e-5)


def test_each_row_is_kept_once_and_what_is_read_of_it(tmp_path: Path) -> None:
    films(tmp_path)
    student(tmp_path, "run", with_matches("kept"))
    ((name, parts),) = caches(tmp_path / "kept").items()
    read = [read_part(part) for part in parts]
    assert sum(map(len, read)) == DISTINCT
    about = json.loads((tmp_path / "kept/teachers" / name / "about.json").read_text())
    assert about["reads"] == ["attention[1]", "hidden[-1]", "inputs_mask", "logits", "logits_mask"]
    assert about["teacher"]["model"] == "BertForSequenceClassification"
    kept = {each.name: [piece is not None for piece in each.pieces] for each in read[0].layout.features}
    assert kept == {"logits": [True], "inputs_mask": [True], "hidden": [False, False, True], "attention": [False, True]}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"seed": 0}, True),
        ({"stages.1.training.optimizer.learning_rate": 0.001}, True),
        ({"stages.1.distillation": {"kd_loss_type": "mse", "temperature": 9}}, True),
        ({"models.student.config.hidden_size": 16}, True),
        ({"stages.1.training.batch_size": 3, "stages.1.training.group_by_length": False}, True),
        ({"stages.0.training.steps": 4}, False),
        ({"precision": "bf16"}, False),
        ({"stages.1.distillation": {"kd_loss_type": "kl", "intermediate_matches": [HIDDEN]}}, False),
        ({"cache": {"path": "kept", "floats": "float16"}}, False),
        ({"tokenizer.max_length": 5}, False),
    ],
    ids=str,
)
def test_what_makes_another_cache_and_what_does_not(change: Mapping[str, Any], found: bool, tmp_path: Path) -> None:
    films(tmp_path)
    file = write_config(tmp_path, config("kept", distillation={"kd_loss_type": "kl"}))
    assert brewer("run", file, "-o", tmp_path / "first", "--device", "cpu") == 0
    before = {part for parts in caches(tmp_path / "kept").values() for part in parts}
    settings = [argument for key, value in change.items() for argument in ("--set", f"{key}={json.dumps(value)}")]
    assert brewer("run", file, "-o", tmp_path / "second", *settings, "--device", "cpu") == 0
    after = {part for parts in caches(tmp_path / "kept").values() for part in parts}
    assert (after == before) == found


@pytest.mark.parametrize(
    ("form", "tolerance"), [({"floats": "float16"}, 1e-3), ({"floats": "bfloat16"}, 1e-2), ({"top_k": 2}, 1e-5)]
)
def test_other_forms_are_near_the_live_teacher(form: Mapping[str, Any], tolerance: float, tmp_path: Path) -> None:
    films(tmp_path)
    terms = {"kd_loss_type": "kl", "temperature": 1, "intermediate_matches": [HIDDEN]}
    live = student(tmp_path, "live", config("off", distillation=terms))
    ours = student(tmp_path, "ours", config({"path": "kept", **form}, distillation=terms))
    assert_same(ours, live, atol=tolerance)


def test_draws_of_two_classes_train_a_student(tmp_path: Path) -> None:
    films(tmp_path)
    terms = {"kd_loss_type": "ce", "temperature": 1}
    ours = student(tmp_path, "ours", config({"path": "kept", "samples": 50}, distillation=terms))
    live = student(tmp_path, "live", config("off", distillation=terms))
    assert_same(ours, live, atol=0.05)


def untrained(cache: Any) -> dict[str, Any]:
    """A config whose teacher teaches as it was drawn, so that it can be built again at any time."""
    whole = with_matches(cache)
    return {**whole, "stages": whole["stages"][1:]}


def test_a_teacher_whose_rows_are_all_there_is_let_go_of_and_built_again_where_it_is_needed(tmp_path: Path) -> None:
    films(tmp_path)
    live, cold, warm = (
        student(tmp_path, name, untrained("off" if name == "live" else "kept")) for name in ("live", "cold", "warm")
    )
    assert_same(warm, cold)
    assert_same(cold, live, atol=1e-5)
    registry = default_registry()
    made = parse_run_config(untrained("kept"), "config.json", registry)
    assembly = Assembly(made, tmp_path, registry, torch.device("cpu"))
    model = weakref.ref(assembly.model("teacher").model)
    lesson = distill_lesson(assembly, made.stages[0], "stages[0]", assembly.model("student"))
    gc.collect()
    assert model() is None
    assert lesson.taught_by == ()
    (teacher,), needs = lesson.teachers.values(), lesson.learner.needs.teacher("teacher")
    batch = next(iter(lesson.loader))
    other = {**batch, "input_ids": batch["input_ids"].flip(0)}  # rows that are not there
    ours = teacher.features(other, needs)
    expected = LiveTeacher(
        assembly.model("teacher").model, TextClassification(), torch.device("cpu"), model_inputs=model_inputs
    )
    logits = expected.features(other, frozenset({"logits"}))["logits"][0]
    torch.testing.assert_close(ours["logits"][0], logits, rtol=0, atol=1e-6)


def test_a_teacher_is_measured_once_on_the_same_rows(tmp_path: Path) -> None:
    films(tmp_path)
    first = run_config(write_config(tmp_path, untrained("kept")), output=tmp_path / "first")
    (folder,) = (tmp_path / "kept/figures").iterdir()
    assert read_about(folder) == {"figures": first["teacher"]["metrics"]}

    write_about(folder, {"figures": {"accuracy": 0.125}})
    second = run_config(write_config(tmp_path, untrained("kept")), output=tmp_path / "second")
    assert second["teacher"]["metrics"] == {"accuracy": 0.125}
    assert second["student"]["metrics"] == first["student"]["metrics"]

    (folder / "about.json").write_bytes((folder / "about.json").read_bytes().replace(b"0.125", b"0.625"))
    third = run_config(write_config(tmp_path, untrained("kept")), output=tmp_path / "third")
    assert third["teacher"]["metrics"] == first["teacher"]["metrics"]

    write_csv(tmp_path / "eval.csv", labelled(6))
    run_config(write_config(tmp_path, untrained("kept")), output=tmp_path / "fourth")
    assert len(list((tmp_path / "kept/figures").iterdir())) == 2
    assert brewer("cache", "rm", "--all", "--yes", "--cache", tmp_path / "kept") == 0
    assert not (tmp_path / "kept/figures").exists()


# What is refused, and what is said


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(made: Mapping[str, Any], *options: str) -> tuple[int, str]:
        status = brewer(
            "run", write_config(films(tmp_path), dict(made)), "-o", tmp_path / "out", "--device", "cpu", *options
        )
        return status, capsys.readouterr().err

    return run


def test_a_loss_that_needs_all_logits_is_refused_before_the_run_begins(said: Any, tmp_path: Path) -> None:
    status, error = said(config({"path": "kept", "top_k": 1}, distillation={"kd_loss_type": "mse"}))
    assert status == 2
    assert "stages[1].distillation.kd_loss_type: `mse` needs all of the teacher's logits" in error
    assert not (tmp_path / "out").exists()


def test_a_cache_beyond_its_limit_is_refused_where_a_folder_is_named_and_left_out_otherwise(said: Any) -> None:
    status, error = said(config({"path": "kept", "limit_gb": 1e-7}))
    assert status == 2
    told = re.fullmatch(
        r"checking data and models\nbrewer: error: config: cache.path: teacher 'teacher' cannot be cached, as it would take (\S+ kB), "
        r"and cache.limit_gb is 1e-07\n",
        error,
    )
    assert told is not None, error
    status, error = said(config({"path": "auto", "limit_gb": 1e-7}))
    assert status == 0
    assert f"no cache of teacher, as it would take {told[1]}, and cache.limit_gb is 1e-07\n" in error


def test_augmented_rows_are_not_cached_by_themselves(said: Any) -> None:
    made = config("auto")
    made["data"]["films"]["augmentations"] = [{"name": "masking", "p": 0.3}]
    status, error = said(made)
    assert status == 0
    assert "no cache of teacher, as its rows are augmented, and new in every pass\n" in error


@pytest.mark.filterwarnings("default")  # tokens cannot be kept there either
def test_a_folder_that_cannot_be_written_is_refused_where_it_is_named_and_left_out_otherwise(
    said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").write_text("a file")
    monkeypatch.setenv("BREWER_CACHE", str(tmp_path / "kept"))
    reason = f"as {tmp_path}/kept is no folder that can be written"
    status, error = said(config({"path": "kept"}))
    assert status == 2
    assert f"config: cache.path: teacher 'teacher' cannot be cached, {reason}\n" in error
    status, error = said(config("auto"))
    assert status == 0
    assert f"no cache of teacher, {reason}\n" in error


def test_top_k_and_samples_contradict_each_other(said: Any) -> None:
    status, error = said(config({"path": "kept", "top_k": 1, "samples": 2}))
    assert status == 2
    assert "cache: samples: contradicts top_k; give one of them" in error


# Several processes


def in_both(rank: int) -> int:
    """Carry out every config in this process, beside the other one; the folder comes by the environment."""
    folder = Path(os.environ["BREWER_TEST_FOLDER"])
    for name in ("matches", "several tasks"):
        for output in ("cold", "warm"):
            run_config(folder / f"{name}.json", output=folder / f"{name}-{output}")
    return rank


def test_two_processes_fill_one_cache_and_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films(tmp_path)
    monkeypatch.setenv("BREWER_TEST_FOLDER", str(tmp_path))
    live = {}
    for name in ("matches", "several tasks"):
        live[name] = student(tmp_path, f"{name}-live", CASES[name]("off"))
        write_config(tmp_path, CASES[name](f"{name}-kept"), f"{name}.json")
    in_each(in_both, tmp_path)
    for name in live:
        cold, warm = (weights_in(tmp_path / f"{name}-{output}" / "student") for output in ("cold", "warm"))
        assert_same(cold, live[name], atol=1e-4)
        assert_same(warm, cold, atol=1e-6)
    parts = next(iter(caches(tmp_path / "matches-kept").values()))
    assert {part.name.split("-")[1] for part in parts} == {"0", "1"}
    assert sum(len(read_part(part)) for part in parts) == DISTINCT


def test_one_teacher_of_two_tasks_computes_a_text_of_both_once(tmp_path: Path) -> None:
    made = several_tasks("kept")
    stage = {**made["stages"][1], "teachers": [{"model": "teacher", "task": task} for task in ("a", "b")]}
    data = {**made["data"], "more": {**made["data"]["more"], "select": None}}
    made = {**made, "data": data, "stages": [stage]}
    made["models"]["teacher"] = bert(16, 2, **STILL)
    films(tmp_path)
    live = student(tmp_path, "live", {**made, "cache": "off"})
    cold = student(tmp_path, "cold", made)
    warm = student(tmp_path, "warm", made)
    assert_same(warm, cold)
    assert_same(cold, live, atol=1e-5)
