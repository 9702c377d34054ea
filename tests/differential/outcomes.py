"""What a seeded run leaves behind, and that two runs left the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import nn

from tiny import assert_same, weights

TOLERANCE = 1e-5
Callback = Callable[..., None]


@dataclass(frozen=True)
class Outcome:
    """What one run left behind: weights, checkpoints, callbacks, and the states of the global generators."""

    untrained: dict[str, torch.Tensor]
    student: dict[str, torch.Tensor]
    called_back_at: list[int]
    saved: dict[str, dict[str, torch.Tensor]]
    drawn: torch.Tensor
    drawn_by_numpy: list[int]


def seed() -> None:
    """Set the global generators from which a run may draw."""
    torch.manual_seed(0)
    numpy.random.seed(0)


def observed(student: nn.Module, folder: Path, train: Callable[[Callback], None]) -> Outcome:
    """The outcome of a training, which is given a callback that leaves the student in eval mode."""
    untrained, called_back_at = weights(student), []

    def callback(model: nn.Module, step: int) -> None:
        assert model is student
        model.eval()
        called_back_at.append(step)

    train(callback)
    saved = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("gs*.pkl"))}
    by_numpy = numpy.random.get_state(legacy=False)["state"]
    drawn_by_numpy = [*by_numpy["key"].tolist(), by_numpy["pos"]]
    return Outcome(untrained, weights(student), called_back_at, saved, torch.get_rng_state(), drawn_by_numpy)


def assert_equal_outcomes(ours: Outcome, theirs: Outcome) -> None:
    """Equal students, at the end and in every checkpoint, equal callbacks and equal draws, after a training that trained."""
    assert_same(ours.untrained, theirs.untrained)
    assert_same(ours.student, theirs.student, TOLERANCE)
    assert ours.called_back_at == theirs.called_back_at != []
    assert list(ours.saved) == list(theirs.saved) == sorted(f"gs{step}.pkl" for step in ours.called_back_at)
    for name, state in ours.saved.items():
        assert_same(state, theirs.saved[name], TOLERANCE)
    assert torch.equal(ours.drawn, theirs.drawn), "the runs drew differently from torch's global generator"
    assert ours.drawn_by_numpy == theirs.drawn_by_numpy, "the runs drew differently from numpy's global generator"
    moved = [float((tensor - ours.untrained[name]).abs().max()) for name, tensor in ours.student.items()]
    assert max(moved) > 100 * TOLERANCE, "the training changed nothing"
