"""`brewer list-plugins`: where every method comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewer_core.cli.reading import Disabled

if TYPE_CHECKING:
    from brewer_core.components import Component, Kind
    from brewer_core.registry import Plugin, Registry


def list_plugins(
    kind: Annotated[
        str | None, typer.Argument(help="List one kind only, such as kd-losses.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    disable: Disabled = None,
) -> None:
    """List every method by kind, with its options and the distribution it comes from."""
    from brewer_core.components import kind_named
    from brewer_core.plugins import environment_registry

    wanted = kind_named(kind) if kind else None
    registry = environment_registry(disable=disable or [])
    rows = component_rows(registry, wanted) + plugin_rows(registry)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
    else:
        _print_tables(rows)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(1)


def component_rows(registry: Registry, kind: Kind | None = None) -> list[dict[str, Any]]:
    """A row for each component: those of one kind, or all."""
    return [_component_row(registry, c) for c in registry.components() if kind is None or c.kind == kind]


def plugin_rows(registry: Registry) -> list[dict[str, Any]]:
    """A row for each plugin that provides nothing: failed or disabled."""
    return [_plugin_row(plugin) for plugin in registry.plugins if plugin.status != "loaded"]


def _component_row(registry: Registry, component: Component) -> dict[str, Any]:
    others = registry.conflicts(component)
    where = component.provenance
    return {
        "kind": component.kind.name,
        "name": component.name,
        "summary": component.summary,
        "options": _options(component),
        "distribution": where.distribution,
        "version": where.version,
        "entry_point": where.entry_point,
        "status": "conflict" if others else "loaded",
        "error": f"also provided by {', '.join(str(c.provenance) for c in others)}" if others else None,
    }


def _plugin_row(plugin: Plugin) -> dict[str, Any]:
    where = plugin.provenance
    return {
        "kind": None,
        "name": None,
        "summary": None,
        "options": [],
        "distribution": where.distribution,
        "version": where.version,
        "entry_point": where.entry_point,
        "status": plugin.status,
        "error": plugin.error,
    }


def _options(component: Component) -> list[dict[str, Any]]:
    schema = component.options_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "required": name in required, **{k: v for k, v in field.items() if k != "title"}}
        for name, field in schema.get("properties", {}).items()
    ]


def _print_tables(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from brewer_core.components import KINDS

    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)
    for kind in KINDS.values():
        listed = [row for row in rows if row["kind"] == kind.name]
        if not listed:
            continue
        table = Table(
            title=kind.plural.replace("_", " "), title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        for column in ("name", "summary", "options", "from"):
            table.add_column(column, header_style="dim", overflow="fold")
        for row in listed:
            note = f" ({row['status']}: {row['error']})" if row["status"] != "loaded" else ""
            table.add_row(row["name"], row["summary"], _options_text(row["options"]), _origin(row) + note)
        console.print(table)
        console.print()
    for row in rows:
        if row["kind"] is None:
            style = "red" if row["status"] == "failed" else "dim"
            reason = f": {row['error']}" if row["error"] else ""
            console.print(f"{row['status']} {_origin(row)}{reason}", style=style, highlight=False, soft_wrap=True)


def _options_text(options: Sequence[dict[str, Any]]) -> str:
    return ", ".join(o["name"] if o["required"] else f"{o['name']}={json.dumps(o.get('default'))}" for o in options)


def _origin(row: dict[str, Any]) -> str:
    return f"{row['distribution']} {row['version']}"
