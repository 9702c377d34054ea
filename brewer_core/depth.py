"""How far a model has to run for the layers that are read of it: found out by comparing, not by a table of architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brewer_core.features import Feature, Features, features_read, layers_read

if TYPE_CHECKING:
    from torch import Tensor, nn

_OF_THE_BATCH = frozenset({"inputs_mask", "logits_mask", "labels"})
"""Features that an adaptor takes from the batch, however far the model runs."""

_CLOSE = 1e-6


@dataclass(frozen=True)
class _Enough:
    """How many of its layers a model runs, which of a feature's places are read, and how many it has in a whole run."""

    layers: nn.ModuleList
    count: int
    read: Mapping[str, frozenset[int]]
    places: Mapping[str, int]


class Depth:
    """Runs a model no further than the highest layer that is read of it, where its logits are not.

    The first time that something is read it runs whole, and once more with its list of layers cut short. Where the layers that
    are read are the same in both, it is cut short for them; the last hidden state of most decoders is normed, so
    one layer more has to run. It goes on running whole where they differ, where it has not one list of layers alone, where it
    is sharded, and where more is read than single layers, such as what a module returns.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[frozenset[str], _Enough | None] = {}

    def __call__(self, needs: frozenset[str], answer: Callable[[], Features]) -> Features:
        """What is read of the model, and None for its other layers; or all of it, where it runs whole.

        answer: runs the model as it is, without gradient.
        """
        if needs not in self._known:
            self._known[needs], features = self._tried(needs, answer(), answer)
            return features
        enough = self._known[needs]
        return answer() if enough is None else _shortened(enough, needs, answer)

    def _tried(
        self, needs: frozenset[str], whole: Features, answer: Callable[[], Features]
    ) -> tuple[_Enough | None, Features]:
        """How far the model has to run for the same layers, None for all of it; and what it gives then."""
        for enough in self._candidates(needs, whole):
            short = self._attempt(enough, needs, answer)
            if short is not None and _agree(enough, needs, whole, short):
                return enough, short  # as for all batches to come: a training may go on at any of them
        return None, whole

    def _candidates(self, needs: frozenset[str], whole: Features) -> Iterator[_Enough]:
        read = _read_places(needs, whole)
        if not read or _is_sharded(self._model):
            return
        places = {name: len(whole[name]) for name in read}
        layers = _list_of_layers(self._model, places)
        if layers is None:
            return
        # Where there is one place more than there are layers, the first is that of the embeddings.
        least = max(max(indices) + (places[name] == len(layers)) for name, indices in read.items())
        yield from (_Enough(layers, count, read, places) for count in range(least, min(least + 2, len(layers))))

    def _attempt(self, enough: _Enough, needs: frozenset[str], answer: Callable[[], Features]) -> Features | None:
        import torch

        device = next(self._model.parameters(), torch.empty(0)).device
        try:
            # What a model draws, it would draw once more than without this trial.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                return _shortened(enough, needs, answer)
        except Exception:  # whatever the model or the adaptor raises for want of the last layers
            return None


def _shortened(enough: _Enough, needs: frozenset[str], answer: Callable[[], Features]) -> Features:
    """What is read, by a run of the first layers alone; None in the places of what is not read or did not run."""
    with _cut(enough.layers, enough.count):
        short = answer()
    kept = dict(_items(short, needs))
    for name, read in enough.read.items():
        ran = dict(enumerate(kept.get(name, ())))
        kept[name] = tuple(ran.get(place) if place in read else None for place in range(enough.places[name]))
    return Features({name: Feature(each, short.axes(name)) for name, each in kept.items()})  # type: ignore[arg-type]  # gaps


def _items(features: Features, needs: frozenset[str]) -> Iterator[tuple[str, tuple[Tensor | None, ...]]]:
    """The features that are read, as far as there are any."""
    return ((name, features[name]) for name in sorted(features_read(needs)) if name in features)


def _read_places(needs: frozenset[str], whole: Features) -> dict[str, frozenset[int]] | None:
    """The places that are read, from 0, by feature; None where something is read that has no single layers."""
    read: dict[str, frozenset[int]] = {}
    for name in features_read(needs) - _OF_THE_BATCH:
        layers, count = layers_read(needs, name), len(whole.get(name, ()))
        if layers is None or not all(-count <= layer < count for layer in layers):
            return None
        read[name] = frozenset(layer % count for layer in layers)
    return read


def _list_of_layers(model: nn.Module, places: Mapping[str, int]) -> nn.ModuleList | None:
    """The one list of layers whose length fits what is read, and the model's config if that tells it; else None."""
    from torch.nn import ModuleList

    told = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [part for part in model.modules() if isinstance(part, ModuleList) and told in (None, len(part))]
    fitting = [each for each in lists if all(count - len(each) in (0, 1) for count in places.values())]
    return fitting[0] if len(fitting) == 1 else None


def _is_sharded(model: nn.Module) -> bool:
    """Whether several processes run it together, each of whose modules all of them must call."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(inner, FSDPModule) for inner in model.modules())


@contextmanager
def _cut(layers: nn.ModuleList, count: int) -> Iterator[None]:
    """A list with its first layers alone, for as long as the context lasts."""
    whole = layers._modules
    layers._modules = dict(list(whole.items())[:count])
    try:
        yield
    finally:
        layers._modules = whole


def _agree(enough: _Enough, needs: frozenset[str], whole: Features, short: Features) -> bool:
    """Whether what is read is the same in both runs."""
    return all(_same(each, short.get(name, ()), enough.read.get(name)) for name, each in _items(whole, needs))


def _same(whole: tuple[Tensor | None, ...], short: tuple[Tensor | None, ...], read: frozenset[int] | None) -> bool:
    """Whether a feature is the same in the places that are read; all if None."""
    places = range(len(whole)) if read is None else read
    return len(whole) == len(short) and all(_equal(whole[place], short[place]) for place in places)


def _equal(tensor: Tensor | None, other: Tensor | None) -> bool:
    import torch

    if tensor is None or other is None:
        return tensor is other
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    close = tensor.is_floating_point() and torch.allclose(tensor, other, rtol=_CLOSE, atol=_CLOSE)
    return close or torch.equal(tensor, other)
