"""The transport: plans worked by hand and by linear programming, and the weights that cost attention finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linprog

from brewer_strategy_emd.transport import SMALLEST_SHARE, LayerWeights, Transport

SIZES = [(1, 1), (1, 5), (5, 1), (3, 3), (4, 12), (12, 4), (3, 7)]


def weights(*sides: list[float]) -> LayerWeights:
    return LayerWeights(*map(np.array, sides))


def random_weights(students: int, teachers: int) -> LayerWeights:
    generator = np.random.default_rng(1)
    return LayerWeights(*(generator.dirichlet(np.ones(count)) for count in (students, teachers)))


def least_cost(costs, sides: LayerWeights) -> float:
    """The least sum of plan times cost, by linear programming."""
    students, teachers = costs.shape
    rows, columns = np.repeat(np.eye(students), teachers, axis=1), np.tile(np.eye(teachers), students)
    found = linprog(costs.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate(sides))
    assert found.success
    return found.fun


# Plans


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_the_plan_costs_as_little_as_linear_programming_finds(size: tuple[int, int], uniform: bool) -> None:
    costs = np.random.default_rng(0).random(size)
    sides = LayerWeights.uniform(*size) if uniform else random_weights(*size)
    plan = Transport.cheapest(costs, sides).plan
    assert (plan * costs).sum() == pytest.approx(least_cost(costs, sides), abs=1e-9)
    assert (plan >= 0).all()
    assert np.count_nonzero(plan) <= sum(size) - 1
    np.testing.assert_allclose(plan.sum(axis=1), sides.student)
    np.testing.assert_allclose(plan.sum(axis=0), sides.teacher)


def test_a_plan_worked_by_hand() -> None:
    plan = Transport.cheapest(np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), LayerWeights.uniform(2, 3)).plan
    np.testing.assert_allclose(plan, [[1 / 3, 1 / 6, 0], [0, 1 / 6, 1 / 3]])


def test_a_permutation_is_found() -> None:
    costs = 1 - np.eye(4)[[2, 0, 3, 1]]
    np.testing.assert_array_equal(Transport.cheapest(costs, LayerWeights.uniform(4, 4)).plan, (1 - costs) / 4)


@pytest.mark.parametrize(("factor", "offset"), [(1e-30, 0.0), (1e30, 0.0), (1e-12, 1.0)])
def test_tiny_huge_and_almost_equal_costs_have_the_same_plan(factor: float, offset: float) -> None:
    costs, sides = np.random.default_rng(0).random((4, 12)), LayerWeights.uniform(4, 12)
    plan = Transport.cheapest(offset + factor * costs, sides).plan
    assert (plan * costs).sum() == pytest.approx(least_cost(costs, sides), abs=1e-3)


def test_costs_that_are_all_alike_have_a_plan() -> None:
    for cost in (0.0, 3.0):
        plan = Transport.cheapest(np.full((2, 3), cost), LayerWeights.uniform(2, 3)).plan
        np.testing.assert_allclose(plan.sum(axis=0), 1 / 3)


@pytest.mark.parametrize("cost", [math.nan, math.inf])
def test_everything_goes_everywhere_where_a_cost_is_not_finite(cost: float) -> None:
    plan = Transport.cheapest(np.array([[1.0, cost], [1.0, 1.0]]), weights([0.25, 0.75], [0.5, 0.5])).plan
    np.testing.assert_array_equal(plan, [[0.125, 0.125], [0.375, 0.375]])


# Cost attention


def test_cost_attention_worked_by_hand() -> None:
    move = Transport.cheapest(np.array([[1.0, 9.0], [9.0, 3.0]]), LayerWeights.uniform(2, 2))
    # a unit of the layers costs 1 and 3, 4 in all: the softmax of 4/1 and 4/3
    share = 1 / (1 + math.exp(4 / 3 - 4))
    for side in move.cost_attention(1.0):
        np.testing.assert_allclose(side, [share, 1 - share])
    at_two = 1 / (1 + math.exp((4 / 3 - 4) / 2))
    np.testing.assert_allclose(move.cost_attention(2.0).student, [at_two, 1 - at_two])


def test_what_a_layer_weighs_already_does_not_change_what_a_unit_of_it_costs() -> None:
    sides = weights([0.2, 0.8], [0.2, 0.8])
    share = 1 / (1 + math.exp(4 / 3 - 4))
    found = Transport.cheapest(np.array([[1.0, 9.0], [9.0, 3.0]]), sides).cost_attention(1.0)
    np.testing.assert_allclose(found.student, [share, 1 - share])


def test_layers_that_all_cost_alike_weigh_alike() -> None:
    for cost in (0.0, 2.0):
        for side in Transport.cheapest(np.full((2, 4), cost), weights([0.3, 0.7], [0.25] * 4)).cost_attention(1.0):
            np.testing.assert_allclose(side, 1 / len(side))


def test_a_layer_that_costs_nothing_weighs_most_and_the_others_still_something() -> None:
    sides = Transport.cheapest(np.array([[0.0, 9.0], [9.0, 3.0]]), LayerWeights.uniform(2, 2)).cost_attention(1.0)
    for side in sides:
        np.testing.assert_allclose(side, [1 - SMALLEST_SHARE, SMALLEST_SHARE], rtol=1e-5)
    again = Transport.cheapest(np.array([[1.0, 9.0], [9.0, 1.0]]), sides).cost_attention(1.0)
    np.testing.assert_allclose(again.student, 0.5, atol=1e-4)


def test_a_high_temperature_lets_layers_weigh_alike() -> None:
    move = Transport.cheapest(np.array([[1.0, 9.0], [9.0, 3.0]]), LayerWeights.uniform(2, 2))
    np.testing.assert_allclose(move.cost_attention(1e6).student, 0.5, atol=1e-5)
