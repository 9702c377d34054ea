"""The real textbrewer, imported in this one place because its import warns (and warnings are errors here)."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import textbrewer
    from textbrewer import data_utils, distiller_utils, losses, presets, projections, schedulers

__all__ = ["data_utils", "distiller_utils", "losses", "presets", "projections", "schedulers", "textbrewer"]
