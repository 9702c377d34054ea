"""TextBrewer's distillers: thin doors, under the same signatures, to the one engine."""

from brewer_core.distillers.custom_matches import CustomMatch
from brewer_core.distillers.distillers import (
    BasicDistiller,
    BasicTrainer,
    Distillers,
    GeneralDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
)

__all__ = [
    "BasicDistiller",
    "BasicTrainer",
    "CustomMatch",
    "Distillers",
    "GeneralDistiller",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
]
