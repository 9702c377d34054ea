"""Optimizers, schedules, checkpointed gradients and torch.compile in a run: as torch and transformers have them, or refused."""

from __future__ import annotations

import copy
import io
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.optim import lr_scheduler
from transformers import BertConfig, BertForSequenceClassification
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from brewer_core.captures import capturing
from brewer_core.config import parse_run_config
from brewer_core.config.optimization import Optimization, OptimizerConfig, ScheduleConfig
from brewer_core.errors import ConfigError
from brewer_core.features import Features
from brewer_core.plugins import build_registry
from brewer_core.run import run_config
from brewer_core.run.by_name import REFUSED_SCHEDULES
from brewer_core.run.optimization import check_training, make_optimizer, make_schedule
from brewer_core.run.training_modes import training_modes
from runs import bert, distill, document, films, read, supervised, training, weights_in
from tiny import Tiny, assert_same, batches, table, weights

STEPS = 20
TEXTS = {
    "input_ids": torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}
LABELS = torch.tensor([0, 1])


def optimizer(**options: Any) -> OptimizerConfig:
    return OptimizerConfig.from_dict(options)


def schedule(**options: Any) -> ScheduleConfig:
    return ScheduleConfig.from_dict(options)


def tiny_bert(seed: int = 0, dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return BertForSequenceClassification(
        BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    )


def groups(model: nn.Module, **decays: float) -> list[dict[str, Any]]:
    """Matrices and vectors, which decay as given, in torch's own form."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decays.get("matrices", 0.01)},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": decays.get("vectors", 0.0)},
    ]


def trained(model: nn.Module, made: torch.optim.Optimizer, steps: int = 5) -> dict[str, Tensor]:
    """The weights after some steps on gradients that are the same for every optimizer."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        made.step()
    return weights(model)


def problems(action: Callable[[], Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action()
    return list(caught.value.problems)


# Optimizers


def matrix_and_vector() -> nn.Module:
    return nn.ParameterList([torch.ones(3, 2), torch.ones(2)])


OPTIMIZERS: list[tuple[dict[str, Any], type, dict[str, Any]]] = [
    ({}, torch.optim.AdamW, {}),
    ({"name": "adam"}, torch.optim.Adam, {}),
    ({"name": "sgd", "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    ({"name": "AdamW", "options": {"betas": [0.8, 0.9], "amsgrad": True}}, torch.optim.AdamW, {"betas": (0.8, 0.9), "amsgrad": True}),
    ({"name": "torch.adamw", "fused": True}, torch.optim.AdamW, {"fused": True}),
    ({"name": "sgd", "fused": False, "options": {"nesterov": False}}, torch.optim.SGD, {"fused": False}),
    ({"name": "radam", "options": {"decoupled_weight_decay": True}}, torch.optim.RAdam, {"decoupled_weight_decay": True}),
    ({"name": "RMSprop", "momentum": 0.5}, torch.optim.RMSprop, {"momentum": 0.5}),
    ({"name": "adafactor"}, torch.optim.Adafactor, {}),
    ({"name": "transformers.adafactor"}, transformers.Adafactor, {"relative_step": False}),
    (
        {"name": "transformers.Adafactor", "options": {"scale_parameter": False, "beta1": 0.9}},
        transformers.Adafactor,
        {"relative_step": False, "scale_parameter": False, "beta1": 0.9},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "cls", "settings"), OPTIMIZERS, ids=lambda case: str(case)[:60])
def test_an_optimizer_by_name_is_that_of_its_library(
    config: dict[str, Any], cls: type, settings: dict[str, Any]
) -> None:
    ours, theirs = matrix_and_vector(), matrix_and_vector()
    made = make_optimizer(optimizer(**config, learning_rate=0.02), ours)
    assert type(made) is cls
    expected = cls(groups(theirs), lr=0.02, **settings)
    assert made.defaults == expected.defaults
    assert_same(trained(ours, made), trained(theirs, expected))


@pytest.mark.parametrize(
    "name", ["ASGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "Adam", "SGD"]
)
def test_every_optimizer_of_torch_that_a_run_can_use_trains(name: str) -> None:
    model = matrix_and_vector()
    made = make_optimizer(optimizer(name=name.upper()), model)
    assert type(made) is getattr(torch.optim, name)
    assert all(not torch.equal(tensor, torch.ones_like(tensor)) for tensor in trained(model, made).values())


def test_matrices_of_a_bert_decay_and_its_biases_and_norms_do_not() -> None:
    model = tiny_bert()
    decaying, spared = make_optimizer(optimizer(weight_decay=0.3), model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decaying["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert [names[id(p)] for p in decaying["params"]] == [n for n, p in model.named_parameters() if p.dim() > 1]
    assert [names[id(p)] for p in spared["params"]] == [
        n for n in names.values() if n.endswith("bias") or ".LayerNorm." in n
    ]


class Odd(nn.Module):
    """What the rule "vectors are spared" has wrong: a norm and a bias of two dimensions; and a weight of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 1)
        self.norm = nn.LayerNorm((2, 3))
        self.rms = nn.RMSNorm((2, 3))
        self.bias = nn.Parameter(torch.zeros(2, 3))
        self.head = nn.Linear(1, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_norms_and_biases_of_two_dimensions_are_spared_and_shared_weights_are_there_once() -> None:
    model = Odd()
    decaying, spared = make_optimizer(optimizer(), model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decaying["params"]] == ["embedding.weight"]
    assert {names[id(p)] for p in spared["params"]} == {"norm.weight", "norm.bias", "rms.weight", "bias", "gain"}


def test_everything_decays_where_nothing_is_to_be_spared() -> None:
    model = matrix_and_vector()
    (group,) = make_optimizer(optimizer(no_decay="none", weight_decay=0.3), model).param_groups
    assert (group["weight_decay"], len(group["params"])) == (0.3, 2)
    expected = matrix_and_vector()
    theirs = torch.optim.AdamW(expected.parameters(), lr=1e-3, weight_decay=0.3)
    assert_same(
        trained(model, make_optimizer(optimizer(no_decay="none", weight_decay=0.3), model)), trained(expected, theirs)
    )


KNOWN = (
    "ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop, Rprop, SGD, transformers.Adafactor"
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "adamv"}, [f"o.name: no optimizer is called 'adamv'; did you mean 'Adam' or 'AdamW'? Known: {KNOWN}"]),
        ({"name": "lion"}, [f"o.name: no optimizer is called 'lion'; known: {KNOWN}"]),
        ({"name": "Optimizer"}, [f"o.name: no optimizer is called 'Optimizer'; known: {KNOWN}"]),
        (
            {"name": "LBFGS"},
            ["o.name: 'LBFGS' computes the loss several times in a step, and a run computes it once; take another optimizer"],
        ),
        (
            {"name": "torch.SparseAdam"},
            ["o.name: 'torch.SparseAdam' trains with sparse gradients alone, and those of a run are dense; take another optimizer"],
        ),
        ({"name": "muon"}, ["o.name: 'muon' trains matrices alone, and a model has vectors too; take another optimizer"]),
        (
            {"name": "radam", "fused": True, "options": {"beta": [0.9, 0.9], "lr": 1, "momentum": 0.9}},
            [
                "o.options.beta: RAdam has no such option; did you mean 'betas'?",
                "o.options.lr: give it as the optimizer's `learning_rate`",
                "o.options.momentum: RAdam has no such option; known: betas, capturable, decoupled_weight_decay, eps, foreach, maximize",
                "o.fused: RAdam has no fused form; leave it out",
            ],
        ),
        (
            {"options": {"weight_decay": 1, "differentiable": True}},
            [
                "o.options.weight_decay: give it beside `options`, as the optimizer's `weight_decay`",
                "o.options.differentiable: a run does not differentiate through its steps",
            ],
        ),
        ({"options": {"betas": [2, 0]}}, ["o: AdamW refuses its settings: Invalid beta parameter at index 0: 2"]),
        ({"options": {"eps": "x"}}, ["o: AdamW refuses its settings: '<=' not supported between instances of 'float' and 'str'"]),
        (
            {"name": "transformers.Adafactor", "options": {"relative_step": True}},
            ["o: transformers.Adafactor refuses its settings: Cannot combine manual `lr` and `relative_step=True` options"],
        ),
    ],
)  # fmt: skip
def test_an_optimizer_that_cannot_be_is_refused_with_its_path(config: dict[str, Any], expected: list[str]) -> None:
    assert problems(lambda: make_optimizer(optimizer(**config), matrix_and_vector(), "o")) == expected


def test_without_transformers_there_are_torchs_optimizers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.optimization", None)
    assert type(make_optimizer(optimizer(name="radam"), matrix_and_vector())) is torch.optim.RAdam
    (problem,) = problems(lambda: make_optimizer(optimizer(name="lion"), matrix_and_vector(), "o"))
    assert problem == f"o.name: no optimizer is called 'lion'; known: {KNOWN.removesuffix(', transformers.Adafactor')}"


# Schedules


def rates(made: lr_scheduler.LRScheduler, on: torch.optim.Optimizer, steps: int = STEPS) -> list[float]:
    """The learning rate of every step."""
    found = []
    for _ in range(steps):
        found.append(on.param_groups[0]["lr"])
        on.step()
        made.step()
    return found


def adam(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.Adam(matrix_and_vector().parameters(), lr=lr)


def rates_of(config: ScheduleConfig) -> list[float]:
    on = adam()
    return rates(make_schedule(config, on, STEPS), on)


def test_brewers_own_schedules_are_what_they_were() -> None:
    rising = [(step + 1) / 3 for step in range(2)]  # 0.1 of 20 steps
    share = [step / 18 for step in range(18)]
    expected = {
        "constant": rising + [1.0] * 18,
        "linear": rising + [1 - s for s in share],
        "cosine": rising + [(1 + math.cos(math.pi * s)) / 2 for s in share],
    }
    for name, factors in expected.items():
        for given in ({"name": name}, {"name": name.upper(), "warmup": 0.1}):
            assert rates_of(schedule(**given)) == pytest.approx([0.1 * factor for factor in factors])
    assert rates_of(schedule(name="linear", warmup=0)) == pytest.approx([0.1 * (1 - step / 20) for step in range(20)])
    assert rates_of(ScheduleConfig()) == rates_of(schedule(name="linear", warmup=0.1))


def test_one_cycle_is_torchs_with_its_peak_at_the_end_of_the_warm_up() -> None:
    on = adam()
    theirs = lr_scheduler.OneCycleLR(on, max_lr=0.1, total_steps=STEPS + 1, pct_start=0.3)
    assert rates_of(schedule(name="one_cycle", warmup=0.3)) == rates(theirs, on)


Maker = Callable[[torch.optim.Optimizer], Any]


def hf(name: str, warmup_steps: int = 0, **options: Any) -> Maker:
    return lambda made: transformers.get_scheduler(name, made, warmup_steps, STEPS, options)


SCHEDULES: list[tuple[dict[str, Any], Maker]] = [
    ({"name": "StepLR", "options": {"step_size": 3}}, lambda o: lr_scheduler.StepLR(o, 3)),
    ({"name": "torch.exponentiallr", "options": {"gamma": 0.9}}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ({"name": "CosineAnnealingLR"}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
    ({"name": "CosineAnnealingLR", "options": {"T_max": 5, "eta_min": 0.01}}, lambda o: lr_scheduler.CosineAnnealingLR(o, 5, 0.01)),
    ({"name": "CosineAnnealingWarmRestarts", "options": {"T_0": 4}}, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4)),
    ({"name": "MultiStepLR", "options": {"milestones": [3, 8]}}, lambda o: lr_scheduler.MultiStepLR(o, [3, 8])),
    ({"name": "PolynomialLR", "options": {"power": 2.0}}, lambda o: lr_scheduler.PolynomialLR(o, power=2.0)),
    ({"name": "LinearLR"}, lr_scheduler.LinearLR),
    ({"name": "ConstantLR", "warmup": 0}, lr_scheduler.ConstantLR),
    ({"name": "CyclicLR", "options": {"base_lr": 0.01, "step_size_up": 4}}, lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 4)),
    ({"name": "OneCycleLR", "options": {"pct_start": 0.5}}, lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS, pct_start=0.5)),
    ({"name": "constant_with_warmup"}, hf("constant_with_warmup", 2)),
    ({"name": "transformers.constant"}, hf("constant")),
    ({"name": "transformers.linear", "warmup": 0.2}, hf("linear", 4)),
    ({"name": "Transformers.Cosine"}, hf("cosine", 2)),
    ({"name": "cosine_with_restarts", "options": {"num_cycles": 3}}, hf("cosine_with_restarts", 2, num_cycles=3)),
    ({"name": "polynomial", "options": {"power": 2.0}}, hf("polynomial", 2, power=2.0)),
    ({"name": "inverse_sqrt", "warmup": 0.5}, hf("inverse_sqrt", 10)),
    ({"name": "cosine_with_min_lr", "options": {"min_lr": 0.01}}, hf("cosine_with_min_lr", 2, min_lr=0.01)),
    ({"name": "cosine_warmup_with_min_lr", "options": {"min_lr_rate": 0.1}}, hf("cosine_warmup_with_min_lr", 2, min_lr_rate=0.1)),
    ({"name": "warmup_stable_decay", "options": {"num_decay_steps": 5}}, hf("warmup_stable_decay", 2, num_decay_steps=5)),
]  # fmt: skip
each_schedule = pytest.mark.parametrize(
    ("config", "theirs"), SCHEDULES, ids=[str(config["name"]) for config, _ in SCHEDULES]
)


@each_schedule
def test_a_schedule_by_name_is_that_of_its_library(config: dict[str, Any], theirs: Maker) -> None:
    on = adam()
    assert rates_of(schedule(**config)) == rates(theirs(on), on)


OWN: list[tuple[dict[str, Any], Maker]] = [
    ({"name": name}, lr_scheduler.LRScheduler) for name in ("constant", "linear", "cosine", "one_cycle")
]


@pytest.mark.parametrize("config", [config for config, _ in [*SCHEDULES, *OWN]], ids=lambda config: str(config["name"]))
def test_a_schedule_goes_on_from_a_state_that_was_read_as_plain_values(config: dict[str, Any]) -> None:
    on = adam()
    made = make_schedule(schedule(**config), on, STEPS)
    whole = rates(made, on, 7)
    file = io.BytesIO()
    torch.save({"optimizer": on.state_dict(), "schedule": made.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = adam()
    resumed = make_schedule(schedule(**config), again, STEPS)
    again.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["schedule"])
    assert whole + rates(resumed, again, STEPS - 7) == rates_of(schedule(**config))


def test_every_schedule_of_both_libraries_is_compared_or_refused() -> None:
    compared = {str(config["name"]).lower().rpartition(".")[2] for config, _ in SCHEDULES}
    classes = {
        name.lower()
        for name, own in vars(lr_scheduler).items()
        if name != "LRScheduler"
        and name[0] != "_"
        and isinstance(own, type)
        and issubclass(own, lr_scheduler.LRScheduler)
    }
    assert (classes | {kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION}) - compared - set(REFUSED_SCHEDULES) == set()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "steplr"}, ["s.options.step_size: StepLR requires it"]),
        (
            {"name": "StepLR", "warmup": 0.1, "options": {"step_sise": 2}},
            [
                "s.options.step_sise: StepLR has no such option; did you mean 'step_size'?",
                "s.options.step_size: StepLR requires it",
                "s.warmup: StepLR has no warm-up; leave it out, or take a schedule that has one",
            ],
        ),
        ({"options": {"power": 1}}, ["s.options: the schedule 'linear' has none"]),
        (
            {"name": "polynomial", "options": {"num_warmup_steps": 3, "num_training_steps": 5}},
            [
                "s.options.num_warmup_steps: give it beside `options`, as the schedule's `warmup`, a share of the steps",
                "s.options.num_training_steps: it is known to the run; leave it out",
            ],
        ),
        ({"name": "OneCycleLR", "options": {"total_steps": 3}}, ["s.options.total_steps: it is known to the run; leave it out"]),
        (
            {"name": "cosine_with_min_lr"},
            ["s: cosine_with_min_lr refuses its settings: One of min_lr or min_lr_rate should be set through the `lr_scheduler_kwargs`"],
        ),
        (
            {"name": "ReduceLROnPlateau"},
            ["s.name: 'ReduceLROnPlateau' moves with a metric, and the rate of a run moves with its steps; take another schedule"],
        ),
        (
            {"name": "reduce_lr_on_plateau"},
            ["s.name: 'reduce_lr_on_plateau' moves with a metric, and the rate of a run moves with its steps; take another schedule"],
        ),
        ({"name": "LambdaLR"}, ["s.name: 'LambdaLR' is made of functions, which a config cannot hold; take another schedule"]),
        ({"name": "SequentialLR"}, ["s.name: 'SequentialLR' is made of other schedules, and a stage has one; take another schedule"]),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused_with_its_path(config: dict[str, Any], expected: list[str]) -> None:
    assert problems(lambda: make_schedule(schedule(**config), adam(), STEPS, "s")) == expected


def test_a_schedule_of_no_library_is_refused_with_the_names_of_all() -> None:
    (problem,) = problems(lambda: make_schedule(schedule(name="polynomal"), adam(), STEPS, "s"))
    assert problem.startswith(
        "s.name: no schedule is called 'polynomal'; did you mean 'polynomial' or 'PolynomialLR'? Known: "
    )
    known = problem.partition("Known: ")[2].split(", ")
    assert {"constant", "linear", "cosine", "one_cycle", "StepLR", "inverse_sqrt", "transformers.linear"} <= set(known)
    assert not {"ReduceLROnPlateau", "LambdaLR", "greedy", "LRScheduler"} & set(known)


# Checked when a run is planned


def test_settings_that_are_refused_at_the_first_step_are_found_before_it() -> None:
    of_text = Optimization.from_dict(
        {
            "steps": 5,
            "schedule": {"name": "StepLR", "options": {"step_size": "x"}},
            "optimizer": {"options": {"maximize": "x"}},
        }
    )
    (problem,) = problems(lambda: check_training(of_text, Tiny(4, 1, seed=0), 5, "t"))
    assert problem.startswith(
        "t.schedule: StepLR refuses its settings: unsupported operand type(s) for %: 'int' and 'str'"
    )


def test_checking_a_training_draws_nothing_and_changes_nothing() -> None:
    config = Optimization.from_dict({"steps": 5, "gradient_checkpointing": True, "compile": "eager"})
    model = tiny_bert()
    before, drawn = weights(model), torch.get_rng_state()
    check_training(config, model, 5, "t")
    assert_same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not in_modes(model)


def test_every_problem_of_a_training_is_told_at_once_before_anything_is_written(tmp_path: Path) -> None:
    wrong = training(
        optimizer={"name": "adamv"},
        schedule={"name": "StepLR"},
        compile="inducter",
        gradient_checkpointing=True,
    )
    config = parse_run_config(document(stages=[supervised(), distill(training=wrong)]), "config.json")
    found = problems(
        lambda: run_config(config, base_dir=films(tmp_path), output=tmp_path / "out", registry=build_registry())
    )
    assert [problem.partition(";")[0] for problem in found] == [
        "stages[1].training.optimizer.name: no optimizer is called 'adamv'",
        "stages[1].training.schedule.options.step_size: StepLR requires it",
        "stages[1].training.compile: torch has no backend 'inducter'",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "shown"), [(1, "1"), ("", '""'), (["inductor"], '["inductor"]'), (None, "null")])
def test_compile_is_a_boolean_or_a_name(value: Any, shown: str) -> None:
    (problem,) = problems(lambda: Optimization.from_dict({"steps": 1, "compile": value}))
    assert problem == f"compile: expected true, false or the name of a backend, not {shown}"


# Gradient checkpointing and torch.compile


def modes(**options: Any) -> Optimization:
    return Optimization.from_dict({"steps": 1, **options})


def in_modes(model: nn.Module) -> list[str]:
    """What is switched on in a model; transformers' own hooks for hidden states stay on its layers."""
    found = ["compiled"] if model._compiled_call_impl is not None else []
    found += [name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)]
    return found + [name for name, module in model.named_modules() if module._forward_hooks and "embedding" in name]


def gradients(model: nn.Module, config: Optimization, captured: str) -> dict[str, Tensor]:
    """The gradients of a loss on logits, hidden states and what an inner module returned."""
    model.train()
    model.zero_grad()
    with training_modes(model, config), capturing(model, [captured], "student") as capture:
        output = model(**TEXTS, labels=LABELS, output_hidden_states=True)
        (inner,) = capture.added_to(Features.of({"logits": output.logits}, "x"))[captured]
        (output.loss + output.hidden_states[1].square().mean() + inner.square().sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


MODES = [
    {"gradient_checkpointing": True},
    {"compile": "eager"},
    {"compile": "aot_eager"},
    {"gradient_checkpointing": True, "compile": "aot_eager"},
]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, of both modes at once
@pytest.mark.parametrize("options", MODES, ids=str)
def test_gradients_are_the_same_under_every_mode_also_those_of_captures(options: dict[str, Any]) -> None:
    captured = "module:bert.encoder.layer.1.output.dense"
    model = tiny_bert()
    expected = gradients(model, modes(), captured)
    assert_same(gradients(model, modes(**options), captured), expected, atol=1e-6)
    assert not in_modes(model)


def test_a_checkpointed_layer_is_computed_again_in_the_backward_pass() -> None:
    model, calls = tiny_bert().train(), []
    model.bert.encoder.layer[0].output.dense.register_forward_pre_hook(lambda *_: calls.append(1))
    for options, expected in (({}, 1), ({"gradient_checkpointing": True}, 2)):
        calls.clear()
        with training_modes(model, modes(**options)):
            model(**TEXTS, labels=LABELS).loss.backward()
        assert len(calls) == expected


def test_dropout_is_drawn_once_for_a_layer_that_is_computed_twice() -> None:
    found = []
    for options in ({}, {"gradient_checkpointing": True}):
        model = tiny_bert(dropout=0.3)
        torch.manual_seed(5)
        found.append(gradients(model, modes(**options), "module:bert.encoder.layer.1.output.dense"))
    assert_same(found[1], found[0], atol=1e-6)


@pytest.mark.parametrize("options", MODES[:2], ids=str)
def test_modes_are_undone_where_the_training_fails(options: dict[str, Any]) -> None:
    model = tiny_bert()

    def fail() -> None:
        with training_modes(model, modes(**options)):
            assert in_modes(model)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not in_modes(model)


def test_what_the_maker_of_a_model_switched_on_stays_on() -> None:
    model = tiny_bert()
    model.compile(backend="eager")
    model.bert.encoder.layer[1].gradient_checkpointing = True
    compiled = model._compiled_call_impl
    with training_modes(model, modes(gradient_checkpointing=True, compile="aot_eager")):
        assert model._compiled_call_impl is not compiled
    assert model._compiled_call_impl is compiled
    assert model.bert.encoder.layer[1].gradient_checkpointing


def test_a_compiled_model_keeps_the_names_of_its_weights_and_can_be_copied() -> None:
    model = tiny_bert()
    names = list(model.state_dict())
    with training_modes(model, modes(compile="eager")):
        assert list(model.state_dict()) == names
        assert copy.deepcopy(model)._compiled_call_impl is None


def test_teachers_are_compiled_with_the_student_and_not_afterwards() -> None:
    student, first, second = tiny_bert(), tiny_bert(), tiny_bert()
    second.compile(backend="eager")
    own = second._compiled_call_impl
    with training_modes(student, modes(compile="aot_eager"), teachers=[first, second, first, student]):
        assert in_modes(student) == in_modes(first) == ["compiled"]
        assert second._compiled_call_impl is not own
    assert not in_modes(student) + in_modes(first)
    assert second._compiled_call_impl is own


def test_teachers_run_as_they_are_where_nothing_is_compiled() -> None:
    teacher = tiny_bert()
    with training_modes(tiny_bert(), modes(gradient_checkpointing=True), teachers=[teacher]):
        assert not in_modes(teacher)


@pytest.mark.parametrize("captured", [[], ["module:layers.0", "module:layers.1"]])
def test_a_whole_graph_notes_what_its_modules_return_in_every_step(captured: list[str]) -> None:
    found = []
    for options in ({}, {"compile": "aot_eager"}):
        model, losses = Tiny(4, 2, seed=1), []
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        with training_modes(model, modes(**options)):
            for batch in batches(table(), [5] * 4):
                with capturing(model, captured, "student") as capture:
                    output = model(**batch)
                features = capture.added_to(Features.of({"logits": output["row_logits"]}, "x"))
                loss = output["loss"] + sum(features[name][0].square().mean() for name in captured)
                loss.backward()
                steps.step()
                steps.zero_grad()
                with torch.no_grad():
                    losses += [loss.item(), model.eval()(**batch)["loss"].item()]
                model.train()
        found.append(losses)
    assert found[1] == pytest.approx(found[0], abs=1e-6)


@pytest.mark.parametrize("model", [Tiny(4, 1, seed=0), transformers.DistilBertForSequenceClassification])
def test_a_model_without_gradient_checkpointing_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(model, nn.Module):
        monkeypatch.setattr(model, "supports_gradient_checkpointing", False)
        model = model(transformers.DistilBertConfig(vocab_size=9, dim=4, n_layers=1, n_heads=1, hidden_dim=4))
    (problem,) = problems(lambda: check_training(modes(gradient_checkpointing=True), model, 1, "stages[0].training"))
    assert problem == (
        f"stages[0].training.gradient_checkpointing: {type(model).__name__} has no gradient checkpointing; leave it out"
    )


def test_a_backend_that_torch_does_not_have_is_refused() -> None:
    found = [
        problems(lambda b=b: check_training(modes(compile=b), Tiny(4, 1, seed=0), 1, "t")) for b in ("inducter", "x")
    ]  # type: ignore[misc]
    assert found[0] == ["t.compile: torch has no backend 'inducter'; did you mean 'inductor'?"]
    assert found[1][0].startswith("t.compile: torch has no backend 'x'; known: ")


# Whole runs


def distilled(folder: Path, name: str, **options: Any) -> tuple[Mapping[str, Any], Path]:
    """A run that distils logits and a hidden layer into a student without dropout, in batches of one length."""
    match = {
        "layer_T": 1,
        "layer_S": 1,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 1,
        "proj": ["linear", 8, 16],
    }
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    stage = distill(
        unlabelled=[],
        distillation={"kd_loss_type": "kl", "hard_label_weight": 1, "intermediate_matches": [match]},
        training=training(steps=4, batch_size=2, **options),
    )
    config = document(
        models={"teacher": bert(16, 1), "student": bert(8, 1, **still)},
        stages=[stage],
        evaluation={"data": "films", "every_steps": 2},
        tokenizer={"from": "train", "max_length": 4, "vocab_size": 80},  # each text has more tokens
    )
    parsed = parse_run_config(config, "config.json")
    return run_config(parsed, base_dir=folder, output=folder / name, registry=build_registry()), folder / name


def test_a_run_under_a_mode_leaves_what_a_plain_run_leaves(tmp_path: Path) -> None:
    films(tmp_path)
    _, plain = distilled(tmp_path, "plain")
    expected = read(plain / "summary.json")["student"]["metrics"]
    for options in ({"gradient_checkpointing": True}, {"compile": "eager"}):
        summary, folder = distilled(tmp_path, next(iter(options)), **options)
        assert_same(weights_in(folder / "student"), weights_in(plain / "student"), atol=1e-5)
        assert summary["student"]["metrics"] == expected


def test_a_run_with_options_of_both_libraries_trains(tmp_path: Path) -> None:
    films(tmp_path)
    options = {
        "optimizer": {"name": "radam", "learning_rate": 0.01, "options": {"betas": [0.9, 0.98]}, "no_decay": "none"},
        "schedule": {"name": "cosine_with_restarts", "options": {"num_cycles": 2}},
        "checkpoint_every_steps": 4,
    }
    summary, folder = distilled(tmp_path, "out", **options)
    assert summary["student"]["steps"] == 4
    again = read(folder / "config.json")["stages"][0]["training"]
    assert again["optimizer"] == {"weight_decay": 0.01, "momentum": 0.0, "fused": None} | options["optimizer"]
    assert again["schedule"] == {"warmup": None} | options["schedule"]
    state = torch.load(folder / "stages/distil/checkpoints/step-4/state.pt", weights_only=True)
    assert state["scheduler"]["last_epoch"] == 4
