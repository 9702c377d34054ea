"""Tokens of rows, kept in files: what they are known by, and that nothing damaged, half written or foreign is used."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from brewer_core.errors import MissingExtraError
from brewer_core.run import run_config
from brewer_core.run.text import TextDataset
from brewer_core.run.tokenizers import train_tokenizer
from brewer_core.run.tokens import KeptTokens, Texts, TokenFiles, TokenRows, kept_tokens, remove_tokens, tokenized
from runs import document, films, tree, weights_in, write_config

transformers = pytest.importorskip("transformers", reason="text needs the extra hf")
pytest.importorskip("pyarrow", reason="keeping tokens needs the extra hf")

TEXTS = [("the cat sat",), ("the dog sat on the mat",), ("a cat",), ("",)]


class Source:
    """Texts, and how often they were read from the start."""

    def __init__(self, texts: list[Texts]) -> None:
        self.texts = texts
        self.readings = 0

    def __call__(self) -> Iterator[Texts]:
        self.readings += 1
        return iter(self.texts)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["the cat sat on the mat", "a dog and a cat"], 60)


def lists(rows: TokenRows) -> list[tuple[list[int], list[int] | None]]:
    return [
        (ids.tolist(), None if types is None else types.tolist())
        for ids, types in map(rows.__getitem__, range(len(rows)))
    ]


def in_memory(texts: list[Texts], tokenizer: Any, max_length: int = 8) -> TokenRows:
    return TokenRows(list(tokenized(texts, tokenizer, max_length)))


def kept_folder(folder: Path) -> Path:
    (kept,) = kept_tokens(folder)
    return kept.folder


def test_rows_are_read_from_the_file_and_equal_those_made_in_memory(tmp_path: Path, tokenizer: Any) -> None:
    texts = [(f"{text} {i}",) for i in range(700) for (text,) in TEXTS]
    mapped = TokenFiles(tmp_path, tokenizer, 8).rows(lambda: texts, "data.films.train")
    assert len(mapped) == 2800
    assert lists(mapped) == lists(in_memory(texts, tokenizer))
    assert mapped.lengths == in_memory(texts, tokenizer).lengths
    assert not mapped[0][0].flags.writeable  # a view of the file
    with pytest.raises(IndexError):
        mapped[2800]


def test_what_was_tokenised_once_is_not_tokenised_again(tmp_path: Path, tokenizer: Any) -> None:
    first, second = Source(TEXTS), Source(TEXTS)
    made = TokenFiles(tmp_path, tokenizer, 8).rows(first, "data.a.train")
    again = TokenFiles(tmp_path, tokenizer, 8).rows(second, "data.b.test")
    assert (first.readings, second.readings) == (2, 1)  # for the key; and to tokenise
    assert lists(made) == lists(again)
    assert len(kept_tokens(tmp_path)) == 1


def test_pairs_have_the_types_of_both_texts(tmp_path: Path, tokenizer: Any) -> None:
    rows = TokenFiles(tmp_path, tokenizer, 32).rows(lambda: [("the cat", "a dog")], "data.pairs")
    encoded = tokenizer("the cat", "a dog")
    assert lists(rows) == [(encoded["input_ids"], encoded["token_type_ids"])]
    assert lists(rows)[0][1] == [0, 0, 0, 0, 1, 1, 1]


def test_a_tokenizer_without_types_gives_none(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    files = TokenFiles(tmp_path, tokenizer, 8)
    assert [types for _, types in lists(files.rows(lambda: TEXTS, "data.a"))] == [None] * 4
    assert [types for _, types in lists(files.rows(lambda: TEXTS, "data.a"))] == [None] * 4


def other_sides(tokenizer: Any) -> Any:
    other = train_tokenizer(["the cat sat on the mat", "a dog and a cat"], 60)
    other.truncation_side = "left"
    return other


OTHERS: dict[str, Callable[[Any], tuple[Any, int, list[Texts]]]] = {
    "max_length": lambda tokenizer: (tokenizer, 7, TEXTS),
    "a vocabulary": lambda _: (train_tokenizer(["the cat sat on the rug"], 60), 8, TEXTS),
    "a side to cut": lambda tokenizer: (other_sides(tokenizer), 8, TEXTS),
    "a text": lambda tokenizer: (tokenizer, 8, [*TEXTS[:3], ("x",)]),
    "an order": lambda tokenizer: (tokenizer, 8, TEXTS[::-1]),
    "a border between texts": lambda tokenizer: (
        tokenizer,
        8,
        [("the cat sat1",), (":the dog sat on the mat",), *TEXTS[2:]],
    ),
    "pairs of the same texts": lambda tokenizer: (tokenizer, 8, [TEXTS[0] + TEXTS[1], TEXTS[2] + TEXTS[3]]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_tokenizer_length_or_text_is_tokenised_by_itself(tmp_path: Path, tokenizer: Any, what: str) -> None:
    TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.a")
    other, max_length, texts = OTHERS[what](tokenizer)
    rows = TokenFiles(tmp_path, other, max_length).rows(lambda: texts, "data.a")
    assert len(kept_tokens(tmp_path)) == 2
    assert lists(rows) == lists(in_memory(texts, other, max_length))


def test_what_calls_leave_in_a_tokenizer_makes_no_difference(tmp_path: Path, tokenizer: Any) -> None:
    TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.a")
    tokenizer("the cat", truncation=True, max_length=3, padding="max_length")
    source = Source(TEXTS)
    TokenFiles(tmp_path, tokenizer, 8).rows(source, "data.a")
    assert source.readings == 1


def test_a_tokenizer_of_anybody_else_is_not_kept(tmp_path: Path, tokenizer: Any) -> None:
    class Own(transformers.PreTrainedTokenizerFast):  # type: ignore[misc]  # not typed
        """What its code does, its settings do not tell."""

    own = Own(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    rows = TokenFiles(tmp_path, own, 8).rows(lambda: TEXTS, "data.a")
    assert lists(rows) == lists(in_memory(TEXTS, own))
    assert tree(tmp_path) == {}


# Damage


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the rows": (lambda folder: flipped(folder / "rows.arrow"), "rows.arrow is not as it was written"),
    "the end of the rows": (
        lambda folder: (folder / "rows.arrow").write_bytes((folder / "rows.arrow").read_bytes()[:-100]),
        "rows.arrow is not as it was written",
    ),
    "all rows": (lambda folder: (folder / "rows.arrow").unlink(), "rows.arrow is not as it was written"),
    "what they are": (lambda folder: (folder / "about.json").unlink(), "about.json does not say what the rows are"),
    "part of what they are": (
        lambda folder: (folder / "about.json").write_text("{}"),
        "about.json does not say what the rows are",
    ),
    "their number": (
        lambda folder: (folder / "about.json").write_text(
            (folder / "about.json").read_text().replace('"rows": 4', '"rows": 5')
        ),
        "rows.arrow has 4 rows",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_tokenised_again_and_told(tmp_path: Path, tokenizer: Any, what: str) -> None:
    damage, told = DAMAGE[what]
    TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.a")
    folder = kept_folder(tmp_path)
    whole = tree(folder)["rows.arrow"]
    damage(folder)
    with pytest.warns(UserWarning, match="tokenise") as caught:
        rows = TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.a")
    assert [str(each.message) for each in caught] == [f"{folder} is damaged ({told}); its rows are tokenised again."]
    assert lists(rows) == lists(in_memory(TEXTS, tokenizer))
    assert tree(folder)["rows.arrow"] == whole
    source = Source(TEXTS)
    TokenFiles(tmp_path, tokenizer, 8).rows(source, "data.a")
    assert source.readings == 1


def test_what_a_killed_run_left_half_written_is_written_anew(tmp_path: Path, tokenizer: Any) -> None:
    TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.a")
    folder = kept_folder(tmp_path)
    draft = folder.with_name(f".{folder.name}.partial")
    folder.rename(draft)
    (draft / "about.json").unlink()
    (draft / "more").write_text("left")
    (tmp_path / f".{folder.name}.lock").touch()
    assert [(kept.folder, kept.rows) for kept in kept_tokens(tmp_path)] == [(draft, None)]
    rows = TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.a")
    assert lists(rows) == lists(in_memory(TEXTS, tokenizer))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([folder.name, "about.json", "rows.arrow"])


def test_runs_that_tokenise_the_same_at_once_write_it_once(tmp_path: Path, tokenizer: Any) -> None:
    texts = [(f"{text} {i}",) for i in range(500) for (text,) in TEXTS]
    sources, made = [Source(texts) for _ in range(4)], dict[int, TokenRows]()
    gate = threading.Barrier(4)

    def run(i: int) -> None:
        files = TokenFiles(tmp_path, tokenizer, 8)
        gate.wait()
        made[i] = files.rows(sources[i], "data.a")

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(source.readings for source in sources) == 5
    assert all(lists(rows) == lists(in_memory(texts, tokenizer)) for rows in made.values())
    assert sorted(path.name for path in kept_folder(tmp_path).parent.iterdir()) == [kept_folder(tmp_path).name]


def test_where_nothing_can_be_written_rows_are_made_in_memory_with_one_warning(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "file").touch()
    files = TokenFiles(tmp_path / "file" / "tokenised", tokenizer, 8)
    with pytest.warns(UserWarning, match="tokenise") as caught:
        rows = files.rows(lambda: TEXTS, "data.a")
    assert [str(each.message) for each in caught] == [
        f"tokenised rows cannot be kept in {tmp_path / 'file' / 'tokenised'}: not a directory; every run tokenises them "
        "again. Let BREWER_CACHE name a folder that can be written."
    ]
    assert lists(rows) == lists(in_memory(TEXTS, tokenizer))
    assert lists(files.rows(lambda: TEXTS[:2], "data.a")) == lists(in_memory(TEXTS[:2], tokenizer))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to write to")
def test_a_full_disk_leaves_the_rows_in_memory(tmp_path: Path, tokenizer: Any) -> None:
    TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.a")
    folder = kept_folder(tmp_path)
    remove_tokens(kept_tokens(tmp_path)[0])

    def filling() -> Iterator[Texts]:  # the draft is there when the texts are read to be tokenised
        draft = folder.with_name(f".{folder.name}.partial")
        if draft.is_dir():
            (draft / "rows.arrow").unlink(missing_ok=True)
            (draft / "rows.arrow").symlink_to("/dev/full")
        return iter(TEXTS)

    with pytest.warns(UserWarning, match="cannot be kept in .*: no space left on device; every run"):
        rows = TokenFiles(tmp_path, tokenizer, 8).rows(filling, "data.a")
    assert lists(rows) == lists(in_memory(TEXTS, tokenizer))
    assert tree(tmp_path) == {}


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError) as caught:
        TokenFiles(tmp_path, tokenizer, 8)
    assert str(caught.value) == ("keeping tokenised rows needs pyarrow; install it with: pip install 'brewer-core[hf]'")


# What is kept


def test_what_is_kept_says_where_it_is_from_and_when_it_was_used(tmp_path: Path, tokenizer: Any) -> None:
    assert kept_tokens(tmp_path / "absent") == []
    before = datetime.now(timezone.utc).replace(microsecond=0)
    rows = TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.films.train")
    TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS[:1], "data.films.eval")
    newest, oldest = kept_tokens(tmp_path)
    assert (newest.where, oldest.where) == ("data.films.eval", "data.films.train")
    assert newest.used >= oldest.used >= before
    assert oldest.created is not None
    assert before <= datetime.fromisoformat(oldest.created) <= datetime.now(timezone.utc)
    assert oldest == KeptTokens(
        folder=oldest.folder,
        size=sum(len(data) for data in tree(oldest.folder).values()),
        used=oldest.used,
        where="data.films.train",
        rows=4,
        tokens=sum(rows.lengths),
        tokenizer=type(tokenizer).__name__,
        max_length=8,
        created=oldest.created,
    )
    TokenFiles(tmp_path, tokenizer, 8).rows(lambda: TEXTS, "data.other")
    assert [kept.where for kept in kept_tokens(tmp_path)] == ["data.films.train", "data.films.eval"]


def test_what_is_removed_is_gone_and_made_again_when_it_is_needed(tmp_path: Path, tokenizer: Any) -> None:
    files = TokenFiles(tmp_path, tokenizer, 8)
    files.rows(lambda: TEXTS, "data.a")
    for kept in kept_tokens(tmp_path):
        remove_tokens(kept)
    assert list(tmp_path.iterdir()) == []
    assert lists(files.rows(lambda: TEXTS, "data.a")) == lists(in_memory(TEXTS, tokenizer))


# In a run


def test_labelled_and_unlabelled_rows_share_their_tokens(tokenizer: Any) -> None:
    rows, options = [{"text": "a cat", "label": "x"}], {"classes": ("x",), "tokenizer": tokenizer, "max_length": 8}
    labelled = TextDataset(rows, text="text", label="label", **options)
    without = TextDataset(rows, text="text", label=None, tokens=labelled.tokens, first_row=1, **options)
    assert without.tokens is labelled.tokens
    assert without.view(0).row == 1
    assert (labelled.labels, without.labels) == ([0], [-100])


def test_a_second_run_reads_what_the_first_has_tokenised_and_ends_with_the_same_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREWER_CACHE", str(tmp_path / "cache"))
    config = write_config(films(tmp_path), document())
    run_config(config, output=tmp_path / "first")
    kept = {file: data for file, data in tree(tmp_path / "cache").items() if file.endswith(".arrow")}
    assert len(kept) == 3
    abouts = [json.loads(file.read_text()) for file in (tmp_path / "cache" / "tokenised").glob("*/about.json")]
    assert sorted((about["where"], about["rows"]) for about in abouts) == [
        ("data.films.eval", 10),
        ("data.films.train", 16),
        ("data.films.transfer", 12),
    ]
    run_config(config, output=tmp_path / "second")
    assert {file: data for file, data in tree(tmp_path / "cache").items() if file.endswith(".arrow")} == kept

    (tmp_path / "file").touch()
    monkeypatch.setenv("BREWER_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_config(config, output=tmp_path / "in_memory")
    assert len([each for each in caught if "cannot be kept" in str(each.message)]) == 1
    students = [weights_in(tmp_path / name / "student") for name in ("first", "second", "in_memory")]
    assert all(bool((students[0][name] == other[name]).all()) for other in students[1:] for name in students[0])
