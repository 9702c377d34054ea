"""A progress bar with loss, step rate and remaining time; quiet where standard error is no terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from brewer_core.listeners import Listener


class ProgressBar(Listener):
    """A bar for one training, taken away when it ends."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def begin(self, total_steps: int) -> None:
        """Show the bar, if there is a terminal to show it on."""
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(self.title, total=total_steps, figures="")

    def stepped(self, step: int) -> None:
        """Move the bar on."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Show loss and rate."""
        if self._progress is not None:
            figures = f"loss {values['total_loss']:.4g}  {values['steps_per_s']:.1f} steps/s"
            self._progress.update(self._task, completed=step, figures=figures)

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
