"""`brewer run` with the tracker `wandb` of another distribution: its offline files hold what `metrics.jsonl` holds."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from offline_runs import finished_runs
from runs import brewer, distill, document, films, supervised, training, weights_in, write_config
from tiny import assert_same

pytest.importorskip("brewer_tracker_wandb")
pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):  # nothing in the home of who runs the tests
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return films(tmp_path)


def config(folder: Path, trackers: list[object]) -> Path:
    """Two stages and a baseline, evaluated at the second of three logged steps and at the last."""
    every_step = training(log_every_steps=1)
    return write_config(
        folder,
        document(
            stages=[supervised(training=every_step), distill(training=every_step)],
            baselines=["labels_only"],
            evaluation={"data": "films", "every_steps": 2},
            trackers=trackers,
        ),
    )


def told(run: Path) -> dict[str, dict[int, dict[str, float]]]:
    """What `metrics.jsonl` holds, by stage and step."""
    rows: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row.pop("stage")][row.pop("step")] |= row
    return rows


def test_the_offline_files_hold_the_figures_of_every_stage_and_the_student_is_the_same(folder: Path) -> None:
    file = config(folder, ["tensorboard", {"name": "wandb", "project": "demo"}])
    assert brewer("run", file, "--output", folder / "out") == 0
    figures = told(folder / "out")
    places = {"teacher": "stages/teacher", "distil": "stages/distil", "baselines/labels_only": "baselines/labels_only"}
    assert set(figures) == set(places)
    for stage, place in places.items():
        (run,) = finished_runs(folder / "out" / place)
        assert (run.name, run.group, run.project, run.finished) == (f"out/{stage}", "out", "demo", True)
        assert run.rows == figures[stage]
        assert {"total_loss", "eval/accuracy"} <= set(run.rows[2])
        assert list((folder / "out" / place / "tensorboard").iterdir())

    assert brewer("run", config(folder, []), "--output", folder / "without") == 0
    assert_same(*(weights_in(folder / name / "student") for name in ("out", "without")))


def test_what_was_logged_before_a_stage_failed_is_there(folder: Path) -> None:
    too_fast = ["--set", "stages.1.training.optimizer.learning_rate=1e30"]
    assert brewer("run", config(folder, ["wandb"]), "--output", folder / "out", *too_fast) == 1
    (run,) = finished_runs(folder / "out" / "stages" / "distil")
    assert run.finished
    assert run.rows == told(folder / "out")["distil"] != {}


def test_without_its_distribution_the_error_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(folder, ["wandb"])
    assert brewer("run", file, "--output", folder / "out", "--disable", "brewer-tracker-wandb") == 2
    assert (
        " brewer-tracker-wandb provides it: pip install brewer-tracker-wandb (from a checkout: pip install "
        "./plugins/brewer-tracker-wandb). Disabled: brewer-tracker-wandb:wandb"
    ) in capsys.readouterr().err
