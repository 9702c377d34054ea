"""What a model predicted for labelled rows, item by item, without its logits: an item is a row, or a token that is to be predicted.

Shapes: B rows, L tokens, V classes or vocabulary, N items.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from brewer_core.features import Features
from brewer_core.protocols import Batch
from brewer_core.sparse_logits import precise


@dataclass(frozen=True)
class Scores:
    """Items in the order of their rows, equally many of each.

    predictions, references: class numbers, or those of tokens. losses: the negative log-likelihood of each reference, in nats.
    """

    predictions: Sequence[int]
    references: Sequence[int]
    losses: Sequence[float]

    @classmethod
    def of(cls, scored: Tensor, rows: int) -> Scores:
        """Those of [N, 4] as `scored` gives it, of all batches, for so many rows."""
        _, predictions, references, losses = scored[scored[:, 0].argsort(stable=True)].unbind(1)
        if len(scored) == rows:
            return cls(predictions.long().tolist(), references.long().tolist(), losses.tolist())
        # arrays where there are many a row: a list takes four times as much for a number
        return cls(_array("q", predictions.long()), _array("q", references.long()), _array("d", losses))


def _array(code: Literal["q", "d"], column: Tensor) -> Sequence[Any]:
    return array(code, column.contiguous().numpy().tobytes())


def scored(batch: Batch, features: Features) -> Tensor:
    """[N, 4], float64 on the CPU: each item's row, what is predicted, what is right, and the negative log-likelihood of that.

    Of [B, V] logits the items are the rows with the batch's labels, of [B, L, V] those positions of which the features have labels. The
    losses are computed in float32, row by row: a copy of all logits of a batch would not fit beside them.
    """
    logits, rows = features["logits"][0], batch["row"]
    if logits.dim() == 2:
        labels = batch["labels"]
        return _side_by_side(rows, logits.argmax(-1), labels, _losses(logits, labels))
    labels, masks = features["labels"][0], features.get("logits_mask", ())
    valid = labels >= 0 if not masks else (labels >= 0) & masks[0].bool()
    losses = torch.stack([_losses(*row) for row in zip(logits, labels, strict=True)])
    columns = (rows[:, None].expand_as(labels), logits.argmax(-1), labels, losses)
    return _side_by_side(*(column[valid] for column in columns))


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[N]: the negative log-likelihood of each label; of no use where there is none."""
    whole = precise(logits)
    return whole.logsumexp(-1) - whole.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def _side_by_side(*columns: Tensor) -> Tensor:
    return torch.stack([column.cpu().double() for column in columns], 1)
