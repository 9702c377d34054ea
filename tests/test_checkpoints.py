"""Checkpoints and files on disk: given back bit for bit, whole at every instant, refused where they are damaged."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from brewer_core.checkpoints import Checkpoints, save_state_dict
from brewer_core.errors import DataError, SaveError
from brewer_core.files import findable, folder_written_whole, remove_whole, sha256_of, write_whole
from small_disk import run_on_a_small_disk


def same(ours: Any, theirs: Any) -> bool:
    """Whether two nested values are equal bit for bit, in types and order as well."""
    if isinstance(theirs, Tensor):
        return (
            isinstance(ours, Tensor)
            and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            and ours.contiguous().flatten().view(torch.uint8).equal(theirs.contiguous().flatten().view(torch.uint8))
        )
    if isinstance(theirs, dict):
        return (
            type(ours) is type(theirs) and list(ours) == list(theirs) and all(same(ours[k], theirs[k]) for k in theirs)
        )
    if isinstance(theirs, (list, tuple)):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def whole_state() -> dict[str, Any]:
    model, optimizer = trained()
    return {"learner": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Round trips


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    bit_generator = numpy.random.default_rng(5).bit_generator.state
    state = {
        **whole_state(),
        "scheduler": None,
        "random": {
            "python": random.Random(3).getstate(),
            "torch": torch.Generator().manual_seed(4).get_state(),
            "numpy": bit_generator,
        },
        "big": [2**127 - 1, -(2**1000), 0.1, float("inf"), True, "ü"],
        "nested": {"a": {"b": [torch.arange(3), (torch.ones(2),)]}},
        "empty": {},
    }
    Checkpoints(tmp_path).save(3, state)
    loaded = Checkpoints(tmp_path).load(3)
    assert same(loaded, state)
    assert loaded["random"]["numpy"] == bit_generator
    assert {path.name for path in (tmp_path / "step-3").iterdir()} == {
        "checksums.json",
        "learner.safetensors",
        "random.safetensors",
        "state.pt",
    }


def test_the_metadata_of_a_modules_state_come_back(tmp_path: Path) -> None:
    state = trained()[0].state_dict()
    Checkpoints(tmp_path).save(1, {"learner": state})
    loaded = Checkpoints(tmp_path).load(1)["learner"]
    assert type(loaded) is OrderedDict
    assert vars(loaded)["_metadata"] == vars(state)["_metadata"]


TENSORS = {
    "zero_dimensions": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "another_empty": torch.zeros(0),
    "half": torch.randn(4, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "double": torch.tensor([float("nan"), -0.0, 5e-324], dtype=torch.float64),
    "int": torch.tensor([-(2**63), 2**63 - 1]),
    "bool": torch.tensor([True, False, True]),
    "turned": torch.arange(6.0).view(2, 3).t(),
    "part": torch.arange(6.0)[2:4],
    "wide": torch.ones(1).expand(4),
    "complex": torch.tensor([1 + 2j]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_every_kind_of_tensor_comes_back(name: str, tmp_path: Path) -> None:
    state = {"entry": {name: TENSORS[name], "other": torch.ones(2)}}
    Checkpoints(tmp_path).save(1, state)
    assert same(Checkpoints(tmp_path).load(1), state)


def test_what_is_no_plain_tensor_keeps_its_place_among_the_tensors(tmp_path: Path) -> None:
    entry = {"a": torch.ones(1), "b._extra_state": {"scale": 2.0}, "c": None, 4: torch.ones(2), "d": torch.zeros(1)}
    Checkpoints(tmp_path).save(1, {"learner": entry, "../out": {"a": torch.ones(1)}})
    assert same(Checkpoints(tmp_path).load(1), {"learner": entry, "../out": {"a": torch.ones(1)}})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_tied_weights_are_stored_once_and_come_back_under_both_names(tmp_path: Path) -> None:
    tied = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    file = Checkpoints(tmp_path).save(1, {"learner": {"embedding": tied, "head": tied, "more": torch.ones(1)}})
    assert (file / "learner.safetensors").stat().st_size < 1.5 * tied.nbytes
    loaded = Checkpoints(tmp_path).load(1)["learner"]
    assert list(loaded) == ["embedding", "head", "more"]
    assert torch.equal(loaded["embedding"], tied)
    assert loaded["head"].data_ptr() == loaded["embedding"].data_ptr()


def test_tensors_that_share_a_part_of_their_memory_come_back_apart(tmp_path: Path) -> None:
    flat = torch.arange(10.0)
    state = {"learner": {"all": flat, "front": flat[:6], "back": flat[4:], "view": flat.view(2, 5)}}
    Checkpoints(tmp_path).save(1, state)
    assert same(Checkpoints(tmp_path).load(1), state)


def test_numbers_of_numpy_come_back_as_pythons(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, {"optimizer": {"param_groups": [{"lr": numpy.float64(0.1), "n": (numpy.int64(3),)}]}})
    assert same(Checkpoints(tmp_path).load(1), {"optimizer": {"param_groups": [{"lr": 0.1, "n": (3,)}]}})


def test_what_could_not_be_read_back_is_told_when_it_is_saved(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, {"step": 1})
    with pytest.raises(SaveError) as caught:
        kept.save(2, {"step": 2, "optimizer": {"state": {0: OrderedDict(a=numpy.random.default_rng(0))}}})
    assert str(caught.value).startswith(
        f"checkpoint of step 2 could not be written to {tmp_path}: its entry `optimizer` holds numpy.random"
    )
    assert str(caught.value).endswith(
        ", which is no tensor and no plain value; keep that out of its state_dict(); the checkpoints before it are kept."
    )
    with pytest.raises(
        SaveError, match=r"its entry `strategy` cannot be saved \(.*lambda.*\); keep that out of its state"
    ):
        kept.save(2, {"step": 2, "strategy": {"by": lambda: 0}})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_more_files_may_be_written_and_are_verified_with_the_others(tmp_path: Path) -> None:
    def shards(folder: Path) -> None:
        (folder / "shards").mkdir()
        (folder / "shards/0.bin").write_bytes(b"0")

    kept = Checkpoints(tmp_path)
    kept.save(1, {"step": 1}, write_more=shards)
    assert kept.load(1) == {"step": 1}
    (tmp_path / "step-1/shards/0.bin").write_bytes(b"1")
    with pytest.raises(DataError, match=r"shards/0\.bin cannot be read: its content is not what was written"):
        kept.load(1)


# Damage


FILES = ["learner.safetensors", "state.pt", "checksums.json"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two checkpoints, of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("good")
    kept = Checkpoints(folder)
    for step in (1, 2):
        kept.save(step, {**whole_state(), "step": step})
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "checkpoints"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_noticed_and_the_checkpoint_before_is_taken(name: str, left: float, folder: Path) -> None:
    file = folder / "step-2" / name
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    with pytest.raises(DataError, match=rf"^checkpoint {file} cannot be read: .*; take an earlier one\.$"):
        Checkpoints(folder).load(2)
    with pytest.warns(UserWarning, match="is damaged") as caught:
        state = Checkpoints(folder).newest()
    assert state is not None
    assert state["step"] == 1
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith(f"checkpoint {folder / 'step-2'} is damaged ({name}: ")
    assert text.endswith("); the one of step 1 before it is used.")


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_is_noticed(name: str, place: int, folder: Path) -> None:
    file = folder / "step-2" / name
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError) as caught:
        Checkpoints(folder).load(2)
    assert str(caught.value) == (
        f"checkpoint {file} cannot be read: its content is not what was written, by its SHA-256; take an earlier one."
    )


@pytest.mark.parametrize("name", FILES[:2])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / "step-2" / name).unlink()
    with pytest.raises(DataError) as caught:
        Checkpoints(folder).load(2)
    assert (
        str(caught.value)
        == f"checkpoint {folder / 'step-2' / name} cannot be read: it is missing; take an earlier one."
    )


def test_a_checkpoint_without_checksums_is_not_read(folder: Path) -> None:
    (folder / "step-2/checksums.json").unlink()
    with pytest.raises(DataError) as caught:
        Checkpoints(folder).load(2)
    assert str(caught.value) == (
        f"checkpoint {folder}/step-2/checksums.json cannot be read: it is missing, and a checkpoint without it, as brewer 0.1.0 "
        "wrote them, is not verified; take an earlier one."
    )


def test_a_step_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"step-7/checksums\.json cannot be read: it is missing; take an earlier one\.$"
    ):
        Checkpoints(folder).load(7)


@pytest.mark.parametrize("text", ["[]", '{"state.pt": 1}', '{"state.pt": {"bytes": "x", "sha256": ""}}', "\xff", "{}"])
def test_checksums_that_are_none_are_damage(text: str, folder: Path) -> None:
    (folder / "step-2/checksums.json").write_bytes(text.encode("latin-1"))
    (folder / "step-2/state.pt").unlink()
    with pytest.raises(DataError, match="cannot be read: "):
        Checkpoints(folder).load(2)


def test_where_no_checkpoint_is_whole_there_is_no_newest(folder: Path) -> None:
    for step in (1, 2):
        (folder / f"step-{step}/state.pt").unlink()
    with pytest.warns(
        UserWarning, match=r"step-[12] is damaged \(state.pt: it is missing\); no whole one is before it\.$"
    ) as all_:
        assert Checkpoints(folder).newest() is None
    assert len(all_) == 2


def test_the_newest_is_that_of_the_highest_step(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest() is None
    kept = Checkpoints(tmp_path, keep_last=3)
    for step in (9, 10, 2):
        kept.save(step, {"step": step})
    assert Checkpoints(tmp_path).newest() == {"step": 10}


# Kills and failures


def test_a_draft_of_a_killed_save_is_no_checkpoint_and_goes_with_the_next_save(folder: Path) -> None:
    (folder / "step-2").rename(folder / ".step-2.partial")
    kept = Checkpoints(folder)
    assert kept.steps() == [1]
    assert (kept.newest() or {})["step"] == 1
    kept.save(3, {"step": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["step-1", "step-3"]


def test_a_kill_between_the_renames_of_a_replacement_leaves_the_former_one(folder: Path) -> None:
    (folder / "step-2").rename(folder / "step-2.replaced")
    shutil.copytree(folder / "step-1", folder / ".step-2.partial")
    kept = Checkpoints(folder)
    assert kept.steps() == [1, 2]
    assert (kept.newest() or {})["step"] == 2
    kept.save(2, {"step": 2, "again": True})
    assert kept.load(2) == {"step": 2, "again": True}
    assert sorted(path.name for path in folder.iterdir()) == ["step-1", "step-2"]


def test_a_kill_after_the_renames_of_a_replacement_leaves_the_new_one(folder: Path) -> None:
    shutil.copytree(folder / "step-1", folder / "step-2.replaced")
    kept = Checkpoints(folder, keep_last=1)
    assert kept.steps() == [1, 2]
    assert kept.load(2)["step"] == 2
    kept.save(3, {"step": 3})
    assert [path.name for path in folder.iterdir()] == ["step-3"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("no storage"), KeyboardInterrupt()])
def test_a_save_that_fails_changes_nothing(error: BaseException, folder: Path) -> None:
    def fail(draft: Path) -> None:
        assert (draft / "state.pt").exists()
        raise error

    before = contents(folder)
    for step in (2, 3):
        with pytest.raises((SaveError, KeyboardInterrupt)):
            Checkpoints(folder, keep_last=1).save(step, {"step": step}, write_more=fail)
    assert contents(folder) == before


def test_an_error_of_the_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(SaveError) as caught:
        Checkpoints(tmp_path).save(40, {"step": 40}, write_more=fail)
    assert str(caught.value) == (
        f"checkpoint of step 40 could not be written to {tmp_path}: input/output error; the checkpoints before it are kept. "
        "Take the run up again with --resume."
    )
    assert caught.value.exit_status == 1


def test_a_folder_that_cannot_be_made_is_told_likewise(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match=r"could not be written to .*: not a directory; "):
        Checkpoints(tmp_path / "file").save(1, {"step": 1})


@pytest.fixture
def files_of_100_kb() -> Iterator[None]:
    """No file may be longer than 100 kB; what it would take in all is an error of the disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("files_of_100_kb")
@pytest.mark.parametrize(
    "entry", [{"weight": torch.zeros(100_000)}, [torch.zeros(100_000)]], ids=["safetensors", "torch"]
)
def test_a_file_that_the_disk_does_not_take_is_told_whoever_writes_it(entry: Any, tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=1)
    kept.save(1, {"step": 1})
    with pytest.raises(SaveError) as caught:
        kept.save(2, {"entry": entry})
    assert str(caught.value) == (
        f"checkpoint of step 2 could not be written to {tmp_path}: file too large; the checkpoints before it are kept. "
        "Take the run up again with --resume."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert kept.load(1) == {"step": 1}


@pytest.mark.usefixtures("files_of_100_kb")
def test_a_state_dict_that_the_disk_does_not_take_leaves_the_former_one(tmp_path: Path) -> None:
    file = tmp_path / "gs1.pkl"
    save_state_dict({"weight": torch.ones(2)}, file)
    with pytest.raises(SaveError) as caught:
        save_state_dict({"weight": torch.ones(100_000)}, file)
    assert (
        str(caught.value) == f"the state dict {file} could not be written: file too large; the file before it is kept."
    )
    assert torch.load(file, weights_only=True)["weight"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["gs1.pkl"]


ON_A_SMALL_DISK = """
import sys, torch
from pathlib import Path
from brewer_core.checkpoints import Checkpoints
from brewer_core.errors import SaveError

kept = Checkpoints(Path(sys.argv[1]))
for step in (1, 2):
    kept.save(step, {"learner": {"weight": torch.full((50_000,), float(step))}})
for entry in ({"weight": torch.zeros(500_000)}, [torch.zeros(500_000)]):
    try:
        kept.save(3, {"entry": entry})
    except SaveError as error:
        print(error)
print(kept.steps(), float(kept.newest()["learner"]["weight"].mean()), len(list(kept.folder.iterdir())))
"""


def test_a_full_disk_keeps_the_checkpoints_before_and_says_what_is_needed(tmp_path: Path) -> None:
    done = run_on_a_small_disk(
        [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path / "kept")], tmp_path, "1000k", timeout_s=100
    )
    assert done.returncode == 0, done.stderr
    *errors, last = done.stdout.splitlines()
    assert [error.replace("0.6 MB are", "N MB are") for error in errors] == 2 * [
        f"checkpoint of step 3 could not be written to {tmp_path}/kept: no space left on device (needs 2.0 MB, N MB are free); "
        "the checkpoints before it are kept. Free some space and take the run up again with --resume."
    ]
    assert last == "[1, 2] 2.0 2"


# What is kept


def test_checkpoints_keep_the_latest_and_the_pinned_one(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        kept.save(step, {"step": step})
    assert kept.steps() == [2, 3]
    kept.pin(2)
    for step in (4, 5, 10):
        kept.save(step, {"step": step})
    assert kept.steps() == [2, 5, 10]
    assert [kept.load(step) for step in kept.steps()] == [{"step": 2}, {"step": 5}, {"step": 10}]
    kept.pin(10)
    assert kept.steps() == [5, 10]


def test_two_checkpoints_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save(step, {"step": step})
    assert kept.steps() == [2, 3]


def test_checkpoints_of_a_longer_training_before_do_not_push_out_the_new_ones(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(100, {"step": 100})
    kept = Checkpoints(tmp_path, keep_last=1)
    kept.save(1, {"step": 1})
    assert kept.load(1) == {"step": 1}
    assert kept.steps() == [1]


def test_later_steps_of_a_training_before_do_not_pass_for_the_newest(tmp_path: Path) -> None:
    before = Checkpoints(tmp_path)
    for step in (1, 100):
        before.save(step, {"step": step})
    kept = Checkpoints(tmp_path)
    kept.save(2, {"step": 2})
    assert kept.steps() == [1, 2]
    assert Checkpoints(tmp_path).newest() == {"step": 2}


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(3, {"loss": 2.0, "learner": {"weight": torch.ones(1)}})
    kept.save(3, {"loss": 1.0})
    assert kept.load(3) == {"loss": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_a_checkpoint_on_another_version_is_read_with_a_warning(tmp_path: Path) -> None:
    Checkpoints(tmp_path, made_with={"brewer-core": "1"}).save(1, {"step": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(tmp_path, made_with={"brewer-core": "1"}).load(1) == {"step": 1}
    with pytest.warns(
        UserWarning, match=r"step-1 was made with brewer-core 1, and 2 is installed; results may differ\.$"
    ):
        assert Checkpoints(tmp_path, made_with={"brewer-core": "2"}).newest() == {"step": 1}


# Files and folders


def test_a_file_is_there_in_the_former_or_the_new_state(tmp_path: Path) -> None:
    file = tmp_path / "made/file"
    write_whole(file, lambda draft: draft.write_text("first"))

    def write_half(draft: Path) -> None:
        draft.write_text("sec")
        assert file.read_text() == "first"
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_whole(file, write_half)
    assert contents(tmp_path) == {"made/file": b"first"}
    write_whole(file, lambda draft: draft.write_text("second"))
    assert contents(tmp_path) == {"made/file": b"second"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_is_full_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("first")
    with pytest.raises(OSError, match="No space left on device"):
        write_whole(file, lambda _: Path("/dev/full").write_text("second"))
    assert contents(tmp_path) == {"file": b"first"}


def test_a_draft_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".file.partial").symlink_to(precious)
    write_whole(tmp_path / "file", lambda draft: draft.write_text("new"))
    assert precious.read_text() == "kept"


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("first", "second"):
        with folder_written_whole(target) as draft:
            (draft / "deep").mkdir()
            (draft / "deep/file").write_text(text)
            assert draft.name == ".model.partial"
            assert contents(target) == ({} if text == "first" else {"deep/file": b"first"})
        assert contents(tmp_path) == {"model/deep/file": text.encode()}


def test_a_folder_that_could_not_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "file").write_text("first")

    def write_half() -> None:
        with folder_written_whole(target) as draft:
            (draft / "file").write_text("sec")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert contents(tmp_path) == {"model/file": b"first"}


def test_a_folder_that_stands_aside_is_found_where_the_new_one_is_not_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    assert findable(target) == target
    (tmp_path / "model.replaced").mkdir()
    assert findable(target) == tmp_path / "model.replaced"
    target.mkdir()
    assert findable(target) == target
    remove_whole(target)
    assert list(tmp_path.iterdir()) == []


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_checksums_name_every_other_file(folder: Path) -> None:
    sums = json.loads((folder / "step-2/checksums.json").read_text())
    assert sums == {
        name: {"sha256": sha256_of(folder / "step-2" / name), "bytes": (folder / "step-2" / name).stat().st_size}
        for name in ("learner.safetensors", "state.pt")
    }
