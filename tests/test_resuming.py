"""An engine that goes on from a checkpoint ends where it would have ended, whatever loader it reads, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from brewer_core.checkpoints import Checkpoints
from brewer_core.config import DistillationConfig
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import DataError, NonFiniteError, RequestError, Stopped
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective
from brewer_core.plugins import default_registry
from brewer_core.stopping import StopReason
from brewer_core.teachers import LiveTeacher
from tiny import assert_same, weights

CPU = torch.device("cpu")
ROWS = 22
STEPS = 17


class Noisy(Dataset[Any]):
    """Rows that every reading changes, by draws from all three process-wide generators."""

    def __init__(self, drawing: bool = True) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(ROWS, 6, generator=generator)
        self.drawing = drawing

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = torch.rand(6) + random.random() + numpy.random.rand() if self.drawing else torch.zeros(6)
        return {"x": self.inputs[index] + 0.1 * noise.float(), "labels": torch.tensor(index % 3)}


class Student(nn.Module):
    """Dropout draws in every step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(0.2), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"logits": self.head(hidden), "hidden": hidden}


def adaptor(batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    loss = nn.functional.cross_entropy(outputs["logits"], batch["labels"])
    return {"logits": outputs["logits"], "hidden": (outputs["hidden"],), "losses": loss}


def engine(
    folder: Path, strategy: str = "general", accumulation: int = 2, optimizer: Any = torch.optim.AdamW, **settings: Any
) -> Engine:
    """A student with a projection, momentum, a learning rate and weights that move, and a checkpoint in every step."""
    torch.manual_seed(0)
    student, teacher, registry = Student(4), Student(5), default_registry()
    config = DistillationConfig(
        kd_loss_type="kl",
        kd_loss_weight_scheduler="linear_decay",
        hard_label_weight=0.5,
        intermediate_matches=[
            {
                "feature": "hidden",
                "layer_T": 0,
                "layer_S": 0,
                "loss": lambda s, t, mask=None: (s - t).square().mean(),
                "weight": 1,
                "proj": ["linear", 4, 5],
            }
        ],
    )
    learner = Learner(
        student.train(), adaptor, Objective.from_config(config, registry), registry.bind("strategy", strategy)()
    )
    return Engine(
        learner,
        optimizer(student.parameters(), lr=0.05),
        device=CPU,
        teachers={"teacher": LiveTeacher(teacher, adaptor, CPU)},
        schedule=lambda made: torch.optim.lr_scheduler.OneCycleLR(made, max_lr=0.05, total_steps=STEPS + 2),
        settings=Settings(
            **{
                "accumulation": accumulation,
                "checkpoint_due": lambda _step, _epoch: True,
                "log_every_steps": 5,
                **settings,
            }
        ),
        checkpoints=Checkpoints(folder, keep_last=100),
        listeners=[Seen()],
        generator=numpy.random.default_rng(7),
    )


class Seen(Listener):
    """The figures that are logged."""

    def __init__(self) -> None:
        self.figures: list[tuple[int, dict[str, float]]] = []

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self.figures.append((step, {name: value for name, value in values.items() if name != "steps_per_s"}))


def seeded() -> None:
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)


class Remembering:
    """A loader with a state of its own, in an order that it draws anew in every pass."""

    def __init__(self) -> None:
        self.rows, self.passes, self.next = Noisy(drawing=False), 0, 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        order = numpy.random.default_rng(self.passes).permutation(ROWS)
        first, self.next = self.next, 0
        if first == 0:
            self.passes += 1
            order = numpy.random.default_rng(self.passes).permutation(ROWS)
        for start in range(first, 6):
            self.next = (start + 1) % 6
            yield torch.utils.data.default_collate([self.rows[i] for i in order[4 * start : 4 * start + 4]])

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes, "next": self.next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.passes, self.next = state["passes"], state["next"]


def batches() -> list[Any]:
    return list(DataLoader(Noisy(drawing=False), batch_size=4))


LOADERS: dict[str, Callable[[], Any]] = {
    "a list": batches,
    "shuffled": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True),
    "with a generator": lambda: DataLoader(
        Noisy(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "a sampler with a generator": lambda: DataLoader(
        Noisy(),
        batch_size=4,
        sampler=RandomSampler(range(ROWS), replacement=True, generator=torch.Generator().manual_seed(5)),
    ),
    "distributed": lambda: DataLoader(
        Noisy(), batch_size=4, sampler=DistributedSampler(Noisy(), num_replicas=1, rank=0)
    ),
    "with a state": Remembering,
}
DURATIONS = {
    "steps": Duration(steps=STEPS),
    "epochs": Duration(epochs=6),
    "whole passes": Duration(steps=STEPS, whole_passes=True),
}


@pytest.mark.parametrize("duration", DURATIONS)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_training_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path, loader: str, duration: str) -> None:
    seeded()
    straight = engine(tmp_path / "straight")
    seeded()
    straight.train(LOADERS[loader](), DURATIONS[duration])
    for done in (1, 3, 4, 8, 11):  # inside a pass, and at the end of one
        resumed = engine(tmp_path / "resumed")
        resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(done))
        torch.manual_seed(99)  # whatever the generators were when it was started
        resumed.train(LOADERS[loader](), DURATIONS[duration])
        assert_same(weights(resumed.learner), weights(straight.learner))
        assert resumed.step == straight.step
        logged = straight.listeners[0].figures
        assert resumed.listeners[0].figures == [each for each in logged if each[0] > done]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.NAdam])
def test_every_optimizer_goes_on(tmp_path: Path, optimizer: Any) -> None:
    straight = (
        engine(tmp_path / "straight", optimizer=optimizer)
        if optimizer is not torch.optim.SGD
        else engine(tmp_path / "straight", optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9))
    )
    straight.train(batches(), DURATIONS["steps"])
    resumed = engine(tmp_path / "resumed", optimizer=lambda p, lr: type(straight.optimizer)(p, lr=lr))
    resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(6))
    resumed.train(batches(), DURATIONS["steps"])
    assert_same(weights(resumed.learner), weights(straight.learner))


def test_tasks_go_on_with_the_draws_that_come_next(tmp_path: Path) -> None:
    def loaders() -> dict[str, Any]:
        return {"a": LOADERS["shuffled"](), "b": LOADERS["with a generator"](), "c": batches()[:2]}

    seeded()
    straight = engine(tmp_path / "straight", "multi_task")
    straight.train(loaders(), DURATIONS["steps"])
    for done in (1, 2, 5, 9, 14):
        resumed = engine(tmp_path / "resumed", "multi_task")
        resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(done))
        resumed.train(loaders(), DURATIONS["steps"])
        assert_same(weights(resumed.learner), weights(straight.learner))


def test_going_on_twice_is_as_good_as_once(tmp_path: Path) -> None:
    seeded()
    straight = engine(tmp_path / "one", "multi_task")
    loaders = {"a": LOADERS["shuffled"](), "b": Remembering()}
    straight.train(loaders, DURATIONS["steps"])
    state = Checkpoints(tmp_path / "one").load(3)
    for step in (4, 5, 9):
        middle = engine(tmp_path / f"to-{step}", "multi_task", stop=lambda: StopReason.TERMINATE)
        for _ in range(step - state["step"]):
            middle = engine(tmp_path / f"to-{step}", "multi_task", stop=lambda: StopReason.TERMINATE)
            middle.load_state_dict(state)
            with pytest.raises(Stopped):
                middle.train({"a": LOADERS["shuffled"](), "b": Remembering()}, DURATIONS["steps"])
            state = Checkpoints(tmp_path / f"to-{step}").newest() or {}
        assert state["step"] == step
    last = engine(tmp_path / "last", "multi_task")
    last.load_state_dict(state)
    last.train({"a": LOADERS["shuffled"](), "b": Remembering()}, DURATIONS["steps"])
    assert_same(weights(last.learner), weights(straight.learner))


def refused(folder: Path, loader: Any, given: Any) -> str:
    whole = engine(folder / "whole")
    whole.train(given, DURATIONS["steps"])
    resumed = engine(folder / "resumed")
    resumed.load_state_dict(Checkpoints(folder / "whole").load(2))
    with pytest.raises((RequestError, DataError)) as caught:
        resumed.train(loader, DURATIONS["steps"])
    return str(caught.value)


def test_a_generator_is_refused_by_name(tmp_path: Path) -> None:
    endless = (batch for _ in range(20) for batch in batches())
    assert refused(tmp_path, (batch for batch in batches()), endless) == (
        "the loader is a generator, which gives its batches only once, so the training cannot go on exactly where it stopped; pass "
        "a DataLoader, a list, or a loader with state_dict and load_state_dict."
    )


def test_workers_are_refused_by_name(tmp_path: Path) -> None:
    loader = DataLoader(Noisy(), batch_size=4, num_workers=1)
    assert refused(tmp_path, loader, DataLoader(Noisy(), batch_size=4)) == (
        "the loader is a DataLoader with 1 workers, and what those draw cannot be repeated, so the training cannot go on exactly "
        "where it stopped; use num_workers=0, or a loader with state_dict such as torchdata's StatefulDataLoader."
    )


def test_a_loader_that_became_shorter_is_refused(tmp_path: Path) -> None:
    class Short:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches()[:2])

    assert refused(tmp_path, Short(), batches()) == (
        "the loader gave fewer than the 4 batches that were read of it before; it must give the same ones for a training to go on "
        "where it stopped. 2 of 17 optimizer steps are done and saved."
    )


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, {"a": batches()}, batches()) == (
        "the training that is taken up had loaders for , and none for 'a'; pass the same."
    )


# Stopping


def test_a_training_that_is_asked_to_stop_saves_and_says_where(tmp_path: Path) -> None:
    asked = iter([StopReason.NONE, StopReason.NONE, StopReason.INTERRUPT])
    stopped = engine(tmp_path, stop=lambda: next(asked), checkpoint_due=lambda _step, _epoch: False)
    with pytest.raises(Stopped) as caught:
        stopped.train(batches(), DURATIONS["steps"])
    assert str(caught.value) == "stopped by an interrupt after optimizer step 3 of 17, and its state is saved"
    assert caught.value.exit_status == 130
    assert Checkpoints(tmp_path).steps() == [3]


def test_a_stop_in_the_last_step_is_no_stop(tmp_path: Path) -> None:
    stopped = engine(tmp_path, stop=lambda: StopReason.TERMINATE)
    assert stopped.train(batches(), Duration(steps=1)) == 1


def test_the_state_is_saved_between_checkpoints_when_the_time_has_come(tmp_path: Path) -> None:
    saving = engine(tmp_path, save_every_s=0.0, checkpoint_due=lambda _step, _epoch: False, save_at_checkpoints=False)
    saving.train(batches(), Duration(steps=5))
    assert Checkpoints(tmp_path).steps() == [1, 2, 3, 4]


# Values that are not finite, left out


class Spoilt:
    """Batches of which those with some numbers are not finite."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(batches()):
            yield {**batch, "x": batch["x"] * (float("nan") if number in self.numbers else 1)}


def test_steps_that_are_not_finite_are_left_out_up_to_a_limit(tmp_path: Path) -> None:
    left_out = engine(tmp_path, on_nonfinite="skip", nonfinite_limit=2)
    with pytest.warns(
        UserWarning, match=r"optimizer step \d of 6: the term `kd_loss` is not finite, in micro-batch 1 of the"
    ):
        assert left_out.train(Spoilt(2), Duration(epochs=2)) == 4
    assert all(tensor.isfinite().all() for tensor in weights(left_out.learner).values())
    with (
        pytest.warns(UserWarning, match="is left out"),
        pytest.raises(NonFiniteError, match="1 steps were left out before"),
    ):
        engine(tmp_path, on_nonfinite="skip", nonfinite_limit=1).train(Spoilt(2), Duration(epochs=2))


def test_a_training_with_steps_left_out_goes_on_exactly(tmp_path: Path) -> None:
    def made(name: str) -> Engine:
        return engine(tmp_path / name, on_nonfinite="skip", nonfinite_limit=20)

    straight, resumed = made("straight"), made("resumed")
    with pytest.warns(UserWarning, match="is left out"):
        straight.train(Spoilt(2), Duration(epochs=5))
    resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(3))
    with pytest.warns(UserWarning, match="is left out"):
        resumed.train(Spoilt(2), Duration(epochs=5))
    assert_same(weights(resumed.learner), weights(straight.learner))
