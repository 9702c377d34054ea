"""TextBrewer's distillers: thin doors, under the same signatures, to the one engine."""

from brewer_core.distillers.distillers import BasicDistiller, BasicTrainer, GeneralDistiller

__all__ = ["BasicDistiller", "BasicTrainer", "GeneralDistiller"]
