"""The command `brewer`: its help, its listings, its exit status, and what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import brewer_core
from brewer_core import KINDS
from brewer_core.cli.main import main
from fakes import fake_distribution, loss_module
from runs import brewer, document, films, read, supervised, training, write_config

KEYS = {"kind", "name", "summary", "options", "distribution", "version", "entry_point", "status", "error"}
COMMAND = [sys.executable, "-m", "brewer_core"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for distributions, importable; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def add(site, distribution, text, entry="extra"):
    module = distribution.replace("-", "_")
    fake_distribution(site, distribution, "0.3", {entry: module}, {f"{module}.py": text})


@pytest.fixture
def listed(capsys):
    """The status and the rows of `brewer list-plugins --json` with further arguments."""

    def answer(*arguments):
        status = brewer("list-plugins", "--json", *arguments)
        captured = capsys.readouterr()
        assert captured.err == ""
        return status, json.loads(captured.out)

    return answer


def plain(text):
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]", "", text).split())


# Help, version, and what is no command


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_the_commands(arguments, capsys):
    brewer(*arguments)
    captured = capsys.readouterr()
    printed = plain(captured.out + captured.err)
    assert "Knowledge distillation in which every method is a plugin." in printed
    assert "run" in printed
    assert "list-plugins" in printed


def test_help_is_no_failure(capsys):
    assert brewer("--help") == brewer("run", "--help") == brewer("list-plugins", "-h") == 0
    printed = plain(capsys.readouterr().out)
    for option in ("--output", "--set", "--dry-run", "--device", "--plugin", "--disable", "--overwrite", "--json"):
        assert option in printed


def test_the_version_is_that_of_the_distribution(capsys):
    assert brewer("--version") == 0
    assert capsys.readouterr().out == f"brewer {brewer_core.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["distil"], "No such command 'distil'."),
        (["--vers"], "No such option: --vers"),
        (["run"], "Missing argument 'config'."),
        (["run", "x.json", "--outputs", "y"], "No such option: --outputs"),
        (["run", "x.json", "--output"], "Option '--output' requires an argument."),
        (["list-plugins", "models", "metrics"], "Got unexpected extra argument (metrics)"),
    ],
)
def test_a_faulty_command_line_is_one_line_and_status_2(arguments, error, capsys):
    assert brewer(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err.replace("CONFIG", "config").replace("argument(s)", "argument")  # versions of Typer differ
    assert said.startswith(f"brewer: error: {error}")
    assert said.endswith(" Try `brewer --help`, or `brewer COMMAND --help`.\n")
    assert captured.err.count("\n") == 1


# list-plugins


def test_every_row_of_the_json_has_every_key(listed):
    status, rows = listed()
    assert status == 0
    assert {frozenset(row) for row in rows} == {frozenset(KEYS)}
    assert {row["status"] for row in rows} == {"loaded"}
    order = [row["kind"] for row in rows]
    assert order == sorted(order, key=list(KINDS).index)
    (kl,) = [row for row in rows if (row["kind"], row["name"]) == ("kd_loss", "kl")]
    assert (kl["distribution"], kl["entry_point"], kl["error"]) == ("brewer-core", "kd_losses", None)
    assert kl["version"] == brewer_core.__version__
    assert kl["summary"].endswith(".")
    (option,) = [option for option in kl["options"] if option["name"] == "t_squared"]
    assert (option["required"], option["type"]) == (False, "boolean")
    assert "default" in option
    (flsw,) = [row for row in rows if row["name"] == "flsw"]
    assert [option["name"] for option in flsw["options"] if option["required"]] == ["beta", "gamma"]


def test_a_plugin_installed_beside_is_listed_with_where_it_comes_from(site, listed):
    add(site, "brewer-loss-mine", loss_module("mine"))
    status, rows = listed("kd-losses")
    (mine,) = [row for row in rows if row["name"] == "mine"]
    assert status == 0
    assert mine == {
        "kind": "kd_loss",
        "name": "mine",
        "summary": "Mean difference.",
        "options": [{"name": "scale", "required": False, "default": 1.0, "type": "number"}],
        "distribution": "brewer-loss-mine",
        "version": "0.3",
        "entry_point": "extra",
        "status": "loaded",
        "error": None,
    }


def test_a_failed_plugin_has_a_row_without_a_kind_and_gives_status_1(site, listed):
    add(site, "brewer-broken", "1 / 0")
    status, rows = listed()
    (failed,) = [row for row in rows if row["status"] != "loaded"]
    assert status == 1
    assert failed == {
        "kind": None,
        "name": None,
        "summary": None,
        "options": [],
        "distribution": "brewer-broken",
        "version": "0.3",
        "entry_point": "extra",
        "status": "failed",
        "error": "import of brewer_broken fails: ZeroDivisionError: division by zero",
    }


def test_a_disabled_plugin_is_no_failure(site, listed, monkeypatch):
    add(site, "brewer-broken", "1 / 0")
    add(site, "brewer-loss-mine", loss_module("mine"))
    monkeypatch.setenv("BREWER_DISABLE_PLUGINS", "brewer-loss-mine:extra")
    status, rows = listed("--disable", "brewer-broken")
    assert status == 0
    assert [(row["distribution"], row["kind"], row["error"]) for row in rows if row["status"] == "disabled"] == [
        ("brewer-broken", None, None),
        ("brewer-loss-mine", None, None),
    ]


def test_two_providers_of_a_name_are_both_in_conflict(site, listed):
    add(site, "brewer-loss-mine", loss_module("kl"))
    status, rows = listed("kd_loss")
    assert status == 0
    assert {row["distribution"]: row["error"] for row in rows if row["status"] == "conflict"} == {
        "brewer-core": "also provided by brewer-loss-mine 0.3 [extra]",
        "brewer-loss-mine": f"also provided by brewer-core {brewer_core.__version__} [kd_losses]",
    }


@pytest.mark.parametrize("kind", ["match_loss", "match_losses", "match-loss", "match-losses"])
def test_a_kind_may_be_plural_and_have_a_hyphen(kind, listed):
    status, rows = listed(kind)
    assert status == 0
    assert {row["kind"] for row in rows} == {"match_loss"}
    assert {"fsp", "nst", "pkd"} <= {row["name"] for row in rows}


def test_an_unknown_kind_is_refused_with_the_known_ones(capsys):
    assert brewer("list-plugins", "match-lossses") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"brewer: error: no kind of component is called 'match-lossses'; the kinds are {', '.join(KINDS)}.\n"
    )


def test_the_table_is_by_kind_and_ends_with_what_failed(site, capsys):
    add(site, "brewer-broken", "1 / 0")
    add(site, "brewer-loss-mine", loss_module("mine", "kl"))
    assert brewer("list-plugins", "--disable", "brewer-loss-pkd") == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [plain(line) for line in captured.out.splitlines()]
    titles = [line for line in lines if line in {kind.plural.replace("_", " ") for kind in KINDS.values()}]
    assert titles[:3] == ["kd losses", "match losses", "projections"]
    (mine,) = [line for line in lines if line.startswith("mine ")]
    assert mine == "mine Mean difference. scale=1.0 brewer-loss-mine 0.3"
    assert "(conflict: also provided by" in plain(captured.out)
    assert lines[-2:] == [
        "failed brewer-broken 0.3: import of brewer_broken fails: ZeroDivisionError: division by zero",
        "disabled brewer-loss-pkd 0.1.0",
    ]


def test_brackets_in_a_plugins_own_words_are_no_markup(site, capsys):
    text = loss_module("mine").replace("Mean difference.", "Mean over [B, L], [bold]plain[/b] :tada:.")
    add(site, "brewer-loss-mine", text)
    assert brewer("list-plugins", "kd-losses") == 0
    assert "Mean over [B, L], [bold]plain[/b] :tada:." in plain(capsys.readouterr().out)


# Streams and tracebacks


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_each_on_the_error_stream(site, tmp_path, capsys):
    add(site, "brewer-broken", "raise RuntimeError('two\\nlines')")
    file = write_config(tmp_path, document(sead=1))
    assert brewer("run", file) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "brewer: warning: plugin brewer-broken:extra was left out: import of brewer_broken fails: RuntimeError: two lines\n"
        f"brewer: error: {file}: sead: unknown key; did you mean 'seed'?\n"
    )


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_traceback_is_shown_wherever_it_is_asked_for(position, tmp_path, monkeypatch, capsys):
    arguments = ["run", f"{tmp_path}/no.json"]
    arguments.insert(position, "--traceback")
    monkeypatch.setattr(sys, "argv", ["brewer", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        main()
    signal.signal(signal.SIGTERM, handler)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == f"brewer: error: {tmp_path}/no.json: there is no such file"


def test_output_that_nobody_reads_is_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "list-plugins", "--json"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


# Stopped

STOPPING = """
from brewer_core import hookimpl

def stopping(predictions, references):
    if len(predictions) > 2:
        raise KeyboardInterrupt
    return 0.0

@hookimpl
def brewer_metrics():
    return {"stopping": stopping}
"""


def assert_stopped(out):
    manifest = read(out / "manifest.json")
    assert (manifest["status"], manifest["finished"] is None) == ("stopped", False)
    assert not (out / "lock").exists()
    assert not (out / "summary.json").exists()


def test_an_interrupt_leaves_a_stopped_run_and_status_130(tmp_path, capsys):
    pytest.importorskip("transformers")
    (tmp_path / "stopping.py").write_text(STOPPING)
    config = document(stages=[supervised()], evaluation={"data": "films", "metrics": ["stopping"]})
    file = write_config(films(tmp_path), config)
    assert brewer("run", file, "-o", tmp_path / "out", "--plugin", tmp_path / "stopping.py") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "brewer: stopped before it was done"
    assert_stopped(tmp_path / "out")


def test_a_signal_leaves_a_stopped_run_and_status_143(tmp_path):
    pytest.importorskip("transformers")
    config = document(stages=[supervised(training=training(steps=1_000_000))])
    file = write_config(films(tmp_path), config)
    command = [*COMMAND, "run", str(file), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        said = [running.stderr.readline() for _ in range(2)]
        running.send_signal(signal.SIGTERM)
        said += running.stderr.readlines()
        status = running.wait(60)
    assert said == [
        "checking data and models\n",
        "teacher: 1000000 steps\n",
        "brewer: stopped by a signal before it was done\n",
    ]
    assert status == 143
    assert_stopped(tmp_path / "out")
