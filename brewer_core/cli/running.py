"""`brewer run`: a config carried out, with its progress and its table."""

from __future__ import annotations

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
        bool, typer.Option("--dry-run", help="Build everything, try one batch, print the plan, write no run.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    plugin: PluginFiles = None,
    disable: Disabled = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that the folder holds.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the folder holds; begin it where there is none.")
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option("--max-time", metavar="TIME", help="Save and stop after this time, such as 90m or 3h."),
    ] = None,
) -> None:
    """Carry out a config: train, distil, evaluate, and leave the student in the run's folder."""
    from brewer_core.cli.durations import seconds_of
    from brewer_core.cli.reporting import TerminalReporter
    from brewer_core.cli.stopping import stopping_gracefully
    from brewer_core.processes import joined
    from brewer_core.run.reporting import Reporter
    from brewer_core.stopping import StopRequest

    stop = StopRequest(seconds_of(max_time) if max_time is not None else None)
    if resume and overwrite:
        raise typer.BadParameter("--resume goes on with a run, and --overwrite removes it; give one of them.")
    files = tuple(plugin or [])
    registry = active_registry(disable or [], files)
    parsed, stem, base_dir = run_config_named(config, settings or [], registry)
    terminal = TerminalReporter()
    from brewer_core.run.assembly import Assembly
    from brewer_core.run.folder import RunFolder
    from brewer_core.run.pipeline import choose_device, choose_output, run_config
    from brewer_core.run.planning import plan

    # in this order: until the others are left, a signal hides no error
    with stopping_gracefully(stop), joined() as processes:
        resuming = resume or (parsed.resume == "auto" and not overwrite)
        target = processes.of_first(lambda: choose_output(parsed, base_dir, stem, output, resuming))
        if dry_run:
            RunFolder.check(target, overwrite or resuming)
            terminal.show_plan(plan(Assembly(parsed, base_dir, registry, choose_device(device))))
            return
        summary = run_config(
            parsed,
            output=target,
            base_dir=base_dir,
            overwrite=overwrite,
            resume=resuming,
            device=device,
            registry=registry,
            reporter=terminal if processes.first else Reporter(),
            plugin_files=files,
            stop=stop,
        )
        if processes.first:
            terminal.show_summary(summary, target)
