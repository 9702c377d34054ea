"""Patient knowledge distillation: the match loss `pkd`, and the strategy `pkd` that gives each layer its teacher."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from brewer_core import Strategy, hookimpl
from brewer_loss_pkd.loss import pkd as pkd
from brewer_loss_pkd.strategy import PatientDistillation as PatientDistillation


@hookimpl
def brewer_match_losses() -> dict[str, Callable[..., Tensor]]:
    """The loss of this plugin."""
    return {"pkd": pkd}


@hookimpl
def brewer_strategies() -> dict[str, type[Strategy]]:
    """The strategy of this plugin."""
    return {"pkd": PatientDistillation}
