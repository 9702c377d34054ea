"""The factor of a term over a run."""

from __future__ import annotations

from dataclasses import dataclass

from brewer_core.components import Method
from brewer_core.protocols import Step


@dataclass(frozen=True)
class Weight:
    """A term's factor: its configured weight, times its schedule where it has one."""

    base: float
    schedule: Method | None = None

    def at(self, step: Step) -> float:
        """The factor at a step, from the first one on."""
        if self.schedule is None:
            return self.base
        return self.base * float(self.schedule(step.progress, step=step.step, total_steps=step.total_steps))
