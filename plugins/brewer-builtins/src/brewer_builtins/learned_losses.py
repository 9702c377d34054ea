"""Losses with parameters of their own, which are trained and saved with the student: CRD and VID.

Shapes: B rows, L tokens, D width. Masks are [B, L], True (or 1) where a token is valid. Both are built for the widths of what they
compare; where those are not known, the match says them as `proj_dims`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from brewer_builtins.distributions import log_softmax_over
from brewer_builtins.padding import token_count, without_padding
from brewer_builtins.shapes import check_same_tokens, check_single, shown
from brewer_builtins.states import Pool, PoolName, check_rows, in_full, rows_of, unit, valid_items
from brewer_core import RequestError, ShapeError, component

LEARNED = "what it compares is learned, so where student and teacher agree is no minimum"

SMALLEST_VARIANCE = 1e-5


@component(
    over="batch",
    source="Tian et al. 2020, arXiv:1910.10699, section 3, with the negatives of a batch",
    name="Contrastive representation distillation",
    exempt={"identity": LEARNED},
)
class ContrastiveRepresentation(nn.Module):
    """Contrastive representation distillation: cross-entropy of finding a row's teacher among those of the batch.

    Formula: - mean over rows i of log( exp(s_i·t_i / τ) / Σ_j exp(s_i·t_j / τ) ), s and t projected and of unit length.
    student, teacher: [B, D] or [B, L, D], of which `pool` makes one vector a row; they may differ in D. A linear projection of
    either side to `projection_dim` is trained; the teacher itself gets no gradient. Rows without valid tokens are left out.
    Returns a scalar, at least 0; log B where nothing can be told apart, and 0 for a single row.
    Raises ShapeError where B or a width is another than it is built for, and for other ranks; RequestError where the widths are
    not known.
    Cost: O(B D P + B² P), P the width of the projections.
    Source: Tian et al. 2020, arXiv:1910.10699, section 3, with InfoNCE over the batch in place of NCE over a memory of the whole
    data set; τ and the width of the projections are the paper's. Rows of the same class are negatives as well. On several
    processes the negatives are the rows of one's own process.
    """

    def __init__(
        self,
        *,
        student_dim: int | None,
        teacher_dim: int | None,
        projection_dim: Annotated[
            int, Field(ge=1, description="The width in which student and teacher are compared.")
        ] = 128,
        tau: Annotated[float, Field(gt=0, description="The temperature: what similarities are divided by.")] = 0.07,
        pool: Pool = "mean",
        symmetric: Annotated[
            bool,
            Field(
                description="The mean of this and of finding a row's student among those of the batch, given the teacher."
            ),
        ] = False,
    ) -> None:
        super().__init__()
        own, taught = _known_widths("crd", student_dim, teacher_dim)
        self.student_projection, self.teacher_projection = (
            nn.Linear(own, projection_dim),
            nn.Linear(taught, projection_dim),
        )
        self.tau, self.symmetric = tau, symmetric
        self.pool: PoolName = pool

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, teacher_mask: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar."""
        own, taught, valid = rows_of(student, teacher, mask, teacher_mask, self.pool)
        _check_built_for("crd", own, taught, (self.student_projection.in_features, self.teacher_projection.in_features))
        own, taught = (
            unit(_linear(p, s)) for p, s in ((self.student_projection, own), (self.teacher_projection, taught))
        )
        loss = _found(own @ taught.mT / self.tau, valid)
        if not self.symmetric:
            return loss
        return (loss + _found(taught @ own.mT / self.tau, valid)) / 2


@component(
    over="tokens",
    source="Ahn et al. 2019, arXiv:1904.05835, section 2",
    name="Variational information distillation",
    exempt={"identity": LEARNED},
)
class VariationalInformation(nn.Module):
    """Variational information distillation: how unlikely the teacher's states are under a Gaussian predicted from the student's.

    Formula: mean over valid tokens (or rows) and D of ½ ( (h_T - μ(h_S))² / σ² + log σ² ), σ² = softplus(a) + 1e-5, a trained.
    student, teacher: [B, L, D], or [B, D]; they may differ in D. The mean μ is a linear map of the student's state, or a network of
    one hidden layer with `hidden_dim`, and each of the teacher's widths has a variance of its own; both are trained.
    Returns a scalar, any number: log-likelihoods less their constant ½ log 2π; 0 where nothing is valid.
    Raises ShapeError where B, L or a width is another than it is built for, and for other ranks; RequestError where the widths are
    not known.
    Cost: O(B L D²), with a network that is trained.
    Source: Ahn et al. 2019, arXiv:1904.05835, section 2, where the sum over D is taken in place of the mean.
    """

    def __init__(
        self,
        *,
        student_dim: int | None,
        teacher_dim: int | None,
        hidden_dim: Annotated[
            int | None,
            Field(
                ge=1,
                description="The width of the mean network's hidden layer, with ReLU; without it the mean is linear.",
            ),
        ] = None,
        initial_variance: Annotated[
            float, Field(gt=1e-4, description="The variance of each width before training.")
        ] = 5.0,
    ) -> None:
        super().__init__()
        own, taught = _known_widths("vid", student_dim, teacher_dim)
        self.widths = (own, taught)
        layers = [own, taught] if hidden_dim is None else [own, hidden_dim, taught]
        self.mean = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(layers))
        # the inverse of softplus; log(e^v - 1) would overflow for large variances
        start = initial_variance - SMALLEST_VARIANCE
        self.alpha = nn.Parameter(torch.full((taught,), start + math.log(-math.expm1(-start))))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar."""
        check_single(student, teacher)
        check_rows(student, teacher)
        check_same_tokens(student, teacher)
        _check_built_for("vid", student, teacher, self.widths)
        valid = valid_items(student, mask)
        own, taught = (without_padding(in_full(states), valid) for states in (student, teacher.detach()))
        variance = F.softplus(in_full(self.alpha)) + SMALLEST_VARIANCE
        surprise = ((taught - self._mean(own)).square() / variance + variance.log()) / 2
        return without_padding(surprise, valid).sum() / (token_count(valid) * self.widths[1])

    def _mean(self, states: Tensor) -> Tensor:
        for position, layer in enumerate(self.mean):
            states = _linear(layer, F.relu(states) if position else states)
        return states


def _linear(layer: nn.Module, states: Tensor) -> Tensor:
    """A linear layer at the states' precision, whatever its weights are kept in."""
    assert isinstance(layer, nn.Linear)
    return F.linear(states, layer.weight.to(states.dtype), layer.bias.to(states.dtype))


def _found(similarities: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of the diagonal among valid rows, the mean over them."""
    surprise = -log_softmax_over(similarities, valid[:, None] & valid).diagonal()
    return torch.where(valid, surprise, 0).sum() / token_count(valid)


def _known_widths(name: str, student_dim: int | None, teacher_dim: int | None) -> tuple[int, int]:
    if student_dim is None or teacher_dim is None:
        raise RequestError(
            f"`{name}` is built for the widths of student and teacher, which are not known; give the match "
            '"proj_dims": [student_dim, teacher_dim].'
        )
    return student_dim, teacher_dim


def _check_built_for(name: str, student: Tensor, teacher: Tensor, widths: tuple[int, int]) -> None:
    if (student.shape[-1], teacher.shape[-1]) != widths:
        raise ShapeError(
            f"student is {shown(student)} and teacher {shown(teacher)}, and `{name}` is built for widths of {widths[0]} and "
            f'{widths[1]}; give the match "proj_dims": [student_dim, teacher_dim].'
        )
