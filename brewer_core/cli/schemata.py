"""`brewer schema`: the JSON Schema of run configs with the options of every installed plugin."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from brewer_core.cli.reading import Disabled, PluginFiles, active_registry
from brewer_core.errors import OutputExistsError, RequestError


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it to a file.", show_default="print it")
    ] = None,
    plugin: PluginFiles = None,
    disable: Disabled = None,
) -> None:
    """Give the JSON Schema of run configs, so that an editor completes and checks them."""
    from brewer_core.config.schema import run_schema

    if output is not None:
        _check(output)
    registry = active_registry(disable or [], plugin or [])
    made = run_schema(c for c in registry.components() if not registry.conflicts(c))
    text = json.dumps(made, indent=2, allow_nan=False)
    if output is None:
        typer.echo(text)
    else:
        _write(output, text + "\n")
        typer.echo(f'{output} is written; name it under "$schema" in a config', err=True)


def _check(output: Path) -> None:
    """Raises OutputExistsError where a file is there that is no schema of ours: a config, for example."""
    if output.exists() and not _is_ours(output):
        raise OutputExistsError(f"output {output} is there already and is no schema of brewer's; name another file.")


def _is_ours(file: Path) -> bool:
    from brewer_core.config.schema import DIALECT, TITLE

    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and (found.get("$schema"), found.get("title")) == (DIALECT, TITLE)


def _write(output: Path, text: str) -> None:
    """Write the file by way of a draft beside it, so that an editor never reads a half. Raises RequestError where it cannot."""
    draft = output.with_name(f".{output.name}.partial")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, output)
    except OSError as error:
        raise RequestError(
            f"output {output} cannot be written: {error.strerror}; choose another with --output."
        ) from error
