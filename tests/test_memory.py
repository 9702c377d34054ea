"""Where the memory runs out, a step is made in smaller micro-batches, and comes to the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brewer_builtins.kd_losses import kl
from brewer_builtins.strategies import General
from brewer_core.batches import rows
from brewer_core.checkpoints import Checkpoints
from brewer_core.config import DistillationConfig
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import ConfigError, MemoryFullError, RequestError
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.plugins import default_registry
from brewer_core.processes import Processes
from brewer_core.run import run_config
from brewer_core.teachers import LiveTeacher
from fakes import plugin
from runs import bert, distill, document, films, supervised, training, weights_in, write_config
from tiny import CountingAdaptor, Tiny, adaptor, assert_same, batches, table, weights
from two_processes import in_each

CPU = torch.device("cpu")
FEATURES = ("token_logits", "hidden", "attention", "mask", "losses")
STEPS = 3
ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
)
ERRORS: dict[str, Callable[[], Exception]] = {
    "torch's": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "the CPU's": lambda: RuntimeError(ON_CPU),
    "cuBLAS's": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Python's": lambda: MemoryError(),
}


class Narrow(Tiny):
    """A student that the memory holds with so many rows, and that keeps a statistic of what it has seen."""

    def __init__(self, limit: int, error: Callable[[], Exception] = ERRORS["torch's"], dropout: float = 0.0) -> None:
        super().__init__(4, 2, dropout=dropout, seed=1)
        self.register_buffer("seen", torch.zeros(()))
        self.limit, self.error, self.tried = limit, error, list[int]()

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor, tags: Tensor, gain: float = 1.0) -> dict[str, Any]:
        self.tried.append(len(ids))
        self.seen += ids.sum()
        made = super().forward(ids, mask, labels, tags, gain)
        if len(ids) > self.limit:
            raise self.error()
        return made


def ragged(count: int = 36) -> dict[str, Tensor]:
    """Rows of very different length, a third of them without a label."""
    columns = table(count, length=9)
    lengths = torch.arange(count) * 5 % 9 + 1
    columns["mask"] = (torch.arange(9) < lengths[:, None]).long()
    columns["labels"][1::3] = -100
    return columns


def objective() -> Objective:
    """Terms over labels, tokens and pairs of tokens, one with a projection."""
    match = {"layer_T": 3, "layer_S": 2, "weight": 0.5}
    config = DistillationConfig(
        kd_loss_type="kl",
        hard_label_weight=0.5,
        intermediate_matches=[
            {**match, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", 4, 6]},
            {**match, "feature": "attention", "loss": "attention_mse"},
        ],
    )
    return Objective.from_config(config, default_registry())


def engine(student: nn.Module, *, folder: Path | None = None, **settings: Any) -> Engine:
    torch.manual_seed(0)
    learner = Learner(student.train(), CountingAdaptor(*FEATURES), objective(), General())
    return Engine(
        learner,
        torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9),
        device=CPU,
        teachers={"teacher": LiveTeacher(Tiny(6, 3, seed=2), adaptor(*FEATURES), CPU)},
        settings=Settings(**{"loss_normalization": "step", "checkpoint_due": lambda _step, _epoch: True, **settings}),
        checkpoints=Checkpoints(folder, keep_last=10) if folder else None,
    )


def trained(student: Narrow, sizes: Sequence[int], **settings: Any) -> dict[str, Tensor]:
    """The weights after three steps, each of micro-batches of these sizes."""
    made = engine(student, accumulation=len(sizes), **settings)
    torch.manual_seed(5)
    made.train(batches(ragged(), [*sizes] * STEPS), Duration(steps=STEPS))
    return weights(made.learner)


def halved(count: int, size: int) -> str:
    return (
        f"the memory ran out: micro-batches are run in {count} parts of {size} rows from now on, "
        "and a step is the same as before."
    )


@pytest.mark.parametrize("error", ERRORS)
def test_a_step_that_the_memory_does_not_hold_is_halved_until_it_fits(error: str) -> None:
    student = Narrow(4, ERRORS[error])
    with pytest.warns(UserWarning, match="the memory ran out") as caught:
        ours = trained(student, [12], split_when_full=True)
    assert [str(warning.message) for warning in caught] == [halved(2, 6), halved(4, 3)]
    assert student.tried == [12, 6, *[3] * 4 * STEPS]
    assert_same(ours, trained(Narrow(99), [3, 3, 3, 3]), atol=1e-6)
    whole = trained(Narrow(99), [12])
    assert_same(ours, whole, atol=1e-6)


def test_halves_of_every_micro_batch_of_a_step_are_weighed_by_their_items() -> None:
    with pytest.warns(UserWarning, match="the memory ran out"):
        ours = trained(Narrow(2), [5, 7], split_when_full=True)
    assert_same(ours, trained(Narrow(99), [12]), atol=1e-6)


def test_what_a_step_draws_is_the_same_when_it_is_made_again() -> None:
    with pytest.warns(UserWarning, match="the memory ran out"):
        ours = trained(Narrow(4, dropout=0.3), [12], split_when_full=True)
    assert_same(ours, trained(Narrow(99, dropout=0.3), [3, 3, 3, 3]), atol=1e-6)


def test_memory_that_holds_everything_changes_nothing() -> None:
    whole = trained(Narrow(99, dropout=0.3), [12])
    assert_same(trained(Narrow(99, dropout=0.3), [12], split_when_full=True), whole)


def test_a_checkpoint_remembers_the_halves(tmp_path: Path) -> None:
    loader = batches(ragged(), [12] * STEPS)
    straight = engine(Narrow(4, dropout=0.3), folder=tmp_path / "straight", split_when_full=True)
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="the memory ran out"):
        straight.train(loader, Duration(steps=STEPS))
    student = Narrow(4, dropout=0.3)
    resumed = engine(student, folder=tmp_path / "resumed", split_when_full=True)
    resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(1))
    resumed.train(loader, Duration(steps=STEPS))
    assert student.tried == [3] * 8
    assert_same(weights(resumed.learner), weights(straight.learner))


def test_a_row_that_the_memory_does_not_hold_is_told() -> None:
    made = engine(Narrow(0), split_when_full=True)
    before = weights(made.learner)
    with pytest.warns(UserWarning, match="the memory ran out") as warned, pytest.raises(MemoryFullError) as caught:
        made.train(batches(ragged(), [3]), Duration(steps=1))
    assert len(warned) == 2
    assert str(caught.value) == (
        "the memory does not hold a single row with what is trained; take a smaller model, shorter texts "
        "(max_length), precision bf16, or gradient checkpointing."
    )
    assert_same(weights(made.learner), before)


@pytest.mark.parametrize("error", [RuntimeError("shapes (3, 4) and (5, 6) do not fit"), ValueError("memory")], ids=repr)
def test_other_errors_are_not_the_memorys(error: Exception) -> None:
    made = engine(Narrow(4, lambda: error), split_when_full=True)
    with pytest.raises(type(error)) as caught:
        made.train(batches(ragged(), [12]), Duration(steps=1))
    assert caught.value is error


def test_without_being_asked_for_nothing_is_halved_and_the_way_out_is_named() -> None:
    with pytest.raises(MemoryFullError) as caught:
        trained(Narrow(4), [12])
    assert str(caught.value) == (
        "the memory does not hold a micro-batch with what is trained; take a smaller batch_size and more accumulation, which "
        'batch_size "auto" does by itself.'
    )
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


# On two processes


def full_when_prepared(limit: int) -> Callable[[str, Any], Any]:
    """What is applied to batches, and finds no memory for so many rows."""

    def prepare(task: str, batch: Any) -> Any:
        if rows(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch

    return prepare


def where_only_the_second_runs_out(rank: int) -> list[list[Any]]:
    """Weights, and the sizes tried, of trainings where the second process has memory for two rows, or for one."""
    found: list[list[Any]] = []
    for sizes, limit, prepared in (([7, 5], 2, 99), ([1, 11], 1, 99), ([7, 5], 99, 2)):
        student = Narrow(limit if rank else 99)
        prepare = full_when_prepared(prepared if rank else 99)
        made = engine(student, split_when_full=True, prepare=prepare)
        own = batches(ragged(), sizes * STEPS)[rank::2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.train(own, Duration(steps=STEPS))
        found.append([student.tried, {n: w for n, w in weights(made.learner).items() if n != "student.seen"}])
    return found


def test_processes_of_which_one_runs_out_end_with_the_student_of_one(tmp_path: Path) -> None:
    first, second = in_each(where_only_the_second_runs_out, tmp_path)
    whole = trained(Narrow(99), [12])
    whole.pop("student.seen")  # each process has its own
    for (tried, ours), (_, theirs) in zip(first, second, strict=True):
        assert set(tried[-3:]) != {12}
        assert_same(ours, whole, atol=1e-6)
        assert_same(theirs, ours)


# In a run


STILL = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}


def config(**steps: Any) -> dict[str, Any]:
    """A run without dropout, of steps of eight rows."""
    many = training(steps=5, **steps)
    return document(
        models={"teacher": bert(16, 2, **STILL), "student": bert(8, 1, **STILL)},
        stages=[supervised(training=many), distill(training=many)],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the same steps, whole, in halves, and as the memory holds them."""
    made = films(tmp_path_factory.mktemp("memory"))
    for name, steps in {
        "whole": {"batch_size": 8},
        "halves": {"batch_size": 4, "accumulation": 2},
        "auto": {"batch_size": "auto", "rows_per_step": 8},
    }.items():
        run_config(write_config(made, config(**steps), f"{name}.json"), output=made / name)
    return made


def short_of_memory(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """What `kl` is, for up to three rows."""
    if len(student_logits) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return kl(student_logits, teacher_logits, temperature)


def student(folder: Path) -> dict[str, Tensor]:
    """The weights but for the bias of keys, whose gradient is 0 but for rounding, which AdamW makes steps of."""
    return {name: tensor for name, tensor in weights_in(folder / "student").items() if "key.bias" not in name}


def test_a_run_of_auto_is_that_of_its_rows_however_they_are_split(folder: Path) -> None:
    assert weights_in(folder / "auto" / "student").keys() == weights_in(folder / "whole" / "student").keys()
    for name, tensor in weights_in(folder / "whole" / "student").items():
        assert tensor.equal(weights_in(folder / "auto" / "student")[name])
    assert_same(student(folder / "auto"), student(folder / "halves"), atol=1e-5)


def test_a_run_that_runs_out_ends_with_the_same_student(folder: Path) -> None:
    made = config(batch_size="auto", rows_per_step=8)
    made["stages"][1]["distillation"]["kd_loss_type"] = "scarce"
    registry = default_registry().with_plugin(plugin(brewer_kd_losses={"scarce": short_of_memory}))
    with pytest.warns(UserWarning, match="the memory ran out") as caught:
        run_config(write_config(folder, made, "scarce.json"), output=folder / "scarce", registry=registry)
    assert [str(warning.message) for warning in caught] == [halved(2, 4), halved(4, 2)]
    assert_same(student(folder / "scarce"), student(folder / "whole"), atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (
            {"batch_size": "auto", "accumulation": 2},
            'accumulation: batch_size is "auto", which finds it; give rows_per_step in its place',
        ),
        (
            {"batch_size": 8, "rows_per_step": 8},
            'rows_per_step: goes with batch_size "auto"; a step has batch_size x accumulation rows else',
        ),
        (
            {"batch_size": "auto", "loss_normalization": "micro_batch"},
            'loss_normalization: with batch_size "auto" the mean of micro-batches would depend on the memory; use "step"',
        ),
    ],
)
def test_settings_that_contradict_one_another_are_refused(tmp_path: Path, steps: Any, problem: str) -> None:
    file = write_config(films(tmp_path), document(stages=[supervised(training=training(**steps))]))
    with pytest.raises(ConfigError) as caught:
        run_config(file, output=tmp_path / "run")
    assert str(caught.value) == f"{file}: stages[0].training: {problem}"


def test_a_student_in_parts_is_not_halved(tmp_path: Path) -> None:
    learner = Learner(Narrow(9), CountingAdaptor("losses"), Objective(None), General())
    with pytest.raises(RequestError) as caught:
        Engine(
            learner,
            torch.optim.SGD(learner.parameters(), lr=0.1),
            device=CPU,
            settings=Settings(split_when_full=True),
            processes=Processes(0, 2),
            in_parts=True,
        )
    assert str(caught.value) == (
        'batch_size "auto" halves micro-batches in one process at a time, and a student in parts runs in all of them '
        "together; give a batch size, or do not shard the student."
    )
