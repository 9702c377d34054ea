"""Optimizers and learning-rate schedules, from a run config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from brewer_core.config.optimization import Optimization, OptimizerConfig, ScheduleConfig
from brewer_core.errors import ConfigError
from brewer_core.run.assembly import attempt
from brewer_core.run.by_name import Named, asked, optimizer_named, schedule_named
from brewer_core.run.training_modes import training_modes

OWN_SCHEDULES = ("constant", "linear", "cosine", "one_cycle")
WARMUP = 0.1
"""Share of the steps where the config has none and the schedule has a warm-up."""

_NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Whose parameters may have several dimensions; those of other norms are vectors."""
_FIELDS_OF_AN_OPTIMIZER = {
    "params": "it is what the stage trains",
    "lr": "give it as the optimizer's `learning_rate`",
    **{
        name: f"give it beside `options`, as the optimizer's `{name}`" for name in ("weight_decay", "momentum", "fused")
    },
    "differentiable": "a run does not differentiate through its steps",
}
_OF_THE_RUN = "it is known to the run; leave it out"
_FIELDS_OF_A_SCHEDULE = {
    "num_warmup_steps": "give it beside `options`, as the schedule's `warmup`, a share of the steps",
    **dict.fromkeys(
        ("optimizer", "num_training_steps", "total_steps", "epochs", "steps_per_epoch", "last_epoch"), _OF_THE_RUN
    ),
    "scale_fn": "it is a function, which a config cannot hold",
}


def make_optimizer(config: OptimizerConfig, model: nn.Module, path: str = "optimizer") -> torch.optim.Optimizer:
    """The optimizer over a model's trainable parameters, with those that decay in a group and the others in another.

    path: where the config stands, for the errors. Raises ConfigError for a name that is not known, options that the class
    does not have, and what the class itself refuses.
    """
    named = optimizer_named(config.name, path)
    problems = named.problems(config.options, {}, _FIELDS_OF_AN_OPTIMIZER, path)
    if config.fused is not None and "fused" not in named.parameters:
        problems.append(f"{path}.fused: {named.name} has no fused form; leave it out")
    if problems:
        raise ConfigError(problems)
    with asked(named.name, path):
        made: torch.optim.Optimizer = named.make(parameter_groups(config, model), **_settings(config, named))
    return made


def parameter_groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters that decay, and those that do not; one that has several names is there once."""
    spared = _spared(model) if config.no_decay == "biases_and_norms" else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _spared(model: nn.Module) -> set[int]:
    """The ids of vectors, of what is called `bias`, and of what belongs to a norm, whatever its shape."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() <= 1 or name == "bias" or isinstance(module, _NORMS)
    }


def _settings(config: OptimizerConfig, named: Named) -> dict[str, Any]:
    # relative_step: transformers' Adafactor finds its own rate by default, and refuses one that is given
    found = {"momentum": config.momentum, "relative_step": False}
    own = {name: value for name, value in found.items() if name in named.parameters}
    fused = {} if config.fused is None else {"fused": config.fused}
    return {"lr": config.learning_rate, **own, **fused, **config.options}


def make_schedule(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, total_steps: int, path: str = "schedule"
) -> LRScheduler:
    """The schedule of an optimizer over a stage.

    path: where the config stands, for the errors. Raises ConfigError for a name that is not known, options that the schedule
    does not have, and what the schedule itself refuses.
    """
    name = config.name.lower()
    if name not in OWN_SCHEDULES:
        return _schedule_by_name(config, optimizer, total_steps, path)
    if config.options:
        raise ConfigError([f"{path}.options: the schedule {name!r} has none"])
    if name == "one_cycle":
        share = min(max(_warmup(config), 1 / total_steps), 1 - 1 / total_steps) if total_steps > 1 else 0.5
        return OneCycleLR(optimizer, max_lr=_rates(optimizer), total_steps=max(total_steps, 2) + 1, pct_start=share)
    return LambdaLR(optimizer, lambda step: factor(config, step, total_steps))


def _schedule_by_name(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, total_steps: int, path: str
) -> LRScheduler:
    named = schedule_named(config.name, path, OWN_SCHEDULES)
    given = {
        name: value for name, value in _of_the_run(config, optimizer, total_steps).items() if name in named.parameters
    }
    problems = named.problems(config.options, given, _FIELDS_OF_A_SCHEDULE, path)
    if config.warmup and "num_warmup_steps" not in given:
        problems.append(f"{path}.warmup: {named.name} has no warm-up; leave it out, or take a schedule that has one")
    if problems:
        raise ConfigError(problems)
    with asked(named.name, path):
        made: LRScheduler = named.make(optimizer, **{**given, **config.options})
    return made


def _of_the_run(config: ScheduleConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> Mapping[str, Any]:
    """What a run knows of the parameters of schedules, under the names that torch and transformers have for it."""
    return {
        "num_warmup_steps": round(_warmup(config) * total_steps),
        "num_training_steps": total_steps,
        "total_steps": total_steps,
        "T_max": total_steps,
        "max_lr": _rates(optimizer),
    }


def _warmup(config: ScheduleConfig) -> float:
    return WARMUP if config.warmup is None else config.warmup


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The factor of the learning rate before the optimizer step numbered `step`, from 0, in `constant`, `linear` or `cosine`."""
    warmup, name = round(_warmup(config) * total_steps), config.name.lower()
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if name == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    return max(0.0, 1 - progress) if name == "linear" else (1 + math.cos(math.pi * min(1.0, progress))) / 2


def check_training(training: Optimization, student: nn.Module, total_steps: int, path: str) -> None:
    """Make of a student's training what is made by name, and try it, without training.

    path: where the training stands in the config. Raises ConfigError with every problem.
    """
    problems: list[str] = []
    attempt(problems, make_optimizer, training.optimizer, student, f"{path}.optimizer")
    attempt(problems, _try_steps, training, total_steps, path, bool(problems))
    attempt(problems, _try_modes, training, student, path)
    if problems:
        raise ConfigError(problems)


def _try_steps(training: Optimization, total_steps: int, path: str, without_optimizer: bool) -> None:
    """A few steps of optimizer and schedule on a matrix and a vector: some settings are refused only then."""
    config = OptimizerConfig() if without_optimizer else training.optimizer
    layer = nn.ParameterList([torch.zeros(2, 2), torch.zeros(2)])  # draws nothing, as the run's numbers would shift
    optimizer = make_optimizer(config, layer, f"{path}.optimizer")
    schedule = make_schedule(training.schedule, optimizer, total_steps, f"{path}.schedule")
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(min(total_steps, 3)):
        with asked(config.name, f"{path}.optimizer"):
            optimizer.step()
        with asked(training.schedule.name, f"{path}.schedule"):
            schedule.step()


def _try_modes(training: Optimization, student: nn.Module, path: str) -> None:
    with training_modes(student, training, path):
        pass
