"""Configs: frozen, closed pydantic models that do nothing when they are built."""

from brewer_core.config.distillation import DistillationConfig, IntermediateMatch
from brewer_core.config.optimization import Optimization
from brewer_core.config.refs import ComponentRef
from brewer_core.config.run import (
    DistillStage,
    Evaluation,
    RunConfig,
    SupervisedStage,
    load_run_config,
    parse_run_config,
)
from brewer_core.config.training import TrainingConfig

__all__ = [
    "ComponentRef",
    "DistillStage",
    "DistillationConfig",
    "Evaluation",
    "IntermediateMatch",
    "Optimization",
    "RunConfig",
    "SupervisedStage",
    "TrainingConfig",
    "load_run_config",
    "parse_run_config",
]
