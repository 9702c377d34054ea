"""Augmentation of tokens: what each function keeps, whatever the text, the options and the draws."""

from __future__ import annotations

import doctest
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brewer_core import data_utils
from brewer_core.data_utils import deleting, long_disorder, masking, n_gram_sampling, short_disorder
from brewer_core.errors import RequestError

FUNCTIONS = (masking, deleting, n_gram_sampling, short_disorder, long_disorder)

texts = st.lists(st.integers(0, 9), max_size=30)
seeds = st.integers(0, 2**32 - 1)
probabilities = st.floats(0, 1)
lengths_of_spans = st.one_of(st.integers(1, 40), st.floats(0, 40, exclude_min=True))


@st.composite
def distributions(draw: st.DrawFn, count: int = 5) -> list[float]:
    weights = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count).filter(any))
    return [weight / sum(weights) for weight in weights]


@st.composite
def n_grams(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    return draw(distributions(len(lengths))), lengths


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(deadline=None)
@given(tokens=texts, seed=seeds)
def test_the_result_is_a_new_list_and_the_text_stays_as_it_was(
    function: Callable[..., list[int]], tokens: list[int], seed: int
) -> None:
    before = list(tokens)
    result = function(tokens, generator=generator(seed))
    assert type(result) is list
    assert result is not tokens
    assert tokens == before
    assert function(tuple(tokens), generator=generator(seed)) == result


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(deadline=None)
@given(tokens=texts, seed=seeds)
def test_equal_seeds_give_equal_results_and_leave_the_global_generator_alone(
    function: Callable[..., list[int]], tokens: list[int], seed: int
) -> None:
    state = np.random.get_state()[1].copy()
    assert function(tokens, generator=generator(seed)) == function(tokens, generator=generator(seed))
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_empty_text_gives_an_empty_list(function: Callable[..., list[int]]) -> None:
    assert function([]) == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_seeds_give_other_results(function: Callable[..., list[int]]) -> None:
    tokens = list(range(200))
    assert len({tuple(function(tokens, generator=generator(seed))) for seed in range(10)}) > 5


# One by one


@settings(deadline=None)
@given(tokens=texts, p=probabilities, seed=seeds)
def test_a_masked_text_has_each_token_or_the_mask_in_its_place(tokens: list[int], p: float, seed: int) -> None:
    masked = masking(tokens, p, "M", generator=generator(seed))
    assert len(masked) == len(tokens)
    assert all(new in ("M", old) for new, old in zip(masked, tokens, strict=True))


@settings(deadline=None)
@given(tokens=texts, seed=seeds)
def test_masking_with_probability_0_and_1(tokens: list[int], seed: int) -> None:
    assert masking(tokens, 0, generator=generator(seed)) == tokens
    assert masking(tokens, 1, generator=generator(seed)) == ["[MASK]"] * len(tokens)


@settings(deadline=None)
@given(tokens=texts, p=probabilities, seed=seeds)
def test_deleting_gives_a_subsequence(tokens: list[int], p: float, seed: int) -> None:
    left = iter(tokens)
    assert all(token in left for token in deleting(tokens, p, generator=generator(seed)))


@settings(deadline=None)
@given(tokens=texts, seed=seeds)
def test_deleting_with_probability_0_and_1(tokens: list[int], seed: int) -> None:
    assert deleting(tokens, 0, generator=generator(seed)) == tokens
    assert deleting(tokens, 1, generator=generator(seed)) == []


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_as_many_tokens_are_masked_and_deleted_as_the_probability_says(p: float) -> None:
    tokens = list(range(20_000))
    kept = deleting(tokens, p, generator=generator(0))
    masked = masking(tokens, p, -1, generator=generator(0))
    assert len(kept) / 20_000 == pytest.approx(1 - p, abs=0.015)
    assert masked.count(-1) / 20_000 == pytest.approx(p, abs=0.015)


@settings(deadline=None)
@given(tokens=texts, options=n_grams(), seed=seeds)
def test_an_n_gram_is_a_span_of_a_drawn_length_or_the_whole_text(
    tokens: list[int], options: tuple[list[float], list[int]], seed: int
) -> None:
    span = n_gram_sampling(tokens, *options, generator=generator(seed))
    possible = {length for p, length in zip(*options, strict=True) if p}
    assert len(span) in {min(length, len(tokens)) for length in possible}
    assert any(tokens[i : i + len(span)] == span for i in range(len(tokens) + 1))


def test_every_length_and_every_place_of_an_n_gram_is_drawn() -> None:
    drawn = {tuple(n_gram_sampling("abcd", (0.5, 0.5), (1, 3), generator=generator(seed))) for seed in range(200)}
    assert drawn == {("a",), ("b",), ("c",), ("d",), ("a", "b", "c"), ("b", "c", "d")}


def test_a_text_that_is_shorter_than_the_n_gram_is_given_whole() -> None:
    assert n_gram_sampling(["a", "b"], [1.0], [3]) == ["a", "b"]


@settings(deadline=None)
@given(tokens=texts, p=distributions(), seed=seeds)
def test_short_disorder_keeps_the_tokens(tokens: list[int], p: list[float], seed: int) -> None:
    assert Counter(short_disorder(tokens, p, generator=generator(seed))) == Counter(tokens)


@settings(deadline=None)
@given(count=st.integers(0, 30), p=distributions(), seed=seeds)
def test_short_disorder_moves_a_token_by_two_places_at_most(count: int, p: list[float], seed: int) -> None:
    result = short_disorder(range(count), p, generator=generator(seed))
    assert all(abs(place - token) <= 2 for place, token in enumerate(result))


@pytest.mark.parametrize(
    ("way", "expected"),
    [(0, "abcdefgh"), (1, "badcfehg"), (2, "cbafedhg"), (3, "cabfdehg"), (4, "bcaefdhg")],
)
def test_each_way_of_short_disorder_by_hand(way: int, expected: str) -> None:
    p = [float(i == way) for i in range(5)]
    assert "".join(short_disorder("abcdefgh", p)) == expected
    assert short_disorder("a", p) == ["a"]
    assert "".join(short_disorder("abcd", p)) == {2: "cbad", 3: "cabd", 4: "bcad"}.get(way, expected[:4])


@settings(deadline=None)
@given(tokens=texts, p=probabilities, length=lengths_of_spans, seed=seeds)
def test_long_disorder_keeps_the_tokens(tokens: list[int], p: float, length: float, seed: int) -> None:
    assert Counter(long_disorder(tokens, p, length, generator=generator(seed))) == Counter(tokens)


@settings(deadline=None)
@given(tokens=texts, length=lengths_of_spans, seed=seeds)
def test_long_disorder_with_probability_0_changes_nothing(tokens: list[int], length: float, seed: int) -> None:
    assert long_disorder(tokens, 0, length, generator=generator(seed)) == tokens


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("abcdefghijk", 0.4, "cdabghefijk"),  # 4.4 tokens: 4
        ("abcdefghijk", 3, "cdabghefijk"),  # an odd length is made even
        ("abcdefghijk", 4.9, "cdabghefijk"),
        ("abcdef", 1, "defabc"),  # the whole text
        ("abcde", 1, "abcde"),  # which, made even, is longer than itself
        ("abc", 20, "abc"),
        ("abcd", 2, "badc"),
        ("ab", 0.4, "ab"),  # 0.8 tokens: none
        ("abc", 0.4, "bac"),  # 1.2 tokens: 2
        ("a", 1, "a"),
        ("", 0.5, ""),
    ],
)
def test_long_disorder_by_hand(text: str, length: float, expected: str) -> None:
    assert "".join(long_disorder(text, 1, length)) == expected


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(data_utils) == (0, 2)


# What is refused


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (masking, {"p": 1.5}, "masking: p is 1.5; expected a probability, from 0 to 1."),
        (masking, {"p": float("nan")}, "masking: p is nan; expected a probability, from 0 to 1."),
        (deleting, {"p": -0.1}, "deleting: p is -0.1; expected a probability, from 0 to 1."),
        (long_disorder, {"p": 2}, "long_disorder: p is 2; expected a probability, from 0 to 1."),
        (
            long_disorder,
            {"length": 0},
            "long_disorder: length is 0; expected a number of tokens, or a share of the text, above 0.",
        ),
        (
            long_disorder,
            {"length": float("inf")},
            "long_disorder: length is inf; expected a number of tokens, or a share of the text, above 0.",
        ),
        (
            short_disorder,
            {"p": (0.9, 0.1)},
            "short_disorder: p is [0.9, 0.1]; expected probabilities that sum to 1, 5 of them.",
        ),
        (
            short_disorder,
            {"p": [0.9, 0.2, 0, 0, 0]},
            "short_disorder: p is [0.9, 0.2, 0, 0, 0]; expected probabilities that sum to 1, 5 of them.",
        ),
        (
            short_disorder,
            {"p": [1.1, -0.1, 0, 0, 0]},
            "short_disorder: p is [1.1, -0.1, 0, 0, 0]; expected probabilities that sum to 1, 5 of them.",
        ),
        (
            short_disorder,
            {"p": None},
            "short_disorder: p is None; expected probabilities that sum to 1, 5 of them.",
        ),
        (
            n_gram_sampling,
            {"p_ng": [1.0]},
            "n_gram_sampling: p_ng is [1.0]; expected probabilities that sum to 1, 5 of them.",
        ),
        (
            n_gram_sampling,
            {"p_ng": [1.0], "l_ng": [0]},
            "n_gram_sampling: l_ng is [0]; expected whole numbers of tokens, each 1 or more.",
        ),
        (
            n_gram_sampling,
            {"p_ng": [1.0], "l_ng": (1.5,)},
            "n_gram_sampling: l_ng is [1.5]; expected whole numbers of tokens, each 1 or more.",
        ),
    ],
)
@pytest.mark.parametrize("tokens", [[], ["a", "b", "c"]])
def test_an_argument_that_is_out_of_range_is_named(
    function: Callable[..., Any], arguments: dict[str, Any], text: str, tokens: Sequence[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        function(tokens, **arguments)
    assert str(caught.value) == text


def test_probabilities_may_be_as_inexact_as_numpy_lets_them_be() -> None:
    short_disorder("abc", np.full(5, 0.2, np.float32))
    short_disorder("abc", [0.2 + 2e-9] * 5)
    with pytest.raises(RequestError):
        short_disorder("abc", [0.2 + 1e-6] * 5)
