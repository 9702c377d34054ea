"""The objective: names, weights and schedules of terms, which tensors a loss sees, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brewer_builtins import kd_losses, match_losses
from brewer_builtins.strategies import General
from brewer_core import Counts, DistillationConfig, Features, ModelInfo, component, default_registry
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import AdaptorError, BrewerError, ConfigError, RequestError, ShapeError
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective, Weight, probability_shift
from brewer_core.protocols import Needs, Step
from brewer_core.registry import Registry
from brewer_core.teachers import LiveTeacher
from fakes import plugin
from tiny import Tiny, adaptor, batches, table, weights

CPU = torch.device("cpu")
START = Step(0, 10)
HIDDEN = {"layer_T": 1, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
B, L, D, V = 2, 4, 3, 5


def objective(registry: Registry | None = None, **distillation: Any) -> Objective:
    return Objective.from_config(DistillationConfig(**distillation), registry or default_registry())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(**tensors: Any) -> Features:
    return Features.of(tensors)


def logits(*shape: int, **more: Any) -> tuple[Features, Features]:
    """Features with random logits of one shape for student and teacher; the student's have more."""
    student = features(logits=random(*shape, seed=1), **more)
    masks = {"logits_mask": more["logits_mask"]} if "logits_mask" in more else {}
    return student, features(logits=random(*shape, seed=2), **masks)


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


@dataclass
class Seen:
    """What a loss was called with."""

    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


def seeing(*names: str) -> tuple[Callable[..., Tensor], Seen]:
    """A kd loss that names some inputs, and what it will have seen."""
    seen = Seen()

    def plain(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        seen.positional = (student_logits, teacher_logits, temperature)
        return student_logits.mean()

    def with_mask(
        student_logits: Tensor, teacher_logits: Tensor, temperature: Any, *, mask: Tensor | None = None
    ) -> Tensor:
        seen.named = {"mask": mask}
        return plain(student_logits, teacher_logits, temperature)

    def with_labels(
        student_logits: Tensor, teacher_logits: Tensor, temperature: Any, *, labels: Tensor | None = None
    ) -> Tensor:
        seen.named = {"labels": labels}
        return plain(student_logits, teacher_logits, temperature)

    def with_both(
        student_logits: Tensor, teacher_logits: Tensor, temperature: Any, *, mask: Tensor, labels: Tensor
    ) -> Tensor:
        seen.named = {"mask": mask, "labels": labels}
        return plain(student_logits, teacher_logits, temperature)

    losses = {(): plain, ("mask",): with_mask, ("labels",): with_labels, ("mask", "labels"): with_both}
    return losses[names], seen


# Names and weights


def test_terms_are_named_after_feature_loss_and_layers() -> None:
    matches = [
        HIDDEN,
        {**HIDDEN, "layer_T": [0, 1], "layer_S": [0, 1], "loss": "fsp"},
        HIDDEN,
        {**HIDDEN, "layer_T": -1, "feature": "pooled.states"},
        {**HIDDEN, "layer_T": -1, "feature": "pooled.states"},
    ]
    terms = objective(intermediate_matches=matches)
    assert list(terms.weights(START)) == [
        "kd_loss",
        "hard_label_loss",
        "hidden_hidden_mse_0_1",
        "hidden_fsp_0-1_0-1",
        "hidden_hidden_mse_0_1#2",
        "pooled/states_hidden_mse_0_-1",
        "pooled/states_hidden_mse_0_-1#2",
    ]
    layers = [random(B, L, D, seed=i) for i in range(2)]
    both = Features.of({"hidden": layers, "pooled.states": layers})
    assert list(terms.match_terms(both, both, START)) == list(terms.matches)


def test_the_label_term_is_the_sum_of_the_means_of_all_losses() -> None:
    student = features(losses=[torch.tensor([1.0, 3.0]), torch.tensor(0.5)])
    assert objective().label_terms(student) == {"hard_label_loss": torch.tensor(2.5)}
    assert objective().label_terms(features(logits=random(B, V))) == {}


def test_without_logits_on_both_sides_there_is_no_kd_term() -> None:
    student, teacher = logits(B, V)
    assert objective().kd_terms(features(hidden=random(B, L, D)), teacher, START) == {}
    assert objective().kd_terms(student, features(hidden=random(B, L, D)), START) == {}


def test_a_schedule_multiplies_the_configured_weight_from_the_first_step_on() -> None:
    terms = objective(
        kd_loss_weight=0.5,
        kd_loss_weight_scheduler="linear_growth",
        hard_label_weight=2,
        hard_label_weight_scheduler="linear_decay",
    )
    kd = [terms.weights(Step(step, 4))["kd_loss"] for step in range(4)]
    hard = [terms.weights(Step(step, 4))["hard_label_loss"] for step in range(4)]
    assert kd == [0.0, 0.125, 0.25, 0.375]
    assert hard == [2.0, 1.5, 1.0, 0.5]


def test_a_training_uses_the_scheduled_weights_and_leaves_the_config_alone() -> None:
    config = DistillationConfig(
        kd_loss_weight=0.5, kd_loss_weight_scheduler="linear_growth", hard_label_weight=3, intermediate_matches=[HIDDEN]
    )
    before = config.to_dict()
    names = ("row_logits", "losses", "hidden")
    terms = Objective.from_config(config, default_registry())
    learner = Learner(Tiny(4, 1, seed=1), adaptor(*names), terms, General())
    optimizer = torch.optim.SGD(learner.student.parameters(), lr=0.0)
    teacher = LiveTeacher(Tiny(4, 2, seed=2), adaptor(*names), CPU)

    figures: list[dict[str, float]] = []

    class Noting(Listener):
        def logged(self, step: int, values: Any) -> None:
            figures.append(dict(values))

    settings = Settings(log_every_steps=1)
    engine = Engine(
        learner, optimizer, device=CPU, teachers={"teacher": teacher}, settings=settings, listeners=[Noting()]
    )
    engine.train(batches(table(), [8]), Duration(steps=4))
    unweighted = figures[0]["hidden_hidden_mse_0_1"] + 3 * figures[0]["hard_label_loss"]
    factors = [(f["total_loss"] - unweighted) / f["kd_loss"] for f in figures]
    assert factors == pytest.approx([0.0, 0.125, 0.25, 0.375], abs=1e-5)
    assert config.to_dict() == before
    assert config.kd_loss_weight == 0.5


def test_a_schedule_may_read_the_step_and_the_steps_in_all() -> None:
    def by_step(progress: float, *, step: int, total_steps: int) -> float:
        return 100 * progress + 10 * step + total_steps

    weight = objective(kd_loss_weight=2, kd_loss_weight_scheduler=by_step).weights(Step(1, 4))["kd_loss"]
    assert weight == 2 * (25 + 10 + 4)
    assert Weight(0.3).at(Step(3, 4)) == 0.3


def test_weights_of_matches_are_those_of_the_config() -> None:
    terms = objective(intermediate_matches=[{**HIDDEN, "weight": 0.25}, {**HIDDEN, "weight": 4}])
    assert terms.weights(START)["hidden_hidden_mse_0_1"] == 0.25
    assert terms.weights(START)["hidden_hidden_mse_0_1#2"] == 4


LOGITS = frozenset({"logits", "logits_mask"})
OWN = frozenset({"losses", "labels", "inputs_mask"})  # what is read of any student


def test_an_objective_needs_what_its_terms_read() -> None:
    assert objective().needs() == Needs(student=OWN | LOGITS, every_teacher=LOGITS | {"inputs_mask"})
    assert Objective(None).needs() == Needs(student=OWN, every_teacher=frozenset({"inputs_mask"}))


def test_a_match_needs_its_layers_and_no_others() -> None:
    several = {**HIDDEN, "layer_T": [1, 2], "layer_S": [-1, -2], "loss": "fsp"}
    needs = objective(intermediate_matches=[HIDDEN, several]).needs()
    assert needs.student == OWN | LOGITS | {"hidden[0]", "hidden[-1]", "hidden[-2]"}
    assert needs.every_teacher == LOGITS | {"inputs_mask", "hidden[1]", "hidden[2]"}


def test_a_match_of_logits_needs_them_by_their_plain_name() -> None:
    match = {**HIDDEN, "feature": "logits", "layer_T": 0}
    assert objective(intermediate_matches=[match]).needs() == Needs(OWN | LOGITS, LOGITS | {"inputs_mask"})


def test_a_loss_between_logits_of_weight_0_needs_no_logits_of_teachers() -> None:
    for schedule in (None, "linear_growth"):
        unread = objective(kd_loss_weight=0, kd_loss_weight_scheduler=schedule, intermediate_matches=[HIDDEN])
        assert unread.needs().every_teacher == {"inputs_mask", "hidden[1]"}
        assert unread.needs().student == OWN | LOGITS | {"hidden[0]"}


def test_a_loss_between_logits_of_weight_0_is_0_and_gives_the_students_logits_a_gradient_of_0() -> None:
    heads = [torch.tensor([[1.0, float("nan")]], requires_grad=True), torch.ones(2, 3, 4, requires_grad=True)]
    losses = objective(kd_loss_weight=0).kd_terms(Features.of({"logits": heads}), Features({}), START)
    assert losses["kd_loss"].item() == 0
    losses["kd_loss"].backward()
    assert [head.grad.tolist() for head in heads] == [[[0.0, 0.0]], [[[0.0] * 4] * 3] * 2]


def test_a_match_that_names_its_teacher_needs_nothing_of_the_others() -> None:
    teachers = {"first": ModelInfo("first"), "second": ModelInfo("second")}
    matches = [{**HIDDEN, "teacher": "second"}, {**HIDDEN, "feature": "attention", "teacher": 0}]
    config = DistillationConfig(intermediate_matches=matches)
    needs = Objective.from_config(config, default_registry(), ModelInfo("student"), teachers).needs()
    assert needs.student == OWN | LOGITS | {"hidden[0]", "attention[0]"}
    assert needs.every_teacher == LOGITS | {"inputs_mask"}
    assert needs.teacher("first") == LOGITS | {"inputs_mask", "attention[1]"}
    assert needs.teacher("second") == LOGITS | {"inputs_mask", "hidden[1]"}


def test_items_follow_what_a_loss_declares() -> None:
    @component(over=lambda counts: counts.rows * 10)
    def special(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return student.mean()

    def undeclared(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return student.mean()

    counts = Counts(rows=2, tokens=3, token_pairs=5, logits=7, labels=1)
    matches = [HIDDEN, {**HIDDEN, "loss": "attention_mse"}, {**HIDDEN, "loss": special}, {**HIDDEN, "loss": undeclared}]
    terms = objective(intermediate_matches=matches)
    assert {name: terms.items(name, counts) for name in terms.weights(START)} == {
        "kd_loss": 7,
        "hard_label_loss": 1,
        "hidden_hidden_mse_0_1": 3,
        "hidden_attention_mse_0_1": 5,
        "hidden_special_0_1": 20,
        "hidden_undeclared_0_1": 2,
    }


# What a kd loss sees


def test_heads_that_differ_in_number_are_refused() -> None:
    one, two = features(logits=random(B, V)), features(logits=[random(B, V), random(B, V)])
    assert message(AdaptorError, lambda: objective().kd_terms(one, two, START)) == (
        "the student's adaptor returns 1 logits and the teacher's 2; return equally many."
    )


def test_masks_that_differ_in_number_from_the_heads_are_refused() -> None:
    mask = torch.ones(B, L)
    student = features(logits=[random(B, L, V)] * 3, logits_mask=[mask, mask])
    teacher = features(logits=[random(B, L, V)] * 3)
    assert message(AdaptorError, lambda: objective().kd_terms(student, teacher, START)) == (
        "an adaptor returns 3 logits and 2 under `logits_mask`; return one mask, or one for each."
    )


def test_one_mask_serves_several_heads() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    heads, taught = [random(B, L, V, seed=i) for i in (1, 2)], [random(B, L, V, seed=i) for i in (3, 4)]
    together = objective(temperature=2).kd_terms(
        features(logits=heads, logits_mask=mask), features(logits=taught, logits_mask=mask), START
    )
    valid = mask.bool()
    expected = sum(kd_losses.ce(own[valid], other[valid], 2) for own, other in zip(heads, taught, strict=True))
    torch.testing.assert_close(together["kd_loss"], expected)


@pytest.mark.parametrize("shape", [(B, 1), (1, L), (L,)])
def test_a_mask_of_one_row_or_column_holds_for_all(shape: tuple[int, ...]) -> None:
    mask = torch.arange(math.prod(shape)).reshape(shape) != 1
    small, whole = (logits(B, L, V, logits_mask=m) for m in (mask, mask.expand(B, L)))
    assert torch.equal(objective().kd_terms(*small, START)["kd_loss"], objective().kd_terms(*whole, START)["kd_loss"])


@pytest.mark.parametrize("shape", [(B, L + 1), (B, L, V)])
def test_a_mask_of_another_shape_than_its_logits_is_refused(shape: tuple[int, ...]) -> None:
    student, teacher = logits(B, L, V, logits_mask=torch.ones(shape))
    assert message(ShapeError, lambda: objective().kd_terms(student, teacher, START)) == (
        f"the student's logits_mask {shape} does not belong to its logits (2, 4, 5); it must be (2, 4)."
    )


def test_masks_that_disagree_are_refused() -> None:
    student, teacher = logits(B, L, V, logits_mask=torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]))
    unmasked = features(logits=teacher["logits"])
    assert message(ShapeError, lambda: objective().kd_terms(student, unmasked, START)) == (
        "student logits (2, 4, 5) have 3 valid positions and teacher logits (2, 4, 5) 8; logits and logits_mask must agree."
    )


def test_a_kd_loss_sees_the_valid_positions_and_the_temperature() -> None:
    loss, seen = seeing()
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    student, teacher = logits(B, L, V, logits_mask=mask)
    objective(kd_loss_type=loss, temperature=3).kd_terms(student, teacher, START)
    assert torch.equal(seen.positional[0], student["logits"][0][mask.bool()])
    assert torch.equal(seen.positional[1], teacher["logits"][0][mask.bool()])
    assert seen.positional[2] == 3


def test_without_a_mask_all_positions_are_valid() -> None:
    loss, seen = seeing()
    student, teacher = logits(B, L, V)
    objective(kd_loss_type=loss).kd_terms(student, teacher, START)
    assert torch.equal(seen.positional[0], student["logits"][0].flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float])
def test_a_kd_loss_that_names_mask_sees_whole_logits_and_a_mask_of_bools(dtype: torch.dtype) -> None:
    loss, seen = seeing("mask")
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    student, teacher = logits(B, L, V, logits_mask=mask.to(dtype))
    objective(kd_loss_type=loss).kd_terms(student, teacher, START)
    assert seen.positional[0] is student["logits"][0]
    assert seen.positional[1] is teacher["logits"][0]
    assert torch.equal(seen.named["mask"], mask.bool())


def test_a_kd_loss_that_names_mask_gets_a_whole_one_where_there_is_none() -> None:
    loss, seen = seeing("mask")
    objective(kd_loss_type=loss).kd_terms(*logits(B, L, V), START)
    assert torch.equal(seen.named["mask"], torch.ones(B, L, dtype=torch.bool))


def test_a_kd_loss_that_names_mask_gets_none_for_logits_of_rows() -> None:
    loss, seen = seeing("mask")
    objective(kd_loss_type=loss).kd_terms(*logits(B, V, logits_mask=torch.ones(B, L)), START)
    assert seen.named == {"mask": None}


def test_a_kd_loss_that_names_mask_sees_the_teachers_valid_positions_in_the_students_places() -> None:
    loss, seen = seeing("mask")
    mask, other = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]), torch.tensor([[0, 1, 1], [1, 1, 0]])
    student, taught = random(B, L, V, seed=1), random(B, 3, V, seed=2)
    objective(kd_loss_type=loss).kd_terms(
        features(logits=student, logits_mask=mask), features(logits=taught, logits_mask=other), START
    )
    assert torch.equal(seen.positional[1][mask.bool()], taught[other.bool()])
    assert seen.positional[1].shape == student.shape


def test_a_kd_loss_sees_the_labels_of_valid_positions() -> None:
    loss, seen = seeing("labels")
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    labels = torch.arange(B * L).view(B, L)
    objective(kd_loss_type=loss).kd_terms(*logits(B, L, V, logits_mask=mask, labels=labels), START)
    assert seen.named["labels"].tolist() == [0, 1, 4, 6]


def test_a_kd_loss_that_names_mask_and_labels_sees_both_whole() -> None:
    loss, seen = seeing("mask", "labels")
    labels = torch.arange(B * L).view(B, L)
    objective(kd_loss_type=loss).kd_terms(*logits(B, L, V, labels=labels), START)
    assert torch.equal(seen.named["labels"], labels)
    assert seen.named["mask"].shape == (B, L)


def test_a_kd_loss_sees_the_labels_of_rows() -> None:
    loss, seen = seeing("labels")
    objective(kd_loss_type=loss).kd_terms(*logits(B, V, labels=torch.tensor([4, 1])), START)
    assert seen.named["labels"].tolist() == [4, 1]


def test_several_labels_a_row_stay_together() -> None:
    loss, seen = seeing("labels")
    labels = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 1]])
    objective(kd_loss_type=loss).kd_terms(*logits(B, V, labels=labels), START)
    assert torch.equal(seen.named["labels"], labels)


def test_several_labels_a_token_stay_together() -> None:
    loss, seen = seeing("labels")
    mask = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0]])
    labels = torch.arange(B * L * V).view(B, L, V)
    objective(kd_loss_type=loss).kd_terms(*logits(B, L, V, logits_mask=mask, labels=labels), START)
    assert torch.equal(seen.named["labels"], labels[mask.bool()])


def test_a_kd_loss_gets_no_labels_where_there_are_none_and_says_so_where_it_must_have_them() -> None:
    loss, seen = seeing("labels")
    objective(kd_loss_type=loss).kd_terms(*logits(B, V), START)
    assert seen.named == {"labels": None}
    strict, _ = seeing("mask", "labels")
    assert message(RequestError, lambda: objective(kd_loss_type=strict).kd_terms(*logits(B, L, V), START)) == (
        "kd_loss_type: the kd loss `with_both` needs the input `labels`, which this run does not have."
    )


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    def by_row(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        return (student_logits - teacher_logits).mean(-1)

    def number(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> float:
        return 1.0

    assert message(ShapeError, lambda: objective(kd_loss_type=by_row).kd_terms(*logits(B, V), START)) == (
        "the kd loss `by_row` returned a tensor of shape (2,); a loss returns the mean over its items, a scalar."
    )
    layers = features(hidden=[random(B, L, D)] * 2)
    terms = objective(intermediate_matches=[{**HIDDEN, "loss": number}])
    assert message(ShapeError, lambda: terms.match_terms(layers, layers, START)) == (
        "the match loss `number` returned a float; a loss returns the mean over its items, a scalar."
    )


# Temperatures


def first_logits(student_logits: Tensor, teacher_logits: Tensor, base_temperature: float) -> Tensor:
    """A temperature a position: its first logit's size, on the base."""
    return base_temperature + student_logits[..., 0].abs()


def test_a_temperature_scheduler_sees_the_valid_positions_only() -> None:
    loss, seen = seeing()
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    student, teacher = logits(B, L, V, logits_mask=mask)
    objective(kd_loss_type=loss, temperature_scheduler=first_logits, temperature=2).kd_terms(student, teacher, START)
    torch.testing.assert_close(seen.positional[2], 2 + student["logits"][0][mask.bool()][:, 0].abs())


def test_temperatures_of_valid_positions_stand_in_their_places_for_a_loss_that_names_mask() -> None:
    loss, seen = seeing("mask")
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    student, teacher = logits(B, L, V, logits_mask=mask)
    objective(kd_loss_type=loss, temperature_scheduler=first_logits, temperature=2).kd_terms(student, teacher, START)
    expected = torch.where(mask.bool(), 2 + student["logits"][0][..., 0].abs(), 2.0)
    torch.testing.assert_close(seen.positional[2], expected)


def test_padding_does_not_change_scheduled_temperatures() -> None:
    scheduler = {"name": "flsw", "beta": 1, "gamma": 1}
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    student, teacher = logits(B, L, V, logits_mask=mask)
    loud = torch.where(mask.bool().unsqueeze(-1), student["logits"][0], 50.0)
    terms = objective(temperature_scheduler=scheduler)
    torch.testing.assert_close(
        terms.kd_terms(features(logits=loud, logits_mask=mask), teacher, START)["kd_loss"],
        terms.kd_terms(student, teacher, START)["kd_loss"],
    )


def test_temperatures_carry_no_gradient() -> None:
    loss, seen = seeing()
    own = random(B, V).requires_grad_()
    terms = objective(kd_loss_type=loss, temperature_scheduler=first_logits)
    terms.kd_terms(features(logits=own), features(logits=random(B, V)), START)
    assert not seen.positional[2].requires_grad


def test_a_temperature_scheduler_without_its_options_is_refused_when_it_is_built() -> None:
    assert message(ConfigError, lambda: objective(temperature_scheduler="flsw")) == (
        "DistillationConfig: temperature_scheduler: options of the temperature scheduler `flsw`: beta: Field required; "
        "gamma: Field required"
    )


# Matches


def test_a_match_picks_its_layers_and_projects_the_students() -> None:
    kept: dict[str, Any] = {}

    def keep(
        student: Any, teacher: Any, mask: Any = None, *, teacher_mask: Any, labels: Any, progress: float
    ) -> Tensor:
        kept.update(
            student=student, teacher=teacher, mask=mask, teacher_mask=teacher_mask, labels=labels, progress=progress
        )
        return teacher[0].sum() if isinstance(teacher, tuple) else teacher.sum()

    own = features(
        hidden=[random(B, L, 2, seed=i) for i in range(3)], inputs_mask=torch.ones(B, L), labels=torch.ones(B)
    )
    taught = features(
        hidden=[random(B, L, D, seed=i) for i in range(4)], inputs_mask=torch.zeros(B, L, dtype=torch.long)
    )
    match = {"layer_T": -1, "layer_S": 1, "feature": "hidden", "loss": keep, "weight": 1}
    objective(intermediate_matches=[match]).match_terms(own, taught, Step(3, 4))
    assert kept["student"] is own["hidden"][1]
    assert kept["teacher"] is taught["hidden"][3]
    assert kept["mask"].dtype == kept["teacher_mask"].dtype == torch.bool
    assert kept["mask"].all()
    assert not kept["teacher_mask"].any()
    assert kept["labels"] is own["labels"][0]
    assert kept["progress"] == 0.75
    pair = {**match, "layer_T": [0, 2], "layer_S": [2, 0], "proj": ["linear", 2, D]}
    terms = objective(intermediate_matches=[pair])
    terms.match_terms(own, taught, START)
    projection = next(iter(terms.matches.values())).projection
    assert [torch.equal(t, taught["hidden"][i]) for t, i in zip(kept["teacher"], (0, 2), strict=True)] == [True, True]
    assert [torch.equal(s, projection(own["hidden"][i])) for s, i in zip(kept["student"], (2, 0), strict=True)] == [
        True
    ] * 2


def test_a_layer_out_of_range_is_refused() -> None:
    layers = features(hidden=[random(B, L, D)] * 2)
    teachers = objective(intermediate_matches=[HIDDEN, {**HIDDEN, "layer_T": 2}])
    assert message(ConfigError, lambda: teachers.match_terms(layers, layers, START)) == (
        "DistillationConfig: intermediate_matches[1].layer_T: the teacher has 2 layers of 'hidden', 0 to 1; there is no 2"
    )
    students = objective(intermediate_matches=[{**HIDDEN, "layer_S": -3}])
    assert message(ConfigError, lambda: students.match_terms(layers, layers, START)) == (
        "DistillationConfig: intermediate_matches[0].layer_S: the student has 2 layers of 'hidden', 0 to 1; there is no -3"
    )


def test_layers_out_of_range_are_all_told_when_the_models_are_known() -> None:
    known = ModelInfo("student", {"hidden": (4, 4)}), {"teacher": ModelInfo("teacher", {"hidden": (6, 6, 6)})}
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "layer_T": 3, "layer_S": 2}])
    assert message(ConfigError, lambda: Objective.from_config(config, default_registry(), *known)) == (
        "DistillationConfig: 2 problems\n"
        "  intermediate_matches[0].layer_S: the student has 2 layers of 'hidden', 0 to 1; there is no 2\n"
        "  intermediate_matches[0].layer_T: the teacher has 3 layers of 'hidden', 0 to 2; there is no 3"
    )


def test_a_feature_that_an_adaptor_does_not_return_is_named() -> None:
    layers = features(hidden=[random(B, L, D)] * 2, logits=random(B, V))
    terms = objective(intermediate_matches=[{**HIDDEN, "feature": "attention"}])
    assert message(AdaptorError, lambda: terms.match_terms(layers, layers, START)) == (
        "intermediate_matches[0].feature: the student's adaptor returns no 'attention'; it returns hidden, logits."
    )
    terms = objective(intermediate_matches=[HIDDEN])
    assert message(AdaptorError, lambda: terms.match_terms(layers, features(), START)) == (
        "intermediate_matches[0].feature: the teacher's adaptor returns no 'hidden'; it returns nothing."
    )


def test_a_shape_error_bears_the_path_of_its_match() -> None:
    own, taught = features(hidden=[random(B, L, 2)] * 2), features(hidden=[random(B, L, D)] * 2)
    terms = objective(intermediate_matches=[{**HIDDEN, "proj": ["linear", 2, D]}, HIDDEN])
    assert message(ShapeError, lambda: terms.match_terms(own, taught, START)) == (
        "intermediate_matches[1]: student is 2 wide and teacher 3; give the match a projection."
    )


def test_one_layer_against_a_list_is_refused() -> None:
    assert message(ConfigError, lambda: objective(intermediate_matches=[{**HIDDEN, "layer_T": [0, 1]}])) == (
        "DistillationConfig: intermediate_matches[0]: layer_S and layer_T must both be one layer, or both a list"
    )


def test_every_name_that_does_not_exist_is_told_at_once() -> None:
    text = message(
        ConfigError,
        lambda: objective(
            kd_loss_type="sse",
            hard_label_weight_scheduler="linear_grow",
            intermediate_matches=[HIDDEN, {**HIDDEN, "loss": "hid_mse", "proj": ["sigmoid", 2, 3]}],
        ),
    )
    lines = text.splitlines()
    assert lines[0] == "DistillationConfig: 4 problems"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "kd_loss_type",
        "intermediate_matches[1].proj",
        "intermediate_matches[1].loss",
        "hard_label_weight_scheduler",
    ]
    assert "did you mean 'hidden_mse'?" in lines[3]
    assert "did you mean 'linear_growth' or" in lines[4]


def test_a_projection_reads_its_widths_from_the_models() -> None:
    known = ModelInfo("student", {"hidden": (4, 4)}), {"teacher": ModelInfo("teacher", {"hidden": (6, 8, 6)})}
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "proj": "linear"}])
    terms = Objective.from_config(config, default_registry(), *known)
    assert [tuple(parameter.shape) for parameter in terms.parameters()] == [(8, 4), (8,)]
    assert message(ConfigError, lambda: Objective.from_config(config, default_registry())) == (
        "DistillationConfig: intermediate_matches[0].proj: the widths of the models are not known; write "
        '["linear", student_dim, teacher_dim]'
    )


def test_parameter_groups_hold_the_settings_of_their_match() -> None:
    matches = [
        HIDDEN,
        {**HIDDEN, "proj": ["linear", 2, 3]},
        {**HIDDEN, "proj": ["tanh", 2, 3, {"lr": 0.5, "weight_decay": 0.1}]},
    ]
    groups = objective(intermediate_matches=matches).parameter_groups()
    assert [{key: value for key, value in group.items() if key != "params"} for group in groups] == [
        {},
        {"lr": 0.5, "weight_decay": 0.1},
    ]
    assert [len(group["params"]) for group in groups] == [2, 2]


# What is passed in Python, and what has a state


def test_callables_in_a_config_take_the_place_of_names() -> None:
    def l1(logits_S: Tensor, logits_T: Tensor, temperature: float) -> Tensor:
        return ((logits_S - logits_T) / temperature).abs().mean()

    def twice(logits_S: Tensor, logits_T: Tensor, base: float) -> float:
        return 2 * base

    def half(x: float) -> float:
        return 0.5

    def wide(dim_in: int, dim_out: int) -> nn.Module:
        return nn.Linear(dim_in, dim_out, bias=False)

    def first(state_S: Tensor, state_T: Tensor, mask: Tensor | None = None) -> Tensor:
        return (state_S - state_T)[:, 0].square().mean()

    config = DistillationConfig(
        temperature=2,
        temperature_scheduler=twice,
        kd_loss_type=l1,
        kd_loss_weight_scheduler=half,
        kd_loss_weight=3,
        intermediate_matches=[{**HIDDEN, "loss": first, "proj": [wide, 2, D, {"lr": 0.1}]}],
    )
    terms = Objective.from_config(config, default_registry())
    student, teacher = logits(B, V)
    expected = (student["logits"][0] - teacher["logits"][0]).abs().mean() / 4
    torch.testing.assert_close(terms.kd_terms(student, teacher, START)["kd_loss"], expected)
    assert terms.weights(START)["kd_loss"] == 1.5
    own, taught = features(hidden=[random(B, L, 2)] * 2), features(hidden=[random(B, L, D)] * 2)
    (match,) = terms.matches.values()
    expected = (match.projection(own["hidden"][0]) - taught["hidden"][1])[:, 0].square().mean()
    torch.testing.assert_close(terms.match_terms(own, taught, START), {"hidden_first_0_1": expected})
    assert [group.get("lr") for group in terms.parameter_groups()] == [0.1]
    json.dumps(config.to_dict())


def test_a_projection_that_is_no_module_is_refused() -> None:
    def no_module(dim_in: int, dim_out: int) -> Callable[[Tensor], Tensor]:
        return lambda states: states

    assert message(ConfigError, lambda: objective(intermediate_matches=[{**HIDDEN, "proj": [no_module, 2, 3]}])) == (
        "DistillationConfig: intermediate_matches[0].proj: `no_module` returned a function, not a torch.nn.Module"
    )


class Scaled(nn.Module):
    """A kd loss that learns a scale of its own."""

    def __init__(self, *, start: float = 2.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        return (self.scale * student_logits - teacher_logits).square().mean()


class Bilinear(nn.Module):
    """A match loss that learns to compare widths."""

    def __init__(self, *, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.bridge = nn.Linear(student_dim, teacher_dim, bias=False)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return (self.bridge(student) - teacher).square().mean()


def test_losses_with_a_state_are_built_for_each_term_found_by_the_optimizer_and_trained() -> None:
    registry = default_registry().with_plugin(
        plugin(brewer_kd_losses={"scaled": Scaled}, brewer_match_losses={"bilinear": Bilinear})
    )
    known = ModelInfo("student", {"hidden": (4, 4)}), {"teacher": ModelInfo("teacher", {"hidden": (6, 6, 6)})}
    bilinear = {**HIDDEN, "loss": "bilinear"}
    config = DistillationConfig(
        kd_loss_type={"name": "scaled", "start": 3.0},
        intermediate_matches=[{**bilinear, "proj_optimizer": {"lr": 0.5}}, bilinear],
    )
    terms = Objective.from_config(config, registry, *known)
    names = ("row_logits", "hidden")
    learner = Learner(Tiny(4, 1, seed=1), adaptor(*names), terms, General())
    optimizer = torch.optim.SGD(learner.student.parameters(), lr=0.1)
    before = weights(terms)
    assert float(before["kd.state.scale"]) == 3.0
    assert len(before) == 3
    teachers = {"teacher": LiveTeacher(Tiny(6, 2, seed=2), adaptor(*names), CPU)}
    Engine(learner, optimizer, device=CPU, teachers=teachers).train(batches(table(), [8]), Duration(steps=2))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.5, 0.1]
    assert all(not torch.equal(before[name], tensor) for name, tensor in weights(terms).items())


def test_a_mean_over_tokens_is_one_over_rows_where_the_feature_has_one_vector_a_row() -> None:
    matches = [{**HIDDEN, "feature": name, "loss": "embedding_mse"} for name in ("hidden", "pooled")]
    terms = objective(intermediate_matches=matches)
    assert [terms.items(name, Counts(2, 30, 500, 2, 2)) for name in terms.matches] == [30, 2]


def test_projections_are_drawn_in_the_order_of_the_list() -> None:
    matches = [{**HIDDEN, "proj": [name, 2, 3]} for name in ("linear", "relu", "tanh")]
    torch.manual_seed(5)
    together = weights(objective(intermediate_matches=matches))
    torch.manual_seed(5)
    one_by_one = [weights(objective(intermediate_matches=[match])) for match in matches]
    for drawn, expected in zip(together.values(), (t for one in one_by_one for t in one.values()), strict=True):
        assert torch.equal(drawn, expected)


# Probability shift


def test_probability_shift_exchanges_the_largest_logit_with_that_of_the_label() -> None:
    shifted = probability_shift(torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]]), torch.tensor([2, 0]))
    assert shifted.tolist() == [[1.0, 2.0, 5.0], [4.0, 0.0, 3.0]]


def test_probability_shift_leaves_rows_without_a_label_alone() -> None:
    rows = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    assert probability_shift(rows, torch.tensor([-100, 2])).tolist() == [[1.0, 5.0, 2.0], [3.0, 0.0, 4.0]]
    many = random(2, 120)
    assert torch.equal(probability_shift(many, torch.tensor([-100, -1])), many)


def test_probability_shift_does_not_change_the_teachers_logits() -> None:
    rows = random(B, V)
    kept = rows.clone()
    probability_shift(rows, torch.tensor([0, 1]))
    terms = objective(probability_shift=True)
    taught = features(logits=rows)
    terms.kd_terms(features(logits=random(B, V, seed=1), labels=torch.tensor([0, 1])), taught, START)
    assert torch.equal(rows, kept)


def test_probability_shift_comes_before_the_mask() -> None:
    loss, seen = seeing()
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    labels = torch.tensor([[0, -100, 3, 3], [4, 3, 2, -100]])
    student, teacher = logits(B, L, V, logits_mask=mask, labels=labels)
    objective(kd_loss_type=loss, probability_shift=True).kd_terms(student, teacher, START)
    expected = probability_shift(teacher["logits"][0], labels)[mask.bool()]
    assert torch.equal(seen.positional[1], expected)
    assert expected.argmax(-1).tolist() == [0, int(teacher["logits"][0][0, 1].argmax()), 4, 2]


def test_labels_of_tokens_may_be_in_one_row() -> None:
    labels = torch.tensor([[0, -100, 3, 3], [4, 3, 2, -100]])
    terms = objective(probability_shift=True)
    whole, flat = (terms.kd_terms(*logits(B, L, V, labels=given), START) for given in (labels, labels.flatten()))
    assert torch.equal(whole["kd_loss"], flat["kd_loss"])


def test_probability_shift_needs_labels_of_each_head() -> None:
    terms = objective(probability_shift=True)
    assert message(AdaptorError, lambda: terms.kd_terms(*logits(B, V), START)) == (
        "probability_shift needs `labels`, one for each of the logits; the student's adaptor must return them."
    )
    assert message(ShapeError, lambda: terms.kd_terms(*logits(B, L, V, labels=torch.zeros(B).long()), START)) == (
        "probability_shift: labels (2,) do not belong to logits (2, 4, 5)."
    )


def test_terms_are_unweighted() -> None:
    layers = features(hidden=[random(B, L, D, seed=i) for i in range(2)])
    (loss,) = objective(intermediate_matches=[{**HIDDEN, "weight": 7}]).match_terms(layers, layers, START).values()
    torch.testing.assert_close(loss, match_losses.hidden_mse(layers["hidden"][0], layers["hidden"][1]))


def test_a_projection_of_another_width_than_the_features_is_told_with_its_path() -> None:
    match = {
        "layer_T": 0,
        "layer_S": 0,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 1,
        "proj": ["linear", 7, 16],
    }
    made = Objective.from_config(DistillationConfig(intermediate_matches=[match]), default_registry())
    hidden = {"hidden": [torch.zeros(2, 3, 8)]}

    with pytest.raises(ShapeError) as caught:
        made.match_terms(Features.of(hidden), Features.of({"hidden": [torch.zeros(2, 3, 16)]}), Step(0, 1))

    assert str(caught.value) == (
        "intermediate_matches[0].proj: the projection takes 7 wide features and the student's are 8 wide; "
        "give their widths as [name, student_dim, teacher_dim]."
    )
