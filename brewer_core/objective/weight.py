"""The factor of a term over a run."""

from __future__ import annotations

from dataclasses import dataclass

from brewer_core.components import Method
from brewer_core.protocols import Step


@dataclass(frozen=True)
class Weight:
    """A term's factor: its configured weight, times its schedule where it has one, times another factor where there is one."""

    base: float
    schedule: Method | None = None
    times: Weight | None = None

    @property
    def never_counts(self) -> bool:
        """Whether it is 0 at every step, whatever its schedule says."""
        return self.base == 0 or (self.times is not None and self.times.never_counts)

    def at(self, step: Step) -> float:
        """The factor at a step, from the first one on."""
        scheduled = 1.0 if self.times is None else self.times.at(step)
        if self.schedule is not None:
            scheduled *= float(self.schedule(step.progress, step=step.step, total_steps=step.total_steps))
        return self.base if self.schedule is None and self.times is None else self.base * scheduled
