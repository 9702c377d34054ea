"""The real textbrewer, imported in this one place because its import warns (and warnings are errors here)."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import textbrewer
    from textbrewer import losses, presets, projections, schedulers

__all__ = ["losses", "presets", "projections", "schedulers", "textbrewer"]
