"""What a person sees of a run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from brewer_core.listeners import Listener
from brewer_core.progress import ProgressBar
from brewer_core.run.reporting import Reporter

if TYPE_CHECKING:
    from brewer_core.run.planning import Plan


class TerminalReporter(Reporter):
    """Lines and bars on standard error, tables on standard output."""

    def __init__(self) -> None:
        self._progress = Console(stderr=True, markup=False, emoji=False)
        self._out = Console(markup=False, emoji=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self._progress.print(text, highlight=False, soft_wrap=True)

    def bar(self, title: str) -> Listener:
        """A bar for one training."""
        return ProgressBar(title, self._progress)

    def show_summary(self, summary: dict[str, Any], folder: Path) -> None:
        """Print the figures of the models side by side."""
        models = [(title, figures, _by_task(summary, figures)) for title, figures in _named_models(summary)]
        metrics = list(dict.fromkeys(name for _, _, tasks in models for own in tasks.values() for name in own))
        tasks = [] if isinstance(summary["rows"], int) else ["task"]
        table = Table(title=f"{_evaluated(summary)}, seed {summary['seed']}", title_justify="left")
        for column in ("model", *tasks):
            table.add_column(column)
        for column in (*metrics, "parameters", "steps", "seconds"):
            table.add_column(column, justify="right")
        for title, figures, by_task in models:
            last = [f"{figures['parameters']:,}", f"{figures['steps']:,}", f"{figures['seconds']:.1f}"]
            for i, (task, own) in enumerate(by_task.items()):
                cells = [task] * len(tasks) + [f"{own[name]:.4f}" if name in own else "" for name in metrics]
                table.add_row("" if i else title, *cells, *([""] * len(last) if i else last))
        self._out.print(table)
        self._out.print(
            f"{folder}/student holds the student, {folder}/summary.json these figures",
            highlight=False,
            soft_wrap=True,
        )

    def show_plan(self, plan: Plan) -> None:
        """Print what a run would do."""
        table = Table(title="plan", title_justify="left")
        for column in ("stage", "model", "parameters", "optimizer steps", "terms on one batch"):
            table.add_column(column)
        for stage, model, steps in plan.stages:
            terms = ", ".join(f"{name} {value:.4g}" for name, value in plan.terms[stage].items())
            table.add_row(stage, model, f"{plan.parameters[model]:,}", f"{steps:,}", terms)
        self._out.print(table)
        lines = [line for task in plan.classes for line in _task_lines(plan, task)]
        lines += [f"{stage}: {note}" for stage, notes in plan.notes.items() for note in notes]
        self._out.print("\n".join([*lines, "no run was written"]), highlight=False, soft_wrap=True)


def _named_models(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The models in the order of the table, each under a title."""
    teachers, student = summary["teachers"], summary["student"]
    named = []
    for name, figures in teachers.items():
        title = "teacher" if len(teachers) == 1 else f"teacher {name}"
        named.append((f"{title}, {figures['origin']}" if figures["origin"] else title, figures))
    named += [("student, labels alone", figures) for figures in summary["baselines"].values()]
    return [*named, ("student, distilled" if teachers else "student", student)]


def _by_task(summary: dict[str, Any], figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of a model by task, by metric; those of a run of one task are under ""."""
    if isinstance(summary["rows"], int):
        return {"": figures["metrics"]}
    by_task: dict[str, dict[str, float]] = {}
    for name, value in figures["metrics"].items():
        task, _, metric = name.partition("/")
        by_task.setdefault(task, {})[metric] = value
    return by_task or {"": {}}


def _evaluated(summary: dict[str, Any]) -> str:
    """What was evaluated on, task by task where there are several."""
    rows, data = summary["rows"], summary["evaluated_on"]
    if isinstance(rows, int):
        return f"{rows} rows of {data}"
    return ", ".join(f"{task}: {rows[task]} rows of {data[task]}" for task in rows)


def _task_lines(plan: Plan, task: str) -> list[str]:
    """What is learnt of a task, its teachers and rows of evaluation; of the only one without its name and teachers."""
    rows = ", ".join(f"{count:,} rows of {use}" for use, count in plan.rows[task].items())
    lines = [plan.learnt[task], f"evaluation on {rows}" if rows else "no evaluation"]
    if not task:
        return lines
    if plan.teachers[task]:
        lines.insert(1, f"taught by {', '.join(plan.teachers[task])}")
    return [f"{task}: {line}" for line in lines]
