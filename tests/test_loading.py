"""Batches of a run: made of views of rows, ahead of time in a thread, by like lengths, and shared by processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from brewer_core.batches import Filler
from brewer_core.components import Component
from brewer_core.errors import DataError
from brewer_core.processes import Processes
from brewer_core.run.assembly import JoinedText
from brewer_core.run.augmenting import AugmentedText, Augmenter
from brewer_core.run.collating import collate
from brewer_core.run.loading import AHEAD, LengthGroupedBatches, TextLoader, prepared_ahead
from brewer_core.run.text import TextDataset
from brewer_core.run.tokenizers import train_tokenizer

pytest.importorskip("transformers", reason="text needs the extra hf")

TEXTS = [("cat and dog " * (i % 7 + 1)).strip() for i in range(38)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["cat and dog"], 60)


@pytest.fixture
def rows(tokenizer: Any) -> JoinedText:
    parts = [
        TextDataset(
            [{"text": text, "label": "ab"[len(text) % 2]} for text in texts],
            text="text",
            label="label",
            classes=("a", "b"),
            tokenizer=tokenizer,
            max_length=16,
            first_row=first,
        )
        for first, texts in ((0, TEXTS[:20]), (20, TEXTS[20:]))
    ]
    return JoinedText(parts, [None, None])


def loader(rows: Any, processes: Processes | None = None, step_rows: int = 4, **options: Any) -> TextLoader:
    batches = LengthGroupedBatches(rows.lengths, 4, 3, step_rows=step_rows)
    return TextLoader(rows, batches, processes or Processes(), **options)


def listed(batches: Any) -> list[dict[str, Any]]:
    return [{name: column.tolist() for name, column in batch.items()} for batch in batches]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(AHEAD)]


# Batches of views


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("typed", [True, False])
def test_a_batch_of_views_is_that_of_the_items(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, side: str, typed: bool
) -> None:
    monkeypatch.setattr(tokenizer, "padding_side", side)
    if not typed:
        monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    pairs = [{"text": text, "other": "dog " * (i % 5)} for i, text in enumerate(TEXTS)]
    rows = TextDataset(
        pairs, text=("text", "other"), label=None, classes=(), tokenizer=tokenizer, max_length=16, first_row=5
    )
    for indices in ([3], [0, 9, 2], list(range(38))):
        of_items = collate(tokenizer)([rows[i] for i in indices])
        of_views = collate(tokenizer)([rows.view(i) for i in indices])
        assert list(of_views) == list(of_items)
        assert ("token_type_ids" in of_views) == typed
        for name, column in of_items.items():
            assert torch.equal(of_views[name], column)
            assert (of_views[name].dtype, of_views[name].is_contiguous()) == (torch.int64, True)


def test_a_batch_is_its_owners_to_change(rows: JoinedText) -> None:
    before = rows[0]["input_ids"].tolist()
    batch = rows.collate([rows.view(0)])
    batch["input_ids"].zero_()
    rows[0]["input_ids"].zero_()
    assert rows[0]["input_ids"].tolist() == before


def test_the_views_of_joined_rows_are_those_of_the_parts(rows: JoinedText) -> None:
    for index in (0, 19, 20, 37):
        view, item = rows.view(index), rows[index]
        assert (view.row, view.label, view.input_ids.tolist()) == (index, item["labels"], item["input_ids"].tolist())


# Ahead of time


def test_batches_that_are_prepared_ahead_are_the_same_in_the_same_order(rows: JoinedText) -> None:
    plain, ahead = loader(rows), loader(rows, ahead=True)
    for _ in range(3):
        assert listed(ahead) == listed(plain)


def test_the_place_of_a_loader_is_what_was_handed_out_not_what_is_prepared(rows: JoinedText) -> None:
    plain, ahead = loader(rows), loader(rows, ahead=True)
    for _ in range(2):
        states = [
            (loaded.state_dict(), [loaded.state_dict() for _ in loaded], loaded.state_dict())
            for loaded in (plain, ahead)
        ]
        assert states[0] == states[1]
        assert [state["read"] for state in states[1][1]] == list(range(1, 11))


def test_a_loader_that_prepares_ahead_goes_on_inside_a_pass(rows: JoinedText) -> None:
    whole = loader(rows)
    expected = [listed(whole) for _ in range(2)]
    for read in (1, 6, 9, 10):
        begun = loader(rows, ahead=True)
        stream = iter(begun)
        for _ in range(read):
            next(stream)
        resumed = loader(rows, ahead=True)
        resumed.load_state_dict(begun.state_dict())
        rest = [] if read == 10 else [listed(resumed)]
        assert [*rest, listed(resumed)] == ([expected[0][read:]] if rest else []) + [expected[1]]


def test_augmented_rows_may_be_prepared_ahead(rows: JoinedText, tokenizer: Any) -> None:
    def shuffle(tokens: list[str], *, generator: Any) -> list[str]:
        return [tokens[i] for i in generator.permutation(len(tokens))]

    augment = Augmenter([Component.passed("augmentation", shuffle).bind()], tokenizer, 16, "data.x.augmentations")
    made = AugmentedText(rows, [augment] * len(rows), 7)
    plain, ahead = loader(made, numbered=True), loader(made, numbered=True, ahead=True)
    first, second = listed(plain), listed(plain)
    assert first != second
    assert [listed(ahead), listed(ahead)] == [first, second]


class Failing(JoinedText):
    """Rows, one of which cannot be read."""

    def view(self, index: int) -> Any:
        """A row; not the one at 5."""
        if index == 5:
            raise DataError("row 6 is not to be had.")
        return super().view(index)


def until_its_error(loaded: TextLoader) -> list[list[int]]:
    """The rows of the batches before the one that cannot be made."""
    given: list[list[int]] = []

    def read() -> None:
        for batch in loaded:
            given.append(batch["row"].tolist())

    with pytest.raises(DataError, match=r"^row 6 is not to be had\.$"):
        read()
    return given


def test_the_error_of_a_row_is_raised_where_its_batch_would_be(rows: JoinedText) -> None:
    failing = Failing(rows.datasets, [None, None])
    plain, ahead = loader(failing), loader(failing, ahead=True)
    assert until_its_error(plain) == until_its_error(ahead)
    assert 0 < ahead.state_dict()["read"] < 10
    assert plain.state_dict() == ahead.state_dict()


def test_the_thread_ends_with_the_pass_and_where_a_pass_is_given_up(rows: JoinedText) -> None:
    loaded = loader(rows, ahead=True)
    for left in threads():  # of the tests before
        left.join(60)
    assert not threads()
    stream: Any = iter(loaded)
    next(stream)
    (thread,) = threads()
    stream.close()
    thread.join(60)
    assert not thread.is_alive()

    stream = iter(loaded)
    next(stream)
    (thread,) = threads()
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    thread.join(60)
    assert not thread.is_alive()

    for _ in loaded:
        (thread,) = threads()
    thread.join(60)
    assert not thread.is_alive()


def test_a_stream_is_one_ahead_and_no_more() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    for i in prepared_ahead(numbers(), "numbers"):
        assert made[: i + 1] == list(range(i + 1))
        assert len(made) <= i + 2


def test_a_pass_that_is_under_way_does_not_keep_python_from_ending() -> None:
    code = (
        "import itertools\nfrom brewer_core.run.loading import prepared_ahead\n"
        "stream = prepared_ahead(itertools.count(), 'numbers')\nprint(next(stream), next(stream))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")


# Like lengths, accumulation and several processes


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_every_row_once_in_a_pass_grouped_by_length_and_accumulated(
    rows: JoinedText, count: int, ahead: bool
) -> None:
    def passes() -> list[list[list[list[int]]]]:
        """The rows of each batch of each process in each of three passes, those of fillers left out."""
        own = [loader(rows, Processes(rank, count), step_rows=12, ahead=ahead) for rank in range(count)]
        return [
            [[[] if isinstance(batch, Filler) else batch["row"].tolist() for batch in each] for each in own]
            for _ in range(3)
        ]

    made = passes()
    assert made == passes()
    assert len({str(each) for each in made}) == 3
    for each in made:
        assert sorted(row for own in each for batch in own for row in batch) == list(range(38))
        assert {len(own) for own in each} == {10}
        steps = [{row for own in each for batch in own[i : i + 3] for row in batch} for i in (0, 3, 6, 9)]
        assert [len(step) for step in steps] == [12, 12, 12, 2]
    alone = loader(rows, step_rows=12)
    assert [[sorted(batch["row"].tolist()) for batch in alone] for _ in range(3)] == [
        [sorted(row for own in each for row in own[i]) for i in range(10)] for each in made
    ]
