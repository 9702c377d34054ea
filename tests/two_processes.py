"""Two processes that talk to each other over gloo, for tests: what a function returns in each."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from brewer_core.processes import part


def in_each(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What a function, of this or another importable module, returns for the rank in each of two processes."""
    torch.multiprocessing.spawn(_run, (function, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _run(rank: int, function: Callable[[int], Any], folder: str) -> None:
    faulthandler.enable()  # one that aborts says where it was
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save(function(rank), Path(folder) / f"{rank}.pt")
        torch.distributed.barrier()  # one that parts while the other still talks to it may end both with an abort
    finally:
        part()
    # What the function returned is there. How an interpreter ends beside gloo's threads is tested under torchrun.
    os._exit(0)


def drawn_tasks(rank: int) -> list[str]:
    """Twenty tasks, drawn where numpy is seeded with the rank, and what numpy draws next."""
    import numpy

    from brewer_builtins.strategies import MultiTask
    from brewer_core.distillers.draws import GlobalDraws

    numpy.random.seed(rank)
    batches = MultiTask(tau=0.5).batches({"a": [1, 2], "b": [3] * 9, "c": [4] * 4}, GlobalDraws())
    return [task for _, (task, _) in zip(range(20), batches, strict=False)]
