"""On real texts: a student that is cut out of a trained teacher starts nearer to it than one that is drawn, and stays so."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

transformers = pytest.importorskip("transformers", reason="models need the extra hf")

import brewer_builtins  # noqa: E402  # after the skip
from brewer_builtins.surgery import student_from_teacher  # noqa: E402
from brewer_core.run.tokenizers import train_tokenizer  # noqa: E402

SEEDS = (0, 1, 2)
METHODS = ("drawn", "truncate", "importance", "pca")
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


class Texts:
    """Complaints as batches of 32: 1024 to train on, and 256 others."""

    def __init__(self):
        train, test = (self.read(f"complaints_{split}.csv.gz") for split in ("train", "test"))
        random.Random(0).shuffle(train)
        train, test = train[:1024], test[:256]
        self.classes = sorted({row["label"] for row in train})
        self.tokenizer = train_tokenizer([row["text"] for row in train], 1500)
        self.train = [self.batch(train[i : i + 32]) for i in range(0, len(train), 32)]
        self.test, self.labels = self.batch(test)

    @staticmethod
    def read(name):
        with gzip.open(Path(brewer_builtins.__file__).parent / "data" / name, "rt", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def batch(self, rows):
        texts = [row["text"] for row in rows]
        tokens = self.tokenizer(texts, truncation=True, max_length=48, padding=True, return_tensors="pt")
        return dict(tokens), torch.tensor([self.classes.index(row["label"]) for row in rows])


def divergence(student, teacher):
    return kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")


def trained(model, batches, loss, rate):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for batch, labels in batches:
        loss(model(**batch).logits, batch, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def divergences():
    """From the teacher's answers, of each method's student at its start and after ten steps, by method, a pair for each seed."""
    texts = Texts()
    config = transformers.AutoConfig.for_model(
        "bert", vocab_size=len(texts.tokenizer), num_labels=len(texts.classes), max_position_embeddings=64, **SIZES
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = transformers.AutoModelForSequenceClassification.from_config(config)
        trained(teacher, texts.train * 8, lambda logits, _, labels: cross_entropy(logits, labels), rate=2e-3)
        with torch.no_grad():
            answers = teacher(**texts.test).logits
            taught = {id(batch["input_ids"]): teacher(**batch).logits for batch, _ in texts.train}
        assert (answers.argmax(-1) == texts.labels).float().mean() > 0.5  # of 8 classes

        def after(model, batches):
            trained(
                model, batches, lambda logits, batch, _: divergence(logits, taught[id(batch["input_ids"])]), rate=1e-3
            )
            with torch.no_grad():
                return float(divergence(model(**texts.test).logits, answers))

        found = {method: [] for method in METHODS}
        for seed in SEEDS:
            order = random.Random(seed).sample(texts.train, 14)
            for method in METHODS:
                torch.manual_seed(seed)
                student = student_from_teacher(
                    teacher,
                    hidden_size=32,
                    method="truncate" if method == "drawn" else method,
                    sample=[batch for batch, _ in order[10:]],
                )
                student = type(student)(student.config) if method == "drawn" else student
                found[method].append((after(student, []), after(student, order[:10])))
    return found


@pytest.mark.parametrize("method", ["importance", "pca"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_student_that_is_cut_out_starts_nearer_to_its_teacher_than_one_that_is_drawn(divergences, method, seed):
    assert divergences[method][seed][0] < 0.7 * divergences["drawn"][seed][0]
    assert divergences[method][seed][0] < divergences["truncate"][seed][0]


@pytest.mark.parametrize("method", ["importance", "pca"])
@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_still_nearer_after_the_same_steps(divergences, method, seed):
    assert divergences[method][seed][1] < 0.7 * divergences["drawn"][seed][1]
