"""Losses between hidden states of student and teacher, token by token, and between flows from layer to layer.

Shapes: B rows, L tokens, D width. Masks are [B, L], True (or 1) where a token is valid; values at padding, infinite ones too, reach
neither a loss nor its gradient unless a docstring says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from brewer_builtins.padding import all_or_valid, mean, pair_count, token_count, valid_tokens, without_padding
from brewer_builtins.shapes import (
    check_pairs,
    check_same_tokens,
    check_states,
    check_tokens,
    check_width,
    shown,
)
from brewer_builtins.states import check_rows, cosine_distances, in_full, unit
from brewer_core import ShapeError, component


@component(over="tokens", source="Jiao et al. 2020, arXiv:1909.10351, eq. 8", name="Squared error of hidden states")
def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of hidden states.

    Formula: mean over valid tokens and D of (h_S - h_T)².
    student, teacher: [B, L, D]; without a mask any shape. The mean is over valid tokens and D.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError where D differs: give the match a projection.
    Cost: O(B L D).
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, eq. 8.
    """
    check_states(student, teacher)
    student, teacher = in_full(student), in_full(teacher.detach())
    if mask is None:
        return mean(F.mse_loss(student, teacher, reduction="none"))
    valid = valid_tokens(mask, student)
    difference = F.mse_loss(without_padding(student, valid), without_padding(teacher, valid), reduction="none")
    return difference.sum() / (token_count(valid) * student.shape[-1])


@component(
    over="tokens", source="Sanh et al. 2019, arXiv:1910.01108, section 3", name="Cosine distance of hidden states"
)
def cos(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of 1 - cos of the angle between hidden states.

    Formula: mean over valid tokens of 1 - h_S·h_T / (‖h_S‖ ‖h_T‖).
    student, teacher: [B, L, D]; without a mask any shape that ends in D. The mean is over valid tokens.
    Returns a scalar in [0, 2], 0 where the directions agree or no token is valid; a zero state adds 1.
    Raises ShapeError where D differs: give the match a projection.
    Cost: O(B L D).
    Source: Sanh et al. 2019 (DistilBERT), arXiv:1910.01108, section 3.
    """
    check_states(student, teacher)
    student, teacher = in_full(student), in_full(teacher.detach())
    if mask is None:
        return mean(cosine_distances(student, teacher))
    valid = valid_tokens(mask, student)
    distances = cosine_distances(without_padding(student, valid), without_padding(teacher, valid))
    return torch.where(valid, distances, 0).sum() / token_count(valid)


@component(over="rows", source="Yim et al. 2017, CVPR, eq. 1 and 2", name="Flow of solution procedure")
def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Flow of solution procedure: squared difference of the products of two layers' states, width by width.

    Formula: mean over rows, D1 and D2 of (F_S - F_T)², F = Xᵀ Y / L for a row's two layers X [L, D1] and Y [L, D2].
    student, teacher: pairs of [B, L, D1] and [B, L, D2]. The product is the mean over a row's valid tokens, [B, D1, D2],
    and the loss the mean over rows and D1 times D2; a row without valid tokens adds 0.
    Returns a scalar, at least 0.
    Raises ShapeError for single layers or layers of other tokens, and where B differs, or a width: give the match a projection then.
    Cost: O(B L D1 D2).
    Source: a variant of Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR, eq. 1 and 2, with tokens for places.
    """
    check_pairs(student, teacher)
    for side, (first, second) in (("student", student), ("teacher", teacher)):
        if first.dim() != 3 or first.shape[:-1] != second.shape[:-1]:
            raise ShapeError(
                f"the {side}'s two layers are {shown(first)} and {shown(second)}; they must be [B, L, D] of the same rows and tokens."
            )
    for own, taught in zip(student, teacher, strict=True):
        check_rows(own, taught)
        check_width(own, taught)
    return mean(F.mse_loss(_flow(student, mask), _flow(teacher, mask).detach(), reduction="none"))


@component(
    over="token_pairs",
    source="Huang and Wang 2017, arXiv:1707.01219",
    name="Neuron selectivity transfer",
    exempt={"wrong_width": "it compares similarities of tokens, so student and teacher may differ in width"},
)
def nst(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Neuron selectivity transfer: squared difference of the similarities of tokens across two layers.

    Formula: mean over pairs of valid tokens of (X_S Y_Sᵀ / D_S - X_T Y_Tᵀ / D_T)², for a row's two layers X and Y, [L, D].
    student, teacher: pairs of [B, L, D]; student and teacher may differ in D. A similarity is the product of a token's
    state in the first layer and a token's in the second, divided by D, and the loss the mean over pairs of valid tokens.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError for single layers, for layers of a pair that differ in D, and where L differs.
    Cost: O(B L² D).
    Source: a variant of Huang and Wang 2017, arXiv:1707.01219. Departs from textbrewer 0.2.1, which divides by L
    instead of D where a mask is given; its repository divides by D as here.
    """
    check_pairs(student, teacher)
    for side, (first, second) in (("student", student), ("teacher", teacher)):
        if first.shape != second.shape:
            raise ShapeError(f"the {side}'s two layers are {shown(first)} and {shown(second)}; they must be alike.")
    check_same_tokens(student[0], teacher[0])
    if mask is None:
        return mean(F.mse_loss(_similarity(student), _similarity(teacher).detach(), reduction="none"))
    valid = valid_tokens(mask, student[0])
    student, teacher = ([without_padding(layer, valid) for layer in pair] for pair in (student, teacher))
    difference = F.mse_loss(_similarity(student), _similarity(teacher).detach(), reduction="none")
    return difference.sum() / pair_count(valid)


@component(
    over="rows",
    source="Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2",
    name="Attention transfer",
    exempt={"wrong_width": "it compares a map over tokens, so student and teacher may differ in width"},
)
def at(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    power: Annotated[float, Field(ge=1, description="The power p of the states' absolute values.")] = 2.0,
) -> Tensor:
    """Attention transfer: squared distance of the unit-length maps of how active each token is.

    Formula: mean over rows of ‖Q_S/‖Q_S‖ - Q_T/‖Q_T‖‖², Q = Σ_d abs(h_d)^p over the row's valid tokens.
    student, teacher: [B, L, D]; student and teacher may differ in D. A map is over a row's valid tokens; one of zeros stays one.
    A row without valid tokens adds 0.
    Returns a scalar in [0, 2]; 0 where the maps are multiples of one another.
    Raises ShapeError where B or L differs.
    Cost: O(B L D).
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2, with tokens for places of an image. The distance is squared, as in
    their code, which divides it by the number of places too; in eq. 2 it is not squared.
    """
    check_tokens(student, teacher)
    valid = all_or_valid(mask, student)
    difference = _activity(student, valid, power) - _activity(teacher.detach(), valid, power)
    return mean(difference.square().sum(dim=-1))


def _flow(layers: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """[B, D1, D2]: the mean over a row's valid tokens of the products of its states in two layers."""
    first, second = map(in_full, layers)
    if mask is None:
        return first.mT @ second / second.shape[1]
    valid = valid_tokens(mask, first)
    lengths = valid.sum(dim=1).clamp(min=1)
    return without_padding(first, valid).mT @ without_padding(second, valid) / lengths[:, None, None]


def _similarity(layers: Sequence[Tensor]) -> Tensor:
    """[B, L, L]: the products of every token's state in the first layer with every token's in the second, divided by D."""
    first, second = map(in_full, layers)
    return first @ second.mT / second.shape[-1]


def _activity(states: Tensor, valid: Tensor, power: float) -> Tensor:
    """[B, L]: the map of a row's tokens, of unit length."""
    states = without_padding(in_full(states), valid)
    largest = states.detach().abs().amax(dim=(1, 2), keepdim=True)  # the map's direction is that of any multiple
    scaled = states / torch.where(largest == 0, 1, largest)
    return unit(scaled.abs().pow(power).sum(dim=-1))
