"""Teachers that labels correct where they are wrong.

Shapes: C or V classes; labels and temperatures have the positions' shape, [...], of logits [..., V].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from brewer_core.errors import AdaptorError, ShapeError
from brewer_core.sparse_logits import Kept, SparseLogits, precise

Logits: TypeAlias = "Tensor | SparseLogits"
MIX_WEIGHT, MFT_THRESHOLD = 0.5, 0.2
_MOST = 1 - 1e-6
"""The largest part of a label in a mixture: with 1 its logit would be infinite."""


@dataclass(frozen=True)
class Correction:
    """What labels do to a teacher's logits. A position with a negative label, such as -100, is left as it is by all of them.

    method: `swap` exchanges the largest logit with that of the label. `mix` gives a teacher whose softened distribution is
    (1-w) p + w onehot, with the amount for w. `mft` does so with w such that the label's probability exceeds that of the class that
    the teacher took for it by the amount, and where the teacher is right, is greater than it was by the amount, up to 1. `drop` leaves
    out the positions where it is wrong.
    key: the field of the config that asked for it.
    Source of `swap`: Wen et al. 2019, arXiv:1911.07471, as TextBrewer has it; of `mft`: Belcak et al. 2025, arXiv:2506.15702, as the
    authors have it in ModelOpt's MFTLoss.
    """

    method: Literal["swap", "mix", "mft", "drop"]
    amount: float = 0.0
    key: str = "teacher_correction"

    @property
    def softened(self) -> bool:
        """Whether it is of the distribution at the temperature, so that this has to be known first."""
        return self.method in ("mix", "mft")

    def call(self, teacher: str, labels: str) -> str:
        """It as a formula has it: `mix(teacher.logits, student.labels; w = 0.5)`."""
        name = "probability_shift" if self.method == "swap" else self.method
        symbol = {"mix": "; w = ", "mft": "; threshold = "}.get(self.method)
        return f"{name}({teacher}, {labels}{f'{symbol}{self.amount:g}' if symbol else ''})"

    def refuses_sparse(self, kept: Kept) -> str:
        """What stands against teachers' logits of which only some are kept, a sentence; "" where nothing does."""
        if self.method == "drop" and kept.kind == "top_k":  # the most likely class is among them
            return ""
        wanted = "most likely class" if self.method == "drop" else "logit of the true label"
        missing = "" if self.method == "drop" else ", the true one perhaps not among them"
        off = "set it to false" if self.key == "probability_shift" else "leave it out"
        dense = "keep them as top_k or dense" if self.method == "drop" else "keep them dense"
        return f"{self.key}: it needs the teacher's {wanted}, and the cache keeps {kept}{missing}; {off}, or {dense}"

    def check(self, labels: Tensor | None, logits: Logits) -> None:
        """Raises AdaptorError where there are no labels, and ShapeError where they do not belong to the logits."""
        if labels is None:
            raise AdaptorError(
                f"{self.key} needs `labels`, one for each of the logits; the student's adaptor must return them."
            )
        _check_belong(labels, logits, self.key)

    def of_logits(self, teacher: Logits, labels: Tensor) -> Logits:
        """The teacher's logits, corrected before any temperature."""
        return probability_shift(teacher, labels) if self.method == "swap" and isinstance(teacher, Tensor) else teacher

    def of_softened(self, teacher: Logits, labels: Tensor, temperature: float | Tensor) -> Logits:
        """The teacher's logits, corrected so that they are right at this temperature: only those of labels are raised."""
        if not self.softened or isinstance(teacher, SparseLogits):
            return teacher
        return _with_label_mixed_in(teacher, labels, temperature, self.amount, exact=self.method == "mix")

    def kept_positions(self, teacher: Logits, labels: Tensor) -> Tensor | None:
        """Which positions, [...], the teacher has right, or have no label; None where all are kept."""
        return (labels < 0) | (_most_likely(teacher) == labels) if self.method == "drop" else None


def probability_shift(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with the largest exchanged for that of the true label; rows with a negative label stay.

    logits: [B, C] or [B, L, V], not changed. labels: [B] or [B, L].
    Raises ShapeError where their shapes do not belong together.
    """
    _check_belong(labels, logits, "probability_shift")
    largest = logits.argmax(-1, keepdim=True)
    truth = torch.where(labels < 0, largest.squeeze(-1), labels).unsqueeze(-1)
    shifted = logits.scatter(-1, largest, logits.gather(-1, truth))
    return shifted.scatter(-1, truth, logits.gather(-1, largest))


def _with_label_mixed_in(
    logits: Tensor, labels: Tensor, temperature: float | Tensor, amount: float, *, exact: bool
) -> Tensor:
    """Logits, in float32 where they were less, whose softmax at the temperature is (1-w) p + w onehot; w is the amount itself, or what MFT
    makes of it.
    """
    logits = precise(logits)
    beside = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature
    cooled = logits / beside
    truth = labels.clamp(min=0).unsqueeze(-1)
    total = cooled.logsumexp(-1, keepdim=True)
    own = cooled.gather(-1, truth)
    weight = torch.full_like(own, amount) if exact else _mft_weight(cooled.softmax(-1), truth, amount)
    weight = weight.clamp(0, _MOST).masked_fill(labels.unsqueeze(-1) < 0, 0)
    # only the label's logit has to rise: what all others lose is the softmax's doing
    raised = beside * torch.logaddexp(own, total + weight.log() - torch.log1p(-weight))
    return logits.scatter(-1, truth, torch.where(weight > 0, raised, logits.gather(-1, truth)))


def _mft_weight(probabilities: Tensor, truth: Tensor, threshold: float) -> Tensor:
    """The label's part in the mixture, [..., 1]."""
    largest, of_truth = probabilities.amax(-1, keepdim=True), probabilities.gather(-1, truth)
    wrong = probabilities.argmax(-1, keepdim=True) != truth
    where_wrong = (largest - of_truth + threshold) / (1 + largest - of_truth)
    rest = (1 - of_truth).clamp(min=torch.finfo(of_truth.dtype).tiny)
    where_right = torch.where(of_truth > 1 - threshold, 1, threshold / rest)
    return torch.where(wrong, where_wrong, where_right)


def _most_likely(logits: Logits) -> Tensor:
    if isinstance(logits, Tensor):
        return logits.argmax(-1)
    return logits.indices.gather(-1, logits.logits.argmax(-1, keepdim=True)).squeeze(-1)


def _check_belong(labels: Tensor, logits: Logits, key: str) -> None:
    if logits.shape[:-1] != labels.shape:
        raise ShapeError(f"{key}: labels {tuple(labels.shape)} do not belong to logits {tuple(logits.shape)}.")
