"""TextBrewer's distillers: thin doors, under the same signatures, to the one engine."""

from brewer_core.distillers.custom_matches import CustomMatch
from brewer_core.distillers.several import MultiTaskDistiller, MultiTeacherDistiller
from brewer_core.distillers.single import BasicDistiller, BasicTrainer, GeneralDistiller
from brewer_core.distillers.trains import Trains

__all__ = [
    "BasicDistiller",
    "BasicTrainer",
    "CustomMatch",
    "Distillers",
    "GeneralDistiller",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
]

Distillers: dict[str, type[Trains]] = {
    "Basic": BasicDistiller,
    "General": GeneralDistiller,
    "MultiTeacher": MultiTeacherDistiller,
    "MultiTask": MultiTaskDistiller,
    "Train": BasicTrainer,
}
"""The classes by TextBrewer's short names."""
