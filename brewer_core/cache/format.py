"""In which form a cache keeps features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from brewer_core.cache.rows import Rows
from brewer_core.errors import RequestError
from brewer_core.features import Feature, Features
from brewer_core.sparse_logits import Kept, SparseLogits

Floats = Literal["float32", "float16", "bfloat16"]

LOGITS = "logits"
_STORED = f"{LOGITS}/"
"""What the tensors of sparse logits are called as features of their own."""


@dataclass(frozen=True)
class CacheFormat:
    """In which form features are kept.

    floats: `float32` keeps numbers exactly as they were computed; `float16` and `bfloat16` round them to 16 bits.
    top_k: keep only the so many largest logits of each position, and what the others have together. samples: keep so many draws from each
    position's distribution, the same ones whenever the row is computed (arXiv:2503.16870).
    Raises RequestError for both, or fewer than 1.
    """

    floats: Floats = "float32"
    top_k: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.floats not in ("float32", "float16", "bfloat16"):
            raise RequestError(f"CacheFormat: floats is {self.floats!r}; expected float32, float16 or bfloat16.")
        if self.top_k is not None and self.samples is not None:
            raise RequestError("CacheFormat: top_k and samples are two ways to keep some logits; give one of them.")
        for name, count in (("top_k", self.top_k), ("samples", self.samples)):
            if count is not None and count < 1:
                raise RequestError(f"CacheFormat: {name} is {count}; it must be 1 or more.")

    @property
    def kept(self) -> Kept | None:
        """What is kept of each position's logits; None for all of them."""
        if self.top_k is not None:
            return Kept("top_k", self.top_k)
        return None if self.samples is None else Kept("sampled", self.samples)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        logits = {"top_k": self.top_k, "samples": self.samples}
        return ", ".join([self.floats, *(f"{name} {count}" for name, count in logits.items() if count is not None)])

    def applied(self, features: Features, rows: Rows) -> Features:
        """The features in this form; sparse logits as a feature for each of their tensors, `logits/indices` for one."""
        return Features({name: self._rounded(feature) for name, feature in self._thinned(features, rows)})

    def _thinned(self, features: Features, rows: Rows) -> Iterator[tuple[str, Feature]]:
        for name in features:
            feature = Feature(features[name], features.axes(name), features.stated(name))
            if name == LOGITS and self.kept is not None:
                yield from _parts([self._sparse(head, rows) for head in features[name]], feature)
            else:
                yield name, feature

    def _sparse(self, logits: Any, rows: Rows) -> SparseLogits:
        if isinstance(logits, SparseLogits):
            return logits
        if self.top_k is not None:
            return SparseLogits.top_k(logits, self.top_k)
        assert self.samples is not None
        return _drawn(logits.detach().cpu(), self.samples, rows)

    def _rounded(self, feature: Feature) -> Feature:
        if self.floats == "float32":
            return feature
        dtype: torch.dtype = getattr(torch, self.floats)

        def rounded(tensor: Any) -> Any:
            if tensor is None or not tensor.is_floating_point() or tensor.element_size() <= dtype.itemsize:
                return tensor
            # the largest number stands for what is beyond it; minus infinity is a class that was ruled out
            within = tensor.clamp(max=torch.finfo(dtype).max)
            lowest = torch.finfo(dtype).min
            return torch.where(within == -torch.inf, within, within.clamp(min=lowest)).to(dtype)

        return replace(feature, tensors=tuple(map(rounded, feature.tensors)))


def sizes_of_logits(features: Features) -> tuple[int, ...]:
    """V of each head of logits, where they are of [..., V]."""
    return tuple(int(head.shape[-1]) for head in features.get(LOGITS, ()))


def whole(features: Features, sizes: tuple[int, ...]) -> Features:
    """The features as they are read, with sparse logits in one. sizes: V of each head."""
    stored = {name.removeprefix(_STORED): features[name] for name in features if name.startswith(_STORED)}
    if not stored:
        return features
    heads = [_of(stored, i, size) for i, size in enumerate(sizes)]
    axes = "B C" if heads[0].dim() == 2 else "B L V"
    others = features.without(name for name in features if name.startswith(_STORED))
    return others.replace(logits=Feature(tuple(heads), axes))


def _parts(heads: list[SparseLogits], logits: Feature) -> Iterator[tuple[str, Feature]]:
    """The tensors of sparse logits, each as a feature of its own with the axes of the logits."""
    lead = logits.axes.split()[:-1]
    stored = [head.storage() for head in heads]
    for name in stored[0]:
        tensors = tuple(each[name] for each in stored)
        axes = lead if tensors[0].dim() == len(lead) else [*lead, "K"]
        yield f"{_STORED}{name}", Feature(tensors, " ".join(axes), logits.stated)


def _of(stored: Mapping[str, tuple[Tensor, ...]], head: int, size: int) -> SparseLogits:
    return SparseLogits.of_storage({name: tensors[head] for name, tensors in stored.items()}, size)


def _drawn(logits: Tensor, draws: int, rows: Rows) -> SparseLogits:
    """Draws for each row from a generator of its own, first for its tokens: a row has the same ones in every batch."""
    generator, own = torch.Generator(), list[SparseLogits]()
    for i, key in enumerate(rows.keys):
        generator.manual_seed(int.from_bytes(key[:8], "little", signed=True))
        if logits.dim() < 3 or rows.length != logits.shape[1]:
            own.append(SparseLogits.sampled(logits[i], draws, generator))
            continue
        places = torch.arange(rows.length)
        padding = (places < rows.starts[i]) | (places >= rows.ends[i])
        order = padding.long().argsort(stable=True)
        sparse = SparseLogits.sampled(logits[i, order], draws, generator)
        own.append(sparse[order.argsort()])
    return SparseLogits(
        torch.stack([each.indices for each in own]), torch.stack([each.logits for each in own]), None, own[0].size
    )
