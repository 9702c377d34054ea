"""Teachers: whatever answers what a teacher's features for a batch are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from brewer_core.batches import call_model, move_to_device, side, teacher_cache
from brewer_core.errors import AdaptorError, RequestError
from brewer_core.features import Feature, Features
from brewer_core.precision import autocast
from brewer_core.protocols import Batch, Teacher

REMEMBERED = frozenset({"logits", "logits_mask", "losses", "labels", "inputs_mask"})
"""Features that a run may read of a teacher whose logits alone are remembered."""


class LiveTeacher:
    """A teacher that is a model: moved to the device, run in eval mode without gradient, and left as it was found.

    adaptor: its adaptor. arguments: passed to every call of the model. model_inputs: the part of a batch that the
    model takes.
    """

    def __init__(
        self,
        model: nn.Module,
        adaptor: Callable[..., Any],
        device: torch.device,
        *,
        precision: str = "no",
        arguments: Mapping[str, Any] | None = None,
        model_inputs: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        self.model = model.to(device)
        self.adaptor = adaptor
        self.device = device
        self.precision = precision
        self.arguments = dict(arguments or {})
        self.model_inputs = model_inputs

    def features(self, batch: Batch, needs: frozenset[str]) -> Features:
        """The features of a batch, without gradient; `no_grad`, so that the student's graph may hold them.

        Outputs that the batch itself holds, under `teacher_cache` beside `teacher` and `student`, stand for the model's.
        """
        del needs  # the adaptor returns what the model's outputs hold
        own = move_to_device(side(batch, "teacher"), self.device)
        outputs = move_to_device(teacher_cache(batch), self.device)
        with evaluating(self.model), torch.no_grad(), autocast(self.precision, self.device):
            if outputs is None:
                outputs = call_model(self.model, self.model_inputs(own), self.arguments)
            return Features.of(self.adaptor(own, outputs), "the teacher's adaptor")


class RememberingTeacher:
    """A teacher whose logits are computed once for each row, and kept in memory on the CPU.

    rows_of: the numbers of a batch's rows, each unique in the run; order and batches may differ from pass to pass.
    Only for logits of shape [B, C], and for runs that read nothing but logits of the teacher.
    """

    def __init__(self, teacher: Teacher, rows_of: Callable[[Batch], list[int]]) -> None:
        self.teacher = teacher
        self.rows_of = rows_of
        self._logits: dict[int, Tensor] = {}

    def features(self, batch: Batch, needs: frozenset[str]) -> Features:
        """The logits of a batch, computed where a row is new. Raises RequestError where more is read than logits."""
        if not needs <= REMEMBERED:
            raise RequestError(
                f"is_caching_logits keeps the teacher's logits alone, but this run also reads {', '.join(sorted(needs - REMEMBERED))}; "
                "set is_caching_logits to false, or drop the intermediate matches."
            )
        rows = self.rows_of(batch)
        if any(row not in self._logits for row in rows):
            return self._remember(rows, self.teacher.features(batch, needs))
        return Features({"logits": Feature((torch.stack([self._logits[row] for row in rows]),), "B C")})

    def _remember(self, rows: list[int], features: Features) -> Features:
        logits = features.get("logits", ())
        if len(logits) != 1 or logits[0].dim() != 2:
            shapes = [tuple(head.shape) for head in logits]
            raise AdaptorError(
                f"is_caching_logits needs one tensor of logits of shape [B, C], not {shapes}; set it to false."
            )
        self._logits.update(zip(rows, logits[0].detach().cpu(), strict=True))
        return Features({"logits": Feature((logits[0],), "B C")})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards each of its modules in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    _set_training(training, False)
    try:
        yield
    finally:
        _set_training(training, True)


def _set_training(modules: list[nn.Module], mode: bool) -> None:
    for module in modules:
        # nn.Module's own __setattr__ looks for parameters: a millisecond in every step for a small teacher
        object.__setattr__(module, "training", mode)
