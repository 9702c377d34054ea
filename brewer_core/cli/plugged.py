"""The commands that plugins add to `brewer`: listed from metadata alone, and imported when they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from brewer_core.errors import PluginError

if TYPE_CHECKING:
    from brewer_core.plugins import FoundPlugin

_META = "brewer.commands"


class PluggedGroup(TyperGroup):
    """brewer's own commands, and after them those of plugins. One of brewer's own names stays brewer's own."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return [*super().list_commands(ctx), *sorted(name for name in _plugged(ctx) if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command of brewer's own; of a plugin's what the help shows of it."""
        own = super().get_command(ctx, cmd_name)
        return own if own or cmd_name not in _plugged(ctx) else _mention(cmd_name, _plugged(ctx)[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, a plugin's being imported now. Raises PluginError where that fails."""
        if args[0] in self.commands or args[0] not in _plugged(ctx):
            return super().resolve_command(ctx, args)
        return args[0], load_command(_plugged(ctx)[args[0]]), args[1:]


def _plugged(ctx: Any) -> Mapping[str, Sequence[FoundPlugin]]:
    """The commands of plugins, looked for once in a call: the metadata of every distribution is read for it."""
    if _META not in ctx.meta:
        ctx.meta[_META] = find_commands()
    found: Mapping[str, Sequence[FoundPlugin]] = ctx.meta[_META]
    return found


def find_commands() -> dict[str, Sequence[FoundPlugin]]:
    """The commands of plugins by name, with all that provide one of that name; nothing is imported.

    Those of plugins that the environment disables, or does not allow, are left out.
    """
    from brewer_core.plugins import COMMANDS, Choice, find_plugins

    choice, found = Choice.of_environment(), find_plugins(group=COMMANDS)
    taken = [plugin for plugin in found if choice.takes(plugin) and not plugin.error]
    return {name: [p for p in taken if p.entry_point == name] for name in {plugin.entry_point for plugin in taken}}


def load_command(providers: Sequence[FoundPlugin]) -> Any:
    """The command that an entry point names.

    Raises PluginError where two plugins provide it, its import fails, or it is no `typer.Typer`.
    """
    found, *others = providers
    label = f"the command `{found.entry_point}` of {found.provenance.distribution} {found.version}"
    if others:
        named = " and ".join(plugin.distribution for plugin in providers)
        raise PluginError(
            f"the command `{found.entry_point}` is provided by {named}; disable one of them with BREWER_DISABLE_PLUGINS."
        )
    try:
        loaded = metadata.EntryPoint(found.entry_point, found.target, "").load()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": .")
        raise PluginError(f"{label} fails on import: {reason}; tell its authors, or uninstall it.") from error
    if not isinstance(loaded, typer.Typer):
        raise PluginError(f"{label} is a {type(loaded).__name__}; it must be a typer.Typer.")
    return typer.main.get_command(loaded)


def _mention(name: str, providers: Sequence[FoundPlugin]) -> TyperCommand:
    origin = " and ".join(f"{plugin.distribution} {plugin.version}".rstrip() for plugin in providers)
    return TyperCommand(name=name, callback=None, help=f"From {origin}.")
