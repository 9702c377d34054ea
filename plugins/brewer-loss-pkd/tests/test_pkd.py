"""pkd: numbers worked by hand, invariants, the errors' texts, and the entry point."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
from torch import Tensor

from brewer_core import ShapeError
from brewer_loss_pkd import brewer_match_losses, pkd


def states(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("teacher", "distance"),
    [([3.0, 0.0], 0.0), ([0.0, 0.5], 2.0), ([-7.0, 0.0], 4.0), ([3.0, 4.0], 0.4**2 + 0.8**2)],
)
def test_the_distance_of_directions_worked_by_hand(teacher: list[float], distance: float) -> None:
    assert float(pkd(torch.tensor([[2.0, 0.0]]), torch.tensor([teacher]))) == pytest.approx(distance)


def test_the_loss_is_the_mean_over_rows() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(pkd(student, teacher)) == 2.0


def test_only_the_first_token_counts() -> None:
    student, teacher = states(3, 5, 4), states(3, 5, 4).flip(-1)
    expected = pkd(student[:, 0], teacher[:, 0])
    assert torch.equal(pkd(student, teacher), expected)
    assert torch.equal(pkd(student[:, 0], teacher), expected)


def test_the_mask_has_no_effect() -> None:
    student, teacher = states(3, 5, 4), states(3, 5, 4).flip(-1)
    assert torch.equal(pkd(student, teacher, torch.zeros(3, 5).bool()), pkd(student, teacher))


def test_the_length_of_states_does_not_matter() -> None:
    student, teacher = states(3, 4), states(3, 4).flip(-1)
    torch.testing.assert_close(pkd(10 * student, 0.1 * teacher), pkd(student, teacher))


def test_a_student_that_agrees_has_no_loss_and_no_gradient() -> None:
    student = states(3, 4).requires_grad_()
    loss = pkd(student, student.detach().clone())
    loss.backward()
    assert float(loss.detach()) == 0
    assert not student.grad.any()


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_a_zero_state_gives_a_finite_loss_and_gradient(eps: float) -> None:
    student = torch.zeros(2, 4, requires_grad=True)
    loss = pkd(student, states(2, 4), eps=eps)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1, abs=0.01)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        ((2, 5, 312), (2, 5, 768), "student is 312 wide and teacher 768; give the match a projection."),
        ((2, 5, 4), (3, 5, 4), "student has 2 rows and teacher 3; both must see the same batch."),
        ((2, 3, 5, 4), (2, 5, 4), "the student's states are (2, 3, 5, 4); pkd needs [B, L, D] or [B, D]."),
        ((2, 5, 4), (4,), "the teacher's states are (4,); pkd needs [B, L, D] or [B, D]."),
    ],
)
def test_states_that_do_not_fit_are_refused(student: tuple[int, ...], teacher: tuple[int, ...], text: str) -> None:
    with pytest.raises(ShapeError) as error:
        pkd(torch.zeros(student), torch.zeros(teacher))
    assert str(error.value) == text


def test_pairs_of_layers_are_refused() -> None:
    pair, single = (torch.zeros(2, 5, 4), torch.zeros(2, 5, 4)), torch.zeros(2, 5, 4)
    for side, given in (("student", (pair, single)), ("teacher", (single, pair))):
        with pytest.raises(ShapeError) as error:
            pkd(*given)
        assert str(error.value) == f"the {side} gives 2 layers and pkd compares single ones; name one layer."


def test_the_entry_point_names_this_plugin_and_its_one_loss() -> None:
    (entry,) = metadata.entry_points(group="brewer", name="pkd")
    assert entry.dist is not None
    assert entry.dist.name == "brewer-loss-pkd"
    assert entry.load().brewer_match_losses() == brewer_match_losses() == {"pkd": pkd}
