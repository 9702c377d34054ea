"""Several losses between logits at once: how they are written, their terms, weights and schedules, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

from brewer_builtins.kd_losses import brewer_kd_losses, jsd, kl, mse, top_k_kl
from brewer_builtins.strategies import General
from brewer_core import Counts, DistillationConfig, Features, Kept, component
from brewer_core.config import parse_run_config
from brewer_core.config.schema import run_schema
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import BrewerError, ConfigError
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective, Weight
from brewer_core.plugins import build_registry
from brewer_core.protocols import Step
from brewer_core.registry import Registry
from brewer_core.teachers import LiveTeacher
from fakes import plugin
from runs import distill, document, supervised
from tiny import Tiny, adaptor, batches, table, weights

REGISTRY = build_registry()
START = Step(0, 10)
HALF = {"loss": "jsd", "weight": 0.5}
UNKNOWN = f"no kd loss is called 'kj'. Known: {', '.join(brewer_kd_losses())}"
LOGITS = frozenset({"logits", "logits_mask"})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(registry: Registry = REGISTRY, **distillation: Any) -> Objective:
    return Objective.from_config(DistillationConfig(**distillation), registry)


def both(*shape: int) -> tuple[Features, Features]:
    student = random(*shape, seed=1).requires_grad_()
    return Features.of({"logits": student}), Features.of({"logits": random(*shape, seed=2)})


def problems(**distillation: Any) -> list[str]:
    """What a run says of a distillation."""
    with pytest.raises(ConfigError) as caught:
        parse_run_config(document(stages=[supervised(), distill(distillation=distillation)]), "config", REGISTRY)
    return [problem.removeprefix("stages[1].distillation.") for problem in caught.value.problems]


def resolved(**distillation: Any) -> Any:
    config = parse_run_config(document(stages=[supervised(), distill(distillation=distillation)]), "config", REGISTRY)
    return config.stages[1].distillation.to_dict()["kd_loss_type"]


# How it is written


def test_a_loss_alone_stays_as_it_was_and_a_list_is_one_of_mappings() -> None:
    plain = {"name": "kl", "t_squared": True, "standardise": False}
    assert resolved(kd_loss_type="kl") == plain
    assert resolved(kd_loss_type=["kl", {"loss": "kl", "weight": 2, "weight_scheduler": "linear_decay"}]) == [
        {"loss": plain, "weight": 1, "weight_scheduler": None},
        {"loss": plain, "weight": 2, "weight_scheduler": {"name": "linear_decay", "warmup": 0.0}},
    ]


def test_what_was_written_is_read_again() -> None:
    for given in ("kl", ["kl"], ["kl", HALF], [{"loss": {"name": "jsd", "beta": 0.1}}, {"name": "kl"}]):
        config = DistillationConfig(kd_loss_type=given)
        assert DistillationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.model_copy(update={"temperature": 2.0}).kd_loss_type == config.kd_loss_type
    assert DistillationConfig(1, "none", 0, "none", ["kl", HALF]).kd_losses[1].weight == 0.5


def test_a_callable_may_stand_in_the_list() -> None:
    def mine(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        return (student_logits - teacher_logits).abs().mean()

    terms = objective(kd_loss_type=[mine, {"loss": mine, "weight": 3}])
    assert list(terms.kd_names) == ["kd_loss_mine", "kd_loss_mine#2"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            [{"name": "kl", "weight": 0.5}],
            "kd_loss_type[0]: the kd loss `kl` has no option weight; to weigh one of several losses, write "
            '{"loss": "kl", "weight": 0.5} in the list of kd_loss_type, and to weigh all of them, kd_loss_weight',
        ),
        (
            {"name": "jsd", "beta": 0.1, "weight": 0.5, "weight_scheduler": "linear_decay"},
            "kd_loss_type: the kd loss `jsd` has no option weight and weight_scheduler; to weigh one of several losses, write "
            '{"loss": {"name": "jsd", "beta": 0.1}, "weight": 0.5, "weight_scheduler": "linear_decay"} in the list of '
            "kd_loss_type, and to weigh all of them, kd_loss_weight",
        ),
        (
            HALF,
            'kd_loss_type: a loss with a weight of its own stands in a list: write [{"loss": "jsd", "weight": 0.5}]',
        ),
        (["kl", {"loss": "kj"}], f"kd_loss_type[1].loss: {UNKNOWN}"),
        (["kj"], f"kd_loss_type[0]: {UNKNOWN}"),
        ([{"loss": "kl", "wieght": 1}], "kd_loss_type[0].wieght: unknown key; did you mean 'weight'?"),
        (
            [{"name": "jsd", "beta": 2}],
            "kd_loss_type[0].beta: input should be less than or equal to 1, not 2",
        ),
        ([], "kd_loss_type: an empty list names no kd loss; with kd_loss_weight 0 none is computed"),
        ([{"loss": "kl", "weight": "1"}], 'kd_loss_type[0].weight: input should be a valid number, not "1"'),
    ],
)
def test_what_is_written_wrong_is_told_with_its_place(given: Any, problem: str) -> None:
    assert problems(kd_loss_type=given) == [problem]


def test_in_a_script_a_weight_among_the_options_is_told_when_the_objective_is_built() -> None:
    with pytest.raises(ConfigError) as caught:
        objective(kd_loss_type=["ce", {"name": "kl", "weight": 0.5}])
    assert str(caught.value) == (
        "DistillationConfig: kd_loss_type[1]: the kd loss `kl` has no option weight; to weigh one of several losses, write "
        '{"loss": "kl", "weight": 0.5} in the list of kd_loss_type, and to weigh all of them, kd_loss_weight'
    )


def test_an_option_that_is_called_weight_is_an_option() -> None:
    def own(student_logits: Tensor, teacher_logits: Tensor, temperature: Any, *, weight: float = 1.0) -> Tensor:
        return weight * (student_logits - teacher_logits).square().mean()

    registry = REGISTRY.with_plugin(plugin(brewer_kd_losses={"own": own}))
    terms = objective(registry, kd_loss_type=[{"name": "own", "weight": 4.0}, "own"])
    losses = terms.kd_terms(*both(3, 5), START)
    torch.testing.assert_close(losses["kd_loss_own"], 4 * losses["kd_loss_own#2"])


def test_the_schema_accepts_what_a_run_does() -> None:
    validator = jsonschema.Draft202012Validator(run_schema(REGISTRY.components()))

    def accepted(**distillation: Any) -> bool:
        return validator.is_valid(document(stages=[supervised(), distill(distillation=distillation)]))

    for given in ("kl", ["kl"], ["kl", HALF], [{"name": "jsd", "beta": 0.1}, {"loss": {"name": "kl"}}]):
        assert accepted(kd_loss_type=given)
    for given in ([], HALF, [[]], ["kj"], [{"name": "kl", "weight": 1}], [{"loss": "kl", "wieght": 1}]):
        assert not accepted(kd_loss_type=given)
    for given in (None, "swap", {"name": "mix"}, {"name": "mix", "weight": 0.3, "threshold": None}, {"name": "mft"}):
        assert accepted(teacher_correction=given)
    for given in ("mixed", {"name": "mix", "weight": 1}, {"name": "drop", "weight": 0.5}, {"weight": 0.5}, 1):
        assert not accepted(teacher_correction=given)


# Terms, weights, schedules


def test_each_loss_is_a_term_of_its_own_and_one_alone_keeps_its_name() -> None:
    student, teacher = both(3, 5)
    own, taught = student["logits"][0], teacher["logits"][0]
    terms = objective(temperature=2, kd_loss_type=["kl", {"loss": {"name": "jsd", "beta": 0.1}}, "mse", "kl"])
    losses = terms.kd_terms(student, teacher, START)
    expected = {
        "kd_loss_kl": kl(own, taught, 2.0),
        "kd_loss_jsd": jsd(own, taught, 2.0, beta=0.1),
        "kd_loss_mse": mse(own, taught, 2.0),
        "kd_loss_kl#2": kl(own, taught, 2.0),
    }
    assert list(losses) == list(expected) == list(terms.kd_names)
    for name, value in expected.items():
        assert torch.equal(losses[name], value)
    assert list(objective(kd_loss_type=["kl"]).kd_terms(student, teacher, START)) == ["kd_loss"]


def test_all_are_weighed_by_the_weight_of_all_and_by_their_own_each_with_its_schedule() -> None:
    terms = objective(
        kd_loss_weight=0.5,
        kd_loss_weight_scheduler="linear_growth",
        kd_loss_type=[
            "kl",
            {"loss": "jsd", "weight": 8, "weight_scheduler": "linear_decay"},
            {"loss": "mse", "weight": 3},
        ],
    )
    at = [terms.weights(Step(step, 4)) for step in range(4)]
    assert [each["kd_loss_kl"] for each in at] == [0.0, 0.125, 0.25, 0.375]
    assert [each["kd_loss_jsd"] for each in at] == [0.0, 0.125 * 6, 0.25 * 4, 0.375 * 2]
    assert [each["kd_loss_mse"] for each in at] == [0.0, 0.375, 0.75, 1.125]
    assert "kd_loss" not in at[0]


def test_one_in_a_list_has_its_weight_too() -> None:
    assert objective(kd_loss_weight=2, kd_loss_type=[HALF]).weights(START)["kd_loss"] == 1.0


def test_a_weight_is_the_product_of_its_factors() -> None:
    assert Weight(0.5, times=Weight(3, times=Weight(4))).at(START) == 6
    assert [Weight(1, times=Weight(0)).never_counts, Weight(1, times=Weight(2)).never_counts] == [True, False]


def test_a_loss_of_weight_0_is_not_computed_and_gives_a_gradient_of_0() -> None:
    def never(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        raise AssertionError

    student, teacher = both(3, 5)
    terms = objective(kd_loss_type=["kl", {"loss": never, "weight": 0, "weight_scheduler": "linear_growth"}])
    losses = terms.kd_terms(student, teacher, START)
    assert losses["kd_loss_never"].item() == 0
    (gradient,) = torch.autograd.grad(losses["kd_loss_never"], student["logits"])
    assert not gradient.any()
    assert losses["kd_loss_kl"].item() > 0


def test_where_all_have_weight_0_the_teachers_logits_are_not_needed() -> None:
    none = [{"loss": "kl", "weight": 0}, {"loss": "mse", "weight": 0}]
    for given in ({"kd_loss_type": none}, {"kd_loss_type": ["kl", "mse"], "kd_loss_weight": 0}):
        terms = objective(**given)
        assert terms.needs().every_teacher == {"inputs_mask"}
        assert {name: v.item() for name, v in terms.kd_terms(both(3, 5)[0], Features({}), START).items()} == {
            "kd_loss_kl": 0,
            "kd_loss_mse": 0,
        }
    assert objective(kd_loss_type=["kl", none[1]]).needs().every_teacher == LOGITS | {"inputs_mask"}
    assert not DistillationConfig(kd_loss_type=none).compares_logits
    assert DistillationConfig(kd_loss_type=["kl", none[1]]).compares_logits


def test_each_term_is_weighed_by_what_its_own_mean_is_over() -> None:
    @component(over="rows")
    def by_row(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        return student_logits.mean()

    counts = Counts(rows=2, tokens=3, token_pairs=5, logits=7, labels=1)
    terms = objective(kd_loss_type=["kl", by_row, "dist"])
    assert [terms.over(name) for name in terms.kd_names] == ["logits", "rows", "batch"]
    assert [terms.items(name, counts) for name in terms.kd_names] == [7, 2, 2]
    scheduled = objective(kd_loss_type=["kl", by_row], temperature_scheduler=["flsw", 1, 2])
    assert [scheduled.over(name) for name in scheduled.kd_names] == ["batch", "batch"]


def test_positions_temperatures_and_heads_are_those_of_each_loss_alone() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    heads, taught = [random(2, 3, 5, seed=i) for i in (1, 2)], [random(2, 3, 5, seed=i) for i in (3, 4)]
    student, teacher = (Features.of({"logits": each, "logits_mask": mask}) for each in (heads, taught))
    given = {"temperature": 2, "temperature_scheduler": ["flsw", 1, 2]}
    together = objective(kd_loss_type=["kl", "mse"], **given).kd_terms(student, teacher, START)
    for name in ("kl", "mse"):
        alone = objective(kd_loss_type=name, **given).kd_terms(student, teacher, START)["kd_loss"]
        assert torch.equal(together[f"kd_loss_{name}"], alone)


# Where only some of the logits are kept


def test_each_loss_says_for_itself_what_stands_against_sparse_teachers() -> None:
    kept = Kept("top_k", 2, 9)
    terms = objective(
        kd_loss_type=[
            "kl",
            "mse",
            {"name": "top_k_kl", "k": 4},
            {"name": "ce", "standardise": True},
            {"loss": "dkd", "weight": 0},
        ]
    )
    assert terms.refuses_sparse(kept) == [
        "kd_loss_type[1]: `mse` needs all of the teacher's logits, and the cache keeps 2 of 9 of them (top_k); use ce, kl, reverse_kl, "
        "jsd, skew_kl, skew_reverse_kl, adaptive_kl, tvd or top_k_kl, or keep them dense",
        "kd_loss_type[2]: `top_k_kl` needs the 4 most likely classes, and the cache keeps 2 of 9 of them (top_k); set k to 2 or less, "
        "keep 4, or keep them dense",
        "kd_loss_type[3]: `ce` needs all of the teacher's logits for their mean, and the cache keeps 2 of 9 of them (top_k); set "
        "standardise to false, or keep them dense",
    ]


def test_draws_are_refused_by_name_where_a_loss_needs_probabilities() -> None:
    drawn = Kept("sampled", 5, 9)
    assert objective(temperature=1, kd_loss_type="reverse_kl").refuses_sparse(drawn) == [
        "kd_loss_type: `reverse_kl` needs the teacher's probabilities, and the cache keeps at most 5 of 9 of them (sampled); use ce or "
        "kl, or keep them as top_k or dense"
    ]
    assert objective(temperature=1, kd_loss_type=["ce", "kl"]).refuses_sparse(drawn) == []


def test_the_options_of_a_stateful_loss_decide_too() -> None:
    def reason(kept: Kept, options: Any) -> str:
        return "" if options["few"] else f"wants more than {kept.count}"

    @component(sparse=reason)
    class Choosy(nn.Module):
        def __init__(self, *, few: bool = False) -> None:
            super().__init__()

        def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
            return student_logits.mean()

    registry = REGISTRY.with_plugin(plugin(brewer_kd_losses={"choosy": Choosy}))
    for few, expected in ((True, []), (False, ["kd_loss_type: `choosy` wants more than 2"])):
        terms = objective(registry, kd_loss_type={"name": "choosy", "few": few})
        assert terms.refuses_sparse(Kept("top_k", 2, 9)) == expected


# In a training


class Scaled(nn.Module):
    """A kd loss that learns a scale of its own."""

    def __init__(self, *, start: float = 2.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        return (self.scale * student_logits - teacher_logits).square().mean()


def test_losses_with_a_state_are_trained_side_by_side() -> None:
    registry = REGISTRY.with_plugin(plugin(brewer_kd_losses={"scaled": Scaled}))
    terms = objective(registry, kd_loss_type=["kl", {"name": "scaled", "start": 3.0}, {"name": "scaled", "start": 4.0}])
    before = weights(terms)
    assert sorted(float(tensor) for tensor in before.values()) == [3.0, 4.0]
    figures = trained(terms)
    assert {"kd_loss_kl", "kd_loss_scaled", "kd_loss_scaled#2"} < set(figures[0])
    assert all(not torch.equal(before[name], tensor) for name, tensor in weights(terms).items())


def trained(terms: Objective, steps: int = 3) -> list[dict[str, float]]:
    """The figures of each step of a short training."""
    learner = Learner(Tiny(4, 1, seed=1), adaptor("row_logits"), terms, General())
    optimizer = torch.optim.SGD(learner.student.parameters(), lr=0.1)
    teachers = {"teacher": LiveTeacher(Tiny(6, 2, seed=2), adaptor("row_logits"), torch.device("cpu"))}
    figures: list[dict[str, float]] = []

    class Noting(Listener):
        def logged(self, step: int, values: Any) -> None:
            figures.append(dict(values))

    settings = Settings(log_every_steps=1)
    Engine(
        learner,
        optimizer,
        device=torch.device("cpu"),
        teachers=teachers,
        settings=settings,
        listeners=[Noting()],
    ).train(batches(table(), [8]), Duration(steps=steps))
    return figures


def test_the_total_is_the_sum_of_the_terms_times_their_weights() -> None:
    figures = trained(objective(kd_loss_weight=2, kd_loss_type=["kl", {"loss": "jsd", "weight": 0.25}]))
    for each in figures:
        expected = 2 * each["kd_loss_kl"] + 0.5 * each["kd_loss_jsd"]
        assert each["total_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_list_of_one_trains_as_the_loss_alone_bit_for_bit() -> None:
    alone, listed = trained(objective(kd_loss_type="kl")), trained(objective(kd_loss_type=["kl"]))
    for one, other in zip(alone, listed, strict=True):
        assert one["total_loss"] == other["total_loss"]


def test_a_loss_that_is_wrong_is_named_in_a_list() -> None:
    def by_row(student_logits: Tensor, teacher_logits: Tensor, temperature: Any) -> Tensor:
        return (student_logits - teacher_logits).mean(-1)

    with pytest.raises(BrewerError) as caught:
        objective(kd_loss_type=["kl", by_row]).kd_terms(*both(3, 5), START)
    assert str(caught.value) == (
        "the kd loss `by_row` returned a tensor of shape (3,); a loss returns the mean over its items, a scalar."
    )


def test_top_k_in_a_list_reads_its_options() -> None:
    student, teacher = both(3, 9)
    losses = objective(temperature=1, kd_loss_type=[{"name": "top_k_kl", "k": 2, "tail": False}, "ce"]).kd_terms(
        student, teacher, START
    )
    expected = top_k_kl(student["logits"][0], teacher["logits"][0], 1.0, k=2, tail=False)
    assert torch.equal(losses["kd_loss_top_k_kl"], expected)
