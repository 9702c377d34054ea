"""Where in a model the features of short names are: found by the structure of its layers, not by its class."""

from __future__ import annotations

from brewer_core.architectures.anatomy import Anatomy, ShortFeature, anatomy_of, offered_paths
from brewer_core.architectures.taps import Tap

__all__ = ["Anatomy", "ShortFeature", "Tap", "anatomy_of", "offered_paths"]
