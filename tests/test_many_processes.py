"""Two processes that train together over gloo end with the student that one process ends with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from brewer_core.distillers.door import pick_device
from brewer_core.errors import RequestError, Stopped
from brewer_core.run import run_config
from brewer_core.run.pipeline import choose_device
from brewer_core.stopping import StopReason, StopRequest
from runs import bert, distill, document, films, read, supervised, training, weights_in, write_config
from two_processes import in_each

STEADY = {
    "learning_rate": 0.01,
    "options": {"eps": 1e-4},
}  # Adam's own 1e-8 makes steps of gradients that are rounding noise
STILL = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
KEY_BIAS = "attention.self.key.bias"  # its true gradient is 0, so that an adaptive optimizer moves it by rounding noise


def still(width: int, layers: int) -> dict[str, Any]:
    return bert(width, layers, **STILL)


def config(**changes: Any) -> dict[str, Any]:
    """Without dropout; 16 labelled and 12 other rows, so that the last batch of a pass is short."""
    many = training(steps=8, batch_size=5, log_every_steps=1, optimizer=STEADY)
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
    accumulating = training(steps=6, batch_size=5, accumulation=2, log_every_steps=2, optimizer=STEADY)
    return config(stages=[supervised(training=accumulating), distill(distillation=distillation, training=accumulating)])


def multi_teacher() -> dict[str, Any]:
    many = training(steps=6, batch_size=5, log_every_steps=1, optimizer=STEADY)
    return config(
        models={"teacher": still(16, 2), "other": still(8, 2), "student": still(8, 1)},
        stages=[
            supervised(training=many),
            supervised(name="other", model="other", training=many),
            distill(teachers=["teacher", {"model": "other", "weight": 2}], strategy="multi_teacher", training=many),
        ],
    )


def multi_task() -> dict[str, Any]:
    many = training(steps=8, batch_size=3, log_every_steps=1, optimizer=STEADY)
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


def sharded() -> dict[str, Any]:
    """The general run, models in parts: its best student is looked for, and saved in the middle."""
    return {
        **general(),
        "fsdp": ["student", "teachers"],
        "evaluation": {"data": "films", "batch_size": 3, "best": {"metric": "accuracy"}, "every_steps": 2},
    }


CONFIGS = {"general": general, "multi_teacher": multi_teacher, "multi_task": multi_task, "sharded": sharded}
INTERRUPTED = {"general": general, "sharded": sharded}


def stopped_run(folder: Path, name: str, output: str) -> None:
    """A run that is asked to stop before it begins, and so stops after the first step of its first stage."""
    stop = StopRequest()
    stop.ask(StopReason.TERMINATE)
    with pytest.raises(Stopped, match="after optimizer step 1 of"):
        run_config(folder / f"{name}.json", output=folder / output, stop=stop)


def in_both(rank: int) -> dict[str, int]:
    """Carry out every config in this process, beside the other one; the folder comes by the environment."""
    folder = Path(os.environ["BREWER_TEST_FOLDER"])
    steps = {name: run_config(folder / f"{name}.json", output=folder / f"{name}-2")["steps"] for name in CONFIGS}
    for name in INTERRUPTED:
        stopped_run(folder, name, f"{name}-2-then-1")
        run_config(folder / f"{name}.json", output=folder / f"{name}-1-then-2", resume=True)
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every config, carried out by one process, by two, and by one number of them after the other."""
    made = films(tmp_path_factory.mktemp("runs"))
    for name, make in CONFIGS.items():
        write_config(made, make(), f"{name}.json")
        run_config(made / f"{name}.json", output=made / f"{name}-1")
    for name in INTERRUPTED:
        stopped_run(made, name, f"{name}-1-then-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BREWER_TEST_FOLDER", str(made))
        first, second = in_each(in_both, made)
    for name in INTERRUPTED:
        parts = {path.name for path in made.glob(f"{name}-2-then-1/stages/*/checkpoints/step-1/parts/*.distcp")}
        assert parts == ({"__0_0.distcp", "__1_0.distcp"} if name == "sharded" else set())
        run_config(made / f"{name}.json", output=made / f"{name}-2-then-1", resume=True)
    assert first == second
    return made


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


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
    one, two = lines(folder / f"{name}-1"), lines(folder / f"{name}-2")
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for ours, theirs in zip(one, two, strict=True):
        for key in ours.keys() - {"steps_per_s", "stage"}:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5), (key, ours["step"])
    summaries = [read(folder / f"{name}-{n}" / "summary.json") for n in (1, 2)]
    assert summaries[0]["student"]["metrics"] == summaries[1]["student"]["metrics"]
    assert read(folder / f"{name}-2" / "manifest.json")["processes"] == 2


@pytest.mark.parametrize("order", ["1-then-2", "2-then-1"])
@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_run_goes_on_with_another_number_of_processes(folder: Path, name: str, order: str) -> None:
    ended = folder / f"{name}-{order}"
    assert_same_weights(weights_in(folder / f"{name}-1/student"), weights_in(ended / "student"))
    assert [(line["stage"], line["step"]) for line in lines(ended)] == [
        (line["stage"], line["step"]) for line in lines(folder / f"{name}-1")
    ]
    assert read(ended / "manifest.json")["status"] == "finished"


# On machines with GPUs


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this the second process of a machine that has so many GPUs."""

    def with_gpus(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", "1")

    return with_gpus


@pytest.mark.parametrize(
    "chosen", [lambda: choose_device("auto"), lambda: choose_device("cuda"), lambda: pick_device("cuda")]
)
def test_each_process_has_a_gpu_of_its_own(second_of_two: Callable[[int], None], chosen: Callable[[], Any]) -> None:
    second_of_two(2)
    assert chosen() == torch.device("cuda", 1)
    second_of_two(1)
    with pytest.raises(RequestError) as caught:
        chosen()
    assert str(caught.value) == (
        "this is process 2 of this machine, which has 1 GPU; start one process for each GPU, or train on the device cpu."
    )


def test_without_gpus_each_process_has_the_cpu(second_of_two: Callable[[int], None]) -> None:
    second_of_two(0)
    assert choose_device("auto") == torch.device("cpu")
