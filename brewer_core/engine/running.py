"""How the learner is run where one process trains alone, and where several bring their gradients together."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from brewer_core.engine.parameters import Trained, add_parameter_groups, check_parameters
from brewer_core.errors import RequestError
from brewer_core.learner import Balanced, Learner
from brewer_core.objective import UNBALANCED
from brewer_core.processes import Processes
from brewer_core.sharding import device_mesh, regroup, shard_learner


class Running(Protocol):
    """Runs the learner forward. averaged: over how many processes gradients are averaged, rather than summed."""

    averaged: int

    def __call__(self, *arguments: Any) -> Balanced:
        """What the learner gives."""
        ...

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; last: it is the last one of the step."""
        ...

    def finish(self) -> None:
        """After the last backward: the gradients are those of the whole step."""
        ...


class Alone:
    """One process."""

    averaged = 1

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def __call__(self, *arguments: Any) -> Balanced:
        """What the learner gives."""
        return _balanced(self._learner(*arguments))

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Nothing to do."""
        del last
        return nullcontext()

    def finish(self) -> None:
        """Nothing to do."""


class Replicated(Alone):
    """Each process has the whole learner, and DistributedDataParallel averages gradients during the last backward."""

    def __init__(self, learner: Learner, processes: Processes, device: torch.device) -> None:
        super().__init__(learner)
        self.averaged = processes.count
        # Terms of other tasks, heads that no term reads: what gets no gradient differs from step to step.
        self._wrapped = DistributedDataParallel(
            learner, device_ids=[device.index] if device.type == "cuda" else None, find_unused_parameters=True
        )

    def __call__(self, *arguments: Any) -> Balanced:
        """What the learner gives."""
        return _balanced(self._wrapped(*arguments))

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients stay in the process until the last micro-batch."""
        context: AbstractContextManager[Any] = nullcontext() if last else self._wrapped.no_sync()
        return context


class Divided(Alone):
    """Each process holds a part of the learner, gathered module by module as it runs; every backward averages gradients."""

    def __init__(self, learner: Learner, processes: Processes) -> None:
        super().__init__(learner)
        self.averaged = processes.count


class SummedAfterwards(Alone):
    """Each process has the whole learner, and gradients are summed once all of a step are there.

    Slower than DistributedDataParallel, which sums during backward; but a process may do the step again before.
    """

    def __init__(self, learner: Learner, processes: Processes, trained: Trained) -> None:
        super().__init__(learner)
        self._processes, self._trained = processes, trained
        with torch.no_grad():
            for tensor in itertools.chain(learner.parameters(), learner.buffers()):
                torch.distributed.broadcast(tensor, src=0)

    def finish(self) -> None:
        """Sum the gradients of what any process used; the others have none, and keep none."""
        parameters = self._trained()
        used = self._processes.most([int(p.grad is not None) for p in parameters])
        for parameter in (p for p, any_used in zip(parameters, used, strict=True) if any_used):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)


def _balanced(given: dict[str, Tensor] | Balanced) -> Balanced:
    return given if isinstance(given, Balanced) else Balanced(given, UNBALANCED)


def placed(
    learner: Learner, optimizer: torch.optim.Optimizer, device: torch.device, divided: bool, repeating: bool
) -> tuple[Learner, Trained]:
    """The learner, complete, on the device, or divided among those of all processes; and what the optimizer holds of it.

    repeating: a process may do a step again by itself. Raises RequestError where the optimizer holds what is not the
    learner's, and for what cannot be divided.
    """
    if divided and repeating:
        raise RequestError(
            'batch_size "auto" halves micro-batches in one process at a time, and a student in parts runs in all of them '
            "together; give a batch size, or do not shard the student."
        )
    if not divided:
        learner.to(device)
    add_parameter_groups(optimizer, learner)
    check_parameters(optimizer, learner)
    if divided:
        before = dict(learner.named_parameters())
        shard_learner(learner, device_mesh(device))
        regroup(optimizer, before, learner)
    return learner, Trained(optimizer, learner)


def running(
    learner: Learner, trained: Trained, processes: Processes, device: torch.device, divided: bool, repeating: bool
) -> Running:
    """How the learner is run. repeating: a process may do a step again by itself."""
    if not processes.several:
        return Alone(learner)
    if divided:
        return Divided(learner, processes)
    return SummedAfterwards(learner, processes, trained) if repeating else Replicated(learner, processes, device)
