"""Texts as language models learn them: their tokens as they stand, and of a prompt with its response those of the response.

Shapes: L tokens of a row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from brewer_core.errors import ConfigError, DataError
from brewer_core.run.collating import UNLABELLED, Collate, collate_texts
from brewer_core.run.text import Row
from brewer_core.run.tokens import Piece, Texts, TokenRows, in_pieces, piece_of

PROMPT, TARGET = 0, 1
"""The types of tokens: those that are given, and those that are to be predicted."""


@dataclass(frozen=True)
class LanguageEncoding:
    """Texts as the tokenizer makes them, cut to max_length; prompts with their responses end to end.

    A prompt is tokenised by itself, as it will be where a response is asked for, with the special tokens that the tokenizer puts before a
    text; its response follows without any. eos: whether the end-of-text token follows what does not end in it, where there is room;
    responses alone where None.
    """

    eos: bool | None = None

    @property
    def form(self) -> str:
        """What becomes of the texts."""
        return f"causal_lm, eos {self.eos}"

    def __call__(self, texts: Iterable[Texts], tokenizer: Any, max_length: int) -> Iterator[Piece]:
        """The tokens of texts, or of pairs of prompt and response, whose tokens have types. Raises ConfigError without an eos token."""
        if self.eos and tokenizer.eos_token_id is None:
            raise ConfigError(["task.eos: the tokenizer has no end-of-text token; leave it out"], "config")
        for some in in_pieces(texts):
            if len(some[0]) == 1:
                yield piece_of(self._ended([text for (text,) in some], tokenizer, max_length), None)
            else:
                yield self._responses(some, tokenizer, max_length)

    def _ended(self, texts: list[str], tokenizer: Any, max_length: int) -> list[list[int]]:
        rows: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        if not self.eos:
            return rows
        end = tokenizer.eos_token_id
        return [[*row, end] if len(row) < max_length and row[-1:] != [end] else row for row in rows]

    def _responses(self, pairs: Sequence[Texts], tokenizer: Any, max_length: int) -> Piece:
        after = _special_tokens_after(tokenizer)
        prompts, responses = (list(column) for column in zip(*pairs, strict=True))
        most = max_length + tokenizer.num_special_tokens_to_add()
        given = tokenizer(prompts, truncation=True, max_length=most)["input_ids"]
        learnt = tokenizer(responses, truncation=True, max_length=max_length, add_special_tokens=False)["input_ids"]
        end = [] if self.eos is False or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        kept = slice(-max_length, None) if tokenizer.truncation_side == "left" else slice(max_length)
        ids, types = [], []
        for prompt, response in zip(given, learnt, strict=True):
            prompt = prompt[: len(prompt) - after]
            response = response if response[-1:] == end else [*response, *end]
            ids.append([*prompt, *response][kept])
            types.append(([PROMPT] * len(prompt) + [TARGET] * len(response))[kept])
        return piece_of(ids, types)


@dataclass(frozen=True)
class LanguageRows:
    """Rows whose own tokens are to be predicted. labelled: whether they are learnt themselves, or teachers alone answer them."""

    eos: bool | None = None
    labelled: bool = True

    @property
    def encoding(self) -> LanguageEncoding:
        """How their tokens are made."""
        return LanguageEncoding(self.eos)

    def labels(self, rows: Sequence[Row], column: str | None, classes: Sequence[str], where: str) -> list[int]:
        """Whether rows are learnt: 0 for all of them, or -100."""
        del column, classes, where
        return [0 if self.labelled else UNLABELLED] * len(rows)

    def check(self, tokens: TokenRows, where: str) -> None:
        """Warns of rows without a token that is to be predicted. Raises DataError where there is no other, and for one without tokens."""
        if 0 in tokens.lengths:
            number = tokens.lengths.index(0) + 1
            raise DataError(f"{where}.text: row {number} is an empty text, of which there is no token; drop the row.")
        without = sum(count == 0 for count in targets(tokens))
        if without == len(tokens):
            raise DataError(
                f"{where}.text: no row has a token to predict; a text needs two tokens, or a response that begins before "
                "tokenizer.max_length."
            )
        if without:
            warnings.warn(
                f"{where}.text: {without} of {len(tokens)} rows have no token to predict, as they have only one, or their prompt "
                "takes all of tokenizer.max_length; nothing is learnt of them.",
                stacklevel=2,
            )

    def collate(self, tokenizer: Any) -> Collate:
        """Batches for a language model."""
        return collate_texts(tokenizer)

    def padding_side(self, tokenizer: Any) -> str:
        """The right, whatever side the tokenizer pads on for writing text."""
        del tokenizer
        return "right"


def targets(tokens: TokenRows) -> list[int]:
    """How many tokens of each row are to be predicted: its first never is."""
    found = []
    for index, length in enumerate(tokens.lengths):
        types = tokens[index][1]
        if types is None:  # as in all rows of the data
            return [own - 1 for own in tokens.lengths]
        found.append(int(numpy.count_nonzero(types[1:])) if length else 0)
    return found


def _special_tokens_after(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    marked: list[int] = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return len(marked) - 1 - max((i for i, special in enumerate(marked) if not special), default=len(marked) - 1)
