"""What trackers promise."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from brewer_core.errors import BrewerError
from brewer_core.testing.conformance import Conformance, does_not_apply, require

FIGURES = {"total_loss": 0.5, "hidden_hidden_mse_1_2": 2.0, "eval/accuracy": 0.75}


class TrackerConformance(Conformance):
    """Properties of a tracker, in a run's folder that is there and empty."""

    kind: ClassVar[str] = "tracker"

    def test_logs(self) -> None:
        """It takes figures of growing steps, new names among them, and closes."""
        with tempfile.TemporaryDirectory() as folder:
            tracker = self.made(Path(folder), "distil")
            try:
                for step in range(3):
                    tracker.log(step, dict(FIGURES))
                tracker.log(3, {"another": 1.0})
            finally:
                tracker.close()

    def test_without_stage(self) -> None:
        """The stage may be "", as in the classes with TextBrewer's signatures."""
        with tempfile.TemporaryDirectory() as folder:
            self._used(Path(folder), "distil")
            tracker = self.bound()(Path(folder), "")
            tracker.log(0, dict(FIGURES))
            tracker.close()

    def test_stages(self) -> None:
        """Each stage of a run has a tracker of its own, and the next one loses nothing that is in the folder."""
        with tempfile.TemporaryDirectory() as folder:
            self._used(Path(folder), "first")
            before = _contents(Path(folder))
            self._used(Path(folder), "second")
            after = _contents(Path(folder))
            lost = [str(file) for file, text in before.items() if not after.get(file, b"").startswith(text)]
            require(not lost, f"loses figures of the stage before, in {', '.join(lost)}")

    def test_figures_unchanged(self) -> None:
        """The figures that it is given are left as they were."""
        with tempfile.TemporaryDirectory() as folder:
            tracker, figures = self.made(Path(folder), "distil"), dict(FIGURES)
            tracker.log(0, figures)
            tracker.close()
            require(figures == FIGURES, "changes the figures that it is given")

    def made(self, run_dir: Path, stage: str) -> Any:
        """The tracker of a stage; a property is skipped where it cannot be made without options, and none are given."""
        try:
            tracker = self.bound()(run_dir, stage)
        except (BrewerError, OSError, ImportError) as error:  # what is missing: an option, a server, a library
            if self.chosen:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            does_not_apply(f"without options it cannot be made; give `options`, or @component(example=...) ({reason})")
        methods = all(callable(getattr(tracker, name, None)) for name in ("log", "close"))
        require(methods, f"makes a {type(tracker).__name__} without `log` or `close`")
        return tracker

    def _used(self, run_dir: Path, stage: str) -> None:
        tracker = self.made(run_dir, stage)
        tracker.log(0, dict(FIGURES))
        tracker.close()


def _contents(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
