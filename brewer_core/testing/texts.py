"""What metrics and augmentations promise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy

from brewer_core.protocols import Task
from brewer_core.testing.conformance import SEED, Conformance, does_not_apply, require
from brewer_core.testing.sources import global_generators

PREDICTIONS = (0, 1, 1, 0, 1, 0, 0, 1)
REFERENCES = (0, 1, 0, 0, 1, 1, 0, 1)
LOSSES = (0.25, 0.5, 1.75, 0.125, 0.75, 2.0, 0.0, 1.0)
ORDER = (3, 0, 7, 1, 6, 2, 5, 4)
SEVERAL = 20


class MetricConformance(Conformance):
    """Properties of a metric, on eight predictions of two classes."""

    kind: ClassVar[str] = "metric"

    def inputs(self) -> tuple[list[Any], list[Any]]:
        """Predictions and references, equally many."""
        return list(PREDICTIONS), list(REFERENCES)

    def losses(self) -> list[float]:
        """The negative log-likelihood of each reference, given to metrics that name `losses`."""
        return list(LOSSES[: len(self.inputs()[1])])

    def test_numbers(self) -> None:
        """It gives a number, or a mapping of them by name; every one is finite."""
        for name, value in self.figures().items():
            require(isinstance(name, str), f"names a figure {name!r}; a name is a text")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            require(number, f"gives a {type(value).__name__}; a figure is a float")
            require(math.isfinite(value), f"gives {value} for ordinary predictions")

    def test_order_of_rows(self) -> None:
        """The order of the rows does not matter."""
        first, second = self.figures(), self.figures(ORDER)
        same = list(first) == list(second) and all(
            math.isclose(first[name], second[name], abs_tol=1e-9) for name in first
        )
        require(same, f"gives {first} for rows, and {second} for the same rows in another order")

    def test_pure(self) -> None:
        """The same predictions give the same figures."""
        require(str(self.figures()) == str(self.figures()), "gives other figures when it is asked again")

    def test_inputs_unchanged(self) -> None:
        """Predictions and references are left as they were."""
        predictions, references = self.inputs()
        losses = self.losses()
        self.bound()(predictions, references, losses=losses, task=_TASK)
        same = (predictions, references) == self.inputs() and losses == self.losses()
        require(same, "changes its inputs in place")

    def figures(self, order: tuple[int, ...] | None = None) -> dict[str, Any]:
        """Its figures by name; those of a metric that gives one number under its own name."""
        given = (*self.inputs(), self.losses())
        chosen = [i for i in order or range(len(given[1])) if i < len(given[1])]
        predictions, references, losses = ([values[i] for i in chosen if i < len(values)] for values in given)
        value = self.bound()(predictions, references, losses=losses, task=_TASK)
        return dict(value) if isinstance(value, Mapping) else {self.subject.name: value}


class AugmentationConformance(Conformance):
    """Properties of an augmentation of a tokenised text."""

    kind: ClassVar[str] = "augmentation"

    def tokens(self) -> list[Any]:
        """A text of twelve tokens."""
        return ["the", "teacher", "tells", "the", "student", "what", "it", "knows", "of", "every", "single", "word"]

    def test_a_list(self) -> None:
        """It gives a list of tokens, which are texts."""
        for seed in range(SEVERAL):
            found = self._augmented(self.tokens(), seed)
            require(isinstance(found, list), f"gives a {type(found).__name__}; expected a list of tokens")
            require(all(isinstance(token, str) for token in found), f"gives {found}; tokens are texts")

    def test_short_texts(self) -> None:
        """It takes texts of no token, of one and of two."""
        for tokens in ([], *(self.tokens()[:length] for length in (1, 2))):
            for seed in range(SEVERAL):
                found = self._augmented(list(tokens), seed)
                require(isinstance(found, list), f"gives a {type(found).__name__} for {tokens}; expected a list")

    def test_seeded(self) -> None:
        """Generators of the same seed give the same texts."""
        first, again = ([self._augmented(self.tokens(), seed) for seed in range(SEVERAL)] for _ in range(2))
        require(first == again, "gives another text for the same seed; draw from `generator`")

    def test_global_generators(self) -> None:
        """The global generators of Python, numpy and torch are left as they were."""
        if "generator" not in self.subject.signature.inputs:
            does_not_apply("it names no `generator`, so it has none to draw from")
        before = global_generators()
        self._augmented(self.tokens(), SEED)
        for name, state in global_generators().items():
            require(state == before[name], f"draws from the global generator of {name}; use `generator`")

    def test_inputs_unchanged(self) -> None:
        """The list that it is given is left as it was."""
        for seed in range(SEVERAL):
            tokens = self.tokens()
            self._augmented(tokens, seed)
            require(tokens == self.tokens(), "changes the list that it is given; make a new one")

    def _augmented(self, tokens: list[Any], seed: int) -> Any:
        return self.bound()(tokens, generator=numpy.random.default_rng(seed))


_TASK = Task("text_classification", ("negative", "positive"))
