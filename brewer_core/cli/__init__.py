"""The command `brewer`: the only place that prints or exits."""

from brewer_core.cli.main import main

__all__ = ["main"]
