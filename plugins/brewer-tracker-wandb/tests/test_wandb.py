"""wandb: what is logged is in the offline file step by step, runs do not mix, nothing else is touched, and the errors' texts."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from brewer_core import RequestError, default_registry
from brewer_core.protocols import ResumableTracker
from brewer_tracker_wandb import WeightsAndBiases, brewer_trackers
from offline_runs import OfflineRun, finished_runs, offline_runs


@pytest.fixture(autouse=True)
def only_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the person who runs the tests, and no files in their home."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))


def the_run(folder: Path) -> OfflineRun:
    (run,) = finished_runs(folder)
    return run


# Figures


def test_figures_are_in_the_offline_file_step_by_step(tmp_path: Path) -> None:
    tracker = WeightsAndBiases(tmp_path / "films", "distil", project="demo", tags=("a", "b"))
    for step in (1, 2, 5):
        tracker.log(step, {"total_loss": step / 4, "kd_loss/topic": 2.0 * step})
    tracker.close()
    run = the_run(tmp_path / "films" / "stages" / "distil")
    assert run.rows == {step: {"total_loss": step / 4, "kd_loss/topic": 2.0 * step} for step in (1, 2, 5)}
    assert (run.name, run.group, run.project, run.tags) == ("films/distil", "films", "demo", ("a", "b"))
    assert run.finished


def test_two_logs_of_one_step_are_one_row(tmp_path: Path) -> None:
    tracker = WeightsAndBiases(tmp_path, "distil")
    tracker.log(0, {"eval/accuracy": 0.25})
    tracker.log(3, {"eval/accuracy": 0.5})
    tracker.log(3, {"total_loss": 1.5})
    tracker.log(3, {"eval/f1": 0.75})
    tracker.log(4, {"total_loss": 1.25})
    tracker.close()
    assert the_run(tmp_path / "stages" / "distil").rows == {
        0: {"eval/accuracy": 0.25},
        3: {"eval/accuracy": 0.5, "total_loss": 1.5, "eval/f1": 0.75},
        4: {"total_loss": 1.25},
    }


def test_figures_of_many_steps_go_on_over_the_blocks_of_the_file(tmp_path: Path) -> None:
    tracker = WeightsAndBiases(tmp_path, "distil")
    for step in range(300):
        tracker.log(step, {f"figure {i}": float(step + i) for i in range(5)})
    tracker.close()
    rows = the_run(tmp_path / "stages" / "distil").rows
    assert rows == {step: {f"figure {i}": step + i for i in range(5)} for step in range(300)}


def test_a_figure_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    tracker = WeightsAndBiases(tmp_path, "distil")
    tracker.log(1, {"total_loss": math.inf, "norm": math.nan})
    tracker.close()
    row = the_run(tmp_path / "stages" / "distil").rows[1]
    assert float(row["total_loss"]) == math.inf
    assert math.isnan(float(row["norm"]))


# Runs


@pytest.mark.parametrize(
    ("stage", "folder", "name"),
    [
        ("distil", "stages/distil", "films/distil"),
        ("baselines/labels_only", "baselines/labels_only", "films/baselines/labels_only"),
        ("", "", "films"),
    ],
)
def test_files_are_in_the_folder_of_the_stage(stage: str, folder: str, name: str, tmp_path: Path) -> None:
    tracker = WeightsAndBiases(tmp_path / "films", stage, group="ours")
    tracker.log(1, {"total_loss": 1.0})
    tracker.close()
    run = the_run(tmp_path / "films" / folder)
    assert (run.name, run.group, run.rows) == (name, "ours", {1: {"total_loss": 1}})
    assert [path.name for path in (tmp_path / "films" / folder).iterdir()] == ["wandb"]


def test_stages_one_after_the_other_and_trackers_side_by_side_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    others = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, console="off"))
    first = WeightsAndBiases(tmp_path, "first")
    first.log(1, {"total_loss": 1.0})
    second = WeightsAndBiases(tmp_path, "second")
    for step in (1, 2):
        second.log(step, {"total_loss": 10.0 * step})
        first.log(1 + step, {"total_loss": 1.0 + step})
    first.close()
    second.log(3, {"total_loss": 30.0})
    second.close()
    third = WeightsAndBiases(tmp_path, "third")
    third.log(1, {"total_loss": 100.0})
    third.close()
    assert wandb.run is others
    others.finish()
    rows = {stage: the_run(tmp_path / "stages" / stage).rows for stage in ("first", "second", "third")}
    assert rows == {
        "first": {step: {"total_loss": step} for step in (1, 2, 3)},
        "second": {step: {"total_loss": 10 * step} for step in (1, 2, 3)},
        "third": {1: {"total_loss": 100}},
    }
    assert the_run(tmp_path).rows == {}


def test_a_disabled_tracker_leaves_nothing(tmp_path: Path) -> None:
    tracker = WeightsAndBiases(tmp_path, "distil", mode="disabled")
    tracker.log(1, {"total_loss": 1.0})
    tracker.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nothing_is_recorded_but_the_run_and_its_figures(tmp_path: Path) -> None:
    tracker = WeightsAndBiases(tmp_path, "distil")
    tracker.log(1, {"total_loss": 1.0})
    tracker.close()
    run = the_run(tmp_path / "stages" / "distil")
    assert run.recorded <= {"header", "run", "telemetry", "summary", "history", "exit", "footer", None}
    assert [path for path in tmp_path.glob("stages/distil/wandb/offline-run-*/files/*") if path.is_file()] == []


# The process


def test_global_generators_and_the_environment_stay_as_they_are(tmp_path: Path) -> None:
    state, environment = random.getstate(), set(os.environ)
    tracker = WeightsAndBiases(tmp_path, "distil")
    tracker.log(1, {"total_loss": 1.0})
    tracker.close()
    assert random.getstate() == state
    assert set(os.environ) - environment <= {"WANDB_SERVICE"}


TRACKED = """
import sys
from pathlib import Path
hosts = []
def audit(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        hosts.append(arguments[0])
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        hosts.append(arguments[1][0])
sys.addaudithook(audit)
from brewer_tracker_wandb import WeightsAndBiases
assert "wandb" not in sys.modules
tracker = WeightsAndBiases(Path(sys.argv[1]), "distil")
tracker.log(1, {"total_loss": 1.0})
tracker.log(2, {"total_loss": 0.5})
tracker.log(3, {"total_loss": 0.25})
"""


TOLD_LAST = """
import atexit
@atexit.register  # before wandb's own, so that it runs after them
def told():
    assert set(hosts) <= {"127.0.0.1", "localhost"}, hosts
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python for which warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # a service of its own
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_offline_no_host_is_asked_nothing_is_printed_and_nothing_warns(tmp_path: Path) -> None:
    process = python(TOLD_LAST + TRACKED + "tracker.close()", str(tmp_path))
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0
    assert len(the_run(tmp_path / "stages" / "distil").rows) == 3


def test_of_a_process_that_is_killed_all_rows_but_the_last_are_there(tmp_path: Path) -> None:
    process = python(TRACKED + "import time; time.sleep(100)", str(tmp_path))
    deadline, rows = time.monotonic() + 60, dict[int, Any]()
    while len(rows) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
        rows = next((run.rows for run in offline_runs(tmp_path / "stages" / "distil")), {})
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (run,) = offline_runs(tmp_path / "stages" / "distil")
    assert run.rows == {1: {"total_loss": 1}, 2: {"total_loss": 0.5}}


# Errors


def test_a_stage_that_is_taken_up_again_is_a_second_file_of_the_same_run(tmp_path: Path) -> None:
    process = python(TRACKED + "import os; os.kill(os.getpid(), 9)", str(tmp_path))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    (killed,) = (tmp_path / "stages" / "distil" / "wandb").glob("offline-run-*")
    number = killed.name.rsplit("-", 1)[1]
    killed.rename(
        killed.with_name(f"offline-run-20260101_000000-{number}")
    )  # the names of one second would be the same
    tracker = WeightsAndBiases(tmp_path, "distil")
    tracker.log(5, {"total_loss": 1.25})
    tracker.close()
    files = list(killed.parent.glob("offline-run-*"))
    assert [file.name.rsplit("-", 1)[1] for file in files] == [number, number]
    assert not isinstance(tracker, ResumableTracker)  # wandb takes nothing back


def test_without_a_stage_no_run_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        WeightsAndBiases(tmp_path, "").close()
    ids = {folder.name.rsplit("-", 1)[1] for folder in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(ids) == 2


def test_without_an_account_the_online_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        WeightsAndBiases(tmp_path, "distil", mode="online")
    assert str(error.value) == (
        "tracker `wandb`: No API key configured. Use `wandb login` to log in; "
        'mode is "online", and "offline" needs neither an account nor a network.'
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"project": "a/b"}, "project: String should match pattern '^[^/\\\\#?%:]+$'"),
        ({"mode": "dryrun"}, "mode: Input should be 'offline', 'online' or 'disabled'"),
        ({"tags": [""]}, "tags.0: String should have at least 1 character"),
        ({"tags": "a"}, "tags: Input should be a valid array"),
    ],
)
def test_options_that_wandb_would_refuse_are_refused_with_the_config(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as error:
        default_registry().bind("tracker", "wandb", options)
    assert str(error.value) == f"options of the tracker `wandb`: {text}."


# The plugin


def test_the_entry_point_names_this_plugin_and_its_one_tracker() -> None:
    (entry,) = metadata.entry_points(group="brewer", name="wandb")
    assert entry.dist is not None
    assert entry.dist.name == "brewer-tracker-wandb"
    assert entry.load().brewer_trackers() == brewer_trackers() == {"wandb": WeightsAndBiases}
