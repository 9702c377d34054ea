"""Models, data and adaptors as small as can be, for the tests of training.

Shapes: B rows, L tokens, D width, H heads, C classes of a row, V classes of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brewer_core import Counts

WORDS, CLASSES, TAGS, HEADS = 20, 4, 5, 2
COLUMNS = ("ids", "mask", "labels", "tags")


class Tiny(nn.Module):
    """A model that gives whatever features a test may match: logits of rows and of tokens, hidden states, attention."""

    def __init__(self, width: int, layers: int, *, dropout: float = 0.0, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.embedding = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.dropout = nn.Dropout(dropout)
        self.of_rows = nn.Linear(width, CLASSES)
        self.of_tokens = nn.Linear(width, TAGS)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor, tags: Tensor, gain: float = 1.0) -> dict[str, Any]:
        hidden = [self.embedding(ids)]
        for layer in self.layers:
            hidden.append(self.dropout(torch.tanh(layer(hidden[-1]))))
        row_logits = gain * self.of_rows(hidden[-1][:, 0])
        return {
            "row_logits": row_logits,
            "token_logits": gain * self.of_tokens(hidden[-1]),
            "hidden": hidden,
            "attention": [_scores(states) for states in hidden],
            "loss": _mean_over_labelled(row_logits, labels),
        }


def _scores(states: Tensor) -> Tensor:
    """[B, H, L, L]: the products of tokens with tokens, head by head."""
    split = states.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return split @ split.mT / split.shape[-1] ** 0.5


def _mean_over_labelled(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def table(rows: int = 40, length: int = 6, seed: int = 3) -> dict[str, Tensor]:
    """Random columns: ids, a mask with holes, a label a row and a tag a token."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, length, generator=g) > 0.3).long().index_fill(1, torch.tensor([0]), 1)
    return {
        "ids": torch.randint(WORDS, (rows, length), generator=g),
        "mask": mask,
        "labels": torch.randint(CLASSES, (rows,), generator=g),
        "tags": torch.randint(TAGS, (rows, length), generator=g),
    }


def tuples(columns: Mapping[str, Tensor]) -> list[tuple[Tensor, ...]]:
    """The rows of a table as tuples, in the order of the model's arguments."""
    return list(zip(*columns.values(), strict=True))


def mappings(columns: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The rows of a table as mappings, by the names of the model's arguments."""
    return [dict(zip(columns, row, strict=True)) for row in tuples(columns)]


def batches(columns: Mapping[str, Tensor], sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """A table cut into batches of these sizes, from its start on."""
    split = {name: column[: sum(sizes)].split(list(sizes)) for name, column in columns.items()}
    return [{name: parts[i] for name, parts in split.items()} for i in range(len(sizes))]


def adaptor(*names: str) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    """An adaptor, as a plain function, that returns the features of these names."""

    def adapt(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        columns = batch if isinstance(batch, Mapping) else dict(zip(COLUMNS, batch, strict=True))
        features = {
            "row_logits": {"logits": outputs["row_logits"]},
            "token_logits": {"logits": outputs["token_logits"], "logits_mask": columns["mask"]},
            "two_heads": {
                "logits": [outputs["row_logits"], outputs["token_logits"]],
                "logits_mask": [columns["mask"], columns["mask"]],
            },
            "hidden": {"hidden": outputs["hidden"]},
            "attention": {"attention": outputs["attention"]},
            "losses": {"losses": outputs["loss"]},
            "labels": {"labels": columns["labels"]},
            "tags": {"labels": columns["tags"]},
            "mask": {"inputs_mask": columns["mask"]},
        }
        return {key: value for name in names for key, value in features[name].items()}

    return adapt


class CountingAdaptor:
    """The same, as a class that counts a batch's items."""

    def __init__(self, *names: str) -> None:
        self._adapt = adaptor(*names)

    def __call__(self, batch: Any, model_outputs: Any) -> dict[str, Any]:
        return self._adapt(batch, model_outputs)

    def counts(self, batch: Mapping[str, Tensor]) -> Counts:
        lengths = batch["mask"].sum(1)
        tokens, pairs = int(lengths.sum()), int(lengths.square().sum())
        return Counts(len(lengths), tokens, pairs, logits=tokens, labels=int((batch["labels"] >= 0).sum()))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], atol: float = 0.0, rtol: float = 0.0) -> None:
    """Equal names, equal tensors."""
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
