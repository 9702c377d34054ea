"""What kd losses and match losses promise alike.

Shapes: B rows, L tokens, D width, V classes, N valid positions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brewer_core.components import Method
from brewer_core.errors import ShapeError
from brewer_core.features import Counts
from brewer_core.testing.conformance import Conformance, does_not_apply, require
from brewer_core.testing.tensors import close, each, finite, same_bits, seeded_tensors, tensors_in

SPLIT = 1
"""The first part of a split batch has this many rows, and the second one the others."""

SEVERAL = 3
BF16_TOLERANCE = 0.05


@dataclass(frozen=True)
class LossInputs:
    """A batch as a loss sees it.

    student, teacher: a tensor, or a tuple of two for a loss on pairs of layers. mask: [B, L], True at valid tokens;
    None where all count. labels: as many as there are rows or tokens.
    """

    student: Any
    teacher: Any
    mask: Tensor | None = None
    labels: Tensor | None = None

    def rows(self, start: int, stop: int | None) -> LossInputs:
        """Some of the rows."""
        mask = None if self.mask is None else self.mask[start:stop]
        labels = None if self.labels is None else self.labels[start:stop]
        return LossInputs(
            each(self.student, lambda t: t[start:stop]), each(self.teacher, lambda t: t[start:stop]), mask, labels
        )

    def counts(self) -> Counts:
        """What the batch holds."""
        rows = len(tensors_in(self.student)[0])
        if self.mask is None:
            return Counts.of_rows(rows)
        lengths = self.mask.sum(1)
        tokens = int(lengths.sum())
        labels = tokens if self.labels is None or self.labels.dim() > 1 else rows
        return Counts(rows, tokens, int(lengths.square().sum()), logits=tokens, labels=labels)

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        return tensors_in([self.student, self.teacher, self.mask, self.labels])


class Answer(NamedTuple):
    """What a loss gave: its value, and its gradients to the student's tensors and the teacher's; 0 where there is none."""

    value: Tensor
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]


class LossConformance(Conformance):
    """The properties of losses of both kinds."""

    @abstractmethod
    def inputs(self) -> LossInputs:
        """A batch of which no two rows have the same number of valid tokens. Override it for tensors of another form."""

    @abstractmethod
    def called(self, method: Method, given: LossInputs) -> Tensor:
        """The loss of a batch, from the component with its options set."""

    @abstractmethod
    def padded_anew(self, given: LossInputs, seed: int) -> LossInputs:
        """The same batch with other values where nothing is valid."""

    @abstractmethod
    def longer(self, given: LossInputs) -> LossInputs:
        """The same batch with more padding behind each row."""

    @abstractmethod
    def wrong(self, given: LossInputs) -> LossInputs:
        """The same batch with a teacher that is wider than the student."""

    @abstractmethod
    def extremes(self, given: LossInputs) -> list[LossInputs]:
        """Batches whose values are as large as a model may give."""

    def loss(self, given: LossInputs) -> Tensor:
        """The loss of a batch, without its graph; one with state is built anew, from the same seed."""
        value = self.called(self._made(given), given)
        require(isinstance(value, Tensor), f"returns a {type(value).__name__}; a loss returns a scalar tensor")
        return value.detach()

    def answer(self, given: LossInputs, *, method: Method | None = None, teacher: bool = False) -> Answer:
        """The loss of a batch and its gradients; teacher: ask for those to the teacher as well."""
        student = each(given.student, lambda t: t.detach().clone().requires_grad_())
        taught = each(given.teacher, lambda t: t.detach().clone().requires_grad_(teacher))
        value = self.called(method or self._made(given), replace(given, student=student, teacher=taught))
        require(isinstance(value, Tensor), f"returns a {type(value).__name__}; a loss returns a scalar tensor")
        return Answer(value.detach(), _gradients(value, student), _gradients(value, taught))

    def test_scalar(self) -> None:
        """The loss is one floating-point number, with a mask and without."""
        for given in (self.inputs(), self.unmasked(self.inputs())):
            value = self.loss(given)
            require(value.dim() == 0, f"returns the shape {tuple(value.shape)}; a loss returns a scalar, its mean")
            require(value.is_floating_point(), f"returns {value.dtype}; a loss is a floating-point number")
            require(finite(value), f"returns {float(value)} for ordinary inputs")

    def test_identity(self) -> None:
        """A student that agrees with its teacher has no gradient, and no change of it gives a smaller loss."""
        given = self.inputs()
        same = replace(given, student=each(given.teacher, torch.clone))
        here, elsewhere = self.answer(same), self.answer(given)
        largest, usual = _largest(here.student), _largest(elsewhere.student)
        require(
            largest <= 1e-3 * usual + 1e-6,
            f"has a gradient of {largest:.3g} where student and teacher agree, and of {usual:.3g} elsewhere",
        )
        for seed in range(SEVERAL):
            moved = replace(same, student=each(same.student, partial(_beside, seed=seed)))
            value = self.loss(moved)
            require(
                bool(value >= here.value - 1e-4 * here.value.abs() - 1e-6),
                f"is {float(value):.6g} for a student beside its teacher, less than {float(here.value):.6g} where they agree",
            )

    def test_padding_invariance(self) -> None:
        """Neither values at padding nor more of it change the loss or its gradient."""
        given = self.inputs()
        if not self.sees_padding(given):
            does_not_apply("it sees valid positions alone: it names no `mask`")
        first, second = (self.answer(self.padded_anew(given, seed)) for seed in (1, 2))
        require(close(first.value, second.value), _differ("values at padding change the loss", first, second))
        for one, other in zip(first.student, second.student, strict=True):
            require(
                close(self.at_valid(one, given), self.at_valid(other, given)), "values at padding change the gradient"
            )
        longer = self.answer(self.padded_anew(self.longer(given), 1))
        require(close(first.value, longer.value), _differ("more padding changes the loss", first, longer))

    def test_batch_split(self) -> None:
        """The losses of a batch's parts, weighed by what they hold of `over`, have the mean that is the loss of the whole."""
        whole, parts = self.loss(self._split_inputs()), self._parts(self._split_inputs())
        mean = sum(share * self.loss(part) for share, part in parts)
        require(
            close(whole, torch.as_tensor(mean)),
            f"is {float(whole):.6g} for a batch and {float(mean):.6g} for its parts, weighed by {self._over_text()}",
        )

    def test_accumulation(self) -> None:
        """The gradients of a batch's parts, weighed like their losses, are the gradient of the whole."""
        given = self._split_inputs()
        whole, parts = self.answer(given).student, self._parts(given)
        accumulated = [[share * g for g in self.answer(part).student] for share, part in parts]
        for position, gradient in enumerate(whole):
            joined = torch.cat([gradients[position] for gradients in accumulated])
            require(
                close(gradient, joined),
                f"has another gradient for a batch than for its parts, weighed by {self._over_text()}",
            )

    def test_gradient_to_student(self) -> None:
        """The student gets a gradient that is finite and not 0."""
        for gradient in self.answer(self.inputs()).student:
            require(finite(gradient), "gives the student a gradient that is not finite")
            require(bool(gradient.any()), "gives the student no gradient")

    def test_no_gradient_to_teacher(self) -> None:
        """The teacher gets none, even where it would take one."""
        taught = self.answer(self.inputs(), teacher=True).teacher
        require(_largest(taught) == 0, "gives the teacher a gradient; take `teacher.detach()`")

    def test_fully_masked(self) -> None:
        """The loss and its gradient are finite where a row, or every row, has no valid token."""
        given = self.inputs()
        if given.mask is None:
            does_not_apply("its inputs have no mask")
        one_row = given.mask.clone()
        one_row[1] = False
        for mask, what in ((one_row, "a row has"), (torch.zeros_like(given.mask), "all rows have")):
            self._require_finite(self.padded_anew(replace(given, mask=mask), 1), f"where {what} no valid token")

    def test_extreme_values(self) -> None:
        """The loss and its gradient are finite for values of 10,000 and for 0."""
        for given in self.extremes(self.inputs()):
            self._require_finite(given, "for values of 10,000 or for 0")

    def test_bf16(self) -> None:
        """On bfloat16 tensors it gives what it gives on float32 tensors of the same values, but for rounding."""
        given = self.inputs()
        rounded = replace(given, **{n: each(getattr(given, n), lambda t: t.bfloat16()) for n in ("student", "teacher")})
        exact = replace(rounded, **{n: each(getattr(rounded, n), lambda t: t.float()) for n in ("student", "teacher")})
        method = self._made(given)
        if isinstance(method.target, nn.Module):
            method.target.bfloat16()
        value, expected = float(self.called(method, rounded).detach()), float(self.loss(exact))
        require(
            abs(value - expected) <= BF16_TOLERANCE * max(abs(expected), 0.1),
            f"is {value:.4g} in bfloat16 and {expected:.4g} in float32",
        )

    def test_deterministic(self) -> None:
        """The same inputs give the same bits, of the loss and of its gradient."""
        given = self.inputs()
        methods = [self._made(given), self._made(given)]
        first, second = (self.answer(given, method=method) for method in methods)
        same = [
            same_bits(a, b) for a, b in zip((first.value, *first.student), (second.value, *second.student), strict=True)
        ]
        require(all(same), "gives other bits for the same inputs")

    def test_inputs_unchanged(self) -> None:
        """Its inputs are left as they were."""
        given = self.inputs()
        whole = given if given.mask is None else replace(given, mask=torch.ones_like(given.mask))
        for batch in (given, whole):
            before = [tensor.clone() for tensor in batch.tensors()]
            self.loss(batch)
            require(all(map(same_bits, before, batch.tensors())), "changes its inputs in place; make new tensors")

    def test_wrong_width(self) -> None:
        """A teacher of another width is refused with `brewer_core.ShapeError`, which says what to do."""
        given = self.inputs()
        if self.subject.signature.sizes:
            does_not_apply(f"it is built for the widths that it names: {', '.join(self.subject.signature.sizes)}")
        try:
            value = self.loss(self.wrong(given))
        except ShapeError:
            return
        except Exception as error:
            raise AssertionError(
                f"raises {type(error).__name__} for a teacher of another width; raise brewer_core.ShapeError"
            ) from error
        raise AssertionError(f"gives {float(value):.4g} for a teacher of another width; raise brewer_core.ShapeError")

    def unmasked(self, given: LossInputs) -> LossInputs:
        """The same batch without a mask."""
        return replace(given, mask=None)

    def sees_padding(self, given: LossInputs) -> bool:
        """Whether tensors with padding reach the loss."""
        return given.mask is not None

    def at_valid(self, gradient: Tensor, given: LossInputs) -> Tensor:
        """A gradient where tokens are valid."""
        assert given.mask is not None
        return gradient[given.mask] if gradient.shape[:2] == given.mask.shape else gradient

    def _made(self, given: LossInputs) -> Method:
        widths = [tensors_in(side)[0].shape[-1] for side in (given.student, given.teacher)]
        return self.bound(student_dim=widths[0], teacher_dim=widths[1])

    def _split_inputs(self) -> LossInputs:
        over = self.subject.facts.over
        if over == "batch":
            does_not_apply('it is declared over="batch": defined on a batch as a whole')
        if over is None and self.kind == "match_loss":
            does_not_apply("it declares no `over` to weigh parts by")
        return self.inputs()

    def _parts(self, given: LossInputs) -> list[tuple[float, LossInputs]]:
        parts = [given.rows(0, SPLIT), given.rows(SPLIT, None)]
        items = [self._items(part.counts()) for part in parts]
        return [(count / sum(items), part) for count, part in zip(items, parts, strict=True)]

    def _items(self, counts: Counts) -> float:
        over = self.subject.facts.over or "rows"
        return float(over(counts)) if callable(over) else float(getattr(counts, over))

    def _over_text(self) -> str:
        over = self.subject.facts.over or "rows"
        return "its own count" if callable(over) else f"{over}; declare another `over`, or return the mean over {over}"

    def _require_finite(self, given: LossInputs, where: str) -> None:
        found = self.answer(given)
        require(finite(found.value), f"is {float(found.value)} {where}")
        require(finite(*found.student), f"has a gradient that is not finite {where}")


def _gradients(value: Tensor, leaves: Any) -> tuple[Tensor, ...]:
    tensors = tensors_in(leaves)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if not value.requires_grad or not wanted:
        return tuple(torch.zeros_like(tensor) for tensor in tensors)
    found = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True))


def _beside(tensor: Tensor, seed: int) -> Tensor:
    return tensor + 0.1 * seeded_tensors(*tensor.shape, seed=seed)


def _largest(gradients: tuple[Tensor, ...]) -> float:
    return max((float(gradient.abs().max()) for gradient in gradients if gradient.numel()), default=0.0)


def _differ(what: str, one: Answer, other: Answer) -> str:
    return f"{what}, from {float(one.value):.6g} to {float(other.value):.6g}"
