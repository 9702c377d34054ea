"""Several teachers and several tasks: means, masks, matches, draws and loaders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from brewer_builtins import kd_losses, match_losses
from brewer_builtins.ensembles import averaged
from brewer_builtins.strategies import MultiTask, MultiTeacher
from brewer_core import (
    BasicDistiller,
    Counts,
    DistillationConfig,
    Features,
    GeneralDistiller,
    ModelInfo,
    MultiTaskDistiller,
    MultiTeacherDistiller,
    TrainingConfig,
    default_registry,
)
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import AdaptorError, BrewerError, ConfigError, DataError, RequestError, ShapeError
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective
from brewer_core.teachers import LiveTeacher
from tiny import CountingAdaptor, Tiny, adaptor, assert_same, batches, table, weights
from two_processes import drawn_tasks, in_each

MATCH = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 16]}
CPU = torch.device("cpu")
B, L, V = 2, 4, 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# The mean of several teachers


def mean(
    teachers: Sequence[Mapping[str, Any]], *, weights: Sequence[float] | None = None, temperature: float | None = None
) -> Features:
    named = {str(i): Features.of(features) for i, features in enumerate(teachers)}
    return averaged(named, dict(zip(named, weights or [1.0] * len(named), strict=True)), temperature)


def test_the_mean_of_logits_is_weighted() -> None:
    first, second = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[5.0, -2.0], [8.0, 0.0]])
    assert mean([{"logits": first}, {"logits": second}])["logits"][0].tolist() == [[3.0, 0.0], [4.0, 2.0]]
    weighted = mean([{"logits": first}, {"logits": second}], weights=[3, 1])
    assert weighted["logits"][0].tolist() == [[2.0, 1.0], [2.0, 3.0]]
    assert first.tolist() == [[1.0, 2.0], [0.0, 4.0]]


def test_the_mean_of_probabilities_is_worked_by_hand() -> None:
    # at temperature 2: probabilities 0.8, 0.2 and 0.2, 0.8, so their mean is a half each, and 0.65, 0.35 weighted 3 to 1
    sure = 2 * torch.tensor([[math.log(0.8), math.log(0.2)]])
    teachers = [{"logits": sure}, {"logits": sure.flip(1) + 7}]  # a constant on all logits changes no probability
    even, uneven = mean(teachers, temperature=2.0), mean(teachers, weights=[3, 1], temperature=2.0)
    torch.testing.assert_close((even["logits"][0] / 2).softmax(-1), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close((uneven["logits"][0] / 2).softmax(-1), torch.tensor([[0.65, 0.35]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_the_softmax_of_the_mean_is_the_mean_of_the_softmaxes(temperature: float) -> None:
    logits, factors = [random(B, L, V, seed=i) * 5 for i in range(3)], [0.5, 2.0, 1.5]
    found = mean([{"logits": each} for each in logits], weights=factors, temperature=temperature)["logits"][0]
    expected = sum(w * (each / temperature).softmax(-1) for w, each in zip(factors, logits, strict=True)) / 4
    torch.testing.assert_close((found / temperature).softmax(-1), expected)


def test_a_mean_of_probabilities_that_underflow_is_finite() -> None:
    far = torch.tensor([[400.0, -400.0]])
    found = mean([{"logits": far}, {"logits": far}], temperature=1.0)["logits"][0]
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[0, 0] - found[0, 1], torch.tensor(800.0))


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_each_teachers_own_mask_says_which_of_its_positions_count(temperature: float | None) -> None:
    masks = [torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]), torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()]
    logits = [random(B, 4, V, seed=1), random(B, 3, V, seed=2)]
    teachers = [{"logits": each, "logits_mask": mask} for each, mask in zip(logits, masks, strict=True)]
    found = mean(teachers, temperature=temperature)
    assert torch.equal(found["logits_mask"][0], masks[0])
    places = [
        [(row, place) for row in range(B) for place in range(mask.shape[1]) if mask[row, place]] for mask in masks
    ]
    for (i, j), (k, m) in zip(*places, strict=True):
        own, other = logits[0][i, j], logits[1][k, m]
        if temperature is None:
            torch.testing.assert_close(found["logits"][0][i, j], (own + other) / 2)
        else:
            both = ((own / temperature).softmax(-1) + (other / temperature).softmax(-1)) / 2
            torch.testing.assert_close((found["logits"][0][i, j] / temperature).softmax(-1), both)


def test_a_teacher_without_a_mask_has_the_first_ones_as_in_textbrewer() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    logits = [random(B, 4, V, seed=1), random(B, 4, V, seed=2)]
    found = mean([{"logits": logits[0], "logits_mask": mask}, {"logits": logits[1]}])["logits"][0]
    torch.testing.assert_close(found[mask.bool()], ((logits[0] + logits[1]) / 2)[mask.bool()])
    assert torch.equal(found[~mask.bool()], logits[0][~mask.bool()])


@pytest.mark.parametrize("mask", [torch.tensor([[1, 1, 0, 1]]), torch.tensor([[0.0], [1.0]])])
def test_a_mask_of_one_row_or_column_holds_for_all(mask: Tensor) -> None:
    logits = [random(B, 4, V, seed=1), random(B, 4, V, seed=2)]
    small, whole = (
        mean([{"logits": logits[0], "logits_mask": m}, {"logits": logits[1]}]) for m in (mask, mask.expand(B, 4))
    )
    assert torch.equal(small["logits"][0], whole["logits"][0])


def test_a_teacher_without_logits_takes_no_part_in_the_mean() -> None:
    logits = random(B, V)
    assert torch.equal(mean([{"hidden": random(B, L, 2)}, {"logits": logits}])["logits"][0], logits)
    assert "logits" not in mean([{"hidden": random(B, L, 2)}, {"hidden": random(B, L, 2)}])


def test_heads_are_averaged_one_by_one() -> None:
    teachers = [{"logits": [random(B, V, seed=i), random(B, L, V, seed=i + 2)]} for i in range(2)]
    found = mean(teachers)["logits"]
    for i, head in enumerate(found):
        torch.testing.assert_close(head, (teachers[0]["logits"][i] + teachers[1]["logits"][i]) / 2)


def test_teachers_that_have_no_mean_are_told_apart() -> None:
    row, tokens = {"logits": random(B, V)}, {"logits": random(B, L, V)}
    mask, longer = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert message(ShapeError, lambda: mean([row, {"logits": [random(B, V)] * 2}])) == (
        "the teachers differ in heads of logits (0 1, 1 2), so they have no mean; they must agree."
    )
    assert message(ShapeError, lambda: mean([row, {"logits": random(B, 7)}])) == (
        "the teachers differ in shapes of logits (0 (2, 3), 1 (2, 7)), so they have no mean; they must agree."
    )
    assert message(ShapeError, lambda: mean([{**tokens, "logits_mask": mask}, {**tokens, "logits_mask": longer}])) == (
        "the teachers differ in valid logits (0 (3, 3), 1 (4, 3)), so they have no mean; they must agree."
    )


# MultiTeacherDistiller


def taught(
    folder: Path,
    *,
    teachers: Any = None,
    adaptor_t: Any = None,
    adapt: Callable[..., Any] | None = None,
    training: Mapping[str, Any] | None = None,
    average: str = "logits",
    weights: Any = None,
    **distillation: Any,
) -> MultiTeacherDistiller:
    """A distiller of a fixed seed, of two teachers if there are no others."""
    torch.manual_seed(0)
    own, adapt = Tiny(8, 2, seed=1), adapt or adaptor("row_logits", "hidden", "mask")
    config = TrainingConfig(output_dir=str(folder), device="cpu", **(training or {}))
    teachers = two() if teachers is None else teachers
    adaptor_t = adapt if adaptor_t is None else adaptor_t
    terms = DistillationConfig(**distillation)
    torch.manual_seed(0)
    return MultiTeacherDistiller(config, terms, teachers, own, adaptor_t, adapt, weights=weights, average=average)


def two() -> list[nn.Module]:
    return [Tiny(16, 3, seed=2), Tiny(16, 2, seed=3)]


def student_of(made: Any, loader: Any = None, **length: Any) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, loader or batches(table(), [5, 3, 6]), **(length or {"num_epochs": 1}))
    return weights(made.model_S)


def test_weights_of_1_are_no_weights(tmp_path: Path) -> None:
    expected = student_of(taught(tmp_path))
    for equal in ([1, 1], (1.0, 1.0), [2.0, 2.0]):
        assert_same(student_of(taught(tmp_path, weights=equal)), expected, atol=1e-7)
    assert not torch.equal(student_of(taught(tmp_path, weights=[1, 3]))["of_rows.weight"], expected["of_rows.weight"])


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_a_teacher_of_weight_3_counts_as_three(average: str, tmp_path: Path) -> None:
    first, second = two()
    listed = taught(tmp_path, teachers=[first, second, second, second], average=average)
    assert_same(student_of(taught(tmp_path, weights=[1, 3], average=average)), student_of(listed), atol=1e-6)


def test_the_mean_of_probabilities_teaches_at_the_configured_temperature(tmp_path: Path) -> None:
    made = taught(tmp_path, average="probabilities", temperature=3, weights=[1, 3])
    batch = batches(table(), [8])[0]
    by_hand = Tiny(8, 2, seed=1)
    with torch.no_grad():
        soft = [(teacher(**batch)["row_logits"] / 3).softmax(-1) for teacher in two()]
    target = (soft[0] + 3 * soft[1]) / 4
    loss = -(target * (by_hand(**batch)["row_logits"] / 3).log_softmax(-1)).sum(-1).mean()
    loss.backward()
    expected = by_hand.of_rows.weight - 0.5 * by_hand.of_rows.weight.grad
    torch.testing.assert_close(student_of(made, [batch])["of_rows.weight"], expected.detach())


@pytest.mark.parametrize("place", [1, "1", -1])
def test_a_match_reads_the_teacher_that_it_names(place: Any, tmp_path: Path) -> None:
    single = DistillationConfig(kd_loss_weight=0, intermediate_matches=[MATCH])
    config = TrainingConfig(output_dir=str(tmp_path), device="cpu")
    adapt, teacher, own = adaptor("row_logits", "hidden", "mask"), two()[1], Tiny(8, 2, seed=1)
    torch.manual_seed(0)
    alone = GeneralDistiller(config, single, teacher, own, adapt, adapt)
    matches = [{**MATCH, "teacher": place}]
    several = taught(tmp_path, kd_loss_weight=0, intermediate_matches=matches)
    expected = student_of(alone)
    assert_same(student_of(several), expected)
    other = taught(tmp_path, kd_loss_weight=0, intermediate_matches=[{**MATCH, "teacher": 0}])
    assert not torch.equal(student_of(other)["embedding.weight"], expected["embedding.weight"])


def test_matches_of_several_teachers_are_logged_with_their_names(tmp_path: Path) -> None:
    log = tmp_path / "log"
    matches = [{**MATCH, "teacher": 0}, {**MATCH, "teacher": 1}, {**MATCH, "teacher": 1}]
    made = taught(tmp_path, intermediate_matches=matches, training={"log_dir": str(log)})
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, batches(table(), [5]), num_steps=2)
    tags = EventAccumulator(str(log)).Reload().Tags()["scalars"]
    assert sorted(tag for tag in tags if "hidden" in tag) == [
        "scalar/unweighted_hidden_hidden_mse_1_2_0",
        "scalar/unweighted_hidden_hidden_mse_1_2_1",
        "scalar/unweighted_hidden_hidden_mse_1_2_1#2",
    ]
    assert len(optimizer.param_groups) == 4


def test_one_teacher_need_not_be_named(tmp_path: Path) -> None:
    named = taught(tmp_path, teachers=two()[:1], intermediate_matches=[{**MATCH, "teacher": 0}])
    assert_same(student_of(taught(tmp_path, teachers=two()[:1], intermediate_matches=[MATCH])), student_of(named))


def test_a_teacher_that_gives_no_logits_teaches_by_matches_alone(tmp_path: Path) -> None:
    logits, hidden = adaptor("row_logits"), adaptor("hidden", "mask")
    alone = student_of(taught(tmp_path, teachers=two()[:1], adaptor_t=[logits]))
    assert_same(student_of(taught(tmp_path, adaptor_t=[logits, hidden])), alone)
    matched = taught(tmp_path, adaptor_t=[logits, hidden], intermediate_matches=[{**MATCH, "teacher": 1}])
    assert not torch.equal(student_of(matched)["layers.0.weight"], alone["layers.0.weight"])


def test_a_list_of_models_may_be_a_module_list(tmp_path: Path) -> None:
    assert_same(student_of(taught(tmp_path, teachers=nn.ModuleList(two()))), student_of(taught(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teachers": []}, "model_T must be a list of teachers, not empty."),
        ({"teachers": Tiny(16, 2)}, "model_T must be a list of teachers, not a Tiny."),
        ({"teachers": {"a": Tiny(16, 2)}}, "model_T must be a list of teachers, not a dict."),
        ({"adaptor_t": [adaptor("row_logits")]}, "adaptor_T has 1 entries for 2 teachers; give one each."),
        ({"adaptor_t": 3}, "adaptor_T must be a list with one for each teacher, not a int."),
        ({"weights": [1, 2, 3]}, "weights has 3 entries for 2 teachers; give one each."),
        ({"weights": 2}, "weights must be a list with one for each teacher, not a int."),
        ({"weights": [1, 0]}, "weights must be numbers above 0, not 0."),
        ({"weights": [1, "2"]}, "weights must be numbers above 0, not '2'."),
        ({"weights": [1, float("inf")]}, "weights must be numbers above 0, not inf."),
        (
            {"average": "median"},
            "options of the strategy `multi_teacher`: average: Input should be 'logits' or 'probabilities'.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # others hold addresses
)
def test_teachers_that_cannot_be_meant_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert message(RequestError, lambda: taught(tmp_path, **changes)) == text


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        (None, "there are several teachers; name one of 0, 1"),
        (2, "no teacher is called 2; expected one of 0, 1"),
        (-3, "no teacher is called -3; expected one of 0, 1"),
        ("bert", "no teacher is called 'bert'; expected one of 0, 1"),
    ],
)
def test_a_match_must_name_one_of_the_teachers(teacher: Any, text: str, tmp_path: Path) -> None:
    match = {**MATCH, "teacher": teacher}
    assert message(ConfigError, lambda: taught(tmp_path, intermediate_matches=[match])) == (
        f"DistillationConfig: intermediate_matches[0].teacher: {text}"
    )


@pytest.mark.parametrize("cached", [1, 3.0])
def test_a_teacher_cache_that_is_too_short_is_refused(cached: Any, tmp_path: Path) -> None:
    made, batch = taught(tmp_path), batches(table(), [4])[0]
    outputs = [made.model_T[0](**batch)] if cached == 1 else made.model_T[0](**batch)
    brought = {"teacher": batch, "student": batch, "teacher_cache": outputs}
    assert message(RequestError, lambda: student_of(made, [brought])) == (
        f"the batch's `teacher_cache` has nothing for the teacher at position {1 if cached == 1 else 0}; it must be a list "
        "of the outputs of all teachers, in their order."
    )


# Tasks

NAMES = ("row_logits", "losses", "hidden", "mask")


def of_tasks(
    folder: Path,
    *,
    tasks: Sequence[Any] = ("a", "b"),
    adaptor_t: Any = None,
    adaptor_s: Any = None,
    teachers: Any = None,
    training: Mapping[str, Any] | None = None,
    **distillation: Any,
) -> MultiTaskDistiller:
    torch.manual_seed(0)
    numpy.random.seed(0)
    if teachers is None:
        teachers = {task: Tiny(16, 3, seed=i) for i, task in enumerate(tasks)}
    student, each = Tiny(8, 2, seed=9), {task: adaptor(*NAMES) for task in tasks}
    config = TrainingConfig(output_dir=str(folder), device="cpu", **(training or {}))
    return MultiTaskDistiller(
        config,
        DistillationConfig(**distillation),
        teachers,
        student,
        each if adaptor_t is None else adaptor_t,
        each if adaptor_s is None else adaptor_s,
    )


def loaders(*tasks: Any) -> dict[Any, Any]:
    return {task: batches(table(seed=i), [4] * (2 + i)) for i, task in enumerate(tasks)}


def after(made: MultiTaskDistiller, of: Any = None, steps: Any = 6, **more: Any) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, loaders("a", "b") if of is None else of, steps, **more)
    return weights(made.model_S)


def test_one_task_alone_is_single_task_distillation(tmp_path: Path) -> None:
    made = of_tasks(tmp_path, tasks=("a",), hard_label_weight=0.5)
    config = TrainingConfig(output_dir=str(tmp_path), device="cpu")
    terms = DistillationConfig(hard_label_weight=0.5)
    adapt = adaptor(*NAMES)
    alone = BasicDistiller(config, terms, Tiny(16, 3, seed=0), Tiny(8, 2, seed=9), adapt, adapt)
    loader = loaders("a")
    assert_same(after(made, loader), student_of(alone, loader["a"], num_steps=6))


def test_one_adaptor_serves_all_tasks(tmp_path: Path) -> None:
    adapt = adaptor(*NAMES)
    one = of_tasks(tmp_path, adaptor_t=adapt, adaptor_s=adapt, hard_label_weight=0.5)
    assert_same(after(one), after(of_tasks(tmp_path, hard_label_weight=0.5)))


def test_a_match_of_one_task_is_trained_and_logged_with_that_task_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    training = {"log_dir": str(log), "log_every_steps": 6}
    made = of_tasks(tmp_path, intermediate_matches=[{**MATCH, "teacher": "b"}], training=training)
    before = weights(made._objective)
    after(made, {"a": loaders("a")["a"]})
    assert_same(weights(made._objective), before)
    tags = EventAccumulator(str(log)).Reload().Tags()["scalars"]
    assert not any("hidden" in tag for tag in tags)
    after(made, loaders("a", "b"))
    assert all(not torch.equal(tensor, before[name]) for name, tensor in weights(made._objective).items())
    tags = EventAccumulator(str(log)).Reload().Tags()["scalars"]
    assert {tag.removeprefix("scalar/unweighted_") for tag in tags} == {
        "scalar/total_loss",
        "scalar/learning_rate",
        "scalar/steps_per_s",
        "kd_loss",
        "kd_loss/a",
        "kd_loss/b",
        "hard_label_loss",
        "hard_label_loss/a",
        "hard_label_loss/b",
        "hidden_hidden_mse_1_2_b",
        "hidden_hidden_mse_1_2_b/b",
    }


def test_a_match_that_names_no_teacher_is_of_every_task(tmp_path: Path) -> None:
    pair = {**MATCH, "proj": None, "loss": "nst", "layer_S": [1, 2], "layer_T": [1, 2]}
    each = [{**pair, "teacher": task} for task in ("a", "b")]
    whole = after(of_tasks(tmp_path, intermediate_matches=[pair]))
    assert_same(after(of_tasks(tmp_path, intermediate_matches=each)), whole, atol=1e-7)


def test_tasks_may_be_numbered(tmp_path: Path) -> None:
    def student(tasks: Sequence[Any]) -> dict[str, Tensor]:
        return after(of_tasks(tmp_path, tasks=tasks), loaders(*tasks))

    assert_same(student([0, 1]), student(["a", "b"]))


@pytest.mark.parametrize("task", ["a.b", "a/b", "keys", "kd loss"])
def test_tasks_have_names_of_any_kind(task: str, tmp_path: Path) -> None:
    made = of_tasks(tmp_path, tasks=(task,), intermediate_matches=[{**MATCH, "teacher": task}])
    after(made, loaders(task))


def test_train_may_be_called_again_with_another_tau(tmp_path: Path) -> None:
    made = of_tasks(tmp_path)
    first = after(made)
    assert not torch.equal(first["of_rows.weight"], after(made, tau=0)["of_rows.weight"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teachers": {}}, "model_T must be a dict from task to teacher, with one task or more."),
        ({"teachers": [Tiny(16, 2)]}, "model_T must be a dict from task to teacher, with one task or more."),
        ({"adaptor_t": {"a": 1}}, "adaptor_T has the tasks a, and model_T a, b; they must be the same."),
        ({"adaptor_s": {"a": 1, "c": 1}}, "adaptor_S has the tasks a, c, and model_T a, b; they must be the same."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # others hold addresses
)
def test_tasks_that_cannot_be_meant_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert message(RequestError, lambda: of_tasks(tmp_path, **changes)) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"of": {"c": [1]}}, "train: the task 'c' of dataloaders has no teacher; model_T has a, b."),
        ({"of": [1]}, "train: expected a dict from task to dataloader as the second argument."),
        ({"of": {}}, "train: expected a dict from task to dataloader as the second argument."),
        ({"of": {"a": None}}, "train: expected a dataloader for the task 'a' of dataloaders, not a NoneType."),
        (
            {"of": object()},
            "train: expected a dataloader as the second argument, not a object; the schedule comes after it: "
            "train(optimizer, dataloaders, num_steps, scheduler_class=..., scheduler_args=...).",
        ),
        ({"steps": None}, "train: give num_steps."),
        ({"tau": "x"}, "options of the strategy `multi_task`: tau: Input should be a valid number."),
        (
            {"batch_postprocessors": {"c": len}},
            "train: the task 'c' of batch_postprocessors is none of model_T, which has a, b.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # others hold addresses
)
def test_a_training_of_tasks_that_cannot_be_meant_is_refused(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    made = of_tasks(tmp_path)
    assert message(RequestError, lambda: after(made, **changes)) == text


def test_a_task_without_an_adaptor_of_the_student_is_named() -> None:
    learner = Learner(Tiny(8, 2), {"a": adaptor(*NAMES)}, Objective(None), MultiTask())
    assert message(RequestError, lambda: learner.adaptor_for("b")) == (
        "task 'b' has no adaptor of the student; there are ones for a."
    )


def test_a_task_whose_features_are_in_no_term_is_told(tmp_path: Path) -> None:
    made = of_tasks(tmp_path, adaptor_s={"a": adaptor("row_logits"), "b": adaptor("hidden")})
    assert message(AdaptorError, lambda: after(made, {"b": loaders("b")["b"]})) == (
        "nothing to optimise: the student's adaptor returns hidden; it must return `losses`, or `logits` or other features "
        "that a term compares with a teacher's."
    )


# A step over two tasks


class Listed:
    """Draws what it was given, in order, and keeps the probabilities that it was asked with."""

    def __init__(self, *places: int) -> None:
        self.places = iter(places)
        self.asked: list[Any] = []

    def choice(self, a: Any, /, *, p: Any = None) -> Any:
        self.asked.append(p)
        return list(a)[next(self.places)]


class Figures(Listener):
    def __init__(self) -> None:
        self.heard: list[dict[str, float]] = []

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self.heard.append(dict(values))


def step_of_tasks(normalization: str) -> tuple[Tiny, dict[str, float]]:
    """The student after one step over a batch of 3 rows of task a, 5 of b, and 2 of a; a alone is matched."""
    names = ("row_logits", "hidden")
    teachers = {task: Tiny(16, 3, seed=i) for i, task in enumerate(("a", "b"))}
    infos = {task: ModelInfo(task, tasks=(task,)) for task in teachers}
    match = {**MATCH, "proj": None, "layer_S": [1, 2], "layer_T": [1, 2], "loss": "nst", "teacher": "a", "weight": 2}
    config = DistillationConfig(intermediate_matches=[match])
    strategy, student = MultiTask(), Tiny(8, 2, seed=9)
    terms = Objective.from_config(config, default_registry(), ModelInfo("student"), infos)
    strategy.build(ModelInfo("student"), infos)
    learner = Learner(student, {task: Rows(*names) for task in teachers}, terms, strategy)
    figures = Figures()
    engine = Engine(
        learner,
        torch.optim.SGD(student.parameters(), lr=0.5),
        device=CPU,
        teachers={task: LiveTeacher(model, adaptor(*names), CPU) for task, model in teachers.items()},
        settings=Settings(accumulation=3, loss_normalization=normalization),
        listeners=[figures],
        generator=Listed(0, 1, 0),
    )
    first, second, third = batches(table(), [3, 5, 2])
    engine.train({"a": [first, third], "b": [second]}, Duration(steps=1))
    return student, figures.heard[0]


class Rows(CountingAdaptor):
    def counts(self, batch: Mapping[str, Tensor]) -> Any:
        return Counts.of_rows(len(batch["ids"]))


def parts_by_hand() -> tuple[Tiny, list[Tensor], list[Tensor]]:
    """The student before, the losses between logits of the three batches, and the matches of the first and the last."""
    student, teachers = Tiny(8, 2, seed=9), [Tiny(16, 3, seed=0), Tiny(16, 3, seed=1)]
    soft, matched = [], []
    for batch, teacher in zip(batches(table(), [3, 5, 2]), (teachers[0], teachers[1], teachers[0]), strict=True):
        own = student(**batch)
        with torch.no_grad():
            taught = teacher(**batch)
        soft.append(kd_losses.ce(own["row_logits"], taught["row_logits"], 4))
        if teacher is teachers[0]:
            pairs = [tuple(outputs["hidden"][i] for i in (1, 2)) for outputs in (own, taught)]
            matched.append(match_losses.nst(*pairs))
    return student, soft, matched


@pytest.mark.parametrize("normalization", ["step", "micro_batch"])
def test_a_step_over_two_tasks_weighs_each_term_over_the_tasks_that_have_it(normalization: str) -> None:
    student, soft, matched = parts_by_hand()
    if normalization == "step":
        kd, match = (3 * soft[0] + 5 * soft[1] + 2 * soft[2]) / 10, (3 * matched[0] + 2 * matched[1]) / 5
        of_a = (3 * soft[0] + 2 * soft[2]) / 5
        logged = match
    else:
        kd, match, of_a = sum(soft) / 3, sum(matched) / 3, (soft[0] + soft[2]) / 2
        logged = sum(matched) / 2
    (kd + 2 * match).backward()
    expected = {n: (p - 0.5 * p.grad if p.grad is not None else p).detach() for n, p in student.named_parameters()}
    kd, match, of_a, logged, of_b = (tensor.detach() for tensor in (kd, match, of_a, logged, soft[1]))
    trained, figures = step_of_tasks(normalization)
    assert_same(weights(trained), expected, atol=1e-6)
    name = "hidden_nst_1-2_1-2_a"
    assert figures["kd_loss"] == pytest.approx(float(kd), rel=1e-5)
    assert figures["kd_loss/a"] == pytest.approx(float(of_a), rel=1e-5)
    assert figures["kd_loss/b"] == pytest.approx(float(of_b), rel=1e-5)
    assert figures[name] == figures[f"{name}/a"] == pytest.approx(float(logged), rel=1e-5)
    assert f"{name}/b" not in figures
    assert figures["total_loss"] == pytest.approx(float(kd + 2 * match), rel=1e-5)


def test_figures_of_a_task_are_means_over_its_own_steps() -> None:
    student, figures = Tiny(8, 2, seed=9), Figures()
    names = ("losses",)
    learner = Learner(student, adaptor(*names), Objective(None), MultiTask())
    first, second, third = batches(table(), [3, 5, 2])
    with torch.no_grad():
        losses = [float(student(**batch)["loss"]) for batch in (first, second, third)]
    Engine(
        learner,
        torch.optim.SGD(student.parameters(), lr=0.0),
        device=CPU,
        teachers={"only": LiveTeacher(Tiny(8, 2), adaptor("hidden"), CPU)},
        settings=Settings(log_every_steps=3),
        listeners=[figures],
        generator=Listed(0, 1, 0),
    ).train({"a": [first, third], "b": [second]}, Duration(steps=3))
    (heard,) = figures.heard
    assert heard["hard_label_loss"] == pytest.approx(sum(losses) / 3)
    assert heard["hard_label_loss/a"] == pytest.approx((losses[0] + losses[2]) / 2)
    assert heard["hard_label_loss/b"] == pytest.approx(losses[1])


# Draws


class Unsized:
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])


@pytest.mark.parametrize(
    ("tau", "probabilities"), [(0, [0.5, 0.5]), (1, [0.25, 0.75]), (2, [0.1, 0.9]), (-1, [0.75, 0.25])]
)
def test_a_task_is_drawn_by_its_number_of_batches_to_the_power_of_tau(tau: float, probabilities: list[float]) -> None:
    draws = Listed(1, 0, 1, 1, 0)
    drawn = MultiTask(tau=tau).batches({"a": ["x"], "b": ["p", "q", "r"]}, draws)
    assert list(itertools.islice(drawn, 5)) == [("b", "p"), ("a", "x"), ("b", "q"), ("b", "r"), ("a", "x")]
    for asked in draws.asked:
        assert asked == pytest.approx(probabilities)


def test_tasks_are_drawn_alike_where_a_size_is_not_known() -> None:
    draws = Listed(1, 0)
    assert list(itertools.islice(MultiTask(tau=2).batches({"a": [1], "b": Unsized()}, draws), 2)) == [
        ("b", 1),
        ("a", 1),
    ]
    assert draws.asked == [None, None]


def test_draws_repeat_under_a_seed_and_differ_under_another() -> None:
    def drawn(seed: int) -> list[tuple[str, Any]]:
        generator = numpy.random.default_rng(seed)
        return list(itertools.islice(MultiTask(tau=0.5).batches({"a": [1], "b": [2, 3], "c": [4]}, generator), 30))

    state = numpy.random.get_state(legacy=False)["state"]["pos"]
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert numpy.random.get_state(legacy=False)["state"]["pos"] == state


def test_a_tau_that_no_probability_comes_of_is_refused() -> None:
    draws = numpy.random.default_rng(0)
    for tau in (5000.0, -5000.0):
        with pytest.raises(RequestError) as caught:
            next(MultiTask(tau=tau).batches({"a": [1] * 3, "b": [1] * 9}, draws))
        assert str(caught.value) == f"tau {tau:g} is too far from 0 for tasks of 3, 9 batches; 0 to 1 is usual."


def test_a_batch_is_read_only_when_it_is_drawn() -> None:
    read = []

    def reading() -> Iterator[int]:
        for i in range(5):
            read.append(i)
            yield i

    drawn = MultiTask().batches({"a": reading(), "b": [7]}, Listed(1, 0, 0))
    assert read == []
    assert [next(drawn) for _ in range(3)] == [("b", 7), ("a", 0), ("a", 1)]
    assert read == [0, 1]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_every_process_draws_the_tasks_of_the_first(tmp_path: Path) -> None:
    first, second = in_each(drawn_tasks, tmp_path)
    assert first == second
    assert first == drawn_tasks(0) != drawn_tasks(1)


@pytest.mark.parametrize("done", [1, 4])
def test_a_training_of_tasks_continues_with_the_draws_that_it_would_have_made(done: int) -> None:
    def engine() -> Engine:
        names = ("row_logits", "losses")
        teachers = {task: LiveTeacher(Tiny(16, 3, seed=i), adaptor(*names), CPU) for i, task in enumerate(("a", "b"))}
        strategy, infos = MultiTask(tau=0.5), {task: ModelInfo(task, tasks=(task,)) for task in teachers}
        strategy.build(ModelInfo("student"), infos)
        terms = Objective.from_config(DistillationConfig(), default_registry(), ModelInfo("student"), infos)
        learner = Learner(Tiny(8, 2, seed=9), adaptor(*names), terms, strategy)
        optimizer = torch.optim.AdamW(learner.student.parameters(), lr=0.05)
        generator = numpy.random.default_rng(5)
        return Engine(learner, optimizer, device=CPU, teachers=teachers, generator=generator)

    straight, stopped, resumed = engine(), engine(), engine()
    straight.train(loaders("a", "b"), Duration(steps=7))
    stopped.train(loaders("a", "b"), Duration(steps=done))
    resumed.load_state_dict(stopped.state_dict())
    resumed.train(loaders("a", "b"), Duration(steps=7))
    assert_same(weights(resumed.learner), weights(straight.learner))


def test_strategies_of_several_need_a_teacher_and_tasks() -> None:
    student = ModelInfo("student")
    assert message(RequestError, lambda: MultiTeacher().build(student, {})) == (
        "the strategy `multi_teacher` needs a teacher, and there is none."
    )
    for given in ({}, [1]):
        assert message(RequestError, lambda g=given: MultiTask().batches(g, Listed())) == (
            "the strategy `multi_task` needs a mapping from task to loader, with one task or more."
        )
    made = MultiTask()
    made.build(student, {"x": ModelInfo("x", tasks=("a",)), "y": ModelInfo("y")})
    assert made.teachers_for("a", ("x", "y")) == ["x", "y"]
    assert made.teachers_for("b", ("x", "y")) == ["y"]
    made.build(student, {"x": ModelInfo("x", tasks=("a",))})
    assert message(RequestError, lambda: made.teachers_for("b", ("x",))) == "the task 'b' has no teacher; there are x."


# Loaders


def saved_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("gs*.pkl"))


def test_a_spent_generator_leaves_what_it_taught(tmp_path: Path) -> None:
    loader = batches(table(), [4] * 5)
    made = taught(tmp_path / "spent", training={"ckpt_steps": 2})
    assert message(DataError, lambda: student_of(made, iter(loader), num_steps=9)) == (
        "the loader can be iterated only once, and is spent after 5 batches; pass a DataLoader or a list, or ask for fewer "
        "steps. 5 of 9 optimizer steps are done and saved."
    )
    assert saved_in(tmp_path / "spent") == ["gs2.pkl", "gs4.pkl", "gs5.pkl"]
    expected = student_of(taught(tmp_path / "whole"), loader, num_steps=5)
    assert_same(torch.load(tmp_path / "spent" / "gs5.pkl", weights_only=True), expected)


def test_a_spent_generator_of_a_task_is_named(tmp_path: Path) -> None:
    made, heard = of_tasks(tmp_path), []
    of = {"a": iter(loaders("a")["a"]), "b": loaders("a", "b")["b"]}
    text = message(DataError, lambda: after(made, of, 40, callback=lambda model, step: heard.append(step)))
    done = int(saved_in(tmp_path)[0].removeprefix("gs").removesuffix(".pkl"))
    assert heard == [done]
    assert text == (
        "the loader of the task 'a' can be iterated only once, and is spent after 2 batches; pass a DataLoader or a list, or "
        f"ask for fewer steps. {done} of 40 optimizer steps are done and saved."
    )


def test_an_empty_loader_of_a_task_is_named_when_it_is_drawn(tmp_path: Path) -> None:
    for steps, empty in ((40, []), (40, iter([]))):
        text = message(DataError, lambda s=steps, e=empty: after(of_tasks(tmp_path), {**loaders("a"), "b": e}, s))
        assert text.startswith("the loader of the task 'b' is empty; it must yield at least one batch.")


class Endless:
    """A loader that can be iterated again and again, and has no length."""

    def __init__(self, loader: Sequence[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


@pytest.mark.parametrize(("kind", "like"), [(tuple, list), (iter, Endless)], ids=["tuple", "generator"])
def test_loaders_of_every_kind_give_the_same_student(
    kind: Callable[..., Any], like: Callable[..., Any], tmp_path: Path
) -> None:
    def student(make: Callable[..., Any]) -> dict[str, Tensor]:
        of = {task: make(batches(table(seed=i), [4] * 8)) for i, task in enumerate(("a", "b"))}
        return after(of_tasks(tmp_path), of, 6)

    assert_same(student(kind), student(like))
