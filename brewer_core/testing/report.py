"""Runs the properties of components without pytest, and tells what became of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from brewer_core.components import Component
from brewer_core.errors import MissingExtraError, RequestError, did_you_mean
from brewer_core.plugins import Choice, collect_plugins, find_plugins, load_plugins
from brewer_core.registry import Plugin
from brewer_core.testing.adaptors import AdaptorConformance
from brewer_core.testing.balancers import BalancerConformance
from brewer_core.testing.conformance import PREFIX, Conformance, DoesNotApply
from brewer_core.testing.kd_losses import KDLossConformance
from brewer_core.testing.match_losses import MatchLossConformance
from brewer_core.testing.projections import ProjectionConformance
from brewer_core.testing.schedulers import TemperatureSchedulerConformance, WeightSchedulerConformance
from brewer_core.testing.sources import DatasetConformance, ModelConformance
from brewer_core.testing.strategies import StrategyConformance
from brewer_core.testing.texts import AugmentationConformance, MetricConformance
from brewer_core.testing.trackers import TrackerConformance

Result = Literal["passed", "failed", "skipped"]

CLASSES: Mapping[str, type[Conformance]] = MappingProxyType(
    {
        each.kind: each
        for each in (
            KDLossConformance,
            MatchLossConformance,
            ProjectionConformance,
            WeightSchedulerConformance,
            TemperatureSchedulerConformance,
            AdaptorConformance,
            StrategyConformance,
            ModelConformance,
            DatasetConformance,
            MetricConformance,
            AugmentationConformance,
            BalancerConformance,
            TrackerConformance,
        )
    }
)
"""The conformance class of each kind."""


@dataclass(frozen=True)
class Outcome:
    """What became of a property of a component; reason: why it failed or was skipped, on one line."""

    kind: str
    component: str
    property: str
    result: Result
    reason: str | None = None


def conformance_of(component: Component) -> type[Conformance]:
    """The conformance class of a component's kind, for that component."""
    base = CLASSES[component.kind.name]
    return type(f"{component.name}_conformance", (base,), {"component": component, "__doc__": base.__doc__})


def outcomes(conformance: type[Conformance]) -> tuple[Outcome, ...]:
    """What becomes of each property; torch's global generator is put back after each."""
    return tuple(_outcome(conformance, name) for name in conformance.properties())


def plugins_of(distribution: str) -> tuple[Plugin, ...]:
    """The plugins of an installed distribution, loaded or failed; no other distribution is imported.

    Raises RequestError where no such distribution has plugins, with names that are close, and where all are disabled.
    """
    found, name = find_plugins(), re.sub(r"[-_.]+", "-", distribution).lower()
    known = sorted({plugin.distribution for plugin in found})
    if name not in known:
        raise RequestError(f"no distribution {distribution!r} with plugins is installed{did_you_mean(name, known)}")
    choice = Choice.of_environment()
    own = [plugin for plugin in found if plugin.distribution == name and choice.takes(plugin)]
    if not own:
        raise RequestError(
            f"{name} is disabled by BREWER_DISABLE_PLUGINS, or not allowed by BREWER_PLUGINS; change that to test it."
        )
    return collect_plugins(load_plugins(own))


def _outcome(conformance: type[Conformance], name: str) -> Outcome:
    tested = conformance()
    result, reason = _result(tested, name)
    return Outcome(tested.kind, tested.subject.name, name, result, reason)


def _result(tested: Conformance, name: str) -> tuple[Result, str | None]:
    method = getattr(tested, PREFIX + name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tested.setup_method(method)
            method()
    except (DoesNotApply, MissingExtraError) as error:
        return "skipped", _one_line(error)
    except AssertionError as error:
        return "failed", _one_line(error) or "its assertion does not hold"
    except (Exception, SystemExit) as error:  # whatever a plugin may raise
        return "failed", f"{type(error).__name__}: {_one_line(error)}"
    return "passed", None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
