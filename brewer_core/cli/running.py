"""`brewer run`: a config carried out, with its progress and its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from brewer_core.config import RunConfig
    from brewer_core.registry import Registry


def run(
    config: Annotated[
        str,
        typer.Argument(help="A JSON file, or a config that ships with brewer: quickstart.", show_default=False),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the run.", show_default="runs/<config>-<UTC time>")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="path.to.field=value", help="Change a field of the config; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, try one batch, print the plan, write nothing.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    plugin: Annotated[
        list[str] | None, typer.Option(metavar="FILE.py", help="A plugin in a single file, for this run only.")
    ] = None,
    disable: Annotated[
        list[str] | None, typer.Option(help="Leave out a plugin: its distribution, or distribution:entry.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that the folder holds.")] = False,
) -> None:
    """Carry out a config: train, distil, evaluate, and leave the student in the run's folder."""
    from brewer_core.cli.reporting import TerminalReporter

    files = tuple(Path(file) for file in plugin or [])
    registry = _registry(disable or [], files)
    parsed, stem, base_dir = _read(config, settings or [], registry)
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


def _registry(disable: list[str], files: tuple[Path, ...]) -> Registry:
    """The registry of this run; every plugin that fails is warned of."""
    import warnings

    from brewer_core.plugins import PluginWarning, environment_registry

    registry = environment_registry(disable=disable, files=files)
    for failed in registry.plugins:
        if failed.status == "failed":
            warnings.warn(f"plugin {failed.key} was left out: {failed.error}", PluginWarning, stacklevel=2)
    return registry


def _read(config: str, settings: list[str], registry: Registry) -> tuple[RunConfig, str, Path]:
    """The config, a name for its folder, and what its paths are relative to."""
    from brewer_core.config import load_run_config, parse_run_config
    from brewer_core.run.library import packaged_config

    if "." in config or "/" in config:
        path = Path(config)
        return load_run_config(path, settings, registry), path.stem, path.parent
    name, document = packaged_config(config)
    parsed: RunConfig = parse_run_config(document, name, registry, settings)
    return parsed, config, Path()
