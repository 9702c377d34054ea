"""Schedules of weights and temperatures: textbrewer's numbers, numbers worked by hand, and the errors' texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from brewer_builtins.temperature_schedulers import brewer_temperature_schedulers, constant, cwsm, flsw
from brewer_builtins.weight_schedulers import brewer_weight_schedulers
from brewer_core import KINDS, ShapeError
from brewer_core.components import Component
from differential.reference import presets

WEIGHTS = brewer_weight_schedulers()
DECAYS, GROWTHS = ("linear_decay", "cosine_decay"), ("linear_growth", "cosine_growth")
SEEDS = range(6)


def logits(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=g), 3 * torch.randn(shape, generator=g)


def refusal(kind: str, name: str, provided: dict[str, Callable[..., Any]], options: dict[str, Any]) -> tuple[str, str]:
    """The option that is refused, and why."""
    with pytest.raises(ValidationError) as error:
        Component(KINDS[kind], name, provided[name]).check(options)
    (problem,) = error.value.errors()
    return str(problem["loc"][0]), problem["msg"]


# weights


@pytest.mark.parametrize("name", ["linear_decay", "linear_growth"])
@settings(deadline=None)
@given(progress=st.floats(0, 1))
def test_linear_schedules_equal_textbrewers_to_the_bit(name: str, progress: float) -> None:
    assert WEIGHTS[name](progress) == presets.WEIGHT_SCHEDULER[name](progress)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("constant", (1, 1, 1, 1)),
        ("linear_decay", (1, 0.75, 0.5, 0)),
        ("linear_growth", (0, 0.25, 0.5, 1)),
        ("cosine_decay", (1, (1 + math.sqrt(0.5)) / 2, 0.5, 0)),
        ("cosine_growth", (0, (1 - math.sqrt(0.5)) / 2, 0.5, 1)),
    ],
)
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.6])
def test_a_schedule_runs_over_what_the_warmup_leaves(name: str, factors: tuple[float, ...], warmup: float) -> None:
    given = [WEIGHTS[name](warmup + share * (1 - warmup), warmup=warmup) for share in (0, 0.25, 0.5, 1)]
    assert given == pytest.approx(factors)


@pytest.mark.parametrize("name", [*DECAYS, "constant"])
def test_warmup_rises_in_a_straight_line_to_where_a_schedule_starts(name: str) -> None:
    assert [WEIGHTS[name](progress, warmup=0.4) for progress in (0, 0.1, 0.3)] == pytest.approx([0, 0.25, 0.75])


@pytest.mark.parametrize("name", GROWTHS)
def test_a_growth_stays_at_zero_during_warmup(name: str) -> None:
    assert [WEIGHTS[name](progress, warmup=0.4) for progress in (0, 0.1, 0.3, 0.4)] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", sorted(WEIGHTS))
@settings(deadline=None)
@given(progress=st.floats(0, 1), warmup=st.floats(0, 0.99))
def test_factors_are_between_zero_and_one_and_end_where_they_should(name: str, progress: float, warmup: float) -> None:
    assert 0 <= WEIGHTS[name](progress, warmup=warmup) <= 1
    assert WEIGHTS[name](1.0, warmup=warmup) == (0 if name in DECAYS else 1)


@pytest.mark.parametrize(
    ("warmup", "why"),
    [
        (1, "Input should be less than 1"),
        (-0.1, "Input should be greater than or equal to 0"),
        ("0.1", "Input should be a valid number"),
    ],
)
@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_a_warmup_that_is_no_share_of_the_run_is_refused(name: str, warmup: Any, why: str) -> None:
    assert refusal("weight_scheduler", name, WEIGHTS, {"warmup": warmup}) == ("warmup", why)


def test_the_hook_of_weights_gives_exactly_these() -> None:
    assert set(WEIGHTS) == {*DECAYS, *GROWTHS, "constant"}


# temperatures


def test_the_constant_temperature_is_the_base_temperature() -> None:
    assert constant(*logits(0, 4, 5), 3.0) == presets.TEMPERATURE_SCHEDULER["constant"](*logits(0, 4, 5), 3.0) == 3.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 30), (1, 2)])
@pytest.mark.parametrize(("beta", "gamma"), [(1, 1), (1, 2), (2.5, 0.5), (-1.0, 3), (0, 1), (1, 0)])
def test_flsw_equals_textbrewers(beta: float, gamma: float, shape: tuple[int, ...], seed: int) -> None:
    student, teacher = logits(seed, *shape)
    torch.testing.assert_close(
        flsw(student, teacher, 8.0, beta=beta, gamma=gamma),
        presets.TEMPERATURE_SCHEDULER[["flsw", beta, gamma]](student, teacher, 8.0),
        rtol=1e-6,
        atol=1e-6,
    )


def test_eps_is_added_to_the_norms_as_in_textbrewer() -> None:
    student, teacher = logits(0, 6, 4)
    torch.testing.assert_close(
        flsw(student, teacher, 8.0, beta=1, gamma=2, eps=5.0),
        presets.TEMPERATURE_SCHEDULER[["flsw", 1, 2, 5.0]](student, teacher, 8.0),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 30), (1, 2)])
@pytest.mark.parametrize("beta", [1, 0.25, -0.5])
def test_cwsm_equals_textbrewers_above_the_floor(beta: float, shape: tuple[int, ...], seed: int) -> None:
    student, teacher = logits(seed, *shape)
    theirs = presets.TEMPERATURE_SCHEDULER[["cwsm", beta]](student, teacher, 20.0)
    assert float(theirs.min()) > 0.1
    torch.testing.assert_close(cwsm(student, teacher, 20.0, beta=beta), theirs, rtol=1e-6, atol=1e-6)


def test_flsw_of_two_positions_worked_by_hand() -> None:
    # cosines 1 and 0, so weights 0 and 1 and their mean 1/2
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    given = flsw(student, teacher, 4.0, beta=2.0, gamma=2.0, eps=1e-12)
    assert given.tolist() == pytest.approx([5.0, 3.0])


def test_cwsm_of_two_positions_worked_by_hand() -> None:
    # largest probabilities 1 and 1/2, so weights 1/1.001 and 1/0.501
    given = cwsm(torch.tensor([[100.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2), 4.0, beta=2.0)
    half = 1 / 0.501 - 1 / 1.001
    assert given.tolist() == pytest.approx([4 + half, 4 - half])


@pytest.mark.parametrize("floor", [0.1, 2.0])
def test_temperatures_do_not_fall_below_the_floor_where_textbrewers_become_negative(floor: float) -> None:
    student = torch.zeros(4, 50)
    student[:2, 0] = 100
    theirs = presets.TEMPERATURE_SCHEDULER[["cwsm", 1]](student, student, 4.0)
    ours = cwsm(student, student, 4.0, beta=1, floor=floor)
    assert float(theirs.min()) < -7
    torch.testing.assert_close(ours, theirs.clamp(min=floor))
    assert float(flsw(student, -student, 1.0, beta=9, gamma=2, floor=floor).min()) >= floor


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.7, 2.0])
def test_equal_logits_give_the_base_temperature_for_every_power(gamma: float) -> None:
    # rounding makes 1 - cos of some of these negative, of which a broken power is NaN
    student = 1e4 * torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    given = flsw(student, student, 4.0, beta=1.0, gamma=gamma)
    torch.testing.assert_close(given, torch.full((200,), 4.0), rtol=0, atol=0.02)


def test_zero_logits_give_a_finite_temperature() -> None:
    assert flsw(torch.zeros(3, 4), torch.zeros(3, 4), 4.0, beta=1.0, gamma=2.0).tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "schedule", [lambda s, t: flsw(s, t, 4.0, beta=1.0, gamma=2.0), lambda s, t: cwsm(s, t, 4.0, beta=1.0)]
)
def test_temperatures_carry_no_gradient_and_leave_the_logits_as_they_are(schedule: Callable[..., Tensor]) -> None:
    student, teacher = logits(0, 5, 4)
    before = student.clone(), teacher.clone()
    given = schedule(student.requires_grad_(), teacher.requires_grad_())
    assert not given.requires_grad
    assert given.shape == (5,)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize(
    "schedule", [lambda s, t: flsw(s, t, 4.0, beta=1.0, gamma=2.0), lambda s, t: cwsm(s, t, 4.0, beta=1.0)]
)
def test_no_positions_have_no_temperatures(schedule: Callable[..., Tensor]) -> None:
    assert schedule(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_flsw_refuses_logits_of_different_shapes() -> None:
    with pytest.raises(ShapeError) as error:
        flsw(torch.zeros(3, 4), torch.zeros(3, 5), 4.0, beta=1.0, gamma=2.0)
    assert str(error.value) == (
        "student logits are (3, 4) and teacher logits (3, 5); "
        "the temperature scheduler flsw compares them and needs equal shapes."
    )


@pytest.mark.parametrize(
    ("name", "over", "positional", "checked"),
    [
        ("constant", None, (), {}),
        ("cwsm", "batch", ("beta",), {"beta": 1.0, "floor": 0.1}),
        ("flsw", "batch", ("beta", "gamma", "eps"), {"beta": 1.0, "gamma": 2.0, "eps": 1e-4, "floor": 0.1}),
    ],
)
def test_the_list_form_goes_to_the_options_in_textbrewers_order(
    name: str, over: str | None, positional: tuple[str, ...], checked: dict[str, float]
) -> None:
    found = Component(KINDS["temperature_scheduler"], name, brewer_temperature_schedulers()[name])
    assert (found.facts.over, found.facts.positional) == (over, positional)
    assert found.check(dict(zip(positional, [1, 2], strict=False))) == checked


@pytest.mark.parametrize(
    ("options", "option", "why"),
    [
        ({"beta": 1}, "gamma", "Field required"),
        ({"gamma": 1}, "beta", "Field required"),
        ({"beta": 1, "gamma": -1}, "gamma", "Input should be greater than or equal to 0"),
        ({"beta": 1, "gamma": 1, "eps": -1}, "eps", "Input should be greater than or equal to 0"),
        ({"beta": 1, "gamma": 1, "floor": 0}, "floor", "Input should be greater than 0"),
    ],
)
def test_wrong_options_of_flsw_are_refused(options: dict[str, float], option: str, why: str) -> None:
    assert refusal("temperature_scheduler", "flsw", brewer_temperature_schedulers(), options) == (option, why)
