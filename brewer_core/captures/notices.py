"""What is said of a model while it is read, once of each, however often and by whomever."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from torch import nn


class Notices:
    """Remembers of which models it was said that their attention is eager. Who reads a model in several places hands on the same."""

    def __init__(self) -> None:
        self._eager: WeakSet[nn.Module] = WeakSet()

    def of_eager_attention(self, model: nn.Module, owner: str, kind: str) -> None:
        """Say that the model computes attention eagerly, and not as the kind does that it has."""
        if model in self._eager:
            return
        self._eager.add(model)
        logging.getLogger("brewer_core").warning(
            "the %s's attention is computed as a whole (eager, not %s) while it is read.", owner, kind
        )
