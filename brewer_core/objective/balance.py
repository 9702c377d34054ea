"""Builds the balancer of a config."""

from __future__ import annotations

from brewer_core.balancing import Balancer
from brewer_core.config import DistillationConfig
from brewer_core.errors import ConfigError, RequestError
from brewer_core.objective.builder import bind_ref
from brewer_core.objective.objective import Objective
from brewer_core.protocols import Step, Strategy
from brewer_core.registry import Registry


def balancer_of(
    config: DistillationConfig,
    registry: Registry,
    objective: Objective,
    strategy: Strategy,
    source: str = "DistillationConfig",
) -> Balancer | None:
    """The balancer that a config names, of the terms of objective and strategy; None where it names none.

    source: what the error says was read. Raises ConfigError where the balancer is none, or cannot be made.
    """
    if config.balancer is None:
        return None
    try:
        made = bind_ref(registry, config.balancer)(terms_of(objective, strategy))
    except RequestError as error:
        raise ConfigError([f"balancer: {str(error).rstrip('.')}"], source) from error
    if not isinstance(made, Balancer):
        raise ConfigError([f"balancer: `{config.balancer.name}` is no brewer_core.Balancer"], source)
    return made


def terms_of(objective: Objective, strategy: Strategy) -> tuple[str, ...]:
    """The terms that may count: those of the objective with a weight other than 0, and those that the strategy weighs itself."""
    weighted = [name for name, weight in objective.factors.items() if weight.base]
    return tuple(dict.fromkeys([*weighted, *strategy.weights(Step(0, 1))]))
