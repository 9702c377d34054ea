"""The adaptor of text classification: features and counts."""

from __future__ import annotations

import math

import pytest
import torch

from brewer_builtins.adaptors import TextClassification
from brewer_core import Counts, Features
from brewer_core.protocols import CountingAdaptor

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
LOGITS = [[0.0, math.log(3)], [0.0, 0.0]]


def batch(labels=None):
    filled = {"input_ids": MASK * 5, "attention_mask": MASK, "row": torch.tensor([0, 1])}
    return filled if labels is None else filled | {"labels": torch.tensor(labels)}


def test_it_can_count():
    assert isinstance(TextClassification(), CountingAdaptor)


def test_losses_are_the_mean_over_labelled_rows():
    logits = torch.tensor(LOGITS)
    both = TextClassification()(batch([1, 0]), {"logits": logits})
    # Probabilities of the labels are 3/4 and 1/2.
    assert both["losses"].item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    one = TextClassification()(batch([1, -100]), {"logits": logits})
    assert one["losses"].item() == pytest.approx(math.log(4 / 3))
    assert one["losses"].shape == ()
    assert torch.equal(one["labels"], torch.tensor([1, -100]))


@pytest.mark.parametrize("unlabelled", [-100, -1])
def test_without_labelled_rows_the_loss_is_zero_and_so_is_its_gradient(unlabelled):
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = TextClassification()(batch([unlabelled] * 2), {"logits": logits})["losses"]
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(2, 2))


def test_losses_are_float32_whatever_the_logits_are():
    loss = TextClassification()(batch([1, 0]), {"logits": torch.tensor(LOGITS).bfloat16()})["losses"]
    assert loss.dtype == torch.float32


def test_features_are_those_that_batch_and_model_have():
    outputs = {"logits": torch.zeros(2, 2), "hidden_states": (torch.zeros(2, 3, 4),) * 3, "attentions": None}
    features = Features.of(TextClassification()(batch(), outputs))
    assert set(features) == {"logits", "inputs_mask", "hidden"}
    assert len(features["hidden"]) == 3
    assert torch.equal(features["inputs_mask"][0], MASK)
    attention = {"logits": torch.zeros(2, 2), "attentions": (torch.zeros(2, 1, 3, 3),)}
    assert len(Features.of(TextClassification()(batch(), attention))["attention"]) == 1


def test_counts_come_from_the_batch_alone():
    assert TextClassification().counts(batch([1, -100])) == Counts(rows=2, tokens=4, token_pairs=10, logits=2, labels=1)
    assert TextClassification().counts(batch()).labels == 0


def test_features_of_a_hugging_face_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config).eval()
    asked = batch([1, -100])
    outputs = model(input_ids=asked["input_ids"], attention_mask=MASK, output_hidden_states=True)
    features = Features.of(TextClassification()(asked, outputs))
    assert set(features) == {"logits", "inputs_mask", "hidden", "labels", "losses"}
    assert [features.axes(name) for name in ("logits", "hidden", "losses")] == ["B C", "B L D", ""]
