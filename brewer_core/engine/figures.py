"""The figures of the steps since the last log, kept on the device until one is due."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brewer_core.processes import Processes


@dataclass(frozen=True)
class Part:
    """A micro-batch's part of a step's mean of a term, and its share of the step."""

    value: Tensor
    share: float


@dataclass
class Window:
    """Sums since the last log, on the device: nothing is read from it between logs."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, recorded: Sequence[Mapping[str, Part]]) -> None:
        """Add the parts of a step."""
        self.steps += 1
        for parts in recorded:
            for name, part in parts.items():
                self.sums[name] = self.sums[name] + part.value if name in self.sums else part.value
                self.shares[name] = self.shares.get(name, 0.0) + part.share

    def read(self, processes: Processes) -> dict[str, float]:
        """The mean of each term over the steps in which it was; a term of some tasks alone over those."""
        names = list(dict.fromkeys(name for theirs in processes.gathered(list(self.sums)) for name in theirs))
        zero = next((value.new_zeros(()) for value in self.sums.values()), torch.zeros(()))
        read = torch.stack([self.sums.get(name, zero).float() for name in names]).tolist()
        added = processes.sums([*read, *(self.shares.get(name, 0.0) for name in names)])
        sums, shares = added[: len(names)], added[len(names) :]
        means = {name: value / share for name, value, share in zip(names, sums, shares, strict=True) if share > 0}
        return {**means, "steps_per_s": self.steps / (time.perf_counter() - self.since)}

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint between two logs."""
        return {"sums": dict(self.sums), "shares": dict(self.shares), "steps": self.steps}

    @classmethod
    def of_states(cls, states: Sequence[Mapping[str, Any]], device: torch.device) -> Window:
        """The window of a checkpoint; of several processes' windows one with the sums of all."""
        window = cls(steps=max((state["steps"] for state in states), default=0))
        for state in states:
            for name, value in state["sums"].items():
                moved = value.to(device)
                window.sums[name] = window.sums[name] + moved if name in window.sums else moved
                window.shares[name] = window.shares.get(name, 0.0) + state["shares"][name]
        return window


def told(parts: Mapping[str, Part], task: str) -> dict[str, Part]:
    """The parts by name, and those of a task's terms under `name/task` as well."""
    terms = {f"{name}/{task}": part for name, part in parts.items() if name != "total_loss"}
    return {**parts, **(terms if task else {})}
