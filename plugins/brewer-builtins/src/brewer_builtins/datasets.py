"""Data sets: files of rows, Hugging Face data sets, and the complaints that ship with brewer."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from csv import DictReader
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, overload

from pydantic import Field

from brewer_builtins.extras import extra, reason
from brewer_core import DataError, hookimpl

Files = Annotated[
    str | dict[str, str],
    Field(description="A file, read as the split `train`, or a file for each split; relative to the config's folder."),
]
Holdout = Annotated[
    float | None,
    Field(gt=0, lt=1, description="Of one file, the share of rows that become the split `eval`, drawn by the seed."),
]
HoldoutWhere = Annotated[
    str | None,
    Field(
        description="A column: `holdout` is of the rows that have something in it. That of the labels, where some rows have none.",
        examples=["label"],
    ),
]
_SPLITS = {"validation": "eval"}
_BETWEEN_PARAGRAPHS = re.compile(r"\n\s*\n")


@hookimpl
def brewer_datasets() -> Mapping[str, Callable[..., Any]]:
    """The data sets of this module."""
    return {"csv": csv, "jsonl": jsonl, "parquet": parquet, "text": text, "hf": hf, "complaints": complaints}


class Rows(Sequence[Mapping[str, Any]]):
    """Rows kept as columns of equal length; each row is a new dict, made when it is asked for."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = dict(columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._columns)

    def chosen(self, numbers: Sequence[int]) -> Rows:
        """The rows of these numbers."""
        return Rows({name: [column[i] for i in numbers] for name, column in self._columns.items()})

    def having(self, column: str) -> list[int]:
        """The numbers of the rows that have something in a column. Raises DataError where there is no such column."""
        if column not in self._columns:
            raise DataError(
                f"`holdout_where` is {column!r}, and the columns are {', '.join(self._columns)}; name one of these."
            )
        return [
            i for i, value in enumerate(self._columns[column]) if value is not None and value != "" and value == value
        ]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        chosen = {name: column[index] for name, column in self._columns.items()}
        return Rows(chosen) if isinstance(index, slice) else chosen

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(self._columns, values, strict=True))


def csv(
    *,
    base_dir: Path,
    seed: int = 0,
    path: Files,
    delimiter: Annotated[str, Field(min_length=1, max_length=1, description="What stands between two cells.")] = ",",
    holdout: Holdout = None,
    holdout_where: HoldoutWhere = None,
) -> dict[str, Rows]:
    """Rows of CSV files with a header, as texts: `NA` stays `NA`, and an empty cell is an empty text.

    UTF-8, also compressed (`.gz`). Raises DataError where a row has more or fewer cells than the header.
    """
    return _held_out(_read(base_dir, path, lambda file: _read_csv(file, delimiter)), holdout, holdout_where, seed)


def jsonl(
    *, base_dir: Path, seed: int = 0, path: Files, holdout: Holdout = None, holdout_where: HoldoutWhere = None
) -> dict[str, Rows]:
    """Rows of JSON Lines files: an object on each line, its values kept as they are.

    UTF-8, also compressed (`.gz`). Empty lines are skipped; a key that a row lacks is null there.
    """
    return _held_out(_read(base_dir, path, _read_jsonl), holdout, holdout_where, seed)


def parquet(
    *, base_dir: Path, seed: int = 0, path: Files, holdout: Holdout = None, holdout_where: HoldoutWhere = None
) -> dict[str, Rows]:
    """Rows of Parquet files, with the types that the files state."""
    return _held_out(_read(base_dir, path, _read_parquet), holdout, holdout_where, seed)


def text(
    *,
    base_dir: Path,
    seed: int = 0,
    path: Files,
    by: Annotated[
        Literal["line", "paragraph"],
        Field(description="What a row is: a line, or what stands between lines that are empty."),
    ] = "line",
    holdout: Holdout = None,
) -> dict[str, Rows]:
    """Rows of plain text files, each with the one column `text`.

    UTF-8, also compressed (`.gz`). Space around a row is left out, and so are rows of nothing else.
    """
    return _held_out(_read(base_dir, path, lambda file: _read_text(file, by)), holdout, None, seed)


def hf(
    *,
    base_dir: Path,
    path: Annotated[str, Field(description="A folder written by `save_to_disk`, or a name on the Hugging Face hub.")],
    subset: Annotated[str | None, Field(description="The configuration of a data set on the hub.")] = None,
) -> dict[str, Rows]:
    """A Hugging Face data set, from a folder or by its name on the hub.

    Its split `validation` is called `eval` here. Class numbers become the names that the data set gives them, and -1,
    which means that a class is not told, becomes null. Code that comes with a data set is never run.
    """
    splits = _load_hf(base_dir, path, subset)
    return {_SPLITS.get(name, name): _filled(f"{path} ({name})", _named_rows(split)) for name, split in splits.items()}


def complaints(
    *,
    seed: int,
    labelled_rows: Annotated[int, Field(gt=0, description="Training rows that keep their labels.")] = 800,
) -> dict[str, Rows]:
    """Short complaints to the US Consumer Financial Protection Bureau, each about one of eight products.

    3,272 training rows in all: `train` has `labelled_rows` of them, drawn by the seed, and `transfer` the others, whose
    label is null. `test` has 968.
    """
    rows = _embedded("complaints_train.csv.gz")
    if labelled_rows > len(rows):
        raise DataError(f"labelled_rows is {labelled_rows}, but there are {len(rows)} rows; ask for fewer.")
    labelled = set(random.Random(seed).sample(range(len(rows)), labelled_rows))
    others = [{**row, "label": None} for i, row in enumerate(rows) if i not in labelled]
    return {
        "train": _of_dicts([rows[i] for i in sorted(labelled)]),
        "transfer": _of_dicts(others),
        "test": _of_dicts(_embedded("complaints_test.csv.gz")),
    }


def _read(base_dir: Path, path: str | Mapping[str, str], reader: Callable[[Path], Rows]) -> dict[str, Rows]:
    if not path:
        raise DataError("`path` is empty; give a file, or a file for each split.")
    named = {"train": path} if isinstance(path, str) else path
    existing = {split: _existing(base_dir, file) for split, file in named.items()}
    return {split: _filled(file, reader(file)) for split, file in existing.items()}


def _held_out(splits: dict[str, Rows], share: float | None, where: str | None, seed: int) -> dict[str, Rows]:
    """The rows of one file in two splits, each in the order of the file."""
    if share is None:
        if where is not None:
            raise DataError(
                f"`holdout_where` is {where!r} and there is no `holdout`, the share of rows to hold out; give both."
            )
        return splits
    if list(splits) != ["train"]:
        raise DataError(f"`holdout` is for one file, and `path` names {', '.join(splits)}; leave one of the two out.")
    rows = splits["train"]
    among = range(len(rows)) if where is None else rows.having(where)
    count = round(share * len(among))
    if not 0 < count < len(rows):
        raise DataError(
            f"holdout is {share:g}, which of {len(among)} rows leaves a split without any; take another share."
        )
    held = set(random.Random(seed).sample(among, count))
    kept = {"train": [i for i in range(len(rows)) if i not in held], "eval": sorted(held)}
    return {split: rows.chosen(numbers) for split, numbers in kept.items()}


def _existing(base_dir: Path, path: str) -> Path:
    file = base_dir / path
    if file.is_dir():
        raise DataError(f"{file}: this is a folder; name a file, or a file for each split.")
    if not file.is_file():
        raise DataError(f"{file}: no such file; paths are relative to the config's folder, {base_dir.resolve()}.")
    return file


def _filled(source: Path | str, rows: Rows) -> Rows:
    if not len(rows):
        raise DataError(f"{source}: there are no rows; a data set needs one at least.")
    return rows


def _read_csv(file: Path, delimiter: str) -> Rows:
    with extra("reading CSV files", "pyarrow"):
        import pyarrow
        from pyarrow import csv as arrow
    # One thread, or errors would not say in which row; one large block, for texts of many lines.
    reading = arrow.ReadOptions(use_threads=False, block_size=1 << 26)
    parsing = arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with arrow.open_csv(file, read_options=reading, parse_options=parsing) as opened:
            types = {name: pyarrow.string() for name in opened.schema.names}
        converting = arrow.ConvertOptions(column_types=types, strings_can_be_null=False)
        table = arrow.read_csv(file, read_options=reading, parse_options=parsing, convert_options=converting)
    except (OSError, ValueError) as error:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: this file is empty; it needs a header and a row for each text.") from error
        raise DataError(
            f"{file}: {reason(error)}; expected UTF-8 text, a header and as many cells in every row."
        ) from error
    return Rows(table.to_pydict())


def _read_jsonl(file: Path) -> Rows:
    try:
        with _opened(file) as lines:
            return _of_dicts([_object(file, i, line) for i, line in enumerate(lines, 1) if line.strip()])
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: {reason(error)}; expected UTF-8 text with a JSON object on each line.") from error


def _opened(file: Path) -> TextIO:
    """A file of UTF-8 text, which may be compressed (`.gz`)."""
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    opened: TextIO = opener(file, "rt", encoding="utf-8-sig")
    return opened


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{file}: line {number}: {reason(error)}; expected a JSON object on each line.") from error
    if not isinstance(row, dict):
        raise DataError(f"{file}: line {number} holds a {type(row).__name__}; expected a JSON object on each line.")
    return row


def _read_text(file: Path, by: str) -> Rows:
    try:
        with _opened(file) as opened:
            parts = opened.read().splitlines() if by == "line" else _BETWEEN_PARAGRAPHS.split(opened.read())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: {reason(error)}; expected UTF-8 text.") from error
    return Rows({"text": [part.strip() for part in parts if part.strip()]})


def _read_parquet(file: Path) -> Rows:
    with extra("reading Parquet files", "pyarrow"):
        from pyarrow import parquet as arrow
    try:
        return Rows(arrow.read_table(file).to_pydict())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {reason(error)}; expected a Parquet file.") from error


def _load_hf(base_dir: Path, path: str, subset: str | None) -> Mapping[str, Any]:
    with extra("the data set `hf`", "datasets"):
        import datasets
    folder = base_dir / path
    try:
        loaded = datasets.load_from_disk(folder) if folder.is_dir() else datasets.load_dataset(path, subset)
    except Exception as error:  # whatever files, hub and network can raise
        if folder.is_dir():
            raise DataError(f"{folder}: {reason(error)}; expected a folder that `save_to_disk` wrote.") from error
        raise DataError(
            f"data set {path!r}: neither a folder in {base_dir} nor to be had from the Hugging Face hub, which may be out "
            f"of reach from here ({reason(error)}); check the name, or save it to a folder with `save_to_disk`."
        ) from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _named_rows(split: Any) -> Rows:
    columns = split.to_dict()
    for name, feature in split.features.items():
        if names := getattr(feature, "names", None):
            columns[name] = [names[value] if value is not None and value >= 0 else None for value in columns[name]]
    return Rows(columns)


def _embedded(name: str) -> list[dict[str, Any]]:
    with (
        (files("brewer_builtins") / "data" / name).open("rb") as packed,
        gzip.open(packed, "rt", encoding="utf-8", newline="") as text,
    ):
        return list(DictReader(text))


def _of_dicts(rows: Sequence[Mapping[str, Any]]) -> Rows:
    names = dict.fromkeys(name for row in rows for name in row)
    return Rows({name: [row.get(name) for row in rows] for name in names})
