"""The processes that train together: which one this is, what they tell one another, and how they join and part.

They are those that `torchrun` or `accelerate launch` starts, and talk by torch.distributed. What is agreed upon goes over the
CPU; gradients are none of this module's business.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from brewer_core.errors import BrewerError, ProcessError, RequestError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_LETTING_GO_S = 0.1

TIMEOUT_S = 600.0
"""How long a process waits for the others by default, before it gives them up for lost."""


@dataclass(frozen=True)
class Processes:
    """All processes of a training, seen from one of them.

    rank: which one this is, from 0. count: how many there are. Every method but the properties is called by all of them, in the
    same order; with one process, each does at once what it would come to.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Those that torch.distributed connects; one alone where it connects none."""
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.count > 1

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of all processes' numbers, each place by itself."""
        if not self.several:
            return list(numbers)
        import torch
        import torch.distributed as dist

        agreed = torch.tensor(numbers, device=_meeting_place())
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        largest: list[int] = agreed.tolist()
        return largest

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sums of all processes' numbers, each place by itself."""
        if not self.several:
            return list(numbers)
        import torch
        import torch.distributed as dist

        added = torch.tensor(numbers, dtype=torch.float64, device=_meeting_place())
        dist.all_reduce(added)
        sums: list[float] = added.tolist()
        return sums

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them. An error of brewer's that it meets is raised in all of them."""
        if not self.several:
            return make()
        import torch.distributed as dist

        told: list[Any] = [None]
        if self.first:
            told = [_attempted(make)]
        dist.broadcast_object_list(told, src=0)
        error, value = told[0]
        if error is not None:
            raise error
        made: T = value
        return made

    @contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """What torch raises where another process is gone, or does not answer, becomes a ProcessError."""
        try:
            yield
        except RuntimeError as error:  # torch.distributed's own errors are RuntimeErrors, gloo's in backward plain ones
            if not self.several or not _is_of_connection(error):
                raise
            raise ProcessError(
                f"process {self.rank} of {self.count} lost another one, which ended or did not answer; the cause stands in that "
                "one's output. Start all of them again with --resume."
            ) from error


def launched() -> bool:
    """Whether a launcher started this process beside others."""
    return _number("WORLD_SIZE", 1) > 1


def local_rank() -> int:
    """Which of the processes of this machine this is, from 0: the number of its GPU."""
    return _number("LOCAL_RANK", 0)


def own_gpu() -> torch.device:
    """The GPU of this process, of those that this machine has. Raises RequestError where it has fewer than processes."""
    import torch

    number, count = local_rank(), torch.cuda.device_count()
    if number >= count:
        raise RequestError(
            f"this is process {number + 1} of this machine, which has {count} GPU{'s' if count > 1 else ''}; start one process for each "
            "GPU, or train on the device cpu."
        )
    return torch.device("cuda", number)


def join(timeout_s: float = TIMEOUT_S) -> Processes:
    """Join the processes that were launched with this one, if any were, for as long as this one lives.

    timeout_s: how long to wait for an answer before the others are given up for lost.
    Raises RequestError where the launcher's variables are missing, ProcessError where the others do not come.
    """
    import torch.distributed as dist

    if launched() and not dist.is_initialized():
        _connect(timeout_s)
        atexit.register(part)
    return Processes.current()


@contextmanager
def joined(timeout_s: float = TIMEOUT_S) -> Iterator[Processes]:
    """What `join` does, until the end of what is inside; those that are connected already stay so."""
    import torch.distributed as dist

    if not launched() or dist.is_initialized():
        yield Processes.current()
        return
    _connect(timeout_s)
    try:
        yield Processes.current()
    finally:
        part()


def part() -> None:
    """Let go of the others, where any are connected; nothing is said to them any more.

    gloo's threads let go of the tensors of the last exchange by themselves, for which they need the interpreter. Where a model in
    parts keeps the group alive they are not waited for, and one that comes when the interpreter ends aborts the process.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(_LETTING_GO_S)


def _connect(timeout_s: float) -> None:
    import torch
    import torch.distributed as dist

    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RequestError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {missing[0]} is not set; start several processes with torchrun or "
            "accelerate launch, which set both, or unset WORLD_SIZE."
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"the processes did not find one another: {' '.join(str(error).split())[:200]}") from error


def _meeting_place() -> str:
    """Where numbers are agreed upon: the CPU, but for a group that a script has made for GPUs alone."""
    import torch.distributed as dist

    return "cpu" if "cpu:" in dist.get_backend_config() else "cuda"


def _attempted(make: Callable[[], Any]) -> tuple[BrewerError | None, Any]:
    try:
        return None, make()
    except BrewerError as error:
        return error, None


def _is_of_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "onnection", "imed out"))


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise RequestError(f"the environment variable {variable} is {text!r}; expected a whole number.")
    return int(text) if text else default
