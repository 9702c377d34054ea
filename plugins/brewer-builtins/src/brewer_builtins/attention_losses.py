"""Losses between attention maps of student and teacher, score by score or as distributions over keys.

Shapes: B rows, L tokens, H heads. Attention is [B, H, L, L], queries before keys. Masks are [B, L], True (or 1) where a token is
valid; values at padding, infinite ones too, reach neither a loss nor its gradient unless a docstring says so.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from brewer_builtins.distributions import expectation
from brewer_builtins.padding import (
    all_or_valid,
    keys_of,
    mean,
    pair_count,
    pairs_of,
    queries_of,
    token_count,
    valid_tokens,
)
from brewer_builtins.shapes import check_attention, check_single, check_square
from brewer_builtins.states import in_full
from brewer_core import component

PADDING_SCORE = -1e-3
"""Without a mask TextBrewer takes scores up to this one for padding, which is added to scores as a large negative number."""

UNSEEN_SCORE = -1e2
"""TinyBERT's code takes scores up to this one for keys that must not be seen."""

MASKED_SCORE = -5e3
"""Scores up to this one hold what models add for keys that must not be seen: -1e4, or the least number of a type, which differs."""

SMALLEST_PROBABILITY = 1e-12

Normalized = Annotated[
    bool,
    Field(
        description="The attentions are probabilities already, as Hugging Face's are: no softmax is taken. "
        "Without it they are scores."
    ),
]


@component(over="token_pairs", source="Jiao et al. 2020, arXiv:1909.10351, eq. 7", name="Squared error of attention")
def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of attention, head by head.

    Formula: mean over heads and pairs of valid tokens of (A_S - A_T)².
    student, teacher: [B, H, L, L] or [B, L, L]; scores, or probabilities. The mean is over heads and pairs of valid tokens; with a
    mask a score of at most -5,000, which stands for a token that must not be seen, such as a later one, counts as 0 on its side.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError where H or L differs.
    Cost: O(B H L²).
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, eq. 7. As in TextBrewer every score of at most -0.001 counts as 0
    where no mask is given, whether it stands for padding or not: give a mask where scores may be negative.
    """
    check_attention(student, teacher)
    return _squared_error(student, teacher, mask)


@component(over="token_pairs", source="TextBrewer, arXiv:2002.12620", name="Squared error of summed attention")
def attention_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of attention summed over heads; the models may have different numbers of heads.

    Formula: mean over pairs of valid tokens of (Σ_h A_S,h - Σ_h A_T,h)².
    student, teacher: [B, H, L, L] or [B, L, L]; scores, or probabilities. The mean is over pairs of valid tokens; with a mask a sum
    of at most -5,000, which stands for a token that must not be seen, such as a later one, counts as 0 on its side.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError where L differs.
    Cost: O(B H L²).
    Source: TextBrewer, arXiv:2002.12620. As there every sum of at most -0.001 counts as 0 where no mask is given, whether it
    stands for padding or not: give a mask where scores may be negative.
    """
    check_single(student, teacher)
    student, teacher = (in_full(a).sum(dim=1) if a.dim() == 4 else a for a in (student, teacher))
    check_attention(student, teacher)
    return _squared_error(student, teacher, mask)


@component(over="tokens", source="TextBrewer, arXiv:2002.12620", name="Cross-entropy of attention")
def attention_ce(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, normalized: Normalized = False
) -> Tensor:
    """Cross-entropy between the attention of student and teacher, head by head.

    Formula: - mean over heads and valid queries of Σ_keys softmax(A_T) · log softmax(A_S).
    student, teacher: [B, H, L, L] or [B, L, L]; scores, of which the softmax over keys is taken, or with `normalized`
    probabilities. The mean is over heads and valid queries, the cross-entropy over valid keys.
    Returns a scalar, the teacher's mean entropy where the distributions agree; 0 where no token is valid.
    Raises ShapeError where H or L differs.
    Cost: O(B H L²).
    Source: TextBrewer, arXiv:2002.12620. As there the softmax is over all keys, so finite scores at padding take
    probability from the others: hand in scores to which the padding mask was added. Where no mask is given, keys whose
    teacher score is at most -0.001 are left out, whether they are padding or not.
    """
    check_attention(student, teacher)
    return _cross_entropy(student, teacher, mask, normalized)


@component(over="tokens", source="TextBrewer, arXiv:2002.12620", name="Cross-entropy of mean attention")
def attention_ce_mean(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, normalized: Normalized = False
) -> Tensor:
    """Cross-entropy between attention averaged over heads; the models may have different numbers of heads.

    Formula: - mean over valid queries of Σ_keys softmax(mean_h A_T,h) · log softmax(mean_h A_S,h).
    student, teacher: [B, H, L, L] or [B, L, L]; scores, of which the softmax over keys is taken after the average, or with
    `normalized` probabilities. The mean is over valid queries, the cross-entropy over valid keys.
    Returns a scalar, the entropy of the teacher's mean where the distributions agree; 0 where no token is valid.
    Raises ShapeError where L differs.
    Cost: O(B H L²).
    Source: TextBrewer, arXiv:2002.12620, with the same treatment of padding as `attention_ce`.
    """
    check_single(student, teacher)
    student, teacher = (in_full(a).mean(dim=1) if a.dim() == 4 else a for a in (student, teacher))
    check_attention(student, teacher)
    return _cross_entropy(student, teacher, mask, normalized)


@component(over="token_pairs", source="Jiao et al. 2020, arXiv:1909.10351, eq. 7", name="TinyBERT's attention loss")
def tinybert_attention(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of attention scores before the softmax, head by head, as TinyBERT's code takes it.

    Formula: mean over heads and pairs of valid tokens of (S_S - S_T)²; a score of at most -100 counts as 0.
    student, teacher: [B, H, L, L] or [B, L, L]; scores before the softmax, q·k / sqrt(d). The mean is over heads and pairs of
    valid tokens, over all pairs where no mask is given. A score of at most -100 is what models write for a key that must not
    be seen (padding, or a later token), so it counts as 0 on its side, with no gradient, and stays in the count of pairs.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError where H or L differs.
    Cost: O(B H L²).
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, eq. 7, and -100 as in its authors' code, which has no other mask: there
    pairs of padding stay in the count. `attention_mse` takes every score below 0 for padding where it gets no mask.
    """
    check_attention(student, teacher, "attention_mse_sum or minilmv2")
    check_square(student)
    valid = all_or_valid(mask, student)
    pairs = pairs_of(valid, student)
    student, teacher = (torch.where(pairs & ~(a <= UNSEEN_SCORE), in_full(a), 0) for a in (student, teacher.detach()))
    return F.mse_loss(student, teacher, reduction="sum") / (pair_count(valid) * _heads(student))


def _squared_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of attention over heads and pairs of valid tokens."""
    student, teacher = in_full(student), in_full(teacher.detach())
    if mask is None:
        student, teacher = (torch.where(a <= PADDING_SCORE, 0, a) for a in (student, teacher))
        return mean(F.mse_loss(student, teacher, reduction="none"))
    check_square(student)
    valid = valid_tokens(mask, student)
    pairs = pairs_of(valid, student)
    student, teacher = (torch.where(pairs, _unmasked(a), 0) for a in (student, teacher))
    return F.mse_loss(student, teacher, reduction="none").sum() / (pair_count(valid) * _heads(student))


def _unmasked(scores: Tensor) -> Tensor:
    """The same scores, 0 where a model's own mask was added: models of two types of numbers would differ by all of theirs."""
    return torch.where(scores <= MASKED_SCORE, 0, scores)


def _cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor | None, normalized: bool) -> Tensor:
    """Mean over heads and valid queries of the cross-entropy over valid keys."""
    student, teacher = in_full(student), in_full(teacher.detach())
    if mask is None:
        log_q, p = _attention(student, teacher, normalized)
        p = p if normalized else torch.where(teacher <= PADDING_SCORE, 0, p)
        return -mean(expectation(p, log_q))
    check_square(student)
    valid = valid_tokens(mask, student)
    queries, keys = queries_of(valid, student), keys_of(valid, student)
    # before the softmax: its gradient is NaN where a padding query sees no key at all
    student, teacher = (_finite_rows(a, queries, keys) for a in (student, teacher))
    log_q, p = _attention(student, teacher, normalized)
    return -expectation(torch.where(queries & keys, p, 0), log_q).sum() / (token_count(valid) * _heads(student))


def _attention(student: Tensor, teacher: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:
    """The student's log-probabilities and the teacher's probabilities."""
    if normalized:
        return student.clamp(min=SMALLEST_PROBABILITY).log(), teacher
    return F.log_softmax(student, dim=-1), F.softmax(teacher, dim=-1)


def _finite_rows(attention: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The same attention where it counts: 0 for padding queries, and -inf for padding keys that are not finite."""
    finite = attention.abs() < torch.inf  # isfinite takes six times as long on a CPU
    return torch.where(queries, torch.where(keys | finite, attention, -torch.inf), 0)


def _heads(attention: Tensor) -> int:
    return attention.shape[1] if attention.dim() == 4 else 1
