"""Adaptors for the logits that tests compare with textbrewer, beside those of `tiny`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tiny import adaptor

Adaptor = Callable[[Any, Mapping[str, Any]], dict[str, Any]]


def without(adapt: Adaptor, *names: str) -> Adaptor:
    """The adaptor, but for some of the features."""
    return lambda batch, outputs: {k: v for k, v in adapt(batch, outputs).items() if k not in names}


def scaled(adapt: Adaptor, factor: float) -> Adaptor:
    """The adaptor, with its logits multiplied."""

    def adapted(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        features = adapt(batch, outputs)
        logits = features["logits"]
        return {**features, "logits": [factor * t for t in logits] if isinstance(logits, list) else factor * logits}

    return adapted


def unmasked_tags(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Logits of tokens without a mask, with labels of which some say that there is none."""
    features = without(adaptor("token_logits", "tags", "losses"), "logits_mask")(batch, outputs)
    return {**features, "labels": torch.where(features["labels"] == 0, -100, features["labels"])}


def labelled_heads(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Two heads of logits of rows with labels of their own."""
    features = adaptor("row_logits", "labels", "losses")(batch, outputs)
    heads = [features["logits"], 2 * features["logits"].flip(1)]
    return {**features, "logits": heads, "labels": [features["labels"], features["labels"].flip(0)]}
