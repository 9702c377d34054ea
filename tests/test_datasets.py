"""Rows read from files, from Hugging Face data sets, and from the package."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from brewer_builtins.datasets import Rows, complaints, csv, hf, jsonl, parquet, text
from brewer_core import DataError, MissingExtraError


def write(folder, name, text):
    file = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


def refusal(make, **options):
    with pytest.raises(DataError) as caught:
        make(**options)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_rows_are_a_sequence_of_dicts():
    rows = Rows({"text": ["a", "b", "c"], "label": [1, 2, 3]})
    assert len(rows) == 3
    assert rows.columns == ("text", "label")
    assert rows[1] == {"text": "b", "label": 2}
    assert rows[-1] == list(rows)[2] == {"text": "c", "label": 3}
    assert list(rows[1:]) == [{"text": "b", "label": 2}, {"text": "c", "label": 3}]
    with pytest.raises(IndexError):
        rows[3]
    assert list(Rows({})) == []


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_cells_are_texts_as_they_stand(tmp_path, name):
    pytest.importorskip("pyarrow")
    write(tmp_path, name, '\ufefftext,label\r\nNA,001\r\n"two, ""quoted""\nlines",\r\n')
    assert list(csv(base_dir=tmp_path, path=name)["train"]) == [
        {"text": "NA", "label": "001"},
        {"text": 'two, "quoted"\nlines', "label": ""},
    ]


def test_csv_reads_a_file_for_each_split_and_another_delimiter(tmp_path):
    pytest.importorskip("pyarrow")
    write(tmp_path, "a.tsv", "text\tlabel\none, two\t1\n")
    write(tmp_path, "b.tsv", "text\tlabel\nthree\t2\n")
    splits = csv(base_dir=tmp_path, path={"train": "a.tsv", "test": "b.tsv"}, delimiter="\t")
    assert {split: list(rows) for split, rows in splits.items()} == {
        "train": [{"text": "one, two", "label": "1"}],
        "test": [{"text": "three", "label": "2"}],
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "text,label\na,1\nb\n",
            "CSV parse error: Row #3: Expected 2 columns, got 1: b; expected UTF-8 text, a header and as many cells in every row.",
        ),
        (
            "text,label\na,1,2\n",
            "CSV parse error: Row #2: Expected 2 columns, got 3: a,1,2; expected UTF-8 text, a header and as many cells in every row.",
        ),
        (
            b"text,label\na,1\n\xff,2\n",
            "In CSV column #0: Row #3: CSV conversion error to string: invalid UTF8 data; "
            "expected UTF-8 text, a header and as many cells in every row.",
        ),
        ("", "this file is empty; it needs a header and a row for each text."),
        ("text,label\n", "there are no rows; a data set needs one at least."),
    ],
)
def test_csv_says_where_a_file_is_malformed(tmp_path, text, reason):
    pytest.importorskip("pyarrow")
    file = write(tmp_path, "rows.csv", text)
    assert refusal(csv, base_dir=tmp_path, path="rows.csv") == f"{file}: {reason}"


def test_a_folder_that_a_config_is_named_in_without_is_told_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(csv, base_dir=Path(), path="no.csv") == (
        f"no.csv: no such file; paths are relative to the config's folder, {tmp_path}."
    )


def test_missing_files_and_folders_are_named(tmp_path):
    assert refusal(csv, base_dir=tmp_path, path="no.csv") == (
        f"{tmp_path / 'no.csv'}: no such file; paths are relative to the config's folder, {tmp_path}."
    )
    (tmp_path / "folder").mkdir()
    assert refusal(jsonl, base_dir=tmp_path, path={"train": "folder"}) == (
        f"{tmp_path / 'folder'}: this is a folder; name a file, or a file for each split."
    )
    assert refusal(parquet, base_dir=tmp_path, path={}) == "`path` is empty; give a file, or a file for each split."


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl_keeps_types_and_skips_empty_lines(tmp_path, name):
    write(tmp_path, name, '{"text": "a", "label": 1}\n\n{"text": "2024-01-01", "date": "2024-01-01", "label": true}\n')
    assert list(jsonl(base_dir=tmp_path, path=name)["train"]) == [
        {"text": "a", "label": 1, "date": None},
        {"text": "2024-01-01", "label": True, "date": "2024-01-01"},
    ]


def test_jsonl_says_which_line_is_malformed(tmp_path):
    broken = write(tmp_path, "broken.jsonl", '{"text": "a"}\n{"text": \n')
    assert refusal(jsonl, base_dir=tmp_path, path="broken.jsonl") == (
        f"{broken}: line 2: Expecting value: line 2 column 1 (char 10); expected a JSON object on each line."
    )
    bare = write(tmp_path, "bare.jsonl", '\n["text"]\n')
    assert refusal(jsonl, base_dir=tmp_path, path="bare.jsonl") == (
        f"{bare}: line 2 holds a list; expected a JSON object on each line."
    )
    empty = write(tmp_path, "empty.jsonl", "")
    assert refusal(jsonl, base_dir=tmp_path, path="empty.jsonl") == (
        f"{empty}: there are no rows; a data set needs one at least."
    )


def test_jsonl_refuses_what_is_not_compressed_text(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(b'{"text": "a"}\n')
    assert refusal(jsonl, base_dir=tmp_path, path="rows.jsonl.gz") == (
        f"{file}: Not a gzipped file (b'{{\"'); expected UTF-8 text with a JSON object on each line."
    )


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_text_is_read_by_lines_or_by_paragraphs(tmp_path, name):
    write(tmp_path, name, "\ufeffOne line. \r\n\ttwo\r\n  \r\n\r\nthree\n")
    assert [row["text"] for row in text(base_dir=tmp_path, path=name)["train"]] == ["One line.", "two", "three"]
    paragraphs = text(base_dir=tmp_path, path=name, by="paragraph")["train"]
    assert list(paragraphs) == [{"text": "One line. \n\ttwo"}, {"text": "three"}]


def test_text_that_is_none_is_refused(tmp_path):
    latin = write(tmp_path, "latin.txt", "é".encode("latin-1"))
    assert refusal(text, base_dir=tmp_path, path="latin.txt") == (
        f"{latin}: 'utf-8' codec can't decode byte 0xe9 in position 0: unexpected end of data; expected UTF-8 text."
    )
    blank = write(tmp_path, "blank.txt", "\n \n")
    assert (
        refusal(text, base_dir=tmp_path, path="blank.txt")
        == f"{blank}: there are no rows; a data set needs one at least."
    )


def test_parquet_keeps_types_and_nulls(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet_files = pytest.importorskip("pyarrow.parquet")
    parquet_files.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, None]}), tmp_path / "rows.parquet")
    rows = parquet(base_dir=tmp_path, path="rows.parquet")["train"]
    assert list(rows) == [{"text": "a", "label": 1}, {"text": "b", "label": None}]


def test_parquet_refuses_another_format(tmp_path):
    pytest.importorskip("pyarrow")
    file = write(tmp_path, "rows.parquet", "text,label\na,1\n")
    message = refusal(parquet, base_dir=tmp_path, path="rows.parquet")
    assert message.startswith(f"{file}: ")
    assert message.endswith("; expected a Parquet file.")


def test_hf_reads_a_saved_folder_with_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    parts = {"train": [1, 0], "validation": [1, -1]}
    saved = {
        split: datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)
        for split, labels in parts.items()
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    saved["train"].save_to_disk(tmp_path / "one")
    splits = hf(base_dir=tmp_path, path="saved")
    assert list(splits) == ["train", "eval"]
    assert list(splits["train"]) == [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}]
    assert splits["eval"][1] == {"text": "b", "label": None}
    assert list(hf(base_dir=tmp_path, path="one")) == ["train"]


def test_hf_says_what_it_could_not_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(hf, base_dir=tmp_path, path="no/such-data")
    assert message.startswith(
        f"data set 'no/such-data': neither a folder in {tmp_path} nor to be had from the Hugging Face hub, which may be "
        "out of reach from here ("
    )
    assert message.endswith("); check the name, or save it to a folder with `save_to_disk`.")
    (tmp_path / "other").mkdir()
    message = refusal(hf, base_dir=tmp_path, path="other")
    assert message.startswith(f"{tmp_path / 'other'}: ")
    assert message.endswith("; expected a folder that `save_to_disk` wrote.")


def test_complaints_have_three_splits_of_short_texts():
    splits = complaints(seed=0)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 800, "transfer": 2472, "test": 968}
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(set(texts)) == 4240
    assert max(map(len, texts)) < 500
    assert len({row["label"] for row in splits["train"]}) == 8
    assert {row["label"] for row in splits["transfer"]} == {None}
    counts = Counter(row["label"] for row in splits["test"])
    assert counts.most_common(2) == [
        ("Credit reporting, credit repair services, or other personal consumer reports", 456),
        ("Debt collection", 257),
    ]


def test_the_seed_chooses_the_labelled_complaints():
    first, again, other = (list(complaints(seed=seed, labelled_rows=50)["train"]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_more_labelled_complaints_than_there_are_is_an_error():
    assert refusal(complaints, seed=0, labelled_rows=4000) == (
        "labelled_rows is 4000, but there are 3272 rows; ask for fewer."
    )
    assert len(complaints(seed=0, labelled_rows=3272)["transfer"]) == 0


def test_a_jsonl_file_of_every_complaint_reads_back_equal(tmp_path):
    rows = list(complaints(seed=0)["test"])
    write(tmp_path, "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(jsonl(base_dir=tmp_path, path="test.jsonl")["train"]) == rows


def test_without_pyarrow_or_datasets_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path, "rows.csv", "text\na\n")
    for library in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    for make, path, need in (
        (csv, "rows.csv", "reading CSV files needs pyarrow"),
        (hf, "x", "the data set `hf` needs datasets"),
    ):
        with pytest.raises(MissingExtraError) as caught:
            make(base_dir=tmp_path, path=path)
        assert str(caught.value) == f"{need}; install it with: pip install 'brewer-core[hf]'"


def test_importing_these_plugins_loads_no_optional_library():
    modules = ", ".join(f"brewer_builtins.{name}" for name in ("adaptors", "datasets", "metrics", "models"))
    optional = "{'transformers', 'tokenizers', 'datasets', 'pandas', 'pyarrow', 'sklearn'}"
    script = f"import sys, {modules}; print(sorted({optional} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_share_of_one_file_is_held_out_by_the_seed(tmp_path):
    write(tmp_path, "rows.jsonl", "".join(f'{{"text": "{i}"}}\n' for i in range(20)))
    first, same, other = (
        {
            split: [row["text"] for row in rows]
            for split, rows in jsonl(base_dir=tmp_path, seed=seed, path="rows.jsonl", holdout=0.25).items()
        }
        for seed in (1, 1, 2)
    )
    assert first == same != other
    assert list(first) == ["train", "eval"]
    assert (len(first["train"]), len(first["eval"])) == (15, 5)
    assert sorted(first["train"] + first["eval"], key=int) == [str(i) for i in range(20)]
    assert first["train"] == sorted(first["train"], key=int)


@pytest.mark.parametrize(("reader", "file"), [(csv, "rows.csv"), (jsonl, "rows.jsonl")])
def test_a_share_is_held_out_of_the_rows_that_have_something_in_a_column(tmp_path, reader, file):
    labels = ["a" if i % 3 == 0 else "" for i in range(30)]
    write(tmp_path, "rows.csv", "text,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    lines = [
        f'{{"text": "{i}", "label": {chr(34) + "a" + chr(34) if label else "null"}}}' for i, label in enumerate(labels)
    ]
    write(tmp_path, "rows.jsonl", "\n".join([*lines, '{"text": "30", "label": NaN}']))
    rows = reader(base_dir=tmp_path, seed=0, path=file, holdout=0.2, holdout_where="label")
    assert [row["label"] for row in rows["eval"]] == ["a", "a"]
    assert [row["label"] for row in rows["train"]].count("a") == 8


def test_what_cannot_be_held_out_is_refused(tmp_path):
    write(tmp_path, "rows.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    assert refusal(jsonl, base_dir=tmp_path, path="rows.jsonl", holdout=0.1) == (
        "holdout is 0.1, which of 2 rows leaves a split without any; take another share."
    )
    both = {"train": "rows.jsonl", "test": "rows.jsonl"}
    assert refusal(jsonl, base_dir=tmp_path, path=both, holdout=0.5) == (
        "`holdout` is for one file, and `path` names train, test; leave one of the two out."
    )
    assert refusal(jsonl, base_dir=tmp_path, path="rows.jsonl", holdout_where="text") == (
        "`holdout_where` is 'text' and there is no `holdout`, the share of rows to hold out; give both."
    )
    assert refusal(jsonl, base_dir=tmp_path, path="rows.jsonl", holdout=0.5, holdout_where="label") == (
        "`holdout_where` is 'label', and the columns are text; name one of these."
    )
