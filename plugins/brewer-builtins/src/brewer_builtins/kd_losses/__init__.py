"""Losses between the logits of student and teacher, one file for each idea; `softened` has the maths that they share.

Shapes: N valid positions, B rows, L length, V classes or vocabulary. Each loss takes [N, V] or [B, L, V], and a temperature that is a
number or has one for each position. Reductions are in float32, of float64 in float64, and in log space. Those that are declared
`sparse` also take SparseLogits of the teacher: of `top_k`, all that is not kept is one class more, and of `sampled`, the weights of the
draws stand for the teacher's distribution.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from brewer_builtins.kd_losses.adaptive import adaptive_kl
from brewer_builtins.kd_losses.correlation import dist
from brewer_builtins.kd_losses.decoupled import dkd
from brewer_builtins.kd_losses.distances import mse, regression_mse, tvd
from brewer_builtins.kd_losses.divergences import ce, kl, reverse_kl
from brewer_builtins.kd_losses.mixtures import jsd, skew_kl, skew_reverse_kl
from brewer_builtins.kd_losses.multi_label import sigmoid
from brewer_builtins.kd_losses.truncated import top_k_kl
from brewer_core import hookimpl

__all__ = [
    "adaptive_kl",
    "brewer_kd_losses",
    "ce",
    "dist",
    "dkd",
    "jsd",
    "kl",
    "mse",
    "regression_mse",
    "reverse_kl",
    "sigmoid",
    "skew_kl",
    "skew_reverse_kl",
    "top_k_kl",
    "tvd",
]


@hookimpl
def brewer_kd_losses() -> dict[str, Callable[..., Tensor]]:
    """The built-in losses between logits."""
    return {
        "adaptive_kl": adaptive_kl,
        "ce": ce,
        "dist": dist,
        "dkd": dkd,
        "jsd": jsd,
        "kl": kl,
        "mse": mse,
        "regression_mse": regression_mse,
        "reverse_kl": reverse_kl,
        "sigmoid": sigmoid,
        "skew_kl": skew_kl,
        "skew_reverse_kl": skew_reverse_kl,
        "top_k_kl": top_k_kl,
        "tvd": tvd,
    }
