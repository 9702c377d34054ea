"""Losses between logits: numbers worked by hand, invariants, and the errors' texts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brewer_builtins.kd_losses import brewer_kd_losses, ce, kl, mse
from brewer_core import KINDS, ShapeError
from brewer_core.components import Component

EVERY = pytest.mark.parametrize("loss", [ce, kl, mse])
LN2, LN3 = math.log(2), math.log(3)
# softmax of the teacher (3/4, 1/4), of the student (1/2, 1/2)
STUDENT, TEACHER = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN3, 0.0]])
ENTROPY = math.log(4) - 0.75 * LN3


def logits(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).requires_grad_(), torch.randn(shape, generator=g)


@pytest.mark.parametrize(("loss", "expected"), [(ce, LN2), (kl, LN2 - ENTROPY), (mse, LN3**2 / 2)])
def test_losses_of_two_classes_worked_by_hand(loss: Callable[..., Tensor], expected: float) -> None:
    assert float(loss(STUDENT, TEACHER, 1.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loss", "expected"), [(ce, LN2), (kl, LN2 - ENTROPY), (mse, LN3**2 / 2)])
@pytest.mark.parametrize("temperature", [2.0, torch.tensor(2.0), torch.tensor([2.0])])
def test_the_temperature_divides_the_logits(
    loss: Callable[..., Tensor], expected: float, temperature: float | Tensor
) -> None:
    softened = loss(2 * STUDENT, 2 * TEACHER, temperature, t_squared=False)
    assert float(softened) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [ce, kl])
def test_t_squared_multiplies_each_position_before_the_mean(loss: Callable[..., Tensor]) -> None:
    student, teacher = logits(0, 3, 5)
    temperatures = [1.0, 2.0, 5.0]
    by_hand = sum(t**2 * loss(student[[i]], teacher[[i]], t, t_squared=False) for i, t in enumerate(temperatures)) / 3
    torch.testing.assert_close(loss(student, teacher, torch.tensor(temperatures), t_squared=True), by_hand)


@pytest.mark.parametrize("temperature", [3.0, torch.tensor([0.5, 2.0, 9.0])])
def test_mse_with_t_squared_does_not_depend_on_the_temperature(temperature: float | Tensor) -> None:
    student, teacher = logits(0, 3, 5)
    torch.testing.assert_close(mse(student, teacher, temperature, t_squared=True), (student - teacher).square().mean())


@EVERY
def test_with_t_squared_gradients_keep_their_size_as_the_temperature_rises(loss: Callable[..., Tensor]) -> None:
    student, teacher = logits(0, 4, 6)
    norms = [
        float(torch.autograd.grad(loss(student, teacher, t, t_squared=True), student)[0].norm()) for t in (50.0, 100.0)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_kl_is_ce_less_the_teachers_entropy_with_the_same_gradient() -> None:
    student, teacher = logits(1, 4, 6)
    p = (teacher / 2).softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    own, other = kl(student, teacher, 2.0, t_squared=False), ce(student, teacher, 2.0)
    torch.testing.assert_close(own, other - entropy)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (own, other)))


@pytest.mark.parametrize("loss", [kl, mse])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(loss: Callable[..., Tensor]) -> None:
    _, teacher = logits(0, 4, 6)
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher, 3.0)
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert float(torch.autograd.grad(value, student)[0].abs().max()) == pytest.approx(0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 20))
def test_kl_is_never_negative(seed: int, temperature: float) -> None:
    student, teacher = logits(seed, 3, 7)
    assert float(kl(student, teacher, temperature).detach()) >= -1e-5


@pytest.mark.parametrize("by_position", [False, True])
@EVERY
def test_three_axes_mean_the_same_as_their_positions_in_one_list(
    loss: Callable[..., Tensor], by_position: bool
) -> None:
    student, teacher = logits(2, 2, 3, 5)
    temperature = torch.rand(2, 3) + 1 if by_position else torch.tensor(2.0)
    flat = temperature.flatten() if by_position else temperature
    torch.testing.assert_close(
        loss(student, teacher, temperature, t_squared=True),
        loss(student.flatten(0, 1), teacher.flatten(0, 1), flat, t_squared=True),
    )


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
@EVERY
def test_a_selection_without_positions_gives_zero_that_carries_a_graph(
    loss: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    student = torch.zeros(shape, requires_grad=True)
    value = loss(student, torch.zeros(shape), torch.ones(shape[:-1]))
    value.backward()
    assert (float(value.detach()), student.grad.shape) == (0.0, shape)


@pytest.mark.parametrize("loss", [ce, kl])
def test_padding_the_vocabulary_changes_neither_loss_nor_gradient(loss: Callable[..., Tensor]) -> None:
    student, teacher = logits(3, 4, 6)
    wide = [torch.nn.functional.pad(t, (0, 2), value=-math.inf) for t in (student, teacher)]
    narrow, padded = loss(student, teacher, 2.0), loss(*wide, 2.0)
    torch.testing.assert_close(padded, narrow)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (padded, narrow)))


@pytest.mark.parametrize("loss", [ce, kl])
def test_extreme_logits_give_finite_losses_and_gradients(loss: Callable[..., Tensor]) -> None:
    student = torch.tensor([[1e4, -1e4], [0.0, 300.0]], requires_grad=True)
    value = loss(student, torch.tensor([[-1e4, 1e4], [500.0, 0.0]]), 1.0)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


@EVERY
def test_inputs_stay_as_they_are(loss: Callable[..., Tensor]) -> None:
    student, teacher = logits(0, 3, 5)
    temperature = torch.full((3,), 2.0)
    before = [t.clone() for t in (student, teacher, temperature)]
    loss(student, teacher, temperature, t_squared=True).backward()
    for now, then in zip((student, teacher, temperature), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        (
            (4, 10),
            (4, 12),
            "student logits are 10 wide and teacher logits 12; both models must predict the same classes or vocabulary.",
        ),
        (
            (4, 10),
            (5, 10),
            "student logits (4, 10) and teacher logits (5, 10) are not of the same positions; "
            "give both models the same batch and mask.",
        ),
        (
            (2, 3, 5),
            (6, 5),
            "student logits (2, 3, 5) and teacher logits (6, 5) are not of the same positions; "
            "give both models the same batch and mask.",
        ),
    ],
)
@EVERY
def test_logits_that_do_not_fit_together_are_refused(
    loss: Callable[..., Tensor], student: tuple[int, ...], teacher: tuple[int, ...], text: str
) -> None:
    with pytest.raises(ShapeError) as error:
        loss(torch.zeros(student), torch.zeros(teacher), 1.0)
    assert str(error.value) == text


@EVERY
def test_a_temperature_of_other_positions_is_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ShapeError) as error:
        loss(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), torch.ones(2))
    assert str(error.value) == (
        "temperature (2,) does not belong to logits (2, 3, 5); it must be a number, or have one for each position."
    )


@pytest.mark.parametrize(("name", "t_squared"), [("ce", False), ("kl", True), ("mse", False)])
def test_every_kd_loss_is_a_mean_over_logits_with_the_option_t_squared(name: str, t_squared: bool) -> None:
    found = Component(KINDS["kd_loss"], name, brewer_kd_losses()[name])
    assert (found.facts.over, found.check({})) == ("logits", {"t_squared": t_squared, "standardise": False})


def test_the_hook_gives_exactly_these() -> None:
    assert list(brewer_kd_losses()) == [
        "adaptive_kl",
        "ce",
        "dist",
        "dkd",
        "jsd",
        "kl",
        "mse",
        "regression_mse",
        "reverse_kl",
        "sigmoid",
        "skew_kl",
        "skew_reverse_kl",
        "top_k_kl",
        "tvd",
    ]
