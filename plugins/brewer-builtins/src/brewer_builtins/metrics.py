"""Metrics of classification and of language models: by scikit-learn what is more than a mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from brewer_builtins.extras import extra
from brewer_core import DataError, component, hookimpl

_LARGEST_EXPONENT = 709.0
"""Of a float64."""


@hookimpl
def brewer_metrics() -> Mapping[str, Callable[..., float]]:
    """The metrics of this module."""
    return {"accuracy": accuracy, "f1": f1, "matthews": matthews, "perplexity": perplexity}


def accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Share of predictions that are right, in [0, 1]; of a language model, of tokens that it would have written itself."""
    _check("accuracy", predictions, references)
    right = sum(
        own == true for own, true in zip(predictions, references, strict=True)
    )  # importing a library takes longer
    return float(right / len(references))


def f1(
    predictions: Sequence[int],
    references: Sequence[int],
    *,
    average: Annotated[
        Literal["macro", "micro", "weighted", "binary"],
        Field(description="Mean over classes; `binary`: that of class 1 alone."),
    ] = "macro",
) -> float:
    """F1, the harmonic mean of precision and recall, in [0, 1].

    Classes are those that occur in predictions or references; one that is never predicted counts 0.
    Raises DataError where the average is `binary` and there are other classes than 0 and 1.
    """
    _check("f1", predictions, references)
    if average == "binary" and (highest := max(*predictions, *references)) > 1:
        raise DataError(
            f'f1: average "binary" is for two classes, and class {highest} occurs; use "macro", "micro" or "weighted".'
        )
    return float(_sklearn("f1").f1_score(references, predictions, average=average, zero_division=0))


def matthews(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Matthews correlation coefficient, in [-1, 1]; 0 where the predictions or the references are all alike."""
    _check("matthews", predictions, references)
    return float(_sklearn("matthews").matthews_corrcoef(references, predictions))


@component(lower_is_better=True)
def perplexity(predictions: Sequence[int], references: Sequence[int], *, losses: Sequence[float]) -> float:
    """The exponential of the mean negative log-likelihood of the references, in nats: at least 1, and less is better.

    Of a language model the mean is over all tokens that are to be predicted, not over rows: neither those of prompts, nor the first of
    a row. Of a classifier it is over rows. Infinite where the mean is too large for a number.
    """
    _check("perplexity", predictions, references)
    mean = math.fsum(losses) / len(losses)
    return math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf


def _check(metric: str, predictions: Sequence[int], references: Sequence[int]) -> None:
    if len(predictions) != len(references):
        raise DataError(
            f"{metric}: {len(predictions)} predictions and {len(references)} references; there must be equally many."
        )
    if len(references) == 0:
        raise DataError(f"{metric}: there is nothing to compare; evaluate on labelled rows.")


def _sklearn(metric: str) -> Any:
    with extra(f"the metric `{metric}`", "scikit-learn"):
        from sklearn import metrics
    return metrics
