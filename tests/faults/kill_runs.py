"""Kills runs with SIGKILL at random moments, goes on with them until they are done, and compares bit for bit.

Usage: python tests/faults/kill_runs.py [--kills 50] [--seed 0]
For each of several configs a run is carried out undisturbed; then the same run again, killed at moments that the seed gives: by
another process after a random time, or by itself just as it hands its n-th file over to the disk, so inside a save. Prints what
was killed where, and exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from runs import bert, distill, document, films, supervised, training, weights_in, write_config

VARYING = ("steps_per_s", "seconds", "started", "finished", "resumed")
"""Figures that tell the time."""
PATIENCE_S = 300


@dataclass
class Kills:
    """How often runs were killed, and where they were just then. inside: the share of those that are inside a save."""

    wanted: int
    draws: random.Random
    inside: float = 0.5
    moments: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.wanted - self.moments.total()


def configs() -> dict[str, dict[str, Any]]:
    """The runs: several stages, projections that train, dropout, augmentation, accumulation, a best model, baselines, tasks."""
    many = {"steps": 24, "batch_size": 4, "checkpoint_every_steps": 3, "keep_last": 2, "log_every_steps": 2}
    match = {"feature": "hidden", "layer_T": 2, "layer_S": 1, "loss": "hidden_mse", "weight": 1}
    general = document(
        models={"teacher": bert(16, 2), "student": bert(8, 1)},
        stages=[
            supervised(training=training(**many)),
            distill(
                distillation={
                    "kd_loss_type": "kl",
                    "kd_loss_weight_scheduler": "linear_decay",
                    "hard_label_weight": 1,
                    "intermediate_matches": [{**match, "proj": ["linear", 8, 16]}],
                },
                training=training(**{**many, "accumulation": 2}),
            ),
        ],
        evaluation={"data": "films", "best": {"metric": "accuracy"}, "every_steps": 5},
        baselines=["labels_only"],
        trackers=["tensorboard"],
    )
    general["data"]["films"]["augmentations"] = [{"name": "masking", "p": 0.3}]
    dense = document(
        stages=[
            supervised(
                training=training(**{**many, "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}})
            ),
            distill(training=training(**{**many, "checkpoint_every_steps": 1, "schedule": {"name": "one_cycle"}})),
        ]
    )
    passes = {name: value for name, value in many.items() if name != "steps"}
    cached = document(
        stages=[
            supervised(training=training(**many)),
            distill(
                distillation={"kd_loss_type": "kl", "intermediate_matches": [{**match, "proj": ["linear", 16, 16]}]},
                training={**passes, "epochs": 4, "optimizer": {"learning_rate": 0.01}},
            ),
        ],
        models={"teacher": bert(16, 3), "student": bert(16, 1)},
    )
    return {"general": general, "a checkpoint a step": dense, "tasks": _tasks(many), "a cached teacher": cached}


def _tasks(many: Mapping[str, Any]) -> dict[str, Any]:
    paths = {split: f"{split}.csv" for split in ("train", "transfer", "eval")}
    source = {"name": "csv", "path": paths}
    both = {"films": {"source": source, "task": "a"}, "more": {"source": source, "task": "b", "select": {"share": 0.5}}}
    return document(
        task=None,
        tasks={"a": {"kind": "text_classification"}, "b": {"kind": "text_classification"}},
        data=both,
        stages=[
            supervised(training=training(**many)),
            distill(
                teachers=[{"model": "teacher", "task": "a"}, {"model": "other", "task": "b"}],
                train=["films", "more"],
                unlabelled=[],
                strategy={"name": "multi_task", "tau": 0.5},
                training=training(**many),
            ),
        ],
        models={"teacher": bert(16, 2), "other": bert(16, 1), "student": bert(8, 1)},
        evaluation={"data": ["films", "more"]},
    )


class Undisturbed(NamedTuple):
    """What a run does by itself: seconds until it begins to write and until its end, and how often it flushes a file."""

    begins_s: float
    ends_s: float
    flushes: int


def start(folder: Path, output: Path, last_flush: int = 0) -> subprocess.Popen[bytes]:
    """The run, in a process of its own, going on where it is; killed inside its n-th flush, if one is given."""
    options = ["run", "config.json", "--resume", "--output", str(output)]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("flushing.py")), str(last_flush), *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # it starts often, and each run fills a cache of its own
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "",
            "OMP_NUM_THREADS": "1",
            "BREWER_CACHE": str(output.with_suffix(".cache")),
        },
    )


def carried_out(folder: Path, output: Path) -> Undisturbed:
    """The run, undisturbed. Raises RuntimeError where it fails."""
    started = time.monotonic()
    process = start(folder, output)
    while process.poll() is None and not (output / "lock").exists():
        time.sleep(0.01)
    begins = time.monotonic() - started
    _, said = process.communicate(timeout=PATIENCE_S)
    if process.returncode:
        raise RuntimeError(f"{output.name} ended with {process.returncode}: {said.decode()}")
    flushes = said.decode().rpartition("flushes: ")[2]
    return Undisturbed(begins, time.monotonic() - started, int(flushes))


def killed_until_done(folder: Path, output: Path, kills: Kills, whole: Undisturbed) -> None:
    """The run, killed as long as kills are left, and then carried out."""
    while kills.left > 0:
        inside = kills.draws.random() < kills.inside
        process = start(folder, output, kills.draws.randint(1, whole.flushes // 2) if inside else 0)
        if not inside:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kills.draws.uniform(0.8 * whole.begins_s, whole.ends_s))
            process.kill()
        _, said = process.communicate(timeout=PATIENCE_S)
        if process.returncode == 0:  # it was done before the moment came
            return
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{output.name} ended with {process.returncode}: {said.decode()}")
        kills.moments["inside a save, " * inside + _where(output)] += 1
    carried_out(folder, output)


def _where(output: Path) -> str:
    """The stage or baseline that a run is in, by the folders that are there."""
    folders = [path for kind in ("stages", "baselines") for path in (output / kind).glob("*") if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime).name if folders else "before the first stage"


def differences(left: Path, right: Path) -> Iterator[str]:
    """What is not the same, bit for bit, in what two runs left."""
    models = sorted(
        path.parent.relative_to(left) for path in left.glob("**/model.safetensors") if "checkpoints" not in str(path)
    )
    if not models:
        yield "no model"
    for model in models:
        ours, theirs = weights_in(left / model), weights_in(right / model)
        yield from (f"{model}: {name}" for name in ours if not ours[name].equal(theirs[name]))
    if _without_times(_lines(left)) != _without_times(_lines(right)):
        yield "metrics.jsonl"
    if _without_times(_read(left, "summary.json")) != _without_times(_read(right, "summary.json")):
        yield "summary.json"
    yield from (f"TensorBoard: {name}" for name in _curves_differ(left, right))


def _curves_differ(left: Path, right: Path) -> Iterator[str]:
    for folder in sorted(path.relative_to(left) for path in left.glob("**/tensorboard")):
        ours, theirs = _curves(left / folder), _curves(right / folder)
        if [key for key in ours if VARYING[0] not in key] and ours != theirs:
            yield str(folder)


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point of every event file, in order."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if VARYING[0] not in value.tag:
                    points.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return points


def _lines(run: Path) -> list[Any]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text(encoding="utf-8"))


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_times(inner) for key, inner in value.items() if key not in VARYING}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def compare(name: str, config: Mapping[str, Any], folder: Path, kills: Kills) -> list[str]:
    """What differs between a run that is killed and the same run undisturbed."""
    films(folder)
    write_config(folder, dict(config))
    whole = carried_out(folder, folder / "whole")
    killed_until_done(folder, folder / "killed", kills, whole)
    return [f"{name}: {difference}" for difference in differences(folder / "whole", folder / "killed")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draws, moments, found, number = random.Random(arguments.seed), Counter[str](), list[str](), 0
    while moments.total() < arguments.kills:
        name, config = list(configs().items())[number % len(configs())]
        kills = Kills(min(draws.randint(3, 8), arguments.kills - moments.total()), draws)
        with tempfile.TemporaryDirectory() as folder:
            found += compare(name, {**config, "seed": number}, Path(folder), kills)
        moments += kills.moments
        number += 1
        print(f"run {number} ({name}): {kills.moments.total()} kills", flush=True)
    for moment, count in moments.most_common():
        print(f"  {count:3d}  {moment}")
    print(f"{moments.total()} kills in {number} runs; {len(found)} differences", *found, sep="\n  ")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
