"""A loss for classes that do not exclude one another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brewer_builtins.kd_losses.softened import Standardise, TSquared, check_dense, check_shapes, divided, mean_loss
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
    Raises ShapeError where student, teacher and temperature do not belong together, and RequestError for SparseLogits.
    Cost: O(N V).
    Source: one-versus-all distillation, Yang et al. 2023, arXiv:2308.06453, with the cross-entropy itself in place
    of the divergence, which has the same gradient; T squared as in Hinton et al. 2015, arXiv:1503.02531.
    """
    check_dense("sigmoid", teacher_logits)
    check_shapes(student_logits, teacher_logits, temperature)
    own, taught = divided(student_logits, teacher_logits, temperature, standardise)
    losses = _cross_entropies(own, taught)
    per_position = losses.mean(-1) if losses.shape[-1] else losses.sum(-1)
    return mean_loss(per_position, temperature, t_squared)


def _cross_entropies(own: Tensor, taught: Tensor) -> Tensor:
    """-(σ(t) log σ(s) + (1 - σ(t)) log(1 - σ(s))) of each class: log(1 + e^-|s|), and |s| times what the teacher has against s.

    As a sum of two parts of one sign it keeps its digits where both are sure; where it is infinite its gradient is not.
    """
    side = torch.where(own < 0, -1.0, 1.0)  # not the sign, with which a logit of 0 would have no gradient
    sure, against = own * side, torch.sigmoid(-side * taught)
    return F.softplus(-sure) + torch.where(against == 0, 0, against * sure)
