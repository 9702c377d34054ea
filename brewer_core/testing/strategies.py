"""What strategies promise.

Shapes: B rows, L tokens, H heads, D width, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn

from brewer_core.features import Features
from brewer_core.protocols import ModelInfo, Needs, Step, Strategy
from brewer_core.sparse_logits import Kept
from brewer_core.testing.conformance import SEED, Conformance, does_not_apply, require
from brewer_core.testing.tensors import (
    CLASSES,
    HEADS,
    LENGTH,
    ROWS,
    WIDTH,
    close,
    finite,
    seeded_tensors,
    tensors_in,
    valid_tokens,
)

LAYERS = 3
STEP = Step(3, 10)
TASKS = ("first", "second")
DRAWN = 6


@dataclass
class Terms:
    """The terms of a config, as a strategy sees them: a loss between logits, one between hidden states, one on labels.

    Each term that was handed out is noted with a factor of 1 of its own, whose gradient tells whether the term was used.
    """

    temperature: float = 2.0
    given: list[tuple[str, Tensor]] = field(default_factory=list)

    def needs(self) -> Needs:
        """What its terms read."""
        read = frozenset({"logits", "hidden", "inputs_mask", "labels", "losses"})
        return Needs(read, read)

    def kd_terms(self, student: Features, teacher: Features, step: Step) -> Mapping[str, Tensor]:
        """The loss between the logits, where both have logits."""
        del step
        if "logits" not in student or "logits" not in teacher:
            return {}
        return self._noted("kd_loss", _distance(student["logits"][0], teacher["logits"][0]))

    def match_terms(
        self, student: Features, teachers: Features | Mapping[str, Features], step: Step
    ) -> Mapping[str, Tensor]:
        """The loss between the last hidden states of the student and of the first teacher."""
        del step
        teacher = teachers if isinstance(teachers, Features) else next(iter(teachers.values()), None)
        if teacher is None or "hidden" not in teacher:
            return {}
        return self._noted("match", _distance(student["hidden"][-1], teacher["hidden"][-1]))

    def label_terms(self, student: Features) -> Mapping[str, Tensor]:
        """The student's own loss."""
        return self._noted("hard_label_loss", student["losses"][0].mean()) if student.get("losses") else {}

    def refuses_sparse(self, kept: Kept) -> Sequence[str]:
        """Its loss between the logits needs all of them."""
        return [f"kd_loss_type: it needs all of the teacher's logits, and the cache keeps {kept}; keep them dense"]

    def _noted(self, name: str, value: Tensor) -> dict[str, Tensor]:
        factor = torch.ones((), requires_grad=True)
        self.given.append((name, factor))
        return {name: value * factor}


@dataclass
class _Lesson:
    """A strategy that is built, what it trains, and the leaves of its student's features and its teachers'."""

    strategy: Strategy
    parts: nn.Module | None
    objective: Terms
    student: list[Tensor]
    teachers: list[Tensor]
    terms: Mapping[str, Tensor]


class StrategyConformance(Conformance):
    """Properties of a strategy, built for models of one width, and asked for the terms of a batch.

    teachers: how many there are.
    """

    kind: ClassVar[str] = "strategy"
    teachers: ClassVar[int] = 1

    def student_features(self, seed: int = 1) -> dict[str, Any]:
        """The student's features, by name."""
        return _features(seed) | {"losses": [seeded_tensors(1, seed=seed).square().sum()]}

    def teacher_features(self, seed: int = 2) -> dict[str, Any]:
        """A teacher's features, by name."""
        return _features(seed)

    def test_needs(self) -> None:
        """It tells the features that it reads, as `Needs` of sets of names."""
        needs = self.made().needs(Terms())
        require(isinstance(needs, Needs), f"needs a {type(needs).__name__}; return brewer_core.Needs")
        sets = (needs.student, needs.every_teacher, *needs.by_teacher.values())
        require(all(isinstance(names, frozenset) for names in sets), "needs features that are no frozenset of names")

    def test_build(self) -> None:
        """It builds an nn.Module that is trained, or None."""
        parts = self.built()[1]
        require(parts is None or isinstance(parts, nn.Module), f"builds a {type(parts).__name__}; an nn.Module or None")

    def test_scalar_terms(self) -> None:
        """Every term is a finite floating-point number."""
        for name, value in self.lesson().terms.items():
            scalar = isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()
            require(scalar, f"gives the term `{name}` as {_kind_of(value)}; a term is a scalar tensor")
            require(finite(value), f"gives the term `{name}` as {float(value.detach())}")

    def test_terms_named_once(self) -> None:
        """Every term has a name of its own: none that the objective gave is lost under another of its name."""
        lesson = self.lesson()
        names = list(lesson.terms)
        require(all(isinstance(name, str) and name for name in names), f"names terms {names}; a name is a text")
        total = _total(lesson.terms)
        for name, factor in lesson.objective.given:
            if name in lesson.terms and not _reaches(total, factor):
                raise AssertionError(f"gives two terms the name `{name}`, and the objective's is lost")

    def test_same_names(self) -> None:
        """Every batch has the same terms."""
        first, second = self.lesson().terms, self.lesson(seed=5).terms
        require(
            list(first) == list(second), f"gives {', '.join(first)} for a batch and {', '.join(second)} for the next"
        )

    def test_no_backward(self) -> None:
        """It calls no backward: no gradient is there before the engine asks for one, and the graph is whole."""
        lesson = self.lesson()
        trained = [*lesson.student, *(lesson.parts.parameters() if lesson.parts else ())]
        require(all(leaf.grad is None for leaf in trained), "calls backward; the engine does")
        try:
            _total(lesson.terms).backward()  # type: ignore[no-untyped-call]  # torch's own
        except RuntimeError as error:
            raise AssertionError(f"leaves a graph without a gradient ({error}); the engine calls backward") from error

    def test_gradient_to_student(self) -> None:
        """Its terms reach the student."""
        lesson = self.lesson()
        total = _total(lesson.terms)
        require(any(_reaches(total, leaf) for leaf in lesson.student), "gives the student no gradient")

    def test_no_gradient_to_teacher(self) -> None:
        """No teacher gets a gradient, even where it would take one."""
        lesson = self.lesson()
        if not lesson.teachers:
            does_not_apply("it asks no teacher")
        total = _total(lesson.terms)
        for leaf in lesson.teachers:
            require(not _reaches(total, leaf), "gives a teacher a gradient; take `detach()` of its features")

    def test_inputs_unchanged(self) -> None:
        """Features are left as they were."""
        lesson = self.lesson()
        before = tensors_in([self.student_features(), *self._taught(lesson.strategy, 1).values()])
        same = all(torch.equal(a, b) for a, b in zip(before, [*lesson.student, *lesson.teachers], strict=True))
        require(same, "changes features in place; make new tensors")

    def test_resumable(self) -> None:
        """What it keeps between batches is in its state, of plain values and tensors: another one goes on from there."""
        first = self.lesson()
        state = io.BytesIO()
        torch.save(dict(first.strategy.state_dict()), state)
        state.seek(0)
        try:
            read = torch.load(state, weights_only=True)
        except Exception as error:
            raise AssertionError(
                f"has a state that is no plain values and tensors ({error})".partition("\n")[0]
            ) from error
        strategy, parts = self.built()
        if isinstance(parts, nn.Module) and isinstance(first.parts, nn.Module):
            parts.load_state_dict(first.parts.state_dict())
        strategy.load_state_dict(read)
        resumed, expected = (
            self._asked(s, p, seed=5).terms for s, p in ((strategy, parts), (first.strategy, first.parts))
        )
        for name, value in expected.items():
            same = name in resumed and close(value, resumed[name])
            require(same, f"gives another `{name}` after its state was saved and loaded")
        factors = [dict(each.weights(STEP)) for each in (strategy, first.strategy)]
        require(factors[0] == factors[1], "gives other factors of its terms after its state was saved and loaded")

    def test_batches(self) -> None:
        """It yields batches with their tasks: each of one loader once, or of a mapping as its seed draws them."""
        strategy = self.built()[0]
        if strategy.several_tasks:
            loaders: Any = {task: [f"{task} {i}" for i in range(3)] for task in TASKS}
            drawn = [_first(strategy.batches(loaders, numpy.random.default_rng(SEED))) for _ in range(2)]
            require(
                drawn[0] == drawn[1], "draws other batches from the same seed; draw from the generator that it is given"
            )
            known = all(batch in loaders.get(task, ()) for task, batch in drawn[0])
            require(known, f"yields {drawn[0]}; expected pairs of a task and a batch of its loader")
        else:
            found = list(strategy.batches(["a", "b", "c"], numpy.random.default_rng(SEED)))
            require(
                [batch for _, batch in found] == ["a", "b", "c"], f"yields {found}; expected each batch once, in order"
            )

    def made(self) -> Strategy:
        """The strategy with its options."""
        strategy = self.bound()()
        require(isinstance(strategy, Strategy), f"makes a {type(strategy).__name__}; subclass brewer_core.Strategy")
        return strategy  # type: ignore[no-any-return]  # the line above sees to it

    def built(self) -> tuple[Strategy, nn.Module | None]:
        """The strategy, and what it trains, drawn from a seed."""
        strategy = self.made()
        student = ModelInfo.of("student", Features.of(self.student_features()))
        taught = Features.of(self.teacher_features())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            parts = strategy.build(student, {name: ModelInfo.of(name, taught) for name in self._names()})
        return strategy, parts

    def lesson(self, seed: int = 1) -> _Lesson:
        """The strategy, built and asked for the terms of a batch."""
        return self._asked(*self.built(), seed)

    def _asked(self, strategy: Strategy, parts: nn.Module | None, seed: int) -> _Lesson:
        objective, own = Terms(), _leaves(self.student_features(seed))
        taught = {name: _leaves(features) for name, features in self._taught(strategy, seed).items()}
        given = {name: Features.of(features) for name, features in taught.items()}
        terms = strategy.terms(self._task(strategy), Features.of(own), given, objective, STEP)
        require(isinstance(terms, Mapping) and bool(terms), f"gives {_kind_of(terms)}; terms are a mapping by name")
        return _Lesson(strategy, parts, objective, tensors_in(own), tensors_in(taught), dict(terms))

    def _taught(self, strategy: Strategy, seed: int) -> dict[str, dict[str, Any]]:
        asked = strategy.teachers_for(self._task(strategy), self._names())
        return {name: self.teacher_features(seed + 1 + i) for i, name in enumerate(asked)}

    def _names(self) -> Sequence[str]:
        return [f"teacher{i}" for i in range(self.teachers)]

    def _task(self, strategy: Strategy) -> str:
        return TASKS[0] if strategy.several_tasks else ""


def _features(seed: int) -> dict[str, Any]:
    return {
        "logits": [seeded_tensors(ROWS, CLASSES, seed=seed)],
        "hidden": [seeded_tensors(ROWS, LENGTH, WIDTH, seed=10 * seed + i) for i in range(LAYERS)],
        "attention": [
            seeded_tensors(ROWS, HEADS, LENGTH, LENGTH, seed=20 * seed + i).softmax(-1) for i in range(LAYERS - 1)
        ],
        "inputs_mask": [valid_tokens()],
        "labels": [torch.arange(ROWS) % CLASSES],
    }


def _leaves(features: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """The same features, of which those of floating-point numbers take a gradient."""
    return {
        name: [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors_in(value)]
        for name, value in features.items()
    }


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _reaches(total: Tensor, leaf: Tensor) -> bool:
    """Whether a total has a gradient to a tensor."""
    if not total.requires_grad or not leaf.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(total, [leaf], retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.any())


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.detach()).square().mean()


def _first(batches: Any) -> list[Any]:
    return [next(batches) for _ in range(DRAWN)]


def _kind_of(value: Any) -> str:
    return f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
