"""Whether a step is finite; if not, in which term and on which rows, and what it comes to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brewer_core.batches import rows_named
from brewer_core.engine.figures import Part
from brewer_core.engine.settings import Settings
from brewer_core.errors import NonFiniteError
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, Step


@dataclass(frozen=True)
class Seen:
    """A micro-batch that went through a step, its number in it from 1, and what is recorded of it."""

    number: int
    batch: Batch
    parts: Mapping[str, Part]

    @property
    def not_finite(self) -> str | None:
        """The first term that is not finite; reads from the device."""
        return next((name for name, part in self.parts.items() if not math.isfinite(part.value.item())), None)


class Judge:
    """Lets a step pass that is finite, on all processes, and counts those that it leaves out.

    scaled: gradients that overflow are the business of a GradScaler.
    """

    def __init__(self, settings: Settings, processes: Processes, scaled: bool) -> None:
        self._settings, self._processes, self._scaled = settings, processes, scaled
        self.left_out = 0

    def flag(self, recorded: Sequence[Seen], norm: Tensor) -> int:
        """1 where this process's part of the step is not finite; the one read from the device in a step."""
        losses = torch.stack([seen.parts["total_loss"].value for seen in recorded]).sum()
        total = losses if self._scaled else losses + norm.to(losses.device)
        return int(not math.isfinite(total.item()))

    def despite(self, recorded: Sequence[Seen], norm: Tensor, step: Step) -> bool:
        """Whether a step that some process flagged is made all the same; False where it is left out.

        Called on every process. Raises NonFiniteError where it must not be left out.
        """
        found = self._found(recorded)
        if found and self._settings.only_gradients_stop and math.isfinite(norm.item()):
            warnings.warn(
                f"the term `{found[0]}` is not finite in some step, though its gradients are; training goes on. Its figures in "
                "the log are not finite either: look for batches in which no row has a label.",
                stacklevel=4,
            )
            return True
        what = f"the term `{found[0]}`" if found else "the norm of the gradients"
        self._leave_out(f"{what} is not finite, in {found[1] if found else self._named(recorded)}", step)
        return False

    def _found(self, recorded: Sequence[Seen]) -> tuple[str, str] | None:
        """The first term of any process that is not finite, and the rows in which; None where all are."""
        own = next(((term, self._named([seen])) for seen in recorded if (term := seen.not_finite) is not None), None)
        return next((each for each in self._processes.gathered(own) if each is not None), None)

    def _named(self, recorded: Sequence[Seen]) -> str:
        numbers = [number for seen in recorded for number in rows_named(seen.batch)]
        if numbers:
            return self._settings.name_rows(numbers)
        several = len(recorded) > 1
        return f"micro-batch{'es' * several} {', '.join(str(seen.number) for seen in recorded)} of the step"

    def _leave_out(self, what: str, step: Step) -> None:
        where, before = f"optimizer step {step.step + 1} of {step.total_steps}: {what}", self.left_out
        self.left_out += 1
        if self._settings.on_nonfinite == "skip" and self.left_out <= self._settings.nonfinite_limit:
            warnings.warn(f"{where}; the step is left out.", stacklevel=5)
            return
        more = f"; {'a step was' if before == 1 else f'{before} steps were'} left out before it" if before else ""
        raise NonFiniteError(
            f"{where}{more}; training stopped before the step, and nothing was changed by it. Look for empty or extreme "
            "batches, lower the learning rate, clip with max_grad_norm, or raise the temperature."
        )
