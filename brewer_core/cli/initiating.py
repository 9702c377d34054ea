"""`brewer init`: a run config for one's own data, from a recipe, to be run and changed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brewer_core.cli.reading import active_registry
from brewer_core.errors import OutputExistsError, RequestError
from brewer_core.run.library import recipe_names

if TYPE_CHECKING:
    from brewer_core.registry import Registry
    from brewer_core.run.recipes import OwnData, Recipe, Teacher

_HOLDOUT = 0.1
_FEW_STEPS = 1000
_WIDE = 120


def init(
    recipe_name: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", metavar="NAME", help=f"One of {', '.join(recipe_names())}.", show_default="kd or kd-lm"
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            metavar="FILE",
            help="Rows to train on: .csv, .tsv, .jsonl, .parquet or .txt.",
            show_default="complaints that ship with brewer",
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help="Rows to evaluate on.",
            show_default="a file beside it such as test.csv, else a tenth of the rows",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", metavar="COLUMN[,COLUMN]", help="The column with texts, or two.", show_default="by name"
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="The column with labels.", show_default="by name")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A folder, an installed distribution, or a name on the Hugging Face hub.",
            show_default="a small one, trained on the rows",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The config to write.")] = Path(
        "config.json"
    ),
    listing: Annotated[bool, typer.Option("--list", help="List the recipes, each with its paper, and exit.")] = False,
) -> None:
    """Write a run config for your own data, from a recipe with a paper's settings, and tell what was chosen."""
    if listing:
        _list()
        return
    from brewer_core.config import parse_run_config
    from brewer_core.run.recipes import check_teacher, filled, recipe, teacher_named

    if output.exists():
        raise OutputExistsError(f"output {output} is there already; name a new file with --output.")
    if file is None and (evaluation or text or label):
        raise RequestError("--eval, --text and --label are about rows of your own; name their file with --data.")
    asked = recipe(recipe_name) if recipe_name else None
    registry = active_registry([], [])
    own, chosen = _own_data(registry, asked, file, evaluation, text, label, output)
    taught = teacher_named(teacher, lambda folder: _relative(folder, output)) if teacher else None
    if taught is not None and teacher is not None:
        check_teacher(chosen, taught, teacher)
    document = filled(chosen, own, taught, own.columns.classes if own else ())
    parse_run_config(document, f"recipe {chosen.name}", registry)
    _write(output, document)
    _tell(output, chosen, document, own, taught)


def _own_data(
    registry: Registry,
    asked: Recipe | None,
    file: str | None,
    evaluation: str | None,
    text: str | None,
    label: str | None,
    output: Path,
) -> tuple[OwnData | None, Recipe]:
    """The rows of a file as a config reads them, and the recipe that is asked for or goes with them."""
    from brewer_core.config.tasks import CAUSAL_LM, TEXT_CLASSIFICATION
    from brewer_core.run.columns import beside, check_same_columns, columns_of, rows_of, source_of
    from brewer_core.run.recipes import DEFAULT, OwnData, recipe

    if file is None:
        return None, asked or recipe(DEFAULT[TEXT_CLASSIFICATION])
    source = source_of(file)
    rows = rows_of(registry, source, file)
    prompts = None if asked is None else asked.task == CAUSAL_LM
    if prompts and label:
        raise RequestError(
            f"--label {label}: the recipe {asked and asked.name} learns the texts themselves; leave it out."
        )
    columns = columns_of(rows, file, [part.strip() for part in text.split(",")] if text else [], label, prompts)
    chosen = asked or recipe(DEFAULT[TEXT_CLASSIFICATION if columns.label else CAUSAL_LM])
    if chosen.task == TEXT_CLASSIFICATION and columns.label is None:
        raise RequestError(
            f"the recipe {chosen.name} learns classes, and {file} has no column that looks like labels (columns: {', '.join(rows[0])}); "
            f"name it with --label, or take a recipe of language models such as {DEFAULT[CAUSAL_LM]}."
        )
    held = evaluation or beside(file)
    if held is None:
        drawn = {"holdout": _HOLDOUT, **({"holdout_where": columns.label} if columns.unlabelled else {})}
        left = round((1 - _HOLDOUT) * len(rows))
        return OwnData({**source, "path": _relative(Path(file), output), **drawn}, columns, left), chosen
    if source_of(held, "--eval") != source:
        raise RequestError(f"--eval {held}: is of another format than {file}; give both in one.")
    check_same_columns(columns, rows_of(registry, source, held), held)
    path = {"train": _relative(Path(file), output), "eval": _relative(Path(held), output)}
    return OwnData({**source, "path": path}, columns, len(rows)), chosen


def _relative(path: Path, output: Path) -> str:
    """A path as a config in a folder names it."""
    return Path(os.path.relpath(path, output.parent)).as_posix()


def _write(output: Path, document: Any) -> None:
    """Write the config. Raises RequestError where that cannot be done."""
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RequestError(
            f"output {output} cannot be written: {error.strerror}; choose another with --output."
        ) from error


def _tell(output: Path, chosen: Recipe, document: Any, own: OwnData | None, taught: Teacher | None) -> None:
    from brewer_core.run.recipes import last_steps

    typer.echo(f"{output} holds the recipe {chosen.name}: {chosen.title}, {chosen.source}.")
    lines = [
        ("data", _data_line(document)),
        ("columns", _columns_line(own)),
        ("teacher", _teacher_line(document, taught)),
        ("student", _student_line(document, taught)),
    ]
    longest = document["tokenizer"]["max_length"]
    if longest < chosen.config["tokenizer"]["max_length"]:
        lines.append(("tokens", f"{longest} of each text, as the teacher takes no more"))
    stages = _stages_line(document, taught)
    if stages:
        lines.append(("stages", stages))
    if own is not None and taught is not None and (steps := last_steps(document, own.rows)) < _FEW_STEPS:
        lines.append(
            ("steps", f"{steps:,} in the last stage, few for a paper's rate: raise its epochs if its losses still fall")
        )
    for title, line in lines:
        typer.echo(f"  {title:8} {line}")
    for note in chosen.notes:
        typer.echo(f"  note     {note}")
    name = shlex.quote(str(output) if "." in str(output) or "/" in str(output) else f"./{output}")
    typer.echo("Next:")
    for command in (f"brewer run {name} --dry-run", f"brewer explain {name}", f"brewer run {name}"):
        typer.echo(f"  {command}")


def _data_line(document: Any) -> str:
    source = document["data"]["own"]["source"]
    path = source.get("path")
    if path is None:
        return f"the {source['name']} that ship with brewer; --data names your own"
    if isinstance(path, str):
        rows = "labelled rows" if "holdout_where" in source else "rows"
        return f"{path}, a tenth of whose {rows} are kept for evaluation; --eval names others"
    return f"{path['train']}, evaluated on {path['eval']}"


def _columns_line(own: OwnData | None) -> str:
    if own is None:
        return "text and label"
    columns = own.columns
    if columns.label is None:
        return (
            f"texts in {columns.text}"
            if isinstance(columns.text, str)
            else "prompts in {}, responses in {}".format(*columns.text)
        )
    text = columns.text if isinstance(columns.text, str) else "pairs in {} and {}".format(*columns.text)
    return f"texts in {text}, labels in {columns.label} ({len(columns.classes)} of them)"


def _teacher_line(document: Any, taught: Teacher | None) -> str:
    ref = document["models"]["teacher"]
    if taught is None:
        return "a small one, drawn and trained on the rows; a pretrained one teaches more: --teacher"
    if "distribution" in ref:
        return f"the one in the distribution {ref['distribution']}"
    if taught.hub:
        return f"{ref['path']} on the Hugging Face hub, as there is no such folder here"
    return f"the one in {ref['path']}"


def _student_line(document: Any, taught: Teacher | None) -> str:
    from brewer_core.run.fitting import told
    from brewer_core.run.recipes import sizes_in

    return told(document, sizes_in(document, taught))


def _stages_line(document: Any, taught: Teacher | None) -> str | None:
    """What is done otherwise than the recipe has it; None where nothing is."""
    from brewer_core.run.recipes import FROM_SCRATCH_EPOCHS, FROM_SCRATCH_RATE

    if taught is None:
        return f"{FROM_SCRATCH_EPOCHS} epochs each at {FROM_SCRATCH_RATE}, in place of the recipe's, as nothing is pretrained"
    if all(stage.get("model") != "teacher" for stage in document["stages"]):
        return f"the teacher knows the {len(document['task']['labels'])} classes, and is not trained"
    return None


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from brewer_core.run.recipes import recipe

    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "task", "paper", "what it does"):
        table.add_column(column, header_style="dim", no_wrap=column in ("recipe", "task"), overflow="fold")
    for chosen in map(recipe, recipe_names()):
        needs = f" Needs {', '.join(chosen.needs)}." if chosen.needs else ""
        table.add_row(chosen.name, chosen.task, chosen.source, chosen.summary + needs)
    Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE).print(table)
