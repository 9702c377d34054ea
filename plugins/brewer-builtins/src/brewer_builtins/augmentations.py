"""Augmentations of a tokenised text, each a function of `brewer_core.data_utils` with its options.

Without `generator` they draw from numpy's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from brewer_core import component, data_utils, hookimpl

if TYPE_CHECKING:
    from numpy.random import Generator

SOURCE = "TextBrewer, arXiv:2002.12620"


def _five(probabilities: tuple[float, ...]) -> tuple[float, ...]:
    if len(probabilities) != 5:
        raise PydanticCustomError("text", "should be five probabilities")
    return probabilities


def _summing_to_1(probabilities: tuple[float, ...]) -> tuple[float, ...]:
    if not math.isclose(math.fsum(probabilities), 1, abs_tol=1e-8):
        raise PydanticCustomError("text", "should sum to 1")
    return probabilities


Probability = Annotated[float, Field(ge=0, le=1)]
Probabilities = Annotated[tuple[Probability, ...], AfterValidator(_summing_to_1)]
Lengths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description="Lengths of the span, in tokens.")]


@component(source=SOURCE)
def masking(
    tokens: list[Any],
    *,
    generator: Generator | None = None,
    p: Annotated[Probability, Field(description="With which probability a token is masked.")] = 0.1,
    mask_token: Annotated[str, Field(min_length=1, description="The tokenizer's own mask token.")] = "[MASK]",
) -> list[Any]:
    """Put the mask token in place of tokens drawn by chance."""
    return data_utils.masking(tokens, p, mask_token, generator=generator)


@component(source=SOURCE)
def deleting(
    tokens: list[Any],
    *,
    generator: Generator | None = None,
    p: Annotated[Probability, Field(description="With which probability a token is left out.")] = 0.1,
) -> list[Any]:
    """Leave out tokens drawn by chance."""
    return data_utils.deleting(tokens, p, generator=generator)


@component(source=SOURCE)
def n_gram_sampling(
    tokens: list[Any],
    *,
    generator: Generator | None = None,
    p_ng: Annotated[Probabilities, Field(description="The probability of each length.")] = (0.2, 0.2, 0.2, 0.2, 0.2),
    l_ng: Lengths = (1, 2, 3, 4, 5),
) -> list[Any]:
    """Keep a span of the text, its length and place drawn by chance; a text that is shorter is kept whole."""
    return data_utils.n_gram_sampling(tokens, p_ng, l_ng, generator=generator)


@component(source=SOURCE)
def short_disorder(
    tokens: list[Any],
    *,
    generator: Generator | None = None,
    p: Annotated[
        Probabilities,
        AfterValidator(_five),
        Field(description="Probabilities of what becomes of `abc`: abc, bac, cba, cab and bca."),
    ] = (0.9, 0.1, 0.0, 0.0, 0.0),
) -> list[Any]:
    """Disorder tokens beside each other."""
    return data_utils.short_disorder(tokens, p, generator=generator)


@component(source=SOURCE)
def long_disorder(
    tokens: list[Any],
    *,
    generator: Generator | None = None,
    p: Annotated[Probability, Field(description="With which probability a span is disordered.")] = 0.1,
    length: Annotated[
        float, Field(gt=0, description="Tokens of a span, made even; under 2, its share of the text.")
    ] = 20,
) -> list[Any]:
    """Swap the two halves of spans drawn by chance."""
    return data_utils.long_disorder(tokens, p, length, generator=generator)


@hookimpl
def brewer_augmentations() -> Mapping[str, Callable[..., list[Any]]]:
    """The augmentations of this module."""
    return {
        "deleting": deleting,
        "long_disorder": long_disorder,
        "masking": masking,
        "n_gram_sampling": n_gram_sampling,
        "short_disorder": short_disorder,
    }
