"""Measures a side in a process of its own: seconds, CPU seconds and peak memory, from behind its imports to its end."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.work import WINDOW, Work

TESTS = Path(__file__).parent.parent

IMPORTED_WHEN_USED = (
    "numpy.linalg",
    "pyarrow.ipc",
    "safetensors.numpy",
    "torch._dynamo",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "sklearn.metrics",
)
"""What models, tokens, optimizers and metrics import at their first use, on whichever side: all have it before the clock starts."""


@dataclass
class Windows:
    """Every ten optimizer steps of a training: how many, the seconds and CPU seconds that they took, and the mean loss.

    Nothing is read off a loss before the window is closed. Where there is no loss, its mean is None.
    """

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    _count: int = 0
    _sum: Any = None
    _since: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        """The next window begins now."""
        self._count, self._sum, self._since = 0, None, _now()

    def step(self, loss: Any = None) -> None:
        """A step is done, with its loss as a tensor; the window is closed where it is full."""
        self.count(loss)
        if self._count == WINDOW:
            self.close()

    def count(self, loss: Any = None) -> None:
        """A step is done; who counts closes the windows."""
        self._count += 1
        if loss is not None:
            self._sum = loss.detach() if self._sum is None else self._sum + loss.detach()

    def close(self, loss: float | None = None) -> None:
        """Close the window, if it holds a step. loss: its mean, where the steps brought none."""
        if not self._count:
            return
        self.losses.append(loss if self._sum is None else float(self._sum) / self._count)
        seconds, cpu_seconds = (now - then for now, then in zip(_now(), self._since, strict=True))
        self.steps.append(self._count)
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)
        self.begin()

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}


Timed = Callable[[Windows], None]
"""What is timed of a side; it tells the windows of its steps."""


def isolated(function: str, threads: int = 1, **arguments: Any) -> Any:
    """What `module:function` returns, as JSON, in a process of its own with so many threads."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "bench.measuring", function, json.dumps(arguments), str(answer)]
        done = subprocess.run(command, env=_environment(threads), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{function}({arguments}) failed:\n{done.stderr[-4000:]}")
        return json.loads(answer.read_text(encoding="utf-8"))


def measure(side: str, work: dict[str, Any]) -> dict[str, Any]:
    """Carry out one side of some work."""
    from bench.sides import SIDES

    with tempfile.TemporaryDirectory(dir=work["setup"]["folder"]) as folder:
        for name in IMPORTED_WHEN_USED:
            importlib.import_module(name)
        timed = SIDES[side](Work.from_json(work), Path(folder))
        gc.collect()
        loaded, windows, imported = resident_bytes(), Windows(), set(sys.modules)
        _forget_peak()
        started = _now()
        timed(windows)
        seconds, cpu_seconds = (now - then for now, then in zip(_now(), started, strict=True))
    return {
        "side": side,
        "kind": work["kind"],
        "epochs": work["epochs"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes(),
        "peak_bytes_after_imports": peak_bytes() - loaded,
        "imported_on_the_clock": sorted(set(sys.modules) - imported),
        "windows": windows.to_json(),
    }


def resident_bytes() -> int:
    """The memory of this process that is resident now; its peak where the system does not say."""
    return _status("VmRSS") or _highest()


def peak_bytes() -> int:
    """The most memory of this process that was resident since `measure` asked; where the system does not say, ever."""
    return _status("VmHWM") or _highest()


def _forget_peak() -> None:
    """From now on the peak is that of what comes. Linux alone can; elsewhere it stays what it was."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None


def _highest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _environment(threads: int) -> dict[str, str]:
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **own}


def _main(function: str, arguments: str, answer: str) -> None:
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
