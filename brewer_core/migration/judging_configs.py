"""Configs judged: which settings give what they gave, which differ, and which are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from brewer_core.config import DistillationConfig, IntermediateMatch, TrainingConfig
from brewer_core.config.base import validated
from brewer_core.errors import ConfigError
from brewer_core.migration.findings import Finding, Verdict
from brewer_core.migration.names import SETTINGS
from brewer_core.migration.uses import ConfigUse, Setting
from brewer_core.migration.values import Unknown, Written, holds_unknown, plain, source_text
from brewer_core.registry import Registry

_MODELS: Mapping[str, type[BaseModel]] = {"TrainingConfig": TrainingConfig, "DistillationConfig": DistillationConfig}
_OF_PLACES = frozenset(
    {"ckpt_frequency", "ckpt_epoch_frequency", "ckpt_steps", "log_dir", "output_dir", "device", "fp16_opt_level"}
)
"""Settings that have no part in the result, whatever their value."""

_MAPS = {
    "temperature_scheduler": "temperature_scheduler",
    "hard_label_weight_scheduler": "weight_scheduler",
    "kd_loss_weight_scheduler": "weight_scheduler",
    "kd_loss_type": "kd_loss",
}


@dataclass(frozen=True)
class Around:
    """What decides on a config beside its own settings.

    registry: the methods that are installed. registered: names that the script writes into presets. by_steps: whether
    every training counts steps. distillers: the classes that the file builds.
    """

    registry: Registry
    registered: frozenset[str] = frozenset()
    by_steps: bool = False
    distillers: frozenset[str] = field(default_factory=frozenset)


def judge_config(use: ConfigUse, around: Around) -> Iterator[Finding]:
    """What is to be said of a config and of its settings."""
    building = "it is frozen and checked when built, and building it makes no folder"
    yield Finding(use.line, use.text, "same", f"The settings keep their names; {building}.", 42)
    for unread in use.unread:
        yield Finding(use.line, use.text, "unknown", f"{unread.sentence}; the settings in it were not looked at.")
    for key, setting in use.settings.items():
        yield from _Judge(use, key, setting, around).findings()
    plain_kd = use.kind == "DistillationConfig" and "kd_loss_type" not in use.settings and not use.unread
    if plain_kd and use.value("kd_loss_weight", 1) != 0:
        yield Finding(use.line, "kd_loss_type='ce', the default", "same", _CE, 10)


_CE = "The same number: no factor T squared. {'name': 'ce', 't_squared': True} has it, and 'kl' has it and reaches 0 as well."


class _Judge:
    """One setting of a config."""

    def __init__(self, use: ConfigUse, key: str, setting: Setting, around: Around) -> None:
        self.use, self.key, self.value, self.line = use, key, setting.value, setting.line
        self.around = around

    def findings(self) -> Iterator[Finding]:
        """What is to be said of it; nothing where it simply works."""
        if self.key not in SETTINGS[self.use.kind] and not self._is_ours():
            yield self.say("change", f"{self.use.kind} has no such setting; take it out.")
        elif self.key == "intermediate_matches":
            yield from self._matches()
        elif isinstance(self.value, Unknown):
            yield self._unread(self.value)
        else:
            problems = list(self._problems())
            yield from problems
            if not problems:
                yield from _RULES.get(self.key, _nothing)(self)

    def say(self, verdict: Verdict, advice: str, row: int | None = None) -> Finding:
        """A finding on this setting."""
        return Finding(self.line, f"{self.key}={source_text(self.value)}", verdict, advice, row)

    def _is_ours(self) -> bool:
        """Whether the setting is one that brewer adds."""
        return self.key in _MODELS[self.use.kind].model_fields

    def _unread(self, unknown: Unknown) -> Finding:
        if self.key in _OF_PLACES:
            return self.say("same", f"{unknown.sentence}; whatever it is means the same here.")
        advice, row = _WHERE_UNKNOWN.get(self.key, ("its meaning is the same", None))
        return self.say("unknown", f"{unknown.sentence}; {advice}.", row)

    def _problems(self) -> Iterator[Finding]:
        if self._named() in self.around.registered:
            yield self.say("change", _REGISTERED)
            return
        if self.key == "temperature_scheduler" and self.value in ("flsw", "cwsm"):
            form = "['flsw', 1, 2], beta and gamma" if self.value == "flsw" else "['cwsm', 1], beta"
            yield self.say(
                "change", f"It lacks its parameters, and TextBrewer died of that in training: write {form}.", 14
            )
            return
        if holds_unknown(self.value) is not None:
            return
        for problem in problems_of(_MODELS[self.use.kind], {self.key: self.value}, self.around.registry):
            yield self.say("change", _sentence(problem.removeprefix(f"{self.key}: ")))

    def _named(self) -> Any:
        """The component that the setting names, as far as it does."""
        if self.key not in _MAPS:
            return None
        first = self.value[0] if isinstance(self.value, (list, tuple)) and self.value else self.value
        return first if isinstance(first, str) else None

    def _matches(self) -> Iterator[Finding]:
        if isinstance(self.value, Unknown):
            advice = (
                "see to 'pkd' (a package of its own), to 'nst' and 'mmd' under a mask, and to clipping with projections"
            )
            yield self.say("unknown", f"{self.value.sentence}; {advice}.")
        elif self.value is not None and not isinstance(self.value, (list, tuple)):
            yield self.say("change", "Expected a list of mappings.")
        for match in self.value if isinstance(self.value, (list, tuple)) else ():
            yield from self._match(match)

    def _match(self, match: Any) -> Iterator[Finding]:
        if not isinstance(match, Written):
            unknown = match if isinstance(match, Unknown) else None
            why = f"{unknown.sentence}." if unknown else "Expected a mapping."
            yield Finding(self.line, f"match {source_text(match)}", "unknown" if unknown else "change", why)
            return
        loss = match.get("loss")
        used = f"match of {', '.join(f'{k} {source_text(match.get(k))}' for k in ('layer_T', 'layer_S'))}: {source_text(loss)}"
        unknown = holds_unknown(match)
        problems = [] if loss in self.around.registered else list(problems_of_match(match, self.around.registry))
        for problem in problems:
            yield Finding(match.line, used, "change", f"{problem.rstrip('.')}.", 13 if loss == "pkd" else None)
        if loss in self.around.registered:
            yield Finding(match.line, used, "change", _REGISTERED)
        elif not problems and isinstance(loss, str):
            of_brewer: tuple[Verdict, str, int | None] = ("same", "A loss that TextBrewer does not have.", None)
            verdict, advice, row = _OF_LOSS.get(loss, of_brewer)
            yield Finding(match.line, used, verdict, advice, row)
        if unknown is not None:
            yield Finding(match.line, used, "unknown", f"{unknown.sentence}.")


def problems_of(model: type[BaseModel], settings: Mapping[str, Any], registry: Registry) -> list[str]:
    """Why a config refuses settings, one sentence each with its path; none where it takes them."""
    try:
        validated(model, plain(settings, lambda unknown: unknown.text), model.__name__, {"registry": registry})
    except ConfigError as error:
        return list(error.problems)
    return []


def problems_of_match(match: Written, registry: Registry) -> list[str]:
    """The same of one intermediate match, whose unknown values count as right."""
    known = {key: value for key, value in match.items() if holds_unknown(value) is None}
    left_out = {f"{key}: is required" for key in match if key not in known}
    return [p for p in problems_of(IntermediateMatch, known, registry) if p not in left_out]


_REGISTERED = "The script writes this name into a preset, which is read-only: pass the function itself, or register it."


def _sentence(problem: str) -> str:
    return problem[0].upper() + problem[1:].rstrip(".") + "."


# Settings with something to be said


def _nothing(judge: _Judge) -> Iterator[Finding]:
    if isinstance(judge.value, (list, tuple, Written)):
        unknown = holds_unknown(judge.value)
        if unknown is not None:
            yield judge.say("unknown", f"{unknown.sentence}.")


def _accumulation(judge: _Judge) -> Iterator[Finding]:
    if judge.value == 1:
        return
    if judge.around.by_steps:
        yield judge.say("same", "With num_steps no micro-batches are left over.", 24)
    else:
        left = f"Where the loader's length is no multiple of {judge.value}, the last micro-batches of an epoch"
        yield judge.say("differs", f"{left} make a step of their own; TextBrewer dropped them.", 24)


def _fp16(judge: _Judge) -> Iterator[Finding]:
    if judge.value:
        yield judge.say(
            "differs", "torch.amp takes the place of Apex, so rounding differs; it is refused on a CPU.", 45
        )


def _opt_level(judge: _Judge) -> Iterator[Finding]:
    if judge.value != "O1":
        yield judge.say("differs", "It has no effect but a warning: torch.amp has one level.", 45)


def _data_parallel(judge: _Judge) -> Iterator[Finding]:
    if judge.value:
        yield judge.say("differs", "It is ignored with a warning: brewer trains on one device.", 32)


def _local_rank(judge: _Judge) -> Iterator[Finding]:
    if judge.value != -1:
        yield judge.say("change", ONE_PROCESS, 32)


ONE_PROCESS = "brewer trains in one process so far, and refuses WORLD_SIZE above 1: start the script without torchrun."


def _output_dir(judge: _Judge) -> Iterator[Finding]:
    advice = (
        "The folder is made when training saves into it, not by the config: make it yourself to write there before."
    )
    yield judge.say("same", advice, 42)


def _temperature_scheduler(judge: _Judge) -> Iterator[Finding]:
    first = judge.value[0] if isinstance(judge.value, (list, tuple)) else judge.value
    if first in ("flsw", "cwsm"):
        yield judge.say(
            "differs", "No temperature falls below 0.1, where TextBrewer's had no bounds; option `floor`.", 15
        )
    yield from _nothing(judge)


def _weight_scheduler(judge: _Judge) -> Iterator[Finding]:
    if judge.value in (None, "none"):
        return
    name = judge.key.removesuffix("_scheduler")
    weight = judge.use.value(name, 1 if name == "kd_loss_weight" else 0)
    if isinstance(weight, Unknown):
        said = (
            f"It multiplies {name} from the first step on; TextBrewer put the schedule in its place from the second on"
        )
    elif weight == 0:
        said = f"It multiplies {name}, which is 0, so the term stays out; for TextBrewer's numbers write {name}=1"
    elif weight == 1:
        said = f"As {name} is 1, only the first step differs: it has the schedule's weight already"
    else:
        said = f"It multiplies {name}={weight} from the first step on; TextBrewer put the schedule in place of it: {name}=1 gives that"
    yield judge.say("differs", f"{said}.", 16)


def _kd_loss(judge: _Judge) -> Iterator[Finding]:
    if judge.value == "ce":
        yield judge.say("same", _CE, 10)
    elif judge.value == "mse":
        yield judge.say("same", "The same number.")


def _shift(judge: _Judge) -> Iterator[Finding]:
    if judge.value:
        advice = "Rows with a negative label stay as they are, where TextBrewer took the label for a class; masked logits work"
        yield judge.say("differs", f"{advice}.", 9)


def _caching(judge: _Judge) -> Iterator[Finding]:
    if not judge.value:
        return
    if judge.around.distillers and judge.around.distillers <= {
        "GeneralDistiller",
        "MultiTaskDistiller",
        "BasicTrainer",
    }:
        yield judge.say(
            "same", "TextBrewer switched it off in these classes; the order of batches was never frozen.", 27
        )
    else:
        yield judge.say(
            "differs", "Order and batches are not frozen after the first epoch; a loader without shuffling is.", 25
        )


_RULES: Mapping[str, Callable[[_Judge], Iterator[Finding]]] = {
    "gradient_accumulation_steps": _accumulation,
    "fp16": _fp16,
    "fp16_opt_level": _opt_level,
    "data_parallel": _data_parallel,
    "local_rank": _local_rank,
    "output_dir": _output_dir,
    "temperature_scheduler": _temperature_scheduler,
    "hard_label_weight_scheduler": _weight_scheduler,
    "kd_loss_weight_scheduler": _weight_scheduler,
    "kd_loss_type": _kd_loss,
    "probability_shift": _shift,
    "is_caching_logits": _caching,
}

_WHERE_UNKNOWN: Mapping[str, tuple[str, int | None]] = {
    "gradient_accumulation_steps": ("above 1, left-over micro-batches of an epoch make a step of their own", 24),
    "fp16": ("if true, torch.amp takes the place of Apex", 45),
    "data_parallel": ("if true, it is ignored with a warning", 32),
    "local_rank": ("brewer trains in one process so far, and refuses WORLD_SIZE above 1", 32),
    "temperature_scheduler": ("'flsw' and 'cwsm' need their parameters, and give no temperature below 0.1", 15),
    "hard_label_weight_scheduler": ("a schedule multiplies hard_label_weight here", 16),
    "kd_loss_weight_scheduler": ("a schedule multiplies kd_loss_weight here", 16),
    "probability_shift": ("if true, rows with a negative label stay as they are", 9),
    "is_caching_logits": ("if true, order and batches are not frozen after the first epoch", 25),
}

_OF_LOSS: Mapping[str, tuple[Verdict, str, int | None]] = {
    **dict.fromkeys(("cos", "fsp", "gram", "hidden_mse"), ("same", "The same number.", None)),
    "attention_ce": (
        "same",
        "The same number; {'name': 'attention_ce', 'normalized': True} takes probabilities as they are.",
        11,
    ),
    "attention_ce_mean": (
        "same",
        "The same number; {'name': 'attention_ce_mean', 'normalized': True} takes probabilities as they are.",
        11,
    ),
    "attention_mse": ("same", "The same number; with a mask, infinite scores of padding are no NaN.", 12),
    "attention_mse_sum": ("same", "The same number; with a mask, infinite scores of padding are no NaN.", 12),
    "pkd": ("same", "The same number, from the package brewer-loss-pkd; a state of norm 0 is no NaN.", 13),
    "nst": (
        "differs",
        "With inputs_mask it is divided by the hidden size, where TextBrewer's release divides by the length.",
        None,
    ),
    "mmd": (
        "differs",
        "With inputs_mask it is divided by the hidden size, where TextBrewer's release divides by the length.",
        None,
    ),
}
