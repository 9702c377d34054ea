"""TextBrewer's module of this name, for scripts that import from it."""

from brewer_core.batches import move_to_device
from brewer_core.distillers import CustomMatch

__all__ = ["CustomMatch", "move_to_device"]
