"""`brewer inspect --features`: the short names and module paths that a match can name, with their shapes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from brewer_core.run.inside import Inside, ListedFeature, ListedModule

_WIDE = 10_000  # where nobody's terminal sets the width, no line is broken
_OF_THE_TEXTS = ("B", "L", "M")
_LAYERS = "\0"
"""Stands for the numbers of layers that are alike: no module's name has it."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def show_features(target: str, as_json: bool) -> None:
    """Print what is inside a model. Raises RequestError where the name leads to none, or it cannot be run."""
    from brewer_core.run.inside import look_inside
    from brewer_core.run.model_folders import model_folder

    folder = model_folder(target)
    inside = look_inside(folder)
    if as_json:
        typer.echo(json.dumps(as_object(inside), indent=2))
    else:
        _print(inside, str(folder))


def as_object(inside: Inside) -> dict[str, Any]:
    """What is inside a model, as JSON values."""
    from brewer_core.run.inside import DECODED, ROWS, TOKENS

    return {
        "model": inside.model,
        "rows": ROWS,
        "tokens": TOKENS,
        "decoder_tokens": DECODED if inside.decodes else None,
        "reason": inside.reason or None,
        "features": [
            {
                "name": feature.name,
                "layers": len(feature.shapes) if feature.in_layers else None,
                "axes": feature.axes.split(),
                "shapes": [list(shape) for shape in feature.shapes],
            }
            for feature in inside.features
        ],
        "modules": [
            {
                "path": module.path,
                "class": module.kind,
                "returned": [{"part": part, "shape": list(shape)} for part, shape in module.returned.items()],
            }
            for module in inside.modules
        ],
    }


def _print(inside: Inside, folder: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from brewer_core.run.inside import DECODED, ROWS, TOKENS

    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    decoded = f", a decoder's of {DECODED}" if inside.decodes else ""
    console.print(f"{inside.model} in {folder}, run on {ROWS} texts of {TOKENS} tokens{decoded}")
    if inside.reason:
        console.print(f"no short names are known of it, as {inside.reason}")
    for title, rows in (
        ("short name", _feature_rows(inside.features)),
        ("path of a module", _module_rows(inside.modules)),
    ):
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in (title, *(("axes", "shape") if title == "short name" else ("class", "returns"))):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        if table.row_count:
            console.print()
            console.print(table)


def _feature_rows(features: Sequence[ListedFeature]) -> Iterator[tuple[str, str, str]]:
    """A row for each run of layers of one shape."""
    for feature in features:
        first = 0
        for place, shape in enumerate(feature.shapes):
            if place + 1 < len(feature.shapes) and feature.shapes[place + 1] == shape:
                continue
            where = f"[{_span([first, place])}]" if feature.in_layers else ""
            yield f"{feature.name}{where}", _axes(feature.axes, shape), _size(shape)
            first = place + 1


def _module_rows(modules: Sequence[ListedModule]) -> Iterator[tuple[str, str, str]]:
    """A row for each module; like ones of several layers stand in one, their numbers together."""
    alike: dict[Any, tuple[list[int], ListedModule]] = {}
    for module in modules:
        number = _NUMBER.search(module.path)
        if number is None:
            alike[module.path] = ([], module)
            continue
        pattern = f"{module.path[: number.start()]}{_LAYERS}{module.path[number.end() :]}"
        key = (pattern, module.kind, tuple(module.returned.items()))
        alike.setdefault(key, ([], replace(module, path=pattern)))[0].append(int(number.group()))
    for numbers, module in alike.values():
        path = module.path.replace(_LAYERS, _span(numbers)) if numbers else module.path
        yield path, module.kind, ", ".join(f"{part} {_size(shape)}".lstrip() for part, shape in module.returned.items())


def _axes(axes: str, shape: Sequence[int]) -> str:
    """`B L 384`: the axes, with the sizes of those that are the model's own."""
    named = zip(axes.split(), shape, strict=True)
    return " ".join(axis if axis in _OF_THE_TEXTS else str(size) for axis, size in named)


def _span(numbers: Sequence[int]) -> str:
    """`0..11` for a run without gaps, else each number."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    whole = list(numbers) == [first, last] or list(numbers) == list(range(first, last + 1))
    return f"{first}..{last}" if whole else ",".join(map(str, numbers))


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
