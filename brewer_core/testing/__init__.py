"""Tests that every plugin can run: a conformance class for each kind of component, and what test plugins need.

Importing this package loads no torch; each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewer_core.testing.adaptors import AdaptorConformance as AdaptorConformance
    from brewer_core.testing.balancers import BalancerConformance as BalancerConformance
    from brewer_core.testing.conformance import DoesNotApply as DoesNotApply
    from brewer_core.testing.distributions import write_distribution as write_distribution
    from brewer_core.testing.kd_losses import KDLossConformance as KDLossConformance
    from brewer_core.testing.losses import LossInputs as LossInputs
    from brewer_core.testing.match_losses import MatchLossConformance as MatchLossConformance
    from brewer_core.testing.projections import ProjectionConformance as ProjectionConformance
    from brewer_core.testing.schedulers import TemperatureSchedulerConformance as TemperatureSchedulerConformance
    from brewer_core.testing.schedulers import WeightSchedulerConformance as WeightSchedulerConformance
    from brewer_core.testing.sources import DatasetConformance as DatasetConformance
    from brewer_core.testing.sources import ModelConformance as ModelConformance
    from brewer_core.testing.strategies import StrategyConformance as StrategyConformance
    from brewer_core.testing.tensors import seeded_tensors as seeded_tensors
    from brewer_core.testing.texts import AugmentationConformance as AugmentationConformance
    from brewer_core.testing.texts import MetricConformance as MetricConformance
    from brewer_core.testing.tiny import TinyRun as TinyRun
    from brewer_core.testing.tiny import tiny_run as tiny_run
    from brewer_core.testing.trackers import TrackerConformance as TrackerConformance

_HOMES = {
    "adaptors": ("AdaptorConformance",),
    "balancers": ("BalancerConformance",),
    "conformance": ("DoesNotApply",),
    "distributions": ("write_distribution",),
    "kd_losses": ("KDLossConformance",),
    "losses": ("LossInputs",),
    "match_losses": ("MatchLossConformance",),
    "projections": ("ProjectionConformance",),
    "schedulers": ("TemperatureSchedulerConformance", "WeightSchedulerConformance"),
    "sources": ("DatasetConformance", "ModelConformance"),
    "strategies": ("StrategyConformance",),
    "tensors": ("seeded_tensors",),
    "texts": ("AugmentationConformance", "MetricConformance"),
    "tiny": ("TinyRun", "tiny_run"),
    "trackers": ("TrackerConformance",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605  # names of the table above, each a string


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'brewer_core.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"brewer_core.testing.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
