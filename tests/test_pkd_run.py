"""`brewer run` with the strategy `pkd`: it reads depths and widths, logs its term, and ends as the same matches by hand do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import bert, brewer, distill, document, films, supervised, training, weights_in, write_config

pytest.importorskip("brewer_loss_pkd")
pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return films(tmp_path)


def config(folder: Path, strategy: Any = "general", layers: int = 2, **distillation: Any) -> Path:
    """A teacher of four layers 16 wide, a student 8 wide, and every step logged."""
    terms = {"kd_loss_type": "kl", **distillation}
    stages = [supervised(), distill(strategy=strategy, distillation=terms, training=training(log_every_steps=1))]
    models = {"teacher": bert(16, 4), "student": bert(8, layers)}
    return write_config(folder, document(stages=stages, models=models))


def logged(run: Path) -> Iterator[dict[str, float]]:
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["stage"] == "distil" and "total_loss" in row:
            yield row


@pytest.mark.parametrize(("pattern", "taught"), [("skip", 2), ("last", 3)])
def test_a_run_ends_as_one_with_the_same_match_by_hand(pattern: str, taught: int, folder: Path) -> None:
    strategy = {"name": "pkd", "pattern": pattern, "weight": 0.5, "projection": "linear"}
    match = {
        "feature": "hidden",
        "loss": "pkd",
        "layer_S": 1,
        "layer_T": taught,
        "weight": 0.5,
        "proj": {"name": "linear"},
    }
    by_hand = config(folder, intermediate_matches=[match])
    assert brewer("run", by_hand, "--output", folder / "hand") == 0
    assert brewer("run", config(folder, strategy), "--output", folder / "strategy") == 0
    rows, expected = list(logged(folder / "strategy")), list(logged(folder / "hand"))
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        assert row["pkd"] == pytest.approx(other[f"hidden_pkd_1_{taught}"], rel=1e-4)
        assert row["total_loss"] == pytest.approx(row["kd_loss"] + 0.5 * row["pkd"], rel=1e-5)
    torch.testing.assert_close(*(weights_in(folder / name / "student") for name in ("strategy", "hand")))


@pytest.mark.parametrize(
    ("strategy", "layers", "text"),
    [
        (
            "pkd",
            2,
            'strategy `pkd`: the student has 2 layers 8 wide and the teacher\'s are 16 wide; give it "projection": "linear", and in '
            "a script student_layers=2, student_width=8 and teacher_width=16",
        ),
        (
            {"name": "pkd", "projection": "linear"},
            1,
            "strategy `pkd`: the student has 1 layer, and its last one is not taught by `pkd`; it needs 2 layers or more",
        ),
        (
            {"name": "pkd", "projection": {"name": "linaer"}},
            2,
            "strategy `pkd`: projection: no projection is called 'linaer'; did you mean 'linear'? Known: linear, relu, tanh",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    strategy: Any, layers: int, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brewer("run", config(folder, strategy, layers), "--output", folder / "out") == 2
    assert capsys.readouterr().err.endswith(f"{text}\n")
    assert not (folder / "out").exists()


def test_without_its_distribution_the_error_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("run", config(folder, "pkd"), "--output", folder / "out", "--disable", "brewer-loss-pkd") == 2
    assert "brewer-loss-pkd provides it: pip install brewer-loss-pkd" in capsys.readouterr().err
