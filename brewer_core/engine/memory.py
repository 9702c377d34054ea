"""Micro-batches that are halved until they fit into the memory."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from brewer_core.batches import split
from brewer_core.errors import MemoryFullError

T = TypeVar("T")


class Halving:
    """In how many parts each micro-batch is run, and twice as many whenever the memory runs out.

    in_step: as many on every process, which run them together.
    """

    def __init__(self, device: torch.device, parts: int = 1, in_step: bool = False) -> None:
        self._device, self._in_step = device, in_step
        self.parts = parts

    def split(self, micro_batches: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """The micro-batches, each in its parts."""
        if self.parts == 1:
            return list(micro_batches)
        return [(task, part) for task, batch in micro_batches for part in split(batch, self.parts, self._in_step)]

    def attempt(self, run: Callable[[], T]) -> T | None:
        """What `run` gives; None where the memory ran out, of which nothing is held any more."""
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def halve(self, largest: int) -> None:
        """Run twice as many parts from now on. Raises MemoryFullError where each is a single row already.

        largest: rows of the largest micro-batch, of any process, so that all go on or none.
        """
        if self.parts >= largest:
            raise MemoryFullError(
                "the memory does not hold a single row with what is trained; take a smaller model, shorter texts "
                "(max_length), precision bf16, or gradient checkpointing."
            )
        self.parts *= 2
        warnings.warn(
            f"the memory ran out: micro-batches are run in {self.parts} parts of {-(-largest // self.parts)} rows from now on, "
            "and a step is the same as before.",
            stacklevel=4,
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the memory is full, in the words of any allocator."""
    words = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")  # the last is cuBLAS's
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
