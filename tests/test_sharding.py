"""Sharding: two processes with a part each do what one does, and what they leave is read by any number."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import sharded
from brewer_builtins.adaptors import TextClassification
from brewer_core import sharding
from brewer_core.config.optimization import Optimization
from brewer_core.errors import BrewerError, DataError, RequestError
from brewer_core.run.training_modes import training_modes
from brewer_core.teachers import LiveTeacher
from sharded import (
    ARGUMENTS,
    CPU,
    MADE,
    Training,
    classifier,
    continued,
    gradients,
    masked_model,
    rows,
    student,
    teacher,
)
from tiny import Tiny, assert_same, weights
from two_processes import in_each

KINDS = sorted(MADE)
OUTPUTS = ["logits", "attention", "hidden"]


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes write, and find what one process wrote after a step."""
    folder = tmp_path_factory.mktemp("sharding")
    alone = Training("adamw", sharded=False)
    alone.step()
    sharding.write_shards(folder / "from one", alone.learner, alone.optimizer)
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    return in_each(partial(sharded.all_of_it, folder=folder), folder)


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Any]]:
    """The same trainings on one process, by optimizer: two steps, and two more."""
    trainings = {kind: Training(kind, sharded=False) for kind in KINDS}
    return {kind: {"first": training.run(2), "straight": training.run(2)} for kind, training in trainings.items()}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield sharding.device_mesh(CPU)
    finally:
        distributed.destroy_process_group()


# Training


def test_every_parameter_is_in_parts_of_which_each_process_holds_its_own(both: list[dict[str, Any]]) -> None:
    first, second = (found["adamw"]["parts"] for found in both)
    assert set(first) == {name for name, _ in sharded.learner(0).named_parameters()}
    for name, (whole, part) in first.items():
        assert [part, second[name][1]] == [(whole + 1) // 2, whole // 2], name
    assert first["student.spare.bias"] == [1, 1]
    assert second["student.spare.bias"] == [1, 0]


@pytest.mark.parametrize("stretch", ["first", "straight"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_half_of_the_rows_each_train_as_one(
    kind: str, stretch: str, both: list[dict[str, Any]], one: dict[str, dict[str, Any]]
) -> None:
    ours, expected = both[0][kind][stretch], one[kind][stretch]
    assert_same(ours["state"], expected["state"], atol=1e-5)
    assert ours["groups"] == expected["groups"]
    for found in both:
        assert found[kind][stretch]["norms"] == pytest.approx(expected["norms"], abs=1e-5)
        assert min(expected["norms"]) > 0.5, "nothing was clipped"


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_answers_alone_before_between_and_after_the_steps(
    kind: str, both: list[dict[str, Any]], one: dict[str, dict[str, Any]]
) -> None:
    for stretch in ("first", "straight"):
        for i, whole in enumerate(one[kind][stretch]["logits"]):
            halves = [found[kind][stretch]["logits"][i] for found in both]
            torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-5)


def test_frozen_and_unused_parameters_and_buffers_stay_as_the_first_process_had_them(
    both: list[dict[str, Any]],
) -> None:
    state, before = both[0]["adamw"]["straight"]["state"], student(0).state_dict()
    for name in ("bert.embeddings.position_embeddings.weight", "spare.weight", "spare.bias", "seen"):
        assert torch.equal(state[f"student.{name}"], before[name]), name


@pytest.mark.parametrize("of", OUTPUTS)
def test_a_loss_of_any_output_alone_has_its_gradients(of: str, both: list[dict[str, Any]]) -> None:
    expected = gradients(classifier(32, 2, seed=4), rows(1), of)
    for found in both:
        assert_same(found["gradients"][of]["gradients"], expected, atol=1e-7)


def test_a_weight_that_a_block_shares_with_the_rest_is_trained_as_one(both: list[dict[str, Any]]) -> None:
    model = masked_model()
    assert_same(both[0]["tied"]["state"], weights(model))
    for found in both:
        assert_same(found["tied"]["gradients"], gradients(model, rows(1), "logits"), atol=1e-7)
    saved = both[0]["tied"]["state"]
    tied = [
        saved[name].data_ptr() for name in ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    ]
    assert tied[0] == tied[1]


def test_a_sharded_teacher_says_what_a_whole_one_says(both: list[dict[str, Any]]) -> None:
    model = teacher().eval()
    for position, seed in enumerate((1, 2)):
        with torch.no_grad():
            outputs = model(**rows(seed), **sharded.ARGUMENTS)
        for name, whole in (("logits", outputs.logits), ("last", outputs.hidden_states[-1])):
            halves = [found["teacher"]["features"][position][name] for found in both]
            torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-6)
    assert all(parts is not None for found in both for parts in found["teacher"]["parts"].values())


# State and checkpoints


def test_the_whole_state_is_on_the_first_process(both: list[dict[str, Any]]) -> None:
    assert list(both[0]["adamw"]["first"]["state"]) == list(sharded.learner(0).state_dict())
    assert both[1]["adamw"]["first"]["state"] == {}


def test_a_whole_state_is_taken_up_from_the_first_process(both: list[dict[str, Any]]) -> None:
    assert_same(both[0]["loaded"]["state"], weights(student(2)))
    for found in both:
        assert 'Missing key(s) in state_dict: "spare.bias"' in found["loaded"]["error"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_go_on_from_their_checkpoint_as_if_never_stopped(kind: str, both: list[dict[str, Any]]) -> None:
    straight, read = both[0][kind]["straight"], both[0][kind]["read"]
    assert_same(read["state"], straight["state"], atol=1e-6)
    assert read["groups"] == straight["groups"]
    assert read["norms"] == pytest.approx(straight["norms"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_from_the_checkpoint_of_two(kind: str, both: list[dict[str, Any]], folder: Path) -> None:
    straight = both[0][kind]["straight"]
    read = continued(kind, folder / kind, both[0][kind]["schedule"], sharded=False)
    assert_same(read["state"], straight["state"], atol=1e-5)
    assert read["groups"] == straight["groups"]
    assert read["norms"] == pytest.approx(straight["norms"], abs=1e-5)


def test_two_processes_read_the_checkpoint_of_one(both: list[dict[str, Any]]) -> None:
    alone = Training("adamw", sharded=False)
    alone.step()
    assert_same(both[0]["read from one"], weights(alone.learner))


def test_a_checkpoint_of_one_process_brings_back_all_state(folder: Path) -> None:
    wrote, read = Training("adamw", sharded=False), Training("adamw", seed=5, sharded=False)
    wrote.step()
    sharding.read_shards(folder / "from one", read.learner, read.optimizer)
    assert str(read.optimizer.state_dict()) == str(wrote.optimizer.state_dict())


def test_a_checkpoint_that_is_missing_or_of_other_things_is_refused(folder: Path, tmp_path: Path) -> None:
    training = Training("adamw", sharded=False)

    def read(path: Path) -> str:
        return message(DataError, lambda: sharding.read_shards(path, training.learner, training.optimizer))

    assert read(tmp_path) == (
        f"checkpoint {tmp_path} cannot be read: [Errno 2] No such file or directory: '{tmp_path / 'plain.pt'}'; take an earlier one."
    )
    path = folder / "from one"
    training.optimizer.param_groups.pop()
    assert (
        read(path)
        == f"checkpoint {path} cannot be read: the optimizer has other parameter groups than those saved; take an earlier one."
    )
    training.learner.extra = nn.Linear(1, 1)
    assert (
        read(path)
        == f"checkpoint {path} cannot be read: the learner has other tensors than those saved; take an earlier one."
    )


def test_a_checkpoint_whose_list_of_contents_holds_code_is_not_read(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    training = Training("adamw", sharded=False)
    sharding.write_shards(tmp_path, training.learner, training.optimizer)
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"code": Code()}))
    said = message(DataError, lambda: sharding.read_shards(tmp_path, training.learner, training.optimizer))
    assert (
        said
        == f"checkpoint {tmp_path} cannot be read: it holds code, {os.mkdir.__module__}.mkdir; take an earlier one."
    )
    assert not (tmp_path / "ran").exists()


# What is refused


def test_without_a_process_group_there_is_nothing_to_shard_over() -> None:
    assert message(RequestError, lambda: sharding.device_mesh(CPU)) == (
        "sharding is over the processes of a group, and there is none; start with torchrun."
    )


class Holder(nn.Module):
    """A learner's outline: a student, and another part."""

    def __init__(self, student: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.student, self.part = student, part


def scalar() -> nn.Module:
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    return model


REFUSED = {
    "a scalar": (scalar, "the parameter 'part.scale' has no dimension to shard; give it one, of length 1."),
    "sparse gradients": (
        lambda: nn.Embedding(3, 2, sparse=True),
        "the embedding 'part' gives sparse gradients, which cannot be sharded; build it with sparse=False.",
    ),
    "two types": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64)),
        "'part.0.bias' in float32 and 'part.1.bias' in float64 are both trained; what is sharded together is trained in one type, "
        "so convert it to one.",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_be_sharded_is_refused_before_anything_is(case: str, mesh: Any) -> None:
    build, expected = REFUSED[case]
    model = Holder(Tiny(4, 1), build())
    assert message(RequestError, lambda: sharding.shard_learner(model, mesh)) == expected
    assert not sharding.is_sharded(model)


def test_a_projection_may_be_of_another_type_than_the_student(mesh: Any) -> None:
    model = Holder(Tiny(4, 1).to(torch.bfloat16), nn.Linear(2, 2))
    sharding.shard_learner(model, mesh)
    assert sharding.is_sharded(model)


def test_a_parameter_of_student_and_projection_both_is_refused(mesh: Any) -> None:
    model = Tiny(4, 1)
    assert message(RequestError, lambda: sharding.shard_learner(Holder(model, model.of_rows), mesh)) == (
        "the student's parameter 'of_rows.weight' is also one of a projection, a loss or the strategy, and so would be sharded "
        "twice; give that a parameter of its own, or train without sharding."
    )


def test_a_teacher_in_parts_runs_whole_and_is_not_compiled(mesh: Any) -> None:
    ran = []
    for in_parts in (False, True):
        model = teacher()
        if in_parts:
            sharding.shard_teacher(model, mesh)
        taught_by = LiveTeacher(model, TextClassification(), CPU, arguments=ARGUMENTS)
        model.bert.encoder.layer[2].register_forward_hook(lambda *_: ran.append(in_parts))  # noqa: B023  # called at once
        for seed in range(3):
            taught_by.features(rows(seed), frozenset({"hidden[1]"}))
        with training_modes(student(0), Optimization.from_dict({"steps": 1, "compile": "eager"}), teachers=[model]):
            assert (model._compiled_call_impl is None) == in_parts
    assert ran == [False, True, True, True]


def test_sharding_twice_is_refused(mesh: Any) -> None:
    model = Tiny(4, 1)
    sharding.shard(model, mesh)
    assert sharding.is_sharded(model)
    assert message(RequestError, lambda: sharding.shard_teacher(model, mesh)) == (
        "the FSDPTiny is sharded already, in whole or in part; shard it once."
    )


def test_an_optimizer_that_has_stepped_or_holds_others_parameters_is_not_regrouped() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(other.parameters())
    before = dict(model.named_parameters())
    assert message(RequestError, lambda: sharding.regroup(optimizer, before, model)) == (
        "the optimizer's group 0 holds a parameter of shape (3, 3) that the module did not have before it was sharded; build the "
        "optimizer over the module's parameters."
    )
    other(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert message(RequestError, lambda: sharding.regroup(optimizer, dict(other.named_parameters()), other)) == (
        "the AdamW has stepped already, and its state belongs to whole parameters; shard before the first step, and read the "
        "state from a checkpoint."
    )


def test_an_optimizer_whose_state_is_in_parts_of_other_shapes_is_refused(mesh: Any, tmp_path: Path) -> None:
    class Rows(torch.optim.SGD):
        """Keeps a number a row."""

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["rows"] = parameter.detach().sum(-1)

    model = nn.Linear(4, 2, bias=False)
    sharding.shard(model, mesh)
    optimizer = Rows(model.parameters(), lr=0.1)
    optimizer.step()
    assert message(RequestError, lambda: sharding.write_shards(tmp_path, model, optimizer)) == (
        "Rows keeps `rows` of the parameter 'weight' in parts of another shape than the parameter's, which a checkpoint in parts "
        "cannot hold; take another optimizer, such as AdamW."
    )


def test_what_is_not_sharded_goes_through_the_same_calls() -> None:
    model, state = Tiny(4, 1, seed=1), weights(Tiny(4, 1, seed=2))
    sharding.load_full_state(model, state)
    assert_same(sharding.full_state(model), state)
    norm: Tensor = torch.tensor(2.0)
    assert sharding.full_norm(norm) is norm
    with sharding.no_sync(model):
        assert not sharding.is_sharded(model)
