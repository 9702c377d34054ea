"""Compares brewer with a bare PyTorch loop, a loop with a dict for a cache, and TextBrewer: time, memory and loss curves.

Usage: python tests/bench/compare.py [--rounds 3] [--rows 1600] [--epochs 1 5] [--only SIDE ...] [--output bench.json]
       python tests/bench/compare.py --docs bench.json

Every side of every round runs in a process of its own, in turns, and in another order each round. Prints the tables, and writes
all that was measured as JSON. Nothing is asserted: machines differ. `--docs` puts the figures of such a file into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measuring import isolated
from bench.report import aims, as_json, figures, page, tables
from bench.work import KINDS, RELATIONS, Setup, Work

SIDES = ("bare", "student_only", "hand_cached", "textbrewer", "brewer_live", "brewer_cold", "brewer_warm", "no_teacher")
PAGE = Path(__file__).parent.parent.parent / "docs" / "benchmarks.md"

Ask = Callable[..., Any]
"""Calls a function by its name, in whichever process."""


def compared(
    setup: Setup,
    *,
    sides: Sequence[str] = SIDES,
    kinds: Sequence[str] = KINDS,
    epochs: Sequence[int] = (1, 5),
    rounds: int = 3,
    batch_size: int = 16,
    threads: int = 1,
    reading: bool = True,
    note: str = "",
    ask: Ask = isolated,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure sides on each kind of work. note: what is to be said of the machine beside its name."""
    lengths = ask("bench.work:prepare", threads, **setup.__dict__)
    works = [Work(setup, kind, count, batch_size) for kind in kinds for count in epochs]
    if "brewer_warm" in sides:
        for kind in kinds:
            ask("bench.sides:fill", threads, work=Work(setup, kind, 1, batch_size).to_json())
    runs = []
    for number, side, work in _turns(rounds, sides, works):
        run = ask("bench.measuring:measure", threads, side=side, work=work.to_json())
        took = f"{run['seconds']:.2f} s, of the CPU {run['cpu_seconds']:.2f} s"
        say(f"round {number + 1}, {work.kind}, {work.epochs} epoch(s), {side}: {took}")
        runs.append({"round": number, **run})
    read = ask("bench.reading:measure", threads, work=works[0].to_json()) if reading else []
    return {
        "machine": _machine(),
        "settings": {
            "setup": {name: value for name, value in setup.__dict__.items() if name != "folder"},
            "rounds": rounds,
            "batch_size": batch_size,
            "threads": threads,
            "note": note,
        },
        "lengths": lengths,
        "aims": as_json(aims(runs, read)),
        "figures": as_json(figures(runs, batch_size)),
        "reading": read,
        "runs": runs,
    }


def _turns(rounds: int, sides: Sequence[str], works: Sequence[Work]) -> Iterator[tuple[int, str, Work]]:
    """Every side of every work in each round; the sides begin with the next one each time."""
    for number in range(rounds):
        for work in works:
            first = number % len(sides)
            for side in (*sides[first:], *sides[:first]):
                # TextBrewer reads what models return, and nothing inside them
                if side != "textbrewer" or work.kind != RELATIONS:
                    yield number, side, work


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "textbrewer")}
    return {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "python": platform.python_version(),
        **versions,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1600, help="rows to train on")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is learnt of the teacher")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--width", type=int, default=128, help="of teacher and student")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--note", default="", help="a sentence on the machine, such as what else it was doing")
    parser.add_argument("--output", type=Path, help="a file for all that was measured, as JSON")
    parser.add_argument(
        "--docs", type=Path, metavar="JSON", help="measure nothing; put the figures of a file into the page"
    )
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    if arguments.docs:
        result = json.loads(arguments.docs.read_text(encoding="utf-8"))
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        result = compared(
            Setup(folder, rows=arguments.rows, width=arguments.width),
            sides=arguments.only,
            kinds=arguments.kinds,
            epochs=arguments.epochs,
            rounds=arguments.rounds,
            batch_size=arguments.batch_size,
            threads=arguments.threads,
            note=arguments.note,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(tables(result))


if __name__ == "__main__":
    main()
