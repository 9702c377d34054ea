"""Runs that are interrupted, by signals, by the clock, by a full disk, by the death of a process, go on to the same student."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from brewer_core.cli.main import main
from runs import bert, brewer, distill, document, films, read, supervised, training, tree, weights_in, write_config
from small_disk import run_on_a_small_disk

PATIENCE_S = 60
STEPS, EVERY = 100, 15
PLUGIN = '''
"""A loss that takes its time, and waits as long as there is a file `hold`."""

import time
from pathlib import Path

from brewer_builtins.kd_losses import kl
from brewer_core import hookimpl


def patient(student_logits, teacher_logits, temperature):
    """What `kl` is."""
    time.sleep(0.01)
    while Path({hold!r}).exists():
        time.sleep(0.005)
    return kl(student_logits, teacher_logits, temperature)


@hookimpl
def brewer_kd_losses():
    """The loss."""
    return {{"patient": patient}}
'''


def config(sizes: Mapping[str, Any] = {}, **more: Any) -> dict[str, Any]:
    """A run of a short stage and a long one, which is saved now and then."""
    saving = {"checkpoint_every_steps": EVERY, "log_every_steps": 1}
    return document(
        models={"teacher": bert(16, 2, **sizes), "student": bert(8, 1, **sizes)},
        stages=[
            supervised(),
            distill(
                distillation={"kd_loss_type": "patient", "hard_label_weight": 1},
                training=training(steps=STEPS, **saving, **more),
            ),
        ],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a plugin, and two configs, each with its run that nothing interrupted, begun with --resume."""
    made = films(tmp_path_factory.mktemp("runs"))
    (made / "patient.py").write_text(PLUGIN.format(hold=str(made / "hold")))
    still = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    sgd = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
    for name, document_of_it in {"config": config(), "still": config(still, optimizer=sgd)}.items():
        write_config(made, document_of_it, f"{name}.json")
        assert brewer(*command(made, f"whole-{name}", name)) == 0
    return made


def command(folder: Path, run: str, name: str = "config") -> list[str]:
    """The command line that begins a run or goes on with it."""
    plugin, output = folder / "patient.py", folder / run
    return ["run", f"{folder / name}.json", "--plugin", str(plugin), "--output", str(output), "--resume"]


def said_by(*arguments: str) -> tuple[int, str, str]:
    """The exit status of a command line carried out here, and what it says on each stream."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("default")
        return brewer(*arguments), " ".join(out.getvalue().split()), " ".join(err.getvalue().split())


class Process:
    """A command line that another process carries out. One that has imported everything is forked for it: that saves time."""

    context = multiprocessing.get_context("forkserver")

    def __init__(self, arguments: list[str], file: Path, **environment: str) -> None:
        self.context.set_forkserver_preload(["test_signals", "transformers.models.bert.modeling_bert"])
        self._file = file
        self._process = self.context.Process(target=_carry_out, args=(arguments, file, environment))
        self._process.start()

    @property
    def said(self) -> str:
        """What it has said so far."""
        return " ".join(self._file.read_text().split()) if self._file.exists() else ""

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def status(self) -> int:
        """How it ended, once it has."""
        self._process.join(PATIENCE_S)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
        assert status is not None, self.said
        return status


def _carry_out(arguments: list[str], file: Path, environment: Mapping[str, str]) -> None:
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(opened, stream)
    os.environ.update(environment)
    sys.argv = ["brewer", *arguments]
    main()


def wait_until(there: Callable[[], bool], said: Callable[[], str] = str) -> None:
    """Come back when it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < deadline, said()
        time.sleep(0.01)


def steps_done(run: Path) -> int:
    """Steps of the long stage that the figures tell of."""
    file = run / "metrics.jsonl"
    found = re.findall(r'{"stage": "distil", "step": (\d+),', file.read_text()) if file.exists() else []
    return int(found[-1]) if found else 0


@pytest.fixture
def hold(folder: Path) -> Iterator[Path]:
    """The file that makes the loss wait, as long as it is there."""
    file = folder / "hold"
    yield file
    file.unlink(missing_ok=True)


def held(folder: Path, run: str, hold: Path) -> Process:
    """A run that waits in the middle of a step of its long stage, after a checkpoint or two."""
    process = Process(command(folder, run), folder / f"{run}.txt")
    wait_until(lambda: steps_done(folder / run) > 2 * EVERY, lambda: process.said)
    hold.touch()
    return process


def assert_same_run(run: Path, whole: Path) -> None:
    """The same student bit for bit, and the same figures, each step once."""
    ours, theirs = weights_in(run / "student"), weights_in(whole / "student")
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []
    assert figures(run) == figures(whole)
    assert read(run / "manifest.json")["status"] == "finished"


def assert_close_run(run: Path, whole: Path) -> None:
    """The same student but for rounding."""
    ours, theirs = weights_in(run / "student"), weights_in(whole / "student")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert [line["step"] for line in figures(run)] == [line["step"] for line in figures(whole)]


def figures(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "steps_per_s"} for line in lines]


# Signals


@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [(signal.SIGINT, 130, "by an interrupt"), (signal.SIGTERM, 143, "by a signal to terminate")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_lets_the_run_save_and_it_goes_on_to_the_same_student(
    folder: Path, hold: Path, number: int, status: int, reason: str
) -> None:
    name = signal.Signals(number).name
    process, run = held(folder, name, hold), folder / name
    assert (run / "lock").exists()
    process.signal(number)
    wait_until(lambda: "finishing the step" in process.said, lambda: process.said)
    hold.unlink()
    assert process.status() == status
    step = steps_done(run)
    assert process.said.endswith(
        "brewer: finishing the step and saving; once more stops at once "
        f"brewer: stopped {reason} after optimizer step {step} of {STEPS}, and its state is saved; "
        f"go on with --resume --output {run}"
    )
    assert read(run / "manifest.json")["status"] == "stopped"
    assert not (run / "lock").exists()
    assert brewer(*command(folder, name)) == 0
    assert_same_run(run, folder / "whole-config")


def test_a_second_signal_stops_at_once(folder: Path, hold: Path) -> None:
    process, run = held(folder, "twice", hold), folder / "twice"
    process.signal(signal.SIGTERM)
    wait_until(lambda: "finishing the step" in process.said, lambda: process.said)
    process.signal(signal.SIGINT)
    assert process.status() == 130
    hold.unlink()
    assert process.said.endswith("once more stops at once brewer: stopped before it was done")
    assert read(run / "manifest.json")["status"] == "stopped"
    assert not (run / "lock").exists()


def test_a_second_run_in_the_folder_is_refused_and_a_damaged_checkpoint_passed_over(folder: Path, hold: Path) -> None:
    process, run = held(folder, "damaged", hold), folder / "damaged"
    resuming = command(folder, "damaged")
    for arguments in (resuming, [*resuming[:-1], "--overwrite"]):
        status, _, err = said_by(*arguments)
        assert status == 2
        assert err.endswith(
            f"brewer: error: output {run} belongs to a run that is going on (process {process.pid} on {socket.gethostname()}); "
            "choose another folder with --output."
        )
    process.signal(signal.SIGKILL)
    assert process.status() == -signal.SIGKILL
    hold.unlink()
    assert (run / "lock").exists()
    checkpoints = run / "stages" / "distil" / "checkpoints"
    newest = checkpoints / f"step-{max(int(path.name[5:]) for path in checkpoints.glob('step-*'))}"
    before = int(newest.name[5:]) - EVERY
    state = newest / "state.pt"
    size = state.stat().st_size
    os.truncate(state, size // 2)
    status, _, err = said_by(*command(folder, "damaged"))
    assert status == 0, err
    assert (
        f"brewer: warning: checkpoint {newest} is damaged (state.pt: it has {size // 2} bytes, and was written with {size}); "
        f"the one of step {before} before it is used."
    ) in err
    assert_same_run(run, folder / "whole-config")


# The clock, and what may not change


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Path:
    """A run whose time was up."""
    status, _, err = said_by(*command(folder, "stopped"), "--max-time", "1s")
    assert status == 0, err
    found = re.search(
        r"brewer: stopped as its time was up after optimizer step \d+ of \d+, and its state is saved; (.*)$", err
    )
    assert found is not None, err
    assert found[1] == f"go on with --resume --output {folder / 'stopped'}"
    return folder / "stopped"


def test_a_run_whose_time_was_up_goes_on_to_the_same_student(folder: Path, stopped: Path) -> None:
    assert read(stopped / "manifest.json")["status"] == "stopped"
    shutil.copytree(stopped, folder / "resumed")
    assert brewer(*command(folder, "resumed")) == 0
    assert_same_run(folder / "resumed", folder / "whole-config")


def refusal(arguments: list[str], run: Path) -> str:
    before = tree(run)
    status, _, err = said_by(*arguments)
    assert status == 2
    assert tree(run) == before
    return err


def test_another_config_is_refused(folder: Path, stopped: Path) -> None:
    arguments = command(folder, "stopped")
    assert refusal([*arguments, "--set", "stages.1.training.batch_size=8"], stopped).endswith(
        f"brewer: error: output {stopped} holds a run that was begun otherwise; give it its own config again, or another folder "
        "with --output: stages[1].training.batch_size was 4 when the run was begun, and is 8"
    )


def test_other_data_are_refused(folder: Path, stopped: Path) -> None:
    train = folder / "train.csv"
    before = train.read_text()
    try:
        train.write_text(before.replace("a good film 0", "a good film  0", 1))
        text = refusal(command(folder, "stopped"), stopped)
    finally:
        train.write_text(before)
    assert f"output {stopped} holds a run that was begun otherwise; give it its own data again" in text
    assert "data.films.train.sha256 was " in text


def test_another_plugin_file_is_refused(folder: Path, stopped: Path) -> None:
    plugin = folder / "patient.py"
    before = plugin.read_text()
    try:
        plugin.write_text(before + "\n")
        text = refusal(command(folder, "stopped"), stopped)
    finally:
        plugin.write_text(before)
    assert f"output {stopped} holds a run that was begun otherwise; give it its own plugin files again" in text
    assert "--plugin patient.py was " in text


def test_a_finished_run_shows_its_table_again(folder: Path) -> None:
    whole = folder / "whole-config"
    before = tree(whole)
    status, out, err = said_by(*command(folder, "whole-config"))
    assert status == 0
    assert f"the run in {whole} is finished already" in err
    assert "10 rows of films, seed 0" in out
    assert out.endswith(f"{whole}/student holds the student, {whole}/summary.json these figures")
    assert tree(whole) == before


# A full disk


ON_A_SMALL_DISK = """
import pathlib, shutil, subprocess, sys, time

hold, disk, kept, *command = sys.argv[1:]
metrics = pathlib.Path(disk, "run", "metrics.jsonl")
process = subprocess.Popen(command)
while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"distil") > 20):
    time.sleep(0.01)
pathlib.Path(hold).touch()
try:
    with pathlib.Path(disk, "filling").open("wb", buffering=0) as filling:
        while filling.write(bytes(4096)):
            pass
except OSError:
    pathlib.Path(hold).unlink()
status = process.wait()
shutil.copytree(pathlib.Path(disk, "run"), kept)
sys.exit(status)
"""


def test_a_full_disk_ends_the_run_in_a_sentence_and_it_goes_on_where_there_is_space(folder: Path, hold: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    run = [sys.executable, "-m", "brewer_core", *command(folder, "disk/run")]
    script = [sys.executable, "-c", ON_A_SMALL_DISK, str(hold), str(disk), str(folder / "filled"), *run]
    done = run_on_a_small_disk(script, disk, "30m", PATIENCE_S)
    assert done.returncode == 1, done.stderr
    assert "internal error" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("brewer: error: ")
    assert "no space left on device" in last
    assert "--resume" in last
    assert sorted(path.name for path in (folder / "filled/stages/distil/checkpoints").glob("step-*"))
    assert brewer(*command(folder, "filled")) == 0
    assert_same_run(folder / "filled", folder / "whole-config")


# Processes that die


def test_the_death_of_a_process_ends_the_others_and_the_run_goes_on_with_two_or_one(folder: Path, hold: Path) -> None:
    run, said = folder / "many", folder / "many.txt"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "brewer_core",
    ]
    with said.open("w") as opened:
        process = subprocess.Popen([*launcher, *command(folder, "many", "still")], stdout=opened, stderr=opened)
    try:
        wait_until(lambda: steps_done(run) > EVERY + 5, said.read_text)
        hold.touch()
        os.kill(int((run / "lock").read_text().split()[0]), signal.SIGKILL)
        hold.unlink()
        assert process.wait(PATIENCE_S) == 1, said.read_text()
    finally:
        process.kill()
    assert "brewer: error: process 1 of 2 lost another one, which ended or did not answer" in said.read_text()
    assert "Start all of them again with --resume." in said.read_text()
    shutil.copytree(run, folder / "fewer")
    assert brewer(*command(folder, "fewer", "still")) == 0
    assert_close_run(folder / "fewer", folder / "whole-still")
    assert [process.status() for process in two(command(folder, "many", "still"), folder)] == [0, 0]
    assert_close_run(run, folder / "whole-still")


def two(arguments: list[str], folder: Path) -> list[Process]:
    """Two processes that carry out a command line together, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    return [
        Process(arguments, folder / f"process-{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(2)
    ]
