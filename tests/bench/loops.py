"""Loops as one writes them by hand, on the rows that brewer has in each step. They are what brewer is compared with.

Each function imports what it needs and what is given it before the clock starts, and returns what is timed.

Shapes: B rows, L tokens of the longest row of a batch, n tokens of a row, D width, C classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

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
from brewer_core.run.loading import LengthGroupedBatches

Batch = dict[str, Tensor]

_NO_DECAY = 0.0
_DECAY = 0.01
_WARMUP = 0.1


@dataclass(frozen=True)
class Taught:
    """What is read of a model for a batch: logits [B, C], and states [B, L, D] of what else is matched."""

    logits: Tensor
    states: tuple[Tensor, ...]


class Model:
    """The teacher or the student of some work, as loaded, which gives what is read of it. Projections are heard by hooks."""

    def __init__(self, work: Work, role: str) -> None:
        from transformers import AutoModelForSequenceClassification

        self.model: Any = AutoModelForSequenceClassification.from_pretrained(work.setup.path / role).eval()
        self._layers = [pair[role == "student"] for pair in work.layers]
        self._heard: dict[str, Tensor] = {}
        if work.kind == RELATIONS:
            attention = self.model.bert.encoder.layer[-1].attention.self
            for name in PROJECTIONS:
                attention.get_submodule(name).register_forward_hook(partial(self._hear, name))

    def __call__(self, batch: Batch) -> Taught:
        outputs = self.model(**_inputs(batch), output_hidden_states=bool(self._layers))
        states = tuple(outputs.hidden_states[layer] for layer in self._layers)
        return Taught(outputs.logits, states + tuple(self._heard[name] for name in PROJECTIONS if name in self._heard))

    def _hear(self, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._heard[name] = output


Teach = Callable[[Sequence[int], Batch], Taught]
"""What the teacher says of a batch, which is that of some row numbers."""


def bare(work: Work, folder: Path) -> Timed:
    """The teacher runs in every step."""

    def timed(windows: Windows) -> None:
        teacher, student, data = Model(work, "teacher"), Model(work, "student"), Data(work)
        _train(work, student, data, lambda _, batch: _ask(teacher, batch), windows)
        _save(student, data, folder)

    return timed


def hand_cached(work: Work, folder: Path) -> Timed:
    """The teacher runs in the first epoch; what it said is remembered by row."""

    def timed(windows: Windows) -> None:
        teacher, student, data = Model(work, "teacher"), Model(work, "student"), Data(work)
        memory: dict[int, Taught] = {}

        def teach(numbers: Sequence[int], batch: Batch) -> Taught:
            if any(number not in memory for number in numbers):
                taught = _ask(teacher, batch)
                memory.update(_by_row(numbers, taught, batch))
                return taught
            return _joined([memory[number] for number in numbers])

        _train(work, student, data, teach, windows)
        _save(student, data, folder)

    return timed


def student_only(work: Work, folder: Path) -> Timed:
    """No teacher: what it says is there for every batch before the clock starts. Training alone is timed."""
    teacher, student, data = Model(work, "teacher"), Model(work, "student"), Data(work)
    known: dict[int, Taught] = {}
    for numbers, batch in data.batches(1):
        known.update(_by_row(numbers, _ask(teacher, batch), batch))
    given = iter([_joined([known[number] for number in numbers]) for numbers in data.orders(work.epochs)])
    del teacher, known

    def timed(windows: Windows) -> None:
        _train(work, student, data, lambda *_: next(given), windows)
        _save(student, data, folder)

    return timed


class Data:
    """The rows of some work as tokens, and batches of them in brewer's order."""

    def __init__(self, work: Work) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer = tokenizer = AutoTokenizer.from_pretrained(work.setup.teacher)
        classes = AutoConfig.from_pretrained(work.setup.student).label2id
        rows = read_rows(work.setup)
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)
        self.columns = {name: [torch.tensor(row) for row in column] for name, column in encoded.items()}
        self.labels = torch.tensor([classes[row["label"]] for row in rows])
        self.lengths = list(map(len, encoded["input_ids"]))
        self._fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        self._work = work

    def orders(self, epochs: int) -> Iterator[list[int]]:
        """The row numbers of each step."""
        seed = zlib.crc32(f"{self._work.seed}/batches/{STAGE}".encode())  # that of the run's stage
        order = LengthGroupedBatches(self.lengths, self._work.batch_size, seed)
        for _ in range(epochs):
            yield from order

    def batches(self, epochs: int) -> Iterator[tuple[list[int], Batch]]:
        """Row numbers, and those rows padded to the longest of them."""
        for numbers in self.orders(epochs):
            padded = {
                name: pad_sequence([column[i] for i in numbers], True, self._fill.get(name, 0))
                for name, column in self.columns.items()
            }
            yield numbers, {**padded, "labels": self.labels[numbers]}


def optimizer_of(student: nn.Module) -> torch.optim.Optimizer:
    """AdamW, without decay of biases and norms."""
    parameters = list(student.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": _DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": _NO_DECAY},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE)


def rate(step: int, total: int) -> float:
    """The factor of the learning rate: up over the first tenth of the steps, then down to 0."""
    warmup = round(_WARMUP * total)
    return (step + 1) / (warmup + 1) if step < warmup else 1 - (step - warmup) / max(1, total - warmup)


def _train(work: Work, student: Model, data: Data, teach: Teach, windows: Windows) -> None:
    total = sum(1 for _ in data.orders(work.epochs))
    optimizer = optimizer_of(student.model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total))
    student.model.train()
    windows.begin()
    for numbers, batch in data.batches(work.epochs):
        taught = teach(numbers, batch)
        loss = _loss(work, student(batch), taught, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(student.model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        windows.step(loss)
    windows.close()


def _loss(work: Work, own: Taught, taught: Taught, batch: Batch) -> Tensor:
    log_q = F.log_softmax(own.logits / TEMPERATURE, -1)
    log_p = F.log_softmax(taught.logits / TEMPERATURE, -1)
    soft = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    loss = TEMPERATURE**2 * soft + HARD_WEIGHT * F.cross_entropy(own.logits, batch["labels"])
    compare = _relations if work.kind == RELATIONS else _squares
    for state, wanted in zip(own.states, taught.states, strict=True):
        loss = loss + compare(state, wanted, batch["attention_mask"])
    return loss


def _squares(own: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    squares = F.mse_loss(own, taught, reduction="none") * mask.unsqueeze(-1)
    return squares.sum() / (mask.sum() * own.shape[-1])


def _relations(own: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    log_q, log_p = (_log_relation(states, mask) for states in (own, taught))
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    return (divergence * mask[:, None]).sum() / (mask.sum() * RELATION_HEADS)


def _log_relation(states: Tensor, mask: Tensor) -> Tensor:
    """[B, A, L, L]: log-probabilities over valid keys, of A relation heads."""
    split = states.unflatten(-1, (RELATION_HEADS, -1)).transpose(1, 2)
    scores = split @ split.mT / split.shape[-1] ** 0.5
    return scores.masked_fill(mask[:, None, None] == 0, -1e9).log_softmax(-1)


def _ask(teacher: Model, batch: Batch) -> Taught:
    with torch.no_grad():
        return teacher(batch)


def _by_row(numbers: Sequence[int], taught: Taught, batch: Batch) -> Iterator[tuple[int, Taught]]:
    """What is said of each row, without padding: logits [C], states [n, D]."""
    for i, (number, n) in enumerate(zip(numbers, batch["attention_mask"].sum(1).tolist(), strict=True)):
        # copies: views would keep whole batches
        yield number, Taught(taught.logits[i].clone(), tuple(state[i, :n].clone() for state in taught.states))


def _joined(rows: Sequence[Taught]) -> Taught:
    states = zip(*(row.states for row in rows), strict=True)
    return Taught(torch.stack([row.logits for row in rows]), tuple(pad_sequence(list(s), True) for s in states))


def _inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _save(student: Model, data: Data, folder: Path) -> None:
    student.model.save_pretrained(folder / "student")
    data.tokenizer.save_pretrained(folder / "student")
