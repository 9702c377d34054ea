"""Losses of embeddings and of rankers' scores: numbers from plain loops, Matryoshka prefixes, masks, and the errors' texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.match_losses import (
    embedding_cos,
    embedding_mse,
    hidden_mse,
    listwise_kl,
    margin_mse,
    score_matrix_kl,
)
from brewer_core import RequestError, ShapeError

ROWS, LENGTH, WIDTH = 4, 3, 6
MASK = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores: Sequence[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a: Tensor, b: Tensor) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


# embedding_mse


def test_embedding_mse_of_tokens_is_the_mean_over_valid_tokens_and_widths() -> None:
    student, teacher = (drawn(ROWS, LENGTH, WIDTH, seed=s) for s in (1, 2))
    valid = MASK.nonzero().tolist()
    by_hand = sum(float(student[b, t, d] - teacher[b, t, d]) ** 2 for b, t in valid for d in range(WIDTH))
    assert float(embedding_mse(student, teacher, MASK)) == pytest.approx(by_hand / (len(valid) * WIDTH))
    torch.testing.assert_close(embedding_mse(student, teacher, MASK), hidden_mse(student, teacher, MASK))
    torch.testing.assert_close(embedding_mse(student, teacher), hidden_mse(student, teacher))


def test_embedding_mse_of_sentences_is_the_mean_over_rows_and_widths() -> None:
    student, teacher = torch.tensor([[1.0, 2, 3], [0, 0, 0]]), torch.tensor([[1.0, 0, 0], [0, 3, 0]])
    assert float(embedding_mse(student, teacher)) == pytest.approx((4 + 9 + 9) / 6)
    assert float(embedding_mse(student, teacher, torch.tensor([1, 0]))) == pytest.approx((4 + 9) / 3)


# embedding_cos


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_embedding_cos_of_tokens_is_the_mean_over_rows_of_which_one_without_tokens_adds_0(pool: str) -> None:
    student, teacher = (drawn(ROWS, LENGTH, WIDTH, seed=s) for s in (1, 2))
    by_hand = 0.0
    for b in range(ROWS):
        tokens = MASK[b].nonzero().flatten().tolist()
        if tokens:
            chosen = {"mean": tokens, "first": tokens[:1], "last": tokens[-1:]}[pool]
            by_hand += 1 - cosine(*(states[b, chosen].mean(0) for states in (student, teacher)))
    assert float(embedding_cos(student, teacher, MASK, pool=pool)) == pytest.approx(by_hand / ROWS)


def test_embedding_cos_of_a_right_angle_an_equal_and_an_opposite_direction_and_of_zeros() -> None:
    student = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 0]], requires_grad=True)
    loss = embedding_cos(student, torch.tensor([[0.0, 5], [2, 0], [-1, 0], [1, 0]]))
    assert float(loss.detach()) == pytest.approx((1 + 0 + 2 + 1) / 4)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


# score_matrix_kl


@pytest.mark.parametrize("similarity", ["cos", "dot"])
def test_score_matrix_kl_compares_the_scores_that_a_row_gives_the_others(similarity: str) -> None:
    student, teacher = drawn(ROWS, 3, seed=1), drawn(ROWS, WIDTH, seed=2)
    score, by_hand = {"cos": cosine, "dot": dot}[similarity], 0.0
    for i in range(ROWS):
        others = [j for j in range(ROWS) if j != i]
        p = softmax([score(teacher[i], teacher[j]) / 2.0 for j in others])
        q = softmax([score(student[i], student[j]) / 0.5 for j in others])
        by_hand += kl(p, q) / ROWS
    options: dict[str, Any] = {"student_temperature": 0.5, "teacher_temperature": 2.0, "similarity": similarity}
    assert float(score_matrix_kl(student, teacher, **options)) == pytest.approx(by_hand)


def test_score_matrix_kl_of_queries_and_documents_scores_every_document() -> None:
    queries, documents = (drawn(ROWS, 3, seed=1), drawn(ROWS, 5, seed=2)), (drawn(7, 3, seed=3), drawn(7, 5, seed=4))
    by_hand = 0.0
    for i in range(ROWS):
        q, p = (softmax([cosine(queries[side][i], documents[side][j]) / 0.05 for j in range(7)]) for side in (0, 1))
        by_hand += kl(p, q) / ROWS
    loss = score_matrix_kl((queries[0], documents[0]), (queries[1], documents[1]))
    assert float(loss) == pytest.approx(by_hand)


def test_rows_without_tokens_are_neither_scored_nor_do_they_score() -> None:
    student, teacher = drawn(ROWS, LENGTH, 3, seed=1), drawn(ROWS, LENGTH, WIDTH, seed=2)
    torch.testing.assert_close(
        score_matrix_kl(student, teacher, MASK), score_matrix_kl(student[:3], teacher[:3], MASK[:3])
    )


def test_a_batch_of_which_each_row_has_one_other_has_no_scores_to_compare() -> None:
    student = drawn(2, 3).requires_grad_()
    value = score_matrix_kl(student, drawn(2, WIDTH, seed=1))
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, student)[0].any()


# matryoshka


def test_matryoshka_compares_prefixes_of_both_sides_and_adds_their_weighed_losses() -> None:
    student, teacher = (drawn(ROWS, WIDTH, seed=s) for s in (1, 2))
    options: dict[str, Any] = {"matryoshka_dims": [2, 6], "matryoshka_weights": [0.25, 2.0]}
    for loss in (embedding_mse, embedding_cos):
        expected = 0.25 * loss(student[:, :2], teacher[:, :2]) + 2 * loss(student, teacher)
        torch.testing.assert_close(loss(student, teacher, **options), expected)


def test_matryoshka_scores_of_prefixes_are_held_against_those_of_the_whole_teacher() -> None:
    student, teacher = drawn(ROWS, WIDTH, seed=1), drawn(ROWS, 9, seed=2)
    expected = score_matrix_kl(student[:, :2], teacher) + score_matrix_kl(student[:, :4], teacher)
    torch.testing.assert_close(score_matrix_kl(student, teacher, matryoshka_dims=[2, 4]), expected)


# rankers


def test_margin_mse_is_the_mean_squared_difference_of_margins() -> None:
    student, teacher = torch.tensor([[5.0, 1, 2], [0, 0, 3]]), torch.tensor([[9.0, 8, 8], [1, 1, 1]])
    # margins 4, 3 against 1, 1, and 0, -3 against 0, 0
    by_hand = ((4 - 1) ** 2 + (3 - 1) ** 2 + 0 + 3**2) / 4
    assert float(margin_mse(student, teacher)) == by_hand
    pair = tuple((scores[:, 0], scores[:, 1:]) for scores in (student, teacher))
    assert float(margin_mse(*pair)) == by_hand
    single = tuple((scores[:, 0], scores[:, 1]) for scores in (student, teacher))
    assert float(margin_mse(*single)) == ((4 - 1) ** 2 + 0) / 2


def test_margin_mse_leaves_out_candidates_that_are_not_there() -> None:
    student = torch.tensor([[5.0, 1, math.nan], [0, 0, 3], [math.inf, 1, 1]], requires_grad=True)
    teacher = torch.tensor([[9.0, 8, math.inf], [1, 1, 1], [1, 2, 3]])
    loss = margin_mse(student, teacher, torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool())
    assert float(loss.detach()) == pytest.approx(((4 - 1) ** 2 + (0 + 3**2) / 2 + 0) / 3)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("t_squared", [True, False])
def test_listwise_kl_is_the_mean_divergence_times_the_students_squared_temperature(t_squared: bool) -> None:
    student, teacher = drawn(ROWS, 5, seed=1), drawn(ROWS, 5, seed=2)
    by_hand = sum(
        kl(softmax([float(t) / 3 for t in teacher[i]]), softmax([float(s) / 2 for s in student[i]]))
        for i in range(ROWS)
    )
    loss = listwise_kl(student, teacher, student_temperature=2.0, teacher_temperature=3.0, t_squared=t_squared)
    assert float(loss) == pytest.approx(by_hand / ROWS * (4 if t_squared else 1))


def test_listwise_kl_leaves_out_candidates_that_are_not_there() -> None:
    student = torch.tensor([[1.0, 2, math.nan], [0, 0, 3], [1, math.nan, math.inf]], requires_grad=True)
    teacher = torch.tensor([[0.0, 4, math.inf], [1, 1, 1], [2, 3, 4]])
    loss = listwise_kl(student, teacher, torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool())
    by_hand = kl(softmax([0, 4]), softmax([1, 2])) + kl(softmax([1, 1, 1]), softmax([0, 0, 3]))
    assert float(loss.detach()) == pytest.approx(by_hand / 3, rel=1e-5)
    gradient = torch.autograd.grad(loss, student)[0]
    assert gradient.isfinite().all()
    assert not gradient[2].any()


def test_a_candidate_that_the_teacher_rules_out_adds_nothing() -> None:
    student = torch.tensor([[1.0, 2.0, 0.5]])
    assert float(listwise_kl(student, torch.tensor([[1.0, 2.0, -math.inf]]))) == pytest.approx(
        kl(softmax([1, 2]), softmax([1, 2, 0.5])[:2]), rel=1e-5
    )


# errors


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "options", "text"),
    [
        (
            embedding_mse,
            (2, 3, 4),
            (2, 3, 8),
            {},
            "student is 4 wide and teacher 8; give the match a projection.",
        ),
        (embedding_mse, (2,), (2,), {}, "the student's states are (2,); this loss needs [B, L, D] or [B, D]."),
        (
            embedding_mse,
            (2, 3, 4),
            (2, 5, 4),
            {},
            "student is (2, 3, 4) and teacher (2, 5, 4); both must be of the same rows and tokens.",
        ),
        (embedding_cos, (2, 4), (2, 8), {}, "student is 4 wide and teacher 8; give the match a projection."),
        (embedding_cos, (2, 4), (3, 4), {}, "student has 2 rows and teacher 3; both must see the same batch."),
        (
            embedding_cos,
            (2, 4),
            (2, 4),
            {"matryoshka_dims": [2, 8]},
            "matryoshka_dims: embeddings are 4 wide and have no prefix of 8; name smaller ones.",
        ),
        (
            margin_mse,
            (2, 3),
            (2, 4),
            {},
            "student scores are (2, 3) and teacher scores (2, 4); both must be of the same candidates.",
        ),
        (
            margin_mse,
            (2, 1),
            (2, 1),
            {},
            "the scores are (2, 1); a margin needs a positive candidate and a negative one.",
        ),
        (listwise_kl, (2,), (2,), {}, "the student's scores are (2,); this loss needs [B, C], a row for each query."),
    ],
)
def test_what_cannot_be_compared_is_refused(
    loss: Any, student: tuple[int, ...], teacher: tuple[int, ...], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        loss(torch.zeros(student), torch.zeros(teacher), **options)
    assert str(caught.value) == text


def test_weights_without_their_dimensions_are_refused() -> None:
    for loss in (embedding_mse, embedding_cos, score_matrix_kl):
        for dims, count in ((None, 0), ([2, 3], 2)):
            with pytest.raises(RequestError) as caught:
                loss(torch.zeros(2, 4), torch.zeros(2, 4), matryoshka_dims=dims, matryoshka_weights=[1.0])
            assert str(caught.value) == (
                f"matryoshka_weights: there are 1, and {count} matryoshka_dims; give one for each."
            )


def test_pairs_that_do_not_fit_are_refused() -> None:
    one, other = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ShapeError) as caught:
        margin_mse((one, other), (one, other))
    assert str(caught.value) == (
        "the student gives (2, 3), (2, 4); a pair must be the positives' scores, [B] or [B, 1], and the negatives', [B] or [B, N]."
    )
    with pytest.raises(ShapeError) as caught:
        score_matrix_kl((one, other), (one, one))
    assert str(caught.value) == "queries are 3 wide and documents 4; both must come from one model."
    with pytest.raises(ShapeError) as caught:
        score_matrix_kl((one, one), one)
    assert str(caught.value) == (
        "the teacher gives a single layer and this loss needs two layers; name them in a list, such as [0, 1]."
    )


def test_a_mask_of_other_candidates_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        margin_mse(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 4).bool())
    assert str(caught.value) == "the mask is (2, 4) and the scores (2, 3); the mask must have their candidates."
