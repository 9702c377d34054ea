"""Features: the named tensors that losses read, each with named axes, and the counts that means are over."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from brewer_core.errors import AdaptorError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from brewer_core.sparse_logits import SparseLogits

_AXES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "logits": {2: "B C", 3: "B L V"},
        "logits_mask": {2: "B L"},
        "labels": {1: "B", 2: "B L", 3: "B L C"},
        "losses": {0: "", 1: "N"},
        "hidden": {2: "B D", 3: "B L D"},
        "attention": {3: "B L L", 4: "B H L L"},
        "inputs_mask": {2: "B L"},
    }
)
"""Axes of the known features by rank: B rows, L length, V vocabulary, C classes, D width, H heads, N processes."""

_STATES, _MAPS = {3: "B L D"}, {4: "B H L L"}
_DECODER_STATES, _DECODER_MAPS = {3: "B M D"}, {4: "B H M M"}

SHORT_NAMES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "hidden": _STATES,
        "attention": _MAPS,
        "scores": _MAPS,
        "query": _STATES,
        "key": _STATES,
        "value": _STATES,
        "embeddings": _STATES,
        "pooled": {2: "B D"},
        "decoder_hidden": _DECODER_STATES,
        "decoder_attention": _DECODER_MAPS,
        "decoder_scores": _DECODER_MAPS,
        "decoder_query": _DECODER_STATES,
        "decoder_key": _DECODER_STATES,
        "decoder_value": _DECODER_STATES,
        "decoder_embeddings": _DECODER_STATES,
        "cross_attention": {4: "B H M L"},
        "cross_scores": {4: "B H M L"},
        "cross_query": _DECODER_STATES,
        "cross_key": _STATES,
        "cross_value": _STATES,
    }
)
"""Axes by rank of what is read inside a model where no adaptor returns it: M is the length of a decoder that has an encoder."""

_GUESSED_AXES: Mapping[int, str] = MappingProxyType({0: "", 1: "B", 2: "B D", 3: "B L D", 4: "B H L L"})

IN_LAYERS = tuple(name for name in SHORT_NAMES if not name.endswith(("embeddings", "pooled")))
"""The known features that have a tensor for each layer."""

WITHOUT_LAYERS = frozenset({"logits", *SHORT_NAMES} - {*IN_LAYERS})
"""The known features that have a single tensor."""

ATTENTION = frozenset(name for name in SHORT_NAMES if name.endswith(("attention", "scores")))
"""The features that a model holds only where its attention is computed as a whole."""

_WITH_GAPS = (*IN_LAYERS, "logits_mask")
"""Features of which single layers or heads may be None: such a layer cannot be read, and such a head has no mask."""

_OF_A_LAYER = re.compile(r"(?P<feature>[^:\[\]]+)\[(?P<layer>-?\d+)\]")
"""The name of one layer of a feature; that of a capture, `module:PATH[2]`, is no such name."""

_STACKED_RANK: Mapping[str, int] = MappingProxyType({"hidden": 4, "attention": 5})
"""The rank of all layers in one tensor, layers first."""


def feature_of(name: str) -> str:
    """The feature of a name in needs, which may name one layer of it: `hidden` of `hidden[3]` and of `hidden`."""
    matched = _OF_A_LAYER.fullmatch(name)
    return matched["feature"] if matched else name


def features_read(needs: Collection[str]) -> frozenset[str]:
    """The features that are read, whatever their layers."""
    return frozenset(map(feature_of, needs))


def layers_read(needs: Collection[str], feature: str) -> frozenset[int] | None:
    """The layers of a feature that are read, counted from either end as in the names; None for all of them."""
    if feature in needs:
        return None
    named = [matched for name in needs if (matched := _OF_A_LAYER.fullmatch(name)) and matched["feature"] == feature]
    return frozenset(int(matched["layer"]) for matched in named)


def axes_of_rank(name: str, rank: int, axes: str) -> str | None:
    """The axes of one tensor of a feature whose axes these are: heads may be of several ranks. None where they are not known."""
    return axes if len(axes.split()) == rank else _axes_by_rank(name).get(rank)


def _axes_by_rank(name: str) -> Mapping[int, str]:
    return _AXES.get(name) or SHORT_NAMES.get(name, {})


def names_of_layers(feature: str, layers: int | Sequence[int] | None) -> frozenset[str]:
    """The names of single layers in needs; the feature's own where all are read, or where it is known to have no layers."""
    if layers is None or ((feature in _AXES or feature in SHORT_NAMES) and feature not in IN_LAYERS):
        return frozenset({feature})
    return frozenset(f"{feature}[{layer}]" for layer in ([layers] if isinstance(layers, int) else layers))


@dataclass(frozen=True)
class Counts:
    """How many items a batch holds: rows, valid tokens, valid token pairs, valid logit positions, labels.

    token_pairs is the sum over rows of the squared number of valid tokens; logits counts where `logits_mask` holds.
    """

    rows: float
    tokens: float
    token_pairs: float
    logits: float
    labels: float

    @classmethod
    def of_rows(cls, rows: float) -> Counts:
        """The counts of a batch of which only the number of rows is known: everything counts as one a row."""
        return cls(rows, rows, rows, rows, rows)


@dataclass(frozen=True)
class Feature:
    """The tensors of one feature, and the names of their axes, such as `B L D`.

    stated: whether the axes are known by the feature's name or stated with it, and not guessed from the rank.
    Of a teacher's `logits`, `SparseLogits` may stand for a tensor: logits of which only some classes are kept.
    """

    tensors: tuple[Tensor | SparseLogits, ...]
    axes: str
    stated: bool = True


def known_feature(tensors: Sequence[Tensor | SparseLogits | None], axes: str) -> Feature:
    """A feature of known axes; where M is among them, no mask says which of its places are padding, so it is not stated.

    A cache keeps it whole then, as any whose axes are guessed.
    """
    return Feature(tuple(tensors), axes, stated="M" not in axes.split())  # type: ignore[arg-type]  # a gap


class Features(Mapping[str, tuple["Tensor", ...]]):
    """Read-only features by name; every value is a tuple of tensors, one a layer or a head.

    Made with `Features.of` from what an adaptor returned.
    absent, an attribute: of features that were looked for and are not there, why, as the end of an error.
    """

    def __init__(self, features: Mapping[str, Feature], absent: Mapping[str, str] | None = None) -> None:
        self._features = dict(features)
        self.absent = dict(absent or {})

    @classmethod
    def of(cls, returned: Features | Mapping[str, Any], source: str = "the adaptor") -> Features:
        """Features from an adaptor's mapping: single tensors become tuples of one, lists become tuples.

        A value may be a `Feature` that states its axes; the axes of others follow from name and rank. Left out are None,
        a list of None alone, and what is no tensor under `labels` or a name that is none of the known features. Of `hidden`,
        `attention` and `logits_mask` single entries may be None, and keep their place.
        Raises AdaptorError where it is no mapping, or a known feature no tensor.
        """
        if isinstance(returned, Features):
            return returned
        if not isinstance(returned, Mapping):
            raise AdaptorError(f"{source} returned a {type(returned).__name__}; it must return a dict of features.")
        return cls({name: _feature(name, value, source) for name, value in returned.items() if _is_given(name, value)})

    def axes(self, name: str) -> str:
        """The axes of a feature's tensors, such as `B L D`."""
        return self._features[name].axes

    def stated(self, name: str) -> bool:
        """Whether the axes of a feature are known, and not guessed from its rank."""
        return self._features[name].stated

    def first(self, name: str) -> Tensor | None:
        """The first tensor of a feature, or None where the features lack it."""
        return self[name][0] if self.get(name) else None

    def float(self) -> Features:
        """The same features with float16 and bfloat16 tensors in float32; others, float64 too, stay as they are."""
        return self._each(lambda t: t.float() if t.is_floating_point() and t.element_size() < 4 else t)

    def to(self, device: torch.device) -> Features:
        """The same features on a device."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def _each(self, change: Callable[[Any], Any]) -> Features:
        def changed(feature: Feature) -> Feature:
            return replace(feature, tensors=tuple(None if t is None else change(t) for t in feature.tensors))

        return Features({name: changed(feature) for name, feature in self._features.items()}, self.absent)

    def only_read(self, needs: Collection[str]) -> Features:
        """The same features, of those in layers only the layers that are named; None stands for each other one.

        What is held of the others is free then, and layers count from either end as before.
        """
        read, kept = features_read(needs), dict(self._features)
        for name in [name for name in IN_LAYERS if name in kept]:
            whole = kept.pop(name)
            if name in read:
                kept[name] = _with_layers(whole, layers_read(needs, name))
        return Features(kept, self.absent)

    def without(self, names: Iterable[str]) -> Features:
        """The same features but for those of these names."""
        left_out = set(names)
        kept = {name: feature for name, feature in self._features.items() if name not in left_out}
        return Features(kept, self.absent)

    def joined(self, other: Features) -> Features:
        """These features and others; of one name the other's."""
        return Features({**self._features, **other._features}, {**self.absent, **other.absent})

    def lacking(self, absent: Mapping[str, str]) -> Features:
        """The same features, with why others are not there."""
        return Features(self._features, {**self.absent, **absent})

    def replace(self, **features: Feature) -> Features:
        """The same features with some of them replaced or added."""
        return Features({**self._features, **features}, self.absent)

    def __getitem__(self, name: str) -> tuple[Tensor, ...]:
        # a teacher's logits may be SparseLogits; only what compares logits asks for them, and it looks
        return cast("tuple[Tensor, ...]", self._features[name].tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def __repr__(self) -> str:
        shapes = {name: [tuple(t.shape) for t in f.tensors if t is not None] for name, f in self._features.items()}
        return f"Features({shapes})"


def _with_layers(feature: Feature, layers: frozenset[int] | None) -> Feature:
    if layers is None:
        return feature
    count = len(feature.tensors)
    kept = {layer % count for layer in layers if -count <= layer < count}
    tensors = tuple(t if i in kept else None for i, t in enumerate(feature.tensors))
    return replace(feature, tensors=tensors)  # type: ignore[arg-type]  # a gap


def _is_given(name: str, value: Any) -> bool:
    parts = value if isinstance(value, (list, tuple)) else (value,)
    if parts and all(part is None for part in parts):  # attentions that a model was not asked for
        return False
    import torch

    needed = name in _AXES and name != "labels"  # labels are read by few terms, which ask for them
    gaps = name in _WITH_GAPS
    return (
        needed or isinstance(value, Feature) or all(isinstance(p, torch.Tensor) or (gaps and p is None) for p in parts)
    )


def _feature(name: str, value: Any, source: str) -> Feature:
    if isinstance(value, Feature):
        return value
    import torch

    if isinstance(value, torch.Tensor) and value.dim() == _STACKED_RANK.get(name):
        value = value.unbind(0)
    tensors = tuple(value) if isinstance(value, Sequence) else (value,)

    given = [tensor for tensor in tensors if tensor is not None or name not in _WITH_GAPS]
    for tensor in given:
        if not isinstance(tensor, torch.Tensor):
            raise AdaptorError(
                f"{source} returned {type(tensor).__name__} under `{name}`; a feature is a tensor or a list of tensors."
            )
    rank = given[0].dim() if given else 0
    known = _axes_by_rank(name)
    # a short name is an adaptor's own where its rank is another one
    guessed = _AXES.get(name, _GUESSED_AXES).get(rank, " ".join("*" * rank))
    return known_feature(tensors, known[rank]) if rank in known else Feature(tensors, guessed, stated=False)
