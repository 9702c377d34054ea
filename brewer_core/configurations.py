"""TextBrewer's module of this name, for scripts that import from it."""

from brewer_core.config import DistillationConfig, TrainingConfig

__all__ = ["DistillationConfig", "TrainingConfig"]
