"""What several commands are given: plugins beside the installed ones, plugins to leave out, and a config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from brewer_core.config import RunConfig
    from brewer_core.registry import Registry

ConfigName: TypeAlias = Annotated[
    str, typer.Argument(help="A JSON file, or a config that ships with brewer: quickstart.", show_default=False)
]
Settings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="path.to.field=value", help="Change a field of the config; repeatable."),
]
PluginFiles: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="A plugin in a single file, for this command only."),
]
Disabled: TypeAlias = Annotated[
    list[str] | None, typer.Option("--disable", help="Leave out a plugin: its distribution, or distribution:entry.")
]


def active_registry(disable: Iterable[str], files: Iterable[Path]) -> Registry:
    """The registry of this command; every plugin that fails is warned of."""
    import warnings

    from brewer_core.plugins import PluginWarning, environment_registry

    registry = environment_registry(disable=disable, files=files)
    for failed in registry.plugins:
        if failed.status == "failed":
            warnings.warn(f"plugin {failed.key} was left out: {failed.error}", PluginWarning, stacklevel=2)
    return registry


def run_config_named(config: str, settings: Sequence[str], registry: Registry) -> tuple[RunConfig, str, Path]:
    """The config of a path or a packaged name, a name for its folder, and what its paths are relative to."""
    from brewer_core.config import load_run_config, parse_run_config
    from brewer_core.run.library import packaged_config

    if "." in config or "/" in config:
        path = Path(config)
        return load_run_config(path, settings, registry), path.stem, path.parent
    name, document = packaged_config(config)
    parsed: RunConfig = parse_run_config(document, name, registry, settings)
    return parsed, config, Path()
