"""The conformance suite is tested itself: for each property of each kind a component that is wrong in that alone."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from brewer_core import (
    Balance,
    Balancer,
    Counts,
    LoadedModel,
    Needs,
    RequestError,
    ShapeError,
    SparseLogits,
    Strategy,
    component,
)
from brewer_core.components import KINDS, Component
from brewer_core.testing.report import CLASSES, conformance_of, outcomes

Wrong = tuple[str, str, Any]
WRONG: list[Wrong] = []
RIGHT: dict[str, list[Any]] = {kind: [] for kind in KINDS}


def right(kind: str) -> Callable[[Any], Any]:
    """This component keeps all that its kind promises."""

    def add(implementation: Any) -> Any:
        RIGHT[kind].append(implementation)
        return implementation

    return add


def wrong(kind: str, name: str) -> Callable[[Any], Any]:
    """This component breaks one property of its kind."""

    def add(implementation: Any) -> Any:
        WRONG.append((kind, name, implementation))
        return implementation

    return add


def failures(kind: str, implementation: Any) -> dict[str, str]:
    """The properties that fail, each with its reason."""
    tested = conformance_of(Component.passed(kind, implementation))
    return {o.property: o.reason or "" for o in outcomes(tested) if o.result == "failed"}


# kd losses


def beside(temperature: Any) -> Any:
    return temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature


def same_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError("these are other classes.")


@right("kd_loss")
@component(over="logits", claims=("t_squared",))
def squared(student, teacher, temperature):
    same_classes(student, teacher)
    distances = (student - teacher.detach()).square().mean(-1)
    return distances.sum() / max(1, len(distances))


@right("kd_loss")
def of_rows(student, teacher, temperature):
    return squared(student, teacher, temperature)


@right("kd_loss")
@component(over="logits")
def masked(student, teacher, temperature, *, mask):
    return squared(student[mask], teacher[mask], temperature)


@wrong("kd_loss", "scalar")
@component(over="logits")
def kd_of_one_element(student, teacher, temperature):
    return squared(student, teacher, temperature)[None]


@wrong("kd_loss", "identity")
@component(over="logits")
def kd_away_from_the_teacher(student, teacher, temperature):
    return squared(student, teacher + 0.5, temperature)


@wrong("kd_loss", "identity")
@component(over="logits")
def kd_greatest_at_the_teacher(student, teacher, temperature):
    return -squared(student, teacher, temperature)


@wrong("kd_loss", "padding_invariance")
@component(over="rows")
def kd_over_padding(student, teacher, temperature, *, mask):
    return squared(student.flatten(0, 1), teacher.flatten(0, 1), temperature)


@wrong("kd_loss", "batch_split")
@component(over="logits")
def kd_with_a_value_that_grows(student, teacher, temperature):
    return squared(student, teacher, temperature) + 0.01 * len(student)


@wrong("kd_loss", "accumulation")
@component(over="logits")
def kd_with_the_gradient_of_a_sum(student, teacher, temperature):
    mean = squared(student, teacher, temperature)
    return mean.detach() + len(student) * (mean - mean.detach())


@wrong("kd_loss", "gradient_to_student")
@component(over="logits")
def kd_without_gradient(student, teacher, temperature):
    return squared(student.detach(), teacher, temperature)


@wrong("kd_loss", "no_gradient_to_teacher")
@component(over="logits")
def kd_that_trains_the_teacher(student, teacher, temperature):
    return squared(student, teacher, temperature) + 0.0 * student.sum() + 1e-3 * (teacher - teacher.detach()).sum()


@wrong("kd_loss", "fully_masked")
@component(over="logits")
def kd_mean_of_nothing(student, teacher, temperature):
    same_classes(student, teacher)
    return (student - teacher.detach()).square().mean()


@wrong("kd_loss", "extreme_values")
@component(over="logits")
def kd_log_of_softmax(student, teacher, temperature):
    same_classes(student, teacher)
    p, q = ((t / beside(temperature)).softmax(-1) for t in (teacher.detach(), student))
    losses = (p * (p.log() - q.log())).sum(-1)
    return losses.sum() / max(1, len(losses))


@wrong("kd_loss", "bf16")
@component(over="logits")
def kd_that_cancels(student, teacher, temperature):
    same_classes(student, teacher)
    return squared(student * 512 + 512 - student * 511, teacher * 512 + 512 - teacher * 511, temperature)


@wrong("kd_loss", "deterministic")
@component(over="logits")
def kd_with_noise(student, teacher, temperature):
    return squared(student, teacher, temperature) * (1 + 1e-5 * torch.rand(()))


@wrong("kd_loss", "inputs_unchanged")
@component(over="logits")
def kd_in_place(student, teacher, temperature):
    loss = squared(student, teacher, temperature)
    teacher.data.mul_(1.01)
    return loss


@wrong("kd_loss", "wrong_width")
@component(over="logits")
def kd_of_any_width(student, teacher, temperature):
    width = min(student.shape[-1], teacher.shape[-1])
    return squared(student[..., :width], teacher[..., :width], temperature)


@wrong("kd_loss", "wrong_width")
@component(over="logits")
def kd_with_an_error_of_torch(student, teacher, temperature):
    distances = (student - teacher.detach()).square().mean(-1)
    return distances.sum() / max(1, len(distances))


@wrong("kd_loss", "temperature_by_position")
@component(over="logits")
def kd_with_a_number_for_temperature(student, teacher, temperature):
    return squared(student, teacher, temperature) / float(temperature)


@wrong("kd_loss", "t_squared")
@component(over="logits", claims=("t_squared",))
def kd_without_t_squared(student, teacher, temperature):
    return squared(student / beside(temperature), teacher / beside(temperature), temperature)


@right("kd_loss")
@component(over="logits", sparse=True)
def divergence(student, teacher, temperature):
    same_classes(student, teacher)
    if isinstance(teacher, SparseLogits):
        log_p, log_q = teacher.compared_with(student, temperature)
    else:
        log_p, log_q = ((t / beside(temperature)).log_softmax(-1) for t in (teacher.detach(), student))
    losses = (log_p.exp() * torch.where(log_p == -math.inf, 0, log_p - log_q)).sum(-1)
    return losses.sum() / max(1, len(losses))


@right("kd_loss")
@component(over="logits", sparse=True)
def divergence_of_the_most_likely(student, teacher, temperature):
    if isinstance(teacher, SparseLogits) and teacher.kept.kind == "sampled":
        raise RequestError("draws are not enough for this loss.")
    return divergence(student, teacher, temperature)


@wrong("kd_loss", "sparse_teacher")
@component(over="logits", sparse=True)
def kd_of_log_probabilities_for_logits(student, teacher, temperature):
    dense = student.new_full(student.shape, -30.0)
    if isinstance(teacher, SparseLogits):
        teacher = dense.scatter(-1, teacher.indices, teacher.logits.clamp(min=-30))
    return squared(student, teacher, temperature)


@wrong("kd_loss", "sparse_teacher")
@component(over="logits", sparse=True)
def kd_without_the_gradient_of_sparse_logits(student, teacher, temperature):
    if isinstance(teacher, SparseLogits):
        whole = divergence(student, teacher, temperature)
        return whole.detach() + 0.5 * (whole - whole.detach())
    return divergence(student, teacher, temperature)


@wrong("kd_loss", "sparse_teacher")
@component(over="logits", sparse=True)
def kd_infinite_without_the_others(student, teacher, temperature):
    loss = divergence(student, teacher, temperature)
    some = isinstance(teacher, SparseLogits) and teacher.kept.count < student.shape[-1]
    return loss / 0.0 if some else loss


def standard(logits):
    deviation = logits.std(-1, keepdim=True)
    return (logits - logits.mean(-1, keepdim=True)) / torch.where(deviation < 1e-6, 1, deviation)


@right("kd_loss")
@component(over="logits", claims=("standardise",))
def squared_of_standard_scores(student, teacher, temperature, *, standardise: bool = False):
    if standardise and student.shape[-1] == teacher.shape[-1]:
        student, teacher = standard(student), standard(teacher)
    return squared(student, teacher, temperature)


@wrong("kd_loss", "standardise")
@component(over="logits", claims=("standardise",))
def kd_that_only_subtracts_the_mean(student, teacher, temperature, *, standardise: bool = False):
    if standardise:
        student, teacher = (t - t.mean(-1, keepdim=True) for t in (student, teacher))
    return squared(student, teacher, temperature)


@wrong("kd_loss", "standardise")
@component(over="logits", claims=("standardise",))
def kd_that_divides_by_a_deviation_of_0(student, teacher, temperature, *, standardise: bool = False):
    if standardise:
        student, teacher = ((t - t.mean(-1, keepdim=True)) / t.std(-1, keepdim=True) for t in (student, teacher))
    return squared(student, teacher, temperature)


@right("kd_loss")
@component(over="logits", claims=("vocabulary_padding",))
def divergence_of_what_is_possible(student, teacher, temperature):
    return divergence(student, teacher, temperature)


@wrong("kd_loss", "vocabulary_padding")
@component(over="logits", claims=("vocabulary_padding",))
def kd_mean_over_classes(student, teacher, temperature):
    return squared(student.clamp(min=-50), teacher.clamp(min=-50), temperature)


@wrong("kd_loss", "sparse_teacher")
@component(over="logits", sparse=lambda kept, options: "takes none of them")
def kd_that_takes_what_it_refuses(student, teacher, temperature):
    return divergence(student, teacher, temperature)


# match losses


def same_width(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError("these are other widths.")


def over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean() if mask is None else torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


@right("match_loss")
@component(over="tokens")
def states(student, teacher, mask=None):
    same_width(student, teacher)
    return over_tokens((student - teacher.detach()).square().mean(-1), mask)


@right("match_loss")
@component(over="token_pairs")
def attention(student, teacher, mask=None):
    if student.shape != teacher.shape or student.dim() != 4:
        raise ShapeError("these are other tokens.")
    distances = (student - teacher.detach()).square().mean(1)
    if mask is None:
        return distances.mean()
    pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
    return torch.where(pairs, distances, 0).sum() / pairs.sum().clamp(min=1)


@right("match_loss")
@component(over="tokens")
def pairs(student, teacher, mask=None):
    (first, last), (taught_first, taught_last) = student, teacher
    return states(last - first, taught_last - taught_first, mask)


@right("match_loss")
@component(over=lambda counts: counts.tokens)
class Scaled(nn.Module):
    def __init__(self, *, student_dim: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.rand(student_dim))

    def forward(self, student, teacher, mask=None):
        same_width(student, teacher)
        return over_tokens(((student - teacher.detach()).square() * self.factors).mean(-1), mask)


@right("match_loss")
@component(over="batch")
def relations(student, teacher, mask=None):
    """Relational: defined on a batch as a whole."""
    same_width(student, teacher)
    own, taught = (
        t.mean(1) if mask is None else torch.where(mask.unsqueeze(-1), t, 0).sum(1) / mask.sum(1, True).clamp(min=1)
        for t in (student, teacher.detach())
    )
    return (own @ own.mT / own.shape[-1] - taught @ taught.mT / taught.shape[-1]).square().mean()


@wrong("match_loss", "scalar")
@component(over="tokens")
def match_of_one_element(student, teacher, mask=None):
    return states(student, teacher, mask)[None]


@wrong("match_loss", "scalar")
@component(over="tokens")
def match_that_needs_a_mask(student, teacher, mask=None):
    return states(student, teacher, mask & True)


@wrong("match_loss", "identity")
@component(over="tokens")
def match_away_from_the_teacher(student, teacher, mask=None):
    return states(student, teacher + 0.5, mask)


@wrong("match_loss", "padding_invariance")
@component(over="rows")
def match_over_padding(student, teacher, mask=None):
    return states(student, teacher)


@wrong("match_loss", "batch_split")
@component(over="tokens")
def match_with_a_value_that_grows(student, teacher, mask=None):
    return states(student, teacher, mask) + 0.01 * len(student)


@wrong("match_loss", "accumulation")
@component(over="tokens")
def match_with_the_gradient_of_a_sum(student, teacher, mask=None):
    mean = states(student, teacher, mask)
    return mean.detach() + len(student) * (mean - mean.detach())


@wrong("match_loss", "gradient_to_student")
@component(over="tokens")
def match_without_gradient(student, teacher, mask=None):
    return states(student.detach(), teacher, mask)


@wrong("match_loss", "no_gradient_to_teacher")
@component(over="tokens")
def match_that_trains_the_teacher(student, teacher, mask=None):
    same_width(student, teacher)
    return over_tokens((student - teacher).square().mean(-1), mask)


@wrong("match_loss", "fully_masked")
@component(over="tokens")
def match_mean_of_nothing(student, teacher, mask=None):
    same_width(student, teacher)
    distances = (student - teacher.detach()).square().mean(-1)
    return distances.mean() if mask is None else distances[mask].mean()


@wrong("match_loss", "fully_masked")
@component(over="batch")
def match_mean_of_an_empty_row(student, teacher, mask=None):
    same_width(student, teacher)
    distances = (student - teacher.detach()).square().mean(-1)
    return (distances if mask is None else torch.where(mask, distances, 0).sum(1) / mask.sum(1)).mean()


@wrong("match_loss", "extreme_values")
@component(over="tokens")
def match_of_zero_by_zero(student, teacher, mask=None):
    same_width(student, teacher)
    own, taught = (t / torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (student, teacher.detach()))
    return states(own, taught, mask)


@wrong("match_loss", "bf16")
@component(over="tokens")
def match_that_cancels(student, teacher, mask=None):
    return states(student * 512 + 512 - student * 511, teacher * 512 + 512 - teacher * 511, mask)


@wrong("match_loss", "deterministic")
@component(over="tokens")
def match_with_noise(student, teacher, mask=None):
    return states(student, teacher, mask) * (1 + 1e-5 * torch.rand(()))


@wrong("match_loss", "inputs_unchanged")
@component(over="tokens")
def match_in_place(student, teacher, mask=None):
    loss = states(student, teacher, mask)
    teacher.data.mul_(1.01)
    return loss


@wrong("match_loss", "wrong_width")
@component(over="tokens")
def match_with_an_error_of_torch(student, teacher, mask=None):
    return over_tokens((student - teacher.detach()).square().mean(-1), mask)


@wrong("match_loss", "over")
def match_that_declares_nothing(student, teacher, mask=None):
    return states(student, teacher, mask)


# Projections


class Layer(nn.Module):
    """A linear layer, with a change of what goes in and of what comes out."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim_in, dim_out)

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states)


right("projection")(Layer)


@right("projection")
def truncating(dim_in, dim_out):
    """Without weights."""
    return nn.ConstantPad1d((0, dim_out - dim_in), 0.0)


@wrong("projection", "shape")
def to_its_own_width(dim_in, dim_out):
    return Layer(dim_in, dim_in)


@wrong("projection", "dtype")
class ToFloat32(Layer):
    def forward(self, states):
        return self.inner(states).float()


@wrong("projection", "trained")
class Unregistered(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weights = [torch.randn(dim_in, dim_out, requires_grad=True)]

    def forward(self, states):
        return states @ self.weights[0].to(states.dtype)


@wrong("projection", "trained")
class Idle(Layer):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out)
        self.unused = nn.Linear(dim_in, dim_out)


@wrong("projection", "gradient_to_student")
class Detached(Layer):
    def forward(self, states):
        return self.inner(states.detach())


@wrong("projection", "seeded")
class OfEntropy(Layer):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out)
        self.inner.weight.data += torch.from_numpy(numpy.random.default_rng().normal(size=(dim_out, dim_in))).float()


@wrong("projection", "seeded")
def of_a_fixed_seed(dim_in, dim_out):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Layer(dim_in, dim_out)


@wrong("projection", "deterministic")
def with_dropout(dim_in, dim_out):
    return nn.Sequential(nn.Linear(dim_in, dim_out), nn.Dropout())


@wrong("projection", "inputs_unchanged")
class InPlace(Layer):
    def forward(self, states):
        states.data.mul_(1.01)
        return self.inner(states)


# Schedules


@right("weight_scheduler")
def falling(progress, *, step, total_steps):
    assert progress == step / total_steps
    return 1 - progress


@wrong("weight_scheduler", "a_number")
def a_tensor(progress):
    return torch.tensor(progress)


@wrong("weight_scheduler", "finite")
def infinite_at_the_start(progress):
    return 0.01 / progress if progress > 0.01 else math.inf


@wrong("weight_scheduler", "in_bounds")
def above_1(progress):
    return 1 + progress


CALLS = iter(range(10**9))


@wrong("weight_scheduler", "pure")
def of_calls(progress):
    return 1 / (1 + next(CALLS))


@right("temperature_scheduler")
def sharper(student, teacher, base, *, progress):
    return base - progress


@right("temperature_scheduler")
def by_confidence(student, teacher, base):
    return base - student.softmax(-1).amax(-1)


@wrong("temperature_scheduler", "shape")
def with_an_axis_of_classes(student, teacher, base):
    return by_confidence(student, teacher, base).unsqueeze(-1)


@wrong("temperature_scheduler", "finite")
def by_distance(student, teacher, base):
    return base / (student - teacher).square().mean(-1)


@wrong("temperature_scheduler", "in_bounds")
def below_0(student, teacher, base):
    return by_confidence(student, teacher, base) - base


@wrong("temperature_scheduler", "pure")
def at_random(student, teacher, base):
    return base + torch.rand(())


@right("temperature_scheduler")
@component(sparse=True)
def by_the_student(student, teacher, base):
    return by_confidence(student, teacher, base)


@wrong("temperature_scheduler", "sparse_teacher")
@component(sparse=True)
def by_what_is_kept(student, teacher, base):
    return base + (teacher.kept.count if isinstance(teacher, SparseLogits) else 0)


@wrong("temperature_scheduler", "inputs_unchanged")
def temperature_in_place(student, teacher, base):
    student.mul_(1.01)
    return base


# Adaptors


@right("adaptor")
class Classifier:
    def __call__(self, batch, outputs):
        return {
            "logits": outputs.logits,
            "hidden": outputs["hidden_states"],
            "inputs_mask": batch["attention_mask"],
            "labels": batch["labels"],
        }

    def counts(self, batch):
        lengths, rows = batch["attention_mask"].sum(1), len(batch["labels"])
        return Counts(rows, int(lengths.sum()), int(lengths.square().sum()), rows, int((batch["labels"] >= 0).sum()))


@right("adaptor")
def plain(batch, outputs):
    return {"logits": outputs.logits}


@wrong("adaptor", "shapes")
def of_fewer_rows(batch, outputs):
    return {"logits": outputs.logits, "hidden": [states[1:] for states in outputs.hidden_states]}


@wrong("adaptor", "shapes")
def of_flat_logits(batch, outputs):
    return {"logits": outputs.logits.flatten()}


@wrong("adaptor", "finite")
def of_infinite_logits(batch, outputs):
    return {"logits": outputs.logits / 0}


@wrong("adaptor", "idempotent")
def of_random_logits(batch, outputs):
    return {"logits": outputs.logits + torch.rand(())}


@wrong("adaptor", "inputs_unchanged")
def that_takes_out(batch, outputs):
    batch.pop("labels", None)
    return {"logits": outputs.logits}


@wrong("adaptor", "inputs_unchanged")
def that_scales(batch, outputs):
    if outputs.logits.max() < 100:
        outputs["logits"] *= 100
    return {"logits": outputs.logits}


@wrong("adaptor", "counts")
class Miscounting(Classifier):
    def counts(self, batch):
        return dataclasses.replace(super().counts(batch), tokens=batch["attention_mask"].numel())


# Strategies


class Plain(Strategy):
    def terms(self, task, student, teachers, objective, step):
        (teacher,) = teachers.values()
        return {
            **objective.kd_terms(student, teacher, step),
            **objective.match_terms(student, teachers, step),
            **objective.label_terms(student),
        }


right("strategy")(Plain)


@right("strategy")
class Counting(Plain):
    """With a state that its terms depend on."""

    def __init__(self) -> None:
        self.batches_seen = 0

    def terms(self, *given):
        self.batches_seen += 1
        return {**super().terms(*given), "own": given[1]["logits"][0].square().mean() * self.batches_seen}

    def state_dict(self):
        return {"batches_seen": self.batches_seen}

    def load_state_dict(self, state):
        self.batches_seen = state["batches_seen"]


@wrong("strategy", "needs")
class NeedsAList(Plain):
    def needs(self, objective):
        return Needs(["logits"], ["logits"])


@wrong("strategy", "build")
class BuildsADict(Plain):
    def build(self, student, teachers):
        return {}


@wrong("strategy", "scalar_terms")
class AnIntegerTerm(Plain):
    def terms(self, *given):
        return {**super().terms(*given), "count": torch.tensor(3)}


@wrong("strategy", "terms_named_once")
class TakesAName(Plain):
    def terms(self, task, student, teachers, objective, step):
        own = {"kd_loss": student["logits"][0].square().mean()}
        return {**super().terms(task, student, teachers, objective, step), **own}


@wrong("strategy", "same_names")
class NamesByValue(Plain):
    def terms(self, *given):
        own = given[1]["logits"][0].square().mean()
        return {**super().terms(*given), f"own {float(own.detach()):.3f}": own}


@wrong("strategy", "no_backward")
class CallsBackward(Plain):
    def terms(self, *given):
        terms = super().terms(*given)
        sum(terms.values()).backward(retain_graph=True)
        return terms


@wrong("strategy", "gradient_to_student")
class Detaches(Plain):
    def terms(self, *given):
        return {"own": given[1]["logits"][0].detach().square().mean().requires_grad_()}


@wrong("strategy", "no_gradient_to_teacher")
class TrainsTheTeacher(Plain):
    def terms(self, task, student, teachers, *given):
        (teacher,) = teachers.values()
        own = (student["hidden"][0] - teacher["hidden"][0]).square().mean()
        return {**super().terms(task, student, teachers, *given), "own": own}


@wrong("strategy", "inputs_unchanged")
class ChangesFeatures(Plain):
    def terms(self, task, student, *given):
        terms = super().terms(task, student, *given)
        student["logits"][0].data.mul_(1.01)
        return terms


@wrong("strategy", "resumable")
class Forgets(Counting):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@wrong("strategy", "resumable")
class KeepsAnObject(Counting):
    def state_dict(self):
        return {"path": Path("x")}


@wrong("strategy", "resumable")
class ForgetsItsFactor(Counting):
    def weights(self, step):
        return {"own": float(getattr(self, "asked", 1))}

    def terms(self, *given):
        self.asked = getattr(self, "asked", 1) + 1
        return super().terms(*given)


@wrong("strategy", "batches")
class SkipsABatch(Plain):
    def batches(self, loaders, generator):
        for batch in list(loaders)[1:]:
            yield "", batch


@wrong("strategy", "batches")
class DrawsOnItsOwn(Plain):
    several_tasks = True

    def batches(self, loaders, generator):
        while True:
            task = random.SystemRandom().choice(sorted(loaders))
            yield task, loaders[task][0]


# Models and data sets


def linear_model(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(3, 2, dtype=dtype)


def write(folder: Path) -> None:
    (folder / "model").write_text("weights")


@right("model")
def a_model(*, seed: int):
    return LoadedModel(linear_model(seed), None, write)


@wrong("model", "loaded")
def of_float64(*, seed: int):
    return LoadedModel(linear_model(seed, torch.float64), None, write)


@wrong("model", "seeded")
def of_entropy(*, seed: int):
    return LoadedModel(linear_model(int.from_bytes(os.urandom(4), "little")), None, write)


@wrong("model", "saved")
def that_writes_nothing(*, seed: int):
    return LoadedModel(linear_model(seed), None, lambda folder: None)


@wrong("model", "global_generators")
def that_seeds_all(*, seed: int):
    torch.manual_seed(seed)
    torch.rand(3)
    return LoadedModel(linear_model(seed), None, write)


@right("dataset")
def a_dataset(*, seed: int):
    drawn = random.Random(seed)
    return {"train": [{"text": str(drawn.random()), "label": "a"} for _ in range(5)], "test": [{"text": "b"}]}


@wrong("dataset", "splits")
def with_an_empty_split(*, seed: int):
    return {**a_dataset(seed=seed), "eval": []}


@wrong("dataset", "rows")
def with_other_columns(*, seed: int):
    return {"train": [{"text": "a"}, {"words": "b"}]}


@wrong("dataset", "seeded")
def of_any_seed(*, seed: int):
    return {"train": [{"text": str(random.SystemRandom().random())}]}


@wrong("dataset", "global_generators")
def that_draws_globally(*, seed: int):
    random.random()
    return a_dataset(seed=seed)


# Metrics and augmentations


@right("metric")
def share_right(predictions, references):
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


@right("metric")
def two_figures(predictions, references):
    return {"right": share_right(predictions, references), "rows": len(references)}


@wrong("metric", "numbers")
def of_a_tensor(predictions, references):
    return torch.tensor(share_right(predictions, references))


@wrong("metric", "order_of_rows")
def of_the_first(predictions, references):
    return (
        float(predictions[0]) + 2 * float(references[0]) + share_right(predictions, references) * (predictions[1] + 1)
    )


@wrong("metric", "pure")
def of_how_often(predictions, references):
    return 1 + 1e-12 * next(CALLS)


@wrong("metric", "inputs_unchanged")
def metric_in_place(predictions, references):
    share = share_right(predictions, references)
    predictions.sort()
    references.sort()
    return share


@right("metric")
def mean_loss(predictions, references, *, losses):
    return sum(losses) / len(references)


@wrong("metric", "order_of_rows")
def of_the_first_loss(predictions, references, *, losses):
    return losses[0]


@wrong("metric", "inputs_unchanged")
def metric_of_losses_in_place(predictions, references, *, losses):
    losses.sort()
    return sum(losses)


@right("augmentation")
def dropping(tokens, *, generator):
    return [token for token in tokens if generator.random() > 0.3]


@right("augmentation")
def reversing(tokens):
    return tokens[::-1]


@wrong("augmentation", "a_list")
def of_lengths(tokens):
    return [len(token) for token in tokens]


@wrong("augmentation", "short_texts")
def without_the_first(tokens):
    return [token for token in tokens if token != tokens[1]]


@wrong("augmentation", "seeded")
def of_its_own_generator(tokens):
    return dropping(tokens, generator=numpy.random.default_rng())


@wrong("augmentation", "global_generators")
def of_a_global_generator(tokens, *, generator):
    numpy.random.rand()
    return dropping(tokens, generator=generator)


@wrong("augmentation", "inputs_unchanged")
def augmentation_in_place(tokens):
    tokens.reverse()
    return list(tokens)


# Trackers


@right("tracker")
class Lines:
    def __init__(self, run_dir: Path, stage: str) -> None:
        self.file = (run_dir / "lines").open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self.file.close()


@wrong("tracker", "logs")
class OfFixedNames(Lines):
    def log(self, step, values):
        values["total_loss"]


@wrong("tracker", "without_stage")
class OfStages(Lines):
    def __init__(self, run_dir: Path, stage: str) -> None:
        self.initial = stage[0]
        super().__init__(run_dir, stage)


@wrong("tracker", "stages")
class Overwriting(Lines):
    def __init__(self, run_dir: Path, stage: str) -> None:
        self.file = (run_dir / "lines").open("w")
        self.file.write(f"{stage}\n")


@wrong("tracker", "figures_unchanged")
class Emptying(Lines):
    def log(self, step, values):
        super().log(step, values)
        values.clear()


@right("tracker")
class LinesThatGoOn(Lines):
    def __init__(self, run_dir: Path, stage: str) -> None:
        super().__init__(run_dir, stage)
        self.stage = stage

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")

    def flush(self) -> None:
        self.file.flush()

    def resume(self, step: int) -> None:
        self.file.flush()
        lines = Path(self.file.name).read_text().splitlines(keepends=True)
        self.file.truncate(0)
        self.file.writelines(line for line in lines if self.stays(json.loads(line), step))

    def stays(self, values: Mapping[str, Any], step: int) -> bool:
        return values["stage"] != self.stage or values["step"] <= step


@wrong("tracker", "resumable")
class LinesThatKeepAll(LinesThatGoOn):
    def stays(self, values, step):
        return True


@wrong("tracker", "resumable")
class LinesThatKeepNothing(LinesThatGoOn):
    def stays(self, values, step):
        return values["stage"] != self.stage


@wrong("tracker", "resumable")
class LinesOfAnyStage(LinesThatGoOn):
    def stays(self, values, step):
        return values["step"] == step


@wrong("tracker", "resumable")
class LinesThatEnd(LinesThatGoOn):
    def resume(self, step):
        super().resume(step)
        self.log = lambda *_: None


@wrong("tracker", "resumable")
class LinesThatCannotFlush(LinesThatGoOn):
    def flush(self):
        raise OSError("a stream that is closed")


# Balancers


@right("balancer")
class Halved(Balancer):
    def forward(self, losses, step):
        return Balance({name: torch.tensor(0.5) for name in losses}, {})


@right("balancer")
class Doubted(Balancer):
    def __init__(self, terms, *, start: float = 0.0):
        super().__init__(terms)
        self.doubts = nn.Parameter(torch.full((len(terms),), start))

    def forward(self, losses, step):
        own = {name: self.doubts[self.terms.index(name)] for name in losses}
        return Balance({name: (-doubt).exp() for name, doubt in own.items()}, own)


class Remembering(Balancer):
    def __init__(self, terms):
        super().__init__(terms)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, losses, step):
        return Balance(dict.fromkeys(losses, 1 / (1 + self.steps)), {})

    def learn(self, losses, norms):
        self.steps += 1


RIGHT["balancer"].append(Remembering)


@wrong("balancer", "scalars")
class OfEachRow(Halved):
    def forward(self, losses, step):
        return Balance({name: torch.tensor([0.5]) for name in losses}, {})


@wrong("balancer", "names")
class OfAllTerms(Halved):
    def forward(self, losses, step):
        return Balance({name: torch.tensor(0.5) for name in self.terms}, {})


@wrong("balancer", "finite")
class Dividing(Balancer):
    reads_losses = True

    def forward(self, losses, step):
        return Balance({name: 1 / loss.detach() for name, loss in losses.items()}, {})


@wrong("balancer", "finite")
class Reversing(Balancer):
    def forward(self, losses, step):
        return Balance({name: torch.tensor(-1.0) for name in losses}, {})


@wrong("balancer", "split")
class OfMicroBatches(Balancer):
    def forward(self, losses, step):
        return Balance({name: 1 / (1 + loss.detach()) for name, loss in losses.items()}, {})


@wrong("balancer", "pure")
class CountingCalls(Remembering):
    def forward(self, losses, step):
        self.steps += 1
        return Balance({name: torch.tensor(0.5) for name in losses}, {})


@wrong("balancer", "losses_detached")
class Following(Balancer):
    reads_losses = True

    def forward(self, losses, step):
        return Balance({name: 1 / (1 + loss) for name, loss in losses.items()}, {})


@wrong("balancer", "trains")
class Unlearning(Doubted):
    def forward(self, losses, step):
        made = super().forward(losses, step)
        return Balance({name: factor.detach() for name, factor in made.factors.items()}, {})


@wrong("balancer", "state")
class Forgetting(Balancer):
    def __init__(self, terms):
        super().__init__(terms)
        self.steps = 0

    def forward(self, losses, step):
        return Balance({name: torch.tensor(1 / (1 + self.steps)) for name in losses}, {})

    def learn(self, losses, norms):
        self.steps += 1


@wrong("balancer", "same_everywhere")
class Drawn(Remembering):
    def learn(self, losses, norms):
        self.steps += torch.rand(())


@wrong("balancer", "no_terms")
class OfTheFirst(Halved):
    def __init__(self, terms):
        super().__init__(terms)
        self.first = terms[0]


# The suite


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [(kind, each) for kind, implementations in RIGHT.items() for each in implementations],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_right_passes(kind: str, implementation: Any) -> None:
    assert failures(kind, implementation) == {}


@pytest.mark.parametrize(
    ("kind", "name", "implementation"), WRONG, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_what_is_wrong_is_caught_there_and_nowhere_else(kind: str, name: str, implementation: Any) -> None:
    found = failures(kind, implementation)

    assert set(found) == {name}, found
    assert "\n" not in found[name]


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_has_a_component_that_breaks_it(kind: str) -> None:
    assert {name for of_kind, name, _ in WRONG if of_kind == kind} == set(CLASSES[kind].properties())
