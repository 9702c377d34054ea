"""From rows to batches: tokenizers, data sets, batches of like length."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from brewer_core.errors import DataError, MissingExtraError, RequestError
from brewer_core.processes import Processes
from brewer_core.run.collating import collate
from brewer_core.run.loading import LengthGroupedBatches, TextLoader
from brewer_core.run.text import TextDataset, class_names
from brewer_core.run.tokenizers import load_tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers", reason="text needs the extra hf")

TEXTS = ["the cat sat", "the dog sat on the mat", "a cat and a dog", "mats", "unmatched cats"]
ROWS = [
    {"text": "the cat sat", "other": "a dog", "label": "cat"},
    {"text": "the dog sat on the mat", "other": "mat", "label": "dog"},
    {"text": "a cat", "other": "cats", "label": ""},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 60)


@pytest.fixture
def dataset(tokenizer):
    def make(rows=ROWS, text="text", label="label", classes=("cat", "dog"), max_length=32, **more):
        return TextDataset(
            rows, text=text, label=label, classes=classes, tokenizer=tokenizer, max_length=max_length, **more
        )

    return make


def plain(item):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in item.items()}


def refusal(make, *arguments, **options):
    with pytest.raises(DataError) as caught:
        make(*arguments, **options)
    return str(caught.value)


def test_a_trained_tokenizer_lowers_and_marks_texts_and_pairs(tokenizer):
    single = tokenizer("The CAT")
    assert tokenizer.convert_ids_to_tokens(single["input_ids"]) == ["[CLS]", "the", "cat", "[SEP]"]
    pair = tokenizer("the cat", "dog")
    assert tokenizer.convert_ids_to_tokens(pair["input_ids"]) == ["[CLS]", "the", "cat", "[SEP]", "dog", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert tokenizer.decode(single["input_ids"], skip_special_tokens=True) == "the cat"
    assert tokenizer.unk_token_id in tokenizer("ß")["input_ids"]
    assert len(tokenizer) <= 60
    assert tokenizer.pad_token_id == 0


def test_equal_texts_give_an_equal_tokenizer_in_every_process():
    script = (
        "from brewer_core.run.tokenizers import train_tokenizer\n"
        "texts = [f'{a}{b} {b}{a}{c}' for a in 'abcdefgh' for b in 'ijklmnop' for c in 'qrstuv']\n"
        "print(train_tokenizer(texts, 150).backend_tokenizer.to_str())"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1] != ""


def test_a_tokenizer_comes_back_from_its_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("the cat", "mats")["input_ids"] == tokenizer("the cat", "mats")["input_ids"]


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError) as caught:
        load_tokenizer(tmp_path / "no")
    assert str(caught.value) == (
        f'tokenizer.from: there is no folder {tmp_path / "no"}; give a folder, "teacher" or "train".'
    )
    transformers.BertConfig().save_pretrained(tmp_path / "model")
    for folder in (tmp_path, tmp_path / "model"):
        with pytest.raises(RequestError) as caught:
            load_tokenizer(folder)
        assert str(caught.value) == (
            f"tokenizer.from: {folder} holds no tokenizer that can be read; expected one that `save_pretrained` wrote."
        )
    assert refusal(train_tokenizer, [], 100) == "there are no texts to train a tokenizer on."


def test_items_hold_numbers_labels_and_their_row(dataset, tokenizer):
    items = dataset(first_row=7)
    assert len(items) == 3
    assert plain(items[0]) == {
        "row": 7,
        "input_ids": tokenizer("the cat sat")["input_ids"],
        "attention_mask": [1] * 5,
        "token_type_ids": [0] * 5,
        "labels": 0,
    }
    assert [items[i]["labels"] for i in range(3)] == [0, 1, -100]
    assert items.lengths == [5, 8, 4]


def test_texts_are_cut_and_pairs_joined(dataset, tokenizer):
    assert dataset(max_length=4).lengths == [4, 4, 4]
    pair = plain(dataset(text=("text", "other"))[0])
    assert pair["input_ids"] == tokenizer("the cat sat", "a dog")["input_ids"]
    assert pair["token_type_ids"] == [0] * 5 + [1] * 3


def test_without_a_label_column_no_row_has_a_label(dataset):
    assert dataset(label=None, classes=()).labels == [-100] * 3


@pytest.mark.parametrize(("value", "number"), [(1, 0), ("1", 0), (1.0, 0), (2, 1), (None, -100), (float("nan"), -100)])
def test_labels_may_be_numbers(dataset, value, number):
    assert dataset([{"text": 5, "label": value}], classes=("1", "2")).labels == [number]


def test_labels_may_be_booleans(dataset):
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    assert class_names({"x": rows}, {"x": "label"}) == ("false", "true")
    assert dataset(rows, classes=("false", "true")).labels == [1, 0]


def test_more_rows_than_are_tokenised_at_once_keep_their_order(dataset):
    words = ["cat", "dog", "mat"]
    rows = [{"text": words[i % 3]} for i in range(2500)]
    items = dataset(rows, label=None)
    assert all(plain(items[i])["input_ids"] == plain(items[i % 3])["input_ids"] for i in (0, 999, 1000, 2001, 2499))
    assert len(items) == 2500


def test_faulty_data_is_refused_with_its_place(dataset):
    where = {"where": "data.complaints"}
    assert refusal(dataset, text="txt", **where) == (
        "data.complaints.text: no column 'txt'; did you mean 'text'? Columns: text, other, label."
    )
    assert refusal(dataset, label="zzz", **where) == (
        "data.complaints.label: no column 'zzz'. Columns: text, other, label."
    )
    assert refusal(dataset, classes=("cat", "cow"), **where) == (
        "data.complaints.label: row 2 has the label 'dog', which is no class; the classes are cat, cow."
    )
    assert refusal(dataset, [], **where) == "data.complaints: there are no rows."
    assert refusal(dataset, [*ROWS, {"text": None, "label": "cat"}], **where) == (
        "data.complaints.text: row 4 has no text in the column 'text'; fill it in or drop the row."
    )
    assert refusal(dataset, [{"text": "a", "label": 0.5}], **where) == (
        "data.complaints.label: row 1 has the label 0.5; a label is a text, a whole number, or true or false."
    )


def test_class_names_are_sorted_and_empty_labels_left_out():
    rows = {"a": ROWS, "b": [{"text": "x", "label": "ant"}], "c": [{"text": "y"}]}
    assert class_names(rows, {"a": "label", "b": "label", "c": None}) == ("ant", "cat", "dog")


def test_class_names_that_are_numbers_are_sorted_as_numbers():
    rows = [{"label": n} for n in (10, 9, -1, "2")]
    assert class_names({"a": rows}, {"a": "label"}) == ("-1", "2", "9", "10")
    assert class_names({"a": [{"label": n} for n in ("10", "9", "1b")]}, {"a": "label"}) == ("10", "1b", "9")


def test_class_names_need_two_classes_in_a_column_that_is_there():
    assert refusal(class_names, {"a": ROWS[:1]}, {"a": "label"}) == (
        "the labelled rows have only the class 'cat'; classification needs two or more."
    )
    assert refusal(class_names, {"a": ROWS}, {"a": None}) == (
        "the labelled rows have no class; classification needs two or more."
    )
    assert refusal(class_names, {"a": ROWS}, {"a": "lable"}) == (
        "data.a.label: no column 'lable'; did you mean 'label'? Columns: text, other, label."
    )


def test_batches_are_padded_to_their_longest_row(dataset, tokenizer):
    items = dataset()
    batch = collate(tokenizer)([items[0], items[2]])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "row": (2,),
        "input_ids": (2, 5),
        "attention_mask": (2, 5),
        "token_type_ids": (2, 5),
        "labels": (2,),
    }
    assert type(batch) is dict
    assert batch["row"].tolist() == [0, 2]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0]]
    assert batch["input_ids"][1, 4] == tokenizer.pad_token_id


def test_batches_are_padded_as_the_tokenizer_pads(dataset, tokenizer, monkeypatch):
    items = dataset()
    for side in ("right", "left"):
        monkeypatch.setattr(tokenizer, "padding_side", side)
        batch = collate(tokenizer)([items[i] for i in range(3)])
        expected = tokenizer([row["text"] for row in ROWS], padding=True, return_tensors="pt")
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def batches(lengths, size, seed=0, **options):
    return LengthGroupedBatches(lengths, size, seed, **options)


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_is_in_one_batch_and_the_short_batch_is_kept(group, shuffle):
    lengths = [i % 17 for i in range(1003)]
    made = batches(lengths, 8, shuffle=shuffle, group=group)
    passed = list(made)
    assert len(passed) == len(made) == 126
    assert sorted(row for batch in passed for row in batch) == list(range(1003))
    assert sorted(map(len, passed))[:2] == [3, 8]


def test_rows_that_do_not_fill_a_step_are_left_out_on_request():
    made = batches([i % 17 for i in range(103)], 4, step_rows=12, drop_last=True)
    first, second = list(made), list(made)
    assert [len(batch) for batch in first] == [4] * 24
    assert len(made) == 24
    assert len({row for batch in first for row in batch}) == 96
    assert {row for batch in first for row in batch} != {row for batch in second for row in batch}


def test_batches_hold_rows_of_like_length():
    lengths = torch.randint(1, 100, (2000,), generator=torch.Generator().manual_seed(0)).tolist()

    def padded(**options):
        return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches(lengths, 16, **options))

    assert padded(group=True) < 1.05 * sum(lengths)
    assert padded(group=False) > 1.6 * sum(lengths)


def test_orders_follow_the_seed_and_change_with_every_pass():
    lengths = list(range(100))
    made, again = batches(lengths, 4), batches(lengths, 4)
    first, second = list(made), list(made)
    assert [first, second] == [list(again), list(again)]
    assert first != second
    assert first != list(batches(lengths, 4, seed=1))


def test_without_shuffling_the_order_of_the_rows_is_kept():
    assert list(batches([3, 1, 2], 2, shuffle=False, group=False)) == [[0, 1], [2]]
    assert list(batches([3, 1, 2], 2, shuffle=False, group=True)) == [[1, 2], [0]]


def test_a_loader_draws_nothing_from_the_global_generator(dataset):
    before = torch.get_rng_state()
    rows = dataset()
    loaded = TextLoader(rows, LengthGroupedBatches(rows.lengths, 2, 3), Processes())
    passes = [[batch["row"].tolist() for batch in loaded] for _ in range(5)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(sorted(row for batch in rows for row in batch) == [0, 1, 2] for rows in passes)
    assert len(loaded) == 2


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError) as caught:
        train_tokenizer(TEXTS, 60)
    assert (
        str(caught.value) == "training a tokenizer needs transformers; install it with: pip install 'brewer-core[hf]'"
    )
