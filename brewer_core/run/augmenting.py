"""Rows that are augmented anew in every pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

import numpy
import torch
from torch.utils.data import Dataset

from brewer_core.components import Method
from brewer_core.errors import BrewerError, DataError
from brewer_core.run.collating import Item
from brewer_core.run.loading import Tokenized

Token: TypeAlias = tuple[int, int]
"""A token's number in the vocabulary, and its type."""

_REHEARSED = 200


class Augmenter:
    """Augments the texts of a row, anew at each call; special tokens around them, and the label, stay as they are.

    A text is a run of tokens that are not special; a token that stands for an unknown word, or a mask, belongs to it. What
    comes of a text has its token type. Where that is too long, the longest text of the row is cut. A row of which no
    token would be left stays as it was.

    augmentations: applied in order. tokenizer, max_length: those that the rows were made with. where: what error texts
    call the augmentations, such as `data.complaints.augmentations`.
    Raises DataError where an augmentation gives anything but a list of the tokenizer's tokens.
    """

    def __init__(self, augmentations: Sequence[Method], tokenizer: Any, max_length: int, where: str) -> None:
        self.augmentations = augmentations
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.where = where
        self._numbers: Mapping[str, int] = tokenizer.get_vocab()
        self._special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id, tokenizer.mask_token_id}

    def __call__(self, item: Item, generator: numpy.random.Generator) -> Item:
        """An item like the one given, with other tokens; what is drawn comes from the generator."""
        ids = item["input_ids"].tolist()
        types = item["token_type_ids"].tolist() if "token_type_ids" in item else [0] * len(ids)
        tokens: Iterator[Token] = zip(ids, types, strict=True)
        pieces = [list(piece) for _, piece in groupby(tokens, lambda token: token[0] in self._special)]
        texts = [i for i, piece in enumerate(pieces) if piece[0][0] not in self._special]
        for i in texts:
            pieces[i] = self._augmented(pieces[i], generator)
        end = 0 if self.tokenizer.truncation_side == "left" else -1
        for _ in range(sum(map(len, pieces)) - self.max_length):
            max((pieces[i] for i in texts), key=len).pop(end)
        return _with_tokens(item, [token for piece in pieces for token in piece])

    def rehearse(self, rows: Tokenized) -> None:
        """Try the augmentations on some rows, so that what is wrong with them is told before a training begins."""
        for position, augmentation in enumerate(self.augmentations):
            if "mask_token" in augmentation.options:  # which no draw of the rows below need bring up
                self._check(position, [augmentation.options["mask_token"]])
        for index in range(min(len(rows), _REHEARSED)):
            self(rows[index], numpy.random.default_rng(index))

    def _augmented(self, text: Sequence[Token], generator: numpy.random.Generator) -> list[Token]:
        tokens = self.tokenizer.convert_ids_to_tokens([number for number, _ in text])
        for position, augmentation in enumerate(self.augmentations):
            try:
                tokens = augmentation(tokens, generator=generator)
            except BrewerError as error:
                raise DataError(f"{self.where}[{position}]: {error}") from error
            self._check(position, tokens)
        return [(self._numbers[token], text[0][1]) for token in tokens]

    def _check(self, position: int, tokens: Any) -> None:
        given = f"{self.where}[{position}]: `{self.augmentations[position].component.name}` gives"
        if not isinstance(tokens, list):
            raise DataError(f"{given} {tokens!r}, which is no list of tokens.")
        for token in tokens:
            if not isinstance(token, str) or token not in self._numbers:
                mask = self.tokenizer.mask_token
                own = f"its own mask token is {mask!r}" if mask else "it has no mask token"
                raise DataError(f"{given} {token!r}, which is no token of the run's tokenizer; {own}.")


class AugmentedText(Dataset[Item]):
    """Rows as one pass after another trains on them; an index is the number of the pass, from 0, and that of the row.

    What is drawn for a row depends on the seed, the pass and the row alone, so that neither the order of the rows nor
    the size of the batches matters, and a training that is taken up again sees what it would have seen.

    augmenters: one for each row; None where a row is not augmented. lengths: of the rows as they are without it.
    """

    def __init__(self, dataset: Tokenized, augmenters: Sequence[Augmenter | None], seed: int) -> None:
        self.dataset = dataset
        self.collate, self.lengths = dataset.collate, dataset.lengths
        self.augmenters = augmenters
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: tuple[int, int]) -> Item:
        number, row = index
        item, augment = self.dataset[row], self.augmenters[row]
        return augment(item, numpy.random.default_rng([self.seed, number, item["row"]])) if augment else item


def _with_tokens(item: Item, tokens: Sequence[Token]) -> Item:
    if not tokens:
        return item
    columns = dict(zip(("input_ids", "token_type_ids"), zip(*tokens, strict=True), strict=True))
    made = {name: torch.tensor(columns[name], dtype=item[name].dtype) for name in columns if name in item}
    return item | made | {"attention_mask": torch.ones_like(made["input_ids"])}
