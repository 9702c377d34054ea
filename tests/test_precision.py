"""Losses made of products of features are exact under bf16: compared with float64 on the features that a step had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.match_losses import fsp, nst
from brewer_builtins.strategies import General
from brewer_core import DistillationConfig, default_registry
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective
from brewer_core.teachers import LiveTeacher
from tiny import Tiny, adaptor, batches, table

CPU = torch.device("cpu")
STUDENT_LAYERS, TEACHER_LAYERS = [1, 2], [1, 3]
Pair = Sequence[Tensor]


class Figures(Listener):
    """The figures of the last log."""

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        del step
        self.values = values


def flow_by_hand(student: Pair, teacher: Pair, mask: Tensor) -> float:
    """fsp, row by row: [D, D] is the mean over valid tokens of the products of two states."""
    flows = []
    for first, second in (student, teacher):
        rows = zip(first.double(), second.double(), mask.bool(), strict=True)
        flows.append(torch.stack([a[valid].T @ b[valid] / valid.sum() for a, b, valid in rows]))
    return float((flows[0] - flows[1]).square().mean())


def similarity_by_hand(student: Pair, teacher: Pair, mask: Tensor) -> float:
    """nst, row by row: the products of tokens divided by D, and the mean over all pairs of valid tokens."""
    squared = []
    for row, valid in enumerate(mask.bool()):
        sides = [[layer[row][valid].double() for layer in pair] for pair in (student, teacher)]
        ours, theirs = (first @ second.T / second.shape[-1] for first, second in sides)
        squared.append((ours - theirs).square().flatten())
    return float(torch.cat(squared).mean())


def one_step(loss: str) -> tuple[float, Pair, Pair, Tensor]:
    """The loss that a training in bf16 logs, and the features of student and teacher that it had, in bf16."""
    seen: dict[str, Pair] = {}

    def noting(side: str, layers: Sequence[int]) -> Callable[..., dict[str, Any]]:
        def adapt(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
            seen[side] = [outputs["hidden"][layer].detach() for layer in layers]
            return adaptor("hidden", "mask")(batch, outputs)

        return adapt

    match = {"layer_T": TEACHER_LAYERS, "layer_S": STUDENT_LAYERS, "feature": "hidden", "loss": loss, "weight": 1}
    objective = Objective.from_config(DistillationConfig(intermediate_matches=[match]), default_registry())
    learner = Learner(Tiny(32, 2, seed=1), noting("student", STUDENT_LAYERS), objective, General(), precision="bf16")
    teacher = LiveTeacher(Tiny(32, 3, seed=2), noting("teacher", TEACHER_LAYERS), CPU, precision="bf16")
    figures, batch = Figures(), batches(table(), [8])[0]
    Engine(
        learner,
        torch.optim.SGD(learner.parameters(), lr=0.1),
        device=CPU,
        teachers={"teacher": teacher},
        settings=Settings(precision="bf16"),
        listeners=[figures],
    ).train([batch], Duration(steps=1))
    return figures.values["total_loss"], seen["student"], seen["teacher"], batch["mask"]


@pytest.mark.parametrize(
    ("name", "function", "by_hand"),
    [
        ("fsp", fsp, flow_by_hand),
        ("gram", fsp, flow_by_hand),
        ("nst", nst, similarity_by_hand),
        ("mmd", nst, similarity_by_hand),
    ],
)
def test_gram_losses_under_bf16_are_those_of_float64_on_the_same_features(
    name: str, function: Callable[..., Tensor], by_hand: Callable[..., float]
) -> None:
    logged, student, teacher, mask = one_step(name)
    assert {tensor.dtype for tensor in (*student, *teacher)} == {torch.bfloat16}
    expected = by_hand(student, teacher, mask)
    assert logged == pytest.approx(expected, rel=1e-5)
    # the same product under autocast is what brewer must not take
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = function([s.float() for s in student], [t.float() for t in teacher], mask)
    assert abs(float(reduced) / expected - 1) > 1e-4
