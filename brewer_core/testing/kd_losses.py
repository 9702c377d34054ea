"""What losses between logits promise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from brewer_core.components import Method
from brewer_core.errors import RequestError
from brewer_core.sparse_logits import SparseLogits
from brewer_core.testing.conformance import SEED, does_not_apply, require
from brewer_core.testing.losses import LossConformance, LossInputs
from brewer_core.testing.tensors import CLASSES, LENGTH, ROWS, close, finite, seeded_tensors, valid_tokens

WARM, HOT = 32.0, 128.0
"""Temperatures so high that gradients times their square have reached their limit."""

TEMPERATURE_TOLERANCE = 0.1

SOME, DRAWS = 2, 20
"""Classes that are kept, and draws from all of them, of a teacher whose logits are sparse."""


class KDLossConformance(LossConformance):
    """Properties of a kd loss.

    A loss whose mean is over rows, or that declares nothing, is tested on logits of rows, [B, V]; others on those of tokens.
    """

    kind: ClassVar[str] = "kd_loss"
    temperature: ClassVar[float | Tensor] = 2.0

    def inputs(self) -> LossInputs:
        """Logits of student and teacher, a mask and labels: of tokens, or of rows."""
        student, teacher = seeded_tensors(ROWS, LENGTH, CLASSES, seed=1), seeded_tensors(ROWS, LENGTH, CLASSES, seed=2)
        labels = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % CLASSES
        if self.of_rows:
            return LossInputs(student[:, 0], teacher[:, 0], labels=labels[:, 0])
        return LossInputs(student, teacher, valid_tokens(), labels)

    @property
    def of_rows(self) -> bool:
        """Whether it is tested on logits of rows."""
        return not self._names_mask and self.subject.facts.over in (None, "rows")

    def called(self, method: Method, given: LossInputs) -> Tensor:
        """The loss of the valid positions, [N, V]; of whole logits and their mask where it names `mask`."""
        return self._at(method, given, self.temperature)

    def padded_anew(self, given: LossInputs, seed: int) -> LossInputs:
        """Other logits where nothing is valid."""
        if given.mask is None:
            return given
        valid = given.mask.unsqueeze(-1)
        noise = [100 * seeded_tensors(*t.shape, seed=seed + i) for i, t in enumerate((given.student, given.teacher))]
        return replace(
            given,
            student=torch.where(valid, given.student, noise[0]),
            teacher=torch.where(valid, given.teacher, noise[1]),
        )

    def longer(self, given: LossInputs) -> LossInputs:
        """Three more positions of padding in each row."""
        assert given.mask is not None
        more = torch.zeros(len(given.mask), 3, CLASSES)
        mask = torch.cat([given.mask, torch.zeros(len(given.mask), 3, dtype=torch.bool)], 1)
        labels = None if given.labels is None else torch.cat([given.labels, given.labels[:, :3]], 1)
        return LossInputs(torch.cat([given.student, more], 1), torch.cat([given.teacher, more], 1), mask, labels)

    def wrong(self, given: LossInputs) -> LossInputs:
        """A teacher with a class more."""
        return replace(given, teacher=torch.cat([given.teacher, given.teacher[..., :1]], -1))

    def extremes(self, given: LossInputs) -> list[LossInputs]:
        """Logits of 10,000 and -10,000: student and teacher sure of the same class, and of different ones."""
        sure = torch.full(given.student.shape, -1e4)
        sure[..., 0] = 1e4
        none = torch.zeros_like(sure)
        pairs = ((sure, sure), (sure, sure.flip(-1)), (none, sure), (sure, none))
        return [replace(given, student=student, teacher=teacher) for student, teacher in pairs]

    def unmasked(self, given: LossInputs) -> LossInputs:
        """The same batch with every position valid."""
        return given if given.mask is None else replace(given, mask=torch.ones_like(given.mask))

    def sees_padding(self, given: LossInputs) -> bool:
        """Whether it gets whole logits with their mask."""
        return self._names_mask and given.mask is not None

    def test_temperature_by_position(self) -> None:
        """One temperature for each position, all alike, gives what the number gives."""
        given = self.inputs()
        shape = given.student.shape[:-1] if given.mask is None or self._names_mask else (int(given.mask.sum()),)
        expected = self._at(self._made(given), given, 2.0).detach()
        value = self._at(self._made(given), given, torch.full(shape, 2.0)).detach()
        require(finite(value), f"is {float(value)} for a temperature of each position")
        require(close(value, expected), f"is {float(value):.6g} for temperatures of 2 and {float(expected):.6g} for 2")

    def test_t_squared(self) -> None:
        """Where it claims so, gradients keep their size as the temperature rises."""
        if "t_squared" not in self.claimed:
            does_not_apply('it does not claim it: @component(claims=("t_squared",)) does')
        warm, hot = (self._gradient_at(temperature) for temperature in (WARM, HOT))
        require(
            close(warm, hot, TEMPERATURE_TOLERANCE),
            f"has a gradient of {float(warm.abs().max()):.3g} at a temperature of {WARM:g} and {float(hot.abs().max()):.3g} "
            f"at {HOT:g}; multiply by the temperature's square",
        )

    def test_standardise(self) -> None:
        """Where it claims so, its option `standardise` makes it blind to scale and shift of either side; constant logits do no harm."""
        if "standardise" not in self.claimed:
            does_not_apply('it does not claim it: @component(claims=("standardise",)) does')
        given = self.inputs()
        method = self.subject.bind({**self.chosen, "standardise": True})
        moved = replace(given, student=3 * given.student + 5, teacher=given.teacher / 2 - 4)
        value, expected = (self.called(method, each).detach() for each in (moved, given))
        require(
            close(value, expected),
            f"is {float(value):.6g} for standardised logits that were scaled and shifted, and {float(expected):.6g} before",
        )
        constant = torch.full_like(given.student, 0.1)
        for student, teacher in ((constant, given.teacher), (given.student, constant), (constant, constant)):
            found = self.answer(replace(given, student=student, teacher=teacher), method=method)
            require(
                finite(found.value, *found.student), "or its gradient is not finite for constant logits, standardised"
            )

    def test_vocabulary_padding(self) -> None:
        """Where it claims so, classes that both sides rule out with -inf change neither the loss nor its gradient."""
        if "vocabulary_padding" not in self.claimed:
            does_not_apply('it does not claim it: @component(claims=("vocabulary_padding",)) does')
        given = self.inputs()
        padded = replace(given, student=_with_ruled_out(given.student), teacher=_with_ruled_out(given.teacher))
        narrow, wide = self.answer(given), self.answer(padded)
        require(
            close(narrow.value, wide.value),
            f"is {float(wide.value):.6g} with classes that both sides rule out, and {float(narrow.value):.6g} without",
        )
        require(
            close(narrow.student[0], wide.student[0][..., :CLASSES]) and not bool(wide.student[0][..., CLASSES:].any()),
            "has another gradient with classes that both sides rule out",
        )

    def test_sparse_teacher(self) -> None:
        """Where it declares `sparse`, SparseLogits of all classes give what the tensor gives, and those of some a finite loss."""
        if not self.subject.facts.sparse:
            does_not_apply("it needs all of the teacher's logits: it does not declare @component(sparse=True)")
        given = self.inputs()
        whole = SparseLogits.top_k(given.teacher, CLASSES)
        for temperature in (1.0, 2.0):
            value, gradient = self._with_gradient(given, given.teacher, temperature)
            found, own = self._with_gradient(given, whole, temperature)
            require(
                close(found, value),
                f"is {float(found):.6g} for sparse logits of all classes and {float(value):.6g} for all",
            )
            require(
                close(own * 1e2, gradient * 1e2), "has another gradient for sparse logits of all classes than for all"
            )
        some, drawn = SparseLogits.top_k(given.teacher, SOME), self._drawn(given.teacher)
        for sparse, temperatures in ((some, (1.0, 2.0)), (drawn, (1.0,))):
            for temperature in temperatures:
                self._require_finite_sparse(given, sparse, temperature)

    def _require_finite_sparse(self, given: LossInputs, sparse: SparseLogits, temperature: float) -> None:
        try:
            found = self._with_gradient(given, sparse, temperature)
        except (
            RequestError
        ):  # it may take one kind alone, or no fewer classes than an option asks for, where it says so
            return
        require(
            not self.bound().against_sparse(sparse.kept, ""),
            f"takes logits of which {sparse.kept} are kept, and declares that it refuses them",
        )
        require(finite(*found), f"or its gradient is not finite where the teacher keeps {sparse.kept}")

    def _with_gradient(self, given: LossInputs, teacher: Any, temperature: float) -> tuple[Tensor, Tensor]:
        student = given.student.detach().clone().requires_grad_()
        value = self._at(self._made(given), replace(given, student=student, teacher=teacher), temperature)
        (gradient,) = torch.autograd.grad(value, [student])
        return value.detach(), gradient

    @staticmethod
    def _drawn(teacher: Tensor) -> SparseLogits:
        return SparseLogits.sampled(teacher, DRAWS, torch.Generator().manual_seed(SEED))

    @property
    def _names_mask(self) -> bool:
        return "mask" in self.subject.signature.inputs

    def _at(self, method: Method, given: LossInputs, temperature: float | Tensor) -> Tensor:
        value: Tensor
        if given.mask is None or self._names_mask:
            mask = given.mask
            value = method(given.student, given.teacher, temperature, mask=mask, labels=given.labels, progress=0.5)
            return value
        student, teacher = _selected(given.student, given.mask), _selected(given.teacher, given.mask)
        labels = None if given.labels is None else _selected(given.labels, given.mask)
        value = method(student, teacher, temperature, labels=labels, progress=0.5)
        return value

    def _gradient_at(self, temperature: float) -> Tensor:
        given = self.inputs()
        _, gradient = self._with_gradient(given, given.teacher, temperature)
        # scaled up: `close` takes gradients of a hundredth for those of rounding
        return gradient * 1e3


def _with_ruled_out(logits: Tensor) -> Tensor:
    """The logits with two more classes of -inf."""
    return torch.nn.functional.pad(logits, (0, 2), value=-math.inf)


def _selected(tensor: Tensor, mask: Tensor) -> Tensor:
    """The valid positions; those of the tensor itself where all are, so that a change of them is seen."""
    return tensor.flatten(0, 1) if bool(mask.all()) else tensor[mask]
