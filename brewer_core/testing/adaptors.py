"""What adaptors promise.

Shapes: B rows, L tokens, H heads, D width, C classes.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from brewer_core.errors import AdaptorError
from brewer_core.features import Counts, Features
from brewer_core.protocols import CountingAdaptor
from brewer_core.testing.conformance import Conformance, does_not_apply, require
from brewer_core.testing.tensors import (
    CLASSES,
    HEADS,
    LENGTH,
    ROWS,
    WIDTH,
    finite,
    same_bits,
    seeded_tensors,
    tensors_in,
    valid_tokens,
)

LAYERS = 3
AXES = {
    "logits": ("B C", "B L V"),
    "logits_mask": ("B L",),
    "labels": ("B", "B L", "B L C"),
    "losses": ("", "N"),
    "hidden": ("B D", "B L D"),
    "attention": ("B L L", "B H L L"),
    "inputs_mask": ("B L",),
}
"""What is documented of the axes of the known features."""


class Outputs(dict[str, Any]):
    """What a model returns, by key and by attribute, as Hugging Face's outputs are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Outputs:
        return Outputs({name: copy.deepcopy(value, memo) for name, value in self.items()})


class AdaptorConformance(Conformance):
    """Properties of an adaptor, on a batch and outputs as Hugging Face's models have them. Override them for others.

    of_tokens: whether the labels and logits are those of a language model, of each token; tried where a classifier's are refused.
    """

    kind: ClassVar[str] = "adaptor"
    of_tokens = False

    def batch(self) -> Any:
        """What a loader yields: a mapping of `input_ids`, `attention_mask` and `labels`."""
        ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
        labels = torch.arange(ROWS) % CLASSES
        if self.of_tokens:
            labels = (ids % CLASSES).where(valid_tokens() & (ids % LENGTH != 2), -100)  # one in each row is not learnt
        return {"input_ids": ids, "attention_mask": valid_tokens().long(), "labels": labels}

    def outputs(self) -> Any:
        """What a model returns for the batch: `logits`, `loss`, `hidden_states` and `attentions`."""
        states = [seeded_tensors(ROWS, LENGTH, WIDTH, seed=i) for i in range(LAYERS)]
        attention = [seeded_tensors(ROWS, HEADS, LENGTH, LENGTH, seed=i).softmax(-1) for i in range(LAYERS - 1)]
        shape = (ROWS, LENGTH, CLASSES) if self.of_tokens else (ROWS, CLASSES)
        return Outputs(
            logits=seeded_tensors(*shape), loss=torch.tensor(0.5), hidden_states=states, attentions=attention
        )

    def test_shapes(self) -> None:
        """The known features have the axes that are documented, all of the batch's rows and of one length."""
        features = self.features()
        sizes: dict[str, set[int]] = {"B": set(), "L": set()}
        for name, tensors in features.items():
            axes = features.axes(name)
            known = name not in AXES or axes in AXES[name]
            require(
                known,
                f"gives `{name}` of the shape {tuple(tensors[0].shape)}; expected {' or '.join(AXES.get(name, ()))}",
            )
            for tensor in tensors:
                require(
                    tensor.dim() == tensors[0].dim(), f"gives layers of `{name}` with {tensor.dim()} axes and others"
                )
                for axis, size in zip(axes.split(), tensor.shape, strict=False):
                    sizes.setdefault(axis, set()).add(size)
        for axis, what in (("B", "rows"), ("L", "tokens")):
            counts = " and ".join(map(str, sorted(sizes[axis])))
            require(len(sizes[axis]) <= 1, f"gives features of {counts} {what}; all must have those of the batch")

    def test_finite(self) -> None:
        """Features of ordinary outputs are finite."""
        for name, tensors in self.features().items():
            numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
            require(finite(*numbers), f"gives `{name}` that is not finite")

    def test_idempotent(self) -> None:
        """The same batch and outputs give the same features again."""
        self.features()
        adaptor, batch, outputs = self.bound(), self.batch(), self.outputs()
        first, second = (Features.of(adaptor(batch, outputs, role="student")) for _ in range(2))
        require(list(first) == list(second), f"gives {', '.join(first)} first, and then {', '.join(second)}")
        for name in first:
            same = len(first[name]) == len(second[name]) and all(map(same_bits, first[name], second[name]))
            require(same, f"gives another `{name}` when it is asked again")

    def test_inputs_unchanged(self) -> None:
        """Batch and outputs are left as they were."""
        self.features()
        batch, outputs = self.batch(), self.outputs()
        before = copy.deepcopy((batch, outputs))
        self.bound()(batch, outputs, role="student")
        tensors = [tensors_in(value) for value in (before, (batch, outputs))]
        same = len(tensors[0]) == len(tensors[1]) and all(map(same_bits, *tensors))
        keys = [list(value) for value in (*before, batch, outputs) if isinstance(value, dict)]
        same = same and keys[: len(keys) // 2] == keys[len(keys) // 2 :]
        require(same, "changes the batch or the model's outputs")

    def test_counts(self) -> None:
        """What `counts` tells from the batch alone is what the features hold."""
        features, adaptor = self.features(), self.bound().target
        if not isinstance(adaptor, CountingAdaptor):
            does_not_apply("it has no `counts`, so its batches count by rows")
        told = adaptor.counts(self.batch())
        require(isinstance(told, Counts), f"counts a {type(told).__name__}; return brewer_core.Counts")
        for name, expected in _held(features).items():
            found = float(getattr(told, name))
            require(found == expected, f"counts {found:g} {name}, and its features hold {expected:g}")

    def features(self) -> Features:
        """The features of the batch; a property is skipped where it does not take the batch that is given unless overridden."""
        try:
            found = self.bound()(self.batch(), self.outputs(), role="student")
        except (KeyError, AttributeError, TypeError, IndexError, ValueError, AdaptorError) as error:
            if type(self).batch is AdaptorConformance.batch:
                if isinstance(error, AdaptorError) and not self.of_tokens:
                    self.of_tokens = True
                    return self.features()
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                does_not_apply(f"it takes another batch than Hugging Face's ({reason}); override `batch` and `outputs`")
            raise
        return Features.of(found, self.label)


def _held(features: Features) -> dict[str, float]:
    """The counts that the features tell."""
    rows = [len(tensors[0]) for name, tensors in features.items() if features.axes(name).startswith("B")]
    held = {"rows": float(rows[0])} if rows else {}
    mask, logits_mask = features.first("inputs_mask"), features.first("logits_mask")
    if mask is not None:
        lengths = mask.bool().sum(1)
        held |= {"tokens": float(lengths.sum()), "token_pairs": float(lengths.square().sum())}
    if features.get("logits"):
        if features["logits"][0].dim() == 2:
            held["logits"] = held["rows"]
        elif logits_mask is not None:
            held["logits"] = float(logits_mask.bool().sum())
    labels = features.first("labels")
    if labels is not None and not labels.is_floating_point():
        held["labels"] = float((labels >= 0).sum())
    return held
