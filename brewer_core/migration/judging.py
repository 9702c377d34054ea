"""A file judged: what of it brewer takes as it is, what differs, and what must be edited."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brewer_core.errors import RequestError
from brewer_core.migration.bindings import dotted
from brewer_core.migration.findings import Finding, Verdict, summary
from brewer_core.migration.judging_configs import PROCESSES, judge_config
from brewer_core.migration.judging_trainings import STRATEGY, judge_distiller, judge_subclass, judge_train
from brewer_core.migration.names import CONFIGS, DISTILLERS, INSIDES, LISTS, PRESETS, OfTextBrewer
from brewer_core.migration.sources import read_source
from brewer_core.migration.uses import Registration, Uses, find_uses, imported
from brewer_core.migration.values import cut
from brewer_core.registry import Registry


@dataclass(frozen=True)
class Examination:
    """A file's uses of TextBrewer and what was found about them, in the order of the text."""

    uses: Uses
    findings: Sequence[Finding]

    @property
    def summary(self) -> str:
        """Whether the file is ready, in a sentence."""
        return summary(self.findings, self.uses.source.kind)


def examine(path: Path, registry: Registry) -> Examination:
    """Judge a script, a notebook or a config; nothing of it is run.

    Raises RequestError where the file is missing, is no Python or JSON, or uses nothing of TextBrewer.
    """
    try:
        uses = find_uses(read_source(path))
        found = dict.fromkeys(sorted(_judged(uses, registry), key=lambda finding: finding.line))
    except RecursionError as error:
        raise RequestError(f"{path}: an expression in it is nested too deeply to be read.") from error
    if not uses:
        raise RequestError(f"{path}: {_nothing_used(uses)}, so there is nothing to migrate.")
    places = [(finding, *uses.source.place(finding.line)) for finding in found]
    return Examination(uses, [*(replace(f, cell=cell, line=line) for f, cell, line in places), *_skipped(uses)])


def _nothing_used(uses: Uses) -> str:
    if uses.source.kind == "config":
        return "it has no setting of TextBrewer's TrainingConfig or DistillationConfig"
    return f"this {uses.source.kind} imports neither textbrewer nor brewer_core"


def _skipped(uses: Uses) -> Iterator[Finding]:
    for cell in uses.source.skipped:
        yield Finding(1, f"cell {cell}", "unknown", "This cell is not Python and was not looked at.", cell=cell)


def _judged(uses: Uses, registry: Registry) -> Iterator[Finding]:
    for node in uses.nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from _judge_import(node)
        elif isinstance(node, ast.ClassDef):
            yield from judge_subclass(node, uses)
    for config in uses.configs.values():
        yield from judge_config(config, uses, registry)
    for distiller in uses.distillers.values():
        yield from judge_distiller(distiller)
    for train in uses.trains:
        yield from judge_train(train, uses)
    for registration in uses.registrations.values():
        yield _judge_registration(registration)
    for node in uses.nodes:
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield from _judge_name(node, uses)
        if isinstance(node, ast.Attribute):
            yield from _judge_attribute(node, uses)
        elif isinstance(node, ast.Call):
            yield from _judge_call(node, uses)


def _change(node: ast.AST, advice: str, row: int | None = None, verdict: Verdict = "change") -> Finding:
    return Finding(getattr(node, "lineno", 0), cut(ast.unparse(node), 80), verdict, advice, row)


# Imports


def _judge_import(node: ast.Import | ast.ImportFrom) -> Iterator[Finding]:
    found = imported(node)
    if not found:
        return
    if all(name.root == "brewer_core" for _, name in found):
        yield _change(node, "Changed already.", verdict="same")
        return
    becomes = _plain_imports(found) if isinstance(node, ast.Import) else _imports_from(found)
    said = [f"Write `{'; '.join(becomes)}`."] if becomes else []
    said += dict.fromkeys(name.lack for _, name in found if not (name.known or name.moved))
    verdict: Verdict = "same" if all(name.known for _, name in found) else "change"
    if any(name.name == "*" for _, name in found):
        said.append("What it brings in was not looked at: import by name to have it looked at.")
        verdict = "unknown" if verdict == "same" else verdict
    yield _change(node, " ".join(said), verdict=verdict)


def _plain_imports(found: Sequence[tuple[ast.alias, OfTextBrewer]]) -> list[str]:
    becomes = []
    for alias, name in found:
        if name.module and name.known:
            becomes.append(f"import brewer_core.{name.module}" + (f" as {alias.asname}" if alias.asname else ""))
        if not name.module or not alias.asname:
            becomes.append(f"import brewer_core as {alias.asname or 'textbrewer'}")
    return becomes


def _imports_from(found: Sequence[tuple[ast.alias, OfTextBrewer]]) -> list[str]:
    homes: dict[str, list[str]] = {}
    for alias, name in found:
        inner = f".{name.module}" if name.module and name.name and name.known else ""
        if name.known or name.moved:
            homes.setdefault(f"brewer_core{inner}", []).append(ast.unparse(alias))
    return [f"from {home} import {', '.join(names)}" for home, names in homes.items()]


# Names and what is done with them

_OF_NAMES = {
    "CustomMatch": ("TextBrewer died of any custom match; here it is trained.", 1),
    "n_gram_sampling": ("The same; a short text is no error.", 39),
    "long_disorder": ("The same; a short text does not hang.", 40),
}


def _judge_name(node: ast.Name | ast.Attribute, uses: Uses) -> Iterator[Finding]:
    """What is to be said of a name of TextBrewer that is read, where nothing else tells of it."""
    name, outer = uses.name(node), uses.bindings.parent(node)
    longer = isinstance(outer, ast.Attribute) and uses.name(outer) is not None
    if name is None or longer or not name.name or name.name in (*CONFIGS, *DISTILLERS) or node in uses.registrations:
        return
    if not isinstance(node.ctx, ast.Load):
        return
    if not name.known:
        yield _change(node, name.lack)
    elif name.name == "Distillers":
        advice = "What is built by a key of it was not looked at; name the class to have it looked at."
        yield _change(node, advice, verdict="unknown")
    else:
        advice, row = _OF_NAMES.get(name.name, ("The same under the same name.", None))
        yield _change(node, advice, row, "same")


def _judge_registration(registration: Registration) -> Finding:
    preset, names = registration.preset, registration.names
    if preset in LISTS:
        advice = "The list is fixed: a match takes any feature that the adaptors return, under any name."
        return _change(registration.node, advice)
    kind, name = repr(PRESETS[preset]) if preset in PRESETS else "kind", names[0] if names else "name"
    added = f"registry=default_registry().with_component({kind}, {name!r}, ...)"
    advice = (
        f"Presets are read-only: pass the function itself where the config names it, or give the distiller {added}."
    )
    return _change(registration.node, advice, 37 if preset == "register_new" else None)


def _judge_attribute(node: ast.Attribute, uses: Uses) -> Iterator[Finding]:
    """What is to be said of an attribute that is set on a config, or that only TextBrewer's distillers have."""
    written = not isinstance(node.ctx, ast.Load)
    statement = (uses.bindings.parent(node) or node) if written else node
    if written and uses.is_config(node.value):
        copied = f"config.model_copy(update={{{node.attr!r}: ...}})"
        yield _change(statement, f"Configs are frozen: build another one, {copied}.", 42)
    elif node.attr in INSIDES and uses.is_distiller(node.value):
        yield _change(statement, f"brewer's distillers have no `{node.attr}`: {STRATEGY}.")


_READERS = frozenset({"print", "str", "repr", "type", "isinstance", "debug", "info", "warning", "getattr", "hasattr"})
"""Functions, and methods of loggers, that change nothing of what they are given."""


def _judge_call(node: ast.Call, uses: Uses) -> Iterator[Finding]:
    called = (dotted(node.func) or "").rpartition(".")[2]
    if called == "init_process_group":
        yield _change(node, PROCESSES, 32, verdict="differs")
    if isinstance(node.func, ast.Subscript) and (name := uses.name(node.func.value)) and name.name in PRESETS:
        by_name = [keyword.arg for keyword in node.keywords if keyword.arg != "mask"]
        if by_name:
            advice = (
                f"A component takes its inputs by position: write {', '.join(map(str, by_name))} without the names."
            )
            yield _change(node, advice)
    if called not in _READERS and node not in uses.configs and node not in uses.distillers:
        yield from _judge_passed(node, called, uses)


def _judge_passed(node: ast.Call, called: str, uses: Uses) -> Iterator[Finding]:
    """What is to be said of a config or a distiller that a function of the script is given."""
    given = [argument.value if isinstance(argument, ast.Starred) else argument for argument in node.args]
    for argument in [*given, *(keyword.value for keyword in node.keywords)]:
        if not isinstance(argument, (ast.Name, ast.Attribute)):
            continue
        if uses.is_config(argument):
            what = "assigns to the config, which is frozen"
        elif uses.bindings.definition(argument) in uses.distillers:
            what = "trains, or uses what is inside a distiller"
        else:
            continue
        advice = f"What is done with it inside `{called}` was not followed: look whether that {what}."
        yield Finding(node.lineno, f"{ast.unparse(argument)} in {called}(...)", "unknown", advice)
