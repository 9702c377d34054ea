"""`brewer cache`: what is listed and shown, what is damaged is found, builders are alone, and a build is what a run reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from brewer_core.cache import CacheFormat, chosen
from brewer_core.cache.folders import Entry, entries, fidelity_of, laid_out, verify
from brewer_core.cache.parts import OpenFiles, read_part
from brewer_core.cache.rows import rows_of
from brewer_core.config import DistillStage, parse_run_config
from brewer_core.errors import Stopped
from brewer_core.listeners import Listener
from brewer_core.plugins import default_registry
from brewer_core.run import building
from brewer_core.run.assembly import Assembly
from brewer_core.run.building import build_caches
from brewer_core.run.collating import collate
from brewer_core.run.lessons import distill_lesson
from brewer_core.run.reporting import Reporter
from brewer_core.stopping import StopReason, StopRequest
from runs import bert, brewer, distill, document, films, supervised, tree, weights_in, write_config
from two_processes import in_each

ROWS = 28
"""16 labelled ones and 12 others."""
HIDDEN = {"feature": "hidden", "layer_T": 2, "layer_S": 1, "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 16]}


def taught(**changes: Any) -> dict[str, Any]:
    """A run whose only stage has a teacher that is as the config builds it."""
    objective = {"kd_loss_type": "kl", "temperature": 2, "hard_label_weight": 1, "intermediate_matches": [HIDDEN]}
    return document(**{"stages": [distill(distillation=objective)], **changes})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a config, and a cache of it."""
    folder = films(tmp_path_factory.mktemp("built"))
    write_config(folder, taught(cache={"path": "cache"}))
    assert brewer("cache", "build", folder / "config.json") == 0
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Data without a cache."""
    return films(tmp_path)


def only(folder: Path) -> Entry:
    (entry,) = entries(folder / "cache")
    return entry


def part_of(folder: Path) -> Path:
    (part,) = (only(folder).folder / "parts").glob("*.safetensors")
    return part


def records(root: Path) -> dict[bytes, bytes | None]:
    """Every record below a folder of caches, by its key."""
    files = OpenFiles()
    parts = [read_part(path) for path in sorted(root.rglob("*.safetensors"))]
    found = {part.keys[row].tobytes(): part.record(files, row) for part in parts for row in range(len(part))}
    files.close()
    return found


def flipped(file: Path, at: int) -> None:
    held = bytearray(file.read_bytes())
    held[at] ^= 0x10
    file.write_bytes(held)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


# Listing and showing


def test_a_cache_is_listed_with_what_it_is_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("cache", "ls", "--cache", folder / "cache", "--json") == 0
    row = json.loads(capsys.readouterr().out)[0]

    assert row["kind"] == "teacher"
    assert row["teacher"]["model"] == "BertForSequenceClassification"
    assert row["reads"] == ["hidden[2]", "inputs_mask", "logits", "logits_mask"]
    assert row["format"] == {"floats": "float32", "top_k": None, "samples": None}
    assert (row["rows"], row["parts"], row["state"], row["problems"]) == (ROWS, 1, "whole", [])
    assert row["bytes"] == sum(len(held) for held in tree(folder / "cache" / "teachers").values())
    assert row["id"] == only(folder).id

    assert brewer("cache", "ls", "--cache", folder / "cache") == 0
    printed = capsys.readouterr().out
    assert re.search(
        rf"^{row['id'][:12]}  BertForSequenceClassification, [\d,]+  .+ float32 +28 .+ whole$", printed, re.M
    )
    assert re.search(rf"^1 cache of teachers, [\d.]+ kB, in {folder}/cache$", printed, re.M)
    assert re.search(rf"^2 caches of tokenised rows, [\d.]+ kB, in {folder}/cache$", printed, re.M)


def test_tokenised_rows_are_listed_beside_and_removed_likewise(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder / "cache"
    (root / "tokenised" / ".ab.partial").mkdir()
    assert brewer("cache", "ls", "--cache", root, "--json") == 0
    tokens = [row for row in json.loads(capsys.readouterr().out) if row["kind"] == "tokens"]
    assert {(row["where"], row["rows"], row["state"]) for row in tokens} == {
        ("data.films.train", 16, "whole"),
        ("data.films.transfer", 12, "whole"),
        (None, None, "unfinished"),
    }
    (train,) = (row for row in tokens if row["where"] == "data.films.train")
    assert train["bytes"] == sum(len(held) for held in tree(root / "tokenised" / train["id"]).values())
    assert train["max_length"] == 16

    assert brewer("cache", "rm", train["id"][:12], ".ab", "--cache", root) == 0
    assert capsys.readouterr().out.splitlines()[1] == "removed .ab.partial, 0 bytes"
    assert brewer("cache", "ls", "--cache", root, "--json") == 0
    assert [row.get("where") for row in json.loads(capsys.readouterr().out)] == [None, "data.films.transfer"]
    assert brewer("cache", "rm", "--all", "--cache", root) == 0
    capsys.readouterr()
    assert brewer("cache", "ls", "--cache", root, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_users_own_folder_is_listed_by_default(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("BREWER_CACHE", str(folder / "cache"))
    assert brewer("cache", "ls", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == only(folder).id


def test_a_folder_without_caches_is_empty_and_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("ls", "verify"):
        assert brewer("cache", command, "--cache", tmp_path) == 0
        assert capsys.readouterr().out == f"{tmp_path} holds no caches\n"
        assert brewer("cache", command, "--cache", tmp_path / "none", "--json") == 0
        assert json.loads(capsys.readouterr().out) == []


def test_what_was_used_last_is_listed_first(folder: Path) -> None:
    before = only(folder)
    os.utime(before.folder / "about.json", (0, 0))
    assert brewer("cache", "build", folder / "config.json", "--set", "cache.floats=float16") == 0
    other, first = entries(folder / "cache")
    assert (other.about["format"]["floats"], first.id) == ("float16", before.id)
    assert first.used.timestamp() == 0

    assert brewer("run", folder / "config.json", "--output", folder / "run") == 0
    assert entries(folder / "cache")[0].id == before.id


def test_the_layout_of_a_cache_is_shown_feature_by_feature(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("cache", "show", only(folder).id[:6], "--cache", folder / "cache", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    (layout,) = shown["layouts"]
    sizes = layout["bytes_by_feature"]

    assert (layout["rows"], layout["padded_to"]) == (ROWS, None)
    assert sizes["logits"] == ROWS * 2 * 4
    hidden = next(feature for feature in layout["features"] if feature["name"] == "hidden")
    layers = [piece for piece in hidden["pieces"] if piece is not None]
    assert sizes["hidden"] == sizes["inputs_mask"] * 16 * 4 * len(layers)  # a byte of the mask for each token
    assert layers[0] == {"dtype": "float32", "dims": [None, 16]}
    assert (
        sum(sizes.values()) == layout["bytes"] == sum(len(held or b"") for held in records(folder / "cache").values())
    )

    assert brewer("cache", "show", only(folder).id, "--cache", folder / "cache") == 0
    printed = capsys.readouterr().out
    assert "float32 [n, 16]" in printed
    assert "relative error of the student's gradient: " in printed


@pytest.mark.parametrize("command", ["show", "verify", "rm"])
def test_an_id_must_be_known_and_clear(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    root, entry = folder / "cache", only(folder)
    assert brewer("cache", command, "xyz", "--cache", root) == 2
    assert said(capsys) == (
        f"brewer: error: {root} has no cache whose id begins with 'xyz'; `brewer cache ls` lists them."
    )
    other = f"{entry.id[:-1]}{'0' if entry.id[-1] != '0' else '1'}"
    shutil.copytree(entry.folder, entry.folder.with_name(other))
    assert brewer("cache", command, entry.id[:31], "--cache", root) == 2
    both = ", ".join(sorted([entry.id, other]))
    assert said(capsys) == f"brewer: error: {entry.id[:31]!r} begins the ids of 2 caches, {both}; give more digits."
    assert brewer("cache", command, entry.id, "--cache", root) == 0


def test_without_a_folder_for_caches_one_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("brewer_core.cache_folder._of_user", lambda: None)
    assert brewer("cache", "ls") == 2
    assert said(capsys) == (
        "brewer: error: there is no folder for caches here; name one with --cache, or set BREWER_CACHE."
    )


# Verifying and repairing


def in_record(folder: Path) -> None:
    part = read_part(part_of(folder))
    flipped(part.path, part.begins + int(part.places[3]))


def in_index(folder: Path) -> None:
    part = read_part(part_of(folder))
    held = part.path.read_bytes()
    flipped(part.path, held.index(part.keys.tobytes()))


def in_header(folder: Path) -> None:
    flipped(part_of(folder), 12)


def in_about(folder: Path) -> None:
    file = only(folder).folder / "about.json"
    flipped(file, file.read_bytes().index(b"BertFor"))


def truncated(folder: Path) -> None:
    part = read_part(part_of(folder))
    os.truncate(part.path, part.begins + int(part.places[-3]) + 1)


DAMAGE: Mapping[str, tuple[Callable[[Path], None], str, int]] = {
    "record": (in_record, "28 rows, 1 of them DAMAGED", 27),
    "index": (in_index, "0 rows, all whole; 1 part DAMAGED, whose rows nobody can tell", 0),
    "header": (in_header, "0 rows, all whole; 1 part DAMAGED, whose rows nobody can tell", 0),
    "truncated": (truncated, "28 rows, 2 of them DAMAGED", 26),
}
ADVICE = (
    "What is damaged is never used: its rows are computed again when they are asked for, or `--repair` removes it.\n"
)


def test_a_whole_cache_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("cache", "verify", "--cache", folder / "cache") == 0
    assert capsys.readouterr().out == f"{only(folder).id[:12]}  28 rows, all whole\n"
    assert brewer("cache", "verify", only(folder).id[:3], "--cache", folder / "cache", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told == {
        "id": only(folder).id,
        "rows": 28,
        "whole": 28,
        "damaged": 0,
        "unreadable_parts": [],
        "drafts": [],
        "about": True,
        "sound": True,
    }


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_found_removed_and_computed_again(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, told, left = DAMAGE[kind]
    before = records(folder / "cache")
    damage(folder)

    assert brewer("cache", "verify", "--cache", folder / "cache") == 1
    assert capsys.readouterr().out == f"{only(folder).id[:12]}  {told}\n{ADVICE}"
    assert brewer("cache", "verify", "--cache", folder / "cache", "--repair") == 0
    assert capsys.readouterr().out == f"{only(folder).id[:12]}  {left} rows, all whole\n"
    assert brewer("cache", "build", folder / "config.json") == 0
    assert verify(only(folder)).rows == ROWS
    assert verify(only(folder)).sound
    assert {key: len(held or b"") for key, held in records(folder / "cache").items()} == {
        key: len(held or b"") for key, held in before.items()
    }


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_part_that_is_seen_at_once_is_listed(folder: Path, kind: str) -> None:
    DAMAGE[kind][0](folder)
    entry = only(folder)
    if kind in ("index", "header"):
        path = part_of(folder)
        assert (entry.state, entry.rows) == ("damaged", 0)
        assert entry.problems == (
            f"{path}: the index of this part of a teacher cache is damaged; its rows are computed again.",
        )


def test_about_json_is_checked_and_written_again_by_the_next_use(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = dict(only(folder).about)
    in_about(folder)
    entry = only(folder)
    assert (entry.state, entry.about, entry.rows) == ("damaged", {}, ROWS)
    assert entry.problems == (
        f"{entry.folder / 'about.json'}, which says what this teacher cache is of, is missing or damaged; the next run that uses "
        "the cache writes it again.",
    )
    assert brewer("cache", "ls", "--cache", folder / "cache") == 0
    assert re.search(r" unknown .+ damaged$", capsys.readouterr().out, re.M)
    assert brewer("cache", "show", entry.id, "--cache", folder / "cache") == 0
    capsys.readouterr()
    for arguments in ([], ["--repair"]):
        assert brewer("cache", "verify", *arguments, "--cache", folder / "cache") == 1
        assert capsys.readouterr().out == (
            f"{entry.id[:12]}  28 rows, all whole; about.json missing or DAMAGED\n"
            "about.json is written again by the next run that uses the cache.\n"
        )

    assert brewer("run", folder / "config.json", "--output", folder / "run") == 0
    again = dict(only(folder).about)
    assert {**again, "created": ""} == {**held, "created": ""}
    assert brewer("cache", "verify", "--cache", folder / "cache") == 0


def test_of_a_row_that_was_written_twice_the_later_record_counts(folder: Path) -> None:
    part = part_of(folder)
    later = part.with_name(f"000007-0-00000000{part.suffix}")
    shutil.copy(part, later)
    in_first, in_later = read_part(part), read_part(later)
    flipped(part, in_first.begins)
    assert (verify(only(folder)).rows, verify(only(folder)).damaged) == (ROWS, 0)
    flipped(later, in_later.begins)
    assert (verify(only(folder)).rows, verify(only(folder)).damaged) == (ROWS, 1)


def test_drafts_are_reported_and_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = part_of(folder).with_name(".000001-0-ab.safetensors.partial")
    draft.write_bytes(b"half")
    assert brewer("cache", "verify", "--cache", folder / "cache") == 0
    assert capsys.readouterr().out == f"{only(folder).id[:12]}  28 rows, all whole; 1 draft that a kill left\n"
    assert brewer("cache", "verify", "--repair", "--cache", folder / "cache") == 0
    assert not draft.exists()


# Removing, and builders that are alone


def test_caches_are_removed_by_id_or_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder / "cache"
    assert brewer("cache", "build", folder / "config.json", "--set", "cache.floats=float16") == 0
    capsys.readouterr()
    first, second = entries(root)
    assert brewer("cache", "rm", first.id[:12], "--cache", root) == 0
    assert re.fullmatch(rf"removed {first.id[:12]}, [\d.]+ kB\n", capsys.readouterr().out)
    assert [entry.id for entry in entries(root)] == [second.id]
    assert brewer("cache", "rm", "--all", "--yes", "--cache", root) == 0
    assert list((root / "teachers").iterdir()) == []
    assert brewer("cache", "rm", "--all", "--cache", root) == 0


@pytest.mark.parametrize("arguments", [[], ["abc", "--all"]])
def test_it_must_be_said_what_to_remove(folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("cache", "rm", *arguments, "--cache", folder / "cache") == 2
    assert said(capsys) == (
        "brewer: error: rm: name caches by their ids, which `brewer cache ls` lists, or take --all."
    )
    assert only(folder).rows == ROWS


def test_nothing_is_removed_or_repaired_while_it_is_built(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_record(folder)
    entry = only(folder)
    with FileLock(entry.folder / "lock"):
        assert only(folder).state == "building"
        for command in (["rm", entry.id], ["rm", "--all"], ["verify", "--repair"]):
            assert brewer("cache", *command, "--cache", folder / "cache") == 2
            assert said(capsys) == (
                f"brewer: error: the cache {entry.id[:12]} is being built now; wait until that is done, or stop it, and ask again."
            )
    assert only(folder).state == "whole"
    assert verify(only(folder)).damaged == 1


def test_a_cache_that_nothing_was_kept_in_is_empty(tmp_path: Path) -> None:
    (tmp_path / "cache" / "teachers" / "ab").mkdir(parents=True)
    assert (only(tmp_path).state, only(tmp_path).rows) == ("empty", 0)
    assert verify(only(tmp_path)).sound
    assert brewer("cache", "show", "a", "--cache", tmp_path / "cache") == 0


def test_a_second_builder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part_of(folder).unlink()
    with FileLock(only(folder).folder / "lock"):
        assert brewer("cache", "build", folder / "config.json") == 2
    assert said(capsys).splitlines()[-1] == (
        f"brewer: error: the cache {only(folder).id[:12]} of teacher 'teacher' is being built by another process now; wait until "
        "that is done, or stop it."
    )


# Building


def test_an_estimate_comes_first_and_alone_on_request(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(fresh, taught(cache={"path": "cache"}))
    assert brewer("cache", "build", config, "--estimate") == 0
    assert not (fresh / "cache" / "teachers").exists()
    captured = capsys.readouterr()
    told = re.fullmatch(
        r"checking data and models\ndistil: cache of teacher: 28 rows, ([\d.]+) kB, about [\de.-]+ s, in "
        rf"{fresh}/cache/teachers/(\w+)\n",
        captured.err,
    )
    assert told, captured.err
    assert captured.out == ""

    assert brewer("cache", "build", config, "--fidelity-rows", 0) == 0
    captured = capsys.readouterr()
    assert captured.out == f"distil: cache of teacher: {told[2][:12]} has all 28 rows\n"
    assert only(fresh).id == told[2]
    (laid,) = laid_out(only(fresh))
    assert float(told[1]) == pytest.approx((laid.size_bytes + 32 * ROWS) / 1000, rel=0.01)
    assert fidelity_of(only(fresh)) is None


def test_a_run_reads_what_was_built_and_asks_its_teacher_nothing(folder: Path) -> None:
    before = tree(only(folder).folder / "parts")
    assert brewer("run", folder / "config.json", "--output", folder / "cached") == 0
    assert tree(only(folder).folder / "parts") == before
    assert brewer("run", folder / "config.json", "--output", folder / "live", "--set", "cache=off") == 0
    ours, theirs = weights_in(folder / "cached" / "student"), weights_in(folder / "live" / "student")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


def test_building_again_builds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(only(folder).folder / "parts")
    assert brewer("cache", "build", folder / "config.json", "--fidelity-rows", 0) == 0
    assert capsys.readouterr().err == (
        f"checking data and models\ndistil: cache of teacher: all 28 rows are there, in {only(folder).folder}\n"
    )
    assert tree(only(folder).folder / "parts") == before


@pytest.mark.parametrize(
    "setting",
    [
        "stages.0.distillation.temperature=5",
        "stages.0.distillation.kd_loss_type=mse",
        "stages.0.distillation.hard_label_weight=0",
        "models.student.config.num_hidden_layers=2",
        "stages.0.training.batch_size=7",
    ],
)
def test_other_losses_students_and_batches_read_the_same_cache(folder: Path, setting: str) -> None:
    before = tree(only(folder).folder / "parts")
    assert brewer("run", folder / "config.json", "--output", folder / "run", "--set", setting) == 0
    assert tree(only(folder).folder / "parts") == before


@pytest.mark.parametrize(
    "setting", ["models.teacher.config.num_hidden_layers=3", "cache.floats=bfloat16", "precision=bf16"]
)
def test_another_teacher_format_or_precision_is_another_cache(folder: Path, setting: str) -> None:
    before = only(folder).id
    assert brewer("cache", "build", folder / "config.json", "--set", setting, "--fidelity-rows", 0) == 0
    (other,) = (entry for entry in entries(folder / "cache") if entry.id != before)
    assert other.rows == ROWS


def test_only_rows_that_are_not_there_are_computed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = records(folder / "cache")
    part = part_of(folder)
    damage = read_part(part)
    for row in (0, 5, 9):
        flipped(part, damage.begins + int(damage.places[row]))
    assert brewer("cache", "verify", "--repair", "--cache", folder / "cache") == 0
    (kept,) = records_in_parts(folder)
    assert brewer("cache", "build", folder / "config.json", "--fidelity-rows", 0) == 0
    assert "distil: cache of teacher: 3 of 28 rows are missing, " in capsys.readouterr().err
    assert sorted(map(len, records_in_parts(folder)), reverse=True) == [25, 3]
    again = records(folder / "cache")
    assert again.keys() == whole.keys()
    assert all(again[key] == whole[key] for key in kept)


def records_in_parts(folder: Path) -> list[set[bytes]]:
    paths = (only(folder).folder / "parts").glob("*.safetensors")
    return [{key.tobytes() for key in read_part(path).keys} for path in paths]


def test_a_teacher_that_the_run_trains_is_left_out(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = taught(
        cache={"path": "cache"},
        models={**taught()["models"], "other": bert(16, 1)},
        stages=[supervised(), distill(teachers=["teacher", "other"], strategy="multi_teacher")],
    )
    assert brewer("cache", "build", write_config(fresh, two), "--fidelity-rows", 0) == 0
    lines = said(capsys).splitlines()
    assert lines[:2] == [
        "checking data and models",
        "distil: no cache of teacher ahead, as the stage teacher trains it before; the run builds it",
    ]
    assert lines[2].startswith("distil: cache of other: 28 rows, ")
    assert only(fresh).rows == ROWS

    assert brewer("cache", "build", write_config(fresh, document(cache="cache"))) == 2
    assert said(capsys).splitlines()[-1] == (
        "brewer: error: nothing to build: the run trains every teacher before it asks it, and builds the caches itself."
    )


def test_each_distill_stage_has_its_caches_built(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stages read other layers, and set the model to them; the first is built as its run needs it all the same."""
    attention = {"feature": "attention", "layer_T": 1, "layer_S": 0, "loss": "attention_mse", "weight": 1}
    objective = {"kd_loss_type": "kl", "intermediate_matches": [attention]}
    stages = [distill(name="first", distillation=objective), distill(name="second", student="other")]
    two = taught(cache={"path": "cache"}, models={**taught()["models"], "other": bert(8, 1)}, stages=stages)
    config = write_config(fresh, two)
    assert brewer("cache", "build", config, "--stage", "second", "--fidelity-rows", 0) == 0
    assert only(fresh).about["reads"] == ["inputs_mask", "logits", "logits_mask"]
    assert brewer("cache", "build", config) == 0
    built = {tuple(entry.about["reads"]): entry.rows for entry in entries(fresh / "cache")}
    assert built == {
        ("inputs_mask", "logits", "logits_mask"): ROWS,
        ("attention[1]", "inputs_mask", "logits", "logits_mask"): ROWS,
    }
    before = sorted((fresh / "cache").rglob("*.safetensors"))
    assert brewer("run", config, "--output", fresh / "run") == 0
    assert sorted((fresh / "cache").rglob("*.safetensors")) == before

    capsys.readouterr()
    assert brewer("cache", "build", config, "--stage", "third") == 2
    assert said(capsys) == "brewer: error: --stage: the config has no distill stage 'third'; it has first, second."


PLUGIN = '''
"""An adaptor that says of no token whether it is padding."""

from brewer_core import hookimpl


def bare(batch, model_outputs):
    """Logits and hidden states, without masks."""
    return {"logits": model_outputs.logits, "hidden": model_outputs.hidden_states}


@hookimpl
def brewer_adaptors():
    """The adaptor."""
    return {"bare": bare}
'''


def test_what_cannot_be_built_ahead_is_refused(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fresh / "bare.py").write_text(PLUGIN)
    augmented = {"source": document()["data"]["films"]["source"], "augmentations": [{"name": "masking", "p": 0.3}]}
    cases: list[tuple[dict[str, Any], list[Any], str]] = [
        (taught(cache="off"), [], 'the cache is "off"'),
        (taught(cache={"path": "cache", "limit_gb": 1e-6}), [], "it would take 15 kB, and cache.limit_gb is 1e-06"),
        (taught(cache="cache", data={"films": augmented}), [], "its rows are augmented, and new in every pass"),
        (
            taught(cache="cache", stages=[{**taught()["stages"][0], "adaptors": {"teacher": "bare"}}]),
            ["--plugin", fresh / "bare.py"],
            "a feature that is read of it cannot be cut to a row's tokens, and is known again at one padded length alone; let its "
            "adaptor return `inputs_mask` and `logits_mask`",
        ),
    ]
    for config, arguments, reason in cases:
        assert brewer("cache", "build", write_config(fresh, config), *arguments) == 2
        assert said(capsys).splitlines()[-1] == (
            f"brewer: error: config: cache.path: teacher 'teacher' cannot be cached, as {reason}"
        )
        assert not list(fresh.rglob("teachers"))

    assert brewer("cache", "build", write_config(fresh, document(stages=[supervised()], cache="cache"))) == 2
    assert said(capsys) == (
        "brewer: error: nothing to build: the config has no distill stage, so no teacher is asked for anything."
    )


@pytest.mark.parametrize(
    ("path", "free", "more"),
    [
        ("cache", 10_000, ""),
        ("auto", 20_000, ", of which auto takes half at most; name it as `cache` to take all"),
    ],
)
def test_a_disk_without_the_room_is_refused_unless_the_rows_are_there(
    fresh: Path, path: str, free: int, more: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BREWER_CACHE", str(fresh / "cache"))
    config = write_config(fresh, taught(cache={"path": path}))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - free, free))
        assert brewer("cache", "build", config) == 2
        assert said(capsys).splitlines()[-1] == (
            "brewer: error: config: cache.path: teacher 'teacher' cannot be cached, as it would take 15 kB, and "
            f"{fresh}/cache has {free // 1000} kB free{more}"
        )
    assert brewer("cache", "build", config) == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 0))
    assert brewer("run", config, "--dry-run") == 0
    assert f"distil: cache of teacher: 15 kB for all rows, in {fresh}/cache\n" in capsys.readouterr().out


def test_rows_that_are_padded_before_are_refused(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("run", write_config(fresh, taught(cache="off")), "--output", fresh / "run") == 0
    student = fresh / "run" / "student"
    settings = json.loads((student / "tokenizer_config.json").read_text())
    (student / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    capsys.readouterr()
    left = taught(cache="cache", tokenizer={"from": str(student), "max_length": 16})
    assert brewer("cache", "build", write_config(fresh, left)) == 2
    assert said(capsys).splitlines()[-1] == (
        "brewer: error: config: cache.path: teacher 'teacher' cannot be cached, as its tokenizer pads before a row, which moves the "
        "row's tokens, so that each batch has rows of its own"
    )


# Interrupted, killed, full


def assembled(folder: Path, **changes: Any) -> Assembly:
    registry = default_registry()
    parsed = parse_run_config(taught(**{"cache": {"path": "cache"}, **changes}), "config.json", registry, [])
    return Assembly(parsed, folder, registry, torch.device("cpu"))


class Stopping(Reporter):
    """Asks a build to stop after so many rows, as a signal does."""

    def __init__(self, stop: StopRequest, rows: int) -> None:
        self.stop, self.rows = stop, rows

    def bar(self, title: str) -> Listener:
        reporter = self

        class Bar(Listener):
            def stepped(self, step: int) -> None:
                if step >= reporter.rows:
                    reporter.stop.ask(StopReason.TERMINATE)

        return Bar()


def test_what_was_computed_before_a_stop_is_kept(fresh: Path) -> None:
    stop = StopRequest()
    with pytest.raises(Stopped) as caught:
        build_caches(assembled(fresh), Stopping(stop, 8), stop)
    assert str(caught.value) == (
        "stopped by a signal to terminate after 8 of 28 rows, which are kept; the same command goes on"
    )
    assert caught.value.exit_status == 143
    assert only(fresh).rows == 8
    (built,) = build_caches(assembled(fresh), Reporter(), StopRequest())
    assert (built.estimate.rows, built.estimate.missing, only(fresh).rows) == (28, 20, ROWS)


SIGNALLING = """
import itertools, os, signal

from brewer_builtins.adaptors import TextClassification
from brewer_core import hookimpl

calls = itertools.count(1)


class Signalling(TextClassification):
    '''The same, but at its fifth call the process gets a signal to terminate.'''

    def __call__(self, batch, model_outputs):
        if next(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__call__(batch, model_outputs)


@hookimpl
def brewer_adaptors():
    return {"signalling": Signalling}
"""


def test_a_signal_lets_a_build_keep_what_it_has(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fresh / "signalling.py").write_text(SIGNALLING)
    stage = {**taught()["stages"][0], "adaptors": {"teacher": "signalling"}}
    config = write_config(fresh, taught(cache={"path": "cache"}, stages=[stage]))
    assert brewer("cache", "build", config, "--plugin", fresh / "signalling.py") == 143
    told = re.fullmatch(
        r"brewer: stopped by a signal to terminate after (\d+) of 28 rows, which are kept; the same command goes on",
        said(capsys).splitlines()[-1],
    )
    assert told
    assert only(fresh).rows == int(told[1]) > 0


KILLED = """
import os, signal, sys
from brewer_core.cli.main import execute
from brewer_core import files
from brewer_core.run import building

building.FLUSH_EVERY_S = -1
flush, count = files.flush, 0


def killing(path):
    global count
    count += "teachers" in path.parts and path.name.endswith(".partial")
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)


files.flush = killing
execute(["cache", "build", sys.argv[1]])
"""


def test_a_build_that_is_killed_inside_a_save_goes_on(fresh: Path, built: Path) -> None:
    config = write_config(fresh, taught(cache={"path": "cache"}))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(config), "4"], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    entry = only(fresh)
    assert (entry.rows, entry.parts, entry.state) == (8, 2, "whole")  # about.json was the first of the four
    assert verify(entry).sound
    assert len(verify(entry).drafts) == 1

    assert brewer("cache", "build", config) == 0
    assert only(fresh).rows == ROWS
    assert records(fresh / "cache").keys() == records(built / "cache").keys()


@pytest.mark.filterwarnings("default")
def test_a_cache_that_reaches_its_limit_on_the_way_is_an_error(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "FLUSH_EVERY_S", -1)  # each batch a part, whose headers are in no estimate
    config = write_config(fresh, taught(cache={"path": "cache", "limit_gb": 1.6e-5}))
    assert brewer("cache", "build", config) == 1
    assert said(capsys).splitlines()[-2:] == [
        f"brewer: warning: the teacher cache in {only(fresh).folder} keeps no more rows, as it has reached its limit of 16 kB; those "
        "that are not in it are computed each time.",
        "brewer: error: the cache of teacher 'teacher' is not complete: it keeps no more rows, as it has reached its limit of 16 kB. "
        "Make room, or raise cache.limit_gb, and the same command goes on.",
    ]
    assert 0 < only(fresh).rows < ROWS


# Several processes


def build_in_both(rank: int) -> int:
    """Build in this process, beside the other one."""
    return brewer("cache", "build", os.environ["BREWER_TEST_CONFIG"])


def test_two_processes_build_the_cache_of_one(fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWER_TEST_CONFIG", str(write_config(fresh, taught(cache={"path": "cache"}))))
    assert in_each(build_in_both, fresh) == [0, 0]
    (one,), two = entries(built / "cache"), only(fresh)
    assert (two.id, two.rows, two.parts, two.state) == (one.id, ROWS, 2, "whole")
    assert sorted(map(len, records_in_parts(fresh))) == [14, 14]
    ours, theirs = records(built / "cache"), records(fresh / "cache")
    assert {key: len(held or b"") for key, held in ours.items()} == {
        key: len(held or b"") for key, held in theirs.items()
    }
    assert two.about["identity"] == one.about["identity"]


# Fidelity


def test_an_exact_cache_differs_from_its_teacher_by_the_noise_of_other_batches(built: Path) -> None:
    measured = fidelity_of(only(built))
    assert measured is not None
    assert (measured["rows"], measured["temperature"], measured["stage"]) == (ROWS, 2.0, "distil")
    for error in measured["features"].values():
        assert error["relative"] < 1e-6
        assert error["largest"] < 1e-5
    assert measured["features"]["logits"]["kl_max"] < 1e-9
    assert measured["gradient"] < 1e-5
    assert set(measured["terms"]) == {"kd_loss", "hidden_hidden_mse_1_2", "hard_label_loss"}


def test_the_errors_of_a_rounded_cache_are_those_of_rounding(fresh: Path) -> None:
    """Against a plain loop over the rows, each by itself."""
    assembly = assembled(fresh, cache={"path": "cache", "floats": "bfloat16"})
    (built,) = build_caches(assembly, Reporter(), StopRequest(), fidelity_rows=10_000)
    assert built.fidelity is not None

    (stage,) = assembly.config.stages
    assert isinstance(stage, DistillStage)
    lesson = distill_lesson(assembly, stage, "stages[0]", assembly.model("student"))
    asked, make = lesson.asked["teacher"], collate(assembly.tokenizer)
    square = {"logits": [0.0, 0.0], "hidden": [0.0, 0.0]}
    divergences, largest = [], 0.0
    for number in range(ROWS):
        features = chosen(asked.teacher.features(make([asked.rows[number]]), asked.needs), asked.needs)
        rounded = CacheFormat("bfloat16").applied(features, rows_of(make([asked.rows[number]])))
        for name, sums in square.items():
            for live, kept in zip(features[name], rounded[name], strict=True):
                if live is not None:
                    sums[0] += float((kept.double() - live.double()).square().sum())
                    sums[1] += float(live.double().square().sum())
        largest = max(largest, float((rounded["logits"][0].double() - features["logits"][0].double()).abs().max()))
        p = (features["logits"][0].double() / 2).softmax(-1)[0]
        q = (rounded["logits"][0].double() / 2).softmax(-1)[0]
        divergences.append(sum(float(p[c] * (p[c] / q[c]).log()) for c in range(2)))

    found = built.fidelity.features
    for name, (difference, norm) in square.items():
        assert found[name].relative == pytest.approx((difference / norm) ** 0.5, rel=0.02)
    assert found["logits"].largest == pytest.approx(largest, rel=0.02)
    assert found["logits"].kl_mean == pytest.approx(sum(divergences) / ROWS, rel=0.05)
    assert found["logits"].kl_max == pytest.approx(max(divergences), rel=0.05)
    assert 1e-5 < built.fidelity.gradient < 0.1


def test_logits_of_which_some_are_kept_are_compared_by_the_terms_that_read_them(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = taught(
        cache={"path": "cache", "top_k": 1}, task={"kind": "text_classification", "labels": ["n", "p", "other"]}
    )
    config = write_config(fresh, some)
    assert brewer("cache", "build", config) == 0
    measured = fidelity_of(only(fresh))
    assert measured is not None
    assert set(measured["features"]) == {"hidden"}
    live, kept = measured["terms"]["kd_loss"]
    assert live != kept
    assert measured["terms"]["hard_label_loss"][0] == measured["terms"]["hard_label_loss"][1]
    assert 0 < measured["gradient"] < 1
    assert re.search(rf"^kd_loss +{live:.6g} +{kept:.6g}$", capsys.readouterr().out, re.M)

    before = tree(only(fresh).folder / "parts")
    assert brewer("run", config, "--output", fresh / "run") == 0
    assert tree(only(fresh).folder / "parts") == before


# The plan


def test_the_plan_of_a_run_tells_which_teachers_are_cached(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("run", write_config(fresh, taught(cache="cache")), "--dry-run") == 0
    assert f"distil: cache of teacher: 15 kB for all rows, in {fresh}/cache\n" in capsys.readouterr().out
    assert brewer("run", write_config(fresh, taught(cache="off")), "--dry-run") == 0
    assert 'distil: no cache of teacher, as the cache is "off"\n' in capsys.readouterr().out
    assert not (fresh / "cache/teachers").exists()
