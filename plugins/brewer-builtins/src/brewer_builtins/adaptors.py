"""Adaptors: from a batch and a model's outputs to features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from brewer_core import AdaptorError, Counts, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_OUTPUTS = {"hidden": "hidden_states", "attention": "attentions"}


@hookimpl
def brewer_adaptors() -> Mapping[str, type]:
    """The adaptors of this module."""
    return {"causal_lm": CausalLM, "text_classification": TextClassification}


class TextClassification:
    """Features of a Hugging Face model that gives one class a row.

    The batch is a mapping with `input_ids` [B, L], `attention_mask` [B, L] and, where there are any, `labels` [B], in
    which a negative label means that the row has none. `losses` is the cross-entropy in float32, the mean over labelled
    rows; without any it is 0, and has a gradient of 0.
    """

    def __call__(self, batch: Mapping[str, Any], model_outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The features of a batch; hidden states and attention where the model was asked for them."""
        features = {
            "logits": model_outputs["logits"],
            "inputs_mask": batch["attention_mask"],
            **_layers(model_outputs),
        }
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


class CausalLM:
    """Features of a Hugging Face model that predicts the next token at each token.

    The batch is a mapping with `input_ids` [B, L], `attention_mask` [B, L] and, where there are any, `labels` [B, L]: the tokens
    themselves, not shifted, and a negative number at those that are not learnt. Those that are to be predicted are said by `target_mask`
    [B, L], else by the labels, else by `attention_mask`; the two differ in rows whose teacher alone is followed.

    Logits and what they predict are brought together once, for all that reads them: at place t of `labels` and `logits_mask` stands what
    is true of token t + 1, which the logits at t predict. Nothing is predicted at the last place, nor at padding. So logits stay
    [B, L, V], as long as hidden states and attention are, and selected by the mask they are logits[:, :-1] where labels[:, 1:] counts.
    `losses` is the cross-entropy, the mean over the labelled ones among them, in float32 at least; without any it is 0, and has a
    gradient of 0.
    """

    def __init__(
        self,
        *,
        vocab_size: Annotated[
            int | None,
            Field(
                gt=0,
                description="Read the logits of so many first entries alone: for models of one tokenizer whose own sizes are padded.",
            ),
        ] = None,
    ) -> None:
        self.vocab_size = vocab_size

    def __call__(self, batch: Mapping[str, Any], model_outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The features of a batch; hidden states and attention where the model was asked for them.

        Raises AdaptorError where the logits are not [B, L, V], or fewer than vocab_size.
        """
        logits = self._logits(batch, model_outputs["logits"])
        labels = batch.get("labels")
        predicted = _predicted(batch)
        features = {
            "logits": logits,
            "logits_mask": predicted,
            "inputs_mask": batch["attention_mask"],
            **_layers(model_outputs),
        }
        if labels is not None:
            following = _following(labels, -100)
            features["labels"] = following.where(predicted & (following >= 0), -100)
            features["losses"] = _of_labelled(logits, features["labels"])
        return features

    def counts(self, batch: Mapping[str, Any]) -> Counts:
        """Counts read from the batch, with one wait for the device: logits are tokens that are predicted, labels those with a label."""
        import torch

        lengths, predicted = batch["attention_mask"].sum(1), _predicted(batch)
        labels = batch.get("labels")
        labelled = lengths.new_zeros(()) if labels is None else (predicted & (_following(labels, -100) >= 0)).sum()
        told = torch.stack([lengths.sum(), lengths.square().sum(), predicted.sum(), labelled]).tolist()
        tokens, pairs, logits, known = told
        return Counts(rows=lengths.shape[0], tokens=tokens, token_pairs=pairs, logits=logits, labels=known)

    def _logits(self, batch: Mapping[str, Any], logits: Tensor) -> Tensor:
        shape = tuple(batch["input_ids"].shape)
        if logits.dim() != 3 or logits.shape[:2] != shape:
            raise AdaptorError(
                f"causal_lm: the model returned logits {tuple(logits.shape)} for tokens {shape}; a language model returns one row of "
                "logits for each token."
            )
        if self.vocab_size is None:
            return logits
        if logits.shape[-1] < self.vocab_size:
            raise AdaptorError(
                f"causal_lm: vocab_size is {self.vocab_size}, and the model has logits of {logits.shape[-1]} entries; take the size of the "
                "smaller model, or the tokenizer's."
            )
        return logits[..., : self.vocab_size]


def _layers(model_outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Hidden states and attention, where the model was asked for them."""
    return {
        feature: tuple(model_outputs[output])
        for feature, output in _OUTPUTS.items()
        if model_outputs.get(output) is not None
    }


def _following(column: Tensor, last: int) -> Tensor:
    """[B, L]: at each token what is said of the next one."""
    import torch

    return torch.cat([column[:, 1:], column.new_full((len(column), 1), last)], 1)


def _predicted(batch: Mapping[str, Any]) -> Tensor:
    """[B, L], bool: the tokens at which the next one is to be predicted."""
    attended: Tensor = batch["attention_mask"].bool()
    wanted: Tensor | None = batch.get("target_mask")
    if wanted is None:
        wanted = batch["labels"] >= 0 if batch.get("labels") is not None else attended
    return attended & _following(wanted.bool() & attended, 0)


def _of_labelled(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy where there is a label, of logits [B, L, V]; nothing else is read."""
    from torch.nn.functional import cross_entropy

    known = labels >= 0
    chosen: Tensor = logits[known]
    precise = chosen if chosen.element_size() >= 4 else chosen.float()
    total: Tensor = cross_entropy(precise, labels[known], reduction="sum")
    return total / known.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    # A sum that is divided: the mean over no rows at all would be NaN.
    known = labels >= 0
    total = cross_entropy(logits.float(), labels.where(known, -100), ignore_index=-100, reduction="sum")
    return total / known.sum().clamp(min=1)
