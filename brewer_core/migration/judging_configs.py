"""Configs judged: which settings give what they gave, which differ, and which are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from brewer_core.config import IntermediateMatch
from brewer_core.config.base import validated
from brewer_core.errors import ConfigError, full_stop
from brewer_core.migration.findings import Finding, Verdict
from brewer_core.migration.names import CONFIGS
from brewer_core.migration.uses import ConfigUse, Uses
from brewer_core.migration.values import Unknown, Written, cut, first_unknown
from brewer_core.registry import Registry

Said = tuple[Verdict, str, int | None]

PROCESSES = (
    "It trains under torchrun as before, where each DataLoader has a DistributedSampler, or train() is given sharded=True; the "
    "callback is called in the first process alone, and may not talk to the others."
)

_WITHOUT_EFFECT = ("log_dir", "output_dir", "device", "fp16_opt_level")
"""Settings that have no part in the result."""

_LEFT_OVER = (
    "Where an epoch's batches are no multiple of it, the last ones make a step of their own; TextBrewer dropped them."
)
_APEX = "torch.amp takes the place of Apex, so rounding differs; it is refused on a CPU."
_LEVEL = "It has no effect but a warning: torch.amp has one level."
_ONE_DEVICE = "It is ignored with a warning: start a process for each device with torchrun."
_FOLDER = "The folder is made when training saves into it, not by the config: make it yourself to write there before."
_BOUNDS = "'flsw' and 'cwsm' give no temperature below 0.1, where TextBrewer's had no bounds; option `floor`."
_SHIFT = "Rows with a negative label stay as they are, where TextBrewer took the label for a class; masked logits work."
_CACHING = (
    "Order and batches are not frozen after the first epoch; a loader without shuffling is. TextBrewer switched it off "
    "in GeneralDistiller and MultiTaskDistiller."
)
_MATCHES = "See to 'pkd' (a package of its own), to 'nst' and 'mmd' under a mask, and to clipping with projections."
_OF_SETTINGS: Mapping[str, Said] = {
    "gradient_accumulation_steps": ("differs", _LEFT_OVER, 24),
    "fp16": ("differs", _APEX, 45),
    "fp16_opt_level": ("differs", _LEVEL, 45),
    "data_parallel": ("differs", _ONE_DEVICE, 32),
    "local_rank": ("differs", PROCESSES, 32),
    "output_dir": ("same", _FOLDER, 42),
    "temperature_scheduler": ("differs", _BOUNDS, 15),
    "probability_shift": ("differs", _SHIFT, 9),
    "is_caching_logits": ("differs", _CACHING, 25),
    "intermediate_matches": ("unknown", _MATCHES, None),
    **{
        f"{weight}_scheduler": (
            "differs",
            f"It multiplies {weight} from the first step on, and 0 keeps the term out; TextBrewer put the schedule in its "
            f"place from the second step on, which {weight}=1 gives.",
            16,
        )
        for weight in ("hard_label_weight", "kd_loss_weight")
    },
}
"""What is said of a setting that has not its default."""

_CE = "The same number: no factor T squared. {'name': 'ce', 't_squared': True} has it, and 'kl' has it and reaches 0 as well."
_BARE = "It lacks its parameters, and TextBrewer died of that in training: write {}."
_OF_VALUES: Mapping[tuple[str, str], Said] = {
    ("kd_loss_type", "ce"): ("same", _CE, 10),
    ("kd_loss_type", "mse"): ("same", "The same number.", None),
    ("temperature_scheduler", "flsw"): ("change", _BARE.format("['flsw', 1, 2], beta and gamma"), 14),
    ("temperature_scheduler", "cwsm"): ("change", _BARE.format("['cwsm', 1], beta"), 14),
}
"""What is said of a setting with one value."""

_NORMALIZED = "The same number; the option `normalized` takes probabilities as they are."
_NO_NAN = "The same number; with a mask, infinite scores of padding are no NaN."
_BY_WIDTH = "With inputs_mask it is divided by the hidden size, where TextBrewer's release divides by the length."
_OF_LOSSES: Mapping[str, Said] = {
    **dict.fromkeys(("cos", "fsp", "gram", "hidden_mse"), ("same", "The same number.", None)),
    **dict.fromkeys(("attention_ce", "attention_ce_mean"), ("same", _NORMALIZED, 11)),
    **dict.fromkeys(("attention_mse", "attention_mse_sum"), ("same", _NO_NAN, 12)),
    **dict.fromkeys(("nst", "mmd"), ("differs", _BY_WIDTH, None)),
    "pkd": ("same", "The same number, from the package brewer-loss-pkd; a state of norm 0 is no NaN.", 13),
}
_OF_BREWER: Said = ("same", "A loss that TextBrewer does not have.", None)
_REGISTERED = "The script writes this name into a preset, which is read-only: pass the function itself, or register it."


def judge_config(use: ConfigUse, uses: Uses, registry: Registry) -> Iterator[Finding]:
    """What is to be said of a config and of its settings."""
    building = "it is frozen and checked when built, and building it makes no folder"
    yield Finding(use.line, use.text, "same", f"The settings keep their names; {building}.", 42)
    for unread in use.unread:
        yield Finding(use.line, use.text, "unknown", f"{unread.why}; the settings in it were not looked at.")
    for key, setting in use.settings.items():
        if key == "intermediate_matches" and isinstance(setting.value, list):
            for match in setting.value:
                yield from _judge_match(match, setting.line, uses, registry)
        else:
            used = f"{key}={cut(repr(setting.value))}"
            yield from (
                Finding(setting.line, used, *said) for said in _said(use.kind, key, setting.value, uses, registry)
            )
    by_default = use.kind == "DistillationConfig" and "kd_loss_type" not in use.settings and not use.unread
    if by_default and use.value("kd_loss_weight", 1) != 0:
        yield Finding(use.line, "kd_loss_type='ce', the default", *_OF_VALUES["kd_loss_type", "ce"])


def _said(kind: str, key: str, value: Any, uses: Uses, registry: Registry) -> Iterator[Said]:
    """What is to be said of a setting; nothing where it simply works."""
    fields, unknown = CONFIGS[kind].model_fields, first_unknown(value)
    name = value[0] if isinstance(value, list) and value else value
    ruled = _OF_VALUES.get((key, value)) if isinstance(value, str) else None
    if key not in fields:
        yield "change", f"{kind} has no such setting; take it out.", None
    elif unknown is not None:
        yield _of_unknown(key, unknown, fields[key].default)
    elif isinstance(name, str) and name in uses.registered:
        yield "change", _REGISTERED, None
    elif ruled is not None:
        yield ruled
    elif problems := _problems(CONFIGS[kind], {key: value}, registry):
        for problem in problems:
            text = problem.removeprefix(f"{key}: ")
            yield "change", full_stop(f"{text[0].upper()}{text[1:]}"), None
    elif key in _OF_SETTINGS and value not in (fields[key].default, "none", "constant"):
        yield _OF_SETTINGS[key]


def _of_unknown(key: str, unknown: Unknown, default: Any) -> Said:
    verdict, advice, row = _OF_SETTINGS.get(key, ("same", "", None))
    if key in _WITHOUT_EFFECT:
        return "same", f"{unknown.why}; whatever it is means the same here.", None
    if verdict == "same":
        return "unknown", f"{unknown.why}; its meaning is the same.", row
    return "unknown", f"{unknown.why}. Unless it is {default}: {advice}", row


def _judge_match(match: Any, line: int, uses: Uses, registry: Registry) -> Iterator[Finding]:
    if not isinstance(match, Written):
        unread = ("unknown", f"{match.why}.") if isinstance(match, Unknown) else ("change", "Expected a mapping.")
        yield Finding(line, f"match {cut(repr(match))}", *unread)  # type: ignore[arg-type]  # a verdict and a sentence
        return
    loss, unknown = match.get("loss"), first_unknown(match)
    layers = ", ".join(f"{key} {cut(repr(match.get(key)))}" for key in ("layer_T", "layer_S"))
    used = f"match of {layers}: {cut(repr(loss))}"
    problems = [_REGISTERED] if isinstance(loss, str) and loss in uses.registered else _match_problems(match, registry)
    for problem in problems:
        yield Finding(match.line, used, "change", full_stop(problem), 13 if loss == "pkd" else None)
    if not problems and isinstance(loss, str):
        yield Finding(match.line, used, *_OF_LOSSES.get(loss, _OF_BREWER))
    if unknown is not None:
        yield Finding(match.line, used, "unknown", f"{unknown.why}.")


def _problems(model: type[BaseModel], settings: Mapping[str, Any], registry: Registry) -> Sequence[str]:
    """Why a config refuses settings, one sentence each with its path; none where it takes them."""
    try:
        validated(model, settings, model.__name__, {"registry": registry})
    except ConfigError as error:
        return error.problems
    return ()


def _match_problems(match: Written, registry: Registry) -> list[str]:
    """The same of an intermediate match, whose unknown values count as right."""
    known = {key: value for key, value in match.items() if first_unknown(value) is None}
    left_out = {f"{key}: is required" for key in match if key not in known}
    return [problem for problem in _problems(IntermediateMatch, known, registry) if problem not in left_out]
