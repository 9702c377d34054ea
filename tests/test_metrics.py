"""Metrics against figures worked by hand."""

from __future__ import annotations

import math
import sys

import pytest

from brewer_builtins.metrics import accuracy, f1, matthews, perplexity
from brewer_core import DataError, MissingExtraError

pytest.importorskip("sklearn", reason="metrics are scikit-learn's")


def test_accuracy_is_the_share_of_right_predictions():
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75


def test_f1_averages_over_classes():
    predictions, references = [0, 1, 1, 1], [0, 0, 1, 1]
    # Class 0: precision 1, recall 1/2, F1 2/3. Class 1: precision 2/3, recall 1, F1 4/5.
    assert f1(predictions, references) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert f1(predictions, references, average="weighted") == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert f1(predictions, references, average="micro") == 0.75
    assert f1(predictions, references, average="binary") == pytest.approx(4 / 5)


def test_a_class_that_is_never_predicted_counts_zero_in_silence():
    assert f1([0, 0], [0, 1]) == pytest.approx((2 / 3 + 0) / 2)


def test_matthews_is_the_correlation():
    # TP 2, TN 1, FP 1, FN 0.
    assert matthews([0, 1, 1, 1], [0, 0, 1, 1]) == pytest.approx(2 / math.sqrt(3 * 2 * 2 * 1))
    assert matthews([0, 0, 0], [0, 1, 0]) == 0.0


def test_metrics_return_plain_floats():
    assert [type(metric([0, 1], [0, 1])) for metric in (accuracy, f1, matthews)] == [float] * 3


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError) as caught:
        accuracy([0, 1], [0])
    assert str(caught.value) == "accuracy: 2 predictions and 1 references; there must be equally many."
    with pytest.raises(DataError) as caught:
        matthews([], [])
    assert str(caught.value) == "matthews: there is nothing to compare; evaluate on labelled rows."
    with pytest.raises(DataError) as caught:
        f1([0, 2], [0, 1], average="binary")
    assert str(caught.value) == (
        'f1: average "binary" is for two classes, and class 2 occurs; use "macro", "micro" or "weighted".'
    )


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError) as caught:
        matthews([0], [0])
    assert (
        str(caught.value) == "the metric `matthews` needs scikit-learn; install it with: pip install 'brewer-core[hf]'"
    )
    assert accuracy([0], [0]) == 1.0


def test_perplexity_is_the_exponential_of_the_mean_loss():
    # Likelihoods of 1/2, 1/4 and 1/4: a mean of (1 + 2 + 2) / 3 bits.
    losses = [math.log(2), math.log(4), math.log(4)]
    assert perplexity([0, 0, 0], [1, 2, 3], losses=losses) == pytest.approx(2 ** (5 / 3))
    assert perplexity([1], [1], losses=[0.0]) == 1.0
    assert perplexity([1], [1], losses=[1000.0]) == math.inf


def test_perplexity_of_nothing_is_refused():
    with pytest.raises(DataError) as caught:
        perplexity([], [], losses=[])
    assert str(caught.value) == "perplexity: there is nothing to compare; evaluate on labelled rows."
