"""Measures brewer's step against a bare PyTorch loop on the same models and batches, in turns in one process.

Usage: python tests/bench/step_time.py [--rounds 7] [--steps 40]
Prints the median time of a step in each, and their ratio. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from brewer_core.config import DistillationConfig
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.plugins import default_registry
from brewer_core.teachers import LiveTeacher

CLASSES, ROWS, LENGTH, TEMPERATURE, HARD_WEIGHT, CLIP = 8, 16, 64, 2.0, 0.5, 1.0
Batch = dict[str, Tensor]


def model(width: int, layers: int, dropout: float) -> nn.Module:
    config = BertConfig(
        vocab_size=2000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def batches(count: int) -> list[Batch]:
    torch.manual_seed(1)
    return [
        {
            "input_ids": torch.randint(0, 2000, (ROWS, LENGTH)),
            "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long),
            "labels": torch.randint(0, CLASSES, (ROWS,)),
        }
        for _ in range(count)
    ]


def bare(teacher: nn.Module, student: nn.Module, data: list[Batch]) -> None:
    """The loop that one writes by hand, with all that brewer's step does: clip, schedule, and a look at the loss."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=len(data))
    teacher.eval()
    student.train()
    for step, batch in enumerate(data):
        with torch.no_grad():
            taught = teacher(**batch).logits
        outputs = student(**batch)
        soft = F.kl_div(
            F.log_softmax(outputs.logits / TEMPERATURE, -1),
            F.log_softmax(taught / TEMPERATURE, -1),
            log_target=True,
            reduction="batchmean",
        )
        loss = TEMPERATURE**2 * soft + HARD_WEIGHT * outputs.loss
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            loss.item()


def adaptor(batch: Batch, outputs: object) -> dict[str, object]:
    return {"logits": outputs.logits, "losses": [outputs.loss]}  # type: ignore[attr-defined]  # a Hugging Face output


def brewed(teacher: nn.Module, student: nn.Module, data: list[Batch]) -> None:
    registry, device = default_registry(), torch.device("cpu")
    config = DistillationConfig(temperature=TEMPERATURE, kd_loss_type="kl", hard_label_weight=HARD_WEIGHT)
    strategy = registry.bind("strategy", "general")()
    learner = Learner(student.train(), adaptor, Objective.from_config(config, registry), strategy)
    engine = Engine(
        learner,
        torch.optim.AdamW(student.parameters(), lr=1e-3),
        device=device,
        teachers={"teacher": LiveTeacher(teacher, adaptor, device)},
        schedule=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=len(data)),
        settings=Settings(max_grad_norm=CLIP, loss_normalization="step"),
    )
    engine.train(data, Duration(steps=len(data)))


def seconds(
    train: Callable[[nn.Module, nn.Module, list[Batch]], None], data: list[Batch], widths: tuple[int, int]
) -> float:
    torch.manual_seed(0)
    teacher, student = model(widths[0], 4, 0.1), model(widths[1], 2, 0.1)
    started = time.perf_counter()
    train(teacher, student, data)
    return (time.perf_counter() - started) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    data = batches(arguments.steps)
    for widths in ((128, 64), (256, 128)):
        times: dict[str, list[float]] = {"bare": [], "brewer": []}
        for _ in range(arguments.rounds + 1):
            times["bare"].append(seconds(bare, data, widths))
            times["brewer"].append(seconds(brewed, data, widths))
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        ratio = medians["brewer"] / medians["bare"]
        print(
            f"teacher 4x{widths[0]}, student 2x{widths[1]}, {ROWS}x{LENGTH} tokens: bare {1e3 * medians['bare']:.2f} ms, "
            f"brewer {1e3 * medians['brewer']:.2f} ms a step, ratio {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
