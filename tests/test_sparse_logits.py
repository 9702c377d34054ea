"""Sparse logits of a teacher: what is kept, what losses make of it, and what refuses it with which words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brewer_builtins.ensembles import averaged
from brewer_builtins.kd_losses import ce, kl
from brewer_builtins.strategies import General, MultiTask, MultiTeacher
from brewer_core import (
    DistillationConfig,
    Feature,
    Features,
    Kept,
    ModelInfo,
    RequestError,
    ShapeError,
    SparseLogits,
    component,
    default_registry,
)
from brewer_core.engine import Duration, Engine
from brewer_core.errors import ConfigError
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.protocols import Step
from brewer_core.teachers import LiveTeacher
from tiny import Tiny, adaptor, batches, table, weights

B, L, V = 2, 4, 9
LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
START = Step(0, 10)
BOTH = pytest.mark.parametrize("loss", [ce, kl])
TOP_2 = Kept("top_k", 2, 9)
DRAWN = Kept("sampled", 5, 9)


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(logits: Tensor, draws: int, seed: int = 0) -> SparseLogits:
    return SparseLogits.sampled(logits, draws, torch.Generator().manual_seed(seed))


def with_gradient(loss: Callable[..., Tensor], student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    value = loss(leaf, *arguments)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def sparse(teacher: SparseLogits, **more: Tensor) -> Features:
    """A teacher's features with sparse logits, as a cache gives them."""
    axes = "B C" if teacher.dim() == 2 else "B L V"
    return Features({"logits": Feature((teacher,), axes), **{n: Feature((t,), "B L") for n, t in more.items()}})


def objective(**distillation: Any) -> Objective:
    return Objective.from_config(DistillationConfig(**distillation), default_registry())


def buckets(logits: list[float], kept: list[int], temperature: float) -> list[float]:
    """The probabilities of the kept classes and of all others as one, at a temperature, in plain numbers."""
    total = sum(map(math.exp, logits))
    masses = [math.exp(logits[i]) / total for i in kept]
    others = len(logits) - len(kept)
    tail = sum(math.exp(z) / total for i, z in enumerate(logits) if i not in kept)
    powers = [mass ** (1 / temperature) for mass in masses]
    powers += [others * (tail / others) ** (1 / temperature)] if others else []
    return [power / sum(powers) for power in powers]


# What is kept


def test_top_k_keeps_log_probabilities_and_the_mass_of_the_others() -> None:
    kept = SparseLogits.top_k(torch.tensor([[0.0, LN4, LN2, 0.0]]), 2)  # 1/8, 4/8, 2/8, 1/8
    assert kept.indices.tolist() == [[1, 2]]
    assert kept.logits.exp().tolist() == [pytest.approx([0.5, 0.25])]
    assert kept.log_tail is not None
    assert kept.log_tail.exp().tolist() == pytest.approx([0.25])
    assert (kept.size, kept.kept) == (4, Kept("top_k", 2, 4))


def test_the_mass_of_the_others_keeps_its_digits_where_it_is_tiny() -> None:
    kept = SparseLogits.top_k(torch.tensor([[50.0, 0.0, 0.0, 0.0]]), 1)
    assert kept.log_tail is not None
    assert float(kept.log_tail) == pytest.approx(LN3 - 50, rel=1e-6)


@pytest.mark.parametrize("k", [4, 9])
def test_where_all_classes_are_kept_the_others_have_nothing(k: int) -> None:
    kept = SparseLogits.top_k(random(3, 4), k)
    assert kept.indices.shape == (3, 4)
    assert kept.log_tail is not None
    assert kept.log_tail.tolist() == [-math.inf] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = random(2, 50).to(dtype)
    low, high = SparseLogits.top_k(logits, 5), SparseLogits.top_k(logits.float(), 5)
    assert low.logits.dtype == torch.float32
    assert torch.equal(low.logits, high.logits)


def test_equal_draws_are_merged_with_how_often_they_came() -> None:
    teacher = torch.tensor([[0.0, -math.inf, LN3, -math.inf]])  # 1/4, 0, 3/4, 0
    kept = drawn(teacher, 1000)
    assert kept.indices.tolist() == [[0, 2, 0, 0]]
    assert kept.log_tail is None
    counts = kept.logits.exp().round()[0].tolist()
    assert (sum(counts), counts[2:]) == (1000, [0, 0])
    assert counts[1] / 1000 == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 1000))


def test_used_slots_come_first_and_there_are_no_more_than_draws_or_classes() -> None:
    kept = drawn(random(B, L, 30), 12)
    assert kept.indices.shape == (B, L, 12)
    used = kept.logits > -math.inf
    assert bool((used.long().diff(dim=-1) <= 0).all())
    assert kept.logits.exp().sum(-1).tolist() == [[pytest.approx(12)] * L] * B
    assert drawn(random(B, 3), 12).indices.shape == (B, 3)


def test_the_same_generator_draws_the_same() -> None:
    teacher = random(3, 30)
    assert torch.equal(drawn(teacher, 5, seed=1).indices, drawn(teacher, 5, seed=1).indices)
    assert not torch.equal(drawn(teacher, 5, seed=1).indices, drawn(teacher, 5, seed=2).indices)


def test_a_class_without_probability_is_never_drawn() -> None:
    teacher = torch.full((200, 40), -math.inf)
    teacher[:, 7] = teacher[:, 31] = 0
    kept = drawn(teacher, 50)
    assert set(kept.indices[kept.logits > -math.inf].tolist()) == {7, 31}


@pytest.mark.parametrize(
    ("make", "name"), [(lambda: SparseLogits.top_k(random(2, 3), 0), "k"), (lambda: drawn(random(2, 3), 0), "draws")]
)
def test_nothing_cannot_be_kept(make: Callable[[], SparseLogits], name: str) -> None:
    with pytest.raises(RequestError) as error:
        make()
    assert str(error.value) == f"{name}: 0 classes cannot be kept; keep 1 or more."


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ShapeError) as error:
        SparseLogits(torch.zeros(2, 3).long(), torch.zeros(2, 3), torch.zeros(3), 5)
    assert str(error.value) == (
        "sparse logits have indices (2, 3), logits (2, 3) and log_tail (3,); they must be [..., K], [..., K] and [...]."
    )
    with pytest.raises(ShapeError) as error:
        SparseLogits(torch.zeros(2, 3).long(), torch.zeros(2, 3), None, 2)
    assert str(error.value) == "sparse logits keep 3 of 2 classes; keep 1 to 2."


# As a tensor


@pytest.mark.parametrize("make", [lambda t: SparseLogits.top_k(t, 3), lambda t: drawn(t, 5)])
def test_they_have_the_shape_of_what_they_stand_for(make: Callable[[Tensor], SparseLogits]) -> None:
    kept = make(random(B, L, V))
    assert (tuple(kept.shape), kept.dim(), kept.device) == ((B, L, V), 3, torch.device("cpu"))
    assert tuple(kept.flatten(0, 1).shape) == (B * L, V)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    chosen = kept[mask]
    assert tuple(chosen.shape) == (4, V)
    assert torch.equal(chosen.in_places(mask)[mask].indices, chosen.indices)
    assert tuple(kept[1:].shape) == (1, L, V)
    assert torch.equal(kept.to("cpu", non_blocking=True).detach().logits, kept.logits)


def test_features_take_them_for_tensors() -> None:
    kept = SparseLogits.top_k(random(B, L, V), 3)
    low = SparseLogits(kept.indices, kept.logits.half(), kept.log_tail.half(), V)  # type: ignore[union-attr]  # top_k has a tail
    features = sparse(low, logits_mask=torch.ones(B, L)).to(torch.device("cpu")).float()
    (made,) = features["logits"]
    assert isinstance(made, SparseLogits)
    assert (made.logits.dtype, made.log_tail.dtype, made.indices.dtype) == (torch.float32, torch.float32, torch.int64)
    assert repr(features) == "Features({'logits': [(2, 4, 9)], 'logits_mask': [(2, 4)]})"
    assert ModelInfo.of("teacher", features).width("logits", 0) == V
    wide = SparseLogits(kept.indices, kept.logits.double(), kept.log_tail.double(), V)  # type: ignore[union-attr]
    assert sparse(wide).float()["logits"][0].logits.dtype == torch.float64


# Storage


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@BOTH
def test_a_round_trip_through_storage_costs_the_rounding_of_its_type(
    dtype: torch.dtype, loss: Callable[..., Tensor]
) -> None:
    student, kept = random(B, L, V, seed=1), SparseLogits.top_k(random(B, L, V), 4)
    stored = {n: t.to(dtype) if t.is_floating_point() else t.to(torch.uint16) for n, t in kept.storage().items()}
    back = SparseLogits.of_storage(stored, V)
    assert (stored["indices"].dtype, back.indices.dtype) == (torch.uint16, torch.int64)
    assert torch.equal(back.indices, kept.indices)
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 0}[dtype]
    assert float(loss(student, back, 1.0)) == pytest.approx(float(loss(student, kept, 1.0)), abs=tolerance)


def test_draws_are_stored_as_counts_without_any_loss() -> None:
    student, kept = random(B, L, V, seed=1), drawn(random(B, L, V), 7)
    stored = kept.storage()
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == {
        "indices": (torch.int32, (B, L, 7)),
        "counts": (torch.int32, (B, L, 7)),
    }
    assert stored["counts"].sum(-1).tolist() == [[7] * L] * B
    small = {name: tensor.to(torch.uint8) for name, tensor in stored.items()}
    assert torch.equal(ce(student, SparseLogits.of_storage(small, V)), ce(student, kept))
    assert torch.equal(small["counts"], stored["counts"].to(torch.uint8))


@pytest.mark.parametrize("make", [lambda t: SparseLogits.top_k(t, 3), lambda t: drawn(t, 5)])
@BOTH
def test_padding_with_0_gives_finite_losses_that_a_mask_leaves_out(
    loss: Callable[..., Tensor], make: Callable[[Tensor], SparseLogits]
) -> None:
    student, kept = random(B, L, V, seed=1), make(random(B, L, V))
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    cut = {name: tensor.clone() for name, tensor in kept.storage().items()}
    for tensor in cut.values():
        tensor[~mask] = 0
    padded = SparseLogits.of_storage(cut, V)
    value, gradient = with_gradient(loss, student, padded)
    assert value.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(loss(student[mask], padded[mask]), loss(student[mask], kept[mask]))


def test_slots_at_the_end_that_no_position_uses_may_be_cut() -> None:
    teacher, student = torch.tensor([[0.0, 1.0, *[-50.0] * 7]] * 3), random(3, V)
    kept = drawn(teacher, 6)
    cut = {name: tensor[..., :2] for name, tensor in kept.storage().items()}
    torch.testing.assert_close(ce(student, SparseLogits.of_storage(cut, V)), ce(student, kept))


# top_k in the losses


def test_the_others_are_one_class_worked_by_hand() -> None:
    teacher = SparseLogits.top_k(torch.tensor([[LN4, LN2, 0.0, 0.0]]), 1)  # 1/2, and 1/2 for the others
    student = torch.tensor([[0.0, LN2, LN3, LN2]])  # 1/8, and 7/8 for the others
    cross_entropy = -0.5 * math.log(1 / 8) - 0.5 * math.log(7 / 8)
    assert float(ce(student, teacher, 1.0)) == pytest.approx(cross_entropy, rel=1e-6)
    assert float(kl(student, teacher, 1.0)) == pytest.approx(cross_entropy - LN2, rel=1e-6)


def test_at_another_temperature_the_others_count_as_equally_likely_worked_by_hand() -> None:
    teacher = SparseLogits.top_k(torch.tensor([[LN4, LN2, 0.0, 0.0, 0.0]]), 1)  # 4/9, and 5/9 for four others
    student = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0]])
    roots = [math.sqrt(4 / 9), 4 * math.sqrt(5 / 9 / 4)]  # at a temperature of 2
    p = [root / sum(roots) for root in roots]
    expected = -p[0] * math.log(1 / 5) - p[1] * math.log(4 / 5)
    assert float(ce(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, V), temperature=st.floats(0.3, 8), by_position=st.booleans())
def test_losses_of_the_most_likely_classes_are_those_of_a_plain_loop(
    seed: int, k: int, temperature: float, by_position: bool
) -> None:
    student, teacher = random(3, V, seed=seed).double(), random(3, V, seed=seed + 1).double()
    given_temperature = torch.full((3,), temperature, dtype=torch.float64) if by_position else temperature
    kept = SparseLogits.top_k(teacher, k)
    cross, divergence = 0.0, 0.0
    for own, other, indices in zip(student.tolist(), teacher.tolist(), kept.indices.tolist(), strict=True):
        p, q = buckets(other, indices, temperature), buckets(own, indices, temperature)
        cross -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 3
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    assert float(ce(student, kept, given_temperature)) == pytest.approx(cross, abs=1e-8)
    assert float(kl(student, kept, given_temperature)) == pytest.approx(temperature**2 * divergence, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from([(3, V), (B, L, V)]), temperature=st.floats(0.3, 8))
@BOTH
def test_with_all_classes_kept_value_and_gradient_are_those_of_the_tensor(
    loss: Callable[..., Tensor], seed: int, shape: tuple[int, ...], temperature: float
) -> None:
    student, teacher = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    found = with_gradient(loss, student, SparseLogits.top_k(teacher, V), temperature)
    for own, whole in zip(found, with_gradient(loss, student, teacher, temperature), strict=True):
        torch.testing.assert_close(own, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_a_student_that_agrees_has_no_loss_and_no_gradient_at_any_temperature(temperature: float) -> None:
    teacher = random(4, 200)
    value, gradient = with_gradient(kl, teacher, SparseLogits.top_k(teacher, 5), temperature)
    assert float(value) == pytest.approx(0, abs=1e-5)
    assert float(gradient.abs().max()) < 1e-6


def test_the_more_classes_are_kept_the_more_of_the_divergence_is_seen() -> None:
    student, teacher = random(5, 40, seed=1), random(5, 40)
    divergences = [float(kl(student, SparseLogits.top_k(teacher, k), 1.0)) for k in (1, 5, 20, 40)]
    assert divergences == sorted(divergences)  # merging classes never adds to a divergence
    assert divergences[-1] == pytest.approx(float(kl(student, teacher, 1.0)), rel=1e-5)


SURE = [1e4, *[-1e4] * (V - 1)]
RULED_OUT = [0.0, 1.0, *[-math.inf] * (V - 2)]


@pytest.mark.parametrize("k", [1, 2, 3, V])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (SURE, SURE),
        (SURE, SURE[::-1]),
        (SURE, [0.0] * V),
        ([0.0] * V, SURE),
        ([0.0] * V, RULED_OUT),
        (RULED_OUT, RULED_OUT),
        ([3e4] * V, [-3e4] * V),
    ],
)
@BOTH
def test_extremes_give_finite_losses_and_gradients(
    loss: Callable[..., Tensor], student: list[float], teacher: list[float], temperature: float, k: int
) -> None:
    if student is RULED_OUT and k == 1:
        teacher = student = [0.0, -math.inf, *[-math.inf] * (V - 2)]
    value, gradient = with_gradient(
        loss, torch.tensor([student]), SparseLogits.top_k(torch.tensor([teacher]), k), temperature
    )
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_a_student_that_rules_out_what_the_teacher_allows_has_an_infinite_loss_as_with_all_logits() -> None:
    student = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert float(kl(student, SparseLogits.top_k(torch.zeros(1, 3), 1), 1.0)) == math.inf
    assert float(kl(student, torch.zeros(1, 3), 1.0)) == math.inf


def test_classes_that_are_not_kept_get_a_gradient_too() -> None:
    student, teacher = random(2, V, seed=1), random(2, V)
    _, gradient = with_gradient(ce, student, SparseLogits.top_k(teacher, 2))
    assert bool((gradient != 0).all())
    assert gradient.sum(-1).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_t_squared_multiplies_losses_of_sparse_logits_as_well() -> None:
    student, teacher = random(3, V, seed=1), SparseLogits.top_k(random(3, V), 3)
    temperatures = torch.tensor([1.0, 2.0, 5.0])
    by_hand = sum(t**2 * ce(student[[i]], teacher[i : i + 1], float(t)) for i, t in enumerate(temperatures)) / 3
    torch.testing.assert_close(ce(student, teacher, temperatures, t_squared=True), by_hand)


@BOTH
def test_the_teacher_gets_no_gradient(loss: Callable[..., Tensor]) -> None:
    teacher = random(3, V).requires_grad_()
    assert not SparseLogits.top_k(teacher, 3).logits.requires_grad
    assert not drawn(teacher, 3).logits.requires_grad
    kept = SparseLogits.top_k(random(3, V), 3)
    leaf = kept.logits.clone().requires_grad_()
    loss(random(3, V, seed=1).requires_grad_(), SparseLogits(kept.indices, leaf, kept.log_tail, V)).backward()
    assert leaf.grad is None


@BOTH
def test_sparse_logits_of_other_classes_or_positions_are_refused(loss: Callable[..., Tensor]) -> None:
    kept = SparseLogits.top_k(random(3, V), 2)
    with pytest.raises(ShapeError) as error:
        loss(random(3, V + 1), kept)
    assert str(error.value) == (
        "student logits are 10 wide and teacher logits 9; both models must predict the same classes or vocabulary."
    )
    with pytest.raises(ShapeError) as error:
        loss(random(4, V), kept)
    assert str(error.value) == (
        "student logits (4, 9) and teacher logits (3, 9) are not of the same positions; "
        "give both models the same batch and mask."
    )


@BOTH
@pytest.mark.parametrize("shape", [(0, V), (2, 0, V)])
def test_no_positions_give_0_with_a_graph(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    for kept in (SparseLogits.top_k(torch.zeros(shape), 2), drawn(torch.zeros(shape), 3)):
        value, gradient = with_gradient(loss, torch.zeros(shape), kept)
        assert (float(value), gradient.shape) == (0.0, shape)


# Draws in the losses


def test_the_cross_entropy_of_draws_is_that_of_their_weights_worked_by_hand() -> None:
    kept = SparseLogits(torch.tensor([[1, 3, 0]]), torch.tensor([[1.0, 3.0, 0.0]]).log(), None, 4)  # 1/4, 3/4
    student = torch.tensor([[0.0, LN2, LN4, 0.0]])  # 1/8, 2/8, 4/8, 1/8
    expected = -0.25 * math.log(2 / 8) - 0.75 * math.log(1 / 8)
    assert float(ce(student, kept)) == pytest.approx(expected, rel=1e-6)
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert float(kl(student, kept)) == pytest.approx(expected - entropy, rel=1e-6)


def test_over_draws_the_cross_entropy_and_its_gradient_have_the_mean_of_the_whole_distribution() -> None:
    repeats, student, teacher = 20_000, random(1, V, seed=1), random(1, V)
    kept = drawn(teacher.expand(repeats, V), 4)
    log_p, log_q = kept.compared_with(student.expand(repeats, V))
    losses = -(log_p.exp() * log_q).sum(-1)
    error = float(losses.std()) / math.sqrt(repeats)
    assert float(losses.mean()) == pytest.approx(float(ce(student, teacher)), abs=4 * error)
    # a position's gradient is q - w, whose mean is q - p where that of w is p
    weights = torch.zeros(repeats, V).scatter_add(-1, kept.indices, log_p.exp())
    errors = weights.std(0) / math.sqrt(repeats)
    assert bool(((weights.mean(0) - teacher.softmax(-1)[0]).abs() <= 4 * errors + 1e-6).all())
    _, whole = with_gradient(ce, student, teacher)
    for loss in (ce, kl):
        _, gradient = with_gradient(loss, student.expand(repeats, V), kept)
        assert bool(((gradient.sum(0) - whole[0]).abs() <= 4 * errors + 1e-6).all())


@pytest.mark.parametrize("temperature", [2.0, torch.tensor([1.0, 1.0, 2.0])])
@BOTH
def test_draws_are_refused_at_another_temperature(loss: Callable[..., Tensor], temperature: float | Tensor) -> None:
    with pytest.raises(RequestError) as error:
        loss(random(3, V), drawn(random(3, V), 5), temperature)
    assert str(error.value) == (
        "the teacher's classes were drawn at a temperature of 1 (sampled), and no loss of them is unbiased at another one; "
        "set the temperature to 1, or keep the logits as top_k or dense."
    )


@BOTH
def test_extremes_of_draws_give_finite_losses_and_gradients(loss: Callable[..., Tensor]) -> None:
    for teacher in (SURE, RULED_OUT, [0.0] * V):
        for student in (SURE, [0.0] * V):
            value, gradient = with_gradient(loss, torch.tensor([student]), drawn(torch.tensor([teacher]), 20))
            assert value.isfinite()
            assert gradient.isfinite().all()


# In the objective


@component(over="logits", sparse=True)
def masked_ce(student_logits: Any, teacher_logits: Any, temperature: Any, *, mask: Tensor) -> Tensor:
    return ce(
        student_logits[mask], teacher_logits[mask], temperature[mask] if torch.is_tensor(temperature) else temperature
    )


@pytest.mark.parametrize("loss", ["ce", "kl", masked_ce])
@pytest.mark.parametrize("scheduler", [None, ["cwsm", 1]])
@pytest.mark.parametrize("student_length", [L, L + 2])
def test_masks_of_either_side_are_used_as_with_all_logits(loss: Any, scheduler: Any, student_length: int) -> None:
    terms = objective(kd_loss_type=loss, temperature=2, temperature_scheduler=scheduler)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]])
    student_mask = mask if student_length == L else torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]])
    teacher, logits = random(B, L, V), random(B, student_length, V, seed=1)

    def answer(taught: Features) -> tuple[Tensor, Tensor]:
        def total(student: Tensor) -> Tensor:
            own = Features.of({"logits": student, "logits_mask": student_mask})
            return terms.kd_terms(own, taught, START)["kd_loss"]

        return with_gradient(total, logits)

    whole = answer(Features.of({"logits": teacher, "logits_mask": mask}))
    kept = answer(sparse(SparseLogits.top_k(teacher, V), logits_mask=mask))
    for own, other in zip(kept, whole, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)
    assert all(part.isfinite().all() for part in answer(sparse(SparseLogits.top_k(teacher, 2), logits_mask=mask)))


def test_logits_of_rows_without_a_mask_and_of_several_heads_are_compared() -> None:
    student, teacher = random(B, V, seed=1), random(B, V)
    heads = Features({"logits": Feature((SparseLogits.top_k(teacher, 3), SparseLogits.top_k(teacher, V)), "B C")})
    found = objective(temperature=1).kd_terms(Features.of({"logits": [student, student]}), heads, START)
    torch.testing.assert_close(
        found["kd_loss"], ce(student, SparseLogits.top_k(teacher, 3)) + ce(student, teacher), atol=1e-6, rtol=1e-5
    )


class Forgetful:
    """A teacher that keeps some of its logits, as a cache does."""

    def __init__(self, teacher: LiveTeacher, keep: Callable[[Tensor], SparseLogits]) -> None:
        self.teacher, self.keep = teacher, keep

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        whole = self.teacher.features(batch, needs)
        return whole.replace(logits=Feature(tuple(map(self.keep, whole["logits"])), whole.axes("logits")))


def trained(keep: Callable[[Tensor], SparseLogits] | None) -> dict[str, Tensor]:
    """The weights of a student after a short training on rows of logits."""
    learner = Learner(Tiny(4, 1, seed=1), adaptor("row_logits"), objective(kd_loss_type="kl", temperature=2), General())
    live = LiveTeacher(Tiny(4, 2, seed=2), adaptor("row_logits"), torch.device("cpu"))
    teacher = live if keep is None else Forgetful(live, keep)
    optimizer = torch.optim.SGD(learner.student.parameters(), lr=0.1)
    engine = Engine(learner, optimizer, device=torch.device("cpu"), teachers={"teacher": teacher})
    engine.train(batches(table(), [8]), Duration(steps=4))
    return weights(learner.student)


def test_a_training_on_sparse_logits_of_all_classes_is_that_on_all_logits() -> None:
    whole, kept, some = (
        trained(None),
        trained(lambda t: SparseLogits.top_k(t, t.shape[-1])),
        trained(lambda t: SparseLogits.top_k(t, 1)),
    )
    for name, weight in whole.items():
        torch.testing.assert_close(kept[name], weight, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(weight, some[name]) for name, weight in whole.items())


MSE = (
    "kd_loss_type: `mse` needs all of the teacher's logits, and the cache keeps 2 of 9 of them (top_k); "
    "use ce, kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, adaptive_kl, tvd or top_k_kl, or keep them dense"
)
FLSW = (
    "temperature_scheduler: `flsw` needs all of the teacher's logits, and the cache keeps 2 of 9 of them (top_k); "
    "use cwsm or none, or keep them dense"
)
SHIFT = (
    "probability_shift: it needs the teacher's logit of the true label, and the cache keeps 2 of 9 of them (top_k), "
    "the true one perhaps not among them; set it to false, or keep them dense"
)


@pytest.mark.parametrize(
    ("distillation", "kept", "problems"),
    [
        ({}, TOP_2, []),
        ({"temperature": 1}, DRAWN, []),
        ({"temperature_scheduler": ["cwsm", 1]}, TOP_2, []),
        ({"temperature_scheduler": "constant"}, TOP_2, []),
        ({"kd_loss_type": "mse"}, TOP_2, [MSE]),
        ({"temperature_scheduler": ["flsw", 1, 2]}, TOP_2, [FLSW]),
        ({"probability_shift": True}, TOP_2, [SHIFT]),
        (
            {"kd_loss_type": "mse", "temperature_scheduler": ["flsw", 1, 2], "probability_shift": True},
            TOP_2,
            [MSE, FLSW, SHIFT],
        ),
        (
            {"temperature": 4},
            DRAWN,
            [
                "temperature: the cache keeps at most 5 of 9 of them (sampled), drawn at a temperature of 1, and no loss of them "
                "is unbiased at another one, but it is 4; set it to 1, or keep them as top_k or dense"
            ],
        ),
        (
            {"temperature": 1, "temperature_scheduler": ["cwsm", 1]},
            Kept("sampled", 50),
            [
                "temperature_scheduler: the cache keeps at most 50 of them (sampled), drawn at a temperature of 1, and no loss of "
                "them is unbiased at another one, but `cwsm` may set another; leave it out, or keep them as top_k or dense"
            ],
        ),
    ],
)
def test_an_objective_says_what_stands_against_sparse_teachers(
    distillation: dict[str, Any], kept: Kept, problems: list[str]
) -> None:
    terms = objective(**distillation)
    assert terms.refuses_sparse(kept) == problems
    assert list(General().refuses_sparse(terms, kept)) == problems


def test_an_objective_without_a_loss_between_logits_has_nothing_against_them() -> None:
    assert Objective(None).refuses_sparse(TOP_2) == []


def test_a_loss_that_declares_nothing_is_refused_when_it_is_called_too() -> None:
    def mine(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        return student_logits.mean()

    student = Features.of({"logits": random(B, V, seed=1)})
    with pytest.raises(ConfigError) as error:
        objective(kd_loss_type=mine).kd_terms(student, sparse(SparseLogits.top_k(random(B, V), 2)), START)
    assert str(error.value) == (
        "DistillationConfig: kd_loss_type: `mine` needs all of the teacher's logits, and the cache keeps 2 of 9 of them (top_k); "
        "use ce, kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, adaptive_kl, tvd or top_k_kl, or keep them dense"
    )


# Several teachers

NO_MEAN = (
    "strategy: the mean of several teachers needs all of their logits, and the cache keeps 2 of 9 of them (top_k); "
    "keep them dense, or give each task one teacher"
)
ONE, TWO = ModelInfo("one", tasks=("a",)), ModelInfo("two", tasks=("b",))


@pytest.mark.parametrize(
    ("strategy", "teachers", "problems"),
    [
        (MultiTeacher(), [ModelInfo("one"), ModelInfo("two")], [NO_MEAN]),
        (MultiTeacher(), [ModelInfo("one")], []),
        (MultiTeacher(), [ModelInfo("one", {"logits": (9,)}), ModelInfo("two", {"hidden": (8, 8)})], []),
        (MultiTask(), [ONE, TWO], []),
        (MultiTask(), [ONE, TWO, ModelInfo("three", tasks=("b",))], [NO_MEAN]),
        (MultiTask(), [ONE, ModelInfo("every")], [NO_MEAN]),
    ],
)
def test_several_teachers_of_a_task_have_no_mean(
    strategy: MultiTeacher, teachers: list[ModelInfo], problems: list[str]
) -> None:
    strategy.build(ModelInfo("student"), {info.name: info for info in teachers})
    assert list(strategy.refuses_sparse(objective(), TOP_2)) == problems
    assert list(strategy.refuses_sparse(objective(kd_loss_type="mse"), TOP_2)) == [MSE, *problems]


def test_the_mean_of_sparse_logits_is_refused_and_one_teacher_is_taken_as_it_is() -> None:
    kept = sparse(SparseLogits.top_k(random(B, V), 2))
    hidden = Features.of({"hidden": [random(B, L, 3)]})
    for temperature in (None, 2.0):
        assert averaged({"one": kept, "two": hidden}, {"one": 3.0, "two": 1.0}, temperature) is kept
        with pytest.raises(RequestError) as error:
            averaged({"one": kept, "two": kept}, {"one": 1.0, "two": 1.0}, temperature)
        assert str(error.value) == f"{NO_MEAN}."
