"""TextBrewer's names and signatures, and which of them brewer has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from brewer_core.config import DistillationConfig, TrainingConfig

CONFIGS: Mapping[str, type[BaseModel]] = {"TrainingConfig": TrainingConfig, "DistillationConfig": DistillationConfig}
SETTINGS: Mapping[str, Sequence[str]] = {
    name: [p.name for p in inspect.signature(config).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    for name, config in CONFIGS.items()
}
"""The settings that TextBrewer has, in its order."""

DISTILLERS = ("BasicTrainer", "BasicDistiller", "GeneralDistiller", "MultiTeacherDistiller", "MultiTaskDistiller")
PRESETS: Mapping[str, str] = {
    "KD_LOSS_MAP": "kd_loss",
    "MATCH_LOSS_MAP": "match_loss",
    "PROJ_MAP": "projection",
    "WEIGHT_SCHEDULER": "weight_scheduler",
    "TEMPERATURE_SCHEDULER": "temperature_scheduler",
}
"""Presets, each with the kind of component that it holds."""
LISTS = ("FEATURES", "ADAPTOR_KEYS")
EXPORTS = frozenset({*CONFIGS, *DISTILLERS, *PRESETS, *LISTS, "register_new", "Distillers", "__version__"})
"""What textbrewer exports, and brewer_core too."""

MODULES: Mapping[str, frozenset[str]] = {
    "configurations": frozenset(CONFIGS),
    "data_utils": frozenset({"masking", "deleting", "n_gram_sampling", "short_disorder", "long_disorder"}),
    "distiller_utils": frozenset({"CustomMatch", "move_to_device"}),
    "distillers": frozenset(DISTILLERS),
    "presets": frozenset({*PRESETS, *LISTS, "register_new"}),
    "utils": frozenset({"cycle", "display_parameters", "initializer_builder"}),
}
"""Modules of TextBrewer that brewer_core has too, with their names."""

INTERNAL: Mapping[str, str] = {
    **dict.fromkeys(
        [f"distiller_{name}" for name in ("basic", "general", "multitask", "multiteacher", "train")],
        "the classes are in brewer_core itself; write a strategy in place of their internals",
    ),
    "compatibility": "nothing takes its place: masks are bool, and mixed precision is torch.amp",
    "distiller_utils": "brewer_core.distiller_utils has CustomMatch and move_to_device; write a strategy in place of the rest",
    "losses": "a loss is an entry of a preset, such as MATCH_LOSS_MAP['hidden_mse'] or KD_LOSS_MAP['ce']",
    "projections": "a projection is an entry of PROJ_MAP",
    "schedulers": "a schedule is an entry of WEIGHT_SCHEDULER or TEMPERATURE_SCHEDULER",
    "snippet": "it is an example that cannot be imported in TextBrewer either",
}
"""Modules of TextBrewer of which brewer lacks something, and what to use in place of that."""

TRAINER_ARGUMENTS = ("train_config", "model", "adaptor")
_MODELS = ("model_T", "model_S", "adaptor_T", "adaptor_S")
DISTILLER_ARGUMENTS = ("train_config", "distill_config", *_MODELS, "custom_matches")

_SCHEDULE = ("scheduler_class", "scheduler_args", "scheduler", "max_grad_norm")
_NEW = ("optimizer", "dataloader", "num_epochs", *_SCHEDULE, "num_steps", "callback", "batch_postprocessor")
_OLD = ("optimizer", "scheduler", "dataloader", "num_epochs", "num_steps", "callback", "batch_postprocessor")
_NEW_TASKS = ("optimizer", "dataloaders", "num_steps", *_SCHEDULE, "tau", "callback", "batch_postprocessors")
_OLD_TASKS = ("optimizer", "scheduler", "dataloaders", "num_steps", "tau", "callback", "batch_postprocessors")
TRAIN_ARGUMENTS = {(False, False): _NEW, (False, True): _OLD, (True, False): _NEW_TASKS, (True, True): _OLD_TASKS}
"""The arguments of `train`: of several tasks or of one, in the order of TextBrewer's API document or of its release."""

OVERRIDDEN = frozenset(
    {
        "train_on_batch",
        "compute_loss",
        "initialize_training",
        "train_with_num_steps",
        "train_with_num_epochs",
        "save_and_callback",
        "write_loss",
        "cache_logits",
        "add_match",
        "add_match_by_module",
    }
)
"""Methods of TextBrewer's distillers that no subclass of brewer's may define."""
INSIDES = OVERRIDDEN | {
    *("custom_matches_cache", "has_custom_matches", "handles_S", "handles_T", "_hook_S", "_hook_T"),
    *("kd_loss", "local_rank", "logits_cache", "print_freq", "projs", "projs_group", "rank", "tb_writer"),
}
"""Attributes of TextBrewer's distillers that brewer's do not have."""


@dataclass(frozen=True)
class OfTextBrewer:
    """A name of TextBrewer, or one of brewer in a script that is changed already.

    module: empty for the package itself. rest: attributes of the name.
    """

    root: str
    module: str
    name: str
    rest: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether brewer has the name in the same place; what is asked of brewer_core already is its own affair."""
        if self.root == "brewer_core":
            return True
        if not self.module:
            return self.name in ("", "*", *EXPORTS, *MODULES)
        if self.name == "*":
            return self.module in MODULES and self.module not in INTERNAL
        return self.module in MODULES and self.name in ("", *MODULES[self.module])

    @property
    def moved(self) -> bool:
        """Whether brewer_core itself exports the name, though not from this module."""
        return not self.known and self.name in EXPORTS

    @property
    def lack(self) -> str:
        """That brewer lacks it, and what to do."""
        what = {"": f"module {self.module}", "*": f"* in {self.module}"}.get(self.name, self.name)
        instead = INTERNAL.get(self.module, "brewer has nothing of that name there")
        return f"There is no {what}: {f'write brewer_core.{self.name}' if self.moved else instead}."


def of_textbrewer(dotted: str) -> OfTextBrewer | None:
    """A dotted name as one of TextBrewer's or brewer's; None for any other."""
    root, *parts = dotted.split(".")
    if root not in ("textbrewer", "brewer_core"):
        return None
    module = parts.pop(0) if parts and (parts[0] in MODULES or parts[0] in INTERNAL) else ""
    return OfTextBrewer(root, module, parts[0] if parts else "", tuple(parts[1:]))
