"""Many-to-many layer matching by earth mover's distance: the strategy `emd`."""

from __future__ import annotations

from brewer_core import Strategy, hookimpl
from brewer_strategy_emd.strategy import EMD as EMD


@hookimpl
def brewer_strategies() -> dict[str, type[Strategy]]:
    """The strategy of this plugin."""
    return {"emd": EMD}
