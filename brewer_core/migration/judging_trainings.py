"""Distillers, subclasses of them, and calls of `train` judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from brewer_core.migration.findings import Finding, Verdict
from brewer_core.migration.names import CONFIGS, OVERRIDDEN
from brewer_core.migration.uses import ConfigUse, DistillerUse, TrainUse, Uses, is_given
from brewer_core.migration.values import Unknown, cut

STRATEGY = "write a brewer_core.Strategy with its `terms`, and pass it: GeneralDistiller(..., strategy=...)"
_EMD = (
    'its place is taken by the strategy `emd` of brewer-strategy-emd: GeneralDistiller(..., strategy={"name": "emd"})'
)


# Classes


def judge_subclass(node: ast.ClassDef, uses: Uses) -> Iterator[Finding]:
    """What is to be said of a class of the script, where it is a subclass of one of TextBrewer's."""
    found = next(filter(None, map(uses.class_of, node.bases)), None)
    if found is None:
        return
    text = f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
    if found[0] in CONFIGS:
        advice = "Configs are frozen and closed: keep settings of your own beside them."
        yield Finding(node.lineno, text, "change", advice)
    else:
        yield Finding(node.lineno, text, *_of_subclass(node))


def _of_subclass(node: ast.ClassDef) -> tuple[Verdict, str]:
    """The verdict on a subclass of a distiller, and the advice."""
    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    names += [n.name for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    overridden = sorted(OVERRIDDEN.intersection(names))
    if not overridden:
        return (
            "unknown",
            "It overrides nothing that brewer refuses; look whether it uses what is inside TextBrewer's classes.",
        )
    instead = _EMD if "emd" in node.name.lower() else f"{STRATEGY}, or use a loss of your own in the config"
    return (
        "change",
        f"It raises an error where it is defined, as nothing would call its {', '.join(overridden)}: {instead}.",
    )


def judge_distiller(use: DistillerUse) -> Iterator[Finding]:
    """What is to be said of a distiller that is built."""
    if use.own is not None:
        verdict, advice = _of_subclass(use.own)
        yield Finding(use.line, use.own.name, verdict, advice)
        return
    yield Finding(use.line, use.kind, "same", "The same class under the same signature.")
    for name, config in (("train_config", use.training), ("distill_config", use.distillation)):
        if config is None and name in use.arguments:
            text = f"{name}={ast.unparse(use.arguments[name])}"
            yield Finding(use.line, cut(text), "unknown", "The text does not tell which config this is.")
    custom = use.arguments.get("custom_matches")
    if custom is not None and is_given(custom):
        advice = (
            "TextBrewer died of any custom match; here its loss is called with student, teacher and mask, and logged."
        )
        yield Finding(custom.lineno, "custom_matches", "same", advice, 2)
    yield from _unmatched(use)


def _unmatched(use: DistillerUse) -> Iterator[Finding]:
    """What becomes of matches in the classes that passed them over."""
    matches = use.distillation.value("intermediate_matches") if use.distillation else None
    if matches and use.kind == "BasicDistiller":
        yield Finding(use.line, use.kind, "same", "intermediate_matches are left out as in TextBrewer, with a warning.")
    elif matches and use.kind == "MultiTeacherDistiller" and not name_their_teacher(matches):
        advice = 'TextBrewer ignored intermediate_matches: take them out, or name the teacher of each, "teacher": 0.'
        yield Finding(use.line, use.kind, "unknown" if isinstance(matches, Unknown) else "change", advice, 34)


def name_their_teacher(matches: Any) -> bool:
    """Whether every match says which of several teachers it is of."""
    return isinstance(matches, list) and all(isinstance(match, dict) and "teacher" in match for match in matches)


# Calls of train


def judge_train(use: TrainUse, uses: Uses) -> Iterator[Finding]:
    """What is to be said of a call of `train`."""
    called = f"{use.receiver}.train(...)"
    if use.old_order:
        advice = f"The scheduler stands in the loader's place: write {_new_call(use)}."
        yield Finding(use.line, called, "change", advice, 44)
    elif use.order_unknown:
        advice = "The text does not tell whether a loader stands in second place; a scheduler there is an error that gives the new call."
        yield Finding(use.line, called, "unknown", advice, 44)
    else:
        yield Finding(use.line, called, "same", "The same arguments in the same order.")
    if use.unread:
        yield Finding(use.line, called, "unknown", "Some of its arguments are only known when the script runs.")
    yield from _clipping(use, uses)
    yield from _checkpoints(use)
    trains_alone = use.distiller is not None and use.distiller.kind == "BasicTrainer"
    if not use.in_context and not trains_alone:
        advice = (
            "Without `with distiller:` a teacher left in train mode kept its dropout; here it is always in eval mode."
        )
        yield Finding(use.line, called, "differs", advice, 30)


def _new_call(use: TrainUse) -> str:
    given = {name: ast.unparse(value) for name, value in use.arguments.items()}
    first = [given.pop(name) for name in ("optimizer", "dataloader", "dataloaders") if name in given]
    if given.get("scheduler") == "None":
        del given["scheduler"]
    return f"{use.receiver}.train({', '.join([*first, *(f'{name}={value}' for name, value in given.items())])})"


def _clipping(use: TrainUse, uses: Uses) -> Iterator[Finding]:
    given = use.arguments.get("max_grad_norm")
    norm = uses.values.of(given) if given is not None else -1
    projections = _projections(use.distiller.distillation if use.distiller else None)
    if given is None or (isinstance(norm, (int, float)) and norm <= 0) or projections is False:
        return
    verdict: Verdict = "unknown" if projections is None else "differs"
    advice = (
        "Projections are clipped together with the student; TextBrewer left them out. The old number has no setting."
    )
    yield Finding(given.lineno, f"max_grad_norm={ast.unparse(given)}", verdict, advice, 17)


def _projections(config: ConfigUse | None) -> bool | None:
    """Whether a config has projections; None where the text does not tell."""
    matches = config.value("intermediate_matches") if config is not None else None
    if config is None or isinstance(matches, Unknown) or (config.unread and not matches):
        return None
    found: list[Any] = [match.get("proj") if isinstance(match, dict) else match for match in matches or ()]
    if any(isinstance(proj, Unknown) for proj in found):
        return None
    return any(proj is not None for proj in found)


def _checkpoints(use: TrainUse) -> Iterator[Finding]:
    config = use.distiller.training if use.distiller else None
    if use.distiller is None or config is None or config.unread or config.value("ckpt_steps") is not None:
        return
    if is_given(use.arguments.get("num_steps")):
        row = 20 if use.distiller.kind == "MultiTaskDistiller" else 19
        advice = "Without ckpt_steps there is one checkpoint, at the last step; TextBrewer raised an error."
        yield Finding(use.line, "num_steps without ckpt_steps", "same", advice, row)
