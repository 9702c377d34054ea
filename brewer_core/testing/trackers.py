"""What trackers promise."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from brewer_core.errors import BrewerError
from brewer_core.protocols import ResumableTracker
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

    def test_resumable(self) -> None:
        """With `flush` and `resume` it drops what was logged later at its stage, and nothing else, and then goes on."""
        with tempfile.TemporaryDirectory() as folder:
            self._used(Path(folder), "first")
            first = _contents(Path(folder))
            tracker = self.made(Path(folder), "second")
            if not isinstance(tracker, ResumableTracker):
                tracker.close()
                does_not_apply("it cannot be taken up: it has no `flush` and `resume`")
            self._interrupted(tracker)
            before = _contents(Path(folder))
            self._taken_up(Path(folder), "second")
            after = _contents(Path(folder))
            lost = [str(file) for file, text in first.items() if not after.get(file, b"").startswith(text)]
            require(not lost, f"taken up, it loses figures of the stage before, in {', '.join(lost)}")
            # seen by their names: in a format that hides those nothing can be told
            require(
                _holds(after, b"early_figure") or not _holds(before, b"early_figure"), "drops what was logged before"
            )
            require(not _holds(after, b"void_figure"), "keeps what was logged after the step that it is taken up from")
            require(
                _holds(after, b"new_figure") or not _holds(before, b"early_figure"), "loses what is logged afterwards"
            )

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

    def _interrupted(self, tracker: ResumableTracker) -> None:
        try:
            tracker.log(1, {"early_figure": 0.5})
            tracker.flush()
            tracker.log(2, {"void_figure": 0.25})
        finally:
            tracker.close()

    def _taken_up(self, run_dir: Path, stage: str) -> None:
        tracker = self.made(run_dir, stage)
        try:
            tracker.resume(1)
            tracker.log(2, {"new_figure": 0.125})
        finally:
            tracker.close()

    def _used(self, run_dir: Path, stage: str) -> None:
        tracker = self.made(run_dir, stage)
        tracker.log(0, dict(FIGURES))
        tracker.close()


def _contents(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _holds(contents: dict[Path, bytes], name: bytes) -> bool:
    return any(name in text for text in contents.values())
