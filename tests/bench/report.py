"""Figures, aims and tables of what was measured, for the terminal, as JSON, and for the page of benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Run = Mapping[str, Any]
"""What `measuring.measure` gives, with the number of its round."""

BEGIN, END = "<!-- figures: written by tests/bench/compare.py -->", "<!-- end of the figures -->"

_TITLES = {
    "bare": "bare loop",
    "student_only": "bare loop, features given",
    "hand_cached": "bare loop with a dict",
    "textbrewer": "TextBrewer",
    "brewer_live": "brewer, no cache",
    "brewer_cold": "brewer, cold cache",
    "brewer_warm": "brewer, warm cache",
    "no_teacher": "brewer, labels alone",
}
_KINDS = {
    "logits": "logits",
    "hidden": "logits and two hidden states",
    "relations": "logits and relations of queries, keys and values",
}
_SAME_ROWS = ("student_only", "hand_cached", "brewer_live", "brewer_cold", "brewer_warm")
"""The sides that train on the same rows in each step as the bare loop, by the same losses."""


@dataclass(frozen=True)
class Figures:
    """Medians over rounds of one side of some work.

    step_s: seconds of an optimizer step: of each window the median over rounds, so that what else the machine did now and then in one of
    them does not count. curve: the largest difference between a window's mean loss and the bare loop's; None where there is none.
    """

    side: str
    kind: str
    epochs: int
    rounds: int
    seconds: float
    cpu_seconds: float
    step_s: float
    step_cpu_s: float
    rows_per_s: float
    peak_bytes: int
    peak_bytes_after_imports: int
    curve: float | None


@dataclass(frozen=True)
class Aim:
    """What is aimed at, as a ratio of two sides. by_round: the least and the largest ratio of a round. cpu: the ratio of CPU seconds."""

    name: str
    kind: str
    limit: float
    at_least: bool
    ratio: float
    by_round: tuple[float, float] | None
    cpu: float | None

    @property
    def met(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def figures(runs: Sequence[Run], batch_size: int) -> list[Figures]:
    """Those of each side of each work, in the order in which they were first measured."""
    keys = dict.fromkeys((run["kind"], run["epochs"], run["side"]) for run in runs)
    return [_figures(_of(runs, *key), _of(runs, *key[:2], "bare"), batch_size) for key in sorted(keys, key=_order)]


def aims(runs: Sequence[Run], reading: Sequence[Mapping[str, Any]]) -> list[Aim]:
    """The aims that can be told of what was measured. Steps and memory are compared in the longest work."""
    kinds, found = list(dict.fromkeys(run["kind"] for run in runs)), list[Aim | None]()
    for kind in kinds:
        own = [run for run in runs if run["kind"] == kind]
        epochs = sorted({run["epochs"] for run in own})
        most, words = epochs[-1], f"{epochs[-1]} epochs" if epochs[-1] > 1 else "1 epoch"
        found += [
            _aim("live step / bare loop", own, most, "brewer_live", "bare", "step", 1.03),
            _aim("warm step / bare loop, features given", own, most, "brewer_warm", "student_only", "step", 1.05),
            _aim(f"{words}, TextBrewer / brewer, cold cache", own, most, "textbrewer", "brewer_cold", "whole", 4.5),
            _aim("1 epoch, TextBrewer / brewer, no cache", own, epochs[0], "textbrewer", "brewer_live", "whole", 2.5),
            _aim(
                f"{words}, brewer, cold cache / bare loop with a dict",
                own,
                most,
                "brewer_cold",
                "hand_cached",
                "whole",
                1.05,
            ),
            _aim(
                "peak memory, brewer, warm cache / labels alone", own, most, "brewer_warm", "no_teacher", "memory", 1.05
            ),
        ]
    return [aim for aim in found if aim is not None] + list(_reading_aims(reading))


def tables(result: Mapping[str, Any]) -> str:
    """The page's figures: what they were measured on, the aims, the sides, and the ways to read."""
    parts = [_machine(result), "## The aims", _aims_table(result["aims"])]
    for kind, epochs in dict.fromkeys((each["kind"], each["epochs"]) for each in result["figures"]):
        words = f"{epochs} epochs" if epochs > 1 else "1 epoch"
        own = [each for each in result["figures"] if (each["kind"], each["epochs"]) == (kind, epochs)]
        parts += [f"## {_KINDS[kind].capitalize()}, {words}", _sides_table(own)]
    for case in dict.fromkeys(each["case"] for each in result["reading"]):
        own = [each for each in result["reading"] if each["case"] == case]
        parts += [f"## Reading {case}", _reading_table(own)]
    return "\n\n".join(parts) + "\n"


def page(text: str, result: Mapping[str, Any]) -> str:
    """A page with these figures in place of those that stand between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no place for figures; it needs the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{tables(result)}\n{END}{behind}"


def as_json(found: Iterable[Figures | Aim]) -> list[dict[str, Any]]:
    """Figures or aims as JSON values."""
    return [asdict(each) | ({"met": each.met} if isinstance(each, Aim) else {}) for each in found]


def _order(key: tuple[str, int, str]) -> tuple[int, int, int]:
    return list(_KINDS).index(key[0]), key[1], list(_TITLES).index(key[2])


def _of(runs: Sequence[Run], kind: str, epochs: int, side: str) -> list[Run]:
    return [run for run in runs if (run["kind"], run["epochs"], run["side"]) == (kind, epochs, side)]


def _figures(runs: Sequence[Run], bare: Sequence[Run], batch_size: int) -> Figures:
    first, step_s = runs[0], _step(runs, "seconds")

    def median(name: str) -> Any:
        return statistics.median(run[name] for run in runs)

    return Figures(
        first["side"],
        first["kind"],
        first["epochs"],
        len(runs),
        median("seconds"),
        median("cpu_seconds"),
        step_s,
        _step(runs, "cpu_seconds"),
        batch_size / step_s,
        int(median("peak_bytes")),
        int(median("peak_bytes_after_imports")),
        _curve(first, bare[0]) if bare and first["side"] in _SAME_ROWS else None,
    )


def _step(runs: Sequence[Run], measure: str) -> float:
    """Seconds, or CPU seconds, of a step."""
    by_window = zip(*(run["windows"][measure] for run in runs), strict=True)
    return sum(map(statistics.median, by_window)) / sum(runs[0]["windows"]["steps"])


def _curve(run: Run, bare: Run) -> float:
    pairs = zip(run["windows"]["losses"], bare["windows"]["losses"], strict=True)
    return max(abs(own - other) for own, other in pairs)


def _aim(name: str, runs: Sequence[Run], epochs: int, above: str, below: str, measure: str, limit: float) -> Aim | None:
    upper, lower = (_of(runs, runs[0]["kind"], epochs, side) for side in (above, below))
    if not upper or not lower:
        return None
    rounds = zip(upper, lower, strict=True)
    ratios = [_measured([a], measure) / _measured([b], measure) for a, b in rounds]
    cpu = None if measure == "memory" else _measured(upper, measure, "cpu_") / _measured(lower, measure, "cpu_")
    ratio = _measured(upper, measure) / _measured(lower, measure)
    return Aim(name, runs[0]["kind"], limit, limit > 2, ratio, (min(ratios), max(ratios)), cpu)


def _measured(runs: Sequence[Run], measure: str, clock: str = "") -> float:
    if measure == "step":
        return _step(runs, f"{clock}seconds")
    return statistics.median(run["peak_bytes" if measure == "memory" else f"{clock}seconds"] for run in runs)


def _reading_aims(reading: Sequence[Mapping[str, Any]]) -> Iterable[Aim]:
    copies = {each["case"]: each["read_s"] for each in reading if "disk_bytes" not in each}
    for each in reading:
        if each["way"] == "brewer's cache":
            ratio = each["read_s"] / copies[each["case"]]
            yield Aim(f"reading the cache / a copy in memory: {each['case']}", "", 2.0, False, ratio, None, None)


def _machine(result: Mapping[str, Any]) -> str:
    machine, rows, settings = result["machine"], result["lengths"], result["settings"]
    setup, quantiles = settings["setup"], ", ".join(f"{q} %: {n}" for q, n in rows["quantiles"].items())
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "textbrewer"))
    sentences = [
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, threads of a side: {settings['threads']}; "
        f"Python {machine['python']}, {versions}.",
        f"Rounds: {settings['rounds']}.",
        settings["note"],
        f"Rows: {rows['rows']} of {rows['mean']} tokens on average (shares of rows that are no longer: {quantiles}), "
        f"{settings['batch_size']} in a step.",
        f"BERT of {setup['teacher_layers']} layers to {setup['student_layers']}, both {setup['width']} wide.",
    ]
    return "\n".join(sentence for sentence in sentences if sentence)


def _aims_table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            each["name"],
            each["kind"] or "-",
            f"{'>=' if each['at_least'] else '<='} {each['limit']:g}",
            f"{each['ratio']:.3f}",
            "-" if each["by_round"] is None else "{:.3f} to {:.3f}".format(*each["by_round"]),
            "-" if each["cpu"] is None else f"{each['cpu']:.3f}",
            "met" if each["met"] else "**missed**",
        ]
        for each in found
    ]
    return _table(["ratio", "learnt", "aim", "measured", "by round", "of CPU time", ""], rows)


def _sides_table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _TITLES[each["side"]],
            f"{1e3 * each['step_s']:.2f}",
            f"{each['rows_per_s']:.0f}",
            "-" if each["side"] == "student_only" else f"{each['seconds']:.2f}",
            "-" if each["side"] == "student_only" else f"{each['peak_bytes'] / 1e6:.0f}",
            "-" if each["side"] == "student_only" else f"{each['peak_bytes_after_imports'] / 1e6:.0f}",
            "-" if each["curve"] is None else f"{each['curve']:.1e}",
        ]
        for each in found
    ]
    titles = [
        "side",
        "ms a step",
        "rows a s",
        "whole run, s",
        "peak, MB",
        "above imports, MB",
        "loss, from the bare loop's",
    ]
    return _table(titles, rows)


def _reading_table(found: Sequence[Mapping[str, Any]]) -> str:
    copy = found[0]["read_s"]
    rows = [
        [
            each["way"],
            f"{1e3 * each['write_s']:.1f}" if "write_s" in each else "-",
            f"{1e3 * each['first_read_s']:.1f}" if "first_read_s" in each else "-",
            f"{1e3 * each['read_s']:.1f}",
            f"{each['read_s'] / copy:.2f}",
            f"{each.get('disk_bytes', each['bytes']) / 1e6:.2f}",
        ]
        for each in found
    ]
    return _table(["way", "write, ms", "first pass, ms", "later passes, ms", "of a copy", "MB"], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
