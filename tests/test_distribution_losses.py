"""Losses between logits beside TextBrewer's: each against a plain loop written from its paper, by hand, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brewer_builtins.kd_losses import (
    adaptive_kl,
    brewer_kd_losses,
    ce,
    dist,
    dkd,
    jsd,
    kl,
    mse,
    regression_mse,
    reverse_kl,
    sigmoid,
    skew_kl,
    skew_reverse_kl,
    top_k_kl,
    tvd,
)
from brewer_builtins.kd_losses.softened import standardised
from brewer_core import RequestError, ShapeError, SparseLogits

Row = Sequence[float]
Loss = Callable[..., Tensor]
LN2, LN3 = math.log(2), math.log(3)
INF = math.inf


# Plain loops


def softmax(logits: Row, temperature: float) -> list[float]:
    top = max(logits)
    powers = [math.exp((z - top) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def kl_of(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mixed(p: Row, q: Row, part: float) -> list[float]:
    return [part * a + (1 - part) * b for a, b in zip(p, q, strict=True)]


def jsd_of(p: Row, q: Row, beta: float) -> float:
    middle = mixed(p, q, beta)
    return beta * kl_of(p, middle) + (1 - beta) * kl_of(q, middle)


def normalised_jsd_of(p: Row, q: Row, beta: float) -> float:
    if beta in (0, 1):
        return kl_of(q, p) if beta else kl_of(p, q)
    return jsd_of(p, q, beta) / (beta * (1 - beta))


def adaptive_of(p: Row, q: Row, head_mass: float) -> float:
    gap, cumulated = {"head": 0.0, "tail": 0.0}, 0.0
    for rank, c in enumerate(sorted(range(len(p)), key=lambda c: -p[c])):
        cumulated += p[c]
        gap["head" if rank == 0 or cumulated <= head_mass else "tail"] += abs(p[c] - q[c])
    weight = gap["head"] / (gap["head"] + gap["tail"])
    return weight * kl_of(p, q) + (1 - weight) * kl_of(q, p)


def tvd_of(p: Row, q: Row) -> float:
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def dkd_of(p: Row, q: Row, target: int, alpha: float, beta: float) -> float:
    rest_p, rest_q = 1 - p[target], 1 - q[target]
    others = [c for c in range(len(p)) if c != target]
    of_target = kl_of([p[target], rest_p], [q[target], rest_q])
    return alpha * of_target + beta * kl_of([p[c] / rest_p for c in others], [q[c] / rest_q for c in others])


def top_k_of(p: Row, q: Row, k: int, tail: bool) -> float:
    likely = sorted(range(len(p)), key=lambda c: -p[c])[:k]
    some_p, some_q = [p[c] for c in likely], [q[c] for c in likely]
    if tail:
        return kl_of([*some_p, max(1 - sum(some_p), 0)], [*some_q, max(1 - sum(some_q), 1e-300)])
    return kl_of([a / sum(some_p) for a in some_p], [b / sum(some_q) for b in some_q])


def pearson(xs: Row, ys: Row) -> float:
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    dx, dy = [x - mean_x for x in xs], [y - mean_y for y in ys]
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / math.sqrt(sum(a * a for a in dx) * sum(b * b for b in dy))


def dist_of(ps: Sequence[Row], qs: Sequence[Row], beta: float, gamma: float) -> float:
    of_rows = [1 - pearson(p, q) for p, q in zip(ps, qs, strict=True)]
    of_classes = [1 - pearson(p, q) for p, q in zip(zip(*ps, strict=True), zip(*qs, strict=True), strict=True)]
    return beta * sum(of_rows) / len(of_rows) + gamma * sum(of_classes) / len(of_classes)


def standard(logits: Row) -> list[float]:
    mean = sum(logits) / len(logits)
    deviation = math.sqrt(sum((z - mean) ** 2 for z in logits) / (len(logits) - 1))
    return [(z - mean) / deviation for z in logits]


def by_row(of_row: Callable[[Row, Row], float]) -> Callable[[Any, Any, float], float]:
    """The mean over rows of what a loop gives for two distributions, times T squared."""

    def loop(student: Sequence[Row], teacher: Sequence[Row], temperature: float) -> float:
        pairs = zip(student, teacher, strict=True)
        losses = [of_row(softmax(t, temperature), softmax(s, temperature)) for s, t in pairs]
        return temperature**2 * sum(losses) / len(losses)

    return loop


LABELS = [1, -100, 4]
"""Of three rows; the second has none."""


def dkd_loop(student: Sequence[Row], teacher: Sequence[Row], temperature: float) -> float:
    losses = []
    for s, t, label in zip(student, teacher, LABELS, strict=True):
        target = label if label >= 0 else max(range(len(t)), key=lambda c: t[c])
        losses.append(dkd_of(softmax(t, temperature), softmax(s, temperature), target, 0.7, 3.0))
    return temperature**2 * sum(losses) / len(losses)


def dist_loop(student: Sequence[Row], teacher: Sequence[Row], temperature: float) -> float:
    sides = ([softmax(row, temperature) for row in side] for side in (teacher, student))
    return temperature**2 * dist_of(*sides, 2.0, 0.5)


def sigmoid_loop(student: Sequence[Row], teacher: Sequence[Row], temperature: float) -> float:
    total, count = 0.0, 0
    for own, taught in zip(student, teacher, strict=True):
        for z_s, z_t in zip(own, taught, strict=True):
            s, t = (1 / (1 + math.exp(-z / temperature)) for z in (z_s, z_t))
            total -= t * math.log(s) + (1 - t) * math.log(1 - s)
            count += 1
    return temperature**2 * total / count


def regression_loop(student: Sequence[Row], teacher: Sequence[Row], temperature: float) -> float:
    del temperature
    squares = [
        (a - b) ** 2 for own, taught in zip(student, teacher, strict=True) for a, b in zip(own, taught, strict=True)
    ]
    return sum(squares) / len(squares)


def mse_loop(student: Sequence[Row], teacher: Sequence[Row], temperature: float) -> float:
    return regression_loop(student, teacher, temperature) / temperature**2


def tvd_loop(student: Sequence[Row], teacher: Sequence[Row], temperature: float) -> float:
    return by_row(tvd_of)(student, teacher, temperature) / temperature**2


def entropy_of(p: Row, q: Row) -> float:
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


LOOPS: dict[str, tuple[Loss, dict[str, Any], Callable[[Any, Any, float], float]]] = {
    "ce": (ce, {"t_squared": True}, by_row(entropy_of)),
    "kl": (kl, {}, by_row(kl_of)),
    "mse": (mse, {}, mse_loop),
    "reverse_kl": (reverse_kl, {}, by_row(lambda p, q: kl_of(q, p))),
    "jsd": (jsd, {}, by_row(lambda p, q: jsd_of(p, q, 0.5))),
    "jsd(0.1)": (jsd, {"beta": 0.1}, by_row(lambda p, q: jsd_of(p, q, 0.1))),
    "jsd(0.8, normalised)": (
        jsd,
        {"beta": 0.8, "normalise": True},
        by_row(lambda p, q: normalised_jsd_of(p, q, 0.8)),
    ),
    "skew_kl": (skew_kl, {}, by_row(lambda p, q: kl_of(p, mixed(p, q, 0.1)))),
    "skew_kl(0.9)": (skew_kl, {"alpha": 0.9}, by_row(lambda p, q: kl_of(p, mixed(p, q, 0.9)))),
    "skew_reverse_kl": (skew_reverse_kl, {}, by_row(lambda p, q: kl_of(q, mixed(q, p, 0.1)))),
    "adaptive_kl": (adaptive_kl, {}, by_row(lambda p, q: adaptive_of(p, q, 0.5))),
    "adaptive_kl(0.8)": (adaptive_kl, {"head_mass": 0.8}, by_row(lambda p, q: adaptive_of(p, q, 0.8))),
    "tvd": (tvd, {}, tvd_loop),
    "dkd": (dkd, {"labels": torch.tensor(LABELS), "alpha": 0.7, "beta": 3.0}, dkd_loop),
    "dist": (dist, {"beta": 2.0, "gamma": 0.5}, dist_loop),
    "sigmoid": (sigmoid, {}, sigmoid_loop),
    "regression_mse": (regression_mse, {}, regression_loop),
    "top_k_kl": (top_k_kl, {"k": 2}, by_row(lambda p, q: top_k_of(p, q, 2, tail=True))),
    "top_k_kl(no tail)": (top_k_kl, {"k": 3, "tail": False}, by_row(lambda p, q: top_k_of(p, q, 3, tail=False))),
}
EVERY = pytest.mark.parametrize("name", LOOPS)


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gradient(loss: Loss, student: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    value = loss(leaf, *arguments, **options)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def test_every_loss_has_a_loop() -> None:
    assert {name.partition("(")[0] for name in LOOPS} == set(brewer_kd_losses())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8), classes=st.integers(5, 9))
@EVERY
def test_each_loss_is_that_of_a_plain_loop(name: str, seed: int, temperature: float, classes: int) -> None:
    loss, options, loop = LOOPS[name]
    student, teacher = random(3, classes, seed=seed), random(3, classes, seed=seed + 1)
    expected = loop(student.tolist(), teacher.tolist(), temperature)
    assert float(loss(student, teacher, temperature, **options)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert float(loss(student.float(), teacher.float(), temperature, **options)) == pytest.approx(
        expected, rel=2e-4, abs=1e-5
    )


@EVERY
def test_each_loss_of_standardised_logits_is_that_of_a_plain_loop(name: str) -> None:
    loss, options, loop = LOOPS[name]
    student, teacher = random(3, 6, seed=1), random(3, 6, seed=2)
    expected = loop([standard(row) for row in student.tolist()], [standard(row) for row in teacher.tolist()], 2.0)
    assert float(loss(student, teacher, 2.0, standardise=True, **options)) == pytest.approx(expected, rel=1e-6)


# the weights of adaptive_kl have no gradient, so differences of it are others: its own test is below
@pytest.mark.parametrize("name", [name for name in LOOPS if not name.startswith("adaptive")])
@pytest.mark.parametrize("standardise", [False, True])
def test_each_gradient_is_that_of_differences(name: str, standardise: bool) -> None:
    loss, options, _ = LOOPS[name]
    student, teacher = random(3, 6, seed=3).requires_grad_(), random(3, 6, seed=4)

    temperature = torch.tensor([0.7, 1.0, 3.0], dtype=torch.float64)

    def of_student(own: Tensor) -> Tensor:
        return loss(own, teacher, temperature, standardise=standardise, **options)

    assert torch.autograd.gradcheck(of_student, student)


@EVERY
def test_three_axes_mean_the_same_as_their_positions_in_one_list(name: str) -> None:
    loss, options, _ = LOOPS[name]
    student, teacher, temperature = random(1, 3, 6, seed=5), random(1, 3, 6, seed=6), torch.rand(1, 3) + 1
    more = {**options, "labels": options["labels"].view(1, 3)} if "labels" in options else options
    torch.testing.assert_close(
        loss(student, teacher, temperature, **more),
        loss(student.flatten(0, 1), teacher.flatten(0, 1), temperature.flatten(), **options),
    )


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
@EVERY
def test_no_positions_give_0_with_a_graph(name: str, shape: tuple[int, ...]) -> None:
    loss, options, _ = LOOPS[name]
    more = {**options, "labels": torch.zeros(shape[:-1]).long()} if "labels" in options else options
    for standardise in (False, True):
        value, gradient = with_gradient(
            loss, torch.zeros(shape), torch.zeros(shape), torch.ones(shape[:-1]), standardise=standardise, **more
        )
        assert (float(value), gradient.shape) == (0.0, shape)


@EVERY
def test_low_precision_logits_are_reduced_in_float32(name: str) -> None:
    loss, options, _ = LOOPS[name]
    student, teacher = (random(3, 6, seed=seed).bfloat16() for seed in (7, 8))
    value = loss(student, teacher, 2.0, **options)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float(), 2.0, **options))


# By hand: softmax of the teacher (3/4, 1/4, 0+), of the student (1/2, 1/2, 0+)

TWO_BY_THREE = torch.tensor([[LN3, 0.0, -INF], [0.0, LN3, -INF]]), torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, -INF]])
FORWARD = LN2 - (math.log(4) - 0.75 * LN3)  # 3/4 log(3/2) + 1/4 log(1/2)
REVERSE = -LN3 / 2 + LN2  # 1/2 log(2/3) + 1/2 log 2


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        (kl, {}, FORWARD),
        (reverse_kl, {}, REVERSE),
        (jsd, {"beta": 0, "normalise": True}, FORWARD),
        (jsd, {"beta": 1, "normalise": True}, REVERSE),
        # M = (5/8, 3/8): half of 3/4 log(6/5) + 1/4 log(2/3), and of 1/2 log(4/5) + 1/2 log(4/3)
        (
            jsd,
            {},
            (0.75 * math.log(1.2) + 0.25 * math.log(2 / 3) + 0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)) / 2,
        ),
        (skew_kl, {"alpha": 0.5}, 0.75 * math.log(1.2) + 0.25 * math.log(2 / 3)),
        (skew_reverse_kl, {"alpha": 0.5}, 0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)),
        # the first class alone is the head; both gaps are 1/4, so each divergence counts half
        (adaptive_kl, {}, (FORWARD + REVERSE) / 2),
        (adaptive_kl, {"head_mass": 1.0}, FORWARD),
        (tvd, {}, 0.25),
        # of the target against the rest it is KL itself, and there is nothing among the others but one class
        (dkd, {"beta": 8.0}, FORWARD),
        (dkd, {"alpha": 0.5, "labels": torch.tensor([1, -100])}, FORWARD / 2),
        (top_k_kl, {"k": 1}, FORWARD),
        (top_k_kl, {"k": 1, "tail": False}, 0.0),
        (top_k_kl, {"k": 2, "tail": False}, FORWARD),
    ],
)
def test_two_rows_of_three_classes_by_hand_of_which_one_is_ruled_out(
    loss: Loss, options: dict[str, Any], expected: float
) -> None:
    teacher, student = TWO_BY_THREE
    value, gradient = with_gradient(loss, student, teacher, 1.0, **options)
    assert float(value) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert gradient.isfinite().all()
    assert gradient[:, 2].tolist() == [0, 0]


def test_dist_of_two_rows_by_hand() -> None:
    # rows (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4) of the teacher, and the same with rows exchanged of the student
    teacher, student = (torch.tensor([[LN2, 0, 0], [0, LN2, 0]]), torch.tensor([[0, LN2, 0], [LN2, 0, 0]]))
    # each row has (2/3, -1/3, -1/3) from its mean, times 1/4: correlation -1/2; two classes have -1, and the constant one none
    assert float(dist(student, teacher, 1.0, beta=1, gamma=0)) == pytest.approx(1.5)
    assert float(dist(student, teacher, 1.0, beta=0, gamma=1)) == pytest.approx((2 + 2 + 1) / 3)
    assert float(dist(student, teacher, 1.0)) == pytest.approx(1.5 + 5 / 3)


def test_sigmoid_by_hand_and_at_its_least_the_teachers_entropies() -> None:
    teacher = torch.tensor([[LN3, 0.0]])  # 3/4, 1/2
    assert float(sigmoid(torch.zeros(1, 2), teacher)) == pytest.approx(LN2)
    entropies = (math.log(4) - 0.75 * LN3 + LN2) / 2
    value, gradient = with_gradient(sigmoid, teacher, teacher)
    assert float(value) == pytest.approx(entropies)
    assert gradient.abs().max() < 1e-7


def test_mse_is_softened_and_regressions_are_not() -> None:
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [7.0]])
    assert float(regression_mse(student, teacher, 4.0)) == (1 + 16) / 2
    assert float(mse(student, teacher, 4.0)) == (1 + 16) / 2 / 16


# The ends of the generalised Jensen-Shannon divergence


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("beta", "end"), [(0, kl), (1, reverse_kl)])
def test_at_its_ends_the_normalised_jsd_is_bit_for_bit_the_kl_divergence(
    beta: float, end: Loss, dtype: torch.dtype
) -> None:
    student, teacher = random(4, 7, seed=1).to(dtype), random(4, 7, seed=2).to(dtype)
    found = with_gradient(jsd, student, teacher, 2.0, beta=beta, normalise=True)
    for own, expected in zip(found, with_gradient(end, student, teacher, 2.0), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("beta", [1e-12, 1e-9, 1e-6, 1e-3, 0.3, 0.999, 1 - 1e-6])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_the_normalised_jsd_keeps_its_digits_in_float32_for_tiny_parts(beta: float, scale: float) -> None:
    student, teacher = random(4, 7, seed=1, scale=scale).float(), random(4, 7, seed=2, scale=scale).float()
    value, gradient = with_gradient(jsd, student, teacher, 1.0, beta=beta, normalise=True)
    exact, slopes = with_gradient(jsd, student.double(), teacher.double(), 1.0, beta=beta, normalise=True)
    assert float(value) == pytest.approx(float(exact), rel=2e-5, abs=2e-7)
    torch.testing.assert_close(gradient.double(), slopes, rtol=1e-4, atol=1e-6 * float(slopes.abs().max()) + 1e-8)
    expected = by_row(lambda p, q: normalised_jsd_of(p, q, beta))(student.tolist(), teacher.tolist(), 1.0)
    if 1e-6 <= beta <= 0.999:  # beyond, the plain loop itself loses its digits
        assert float(exact) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("beta", "end"), [(1e-7, kl), (1 - 1e-7, reverse_kl)])
def test_the_normalised_jsd_tends_to_the_kl_divergences(beta: float, end: Loss) -> None:
    student, teacher = random(4, 7, seed=1), random(4, 7, seed=2)
    found = with_gradient(jsd, student, teacher, 1.0, beta=beta, normalise=True)
    for own, expected in zip(found, with_gradient(end, student, teacher, 1.0), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("beta", "which"), [(0, "forward"), (1, "reverse")])
def test_without_normalising_the_ends_are_refused(beta: int, which: str) -> None:
    with pytest.raises(RequestError) as error:
        jsd(random(2, 3), random(2, 3), beta=beta)
    assert str(error.value) == (
        f"jsd: at beta {beta} the loss is 0 for every student; set normalise to true, which makes it the {which} KL "
        "divergence there, or beta to a number between 0 and 1."
    )


@pytest.mark.parametrize(("skewed", "plain"), [(skew_kl, kl), (skew_reverse_kl, reverse_kl)])
def test_without_a_skew_the_skewed_divergences_are_the_plain_ones(skewed: Loss, plain: Loss) -> None:
    student, teacher = random(4, 7, seed=1), random(4, 7, seed=2)
    for own, expected in zip(
        with_gradient(skewed, student, teacher, 2.0, alpha=0), with_gradient(plain, student, teacher, 2.0), strict=True
    ):
        assert torch.equal(own, expected)


# Classes that are ruled out

ONE_SIDED = [
    (jsd, {}),
    (jsd, {"beta": 1e-6, "normalise": True}),
    (jsd, {"beta": 1 - 1e-6, "normalise": True}),
    (skew_kl, {}),
    (skew_kl, {"alpha": 0.9}),
    (skew_reverse_kl, {}),
    (skew_reverse_kl, {"alpha": 0.9}),
    (tvd, {}),
]


@pytest.mark.parametrize(("loss", "options"), ONE_SIDED)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_that_one_side_rules_out_leave_bounded_losses_right_and_finite(
    loss: Loss, options: dict[str, Any], temperature: float, dtype: torch.dtype
) -> None:
    student = torch.tensor([[0.0, 1.0, -INF, -INF], [-INF, 0.0, 1.0, -INF]], dtype=dtype)
    teacher = torch.tensor([[0.0, -INF, 1.0, -INF], [1.0, 0.0, 0.5, -INF]], dtype=dtype)
    value, gradient = with_gradient(loss, student, teacher, temperature, **options)
    low = [t.clamp(min=-900.0 * temperature).double() for t in (student, teacher)]
    expected, slopes = with_gradient(loss, low[0], low[1], temperature, **options)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(gradient.double(), slopes, rtol=1e-4, atol=1e-6)


def test_a_class_that_the_teacher_alone_rules_out_is_infinite_for_reverse_kl_and_none_at_all_for_kl() -> None:
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -INF]])
    assert float(reverse_kl(student, teacher)) == INF
    assert float(kl(student, teacher)) == pytest.approx(math.log(1.5))


def test_a_teacher_that_rules_out_all_but_the_target_has_nothing_to_say_about_the_others() -> None:
    teacher, student = torch.tensor([[0.0, -INF, -INF]]), torch.tensor([[1.0, 2.0, 3.0]])
    value, gradient = with_gradient(dkd, student, teacher, labels=torch.tensor([0]), beta=5.0)
    assert float(value) == pytest.approx(float(kl(student, teacher)))
    assert gradient.isfinite().all()


def test_a_target_that_the_teacher_rules_out_leaves_dkd_finite() -> None:
    teacher, student = torch.tensor([[-INF, 0.0, LN3]]), torch.tensor([[0.0, 0.0, 0.0]])
    value, gradient = with_gradient(dkd, student, teacher, labels=torch.tensor([0]), beta=2.0)
    assert float(value) == pytest.approx(math.log(1.5) + 2 * FORWARD, rel=1e-6)
    assert gradient.isfinite().all()


def test_a_part_of_dkd_without_weight_is_not_computed_and_so_not_infinite() -> None:
    teacher, student = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -INF]])
    target = torch.tensor([0])
    value, gradient = with_gradient(dkd, student, teacher, labels=target, beta=0)
    assert float(value) == pytest.approx(kl_of([1 / 3, 2 / 3], [1 / 2, 1 / 2]), rel=1e-6)
    assert gradient.isfinite().all()
    value, _ = with_gradient(dkd, torch.tensor([[-INF, 0.0, LN3]]), teacher, labels=target, alpha=0, beta=2.0)
    assert float(value) == pytest.approx(2 * kl_of([0.5, 0.5], [0.25, 0.75]), rel=1e-6)


def test_dkd_of_two_weights_of_0_is_refused() -> None:
    with pytest.raises(RequestError) as error:
        dkd(random(2, 3), random(2, 3), alpha=0, beta=0)
    assert str(error.value) == (
        "dkd: with alpha 0 and beta 0 the loss is 0 for every student; give one of them a weight."
    )


def test_squared_errors_and_sigmoids_of_classes_that_both_rule_out_are_0() -> None:
    student, teacher = torch.tensor([[1.0, -INF]]), torch.tensor([[3.0, -INF]])
    for loss, expected in ((mse, 2.0), (regression_mse, 2.0)):
        value, gradient = with_gradient(loss, student, teacher)
        assert (float(value), gradient.tolist()) == (expected, [[-2.0, 0.0]])
    value, gradient = with_gradient(sigmoid, student, teacher)
    assert float(value) == pytest.approx(float(sigmoid(student[:, :1], teacher[:, :1])) / 2)
    assert gradient[0, 1] == 0
    assert float(sigmoid(torch.tensor([[-INF]]), torch.tensor([[0.0]]))) == INF


def test_a_class_that_is_ruled_out_everywhere_has_no_correlation_and_no_gradient() -> None:
    student, teacher = random(4, 3, seed=1), random(4, 3, seed=2)
    wide = [torch.nn.functional.pad(t, (0, 1), value=-INF) for t in (student, teacher)]
    value, gradient = with_gradient(dist, wide[0], wide[1], beta=0)
    assert float(value) == pytest.approx((3 * float(dist(student, teacher, beta=0)) + 1) / 4)
    assert gradient[:, 3].tolist() == [0] * 4
    assert gradient.isfinite().all()


def test_the_correlation_of_unlikely_classes_does_not_underflow() -> None:
    student, teacher = random(5, 4, seed=1).float(), random(5, 4, seed=2).float()
    student[:, 0] -= 120
    teacher[:, 0] -= 120
    value, gradient = with_gradient(dist, student, teacher)
    exact, slopes = with_gradient(dist, student.double(), teacher.double())
    assert float(value) == pytest.approx(float(exact), rel=1e-4)
    torch.testing.assert_close(gradient.double(), slopes, rtol=1e-3, atol=1e-5)


def test_dist_of_one_position_has_only_the_correlation_of_its_classes() -> None:
    student, teacher = random(1, 5, seed=1), random(1, 5, seed=2)
    one = float(dist(student, teacher, gamma=0))
    assert float(dist(student, teacher)) == pytest.approx(one + 1)


# Standardised logits


def test_standardised_logits_of_a_plain_number_more_or_a_factor_are_the_same() -> None:
    student, teacher = random(3, 6, seed=1).float(), random(3, 6, seed=2).float()
    expected = kl(student, teacher, 2.0, standardise=True)
    torch.testing.assert_close(
        kl(7 * student - 300, teacher / 50 + 20, 2.0, standardise=True), expected, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("lowest", [-1e30, torch.finfo(torch.bfloat16).min, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("loss", [ce, kl, reverse_kl, jsd, skew_kl, adaptive_kl, tvd, dkd, dist, mse, sigmoid])
def test_the_least_number_of_a_type_rules_a_class_out_of_standardised_logits(loss: Loss, lowest: float) -> None:
    impossible = torch.tensor([False, True, False, False, True])
    student, teacher = (random(3, 5, seed=seed).float() for seed in (1, 2))
    found, expected = (
        with_gradient(
            loss, *(side.masked_fill(impossible, filling) for side in (student, teacher)), 2.0, standardise=True
        )
        for filling in (lowest, -INF)
    )
    assert torch.isfinite(found[0])
    torch.testing.assert_close(found, expected)


def test_standardised_logits_have_all_digits_of_float64() -> None:
    z = standardised(random(3, 7))
    torch.testing.assert_close(z.std(-1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(z.mean(-1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1, -3e4])
def test_constant_logits_are_standardised_to_0(constant: float) -> None:
    teacher = random(2, 6).float()
    value, gradient = with_gradient(kl, torch.full((2, 6), constant), teacher, 1.0, standardise=True)
    torch.testing.assert_close(value, kl(torch.zeros(2, 6), teacher, 1.0, standardise=True))
    assert float(gradient.abs().max()) < 1


def test_ruled_out_classes_count_in_neither_mean_nor_deviation() -> None:
    student, teacher = random(3, 6, seed=1), random(3, 6, seed=2)
    wide = [torch.nn.functional.pad(t, (0, 2), value=-INF) for t in (student, teacher)]
    found, expected = (
        with_gradient(kl, *pair, 2.0, standardise=True) for pair in ((wide[0], wide[1]), (student, teacher))
    )
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:, :6], expected[1])
    assert not bool(found[1][:, 6:].any())


def test_one_class_alone_cannot_be_standardised() -> None:
    with pytest.raises(ShapeError) as error:
        regression_mse(torch.zeros(3, 1), torch.zeros(3, 1), standardise=True)
    assert str(error.value) == (
        "logits (3, 1) have one class, and standardise needs two or more; set standardise to false."
    )


# Gradients that the formula does not tell


def test_the_weights_of_adaptive_kl_have_no_gradient() -> None:
    student, teacher = random(1, 6, seed=1), random(1, 6, seed=2)
    p, q = softmax(teacher[0].tolist(), 1.0), softmax(student[0].tolist(), 1.0)
    (forward, ahead), (reverse, behind) = (with_gradient(each, student, teacher) for each in (kl, reverse_kl))
    weight = (adaptive_of(p, q, 0.5) - float(reverse)) / float(forward - reverse)
    _, gradient = with_gradient(adaptive_kl, student, teacher)
    torch.testing.assert_close(gradient, weight * ahead + (1 - weight) * behind)


def test_a_head_of_all_classes_makes_adaptive_kl_the_kl_divergence() -> None:
    student, teacher = random(50, 6, seed=1, scale=9), random(50, 6, seed=2, scale=9)
    for dtype in (torch.float32, torch.float64):
        of_head = with_gradient(adaptive_kl, student.to(dtype), teacher.to(dtype), 2.0, head_mass=1)
        torch.testing.assert_close(of_head, with_gradient(kl, student.to(dtype), teacher.to(dtype), 2.0))


@pytest.mark.parametrize("loss", [kl, reverse_kl, skew_kl, skew_reverse_kl, adaptive_kl, tvd, dkd, regression_mse])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(loss: Loss) -> None:
    teacher = random(4, 6).float()
    value, gradient = with_gradient(loss, teacher, teacher, 2.0)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert float(gradient.abs().max()) == pytest.approx(0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0.01, 0.99))
def test_bounded_losses_stay_in_their_bounds(seed: int, alpha: float) -> None:
    student, teacher = random(3, 7, seed=seed, scale=9), random(3, 7, seed=seed + 1, scale=9)
    for loss, options, most in (
        (jsd, {"beta": alpha}, LN2),
        (skew_kl, {"alpha": alpha}, -math.log(alpha)),
        (skew_reverse_kl, {"alpha": alpha}, -math.log(alpha)),
        (tvd, {}, 1.0),
        (dist, {}, 4.0),
    ):
        assert -1e-9 <= float(loss(student, teacher, **options)) <= most + 1e-9


# Labels of dkd


def test_without_labels_the_teachers_likely_class_is_the_target() -> None:
    student, teacher = random(3, 6, seed=1), random(3, 6, seed=2)
    likely = teacher.argmax(-1)
    assert torch.equal(dkd(student, teacher, 2.0), dkd(student, teacher, 2.0, labels=likely))
    unlabelled = torch.full((3,), -100)
    assert torch.equal(dkd(student, teacher, 2.0), dkd(student, teacher, 2.0, labels=unlabelled))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.zeros(2).long(), "(2,) (int64)"),
        (torch.zeros(3, 6), "(3, 6) (float32)"),
        (torch.zeros(3), "(3,) (float32)"),
    ],
)
def test_labels_that_are_no_classes_of_positions_are_refused(labels: Tensor, told: str) -> None:
    with pytest.raises(ShapeError) as error:
        dkd(random(3, 6), random(3, 6), labels=labels)
    assert str(error.value) == (
        f"dkd: labels {told} do not belong to logits (3, 6); give each position the number of its class, or -100 where it has none."
    )


# Sparse logits

SPARSE = {
    name: LOOPS[name]
    for name in LOOPS
    if name.partition("(")[0]
    in ("ce", "kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "adaptive_kl", "tvd", "top_k_kl")
}


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_with_all_classes_kept_value_and_gradient_are_those_of_the_tensor(name: str, temperature: float) -> None:
    loss, options, _ = LOOPS[name]
    student, teacher = random(2, 3, 9, seed=1), random(2, 3, 9, seed=2)
    found = with_gradient(loss, student, SparseLogits.top_k(teacher, 9), temperature, **options)
    for own, whole in zip(found, with_gradient(loss, student, teacher, temperature, **options), strict=True):
        torch.testing.assert_close(own, whole)


@pytest.mark.parametrize("name", [name for name in SPARSE if not name.startswith(("top_k", "adaptive"))])
def test_what_is_not_kept_is_one_class_more_of_a_plain_loop(name: str) -> None:
    loss, options, loop = LOOPS[name]
    student, teacher = random(3, 9, seed=1), random(3, 9, seed=2)
    kept = SparseLogits.top_k(teacher, 4)
    bucketed = []
    for side in (student, teacher):
        rows = []
        for row, indices in zip(side.tolist(), kept.indices.tolist(), strict=True):
            p = softmax(row, 1.0)
            some = [p[c] for c in indices]
            rows.append([math.log(a) for a in (*some, 1 - sum(some))])
        bucketed.append(rows)
    assert float(loss(student, kept, 1.0, **options)) == pytest.approx(loop(*bucketed, 1.0), rel=1e-6)


def test_all_that_is_not_kept_is_the_last_of_the_tail_of_adaptive_kl() -> None:
    p, q = [0.3, 0.1, 0.6], [0.2, 0.2, 0.6]  # two classes that are kept, and all others together
    kept = SparseLogits(torch.tensor([[5, 2]]), torch.tensor([p[:2]]).log(), torch.tensor([p[2]]).log(), 6)
    student = torch.full((1, 6), q[2] / 4)
    student[0, 5], student[0, 2] = q[0], q[1]
    # the head is the first class and the second, 0.4 together, with a gap of 0.2; the tail has none
    assert float(adaptive_kl(student.log(), kept)) == pytest.approx(kl_of(p, q), rel=1e-5)


@pytest.mark.parametrize("tail", [True, False])
def test_fewer_classes_than_are_kept_are_those_of_the_tensor_at_a_temperature_of_1(tail: bool) -> None:
    student, teacher = random(3, 9, seed=1), random(3, 9, seed=2)
    for own, whole in zip(
        with_gradient(top_k_kl, student, SparseLogits.top_k(teacher, 5), k=3, tail=tail),
        with_gradient(top_k_kl, student, teacher, k=3, tail=tail),
        strict=True,
    ):
        torch.testing.assert_close(own, whole)


def test_of_all_classes_top_k_kl_is_kl() -> None:
    student, teacher = random(3, 9, seed=1), random(3, 9, seed=2)
    for k in (9, 100):
        torch.testing.assert_close(top_k_kl(student, teacher, 2.0, k=k), kl(student, teacher, 2.0))


@pytest.mark.parametrize("tail", [True, False])
def test_a_student_that_rules_out_all_that_the_teacher_finds_likely_is_infinitely_far(tail: bool) -> None:
    teacher, student = torch.tensor([[3.0, 2.0, 0.0, -1.0]]), torch.tensor([[-INF, -INF, 1.0, 0.0]])
    assert float(top_k_kl(student, teacher, k=2, tail=tail)) == INF


DRAWN = SparseLogits.sampled(random(3, 9), 5, torch.Generator().manual_seed(0))
TOP = SparseLogits.top_k(random(3, 9), 4)


@pytest.mark.parametrize("loss", [reverse_kl, jsd, skew_kl, skew_reverse_kl, adaptive_kl, tvd, top_k_kl])
def test_draws_are_refused_by_all_but_ce_and_kl(loss: Loss) -> None:
    options = {"k": 2} if loss is top_k_kl else {}
    with pytest.raises(RequestError) as error:
        loss(random(3, 9), DRAWN, **options)
    assert str(error.value) == (
        f"`{loss.__name__}` needs the teacher's probabilities, and the cache keeps at most 5 of 9 of them (sampled); "
        "use ce or kl, or keep them as top_k or dense."
    )


@pytest.mark.parametrize("loss", [ce, kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, adaptive_kl, tvd, top_k_kl])
def test_some_of_the_logits_cannot_be_standardised(loss: Loss) -> None:
    options = {"k": 2} if loss is top_k_kl else {}
    with pytest.raises(RequestError) as error:
        loss(random(3, 9), TOP, standardise=True, **options)
    assert str(error.value) == (
        f"`{loss.__name__}` needs all of the teacher's logits for their mean, and the cache keeps 4 of 9 of them (top_k); "
        "set standardise to false, or keep them dense."
    )


@pytest.mark.parametrize("loss", [dkd, dist, mse, regression_mse, sigmoid])
def test_losses_of_all_logits_refuse_some_of_them_in_a_script(loss: Loss) -> None:
    for kept, told in ((TOP, "4 of 9 of them (top_k)"), (DRAWN, "at most 5 of 9 of them (sampled)")):
        with pytest.raises(RequestError) as error:
            loss(random(3, 9), kept)
        assert str(error.value) == (
            f"`{loss.__name__}` needs all of the teacher's logits, and the cache keeps {told}; keep them dense."
        )


def test_more_classes_than_are_kept_are_refused() -> None:
    with pytest.raises(RequestError) as error:
        top_k_kl(random(3, 9), TOP, k=6)
    assert str(error.value) == (
        "`top_k_kl` needs the 6 most likely classes, and the cache keeps 4 of 9 of them (top_k); set k to 4 or less, keep 6, or "
        "keep them dense."
    )
