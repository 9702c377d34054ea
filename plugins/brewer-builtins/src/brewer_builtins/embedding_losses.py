"""Losses between embeddings of tokens and of sentences: vector by vector, or by the scores that they give one another.

Shapes: B rows, L tokens, D width. Masks are [B, L], True (or 1) where a token is valid; values at padding, infinite ones too,
reach neither a loss nor its gradient.

`matryoshka_dims` compares prefixes of the student's embeddings, so that each of them can be used on its own (Kusupati et al. 2022,
arXiv:2205.13147): the loss is the sum over the dimensions, each with its weight. Dimensions that are not named are not compared
as such: name the full width too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.distributions import Temperature, kl_divergence, log_softmax_over
from brewer_builtins.padding import mean, token_count, without_padding
from brewer_builtins.shapes import check_pairs, check_single, check_states, check_width
from brewer_builtins.states import Pool, check_rows, cosine_distances, in_full, rows_of, unit, valid_items
from brewer_core import RequestError, ShapeError, component

Width = Annotated[int, Field(ge=1)]

MatryoshkaDims = Annotated[
    list[Width] | None,
    Field(
        min_length=1,
        description="Widths of prefixes of the embeddings, such as [64, 128, 384]; without it the full width.",
    ),
]

MatryoshkaWeights = Annotated[
    list[float] | None, Field(description="A factor for each of `matryoshka_dims`; without it each has the factor 1.")
]


@component(
    over="tokens",
    source="Jiao et al. 2020, arXiv:1909.10351, eq. 9; Reimers and Gurevych 2020, arXiv:2004.09813, eq. 1",
    name="Squared error of embeddings",
)
def embedding_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    matryoshka_dims: MatryoshkaDims = None,
    matryoshka_weights: MatryoshkaWeights = None,
) -> Tensor:
    """Mean squared difference of embeddings, of tokens or of sentences.

    Formula: mean over valid tokens (or rows) and D of (e_S - e_T)²; summed over prefixes with their weights, where there are any.
    student, teacher: embeddings of tokens [B, L, D], whose mean is over valid tokens, or of sentences [B, D], whose mean is over
    rows. With `matryoshka_dims` the teacher's embeddings are cut to the same prefix as the student's.
    Returns a scalar, at least 0; 0 where nothing is valid.
    Raises ShapeError where D differs (give the match a projection), for other ranks, and for prefixes wider than D;
    RequestError where weights and dimensions are not equally many.
    Cost: O(B L D), for each prefix.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, eq. 9, for tokens; Reimers and Gurevych 2020, arXiv:2004.09813, eq. 1, for
    sentences. Of [B, D] read from a module's path, micro-batches of one step are weighed by their tokens; `pooled` is by rows.
    """
    check_states(student, teacher)
    check_rows(student, teacher)
    valid = valid_items(student, mask)
    own, taught = (without_padding(in_full(states), valid) for states in (student, teacher.detach()))
    items = token_count(valid)
    losses = [
        weight * (own[..., :width] - taught[..., :width]).square().sum() / (items * width)
        for width, weight in _prefixes(own, matryoshka_dims, matryoshka_weights)
    ]
    return sum(losses[1:], losses[0])


@component(
    over="rows",
    source="Reimers and Gurevych 2020, arXiv:2004.09813, eq. 1, by cosine",
    name="Cosine distance of embeddings",
)
def embedding_cos(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    teacher_mask: Tensor | None = None,
    pool: Pool = "mean",
    matryoshka_dims: MatryoshkaDims = None,
    matryoshka_weights: MatryoshkaWeights = None,
) -> Tensor:
    """Mean of 1 - cos of the angle between the embeddings of sentences.

    Formula: mean over rows of 1 - e_S·e_T / (‖e_S‖ ‖e_T‖); summed over prefixes with their weights, where there are any.
    student, teacher: [B, D], or [B, L, D] of which `pool` makes one vector a row. With `matryoshka_dims` the teacher's embeddings
    are cut to the same prefix as the student's, and both have length 1 after it. A row without valid tokens adds 0.
    Returns a scalar in [0, 2], times the sum of the weights; 0 where the directions agree. An embedding of zeros adds 1.
    Raises ShapeError where B or D differs (give the match a projection for D), for other ranks, and for prefixes wider than D;
    RequestError where weights and dimensions are not equally many.
    Cost: O(B D), for each prefix.
    Source: the cosine form of Reimers and Gurevych 2020, arXiv:2004.09813, eq. 1. For tokens one by one there is `cos`.
    """
    check_single(student, teacher)
    check_width(student, teacher)
    own, taught, valid = rows_of(student, teacher, mask, teacher_mask, pool)
    losses = []
    for width, weight in _prefixes(own, matryoshka_dims, matryoshka_weights):
        distances = cosine_distances(own[:, :width], taught[:, :width])
        losses.append(weight * mean(torch.where(valid, distances, 0)))
    return sum(losses[1:], losses[0])


@component(
    over="batch",
    source="Lin et al. 2020, arXiv:2010.11386, with scores within the batch",
    name="Divergence of score matrices",
    exempt={"wrong_width": "it compares scores of rows, so student and teacher may differ in width"},
)
def score_matrix_kl(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    teacher_mask: Tensor | None = None,
    student_temperature: Temperature = 0.05,
    teacher_temperature: Temperature = 0.05,
    similarity: Annotated[
        Literal["cos", "dot"], Field(description="A score is the cosine of two embeddings, or their product.")
    ] = "cos",
    pool: Pool = "mean",
    matryoshka_dims: MatryoshkaDims = None,
    matryoshka_weights: MatryoshkaWeights = None,
) -> Tensor:
    """KL divergence of the scores that each row gives the others of the batch, or each query the batch's documents.

    Formula: mean over rows i of KL(softmax_j(s_T,ij / τ_T) ‖ softmax_j(s_S,ij / τ_S)), s_ij = cos(e_i, e_j).
    student, teacher: embeddings [B, D], scored against one another but for a row itself; or a pair of queries [B, D] and documents
    [N, D], where every document is scored. [B, L, D] becomes one vector a row by `pool`. Student and teacher may differ in D. With
    `matryoshka_dims` the student's embeddings alone are cut: the target is the teacher's scores at its full width. Rows without valid
    tokens neither count nor are scored; a mask of pairs is for both of them, so they must have the same rows and tokens.
    Returns a scalar, at least 0, times the sum of the weights; 0 where the distributions agree, and where nothing can be scored.
    Raises ShapeError where B or N differs, for other ranks, and for prefixes wider than D; RequestError where weights and
    dimensions are not equally many.
    Cost: O(B² D), for each prefix.
    Source: Lin et al. 2020, arXiv:2010.11386, with the batch's documents as candidates. Not multiplied by the temperatures. On several
    processes a row is scored against those of its own process: larger micro-batches have more candidates.
    """
    paired = not isinstance(student, Tensor) or not isinstance(teacher, Tensor)
    if paired:
        check_pairs(student, teacher)
    own, taught = ((side, side) if isinstance(side, Tensor) else tuple(side) for side in (student, teacher))
    queries, documents = (rows_of(own[i], taught[i], mask, teacher_mask, pool) for i in (0, 1))
    for queried, found in zip(queries[:2], documents[:2], strict=True):
        if queried.shape[1] != found.shape[1]:
            raise ShapeError(
                f"queries are {queried.shape[1]} wide and documents {found.shape[1]}; both must come from one model."
            )
    candidates = queries[2][:, None] & documents[2][None]
    if not paired:
        candidates = candidates & ~torch.eye(len(queries[2]), dtype=torch.bool, device=candidates.device)
    log_p = log_softmax_over(_scores(queries[1], documents[1], similarity) / teacher_temperature, candidates)
    scored = candidates.any(dim=-1).sum().clamp(min=1)
    losses = []
    for width, weight in _prefixes(queries[0], matryoshka_dims, matryoshka_weights):
        scores = _scores(queries[0][:, :width], documents[0][:, :width], similarity)
        log_q = log_softmax_over(scores / student_temperature, candidates)
        losses.append(weight * kl_divergence(log_p, log_q).sum() / scored)
    return sum(losses[1:], losses[0])


def _scores(queries: Tensor, documents: Tensor, similarity: str) -> Tensor:
    """[B, N]: the score of each query and document."""
    return unit(queries) @ unit(documents).mT if similarity == "cos" else queries @ documents.mT


def _prefixes(
    embeddings: Tensor, dims: Sequence[int] | None, weights: Sequence[float] | None
) -> list[tuple[int, float]]:
    """The widths to compare and the factor of each."""
    width = embeddings.shape[-1]
    if weights is not None and len(weights) != len(dims or ()):
        raise RequestError(
            f"matryoshka_weights: there are {len(weights)}, and {len(dims or ())} matryoshka_dims; give one for each."
        )
    for dim in dims or ():
        if dim > width:
            raise ShapeError(
                f"matryoshka_dims: embeddings are {width} wide and have no prefix of {dim}; name smaller ones."
            )
    return list(zip(dims or (width,), weights or [1.0] * len(dims or (width,)), strict=True))
