"""What all losses of relations, embeddings and rankings keep: exact gradients, masks, no gradient to the teacher, float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.match_losses import (
    ContrastiveRepresentation,
    VariationalInformation,
    at,
    cka,
    embedding_cos,
    embedding_mse,
    listwise_kl,
    margin_mse,
    minilm,
    minilmv2,
    rkd_angle,
    rkd_distance,
    score_matrix_kl,
    sp,
    tinybert_attention,
)
from brewer_core.components import facts_of

ROWS, LENGTH, HEADS = 5, 4, 2
MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
NOTHING = torch.zeros(ROWS, LENGTH).bool()

SHAPES: dict[str, tuple[int, ...]] = {
    "attention": (ROWS, HEADS, LENGTH, LENGTH),
    "same width": (ROWS, LENGTH, 6),
    "other width": (ROWS, LENGTH, 4),
    "scores": (ROWS, LENGTH),
}


@dataclass(frozen=True)
class Case:
    """A loss with its options, and what it is called with."""

    loss: Any
    form: str
    options: dict[str, Any]

    def __str__(self) -> str:
        name = getattr(self.loss, "__name__", "loss")
        return " ".join([name, self.form, *(f"{key}={value}" for key, value in self.options.items())])

    def ready(self, dtype: torch.dtype = torch.float64) -> Callable[..., Tensor]:
        if not isinstance(self.loss, type):
            return lambda *given: self.loss(*given, **self.options)
        torch.manual_seed(0)
        return self.loss(student_dim=self.student.shape[-1], teacher_dim=self.teacher.shape[-1], **self.options).to(
            dtype
        )

    @property
    def student(self) -> Tensor:
        return self._tensor("same width" if self.form == "other width" else self.form, 1)

    @property
    def teacher(self) -> Tensor:
        return self._tensor(self.form, 2)

    def _tensor(self, form: str, seed: int) -> Tensor:
        made = torch.randn(SHAPES[form], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return made.softmax(-1) if self.loss is minilm and form == "attention" and not self.options else made


CASES = [
    Case(minilm, "attention", {}),
    Case(minilm, "attention", {"normalized": False}),
    Case(minilm, "other width", {"heads": 2}),
    Case(minilmv2, "other width", {"relation_heads": 2}),
    Case(tinybert_attention, "attention", {}),
    Case(at, "other width", {}),
    Case(at, "other width", {"power": 3.0}),
    Case(rkd_distance, "other width", {}),
    Case(rkd_angle, "other width", {"pool": "last"}),
    Case(sp, "other width", {}),
    Case(sp, "other width", {"pool": "flatten"}),
    Case(cka, "other width", {"pool": "first"}),
    Case(cka, "other width", {"pool": "tokens"}),
    Case(cka, "other width", {"debiased": True}),
    Case(cka, "other width", {"pool": "tokens", "debiased": True}),
    Case(embedding_mse, "same width", {"matryoshka_dims": [2, 6]}),
    Case(embedding_cos, "same width", {"matryoshka_dims": [2, 6]}),
    Case(score_matrix_kl, "other width", {"student_temperature": 0.5, "matryoshka_dims": [3]}),
    Case(margin_mse, "scores", {}),
    Case(listwise_kl, "scores", {"student_temperature": 2.0}),
    Case(ContrastiveRepresentation, "other width", {"projection_dim": 3, "tau": 0.5}),
    Case(ContrastiveRepresentation, "other width", {"projection_dim": 3, "tau": 0.5, "symmetric": True}),
    Case(VariationalInformation, "other width", {"hidden_dim": 3}),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def with_padding(tensor: Tensor, value: float, mask: Tensor = MASK) -> Tensor:
    """The tensor with a value at padding: for attention, as query and as key."""
    if tensor.dim() == 4:
        return tensor.masked_fill(~(mask[:, None, :, None] & mask[:, None, None]), value)
    return tensor.masked_fill(~mask if tensor.dim() == 2 else ~mask[..., None], value)


@each_case
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_gradients_are_those_of_finite_differences(case: Case, mask: Tensor | None) -> None:
    loss, teacher = case.ready(), case.teacher
    student = case.student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, mask), (student,))


@each_case
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 7.0])
def test_what_stands_at_padding_reaches_neither_loss_nor_gradient(case: Case, value: float) -> None:
    loss, results = case.ready(), []
    for filled in (0.0, value):
        student = with_padding(case.student, filled).requires_grad_()
        result = loss(student, with_padding(case.teacher, filled), MASK)
        (gradient,) = torch.autograd.grad(result, student)
        assert not with_padding(gradient, 0.0).sub(gradient).any()
        results.append((result.detach(), gradient))
    torch.testing.assert_close(*results)


@each_case
@pytest.mark.parametrize("value", [math.nan, 1.0])
def test_a_batch_without_valid_tokens_has_no_loss_and_no_gradient(case: Case, value: float) -> None:
    student = with_padding(case.student, value, NOTHING).requires_grad_()
    result = case.ready()(student, with_padding(case.teacher, value, NOTHING), NOTHING)
    assert float(result.detach()) == 0
    assert not torch.autograd.grad(result, student)[0].any()


@each_case
def test_a_batch_of_no_rows_has_no_loss(case: Case) -> None:
    student = case.student[:0].requires_grad_()
    for mask in (None, MASK[:0]):
        result = case.ready()(student, case.teacher[:0], mask)
        assert float(result.detach()) == 0
        assert not torch.autograd.grad(result, student)[0].any()


@each_case
def test_a_batch_of_one_row_is_finite(case: Case) -> None:
    student = case.student[:1].requires_grad_()
    for mask in (None, MASK[:1], NOTHING[:1]):
        result = case.ready()(student, case.teacher[:1], mask)
        assert result.isfinite()
        assert torch.autograd.grad(result, student)[0].isfinite().all()


@each_case
def test_the_teacher_gets_no_gradient(case: Case) -> None:
    teacher = case.teacher.requires_grad_()
    result = case.ready()(case.student.requires_grad_(), teacher, MASK)
    assert torch.autograd.grad(result, teacher, allow_unused=True) == (None,)


@each_case
def test_bfloat16_is_summed_in_float32(case: Case) -> None:
    student, teacher = case.student.bfloat16(), case.teacher.bfloat16()
    low, exact = (
        case.ready(torch.float32)(student, teacher, MASK),
        case.ready()(student.double(), teacher.double(), MASK),
    )
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), exact, rtol=1e-3, atol=1e-4)


@each_case
def test_a_mask_of_numbers_means_what_a_bool_mask_means(case: Case) -> None:
    loss, given = case.ready(), (case.student, case.teacher)
    for dtype in (torch.int64, torch.float32):
        assert torch.equal(loss(*given, MASK.to(dtype)), loss(*given, MASK))


@pytest.mark.parametrize("case", [case for case in CASES if facts_of(case.loss).over != "batch"], ids=str)
def test_a_batch_is_the_mean_of_its_parts_weighed_by_what_the_loss_declares(case: Case) -> None:
    over, loss = facts_of(case.loss).over, case.ready()
    items: Any = {"rows": len, "tokens": lambda m: m.sum(), "token_pairs": lambda m: m.sum(1).square().sum()}[str(over)]
    mask = MASK.clone()
    mask[4] = False
    parts = [slice(0, 2), slice(2, 5)]
    losses = [items(mask[p]) * loss(case.student[p], case.teacher[p], mask[p]) for p in parts]
    torch.testing.assert_close(loss(case.student, case.teacher, mask), sum(losses[1:], losses[0]) / items(mask))


@pytest.mark.parametrize(
    ("loss", "over"),
    [
        (minilm, "tokens"),
        (minilmv2, "tokens"),
        (VariationalInformation, "tokens"),
        (embedding_mse, "tokens"),
        (tinybert_attention, "token_pairs"),
        (at, "rows"),
        (embedding_cos, "rows"),
        (margin_mse, "rows"),
        (listwise_kl, "rows"),
        (rkd_distance, "batch"),
        (rkd_angle, "batch"),
        (sp, "batch"),
        (cka, "batch"),
        (score_matrix_kl, "batch"),
        (ContrastiveRepresentation, "batch"),
    ],
)
def test_each_loss_declares_what_its_mean_is_over(loss: Any, over: str) -> None:
    assert facts_of(loss).over == over
