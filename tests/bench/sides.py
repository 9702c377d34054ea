"""All sides by name: the loops written by hand, TextBrewer, and brewer without a cache, with an empty one and with a filled one.

Each function imports what it needs before the clock starts, and returns what is timed.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.loops import bare, hand_cached, optimizer_of, rate, student_only
from bench.measuring import Timed, Windows
from bench.work import (
    CLIP,
    HARD_WEIGHT,
    LEARNING_RATE,
    MAX_LENGTH,
    PROJECTIONS,
    RELATION_HEADS,
    RELATIONS,
    STAGE,
    TEMPERATURE,
    Work,
    read_rows,
)


def textbrewer(work: Work, folder: Path) -> Timed:
    """GeneralDistiller as its tutorials have it: rows padded to the longest that there may be, in random order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import textbrewer as tb
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def adaptor(batch: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
        found = {"logits": (outputs.logits,), "losses": (outputs.loss,), "inputs_mask": batch["attention_mask"]}
        return {**found, "hidden": outputs.hidden_states} if work.layers else found

    def timed(windows: Windows) -> None:
        teacher, student = (
            AutoModelForSequenceClassification.from_pretrained(f) for f in (work.setup.teacher, work.setup.student)
        )
        tokenizer, rows = AutoTokenizer.from_pretrained(work.setup.teacher), read_rows(work.setup)
        columns = tokenizer(
            [row["text"] for row in rows],
            padding="max_length",
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        columns["labels"] = torch.tensor([student.config.label2id[row["label"]] for row in rows])
        items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        loader = DataLoader(items, work.batch_size, shuffle=True)
        total = len(loader) * work.epochs
        config = tb.DistillationConfig(
            temperature=TEMPERATURE,
            kd_loss_type="ce",
            kd_loss_weight=TEMPERATURE**2,
            hard_label_weight=HARD_WEIGHT,
            intermediate_matches=_matches(work),
        )
        training = tb.TrainingConfig(output_dir=str(folder / "saved"), device="cpu")
        distiller = tb.GeneralDistiller(training, config, teacher, student, adaptor, adaptor)
        with distiller:
            distiller.train(
                optimizer_of(student),
                _Heard(loader, windows, work.epochs),
                num_epochs=work.epochs,
                scheduler_class=torch.optim.lr_scheduler.LambdaLR,
                scheduler_args={"lr_lambda": lambda step: rate(step, total)},
                max_grad_norm=CLIP,
                output_hidden_states=bool(work.layers),
            )
        student.save_pretrained(folder / "student")
        tokenizer.save_pretrained(folder / "student")

    return timed


def brewer_live(work: Work, folder: Path) -> Timed:
    """`brewer run` without a cache: the teacher runs in every step."""
    return _run(work, folder, "off")


def brewer_cold(work: Work, folder: Path) -> Timed:
    """`brewer run` with a cache that is empty when it starts, so that the teacher runs in the first epoch."""
    return _run(work, folder, str(folder / "cache"))


def brewer_warm(work: Work, folder: Path) -> Timed:
    """`brewer run` with a cache that an earlier run has filled: see `fill`."""
    return _run(work, folder, str(work.warm_cache))


def no_teacher(work: Work, folder: Path) -> Timed:
    """`brewer run` of the student on labels alone."""
    stage = {"kind": "supervised", "model": "student"}
    return _run(work, folder, "off", stage)


def fill(work: dict[str, Any]) -> None:
    """Have the cache that `brewer_warm` reads filled by a run of one epoch."""
    first = replace(Work.from_json(work), epochs=1)
    with tempfile.TemporaryDirectory(dir=first.setup.folder) as folder:
        _run(first, Path(folder), str(first.warm_cache))(Windows())


SIDES: dict[str, Callable[[Work, Path], Timed]] = {
    side.__name__: side
    for side in (bare, student_only, hand_cached, textbrewer, brewer_live, brewer_cold, brewer_warm, no_teacher)
}


def _run(work: Work, folder: Path, cache: str, stage: Mapping[str, Any] | None = None) -> Timed:
    """A run of one stage, a distillation where nothing else is said. Only what has to be said is in its config."""
    from brewer_core.listeners import Listener
    from brewer_core.plugins import default_registry
    from brewer_core.run import run_config
    from brewer_core.run.reporting import Reporter

    registry = default_registry()

    class Heard(Listener):
        """Tells the windows of a training."""

        def __init__(self, windows: Windows) -> None:
            self._windows = windows

        def begin(self, total_steps: int) -> None:
            self._windows.begin()

        def stepped(self, step: int) -> None:
            self._windows.count()

        def logged(self, step: int, values: Mapping[str, float]) -> None:
            if "total_loss" in values:  # and not the figures of an evaluation
                self._windows.close(values["total_loss"])

    class Telling(Reporter):
        def __init__(self, windows: Windows) -> None:
            self._windows = windows

        def bar(self, title: str) -> Listener:
            return Heard(self._windows)

    folder.mkdir(exist_ok=True)
    config = folder / "config.json"
    config.write_text(json.dumps(_document(work, cache, stage or _distillation(work))), encoding="utf-8")

    def timed(windows: Windows) -> None:
        run_config(config, output=folder / "run", device="cpu", registry=registry, reporter=Telling(windows))

    return timed


def _document(work: Work, cache: str, stage: Mapping[str, Any]) -> dict[str, Any]:
    paths = {split: str(work.setup.path / f"{split}.jsonl") for split in ("train", "eval")}
    training = {
        "epochs": work.epochs,
        "batch_size": work.batch_size,
        "optimizer": {"learning_rate": LEARNING_RATE},
        "max_grad_norm": CLIP,
    }
    classes = json.loads((work.setup.student / "config.json").read_text(encoding="utf-8"))["id2label"]
    names = ("student",) if stage["kind"] == "supervised" else ("teacher", "student")
    return {
        "seed": work.seed,
        "task": {"labels": [classes[str(i)] for i in range(len(classes))]},
        "data": {"texts": {"source": {"name": "jsonl", "path": paths}}},
        "tokenizer": {"from": str(work.setup.teacher), "max_length": MAX_LENGTH},
        "models": {name: {"name": "hf", "path": str(work.setup.path / name)} for name in names},
        "stages": [{"name": STAGE, "train": ["texts"], "training": training, **stage}],
        "evaluation": {"data": "texts.eval"},
        "cache": cache,
        "trackers": [],
    }


def _distillation(work: Work) -> dict[str, Any]:
    distillation = {
        "temperature": TEMPERATURE,
        "kd_loss_type": "kl",
        "hard_label_weight": HARD_WEIGHT,
        "intermediate_matches": _matches(work),
    }
    return {"kind": "distill", "student": "student", "teachers": ["teacher"], "distillation": distillation}


def _matches(work: Work) -> list[dict[str, Any]]:
    if work.kind == RELATIONS:
        loss = {"name": "minilmv2", "relation_heads": RELATION_HEADS}
        return [{"feature": name, "layer_T": -1, "layer_S": -1, "loss": loss, "weight": 1} for name in PROJECTIONS]
    return [
        {"feature": "hidden", "layer_T": teacher, "layer_S": student, "loss": "hidden_mse", "weight": 1}
        for teacher, student in work.layers
    ]


class _Heard:
    """A loader that tells the windows of a training that asks it for its batches and has no other way to tell.

    A step is from one batch being asked for to the next.
    """

    def __init__(self, loader: Any, windows: Windows, epochs: int) -> None:
        self._loader, self._windows, self._epochs, self._read = loader, windows, epochs, 0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if not self._read:
            self._windows.begin()
        for batch in self._loader:
            yield batch
            self._windows.step()
        self._read += 1
        if self._read == self._epochs:
            self._windows.close()
