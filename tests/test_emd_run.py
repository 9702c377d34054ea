"""`brewer run` with a strategy of another distribution: `emd` asks for features, reads widths, trains projections, keeps a state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brewer_core.checkpoints import Checkpoints
from runs import brewer, distill, document, films, supervised, training, weights_in, write_config
from tiny import assert_same

pytest.importorskip("brewer_strategy_emd")
pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

ALL = {"name": "emd", "attention_weight": 0.5, "layer_weights": "cost_attention"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return films(tmp_path)


def config(folder: Path, strategy: Any, **distillation: Any) -> Path:
    """A teacher of two layers 16 wide, a student of one 8 wide, and every step logged and saved."""
    terms = {"kd_loss_type": "kl", **distillation}
    every_step = training(log_every_steps=1, checkpoint_every_steps=1)
    stages = [supervised(), distill(strategy=strategy, distillation=terms, training=every_step)]
    return write_config(folder, document(stages=stages))


def logged(run: Path) -> Iterator[dict[str, float]]:
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["stage"] == "distil" and "total_loss" in row:
            yield row


@pytest.mark.parametrize(
    ("strategy", "own"),
    [
        ("emd", {"hidden_hidden_mse_emd": 1, "embedding_hidden_mse": 1}),
        (ALL, {"hidden_hidden_mse_emd": 1, "embedding_hidden_mse": 1, "attention_mse_emd": 0.5}),
        ({"name": "emd", "weight": 2, "embedding": False}, {"hidden_hidden_mse_emd": 2}),
    ],
)
def test_a_run_logs_the_terms_and_adds_them_with_their_weights(
    strategy: Any, own: dict[str, float], folder: Path
) -> None:
    assert brewer("run", config(folder, strategy), "--output", folder / "out") == 0
    rows = list(logged(folder / "out"))
    assert len(rows) == 3
    for row in rows:
        losses = {name: value for name, value in row.items() if name.endswith(("_mse", "_emd"))}
        assert set(losses) == set(own)
        total = row["kd_loss"] + sum(own[name] * value for name, value in losses.items())
        assert row["total_loss"] == pytest.approx(total, rel=1e-5)


def test_the_seed_alone_decides_and_a_checkpoint_holds_projections_and_layer_weights(folder: Path) -> None:
    file = config(folder, ALL)
    for name in ("a", "b"):
        assert brewer("run", file, "--output", folder / name) == 0
    assert_same(weights_in(folder / "a" / "student"), weights_in(folder / "b" / "student"))
    state = Checkpoints(folder / "a" / "stages" / "distil" / "checkpoints").load(3)
    assert [tuple(state["learner"][f"parts.{i}.weight"].shape) for i in range(2)] == [(16, 8), (16, 8)]
    assert state["strategy"]["student"] == [1.0]
    assert sum(state["strategy"]["teacher"]) == pytest.approx(1)
    assert state["strategy"]["teacher"] != [0.5, 0.5]


def test_without_its_distribution_the_error_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(folder, "emd")
    assert brewer("run", file, "--output", folder / "out", "--disable", "brewer-strategy-emd") == 2
    assert (
        " brewer-strategy-emd provides it: pip install brewer-strategy-emd (from a checkout: pip install "
        "./plugins/brewer-strategy-emd). Disabled: brewer-strategy-emd:emd"
    ) in capsys.readouterr().err
