"""`brewer explain`: the total loss of each stage as a formula, term by term."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewer_core.cli.reading import ConfigName, Disabled, PluginFiles, Settings, active_registry, run_config_named
from brewer_core.run.explained import (
    ExplainedStage,
    ExplainedTask,
    ExplainedTeacher,
    ExplainedTerm,
    Projected,
    Read,
    Used,
    number,
)

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 140  # where nobody's terminal sets the width


def explain(
    config: ConfigName,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, an object for each stage.")] = False,
    plugin: PluginFiles = None,
    disable: Disabled = None,
) -> None:
    """Show what a config minimises: the total loss of each stage as a formula, with every term's numbers and shapes."""
    registry = active_registry(disable or [], plugin or [])
    parsed, _, base_dir = run_config_named(config, settings or [], registry)
    from brewer_core.run.assembly import Assembly
    from brewer_core.run.explaining import explain as explained
    from brewer_core.run.pipeline import choose_device

    stages = explained(Assembly(parsed, base_dir, registry, choose_device("auto")))
    if as_json:
        typer.echo(json.dumps([as_object(stage) for stage in stages], indent=2))
        return
    from rich.console import Console

    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
    for stage in stages:
        _print_stage(console, stage)
    console.print("Values are those of the first batch, before anything is trained.", style="dim", highlight=False)


def as_object(stage: ExplainedStage) -> dict[str, Any]:
    """A stage as JSON values, with the formula and the total of each task."""
    told = asdict(stage)
    for task, plain in zip(stage.tasks, told["tasks"], strict=True):
        plain |= {"formula": " + ".join(task.formula), "total": task.total}
    return told


def _print_stage(console: Console, stage: ExplainedStage) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text.assemble((f"stage {stage.name}", "bold"), f", {_what(stage)}"), highlight=False)
    console.print(Padding(_rows(list(_stage_rows(stage))), (0, 0, 1, 2)))
    for task in stage.tasks:
        _print_task(console, stage, task)


def _what(stage: ExplainedStage) -> str:
    steps = f"{stage.at[-1]:,} steps"
    if not stage.teachers:
        return f"{stage.kind}: {stage.student}, {steps}"
    return f"{stage.kind}: {', '.join(teacher.name for teacher in stage.teachers)} -> {stage.student}, {steps}"


def _stage_rows(stage: ExplainedStage) -> Iterator[tuple[str, str]]:
    strategy, model, adaptor = stage.used
    yield (
        "strategy",
        _origin(strategy)
        + (f"; it trains {stage.strategy_parameters:,} parameters of its own" if stage.strategy_parameters else ""),
    )
    yield (
        f"{'student' if stage.teachers else 'model'} {stage.student}",
        f"model {_origin(model)}, adaptor {_origin(adaptor)}",
    )
    for teacher in stage.teachers:
        yield f"teacher {teacher.name}", _teacher(stage, teacher)
    if stage.balancer is not None:
        trained = f"; it trains {stage.balancer_parameters:,} parameters" if stage.balancer_parameters else ""
        yield "balancer", _origin(stage.balancer) + trained
    yield "micro-batches", _normalization(stage)


def _teacher(stage: ExplainedStage, teacher: ExplainedTeacher) -> str:
    model, adaptor = teacher.used
    more = [f"task {teacher.task}"] if teacher.task else []
    more += [f"weight {number(teacher.weight)}"] if len(stage.teachers) > 1 else []
    return ", ".join([*more, f"model {_origin(model)}", f"adaptor {_origin(adaptor)}"])


def _normalization(stage: ExplainedStage) -> str:
    if stage.accumulation == 1:
        return "one in a step: the total is that of its batch"
    how = {
        "step": "each term weighed by its share of the step's items, `over` below",
        "micro_batch": "the mean of their totals",
    }
    return f"{stage.accumulation} in a step: {how[stage.loss_normalization]} (loss_normalization {stage.loss_normalization})"


def _print_task(console: Console, stage: ExplainedStage, task: ExplainedTask) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if task.task:
        console.print(Text(f"  batches of the task {task.task}", style="bold"))
    console.print(Padding(_formula(task), (0, 0, 1, 2)))
    for term in task.terms:
        console.print(Text(f"  {term.name}", style="bold"))
        console.print(Padding(_rows(list(_term_rows(stage, term))), (0, 0, 1, 4)))
    if task.left_out:
        console.print(Text("  left out", style="bold"))
        console.print(Padding(_rows(list(task.left_out.items())), (0, 0, 1, 4)))


def _formula(task: ExplainedTask) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for i, summand in enumerate(task.formula):
        table.add_row("+" if i else "total =", summand)
    table.add_row("=", f"{task.total:.6g} on a batch of {task.rows} rows")
    return table


def _term_rows(stage: ExplainedStage, term: ExplainedTerm) -> Iterator[tuple[str, str]]:
    start = number(term.weights[0])
    balanced = ""
    if term.balance is not None:
        penalty = f" and a penalty of {term.balance.penalty:.6g}" if term.balance.penalty else ""
        balanced = f"balanced by {term.balance.factor:.6g}{penalty}, "
    yield "value", f"{term.value:.6g}, {balanced}times {start} makes {term.weighted:.6g} of the total"
    if len(set(term.weights)) > 1:
        at = ", ".join(f"{weight:.6g} at step {step:,}" for weight, step in zip(term.weights, stage.at, strict=True))
        yield "weight", at
    own = any(used.role == "strategy" for used in term.used)
    for read in term.reads:
        yield "strategy reads" if own else "reads", _read(read)
    if term.temperature is not None:
        yield "temperature", number(term.temperature)
    yield "over", "the batch as a whole; it depends on how a step is split" if term.over == "batch" else term.over
    for used in term.used:
        more = _projection(term.projection) if used.role == "projection" and term.projection else ""
        yield used.role, _origin(used) + more
    if not term.trained:
        yield "note", "nothing that is trained changes it"


def _read(read: Read) -> str:
    counts = dict.fromkeys(read.shapes, 0) | {shape: read.shapes.count(shape) for shape in read.shapes}
    shapes = [f"{f'{count} of ' if count > 1 else ''}{_axes(read.axes, shape)}" for shape, count in counts.items()]
    return f"{read.name}: {', '.join(shapes)}"


def _axes(axes: str, shape: tuple[int, ...]) -> str:
    if not shape:
        return "a number"
    return " x ".join(f"{axis} {size}" for axis, size in zip(axes.split(), shape, strict=True))


def _projection(projection: Projected) -> str:
    group = f", optimizer group {json.dumps(dict(projection.group))}" if projection.group else ""
    return f", {projection.width} -> {projection.to}, {projection.parameters:,} parameters{group}"


def _origin(used: Used) -> str:
    options = f" {json.dumps(used.changed)}" if used.changed and used.role != "model" else ""
    return f"{used.name}{options} ({used.origin})"


def _rows(rows: list[tuple[str, str]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for i, (title, value) in enumerate(rows):
        table.add_row("" if i and rows[i - 1][0] == title else title, value)
    return table
