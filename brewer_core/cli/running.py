"""`brewer run`: a config carried out, with its progress and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brewer_core.cli.reading import ConfigName, Disabled, PluginFiles, Settings, active_registry, run_config_named


def run(
    config: ConfigName,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the run.", show_default="runs/<config>-<UTC time>")
    ] = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, try one batch, print the plan, write nothing.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    plugin: PluginFiles = None,
    disable: Disabled = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that the folder holds.")] = False,
) -> None:
    """Carry out a config: train, distil, evaluate, and leave the student in the run's folder."""
    from brewer_core.cli.reporting import TerminalReporter

    files = tuple(plugin or [])
    registry = active_registry(disable or [], files)
    parsed, stem, base_dir = run_config_named(config, settings or [], registry)
    reporter = TerminalReporter()
    from brewer_core.run.assembly import Assembly
    from brewer_core.run.folder import RunFolder
    from brewer_core.run.pipeline import choose_device, configured_output, default_output, plan, run_config

    target = Path(output or configured_output(parsed, base_dir) or default_output(stem))
    RunFolder.check(target, overwrite)
    if dry_run:
        reporter.show_plan(plan(Assembly(parsed, base_dir, registry, choose_device(device))))
        return
    summary = run_config(
        parsed,
        output=target,
        base_dir=base_dir,
        overwrite=overwrite,
        device=device,
        registry=registry,
        reporter=reporter,
        plugin_files=files,
    )
    reporter.show_summary(summary, target)
