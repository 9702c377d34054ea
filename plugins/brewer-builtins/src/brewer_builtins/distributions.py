"""Distributions over classes, keys or candidates of which some may be impossible, and their divergence."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

Temperature = Annotated[float, Field(gt=0, description="What the scores of this side are divided by.")]


def log_softmax_over(scores: Tensor, candidates: Tensor) -> Tensor:
    """Log-probabilities over the candidates of the last axis, -inf for others; equal ones where there is no candidate.

    candidates: bool, as many axes as the scores.
    """
    # before the softmax: its gradient is NaN where there is no candidate at all
    seen = torch.where(candidates, scores, -torch.inf)
    return torch.where(candidates.any(dim=-1, keepdim=True), seen, 0).log_softmax(dim=-1)


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """The mean of the values under the probabilities of the last axis; what is impossible adds 0, were its value infinite."""
    return (probabilities * torch.where(probabilities == 0, 0, values)).sum(dim=-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p log(p/q) over the last axis, of what p allows."""
    return expectation(log_p.exp(), log_p - log_q)
