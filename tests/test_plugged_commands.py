"""Commands that plugins add: listed without being imported, called like brewer's own, and harmless when they fail."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes import fake_distribution
from runs import brewer

GREETING = """
    import typer

    app = typer.Typer(help="Greetings.")


    @app.command()
    def greet(name: str = "you"):
        '''Greet somebody.'''
        typer.echo(f"hello {name}")


    @app.command()
    def leave():
        raise typer.Exit(3)
"""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Adds a distribution with a command to what is installed; what was imported of it is forgotten afterwards."""
    for variable in ("BREWER_PLUGINS", "BREWER_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def install(distribution: str, text: str, command: str = "greet", target: str = "app") -> None:
        module = distribution.replace("-", "_")
        entry = f"[brewer.commands]\n{command} = {module}:{target}\n"
        fake_distribution(tmp_path, distribution, "0.3", entry, {f"{module}.py": text})

    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]", "", text).split())


def test_the_help_lists_a_plugins_command_without_importing_it(add, capsys):
    add("brewer-command-greet", GREETING)
    add("brewer-command-broken", "1 / 0", "broken")
    assert brewer("--help") == 0
    assert "broken From brewer-command-broken 0.3. greet From brewer-command-greet 0.3." in plain(
        capsys.readouterr().out
    )
    assert not {"brewer_command_greet", "brewer_command_broken"} & set(sys.modules)


def test_a_plugins_command_is_called_like_brewers_own(add, capsys):
    add("brewer-command-greet", GREETING)
    assert brewer("greet", "greet", "--name", "world") == 0
    assert capsys.readouterr().out == "hello world\n"
    assert brewer("greet", "leave") == 3
    assert brewer("greet", "--help") == 0
    printed = plain(capsys.readouterr().out)
    assert "Greetings." in printed
    assert "Greet somebody." in printed


def test_a_wrong_option_of_a_plugins_command_is_one_line_and_status_2(add, capsys):
    add("brewer-command-greet", GREETING)
    assert brewer("greet", "greet", "--nome", "world") == 2
    error = capsys.readouterr().err
    assert error.startswith("brewer: error: No such option: --nome")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "target", "error"),
    [
        (
            "1 / 0",
            "app",
            "the command `greet` of brewer-command-greet 0.3 fails on import: ZeroDivisionError: division by zero; tell its "
            "authors, or uninstall it.",
        ),
        (
            "raise SystemExit(5)",
            "app",
            "the command `greet` of brewer-command-greet 0.3 fails on import: SystemExit: 5; tell its authors, or uninstall it.",
        ),
        (
            "app = print",
            "app",
            "the command `greet` of brewer-command-greet 0.3 is a builtin_function_or_method; it must be a typer.Typer.",
        ),
        (
            GREETING,
            "nothing",
            "the command `greet` of brewer-command-greet 0.3 fails on import: AttributeError: module 'brewer_command_greet' has "
            "no attribute 'nothing'; tell its authors, or uninstall it.",
        ),
    ],
)
def test_a_command_that_fails_fails_alone(text, target, error, add, capsys):
    add("brewer-command-greet", text, target=target)
    assert brewer("greet", "greet") == 2
    assert capsys.readouterr().err == f"brewer: error: {error}\n"
    assert brewer("--version") == brewer("list-plugins", "--json") == 0


def test_two_plugins_with_one_command_are_both_named(add, capsys):
    add("brewer-command-one", GREETING)
    add("brewer-command-two", GREETING)
    assert brewer("greet", "greet") == 2
    assert capsys.readouterr().err == (
        "brewer: error: the command `greet` is provided by brewer-command-one and brewer-command-two; disable one of them with "
        "BREWER_DISABLE_PLUGINS.\n"
    )


def test_brewers_own_commands_stay_its_own(add, capsys):
    add("brewer-command-thief", "1 / 0", "list-plugins")
    assert brewer("list-plugins", "--json") == 0
    assert brewer("--help") == 0
    assert "thief" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BREWER_DISABLE_PLUGINS", "brewer-command-greet"),
        ("BREWER_DISABLE_PLUGINS", "brewer-command-greet:greet"),
        ("BREWER_PLUGINS", "brewer-core"),
    ],
)
def test_a_command_that_is_disabled_or_not_allowed_is_not_there(variable, value, add, capsys, monkeypatch):
    add("brewer-command-greet", GREETING)
    monkeypatch.setenv(variable, value)
    assert brewer("greet", "greet") == 2
    assert capsys.readouterr().err.startswith("brewer: error: No such command 'greet'.")


def test_metadata_that_cannot_be_read_hides_no_other_command(add, capsys, tmp_path):
    add("brewer-command-greet", GREETING)
    fake_distribution(tmp_path, "brewer-command-torn", "0.1", "[brewer.commands]\nno equals sign\n")
    assert brewer("greet", "greet") == 0
    assert capsys.readouterr().out == "hello you\n"
