"""Looks at a file of rows, to tell the columns with texts and labels by their names, else by what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brewer_core.errors import DataError, RequestError, did_you_mean
from brewer_core.protocols import Task
from brewer_core.registry import Registry
from brewer_core.run.text import Row, distinct_labels, in_order, is_no_label, text_columns

_SOURCES = {
    ".csv": {"name": "csv"},
    ".tsv": {"name": "csv", "delimiter": "\t"},
    ".jsonl": {"name": "jsonl"},
    ".ndjson": {"name": "jsonl"},
    ".parquet": {"name": "parquet"},
    ".txt": {"name": "text"},
}
_TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "body",
    "document",
    "comment",
    "message",
    "title",
    "question",
    "story",
)
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("query", "passage"),
    ("question", "sentence"),
)
_PROMPTS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
_LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "sentiment",
    "rating",
    "stars",
    "topic",
    "intent",
    "relation",
)
_LOOKED_AT = 1000
_MOST_CLASSES = 50
_ROWS_OF_A_CLASS = 3
"""A column with no name that is known holds labels where each value stands there so often, in the mean."""


@dataclass(frozen=True)
class Columns:
    """What is read of rows.

    label: None where they have none. classes: the distinct labels, as a run reads them. unlabelled: whether some rows have none.
    """

    text: str | tuple[str, str]
    label: str | None
    classes: tuple[str, ...] = ()
    unlabelled: bool = False


def source_of(file: str, option: str = "--data") -> dict[str, Any]:
    """The data set that reads a file, without its path. Raises RequestError where it is not there, or no name ends like it."""
    if not Path(file).is_file():
        raise RequestError(f"{option} {file}: there is no such file.")
    name = file.lower().removesuffix(".gz")
    found = next((source for suffix, source in _SOURCES.items() if name.endswith(suffix)), None)
    if found is None:
        raise RequestError(
            f"{option} {file}: cannot tell what it is; expected a name that ends in {', '.join(_SOURCES)}."
        )
    return dict(found)


def rows_of(registry: Registry, source: Mapping[str, Any], file: str) -> Sequence[Row]:
    """The rows of a file, which a data set reads. Raises DataError where it cannot be read."""
    options = {name: value for name, value in source.items() if name != "name"}
    build = registry.bind("dataset", source["name"], {**options, "path": file})
    splits: Mapping[str, Sequence[Row]] = build(task=Task("text_classification", ()), seed=0, base_dir=Path())
    return splits["train"]


def columns_of(rows: Sequence[Row], file: str, text: Sequence[str], label: str | None, prompts: bool | None) -> Columns:
    """The columns of rows; those that are named, as far as any are.

    text: one name or two. prompts: whether texts may be prompts with responses, and there are no labels; None where the labels tell.
    Raises RequestError for a column that is not there, and where no column has texts; DataError for a label that can be none, and for
    fewer than two classes.
    """
    names, some = list(rows[0]), [rows[i] for i in range(min(len(rows), _LOOKED_AT))]
    for option, column in [*(("--text", column) for column in text), *([("--label", label)] if label else [])]:
        if column not in names:
            raise RequestError(f"{option} {column}: {file} has no such column{did_you_mean(column, names)}")
    if len(text) > 2:
        raise RequestError(f"--text {','.join(text)}: expected one column, or two for a pair of texts.")
    found = None if prompts else label or _label(some, [name for name in names if name not in text])
    left = [name for name in names if name != found]
    pairs = _PAIRS if found else _PROMPTS
    chosen = tuple(text) or _named_pair(left, pairs) or _one_text(some, left)
    if not chosen:
        raise RequestError(
            f"{file}: no column holds texts (columns: {', '.join(names)}); name one with --text, or two with a comma between them."
        )
    read = (chosen[0], chosen[1]) if len(chosen) == 2 else chosen[0]
    if found is None:
        return Columns(read, None)
    return Columns(read, found, _classes(rows, found, file), any(is_no_label(row.get(found)) for row in rows))


def beside(file: str) -> str | None:
    """A file beside one of training rows whose name says that it is for evaluation: `test.csv` beside `train.csv`."""
    path = Path(file)
    others = (
        path.with_name(path.name.replace("train", word)) for word in ("eval", "validation", "valid", "dev", "test")
    )
    return next((str(other) for other in others if other != path and other.is_file()), None)


def check_same_columns(columns: Columns, rows: Sequence[Row], file: str) -> None:
    """Raises DataError where other rows lack a column."""
    for column in [*text_columns(columns.text), *([columns.label] if columns.label else [])]:
        if column not in rows[0]:
            raise DataError(
                f"{file}: no column {column!r}, which the training rows have; columns: {', '.join(rows[0])}."
            )


def _classes(rows: Sequence[Row], column: str, file: str) -> tuple[str, ...]:
    labels = distinct_labels(rows, column, file)
    try:
        return in_order(labels)
    except DataError as error:
        raise DataError(f"{file}.{column}: {error} Name another column with --label.") from error


def _label(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    by_name = _named(names, _LABELS)
    if by_name:
        return by_name
    return next((name for name in reversed(names) if _is_of_classes([row.get(name) for row in rows])), None)


def _is_of_classes(values: Sequence[Any]) -> bool:
    """Whether values are few short ones that come again and again."""
    known = [value for value in values if value is not None and value != ""]
    distinct = {str(value) for value in known}
    whole = all(isinstance(value, (str, bool, int)) for value in known)
    return whole and 2 <= len(distinct) <= min(_MOST_CLASSES, len(known) // _ROWS_OF_A_CLASS)


def _named_pair(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The first pair of which both are there."""
    for pair in pairs:
        own = tuple(name for word in pair if (name := _named(names, (word,))))
        if len(own) == 2:
            return own
    return ()


def _one_text(rows: Sequence[Row], names: Sequence[str]) -> tuple[str, ...]:
    """The column with a known name, else the one with the longest texts."""
    of_texts = [name for name in names if any(isinstance(row.get(name), str) for row in rows)]
    by_name = _named(of_texts, _TEXTS)
    if by_name or not of_texts:
        return (by_name,) if by_name else ()
    return (max(of_texts, key=lambda name: sum(len(str(row.get(name) or "")) for row in rows)),)


def _named(names: Sequence[str], words: Sequence[str]) -> str | None:
    """The first of the words that is a name, in whatever case."""
    own = {name.lower(): name for name in reversed(names)}
    return next((own[word] for word in words if word in own), None)
