"""Distillers and their calls of `train` judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from brewer_core.migration.findings import Finding
from brewer_core.migration.uses import ConfigUse, DistillerUse, TrainUse, Uses
from brewer_core.migration.values import Unknown

_STRATEGY = 'write a strategy, a plugin, and name it: GeneralDistiller(..., strategy={"name": ...})'


def judge_distiller(use: DistillerUse) -> Iterator[Finding]:
    """What is to be said of a distiller that is built."""
    if use.own is not None:
        yield Finding(use.line, use.text, "change", f"It is a subclass of {use.kind}: {strategy_for(use.own)}.")
        return
    yield Finding(use.line, use.text, "same", "The same class under the same signature.")
    for name, kind, config in (
        ("train_config", "TrainingConfig", use.training),
        ("distill_config", "DistillationConfig", use.distillation),
    ):
        if config is None and name in use.arguments:
            text = ast.unparse(use.arguments[name])
            yield Finding(use.line, f"{name}={text}", "unknown", f"The text does not tell which {kind} this is.")
    custom = use.arguments.get("custom_matches")
    if custom is not None and not _is_none(custom):
        advice = (
            "TextBrewer died of any custom match; here its loss is called with student, teacher and mask, and logged."
        )
        yield Finding(custom.lineno, "custom_matches", "same", advice, 2)
    yield from _unmatched(use)


def _unmatched(use: DistillerUse) -> Iterator[Finding]:
    """What becomes of matches in the classes that passed them over."""
    matches = use.distillation.value("intermediate_matches") if use.distillation else None
    if not matches:
        return
    if use.kind == "BasicDistiller":
        yield Finding(use.line, use.text, "same", "intermediate_matches are left out as in TextBrewer, with a warning.")
    elif use.kind == "MultiTeacherDistiller":
        advice = 'TextBrewer ignored intermediate_matches: take them out, or name the teacher of each, "teacher": 0.'
        if isinstance(matches, Unknown):
            yield Finding(use.line, use.text, "unknown", advice, 34)
        elif not all(isinstance(match, dict) and "teacher" in match for match in matches):
            yield Finding(use.line, use.text, "change", advice, 34)


def strategy_for(own: str) -> str:
    """What to do in place of a subclass of a distiller."""
    if "emd" in own.lower():
        return 'its place is taken by the strategy `emd` of brewer-strategy-emd: GeneralDistiller(..., strategy={"name": "emd"})'
    return _STRATEGY


def judge_train(use: TrainUse, uses: Uses) -> Iterator[Finding]:
    """What is to be said of a call of `train`."""
    called = f"{use.receiver}.train(...)"
    if use.old_order:
        yield Finding(
            use.line, called, "change", f"The scheduler stands in the loader's place: write {_new_call(use)}.", 44
        )
    else:
        yield Finding(use.line, called, "same", "The same arguments in the same order.")
    if use.starred:
        yield Finding(use.line, called, "unknown", "Some of its arguments are only known when the script runs.")
    yield from _clipping(use, uses)
    yield from _checkpoints(use)
    trains_alone = use.distiller is not None and use.distiller.kind == "BasicTrainer"
    if not use.in_context and not trains_alone:
        advice = (
            "Without `with distiller:` a teacher left in train mode kept its dropout; here it is always in eval mode."
        )
        yield Finding(use.line, called, "differs", advice, 30)


def by_steps(use: TrainUse) -> bool:
    """Whether the training counts steps, as far as the text tells."""
    steps = use.arguments.get("num_steps")
    return steps is not None and not _is_none(steps)


def _clipping(use: TrainUse, uses: Uses) -> Iterator[Finding]:
    given = use.arguments.get("max_grad_norm")
    norm = uses.values.of(given) if given is not None else -1
    if given is None or (isinstance(norm, (int, float)) and norm <= 0):
        return
    used, config = f"max_grad_norm={ast.unparse(given)}", use.distiller.distillation if use.distiller else None
    projections = _projections(config)
    if projections is None:
        advice = "If there are projections, they are clipped together with the student, where TextBrewer left them out."
        yield Finding(given.lineno, used, "unknown", advice, 17)
    elif projections:
        advice = "The projections are clipped together with the student; TextBrewer left them out. The old number has no setting."
        yield Finding(given.lineno, used, "differs", advice, 17)


def _projections(config: ConfigUse | None) -> bool | None:
    """Whether a config has projections; None where the text does not tell."""
    if config is None:
        return None
    matches = config.value("intermediate_matches")
    if isinstance(matches, Unknown) or (config.unread and not matches):
        return None
    found: list[Any] = [m.get("proj") if isinstance(m, dict) else m for m in matches or ()]
    if any(proj is not None and not isinstance(proj, Unknown) for proj in found):
        return True
    return None if found and any(isinstance(proj, Unknown) for proj in found) else False


def _checkpoints(use: TrainUse) -> Iterator[Finding]:
    config = use.distiller.training if use.distiller else None
    if not by_steps(use) or config is None or config.unread or config.value("ckpt_steps") is not None:
        return
    row = 20 if use.distiller is not None and use.distiller.kind == "MultiTaskDistiller" else 19
    advice = "Without ckpt_steps there is one checkpoint, at the last step; TextBrewer raised an error."
    yield Finding(use.line, "num_steps without ckpt_steps", "same", advice, row)


def _new_call(use: TrainUse) -> str:
    given = {name: ast.unparse(value) for name, value in use.arguments.items()}
    first = [given.pop(name) for name in ("optimizer", "dataloader", "dataloaders") if name in given]
    if given.get("scheduler") == "None":
        del given["scheduler"]
    return f"{use.receiver}.train({', '.join([*first, *(f'{name}={value}' for name, value in given.items())])})"


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
