"""Two processes that train together over gloo end with the student that one process ends with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import bert, distill, document, films, read, supervised, training, weights_in, write_config
from two_processes import in_each

STILL = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
KEY_BIAS = "attention.self.key.bias"  # its true gradient is 0, so that an adaptive optimizer moves it by rounding noise


def still(width: int, layers: int) -> dict[str, Any]:
    return bert(width, layers, **STILL)


def config(**changes: Any) -> dict[str, Any]:
    """Without dropout; 16 labelled and 12 other rows, so that the last batch of a pass is short."""
    many = training(steps=8, batch_size=5, log_every_steps=1)
    return document(
        **{
            "models": {"teacher": still(16, 2), "student": still(8, 1)},
            "stages": [supervised(training=many), distill(training=many)],
            "evaluation": {"data": "films", "batch_size": 3},
            **changes,
        }
    )


def general() -> dict[str, Any]:
    match = {"feature": "hidden", "layer_T": 2, "layer_S": 1, "loss": "hidden_mse", "weight": 1}
    distillation = {
        "kd_loss_type": "kl",
        "hard_label_weight": 1,
        "intermediate_matches": [
            {**match, "proj": ["linear", 8, 16]},
            {**match, "feature": "attention", "loss": "attention_mse", "layer_T": 1, "layer_S": 0},
        ],
    }
    accumulating = training(steps=6, batch_size=5, accumulation=2, log_every_steps=1)
    return config(stages=[supervised(training=accumulating), distill(distillation=distillation, training=accumulating)])


def multi_teacher() -> dict[str, Any]:
    many = training(steps=6, batch_size=5, log_every_steps=1)
    return config(
        models={"teacher": still(16, 2), "other": still(8, 2), "student": still(8, 1)},
        stages=[
            supervised(training=many),
            supervised(name="other", model="other", training=many),
            distill(teachers=["teacher", {"model": "other", "weight": 2}], strategy="multi_teacher", training=many),
        ],
    )


def multi_task() -> dict[str, Any]:
    many = training(steps=8, batch_size=3, log_every_steps=1)
    source = document()["data"]["films"]["source"]
    return config(
        task=None,
        tasks={"a": {"kind": "text_classification"}, "b": {"kind": "text_classification"}},
        data={
            "films": {"source": source, "task": "a"},
            "more": {"source": source, "task": "b", "select": {"share": 0.5}},
        },
        models={"teacher": still(16, 2), "other": still(16, 1), "student": still(8, 1)},
        stages=[
            supervised(training=many),
            distill(
                teachers=[{"model": "teacher", "task": "a"}, {"model": "other", "task": "b"}],
                train=["films", "more"],
                unlabelled=[],
                strategy="multi_task",
                training=many,
            ),
        ],
        evaluation={"data": ["films", "more"], "batch_size": 3},
    )


CONFIGS = {"general": general, "multi_teacher": multi_teacher, "multi_task": multi_task}


def runs_of_all(rank: int) -> dict[str, int]:
    """Carry out every config in this process, beside the other one; the folder comes by the environment."""
    from brewer_core.run import run_config

    folder = Path(os.environ["BREWER_TEST_FOLDER"])
    steps = {}
    for name in CONFIGS:
        summary = run_config(folder / f"{name}.json", output=folder / f"{name}-2")
        steps[name] = summary["steps"]
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every config, carried out by one process and by two."""
    from brewer_core.run import run_config

    made = films(tmp_path_factory.mktemp("runs"))
    for name, make in CONFIGS.items():
        write_config(made, make(), f"{name}.json")
        run_config(made / f"{name}.json", output=made / f"{name}-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BREWER_TEST_FOLDER", str(made))
        first, second = in_each(runs_of_all, made)
    assert first == second
    return made


def assert_same_weights(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        if KEY_BIAS not in name:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_end_with_the_student_of_one(folder: Path, name: str) -> None:
    for model in (
        "student",
        *(str(path.relative_to(folder / f"{name}-1")) for path in folder.glob(f"{name}-1/stages/*/model")),
    ):
        assert_same_weights(weights_in(folder / f"{name}-1" / model), weights_in(folder / f"{name}-2" / model))


@pytest.mark.parametrize("name", CONFIGS)
def test_figures_are_those_of_the_whole_step_and_of_every_row_once(folder: Path, name: str) -> None:
    one, two = (
        [json.loads(line) for line in (folder / f"{name}-{n}" / "metrics.jsonl").read_text().splitlines()]
        for n in (1, 2)
    )
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for ours, theirs in zip(one, two, strict=True):
        for key in ours.keys() - {"steps_per_s", "stage"}:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5), (key, ours["step"])
    summaries = [read(folder / f"{name}-{n}" / "summary.json") for n in (1, 2)]
    assert summaries[0]["student"]["metrics"] == summaries[1]["student"]["metrics"]
    assert read(folder / f"{name}-2" / "manifest.json")["processes"] == 2
