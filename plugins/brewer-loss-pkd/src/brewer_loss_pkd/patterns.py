"""Which layer of the teacher teaches which layer of the student: the two patterns of the paper."""

from __future__ import annotations

from typing import Literal, TypeAlias

from brewer_core import RequestError

Pattern: TypeAlias = Literal["skip", "last"]


def layers(pattern: Pattern, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """The layer of the teacher and that of the student, for each layer of the student but its last.

    Layers count from 1: 0 is the embeddings' output, as in the hidden states that Hugging Face's models give. The student's last
    layer takes no part, since it feeds the logits, which have a loss of their own.

    skip: every (teacher_layers / student_layers)-th layer of the teacher; where that is no whole number the nearest one, and
    of two the upper. last: the last ones before the teacher's final layer. Of models of one depth both are the same layers.

    Raises RequestError for a student of one layer, and for one that is deeper than its teacher.
    Source: Sun et al. 2019, arXiv:1908.09355, section 3.2 and figure 1; depths that do not divide are not in it.
    """
    if student_layers < 2:
        raise RequestError(
            f"the student has {student_layers} layer, and its last one is not taught by `pkd`; it needs 2 layers or more."
        )
    if student_layers > teacher_layers:
        raise RequestError(
            f"the student has {student_layers} layers and the teacher {teacher_layers}; `pkd` teaches a student that is no deeper "
            "than its teacher."
        )
    taught = range(1, student_layers)
    if pattern == "last":
        return [(teacher_layers - student_layers + layer, layer) for layer in taught]
    # half a layer is added before the division is cut off: round() would go to the even one of two
    return [((2 * layer * teacher_layers + student_layers) // (2 * student_layers), layer) for layer in taught]
