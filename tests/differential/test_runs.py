"""Whole seeded runs against the real textbrewer: the same student, checkpoints, draws and signatures."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import brewer_core
from brewer_core import distiller_utils as our_utils
from differential.features import labelled_heads, unmasked_tags, without
from differential.outcomes import Callback, Outcome, assert_equal_outcomes, observed, seed
from differential.reference import distiller_utils, presets, textbrewer
from tiny import Tiny, adaptor, mappings, table, tuples

TEACHER, STUDENT = (16, 4), (8, 2)
MATCHES: dict[str, dict[str, Any]] = {
    "hidden_mse": {"layer_T": 2, "layer_S": 1, "feature": "hidden", "proj": ["linear", 8, 16]},
    "cos": {"layer_T": 4, "layer_S": 2, "feature": "hidden", "proj": ["tanh", 8, 16]},
    "pkd": {"layer_T": 4, "layer_S": 2, "feature": "hidden", "proj": ["linear", 8, 16]},
    "fsp": {"layer_T": [0, 2], "layer_S": [0, 1], "feature": "hidden", "proj": ["relu", 8, 16]},
    "gram": {"layer_T": [1, 4], "layer_S": [0, 2], "feature": "hidden", "proj": ["linear", 8, 16]},
    "attention_mse": {"layer_T": 3, "layer_S": 1, "feature": "attention"},
    "attention_mse_sum": {"layer_T": 3, "layer_S": 1, "feature": "attention"},
    "attention_ce": {"layer_T": 4, "layer_S": 2, "feature": "attention"},
    "attention_ce_mean": {"layer_T": 4, "layer_S": 2, "feature": "attention"},
}
PAIRS: dict[str, dict[str, Any]] = {
    name: {"layer_T": [1, 3], "layer_S": [0, 2], "feature": "hidden"} for name in ("nst", "mmd")
}


@dataclass(frozen=True)
class Case:
    """What one run is made of. student: what is trained, made of teacher and student."""

    door: str = "GeneralDistiller"
    features: tuple[str, ...] = ("row_logits", "labels", "losses")
    distillation: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=lambda: {"num_epochs": 2})
    as_rows: Callable[..., Any] = tuples
    rows: int = 20
    dropout: float = 0.0
    inside_with: bool = True
    scheduler: Callable[..., Any] | None = None
    adapt: Callable[..., Any] | None = None
    student: Callable[[nn.Module, nn.Module], nn.Module] = lambda teacher, student: student


def run(library: Any, case: Case, folder: Path) -> Outcome:
    seed()
    teacher, student = Tiny(*TEACHER, dropout=case.dropout), Tiny(*STUDENT, dropout=case.dropout)
    student = case.student(teacher, student)
    adapt = case.adapt or adaptor(*case.features)
    config = library.TrainingConfig(output_dir=str(folder), device="cpu", **case.training)
    if case.door == "BasicTrainer":
        distiller = library.BasicTrainer(config, student, adapt)
    else:
        distillation = library.DistillationConfig(**copy.deepcopy(dict(case.distillation)))
        distiller = getattr(library, case.door)(config, distillation, teacher, student, adapt, adapt)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    loader = DataLoader(case.as_rows(table(case.rows)), batch_size=4, shuffle=True)
    scheduler = {"scheduler": case.scheduler(optimizer)} if case.scheduler else {}

    def train(callback: Callback) -> None:
        with distiller if case.inside_with else contextlib.nullcontext():
            # textbrewer's trainer requires num_epochs
            distiller.train(optimizer, loader, **{"num_epochs": None, "callback": callback, **case.train, **scheduler})

    return observed(student, folder, train)


def assert_equal_runs(case: Case, folder: Path) -> None:
    theirs, ours = run(textbrewer, case, folder / "theirs"), run(brewer_core, case, folder / "ours")
    assert_equal_outcomes(ours, theirs)


def match(loss: str, weight: float = 0.5, **changes: Any) -> dict[str, Any]:
    return {"loss": loss, "weight": weight, **{**MATCHES, **PAIRS}[loss], **changes}


DOORS = {
    "BasicTrainer": Case("BasicTrainer"),
    "BasicDistiller": Case("BasicDistiller", distillation={"temperature": 3, "hard_label_weight": 0.5}),
    "GeneralDistiller": Case(
        "GeneralDistiller",
        ("row_logits", "losses", "hidden", "mask"),
        {"hard_label_weight": 0.5, "intermediate_matches": [match("hidden_mse"), match("cos")]},
    ),
}
BATCHES = {"tuples": tuples, "mappings": mappings}
DURATIONS: dict[str, dict[str, Any]] = {
    "epochs": {"train": {"num_epochs": 2}},
    "steps": {"train": {"num_steps": 8}, "training": {"ckpt_steps": 3}},
}


@pytest.mark.parametrize("duration", DURATIONS)
@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_ends_with_textbrewers_student(door: str, form: str, duration: str, tmp_path: Path) -> None:
    case = replace(DOORS[door], as_rows=BATCHES[form], dropout=0.1, **DURATIONS[duration])
    assert_equal_runs(case, tmp_path)


@pytest.mark.parametrize("loss", MATCHES)
def test_every_match_loss_trains_textbrewers_student(loss: str, tmp_path: Path) -> None:
    features = ("row_logits", "hidden", "attention", "mask")
    assert_equal_runs(Case(features=features, distillation={"intermediate_matches": [match(loss)]}), tmp_path)


@pytest.mark.parametrize("loss", [*MATCHES, *PAIRS])
def test_every_match_loss_without_a_mask_trains_textbrewers_student(loss: str, tmp_path: Path) -> None:
    # a masked nst or mmd differs on purpose: textbrewer 0.2.1 divides it by the length, brewer by the width
    features = ("row_logits", "hidden", "attention")
    assert_equal_runs(Case(features=features, distillation={"intermediate_matches": [match(loss)]}), tmp_path)


def test_every_match_loss_of_textbrewer_is_covered_here() -> None:
    assert {*MATCHES, *PAIRS} == set(presets.MATCH_LOSS_MAP)


@pytest.mark.parametrize("projection", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("group", [[], [{"lr": 1e-3}], [{"lr": 3e-2, "weight_decay": 0.1}]], ids=["", "lr", "decay"])
def test_projections_train_with_their_own_settings(projection: str, group: list[Any], tmp_path: Path) -> None:
    matches = [match("hidden_mse", proj=[projection, 8, 16, *group]), match("cos", proj=["linear", 8, 16])]
    features = ("row_logits", "hidden", "mask")
    assert_equal_runs(Case(features=features, distillation={"intermediate_matches": matches}), tmp_path)


def test_matches_of_one_name_train_as_two(tmp_path: Path) -> None:
    matches = [match("hidden_mse"), match("hidden_mse", weight=2), match("attention_mse")]
    features = ("row_logits", "hidden", "attention", "mask")
    assert_equal_runs(Case(features=features, distillation={"intermediate_matches": matches}), tmp_path)


def test_matches_without_logits_train_textbrewers_student(tmp_path: Path) -> None:
    features, matches = ("hidden", "losses", "mask"), [match("hidden_mse"), match("fsp")]
    distillation = {"hard_label_weight": 1, "intermediate_matches": matches}
    assert_equal_runs(Case(features=features, distillation=distillation), tmp_path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("duration", DURATIONS)
def test_accumulation_ends_with_textbrewers_student(door: str, duration: str, tmp_path: Path) -> None:
    changes = DURATIONS[duration]
    training = {**changes.get("training", {}), "gradient_accumulation_steps": 5}
    assert_equal_runs(replace(DOORS[door], train=changes["train"], training=training, dropout=0.1), tmp_path)


@pytest.mark.parametrize("frequency", [1, 2, 3])
@pytest.mark.parametrize("every_epochs", [1, 2, 3])
@pytest.mark.parametrize("door", ["BasicTrainer", "BasicDistiller"])
def test_checkpoints_of_epochs_are_textbrewers(door: str, every_epochs: int, frequency: int, tmp_path: Path) -> None:
    training = {"ckpt_frequency": frequency, "ckpt_epoch_frequency": every_epochs}
    assert_equal_runs(Case(door, training=training, train={"num_epochs": 4}, rows=16), tmp_path)


@pytest.mark.parametrize("ckpt_steps", [1, 3, 6, 20])
@pytest.mark.parametrize("door", ["BasicTrainer", "BasicDistiller"])
def test_checkpoints_of_steps_are_textbrewers(door: str, ckpt_steps: int, tmp_path: Path) -> None:
    case = Case(door, training={"ckpt_steps": ckpt_steps}, train={"num_steps": 6, "num_epochs": 1})
    assert_equal_runs(case, tmp_path)


def linear_lr(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=10)


@pytest.mark.parametrize("door", DOORS)
def test_a_scheduler_object_steps_like_textbrewers(door: str, tmp_path: Path) -> None:
    case = DOORS[door]
    if door == "GeneralDistiller":  # a schedule that is built before the projections' groups cannot hold them
        case = replace(case, distillation={"hard_label_weight": 0.5})
    assert_equal_runs(replace(case, scheduler=linear_lr), tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_a_scheduler_class_is_built_like_textbrewers(door: str, tmp_path: Path) -> None:
    one_cycle = {"max_lr": 0.05, "total_steps": 12}
    train = {"num_epochs": 2, "scheduler_class": torch.optim.lr_scheduler.OneCycleLR, "scheduler_args": one_cycle}
    assert_equal_runs(replace(DOORS[door], train=train), tmp_path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("accumulation", [1, 5])
def test_clipping_without_projections_is_textbrewers(door: str, accumulation: int, tmp_path: Path) -> None:
    case = replace(DOORS[door], distillation={"hard_label_weight": 0.5}, train={"num_epochs": 2, "max_grad_norm": 0.05})
    assert_equal_runs(replace(case, training={"gradient_accumulation_steps": accumulation}), tmp_path)


@pytest.mark.parametrize(("soft", "hard"), [(1, 0), (0, 1), (0.3, 0.7), (2, 0.5)])
@pytest.mark.parametrize("kind", ["ce", "mse"])
def test_weights_of_both_losses_are_textbrewers(kind: str, soft: float, hard: float, tmp_path: Path) -> None:
    distillation = {"kd_loss_type": kind, "kd_loss_weight": soft, "hard_label_weight": hard, "temperature": 2}
    assert_equal_runs(Case("BasicDistiller", distillation=distillation), tmp_path)


@pytest.mark.parametrize("features", [("token_logits", "losses"), ("two_heads", "losses")], ids=["tokens", "two heads"])
@pytest.mark.parametrize("door", ["BasicDistiller", "GeneralDistiller"])
@pytest.mark.parametrize("kind", ["ce", "mse"])
def test_masked_logits_train_textbrewers_student(door: str, kind: str, features: Any, tmp_path: Path) -> None:
    assert_equal_runs(Case(door, features, {"kd_loss_type": kind, "hard_label_weight": 1}), tmp_path)


LABELLED: dict[str, Callable[..., Any]] = {
    "rows": adaptor("row_logits", "labels", "losses"),
    "tokens": unmasked_tags,
    "two heads": labelled_heads,
}


@pytest.mark.parametrize("features", LABELLED)
@pytest.mark.parametrize("door", ["BasicDistiller", "GeneralDistiller"])
def test_probability_shift_is_textbrewers(door: str, features: str, tmp_path: Path) -> None:
    distillation = {"probability_shift": True, "hard_label_weight": 0.2}
    assert_equal_runs(Case(door, distillation=distillation, adapt=LABELLED[features]), tmp_path)


@pytest.mark.parametrize("features", [("row_logits",), ("token_logits",), ("two_heads",)], ids=lambda names: names[0])
@pytest.mark.parametrize("form", [["flsw", 1, 1], ["flsw", {"beta": 2, "gamma": 0.5}], ["cwsm", 0.5]], ids=str)
def test_temperature_schedulers_are_textbrewers(form: list[Any], features: Any, tmp_path: Path) -> None:
    distillation = {"temperature_scheduler": form, "temperature": 6}
    assert_equal_runs(Case(features=features, distillation=distillation), tmp_path)


UNMASKED = {"tokens": ("token_logits",), "two heads": ("two_heads",)}


@pytest.mark.parametrize("features", UNMASKED)
@pytest.mark.parametrize("changes", [{}, {"temperature_scheduler": ["flsw", 1, 1]}, {"kd_loss_type": "mse"}], ids=str)
@pytest.mark.parametrize("door", ["BasicDistiller", "GeneralDistiller"])
def test_logits_of_tokens_without_a_mask_train_textbrewers_student(
    door: str, changes: dict[str, Any], features: str, tmp_path: Path
) -> None:
    adapt = without(adaptor(*UNMASKED[features]), "logits_mask")
    assert_equal_runs(Case(door, distillation={"temperature": 6, **changes}, adapt=adapt), tmp_path)


@pytest.mark.parametrize("duration", DURATIONS)
def test_all_at_once_trains_textbrewers_student(duration: str, tmp_path: Path) -> None:
    changes = DURATIONS[duration]
    case = Case(
        features=("two_heads", "losses", "hidden", "attention", "mask"),
        distillation={
            "temperature": 3,
            "temperature_scheduler": ["flsw", 1, 1],
            "hard_label_weight": 0.5,
            "intermediate_matches": [match("hidden_mse"), match("attention_ce"), match("fsp", proj=["tanh", 8, 16])],
        },
        training={**changes.get("training", {}), "gradient_accumulation_steps": 5},
        train={
            **changes["train"],
            "scheduler_class": torch.optim.lr_scheduler.StepLR,
            "scheduler_args": {"step_size": 1},
            "gain": 0.5,
        },
        as_rows=mappings,
        dropout=0.1,
    )
    assert_equal_runs(case, tmp_path)


def first_half(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(column[:2] for column in batch)


@pytest.mark.parametrize("door", DOORS)
def test_a_batch_postprocessor_and_arguments_of_the_model_are_passed_on(door: str, tmp_path: Path) -> None:
    train = {"num_epochs": 2, "batch_postprocessor": first_half, "gain": 0.5}
    assert_equal_runs(replace(DOORS[door], train=train), tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_outside_a_with_block_the_student_trains_in_the_mode_it_has(door: str, tmp_path: Path) -> None:
    assert_equal_runs(replace(DOORS[door], inside_with=False), tmp_path)


class Sides(list[Any]):
    """Rows with a table of their own for teacher and student."""

    def __init__(self, columns: Mapping[str, torch.Tensor]) -> None:
        longer = mappings(table(len(columns["ids"]), length=9, seed=4))
        super().__init__({"teacher": t, "student": s} for t, s in zip(longer, mappings(columns), strict=True))


@pytest.mark.parametrize("door", ["BasicDistiller", "GeneralDistiller"])
def test_batches_with_a_side_for_each_model_train_textbrewers_student(door: str, tmp_path: Path) -> None:
    assert_equal_runs(Case(door, as_rows=Sides, distillation={"hard_label_weight": 0.3}), tmp_path)


def with_cache(batch: dict[str, Any]) -> dict[str, Any]:
    rows = batch["student"]["ids"].float()
    logits = torch.stack([rows.sum(1), rows.mean(1), rows.amax(1), rows.amin(1)], dim=1) / 10
    outputs = {"row_logits": logits, "token_logits": logits, "hidden": [], "attention": [], "loss": logits.mean()}
    return {**batch, "teacher_cache": outputs}


@pytest.mark.parametrize("door", ["BasicDistiller", "GeneralDistiller"])
def test_outputs_under_teacher_cache_stand_for_the_teachers(door: str, tmp_path: Path) -> None:
    train = {"num_epochs": 2, "batch_postprocessor": with_cache}
    assert_equal_runs(Case(door, as_rows=Sides, train=train), tmp_path)


def part_of_the_teacher(teacher: nn.Module, student: nn.Module) -> nn.Module:
    teacher.pupil = student
    return student


def of_the_teachers_embedding(teacher: nn.Module, student: nn.Module) -> nn.Module:
    wide = Tiny(TEACHER[0], 1, dropout=0.1)
    wide.embedding = teacher.embedding
    return wide


def wrapped(teacher: nn.Module, student: nn.Module) -> nn.Module:
    if torch.cuda.is_available():
        pytest.skip("DataParallel would need the parameters on a GPU")
    return nn.DataParallel(student)


@pytest.mark.parametrize("student", [part_of_the_teacher, of_the_teachers_embedding, wrapped])
def test_a_student_that_is_bound_up_with_other_modules_is_textbrewers(
    student: Callable[..., nn.Module], tmp_path: Path
) -> None:
    assert_equal_runs(Case(dropout=0.1, student=student), tmp_path)


NO_TENSORS = {"task": "topic", "length": 6, "raw": {"a": 1}, "attention": (None, None), "nothing": None}
tagged = without(adaptor("token_logits", "tags"), "logits_mask")
ADAPTORS: dict[str, Callable[..., Any]] = {
    "values that are no tensors": lambda batch, outputs: {**adaptor("row_logits")(batch, outputs), **NO_TENSORS},
    "a mask of one row": lambda batch, outputs: {**tagged(batch, outputs), "logits_mask": torch.arange(6)[None] > 2},
    "labels in one row": lambda batch, outputs: {
        k: v.flatten() if k == "labels" else v for k, v in tagged(batch, outputs).items()
    },
}


@pytest.mark.parametrize("adapt", ADAPTORS)
def test_what_else_an_adaptor_may_return_is_textbrewers(adapt: str, tmp_path: Path) -> None:
    distillation = {"probability_shift": adapt == "labels in one row"}
    assert_equal_runs(Case(distillation=distillation, adapt=ADAPTORS[adapt]), tmp_path)


CLASSES = ["TrainingConfig", "DistillationConfig", *(kind.__name__ for kind in textbrewer.Distillers.values())]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_takes_textbrewers_arguments(name: str) -> None:
    assert_extends(getattr(brewer_core, name), getattr(textbrewer, name))


@pytest.mark.parametrize("name", ["Basic", "General", "MultiTeacher", "MultiTask"])
def test_train_takes_textbrewers_arguments(name: str) -> None:
    assert_extends(brewer_core.Distillers[name].train, textbrewer.Distillers[name].train)


def test_train_of_the_trainer_takes_textbrewers_arguments_but_needs_no_epochs_beside_steps() -> None:
    ours, theirs = (inspect.signature(library.BasicTrainer.train) for library in (brewer_core, textbrewer))
    known = [p for p in parameters(ours) if p.name != "sharded"]  # ours alone, by its name
    assert [(p.name, p.kind) for p in known] == [(p.name, p.kind) for p in parameters(theirs)]
    defaults = {p.name: (p.default, q.default) for p, q in zip(known, parameters(theirs), strict=True)}
    assert {name: d for name, d in defaults.items() if d[0] != d[1]} == {"num_epochs": (None, inspect.Parameter.empty)}


def test_a_custom_match_takes_textbrewers_arguments() -> None:
    assert_extends(our_utils.CustomMatch, distiller_utils.CustomMatch)


@pytest.mark.parametrize("name", ["display_parameters", "initializer_builder"])
def test_a_utility_takes_textbrewers_arguments(name: str) -> None:
    assert_extends(getattr(brewer_core.utils, name), getattr(textbrewer.utils, name))


def test_register_new_takes_textbrewers_arguments() -> None:
    assert_extends(brewer_core.register_new, textbrewer.register_new)


def test_every_name_of_textbrewer_is_here() -> None:
    names = {
        name for name, value in vars(textbrewer).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert len(names) > 10
    assert names <= set(brewer_core.__all__)
    for name in names:
        getattr(brewer_core, name)


def test_the_short_names_of_distillers_are_textbrewers() -> None:
    ours = {short: kind.__name__ for short, kind in brewer_core.Distillers.items()}
    assert ours == {short: kind.__name__ for short, kind in textbrewer.Distillers.items()}


def test_an_extension_that_is_not_keyword_only_or_changes_a_default_is_noticed() -> None:
    def theirs(model: Any, level: Any = None) -> None: ...

    def longer(model: Any, level: Any = None, more: Any = 0) -> None: ...

    def other_default(model: Any, level: Any = 1) -> None: ...

    def keyword_only(model: Any, level: Any = None, *, more: Any = 0) -> None: ...

    assert_extends(keyword_only, theirs)
    for wrong in (longer, other_default):
        with pytest.raises(AssertionError):
            assert_extends(wrong, theirs)


def assert_extends(ours: Any, theirs: Any) -> None:
    """The same parameters, in order, with the same defaults; what is ours alone is keyword-only."""
    known = parameters(inspect.signature(theirs))
    mine = {p.name: p for p in parameters(inspect.signature(ours))}
    assert [(p.name, p.kind, p.default) for p in known] == [
        (p.name, p.kind, p.default) for p in mine.values() if p.name in {k.name for k in known}
    ]
    for extra in list(mine.values()):
        assert extra.name in {k.name for k in known} or extra.kind is inspect.Parameter.KEYWORD_ONLY


def parameters(signature: inspect.Signature) -> list[inspect.Parameter]:
    return [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
