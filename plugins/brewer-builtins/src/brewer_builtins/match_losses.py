"""Losses between intermediate features of student and teacher: attention, hidden states, and flows between layers.

Shapes: B rows, L tokens, H heads, D width. Attention is [B, H, L, L], queries before keys. Masks are [B, L], True (or 1)
where a token is valid; values at padding, infinite ones too, reach neither a loss nor its gradient unless a docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from brewer_core import ShapeError, component, hookimpl

PADDING_SCORE = -1e-3
"""Without a mask TextBrewer takes scores up to this one for padding, which is added to scores as a large negative number."""

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

    student, teacher: [B, H, L, L] or [B, L, L]; scores, or probabilities. The mean is over heads and pairs of valid tokens.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError where H or L differs.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, eq. 7. As in TextBrewer every score of at most -0.001 counts as 0
    where no mask is given, whether it stands for padding or not: give a mask where scores may be negative.
    """
    _check_attention(student, teacher)
    return _squared_error(student, teacher, mask)


@component(over="token_pairs", source="TextBrewer, arXiv:2002.12620", name="Squared error of summed attention")
def attention_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of attention summed over heads; the models may have different numbers of heads.

    student, teacher: [B, H, L, L] or [B, L, L]; scores, or probabilities. The mean is over pairs of valid tokens.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError where L differs.
    Source: TextBrewer, arXiv:2002.12620. As there every sum of at most -0.001 counts as 0 where no mask is given, whether it
    stands for padding or not: give a mask where scores may be negative.
    """
    _check_layers(student, teacher)
    student, teacher = (a.sum(dim=1) if a.dim() == 4 else a for a in (student, teacher))
    _check_attention(student, teacher)
    return _squared_error(student, teacher, mask)


@component(over="tokens", source="TextBrewer, arXiv:2002.12620", name="Cross-entropy of attention")
def attention_ce(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, normalized: Normalized = False
) -> Tensor:
    """Cross-entropy between the attention of student and teacher, head by head.

    student, teacher: [B, H, L, L] or [B, L, L]; scores, of which the softmax over keys is taken, or with `normalized`
    probabilities. The mean is over heads and valid queries, the cross-entropy over valid keys.
    Returns a scalar, the teacher's mean entropy where the distributions agree; 0 where no token is valid.
    Raises ShapeError where H or L differs.
    Source: TextBrewer, arXiv:2002.12620. As there the softmax is over all keys, so finite scores at padding take
    probability from the others: hand in scores to which the padding mask was added. Where no mask is given, keys whose
    teacher score is at most -0.001 are left out, whether they are padding or not.
    """
    _check_attention(student, teacher)
    return _cross_entropy(student, teacher, mask, normalized)


@component(over="tokens", source="TextBrewer, arXiv:2002.12620", name="Cross-entropy of mean attention")
def attention_ce_mean(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, normalized: Normalized = False
) -> Tensor:
    """Cross-entropy between attention averaged over heads; the models may have different numbers of heads.

    student, teacher: [B, H, L, L] or [B, L, L]; scores, of which the softmax over keys is taken after the average, or with
    `normalized` probabilities. The mean is over valid queries, the cross-entropy over valid keys.
    Returns a scalar, the entropy of the teacher's mean where the distributions agree; 0 where no token is valid.
    Raises ShapeError where L differs.
    Source: TextBrewer, arXiv:2002.12620, with the same treatment of padding as `attention_ce`.
    """
    _check_layers(student, teacher)
    student, teacher = (a.mean(dim=1) if a.dim() == 4 else a for a in (student, teacher))
    _check_attention(student, teacher)
    return _cross_entropy(student, teacher, mask, normalized)


@component(over="tokens", source="Jiao et al. 2020, arXiv:1909.10351, eq. 8", name="Squared error of hidden states")
def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of hidden states.

    student, teacher: [B, L, D]; without a mask any shape. The mean is over valid tokens and D.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError where D differs: give the match a projection.
    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, eq. 8.
    """
    _check_states(student, teacher)
    teacher = teacher.detach()
    if mask is None:
        return F.mse_loss(student, teacher)
    valid = _valid(mask, student)
    difference = F.mse_loss(_without_padding(student, valid), _without_padding(teacher, valid), reduction="none")
    return difference.sum() / (_count(valid) * student.shape[-1])


@component(
    over="tokens", source="Sanh et al. 2019, arXiv:1910.01108, section 3", name="Cosine distance of hidden states"
)
def cos(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of 1 - cos of the angle between hidden states.

    student, teacher: [B, L, D]; without a mask any shape that ends in D. The mean is over valid tokens.
    Returns a scalar in [0, 2], 0 where the directions agree or no token is valid; a zero state adds 1.
    Raises ShapeError where D differs: give the match a projection.
    Source: Sanh et al. 2019 (DistilBERT), arXiv:1910.01108, section 3.
    """
    _check_states(student, teacher)
    teacher = teacher.detach()
    valid = None if mask is None else _valid(mask, student)
    if valid is not None:
        student, teacher = _without_padding(student, valid), _without_padding(teacher, valid)
    student, teacher = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    alike = torch.ones(len(student), dtype=student.dtype, device=student.device)
    if valid is None:
        return F.cosine_embedding_loss(student, teacher, alike)
    distances = F.cosine_embedding_loss(student, teacher, alike, reduction="none")
    return torch.where(valid.flatten(), distances, 0).sum() / _count(valid)


@component(over="rows", source="Yim et al. 2017, CVPR, eq. 1 and 2", name="Flow of solution procedure")
def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Flow of solution procedure: squared difference of the products of two layers' states, width by width.

    student, teacher: pairs of [B, L, D1] and [B, L, D2]. The product is the mean over a row's valid tokens, [B, D1, D2],
    and the loss the mean over rows and D1 times D2; a row without valid tokens adds 0.
    Returns a scalar, at least 0.
    Raises ShapeError for single layers, and where a width differs: give the match a projection.
    Source: a variant of Yim et al. 2017, "A Gift from Knowledge Distillation", CVPR, eq. 1 and 2, with tokens for places.
    """
    _check_pairs(student, teacher)
    for own, taught in zip(student, teacher, strict=True):
        _check_width(own, taught)
    return F.mse_loss(_flow(student, mask), _flow(teacher, mask).detach())


@component(
    over="token_pairs",
    source="Huang and Wang 2017, arXiv:1707.01219",
    name="Neuron selectivity transfer",
    exempt={"wrong_width": "it compares similarities of tokens, so student and teacher may differ in width"},
)
def nst(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Neuron selectivity transfer: squared difference of the similarities of tokens across two layers.

    student, teacher: pairs of [B, L, D]; student and teacher may differ in D. A similarity is the product of a token's
    state in the first layer and a token's in the second, divided by D, and the loss the mean over pairs of valid tokens.
    Returns a scalar, at least 0; 0 where no token is valid.
    Raises ShapeError for single layers, for layers of a pair that differ in D, and where L differs.
    Source: a variant of Huang and Wang 2017, arXiv:1707.01219. Departs from textbrewer 0.2.1, which divides by L
    instead of D where a mask is given; its repository divides by D as here.
    """
    _check_pairs(student, teacher)
    for side, (first, second) in (("student", student), ("teacher", teacher)):
        if first.shape != second.shape:
            raise ShapeError(f"the {side}'s two layers are {_shape(first)} and {_shape(second)}; they must be alike.")
    if student[0].shape[:-1] != teacher[0].shape[:-1]:
        raise ShapeError(_not_the_same_tokens(student[0], teacher[0]))
    if mask is None:
        return F.mse_loss(_similarity(student), _similarity(teacher).detach())
    valid = _valid(mask, student[0])
    student, teacher = ([_without_padding(layer, valid) for layer in pair] for pair in (student, teacher))
    difference = F.mse_loss(_similarity(student), _similarity(teacher).detach(), reduction="none")
    return difference.sum() / _pair_count(valid)


@hookimpl
def brewer_match_losses() -> dict[str, Callable[..., Tensor]]:
    """The built-in losses between intermediate features."""
    return {
        "attention_ce": attention_ce,
        "attention_ce_mean": attention_ce_mean,
        "attention_mse": attention_mse,
        "attention_mse_sum": attention_mse_sum,
        "cos": cos,
        "fsp": fsp,
        "gram": fsp,
        "hidden_mse": hidden_mse,
        "mmd": nst,
        "nst": nst,
    }


def _squared_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of attention over heads and pairs of valid tokens."""
    teacher = teacher.detach()
    if mask is None:
        student, teacher = (torch.where(a <= PADDING_SCORE, 0, a) for a in (student, teacher))
        return F.mse_loss(student, teacher)
    valid = _valid(mask, student)
    pairs = _queries(valid, student) & _keys(valid, student)
    student, teacher = (torch.where(pairs, a, 0) for a in (student, teacher))
    return F.mse_loss(student, teacher, reduction="none").sum() / (_pair_count(valid) * _heads(student))


def _cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor | None, normalized: bool) -> Tensor:
    """Mean over heads and valid queries of the cross-entropy over valid keys."""
    teacher = teacher.detach()
    if mask is None:
        log_q, p = _attention(student, teacher, normalized)
        p = p if normalized else torch.where(teacher <= PADDING_SCORE, 0, p)
        return -_expectation(p, log_q).mean()
    valid = _valid(mask, student)
    queries, keys = _queries(valid, student), _keys(valid, student)
    # before the softmax: its gradient is NaN where a padding query sees no key at all
    student, teacher = (_finite_rows(a, queries, keys) for a in (student, teacher))
    log_q, p = _attention(student, teacher, normalized)
    return -_expectation(torch.where(queries & keys, p, 0), log_q).sum() / (_count(valid) * _heads(student))


def _attention(student: Tensor, teacher: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:
    """The student's log-probabilities and the teacher's probabilities."""
    if normalized:
        return student.clamp(min=SMALLEST_PROBABILITY).log(), teacher
    return F.log_softmax(student, dim=-1), F.softmax(teacher, dim=-1)


def _expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """The mean of the values under the probabilities; what is impossible adds 0, were its value infinite."""
    return (probabilities * torch.where(probabilities == 0, 0, values)).sum(dim=-1)


def _finite_rows(attention: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The same attention where it counts: 0 for padding queries, and -inf for padding keys that are not finite."""
    finite = attention.abs() < torch.inf  # isfinite takes six times as long on a CPU
    return torch.where(queries, torch.where(keys | finite, attention, -torch.inf), 0)


def _flow(layers: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """[B, D1, D2]: the mean over a row's valid tokens of the products of its states in two layers."""
    first, second = layers
    if mask is None:
        return first.mT @ second / second.shape[1]
    valid = _valid(mask, first)
    lengths = valid.sum(dim=1).clamp(min=1)
    return _without_padding(first, valid).mT @ _without_padding(second, valid) / lengths[:, None, None]


def _similarity(layers: Sequence[Tensor]) -> Tensor:
    """[B, L, L]: the products of every token's state in the first layer with every token's in the second, divided by D."""
    first, second = layers
    return first @ second.mT / second.shape[-1]


def _valid(mask: Tensor, tensor: Tensor) -> Tensor:
    """[B, L]: the mask as bool, for [B, L, D], or attention."""
    rows_and_tokens = (tensor.shape[0], tensor.shape[-2]) if tensor.dim() > 2 else ()
    if tuple(mask.shape) != rows_and_tokens:
        raise ShapeError(
            f"the mask is {_shape(mask)} and the student's tensor {_shape(tensor)}; "
            "the mask must have its rows and tokens."
        )
    return mask.bool()


def _without_padding(states: Tensor, valid: Tensor) -> Tensor:
    """[B, L, D]: the same states, 0 at padding."""
    return torch.where(valid.unsqueeze(-1), states, 0)


def _keys(valid: Tensor, attention: Tensor) -> Tensor:
    """[B, 1, 1, L], or [B, 1, L] for attention without heads."""
    return valid[:, None, None] if attention.dim() == 4 else valid[:, None]


def _queries(valid: Tensor, attention: Tensor) -> Tensor:
    """[B, 1, L, 1], or [B, L, 1] for attention without heads."""
    return _keys(valid, attention).mT


def _heads(attention: Tensor) -> int:
    return attention.shape[1] if attention.dim() == 4 else 1


def _count(valid: Tensor) -> Tensor:
    """How many tokens are valid, at least 1, so that a loss without any is 0."""
    return valid.sum().clamp(min=1)


def _pair_count(valid: Tensor) -> Tensor:
    """How many pairs of valid tokens of one row there are, at least 1."""
    return valid.sum(dim=1).square().sum().clamp(min=1)


def _check_layers(student: Any, teacher: Any) -> None:
    for side, layer in (("student", student), ("teacher", teacher)):
        if not isinstance(layer, Tensor):
            raise ShapeError(
                f"the {side} gives {len(layer)} layers and this loss compares single ones; name one layer."
            )


def _check_pairs(student: Any, teacher: Any) -> None:
    for side, layers in (("student", student), ("teacher", teacher)):
        if isinstance(layers, Tensor) or len(layers) != 2:
            given = "a single layer" if isinstance(layers, Tensor) else f"{len(layers)} layers"
            raise ShapeError(
                f"the {side} gives {given} and this loss needs two layers; name them in a list, such as [0, 1]."
            )


def _check_width(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError(
            f"student is {student.shape[-1]} wide and teacher {teacher.shape[-1]}; give the match a projection."
        )


def _check_states(student: Tensor, teacher: Tensor) -> None:
    _check_layers(student, teacher)
    _check_width(student, teacher)
    if student.shape != teacher.shape:
        raise ShapeError(_not_the_same_tokens(student, teacher))


def _check_attention(student: Tensor, teacher: Tensor) -> None:
    _check_layers(student, teacher)
    for side, attention in (("student", student), ("teacher", teacher)):
        if attention.dim() not in (3, 4):
            raise ShapeError(f"the {side}'s attention is {_shape(attention)}; it must be [B, H, L, L] or [B, L, L].")
    if student.shape[0] != teacher.shape[0] or student.shape[-2:] != teacher.shape[-2:]:
        raise ShapeError(_not_the_same_tokens(student, teacher))
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student is {_shape(student)} and teacher {_shape(teacher)}; "
            "match different numbers of heads with attention_mse_sum or attention_ce_mean."
        )


def _not_the_same_tokens(student: Tensor, teacher: Tensor) -> str:
    return f"student is {_shape(student)} and teacher {_shape(teacher)}; both must be of the same rows and tokens."


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
