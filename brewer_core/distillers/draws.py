"""TextBrewer's draws: from numpy's global generator, and alike on every process."""

from __future__ import annotations

from typing import Any

import numpy

from brewer_core.processes import Processes


class GlobalDraws:
    """Draws from numpy's global generator, as TextBrewer does; where there are several processes, those of the first."""

    def choice(self, a: Any, /, *, p: Any = None) -> Any:
        """One of the items, with these probabilities."""
        drawn = numpy.random.choice(a, p=p)  # in each of them, so that their generators stay alike
        return Processes.current().of_first(lambda: drawn)
