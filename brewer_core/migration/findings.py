"""What is said of each use: a line, a verdict and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["same", "differs", "change", "unknown"]
"""`same`: gives what it gave. `differs`: works, with another result. `change`: must be edited. `unknown`: not in the text."""


@dataclass(frozen=True)
class Finding:
    """One use of TextBrewer and what becomes of it.

    row: the number in the table of defects in docs/explanation/textbrewer.md, where one applies. cell: of a notebook, the
    number of the cell, in which `line` is then counted.
    """

    line: int
    used: str
    verdict: Verdict
    advice: str
    row: int | None = None
    cell: int | None = None

    @property
    def where(self) -> str:
        """The line, in a notebook with its cell: `3:12`."""
        return str(self.line) if self.cell is None else f"{self.cell}:{self.line}"

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)


def summary(findings: Sequence[Finding], what: str) -> str:
    """The sentence under the rows. what: what the file is: a script, a notebook, a config."""
    ready = "brewer reads this config as it is" if what == "config" else f"this {what} needs no edit but its imports"
    changes = _lines(findings, "change")
    said = [f"edits needed: {changes}" if changes else f"ready: {ready}"]
    for verdict, text in (("differs", "results may differ"), ("unknown", "look yourself")):
        lines = _lines(findings, verdict)
        said += [f"{text}: {lines}"] if lines else []
    return "; ".join(said)


def _lines(findings: Sequence[Finding], verdict: str) -> str:
    """`line 3`, `lines 3, 7`, or the first twelve of many."""
    where = list(dict.fromkeys(finding.where for finding in findings if finding.verdict == verdict))
    more = f" and {len(where) - 12} more" if len(where) > 12 else ""
    return f"line{'s' if len(where) > 1 else ''} {', '.join(where[:12])}{more}" if where else ""
