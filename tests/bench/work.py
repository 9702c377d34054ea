"""What is trained: sentences of complaints in mixed lengths, a tokenizer made of them, a teacher and a student."""

from __future__ import annotations

import gzip
import json
import random
import re
import statistics
from collections.abc import Iterator
from csv import DictReader
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

MAX_LENGTH = 128
EVALUATED_ROWS = 16
LOGITS, HIDDEN, RELATIONS = "logits", "hidden", "relations"
KINDS = (LOGITS, HIDDEN, RELATIONS)
"""What is learnt of the teacher: its logits, or with them two hidden states, or relations of queries, keys and values in the last layer."""
PROJECTIONS, RELATION_HEADS = ("query", "key", "value"), 8

TEMPERATURE, HARD_WEIGHT, CLIP, LEARNING_RATE = 2.0, 0.5, 1.0, 5e-4
WINDOW = 10
"""Optimizer steps that are timed and logged together."""
STAGE = "distil"

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Setup:
    """What a comparison is made on. folder: where `prepare` puts it."""

    folder: str
    rows: int = 1600
    width: int = 128
    teacher_layers: int = 12
    student_layers: int = 3
    vocab_size: int = 8000

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def teacher(self) -> Path:
        return self.path / "teacher"

    @property
    def student(self) -> Path:
        return self.path / "student"


@dataclass(frozen=True)
class Work:
    """One training to be measured. kind: what is learnt of the teacher."""

    setup: Setup
    kind: str = LOGITS
    epochs: int = 1
    batch_size: int = 16
    seed: int = 0

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """The hidden states that are matched, teacher's and student's; 4 to 1 and 12 to 3 of models of 12 and 3 layers."""
        teacher, student = self.setup.teacher_layers, self.setup.student_layers
        return ((max(1, teacher // 3), 1), (teacher, student)) if self.kind == HIDDEN else ()

    @property
    def warm_cache(self) -> Path:
        """The cache that an earlier run has filled."""
        return self.setup.path / f"cache-{self.kind}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Work:
        return cls(**{**value, "setup": Setup(**value["setup"])})


def prepare(**setup: Any) -> dict[str, Any]:
    """Write texts, tokenizer and models into the setup's folder; the lengths of the rows that are trained on, in tokens."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.utils import logging

    from brewer_core.run.tokenizers import train_tokenizer

    logging.disable_progress_bar()
    made = Setup(**setup)
    rows = _drawn(made.rows + EVALUATED_ROWS)
    made.path.mkdir(parents=True, exist_ok=True)
    _write(made.path / "train.jsonl", rows[: made.rows])
    _write(made.path / "eval.jsonl", rows[made.rows :])
    tokenizer = train_tokenizer([row["text"] for row in rows], made.vocab_size)
    classes = sorted({row["label"] for row in rows})
    for folder, layers, seed in ((made.teacher, made.teacher_layers, 0), (made.student, made.student_layers, 1)):
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=made.width,
            num_hidden_layers=layers,
            num_attention_heads=max(2, made.width // 64),
            intermediate_size=4 * made.width,
            max_position_embeddings=MAX_LENGTH,
            hidden_dropout_prob=0.0,  # drawn numbers would tell the sides' curves apart
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(classes)),
            label2id={name: i for i, name in enumerate(classes)},
        )
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    encoded = tokenizer([row["text"] for row in rows[: made.rows]], truncation=True, max_length=MAX_LENGTH)
    return _described(sorted(map(len, encoded["input_ids"])))


def read_rows(setup: Setup) -> list[dict[str, str]]:
    """The rows that are trained on, as they are written."""
    with (setup.path / "train.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _drawn(count: int) -> list[dict[str, str]]:
    rows = list(_passages())
    if count > len(rows):
        raise SystemExit(
            f"there are {len(rows) - EVALUATED_ROWS} rows to train on, fewer than {count - EVALUATED_ROWS}."
        )
    return random.Random(0).sample(rows, count)


def _passages() -> Iterator[dict[str, str]]:
    """The complaints that ship with brewer, cut into passages of one to three sentences, each with its complaint's label."""
    draws = random.Random(0)
    for name in ("complaints_train.csv.gz", "complaints_test.csv.gz"):
        packed = (files("brewer_builtins") / "data" / name).read_bytes()
        for row in DictReader(gzip.decompress(packed).decode().splitlines(keepends=True)):
            sentences = [each for each in _SENTENCE.split(row["text"]) if each.strip()]
            while sentences:
                taken = 1 + (draws.random() < 0.4) + (draws.random() < 0.2)
                yield {"text": " ".join(sentences[:taken]), "label": row["label"]}
                sentences = sentences[taken:]


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _described(lengths: list[int]) -> dict[str, Any]:
    """How many rows there are, and how long; `quantiles` by per cent."""
    quantiles = {str(q): lengths[round(q / 100 * (len(lengths) - 1))] for q in (0, 10, 25, 50, 75, 90, 99, 100)}
    return {"rows": len(lengths), "mean": round(statistics.mean(lengths), 2), "quantiles": quantiles}
