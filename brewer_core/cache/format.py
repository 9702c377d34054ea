"""In which form a cache keeps features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from brewer_core.features import Feature, Features

Floats = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class CacheFormat:
    """In which form features are kept.

    floats: `float32` keeps numbers exactly as they were computed; the others round them to 16 bits.
    """

    floats: Floats = "float32"
    top_k: int | None = None
    samples: int | None = None

    @property
    def exact(self) -> bool:
        """Whether what is read is bit for bit what was computed."""
        return self == CacheFormat()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def applied(self, features: Features) -> Features:
        """The features in this form."""
        if self.floats == "float32":
            return features
        dtype: torch.dtype = getattr(torch, self.floats)
        return Features({name: self._rounded(features, name, dtype) for name in features})

    def _rounded(self, features: Features, name: str, dtype: torch.dtype) -> Feature:
        def rounded(tensor: Tensor | None) -> Any:
            if tensor is None or not tensor.is_floating_point() or tensor.element_size() <= dtype.itemsize:
                return tensor
            return tensor.clamp(*_finite(dtype)).to(dtype) if dtype == torch.float16 else tensor.to(dtype)

        return Feature(tuple(map(rounded, features[name])), features.axes(name), features.stated(name))


def _finite(dtype: torch.dtype) -> tuple[float, float]:
    """The range of a dtype: a logit beyond it becomes its end, not infinite."""
    info = torch.finfo(dtype)
    return info.min, info.max
