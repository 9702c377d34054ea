"""Schedules of a term's weight: factors of the configured weight over a run.

progress is the share of the run that is done, in [0, 1]. With `warmup` a schedule runs over the rest of the run: before, its
factor rises linearly from 0 to where the schedule starts, so a growth, which starts at 0, stays there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from brewer_core import component, hookimpl

Warmup = Annotated[
    float,
    Field(
        ge=0, lt=1, description="Share of the run before the schedule, in which its factor rises from 0 to its start."
    ),
]


@component(source="TextBrewer, arXiv:2002.12620")
def linear_decay(progress: float, *, warmup: Warmup = 0.0) -> float:
    """Fall from 1 to 0 in a straight line."""
    return _after_warmup(lambda share: 1 - share, progress, warmup)


@component(source="TextBrewer, arXiv:2002.12620")
def linear_growth(progress: float, *, warmup: Warmup = 0.0) -> float:
    """Rise from 0 to 1 in a straight line; with `warmup`, stay at 0 first."""
    return _after_warmup(lambda share: share, progress, warmup)


def constant(progress: float, *, warmup: Warmup = 0.0) -> float:
    """Stay at 1; with `warmup`, rise there from 0 first."""
    return _after_warmup(lambda _: 1.0, progress, warmup)


@component(source="Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts")
def cosine_decay(progress: float, *, warmup: Warmup = 0.0) -> float:
    """Fall from 1 to 0 along half a cosine: slow, fast, slow."""
    return _after_warmup(lambda share: (1 + math.cos(math.pi * share)) / 2, progress, warmup)


@component(source="Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, mirrored")
def cosine_growth(progress: float, *, warmup: Warmup = 0.0) -> float:
    """Rise from 0 to 1 along half a cosine: slow, fast, slow; with `warmup`, stay at 0 first."""
    return _after_warmup(lambda share: (1 - math.cos(math.pi * share)) / 2, progress, warmup)


@hookimpl
def brewer_weight_schedulers() -> dict[str, Callable[..., float]]:
    """The built-in schedules of weights."""
    return {
        "constant": constant,
        "cosine_decay": cosine_decay,
        "cosine_growth": cosine_growth,
        "linear_decay": linear_decay,
        "linear_growth": linear_growth,
    }


def _after_warmup(schedule: Callable[[float], float], progress: float, warmup: float) -> float:
    if progress < warmup:
        return schedule(0.0) * progress / warmup
    return schedule((progress - warmup) / (1 - warmup))
