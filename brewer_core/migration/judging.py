"""A file judged: what of it brewer takes as it is, what differs, and what must be edited."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brewer_core.errors import RequestError
from brewer_core.migration.findings import Finding, summary
from brewer_core.migration.judging_configs import ONE_PROCESS, Around, judge_config
from brewer_core.migration.judging_trainings import by_steps, judge_distiller, judge_train, strategy_for
from brewer_core.migration.names import INTERNAL, LISTS, MODULES, OfTextBrewer
from brewer_core.migration.reading import find_uses
from brewer_core.migration.sources import read_source
from brewer_core.migration.uses import ImportUse, Mention, Uses
from brewer_core.registry import Registry


@dataclass(frozen=True)
class Examination:
    """A file's uses of TextBrewer and what was found about them, in the order of the text."""

    uses: Uses
    findings: Sequence[Finding]

    @property
    def summary(self) -> str:
        """Whether the file is ready, in a sentence."""
        return summary(self.findings, {"json": "config"}.get(self.uses.source.kind, self.uses.source.kind))


def examine(path: Path, registry: Registry) -> Examination:
    """Judge a script, a notebook or a config; nothing of it is run.

    Raises RequestError where the file is missing, is no Python or JSON, or uses nothing of TextBrewer.
    """
    try:
        uses = find_uses(read_source(path))
    except RecursionError as error:
        raise RequestError(f"{path}: an expression in it is nested too deeply to be read.") from error
    if not uses:
        raise RequestError(f"{path}: {_nothing_used(uses)}, so there is nothing to migrate.")
    findings = sorted(_judged(uses, registry), key=lambda finding: finding.line)
    placed = [finding.placed(*uses.source.place(finding.line)) for finding in dict.fromkeys(findings)]
    return Examination(uses, [*placed, *_skipped(uses)])


def _nothing_used(uses: Uses) -> str:
    if uses.source.kind == "json":
        return "it has no setting of TextBrewer's TrainingConfig or DistillationConfig"
    return f"this {uses.source.kind} imports neither textbrewer nor brewer_core"


def _skipped(uses: Uses) -> Iterator[Finding]:
    for cell in uses.source.skipped:
        yield Finding(1, f"cell {cell}", "unknown", "This cell is not Python and was not looked at.", cell=cell)


def _judged(uses: Uses, registry: Registry) -> Iterator[Finding]:
    around = Around(
        registry,
        registered=uses.registered(),
        by_steps=bool(uses.trains) and all(map(by_steps, uses.trains)),
        distillers=frozenset(distiller.kind for distiller in uses.distillers),
    )
    for brought in uses.imports:
        yield _judge_import(brought)
    for config in uses.configs:
        yield from judge_config(config, around)
    for distiller in uses.distillers:
        yield from judge_distiller(distiller)
    for train in uses.trains:
        yield from judge_train(train, uses)
    for mention in uses.mentions:
        yield _judge_mention(mention)


# Imports


def _judge_import(use: ImportUse) -> Finding:
    text = ast.unparse(use.node)
    if all(name.root == "brewer_core" for name in use.names):
        return Finding(use.line, text, "same", "Changed already.")
    if _is_star(use) and any(name.module in INTERNAL for name in use.names):
        advice = "Write `from brewer_core import *`, and import by name what else you use of this module."
        return Finding(use.line, text, "change", advice)
    lacking = [name for name in use.names if not name.known]
    hints = list(dict.fromkeys(name.hint for name in lacking if not name.moved))
    becomes = _becomes(use)
    said = [f"Write `{becomes}`"] if becomes else []
    if hints:
        lost = ", ".join(_last(name) for name in lacking if not name.moved)
        said.append(f"{'there' if said else 'There'} is no {lost}: {'; '.join(hints)}")
    return Finding(use.line, text, "change" if lacking else "same", f"{'; '.join(said)}.")


def _is_star(use: ImportUse) -> bool:
    return any(alias.name == "*" for alias in use.node.names)


def _last(name: OfTextBrewer) -> str:
    return name.name or name.module


def _becomes(use: ImportUse) -> str:
    """The import under brewer; names that brewer lacks are left out."""
    if isinstance(use.node, ast.Import):
        return "; ".join(filter(None, map(_plain_import, use.node.names)))
    parts: dict[str, list[str]] = {}
    for alias, name in zip(use.node.names, use.names, strict=True):
        if alias.name == "*":
            parts.setdefault(_home(name), []).append("*")
        elif name.known or name.moved:
            home = "brewer_core" if name.moved or not name.name else _home(name)
            parts.setdefault(home, []).append(ast.unparse(alias))
    return "; ".join(f"from {home} import {', '.join(names)}" for home, names in parts.items())


def _home(name: OfTextBrewer) -> str:
    return f"brewer_core.{name.module}" if name.module else "brewer_core"


def _plain_import(alias: ast.alias) -> str:
    package, _, module = alias.name.partition(".")
    if package != "textbrewer":
        return ast.unparse(alias).join(("import ", ""))
    if not module:
        return f"import brewer_core as {alias.asname or 'textbrewer'}"
    if module not in MODULES:
        return "" if alias.asname else "import brewer_core as textbrewer"
    if alias.asname:
        return f"import brewer_core.{module} as {alias.asname}"
    return f"import brewer_core.{module}; import brewer_core as textbrewer"


# Everything else


def _judge_mention(mention: Mention) -> Finding:
    text = mention.text if len(mention.text) <= 80 else f"{mention.text[:77]}..."
    if mention.kind == "registered":
        return Finding(mention.line, text, "change", _registering(mention), 37 if "register_new" in text else None)
    if mention.kind == "assigned":
        copied = f"config.model_copy(update={{{mention.detail!r}: ...}})"
        return Finding(mention.line, text, "change", f"Configs are frozen: build another one, {copied}.", 42)
    if mention.kind == "subclass":
        return Finding(
            mention.line, text, "change", f"A distiller has no inside to override: {strategy_for(mention.detail)}."
        )
    if mention.kind == "config subclass":
        return Finding(
            mention.line, text, "change", "Configs are frozen and closed: keep settings of your own beside them."
        )
    if mention.kind == "inside":
        advice = f"brewer's distillers have no `{mention.detail}`: {strategy_for('')}."
        return Finding(mention.line, text, "change", advice)
    if mention.kind == "processes":
        return Finding(mention.line, text, "change", ONE_PROCESS, 32)
    return _judge_name(mention, text)


def _registering(mention: Mention) -> str:
    if mention.name is not None and mention.name.name in LISTS:
        return "The list is fixed: a match takes any feature that the adaptors return, under any name."
    kind = _KINDS.get(mention.name.name if mention.name is not None else "", "match_loss")
    added = f"registry=default_registry().with_component({kind!r}, {mention.detail or 'name'!r}, ...)"
    return f"Presets are read-only: pass the function itself where the config names it, or give the distiller {added}."


def _judge_name(mention: Mention, text: str) -> Finding:
    name = mention.name
    assert name is not None
    if not name.known:
        lacking = f"There is no module {name.module}" if name.module else f"There is no {name.name}"
        instead = f"write brewer_core.{name.name}" if name.moved else name.hint
        return Finding(mention.line, text, "change", f"{lacking}: {instead}.")
    advice, row = _OF_NAMES.get(name.name, ("The same under the same name.", None))
    return Finding(mention.line, text, "same", advice, row)


_KINDS = {
    "KD_LOSS_MAP": "kd_loss",
    "MATCH_LOSS_MAP": "match_loss",
    "PROJ_MAP": "projection",
    "WEIGHT_SCHEDULER": "weight_scheduler",
    "TEMPERATURE_SCHEDULER": "temperature_scheduler",
}

_OF_NAMES = {
    "CustomMatch": ("TextBrewer died of any custom match; here it is trained.", 1),
    "n_gram_sampling": ("The same; a short text is no error.", 39),
    "long_disorder": ("The same; a short text does not hang.", 40),
}
