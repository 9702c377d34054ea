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
    from brewer_core.run.pipeline import Plan


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
        models = _named_models(summary)
        metrics = list(dict.fromkeys(name for _, figures in models for name in figures["metrics"]))
        table = Table(
            title=f"{summary['rows']} rows of {summary['evaluated_on']}, seed {summary['seed']}", title_justify="left"
        )
        table.add_column("model")
        for column in (*metrics, "parameters", "steps", "seconds"):
            table.add_column(column, justify="right")
        for title, figures in models:
            cells = [f"{figures['metrics'][name]:.4f}" for name in metrics]
            table.add_row(
                title, *cells, f"{figures['parameters']:,}", f"{figures['steps']:,}", f"{figures['seconds']:.1f}"
            )
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
        classes = "; ".join(plan.classes)
        rows = ", ".join(f"{count:,} rows of {use}" for use, count in plan.rows.items())
        self._out.print(
            f"{len(plan.classes)} classes: {classes}\nevaluation on {rows}\nnothing was written",
            highlight=False,
        )


def _named_models(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The models in the order of the table, each under a title."""
    teacher, student = summary["teacher"], summary["student"]
    origin = f", {teacher['origin']}" if teacher and teacher["origin"] else ""
    named = [(f"teacher{origin}", teacher)] if teacher else []
    named += [("student, labels alone", figures) for figures in summary["baselines"].values()]
    return [*named, ("student, distilled" if teacher else "student", student)]
