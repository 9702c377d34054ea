"""What losses between intermediate features promise.

Shapes: B rows, L tokens, H heads, D width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from brewer_core.components import Method
from brewer_core.testing.conformance import does_not_apply, require
from brewer_core.testing.losses import LossConformance, LossInputs
from brewer_core.testing.tensors import (
    CLASSES,
    HEADS,
    LENGTH,
    PADDING_SCORE,
    ROWS,
    WIDTH,
    each,
    seeded_tensors,
    tensors_in,
    valid_tokens,
)

FORMS = ("hidden", "attention", "pairs", "rows", "probabilities")
TRIED = FORMS[:4]
EXTRA = 2


class MatchLossConformance(LossConformance):
    """Properties of a match loss.

    takes: what it is called with: `hidden`, states [B, L, D]; `attention`, scores [B, H, L, L] to which the mask was added;
    `probabilities`, their softmax; `pairs`, two layers of states; `rows`, a vector for each row [B, D] without a mask, such as
    embeddings or scores of candidates. Without it they are tried in this order, but for probabilities.
    """

    kind: ClassVar[str] = "match_loss"
    takes: ClassVar[str | None] = None

    def inputs(self) -> LossInputs:
        """Tensors of the form that it takes, a mask and a label for each row."""
        return self._of_form(self.form)

    @cached_property
    def form(self) -> str:
        """What it takes, tried out where the class does not say it."""
        if self.takes is not None:
            require(self.takes in FORMS, f"takes = {self.takes!r} is not one of {', '.join(FORMS)}")
            return self.takes
        refusals = {}
        for form in TRIED:
            try:
                given = self._of_form(form)
                self.called(self._made(given), given)
            except Exception as error:  # whatever a loss raises for tensors that are not its own
                refusals[form] = f"{type(error).__name__}: {error}".partition("\n")[0]
            else:
                return form
        tried = "; ".join(f"{form}: {reason}" for form, reason in refusals.items())
        raise AssertionError(f"takes none of {', '.join(TRIED)}; override `inputs` ({tried})")

    def called(self, method: Method, given: LossInputs) -> Tensor:
        """The loss of a batch; the teacher's mask is the student's."""
        value: Tensor = method(
            given.student, given.teacher, given.mask, teacher_mask=given.mask, labels=given.labels, progress=0.5
        )
        return value

    def padded_anew(self, given: LossInputs, seed: int) -> LossInputs:
        """Other states where nothing is valid; other attention from padding, and none to it."""
        mask = given.mask
        if mask is None:
            return given
        return replace(
            given,
            student=each(given.student, lambda t: self._padded(t, mask, seed)),
            teacher=each(given.teacher, lambda t: self._padded(t, mask, seed + 1)),
        )

    def longer(self, given: LossInputs) -> LossInputs:
        """More tokens of padding in each row."""
        assert given.mask is not None
        mask, length = F.pad(given.mask, (0, EXTRA)), given.mask.shape[1]
        return replace(
            given,
            student=each(given.student, lambda t: _lengthened(t, length)),
            teacher=each(given.teacher, lambda t: _lengthened(t, length)),
            mask=mask,
        )

    def wrong(self, given: LossInputs) -> LossInputs:
        """A teacher with wider states, or with attention to another number of tokens."""
        return replace(given, teacher=each(given.teacher, lambda t: F.pad(t, (0, 1, 0, 1) if t.dim() == 4 else (0, 1))))

    def extremes(self, given: LossInputs) -> list[LossInputs]:
        """Values of 10,000, and of 0, on either side; probabilities have no such values."""
        if self.takes == "probabilities":
            does_not_apply("probabilities are never as large")
        large, none = partial(_signs, factor=1e4), partial(_signs, factor=0.0)
        pairs = ((large, large), (none, large), (large, none), (none, none))
        return [replace(given, student=each(given.student, s), teacher=each(given.teacher, t)) for s, t in pairs]

    def at_valid(self, gradient: Tensor, given: LossInputs) -> Tensor:
        """A gradient where tokens are valid; of attention, from valid tokens to valid tokens."""
        assert given.mask is not None
        if gradient.dim() == 4:
            return gradient.transpose(0, 1)[:, given.mask.unsqueeze(1) & given.mask.unsqueeze(2)]
        return super().at_valid(gradient, given)

    def test_over(self) -> None:
        """It declares what its mean is over, so that micro-batches of a step can be weighed."""
        shapes = [tensor.dim() for tensor in tensors_in(self.inputs().student)]
        if max(shapes, default=0) < 3:
            does_not_apply("its tensors have one item a row, which is what is meant where nothing is declared")
        require(
            self.subject.facts.over is not None,
            "declares no `over`; say @component(over=...): rows, tokens, token_pairs, batch, or a function of counts",
        )

    def _of_form(self, form: str) -> LossInputs:
        mask, labels = valid_tokens(), torch.arange(ROWS) % CLASSES
        student, teacher = (self._side(form, mask, seed) for seed in (1, 2))
        return LossInputs(student, teacher, None if form == "rows" else mask, labels)

    def _side(self, form: str, mask: Tensor, seed: int) -> Any:
        states = seeded_tensors(ROWS, LENGTH, WIDTH, seed=seed)
        if form == "pairs":
            return states, seeded_tensors(ROWS, LENGTH, WIDTH, seed=seed + 10)
        if form == "hidden":
            return states
        if form == "rows":
            return seeded_tensors(ROWS, WIDTH, seed=seed)
        scores = _scores(seeded_tensors(ROWS, HEADS, LENGTH, LENGTH, seed=seed), mask)
        return scores.softmax(-1) if form == "probabilities" else scores

    def _padded(self, tensor: Tensor, mask: Tensor, seed: int) -> Tensor:
        noise = seeded_tensors(*tensor.shape, seed=seed)
        if tensor.dim() == 4:
            queries, keys = mask[:, None, :, None], mask[:, None, None, :]
            if self.takes == "probabilities":
                return torch.where(queries, torch.where(keys, tensor, 0), noise.softmax(-1))
            return torch.where(queries, torch.where(keys, tensor, PADDING_SCORE + noise), noise)
        if tensor.shape[:2] != mask.shape:
            return tensor
        return torch.where(mask.reshape(*mask.shape, *[1] * (tensor.dim() - 2)), tensor, 100 * noise)


def _scores(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None, None, :], scores, PADDING_SCORE)


def _signs(tensor: Tensor, factor: float) -> Tensor:
    return factor * tensor.sign()


def _lengthened(tensor: Tensor, length: int) -> Tensor:
    """More places of padding along the axis of tokens; along both of attention."""
    if tensor.dim() == 4:
        return F.pad(tensor, (0, EXTRA, 0, EXTRA))
    if tensor.dim() < 2 or tensor.shape[1] != length:
        return tensor
    return F.pad(tensor, (*[0, 0] * (tensor.dim() - 2), 0, EXTRA))
