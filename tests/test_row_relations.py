"""RKD, similarity-preserving distillation and CKA: numbers from plain loops, and what becomes one vector a row."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.match_losses import cka, rkd_angle, rkd_distance, sp
from brewer_core import ShapeError

ROWS, LENGTH = 5, 4
MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(e: float) -> float:
    return e * e / 2 if abs(e) <= 1 else abs(e) - 0.5


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def rkd_distance_by_hand(student: list[list[float]], teacher: list[list[float]]) -> float:
    pairs = list(itertools.permutations(range(len(student)), 2))
    relative = []
    for rows in (student, teacher):
        distances = [math.dist(rows[i], rows[j]) for i, j in pairs]
        relative.append([d / (sum(distances) / len(pairs)) for d in distances])
    return sum(huber(a - b) for a, b in zip(*relative, strict=True)) / len(pairs)


def rkd_angle_by_hand(student: list[list[float]], teacher: list[list[float]]) -> float:
    triples = list(itertools.permutations(range(len(student)), 3))
    cosines = []
    for rows in (student, teacher):
        arms = [(minus(rows[i], rows[j]), minus(rows[k], rows[j])) for i, j, k in triples]
        cosines.append([dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for a, b in arms])
    return sum(huber(a - b) for a, b in zip(*cosines, strict=True)) / len(triples)


def sp_by_hand(student: list[list[float]], teacher: list[list[float]]) -> float:
    total, n = 0.0, len(student)
    for i in range(n):
        unit = []
        for rows in (student, teacher):
            similarities = [dot(rows[i], rows[j]) for j in range(n)]
            length = math.sqrt(dot(similarities, similarities))
            unit.append([s / length for s in similarities])
        total += sum((a - b) ** 2 for a, b in zip(*unit, strict=True))
    return total / n**2


def cka_by_hand(student: list[list[float]], teacher: list[list[float]]) -> float:
    """1 - CKA as the paper has it, from covariances of widths rather than products of rows."""
    n = len(student)
    centred = []
    for rows in (student, teacher):
        means = [sum(column) / n for column in zip(*rows, strict=True)]
        centred.append([list(column) for column in zip(*(minus(row, means) for row in rows), strict=True)])

    def squared_norm(x: list[list[float]], y: list[list[float]]) -> float:
        return sum(dot(a, b) ** 2 for a in x for b in y)

    x, y = centred
    return 1 - squared_norm(x, y) / math.sqrt(squared_norm(x, x) * squared_norm(y, y))


def debiased_cka_by_hand(student: list[list[float]], teacher: list[list[float]]) -> float:
    n = len(student)

    def hsic(one: list[list[float]], other: list[list[float]]) -> float:
        """Song et al. 2012, eq. 5, term by term."""
        k = [[0.0 if i == j else dot(one[i], one[j]) for j in range(n)] for i in range(n)]
        m = [[0.0 if i == j else dot(other[i], other[j]) for j in range(n)] for i in range(n)]
        trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
        sums = sum(map(sum, k)) * sum(map(sum, m)) / ((n - 1) * (n - 2))
        crossed = sum(k[i][j] * m[j][c] for i in range(n) for j in range(n) for c in range(n))
        return (trace + sums - 2 * crossed / (n - 2)) / (n * (n - 3))

    return 1 - hsic(student, teacher) / math.sqrt(hsic(student, student) * hsic(teacher, teacher))


LOSSES = pytest.mark.parametrize(
    ("loss", "options", "by_hand"),
    [
        (rkd_distance, {}, rkd_distance_by_hand),
        (rkd_angle, {}, rkd_angle_by_hand),
        (sp, {}, sp_by_hand),
        (cka, {}, cka_by_hand),
        (cka, {"debiased": True}, debiased_cka_by_hand),
    ],
    ids=["rkd_distance", "rkd_angle", "sp", "cka", "debiased cka"],
)


def pooled(states: Tensor, mask: Tensor, pool: str) -> list[list[float]]:
    """One vector for each row that has a valid token, in plain loops."""
    rows = []
    for b in range(len(states)):
        tokens = mask[b].nonzero().flatten().tolist()
        if tokens:
            chosen = {"mean": tokens, "first": tokens[:1], "last": tokens[-1:]}[pool]
            rows.append([sum(float(states[b, t, d]) for t in chosen) / len(chosen) for d in range(states.shape[-1])])
    return rows


@LOSSES
def test_losses_of_embeddings_are_those_of_plain_loops(loss: Any, options: dict[str, Any], by_hand: Any) -> None:
    student, teacher = drawn(ROWS, 3, seed=1), drawn(ROWS, 6, seed=2)
    assert float(loss(student, teacher, **options)) == pytest.approx(by_hand(student.tolist(), teacher.tolist()))


@LOSSES
@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_losses_of_tokens_are_those_of_one_vector_for_each_row_that_has_any(
    loss: Any, options: dict[str, Any], by_hand: Any, pool: str
) -> None:
    student, teacher = drawn(ROWS, LENGTH, 3, seed=1), drawn(ROWS, LENGTH, 6, seed=2)
    rows = [pooled(states, MASK, pool) for states in (student, teacher)]
    assert len(rows[0]) == ROWS - 1
    assert float(loss(student, teacher, MASK, pool=pool, **options)) == pytest.approx(by_hand(*rows))


@LOSSES
def test_a_teacher_of_other_tokens_is_pooled_by_its_own_mask(loss: Any, options: dict[str, Any], by_hand: Any) -> None:
    student, teacher = drawn(ROWS, LENGTH, 3, seed=1), drawn(ROWS, 3, 6, seed=2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    rows = [pooled(student, MASK, "mean"), pooled(teacher[[0, 1, 2, 4]], mask[[0, 1, 2, 4]], "mean")]
    assert float(loss(student, teacher, MASK, teacher_mask=mask, **options)) == pytest.approx(by_hand(*rows))


def test_a_right_angle_that_should_be_an_equal_one() -> None:
    # three corners of a square against those of an equilateral triangle: cosines 0, 1/√2, 1/√2 against 1/2 each
    student, teacher = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.tensor([[0.0, 0], [1, 0], [0.5, 3**0.5 / 2]])
    by_hand = (0.5**2 + 2 * (0.5**0.5 - 0.5) ** 2) / 3 / 2
    assert float(rkd_angle(student, teacher)) == pytest.approx(by_hand, rel=1e-5)
    mean = (2 + 2**0.5) / 3
    by_hand = (2 * (1 / mean - 1) ** 2 + (2**0.5 / mean - 1) ** 2) / 3 / 2
    assert float(rkd_distance(student, teacher)) == pytest.approx(by_hand, rel=1e-5)


def test_sp_of_flattened_tokens_is_that_of_the_tokens_side_by_side() -> None:
    student, teacher = drawn(ROWS, LENGTH, 3, seed=1), drawn(ROWS, LENGTH, 6, seed=2)
    rows = [torch.where(MASK[..., None], states, 0)[[0, 1, 2, 4]].flatten(1).tolist() for states in (student, teacher)]
    assert float(sp(student, teacher, MASK, pool="flatten")) == pytest.approx(sp_by_hand(*rows))
    flat = sp(student.flatten(1), teacher.flatten(1))
    torch.testing.assert_close(sp(student, teacher, pool="flatten"), flat)
    torch.testing.assert_close(sp(student.flatten(1), teacher.flatten(1), pool="flatten"), flat)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_sp_is_that_of_states_of_any_scale(scale: float) -> None:
    student, teacher = drawn(ROWS, 6, seed=1).float(), drawn(ROWS, 6, seed=2).float()
    torch.testing.assert_close(sp(scale * student, teacher / scale), sp(student, teacher))


@pytest.mark.parametrize("width", [6, 60], ids=["more tokens than widths", "fewer"])
def test_cka_of_tokens_takes_every_valid_token_for_an_example(width: int) -> None:
    student, teacher = drawn(ROWS, LENGTH, 3, seed=1), drawn(ROWS, LENGTH, width, seed=2)
    rows = student[MASK].tolist(), teacher[MASK].tolist()
    assert float(cka(student, teacher, MASK, pool="tokens")) == pytest.approx(cka_by_hand(*rows))
    debiased = cka(student, teacher, MASK, pool="tokens", debiased=True)
    assert float(debiased) == pytest.approx(debiased_cka_by_hand(*rows))


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, cka])
def test_a_turned_and_scaled_teacher_has_no_loss(loss: Any) -> None:
    teacher = drawn(ROWS, 6, seed=2)
    turn, _ = torch.linalg.qr(drawn(6, 6, seed=3))
    assert float(loss(3 * teacher @ turn + 7, teacher)) == pytest.approx(0, abs=1e-12)


def test_biased_cka_nears_1_where_widths_exceed_rows_and_the_debiased_one_does_not() -> None:
    student, teacher = drawn(8, 400, seed=1), drawn(8, 400, seed=2)
    assert float(cka(student, teacher)) < 0.1
    assert float(cka(student, teacher, debiased=True)) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("loss", "options", "fewest"),
    [(rkd_distance, {}, 2), (rkd_angle, {}, 3), (sp, {}, 2), (cka, {}, 2), (cka, {"debiased": True}, 4)],
)
def test_too_few_rows_to_compare_give_no_loss_and_no_gradient(loss: Any, options: dict[str, Any], fewest: int) -> None:
    for rows in range(fewest):
        student = drawn(max(rows, 1), 3, seed=1).requires_grad_()
        mask = None if rows else torch.zeros(1).bool()
        value = loss(student, drawn(max(rows, 1), 6, seed=2), mask, **options)
        assert float(value.detach()) == pytest.approx(0, abs=1e-15)
        assert float(torch.autograd.grad(value, student)[0].abs().max()) == pytest.approx(0, abs=1e-12)


@LOSSES
@pytest.mark.parametrize("collapsed", ["student", "teacher", "both", "two rows"])
def test_rows_that_coincide_have_a_finite_loss_and_gradient(
    loss: Any, options: dict[str, Any], by_hand: Any, collapsed: str
) -> None:
    student, teacher = drawn(ROWS, 3, seed=1), drawn(ROWS, 6, seed=2)
    if collapsed in ("student", "both"):
        student = torch.ones_like(student)
    if collapsed in ("teacher", "both"):
        teacher = torch.zeros_like(teacher)
    if collapsed == "two rows":
        student[1], teacher[1] = student[0], teacher[0]
    student.requires_grad_()
    value = loss(student, teacher, **options)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_cka_of_a_collapsed_student_is_1() -> None:
    assert float(cka(torch.ones(ROWS, 3), drawn(ROWS, 6).float())) == 1.0


def test_near_rows_keep_their_distance_in_float32() -> None:
    # products of rows would leave nothing of a distance of 1e-3 beside a norm of 1e3
    student = 1e3 + torch.tensor([[0.0], [1e-3], [3e-3]])
    exact = rkd_distance(student.double(), torch.tensor([[0.0], [1.0], [5.0]]).double())
    torch.testing.assert_close(rkd_distance(student, torch.tensor([[0.0], [1.0], [5.0]])).double(), exact)


@pytest.mark.parametrize(
    ("options", "student", "teacher", "mask", "text"),
    [
        ({}, (3, 4), (2, 4), None, "student has 3 rows and teacher 2; both must see the same batch."),
        ({}, (3,), (3,), None, "the student's states are (3,); this loss needs [B, L, D] or [B, D]."),
        (
            {},
            (3, 4, 2),
            (3, 4, 2),
            (3, 5),
            "the mask is (3, 5) and the student's tensor (3, 4, 2); the mask must have its rows and tokens.",
        ),
        (
            {},
            (3, 4, 2),
            (3, 5, 2),
            (3, 4),
            "the mask is (3, 4) and the teacher's tensor (3, 5, 2); the mask must have its rows and tokens.",
        ),
        (
            {},
            (3, 2),
            (3, 2),
            (4,),
            "the mask is (4,) and the student's tensor (3, 2); the mask must have its rows and tokens.",
        ),
    ],
)
@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, sp, cka])
def test_what_has_no_rows_to_compare_is_refused(
    loss: Any, options: Any, student: Any, teacher: Any, mask: Any, text: str
) -> None:
    with pytest.raises(ShapeError) as caught:
        loss(torch.zeros(student), torch.zeros(teacher), None if mask is None else torch.ones(mask).bool(), **options)
    assert str(caught.value) == text


def test_tokens_are_compared_only_with_the_same_tokens() -> None:
    for loss, pool in ((sp, "flatten"), (cka, "tokens")):
        with pytest.raises(ShapeError) as caught:
            loss(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), pool=pool)
        assert (
            str(caught.value) == "student is (2, 3, 4) and teacher (2, 5, 4); both must be of the same rows and tokens."
        )


def test_several_layers_are_refused() -> None:
    states = torch.zeros(2, 3, 4)
    with pytest.raises(ShapeError) as caught:
        rkd_distance((states, states), states)
    assert str(caught.value) == "the student gives 2 layers and this loss compares single ones; name one layer."
