"""Runs as small as can be: configs on a few rows of text, which `brewer run` carries out in a second or two."""

from __future__ import annotations

import csv
import json
import signal
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from brewer_core.cli.main import execute

GOOD, BAD = ("a good film", "good fun", "what a good story"), ("a bad film", "bad fun", "what a bad and long story")


def labelled(count: int) -> list[dict[str, str]]:
    """Rows of two classes, by turns."""
    return [{"text": f"{(GOOD, BAD)[i % 2][i // 2 % 3]} {i}", "label": "pn"[i % 2]} for i in range(count)]


def unlabelled(count: int, label: str = "") -> list[dict[str, str]]:
    """Other rows, whose label is empty unless one is given."""
    return [{**row, "text": f"{row['text']} more", "label": label} for row in labelled(count)]


def write_csv(file: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """A CSV file with a header."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def bert(width: int, layers: int, **more: Any) -> dict[str, Any]:
    """A model from a config, the smallest that transformers makes."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": width}
    return {"name": "hf", "config": {"model_type": "bert", **sizes, **more}}


def training(**more: Any) -> dict[str, Any]:
    """How a stage trains: three steps of four rows."""
    return {"steps": 3, "batch_size": 4, "optimizer": {"learning_rate": 0.01}, **more}


def supervised(**more: Any) -> dict[str, Any]:
    """A stage that trains the teacher."""
    return {
        "kind": "supervised",
        "name": "teacher",
        "model": "teacher",
        "train": ["films"],
        "training": training(),
        **more,
    }


def distill(**more: Any) -> dict[str, Any]:
    """A stage that distils the teacher into the student, on labelled and on unlabelled rows."""
    return {
        "kind": "distill",
        "name": "distil",
        "student": "student",
        "teachers": ["teacher"],
        "train": ["films"],
        "unlabelled": ["films"],
        "distillation": {"kd_loss_type": "kl", "hard_label_weight": 1},
        "training": training(),
        **more,
    }


def document(**changes: Any) -> dict[str, Any]:
    """A config of both stages on the files that `films` writes."""
    paths = {split: f"{split}.csv" for split in ("train", "transfer", "eval")}
    return {
        "data": {"films": {"source": {"name": "csv", "path": paths}}},
        "tokenizer": {"from": "train", "max_length": 16, "vocab_size": 80},
        "models": {"teacher": bert(16, 2), "student": bert(8, 1)},
        "stages": [supervised(), distill()],
        "evaluation": {"data": "films"},
        "trackers": [],
        **changes,
    }


def films(folder: Path) -> Path:
    """The folder, with the files that `document` names."""
    write_csv(folder / "train.csv", labelled(16))
    write_csv(folder / "transfer.csv", unlabelled(12))
    write_csv(folder / "eval.csv", labelled(10))
    return folder


def write_config(folder: Path, config: Any = None, name: str = "config.json") -> Path:
    """A config file in a folder; `document()` where none is given, and a text as it stands."""
    file = folder / name
    file.write_text(config if isinstance(config, str) else json.dumps(config or document()), encoding="utf-8")
    return file


def brewer(*arguments: str | Path) -> int:
    """Carry out a command line and return its exit status, leaving the process as it was."""
    handler, show = signal.getsignal(signal.SIGTERM), warnings.showwarning
    try:
        return execute([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
        warnings.showwarning = show


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a folder that `save_pretrained` wrote."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with what it holds."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def read(file: Path) -> Any:
    """The JSON in a file."""
    return json.loads(file.read_text(encoding="utf-8"))
