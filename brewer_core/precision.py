"""Mixed precision by torch.amp: where autocast applies, and when gradients are scaled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from brewer_core.errors import RequestError

if TYPE_CHECKING:
    import torch


def check_precision(precision: str, device: torch.device) -> None:
    """Raises RequestError for float16 on a CPU, which is slow there and overflows."""
    if precision == "fp16" and device.type == "cpu":
        raise RequestError("precision fp16 needs a GPU; on a CPU use bf16, or no mixed precision.")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast of a forward pass; without mixed precision, nothing."""
    import torch

    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast, whatever surrounds it: inside bf16 autocast a matmul of float32 tensors gives bf16."""
    import torch

    return torch.autocast(device.type, enabled=False)
