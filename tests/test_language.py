"""Texts for language models: their tokens, what is to be predicted of them, and batches of them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy
import pytest
import torch

from brewer_core.errors import ConfigError, DataError
from brewer_core.run.collating import collate_texts, padding_token
from brewer_core.run.language import LanguageEncoding, LanguageRows, targets
from brewer_core.run.text import TextDataset
from brewer_core.run.tokenizers import train_byte_tokenizer
from brewer_core.run.tokens import TokenFiles, TokenRows

transformers = pytest.importorskip("transformers", reason="text needs the extra hf")

TEXTS = ["the cat sat on the mat.", "a dog", "Ünusual wörds\nand\ttabs  ", "the dog sat."]
PAIRS = [{"prompt": "Who sat? ", "response": "the cat"}, {"prompt": "And? ", "response": "a dog"}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_tokenizer(TEXTS, 280)


def framed(tokenizer, single):
    """The tokenizer with special tokens around a text."""
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    names = ("<|endoftext|>", "<|pad|>")
    special = [(name, backend.token_to_id(name)) for name in names]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=names[0], pad_token=names[1])


def rows_of(encoding, texts, tokenizer, max_length=32):
    tokens = TokenRows(list(encoding(texts, tokenizer, max_length)))
    return [[None if part is None else part.tolist() for part in tokens[i]] for i in range(len(tokens))]


def dataset(tokenizer, rows, text="text", max_length=32, **form):
    return TextDataset(
        rows,
        text=text,
        label=None,
        classes=(),
        tokenizer=tokenizer,
        max_length=max_length,
        where="data.texts.train",
        form=LanguageRows(**form),
    )


# The tokenizer that is trained


def test_a_trained_tokenizer_gives_any_text_back_and_puts_nothing_around_it(tokenizer):
    for text in (*TEXTS, "日本語 \U0001f600", " leading", ""):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & {*ids}
    assert len(tokenizer) == 280
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


def test_its_vocabulary_has_every_byte():
    small = train_byte_tokenizer(TEXTS, 10)
    assert len(small) == 258
    assert small.decode(small("ß")["input_ids"]) == "ß"


def test_equal_texts_give_an_equal_tokenizer_in_every_process():
    script = (
        "from brewer_core.run.tokenizers import train_byte_tokenizer\n"
        "texts = [f'{a}{b} {b}{a}{c}' for a in 'abcdefgh' for b in 'ijklmnop' for c in 'qrstuv']\n"
        "print(train_byte_tokenizer(texts, 400).backend_tokenizer.to_str())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert len(printed.pop()) > 1000


# Tokens


def test_texts_are_as_the_tokenizer_makes_them(tokenizer):
    rows = rows_of(LanguageEncoding(), [(text,) for text in TEXTS], tokenizer)
    assert rows == [[tokenizer(text)["input_ids"], None] for text in TEXTS]


def test_texts_end_in_the_end_of_text_token_on_request_where_there_is_room(tokenizer):
    whole, end = tokenizer(TEXTS[0])["input_ids"], tokenizer.eos_token_id
    for max_length, expected in (
        (len(whole) + 1, [*whole, end]),
        (len(whole), whole),
        (len(whole) - 1, whole[:-1]),
    ):
        assert rows_of(LanguageEncoding(eos=True), [(TEXTS[0],)], tokenizer, max_length) == [[expected, None]]


def test_a_text_that_ends_in_it_already_gets_no_other(tokenizer):
    closing = framed(tokenizer, "$A <|endoftext|>")
    whole = tokenizer("a dog")["input_ids"]
    assert rows_of(LanguageEncoding(eos=True), [("a dog",)], closing) == [[[*whole, closing.eos_token_id], None]]


def test_a_response_follows_its_prompt_and_alone_is_to_be_predicted(tokenizer):
    prompt, response = (tokenizer(PAIRS[0][name])["input_ids"] for name in ("prompt", "response"))
    (row,) = rows_of(LanguageEncoding(), [tuple(PAIRS[0].values())], tokenizer)
    assert row == [[*prompt, *response, tokenizer.eos_token_id], [0] * len(prompt) + [1] * (len(response) + 1)]
    (row,) = rows_of(LanguageEncoding(eos=False), [tuple(PAIRS[0].values())], tokenizer)
    assert row == [[*prompt, *response], [0] * len(prompt) + [1] * len(response)]


@pytest.mark.parametrize("single", ["<|endoftext|> $A", "<|endoftext|> $A <|pad|>", "$A <|endoftext|> <|pad|>"])
def test_special_tokens_stand_before_the_prompt_and_none_between_it_and_its_response(tokenizer, single):
    own = framed(tokenizer, single)
    before = [own.eos_token_id] if single[0] == "<" else []
    prompt, response = (tokenizer(PAIRS[0][name])["input_ids"] for name in ("prompt", "response"))
    whole = [*before, *prompt, *response, own.eos_token_id]
    for max_length in range(1, len(whole) + 2):
        (row,) = rows_of(LanguageEncoding(), [tuple(PAIRS[0].values())], own, max_length)
        types = [0] * (len(before) + len(prompt)) + [1] * (len(response) + 1)
        assert row == [whole[:max_length], types[:max_length]]


def test_what_is_cut_on_the_left_keeps_the_response(tokenizer):
    own = framed(tokenizer, "$A")
    own.truncation_side = "left"
    prompt, response = (tokenizer(PAIRS[0][name])["input_ids"] for name in ("prompt", "response"))
    (row,) = rows_of(LanguageEncoding(), [tuple(PAIRS[0].values())], own, len(response) + 2)
    assert row == [[prompt[-1], *response, own.eos_token_id], [0] + [1] * (len(response) + 1)]


def test_an_end_that_the_tokenizer_does_not_have_is_refused(tokenizer):
    without = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ConfigError) as caught:
        rows_of(LanguageEncoding(eos=True), [("a dog",)], without)
    assert str(caught.value) == "config: task.eos: the tokenizer has no end-of-text token; leave it out"
    (row,) = rows_of(LanguageEncoding(), [tuple(PAIRS[1].values())], without)
    assert row[0] == tokenizer("And? ")["input_ids"] + tokenizer("a dog")["input_ids"]


def test_kept_tokens_are_those_of_the_same_texts_in_the_same_way(tokenizer, tmp_path):
    pytest.importorskip("pyarrow")
    files, texts = TokenFiles(tmp_path, tokenizer, 32), [("a dog",), ("the cat",)]
    for encoding in (LanguageEncoding(), LanguageEncoding(eos=True), LanguageEncoding()):
        kept = files.rows(lambda: texts, "data.texts", encoding)
        assert [kept[i][0].tolist() for i in range(2)] == [row for row, _ in rows_of(encoding, texts, tokenizer)]
    pairs = files.rows(lambda: [tuple(row.values()) for row in PAIRS], "data.texts", LanguageEncoding())
    assert pairs[0][1].dtype == numpy.int8
    assert sorted(set(pairs[0][1].tolist())) == [0, 1]
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 3


# Rows


def test_the_first_token_of_a_row_is_no_target(tokenizer):
    rows = dataset(tokenizer, [{"text": text} for text in TEXTS])
    assert targets(rows.tokens) == [length - 1 for length in rows.lengths]
    of_pairs = dataset(tokenizer, [*PAIRS, {"prompt": "", "response": "a dog"}], ("prompt", "response"))
    responses = [len(tokenizer(text)["input_ids"]) + 1 for text in ("the cat", "a dog", "a dog")]
    assert targets(of_pairs.tokens) == [responses[0], responses[1], responses[2] - 1]


def test_an_empty_text_is_refused(tokenizer):
    with pytest.raises(DataError) as caught:
        dataset(tokenizer, [{"text": "a dog"}, {"text": ""}])
    assert (
        str(caught.value) == "data.texts.train.text: row 2 is an empty text, of which there is no token; drop the row."
    )


def test_rows_of_which_nothing_is_learnt_are_told(tokenizer):
    length = len(tokenizer(PAIRS[1]["prompt"])["input_ids"]) + 1
    with pytest.warns(UserWarning, match="nothing is learnt") as caught:
        dataset(tokenizer, PAIRS, ("prompt", "response"), max_length=length)
    assert [str(each.message) for each in caught] == [
        "data.texts.train.text: 1 of 2 rows have no token to predict, as they have only one, or their prompt takes all of "
        "tokenizer.max_length; nothing is learnt of them."
    ]
    with pytest.raises(DataError) as caught:
        dataset(tokenizer, PAIRS, ("prompt", "response"), max_length=2)
    assert str(caught.value) == (
        "data.texts.train.text: no row has a token to predict; a text needs two tokens, or a response that begins before "
        "tokenizer.max_length."
    )


# Batches


def test_labels_are_the_tokens_themselves_but_for_padding(tokenizer):
    rows = dataset(tokenizer, [{"text": text} for text in TEXTS])
    batch = rows.collate([rows.view(0), rows.view(1)])
    own = [tokenizer(text)["input_ids"] for text in TEXTS[:2]]
    missing = len(own[0]) - len(own[1])

    assert set(batch) == {"row", "input_ids", "attention_mask", "target_mask", "labels"}
    assert {column.dtype for column in batch.values()} == {torch.int64}
    assert batch["row"].tolist() == [0, 1]
    assert batch["input_ids"].tolist() == [own[0], own[1] + [tokenizer.pad_token_id] * missing]
    assert batch["labels"].tolist() == [own[0], own[1] + [-100] * missing]
    masks = [[1] * len(own[0]), [1] * len(own[1]) + [0] * missing]
    assert batch["attention_mask"].tolist() == batch["target_mask"].tolist() == masks


def test_labels_leave_out_prompts_and_rows_of_teachers_alone(tokenizer):
    for labelled in (True, False):
        rows = dataset(tokenizer, PAIRS, ("prompt", "response"), labelled=labelled)
        batch = rows.collate([rows.view(0)])
        prompt = len(tokenizer(PAIRS[0]["prompt"])["input_ids"])
        ids = batch["input_ids"][0].tolist()
        assert batch["target_mask"].tolist() == [[0] * prompt + [1] * (len(ids) - prompt)]
        assert batch["labels"].tolist() == [([-100] * prompt + ids[prompt:]) if labelled else [-100] * len(ids)]
        assert rows.labels == [0 if labelled else -100] * 2


def test_without_a_token_for_padding_the_end_of_text_pads_and_is_learnt_where_a_text_has_it(tokenizer):
    own = framed(tokenizer, "$A <|endoftext|>")
    own.pad_token, end = None, own.eos_token_id
    assert padding_token(own) == end
    rows = dataset(own, [{"text": text} for text in TEXTS])
    batch = rows.collate([rows.view(0), rows.view(1)])
    length = rows.lengths[1]
    assert batch["input_ids"][1, length - 1 :].tolist() == [end] * (rows.lengths[0] - length + 1)
    assert batch["labels"][1, length - 1 :].tolist() == [end] + [-100] * (rows.lengths[0] - length)


def test_a_tokenizer_that_pads_on_the_left_for_writing_pads_on_the_right_for_learning(tokenizer):
    own = framed(tokenizer, "$A")
    own.padding_side = "left"
    rows = dataset(own, [{"text": text} for text in TEXTS])
    assert rows.padding_side == "right"
    assert rows.collate([rows.view(0), rows.view(1)])["attention_mask"][1, 0].item() == 1
    assert collate_texts(own)([rows.view(1)])["attention_mask"].all()
