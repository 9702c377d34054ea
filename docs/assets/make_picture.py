"""Draws README's picture, the table of a run, from the run's folder.

`python docs/assets/make_picture.py runs/quickstart "brewer run quickstart --output runs/quickstart"`
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from rich.console import Console

from brewer_core.cli.reporting import TerminalReporter

TARGET = Path(__file__).with_name("run.svg")
COLUMNS = 96


class Picture(TerminalReporter):
    """The reporter of the command line, whose table is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self._out = Console(record=True, width=COLUMNS, file=io.StringIO())

    def save(self, title: str, path: Path) -> None:
        """Write what was shown as a picture of a terminal."""
        self._out.save_svg(str(path), title=title)


def main(folder: Path, command: str) -> None:
    """Write the picture of a run and the command that made it."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    picture = Picture()
    picture.show_summary(summary, Path("runs") / folder.name)
    picture.save(command, TARGET)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
