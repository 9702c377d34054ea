"""What the optimizer holds: the learner's parameters and no others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from brewer_core.errors import RequestError, did_you_mean, full_stop
from brewer_core.learner import Learner
from brewer_core.objective import Balancer


def add_parameter_groups(optimizer: torch.optim.Optimizer, learner: Learner) -> None:
    """Add what the objective and the strategy train to the optimizer; what it holds already stays where it is."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    groups = learner.objective.parameter_groups()
    if learner.parts is not None:
        groups.append({"params": list(learner.parts.parameters())})
    if learner.balancer is not None:
        groups.append({"params": list(learner.balancer.parameters()), **_settings_of(learner.balancer, optimizer)})
    _check_settings(optimizer, groups)
    for group in groups:
        new = [p for p in group["params"] if id(p) not in held]
        if new:
            optimizer.add_param_group({**group, "params": new})


def _settings_of(balancer: Balancer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Those of a balancer's settings that the optimizer has; what wraps one may not tell."""
    known = getattr(optimizer, "defaults", {})
    return {key: value for key, value in balancer.group.items() if key in known}


def check_parameters(optimizer: torch.optim.Optimizer, learner: nn.Module) -> None:
    """Raises RequestError for a parameter of the optimizer that is no part of the learner."""
    own = {id(p) for p in learner.parameters()}
    for position, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if id(parameter) not in own:
                raise RequestError(
                    f"the optimizer's group {position} holds a parameter of shape {tuple(parameter.shape)} (number {index}) that is "
                    "neither the student's nor a projection's; build the optimizer over the student's parameters."
                )


class Trained:
    """The learner's parameters that the optimizer holds, looked up again only where a callback has added some."""

    def __init__(self, optimizer: torch.optim.Optimizer, learner: nn.Module) -> None:
        self._optimizer, self._learner = optimizer, learner
        self._sizes: list[int] = []
        self._found: list[nn.Parameter] = []

    def __call__(self) -> list[nn.Parameter]:
        """The parameters, in the learner's order."""
        sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        if sizes != self._sizes:
            held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
            self._found = [p for p in self._learner.parameters() if id(p) in held]
            self._sizes = sizes
        return self._found


def _check_settings(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises RequestError for a setting that is misspelt; others that the optimizer does not have may be a schedule's."""
    defaults = getattr(optimizer, "defaults", {})  # what wraps an optimizer may have none
    known = {key for group in (defaults, *optimizer.param_groups) for key in group} - {"params"}
    for key in [key for group in groups for key in group if key not in known | {"params"}]:
        if difflib.get_close_matches(key, known, cutoff=0.75):
            raise RequestError(
                full_stop(
                    f"the settings of a projection's parameter group: {type(optimizer).__name__} has no setting "
                    f"{key!r}{did_you_mean(key, sorted(known))}"
                )
            )
