"""Losses on how the rows of a batch lie to one another: distances, angles and similarities. Widths may differ.

Each compares the rows of a micro-batch with one another, on several processes those of its own process: larger micro-batches
show more relations. Shapes: B rows, L tokens, D width. States are [B, D], or [B, L, D] of which `pool` makes one vector a row;
masks are [B, L], True (or 1) where a token is valid. A row without valid tokens is left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from brewer_builtins.padding import all_or_valid, without_padding
from brewer_builtins.shapes import check_tokens
from brewer_builtins.states import Pool, in_full, rows_of, unit
from brewer_core import component

Item = TypeVar("Item")
OTHER_WIDTHS = {"wrong_width": "it compares relations of rows, so student and teacher may differ in width"}


@component(
    over="batch",
    source="Park et al. 2019, arXiv:1904.05068, section 3.2.1",
    name="Relational distillation of distances",
    exempt=OTHER_WIDTHS,
)
def rkd_distance(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    teacher_mask: Tensor | None = None,
    pool: Pool = "mean",
) -> Tensor:
    """Relational distillation of distances: Huber loss of the distances of every two rows, divided by their mean.

    Formula: mean over pairs i ≠ j of Huber(d_S,ij / μ_S - d_T,ij / μ_T), d_ij = ‖x_i - x_j‖, μ = mean over pairs i ≠ j of d_ij.
    student, teacher: [B, L, D] or [B, D]; they may differ in D. Huber(e) is e² / 2 up to |e| = 1 and |e| - 1/2 beyond.
    Returns a scalar, at least 0; 0 where the distances are proportional, and for fewer than two rows.
    Raises ShapeError where B differs, and for other ranks.
    Cost: O(B² D).
    Source: Park et al. 2019, arXiv:1904.05068, section 3.2.1. Their code takes the mean over all B² pairs, those of a row with
    itself too, which makes it (B - 1) / B of this one. The distance of rows that coincide has no gradient. Memory grows with B².
    """
    own, taught, valid = rows_of(student, teacher, mask, teacher_mask, pool)
    pairs = _pairs(valid)
    error = F.smooth_l1_loss(_relative(own, pairs), _relative(taught, pairs), reduction="none")
    return torch.where(pairs, error, 0).sum() / pairs.sum().clamp(min=1)


@component(
    over="batch",
    source="Park et al. 2019, arXiv:1904.05068, section 3.2.2",
    name="Relational distillation of angles",
    exempt=OTHER_WIDTHS,
)
def rkd_angle(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    teacher_mask: Tensor | None = None,
    pool: Pool = "mean",
) -> Tensor:
    """Relational distillation of angles: Huber loss of the cosines of the angles that every three rows form.

    Formula: mean over triples i ≠ j ≠ k ≠ i of Huber(a_S,ijk - a_T,ijk), a_ijk = cos of the angle at x_j between x_i and x_k.
    student, teacher: [B, L, D] or [B, D]; they may differ in D. Huber(e) is e² / 2 up to |e| = 1 and |e| - 1/2 beyond.
    Returns a scalar in [0, 1.5]; 0 where the angles agree, and for fewer than three rows.
    Raises ShapeError where B differs, and for other ranks.
    Cost: O(B³ D).
    Source: Park et al. 2019, arXiv:1904.05068, section 3.2.2. Their code takes the mean over all B³ triples, those with a row twice
    too, which makes it (B - 1)(B - 2) / B² of this one. The cosine beside rows that coincide is 0. Memory grows with B² D and B³.
    """
    own, taught, valid = rows_of(student, teacher, mask, teacher_mask, pool)
    pairs = _pairs(valid)
    triples = pairs[:, :, None] & pairs[:, None, :] & pairs[None]
    error = F.smooth_l1_loss(_cosines(own), _cosines(taught), reduction="none")
    return torch.where(triples, error, 0).sum() / triples.sum().clamp(min=1)


@component(
    over="batch",
    source="Tung and Mori 2019, arXiv:1907.09682, section 3",
    name="Similarity-preserving distillation",
    exempt=OTHER_WIDTHS,
)
def sp(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    teacher_mask: Tensor | None = None,
    pool: Annotated[
        Literal["mean", "first", "last", "flatten"],
        Field(
            description="How [B, L, D] becomes one vector a row: the mean over valid tokens, the first valid one, the last, or all "
            "tokens side by side with 0 at padding. [B, D] stays as it is."
        ),
    ] = "mean",
) -> Tensor:
    """Similarity-preserving distillation: squared difference of the rows' similarities, each row of them of unit length.

    Formula: ‖G_S - G_T‖_F² / b², G = X Xᵀ with rows divided by their length, X the b rows.
    student, teacher: [B, L, D] or [B, D]; they may differ in D. b is the number of rows with any valid token.
    Returns a scalar in [0, 4 / b]; 0 where the similarities are proportional row by row.
    Raises ShapeError where B differs, and for other ranks; with `flatten` also where L does.
    Cost: O(B² D).
    Source: Tung and Mori 2019, arXiv:1907.09682, section 3, where a row's activations are flattened: say `flatten` for states of tokens.
    """
    if pool == "flatten":
        student, teacher, mask = _flattened(student, teacher, mask)
        own, taught, valid = rows_of(student, teacher, mask, None, "mean")
    else:
        own, taught, valid = rows_of(student, teacher, mask, teacher_mask, pool)
    difference = _directions(own) - _directions(taught)
    return difference.square().sum() / valid.sum().clamp(min=1).square()


@component(
    over="batch",
    source="Kornblith et al. 2019, arXiv:1905.00414, section 3",
    name="Centred kernel alignment",
    exempt=OTHER_WIDTHS,
)
def cka(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    teacher_mask: Tensor | None = None,
    pool: Annotated[
        Literal["mean", "first", "last", "tokens"],
        Field(
            description="What the examples are, of [B, L, D]: the rows, by the mean over valid tokens, the first valid one or the "
            "last; or every valid token. Those of [B, D] are the rows."
        ),
    ] = "mean",
    debiased: Annotated[
        bool,
        Field(
            description="With the unbiased estimate of HSIC, which does not near 1 when rows are fewer than widths; needs 4."
        ),
    ] = False,
) -> Tensor:
    """Centred kernel alignment: 1 - linear CKA of the states of student and teacher.

    Formula: 1 - ‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F), X and Y the n examples of student and teacher, each less its mean.
    student, teacher: [B, L, D] or [B, D]; they may differ in D.
    Returns a scalar in [0, 1], with `debiased` in [0, 2]; 0 where the states agree up to rotation and scale, and for fewer than
    two examples, four with `debiased`; 1 where either side's examples are all alike.
    Raises ShapeError where B differs, and for other ranks; with `tokens` also where L does.
    Cost: O(n D min(n, D)); n = B L with `tokens`, else B.
    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3. Debiased: HSIC₁ of Song et al. 2012 in its place, as in Nguyen et al.
    2021, arXiv:2010.15327, eq. 3, within one batch.
    """
    if pool == "tokens" and isinstance(student, Tensor) and student.dim() == 3:
        own, taught, valid = _tokens(student, teacher, mask)
    else:
        own, taught, valid = rows_of(student, teacher, mask, teacher_mask, "mean" if pool == "tokens" else pool)
    own, taught = _centred(own, valid), _centred(taught, valid)
    sums = _products(own, taught, debiased)
    if debiased:
        sums = [_unbiased(total, *sides, valid) for total, sides in zip(sums, _combinations(own, taught), strict=True)]
    cross, scale = sums[0], sums[1] * sums[2]
    known = scale > 0
    alignment = torch.where(known, cross / torch.where(known, scale, 1).sqrt(), 0)
    return torch.where(valid.sum() < (4 if debiased else 2), 0 * alignment, 1 - alignment)


def _directions(states: Tensor) -> Tensor:
    """[B, B]: the similarities of rows, each row of them of unit length."""
    # at any scale they have the same directions; at this one, squares of large and small states stay in range
    largest = states.detach().abs().amax() if states.numel() else states.new_ones(())
    scaled = states / torch.where(largest == 0, 1, largest)
    return unit(scaled @ scaled.mT)


def _pairs(valid: Tensor) -> Tensor:
    """[B, B]: the pairs of two different valid rows."""
    itself = torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    return valid[:, None] & valid[None] & ~itself


def _relative(states: Tensor, pairs: Tensor) -> Tensor:
    """[B, B]: the distances of rows, divided by their mean over pairs."""
    # from differences: products of rows would give near rows a distance of rounding errors
    apart = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist")
    distances = torch.where(pairs, apart, 0)
    mean = distances.sum() / pairs.sum().clamp(min=1)
    return distances / torch.where(mean == 0, 1, mean)


def _cosines(states: Tensor) -> Tensor:
    """[B, B, B]: at each row (first axis) the cosines of the angles between every two others."""
    directions = unit(states[None] - states[:, None])
    return directions @ directions.mT


def _flattened(student: Any, teacher: Any, mask: Tensor | None) -> tuple[Any, Any, Tensor | None]:
    """[B, L D] of either side, 0 at padding; others as they are."""
    if not all(isinstance(side, Tensor) and side.dim() == 3 for side in (student, teacher)):
        return student, teacher, mask
    check_tokens(student, teacher)
    valid = all_or_valid(mask, student)
    flat = [without_padding(states, valid).flatten(1) for states in (student, teacher)]
    return flat[0], flat[1], valid


def _tokens(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The states of all tokens, [B L, D] and [B L, D'], the teacher's detached, and which of them are valid."""
    check_tokens(student, teacher)
    valid = all_or_valid(mask, student)
    own, taught = (without_padding(in_full(s), valid).flatten(0, 1) for s in (student, teacher.detach()))
    return own, taught, valid.flatten()


def _centred(states: Tensor, valid: Tensor) -> Tensor:
    """The examples less their mean, scaled to a norm of 1; those that are not valid are 0.

    The scale changes no alignment, and keeps squares of large and small states in range.
    """
    mean = states.sum(dim=0) / valid.sum().clamp(min=1)
    centred = without_padding(states - mean, valid)
    return unit(centred.flatten()).view_as(centred)


def _combinations(own: Item, taught: Item) -> tuple[tuple[Item, Item], ...]:
    return (own, taught), (own, own), (taught, taught)


def _products(own: Tensor, taught: Tensor, debiased: bool) -> list[Tensor]:
    """The sums of the products of the kernels K = X Xᵀ and L = Y Yᵀ, of K and K, and of L and L; debiased: but for their diagonals.

    ‖YᵀX‖_F² is the first of them, and cheaper where there are more examples than widths.
    """
    if len(own) > max(own.shape[1], taught.shape[1]):
        whole = [(other.mT @ one).square().sum() for one, other in _combinations(own, taught)]
        squares = [states.square().sum(dim=1) for states in (own, taught)]
        return [
            total - (one * other).sum() if debiased else total
            for total, (one, other) in zip(whole, _combinations(*squares), strict=True)
        ]
    kernels = [states @ states.mT for states in (own, taught)]
    if debiased:
        kernels = [kernel - kernel.diagonal().diag() for kernel in kernels]
    return [(one * other).sum() for one, other in _combinations(*kernels)]


def _unbiased(total: Tensor, one: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    """Song et al. 2012, eq. 5, times n (n - 3), of a sum of products of two kernels of centred examples.

    Their rows sum to 0, and so without the diagonal to what that is, with a minus.
    """
    n = valid.sum().clamp(min=4)
    a, b = one.square().sum(dim=1), other.square().sum(dim=1)
    return total + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a * b).sum() / (n - 2)
