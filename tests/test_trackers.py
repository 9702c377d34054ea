"""The built-in trackers: what a kill leaves of their files, and what is there once the training was taken up again."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from brewer_builtins.trackers import JsonLines, TensorBoard
from brewer_core.errors import SaveError
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.protocols import ResumableTracker, Tracker

KILLED = """
import os, signal, sys
from pathlib import Path
from brewer_core import default_registry
tracker = default_registry().bind("tracker", sys.argv[1])(Path(sys.argv[2]), "distil")
for step in range(1, 7):
    tracker.log(step, {"total_loss": step / 4, "eval/accuracy": step / 8})
    if step == 4:
        tracker.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(name: str, folder: Path) -> None:
    """A training that was killed after six steps, with a checkpoint at the fourth."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, name, str(folder)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL


def go_on(tracker: ResumableTracker, step: int, last: int) -> None:
    tracker.resume(step)
    for each in range(step + 1, last + 1):
        tracker.log(each, {"total_loss": each / 4, "eval/accuracy": each / 8})
    tracker.close()


# Both


@pytest.mark.parametrize("tracker", [JsonLines, TensorBoard])
def test_a_built_in_tracker_can_be_taken_up(tmp_path, tracker):
    made = tracker(tmp_path, "distil")
    assert isinstance(made, ResumableTracker)
    made.close()


class Heard:
    """A tracker that remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def log(self, step, values):
        self.told.append(("log", step, dict(values)))

    def close(self):
        self.told.append(("close",))


class HeardAgain(Heard):
    def flush(self):
        self.told.append(("flush",))

    def resume(self, step):
        self.told.append(("resume", step))


def drive(listener: Listener) -> None:
    listener.begin(2)
    listener.resumed(1)
    listener.logged(2, {"total_loss": 0.5})
    listener.saving(2)
    listener.checkpoint(2)
    listener.end()


def test_a_tracker_that_can_be_taken_up_hears_of_checkpoints():
    tracker = HeardAgain()
    drive(TrackerListener(tracker))
    assert tracker.told == [("resume", 1), ("log", 2, {"total_loss": 0.5}), ("flush",), ("close",)]


def test_another_tracker_hears_of_figures_alone():
    tracker = Heard()
    assert isinstance(tracker, Tracker)
    assert not isinstance(tracker, ResumableTracker)
    drive(TrackerListener(tracker))
    assert tracker.told == [("log", 2, {"total_loss": 0.5}), ("close",)]


def test_a_listener_need_not_hear_of_it():
    drive(Listener())


# metrics.jsonl


def lines(folder: Path) -> list[tuple[str, int]]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"]) for line in read]


def test_each_step_is_one_line_after_a_kill(tmp_path):
    killed("jsonl", tmp_path)
    assert lines(tmp_path) == [("distil", step) for step in range(1, 7)]
    go_on(JsonLines(tmp_path, "distil"), 4, 8)
    assert lines(tmp_path) == [("distil", step) for step in range(1, 9)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_of_other_stages_stay_byte_for_byte(tmp_path):
    others = '{"stage": "first",  "step": 9, "é": NaN}\n{"stage":"baselines/labels_only","step":7}\n'
    own = '{"stage": "distil", "step": 1}\n'
    text = (
        others + own + '{"stage": "distil", "step": 2}\n' + others + '{"stage": "distil", "step": 1, "eval/f1": 1.0}\n'
    )
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    tracker = JsonLines(tmp_path, "distil")
    tracker.resume(1)
    tracker.close()
    left = others + own + others + '{"stage": "distil", "step": 1, "eval/f1": 1.0}\n'
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == left


@pytest.mark.parametrize("half", ['{"stage": "distil", "st', '{"stage": "first', "4", "\0\0\0", "\udcff"])
def test_what_a_kill_left_of_a_line_is_dropped(tmp_path, half):
    whole = '{"stage": "first", "step": 1}\n'
    text = whole + half + "\n" + whole + half
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    go_on(JsonLines(tmp_path, "distil"), 0, 1)
    assert lines(tmp_path) == [("first", 1), ("first", 1), ("distil", 1)]


def test_a_last_line_that_lacks_only_its_end_stays(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "distil", "step": 1}')
    go_on(JsonLines(tmp_path, "distil"), 1, 2)
    assert lines(tmp_path) == [("distil", 1), ("distil", 2)]


def test_a_run_that_starts_again_from_the_beginning_has_no_line_twice(tmp_path):
    killed("jsonl", tmp_path)
    go_on(JsonLines(tmp_path, "distil"), 0, 3)
    assert lines(tmp_path) == [("distil", 1), ("distil", 2), ("distil", 3)]


def test_flushed_lines_are_on_the_disk(tmp_path):
    tracker = JsonLines(tmp_path, "distil")
    tracker.log(1, {})
    tracker.flush()
    assert lines(tmp_path) == [("distil", 1)]
    tracker.close()


# TensorBoard


def points(folder: Path) -> Counter[tuple[str, int, float]]:
    """What a plain loop over every event file sees."""
    events = [event for file in sorted(folder.glob("*tfevents*")) for event in EventFileLoader(str(file)).Load()]
    return Counter(
        (value.tag, event.step, value.tensor.float_val[0]) for event in events for value in event.summary.value
    )


def accumulated(folder: Path) -> Counter[tuple[str, int, float]]:
    """What TensorBoard sees."""
    read = EventAccumulator(str(folder)).Reload()
    return Counter((tag, each.step, each.value) for tag in read.Tags()["scalars"] for each in read.Scalars(tag))


def curves(last: int) -> Counter[tuple[str, int, float]]:
    steps = range(1, last + 1)
    return Counter(
        {(tag, step, step / over): 1 for step in steps for tag, over in (("total_loss", 4), ("eval/accuracy", 8))}
    )


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*tfevents*"))


def a_training(folder: Path, last: int) -> Path:
    """The folder of the curves of a training that ended."""
    go_on(TensorBoard(folder, "distil"), 0, last)
    return folder / "stages" / "distil" / "tensorboard"


def test_a_reader_sees_each_point_once_after_a_kill(tmp_path):
    killed("tensorboard", tmp_path)
    folder = tmp_path / "stages" / "distil" / "tensorboard"
    assert points(folder) >= curves(4)  # those before the checkpoint were on the disk
    go_on(TensorBoard(tmp_path, "distil"), 4, 8)
    assert points(folder) == accumulated(folder) == curves(8)


def test_a_reader_sees_each_point_once_after_several_resumes(tmp_path):
    folder = a_training(tmp_path, 6)
    for step, last in ((4, 9), (8, 10), (2, 12)):
        go_on(TensorBoard(tmp_path, "distil"), step, last)
        assert points(folder) == accumulated(folder) == curves(last)


@pytest.mark.parametrize("cut", [1, 3, 7, 15, 40])
def test_a_record_that_was_cut_in_half_hides_nothing(tmp_path, cut):
    folder = a_training(tmp_path, 6)
    (file,) = event_files(folder)
    os.truncate(file, file.stat().st_size - cut)
    go_on(TensorBoard(tmp_path, "distil"), 5, 8)
    assert points(folder) == accumulated(folder) == curves(8)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\x18\0\0"])
def test_a_file_that_was_hardly_begun_is_dropped(tmp_path, content):
    folder = a_training(tmp_path, 2)
    (folder / "events.out.tfevents.0000000001.a.1.0").write_bytes(content)
    go_on(TensorBoard(tmp_path, "distil"), 2, 3)
    assert points(folder) == accumulated(folder) == curves(3)
    assert len(event_files(folder)) == 2


def test_records_that_stay_are_the_same_bytes(tmp_path):
    folder = a_training(tmp_path, 6)
    (file,) = event_files(folder)
    before = file.read_bytes()
    go_on(TensorBoard(tmp_path, "distil"), 4, 4)
    left = file.read_bytes()
    assert before.startswith(left)
    assert 0 < len(left) < len(before)


def test_of_several_points_of_a_step_the_last_stays(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for value in (1.0, 2.0):
            writer.add_scalar("loss", value, 3)
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("other", 4.0, 3)
    go_on(TensorBoard(tmp_path, ""), 3, 3)
    assert points(tmp_path) == Counter({("loss", 3, 2.0): 1, ("other", 3, 4.0): 1})


def test_what_is_no_point_stays(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("note", "text", 1)
        writer.add_custom_scalars({"a": {"b": ["Multiline", ["loss"]]}})
    go_on(TensorBoard(tmp_path, ""), 1, 1)
    read = EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"]
    assert set(read) == {"note/text_summary", "custom_scalars__config__"}


def test_a_training_that_starts_again_from_the_beginning_has_no_point_twice(tmp_path):
    folder = a_training(tmp_path, 6)
    go_on(TensorBoard(tmp_path, "distil"), 0, 3)
    assert points(folder) == accumulated(folder) == curves(3)


def test_curves_of_other_stages_are_left_as_they_are(tmp_path):
    go_on(TensorBoard(tmp_path, "first"), 0, 6)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*tfevents*")}
    go_on(TensorBoard(tmp_path, "distil"), 2, 3)
    assert {file: file.read_bytes() for file in before} == before


def test_what_a_resume_that_was_killed_left_is_dropped(tmp_path):
    folder = a_training(tmp_path, 2)
    (folder / ".events.partial").write_bytes(b"half")
    go_on(TensorBoard(tmp_path, "distil"), 2, 3)
    assert not (folder / ".events.partial").exists()
    assert points(folder) == curves(3)


class OnAFullDisk:
    """A tracker that the disk takes nothing from."""

    def log(self, step: int, values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        self.log(0, {})

    def resume(self, step: int) -> None:
        self.log(step, {})

    def close(self) -> None:
        self.log(0, {})


@pytest.mark.parametrize("event", ["logged", "saving", "resumed", "end"])
def test_a_full_disk_is_told_in_a_sentence(event: str) -> None:
    arguments = {"logged": (1, {"total_loss": 1.0}), "saving": (1,), "resumed": (1,), "end": ()}[event]
    with pytest.raises(SaveError) as caught:
        getattr(TrackerListener(OnAFullDisk()), event)(*arguments)
    assert str(caught.value) == (
        "figures could not be written by OnAFullDisk: no space left on device; what was saved before is kept. Mend that, and "
        "take the run up again with --resume."
    )
