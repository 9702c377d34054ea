"""Projections that bring the student's width to the teacher's, so that their states can be compared.

Weights are drawn from N(0, 0.02) and biases are 0, after torch's own initialisation: a seeded run draws what it drew in
TextBrewer.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from brewer_core import component, hookimpl

STANDARD_DEVIATION = 0.02


@component(name="Linear projection")
def linear(dim_in: int, dim_out: int) -> nn.Linear:
    """A linear layer with bias.

    Maps [..., dim_in] to [..., dim_out].
    """
    layer = nn.Linear(dim_in, dim_out)
    nn.init.normal_(layer.weight, std=STANDARD_DEVIATION)
    nn.init.zeros_(layer.bias)
    return layer


@component(name="Linear projection with ReLU")
def relu(dim_in: int, dim_out: int) -> nn.Sequential:
    """A linear layer with bias, then ReLU: for states that are not negative.

    Maps [..., dim_in] to [..., dim_out], at least 0.
    """
    return nn.Sequential(linear(dim_in, dim_out), nn.ReLU())


@component(name="Linear projection with tanh")
def tanh(dim_in: int, dim_out: int) -> nn.Sequential:
    """A linear layer with bias, then tanh: for states between -1 and 1.

    Maps [..., dim_in] to [..., dim_out], in (-1, 1).
    """
    return nn.Sequential(linear(dim_in, dim_out), nn.Tanh())


@hookimpl
def brewer_projections() -> dict[str, Callable[[int, int], nn.Module]]:
    """The built-in projections."""
    return {"linear": linear, "relu": relu, "tanh": tanh}
