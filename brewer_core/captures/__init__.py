"""What goes on inside a model, as features: hooks that live no longer than one forward pass.

A feature of a short name, such as `query`, is found by the structure of a Hugging Face model. One of the name `module:PATH` is what
the submodule at the dotted PATH returned; `module:PATH.input` is what it was given, and `module:PATH[2]` and `module:PATH[key]` are
parts of a tuple or a mapping.
"""

from __future__ import annotations

from brewer_core.captures.capture import Capture, Captures, capturing, submodule
from brewer_core.captures.conditions import fused
from brewer_core.captures.notices import Notices
from brewer_core.captures.paths import PathError
from brewer_core.feature_names import PREFIX

__all__ = ["PREFIX", "Capture", "Captures", "Notices", "PathError", "capturing", "fused", "submodule"]
