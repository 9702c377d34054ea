"""What is said of each use: a line, a verdict and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    def placed(self, cell: int | None, line: int) -> Finding:
        """The same finding at another place."""
        return replace(self, cell=cell, line=line)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {
            "cell": self.cell,
            "line": self.line,
            "used": self.used,
            "verdict": self.verdict,
            "advice": self.advice,
            "row": self.row,
        }


def summary(findings: Sequence[Finding], what: str) -> str:
    """The sentence under the rows. what: how the file is called, `script` for example."""
    places = {verdict: _places(findings, verdict) for verdict in ("change", "differs", "unknown")}
    if places["change"]:
        said = f"edits needed: {places['change']}"
    elif what == "config":
        said = "ready: brewer reads this config as it is"
    else:
        said = f"ready: this {what} needs no edit but its imports"
    more = {"differs": "results may differ", "unknown": "look yourself"}
    return "; ".join([said, *(f"{text}: {places[verdict]}" for verdict, text in more.items() if places[verdict])])


def _places(findings: Sequence[Finding], verdict: str) -> str:
    """`line 3`, `lines 3, 7`, or `2 places (3, 7, 8, and 4 more)`."""
    where = list(dict.fromkeys(finding.where for finding in findings if finding.verdict == verdict))
    if not where:
        return ""
    shown = ", ".join(where[:12]) + (f" and {len(where) - 12} more" if len(where) > 12 else "")
    return f"{'line' if len(where) == 1 else 'lines'} {shown}"
