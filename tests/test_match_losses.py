"""Losses between intermediate features: numbers from plain loops, invariants, and the errors' texts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.match_losses import (
    attention_ce,
    attention_ce_mean,
    attention_mse,
    attention_mse_sum,
    brewer_match_losses,
    cos,
    fsp,
    hidden_mse,
    nst,
)
from brewer_core import KINDS, ShapeError
from brewer_core.components import Component

Loss = Callable[..., Tensor]
OF_ATTENTION: Sequence[Loss] = (attention_mse, attention_mse_sum, attention_ce, attention_ce_mean)
OF_STATES: Sequence[Loss] = (hidden_mse, cos)
OF_PAIRS: Sequence[Loss] = (fsp, nst)
SINGLE = pytest.mark.parametrize("loss", [*OF_ATTENTION, *OF_STATES])
EVERY = pytest.mark.parametrize("loss", [*OF_ATTENTION, *OF_STATES, *OF_PAIRS])
ROWS, LENGTH = 3, 5
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()


def features(loss: Loss, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of student (with gradient) and teacher that a loss compares: one each, or two."""
    g = torch.Generator().manual_seed(seed)
    shape = (ROWS, 2, LENGTH, LENGTH) if loss in OF_ATTENTION else (ROWS, LENGTH, 4)
    layers = 2 if loss in OF_PAIRS else 1
    student = [torch.randn(shape, generator=g).requires_grad_() for _ in range(layers)]
    return student, [torch.randn(shape, generator=g) for _ in range(layers)]


def call(
    loss: Loss, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None, **options: Any
) -> Tensor:
    if loss in OF_PAIRS:
        return loss(student, teacher, mask, **options)
    return loss(student[0], teacher[0], mask, **options)


def padded_with(loss: Loss, tensors: Sequence[Tensor], value: float, mask: Tensor = MASK) -> list[Tensor]:
    """The tensors with a value wherever they are of padding: as key or query for attention."""
    valid = (mask[:, None, :, None] & mask[:, None, None]) if loss in OF_ATTENTION else mask[..., None]
    return [t.detach().masked_fill(~valid, value).requires_grad_(t.requires_grad) for t in tensors]


@EVERY
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_features_of_16_bits_are_compared_in_float32(loss: Loss, mask: Tensor | None, dtype: torch.dtype) -> None:
    student, teacher = ([each.detach().to(dtype) for each in side] for side in features(loss))
    low = call(loss, student, teacher, mask)
    exact = call(loss, [each.double() for each in student], [each.double() for each in teacher], mask)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), exact, rtol=1e-5, atol=0)


# values


def test_attention_mse_is_the_mean_over_heads_and_pairs_of_valid_tokens() -> None:
    (student,), (teacher,) = features(attention_mse)
    by_hand, pairs = 0.0, 0
    for b in range(ROWS):
        valid = MASK[b].nonzero().flatten().tolist()
        for h in range(2):
            for i in valid:
                for j in valid:
                    by_hand += float(student[b, h, i, j].detach() - teacher[b, h, i, j]) ** 2
                    pairs += 1
    assert float(attention_mse(student, teacher, MASK).detach()) == pytest.approx(by_hand / pairs, rel=1e-5)


def test_attention_mse_sum_adds_the_heads_first() -> None:
    student = torch.tensor([[[[1.0]], [[2.0]]]])
    teacher = torch.tensor([[[[4.0]], [[4.0]]]])
    assert float(attention_mse_sum(student, teacher)) == 25.0
    assert float(attention_mse(student, teacher)) == (9 + 4) / 2


@pytest.mark.parametrize("loss", [attention_mse_sum, attention_ce_mean])
def test_models_with_different_numbers_of_heads_can_be_matched(loss: Loss) -> None:
    student, teacher = torch.rand(2, 4, 3, 3), torch.rand(2, 12, 3, 3)
    assert loss(student, teacher).isfinite()


def test_attention_ce_takes_the_softmax_over_keys() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2) for both queries
    teacher = torch.tensor([math.log(3), 0.0]).expand(1, 1, 2, 2)
    assert float(attention_ce(torch.zeros(1, 1, 2, 2), teacher)) == pytest.approx(math.log(2), rel=1e-6)


def test_attention_ce_mean_averages_the_heads_first() -> None:
    teacher = torch.tensor([2 * math.log(3), 0.0]).expand(1, 1, 2, 2)
    both = torch.cat([teacher, torch.zeros(1, 1, 2, 2)], dim=1)
    student = torch.tensor([math.log(3), 0.0]).expand(1, 1, 2, 2)
    entropy = math.log(4) - 0.75 * math.log(3)
    assert float(attention_ce_mean(student, both)) == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 3).bool()])
@pytest.mark.parametrize("loss", [attention_ce, attention_ce_mean])
def test_equal_probabilities_give_their_entropy_when_they_are_said_to_be_normalized(
    loss: Loss, mask: Tensor | None
) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.25]).expand(1, 2, 3, 3)
    entropy = 1.5 * math.log(2)
    assert float(loss(probabilities, probabilities, mask, normalized=True)) == pytest.approx(entropy, rel=1e-6)
    assert float(loss(probabilities, probabilities, mask)) > entropy + 0.02


@pytest.mark.parametrize("loss", [attention_ce, attention_ce_mean])
def test_normalized_probabilities_give_what_their_scores_give(loss: Loss) -> None:
    scores = [torch.rand(2, 1, 4, 4) for _ in range(2)]
    torch.testing.assert_close(loss(*(s.softmax(-1) for s in scores), normalized=True), loss(*scores))


@pytest.mark.parametrize("loss", [attention_ce, attention_ce_mean])
def test_a_normalized_student_without_any_attention_to_a_key_has_a_finite_loss(loss: Loss) -> None:
    student = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2).clone().requires_grad_()
    value = loss(student, student.detach().flip(-1), normalized=True)
    value.backward()
    assert float(value.detach()) == pytest.approx(-math.log(1e-12), rel=1e-5)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", [attention_mse, attention_mse_sum])
def test_scores_that_look_like_padding_count_as_zero_without_a_mask(loss: Loss) -> None:
    student, teacher = torch.tensor([[[[-0.5, 1.0]]]]), torch.tensor([[[[3.0, -2.0]]]])
    assert float(loss(student, teacher)) == (3**2 + 1**2) / 2


def test_keys_whose_teacher_score_looks_like_padding_are_left_out_without_a_mask() -> None:
    teacher = torch.tensor([[[[0.0, -1.0]]]])
    probability = 1 / (1 + math.exp(-1))
    assert float(attention_ce(torch.zeros(1, 1, 1, 2), teacher)) == pytest.approx(probability * math.log(2), rel=1e-6)


def test_hidden_mse_is_the_mean_over_valid_tokens_and_widths() -> None:
    student, teacher = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 3.0], [0.0, 2.0], [9.0, 9.0]]])
    assert float(hidden_mse(student, teacher, torch.tensor([[1, 1, 0]]))) == (1 + 9 + 0 + 4) / 4


def test_cos_is_the_mean_of_one_minus_the_cosine_over_valid_tokens() -> None:
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    teacher = torch.tensor([[[5.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [-1.0, 0.0]]])
    assert float(cos(student, teacher, torch.tensor([[1, 1, 1, 0]]))) == pytest.approx((0 + 1 + 2) / 3)
    assert float(cos(student, teacher)) == pytest.approx((0 + 1 + 2 + 2) / 4)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e11])
def test_cos_is_of_directions_however_short_or_long_states_are(size: float) -> None:
    student, teacher = torch.tensor([[[3.0, 4.0]]], requires_grad=True), torch.tensor([[[4.0, 3.0]]])
    loss = cos(student * size, teacher * size)
    assert float(loss.detach()) == pytest.approx(1 - 24 / 25, rel=1e-5)
    expected = torch.autograd.grad(cos(student, teacher), student)
    torch.testing.assert_close(torch.autograd.grad(loss, student), expected)


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1]])], ids=["no mask", "mask"])
def test_a_state_of_zeros_is_at_1_from_all_and_has_a_gradient_like_any_other(mask: Tensor | None) -> None:
    student = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    loss = cos(student, torch.tensor([[[3.0, 4.0], [2.0, 0.0]]]), mask)
    assert float(loss.detach()) == 0.5
    assert torch.autograd.grad(loss, student)[0].abs().max() <= 0.5


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]])])
def test_fsp_is_the_squared_difference_of_mean_products_width_by_width(mask: Tensor | None) -> None:
    g = torch.Generator().manual_seed(1)
    student, teacher = ([torch.randn(1, 3, width, generator=g) for width in (2, 4)] for _ in range(2))
    tokens = range(3) if mask is None else mask[0].nonzero().flatten().tolist()
    by_hand = 0.0
    for i in range(2):
        for j in range(4):
            flows = [sum(float(a[0, t, i] * b[0, t, j]) for t in tokens) / len(tokens) for a, b in (student, teacher)]
            by_hand += (flows[0] - flows[1]) ** 2 / 8
    assert float(fsp(student, teacher, mask)) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 0], [1, 0, 0]])])
def test_nst_is_the_squared_difference_of_similarities_divided_by_each_width(mask: Tensor | None) -> None:
    g = torch.Generator().manual_seed(1)
    student, teacher = ([torch.randn(2, 3, width, generator=g) for _ in range(2)] for width in (2, 7))
    by_hand, pairs = 0.0, 0
    for b in range(2):
        tokens = range(3) if mask is None else mask[b].nonzero().flatten().tolist()
        for i in tokens:
            for j in tokens:
                own, other = (float(x[b, i] @ y[b, j]) / x.shape[-1] for x, y in (student, teacher))
                by_hand += (own - other) ** 2
                pairs += 1
    assert float(nst(student, teacher, mask)) == pytest.approx(by_hand / pairs, rel=1e-5)


# invariants


@pytest.mark.parametrize("loss", [attention_mse, attention_mse_sum, hidden_mse, cos, fsp, nst])
@pytest.mark.parametrize("mask", [None, MASK])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(loss: Loss, mask: Tensor | None) -> None:
    _, teacher = features(loss)
    student = [t.clone().requires_grad_() for t in teacher]
    value = call(loss, student, teacher, mask)
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    for gradient in torch.autograd.grad(value, student):
        assert float(gradient.abs().max()) == pytest.approx(0, abs=1e-6)


@EVERY
def test_masked_tokens_do_not_change_the_loss(loss: Loss) -> None:
    student, teacher = features(loss)
    # a large negative score is what padding has in attention: finite ones take part in TextBrewer's softmax
    values = (-1e4, -2e4) if loss in OF_ATTENTION else (7.0, -5.0)
    outcomes = [
        call(loss, padded_with(loss, student, value), padded_with(loss, teacher, 3 * value), MASK) for value in values
    ]
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("loss", [attention_ce, attention_ce_mean])
def test_a_longer_padding_does_not_change_the_cross_entropy_of_attention(loss: Loss, normalized: bool) -> None:
    (student,), (teacher,) = features(loss)
    fill = -math.inf
    if normalized:
        student, teacher, fill = student.softmax(-1), teacher.softmax(-1), 0.0
    longer = [torch.nn.functional.pad(t, (0, 3, 0, 3), value=fill) for t in (student, teacher)]
    mask = torch.ones(ROWS, LENGTH).bool()
    torch.testing.assert_close(
        loss(*longer, torch.nn.functional.pad(mask, (0, 3)), normalized=normalized),
        loss(student, teacher, mask, normalized=normalized),
    )


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
@EVERY
def test_infinite_values_and_nan_at_padding_reach_neither_loss_nor_gradient(loss: Loss, value: float) -> None:
    student, teacher = (padded_with(loss, tensors, value) for tensors in features(loss))
    result = call(loss, student, teacher, MASK)
    assert result.isfinite()
    for gradient in torch.autograd.grad(result, student):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [-math.inf, math.nan])
@EVERY
def test_a_row_without_valid_tokens_is_finite_and_without_gradient(loss: Loss, value: float) -> None:
    mask = MASK.clone()
    mask[1] = False
    student, teacher = (padded_with(loss, tensors, value, mask) for tensors in features(loss))
    result = call(loss, student, teacher, mask)
    assert result.isfinite()
    for gradient in torch.autograd.grad(result, student):
        assert gradient.isfinite().all()
        assert not gradient[1].any()


@pytest.mark.parametrize("value", [0.5, -math.inf])
@EVERY
def test_a_batch_without_valid_tokens_has_zero_loss_that_carries_a_graph(loss: Loss, value: float) -> None:
    nothing = torch.zeros(ROWS, LENGTH).bool()
    student, teacher = (padded_with(loss, tensors, value, nothing) for tensors in features(loss))
    result = call(loss, student, teacher, nothing)
    assert float(result.detach()) == 0
    for gradient in torch.autograd.grad(result, student):
        assert not gradient.any()


@pytest.mark.parametrize("loss", OF_ATTENTION)
def test_attention_padded_with_minus_infinity_is_finite_without_a_mask(loss: Loss) -> None:
    student, teacher = (
        [t.detach().masked_fill(~MASK[:, None, None], -math.inf).requires_grad_(t.requires_grad) for t in tensors]
        for tensors in features(loss)
    )
    result = call(loss, student, teacher, None)
    assert result.isfinite()
    assert torch.autograd.grad(result, student)[0].isfinite().all()


@EVERY
def test_a_batch_is_the_mean_of_its_rows_weighted_by_what_the_loss_declares(loss: Loss) -> None:
    student, teacher = features(loss)
    over = Component(KINDS["match_loss"], "x", loss).facts.over
    items = {"rows": lambda m: len(m), "tokens": lambda m: m.sum(), "token_pairs": lambda m: m.sum(1).square().sum()}[
        over
    ]
    parts = [slice(0, 1), slice(1, 3)]
    losses = [call(loss, [t[p] for t in student], [t[p] for t in teacher], MASK[p]) for p in parts]
    mean = sum(items(MASK[p]) * part for p, part in zip(parts, losses, strict=True)) / items(MASK)
    torch.testing.assert_close(call(loss, student, teacher, MASK), mean)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
@EVERY
def test_a_mask_of_numbers_means_what_a_bool_mask_means(loss: Loss, dtype: torch.dtype) -> None:
    student, teacher = features(loss)
    assert torch.equal(call(loss, student, teacher, MASK.to(dtype)), call(loss, student, teacher, MASK))


@pytest.mark.parametrize("mask", [None, MASK])
@EVERY
def test_inputs_stay_as_they_are(loss: Loss, mask: Tensor | None) -> None:
    student, teacher = features(loss)
    tensors = [*student, *teacher, MASK]
    before = [t.detach().clone() for t in tensors]
    call(loss, student, teacher, mask).backward()
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


@pytest.mark.parametrize("loss", OF_ATTENTION)
def test_attention_without_an_axis_for_heads_is_attention_of_one_head(loss: Loss) -> None:
    (student,), (teacher,) = features(loss)
    torch.testing.assert_close(loss(student[:, 0], teacher[:, 0], MASK), loss(student[:, :1], teacher[:, :1], MASK))


@pytest.mark.parametrize("loss", [attention_mse, attention_mse_sum])
def test_what_a_decoder_may_not_see_counts_as_nothing_whatever_number_stands_for_it(loss: Loss) -> None:
    g = torch.Generator().manual_seed(0)
    scores = [torch.randn(1, 2, 3, 3, generator=g) for _ in range(2)]
    later = torch.ones(3, 3).triu(1).bool()
    numbers = [torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min, torch.finfo(torch.float16).min, -1e4]
    expected = 0.0
    for query, key in [(q, k) for q in range(3) for k in range(q + 1)]:
        apart = [(scores[0] - scores[1])[0, head, query, key].item() for head in range(2)]
        expected += sum(apart) ** 2 / 9 if loss is attention_mse_sum else sum(a**2 for a in apart) / 18
    for first, second in itertools.product(numbers, repeat=2):
        student, teacher = (s + torch.where(later, n, 0.0) for s, n in zip(scores, (first, second), strict=True))
        student.requires_grad_()
        value = loss(student, teacher, torch.ones(1, 3))
        value.backward()
        assert value.item() == pytest.approx(expected, rel=1e-5)
        assert student.grad is not None
        assert (student.grad[..., later] == 0).all()


# errors


def text_of(loss: Loss, *arguments: Any) -> str:
    with pytest.raises(ShapeError) as error:
        loss(*arguments)
    return str(error.value)


@pytest.mark.parametrize("loss", OF_STATES)
def test_widths_that_differ_are_refused(loss: Loss) -> None:
    text = text_of(loss, torch.zeros(2, 5, 312), torch.zeros(2, 5, 768))
    assert text == "student is 312 wide and teacher 768; give the match a projection."


def test_fsp_refuses_widths_that_differ() -> None:
    text = text_of(fsp, [torch.zeros(2, 5, 4), torch.zeros(2, 5, 6)], [torch.zeros(2, 5, 4), torch.zeros(2, 5, 8)])
    assert text == "student is 6 wide and teacher 8; give the match a projection."


@pytest.mark.parametrize("mask", [None, torch.ones(4, 5)], ids=["no mask", "mask"])
def test_fsp_refuses_other_rows_which_might_be_taken_for_all(mask: Tensor | None) -> None:
    student, teacher = ([torch.zeros(rows, 5, 4), torch.zeros(rows, 5, 6)] for rows in (4, 1))
    assert text_of(fsp, student, teacher, mask) == "student has 4 rows and teacher 1; both must see the same batch."


@EVERY
def test_a_batch_of_no_rows_has_no_loss(loss: Loss) -> None:
    student, teacher = ([tensor[:0] for tensor in side] for side in features(loss))
    for mask in (None, MASK[:0]):
        result = call(loss, student, teacher, mask)
        assert result.requires_grad
        assert float(result.detach()) == 0


def test_nst_refuses_a_pair_of_different_widths() -> None:
    text = text_of(nst, [torch.zeros(2, 5, 4), torch.zeros(2, 5, 6)], [torch.zeros(2, 5, 4), torch.zeros(2, 5, 4)])
    assert text == "the student's two layers are (2, 5, 4) and (2, 5, 6); they must be alike."


@pytest.mark.parametrize("loss", OF_PAIRS)
def test_single_layers_are_refused_by_losses_of_pairs(loss: Loss) -> None:
    pair, single = [torch.zeros(2, 5, 4)] * 2, torch.zeros(2, 5, 4)
    for side, given in (("student", (single, pair)), ("teacher", (pair, single))):
        expected = (
            f"the {side} gives a single layer and this loss needs two layers; name them in a list, such as [0, 1]."
        )
        assert text_of(loss, *given) == expected
    expected = "the student gives 3 layers and this loss needs two layers; name them in a list, such as [0, 1]."
    assert text_of(loss, [single] * 3, pair) == expected


@SINGLE
def test_pairs_are_refused_by_losses_of_single_layers(loss: Loss) -> None:
    (single,), _ = features(loss)
    expected = "the {} gives 2 layers and this loss compares single ones; name one layer."
    assert text_of(loss, (single, single), single) == expected.format("student")
    assert text_of(loss, single, [single, single]) == expected.format("teacher")


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        (hidden_mse, (2, 5, 4), (2, 6, 4)),
        (cos, (2, 5, 4), (3, 5, 4)),
        (attention_mse, (2, 3, 5, 5), (2, 3, 6, 6)),
        (attention_ce, (2, 3, 5, 5), (3, 3, 5, 5)),
    ],
)
def test_features_of_other_rows_or_tokens_are_refused(
    loss: Loss, student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    text = text_of(loss, torch.zeros(student), torch.zeros(teacher))
    assert text == f"student is {student} and teacher {teacher}; both must be of the same rows and tokens."


def test_nst_refuses_features_of_other_tokens() -> None:
    text = text_of(nst, [torch.zeros(2, 5, 4)] * 2, [torch.zeros(2, 6, 8)] * 2)
    assert text == "student is (2, 5, 4) and teacher (2, 6, 8); both must be of the same rows and tokens."


@pytest.mark.parametrize("loss", [attention_mse, attention_ce])
def test_different_numbers_of_heads_are_refused_head_by_head(loss: Loss) -> None:
    assert text_of(loss, torch.zeros(2, 4, 5, 5), torch.zeros(2, 12, 5, 5)) == (
        "student is (2, 4, 5, 5) and teacher (2, 12, 5, 5); "
        "match different numbers of heads with attention_mse_sum or attention_ce_mean."
    )


@pytest.mark.parametrize("loss", OF_ATTENTION)
def test_what_is_not_attention_is_refused(loss: Loss) -> None:
    text = text_of(loss, torch.zeros(2, 5), torch.zeros(2, 5))
    assert text == "the student's attention is (2, 5); it must be [B, H, L, L] or [B, L, L]."


@pytest.mark.parametrize("loss", OF_ATTENTION)
def test_states_are_refused_by_losses_of_attention_where_there_is_a_mask(loss: Loss) -> None:
    text = text_of(loss, torch.zeros(2, 5, 4), torch.zeros(2, 5, 4), torch.ones(2, 5))
    assert text == "the attention is (2, 5, 4); it must be of tokens to the same tokens, [B, H, L, L]."


@pytest.mark.parametrize("loss", [hidden_mse, cos])
def test_attention_is_refused_by_losses_of_states_where_there_is_a_mask(loss: Loss) -> None:
    text = text_of(loss, torch.zeros(2, 2, 5, 5), torch.zeros(2, 2, 5, 5), torch.ones(2, 5))
    assert text == (
        "the states are (2, 2, 5, 5) and the mask of their tokens (2, 5); this loss compares states of tokens, [B, L, D]."
    )


@pytest.mark.parametrize("second", [(2, 6, 4), (2, 4)])
def test_fsp_refuses_a_pair_of_other_tokens(second: tuple[int, ...]) -> None:
    pair = [torch.zeros(2, 5, 4)] * 2
    expected = (
        f"the teacher's two layers are (2, 5, 4) and {second}; they must be [B, L, D] of the same rows and tokens."
    )
    assert text_of(fsp, pair, [torch.zeros(2, 5, 4), torch.zeros(second)]) == expected


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 1), (5,)])
@EVERY
def test_a_mask_of_other_rows_or_tokens_is_refused(loss: Loss, shape: tuple[int, ...]) -> None:
    student, teacher = features(loss)
    seen = tuple(student[0].shape)
    if loss in (attention_mse_sum, attention_ce_mean):
        seen = (ROWS, LENGTH, LENGTH)
    with pytest.raises(ShapeError) as error:
        call(loss, student, teacher, torch.ones(shape))
    assert str(error.value) == (
        f"the mask is {shape} and the student's tensor {seen}; the mask must have its rows and tokens."
    )


# the plugin


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("attention_ce", "tokens"),
        ("attention_ce_mean", "tokens"),
        ("attention_mse", "token_pairs"),
        ("attention_mse_sum", "token_pairs"),
        ("cos", "tokens"),
        ("fsp", "rows"),
        ("gram", "rows"),
        ("hidden_mse", "tokens"),
        ("mmd", "token_pairs"),
        ("nst", "token_pairs"),
    ],
)
def test_each_loss_declares_what_its_mean_is_over(name: str, over: str) -> None:
    found = Component(KINDS["match_loss"], name, brewer_match_losses()[name])
    options = {"normalized": False} if "_ce" in name else {}
    assert (found.facts.over, found.check({})) == (over, options)


def test_gram_is_fsp_and_mmd_is_nst() -> None:
    provided = brewer_match_losses()
    assert (provided["gram"], provided["mmd"]) == (fsp, nst)
