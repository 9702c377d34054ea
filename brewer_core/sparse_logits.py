"""Logits of which only some classes are kept: the most likely ones, or a sample of them.

Shapes: V vocabulary or classes, K kept ones; positions are [B] or [B, L], or [N] where they were selected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from brewer_core.errors import RequestError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind: TypeAlias = Literal["top_k", "sampled"]
Temperature: TypeAlias = "float | Tensor"


@dataclass(frozen=True)
class Kept:
    """What is kept of each position's logits; an error tells it as text.

    count: the classes of `top_k`; of `sampled` the draws, of which several may be of one class. size: V, where it is known.
    """

    kind: Kind
    count: int
    size: int | None = None

    def __str__(self) -> str:
        among = "" if self.size is None else f" of {self.size}"
        return f"{'at most ' if self.kind == 'sampled' else ''}{self.count}{among} of them ({self.kind})"


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """A teacher's logits, [..., V], of which K are kept at each position. They stand for a tensor among features.

    indices: [..., K], int64, the kept classes. size: V.
    logits: [..., K]. Of `top_k` the log-probabilities among all V classes at a temperature of 1; of `sampled` the logarithm
    of how often each class was drawn, -inf in slots that are not used, so that their softmax has the weights.
    log_tail: [...], of `top_k` the logarithm of what the other classes have together, -inf where they have nothing; None for
    `sampled`, whose weights are an unbiased estimate of the whole distribution.
    Raises ShapeError where these do not belong together.
    """

    indices: Tensor
    logits: Tensor
    log_tail: Tensor | None
    size: int

    def __post_init__(self) -> None:
        lead = self.indices.shape[:-1]
        if self.logits.shape != self.indices.shape or (self.log_tail is not None and self.log_tail.shape != lead):
            tail = "none" if self.log_tail is None else tuple(self.log_tail.shape)
            raise ShapeError(
                f"sparse logits have indices {tuple(self.indices.shape)}, logits {tuple(self.logits.shape)} and log_tail {tail}; "
                "they must be [..., K], [..., K] and [...]."
            )
        if not 1 <= self.indices.shape[-1] <= self.size:
            raise ShapeError(
                f"sparse logits keep {self.indices.shape[-1]} of {self.size} classes; keep 1 to {self.size}."
            )

    @classmethod
    def top_k(cls, logits: Tensor, k: int) -> SparseLogits:
        """The k most likely classes of each position of [..., V], all of them where there are fewer.

        Computed in float32, of float64 in float64. Raises RequestError where k is less than 1.
        """
        _check_count("k", k)
        whole = precise(logits)
        most = whole.topk(min(k, whole.shape[-1]), dim=-1)
        total = whole.logsumexp(-1, keepdim=True)
        # the others' own sum, not 1 less that of the kept: the difference of two numbers near 1 has no digits left
        others = whole.scatter(-1, most.indices, -math.inf).logsumexp(-1)
        return cls(most.indices, most.values - total, others - total.squeeze(-1), whole.shape[-1])

    @classmethod
    def sampled(cls, logits: Tensor, draws: int, generator: torch.Generator) -> SparseLogits:
        """Classes of each position of [..., V] as they are drawn, with replacement, from its softmax at a temperature of 1.

        Equal draws are merged: there are min(draws, V) slots, of which the used ones come first, in the order of the classes. The
        cross-entropy with their weights has, over draws, the mean of the one with the whole distribution, and so has its gradient.
        Numbers are drawn on the generator's own device, so that it gives the same ones wherever the logits are.
        Raises RequestError where draws is less than 1.
        Source: Anshumann et al. 2025, arXiv:2503.16870, random sampling with the teacher itself as proposal.
        """
        import torch

        _check_count("draws", draws)
        lead, size = logits.shape[:-1], logits.shape[-1]
        # float64, and the first class *above* a number: one without probability is never drawn, and rounding favours none
        cumulated = logits.detach().double().softmax(-1).cumsum(-1)
        numbers = torch.rand(*lead, draws, dtype=torch.float64, generator=generator, device=generator.device)
        drawn = torch.searchsorted(cumulated, numbers.to(logits.device) * cumulated[..., -1:], right=True)
        indices, counts = _merged(drawn, min(draws, size))
        return cls(indices, counts.to(precise(logits).dtype).log(), None, size)

    @classmethod
    def of_storage(cls, stored: Mapping[str, Tensor], size: int) -> SparseLogits:
        """What `storage` gave, whatever the number types it was kept in since, for V classes.

        Positions that are padded with 0 in all tensors give finite losses.
        """
        import torch

        indices = stored["indices"].long()
        if "counts" not in stored:
            return cls(indices, stored["logits"], stored["log_tail"], size)
        counts = stored["counts"].to(torch.float32, copy=True)
        counts[..., 0].clamp_(min=1)  # padding would have no weight at all; used slots come first: no other is changed
        return cls(indices, counts.log(), None, size)

    def storage(self) -> dict[str, Tensor]:
        """Plain tensors to keep: `indices` and `logits`, [..., K], and `log_tail`, [...]; of `sampled`, `indices` and `counts`.

        Integers are int32, and fit any type that holds V and the number of draws; other numbers stay as they are. Positions may be
        cut and padded with 0, of `sampled` also the slots at the end that no position uses.
        """
        import torch

        indices = self.indices.to(torch.int32)
        if self.log_tail is None:
            return {"indices": indices, "counts": self.logits.exp().round().to(torch.int32)}
        return {"indices": indices, "logits": self.logits, "log_tail": self.log_tail}

    @property
    def kept(self) -> Kept:
        """What is kept of each position; of `sampled` the slots, for the number of draws is not known here."""
        return Kept("sampled" if self.log_tail is None else "top_k", self.indices.shape[-1], self.size)

    def compared_with(self, student_logits: Tensor, temperature: Temperature = 1.0) -> tuple[Tensor, Tensor]:
        """The log-probabilities of teacher and student, [..., K] each, or [..., K + 1] with the others as one class at the end.

        student_logits: [..., V]. temperature: a number, or a Tensor [...] with one for each position.
        `top_k`: at a temperature of 1 these are the distributions themselves, with the V - K others taken together. How likely
        these are at another temperature does not follow from how likely they are at 1; on both sides they count as V - K equally
        likely classes. So the distributions agree at every temperature where they agree at 1, and nothing is assumed where K is V.
        `sampled`: the teacher's are the weights of the draws; the student's are those among all V classes.
        Raises RequestError for `sampled` at another temperature than 1, where no weights are unbiased.
        """
        import torch

        if self.log_tail is None:
            _check_temperature(temperature)
            own = student_logits.gather(-1, self.indices) - student_logits.logsumexp(-1, keepdim=True)
            return precise(self.logits).log_softmax(-1), own
        kept = student_logits.gather(-1, self.indices)
        others = self.size - self.indices.shape[-1]
        if not others:
            return _softened(precise(self.logits), temperature), _softened(kept, temperature)
        # the lowest number stands for the kept, not -inf: where no other class is left, logsumexp has no gradient but NaN
        lowest = torch.finfo(student_logits.dtype).min
        tail = student_logits.scatter(-1, self.indices, lowest).logsumexp(-1)
        tail = tail.masked_fill(tail <= lowest, -math.inf)
        likely = _softened(precise(self.logits), temperature, precise(self.log_tail), others)
        return likely, _softened(kept, temperature, tail, others)

    # as a tensor [..., V]

    @property
    def shape(self) -> torch.Size:
        """Of the logits that these stand for: (..., V)."""
        import torch

        return torch.Size((*self.indices.shape[:-1], self.size))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.logits.device

    def dim(self) -> int:
        """The number of axes, that of the classes among them."""
        return self.indices.dim()

    def is_floating_point(self) -> bool:
        """Whether the logits are floating-point numbers."""
        return self.logits.is_floating_point()

    def element_size(self) -> int:
        """The bytes of a logit."""
        return self.logits.element_size()

    def float(self) -> SparseLogits:
        """The same with logits in float32."""
        tail = None if self.log_tail is None else self.log_tail.float()
        return replace(self, logits=self.logits.float(), log_tail=tail)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseLogits:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def detach(self) -> SparseLogits:
        """The same without a graph."""
        return self._each(lambda tensor: tensor.detach())

    def flatten(self, start: int, end: int) -> SparseLogits:
        """Axes of positions made one; start, end: the first and the last of them, counted from the front."""
        return self._each(lambda tensor: tensor.flatten(start, end))

    def __getitem__(self, positions: Any) -> SparseLogits:
        """Some positions: by a bool mask of them, or a slice or index of the first axis."""
        return self._each(lambda tensor: tensor[positions])

    def in_places(self, mask: Tensor) -> SparseLogits:
        """Positions [N] in those where a mask is True, in their order; elsewhere what gives finite losses. mask: bool, [B, L]."""

        def placed(tensor: Tensor) -> Tensor:
            whole = tensor.new_zeros(*mask.shape, *tensor.shape[1:])
            whole[mask] = tensor
            return whole

        return self._each(placed)

    def _each(self, change: Any) -> SparseLogits:
        tail = None if self.log_tail is None else change(self.log_tail)
        return SparseLogits(change(self.indices), change(self.logits), tail, self.size)


def _softened(logits: Tensor, temperature: Temperature, tail: Tensor | None = None, others: int = 0) -> Tensor:
    """Log-probabilities at a temperature: of classes [..., K], and of so many others, equally likely, with a tail in all."""
    import torch

    divisor = temperature.unsqueeze(-1) if isinstance(temperature, torch.Tensor) and temperature.dim() else temperature
    softened = logits / divisor
    if tail is not None:
        count = math.log(others)
        softened = torch.cat([softened, count + (tail.unsqueeze(-1) - count) / divisor], -1)
    return softened.log_softmax(-1)


def _merged(drawn: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The distinct numbers in the last axis and how often each is there, in so many slots; unused ones have 0 of number 0."""
    import torch

    ordered = drawn.sort(-1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    slot = new.cumsum(-1) - 1
    empty = ordered.new_zeros(*ordered.shape[:-1], slots)
    return empty.scatter(-1, slot, ordered), empty.scatter_add(-1, slot, torch.ones_like(ordered))


def precise(logits: Tensor) -> Tensor:
    """Without a graph, and float32 where they were less."""
    detached = logits.detach()
    return detached.float() if detached.element_size() < 4 else detached


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise RequestError(f"{name}: {count} classes cannot be kept; keep 1 or more.")


def _check_temperature(temperature: Temperature) -> None:
    import torch

    if bool((torch.as_tensor(temperature) != 1).any()):
        raise RequestError(
            "the teacher's classes were drawn at a temperature of 1 (sampled), and no loss of them is unbiased at another one; "
            "set the temperature to 1, or keep the logits as top_k or dense."
        )
