"""Optimizers and learning-rate schedules of torch.optim, from a run config."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from brewer_core.config.run import OptimizerConfig, ScheduleConfig


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over a model's trainable parameters; biases and norms, being vectors, are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    make = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return make(groups, lr=config.learning_rate)


def make_schedule(config: ScheduleConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR | OneCycleLR:
    """The schedule of an optimizer over a stage."""
    if config.name == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        share = min(max(config.warmup, 1 / total_steps), 1 - 1 / total_steps) if total_steps > 1 else 0.5
        return OneCycleLR(optimizer, max_lr=rates, total_steps=max(total_steps, 2) + 1, pct_start=share)
    return LambdaLR(optimizer, lambda step: factor(config, step, total_steps))


def factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The factor of the learning rate before the optimizer step numbered `step`, from 0."""
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    return max(0.0, 1 - progress) if config.name == "linear" else (1 + math.cos(math.pi * min(1.0, progress))) / 2
