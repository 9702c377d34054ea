"""Adaptors: from a batch and a model's outputs to features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brewer_core import Counts, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_OUTPUTS = {"hidden": "hidden_states", "attention": "attentions"}


@hookimpl
def brewer_adaptors() -> Mapping[str, type]:
    """The adaptors of this module."""
    return {"text_classification": TextClassification}


class TextClassification:
    """Features of a Hugging Face model that gives one class a row.

    The batch is a mapping with `input_ids` [B, L], `attention_mask` [B, L] and, where there are any, `labels` [B], in
    which a negative label means that the row has none. `losses` is the cross-entropy in float32, the mean over labelled
    rows; without any it is 0, and has a gradient of 0.
    """

    def __call__(self, batch: Mapping[str, Any], model_outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The features of a batch; hidden states and attention where the model was asked for them."""
        features = {"logits": model_outputs["logits"], "inputs_mask": batch["attention_mask"]}
        for feature, output in _OUTPUTS.items():
            if model_outputs.get(output) is not None:
                features[feature] = tuple(model_outputs[output])
        if batch.get("labels") is not None:
            features["labels"] = batch["labels"]
            features["losses"] = _cross_entropy(features["logits"], batch["labels"])
        return features

    def counts(self, batch: Mapping[str, Any]) -> Counts:
        """Counts read from the batch, with one wait for the device; labels are the rows that have one."""
        import torch

        lengths = batch["attention_mask"].sum(1)
        labels = batch.get("labels")
        labelled = lengths.new_zeros(()) if labels is None else (labels >= 0).sum()
        tokens, pairs, known = torch.stack([lengths.sum(), lengths.square().sum(), labelled]).tolist()
        rows = lengths.shape[0]
        return Counts(rows=rows, tokens=tokens, token_pairs=pairs, logits=rows, labels=known)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    # A sum that is divided: the mean over no rows at all would be NaN.
    known = labels >= 0
    total = cross_entropy(logits.float(), labels.where(known, -100), ignore_index=-100, reduction="sum")
    return total / known.sum().clamp(min=1)
