"""From the teacher's stream of width H to the student's of width K: some channels of it, or a rotation's first components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """Some channels. index: [K]."""

    index: Tensor

    def __call__(self, tensor: Tensor, axis: int = -1) -> Tensor:
        """A tensor with the student's width along an axis."""
        return tensor.index_select(axis, self.index.to(tensor.device))


@dataclass(frozen=True)
class Rotation:
    """Coordinates in an orthonormal basis. basis: [H, K], float64."""

    basis: Tensor

    def __call__(self, tensor: Tensor, axis: int = -1) -> Tensor:
        """A tensor with the student's width along an axis, in the type that it has."""
        moved = tensor.movedim(axis, -1).double() @ self.basis.to(tensor.device)
        return moved.movedim(-1, axis).to(tensor.dtype)


Projection = Selection | Rotation


def principal(moments: Tensor, channels: Tensor, centred: bool) -> Rotation:
    """The basis of the principal components that lies nearest to a choice of channels.

    moments: [H, H], second moment of the states. channels: [K]. centred: whether the model's norms subtract the mean over
    channels; then the basis takes the direction of the teacher's mean to that of the student's, so that the student's norms
    subtract the same, and K - 1 components are left.
    The basis of a subspace is free. The one nearest to the channels, by the orthogonal Procrustes problem, is the identity for
    K = H, and keeps a norm's weights, one for each channel, as near to their channels as can be.
    Source: Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024, section 3, with one basis for all layers: a model of the same
    architecture has no matrix beside its layers that could go from one basis to the next.
    """
    moments, (width, count) = moments.double().cpu(), (moments.shape[0], len(channels))
    near = torch.eye(width, dtype=torch.float64)[:, channels.cpu()]
    if not centred:
        return Rotation(_nearest(_leading(moments, count), near))
    mean, own_mean = (torch.full((size, 1), size**-0.5, dtype=torch.float64) for size in (width, count))
    away = torch.eye(width, dtype=torch.float64) - mean @ mean.T
    inside = _leading(away @ moments @ away - mean @ mean.T, count - 1)  # the mean's direction comes last
    own_inside = _leading(-own_mean @ own_mean.T, count - 1)
    return Rotation(mean @ own_mean.T + _nearest(inside, near @ own_inside) @ own_inside.T)


def _leading(moments: Tensor, count: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(moments).eigenvectors
    return vectors.flip(-1)[:, :count]


def _nearest(basis: Tensor, target: Tensor) -> Tensor:
    """U A with an orthogonal A that is nearest to the target, both [H, R]."""
    left, _, right = torch.linalg.svd(basis.T @ target)
    nearest: Tensor = basis @ left @ right
    return nearest
