"""Teachers that remember: what they answered for a row of data once is not computed again.

Shapes: B rows, L tokens of the longest row of a batch, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brewer_core.batches import side, teacher_cache
from brewer_core.errors import AdaptorError, RequestError
from brewer_core.features import Feature, Features
from brewer_core.protocols import Batch, Teacher
from brewer_core.row_keys import row_keys, valid_tokens

REMEMBERED = frozenset({"logits", "logits_mask", "losses", "labels", "inputs_mask"})
"""Features that a run may read of a teacher whose logits alone are remembered."""


@dataclass(frozen=True)
class _Row:
    """One head's logits for a row, [V] or [L, V], and their mask.

    padded_to: the length that they were computed at, where they hold the padding; None where they do not depend on it.
    """

    logits: Tensor
    mask: Tensor | None = None
    padded_to: int | None = None


class RememberingTeacher:
    """A teacher whose logits are computed once for each row, and kept in memory on the CPU.

    A row is known by what its tensors hold, so that order, batches and padding may differ from pass to pass. Only
    logits and their mask are kept.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self._rows: dict[bytes, tuple[_Row, ...]] = {}

    @staticmethod
    def keeps(needs: frozenset[str]) -> bool:
        """Whether all that a run reads of the teacher is kept."""
        return needs <= REMEMBERED

    def features(self, batch: Batch, needs: frozenset[str]) -> Features:
        """The logits of a batch, computed where a row is new. Raises RequestError where more is read than logits."""
        if not self.keeps(needs):
            raise RequestError(
                f"is_caching_logits keeps the teacher's logits alone, but this run also reads {', '.join(sorted(needs - REMEMBERED))}; "
                "set is_caching_logits to false, or drop the intermediate matches."
            )
        if teacher_cache(batch) is not None:
            return self.teacher.features(batch, needs)
        own = side(batch, "teacher")
        keys, valid = row_keys(own), valid_tokens(own)
        known = [self._rows[key] for key in keys if key in self._rows]
        length = None if valid is None else valid.shape[1]
        if len(known) == len(keys) and all(row.padded_to in (None, length) for rows in known for row in rows):
            return Features({name: Feature(tensors, axes) for name, tensors, axes in _batch(known, valid)})
        answer = self.teacher.features(batch, needs)
        self._rows.update(zip(keys, _rows(answer, valid, len(keys)), strict=True))
        return answer


def _rows(answer: Features, valid: Tensor | None, count: int) -> list[tuple[_Row, ...]]:
    """What is kept of each row. Raises AdaptorError where the logits are not one a row."""
    heads, masks = answer.get("logits", ()), answer.get("logits_mask", ())
    if not heads or any(head.dim() not in (2, 3) or head.shape[0] != count for head in heads):
        shapes = [tuple(head.shape) for head in heads]
        raise AdaptorError(
            f"is_caching_logits needs logits of shape [B, C] or [B, L, V] for {count} rows, not {shapes}; set it to false."
        )
    each = masks if len(masks) == len(heads) else tuple(masks[:1]) * len(heads) or (None,) * len(heads)
    kept = [list(_head(head.detach().cpu(), mask, valid)) for head, mask in zip(heads, each, strict=True)]
    return list(zip(*kept, strict=True))


def _head(logits: Tensor, mask: Tensor | None, valid: Tensor | None) -> Iterator[_Row]:
    if logits.dim() == 2:
        yield from (_Row(row.clone()) for row in logits)
        return
    marks = None if mask is None else mask.bool().cpu().expand(logits.shape[:2])
    padded_to = None if valid is None else valid.shape[1]
    for i, row in enumerate(logits):
        if marks is None:
            yield _Row(row.clone(), None, padded_to)
        elif valid is None or marks.shape != valid.shape or bool((marks[i] & ~valid[i]).any()):
            yield _Row(row.clone(), marks[i].clone(), padded_to)
        else:
            yield _Row(row[valid[i]], marks[i][valid[i]])


def _batch(rows: Sequence[tuple[_Row, ...]], valid: Tensor | None) -> Iterator[tuple[str, tuple[Tensor, ...], str]]:
    """The features of a batch from what is kept of its rows; where a row was padded anew, its logits are 0."""
    heads = list(zip(*rows, strict=True))
    logits = tuple(torch.stack([_placed(row.logits, row, i, valid) for i, row in enumerate(head)]) for head in heads)
    yield "logits", logits, "B C" if logits[0].dim() == 2 else "B L V"
    masks = [_mask(head, valid) for head in heads]
    known = [mask for mask in masks if mask is not None]
    if known:  # logits of rows have no mask, which would shift those of the heads after them
        yield "logits_mask", tuple(known[0] if mask is None else mask for mask in masks), "B L"


def _mask(head: Sequence[_Row], valid: Tensor | None) -> Tensor | None:
    placed = [_placed(row.mask, row, i, valid) for i, row in enumerate(head) if row.mask is not None]
    return torch.stack(placed) if placed else None


def _placed(tensor: Tensor, row: _Row, i: int, valid: Tensor | None) -> Tensor:
    """What is kept of the i-th row, [L, ...], with its tokens in the places of the valid ones."""
    if valid is None or row.logits.dim() == 1 or row.padded_to is not None:
        return tensor
    whole = tensor.new_zeros(valid.shape[1], *tensor.shape[1:])
    whole[valid[i]] = tensor
    return whole
