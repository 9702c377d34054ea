"""`brewer inspect`: the layers in a file or folder of weights, and how large each is."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewer_core.cli.inspecting_features import show_features
from brewer_core.errors import DataError, RequestError
from brewer_core.run.model_folders import SUBFOLDERS

if TYPE_CHECKING:
    from brewer_core.utils import LayerNode, Weight

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pt", ".pth", ".pkl", ".bin")
INDEX = ".index.json"
STATE = "state.pt"  # of a checkpoint, with a file of tensors beside it for each entry that has some
IN_FOLDERS = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    STATE,
)
_WIDE = 10_000  # where nobody's terminal sets the width, no line is broken


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A file of weights, a model's folder, or a run's; with --features also an installed distribution with a model.",
            show_default=False,
        ),
    ],
    max_level: Annotated[
        int | None, typer.Option(metavar="N", help="The lowest level to show; the whole model is level 0.")
    ] = None,
    features: Annotated[
        bool,
        typer.Option("--features", help="List what a match can read inside: short names and modules, with shapes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show the layers of a model: parameters, share of the whole, and size; or what a match can read inside it."""
    from brewer_core.utils import layer_tree

    if features and max_level is not None:
        raise RequestError("--max-level is of the layers' sizes, and --features lists all of them; leave one out.")
    if features:
        show_features(path, as_json)
        return
    if max_level is not None and max_level < 0:
        raise RequestError(f"--max-level is {max_level}; it must be 0, the whole model, or more.")
    file = weights_file(Path(path))
    tree = layer_tree(weights_in(file))
    if not tree.children and not tree.parameters:
        raise DataError(f"{file} holds no tensors.")
    if as_json:
        typer.echo(json.dumps(as_object(tree, tree.parameters, max_level), indent=2))
    else:
        _print_tree(tree, str(file), max_level)


def weights_file(path: Path) -> Path:
    """The file of weights that a path names: itself, or that of a model's or a run's folder.

    Raises RequestError where there is none.
    """
    try:
        if path.is_dir():
            return _in_folder(path)
        path.stat()
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read: {error.strerror}; name a file of weights, a model's folder, or a run's."
        ) from error
    if not path.name.endswith((*SUFFIXES, INDEX)):
        raise RequestError(f"{path} is no file of weights: its name must end in {', '.join(SUFFIXES)} or {INDEX}.")
    return path


def weights_in(file: Path) -> list[Weight]:
    """The tensors in a file, or in the files of an index, without their numbers. Raises DataError for what cannot be read."""
    if file.name.endswith(INDEX):
        return _sharded(file)
    return [*_beside(file), *_whole(file)] if file.name == STATE else _whole(file)


def as_object(node: LayerNode, total: int, max_level: int | None = None) -> dict[str, Any]:
    """A layer and those below it, down to `max_level`, as JSON values."""
    deeper = None if max_level is None else max_level - 1
    return {
        "name": node.name,
        "path": node.fullname if node.parent else "",
        "parameters": node.parameters,
        "bytes": node.bytes,
        "share": node.parameters / total if total else 0.0,
        "shared": node.shared,
        "children": [as_object(child, total, deeper) for child in node.children] if max_level != 0 else [],
    }


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    for name in SUBFOLDERS:
        if (folder / name).is_dir():
            return _in_folder(folder / name)
    others = sorted(file.name for file in folder.iterdir() if file.name.endswith(SUFFIXES))
    more = " and others" if len(others) > 5 else ""
    advice = f"name one of its files: {', '.join(others[:5])}{more}" if others else "name a file of weights"
    known = f"{', '.join(IN_FOLDERS)}, {' and '.join(f'{name}/' for name in SUBFOLDERS)}"
    raise RequestError(f"{folder} holds none of {known}; {advice}.")


def _sharded(index: Path) -> list[Weight]:
    """The tensors of every file that an index names."""
    try:
        shards = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = [index.parent / name for name in sorted(set(shards.values()))]
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{index} is no index of weights: it must hold `weight_map`, from names to files.") from error
    except OSError as error:
        raise DataError(f"{index} cannot be read: {error.strerror}.") from error
    weights = [weight for file in files for weight in _whole(file)]
    missing = sorted(set(shards) - {".".join(weight.path) for weight in weights})
    if missing:
        raise DataError(f"{index} names tensors that its files do not hold: {', '.join(missing[:3])}.")
    return sorted(weights, key=_place)


def _beside(state: Path) -> Iterator[Weight]:
    """The tensors of the entries of a checkpoint that have files of their own."""
    for file in sorted(state.parent.glob(f"*{SAFETENSORS}")):
        for weight in _whole(file):
            yield replace(weight, path=(file.stem, *weight.path))


def _whole(file: Path) -> list[Weight]:
    try:
        file.stat()  # the libraries' own words for a missing file differ
        return sorted(_safetensors(file), key=_place) if file.suffix == SAFETENSORS else list(_pickled(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error


def _place(weight: Weight) -> list[tuple[bool, int, str]]:
    """Where names are in no order of the model's: by name, layer 2 before layer 10."""
    return [(not part.isdecimal(), len(part) if part.isdecimal() else 0, part) for part in weight.path]


def _safetensors(file: Path) -> Iterator[Weight]:
    """The tensors of a safetensors file, from its header alone and without torch."""
    from safetensors import SafetensorError, safe_open

    from brewer_core.utils import Weight

    try:
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping, for all its keys
                tensor = opened.get_slice(name)
                parameters = 1
                for size in tensor.get_shape():
                    parameters *= size
                yield Weight(tuple(name.split(".")), parameters, parameters * _bits(tensor.get_dtype()) // 8)
    except SafetensorError as error:
        raise DataError(f"{file} is damaged, or no safetensors file: {error}.") from error


def _bits(dtype: str) -> int:
    """The size of an element: 16 of BF16, 8 of F8_E4M3."""
    number = re.search(r"\d+", dtype)
    return int(number.group()) if number else 8  # BOOL


def _pickled(file: Path) -> Iterator[Weight]:
    """The tensors that `torch.save` wrote, mapped into memory and not read; what is pickled beside them is never run."""
    import warnings
    import zipfile

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old forms, before the error that they end in
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except OSError:
        raise
    except Exception as error:  # whatever torch's readers meet: of archives, of pickles, of text
        raise DataError(_unreadable(file, str(error))) from error
    return _tensors(loaded, ())


def _unreadable(file: Path, reason: str) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", reason)
    if refused:
        return (
            f"{file} holds a pickled {refused.group(1)}, which could run code when it is read; only tensors and plain "
            "values are: save model.state_dict() in its place."
        )
    return f"{file} is damaged, or no file of weights that torch.save wrote."


def _tensors(value: Any, path: tuple[str, ...]) -> Iterator[Weight]:
    """The tensors in nested mappings and lists; all else, such as the number of a step, is passed over."""
    import torch

    from brewer_core.utils import weight_of

    if isinstance(value, torch.Tensor):
        yield weight_of(path, value)
        return
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, (*path, *str(key).split(".")))


def _print_tree(tree: LayerNode, title: str, max_level: int | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from brewer_core.utils import MEGABYTE

    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", overflow="fold")
    for column in ("parameters", "share", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    plain = console.options.ascii_only
    for guides, node in _with_guides(tree, max_level, plain):
        name = (_printable(node.name, plain), "") if node.parent else (_printable(title, plain), "bold")
        label = Text.assemble((guides, "dim"), name, (" (shared)" if node.shared else "", "dim"))
        share = node.parameters / tree.parameters if tree.parameters else 0.0
        table.add_row(label, f"{node.parameters:,}", f"{share:.2%}", f"{node.bytes / MEGABYTE:.2f}")
    console.print(table)


def _printable(name: str, ascii_only: bool) -> str:
    """A name that the terminal can show and that cannot steer it: a file may hold any text as a key."""
    return name if name.isprintable() and (name.isascii() or not ascii_only) else ascii(name)[1:-1]


def _with_guides(
    node: LayerNode, max_level: int | None, ascii_only: bool, before: str = ""
) -> Iterator[tuple[str, LayerNode]]:
    """The layers in order, each after the lines that lead to it."""
    if node.parent is None:
        yield "", node
    fork, end, line = ("|-- ", "`-- ", "|   ") if ascii_only else ("├── ", "└── ", "│   ")
    children = node.children if max_level != 0 else ()
    deeper = None if max_level is None else max_level - 1
    for child in children:
        last = child is children[-1]
        yield before + (end if last else fork), child
        yield from _with_guides(child, deeper, ascii_only, before + ("    " if last else line))
