"""The loss between the logits of student and teacher.

Shapes: B rows, L length, V vocabulary or classes, N valid positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from brewer_core.components import Method
from brewer_core.components.facts import Over
from brewer_core.errors import AdaptorError, ConfigError, ShapeError
from brewer_core.features import Counts, Features
from brewer_core.objective.scalar import scalar_loss
from brewer_core.protocols import Step
from brewer_core.sparse_logits import Kept, SparseLogits

Logits = TypeVar("Logits", Tensor, "Tensor | SparseLogits")


class LogitTerm(nn.Module):
    """The loss between the logits of student and teacher, summed over their heads.

    temperature, scheduler: the base temperature, and what adjusts it to the logits.
    probability_shift: exchange the teacher's largest logit with that of the true label.
    The teacher's logits may be SparseLogits, where `refuses_sparse` has nothing against it.
    """

    def __init__(self, loss: Method, temperature: float, scheduler: Method | None, probability_shift: bool) -> None:
        super().__init__()
        self.loss = loss
        self.temperature = temperature
        self.scheduler = scheduler
        self.probability_shift = probability_shift
        self.state = loss.target if isinstance(loss.target, nn.Module) else None

    @property
    def over(self) -> Over | Callable[[Counts], float]:
        """What its mean is over: the whole batch where the temperature depends on the batch."""
        depends = self.scheduler is not None and self.scheduler.component.facts.over == "batch"
        return "batch" if depends else self.loss.component.facts.over or "rows"

    def refuses_sparse(self, kept: Kept) -> list[str]:
        """What stands against teachers' logits of which only some are kept, a sentence each; none where they are accepted."""
        problems, needs_all = [], f"needs all of the teacher's logits, and the cache keeps {kept}"
        loss, scheduler = self.loss.component, self.scheduler.component if self.scheduler else None
        if not loss.facts.sparse:
            problems.append(f"kd_loss_type: `{loss.name}` {needs_all}; use ce or kl, or keep them dense")
        if scheduler and not scheduler.facts.sparse:
            problems.append(
                f"temperature_scheduler: `{scheduler.name}` {needs_all}; use cwsm or none, or keep them dense"
            )
        if self.probability_shift:
            problems.append(
                f"probability_shift: it needs the teacher's logit of the true label, and the cache keeps {kept}, the true one "
                "perhaps not among them; set it to false, or keep them dense"
            )
        if kept.kind == "sampled" and (scheduler or self.temperature != 1):
            asked = f"`{scheduler.name}` may set another" if scheduler else f"it is {self.temperature:g}"
            problems.append(
                f"temperature{'_scheduler' if scheduler else ''}: the cache keeps {kept}, drawn at a temperature of 1, and no loss "
                f"of them is unbiased at another one, but {asked}; "
                f"{'leave it out' if scheduler else 'set it to 1'}, or keep them as top_k or dense"
            )
        return problems

    def forward(self, student: Features, teacher: Features, step: Step) -> Tensor:
        """The unweighted loss, a scalar."""
        heads, taught = student["logits"], cast("tuple[Tensor | SparseLogits, ...]", teacher["logits"])
        if len(heads) != len(taught):
            raise AdaptorError(
                f"the student's adaptor returns {len(heads)} logits and the teacher's {len(taught)}; return equally many."
            )
        student_masks, teacher_masks = _masks(student, len(heads)), _masks(teacher, len(heads))
        labels = student.get("labels", ())
        losses = [
            self._head(head, teach, mask, teacher_mask, labels[i] if i < len(labels) else None, step)
            for i, (head, teach, mask, teacher_mask) in enumerate(
                zip(heads, taught, student_masks, teacher_masks, strict=True)
            )
        ]
        return sum(losses[1:], losses[0])

    def _head(
        self,
        student: Tensor,
        teacher: Tensor | SparseLogits,
        mask: Tensor | None,
        teacher_mask: Tensor | None,
        labels: Tensor | None,
        step: Step,
    ) -> Tensor:
        if isinstance(teacher, SparseLogits):
            self._check_sparse(teacher.kept)
        shared = teacher_mask is mask
        mask, teacher_mask = _positions(mask, student, "student"), _positions(teacher_mask, teacher, "teacher")
        labels = _by_position(labels, student)
        if self.probability_shift:
            _check_labels(labels, student)
        own, taught = _select(student, mask), _select(teacher, teacher_mask)
        if own.shape[0] != taught.shape[0]:
            raise ShapeError(
                f"student logits {tuple(student.shape)} have {own.shape[0]} valid positions and teacher logits "
                f"{tuple(teacher.shape)} {taught.shape[0]}; logits and logits_mask must agree."
            )
        valid_labels = _select_labels(labels, student, mask)
        taught = self._shifted(taught, valid_labels)
        temperature = self._temperature(own, taught, step)
        if "mask" not in self.loss.component.signature.inputs or student.dim() != 3:
            return self._scalar(self.loss(own, taught, temperature, labels=valid_labels, progress=step.progress))
        whole = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device) if mask is None else mask
        spread = _spread(temperature, whole, self.temperature)
        aligned = self._shifted(teacher, labels) if shared else _in_places(taught, whole)
        return self._scalar(self.loss(student, aligned, spread, mask=whole, labels=labels, progress=step.progress))

    def _check_sparse(self, kept: Kept) -> None:
        problems = self.refuses_sparse(kept)
        if problems:
            raise ConfigError(problems, "DistillationConfig")

    def _shifted(self, teacher: Tensor | SparseLogits, labels: Tensor | None) -> Tensor | SparseLogits:
        if isinstance(teacher, SparseLogits) or not self.probability_shift or labels is None:
            return teacher
        return probability_shift(teacher, labels)

    def _temperature(self, student: Tensor, teacher: Tensor | SparseLogits, step: Step) -> float | Tensor:
        if self.scheduler is None:
            return self.temperature
        scheduled = self.scheduler(student.detach(), teacher.detach(), self.temperature, progress=step.progress)
        return scheduled.detach() if isinstance(scheduled, Tensor) else float(scheduled)

    def _scalar(self, loss: Any) -> Tensor:
        return scalar_loss(loss, f"kd loss `{self.loss.component.name}`")


def probability_shift(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with the largest exchanged for that of the true label; rows with a negative label stay.

    logits: [B, C] or [B, L, V], not changed. labels: [B] or [B, L].
    Raises ShapeError where their shapes do not belong together.
    """
    _check_belong(labels, logits)
    largest = logits.argmax(-1, keepdim=True)
    truth = torch.where(labels < 0, largest.squeeze(-1), labels).unsqueeze(-1)
    shifted = logits.scatter(-1, largest, logits.gather(-1, truth))
    return shifted.scatter(-1, truth, logits.gather(-1, largest))


def _masks(features: Features, heads: int) -> Sequence[Tensor | None]:
    masks = features.get("logits_mask", ())
    if not masks:
        return [None] * heads
    if len(masks) not in (1, heads):
        raise AdaptorError(
            f"an adaptor returns {heads} logits and {len(masks)} under `logits_mask`; return one mask, or one for each."
        )
    return masks * heads if len(masks) == 1 else masks


def _positions(mask: Tensor | None, logits: Tensor | SparseLogits, side: str) -> Tensor | None:
    """[B, L], bool: the valid positions of [B, L, V]; None where all are, and for [B, C], on which a mask has no effect."""
    if mask is None or logits.dim() != 3:
        return None
    try:
        return mask.bool().expand(logits.shape[:2])
    except RuntimeError as error:
        raise ShapeError(
            f"the {side}'s logits_mask {tuple(mask.shape)} does not belong to its logits {tuple(logits.shape)}; it must be "
            f"{tuple(logits.shape[:2])}."
        ) from error


def _by_position(labels: Tensor | None, logits: Tensor) -> Tensor | None:
    """[B, L]: the labels of [B, L, V], were they in one row or column; others as they are."""
    if labels is None or logits.dim() != 3 or labels.numel() != logits.shape[:2].numel():
        return labels
    return labels.reshape(logits.shape[:2])


def _select(logits: Logits, mask: Tensor | None) -> Logits:
    """[N, V]: the valid positions of [B, L, V]; a mask has no effect on [B, C]."""
    if logits.dim() != 3:
        return logits
    return logits.flatten(0, 1) if mask is None else logits[mask]


def _select_labels(labels: Tensor | None, logits: Tensor, mask: Tensor | None) -> Tensor | None:
    """[N]: the labels of the valid positions of [B, L, V]; those of [B, C] as they are."""
    if labels is None or logits.dim() != 3 or labels.shape[:2] != logits.shape[:2]:
        return labels
    return labels.flatten(0, 1) if mask is None else labels[mask]


def _spread(temperature: float | Tensor, mask: Tensor, base: float) -> float | Tensor:
    """[B, L]: the temperatures of the valid positions in their places, the base temperature elsewhere."""
    if not isinstance(temperature, Tensor) or temperature.dim() == 0:
        return temperature
    return torch.full(mask.shape, base, dtype=temperature.dtype, device=mask.device).masked_scatter(mask, temperature)


def _in_places(valid: Tensor | SparseLogits, mask: Tensor) -> Tensor | SparseLogits:
    """[B, L, V]: the teacher's logits of its valid positions, [N, V], in those of the student; 0 elsewhere."""
    if isinstance(valid, SparseLogits):
        return valid.in_places(mask)
    return valid.new_zeros(*mask.shape, valid.shape[-1]).masked_scatter(mask.unsqueeze(-1), valid)


def _check_labels(labels: Tensor | None, logits: Tensor) -> None:
    if labels is None:
        raise AdaptorError(
            "probability_shift needs `labels`, one for each of the logits; the student's adaptor must return them."
        )
    _check_belong(labels, logits)


def _check_belong(labels: Tensor, logits: Tensor) -> None:
    if logits.shape[:-1] != labels.shape:
        raise ShapeError(
            f"probability_shift: labels {tuple(labels.shape)} do not belong to logits {tuple(logits.shape)}."
        )
