"""`brewer test-plugin`: whether what a distribution provides keeps what its kinds promise."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from brewer_core.registry import Plugin
    from brewer_core.testing.report import Outcome

STYLES = {"passed": "dim", "FAILED": "bold red", "skipped": "yellow"}


def run_properties(
    distribution: Annotated[
        str,
        typer.Argument(help="An installed distribution; brewer-core for what comes with brewer.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Test every component of a distribution for the properties of its kind."""
    # the suite stands on the whole of brewer, and nothing but this command imports it
    from brewer_core.testing.report import conformance_of, outcomes, plugins_of

    plugins = plugins_of(distribution)
    found = [o for p in plugins for c in p.components for o in outcomes(conformance_of(c))]
    failed = [plugin for plugin in plugins if plugin.status == "failed"]
    if as_json:
        typer.echo(json.dumps(_document(found, failed), indent=2))
    else:
        _print_table(found, failed)
    if failed or any(outcome.result == "failed" for outcome in found):
        raise typer.Exit(1)


def _document(found: Sequence[Outcome], failed: Sequence[Plugin]) -> dict[str, object]:
    return {
        "properties": [dataclasses.asdict(outcome) for outcome in found],
        "failed_plugins": [{"entry_point": p.provenance.entry_point, "error": p.error} for p in failed],
    }


def _print_table(found: Sequence[Outcome], failed: Sequence[Plugin]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)
    table = Table(box=None, pad_edge=False)
    for column in ("component", "property", "", "why"):
        table.add_column(column, header_style="dim", overflow="fold")
    before = ""
    for outcome in found:
        component = f"{outcome.kind.replace('_', ' ')} {outcome.component}"
        word = "FAILED" if outcome.result == "failed" else outcome.result
        shown = "" if component == before else component
        table.add_row(shown, outcome.property, Text(word, style=STYLES[word]), outcome.reason or "")
        before = component
    if found:
        console.print(table)
    for plugin in failed:
        console.print(f"FAILED to load {plugin.key}: {plugin.error}", style="red", highlight=False, soft_wrap=True)
    counts = Counter(outcome.result for outcome in found)
    summary = ", ".join(f"{counts[result]} {result}" for result in ("passed", "failed", "skipped"))
    console.print(f"{summary} of {len({(o.kind, o.component) for o in found})} components", highlight=False)
