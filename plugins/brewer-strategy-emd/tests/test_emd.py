"""emd: losses and gradients against a plain double loop, masks, projections in training, cost attention, and the errors' texts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from brewer_core import (
    BrewerError,
    DistillationConfig,
    Features,
    GeneralDistiller,
    ModelInfo,
    Needs,
    RequestError,
    ShapeError,
    Step,
    TrainingConfig,
)
from brewer_strategy_emd import EMD, brewer_strategies

HIDDEN, EMBEDDING, ATTENTION = "hidden_hidden_mse_emd", "embedding_hidden_mse", "attention_mse_emd"
ROWS, LENGTH, WIDTH, HEADS = 3, 4, 5, 2
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


class NoTerms:
    """An objective without terms of its own."""

    temperature = 1.0

    def needs(self) -> Needs:
        return Needs(frozenset({"losses"}), frozenset({"logits"}), {"one": frozenset({"hidden"})})

    def kd_terms(self, *given: Any) -> dict[str, Tensor]:
        return {}

    match_terms = label_terms = kd_terms


def states(count: int, width: int = WIDTH, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, LENGTH, width, generator=generator, dtype=torch.float64) for _ in range(count)]


def attentions(count: int, heads: int = HEADS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, heads, LENGTH, LENGTH, generator=generator).double().softmax(-1) for _ in range(count)]


def terms(strategy: EMD, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Tensor]:
    found = strategy.terms("", Features.of(student), {"teacher": Features.of(teacher)}, NoTerms(), Step(0, 1))
    return dict(found)


def built(student: int = WIDTH, teacher: int = WIDTH, layers: int = 2, **options: Any) -> EMD:
    """A strategy that knows the widths."""
    strategy = EMD(**options)
    own, taught = ((width,) * (layers + 1) for width in (student, teacher))
    strategy.build(ModelInfo("student", {"hidden": own}), {"teacher": ModelInfo("teacher", {"hidden": taught})})
    return strategy


def by_double_loop(student: list[Tensor], teacher: list[Tensor], counts: Tensor) -> Tensor:
    """Pair by pair over what counts, and the plan by linear programming."""
    costs = torch.stack([torch.stack([((s - t)[counts] ** 2).mean() for t in teacher]) for s in student])
    rows, columns = len(student), len(teacher)
    sums = np.vstack([np.repeat(np.eye(rows), columns, axis=1), np.tile(np.eye(columns), rows)])
    totals = [1 / rows] * rows + [1 / columns] * columns
    plan = linprog(costs.detach().numpy().ravel(), A_eq=sums, b_eq=totals).x.reshape(rows, columns)
    return (torch.from_numpy(plan) * costs).sum()


def gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, tensors, retain_graph=True))


# Losses


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.double(), None], ids=["ints", "bools", "floats", "none"])
@pytest.mark.parametrize(("students", "teachers"), [(1, 1), (2, 2), (2, 5), (3, 1), (1, 4)])
def test_hidden_states_against_a_double_loop(students: int, teachers: int, mask: Tensor | None) -> None:
    own, taught = [s.requires_grad_() for s in states(1 + students)], states(1 + teachers, seed=1)
    found = terms(EMD(), {"hidden": own, "inputs_mask": mask}, {"hidden": taught})
    counts = torch.ones(ROWS, LENGTH).bool() if mask is None else mask.bool()
    expected = by_double_loop(own[1:], taught[1:], counts)
    torch.testing.assert_close(found[HIDDEN], expected)
    torch.testing.assert_close(gradients(found[HIDDEN], own[1:]), gradients(expected, own[1:]))
    torch.testing.assert_close(found[EMBEDDING], ((own[0] - taught[0])[counts] ** 2).mean())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_against_a_double_loop(heads: int, masked: bool) -> None:
    own, taught = [a.requires_grad_() for a in attentions(2, heads)], attentions(4, heads, seed=1)
    found = terms(
        EMD(weight=0, attention_weight=2.0),
        {"attention": own, "inputs_mask": MASK if masked else None},
        {"attention": taught},
    )
    valid = MASK.bool() if masked else torch.ones(ROWS, LENGTH).bool()
    pairs = (valid[:, None, :, None] & valid[:, None, None, :]).expand(ROWS, heads, LENGTH, LENGTH)
    expected = by_double_loop(own, taught, pairs)
    assert list(found) == [ATTENTION]
    torch.testing.assert_close(found[ATTENTION], expected)
    torch.testing.assert_close(gradients(found[ATTENTION], own), gradients(expected, own))


def test_attention_without_heads_is_attention_of_one_head() -> None:
    own, taught = attentions(2, 1), attentions(3, 1, seed=1)
    losses = [
        terms(
            EMD(weight=0, attention_weight=1),
            {"attention": [change(a) for a in own], "inputs_mask": MASK},
            {"attention": [change(a) for a in taught]},
        )[ATTENTION]
        for change in (lambda a: a, lambda a: a[:, 0])
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(("score", "as_0"), [(-math.inf, True), (-1e4, True), (-100.0, True), (-99.0, False)])
def test_scores_of_padding_count_as_0_without_a_mask(score: float, as_0: bool) -> None:
    own, taught = attentions(2), attentions(2, seed=1)
    padded, zeros = ([a.clone() for a in own] for _ in range(2))
    for with_score, with_0 in zip(padded, zeros, strict=True):
        with_score[..., -1], with_0[..., -1] = score, 0
    strategy = EMD(weight=0, attention_weight=1)
    found = [terms(strategy, {"attention": side}, {"attention": taught})[ATTENTION] for side in (padded, zeros)]
    assert (found[0] == found[1]) == as_0


def test_layers_that_are_alike_in_any_order_have_no_loss_and_no_gradient() -> None:
    taught = states(5)
    own = [taught[i].clone().requires_grad_() for i in (0, 3, 1, 4, 2)]
    found = terms(EMD(), {"hidden": own, "inputs_mask": MASK}, {"hidden": taught})
    assert float(found[HIDDEN].detach()) == float(found[EMBEDDING].detach()) == 0
    assert not any(g.any() for g in gradients(sum(found.values()), own))


def test_pooled_states_are_not_masked() -> None:
    own, taught = ([s[:, 0] for s in states(3, seed=seed)] for seed in (0, 1))
    with_mask = terms(EMD(), {"hidden": own, "inputs_mask": MASK}, {"hidden": taught})
    assert with_mask == terms(EMD(), {"hidden": own}, {"hidden": taught})


@pytest.mark.parametrize("teacher_width", [WIDTH, 7])
def test_masked_tokens_reach_neither_a_loss_nor_a_gradient(teacher_width: int) -> None:
    torch.manual_seed(0)
    strategy = built(WIDTH, teacher_width)
    projections = strategy._projections.double() if strategy._projections else nn.Module()
    outcomes = []
    for padding in (0.0, 1e9, math.inf, math.nan):
        own, taught = states(3), states(4, teacher_width, seed=1)
        for state in (*own, *taught):
            state[MASK == 0] = padding
        own = [state.requires_grad_() for state in own]
        found = terms(strategy, {"hidden": own, "inputs_mask": MASK}, {"hidden": taught})
        outcomes.append((found, gradients(sum(found.values()), [*own, *projections.parameters()])))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=0, atol=0)


def test_a_batch_without_a_valid_token_gives_0() -> None:
    torch.manual_seed(0)
    own, taught = [s.float().requires_grad_() for s in states(3)], [s.float() for s in states(3, 7, seed=1)]
    strategy = built(WIDTH, 7, attention_weight=1)
    found = terms(
        strategy,
        {"hidden": own, "attention": attentions(2), "inputs_mask": torch.zeros(ROWS, LENGTH)},
        {"hidden": taught, "attention": attentions(2, seed=1)},
    )
    assert {name: float(loss.detach()) for name, loss in found.items()} == {HIDDEN: 0, EMBEDDING: 0, ATTENTION: 0}
    assert not any(g.any() for g in gradients(sum(found.values()), own))


def test_embeddings_are_left_out_on_request() -> None:
    own, taught = states(3), states(3, seed=1)
    whole = terms(EMD(), {"hidden": own}, {"hidden": taught})
    found = terms(EMD(embedding=False), {"hidden": [own[0][..., :1], *own[1:]]}, {"hidden": taught})
    assert found == {HIDDEN: whole[HIDDEN]}


def test_the_weights_are_factors_and_the_losses_stay_as_they_are() -> None:
    own, taught = states(3), states(3, seed=1)
    strategy = EMD(weight=0.25, attention_weight=3)
    assert strategy.weights(Step(5, 9)) == {HIDDEN: 0.25, EMBEDDING: 0.25, ATTENTION: 3}
    losses = [terms(EMD(weight=weight), {"hidden": own}, {"hidden": taught}) for weight in (1, 0.25)]
    assert losses[0] == losses[1]


def test_only_what_is_compared_is_needed() -> None:
    own = {"losses", "inputs_mask"}
    hidden, both, attention = (
        EMD().needs(NoTerms()),
        EMD(attention_weight=1).needs(NoTerms()),
        EMD(weight=0, attention_weight=1).needs(NoTerms()),
    )
    assert hidden.student == own | {"hidden"}
    assert hidden.every_teacher == {"logits", "hidden"}
    assert both.student - own == both.every_teacher - {"logits"} == {"hidden", "attention"}
    assert attention.every_teacher == {"logits", "attention"}
    assert attention.teacher("one") == {"logits", "attention", "hidden"}


# Projections


def test_projections_are_drawn_as_linear_ones_of_brewer_the_embeddings_first() -> None:
    torch.manual_seed(0)
    strategy = EMD(student_layers=2, student_width=4, teacher_width=6)
    projections = strategy.build(ModelInfo("student"), {"teacher": ModelInfo("teacher")})
    torch.manual_seed(0)
    expected = []
    for _ in range(3):
        layer = nn.Linear(4, 6)
        nn.init.normal_(layer.weight, std=0.02)
        expected.append(layer.weight)
    assert projections is not None
    assert [type(each) for each in projections] == [nn.Linear] * 3
    assert all(torch.equal(each.weight, weight) for each, weight in zip(projections, expected, strict=True))
    assert not any(each.bias.any() for each in projections)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(5, 7), None, (6, 7)]),
        ({"embedding": False}, [None, (6, 7)]),
        ({"project": "linear"}, [(5, 7), (7, 7), (6, 7)]),
        ({"project": "none"}, None),
        ({"weight": 0}, None),
        ({"student_layers": 9, "student_width": 9, "teacher_width": 9}, [(5, 7), None, (6, 7)]),
    ],
)
def test_states_are_projected_where_widths_differ(
    options: dict[str, Any], expected: list[tuple[int, int] | None] | None
) -> None:
    infos = ModelInfo("student", {"hidden": (5, 7, 6)}), ModelInfo("teacher", {"hidden": (7, 7, 7, 7)})
    made = EMD(**options).build(infos[0], {"teacher": infos[1]})
    sizes = made and [(p.in_features, p.out_features) if isinstance(p, nn.Linear) else None for p in made]
    assert sizes == expected


@pytest.mark.parametrize("options", [{}, {"student_layers": 2}, {"student_width": 4, "teacher_width": 4}])
def test_nothing_is_projected_where_widths_are_said_to_be_equal_or_left_to_the_batch(options: dict[str, int]) -> None:
    assert EMD(**options).build(ModelInfo("student"), {"teacher": ModelInfo("teacher")}) is None


def test_a_projected_state_is_what_is_compared() -> None:
    torch.manual_seed(0)
    strategy = built(WIDTH, 7)
    own, taught = [s.float() for s in states(3)], [s.float() for s in states(4, 7, seed=1)]
    found = terms(strategy, {"hidden": own, "inputs_mask": MASK}, {"hidden": taught})
    assert strategy._projections is not None
    projected = [each(state).detach() for each, state in zip(strategy._projections, own, strict=True)]
    expected = terms(EMD(), {"hidden": projected, "inputs_mask": MASK}, {"hidden": taught})
    torch.testing.assert_close(found, expected)


# Training


class Tiny(nn.Module):
    """Hidden states, and a class a row."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        hidden = [self.embedding(ids)]
        for layer in self.layers:
            hidden.append(torch.tanh(layer(hidden[-1])))
        return {"hidden": hidden, "logits": self.head(hidden[-1][:, 0])}


def adapt(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**outputs, "inputs_mask": batch[1]}


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(11, (6, ROWS, LENGTH), generator=generator)
    return [(rows, MASK) for rows in ids]


@dataclass(frozen=True)
class Outcome:
    """A student after its training, and the projections before and after it."""

    student: dict[str, Tensor]
    drawn: list[Tensor]
    projections: list[Tensor]
    strategy: EMD


def distill(folder: Path, adaptor: Callable[..., Any] = adapt, **options: Any) -> Outcome:
    """A seeded run of 6 steps."""
    torch.manual_seed(0)
    teacher, student = Tiny(8, 3), Tiny(4, 2)
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu"),
        DistillationConfig(),
        teacher,
        student,
        adapt,
        adaptor,
        strategy={"name": "emd", "student_layers": 2, "student_width": 4, "teacher_width": 8, **options},
    )
    strategy = distiller._strategy
    assert isinstance(strategy, EMD)
    projections = list(strategy._projections.parameters()) if strategy._projections else []
    drawn = [p.detach().clone() for p in projections]
    with distiller:
        distiller.train(torch.optim.SGD(student.parameters(), lr=0.5), batches(), num_epochs=1)
    return Outcome(student.state_dict(), drawn, [p.detach() for p in projections], strategy)


def test_projections_are_trained_with_the_student(tmp_path: Path) -> None:
    outcome = distill(tmp_path)
    assert [tuple(p.shape) for p in outcome.drawn] == [(8, 4), (8,)] * 3
    assert all(not torch.equal(*pair) for pair in zip(outcome.drawn, outcome.projections, strict=True))


def test_a_seeded_run_is_repeatable(tmp_path: Path) -> None:
    runs = [distill(tmp_path / name, layer_weights="cost_attention") for name in "ab"]
    torch.testing.assert_close(runs[0].student, runs[1].student, rtol=0, atol=0)
    torch.testing.assert_close(runs[0].projections, runs[1].projections, rtol=0, atol=0)
    assert runs[0].strategy.state_dict() == runs[1].strategy.state_dict() != {}


def test_the_weight_and_the_layers_weights_change_the_student(tmp_path: Path) -> None:
    runs = [
        distill(tmp_path / str(i), **options)
        for i, options in enumerate(({}, {"weight": 3.0}, {"embedding": False}, {"layer_weights": "cost_attention"}))
    ]
    heads = [run.student["layers.0.weight"] for run in runs]
    assert all(not torch.equal(heads[0], other) for other in heads[1:])


def test_a_state_that_is_not_finite_is_an_error_that_names_the_term(tmp_path: Path) -> None:
    def burst(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        hidden = [*outputs["hidden"][:2], outputs["hidden"][2] / 0]
        return {"logits": outputs["logits"], "hidden": hidden}

    with pytest.raises(BrewerError) as error:
        distill(tmp_path, burst)
    assert f"optimizer step 1 of 6: the term `{HIDDEN}` is not finite, in micro-batch 1 of the step; training" in str(
        error.value
    )


# Cost attention


def test_the_weights_of_layers_follow_the_costs_of_the_batch_before() -> None:
    ones = torch.ones(1, 1, 1)
    own, taught = [0 * ones, 0 * ones, 10 * ones], [0 * ones, 1 * ones, 10 * ones + 3**0.5]
    strategy = EMD(layer_weights="cost_attention")
    # layers cost 1 and 3: alike at first, then the softmax of 4 and 4/3
    share = 1 / (1 + math.exp(4 / 3 - 4))
    losses = [float(terms(strategy, {"hidden": own}, {"hidden": taught})[HIDDEN]) for _ in range(2)]
    assert losses == pytest.approx([2.0, share + 3 * (1 - share)])
    assert strategy.state_dict()["student"] == pytest.approx([share, 1 - share])


def test_hidden_states_and_attention_weigh_layers_together() -> None:
    own, taught = states(3), states(4, seed=1)
    scores, targets = attentions(2), attentions(3, seed=1)
    student, teacher = {"hidden": own, "attention": scores}, {"hidden": taught, "attention": targets}
    found = {}
    for weight, attention_weight in ((1, 0), (0, 1), (1, 1)):
        strategy = EMD(weight=weight, attention_weight=attention_weight, layer_weights="cost_attention")
        terms(strategy, student, teacher)
        found[weight, attention_weight] = strategy.state_dict()
    for side in ("student", "teacher"):
        mean = np.mean([found[1, 0][side], found[0, 1][side]], axis=0)
        assert found[1, 1][side] == pytest.approx(mean)
        assert found[1, 0][side] != pytest.approx(mean)


def test_cost_attention_goes_on_from_its_state() -> None:
    batch = {"hidden": states(3)}, {"hidden": states(4, seed=1)}
    first, second = EMD(layer_weights="cost_attention"), EMD(layer_weights="cost_attention")
    fresh = terms(first, *batch)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert terms(second, *batch) == terms(first, *batch) != fresh
    second.load_state_dict({})
    assert terms(second, *batch) == fresh


def test_uniform_weights_stay_uniform_and_have_no_state() -> None:
    strategy, batch = EMD(), ({"hidden": states(3)}, {"hidden": states(4, seed=1)})
    assert terms(strategy, *batch) == terms(strategy, *batch)
    assert strategy.state_dict() == {}


def test_a_cost_that_is_not_finite_leaves_the_weights_as_they_are() -> None:
    own, taught = states(3), states(4, seed=1)
    strategy = EMD(layer_weights="cost_attention")
    terms(strategy, {"hidden": own}, {"hidden": taught})
    before = strategy.state_dict()
    assert not terms(strategy, {"hidden": [own[0], own[1], own[2] / 0]}, {"hidden": taught})[HIDDEN].isfinite()
    assert strategy.state_dict() == before


# Errors


@pytest.mark.parametrize(("names", "told"), [((), "none"), (("a", "b"), "a, b")])
def test_one_teacher_is_needed(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(RequestError) as error:
        EMD().build(ModelInfo("student"), {name: ModelInfo(name) for name in names})
    assert str(error.value) == (
        f"the strategy `emd` learns from one teacher, not from {told}; `multi_teacher` learns from several."
    )


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"project": "linear"}, "student_layers, student_width, teacher_width"),
        ({"student_width": 4}, "student_layers, teacher_width"),
        ({"student_width": 4, "teacher_width": 6}, "student_layers"),
        ({"project": "linear", "student_layers": 2}, "student_width, teacher_width"),
        ({"project": "linear", "student_width": 4, "teacher_width": 4}, "student_layers"),
    ],
)
def test_projections_need_widths_before_training(options: dict[str, Any], missing: str) -> None:
    with pytest.raises(RequestError) as error:
        EMD(**options).build(ModelInfo("student"), {"teacher": ModelInfo("teacher")})
    assert str(error.value) == (
        "the strategy `emd` projects hidden states, and the models' widths are not known before a batch is read: give it "
        f"{missing} too."
    )


GIVE = "give the strategy student_layers=2, student_width=5 and teacher_width=7"


@pytest.mark.parametrize(
    ("strategy", "advice"),
    [
        (EMD(), GIVE),
        (EMD(project="none"), 'set project to "auto"'),
        (built(5, 7, layers=3), GIVE),
        (built(4, 7), GIVE),
        (built(5, 6), GIVE),
        (built(5, 7, embedding=False, layers=3), GIVE),
    ],
)
def test_widths_that_do_not_fit_are_refused_with_what_to_give(strategy: EMD, advice: str) -> None:
    with pytest.raises(ShapeError) as error:
        terms(strategy, {"hidden": states(3, 5)}, {"hidden": states(4, 7)})
    assert str(error.value) == (
        "strategy `emd`: the student has 2 layers of hidden states 5 wide and the teacher's are 7 wide, which its projections do "
        f"not fit; {advice}."
    )


@pytest.mark.parametrize(
    ("options", "student", "teacher", "text"),
    [
        (
            {},
            {"logits": torch.zeros(2, 2)},
            {"hidden": states(3)},
            "the student's adaptor returns 0 tensors of 'hidden', expected the embeddings' output and that of a layer at least; "
            "it returns logits.",
        ),
        (
            {},
            {"hidden": states(3)},
            {"hidden": states(1)},
            "the teacher's adaptor returns 1 tensors of 'hidden', expected the embeddings' output and that of a layer at least; "
            "it returns hidden.",
        ),
        (
            {"weight": 0, "attention_weight": 1},
            {"attention": attentions(1)},
            {},
            "the teacher's adaptor returns 0 tensors of 'attention', expected that of a layer at least; it returns nothing.",
        ),
        (
            {},
            {"hidden": states(3)},
            {"hidden": [state[:2] for state in states(3)]},
            "hidden states must have one shape in all layers of both models, and the student's first layer is (3, 4, 5) and a "
            "layer of the teacher (2, 4, 5).",
        ),
        (
            {"weight": 0, "attention_weight": 1},
            {"attention": attentions(1, 2)},
            {"attention": attentions(1, 4)},
            "attention must have one shape in all layers of both models, and the student's first layer is (3, 2, 4, 4) and a "
            "layer of the teacher (3, 4, 4, 4); set attention_weight to 0 where heads differ.",
        ),
        (
            {},
            {"hidden": states(3), "inputs_mask": MASK[:2]},
            {"hidden": states(3)},
            "the student's inputs_mask is (2, 4) and its hidden states (3, 4, 5); the mask must have their rows and tokens.",
        ),
        (
            {"layer_weights": "cost_attention", "attention_weight": 1},
            {"hidden": states(3), "attention": attentions(3)},
            {"hidden": states(5), "attention": attentions(4)},
            "cost_attention weighs a layer by its hidden state and its attention together, and there are 2 of the student and "
            "4 of the teacher with hidden states, 3 of the student and 4 of the teacher with attention; set attention_weight to 0, "
            'or layer_weights to "uniform".',
        ),
    ],
)
def test_features_that_do_not_fit_are_refused(
    options: dict[str, Any], student: dict[str, Any], teacher: dict[str, Any], text: str
) -> None:
    with pytest.raises(BrewerError) as error:
        terms(EMD(**options), student, teacher)
    assert str(error.value) == f"strategy `emd`: {text}"


# The plugin


def test_the_entry_point_names_this_plugin_and_its_one_strategy() -> None:
    (entry,) = metadata.entry_points(group="brewer", name="emd")
    assert entry.dist is not None
    assert entry.dist.name == "brewer-strategy-emd"
    assert entry.load().brewer_strategies() == brewer_strategies() == {"emd": EMD}


def test_the_solver_is_imported_without_a_warning_and_only_when_a_plan_is_asked_for() -> None:
    code = (
        "import numpy, sys; from brewer_strategy_emd.transport import LayerWeights, Transport; assert 'ot' not in sys.modules; "
        "Transport.cheapest(numpy.ones((2, 3)), LayerWeights.uniform(2, 3)); assert 'ot' in sys.modules"
    )
    # without cached bytecode: what a first import compiles must not warn either
    subprocess.run([sys.executable, "-B", "-W", "error", "-c", code], check=True, timeout=120)
