"""Golden curves: the losses of short seeded trainings, step by step, as they were when `tests/golden` was written.

A change that is meant to change no number changes none here. Where one is meant to, write them anew and say why in the commit:
`python tests/test_golden_curves.py --write`.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from brewer_builtins.adaptors import TextClassification
from brewer_builtins.strategies import General, MultiTask, MultiTeacher, Supervised
from brewer_core import DistillationConfig, Features, ModelInfo, Strategy, default_registry
from brewer_core.config.optimization import OptimizerConfig, ScheduleConfig
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective
from brewer_core.run.optimization import make_optimizer, make_schedule
from brewer_core.teachers import LiveTeacher
from tiny import CountingAdaptor, Tiny, batches, table

GOLDEN = Path(__file__).parent / "golden"
STEPS = 12
CPU = torch.device("cpu")
ALL = frozenset({"logits", "hidden", "attention"})
Curve = list[dict[str, float]]


class Recorder(Listener):
    """The figures of every step, but for how long it took."""

    def __init__(self) -> None:
        self.curve: Curve = []

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        del step
        self.curve.append({name: value for name, value in sorted(values.items()) if name != "steps_per_s"})


def filled(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights that depend on their names alone, not on how a library draws them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def bert(width: int, layers: int, seed: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
    }
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}
    config = transformers.BertConfig(vocab_size=20, num_labels=4, **sizes, **still)
    return filled(transformers.BertForSequenceClassification(config), seed)


STEADY = {"options": {"eps": 1e-3}}
"""For AdamW, whose usual eps makes steps of the rounding in gradients that are 0: those of keys' biases."""
ASKED = {"output_hidden_states": True, "output_attentions": True}


def texts(sizes: list[int], seed: int = 3) -> list[dict[str, torch.Tensor]]:
    """Batches for a BERT, some of whose rows have no label."""
    columns = table(sum(sizes), seed=seed)
    labels = columns["labels"].where(torch.arange(sum(sizes)) % 5 > 0, -100)
    return batches({"input_ids": columns["ids"], "attention_mask": columns["mask"], "labels": labels}, sizes)


def train(
    student: nn.Module,
    adapt: Any,
    strategy: Strategy,
    loader: Any,
    *,
    teachers: Mapping[str, LiveTeacher] | None = None,
    tasks: Mapping[str, tuple[str, ...]] | None = None,
    sample: Any = None,
    distillation: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    optimizer: Mapping[str, Any] | None = None,
    schedule: str = "linear",
    settings: Mapping[str, Any] | None = None,
) -> Curve:
    """Train for some steps as a run does, on batches as they stand here; the figures of each step."""
    recorder, teachers = Recorder(), dict(teachers or {})
    objective = Objective(None)
    if distillation is not None:
        infos = {
            name: ModelInfo.of(name, teacher.features(sample, ALL), tasks=(tasks or {}).get(name, ()))
            for name, teacher in teachers.items()
        }
        first = next(iter(adapt.values())) if isinstance(adapt, Mapping) else adapt
        with torch.no_grad():
            own = ModelInfo.of("student", Features.of(first(sample, student(**sample, **(arguments or {})))))
        objective = Objective.from_config(DistillationConfig(**distillation), default_registry(), own, infos)
        strategy.build(own, infos)
    filled(objective, 7)
    learner = Learner(student, adapt, objective, strategy, arguments=arguments)
    config = OptimizerConfig.from_dict({"learning_rate": 0.01, **(optimizer or {})})
    Engine(
        learner.train(),
        make_optimizer(config, student),
        device=CPU,
        teachers=teachers,
        schedule=lambda made: make_schedule(ScheduleConfig(name=schedule), made, STEPS),
        settings=Settings(
            log_every_steps=1, **{"max_grad_norm": 1.0, "loss_normalization": "step", **(settings or {})}
        ),
        listeners=[recorder],
        generator=numpy.random.default_rng(5),
    ).train(loader, Duration(steps=STEPS))
    return recorder.curve


def match(layer_student: Any, layer_teacher: Any, loss: str, feature: str = "hidden", **more: Any) -> dict[str, Any]:
    return {
        "layer_S": layer_student,
        "layer_T": layer_teacher,
        "loss": loss,
        "feature": feature,
        "weight": 0.5,
        **more,
    }


def supervised_bert(**changes: Any) -> Curve:
    """Labels alone, some of them missing, under a cosine; two micro-batches of unequal size in a step."""
    settings = {"accumulation": 2}
    loader = texts([4, 6, 3, 5])
    return train(
        bert(16, 2, 1),
        TextClassification(),
        Supervised(),
        loader,
        optimizer=STEADY,
        schedule="cosine",
        settings=settings,
        **changes,
    )


def general_bert(**changes: Any) -> Curve:
    """Logits, labels, hidden states through a projection, and attention, under schedules of weights."""
    loader = texts([4, 6, 3, 5])
    teacher = LiveTeacher(bert(24, 3, 2), TextClassification(), CPU, arguments=ASKED)
    distillation = {
        "temperature": 4,
        "kd_loss_type": "kl",
        "kd_loss_weight_scheduler": "linear_decay",
        "hard_label_weight": 0.5,
        "hard_label_weight_scheduler": "linear_growth",
        "intermediate_matches": [
            match(1, 2, "hidden_mse", proj="linear"),
            match(0, 1, "attention_mse", "attention"),
            match([1, 2], [1, 3], "nst"),
        ],
    }
    return train(
        bert(16, 2, 1),
        TextClassification(),
        General(),
        loader,
        teachers={"teacher": teacher},
        sample=loader[0],
        distillation=distillation,
        arguments=ASKED,
        optimizer=STEADY,
        settings={"accumulation": 2},
        **changes,
    )


FEATURES = ("row_logits", "hidden", "attention", "losses", "labels", "mask")


def tiny_teacher(seed: int, *features: str, width: int = 6) -> LiveTeacher:
    return LiveTeacher(filled(Tiny(width, 3), seed), CountingAdaptor(*(features or FEATURES)), CPU)


def general_as_textbrewer(**changes: Any) -> Curve:
    """TextBrewer's mean of micro-batches' means, a temperature that follows the logits, plain gradient descent."""
    loader = batches(table(), [8, 5, 7])
    distillation = {
        "temperature": 2,
        "temperature_scheduler": ["flsw", 1, 2],
        "kd_loss_type": "ce",
        "hard_label_weight": 1,
        "probability_shift": True,
        "intermediate_matches": [
            match([1, 2], [1, 3], "fsp", proj=["relu", 4, 6]),
            match(2, 3, "cos", proj=["tanh", 4, 6]),
        ],
    }
    return train(
        filled(Tiny(4, 2), 1),
        CountingAdaptor(*FEATURES),
        General(),
        loader,
        teachers={"teacher": tiny_teacher(2)},
        sample=loader[0],
        distillation=distillation,
        optimizer={"name": "sgd", "momentum": 0.9, "learning_rate": 0.05},
        schedule="one_cycle",
        settings={"accumulation": 2, "loss_normalization": "micro_batch", "max_grad_norm": None},
        **changes,
    )


def multi_teacher(**changes: Any) -> Curve:
    """The mean of two teachers' probabilities, and a match with the second."""
    loader = batches(table(), [8, 5, 7])
    return train(
        filled(Tiny(4, 2), 1),
        CountingAdaptor(*FEATURES),
        MultiTeacher(average="probabilities"),
        loader,
        teachers={"first": tiny_teacher(2), "second": tiny_teacher(3, width=8)},
        sample=loader[0],
        distillation={
            "temperature": 3,
            "kd_loss_type": "kl",
            "hard_label_weight": 0.3,
            "intermediate_matches": [match(2, 3, "hidden_mse", proj="linear", teacher=1)],
        },
        settings={"accumulation": 2},
        **changes,
    )


def multi_task(**changes: Any) -> Curve:
    """Two tasks, drawn by the size of their data, each with its teacher."""
    loaders = {"topic": batches(table(seed=3), [8, 5, 7, 6]), "mood": batches(table(seed=4), [7, 9])}
    adapt = {task: CountingAdaptor("row_logits", "losses", "labels", "mask") for task in loaders}
    teachers = {"first": tiny_teacher(2, "row_logits"), "second": tiny_teacher(3, "row_logits")}
    return train(
        filled(Tiny(4, 2), 1),
        adapt,
        MultiTask(tau=0.5),
        loaders,
        teachers=teachers,
        tasks={"first": ("topic",), "second": ("mood",)},
        sample=loaders["topic"][0],
        distillation={"temperature": 2, "kd_loss_type": "ce", "hard_label_weight": 1},
        settings={"accumulation": 2},
        **changes,
    )


CURVES: dict[str, Callable[..., Curve]] = {
    made.__name__: made for made in (supervised_bert, general_bert, general_as_textbrewer, multi_teacher, multi_task)
}


def written(curve: Curve) -> str:
    """A curve as JSON, a step a line, in as many digits as float32 has."""
    steps = [json.dumps({name: float(f"{value:.8g}") for name, value in figures.items()}) for figures in curve]
    return "[\n" + ",\n".join(steps) + "\n]\n"


def golden(name: str) -> Curve:
    curve: Curve = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return curve


def differences(curve: Curve, expected: Curve) -> Iterator[str]:
    """The figures that are not those expected, by step and name.

    abs: what float32 rounds off a KL of nearly equal distributions, which is a small difference of large numbers.
    """
    for step, (found, wanted) in enumerate(zip(curve, expected, strict=True), start=1):
        for name in sorted(found.keys() | wanted.keys()):
            value, target = found.get(name), wanted.get(name)
            if value is None or target is None or value != pytest.approx(target, rel=1e-5, abs=2e-6):
                yield f"step {step}, {name}: {value} in place of {target}"


@pytest.mark.parametrize("name", CURVES)
def test_a_training_gives_the_losses_that_it_gave(name: str) -> None:
    assert list(differences(CURVES[name](), golden(name))) == []


def test_a_learning_rate_that_is_a_thousandth_higher_shows() -> None:
    found = list(differences(multi_teacher(optimizer={"learning_rate": 0.01001}), golden("multi_teacher")))
    assert any("total_loss" in difference for difference in found)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    GOLDEN.mkdir(exist_ok=True)
    for title, made in CURVES.items():
        (GOLDEN / f"{title}.json").write_text(written(made()), encoding="utf-8")
