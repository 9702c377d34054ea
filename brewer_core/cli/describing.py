"""`brewer describe`: all that is known of one method."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewer_core.cli.reading import Disabled, PluginFiles, active_registry

if TYPE_CHECKING:
    from rich.console import Console

    from brewer_core.components import Component

_PLAIN = {"string": "text", "boolean": "true or false", "array": "list"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_SIZES = {"Length": "characters", "Items": "items", "Properties": "keys"}
_AVERAGED = ("kd_loss", "match_loss")
_SPARSE = {True: "some of the teacher's logits are enough", False: "no, all of the teacher's logits are needed"}
_BEGINS = re.compile(r" |(Formula|Cost|Source): |(Returns|Raises) |[a-z_]+(, [a-z_]+)*: ")
"""What a line of a docstring begins with that is no part of the line before."""
_LINE = 70  # of JSON, beside its indent
_WIDE = 100  # where nobody's terminal sets the width


def describe(
    kind: Annotated[str, typer.Argument(help="A kind of component, such as match-loss.", show_default=False)],
    name: Annotated[str, typer.Argument(help="A name as configs use it, such as pkd.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, an object for each provider.")] = False,
    plugin: PluginFiles = None,
    disable: Disabled = None,
) -> None:
    """Tell all about a method: what it does, its options, where it comes from, and how a config names it."""
    registry = active_registry(disable or [], plugin or [])
    described = [description(component) for component in registry.providers(kind, name)]
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    console = _console()
    for one in described:
        _print(console, one)
    if len(described) > 1:
        keys = " or ".join(f"{one['distribution']}:{one['entry_point']}" for one in described)
        console.print(
            f"{len(described)} plugins provide this name, and no config can use it: --disable {keys}",
            highlight=False,
            soft_wrap=True,
        )


def description(component: Component) -> dict[str, Any]:
    """All that is known of a component, as JSON values."""
    from brewer_core.config.snippets import snippet

    facts, where, example = component.facts, component.provenance, snippet(component)
    over = getattr(facts.over, "__name__", facts.over) or "rows" if component.kind.name in _AVERAGED else None
    return {
        "kind": component.kind.name,
        "name": component.name,
        "full_name": facts.title,
        "summary": component.summary,
        "text": component.text,
        "source": facts.source,
        "over": over,
        "sparse": bool(facts.sparse) if "teacher_logits" in component.kind.positional else None,
        "lower_is_better": facts.lower_is_better if component.kind.name == "metric" else None,
        "inputs": _inputs(component),
        "options": _options(component),
        "distribution": where.distribution,
        "version": where.version,
        "entry_point": where.entry_point,
        "where": example.where,
        "snippet": example.document,
    }


def _inputs(component: Component) -> list[dict[str, Any]]:
    kind, signature = component.kind, component.signature
    named = [(name, name in signature.required) for name in signature.inputs] + [(n, True) for n in signature.sizes]
    return [
        *({"name": name, "by": "position", "required": True} for name in kind.positional[: signature.positional]),
        *({"name": name, "by": "name", "required": required} for name, required in named),
    ]


def _options(component: Component) -> list[dict[str, Any]]:
    schema = component.options_schema()
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "type": type_text(field),
            "range": range_text(field),
            "required": name in required,
            "default": field.get("default"),
            "description": field.get("description", ""),
            "schema": field,
        }
        for name, field in schema.get("properties", {}).items()
    ]


def type_text(field: Mapping[str, Any]) -> str:
    """The type of an option as a person reads it."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(type_text, field["anyOf"])))
    if "enum" in field or "const" in field:
        return " or ".join(map(json.dumps, field.get("enum", [field.get("const")])))
    kind = str(field.get("type", "any value"))
    if "properties" in field:
        return f"object of {', '.join(field['properties'])}"
    inner = field.get("items" if kind == "array" else "additionalProperties")
    of = f" of {type_text(inner)}" if isinstance(inner, dict) and isinstance(inner.get("type"), str) else ""
    return f"{_PLAIN.get(kind, kind)}{of}"


def range_text(field: Mapping[str, Any]) -> str:
    """Which values of its type an option may have; empty where all of them."""
    own = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    own += [
        size for word, what in _SIZES.items() for size in _size(field.get(f"min{word}"), field.get(f"max{word}"), what)
    ]
    own += [f"matches {field['pattern']}"] if "pattern" in field else []
    own += [inner for choice in field.get("anyOf", ()) for inner in [range_text(choice)] if inner]
    items = field.get("items")
    each = range_text(items) if isinstance(items, dict) else ""
    return ", ".join([*own, *([f"each {each}"] if each else [])])


def _size(least: int | None, most: int | None, what: str) -> Iterator[str]:
    if least is not None and least == most:
        yield f"{least} {what}" if least != 1 else f"1 {what.removesuffix('s')}"
    elif least is not None or most is not None:
        yield f"{least or 0} to {most} {what}" if most is not None else f"at least {least} {what}"


def _print(console: Console, one: Mapping[str, Any]) -> None:
    from rich.text import Text

    console.print(Text(f"{one['kind'].replace('_', ' ')} {one['name']}", style="bold"))
    console.print()
    for line in _lines(one["text"] or "(no docstring)"):
        console.print(line, highlight=False)
    console.print()
    console.print(_facts(one))
    if one["options"]:
        console.print()
        console.print(_option_table(one["options"]))
    console.print()
    console.print(Text(one["where"], style="dim"))
    console.print(compact(one["snippet"]), highlight=False, soft_wrap=True)
    console.print()


def _facts(one: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    version = f" {one['version']}" if one["version"] else ""
    known = {
        "full name": one["full_name"],
        "source": one["source"],
        "mean over": one["over"] and f"the {one['over']}{' as a whole' if one['over'] == 'batch' else ''}",
        "sparse": _SPARSE.get(one["sparse"]),
        "better": one["lower_is_better"] and "lower",
        "inputs": ", ".join(each["name"] for each in one["inputs"] if each["by"] == "position"),
        "by name": ", ".join(_named_input(each) for each in one["inputs"] if each["by"] == "name"),
        "from": f"{one['distribution']}{version} [{one['entry_point']}]",
    }
    for title, value in known.items():
        if value:
            table.add_row(title, value)
    return table


def _named_input(one: Mapping[str, Any]) -> str:
    return str(one["name"]) if one["required"] else f"{one['name']} (if there is any)"


def _option_table(options: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("option", header_style="dim", no_wrap=True)
    for column in ("type", "default", "description"):
        table.add_column(column, header_style="dim", overflow="fold", ratio=2 if column == "description" else 1)
    for option in options:
        default = "required" if option["required"] else json.dumps(option["default"])
        table.add_row(option["name"], _typed(option["schema"]), default, option["description"])
        for name, setting in _settings_of(option["schema"]).items():
            table.add_row(f"  {name}", _typed(setting), "", setting.get("description", ""))
    return table


def _settings_of(field: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an option that is an object of named settings, in whichever alternative; none of any other."""
    return {
        name: setting
        for choice in field.get("anyOf", [field])
        for name, setting in choice.get("properties", {}).items()
    }


def _typed(field: Mapping[str, Any]) -> str:
    """A type with its range, that of each alternative beside it."""
    choices = field.get("anyOf", [field])
    return " or ".join(dict.fromkeys(f"{type_text(choice)} {range_text(choice)}".strip() for choice in choices))


def compact(value: Any, indent: str = "") -> str:
    """JSON with each value on one line that fits there."""
    whole = json.dumps(value)
    if len(indent) + len(whole) <= _LINE or not isinstance(value, (dict, list)) or not value:
        return whole
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    inner = value.values() if isinstance(value, dict) else value
    deeper = f"{indent}  "
    lines = [f"{deeper}{key}{compact(each, deeper)}" for key, each in zip(keys, inner, strict=True)]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([start, ",\n".join(lines), f"{indent}{end}"])


def _lines(text: str) -> Iterator[str]:
    """A docstring to be wrapped anew: lines that go on from the one before are joined to it."""
    made: list[str] = []
    for line in text.splitlines():
        goes_on = made and made[-1] and not made[-1].endswith((".", ":")) and line and not _BEGINS.match(line)
        if goes_on:
            made[-1] = f"{made[-1]} {line}"
        else:
            made.append(line)
    yield from made


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
