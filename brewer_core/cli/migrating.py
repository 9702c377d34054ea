"""`brewer migrate`: what an old TextBrewer script or config needs, and the run config that it comes to."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from brewer_core.migration import Examination, Finding, RunDocument

_STYLES = {"same": "green", "differs": "yellow", "change": "red", "unknown": "cyan"}


def migrate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT_OR_CONFIG",
            help="A Python script, a notebook or a JSON config that uses TextBrewer; it is read, never run.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the run config that it comes to.", show_default="nothing"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Tell what of an old TextBrewer script or config works as it is, what differs, and what to edit."""
    from brewer_core.errors import OutputExistsError
    from brewer_core.migration import examine, run_document
    from brewer_core.plugins import environment_registry

    if output is not None and output.exists():
        raise OutputExistsError(f"output {output} is there already; name a new file with --output.")
    registry = environment_registry()
    examination = examine(source, registry)
    if as_json:
        typer.echo(json.dumps([finding.to_dict() for finding in examination.findings], indent=2))
    else:
        _print_findings(examination)
    if output is not None:
        made = run_document(examination, registry)
        _write(output, made)
        _print_written(output, made, _console(stderr=as_json))


def _write(path: Path, made: RunDocument) -> None:
    """Write the config. Raises RequestError where the file cannot be made, or is there."""
    from brewer_core.errors import RequestError

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(made.document, indent=2) + "\n")
    except OSError as error:
        raise RequestError(
            f"output {path} cannot be written: {error.strerror}; choose another with --output."
        ) from error


def _print_findings(examination: Examination) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=str(examination.uses.source.path), title_justify="left")
    table.add_column("line", header_style="dim", justify="right", no_wrap=True)
    table.add_column("what is used", header_style="dim", overflow="fold", ratio=2)
    table.add_column("verdict", header_style="dim", no_wrap=True)
    table.add_column("what it means", header_style="dim", overflow="fold", ratio=3)
    for finding in examination.findings:
        table.add_row(
            finding.where,
            Text(finding.used),
            Text(finding.verdict, style=_STYLES[finding.verdict]),
            Text(_with_row(finding)),
        )
    console = _console()
    console.print(table)
    console.print()
    console.print(examination.summary, highlight=False, soft_wrap=True)
    if any(finding.row is not None for finding in examination.findings):
        console.print("numbers in brackets are rows of docs/explanation/textbrewer.md", highlight=False, soft_wrap=True)


def _with_row(finding: Finding) -> str:
    return finding.advice if finding.row is None else f"{finding.advice} [{finding.row}]"


def _print_written(path: Path, made: RunDocument, console: Console) -> None:
    _print_list(console, f"{path} is written; fill in before `brewer run {path}`", _fields(made.to_replace))
    _print_list(console, "without a counterpart in it", made.left_out)


def _fields(to_replace: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{path}: {what}" for path, what in to_replace]


def _print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print()
    console.print(title, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(markup=False, emoji=False, stderr=stderr, width=None if stream.isatty() else 100)
