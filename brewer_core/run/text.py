"""Rows of text as numbers, and their labels.

Shapes: L tokens of a row.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch.utils.data import Dataset

from brewer_core.errors import DataError
from brewer_core.run.collating import UNLABELLED, Collate, Item, RowView, collate
from brewer_core.run.tokens import PLAIN, Encoding, Texts, TokenFiles, TokenRows

Row: TypeAlias = Mapping[str, Any]


class RowForm(Protocol):
    """What rows of text become for one kind of task."""

    @property
    def encoding(self) -> Encoding:
        """How their tokens are made."""
        ...

    def labels(self, rows: Sequence[Row], column: str | None, classes: Sequence[str], where: str) -> list[int]:
        """A number for each row, -100 for one that is unlabelled."""
        ...

    def check(self, tokens: TokenRows, where: str) -> None:
        """Raises DataError for tokens of which nothing can be learnt."""
        ...

    def collate(self, tokenizer: Any) -> Collate:
        """What makes batches of them for a tokenizer."""
        ...

    def padding_side(self, tokenizer: Any) -> str:
        """On which side these are padded."""
        ...


class ClassifiedRows:
    """Rows with a class each, as the tokenizer makes and pads them."""

    encoding: Encoding = PLAIN

    def labels(self, rows: Sequence[Row], column: str | None, classes: Sequence[str], where: str) -> list[int]:
        """The number of each row's class. Raises DataError for a label that is none."""
        return _labels(rows, column, classes, where)

    def check(self, tokens: TokenRows, where: str) -> None:
        """Nothing: a text may be empty, and still has a class."""

    def collate(self, tokenizer: Any) -> Collate:
        """Batches for a classifier."""
        return collate(tokenizer)

    def padding_side(self, tokenizer: Any) -> str:
        """The tokenizer's own."""
        return str(tokenizer.padding_side)


class TextDataset(Dataset[Item]):
    """Rows as numbers, tokenised once.

    An item has `row` and `labels` (-100 where the row has none), two ints, and `input_ids`, `attention_mask` and, where the
    tokenizer gives them, `token_type_ids`, small tensors [L].

    where: what error texts call the data, such as `data.complaints`. Rows are counted from 1 in them.
    text: the column with the texts, or the two with pairs. label: the column with labels; None where no row has one.
    form: what rows become; that of classification by default.
    first_row: the number of the first row, so that `row` is unique in a run of several data sets.
    tokens: those of these rows, where they are made already. files: where tokens are kept; in memory alone where None.
    Raises DataError for a column or text that is not there, a label that is no class, and where there are no rows.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        text: str | Sequence[str],
        label: str | None,
        classes: Sequence[str],
        tokenizer: Any,
        max_length: int,
        where: str = "data",
        form: RowForm | None = None,
        first_row: int = 0,
        tokens: TokenRows | None = None,
        files: TokenFiles | None = None,
    ) -> None:
        columns = text_columns(text)
        _check_rows(rows, where)
        for column in columns:
            check_column(rows[0], column, f"{where}.text")
        form = form or ClassifiedRows()
        self.collate, self.padding_side = form.collate(tokenizer), form.padding_side(tokenizer)
        self.first_row = first_row
        self.labels = form.labels(rows, label, classes, where)
        texts = partial(_texts, rows, columns, where)
        if tokens is None:
            made = partial(form.encoding, tokenizer=tokenizer, max_length=max_length)
            tokens = files.rows(texts, where, form.encoding) if files else TokenRows(list(made(texts())))
        form.check(tokens, where)
        self.tokens = tokens

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, special ones included."""
        return self.tokens.lengths

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Item:
        row, label, ids, types = self.view(index)
        own = torch.from_numpy(ids.copy())  # torch takes no memory that is read-only
        item = {"row": row, "input_ids": own, "attention_mask": torch.ones_like(own)}
        if types is not None:
            item["token_type_ids"] = torch.from_numpy(types.copy())
        return item | {"labels": label}

    def view(self, index: int) -> RowView:
        """A row, counted from 0, without a copy."""
        return RowView(self.first_row + index, self.labels[index], *self.tokens[index])


def class_names(rows_by_data: Mapping[str, Sequence[Row]], label_columns: Mapping[str, str | None]) -> tuple[str, ...]:
    """The distinct labels of some data, as texts: in the order of numbers where all are whole numbers, else sorted.

    label_columns: the column with the labels of each data set; None, or nothing, where it has none.
    Raises DataError for a column that is not there, a label of another type, and fewer than two classes.
    """
    names: set[str] = set()
    for data, rows in rows_by_data.items():
        if (column := label_columns.get(data)) is not None:
            names |= distinct_labels(rows, column, f"data.{data}")
    return in_order(names)


def in_order(classes: Collection[str]) -> tuple[str, ...]:
    """The classes of a task by number where all are whole numbers, else sorted. Raises DataError for fewer than two."""
    if len(classes) < 2:
        found = f"only the class {min(classes)!r}" if classes else "no class"
        raise DataError(f"the labelled rows have {found}; classification needs two or more.")
    return tuple(sorted(classes, key=int) if all(map(_is_whole, classes)) else sorted(classes))


def distinct_labels(rows: Sequence[Row], column: str, where: str) -> set[str]:
    """The labels of rows, as texts. Raises DataError for a column that is not there, and for a label of another type."""
    _check_rows(rows, where)
    check_column(rows[0], column, f"{where}.label")
    found = {_label_text(row.get(column), where, number) for number, row in enumerate(rows, 1)}
    return {name for name in found if name is not None}


def _check_rows(rows: Sequence[Row], where: str) -> None:
    if not len(rows):
        raise DataError(f"{where}: there are no rows.")


def text_columns(text: str | Sequence[str]) -> tuple[str, ...]:
    """The columns with texts: one, or the two of pairs."""
    return (text,) if isinstance(text, str) else tuple(text)


def check_column(row: Row, column: str, where: str) -> None:
    """Raises DataError where a row has no such column."""
    if column not in row:
        close = difflib.get_close_matches(column, list(row), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise DataError(f"{where}: no column {column!r}{hint} Columns: {', '.join(row)}.")


def _texts(rows: Sequence[Row], columns: Sequence[str], where: str) -> Iterator[Texts]:
    for number, row in enumerate(rows, 1):
        texts = [row.get(column) for column in columns]
        for column, text in zip(columns, texts, strict=True):
            if text is None:
                raise DataError(
                    f"{where}.text: row {number} has no text in the column {column!r}; fill it in or drop the row."
                )
        yield tuple(map(str, texts))


def _labels(rows: Sequence[Row], column: str | None, classes: Sequence[str], where: str) -> list[int]:
    if column is None:
        return [UNLABELLED] * len(rows)
    check_column(rows[0], column, f"{where}.label")
    number_of = {name: number for number, name in enumerate(classes)}
    labels = []
    for number, row in enumerate(rows, 1):
        name = _label_text(row.get(column), where, number)
        if name is not None and name not in number_of:
            raise DataError(
                f"{where}.label: row {number} has the label {name!r}, which is no class; the classes are {', '.join(classes)}."
            )
        labels.append(UNLABELLED if name is None else number_of[name])
    return labels


def is_no_label(value: Any) -> bool:
    """Whether what stands in a column of labels is none: None, "" or NaN."""
    return value is None or value == "" or value != value


def _label_text(value: Any, where: str, number: int) -> str | None:
    """A label as a text: `3` for 3 and 3.0, `true` for True; None where there is none."""
    if is_no_label(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise DataError(
        f"{where}.label: row {number} has the label {value!r}; a label is a text, a whole number, or true or false."
    )


def _is_whole(name: str) -> bool:
    try:
        return str(int(name)) == name
    except ValueError:
        return False
