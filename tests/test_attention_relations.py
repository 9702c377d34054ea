"""MiniLM, MiniLMv2, TinyBERT's scores and attention transfer: numbers from plain loops, and the errors' texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.match_losses import at, minilm, minilmv2, tinybert_attention
from brewer_core import ShapeError

ROWS, HEADS, LENGTH = 3, 2, 5
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
EVERY_TOKEN = torch.ones(ROWS, LENGTH).bool()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(seed: int, mask: Tensor = MASK) -> Tensor:
    """Attention [B, H, L, L] of a model that saw the mask."""
    scores = drawn(ROWS, HEADS, LENGTH, LENGTH, seed=seed)
    return scores.masked_fill(~mask[:, None, None], -1e4).softmax(-1)


def softmax(scores: Sequence[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def relation_kl_by_hand(student: Tensor, teacher: Tensor, heads: int, mask: Tensor) -> float:
    """MiniLM's and MiniLMv2's mean over heads and valid queries, in plain loops."""
    total, count = 0.0, 0
    for b in range(len(student)):
        tokens = mask[b].nonzero().flatten().tolist()
        for h in range(heads):
            for i in tokens:
                distributions = []
                for states in (teacher, student):
                    d = states.shape[-1] // heads
                    head = [[float(x) for x in states[b, t, h * d : (h + 1) * d]] for t in range(LENGTH)]
                    scores = [sum(x * y for x, y in zip(head[i], head[j], strict=True)) / math.sqrt(d) for j in tokens]
                    distributions.append(softmax(scores))
                total += kl(*distributions)
                count += 1
    return total / count


def attention_kl_by_hand(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    total, count = 0.0, 0
    for b in range(len(student)):
        tokens = mask[b].nonzero().flatten().tolist()
        for h in range(student.shape[1]):
            for i in tokens:
                total += kl([float(teacher[b, h, i, j]) for j in tokens], [float(student[b, h, i, j]) for j in tokens])
                count += 1
    return total / count


# minilm


@pytest.mark.parametrize("mask", [None, MASK])
def test_minilm_of_attention_is_the_mean_divergence_of_heads_and_valid_queries(mask: Tensor | None) -> None:
    seen = EVERY_TOKEN if mask is None else mask
    student, teacher = probabilities(1, seen), probabilities(2, seen)
    assert float(minilm(student, teacher, mask)) == pytest.approx(attention_kl_by_hand(student, teacher, seen))


@pytest.mark.parametrize("mask", [None, MASK])
def test_minilm_of_values_is_the_mean_divergence_of_their_relations(mask: Tensor | None) -> None:
    student, teacher = drawn(ROWS, LENGTH, 4, seed=1), drawn(ROWS, LENGTH, 6, seed=2)
    by_hand = relation_kl_by_hand(student, teacher, 2, EVERY_TOKEN if mask is None else mask)
    assert float(minilm(student, teacher, mask, heads=2)) == pytest.approx(by_hand)


def test_minilm_of_attention_and_values_is_the_sum_with_the_heads_of_the_attention() -> None:
    attention = probabilities(1), probabilities(2)
    values = drawn(ROWS, LENGTH, 4, seed=3), drawn(ROWS, LENGTH, 8, seed=4)
    both = minilm((attention[0], values[0]), (attention[1], values[1]), MASK)
    torch.testing.assert_close(both, minilm(*attention, MASK) + minilm(*values, MASK, heads=HEADS))
    torch.testing.assert_close(both, minilm((values[0], attention[0]), (values[1], attention[1]), MASK))


def test_minilm_takes_the_heads_of_the_values_where_they_are_said() -> None:
    attention = probabilities(1), probabilities(2)
    values = drawn(ROWS, LENGTH, 4, seed=3), drawn(ROWS, LENGTH, 8, seed=4)
    both = minilm((attention[0], values[0]), (attention[1], values[1]), MASK, heads=1)
    torch.testing.assert_close(both, minilm(*attention, MASK) + minilm(*values, MASK, heads=1))


def test_minilm_of_scores_is_that_of_their_softmax_over_valid_keys() -> None:
    scores = drawn(ROWS, HEADS, LENGTH, LENGTH, seed=1), drawn(ROWS, HEADS, LENGTH, LENGTH, seed=2)
    shares = [s.masked_fill(~MASK[:, None, None], -torch.inf).softmax(-1) for s in scores]
    torch.testing.assert_close(minilm(*scores, MASK, normalized=False), minilm(*shares, MASK))


def test_a_causal_model_has_no_attention_to_later_tokens_and_a_finite_minilm() -> None:
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    scores = [drawn(ROWS, HEADS, LENGTH, LENGTH, seed=s).masked_fill(later, -torch.inf) for s in (1, 2)]
    shares = [s.softmax(-1) for s in scores]
    student = scores[0].clone().requires_grad_()
    loss = minilm(student, scores[1], normalized=False)
    torch.testing.assert_close(loss, minilm(*shares))
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_a_student_that_rules_out_what_its_teacher_sees_has_the_smallest_probability_of_it() -> None:
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    teacher = drawn(ROWS, HEADS, LENGTH, LENGTH, seed=2)
    for lowest in (-torch.inf, torch.finfo(torch.float64).min, -1e9):
        student = drawn(ROWS, HEADS, LENGTH, LENGTH, seed=1).masked_fill(later, lowest).requires_grad_()
        loss = minilm(student, teacher, normalized=False)
        torch.testing.assert_close(loss, minilm(student.softmax(-1), teacher.softmax(-1)))
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_one_token_sees_itself_alone_so_minilm_of_a_2_by_2_example_is_known() -> None:
    # teacher (3/4, 1/4) and student (1/2, 1/2), for both queries of one head
    teacher = torch.tensor([0.75, 0.25]).expand(1, 1, 2, 2)
    student = torch.full((1, 1, 2, 2), 0.5)
    assert float(minilm(student, teacher)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(minilm(student, teacher, torch.tensor([[1, 0]]))) == 0


# minilmv2


@pytest.mark.parametrize("relation_heads", [1, 2, 6])
@pytest.mark.parametrize("mask", [None, MASK])
def test_minilmv2_splits_any_width_anew_into_relation_heads(mask: Tensor | None, relation_heads: int) -> None:
    student, teacher = drawn(ROWS, LENGTH, 6, seed=1), drawn(ROWS, LENGTH, 12, seed=2)
    by_hand = relation_kl_by_hand(student, teacher, relation_heads, EVERY_TOKEN if mask is None else mask)
    assert float(minilmv2(student, teacher, mask, relation_heads=relation_heads)) == pytest.approx(by_hand)


def test_minilmv2_of_queries_keys_and_values_adds_their_losses() -> None:
    student = tuple(drawn(ROWS, LENGTH, 4, seed=s) for s in (1, 2, 3))
    teacher = tuple(drawn(ROWS, LENGTH, 8, seed=s) for s in (4, 5, 6))
    parts = [minilmv2(s, t, MASK, relation_heads=2) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(minilmv2(student, teacher, MASK, relation_heads=2), sum(parts[1:], parts[0]))


# tinybert_attention


@pytest.mark.parametrize("mask", [None, MASK])
def test_tinybert_attention_is_the_mean_over_heads_and_pairs_of_valid_tokens(mask: Tensor | None) -> None:
    student, teacher = (3 * drawn(ROWS, HEADS, LENGTH, LENGTH, seed=s) for s in (1, 2))
    seen, by_hand, count = EVERY_TOKEN if mask is None else mask, 0.0, 0
    for b in range(ROWS):
        tokens = seen[b].nonzero().flatten().tolist()
        for h in range(HEADS):
            for i in tokens:
                for j in tokens:
                    by_hand += float(student[b, h, i, j] - teacher[b, h, i, j]) ** 2
                    count += 1
    assert float(tinybert_attention(student, teacher, mask)) == pytest.approx(by_hand / count)


def test_tinybert_attention_counts_scores_of_at_most_minus_100_as_0_with_and_without_a_mask() -> None:
    student = torch.tensor([[[[-100.0, 2.0], [-1e4, -99.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[3.0, -torch.inf], [-1e9, -99.0]]]])
    for mask in (None, torch.ones(1, 2).bool()):
        loss = tinybert_attention(student, teacher, mask)
        assert float(loss.detach()) == (3**2 + 2**2) / 4
        assert torch.autograd.grad(loss, student)[0].tolist() == [[[[0.0, 1.0], [0.0, 0.0]]]]


# at


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_transfer_is_the_mean_squared_distance_of_unit_maps(mask: Tensor | None, power: float) -> None:
    student, teacher = drawn(ROWS, LENGTH, 3, seed=1), drawn(ROWS, LENGTH, 7, seed=2)
    seen, by_hand = EVERY_TOKEN if mask is None else mask, 0.0
    for b in range(ROWS):
        tokens, maps = seen[b].nonzero().flatten().tolist(), []
        for states in (student, teacher):
            activity = [sum(abs(float(x)) ** power for x in states[b, t]) for t in tokens]
            length = math.sqrt(sum(a * a for a in activity))
            maps.append([a / length for a in activity])
        by_hand += sum((a - b) ** 2 for a, b in zip(*maps, strict=True)) / ROWS
    assert float(at(student, teacher, mask, power=power)) == pytest.approx(by_hand)


def test_attention_transfer_of_maps_3_4_and_4_3() -> None:
    student = torch.tensor([[[3.0**0.5], [2.0]]])
    teacher = torch.tensor([[[2.0, 0.0], [1.0, 2.0**0.5]]])
    assert float(at(student, teacher)) == pytest.approx((0.6 - 0.8) ** 2 + (0.8 - 0.6) ** 2)


def test_a_map_of_large_or_small_states_is_that_of_their_multiples() -> None:
    student, teacher = drawn(ROWS, LENGTH, 3, seed=1).float(), drawn(ROWS, LENGTH, 7, seed=2).float()
    for factor in (1e18, 1e-18):
        torch.testing.assert_close(at(factor * student, teacher, power=3.0), at(student, teacher, power=3.0))


# errors


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "options", "text"),
    [
        (
            minilm,
            (2, 3, 4),
            (2, 3, 4),
            {},
            "the number of heads is not known of values alone; give the loss `heads`, "
            "or match attention and values together.",
        ),
        (
            minilm,
            (2, 3, 4),
            (2, 3, 9),
            {"heads": 2},
            "the teacher is 9 wide, which is no multiple of 2 heads; name another number of heads.",
        ),
        (
            minilm,
            (2, 4, 3, 3),
            (2, 12, 3, 3),
            {},
            "student has 4 heads of attention and teacher 12; "
            "match different numbers of heads with minilmv2 or attention_ce_mean.",
        ),
        (
            minilm,
            (2, 4, 3, 3),
            (2, 3, 8),
            {},
            "student and teacher give (2, 4, 3, 3) and (2, 3, 8); name the same features of both, in the same order.",
        ),
        (
            minilm,
            (2, 4),
            (2, 4),
            {},
            "the student gives (2, 4); this loss needs attention [B, H, L, L], values [B, L, D], or one of each.",
        ),
        (
            minilm,
            (2, 1, 3, 3),
            (2, 1, 5, 5),
            {},
            "student is (2, 1, 3, 3) and teacher (2, 1, 5, 5); both must be of the same rows and tokens.",
        ),
        (
            minilm,
            (2, 1, 3, 5),
            (2, 1, 3, 5),
            {},
            "the attention is (2, 1, 3, 5); it must be of tokens to the same tokens, [B, H, L, L].",
        ),
        (
            minilmv2,
            (2, 3, 48),
            (2, 4, 48),
            {},
            "student is (2, 3, 48) and teacher (2, 4, 48); both must be of the same rows and tokens.",
        ),
        (
            minilmv2,
            (2, 3, 312),
            (2, 3, 768),
            {},
            "the student is 312 wide, which is no multiple of 48 heads; name another number of heads.",
        ),
        (
            minilmv2,
            (2, 3, 5, 5),
            (2, 3, 5, 5),
            {},
            "the student's states are (2, 3, 5, 5); this loss needs queries, keys or values, [B, L, D].",
        ),
        (
            tinybert_attention,
            (2, 4, 3, 3),
            (2, 12, 3, 3),
            {},
            "student is (2, 4, 3, 3) and teacher (2, 12, 3, 3); "
            "match different numbers of heads with attention_mse_sum or minilmv2.",
        ),
        (
            tinybert_attention,
            (2, 3, 4),
            (2, 3, 4),
            {},
            "the attention is (2, 3, 4); it must be of tokens to the same tokens, [B, H, L, L].",
        ),
        (at, (2, 4), (2, 4), {}, "the student's states are (2, 4); this loss needs [B, L, D]."),
        (
            at,
            (2, 3, 4),
            (2, 5, 4),
            {},
            "student is (2, 3, 4) and teacher (2, 5, 4); both must be of the same rows and tokens.",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    loss: Any, student: tuple[int, ...], teacher: tuple[int, ...], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        loss(torch.zeros(student), torch.zeros(teacher), **options)
    assert str(caught.value) == text


def test_other_numbers_of_features_are_refused() -> None:
    states = torch.zeros(1, 2, 4)
    with pytest.raises(ShapeError) as caught:
        minilmv2((states, states), (states,), relation_heads=1)
    assert str(caught.value) == "the student gives 2 features and the teacher 1; name equally many."
    with pytest.raises(ShapeError) as caught:
        minilm((states, states), (states, states), heads=1)
    assert str(caught.value) == (
        "the student gives (1, 2, 4), (1, 2, 4); this loss needs attention [B, H, L, L], values [B, L, D], or one of each."
    )
    with pytest.raises(ShapeError) as caught:
        minilmv2((states, None), (states, states), relation_heads=1)
    assert str(caught.value) == "the student gives 2 features that are not all tensors; name a layer of each."
