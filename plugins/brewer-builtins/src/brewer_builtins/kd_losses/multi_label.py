"""A loss for classes that do not exclude one another."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from brewer_builtins.kd_losses.softened import Standardise, TSquared, check_shapes, divided, mean_loss
from brewer_core import component


@component(
    over="logits",
    source="Yang et al. 2023, arXiv:2308.06453; T squared as in Hinton et al. 2015, arXiv:1503.02531",
    name="Binary cross-entropy of each class",
    claims=("t_squared", "standardise"),
)
def sigmoid(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    t_squared: TSquared = True,
    standardise: Standardise = False,
) -> Tensor:
    """Binary cross-entropy of each class under the teacher, for models with several labels, times T squared.

    Formula: T² /V Σ -(t log s + (1-t) log(1-s)), with t = σ(teacher / T) and s = σ(student / T)
    temperature: a number, or a Tensor [N] or [B, L] with one for each position.
    Returns a scalar, the mean over positions and classes, no less than the mean of the teacher's binary entropies times T squared, which
    it reaches where the logits agree: as with `ce`, the teacher's entropy is not subtracted. 0 where there are no positions. A class of
    which both are certain, with logits of -inf or inf, adds nothing.
    Needs all of the teacher's logits: what is kept of a softmax says nothing about single classes.
    Raises ShapeError where student, teacher and temperature do not belong together.
    Cost: O(N V).
    Source: one-versus-all distillation, Yang et al. 2023, arXiv:2308.06453, with the cross-entropy itself in place
    of the divergence, which has the same gradient; T squared as in Hinton et al. 2015, arXiv:1503.02531.
    """
    check_shapes(student_logits, teacher_logits, temperature)
    own, taught = divided(student_logits, teacher_logits, temperature, standardise)
    losses = -(_weighed(taught, own) + _weighed(-taught, -own))
    per_position = losses.mean(-1) if losses.shape[-1] else losses.sum(-1)
    return mean_loss(per_position, temperature, t_squared)


def _weighed(taught: Tensor, own: Tensor) -> Tensor:
    """σ(taught) log σ(own), and 0 where σ(taught) is 0, or σ(own) is 1 for certain."""
    share = torch.sigmoid(taught)
    nothing = (share == 0) | (own == math.inf)
    certain = share.masked_fill(nothing, 0) * F.logsigmoid(torch.where(nothing | (own == -math.inf), 0, own))
    return torch.where(~nothing & (own == -math.inf), -math.inf, certain)
