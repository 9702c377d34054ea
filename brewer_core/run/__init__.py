"""`brewer run`: from a JSON config to a trained student in a folder of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewer_core.run.pipeline import run_config as run_config

__all__ = ["run_config"]


def __getattr__(name: str) -> Any:
    if name != "run_config":
        raise AttributeError(f"module 'brewer_core.run' has no attribute {name!r}")
    from brewer_core.run.pipeline import run_config  # not at import: packaged configs are listed without torch

    return run_config
