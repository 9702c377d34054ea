"""brewer: knowledge distillation for PyTorch in which every method is a plugin.

Importing this package loads neither torch nor a plugin; each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brewer_core import configurations as configurations
    from brewer_core import data_utils as data_utils
    from brewer_core import distiller_utils as distiller_utils
    from brewer_core import presets as presets
    from brewer_core import utils as utils
    from brewer_core.cache import CachedTeacher as CachedTeacher
    from brewer_core.cache import CacheFormat as CacheFormat
    from brewer_core.components import KINDS as KINDS
    from brewer_core.components import component as component
    from brewer_core.config import DistillationConfig as DistillationConfig
    from brewer_core.config import RunConfig as RunConfig
    from brewer_core.config import TrainingConfig as TrainingConfig
    from brewer_core.distillers import BasicDistiller as BasicDistiller
    from brewer_core.distillers import BasicTrainer as BasicTrainer
    from brewer_core.distillers import CustomMatch as CustomMatch
    from brewer_core.distillers import Distillers as Distillers
    from brewer_core.distillers import GeneralDistiller as GeneralDistiller
    from brewer_core.distillers import MultiTaskDistiller as MultiTaskDistiller
    from brewer_core.distillers import MultiTeacherDistiller as MultiTeacherDistiller
    from brewer_core.errors import AdaptorError as AdaptorError
    from brewer_core.errors import BrewerError as BrewerError
    from brewer_core.errors import ConfigError as ConfigError
    from brewer_core.errors import DataError as DataError
    from brewer_core.errors import MissingExtraError as MissingExtraError
    from brewer_core.errors import RequestError as RequestError
    from brewer_core.errors import ShapeError as ShapeError
    from brewer_core.features import Counts as Counts
    from brewer_core.features import Feature as Feature
    from brewer_core.features import Features as Features
    from brewer_core.hookspecs import hookimpl as hookimpl
    from brewer_core.objective import Balance as Balance
    from brewer_core.objective import Balancer as Balancer
    from brewer_core.plugins import default_registry as default_registry
    from brewer_core.presets import ADAPTOR_KEYS as ADAPTOR_KEYS
    from brewer_core.presets import FEATURES as FEATURES
    from brewer_core.presets import KD_LOSS_MAP as KD_LOSS_MAP
    from brewer_core.presets import MATCH_LOSS_MAP as MATCH_LOSS_MAP
    from brewer_core.presets import PROJ_MAP as PROJ_MAP
    from brewer_core.presets import TEMPERATURE_SCHEDULER as TEMPERATURE_SCHEDULER
    from brewer_core.presets import WEIGHT_SCHEDULER as WEIGHT_SCHEDULER
    from brewer_core.presets import register_new as register_new
    from brewer_core.protocols import Draws as Draws
    from brewer_core.protocols import LoadedModel as LoadedModel
    from brewer_core.protocols import ModelInfo as ModelInfo
    from brewer_core.protocols import Needs as Needs
    from brewer_core.protocols import Objective as Objective
    from brewer_core.protocols import Step as Step
    from brewer_core.protocols import Strategy as Strategy
    from brewer_core.protocols import Task as Task
    from brewer_core.registry import Registry as Registry
    from brewer_core.run import run_config as run_config
    from brewer_core.sparse_logits import Kept as Kept
    from brewer_core.sparse_logits import SparseLogits as SparseLogits
    from brewer_core.teachers import LiveTeacher as LiveTeacher
    from brewer_core.utils import cycle as cycle

__version__ = "0.1.0"

_HOMES = {
    "cache": ("CacheFormat", "CachedTeacher"),
    "components": ("KINDS", "component"),
    "config": ("DistillationConfig", "RunConfig", "TrainingConfig"),
    "distillers": (
        "BasicDistiller",
        "BasicTrainer",
        "CustomMatch",
        "Distillers",
        "GeneralDistiller",
        "MultiTaskDistiller",
        "MultiTeacherDistiller",
    ),
    "errors": (
        "AdaptorError",
        "BrewerError",
        "ConfigError",
        "DataError",
        "MissingExtraError",
        "RequestError",
        "ShapeError",
    ),
    "features": ("Counts", "Feature", "Features"),
    "hookspecs": ("hookimpl",),
    "objective": ("Balance", "Balancer"),
    "plugins": ("default_registry",),
    "presets": (
        "ADAPTOR_KEYS",
        "FEATURES",
        "KD_LOSS_MAP",
        "MATCH_LOSS_MAP",
        "PROJ_MAP",
        "TEMPERATURE_SCHEDULER",
        "WEIGHT_SCHEDULER",
        "register_new",
    ),
    "protocols": ("Draws", "LoadedModel", "ModelInfo", "Needs", "Objective", "Step", "Strategy", "Task"),
    "registry": ("Registry",),
    "run": ("run_config",),
    "sparse_logits": ("Kept", "SparseLogits"),
    "teachers": ("LiveTeacher",),
    "utils": ("cycle",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("configurations", "data_utils", "distiller_utils", "presets", "utils")
"""Modules that are used as attributes, as in `brewer_core.utils.display_parameters`."""

__all__ = [*sorted(_MODULE_OF), *_MODULES, "__version__"]  # noqa: PLE0604  # names of the table above, each a string


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"brewer_core.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'brewer_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"brewer_core.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
