"""The built-in losses against those of the real textbrewer: value and student gradient, over random shapes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins import kd_losses, match_losses
from brewer_loss_pkd import pkd
from differential.reference import presets

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SEEDS = range(6)
ATTENTION = ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
SUMMED = ("attention_mse_sum", "attention_ce_mean")
MATCH_LOSSES = {**match_losses.brewer_match_losses(), "pkd": pkd}
MASKS = {"bool": torch.bool, "int": torch.int64, "float": torch.float32}


def sizes(generator: torch.Generator, count: int, low: int = 1, high: int = 7) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def random_mask(generator: torch.Generator, rows: int, length: int) -> Tensor:
    """At least one valid token a row: padding to the right, or holes anywhere."""
    if torch.rand((), generator=generator) < 0.5:
        return torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    return mask.index_fill(1, torch.randint(length, (1,), generator=generator), True)


def outcome(loss: Callable[..., Tensor], student: Any, teacher: Any, *rest: Any) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient for each of the student's tensors."""
    single = isinstance(student, Tensor)
    leaves = [s.clone().requires_grad_() for s in ([student] if single else student)]
    value = loss(leaves[0] if single else leaves, teacher, *rest)
    return value.detach(), list(torch.autograd.grad(value, leaves))


def assert_equal(ours: tuple[Tensor, Sequence[Tensor]], theirs: tuple[Tensor, Sequence[Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], **TOLERANCE)
    for own, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(own, other, **TOLERANCE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("per_position", [False, True], ids=["scalar temperature", "temperature a position"])
@pytest.mark.parametrize("axes", [1, 2], ids=["N V", "B L V"])
@pytest.mark.parametrize("name", ["ce", "mse"])
def test_kd_losses_equal_textbrewers(name: str, axes: int, per_position: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    positions, classes = sizes(g, axes), sizes(g, 1, 2, 40)
    student, teacher = (5 * torch.randn(*positions, *classes, generator=g) for _ in range(2))
    temperatures = 0.5 + 8 * torch.rand(*positions, generator=g)
    temperature = temperatures if per_position else float(temperatures.flatten()[0])
    assert_equal(
        outcome(kd_losses.brewer_kd_losses()[name], student, teacher, temperature),
        outcome(presets.KD_LOSS_MAP[name], student, teacher, temperature),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mask_type", [None, *MASKS])
@pytest.mark.parametrize("kind", ["scores", "padded scores", "probabilities"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_losses_equal_textbrewers(name: str, kind: str, mask_type: str | None, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, heads, length = sizes(g, 3)
    axes = [(rows, heads, length, length), (rows, length, length)][name in SUMMED and seed % 2]
    student, teacher = (2 * torch.randn(axes, generator=g) for _ in range(2))
    mask = random_mask(g, rows, length)
    if kind == "padded scores":
        padding = -1e4 * (~mask).float()
        bias = padding[:, None, None] if len(axes) == 4 else padding[:, None]
        student, teacher = student + bias, teacher + bias
    if kind == "probabilities":
        student, teacher = student.softmax(-1), teacher.softmax(-1)
    given = mask.to(MASKS[mask_type]) if mask_type else None
    assert_equal(
        outcome(MATCH_LOSSES[name], student, teacher, given),
        outcome(presets.MATCH_LOSS_MAP[name], student, teacher, given),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mask_type", [None, *MASKS])
@pytest.mark.parametrize("name", ["hidden_mse", "cos", "pkd"])
def test_losses_of_hidden_states_equal_textbrewers(name: str, mask_type: str | None, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, length, width = sizes(g, 3, high=12)
    student, teacher = (torch.randn(rows, length, width + 1, generator=g) for _ in range(2))
    given = random_mask(g, rows, length).to(MASKS[mask_type]) if mask_type else None
    assert_equal(
        outcome(MATCH_LOSSES[name], student, teacher, given),
        outcome(presets.MATCH_LOSS_MAP[name], student, teacher, given),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_pkd_of_pooled_states_equals_textbrewers(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, length, width = sizes(g, 3, 2, 12)
    student, teacher = torch.randn(rows, width, generator=g), torch.randn(rows, length, width, generator=g)
    theirs = presets.MATCH_LOSS_MAP["pkd"]
    assert_equal(outcome(pkd, student, teacher), outcome(theirs, student, teacher))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mask_type", [None, *MASKS])
@pytest.mark.parametrize("name", ["fsp", "gram"])
def test_fsp_equals_textbrewers(name: str, mask_type: str | None, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, length, first, second = sizes(g, 4, high=12)
    student, teacher = ([torch.randn(rows, length, width, generator=g) for width in (first, second)] for _ in range(2))
    given = random_mask(g, rows, length).to(MASKS[mask_type]) if mask_type else None
    assert_equal(
        outcome(MATCH_LOSSES[name], student, teacher, given),
        outcome(presets.MATCH_LOSS_MAP[name], student, teacher, given),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["nst", "mmd"])
def test_unmasked_nst_equals_textbrewers(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows, length, *widths = sizes(g, 4, high=12)
    student, teacher = ([torch.randn(rows, length, width, generator=g) for _ in range(2)] for width in widths)
    assert_equal(outcome(MATCH_LOSSES[name], student, teacher), outcome(presets.MATCH_LOSS_MAP[name], student, teacher))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mask_type", list(MASKS))
@pytest.mark.parametrize("name", ["nst", "mmd"])
def test_masked_nst_equals_textbrewers_where_length_and_width_agree(name: str, mask_type: str, seed: int) -> None:
    # textbrewer 0.2.1 divides by the length, its repository and brewer by the width
    g = torch.Generator().manual_seed(seed)
    rows, length = sizes(g, 2, high=9)
    student, teacher = ([torch.randn(rows, length, length, generator=g) for _ in range(2)] for _ in range(2))
    given = random_mask(g, rows, length).to(MASKS[mask_type])
    assert_equal(
        outcome(MATCH_LOSSES[name], student, teacher, given),
        outcome(presets.MATCH_LOSS_MAP[name], student, teacher, given),
    )


def test_every_loss_of_textbrewer_is_there() -> None:
    assert set(presets.KD_LOSS_MAP) <= set(kd_losses.brewer_kd_losses())
    assert set(presets.MATCH_LOSS_MAP) <= set(MATCH_LOSSES)
