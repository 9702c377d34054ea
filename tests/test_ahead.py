"""When teachers answer: in turn and in place, or beside the student and one micro-batch ahead; and that both train alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brewer_builtins.strategies import General
from brewer_core import DistillationConfig, Features, default_registry
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.engine.ahead import Answers, Awaited, answered, side_of
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.protocols import Step
from brewer_core.teachers import LiveTeacher
from tiny import CountingAdaptor, Tiny, assert_same, batches, table, weights

CPU = torch.device("cpu")
ADAPT = CountingAdaptor("row_logits", "hidden", "losses", "mask")
MATCH = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1}


class Diary:
    """A side on which answers are computed at once, and waited for nevertheless; what happens is written down in order."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def __call__(self, ask: Callable[[], Answers]) -> Answers:
        answers = ask()
        return Awaited(answers, lambda: self.entries.append("waited"))

    def ask(self, item: int) -> Answers:
        self.entries.append(f"asked {item}")
        return {"teacher": Features.of({"logits": torch.full((1, 2), float(item))})}

    def read(self, items: list[int]) -> Iterator[int]:
        for item in items:
            self.entries.append(f"read {item}")
            yield item

    def learnt(self, given: Iterable[tuple[int, Answers]]) -> list[str]:
        for item, answers in given:
            self.entries.append(f"student {item}")
            assert answers["teacher"]["logits"][0].tolist() == [[item, item]]
            self.entries.append(f"learnt {item}")
        return self.entries


def test_in_place_teachers_are_asked_when_it_is_a_micro_batchs_turn() -> None:
    diary = Diary()
    expected = [f"{what} {item}" for item in (1, 2) for what in ("read", "asked", "student", "learnt")]
    assert diary.learnt(answered(diary.read([1, 2]), diary.ask)) == expected


def test_at_hand_makes_no_difference_in_place() -> None:
    diary = Diary()
    expected = [f"{what} {item}" for item in (1, 2) for what in ("asked", "student", "learnt")]
    assert diary.learnt(answered([1, 2], diary.ask, None, at_hand=True)) == expected


def test_beside_the_student_teachers_are_asked_about_the_next_micro_batch_first_and_waited_for_last() -> None:
    diary = Diary()
    assert diary.learnt(answered([1, 2, 3], diary.ask, diary, at_hand=True)) == [
        *("asked 1", "asked 2", "student 1", "waited", "learnt 1"),
        *("asked 3", "student 2", "waited", "learnt 2"),
        *("student 3", "waited", "learnt 3"),
    ]


def test_micro_batches_that_are_not_at_hand_are_not_read_ahead() -> None:
    diary = Diary()
    whole = [(f"read {n}", f"asked {n}", f"student {n}", "waited", f"learnt {n}") for n in (1, 2)]
    assert diary.learnt(answered(diary.read([1, 2]), diary.ask, diary)) == [entry for each in whole for entry in each]


@pytest.mark.parametrize("items", [[], [1]])
def test_a_step_of_one_micro_batch_has_no_next_one(items: list[int]) -> None:
    diary = Diary()
    expected = ["asked 1", "student 1", "waited", "learnt 1"] if items else []
    assert diary.learnt(answered(items, diary.ask, diary, at_hand=True)) == expected


def test_answers_are_waited_for_once_and_not_before_they_are_read() -> None:
    waits: list[int] = []
    features = Features.of({"logits": torch.ones(1, 2)})
    answers = Awaited({"one": features, "two": features}, lambda: waits.append(1))
    assert (list(answers), len(answers), waits) == (["one", "two"], 2, [])
    assert dict(answers) == {"one": features, "two": features}
    assert answers["two"] is features
    assert waits == [1]


def test_a_cpu_has_no_side() -> None:
    assert side_of(CPU) is None


def learner_of(student: nn.Module) -> Learner:
    config = DistillationConfig(hard_label_weight=1, intermediate_matches=[MATCH])
    return Learner(student, ADAPT, Objective.from_config(config, default_registry()), General())


def test_a_learner_waits_once_its_student_has_run() -> None:
    diary, student = Diary(), Tiny(8, 1, seed=1)
    student.register_forward_hook(lambda *_: diary.entries.append("student"))
    learner, teacher, batch = learner_of(student), LiveTeacher(Tiny(8, 2, seed=2), ADAPT, CPU), batches(table(), [4])[0]
    plain = {"teacher": teacher.features(batch, learner.needs.teacher("teacher"))}
    losses = learner("", batch, diary(lambda: plain), Step(0, 1))
    assert diary.entries == ["student", "waited"]
    assert_same(losses, learner("", batch, plain, Step(0, 1)))


class Watched:
    """A teacher that notes how many of its hidden states of earlier micro-batches are still held."""

    def __init__(self) -> None:
        self.inner = LiveTeacher(Tiny(8, 2, seed=2), ADAPT, CPU)
        self.given: list[weakref.ref[Tensor]] = []
        self.held: list[int] = []

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        self.held.append(sum(given() is not None for given in self.given))
        features = self.inner.features(batch, needs)
        self.given.append(weakref.ref(features["hidden"][2]))
        return features


def trained(teachers: Mapping[str, Any], device: torch.device = CPU, **settings: Any) -> dict[str, Tensor]:
    """The student's weights after two steps of four micro-batches."""
    student = Tiny(8, 1, seed=1).to(device)
    engine = Engine(
        learner_of(student),
        torch.optim.AdamW(student.parameters(), lr=0.01),
        device=device,
        teachers=teachers,
        settings=Settings(accumulation=4, **settings),
    )
    engine.train(batches(table(), [4, 3, 5, 2, 4, 4, 1, 3]), Duration(epochs=1))
    return weights(student)


@pytest.mark.parametrize("normalization", ["step", "micro_batch"])
def test_answers_are_let_go_before_the_next_are_asked_for(normalization: str) -> None:
    teacher = Watched()
    trained({"teacher": teacher}, loss_normalization=normalization)
    assert teacher.held == [0] * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a stream of its own needs a GPU")
@pytest.mark.parametrize("normalization", ["step", "micro_batch"])
def test_on_a_gpu_training_is_the_same_beside_and_in_turn(normalization: str) -> None:
    gpu = torch.device("cuda")
    found = [
        trained(
            {"teacher": LiveTeacher(Tiny(8, 2, seed=2), ADAPT, gpu)},
            gpu,
            loss_normalization=normalization,
            teachers_beside=beside,
        )
        for beside in (True, False)
    ]
    assert_same(found[0], found[1], atol=1e-6)
