"""The losses between the logits of student and teacher.

Shapes: B rows, L length, V vocabulary or classes, N valid positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from brewer_core.components import Method
from brewer_core.components.facts import Over
from brewer_core.errors import AdaptorError, ConfigError, RequestError, ShapeError
from brewer_core.features import Counts, Features
from brewer_core.objective.correction import Correction
from brewer_core.objective.scalar import scalar_loss
from brewer_core.protocols import Step
from brewer_core.sparse_logits import Kept, SparseLogits

Logits = TypeVar("Logits", Tensor, "Tensor | SparseLogits")

_TAKING = {
    "top_k": "ce, kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, adaptive_kl, tvd or top_k_kl",
    "sampled": "ce or kl",
}
"""The losses of brewer's own that take what is kept, by its kind; for errors."""


class LogitTerm(nn.Module):
    """The losses between the logits of student and teacher, one or several, each summed over the heads.

    losses: by the names of their terms. temperature, scheduler: the base temperature, and what adjusts it to the logits. correction:
    what labels do to the teacher's logits. Positions, temperature and correction are found once for all losses.
    The teacher's logits may be SparseLogits, where `refuses_sparse` has nothing against it.
    """

    def __init__(
        self,
        losses: Mapping[str, Method],
        temperature: float,
        scheduler: Method | None = None,
        correction: Correction | None = None,
    ) -> None:
        super().__init__()
        self.losses = dict(losses)
        self.temperature = temperature
        self.scheduler = scheduler
        self.correction = correction
        for i, loss in enumerate(self.losses.values()):
            if isinstance(loss.target, nn.Module):
                self.add_module(f"state_{i + 1}" if i else "state", loss.target)

    def over(self, name: str) -> Over | Callable[[Counts], float]:
        """What the mean of a loss is over: the whole batch where the temperature depends on the batch."""
        depends = self.scheduler is not None and self.scheduler.component.facts.over == "batch"
        return "batch" if depends else self.losses[name].component.facts.over or "rows"

    def refuses_sparse(self, kept: Kept, names: Collection[str] | None = None) -> list[str]:
        """What stands against teachers' logits of which only some are kept, a sentence each; none where they are accepted.

        names: of the losses that are computed; all if None.
        """
        problems = []
        for name, loss in self.losses.items():
            against = loss.against_sparse(kept, _TAKING[kept.kind]) if names is None or name in names else ""
            if against:
                problems.append(f"{self._path(name)}: `{loss.component.name}` {against}")
        against = self.scheduler.against_sparse(kept, "cwsm or none") if self.scheduler else ""
        if self.scheduler and against:
            problems.append(f"temperature_scheduler: `{self.scheduler.component.name}` {against}")
        against = self.correction.refuses_sparse(kept) if self.correction else ""
        problems += [against] if against else []
        if kept.kind == "sampled" and (self.scheduler or self.temperature != 1):
            scheduler = self.scheduler.component if self.scheduler else None
            asked = f"`{scheduler.name}` may set another" if scheduler else f"it is {self.temperature:g}"
            problems.append(
                f"temperature{'_scheduler' if scheduler else ''}: the cache keeps {kept}, drawn at a temperature of 1, and no loss "
                f"of them is unbiased at another one, but {asked}; "
                f"{'leave it out' if scheduler else 'set it to 1'}, or keep them as top_k or dense"
            )
        return problems

    def _path(self, name: str) -> str:
        """Where a loss stands in a config."""
        return "kd_loss_type" if len(self.losses) == 1 else f"kd_loss_type[{[*self.losses].index(name)}]"

    def forward(
        self, student: Features, teacher: Features, step: Step, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """The unweighted losses, a scalar each, by name. names: of those to compute; all if None."""
        heads, taught = student["logits"], cast("tuple[Tensor | SparseLogits, ...]", teacher["logits"])
        if len(heads) != len(taught):
            raise AdaptorError(
                f"the student's adaptor returns {len(heads)} logits and the teacher's {len(taught)}; return equally many."
            )
        student_masks, teacher_masks = _masks(student, len(heads)), _masks(teacher, len(heads))
        labels = student.get("labels", ())
        wanted = {name: loss for name, loss in self.losses.items() if names is None or name in names}
        of_heads = [
            self._head(wanted, head, teach, mask, teacher_mask, labels[i] if i < len(labels) else None, step)
            for i, (head, teach, mask, teacher_mask) in enumerate(
                zip(heads, taught, student_masks, teacher_masks, strict=True)
            )
        ]
        return {name: sum((each[name] for each in of_heads[1:]), of_heads[0][name]) for name in wanted}

    def _head(
        self,
        losses: Mapping[str, Method],
        student: Tensor,
        teacher: Tensor | SparseLogits,
        mask: Tensor | None,
        teacher_mask: Tensor | None,
        labels: Tensor | None,
        step: Step,
    ) -> dict[str, Tensor]:
        if isinstance(teacher, SparseLogits):
            self._check_sparse(teacher.kept, losses)
        shared = teacher_mask is mask
        mask, teacher_mask = _positions(mask, student, "student"), _positions(teacher_mask, teacher, "teacher")
        labels = _by_position(labels, student)
        if self.correction is not None:
            self.correction.check(labels, student)
        own, taught = _select(student, mask), _select(teacher, teacher_mask)
        if own.shape[0] != taught.shape[0]:
            raise ShapeError(
                f"student logits {tuple(student.shape)} have {own.shape[0]} valid positions and teacher logits "
                f"{tuple(teacher.shape)} {taught.shape[0]}; logits and logits_mask must agree."
            )
        valid = self._corrected(_Positions(own, taught, _select_labels(labels, student, mask)), step)
        whole: _Positions | None = None
        found = {}
        for name, loss in losses.items():
            given, more = valid, {}
            if "mask" in loss.component.signature.inputs and student.dim() == 3:
                whole = whole or self._in_places(valid, student, teacher if shared else None, mask, labels)
                given, more = whole, {"mask": whole.mask}
            try:
                value = loss(
                    given.student, given.teacher, given.temperature, labels=given.labels, progress=step.progress, **more
                )
            except RequestError as error:
                raise RequestError(f"{self._path(name)}: {error}") from error
            scalar = scalar_loss(value, f"kd loss `{loss.component.name}`")
            found[name] = scalar if valid.share is None else scalar * valid.share
        return found

    def _corrected(self, valid: _Positions, step: Step) -> _Positions:
        """The valid positions with the teacher corrected, those that the correction drops left out, and the temperature found."""
        student, teacher, labels = valid.student, valid.teacher, valid.labels
        kept = share = None
        if self.correction is not None and labels is not None:
            teacher = self.correction.of_logits(teacher, labels)
            kept = self.correction.kept_positions(teacher, labels)
            if kept is not None:
                # a position that is left out has a loss of 0: the mean stays one over all of them, however a batch is split
                counted = kept.to(torch.promote_types(student.dtype, torch.float32))
                share = counted.mean() if kept.numel() else counted.new_ones(())
                student, teacher, labels = student[kept], teacher[kept], labels[kept]
        temperature = self._temperature(student, teacher, step)
        if self.correction is not None and labels is not None:
            teacher = self.correction.of_softened(teacher, labels, temperature)
        return _Positions(student, teacher, labels, temperature, kept=kept, share=share)

    def _in_places(
        self,
        valid: _Positions,
        student: Tensor,
        teacher: Tensor | SparseLogits | None,
        mask: Tensor | None,
        labels: Tensor | None,
    ) -> _Positions:
        """[B, L, V]: all positions, for a loss that names `mask`. teacher: its own, where it has the student's mask."""
        whole = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device) if mask is None else mask
        if valid.kept is not None:
            whole = whole.masked_scatter(whole, valid.kept)
        if teacher is None or (self.correction is not None and self.correction.softened):
            aligned = _in_places(valid.teacher, whole)
        elif self.correction is not None and labels is not None:
            aligned = self.correction.of_logits(teacher, labels)
        else:
            aligned = teacher
        spread = _spread(valid.temperature, whole, self.temperature)
        return _Positions(student, aligned, labels, spread, mask=whole)

    def _check_sparse(self, kept: Kept, names: Collection[str]) -> None:
        problems = self.refuses_sparse(kept, names)
        if problems:
            raise ConfigError(problems, "DistillationConfig")

    def _temperature(self, student: Tensor, teacher: Tensor | SparseLogits, step: Step) -> float | Tensor:
        if self.scheduler is None:
            return self.temperature
        scheduled = self.scheduler(student.detach(), teacher.detach(), self.temperature, progress=step.progress)
        return scheduled.detach() if isinstance(scheduled, Tensor) else float(scheduled)


@dataclass(frozen=True, eq=False)
class _Positions:
    """What a loss is given: positions in one list, [N, V], or whole with their mask.

    kept: which of the valid ones a correction did not drop, and their share of them; None where it drops none.
    """

    student: Tensor
    teacher: Tensor | SparseLogits
    labels: Tensor | None
    temperature: float | Tensor = 1.0
    mask: Tensor | None = None
    kept: Tensor | None = None
    share: Tensor | None = None


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
