"""A run's folder: who may write to it, what is left of a run that was killed, and what can be taken up."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brewer_core.errors import DataError, OutputExistsError, RequestError
from brewer_core.run.folder import RunFolder, holds_run, latest_run
from brewer_core.run.pipeline import default_output

HOLD = """
import sys
from pathlib import Path
from brewer_core.run.folder import RunFolder
with RunFolder.open(Path(sys.argv[1]), False):
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys
import time
from pathlib import Path
from brewer_core.errors import OutputExistsError
from brewer_core.run.folder import RunFolder
for i in range(20):
    Path(f"ready-{i}-{sys.argv[1]}").touch()
    while not Path(f"ready-{i}-{sys.argv[2]}").exists():
        time.sleep(0)
    try:
        with RunFolder.open(Path(f"run-{i}"), False):
            Path(f"inside-{i}").touch(exist_ok=False)
            print(i, flush=True)
            while not Path(f"refused-{i}").exists():
                time.sleep(0.01)
    except OutputExistsError:
        Path(f"refused-{i}").touch()
"""
GIVE_AND_TAKE = """
import sys
from pathlib import Path
from brewer_core.errors import OutputExistsError
from brewer_core.run.lock import Lock
taken = 0
while taken < 25:
    lock = Lock(Path("lock"))
    try:
        lock.take()
    except OutputExistsError:
        continue
    Path("inside").touch(exist_ok=False)
    Path("inside").unlink()
    lock.release()
    taken += 1
"""


def python(code: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment)


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that writes to the folder."""
    process = python(HOLD, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def a_run(path: Path, status: str = "stopped") -> Path:
    with RunFolder.open(path, True) as folder:
        folder.write_json("manifest.json", {"status": status})
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# The lock


def test_a_folder_that_another_process_writes_to_is_refused_and_left_as_it_is(tmp_path):
    process = holder(tmp_path / "run")
    before = contents(tmp_path)
    try:
        text = (
            f"output {tmp_path}/run belongs to a run that is going on (process {process.pid} on {socket.gethostname()}); "
            "choose another folder with --output."
        )
        for overwrite in (False, True):
            for attempt in (RunFolder.check, RunFolder.open):
                with pytest.raises(OutputExistsError) as error:
                    attempt(tmp_path / "run", overwrite)
                assert str(error.value) == text
        assert contents(tmp_path) == before
    finally:
        end(process)


def test_a_process_that_is_killed_leaves_the_lock_free(tmp_path):
    process = holder(tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "run" / "lock").exists()
    with RunFolder.open(tmp_path / "run", False) as folder:
        assert (folder.path / "lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert contents(tmp_path) == {}


def test_a_number_in_a_lock_that_nobody_holds_is_no_hindrance(tmp_path):
    path = a_run(tmp_path / "run")
    (path / "lock").write_text(f"{os.getppid()} {socket.gethostname()}\n")
    RunFolder.check(path, True)
    RunFolder.open(path, True).__exit__()


def test_of_two_runs_that_start_at_the_same_instant_one_gets_the_folder(tmp_path):
    processes = [python(RACE, *names, cwd=tmp_path) for names in (("a", "b"), ("b", "a"))]
    entered = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(int, entered[0] + entered[1])) == list(range(20))


def test_a_lock_that_is_removed_while_others_wait_is_never_held_twice(tmp_path):
    processes = [python(GIVE_AND_TAKE, cwd=tmp_path) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert contents(tmp_path) == {}


def test_the_same_process_does_not_get_a_folder_twice(tmp_path):
    with RunFolder.open(tmp_path, False) as folder:
        folder.write_json("manifest.json", {})
        for again in (lambda: RunFolder.open(tmp_path, True), lambda: RunFolder.reopen(tmp_path)):
            with pytest.raises(OutputExistsError, match=f"going on \\(process {os.getpid()} on "):
                again()
        assert folder.read_json("manifest.json") == {}
    assert not (tmp_path / "lock").exists()


def test_a_lock_that_does_not_say_who_holds_it_is_refused_without_a_name(tmp_path):
    with RunFolder.open(tmp_path, False):
        (tmp_path / "lock").write_text("")
        with pytest.raises(OutputExistsError, match="belongs to a run that is going on; choose"):
            RunFolder.check(tmp_path, True)


def test_the_lock_of_another_run_in_a_folder_made_anew_stays(tmp_path):
    first = RunFolder.open(tmp_path / "run", False)
    (tmp_path / "run").rename(tmp_path / "moved")
    with RunFolder.open(tmp_path / "run", False) as second:
        first.__exit__()
        assert (second.path / "lock").exists()


# File systems without locks


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK], ids=errno.errorcode.get)
def without_locks(request, monkeypatch):
    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_one_warning_is_given_and_the_run_goes_on(tmp_path):
    with pytest.warns(UserWarning, match="has no locks") as warned, RunFolder.open(tmp_path / "run", False) as folder:
        assert (folder.path / "lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert [str(each.message) for each in warned] == [
        f"the file system of {tmp_path}/run has no locks: runs that start there at the same time may overwrite each other."
    ]
    assert contents(tmp_path) == {}


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(
    "who", [f"{os.getppid()} {socket.gethostname()}", "4194305 elsewhere"], ids=["alive", "of another host"]
)
def test_without_locks_a_process_that_may_live_keeps_its_folder(tmp_path, who):
    (tmp_path / "lock").write_text(f"{who}\n")
    process, host = who.split()
    with pytest.raises(OutputExistsError) as error:
        RunFolder.open(tmp_path, False)
    assert str(error.value) == (
        f"output {tmp_path} belongs to a run (process {process} on {host}), and its file system has no locks to tell whether "
        f"that is going on; choose another folder with --output, or remove {tmp_path}/lock if it is over."
    )


@pytest.mark.usefixtures("without_locks")
@pytest.mark.filterwarnings("ignore:the file system of")
@pytest.mark.parametrize(
    "who",
    [f"4194305 {socket.gethostname()}", f"{os.getpid()} {socket.gethostname()}", "", "\0x"],
    ids=["dead", "this", "none", "broken"],
)
def test_without_locks_a_process_that_is_dead_is_no_hindrance(tmp_path, who):
    (tmp_path / "lock").write_text(who)
    RunFolder.open(tmp_path, False).__exit__()


# What a kill leaves


def test_what_a_run_left_that_was_killed_before_its_manifest_counts_as_nothing(tmp_path):
    process = holder(tmp_path / "run")
    end(process)
    for name in ("config.json", ".manifest.json.partial", "metrics.jsonl"):
        (tmp_path / "run" / name).write_text("half")
    (tmp_path / "run" / "stages").mkdir()
    RunFolder.check(tmp_path / "run", False)
    with RunFolder.open(tmp_path / "run", False) as folder:
        assert [path.name for path in folder.path.iterdir()] == ["lock"]


@pytest.mark.parametrize("names", [("config.json",), ("lock", "notes.txt"), (".mine.partial", "lock")])
def test_what_may_be_the_users_counts(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="and no run; choose an empty or new folder"):
            RunFolder.open(tmp_path, overwrite)
    assert contents(tmp_path) == before


# Runs that are taken up


def test_a_run_that_is_taken_up_keeps_everything_but_drafts(tmp_path):
    path = a_run(tmp_path / "run")
    (path / "stages").mkdir()
    for name in ("metrics.jsonl", "stages/kept", "mine.txt"):
        (path / name).write_text(name)
    before = contents(path)
    (path / ".summary.json.partial").write_text("half")
    with RunFolder.reopen(path) as folder:
        assert contents(path).keys() == {*before, "lock"}
        assert folder.read_json("manifest.json") == {"status": "stopped"}
    assert contents(path) == before


def test_a_folder_without_a_run_cannot_be_taken_up(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RequestError) as error:
            RunFolder.reopen(path)
        assert type(error.value) is RequestError
        assert str(error.value) == (
            f"output {path} holds no run that could be taken up; name the folder of one, with its manifest.json."
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_going_on_cannot_be_taken_up(tmp_path):
    process = holder(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{}")
    try:
        with pytest.raises(OutputExistsError, match=f"going on \\(process {process.pid} on "):
            RunFolder.reopen(tmp_path / "run")
    finally:
        end(process)
    RunFolder.reopen(tmp_path / "run").__exit__()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "is missing"),
        ('{"status": "run', "cannot be read (Unterminated string starting at: line 1 column 12 (char 11))"),
        ("\udcff", "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"),
        ("[]", "holds no JSON object"),
    ],
)
def test_a_file_that_is_damaged_says_so(tmp_path, text, told):
    with RunFolder.open(tmp_path, False) as folder:
        if text is not None:
            (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(DataError) as error:
            folder.read_json("summary.json")
    assert str(error.value) == f"{tmp_path}/summary.json {told}: the run cannot be taken up; start another."


def test_a_folder_holds_a_run_where_it_has_a_manifest(tmp_path):
    assert not holds_run(tmp_path / "none")
    assert not holds_run(tmp_path)
    assert holds_run(a_run(tmp_path))


def test_the_latest_run_is_the_newest_of_its_name_that_did_not_finish(tmp_path):
    assert latest_run(tmp_path / "runs", "films") is None
    wanted = a_run(tmp_path / "films-20260102-000000", "failed")
    a_run(tmp_path / "films-20260101-235959", "stopped")
    a_run(tmp_path / "films-20260103-000000", "finished")
    for other in ("films-2-20260104-000000", "films-20261304-000000", "films-2026104-000000", "films-x", "other"):
        a_run(tmp_path / other)
    (tmp_path / "films-20260105-000000").mkdir()
    assert latest_run(tmp_path, "films") == wanted
    assert latest_run(tmp_path, "films-2") == tmp_path / "films-2-20260104-000000"
    assert latest_run(tmp_path, "f*") is None


def test_the_folder_that_a_run_chooses_itself_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = a_run(default_output("films"), "running")
    assert latest_run(Path("runs"), "films") == path


def test_a_damaged_manifest_is_not_passed_over_for_an_older_run(tmp_path):
    a_run(tmp_path / "films-20260101-000000")
    newest = a_run(tmp_path / "films-20260102-000000")
    (newest / "manifest.json").write_text(json.dumps({})[:1])
    with pytest.raises(DataError, match=r"films-20260102-000000/manifest\.json cannot be read"):
        latest_run(tmp_path, "films")
