"""TextBrewer's draws: from numpy's global generator, and alike on every process."""

from __future__ import annotations

from typing import Any

import numpy
import torch.distributed


class GlobalDraws:
    """Draws from numpy's global generator, as TextBrewer does; where there are several processes, those of the first."""

    def choice(self, a: Any, /, *, p: Any = None) -> Any:
        """One of the items, with these probabilities."""
        drawn = [numpy.random.choice(a, p=p)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(drawn, src=0)
        return drawn[0]
