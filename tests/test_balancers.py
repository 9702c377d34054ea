"""Balancers: each against its formula in a plain loop, and the same however a step is split, over processes and after going on."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from brewer_builtins.balancers import Fixed, GradNorm, Ratio, Uncertainty
from brewer_builtins.strategies import General
from brewer_core import Balance, Balancer, Counts, DistillationConfig, GeneralDistiller, RequestError, TrainingConfig
from brewer_core.checkpoints import Checkpoints
from brewer_core.config import parse_run_config
from brewer_core.config.optimization import Optimization
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.engine.balancing import Balancing, last_of_all
from brewer_core.errors import BrewerError, ConfigError
from brewer_core.learner import Balanced, Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective, balancer_of
from brewer_core.plugins import build_registry, default_registry
from brewer_core.processes import Processes
from brewer_core.protocols import Step
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly
from brewer_core.run.explaining import explain
from brewer_core.run.planning import plan
from brewer_core.run.training_modes import training_modes
from brewer_core.teachers import LiveTeacher
from runs import bert, brewer, distill, document, films, training, write_config
from tiny import CountingAdaptor, Tiny, adaptor, assert_same, batches, table, weights
from two_processes import in_each

CPU = torch.device("cpu")
START = Step(0, 10)
HIDDEN = {"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 0.5}
MATCH = "hidden_hidden_mse_1_1"
TERMS = ("kd_loss", "hard_label_loss", MATCH)
CONFIG = {"kd_loss_type": "kl", "kd_loss_weight": 2.0, "hard_label_weight": 0.25, "intermediate_matches": [HIDDEN]}
WEIGHTS = {"kd_loss": 2.0, "hard_label_loss": 0.25, MATCH: 0.5}
FEATURES = ("row_logits", "hidden", "mask", "losses", "labels")
ALL = ["fixed", "ratio", "uncertainty", "gradnorm"]
REFERENCES = {"gradnorm": {"name": "gradnorm", "learning_rate": 0.05}}


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


class Figures(Listener):
    """What is logged."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, float]] = []

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append(values)


class RowAdaptor(CountingAdaptor):
    """There are logits for each row."""

    def counts(self, batch: Mapping[str, Tensor]) -> Counts:
        return replace(super().counts(batch), logits=len(batch["labels"]))


def learner_of(balancer: Any, dropout: float = 0.0) -> Learner:
    config, registry, strategy = DistillationConfig(**CONFIG, balancer=balancer), default_registry(), General()
    objective = Objective.from_config(config, registry)
    made = balancer_of(config, registry, objective, strategy)
    student = Tiny(4, 2, seed=1, dropout=dropout)
    return Learner(student, RowAdaptor(*FEATURES), objective, strategy, balancer=made)


def teacher() -> LiveTeacher:
    return LiveTeacher(Tiny(4, 3, seed=2), adaptor(*FEATURES), CPU)


def engine(
    balancer: Any,
    *,
    dropout: float = 0.0,
    optimizer: Any = None,
    folder: Path | None = None,
    in_parts: bool = False,
    **settings: Any,
) -> Engine:
    made = learner_of(balancer, dropout)
    made_optimizer = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1)))(made.student.parameters())
    return Engine(
        made,
        made_optimizer,
        device=CPU,
        teachers={"teacher": teacher()},
        settings=Settings(**{"log_every_steps": 1, "loss_normalization": "step", **settings}),
        listeners=[Figures()],
        checkpoints=Checkpoints(folder, keep_last=100) if folder else None,
        in_parts=in_parts,
    )


def figures(trained: Engine) -> list[Mapping[str, float]]:
    (listener,) = trained.listeners
    assert isinstance(listener, Figures)
    return listener.seen


def student_of(trained: Engine) -> dict[str, Tensor]:
    return weights(trained.learner.student)


class PlainLoop:
    """The same training written out: losses of a batch, and one step down the gradient of a total."""

    def __init__(self) -> None:
        self.learner, self.teacher = learner_of(None), teacher()
        self.student = self.learner.student
        self.parameters = list(self.student.parameters())

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        taught = {"teacher": self.teacher.features(batch, self.learner.needs.teacher("teacher"))}
        return self.learner("", batch, taught, START)

    def down(self, total: Tensor, lr: float = 0.1, decay: float = 0.1) -> None:
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= lr * (gradient + decay * parameter)


# Each against its formula


def test_fixed_is_bit_by_bit_what_no_balancer_is() -> None:
    loader = batches(table(), [7, 3, 8, 2])
    for accumulation in (1, 2):
        without, with_one = engine(None, accumulation=accumulation), engine("fixed", accumulation=accumulation)
        without.train(loader, Duration(epochs=2))
        with_one.train(loader, Duration(epochs=2))
        assert_same(student_of(with_one), student_of(without))
        assert [dict(f, steps_per_s=0) for f in figures(with_one)] == [dict(f, steps_per_s=0) for f in figures(without)]


@pytest.mark.parametrize("reference", [None, "hard_label_loss"])
def test_ratio_scales_each_term_to_the_reference(reference: str | None) -> None:
    loader, plain = batches(table(), [8, 8, 8]), PlainLoop()
    made = engine({"name": "ratio", "reference": reference})
    made.train(loader, Duration(epochs=1))
    for batch, logged in zip(loader, figures(made), strict=True):
        losses = plain.losses(batch)
        own = losses[reference or "kd_loss"].item()
        factors = {name: own / loss.item() for name, loss in losses.items()}
        for name in set(TERMS) - {reference or "kd_loss"}:
            assert logged[f"factor/{name}"] == pytest.approx(factors[name])
        assert logged["total_loss"] == pytest.approx(own * sum(WEIGHTS.values()), rel=1e-5)
        assert {name: logged[name] for name in TERMS} == pytest.approx(
            {n: v.item() for n, v in losses.items()}, rel=1e-5
        )
        plain.down(sum(WEIGHTS[name] * factors[name] * loss for name, loss in losses.items()))
    assert_same(student_of(made), weights(plain.student), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("classification", [(), ("kd_loss", "hard_label_loss")])
def test_uncertainty_learns_the_logarithm_of_each_variance(classification: Sequence[str]) -> None:
    loader, plain = batches(table(), [8, 8, 8]), PlainLoop()
    made = engine({"name": "uncertainty", "classification": list(classification), "learning_rate": 0.2})
    made.train(loader, Duration(epochs=1))
    logs = dict.fromkeys(TERMS, 0.0)
    scales = {name: 1.0 if name in classification else 0.5 for name in TERMS}
    for batch, logged in zip(loader, figures(made), strict=True):
        losses = plain.losses(batch)
        balanced = {n: scales[n] * math.exp(-logs[n]) * loss + logs[n] / 2 for n, loss in losses.items()}
        total = sum(WEIGHTS[name] * loss for name, loss in balanced.items())
        assert logged["total_loss"] == pytest.approx(total.item(), rel=1e-5)
        for name, loss in losses.items():
            assert logged[f"factor/{name}"] == pytest.approx(scales[name] * math.exp(-logs[name]), rel=1e-5)
            slope = WEIGHTS[name] * (0.5 - scales[name] * math.exp(-logs[name]) * loss.item())
            logs[name] -= 0.2 * slope
        plain.down(total)
    assert_same(student_of(made), weights(plain.student), atol=1e-6, rtol=1e-5)
    learnt = made.learner.balancer.log_variances.tolist()
    assert dict(zip(made.learner.balancer.terms, learnt, strict=True)) == pytest.approx(logs, rel=1e-4)


class Linear(nn.Module):
    """y = v * (w * x), of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.shared.weight, 2.0)
        nn.init.constant_(self.head.weight, 3.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.shared(x)
        return shared, self.head(shared)


def test_one_step_of_gradnorm_worked_by_hand() -> None:
    """w = 2, v = 3, x = 1. Losses a = (w - 1)^2 / 2 = 0.5 and b = (v w - 2)^2 / 2 = 8; da/dw = 1, db/dw = (6 - 2) 3 = 12."""
    model, balancer = Linear(), GradNorm(("a", "b"), alpha=1.0, shared="shared.weight", learning_rate=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.add_param_group({"params": list(balancer.parameters()), "lr": balancer.group["lr"]})

    def losses() -> dict[str, Tensor]:
        one, other = model(torch.ones(1, 1))
        return {"a": (one - 1).square().sum() / 2, "b": (other - 2).square().sum() / 2}

    def step(found: dict[str, Tensor]) -> None:
        norms = {n: torch.autograd.grad(v, model.shared.weight, retain_graph=True)[0].norm() for n, v in found.items()}
        assert {name: norm.item() for name, norm in norms.items()} == {"a": 1.0, "b": 12.0}
        balancer.learn({name: loss.detach() for name, loss in found.items()}, norms)
        optimizer.step()
        balancer.stepped()

    step(losses())
    # G = 1 and 12, mean 6.5, r = 1 and 1: the slopes are -1 and 12, and 1.01 and 0.88 are scaled to sum to 2
    assert balancer.factors.tolist() == pytest.approx([2.02 / 1.89, 1.76 / 1.89])

    with torch.no_grad():  # a is halved, b as it was: r = 0.5 / 0.75 and 1 / 0.75
        found = {"a": torch.tensor(0.25), "b": torch.tensor(8.0)}
        balancer.learn(found, {"a": torch.tensor(1.0), "b": torch.tensor(12.0)})
    w = [2.02 / 1.89, 1.76 / 1.89]
    mean = (w[0] + 12 * w[1]) / 2
    slopes = [math.copysign(1.0, w[0] - mean * 0.5 / 0.75) * 1, math.copysign(1.0, 12 * w[1] - mean / 0.75) * 12]
    assert balancer.factors.grad.tolist() == pytest.approx(slopes)


def gradnorm_by_hand(
    plain: PlainLoop,
    batch: dict[str, Tensor],
    factors: dict[str, float],
    first: dict[str, float],
    alpha: float,
    lr: float,
) -> dict[str, float]:
    """One step of the paper's algorithm 1, at the last weight that all terms depend on; returns the next factors."""
    losses = plain.losses(batch)
    shared = plain.student.layers[0].weight
    norms = {n: torch.autograd.grad(v, shared, retain_graph=True)[0].norm().item() for n, v in losses.items()}
    for name, loss in losses.items():
        first.setdefault(name, loss.item())
    left = {name: loss.item() / first[name] for name, loss in losses.items()}
    mean_left = sum(left.values()) / len(left)
    weighed = {name: factors[name] * norms[name] for name in losses}
    mean = sum(weighed.values()) / len(weighed)
    after = {}
    for name in losses:
        difference = weighed[name] - mean * (left[name] / mean_left) ** alpha
        after[name] = max(1e-3, factors[name] - lr * math.copysign(1.0, difference) * norms[name])
    plain.down(sum(WEIGHTS[name] * factors[name] * loss for name, loss in losses.items()))
    return {name: value * len(after) / sum(after.values()) for name, value in after.items()}


def test_gradnorm_is_the_papers_algorithm_at_the_last_weight_that_all_terms_depend_on() -> None:
    loader, plain = batches(table(), [8] * 5), PlainLoop()
    made = engine({"name": "gradnorm", "alpha": 0.5, "learning_rate": 0.05})
    made.train(loader, Duration(epochs=1))
    factors, first = dict.fromkeys(TERMS, 1.0), dict[str, float]()
    for batch, logged in zip(loader, figures(made), strict=True):
        assert {name: logged[f"factor/{name}"] for name in TERMS} == pytest.approx(factors, rel=1e-4)
        factors = gradnorm_by_hand(plain, batch, factors, first, alpha=0.5, lr=0.05)
    assert_same(student_of(made), weights(plain.student), atol=1e-6, rtol=1e-5)
    assert sum(made.learner.balancer.factors.tolist()) == pytest.approx(3)
    assert made._gradients.balancing.state_dict() == {"place": "layers.0.weight"}


def test_gradnorm_takes_gradients_by_what_is_named() -> None:
    of_module = engine({"name": "gradnorm", "shared": "embedding"})
    of_module.train(batches(table(), [8]), Duration(epochs=1))
    assert of_module._gradients.balancing.state_dict() == {"place": "embedding"}


# However a step is split


@pytest.mark.parametrize("balancer", ALL)
def test_a_step_is_the_same_however_it_is_split(balancer: str) -> None:
    columns = table(48)
    whole, split = engine(balancer, accumulation=1), engine(balancer, accumulation=3)
    whole.train(batches(columns, [12] * 4), Duration(epochs=1))
    split.train(batches(columns, [5, 3, 4] * 4), Duration(epochs=1))
    assert_same(student_of(split), student_of(whole), atol=1e-6, rtol=1e-4)
    for one, other in zip(figures(whole), figures(split), strict=True):
        assert {n: v for n, v in one.items() if n != "steps_per_s"} == pytest.approx(
            {n: v for n, v in other.items() if n != "steps_per_s"}, rel=1e-4
        )


def test_looking_at_losses_ahead_draws_nothing() -> None:
    states = []
    for balancer in ("fixed", "ratio"):
        torch.manual_seed(5)
        made = engine(balancer, dropout=0.3, accumulation=2)
        torch.manual_seed(6)
        made.train(batches(table(), [5, 5]), Duration(epochs=1))
        states.append((torch.get_rng_state(), figures(made)[0]))
    assert torch.equal(states[0][0], states[1][0])
    assert {n: states[1][1][n] for n in TERMS} == {n: states[0][1][n] for n in TERMS}


@pytest.mark.parametrize("balancer", ALL)
def test_halving_micro_batches_leaves_a_step_as_it_is(balancer: str) -> None:
    whole, halved = engine(balancer), engine(balancer, parts=2, split_when_full=True)
    for each in (whole, halved):
        each.train(batches(table(), [8] * 3), Duration(epochs=1))
    assert_same(student_of(halved), student_of(whole), atol=1e-6, rtol=1e-4)


# Going on


@pytest.mark.parametrize("balancer", ALL)
def test_a_training_goes_on_with_its_balancer_to_the_same_bit(balancer: str, tmp_path: Path) -> None:
    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.05)

    given = {"optimizer": adamw, "dropout": 0.2, "accumulation": 2, "checkpoint_due": lambda _step, _epoch: True}
    loader = batches(table(), [5, 4, 6, 5, 4, 6, 5, 5])
    torch.manual_seed(3)
    whole = engine(balancer, folder=tmp_path, **given)
    whole.train(loader, Duration(epochs=1))
    torch.manual_seed(4)
    again = engine(balancer, folder=tmp_path / "again", **given)
    again.load_state_dict(Checkpoints(tmp_path).load(2))
    again.train(loader, Duration(epochs=1))
    assert_same(again.learner.state_dict(), whole.learner.state_dict())
    if balancer in ("uncertainty", "gradnorm"):
        assert any(name.startswith("balancer.") for name in whole.learner.state_dict())


# Several processes


def of_two(rank: int) -> dict[str, Any]:
    """What each balancer comes to where each of two processes has every other row of each step."""
    return {balancer: of_processes(balancer, Processes.current()) for balancer in ALL}


def of_processes(balancer: str, processes: Processes, **settings: Any) -> dict[str, Any]:
    columns = table(48)
    rows = [
        {n: c[start : start + 8][processes.rank :: processes.count] for n, c in columns.items()}
        for start in range(0, 48, 8)
    ]
    made = engine(balancer, **settings)
    made.train(rows, Duration(epochs=1))
    return {**student_of(made), **{f"balancer.{n}": v.clone() for n, v in made.learner.balancer.state_dict().items()}}


def repeating_of_two(rank: int) -> dict[str, Any]:
    """The same where each process may halve its micro-batches."""
    return {b: of_processes(b, Processes.current(), parts=2, split_when_full=True) for b in ALL}


@pytest.mark.parametrize("function", [of_two, repeating_of_two])
def test_two_processes_balance_as_one_does(function: Callable[[int], dict[str, Any]], tmp_path: Path) -> None:
    first, second = in_each(function, tmp_path)
    for balancer in ALL:
        assert_same(first[balancer], second[balancer])
        assert_same(first[balancer], of_processes(balancer, Processes()), atol=1e-5, rtol=1e-4)


def in_parts_of_two(rank: int) -> dict[str, Any]:
    """What is learnt where each of two processes holds a part of the learner, and how gradients by a part are refused."""
    processes, found = Processes.current(), {}
    columns = table(48)
    for balancer in ("ratio", "uncertainty"):
        made = engine(balancer, in_parts=True)
        rows = [{n: c[i : i + 8][processes.rank :: 2] for n, c in columns.items()} for i in range(0, 48, 8)]
        made.train(rows, Duration(epochs=1))
        found[balancer] = {
            n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in made.learner.student.state_dict().items()
        }
    folder = films(Path(tempfile.mkdtemp()))
    config, registry = {**one_stage("gradnorm"), "fsdp": ["student"]}, build_registry()
    assembly = Assembly(parse_run_config(config, "config", registry), folder, registry, CPU, processes)
    return {
        **found,
        "refused": message(RequestError, lambda: engine("gradnorm", in_parts=True)),
        "told before": message(ConfigError, lambda: plan(assembly)),
    }


def test_learners_in_parts_are_balanced_as_whole_ones(tmp_path: Path) -> None:
    first, second = in_each(in_parts_of_two, tmp_path)
    for balancer in ("ratio", "uncertainty"):
        assert_same(first[balancer], second[balancer])
        whole = of_processes(balancer, Processes())
        assert_same(first[balancer], {n: whole[n] for n in first[balancer]}, atol=1e-5, rtol=1e-4)
    assert first["refused"] == (
        "the balancer GradNorm takes gradients by a weight of the student, of which each process has a part; do not shard the student, "
        "or take another balancer."
    )
    assert first["told before"] == (
        "config: stages[0].distillation.balancer: it takes gradients by a weight of the student, of which each process has a part; leave "
        '"student" out of fsdp, or take another balancer'
    )


# Under fp16, and compiled


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_of_each_term_go_through_a_compiled_student(backend: str) -> None:
    compiled, plain = (engine("gradnorm", optimizer=lambda p: torch.optim.SGD(p, lr=0.1)) for _ in range(2))
    options = Optimization.from_dict({"steps": 3, "compile": backend})
    with training_modes(compiled.learner.student, options, several_backward=True):
        compiled.train(batches(table(), [8] * 3), Duration(epochs=1))
    plain.train(batches(table(), [8] * 3), Duration(epochs=1))
    assert_same(compiled.learner.state_dict(), plain.learner.state_dict(), atol=1e-6, rtol=1e-5)
    assert compiled._gradients.balancing.state_dict() == {"place": "layers.0.weight"}


def test_the_scale_of_fp16_has_no_effect_on_the_norms_of_gradients() -> None:
    found = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=512.0)):
        made = learner_of("gradnorm")
        balancing = Balancing(made, Processes(), scaler)
        (batch,) = batches(table(), [8])
        taught = {"teacher": teacher().features(batch, made.needs.teacher("teacher"))}
        balancing.begin(START, WEIGHTS)
        given = made("", batch, taught, START, *balancing.asked)
        assert isinstance(given, Balanced)
        balancing.told(given, None, 1)
        found.append({name: norm.item() for name, norm in balancing._norms().items()})
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert set(found[0]) == set(TERMS)


# What is told of it


def test_a_term_of_weight_0_takes_no_part() -> None:
    config = DistillationConfig(**{**CONFIG, "kd_loss_weight": 0}, balancer="uncertainty")
    objective = Objective.from_config(config, default_registry())
    made = balancer_of(config, default_registry(), objective, General())
    assert made is not None
    assert made.terms == ("hard_label_loss", MATCH)


def test_a_term_whose_weight_is_0_for_now_stays_as_it_is() -> None:
    made = learner_of("uncertainty")
    assert made.balanced_terms({"kd_loss": 0.0, "hard_label_loss": 1.0}) == ("hard_label_loss", MATCH)


def test_ratio_leaves_terms_alone_that_have_nothing_to_be_scaled_by() -> None:
    made = Ratio(("a", "b", "c"))
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(0.0), "c": torch.tensor(-8.0)}
    factors = made(losses, START).factors
    assert {name: factor.item() for name, factor in factors.items()} == {"b": 1.0, "c": 0.25}
    assert made({"b": torch.tensor(1.0)}, START) == Balance({}, {})
    assert made({**losses, "a": torch.tensor(0.0)}, START).factors["c"].item() == 1.0


def test_gradnorm_keeps_factors_above_0_and_leaves_out_what_is_not_finite() -> None:
    made = GradNorm(("a", "b", "never"))
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    made.learn(losses, {"a": torch.tensor(math.inf), "b": torch.tensor(1.0)})
    assert made.factors.grad.tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        made.factors.copy_(torch.tensor([-5.0, 3.0, 1.0]))
    made.stepped()
    assert made.factors.tolist() == pytest.approx([2e-3 / 3.001, 6 / 3.001, 1.0])


class Unfit(nn.Module):
    """It is built as a balancer is, and is none."""

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("balancer", "expected"),
    [
        (
            {"name": "ratio", "reference": "kd"},
            "balancer: reference of the balancer `ratio` is 'kd', which is no term with a weight; expected one of kd_loss, "
            f"hard_label_loss, {MATCH}",
        ),
        (
            {"name": "uncertainty", "classification": ["labels"]},
            "balancer: classification of the balancer `uncertainty` is 'labels', which is no term with a weight; expected one of "
            f"kd_loss, hard_label_loss, {MATCH}",
        ),
        (Unfit, "balancer: `Unfit` is no brewer_core.Balancer"),
    ],
)
def test_a_balancer_that_cannot_be_made_is_refused(balancer: Any, expected: str) -> None:
    assert message(ConfigError, lambda: learner_of(balancer)) == f"DistillationConfig: {expected}"


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        (
            "layer.0",
            "the student has nothing that is trained called 'layer.0', which the balancer's option `shared` names; did you mean "
            "'layers.0' or 'layers.1'?",
        ),
        (
            "of_tokens",
            "the balancer takes gradients by of_tokens, on which the term `kd_loss` does not depend; name another parameter or module "
            "of the student in its option `shared`.",
        ),
    ],
)
def test_a_place_for_gradients_that_is_none_is_refused(shared: str, expected: str) -> None:
    made = engine({"name": "gradnorm", "shared": shared})
    told = message(RequestError, lambda: made.train(batches(table(), [8]), Duration(epochs=1)))
    assert told.startswith(expected)


def test_terms_without_a_weight_in_common_are_refused() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    losses = {name: layer(torch.ones(2)).sum() for name, layer in zip("ab", model, strict=True)}
    assert message(RequestError, lambda: last_of_all(model, losses)) == (
        "no weight of the student is one that all of a, b depend on; name a parameter or module of it in the balancer's option "
        "`shared`."
    )


def test_parameters_of_a_balancer_are_trained_without_weight_decay_at_their_own_rate() -> None:
    made = engine({"name": "uncertainty", "learning_rate": 0.3})
    (group,) = [
        g for g in made.optimizer.param_groups if any(p is made.learner.balancer.log_variances for p in g["params"])
    ]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.0)


class Halving(Balancer):
    """Halves every term."""

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Balance:
        return Balance({name: torch.tensor(0.5) for name in losses}, {})


def test_a_distiller_takes_a_balancer_and_keeps_what_it_has_learnt(tmp_path: Path) -> None:
    def trained(balancer: Any, times: int) -> GeneralDistiller:
        torch.manual_seed(0)
        made = GeneralDistiller(
            TrainingConfig(device="cpu", output_dir=str(tmp_path), log_dir=None),
            DistillationConfig(**CONFIG, balancer=balancer),
            Tiny(4, 3, seed=2),
            Tiny(4, 2, seed=1),
            adaptor(*FEATURES),
            adaptor(*FEATURES),
        )
        for _ in range(times):
            made.train(torch.optim.SGD(made.model_S.parameters(), lr=0.1), batches(table(), [8]), num_epochs=1)
        return made

    assert_same(weights(trained("fixed", 1).model_S), weights(trained(None, 1).model_S))
    assert not torch.equal(trained(Halving, 1).model_S.of_rows.weight, trained(None, 1).model_S.of_rows.weight)
    once, twice = trained("uncertainty", 1)._balancer, trained("uncertainty", 2)._balancer
    assert isinstance(once, Uncertainty)
    assert isinstance(twice, Uncertainty)
    assert 0 < once.log_variances.abs().min() < twice.log_variances.abs().max()


def test_the_default_of_a_balancer_defines_no_forward() -> None:
    with pytest.raises(NotImplementedError, match=r"^Balancer defines no forward$"):
        Balancer(("a",))({}, START)
    assert Fixed(("a",))({"a": torch.tensor(1.0)}, START) == Balance({}, {})


# Runs

pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def one_stage(balancer: Any, **more: Any) -> dict[str, Any]:
    match = {"layers": "last", "feature": "hidden", "loss": "hidden_mse", "weight": 0.5}
    distillation = {"kd_loss_type": "kl", "hard_label_weight": 1, "intermediate_matches": [match], "balancer": balancer}
    return document(
        models={"teacher": bert(16, 4, **STILL), "student": bert(8, 2, **STILL)},
        stages=[distill(distillation=distillation, training=training(log_every_steps=1, **more))],
    )


@pytest.mark.parametrize("balancer", [*ALL, {"name": "ratio", "reference": "hard_label_loss"}])
def test_explain_tells_the_total_that_is_trained_first(balancer: Any, tmp_path: Path) -> None:
    registry = build_registry()
    config = parse_run_config(one_stage(balancer), "config.json", registry)
    (stage,) = explain(Assembly(config, films(tmp_path), registry, CPU))
    (task,) = stage.tasks
    run_config(config, output=tmp_path / "run", base_dir=tmp_path, registry=registry, device="cpu")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert task.total == pytest.approx(first["total_loss"], rel=1e-4)
    assert stage.balancer is not None
    assert stage.balancer.name == (balancer if isinstance(balancer, str) else "ratio")
    assert stage.balancer_parameters == {"uncertainty": 4, "gradnorm": 4}.get(stage.balancer.name, 0)
    if balancer == "uncertainty":
        assert task.formula[0] == "1 * uncertainty(kl(student.logits, teacher.logits; T = 4))"
        assert [(term.balance.factor, term.balance.penalty) for term in task.terms if term.balance] == [(0.5, 0.0)] * 4


def test_explain_prints_the_balancer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("explain", write_config(films(tmp_path), one_stage("uncertainty"))) == 0
    printed = capsys.readouterr().out
    assert "balancer         uncertainty (brewer-core" in printed
    assert "; it trains 4 parameters" in printed
    assert ", balanced by 0.5, times 1 makes " in printed


def test_a_balancer_of_a_run_that_cannot_be_made_is_told_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(films(tmp_path), one_stage({"name": "ratio", "reference": "labels"}))
    assert brewer("run", config, "--dry-run") == 2
    assert "stages[0].distillation.balancer: reference of the balancer `ratio` is 'labels'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shared", "told"),
    [
        (
            "bert.encoder.layer.7",
            "the student has nothing that is trained called 'bert.encoder.layer.7', which the balancer's option `shared` names; did you "
            "mean 'bert.encoder.layer.1' or 'bert.encoder.layer.0'?",
        ),
        (
            "classifier",
            "the balancer takes gradients by classifier, on which the term `hidden_hidden_mse_1_3` does not depend; name another parameter "
            "or module of the student in its option `shared`",
        ),
    ],
)
def test_gradients_that_cannot_be_taken_are_told_before_a_run_trains(
    shared: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(films(tmp_path), one_stage({"name": "gradnorm", "shared": shared}))
    assert brewer("run", config, "--dry-run") == 2
    assert capsys.readouterr().err == f"brewer: error: config: stages[0].distillation.balancer: {told}\n"
