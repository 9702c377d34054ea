"""TextBrewer's names and signatures, and which of them brewer has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROOTS = ("textbrewer", "brewer_core")
"""Packages whose names are looked at: the old one, and the new one, as a script may have changed its imports already."""

CONFIGS = ("TrainingConfig", "DistillationConfig")
DISTILLERS = ("BasicTrainer", "BasicDistiller", "GeneralDistiller", "MultiTeacherDistiller", "MultiTaskDistiller")
PRESETS = ("KD_LOSS_MAP", "MATCH_LOSS_MAP", "PROJ_MAP", "WEIGHT_SCHEDULER", "TEMPERATURE_SCHEDULER")
LISTS = ("FEATURES", "ADAPTOR_KEYS")
BY_KEY: Mapping[str, str] = {
    "Basic": "BasicDistiller",
    "General": "GeneralDistiller",
    "MultiTeacher": "MultiTeacherDistiller",
    "MultiTask": "MultiTaskDistiller",
    "Train": "BasicTrainer",
}
"""The dictionary `Distillers`."""

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
    "compatibility": "nothing takes its place: masks are bool, and mixed precision is torch.amp",
    "distiller_basic": "the classes are in brewer_core itself; write a strategy in place of its internals",
    "distiller_general": "the classes are in brewer_core itself; write a strategy in place of its internals",
    "distiller_multitask": "the classes are in brewer_core itself; write a strategy in place of its internals",
    "distiller_multiteacher": "the classes are in brewer_core itself; write a strategy in place of its internals",
    "distiller_train": "the classes are in brewer_core itself; write a strategy in place of its internals",
    "distiller_utils": "brewer_core.distiller_utils has CustomMatch and move_to_device; write a strategy in place of the rest",
    "losses": "a loss is an entry of a preset, such as MATCH_LOSS_MAP['hidden_mse'] or KD_LOSS_MAP['ce']",
    "projections": "a projection is an entry of PROJ_MAP",
    "schedulers": "a schedule is an entry of WEIGHT_SCHEDULER or TEMPERATURE_SCHEDULER",
    "snippet": "it is an example that cannot be imported in TextBrewer either",
}
"""Modules of TextBrewer of which brewer lacks something, and what to use in place of that."""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "TrainingConfig": (
        "gradient_accumulation_steps",
        "ckpt_frequency",
        "ckpt_epoch_frequency",
        "ckpt_steps",
        "log_dir",
        "output_dir",
        "device",
        "fp16",
        "fp16_opt_level",
        "data_parallel",
        "local_rank",
    ),
    "DistillationConfig": (
        "temperature",
        "temperature_scheduler",
        "hard_label_weight",
        "hard_label_weight_scheduler",
        "kd_loss_type",
        "kd_loss_weight",
        "kd_loss_weight_scheduler",
        "probability_shift",
        "intermediate_matches",
        "is_caching_logits",
    ),
}

DISTILLER_ARGUMENTS = (
    "train_config",
    "distill_config",
    "model_T",
    "model_S",
    "adaptor_T",
    "adaptor_S",
    "custom_matches",
)
TRAINER_ARGUMENTS = ("train_config", "model", "adaptor")

INSIDES = frozenset(
    {
        "add_match",
        "add_match_by_module",
        "cache_logits",
        "compute_loss",
        "custom_matches_cache",
        "initialize_training",
        "logits_cache",
        "print_freq",
        "projs",
        "projs_group",
        "save_and_callback",
        "tb_writer",
        "train_on_batch",
        "train_with_num_epochs",
        "train_with_num_steps",
        "write_loss",
    }
)
"""Attributes of TextBrewer's distillers that brewer's do not have."""


@dataclass(frozen=True)
class OfTextBrewer:
    """A name of TextBrewer: its module, empty for the package itself, the name, and attributes of it."""

    root: str
    module: str
    name: str
    rest: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether brewer has the name in the same place; what is asked of brewer_core already is its own affair."""
        if self.root == ROOTS[1]:
            return True
        if not self.module:
            return not self.name or self.name in EXPORTS or self.name in MODULES
        return self.module in MODULES and (not self.name or self.name in MODULES[self.module])

    @property
    def moved(self) -> bool:
        """Whether brewer_core itself exports the name, though not from this module."""
        return not self.known and self.name in EXPORTS

    @property
    def hint(self) -> str:
        """What to do where brewer lacks it."""
        return INTERNAL.get(self.module or self.name, "neither TextBrewer nor brewer has that name")


def of_textbrewer(dotted: str) -> OfTextBrewer | None:
    """A dotted name as one of TextBrewer's; None for any other."""
    root, *parts = dotted.split(".")
    if root not in ROOTS:
        return None
    module = parts.pop(0) if parts and (parts[0] in MODULES or parts[0] in INTERNAL) else ""
    return OfTextBrewer(root, module, parts[0] if parts else "", tuple(parts[1:]))
