"""Whole seeded runs of several teachers and of several tasks against the real textbrewer."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import brewer_core
from differential.features import Adaptor, labelled_heads, scaled, unmasked_tags, without
from differential.outcomes import Callback, Outcome, assert_equal_outcomes, observed, seed
from differential.reference import textbrewer
from tiny import Tiny, adaptor, mappings, table, tuples

WIDTHS = [(16, 4), (8, 3), (12, 2)]
STUDENT = (8, 2)


ADAPTORS: dict[str, Adaptor] = {
    "rows": adaptor("row_logits", "labels", "losses"),
    "masked tokens": adaptor("token_logits", "losses"),
    "unmasked tokens": unmasked_tags,
    "two heads": adaptor("two_heads", "losses"),
    "two unmasked heads": without(adaptor("two_heads"), "logits_mask"),
    "two labelled heads": labelled_heads,
}


@dataclass(frozen=True)
class Taught:
    """A run with several teachers. each: the adaptors of the teachers, `adapt` for all of them if None."""

    teachers: int = 2
    adapt: Adaptor = ADAPTORS["rows"]
    each: Sequence[Adaptor] | None = None
    distillation: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=lambda: {"num_epochs": 2})
    as_rows: Callable[..., Any] = tuples
    dropout: float = 0.0
    inside_with: bool = True


def run_taught(library: Any, case: Taught, folder: Path) -> Outcome:
    seed()
    teachers = [Tiny(*size, dropout=case.dropout) for size in WIDTHS[: case.teachers]]
    student = Tiny(*STUDENT, dropout=case.dropout)
    config = library.TrainingConfig(output_dir=str(folder), device="cpu", **case.training)
    distillation = library.DistillationConfig(**copy.deepcopy(dict(case.distillation)))
    adaptor_t = case.adapt if case.each is None else list(case.each)
    distiller = library.MultiTeacherDistiller(config, distillation, teachers, student, adaptor_t, case.adapt)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    loader = DataLoader(case.as_rows(table(20)), batch_size=4, shuffle=True)

    def train(callback: Callback) -> None:
        with distiller if case.inside_with else contextlib.nullcontext():
            distiller.train(optimizer, loader, **{"callback": callback, **case.train})

    return observed(student, folder, train)


def assert_equally_taught(case: Taught, folder: Path) -> None:
    theirs, ours = run_taught(textbrewer, case, folder / "theirs"), run_taught(brewer_core, case, folder / "ours")
    assert_equal_outcomes(ours, theirs)


# Several teachers


@pytest.mark.parametrize("form", [tuples, mappings])
@pytest.mark.parametrize("features", ADAPTORS)
@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_several_teachers_train_textbrewers_student(
    teachers: int, features: str, form: Callable[..., Any], tmp_path: Path
) -> None:
    adapt = ADAPTORS[features]
    assert_equally_taught(Taught(teachers, adapt, as_rows=form, distillation={"temperature": 3}), tmp_path)


@pytest.mark.parametrize("teachers", [1, 3])
@pytest.mark.parametrize("features", ["rows", "masked tokens", "two heads"])
def test_a_list_of_adaptors_has_one_for_each_teacher(features: str, teachers: int, tmp_path: Path) -> None:
    adapt = ADAPTORS[features]
    each = [scaled(adapt, factor) for factor in (1.0, 0.25, 3.0)[:teachers]]
    assert_equally_taught(Taught(teachers, adapt, each), tmp_path)


@pytest.mark.parametrize("features", ["rows", "unmasked tokens", "two labelled heads"])
@pytest.mark.parametrize("teachers", [1, 2])
def test_probability_shift_of_the_mean_is_textbrewers(teachers: int, features: str, tmp_path: Path) -> None:
    distillation = {"probability_shift": True, "hard_label_weight": 0.5}
    assert_equally_taught(Taught(teachers, ADAPTORS[features], distillation=distillation), tmp_path)


@pytest.mark.parametrize("features", ADAPTORS)
@pytest.mark.parametrize("scheduler", [["flsw", 1, 1], ["cwsm", 0.5]], ids=["flsw", "cwsm"])
def test_temperatures_of_the_mean_are_textbrewers(scheduler: list[Any], features: str, tmp_path: Path) -> None:
    distillation = {"temperature_scheduler": scheduler, "temperature": 6}
    assert_equally_taught(Taught(3, ADAPTORS[features], distillation=distillation), tmp_path)


DURATIONS: dict[str, dict[str, Any]] = {
    "epochs": {"train": {"num_epochs": 3}, "training": {"ckpt_frequency": 2, "ckpt_epoch_frequency": 2}},
    "steps": {"train": {"num_steps": 8}, "training": {"ckpt_steps": 3}},
}


@pytest.mark.parametrize("duration", DURATIONS)
@pytest.mark.parametrize("accumulation", [1, 5])
@pytest.mark.parametrize("kind", ["ce", "mse"])
def test_a_run_of_several_teachers_steps_like_textbrewers(
    kind: str, accumulation: int, duration: str, tmp_path: Path
) -> None:
    changes = DURATIONS[duration]
    case = Taught(
        distillation={"kd_loss_type": kind, "kd_loss_weight": 0.7, "hard_label_weight": 0.3},
        training={**changes["training"], "gradient_accumulation_steps": accumulation},
        train={**changes["train"], "max_grad_norm": 0.05, "gain": 0.5},
        dropout=0.1,
    )
    assert_equally_taught(case, tmp_path)


def test_schedules_postprocessors_and_modes_of_several_teachers_are_textbrewers(tmp_path: Path) -> None:
    one_cycle = {"max_lr": 0.05, "total_steps": 12}
    case = Taught(
        train={
            "num_epochs": 2,
            "scheduler_class": torch.optim.lr_scheduler.OneCycleLR,
            "scheduler_args": one_cycle,
            "batch_postprocessor": first_half,
        },
        inside_with=False,
    )
    assert_equally_taught(case, tmp_path)


def first_half(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(column[:2] for column in batch)


def two_sided(columns: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Rows with a table of their own for the teachers."""
    longer = mappings(table(len(columns["ids"]), length=9, seed=4))
    return [{"teacher": t, "student": s} for t, s in zip(longer, mappings(columns), strict=True)]


def with_cache(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the outputs of two teachers, worked from the ids."""
    ids = batch["student"]["ids"].float()
    logits = torch.stack([ids.sum(1), ids.mean(1), ids.amax(1), ids.amin(1)], dim=1) / 10
    outputs = {"token_logits": logits, "hidden": [], "attention": [], "loss": logits.mean()}
    return {**batch, "teacher_cache": [{**outputs, "row_logits": factor * logits} for factor in (1, -3)]}


@pytest.mark.parametrize("changes", [{}, {"batch_postprocessor": with_cache}], ids=["two sides", "teacher_cache"])
@pytest.mark.parametrize("listed", [False, True])
def test_batches_with_a_side_for_each_train_textbrewers_student(
    listed: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    each = [ADAPTORS["rows"], scaled(ADAPTORS["rows"], 0.5)] if listed else None
    assert_equally_taught(Taught(each=each, as_rows=two_sided, train={"num_epochs": 2, **changes}), tmp_path)


# Several tasks

SIZES = {"topic": 12, "tags": 36, "both": 20}
OF_TASK: dict[str, Adaptor] = {
    "topic": adaptor("row_logits", "losses", "hidden", "mask"),
    "tags": adaptor("token_logits", "hidden", "mask"),
    "both": adaptor("two_heads", "losses", "hidden", "mask"),
}
PROJECTED = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 0.5}
MATCHES = [
    {**PROJECTED, "proj": ["linear", 8, 16, {"lr": 3e-2, "weight_decay": 0.1}]},
    {**PROJECTED, "layer_T": [0, 2], "layer_S": [0, 2], "loss": "nst", "weight": 2},
    {**PROJECTED, "layer_S": 2, "loss": "cos", "proj": ["tanh", 8, 16]},
]


class Endless:
    """A loader that can be iterated again and again, and has no length."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


@dataclass(frozen=True)
class Tasks:
    """A run of several tasks. endless: those whose loaders have no length."""

    tasks: Sequence[str] = ("topic", "tags", "both")
    adaptors: Mapping[str, Adaptor] = field(default_factory=lambda: OF_TASK)
    distillation: Mapping[str, Any] = field(default_factory=lambda: {"hard_label_weight": 0.5})
    training: Mapping[str, Any] = field(default_factory=lambda: {"ckpt_steps": 5})
    train: Mapping[str, Any] = field(default_factory=lambda: {"num_steps": 12})
    endless: Sequence[str] = ()
    as_rows: Callable[..., Any] = tuples
    dropout: float = 0.0
    scheduled: bool = False


def run_tasks(library: Any, case: Tasks, folder: Path) -> Outcome:
    seed()
    teachers = {task: Tiny(16, 3, dropout=case.dropout) for task in case.tasks}
    student = Tiny(*STUDENT, dropout=case.dropout)
    adaptors = {task: case.adaptors[task] for task in case.tasks}
    config = library.TrainingConfig(output_dir=str(folder), device="cpu", **case.training)
    distillation = library.DistillationConfig(**copy.deepcopy(dict(case.distillation)))
    distiller = library.MultiTaskDistiller(config, distillation, teachers, student, adaptors, dict(adaptors))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    loaders: dict[str, Any] = {
        task: DataLoader(case.as_rows(table(SIZES[task], seed=i)), batch_size=4, shuffle=True)
        for i, task in enumerate(case.tasks)
    }
    loaders.update({task: Endless(loaders[task]) for task in case.endless})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2) if case.scheduled else None

    def train(callback: Callback) -> None:
        with distiller:
            distiller.train(optimizer, loaders, **{"callback": callback, "scheduler": scheduler, **case.train})

    return observed(student, folder, train)


def assert_equal_tasks(case: Tasks, folder: Path) -> None:
    theirs, ours = run_tasks(textbrewer, case, folder / "theirs"), run_tasks(brewer_core, case, folder / "ours")
    assert_equal_outcomes(ours, theirs)


@pytest.mark.parametrize("tau", [0, 0.5, 1, 2])
@pytest.mark.parametrize("tasks", [("topic",), ("tags", "topic"), ("topic", "tags", "both")], ids=len)
def test_tasks_are_drawn_and_trained_like_textbrewers(tasks: Sequence[str], tau: float, tmp_path: Path) -> None:
    assert_equal_tasks(Tasks(tasks, train={"num_steps": 12, "tau": tau}), tmp_path)


@pytest.mark.parametrize("endless", [("topic",), ("topic", "tags", "both")], ids=["one", "all"])
def test_tasks_are_drawn_uniformly_where_a_loader_has_no_length(endless: Sequence[str], tmp_path: Path) -> None:
    assert_equal_tasks(Tasks(endless=endless, train={"num_steps": 12, "tau": 2}), tmp_path)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("ckpt_steps", [1, 4, 12])
def test_checkpoints_and_accumulation_of_tasks_are_textbrewers(
    ckpt_steps: int, accumulation: int, tmp_path: Path
) -> None:
    training = {"ckpt_steps": ckpt_steps, "gradient_accumulation_steps": accumulation}
    assert_equal_tasks(Tasks(training=training, as_rows=mappings, dropout=0.1), tmp_path)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_matches_of_tasks_train_textbrewers_student(accumulation: int, tmp_path: Path) -> None:
    case = Tasks(
        # a masked nst differs on purpose
        adaptors={task: without(adapt, "inputs_mask") for task, adapt in OF_TASK.items()},
        distillation={"temperature": 2, "hard_label_weight": 0.5, "intermediate_matches": MATCHES},
        training={"ckpt_steps": 5, "gradient_accumulation_steps": accumulation},
    )
    assert_equal_tasks(case, tmp_path)


def test_masked_matches_of_tasks_train_textbrewers_student(tmp_path: Path) -> None:
    assert_equal_tasks(Tasks(distillation={"intermediate_matches": [MATCHES[0], MATCHES[2]]}), tmp_path)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_clipping_and_schedules_of_tasks_are_textbrewers(accumulation: int, tmp_path: Path) -> None:
    case = Tasks(
        training={"ckpt_steps": 5, "gradient_accumulation_steps": accumulation},
        train={"num_steps": 12, "max_grad_norm": 0.05, "gain": 0.5},
        scheduled=True,
    )
    assert_equal_tasks(case, tmp_path)
    one_cycle = {"max_lr": 0.05, "total_steps": 12}
    train = {"num_steps": 12, "scheduler_class": torch.optim.lr_scheduler.OneCycleLR, "scheduler_args": one_cycle}
    assert_equal_tasks(replace(case, train=train, scheduled=False), tmp_path)


def test_each_task_has_its_own_postprocessor(tmp_path: Path) -> None:
    def same(batch: Any) -> Any:
        return batch

    def reversed_rows(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(column.flip(0)[1:] for column in batch)

    postprocessors = {"topic": first_half, "tags": same, "both": reversed_rows}
    assert_equal_tasks(Tasks(train={"num_steps": 12, "batch_postprocessors": postprocessors}), tmp_path)


@pytest.mark.parametrize("scheduler", [["flsw", 1, 1], ["cwsm", 0.5]], ids=["flsw", "cwsm"])
@pytest.mark.parametrize("kind", ["ce", "mse"])
def test_losses_and_temperatures_of_tasks_are_textbrewers(kind: str, scheduler: list[Any], tmp_path: Path) -> None:
    distillation = {"kd_loss_type": kind, "temperature_scheduler": scheduler, "temperature": 6}
    assert_equal_tasks(Tasks(distillation=distillation), tmp_path)
