"""What is drawn from the process-wide generators of Python, NumPy and torch: kept, put back, and seeded for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all process-wide generators, in tensors and plain values that a checkpoint can hold."""
    import numpy
    import torch

    drawn: Any = numpy.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = drawn
    version, state, gauss_next = random.getstate()
    return {
        "python": {"version": version, "state": torch.tensor(state), "gauss_next": gauss_next},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(keys.astype("int64")),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back to states that `random_states` gave; those of a GPU only where there was and is one."""
    import numpy
    import torch

    python, drawn = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss_next"]))
    keys = drawn["keys"].numpy().astype("uint32")
    numpy.random.set_state((drawn["name"], keys, drawn["position"], drawn["has_gauss"], drawn["gauss"]))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)


def stir(number: int) -> None:
    """Make the generators draw otherwise than they would, each number in a way of its own."""
    import numpy
    import torch

    seed = (int(torch.randint(2**31, ()).item()) + number) % 2**32
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What is drawn inside is drawn aside: afterwards the generators are as they were."""
    states = random_states(device)
    try:
        yield
    finally:
        restore_random_states(states, device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws from the process-wide generators come from the seed inside it; afterwards they are as they were.

    seed: from 0 up to, and without, 2^32.
    """
    import numpy
    import torch

    with undisturbed(device):
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        yield
