"""Distributions over keys or candidates of which some do not count, and their divergence."""

from __future__ import annotations

import torch
from torch import Tensor


def log_softmax_over(scores: Tensor, candidates: Tensor) -> Tensor:
    """Log-probabilities over the candidates of the last axis, -inf for others; equal ones where there is no candidate.

    candidates: bool, as many axes as the scores.
    """
    # before the softmax: its gradient is NaN where there is no candidate at all
    seen = torch.where(candidates, scores, -torch.inf)
    return torch.where(candidates.any(dim=-1, keepdim=True), seen, 0).log_softmax(dim=-1)


def divergences(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis; what is impossible under p adds 0, were its logarithm infinite."""
    return (p * torch.where(p == 0, 0, log_p - log_q)).sum(dim=-1)
