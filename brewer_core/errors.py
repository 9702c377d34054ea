"""Every error that brewer raises on purpose: one sentence saying what, where, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class BrewerError(Exception):
    """Base of brewer's errors; the command line prints its text alone and exits with `exit_status`."""

    exit_status = 1


class RequestError(BrewerError):
    """The request itself is faulty: nothing was started and nothing was written."""

    exit_status = 2


class ConfigError(RequestError):
    """A config has problems: all of them at once, each with its path in the file.

    problems: one sentence each, such as `temperature: must be greater than 0, not -1`.
    source: what was read, a file name for example.
    """

    def __init__(self, problems: Sequence[str], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__(self._text())

    def __reduce__(self) -> tuple[type[ConfigError], tuple[Sequence[str], str]]:
        """Pickle what it was made of, for another process."""
        return type(self), (self.problems, self.source)

    def _text(self) -> str:
        count = len(self.problems)
        if count == 1:
            return f"{self.source}: {self.problems[0]}"
        return "\n".join([f"{self.source}: {count} problems", *(f"  {problem}" for problem in self.problems)])


class ComponentError(RequestError):
    """A component breaks the rules for plugins: its parameters, its options or its name."""


class PluginError(RequestError):
    """A plugin cannot be found, imported or collected."""


class UnknownComponentError(RequestError):
    """No component of this kind has the name that was asked for."""


class ConflictingComponentError(RequestError):
    """Two plugins provide the name that was asked for."""


class ReadOnlyError(RequestError, TypeError):
    """Something was written to a read-only view; the text says how to register instead."""


class MissingExtraError(RequestError, ImportError):
    """An optional library is missing; the text holds the install command."""


class AdaptorError(BrewerError):
    """An adaptor returned something that is not features, or lacks what a term reads."""


class ShapeError(BrewerError):
    """Student and teacher tensors do not fit together."""


class DataError(BrewerError):
    """A loader or a data set cannot give what the run needs."""

    exit_status = 2


class NonFiniteError(BrewerError):
    """A loss or a gradient became infinite or not a number; nothing was stepped or overwritten."""


class ProcessError(BrewerError):
    """Processes that train together lost one of theirs, or did not find one another."""


class Stopped(BrewerError):
    """A training stopped because it was asked to, after it saved what it had done."""

    def __init__(self, text: str, exit_status: int = 0) -> None:
        super().__init__(text)
        self.exit_status = exit_status

    def __reduce__(self) -> tuple[type[Stopped], tuple[str, int]]:
        """Pickle both, for another process."""
        return type(self), (str(self), self.exit_status)


class SaveError(BrewerError):
    """The disk does not take what a run has to keep; what was written before stays as it was."""


class MemoryFullError(BrewerError):
    """The memory does not hold what a step needs, however small its micro-batches."""


class OutputExistsError(RequestError):
    """The output folder holds something that must not be lost."""


def full_stop(text: str) -> str:
    """The text as a sentence: with a full stop, unless it has one, or ends as `did_you_mean` does."""
    return text if text.endswith((".", "?")) else f"{text}."


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else the known names."""
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(c) for c in close)}?"
    return f"; known: {', '.join(known)}" if known else ""
