"""MiniLM's losses: attention and the relations of queries, keys or values as distributions over keys, compared by KL.

Shapes: B rows, L tokens, H heads, D width of all heads side by side, d width of one head. Masks are [B, L], True (or 1) where a
token is valid: other keys get no probability and other queries do not count, whatever stands there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from brewer_builtins.attention_losses import SMALLEST_PROBABILITY
from brewer_builtins.padding import all_or_valid, pairs_of, token_count, without_padding
from brewer_builtins.shapes import check_square, not_the_same_tokens, shown
from brewer_builtins.states import in_full
from brewer_core import ShapeError, component

OTHER_WIDTHS = {"wrong_width": "it compares relations of tokens, so student and teacher may differ in width"}


@component(
    over="tokens",
    source="Wang et al. 2020, arXiv:2002.10957, sections 3.1 and 3.2",
    name="MiniLM",
    example={"heads": 1},
    exempt=OTHER_WIDTHS,
)
def minilm(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    heads: Annotated[
        int | None,
        Field(ge=1, description="How many heads the values have; those of the attention where it stands beside them."),
    ] = None,
    normalized: Annotated[
        bool,
        Field(
            description="Attention is probabilities, as Hugging Face's is. Without it it is scores before the softmax."
        ),
    ] = True,
) -> Tensor:
    """MiniLM: KL divergence of attention, of the relation of values, or the sum of both.

    Formula: mean over heads and valid queries of KL(A_T ‖ A_S) + KL(R_T ‖ R_S), R = softmax(V Vᵀ / √d) head by head.
    student, teacher: a pair of attention [B, H, L, L] and values [B, L, D]; or attention alone, or values alone, then with
    `heads`. Both have the same number of heads, and may differ in D. KL is the sum over valid keys; attention is divided by
    its sum over them, which is 1 already where the model saw the mask.
    Returns a scalar, at least 0; 0 where the distributions agree, or no token is valid.
    Raises ShapeError where B, H or L differs, where D is no multiple of the heads, and for values alone without `heads`.
    Cost: O(B L² (D + H)); a relation is [B, H, L, L].
    Source: Wang et al. 2020, arXiv:2002.10957, sections 3.1 and 3.2, of the last layer of each. A probability of attention below
    1e-12 counts as 1e-12 in the logarithm. With fewer heads of values than of attention (grouped queries), say `heads`.
    """
    own, taught = _parts(student, "student"), _parts(teacher, "teacher")
    _check_minilm(own, taught)
    attention_heads = next((part.shape[1] for part in own if part.dim() == 4), None)
    losses = []
    for one, other in zip(own, taught, strict=True):
        if one.dim() == 4:
            losses.append(_attention_kl(one, other, mask, normalized))
        else:
            losses.append(_relation_kl(one, other, _known(heads or attention_heads), mask))
    return sum(losses[1:], losses[0])


@component(
    over="tokens",
    source="Wang et al. 2021, arXiv:2012.15828, section 3",
    name="MiniLMv2",
    example={"relation_heads": 1},
    exempt=OTHER_WIDTHS,
)
def minilmv2(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    relation_heads: Annotated[
        int,
        Field(
            ge=1,
            description="How many heads states are split into; it divides the widths. The paper's base teacher: 48.",
        ),
    ] = 48,
) -> Tensor:
    """MiniLMv2: KL divergence of the relations of queries, of keys, or of values, split anew into relation heads.

    Formula: mean over relation heads and valid queries of KL(R_T ‖ R_S), R = softmax(X Xᵀ / √d), d = D / relation_heads.
    student, teacher: [B, L, D], all heads of a layer's queries, keys or values side by side; or several such in the same order,
    such as (query, key, value), whose losses are added. Student and teacher may differ in heads and in D: no projection is
    needed. KL is the sum over valid keys.
    Returns a scalar, at least 0; 0 where the relations agree, or no token is valid.
    Raises ShapeError where B or L differs, and where D is no multiple of the relation heads.
    Cost: O(B L² (D + A)) for A relation heads; a relation is [B, A, L, L].
    Source: Wang et al. 2021, arXiv:2012.15828, section 3: Q-Q, K-K and V-V, each with the factor 1.
    """
    own, taught = _parts(student, "student"), _parts(teacher, "teacher")
    if len(own) != len(taught):
        raise ShapeError(f"the student gives {len(own)} features and the teacher {len(taught)}; name equally many.")
    for one, other in zip(own, taught, strict=True):
        for side, states in (("student", one), ("teacher", other)):
            if states.dim() != 3:
                raise ShapeError(
                    f"the {side}'s states are {shown(states)}; this loss needs queries, keys or values, [B, L, D]."
                )
        _check_tokens(one, other)
    losses = [_relation_kl(one, other, relation_heads, mask) for one, other in zip(own, taught, strict=True)]
    return sum(losses[1:], losses[0])


def _attention_kl(student: Tensor, teacher: Tensor, mask: Tensor | None, normalized: bool) -> Tensor:
    """KL of attention maps, [B, H, L, L]: probabilities, or scores."""
    valid = all_or_valid(mask, student)
    if not normalized:
        own, taught = (_log_softmax_over_valid_keys(in_full(a), valid) for a in (student, teacher.detach()))
        log_q, log_p = (a.clamp(min=math.log(SMALLEST_PROBABILITY)) for a in (own, taught))
        return _mean_over_queries((taught.exp() * (log_p - log_q)).sum(dim=-1), valid)
    q, p = (_over_valid_keys(in_full(a), valid) for a in (student, teacher.detach()))
    log_q, log_p = (a.clamp(min=SMALLEST_PROBABILITY).log() for a in (q, p))
    return _mean_over_queries((p * (log_p - log_q)).sum(dim=-1), valid)


def _relation_kl(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """KL of the relations of two states, [B, L, D] and [B, L, D']."""
    valid = all_or_valid(mask, student)
    log_q, log_p = (
        _log_relation(in_full(states), heads, valid, side)
        for side, states in (("student", student), ("teacher", teacher.detach()))
    )
    return _mean_over_queries((log_p.exp() * (log_p - log_q)).sum(dim=-1), valid)


def _log_relation(states: Tensor, heads: int, valid: Tensor, side: str) -> Tensor:
    """[B, H, L, L]: log-probabilities over keys, from the scaled products of every two tokens' states, head by head.

    All are finite: those of padding are the least number. A padding query has some too, which do not count.
    """
    width = states.shape[-1]
    if width % heads:
        raise ShapeError(
            f"the {side} is {width} wide, which is no multiple of {heads} heads; name another number of heads."
        )
    split = without_padding(states, valid).reshape(*states.shape[:2], heads, width // heads).transpose(1, 2)
    scores = (split / math.sqrt(width // heads)) @ split.mT
    padding = ~valid & valid.any(dim=1, keepdim=True)  # of a row without valid tokens something has to be left
    return scores.masked_fill(padding[:, None, None], torch.finfo(scores.dtype).min).log_softmax(dim=-1)


def _log_softmax_over_valid_keys(scores: Tensor, valid: Tensor) -> Tensor:
    """[B, H, L, L]: log-probabilities over valid keys; equal ones where the query is padding."""
    return torch.where(pairs_of(valid, scores), scores, torch.finfo(scores.dtype).min).log_softmax(dim=-1)


def _over_valid_keys(attention: Tensor, valid: Tensor) -> Tensor:
    """[B, H, L, L]: probabilities over valid keys that sum to 1, or to 0 where there is none."""
    kept = torch.where(pairs_of(valid, attention), attention, 0)
    return kept / kept.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_PROBABILITY)


def _mean_over_queries(divergences: Tensor, valid: Tensor) -> Tensor:
    """The mean over heads and valid queries of [B, H, L]."""
    counted = torch.where(valid[:, None], divergences, 0)
    return counted.sum() / (token_count(valid) * divergences.shape[1])


def _parts(side_tensors: Any, side: str) -> tuple[Tensor, ...]:
    """The features of a side: one, or several."""
    parts = (side_tensors,) if isinstance(side_tensors, Tensor) else tuple(side_tensors)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise ShapeError(f"the {side} gives {len(parts)} features that are not all tensors; name a layer of each.")
    return parts


def _check_minilm(own: Sequence[Tensor], taught: Sequence[Tensor]) -> None:
    for side, parts in (("student", own), ("teacher", taught)):
        if sorted(part.dim() for part in parts) not in ([3], [4], [3, 4]):
            shapes = ", ".join(map(shown, parts))
            raise ShapeError(
                f"the {side} gives {shapes}; this loss needs attention [B, H, L, L], values [B, L, D], or one of each."
            )
    if [part.dim() for part in own] != [part.dim() for part in taught]:
        given = " and ".join(", ".join(map(shown, parts)) for parts in (own, taught))
        raise ShapeError(f"student and teacher give {given}; name the same features of both, in the same order.")
    for one, other in zip(own, taught, strict=True):
        _check_tokens(one, other)
        if one.dim() == 4:
            check_square(one)
        if one.dim() == 4 and one.shape[1] != other.shape[1]:
            raise ShapeError(
                f"student has {one.shape[1]} heads of attention and teacher {other.shape[1]}; "
                "match different numbers of heads with minilmv2 or attention_ce_mean."
            )


def _check_tokens(student: Tensor, teacher: Tensor) -> None:
    tokens = [(t.shape[0], tuple(t.shape[2:]) if t.dim() == 4 else t.shape[1]) for t in (student, teacher)]
    if tokens[0] != tokens[1]:
        raise ShapeError(not_the_same_tokens(student, teacher))


def _known(heads: int | None) -> int:
    if heads is None:
        raise ShapeError(
            "the number of heads is not known of values alone; give the loss `heads`, or match attention and values together."
        )
    return heads
