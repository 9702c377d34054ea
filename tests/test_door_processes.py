"""TextBrewer's classes on two processes end with the student of one, and go on where they stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from brewer_core import (
    BasicTrainer,
    DistillationConfig,
    GeneralDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
    TrainingConfig,
)
from brewer_core.errors import BrewerError, RequestError
from tiny import CountingAdaptor, Tiny, assert_same, mappings, table, weights
from two_processes import in_each

ROWS, SIZE, EPOCHS = 32, 4, 2
FEATURES = ("token_logits", "hidden", "mask", "losses")
MATCH = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 4, 6]}
adapt = CountingAdaptor(*FEATURES)


def rows() -> list[dict[str, Tensor]]:
    """Rows of very different length, a third of them without a label."""
    columns = table(ROWS, length=9)
    lengths = torch.arange(ROWS) * 5 % 9 + 1
    columns["mask"] = (torch.arange(9) < lengths[:, None]).long()
    columns["labels"][1::3] = -100
    return mappings(columns)


def sampled(rank: int, batch_size: int = SIZE, seed: int = 0) -> DataLoader[Any]:
    """A process's loader of half the rows, shuffled anew in each pass."""
    sampler: DistributedSampler[Any] = DistributedSampler(rows(), num_replicas=2, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
    return DataLoader(rows(), batch_size=batch_size, sampler=sampler)  # type: ignore[arg-type]


def shuffling() -> DataLoader[Any]:
    """A loader of all rows."""
    return DataLoader(rows(), batch_size=SIZE, shuffle=True)  # type: ignore[arg-type]


def listed(rank: int, epochs: int = EPOCHS, seed: int = 0) -> list[Any]:
    """The same batches of so many passes."""
    loader, found = sampled(rank, seed=seed), []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += list(loader)
    return found


def together(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The batch of all processes."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def of_both(joined: bool, seed: int = 0) -> list[Any]:
    """What one process trains on in place of two: their batches joined, or one after the other."""
    pairs = list(zip(listed(0, seed=seed), listed(1, seed=seed), strict=True))
    return [together(list(pair)) for pair in pairs] if joined else [batch for pair in pairs for batch in pair]


def training(folder: Path, **settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"output_dir": str(folder), "device": "cpu", "loss_normalization": "step", **settings})


def distillation(**settings: Any) -> DistillationConfig:
    return DistillationConfig(kd_loss_type="kl", hard_label_weight=0.5, **settings)


def made(door: str, config: TrainingConfig, seed: int = 0, dropout: float = 0.0) -> Any:
    """A distiller; student and projection are drawn by the seed."""
    teacher, other = Tiny(6, 2, seed=2), Tiny(6, 2, seed=3)
    student = Tiny(4, 1, dropout=dropout, seed=10 + seed)
    if door == "BasicTrainer":
        return BasicTrainer(config, student, adapt)
    if door == "MultiTeacherDistiller":
        return MultiTeacherDistiller(config, distillation(), [teacher, other], student, adapt, adapt)
    matched = distillation(intermediate_matches=[MATCH])
    if door == "MultiTaskDistiller":
        return MultiTaskDistiller(config, matched, {"a": teacher, "b": other}, student, adapt, adapt)
    return GeneralDistiller(config, matched, teacher, student, adapt, adapt)


def student_of(distiller: Any) -> nn.Module:
    return distiller.model if isinstance(distiller, BasicTrainer) else distiller.model_S


def sgd(distiller: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(student_of(distiller).parameters(), lr=0.1, momentum=0.9)


def train(distiller: Any, loader: Any, epochs: int = EPOCHS, **more: Any) -> dict[str, Tensor]:
    """The student after a training; of several tasks, on the loaders that `loader` gives for the seeds 0 and 1."""
    with distiller:
        if isinstance(distiller, MultiTaskDistiller):
            steps = EPOCHS * ROWS // (2 * SIZE) // distiller.t_config.gradient_accumulation_steps
            distiller.train(sgd(distiller), {"a": loader(0), "b": loader(1)}, steps, **more)
        else:
            distiller.train(sgd(distiller), loader(0), epochs, **more)
    return weights(student_of(distiller))


# On two processes

DOORS = ["GeneralDistiller", "MultiTeacherDistiller", "BasicTrainer", "MultiTaskDistiller"]
CASES = {
    f"{door} {accumulation} {normalization}": (door, accumulation, normalization)
    for door in DOORS
    for accumulation in (1, 2)
    for normalization in ("step", "micro_batch")
    if (door, normalization) != ("MultiTaskDistiller", "micro_batch")  # one process draws a task for each half
}


def in_one(folder: Path, case: str) -> dict[str, Tensor]:
    """The student of one process."""
    door, accumulation, normalization = CASES[case]
    joined = normalization == "step"
    numpy.random.seed(0)
    settings = {"gradient_accumulation_steps": accumulation * (1 if joined else 2), "loss_normalization": normalization}
    return train(made(door, training(folder, **settings)), lambda seed: of_both(joined, seed), epochs=1)


def in_this(rank: int, folder: Path, case: str) -> dict[str, Tensor]:
    """The student of this process among two, whose student and draws are others at first."""
    door, accumulation, normalization = CASES[case]
    numpy.random.seed(rank)
    settings = {"gradient_accumulation_steps": accumulation, "loss_normalization": normalization}
    distiller = made(door, training(folder, log_dir=str(folder / "log"), log_every_steps=1, **settings), seed=rank)
    heard: list[int] = []
    found = train(distiller, lambda seed: sampled(rank, seed=seed), callback=lambda model, step: heard.append(step))
    return {**found, "heard": torch.tensor(heard)}


def trained_in_each(rank: int) -> dict[str, Any]:
    """What becomes of every case, and of what else is asked of several processes; the folder comes by the environment."""
    folder = Path(os.environ["BREWER_TEST_FOLDER"])
    found: dict[str, Any] = {case: in_this(rank, folder / f"{case} {rank}", case) for case in CASES}
    found["lists"] = train(
        made("GeneralDistiller", training(folder / f"lists {rank}"), seed=rank),
        lambda seed: listed(rank, seed=seed),
        epochs=1,
        sharded=True,
    )
    found["refused"] = refusals(folder)
    twice = made("GeneralDistiller", training(folder / f"twice {rank}"), seed=rank)
    found["twice"] = [train(twice, lambda _: sampled(rank)), train(twice, lambda _: sampled(rank))]
    found["resumed"] = [
        train(
            made("GeneralDistiller", training(folder / f"resumed {rank}", resume=True), rank),
            lambda _: sampled(rank),
            n,
        )
        for n in (1, EPOCHS)
    ]
    return found


def refusals(folder: Path) -> list[str]:
    """What is said of loaders that give every process the same rows."""
    texts = []
    for door, loaders in (("GeneralDistiller", [shuffling()]), ("MultiTaskDistiller", [sampled(0), shuffling()])):
        distiller = made(door, training(folder / "refused"))
        with pytest.raises(RequestError) as caught:
            train(distiller, loaders.__getitem__)
        texts.append(str(caught.value))
    return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doors")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BREWER_TEST_FOLDER", str(folder))
        return in_each(trained_in_each, folder)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_student_of_one(folder: Path, both: list[dict[str, Any]], case: str) -> None:
    whole = in_one(folder / case, case)
    for found in both:
        assert_same({name: tensor for name, tensor in found[case].items() if name != "heard"}, whole, atol=1e-5)


def test_lists_of_each_process_are_trained_on_where_they_are_said_to_be_its_own(
    folder: Path, both: list[dict[str, Any]]
) -> None:
    for found in both:
        assert_same(found["lists"], in_one(folder / "one list", "GeneralDistiller 1 step"), atol=1e-5)


def test_a_distiller_may_train_twice(folder: Path, both: list[dict[str, Any]]) -> None:
    case, once = "GeneralDistiller 1 step", made("GeneralDistiller", training(folder / "one twice"))
    first, second = both
    for position in range(2):
        whole = train(once, lambda seed: of_both(True, seed), epochs=1)
        assert_same(first["twice"][position], whole, atol=1e-5)
        assert_same(second["twice"][position], first["twice"][position])
    assert_same(first["twice"][0], {name: first[case][name] for name in whole})


def test_a_training_is_taken_up_by_two_processes(both: list[dict[str, Any]]) -> None:
    for found in both:
        whole = {name: tensor for name, tensor in found["GeneralDistiller 1 step"].items() if name != "heard"}
        assert_same(found["resumed"][1], whole)


def test_a_loader_that_gives_both_the_same_rows_is_refused(both: list[dict[str, Any]]) -> None:
    text = (
        "train: each process would train on all rows of its loader; give the DataLoader a DistributedSampler, or pass "
        "sharded=True where each process's loader has rows of its own."
    )
    assert [found["refused"] for found in both] == [[text, text]] * 2


def test_the_first_process_alone_writes_and_calls_back(folder: Path, both: list[dict[str, Any]]) -> None:
    case = "GeneralDistiller 1 step"
    first, second = both
    assert first[case].pop("heard").tolist() == [4, 8]
    assert second[case].pop("heard").tolist() == []
    written = folder / f"{case} 0"
    assert sorted(path.name for path in written.iterdir()) == ["checkpoints", "gs4.pkl", "gs8.pkl", "log"]
    assert_same(torch.load(written / "gs8.pkl", weights_only=True), first[case])
    assert not (folder / f"{case} 1").exists()
    log = EventAccumulator(str(written / "log"))
    log.Reload()
    assert [point.step for point in log.Scalars("scalar/total_loss")] == list(range(1, 9))


def test_a_script_of_ones_own_trains_under_torchrun(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(
        dedent(
            """
            import os, sys, torch
            from pathlib import Path
            from test_door_processes import made, sampled, train, training

            rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
            distiller = made("GeneralDistiller", training(folder / "saved"), seed=rank)
            torch.save(train(distiller, lambda _: sampled(rank)), folder / f"script-{rank}.pt")
            """
        )
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launcher, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole = in_one(folder / "one script", "GeneralDistiller 1 step")
    for rank in range(2):
        assert_same(torch.load(folder / f"script-{rank}.pt", weights_only=True), whole, atol=1e-5)
    assert (folder / "saved" / "gs8.pkl").exists()


# Going on, in one process


SCHEDULE = {
    "scheduler_class": torch.optim.lr_scheduler.OneCycleLR,
    "scheduler_args": {"max_lr": 0.2, "total_steps": 30},
}
DURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epochs": ({"num_epochs": 3}, {"ckpt_frequency": 3}),
    "steps": ({"num_steps": 11}, {"ckpt_steps": 3}),
    "steps of two batches": ({"num_steps": 11}, {"ckpt_steps": 2, "gradient_accumulation_steps": 2}),
    "epochs of steps of three batches": ({"num_epochs": 3}, {"gradient_accumulation_steps": 3, "ckpt_frequency": 2}),
}


class Interrupted(Exception):
    """Raised by a callback."""


def interrupting(after: int) -> Callable[..., None]:
    def callback(model: nn.Module, step: int) -> None:
        del model
        if step >= after:
            raise Interrupted

    return callback


def called(distiller: Any, loader: Any, duration: Mapping[str, int], **more: Any) -> dict[str, Tensor]:
    """The trained student of a call with every argument that there is."""
    with distiller:
        if isinstance(distiller, MultiTaskDistiller):
            more |= {"tau": 0.5}
        distiller.train(sgd(distiller), loader, **duration, **SCHEDULE, max_grad_norm=1.0, **more)
    return weights(student_of(distiller))


@pytest.mark.parametrize("duration", DURATIONS)
@pytest.mark.parametrize("door", ["GeneralDistiller", "MultiTeacherDistiller", "BasicTrainer"])
def test_a_training_that_stopped_goes_on_to_the_same_student(tmp_path: Path, door: str, duration: str) -> None:
    length, settings = DURATIONS[duration]

    def run(folder: str, seed: int, **more: Any) -> dict[str, Tensor]:
        distiller = made(door, training(tmp_path / folder, resume=True, **settings), dropout=0.2)
        torch.manual_seed(seed)
        return called(distiller, shuffling(), length, **more)

    whole = run("whole", 1)
    for seed, after in ((1, 1), (99, 5)):
        with pytest.raises(Interrupted):
            run("again", seed, callback=interrupting(after))
    assert_same(run("again", 77), whole)
    ours, theirs = ([path.name for path in sorted((tmp_path / each).glob("gs*"))] for each in ("again", "whole"))
    assert ours == theirs
    for name in ours:
        assert_same(*(torch.load(tmp_path / each / name, weights_only=True) for each in ("again", "whole")))


def test_tasks_go_on_with_the_draws_that_come_next(tmp_path: Path) -> None:
    def run(folder: str, seed: int, **more: Any) -> dict[str, Tensor]:
        distiller = made("MultiTaskDistiller", training(tmp_path / folder, resume=True, ckpt_steps=3), dropout=0.2)
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        return called(distiller, {"a": shuffling(), "b": shuffling()}, {"num_steps": 10}, **more)

    whole = run("whole", 1)
    with pytest.raises(Interrupted):
        run("again", 1, callback=interrupting(6))
    assert_same(run("again", 50), whole)


def test_a_finished_training_is_not_made_again_and_may_be_made_longer(tmp_path: Path) -> None:
    def run(folder: str, epochs: int) -> dict[str, Tensor]:
        distiller = made("GeneralDistiller", training(tmp_path / folder, resume=True), dropout=0.2)
        torch.manual_seed(1)
        return called(distiller, shuffling(), {"num_epochs": epochs})

    once, longer = run("once", 2), run("longer", 3)
    assert_same(run("once", 2), once)
    assert_same(run("once", 3), longer)


def test_an_older_and_longer_training_is_not_gone_on_with(tmp_path: Path) -> None:
    def run(resume: bool, steps: int, folder: str = "used", **more: Any) -> dict[str, Tensor]:
        distiller = made("GeneralDistiller", training(tmp_path / folder, resume=resume, ckpt_steps=2), dropout=0.2)
        torch.manual_seed(steps)
        return called(distiller, shuffling(), {"num_steps": steps}, **more)

    whole = run(False, 6, "whole")
    run(False, 12)
    with pytest.raises(Interrupted):
        run(False, 6, callback=interrupting(2))
    assert_same(run(True, 6), whole)


# What cannot be gone on with


def refused(folder: Path, loader: Callable[[], Any], door: str = "GeneralDistiller", **more: Any) -> str:
    """What is said to whoever goes on with a training of three steps."""
    first = made("GeneralDistiller", training(folder, ckpt_steps=3))
    first.train(sgd(first), list(shuffling()), num_steps=3)
    distiller = made(door, training(folder, resume=True, ckpt_steps=3))
    with pytest.raises(BrewerError) as caught:
        distiller.train(more.pop("optimizer", sgd)(distiller), loader(), num_steps=6)
    return str(caught.value)


def test_what_gives_its_batches_once_is_not_gone_on_with(tmp_path: Path) -> None:
    def once() -> Iterator[Any]:
        yield from shuffling()

    assert refused(tmp_path, once) == (
        "the loader is a generator, which gives its batches only once, so the training cannot go on exactly where it stopped; "
        "pass a DataLoader, a list, or a loader with state_dict and load_state_dict."
    )


def test_workers_are_not_gone_on_with(tmp_path: Path) -> None:
    assert refused(tmp_path, lambda: DataLoader(rows(), batch_size=SIZE, num_workers=1)) == (  # type: ignore[arg-type]
        "the loader is a DataLoader with 1 workers, and what those draw cannot be repeated, so the training cannot go on exactly "
        "where it stopped; use num_workers=0, or a loader with state_dict such as torchdata's StatefulDataLoader."
    )


def test_another_student_is_not_gone_on_with(tmp_path: Path) -> None:
    text = refused(tmp_path, shuffling, door="BasicTrainer")
    assert text.startswith(f"the checkpoint of step 3 in {tmp_path}/checkpoints is of another training: ")


def test_another_optimizer_is_not_gone_on_with(tmp_path: Path) -> None:
    def of_the_head(distiller: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(student_of(distiller).of_rows.parameters(), lr=0.1)

    text = refused(tmp_path, shuffling, optimizer=of_the_head)
    assert text.startswith(f"the checkpoint of step 3 in {tmp_path}/checkpoints is of another training: ")
