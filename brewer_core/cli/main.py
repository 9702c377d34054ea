"""The command's front: its sub-commands, and what becomes of errors and signals."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from brewer_core.cli.caching import cache
from brewer_core.cli.creating import new_plugin
from brewer_core.cli.describing import describe
from brewer_core.cli.explaining import explain
from brewer_core.cli.initiating import init
from brewer_core.cli.inspecting import inspect
from brewer_core.cli.listing import list_plugins
from brewer_core.cli.migrating import migrate
from brewer_core.cli.plugged import PluggedGroup
from brewer_core.cli.running import run
from brewer_core.cli.schemata import schema
from brewer_core.cli.stopping import end
from brewer_core.cli.testing import run_properties
from brewer_core.errors import BrewerError, Stopped

TRACEBACK = "--traceback"
INTERRUPTED = 130

# Typer carries a Click of its own in late versions and uses the library in earlier ones; either way these are its bases.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="brewer",
    cls=PluggedGroup,
    help="Knowledge distillation in which every method is a plugin.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init)
app.command("run")(run)
app.command("explain")(explain)
app.command("list-plugins")(list_plugins)
app.command("describe")(describe)
app.command("schema")(schema)
app.command("new-plugin")(new_plugin)
app.command("test-plugin")(run_properties)
app.command("inspect")(inspect)
app.command("migrate")(migrate)
app.add_typer(cache)


def main() -> None:
    """Run the command line and exit: 0, 1 where a run failed, 2 for a faulty request, 130 or 143 when stopped."""
    if os.environ.get("WORLD_SIZE", "1") != "1":  # each process would say that a step used all parameters
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = sys.argv[1:]
    sys.exit(execute([a for a in arguments if a != TRACEBACK], with_traceback=TRACEBACK in arguments))


def execute(arguments: Sequence[str], with_traceback: bool = False) -> int:
    """Carry out a command line and return its exit status."""
    warnings.showwarning = _show_warning
    signal.signal(signal.SIGTERM, lambda number, _frame: end(number))
    try:
        status = int(app(args=list(arguments), prog_name="brewer", standalone_mode=False) or 0)
    except Stopped as error:
        _say(str(error))
        return error.exit_status
    except BrewerError as error:
        return _failed(error, error.exit_status, with_traceback)
    except _ClickError as error:
        return _failed(error, 2, with_traceback)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a fault of ours or of a plugin's: one line all the same
        return _failed(error, 1, with_traceback)
    if status == INTERRUPTED:  # raised, or returned by late versions of Typer
        _say("stopped before it was done")
    return status


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    traceback_: Annotated[bool, typer.Option(TRACEBACK, help="Show where an error was raised.")] = False,
) -> None:
    del traceback_  # `main` takes it out of the arguments, so that it may stand anywhere
    if version:
        from brewer_core import __version__

        typer.echo(f"brewer {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _failed(error: Exception, status: int, with_traceback: bool) -> int:
    if with_traceback:
        traceback.print_exc()
    _say(f"error: {_text(error)}")
    return status


def _text(error: Exception) -> str:
    if isinstance(error, BrewerError):
        return str(error)
    if isinstance(error, _ClickError):
        return f"{error.format_message()} Try `brewer --help`, or `brewer COMMAND --help`."  # type: ignore[attr-defined]
    reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return f"internal error: {reason} (run again with {TRACEBACK} to see where)"


def _say(text: str) -> None:
    print(f"brewer: {text}", file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    _say(f"warning: {' '.join(str(message).split())}")
