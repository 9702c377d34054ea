"""Linear projections of the student's hidden states, which bring them to the teacher's width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

STANDARD_DEVIATION = 0.02


Widths = list[tuple[int, int]]
"""How wide each state of the student that is compared is, and the teacher's that it is compared with."""


def paired(student: Sequence[int], teacher: Sequence[int], embedding: bool) -> Widths:
    """The widths of what is compared, given those of all hidden states of either, the embeddings' first."""
    layers = [(own, teacher[-1]) for own in student[1:]]
    return [(student[0], teacher[0]), *layers] if embedding else layers


def draw(widths: Widths, always: bool) -> nn.ModuleList | None:
    """A projection for each state, in order; None where no state is projected.

    always: also where the widths are equal. Weights come from N(0, 0.02) of torch's global generator, after torch's own
    initialisation, and biases are 0: what brewer's `linear` draws.
    """
    drawn = [_linear(own, taught) if always or own != taught else nn.Identity() for own, taught in widths]
    return nn.ModuleList(drawn) if any(isinstance(each, nn.Linear) for each in drawn) else None


def fit(projections: nn.ModuleList | None, widths: Widths) -> bool:
    """Whether every state has its projection, which brings it to the teacher's width; without any, whether none is needed."""
    if projections is None:
        return all(own == taught for own, taught in widths)
    return len(projections) == len(widths) and all(
        _projected(each, own) == taught for each, (own, taught) in zip(projections, widths, strict=True)
    )


def _projected(projection: nn.Module, width: int) -> int | None:
    """How wide a state of this width becomes; None where the projection does not take it."""
    if not isinstance(projection, nn.Linear):
        return width
    return projection.out_features if projection.in_features == width else None


def _linear(width: int, wanted: int) -> nn.Linear:
    layer = nn.Linear(width, wanted)
    nn.init.normal_(layer.weight, std=STANDARD_DEVIATION)
    nn.init.zeros_(layer.bias)
    return layer
