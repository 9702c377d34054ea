"""How far what is read from a cache is from what its teacher answers, and what that does to the student's gradient.

Shapes: B rows, L tokens of the longest row of a batch, V classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from brewer_core.batches import move_to_device
from brewer_core.cache import CachedTeacher, CacheFormat, chosen, packed
from brewer_core.cache.layout import Frame
from brewer_core.cache.rows import Rows
from brewer_core.cache.store import copied
from brewer_core.features import Features
from brewer_core.learner import Learner
from brewer_core.protocols import Batch, Step
from brewer_core.run.assembly import Assembly
from brewer_core.run.caching import Asked, batches_of
from brewer_core.run.lessons import Lesson
from brewer_core.teachers import evaluating


@dataclass(frozen=True)
class FeatureError:
    """The error of one feature over all layers.

    relative: the norm of the difference by that of the live feature. largest: the largest difference of two numbers.
    kl_mean, kl_max: of logits, KL(live || cached) of a position; None for others, and for logits of which only some are kept.
    """

    relative: float
    largest: float
    kl_mean: float | None = None
    kl_max: float | None = None


@dataclass(frozen=True)
class Fidelity:
    """What was measured on some rows, in other batches than those that the cache was built in.

    temperature: at which the divergences of logits are taken, the stage's. gradient: the norm of the difference between the
    student's gradients from cached and from live features, by that of the latter, on the first of the batches.
    terms: of that batch, each unweighted term of the stage from live and from cached features.
    """

    stage: str
    rows: int
    temperature: float
    features: Mapping[str, FeatureError]
    gradient: float
    terms: Mapping[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def measured(
    assembly: Assembly, stage: str, lesson: Lesson, asked: Asked, teacher: CachedTeacher, count: int
) -> Fidelity:
    """Compare a cache with its teacher on rows that the seed draws, `count` of them or all there are."""
    draws = random.Random(assembly.seed("fidelity", stage, asked.name))
    drawn = draws.sample(range(len(asked.rows)), min(count, len(asked.rows)))
    batches = [batch for _, batch in batches_of(asked, drawn, lesson.training.micro_batch_rows)]
    temperature, sums = lesson.learner.objective.temperature, dict[str, _Sums]()
    for batch in batches:
        rows = teacher.rows(batch)
        live = _unpadded(chosen(asked.teacher.features(batch, asked.needs), asked.needs), rows)
        kept = teacher.features(batch, asked.needs, rows)
        for name in live:
            sums.setdefault(name, _Sums()).add(name, live, kept, temperature)
    gradient, terms = _gradient_error(lesson, asked, teacher, batches[0], assembly.trying_device)
    features = {name: each.error() for name, each in sums.items() if each.compared}
    return Fidelity(stage, len(drawn), temperature, features, gradient, terms)


class _Sums:
    """What is summed of one feature over layers and batches."""

    def __init__(self) -> None:
        self.compared = False
        self._difference = self._norm = self._largest = 0.0
        self._divergences: list[Tensor] = []

    def add(self, name: str, live: Features, kept: Features, temperature: float) -> None:
        """Add the layers of a batch, as far as both sides have numbers there."""
        masks = live.get("logits_mask", ())
        for i, (own, read) in enumerate(zip(live[name], kept.get(name, ()), strict=False)):
            if not isinstance(own, Tensor) or not isinstance(read, Tensor) or not own.is_floating_point():
                continue
            own, read = own.double(), read.double()
            self.compared = True
            self._difference += float((read - own).square().sum())
            self._norm += float(own.square().sum())
            self._largest = max(self._largest, float((read - own).abs().max()))
            if name == "logits" and own.dim() > 1:
                mask = masks[i if len(masks) > 1 else 0] if masks else None
                self._divergences.append(_divergence(own, read, mask, temperature))

    def error(self) -> FeatureError:
        """The error over all of them."""
        relative = _ratio(math.sqrt(self._difference), math.sqrt(self._norm))
        if not self._divergences:
            return FeatureError(relative, self._largest)
        every = torch.cat(self._divergences)
        return FeatureError(relative, self._largest, float(every.mean()), float(every.max()))


def _divergence(live: Tensor, kept: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """[N]: KL(live || kept) of each position of [B, V] or [B, L, V] that the mask does not leave out."""
    expected, given = (live / temperature).log_softmax(-1), (kept / temperature).log_softmax(-1)
    each = (expected.exp() * (expected - given)).sum(-1).clamp(min=0)  # rounding gives less than 0
    return each[mask.bool()] if mask is not None and live.dim() == 3 else each.flatten()


def _unpadded(features: Features, rows: Rows) -> Features:
    """The features with zeros in all padding, as a cache gives them, and otherwise as they are."""
    layout, records = packed(features, rows, CacheFormat())
    frame = Frame(layout, rows)
    frame.read(lambda row, buffers: copied(records[row], buffers))
    return frame.features


def _gradient_error(
    lesson: Lesson, asked: Asked, teacher: CachedTeacher, batch: Batch, device: torch.device
) -> tuple[float, dict[str, tuple[float, float]]]:
    """The relative error of the student's gradient where this teacher alone is cached, and each term without and with that."""
    learner = lesson.learner
    names = learner.strategy.teachers_for(asked.task, tuple(lesson.asked))
    live = {name: lesson.asked[name].teacher.features(batch, learner.needs.teacher(name)) for name in names}
    kept = {**live, asked.name: teacher.features(batch, asked.needs)}
    own, step = move_to_device(batch, device), Step(0, lesson.total_steps)
    expected, terms = _gradient(learner, asked.task, own, live, step)
    given, terms_kept = _gradient(learner, asked.task, own, kept, step)
    error = _ratio(_norm([a - b for a, b in zip(given, expected, strict=True)]), _norm(expected))
    return error, {name: (terms[name], terms_kept[name]) for name in terms}


def _gradient(
    learner: Learner, task: str, batch: Batch, answers: Mapping[str, Features], step: Step
) -> tuple[list[Tensor], dict[str, float]]:
    """The gradient of the stage's total by the student's parameters, in eval mode, and the terms."""
    weights = learner.weights(step)
    parameters = [parameter for parameter in learner.student.parameters() if parameter.requires_grad]
    with evaluating(learner):
        losses: Mapping[str, Tensor] = learner(task, batch, answers, step)
        balanced = learner.balance(losses, learner.balanced_terms(weights), step).of(losses)
        total = sum((weights.get(name, 1.0) * loss for name, loss in balanced.items()), torch.zeros(()))
        found = torch.autograd.grad(total, parameters, allow_unused=True)
    gradients = [gradient.double() for gradient in found if gradient is not None]
    return gradients, {name: loss.item() for name, loss in losses.items()}


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def _ratio(difference: float, norm: float) -> float:
    """A relative error; 0 where there is no difference, whatever the norm."""
    return difference / norm if norm else math.inf if difference else 0.0
