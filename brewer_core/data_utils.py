"""Augmentation of tokenised texts: masking, deleting, n-gram sampling, and disorder near and far.

Each function takes a sequence of tokens or token ids, which it leaves as it is, and returns a new list. An empty text
gives an empty list, and draws nothing.

generator: what is drawn comes from it; without one, from numpy's global generator, draw for draw as TextBrewer does, so
that a seeded script goes on as it did, with two exceptions: texts on which TextBrewer raises, and spans of no length,
over which it draws for as long as it does not hang.

Source: Yang et al. 2020, TextBrewer, arXiv:2002.12620.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from brewer_core.errors import RequestError

T = TypeVar("T")

_ORDERS = ((0,), (1, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0))
"""What a disorder of `abc` gives: nothing moved, bac, cba, cab, bca."""


def masking(
    tokens: Sequence[T], p: float = 0.1, mask: Any = "[MASK]", *, generator: np.random.Generator | None = None
) -> list[T | Any]:
    """Put `mask` in place of each token with probability p. As many tokens as before.

    Raises RequestError where p is no probability.
    """
    _check_probability("masking", p)
    uniform = _uniform(generator)
    return [mask if uniform() < p else token for token in tokens]


def deleting(tokens: Sequence[T], p: float = 0.1, *, generator: np.random.Generator | None = None) -> list[T]:
    """Leave out each token with probability p; the others keep their order. All of them may go.

    Raises RequestError where p is no probability.
    """
    _check_probability("deleting", p)
    kept = (generator or np.random).binomial(1, 1 - p, len(tokens))
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def n_gram_sampling(
    tokens: Sequence[T],
    p_ng: Sequence[float] = (0.2, 0.2, 0.2, 0.2, 0.2),
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    generator: np.random.Generator | None = None,
) -> list[T]:
    """Draw a length out of `l_ng`, with the probabilities `p_ng`, and give a span of so many tokens, drawn evenly.

    A text that is shorter than the length is given whole.
    Raises RequestError where the probabilities do not belong to the lengths or sum to 1, and for a length under 1.
    """
    _check_lengths(l_ng)
    thresholds = _thresholds("n_gram_sampling: p_ng", p_ng, len(l_ng))
    if not len(tokens):
        return []
    length = l_ng[bisect_right(thresholds, _uniform(generator)())]
    places = len(tokens) - length + 1
    if places < 1:
        return list(tokens)
    start = int(np.random.randint(0, places) if generator is None else generator.integers(places))
    return list(tokens[start : start + length])


def short_disorder(
    tokens: Sequence[T],
    p: Sequence[float] = (0.9, 0.1, 0, 0, 0),
    *,
    generator: np.random.Generator | None = None,
) -> list[T]:
    """Go through the text and disorder tokens beside each other, in one of five ways, with the probabilities p.

    At `abc` they are: abc, and on by one token; bac, and on by two; cba, cab, or bca, and on by three. Where two tokens
    are left, each way but the first swaps them; a last single one stays.
    Raises RequestError where p is not five probabilities that sum to 1.
    """
    thresholds = _thresholds("short_disorder: p", p, len(_ORDERS))
    uniform = _uniform(generator)
    outputs = list(tokens)
    i = 0
    while (left := len(outputs) - i) >= 2:
        way = bisect_right(thresholds, uniform())
        order = _ORDERS[min(way, 1) if left == 2 else way]
        outputs[i : i + len(order)] = [outputs[i + j] for j in order]
        i += len(order)
    return outputs


def long_disorder(
    tokens: Sequence[T], p: float = 0.1, length: float = 20, *, generator: np.random.Generator | None = None
) -> list[T]:
    """Go through the text, and with probability p swap the two halves of the span that begins there, and go on after it.

    length: tokens of a span; under 2, its share of the text. It is cut to a whole number, and made even by adding 1. A
    text that is shorter than a span stays in order, and so does one whose spans have no length:

        >>> long_disorder([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], p=1, length=0.4)
        [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]
        >>> long_disorder([0, 1], p=1, length=0.4)
        [0, 1]

    Raises RequestError where p is no probability, or the length no number over 0.
    """
    _check_probability("long_disorder", p)
    if not 0 < length < math.inf:
        raise RequestError(
            f"long_disorder: length is {length!r}; expected a number of tokens, or a share of the text, above 0."
        )
    outputs = list(tokens)
    half = (int(length if length >= 2 else len(outputs) * length) + 1) // 2
    if not half:
        return outputs
    uniform = _uniform(generator)
    i = 0
    while i <= len(outputs) - 2 * half:
        if uniform() < p:
            middle, end = i + half, i + 2 * half
            outputs[i:end] = outputs[middle:end] + outputs[i:middle]
            i = end
        else:
            i += 1
    return outputs


def _uniform(generator: np.random.Generator | None) -> Callable[[], float]:
    """What draws a number in [0, 1)."""
    return np.random.random if generator is None else generator.random


def _thresholds(argument: str, p: Sequence[float], count: int) -> list[float]:
    """The running sums of probabilities: a number drawn evenly falls below the first with its probability, and so on.

    numpy's `choice` computes these very sums at each draw, which takes twenty times as long as the draw.
    """
    given = np.asarray(p)
    good = given.dtype.kind in "iuf" and given.shape == (count,) and (given >= 0).all()
    if not good or not abs(math.fsum(given) - 1) <= _tolerance(given):
        raise RequestError(f"{argument} is {_shown(p)}; expected probabilities that sum to 1, {count} of them.")
    sums = given.astype(np.float64).cumsum()
    thresholds: list[float] = (sums / sums[-1]).tolist()
    return thresholds


def _tolerance(probabilities: np.ndarray[Any, Any]) -> float:
    """How far from 1 numpy lets probabilities sum to."""
    exact = probabilities.dtype if probabilities.dtype.kind == "f" else np.float64
    tolerance: float = np.finfo(exact).eps ** 0.5
    return tolerance


def _check_probability(function: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise RequestError(f"{function}: p is {p!r}; expected a probability, from 0 to 1.")


def _check_lengths(l_ng: Sequence[int]) -> None:
    lengths = np.asarray(l_ng)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not lengths.size or lengths.min() < 1:
        raise RequestError(
            f"n_gram_sampling: l_ng is {_shown(l_ng)}; expected whole numbers of tokens, each 1 or more."
        )


def _shown(values: Any) -> str:
    return repr(list(values) if isinstance(values, (tuple, np.ndarray)) else values)
