"""The strategy `emd` against earth mover's distances in a distiller over the real textbrewer, as its example has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import brewer_core
from differential.outcomes import Callback, Outcome, assert_equal_outcomes, observed, seed
from differential.reference import losses, projections, textbrewer
from tiny import Tiny, adaptor, table, tuples

ot = pytest.importorskip("ot")
pytest.importorskip("brewer_strategy_emd")

WEIGHT, TEACHER_WIDTH = 0.7, 16
TERMS: dict[str, Any] = {"temperature": 4, "hard_label_weight": 0.5}


class EMDDistiller(textbrewer.distiller_basic.BasicDistiller):
    """Hidden states beside the other terms: embeddings with embeddings, all layers with all layers by the cheapest plan."""

    def __init__(self, *arguments: Any, widths: tuple[int, int] | None, layers: int) -> None:
        super().__init__(*arguments)
        self.projs = [projections.linear_projection(*widths) for _ in range(layers + 1)] if widths else []
        self.projs_group = [{} for _ in self.projs]

    def compute_loss(self, results_S: dict[str, Any], results_T: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        total, told = super().compute_loss(results_S, results_T)
        projs = self.projs or [torch.nn.Identity()] * len(results_S["hidden"])
        (embedding, *own), (wanted, *taught) = map(list, (results_S["hidden"], results_T["hidden"]))
        mask = results_S.get("inputs_mask")
        own = [proj(state) for proj, state in zip(projs[1:], own, strict=True)]
        costs = torch.stack([torch.stack([losses.hid_mse_loss(s, t, mask) for t in taught]) for s in own])
        sides = np.full(len(own), 1 / len(own)), np.full(len(taught), 1 / len(taught))
        moved = torch.from_numpy(ot.emd(*sides, costs.detach().double().numpy())).float()
        first = losses.hid_mse_loss(projs[0](embedding), wanted, mask)
        return total + WEIGHT * ((moved * costs).sum() + first), told


def run(library: Any, folder: Path, features: tuple[str, ...], width: int, layers: int, taught_layers: int) -> Outcome:
    seed()
    teacher, student = Tiny(TEACHER_WIDTH, taught_layers, dropout=0.1), Tiny(width, layers, dropout=0.1)
    adapt = adaptor("row_logits", "losses", "hidden", *features)
    config = library.TrainingConfig(output_dir=str(folder), device="cpu")
    models = config, library.DistillationConfig(**TERMS), teacher, student, adapt, adapt
    if library is textbrewer:
        widths = (width, TEACHER_WIDTH) if width != TEACHER_WIDTH else None
        distiller = EMDDistiller(*models, widths=widths, layers=layers)
    else:
        sizes = {"student_layers": layers, "student_width": width, "teacher_width": TEACHER_WIDTH}
        distiller = library.GeneralDistiller(*models, strategy={"name": "emd", "weight": WEIGHT, **sizes})
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    loader = DataLoader(tuples(table(20)), batch_size=4, shuffle=True)

    def train(callback: Callback) -> None:
        with distiller:
            distiller.train(optimizer, loader, num_epochs=2, callback=callback)

    return observed(student, folder, train)


@pytest.mark.parametrize("features", [("mask",), ()], ids=["masked", "unmasked"])
@pytest.mark.parametrize(
    ("width", "layers", "taught_layers"),
    [(8, 2, 4), (16, 2, 4), (8, 3, 3), (8, 1, 1)],
    ids=["projected", "of one width", "as many layers", "one layer"],
)
def test_a_seeded_run_ends_with_the_student_of_a_distiller_over_textbrewer(
    width: int, layers: int, taught_layers: int, features: tuple[str, ...], tmp_path: Path
) -> None:
    sizes = features, width, layers, taught_layers
    theirs = run(textbrewer, tmp_path / "theirs", *sizes)
    ours = run(brewer_core, tmp_path / "ours", *sizes)
    assert_equal_outcomes(ours, theirs)
