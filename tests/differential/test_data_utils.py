"""Augmentation against the real textbrewer: results, and what is left of numpy's global generator, under many seeds.

Left out is what textbrewer cannot do: an n-gram longer than the text, and spans of no length, over which it hangs where
p is 1 and else draws for nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from brewer_core import data_utils as ours
from differential.reference import data_utils as theirs

NAMES = ("masking", "deleting", "n_gram_sampling", "short_disorder", "long_disorder")
SEEDS = range(300)


def distribution(rng: np.random.Generator, count: int) -> list[float]:
    weights = rng.random(count) * (rng.random(count) < 0.7)
    weights[int(rng.integers(count))] += 0.1
    return list(weights / weights.sum())


def arguments(name: str, rng: np.random.Generator) -> Iterator[tuple[list[int], tuple[Any, ...]]]:
    """A text and options of each function, as textbrewer takes them; the options left out now and then."""
    tokens = list(range(int(rng.integers(0, 40))))
    if name in ("masking", "deleting"):
        yield tokens, (float(rng.choice([0, 0.1, 0.5, 1])),)
    elif name == "n_gram_sampling":
        count = int(rng.integers(1, 6))
        lengths = [int(length) for length in rng.integers(1, 8, count)]
        yield [*tokens, *range(7)], (distribution(rng, count), lengths)
        tokens += range(5)
    elif name == "short_disorder":
        yield tokens, (distribution(rng, 5),)
        yield tokens, (np.array(distribution(rng, 5)),)
    else:
        length = float(rng.choice([0.1, 0.25, 0.4, 1, 1.5, 2, 3, 4.7, 20]))
        if length >= 2 or int(len(tokens) * length):
            yield tokens, (float(rng.choice([0.05, 0.5, 1])), length)
    yield tokens, ()


def outcome(function: Callable[..., Any], tokens: list[int], options: tuple[Any, ...], seed: int) -> tuple[Any, ...]:
    """The result, and the state of the global generator after it."""
    np.random.seed(seed)
    result = function(tokens, *options)
    _, numbers, position, *rest = np.random.get_state()
    return result, numbers.tolist(), position, rest  # type: ignore[union-attr]  # the state as a tuple


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_textbrewers_result_and_leaves_its_generator_state(name: str) -> None:
    changed = 0
    for seed in SEEDS:
        for tokens, options in arguments(name, np.random.default_rng(seed)):
            own = outcome(getattr(ours, name), tokens, options, seed)
            assert own == outcome(getattr(theirs, name), tokens, options, seed), (tokens, options, seed)
            changed += own[0] != tokens
    assert changed > len(SEEDS) / 2


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameters with their defaults, in order; those that are keyword-only left out."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: list(p.default) if isinstance(p.default, (tuple, list)) else p.default
        for p in parameters
        if p.kind is p.POSITIONAL_OR_KEYWORD
    }


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_textbrewers_and_a_generator(name: str) -> None:
    own, other = (defaults(getattr(module, name)) for module in (ours, theirs))
    assert list(own.items()) == list(other.items())
    parameters = inspect.signature(getattr(ours, name)).parameters
    assert set(parameters) - set(own) == {"generator"}
    assert parameters["generator"].default is None
