"""CRD and VID: numbers from plain loops, and parameters that are trained, saved and taken up again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.match_losses import ContrastiveRepresentation, VariationalInformation
from brewer_builtins.strategies import General
from brewer_core import DistillationConfig, ModelInfo, RequestError, ShapeError, default_registry
from brewer_core.checkpoints import Checkpoints
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import ConfigError
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.teachers import LiveTeacher
from tiny import Tiny, adaptor, assert_same, batches, table, weights

CPU = torch.device("cpu")
ROWS, LENGTH = 4, 3
MASK = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind: type[torch.nn.Module], **options: Any) -> Any:
    """A loss for widths of 3 and 5, with parameters of a fixed seed."""
    torch.manual_seed(0)
    return kind(student_dim=3, teacher_dim=5, **options).double()


def number(value: Tensor) -> float:
    return float(value.detach())


def unit(states: Tensor) -> Tensor:
    return states / states.square().sum().sqrt()


def info_nce_by_hand(anchors: list[Tensor], others: list[Tensor], tau: float) -> float:
    """The mean over anchors of - log(exp(a·o⁺ / tau) / sum over all others)."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        similarities = [number(anchor @ other) / tau for other in others]
        total -= similarities[i] - math.log(sum(math.exp(s) for s in similarities))
    return total / len(anchors)


# crd


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_crd_is_the_cross_entropy_of_the_own_teacher_among_those_of_the_batch(tau: float) -> None:
    loss, student, teacher = (
        made(ContrastiveRepresentation, projection_dim=4, tau=tau),
        drawn(4, 3),
        drawn(4, 5, seed=1),
    )
    own = [unit(loss.student_projection(s)) for s in student]
    taught = [unit(loss.teacher_projection(t)) for t in teacher]
    assert number(loss(student, teacher)) == pytest.approx(info_nce_by_hand(own, taught, tau))
    loss.symmetric = True
    both = info_nce_by_hand(own, taught, tau) + info_nce_by_hand(taught, own, tau)
    assert number(loss(student, teacher)) == pytest.approx(both / 2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_crd_leaves_out_rows_without_tokens(symmetric: bool) -> None:
    loss = made(ContrastiveRepresentation, symmetric=symmetric)
    student, teacher = drawn(ROWS, LENGTH, 3), drawn(ROWS, LENGTH, 5, seed=1)
    torch.testing.assert_close(loss(student, teacher, MASK), loss(student[:3], teacher[:3], MASK[:3]))


def test_crd_of_one_row_is_0_without_a_gradient_and_of_rows_alike_the_logarithm_of_their_number() -> None:
    loss, student = made(ContrastiveRepresentation), drawn(1, 3).requires_grad_()
    value = loss(student, drawn(1, 5, seed=1))
    assert number(value) == 0
    assert not torch.autograd.grad(value, student)[0].any()
    alike = loss(drawn(1, 3).expand(6, 3), drawn(6, 5, seed=1))
    assert number(loss(drawn(6, 3), drawn(1, 5).expand(6, 5))) == pytest.approx(math.log(6))
    assert number(alike) > 0


# vid


def vid_by_hand(loss: VariationalInformation, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The mean over pairs of states and widths of half the squared surprise and half the logarithm of the variance."""
    total = 0.0
    for own, taught in pairs:
        mean = loss.mean[0](own)
        if len(loss.mean) == 2:
            mean = loss.mean[1](mean.clamp(min=0))
        for d in range(len(taught)):
            variance = math.log(1 + math.exp(number(loss.alpha[d]))) + 1e-5
            total += (number(taught[d] - mean[d]) ** 2 / variance + math.log(variance)) / 2
    return total / (len(pairs) * 5)


@pytest.mark.parametrize("hidden_dim", [None, 4])
def test_vid_is_the_mean_negative_logarithm_of_a_gaussian_without_its_constant(hidden_dim: int | None) -> None:
    loss = made(VariationalInformation, hidden_dim=hidden_dim)
    with torch.no_grad():
        loss.alpha.add_(drawn(5, seed=3))
    student, teacher = drawn(ROWS, LENGTH, 3), drawn(ROWS, LENGTH, 5, seed=1)
    valid = [(student[b, t], teacher[b, t]) for b, t in MASK.nonzero().tolist()]
    assert number(loss(student, teacher, MASK)) == pytest.approx(vid_by_hand(loss, valid))
    rows = list(zip(student[:, 0], teacher[:, 0], strict=True))
    assert number(loss(student[:, 0], teacher[:, 0])) == pytest.approx(vid_by_hand(loss, rows))


@pytest.mark.parametrize("variance", [1e-3, 1.0, 5.0, 1000.0])
def test_vid_starts_with_the_variance_that_it_is_given(variance: float) -> None:
    loss = made(VariationalInformation, initial_variance=variance)
    started = torch.nn.functional.softplus(loss.alpha) + 1e-5
    torch.testing.assert_close(started, torch.full((5,), variance).double(), rtol=1e-5, atol=0)


def test_the_best_variance_of_vid_is_the_mean_squared_error() -> None:
    loss = made(VariationalInformation)
    student, teacher = drawn(50, 3), drawn(50, 5, seed=1)
    error = (teacher - loss.mean[0](student)).square().mean(0).detach()
    with torch.no_grad():
        loss.alpha.copy_(torch.log(torch.expm1(error - 1e-5)))
    (gradient,) = torch.autograd.grad(loss(student, teacher), loss.alpha)
    assert number(gradient.abs().max()) == pytest.approx(0, abs=1e-12)


# training


def engine(folder: Path, name: str) -> Engine:
    """A student 4 wide that is matched to a teacher 6 wide, with an optimizer that has a state."""
    torch.manual_seed(0)
    match = {"feature": "hidden", "layer_T": 2, "layer_S": 1, "weight": 1, "loss": name, "proj_optimizer": {"lr": 0.02}}
    terms = Objective.from_config(
        DistillationConfig(kd_loss_weight=0, intermediate_matches=[{**match, "proj_dims": [4, 6]}]), default_registry()
    )
    names = ("row_logits", "hidden", "mask")
    student = Tiny(4, 1, seed=1)
    return Engine(
        Learner(student, adaptor(*names), terms, General()),
        torch.optim.AdamW(student.parameters(), lr=0.05),
        device=CPU,
        teachers={"teacher": LiveTeacher(Tiny(6, 2, seed=2), adaptor(*names), CPU)},
        settings=Settings(checkpoint_due=lambda _step, _epoch: True),
        checkpoints=Checkpoints(folder, keep_last=10),
    )


@pytest.mark.parametrize("name", ["crd", "vid"])
def test_what_a_loss_learns_is_trained_at_its_own_rate_saved_and_taken_up_again(name: str, tmp_path: Path) -> None:
    loader, straight = batches(table(), [8] * 5), engine(tmp_path / "straight", name)
    before = weights(straight.learner.objective)
    straight.train(loader, Duration(steps=6))
    after = weights(straight.learner.objective)
    assert before
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert [group["lr"] for group in straight.optimizer.param_groups] == [0.05, 0.02]

    resumed = engine(tmp_path / "resumed", name)
    resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(2))
    resumed.train(loader, Duration(steps=6))
    assert_same(weights(resumed.learner), weights(straight.learner))


@pytest.mark.parametrize("name", ["crd", "vid"])
def test_widths_are_those_of_the_models_where_they_are_known(name: str) -> None:
    match = {"feature": "hidden", "layer_T": 1, "layer_S": 0, "weight": 1, "loss": name}
    known = ModelInfo("student", {"hidden": (3, 3)}), {"teacher": ModelInfo("teacher", {"hidden": (5, 5)})}
    terms = Objective.from_config(DistillationConfig(intermediate_matches=[match]), default_registry(), *known)
    shapes = {tuple(tensor.shape) for tensor in weights(terms).values()}
    assert shapes == ({(128, 3), (128, 5), (128,)} if name == "crd" else {(5, 3), (5,)})


# errors


@pytest.mark.parametrize("name", ["crd", "vid"])
def test_widths_that_are_not_known_are_asked_for(name: str) -> None:
    match = {"feature": "hidden", "layer_T": 1, "layer_S": 0, "weight": 1, "loss": name}
    with pytest.raises(ConfigError) as caught:
        Objective.from_config(DistillationConfig(intermediate_matches=[match]), default_registry())
    text = (
        f"`{name}` is built for the widths of student and teacher, which are not known; give the match "
        '"proj_dims": [student_dim, teacher_dim]'
    )
    assert str(caught.value) == f"DistillationConfig: intermediate_matches[0].loss: {text}"
    kind = {"crd": ContrastiveRepresentation, "vid": VariationalInformation}[name]
    with pytest.raises(RequestError) as asked:
        kind(student_dim=3, teacher_dim=None)
    assert str(asked.value) == f"{text}."


@pytest.mark.parametrize(("kind", "name"), [(ContrastiveRepresentation, "crd"), (VariationalInformation, "vid")])
def test_other_widths_than_a_loss_is_built_for_are_refused(kind: type[torch.nn.Module], name: str) -> None:
    with pytest.raises(ShapeError) as caught:
        made(kind)(drawn(4, 3), drawn(4, 6))
    assert str(caught.value) == (
        f"student is (4, 3) and teacher (4, 6), and `{name}` is built for widths of 3 and 5; "
        'give the match "proj_dims": [student_dim, teacher_dim].'
    )


def test_vid_refuses_other_tokens() -> None:
    with pytest.raises(ShapeError) as caught:
        made(VariationalInformation)(drawn(4, 2, 3), drawn(4, 3, 5))
    assert str(caught.value) == "student is (4, 2, 3) and teacher (4, 3, 5); both must be of the same rows and tokens."
