"""Projections: the same draws as textbrewer's, and what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from brewer_builtins.projections import brewer_projections, linear, relu, tanh
from brewer_core import KINDS
from brewer_core.components import Component
from differential.reference import presets

NAMES = ("linear", "relu", "tanh")


@pytest.mark.parametrize(("dim_in", "dim_out"), [(3, 5), (312, 768), (16, 16), (1, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_textbrewers_parameters_and_leaves_its_generator_state(
    name: str, dim_in: int, dim_out: int
) -> None:
    made, states = [], []
    for projection in (presets.PROJ_MAP[name], brewer_projections()[name]):
        torch.manual_seed(7)
        made.append(projection(dim_in, dim_out).state_dict())
        states.append(torch.get_rng_state())
    assert list(made[0]) == list(made[1])
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    assert torch.equal(*states)


@pytest.mark.parametrize("name", NAMES)
def test_a_projection_computes_what_textbrewers_does(name: str) -> None:
    theirs, ours = presets.PROJ_MAP[name](6, 4), brewer_projections()[name](6, 4)
    ours.load_state_dict(theirs.state_dict())
    states = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(states), theirs(states))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_biases_zero(name: str) -> None:
    torch.manual_seed(0)
    weight, bias = (p.detach() for p in brewer_projections()[name](300, 400).parameters())
    assert weight.shape == (400, 300)
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=2e-4)
    assert not bias.any()


@pytest.mark.parametrize(("make", "low", "high"), [(relu, 0, float("inf")), (tanh, -1, 1)])
def test_activations_bound_what_they_give(make: Callable[[int, int], nn.Module], low: float, high: float) -> None:
    given = brewer_projections()[make.__name__](4, 6)(1000 * torch.randn(50, 4)).detach()
    assert low <= float(given.min()) < float(given.max()) <= high


@pytest.mark.parametrize("make", [relu, tanh])
def test_two_projections_share_no_module(make: Callable[[int, int], nn.Module]) -> None:
    first, second = make(3, 3), make(3, 3)
    assert set(first.modules()).isdisjoint(second.modules())


def test_a_linear_projection_is_a_linear_layer() -> None:
    assert type(linear(2, 3)) is nn.Linear


@pytest.mark.parametrize("name", NAMES)
def test_each_projection_is_a_component_without_options(name: str) -> None:
    assert Component(KINDS["projection"], name, brewer_projections()[name]).check({}) == {}


def test_the_hook_gives_exactly_these() -> None:
    assert set(brewer_projections()) == set(NAMES) == set(presets.PROJ_MAP)
