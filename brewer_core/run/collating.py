"""Batches of rows as numbers: padded to the longest row, as classifiers and as language models read them.

Shapes: B rows, L tokens of the longest row of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Item: TypeAlias = dict[str, Any]

UNLABELLED = -100
"""The label of a row that has none, and of a token that is not learnt."""


class RowView(NamedTuple):
    """A row as it is kept, for a batch that is made of it at once: views of its tokens, [L], that are not to be written to.

    types: the tokenizer's token types. Of a language model 1 for tokens that are to be predicted, 0 for those of a prompt; None where
    all are.
    """

    row: int
    label: int
    input_ids: NDArray[Any]
    types: NDArray[Any] | None


Collate: TypeAlias = Callable[[Sequence[Any]], dict[str, Tensor]]
"""What makes a batch of items, or of views of rows."""


def collate(tokenizer: Any) -> Collate:
    """What makes a batch for a classifier: `row` and `labels` [B], the others [B, L] padded to the longest row.

    It is made of items, or of views of rows. All are int64, and the same for both.
    """
    # Not `tokenizer.pad`, which takes nine times as long: a tenth of a small student's step.
    fill = {
        "input_ids": tokenizer.pad_token_id,
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
    }

    def batch(items: Sequence[Any]) -> dict[str, Tensor]:
        if isinstance(items[0], RowView):
            return _batch(items, fill, tokenizer.padding_side)
        columns = {name: [item[name] for item in items] for name in items[0]}
        return {
            name: _padded(column, fill[name], tokenizer.padding_side) if name in fill else torch.tensor(column)
            for name, column in columns.items()
        }

    return batch


def collate_texts(tokenizer: Any) -> Collate:
    """What makes a batch for a language model of views of rows: `row` [B], the others [B, L] padded on the right.

    `target_mask` is 1 at tokens that are to be predicted: not at padding, nor at a prompt. `labels` are the tokens themselves there,
    and -100 elsewhere, and in all of a row that is unlabelled. All are int64.
    """
    fill = padding_token(tokenizer)

    def batch(rows: Sequence[RowView]) -> dict[str, Tensor]:
        lengths = [len(row.input_ids) for row in rows]
        marked = numpy.arange(max(lengths)) < numpy.array(lengths)[:, None]
        ids = _filled([row.input_ids for row in rows], lengths, fill, "right")
        types = [numpy.ones(n) if row.types is None else row.types for n, row in zip(lengths, rows, strict=True)]
        targets = _filled(types, lengths, 0, "right")
        labelled = numpy.array([row.label >= 0 for row in rows])[:, None]
        columns = {
            "row": numpy.array([row.row for row in rows], numpy.int64),
            "input_ids": ids,
            "attention_mask": marked.astype(numpy.int64),
            "target_mask": targets,
            "labels": numpy.where((targets == 1) & labelled, ids, UNLABELLED),
        }
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    return batch


def padding_token(tokenizer: Any) -> int:
    """What language models are padded with: the tokenizer's padding token, else its end-of-text token, else its first token.

    It is masked wherever it is padding, so that it is learnt where a text has it.
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)


def _padded(tensors: list[Tensor], value: int, side: str) -> Tensor:
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side).long()


def _batch(rows: Sequence[RowView], fill: Mapping[str, int], side: str) -> dict[str, Tensor]:
    numbers, labels, ids, types = zip(*rows, strict=True)
    lengths = [len(row) for row in ids]
    places = numpy.arange(max(lengths))
    marked = places < numpy.array(lengths)[:, None]
    batch = {
        "row": numpy.array(numbers, numpy.int64),
        "input_ids": _filled(ids, lengths, fill["input_ids"], side),
        "attention_mask": (marked if side == "right" else marked[:, ::-1]).astype(numpy.int64),
    }
    if types[0] is not None:
        batch["token_type_ids"] = _filled(types, lengths, fill["token_type_ids"], side)
    batch["labels"] = numpy.array(labels, numpy.int64)
    return {name: torch.from_numpy(column) for name, column in batch.items()}


def _filled(rows: Sequence[NDArray[Any]], lengths: Sequence[int], value: int, side: str) -> NDArray[Any]:
    """[B, L]: rows side by side, with a value in the places that are left."""
    filled = numpy.full((len(rows), max(lengths)), value, numpy.int64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if side == "right":
            filled[i, :length] = row
        else:
            filled[i, filled.shape[1] - length :] = row
    return filled
