"""Teachers that labels correct: what becomes of their logits, of positions without labels, and what is refused."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brewer_builtins.kd_losses import ce, kl, mse
from brewer_core import DistillationConfig, Feature, Features, Kept, SparseLogits, component, default_registry
from brewer_core.errors import AdaptorError, BrewerError, ConfigError, ShapeError
from brewer_core.objective import Correction, Objective, probability_shift
from brewer_core.protocols import Step

START = Step(0, 10)
INF = math.inf
LN2, LN3 = math.log(2), math.log(3)
B, L, V = 2, 4, 5
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0]])
LABELS = torch.tensor([[0, -100, 3, 3], [4, 3, 2, -100]])
ALL = pytest.mark.parametrize("method", ["swap", "mix", "mft", "drop"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(**distillation: Any) -> Objective:
    return Objective.from_config(DistillationConfig(**distillation), default_registry())


def loss_of(student: dict[str, Any], teacher: dict[str, Any], **distillation: Any) -> Tensor:
    return objective(**distillation).kd_terms(Features.of(student), Features.of(teacher), START)["kd_loss"]


def softened(logits: Tensor, temperature: float = 1.0) -> list[list[float]]:
    return (logits.double() / temperature).softmax(-1).tolist()


def mft_of(p: list[float], label: int, threshold: float) -> list[float]:
    """Belcak et al. 2025, as the authors have it."""
    likely = max(range(len(p)), key=lambda c: p[c])
    if likely != label:
        part = (p[likely] - p[label] + threshold) / (1 + p[likely] - p[label])
    else:
        part = 1.0 if p[label] > 1 - threshold else threshold / (1 - p[label])
    return [(1 - part) * a + part * (c == label) for c, a in enumerate(p)]


# The corrected distribution


def test_mft_by_hand() -> None:
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]).log()
    found = softened(Correction("mft", 0.2).of_softened(teacher, torch.tensor([1, 0, 0]), 1.0))
    # wrong by 0.2: a third of the label, which then has 0.2 more than the class that the teacher took for it
    assert found[0] == pytest.approx([1 / 3, 8 / 15, 2 / 15], rel=1e-5)
    # right, with 0.5: 0.2 more; and right with more than 0.8: all of it
    assert found[1] == pytest.approx([0.7, 0.18, 0.12], rel=1e-5)
    assert found[2] == pytest.approx([1, 0, 0], abs=1e-5)


def test_mix_by_hand_raises_the_labels_logit_alone() -> None:
    teacher = torch.tensor([[LN3, 0.0]])
    corrected = Correction("mix", 0.5).of_softened(teacher, torch.tensor([1]), 1.0)
    assert softened(corrected)[0] == pytest.approx([3 / 8, 5 / 8])
    assert float(corrected[0, 0]) == pytest.approx(LN3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8), amount=st.floats(0.05, 0.9))
def test_the_corrected_teacher_is_that_of_a_plain_loop_at_any_temperature(
    seed: int, temperature: float, amount: float
) -> None:
    teacher, labels = 2 * random(3, V, seed=seed).double(), torch.tensor([seed % V, 1, -100])
    rows = softened(teacher, temperature)
    mixed = softened(Correction("mix", amount).of_softened(teacher, labels, temperature), temperature)
    moved = softened(Correction("mft", amount).of_softened(teacher, labels, temperature), temperature)
    for i, label in enumerate(labels.tolist()):
        p = rows[i]
        of_mix = p if label < 0 else [(1 - amount) * a + amount * (c == label) for c, a in enumerate(p)]
        of_mft = p if label < 0 else mft_of(p, label, amount)
        assert mixed[i] == pytest.approx(of_mix, abs=1e-9)
        assert moved[i] == pytest.approx(of_mft, abs=2e-6)


@pytest.mark.parametrize("method", ["mix", "mft"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_16_bits_are_corrected_in_float32(method: Literal["mix", "mft"], dtype: torch.dtype) -> None:
    teacher, labels = torch.tensor([[6.0, 1.0, -2.0], [0.5, 1.0, 2.0]], dtype=dtype), torch.tensor([0, 1])
    found = Correction(method, 0.2).of_softened(teacher, labels, 1.0)
    torch.testing.assert_close(found, Correction(method, 0.2).of_softened(teacher.float(), labels, 1.0))


def test_what_is_dropped_takes_no_digits_from_float64() -> None:
    student, teacher, labels = (
        random(3, V, seed=1).double(),
        random(3, V, seed=2).double(),
        torch.tensor([-100, -100, 0]),
    )
    teacher[2, 0] = teacher.min() - 1
    found = loss_of({"logits": student, "labels": labels}, {"logits": teacher}, teacher_correction="drop")
    torch.testing.assert_close(found, 2 / 3 * loss_of({"logits": student[:2]}, {"logits": teacher[:2]}))


def test_mft_makes_the_label_the_most_likely_class_by_the_threshold() -> None:
    teacher, labels = 3 * random(200, V), torch.arange(200) % V
    p = Correction("mft", 0.3).of_softened(teacher, labels, 1.0).softmax(-1)
    others = p.scatter(-1, labels.unsqueeze(-1), 0).amax(-1)
    own = p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    assert bool((own - others >= 0.3 - 1e-5).all())


@ALL
def test_a_label_that_the_teacher_rules_out_and_classes_of_nothing_leave_it_finite(method: str) -> None:
    teacher = torch.tensor([[0.0, 1.0, -INF], [0.0, 1.0, -INF]])
    student = torch.zeros(2, 3, requires_grad=True)
    loss = loss_of({"logits": student, "labels": torch.tensor([2, 0])}, {"logits": teacher}, teacher_correction=method)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student, allow_unused=True)[0].isfinite().all()


@ALL
def test_positions_without_a_label_are_left_alone_and_so_is_the_teachers_tensor(method: str) -> None:
    teacher = random(B, V, seed=2)
    before = teacher.clone()
    labels = torch.full((B,), -100)
    found = loss_of({"logits": random(B, V, seed=1), "labels": labels}, {"logits": teacher}, teacher_correction=method)
    torch.testing.assert_close(found, loss_of({"logits": random(B, V, seed=1)}, {"logits": teacher}))
    assert torch.equal(teacher, before)


# In the loss


def expected_loss(student: Tensor, teacher: Tensor, labels: Tensor, method: str, temperature: float) -> float:
    """Row by row in plain numbers: kl, less T squared, where nothing is dropped."""
    losses = []
    for own, taught, label in zip(student, teacher, labels.tolist(), strict=True):
        if method == "drop":
            losses.append(
                0.0 if label >= 0 and int(taught.argmax()) != label else float(kl(own[None], taught[None], temperature))
            )
            continue
        p, q = softened(taught[None], temperature)[0], softened(own[None], temperature)[0]
        if label >= 0 and method == "mix":
            p = [0.5 * a + 0.5 * (c == label) for c, a in enumerate(p)]
        elif label >= 0 and method == "mft":
            p = mft_of(p, label, 0.2)
        elif label >= 0:
            p = softened(probability_shift(taught[None], torch.tensor([label])), temperature)[0]
        losses.append(temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
    return sum(losses) / len(losses)


@ALL
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_corrected_teacher_with_a_mask_is_that_of_its_valid_positions(method: str, temperature: float) -> None:
    student, teacher = random(B, L, V, seed=1), random(B, L, V, seed=2)
    valid = MASK.bool()
    hidden = valid.unsqueeze(-1)
    found = loss_of(
        {"logits": student.where(hidden, torch.nan), "logits_mask": MASK, "labels": LABELS},
        {"logits": teacher.where(hidden, torch.inf), "logits_mask": MASK},
        kd_loss_type="kl",
        temperature=temperature,
        teacher_correction=method,
    )
    expected = expected_loss(student[valid], teacher[valid], LABELS[valid], method, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@ALL
def test_a_loss_that_names_its_mask_gets_the_corrected_teacher_in_its_places(method: str) -> None:
    @component(over="logits")
    def with_mask(student_logits: Tensor, teacher_logits: Tensor, temperature: Any, *, mask: Tensor) -> Tensor:
        return kl(student_logits[mask], teacher_logits[mask], temperature)

    student, teacher = random(B, L, V, seed=1), random(B, L, V, seed=2)
    given = {"logits": student, "logits_mask": MASK, "labels": LABELS}, {"logits": teacher, "logits_mask": MASK}
    more = {"temperature": 2, "teacher_correction": method}
    torch.testing.assert_close(
        loss_of(*given, kd_loss_type=with_mask, **more), loss_of(*given, kd_loss_type="kl", **more)
    )


@ALL
def test_each_head_has_labels_of_its_own_and_each_loss_the_same_teacher(method: str) -> None:
    heads, taught = [random(B, V, seed=i) for i in (1, 2)], [random(B, V, seed=i) for i in (3, 4)]
    labels = [torch.tensor([0, 1]), torch.tensor([2, -100])]
    student, teacher = Features.of({"logits": heads, "labels": labels}), Features.of({"logits": taught})
    terms = objective(kd_loss_type=["kl", "mse"], temperature=2, teacher_correction=method)
    found = terms.kd_terms(student, teacher, START)
    for name in ("kl", "mse"):
        alone = [
            loss_of(
                {"logits": h, "labels": y}, {"logits": t}, kd_loss_type=name, temperature=2, teacher_correction=method
            )
            for h, t, y in zip(heads, taught, labels, strict=True)
        ]
        torch.testing.assert_close(found[f"kd_loss_{name}"], alone[0] + alone[1])


def test_a_dropped_position_counts_as_a_loss_of_0_so_that_parts_of_a_batch_add_up() -> None:
    student, teacher = random(6, V, seed=1), random(6, V, seed=2)
    labels = teacher.argmax(-1)
    labels[[0, 3, 4]] = (labels[[0, 3, 4]] + 1) % V

    def of(rows: slice) -> Tensor:
        return loss_of(
            {"logits": student[rows], "labels": labels[rows]}, {"logits": teacher[rows]}, teacher_correction="drop"
        )

    torch.testing.assert_close(of(slice(None)), (2 * of(slice(2)) + 4 * of(slice(2, None))) / 6)


def test_where_every_position_is_dropped_the_loss_is_0_with_a_gradient_of_0() -> None:
    student, teacher = random(3, V, seed=1).requires_grad_(), random(3, V, seed=2)
    wrong = (teacher.argmax(-1) + 1) % V
    loss = loss_of({"logits": student, "labels": wrong}, {"logits": teacher}, teacher_correction="drop")
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_the_temperature_schedule_sees_what_is_left_and_swapped_and_what_is_mixed_in_comes_after() -> None:
    seen: list[Tensor] = []

    def noting(student_logits: Tensor, teacher_logits: Tensor, base_temperature: float) -> float:
        seen.append(teacher_logits)
        return 3.0

    student, teacher, labels = random(3, V, seed=1), random(3, V, seed=2), torch.tensor([0, 1, 2])
    for method in ("swap", "mix", "drop"):
        loss = loss_of(
            {"logits": student, "labels": labels},
            {"logits": teacher},
            kd_loss_type="kl",
            teacher_correction=method,
            temperature_scheduler=noting,
        )
        assert float(loss) == pytest.approx(expected_loss(student, teacher, labels, method, 3.0), rel=1e-5)
    assert torch.equal(seen[0], probability_shift(teacher, labels))
    assert torch.equal(seen[1], teacher)
    assert torch.equal(seen[2], teacher[teacher.argmax(-1) == labels])


def test_swap_is_probability_shift_bit_for_bit() -> None:
    student = {"logits": random(B, L, V, seed=1), "logits_mask": MASK, "labels": LABELS}
    teacher = {"logits": random(B, L, V, seed=2), "logits_mask": MASK}
    assert torch.equal(
        loss_of(student, teacher, teacher_correction="swap"), loss_of(student, teacher, probability_shift=True)
    )


def test_mse_sees_the_label_raised_and_nothing_else() -> None:
    student, teacher = random(2, V, seed=1), random(2, V, seed=2)
    labels = torch.tensor([0, -100])
    found = loss_of(
        {"logits": student, "labels": labels},
        {"logits": teacher},
        kd_loss_type="mse",
        temperature=1,
        teacher_correction="mix",
    )
    raised = teacher.clone()
    raised[0, 0] = torch.logaddexp(teacher[0, 0], teacher[0].logsumexp(-1))
    torch.testing.assert_close(found, mse(student, raised))


# Configs and errors


def test_what_a_name_alone_comes_to() -> None:
    found = {
        method: objective(teacher_correction=method).kd.correction  # type: ignore[union-attr]  # there is a loss
        for method in ("swap", "mix", "mft", "drop")
    }
    assert found == {
        "swap": Correction("swap"),
        "mix": Correction("mix", 0.5),
        "mft": Correction("mft", 0.2),
        "drop": Correction("drop"),
    }
    named = objective(teacher_correction={"name": "mft", "threshold": 0.1})
    assert named.kd is not None
    assert named.kd.correction == Correction("mft", 0.1)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"name": "drop", "weight": 0.5},
            "teacher_correction: weight is an option of mix, and drop has none of that name",
        ),
        (
            {"name": "mix", "threshold": 0.1},
            "teacher_correction: threshold is an option of mft, and mix has none of that name",
        ),
        ({"name": "mix", "weight": 1}, "teacher_correction.weight: input should be less than 1, not 1"),
        ("shift", "teacher_correction.name: input should be 'swap', 'mix', 'mft' or 'drop', not \"shift\""),
        ({"name": "mix", "wieght": 0.5}, "teacher_correction.wieght: unknown key; did you mean 'weight'?"),
    ],
)
def test_a_correction_that_is_written_wrong_is_refused(given: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillationConfig(teacher_correction=given)
    assert list(caught.value.problems) == [problem]


def test_the_two_names_of_a_swap_are_not_given_together() -> None:
    with pytest.raises(ConfigError) as caught:
        DistillationConfig(probability_shift=True, teacher_correction="mft")
    assert list(caught.value.problems) == [
        'probability_shift is teacher_correction "swap" by its older name; give one of the two'
    ]


def test_a_correction_is_given_by_name_alone() -> None:
    with pytest.raises(TypeError):
        DistillationConfig(4, "none", 0, "none", "ce", 1, "none", False, None, False, "mft")


def refusal(kind: type[BrewerError], **student: Any) -> str:
    with pytest.raises(kind) as caught:
        loss_of({"logits": random(B, L, V), **student}, {"logits": random(B, L, V)}, teacher_correction="mft")
    return str(caught.value)


def test_a_correction_needs_labels_of_each_head() -> None:
    assert refusal(AdaptorError) == (
        "teacher_correction needs `labels`, one for each of the logits; the student's adaptor must return them."
    )
    assert refusal(ShapeError, labels=torch.zeros(B).long()) == (
        "teacher_correction: labels (2,) do not belong to logits (2, 4, 5)."
    )


TOP = Kept("top_k", 2, 9)
DRAWN = Kept("sampled", 5, 9)


@pytest.mark.parametrize(
    ("method", "kept", "problems"),
    [
        *(
            (
                method,
                TOP,
                [
                    "teacher_correction: it needs the teacher's logit of the true label, and the cache keeps 2 of 9 of them (top_k), "
                    "the true one perhaps not among them; leave it out, or keep them dense"
                ],
            )
            for method in ("swap", "mix", "mft")
        ),
        ("drop", TOP, []),
        (
            "drop",
            DRAWN,
            [
                "teacher_correction: it needs the teacher's most likely class, and the cache keeps at most 5 of 9 of them (sampled); "
                "leave it out, or keep them as top_k or dense"
            ],
        ),
    ],
)
def test_a_correction_says_what_it_has_against_sparse_teachers(method: str, kept: Kept, problems: list[str]) -> None:
    assert objective(temperature=1, teacher_correction=method).refuses_sparse(kept) == problems


def test_of_sparse_teachers_the_wrong_ones_are_dropped_too() -> None:
    student, teacher, labels = random(B, L, 9, seed=1), random(B, L, 9, seed=2), torch.arange(B * L).view(B, L) % 9
    labels[0] = teacher[0].argmax(-1)
    terms = objective(teacher_correction="drop", temperature=1)

    def of(taught: Any) -> Tensor:
        given = Features({"logits": Feature((taught,), "B L V")})
        return terms.kd_terms(Features.of({"logits": student, "labels": labels}), given, START)["kd_loss"]

    torch.testing.assert_close(of(teacher), of(SparseLogits.top_k(teacher, 9)))
    right = (teacher.argmax(-1) == labels).unsqueeze(-1)
    kept = SparseLogits.top_k(teacher, 2)
    one_by_one = [ce(student[i, j], kept[i][j], 1.0) if right[i, j] else 0.0 for i in range(B) for j in range(L)]
    assert float(of(kept)) == pytest.approx(float(sum(one_by_one)) / (B * L))
