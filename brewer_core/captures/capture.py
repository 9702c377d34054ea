"""Hooks on the modules behind features, for one forward pass; and why what is read is not there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from brewer_core.architectures import Anatomy, ShortFeature, Tap, anatomy_of, offered_paths
from brewer_core.captures.conditions import eager_attention, fused, graphs_in_checkpoints, running_hooks
from brewer_core.captures.notices import Notices
from brewer_core.captures.paths import NOTHING, PathFeature
from brewer_core.errors import did_you_mean
from brewer_core.feature_names import PREFIX, is_path
from brewer_core.features import ATTENTION, SHORT_NAMES, Feature, Features, features_read, known_feature, layers_read

if TYPE_CHECKING:
    from torch import Tensor, nn

_OF_ADAPTORS = frozenset({"logits", "logits_mask", "labels", "losses", "inputs_mask"})
"""What no model has inside; terms say themselves what they do without."""

_AS_BEFORE = frozenset({"hidden", "attention"})
"""What was adaptors' alone: of a model that is none of transformers it is for them to return these."""

Slot = tuple[str, int, int]
"""Where what was noted is kept: the feature, the layer, and which of its taps."""


class Captures:
    """What is captured of a model, for what is read of it; what its adaptor returns itself is not captured again.

    names: what is read, as needs name it. owner: whose model it is, `student` or `teacher`, for the errors. notices: of whoever has
    the model read elsewhere too. Raises RequestError for a path that leads nowhere.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], owner: str, notices: Notices | None = None) -> None:
        self.model, self.owner = model, owner
        self.names = frozenset(names)
        paths = sorted(name for name in self.names if name.startswith(PREFIX))
        self.paths = [PathFeature.of(model, name, owner) for name in paths]
        self._asked = features_read(self.names) - set(paths)
        self._returned: dict[str, set[str]] = {}
        self._notices = notices or Notices()

    @cached_property
    def anatomy(self) -> Anatomy:
        """What is known of the model, looked for when something is read that it may have inside."""
        return anatomy_of(self.model)

    @contextmanager
    def noting(self, task: str = "") -> Iterator[Capture]:
        """Note what is read, for as long as the context lasts. The model may be run once in it.

        task: whose adaptor will be asked; that of another may return less.
        """
        returned = self._returned.setdefault(task, set())
        wanted = (self._asked & SHORT_NAMES.keys()) - returned
        short = {name: self.anatomy.features[name] for name in sorted(wanted) if name in self.anatomy.features}
        capture = Capture(self, short, returned)
        if not short and not self.paths:
            yield capture
            return
        whole = any(tap.what in ("scores", "attention") for _, tap in capture.taps)
        with ExitStack() as stack:
            stack.enter_context(running_hooks(self.model, whole))
            # before attention is switched, for it looks how it is computed else
            stack.enter_context(graphs_in_checkpoints(self.model, self.anatomy.settings if whole else ()))
            if whole:
                if kind := fused(self.anatomy.settings):
                    self._notices.of_eager_attention(self.model, self.owner, kind)
                stack.enter_context(eager_attention(self.anatomy.settings))
            stack.enter_context(capture.hooked())
            yield capture

    def read_places(self, feature: ShortFeature) -> Collection[int]:
        """The places in a feature's layers that are read, from 0; 0 where it has no layers."""
        count, layers = len(feature.layers), layers_read(self.names, feature.name)
        if layers is None or not feature.in_layers:
            return range(count)
        return {layer % count for layer in layers if -count <= layer < count}

    def names_of_adaptor(self, features: Features) -> frozenset[str]:
        """The short names that are read and that the adaptor returns itself; they need not be looked for again."""
        return self._asked & SHORT_NAMES.keys() & set(features)

    def absent(self, features: Features, returned: Features) -> dict[str, str]:
        """Of what is read and is not among the features, why. returned: those of them that the adaptor returned."""
        missing = self._asked - set(features) - _OF_ADAPTORS
        of_adaptors = _AS_BEFORE if self.anatomy_unknown else frozenset()
        return {name: self._why(name, returned) for name in sorted(missing - of_adaptors)} if missing else {}

    @property
    def anatomy_unknown(self) -> bool:
        """Whether the model is none of transformers, so that only paths lead into it."""
        return not self.anatomy.settings

    def _why(self, name: str, returned: Features) -> str:
        returns = f"the {self.owner}'s adaptor returns no {name!r}"
        model = type(self.model).__name__
        if name in SHORT_NAMES and not self.anatomy.features:
            paths, count = offered_paths(self.model)
            more = f" and {count - len(paths)} more" if count > len(paths) else ""
            return (
                f"{returns}, and no short names are known of its {model}, as {self.anatomy.reason}; name the path of a "
                f"module: {', '.join(paths)}{more}"
            )
        if name in self.anatomy.joined:
            return (
                f"{returns}, and its {model} makes it together with others in one projection; name the path of that, such as "
                f"{self.anatomy.joined[name]!r}"
            )
        if name in self.anatomy.features:
            axes = self.anatomy.features[name].axes
            ran = f"no softmax over {axes} ran" if name in ATTENTION else "what computes it did not run"
            return f"{returns}, and {ran} in the layers of its {model} that are read; name the path of a module"
        inside = [str(each) for key, each in self.anatomy.features.items() if key not in returned]
        hint = did_you_mean(name, list(dict.fromkeys([*returned, *self.anatomy.features])))
        close = hint if hint.startswith("; did") else ""
        offers = f", and its {model} has {', '.join(inside)}" if inside else ""
        return f"{returns}; it returns {', '.join(returned) or 'nothing'}{offers}{close}{self._hint_of_module(name)}"

    def _hint_of_module(self, name: str) -> str:
        """How a module is named, where a name that is not there is that of one."""
        if name not in dict(self.model.named_modules()):
            return ""
        written = name if is_path(name) else PREFIX + name
        return f"; a module is read as {written!r}, with no layer beside it"


class Capture:
    """What was noted in a forward pass: of short names where a module ran first, of paths where it ran last."""

    def __init__(self, plan: Captures, short: dict[str, ShortFeature], returned: set[str]) -> None:
        self._plan, self._short, self._returned = plan, short, returned
        self._noted: dict[Any, Any] = {}
        self.taps: list[tuple[Slot, Tap]] = [
            ((name, place, i), tap)
            for name, feature in short.items()
            for place in plan.read_places(feature)
            for i, tap in enumerate(feature.layers[place])
        ]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks are on, for as long as the context lasts."""
        from brewer_core.captures.softmax import Softmaxes

        by_softmax: dict[tuple[int, str], Slot] = {}
        watched: dict[int, nn.Module] = {}
        softmaxes = Softmaxes(lambda module, what, tensor: self._note_first(by_softmax.get((id(module), what)), tensor))
        handles = []
        try:
            for slot, tap in self.taps:
                if tap.what == "input":
                    hook = self._first_input(slot, tap.pick)
                    handles.append(tap.module.register_forward_pre_hook(hook, with_kwargs=True))
                elif tap.what == "output":
                    handles.append(tap.module.register_forward_hook(self._first_output(slot, tap.pick)))
                else:
                    by_softmax[id(tap.module), tap.what] = slot
                    watched[id(tap.module)] = tap.module
            for module in watched.values():
                handles.append(module.register_forward_pre_hook(softmaxes.begin))
                handles.append(module.register_forward_hook(softmaxes.end, always_call=True))
            for path in self._plan.paths:
                if path.what == "input":
                    hook = self._last_input(path.name)
                    handles.append(path.module.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    handles.append(path.module.register_forward_hook(self._last_output(path.name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            softmaxes.close()

    def added_to(self, features: Features) -> Features:
        """The features with what was captured. Raises RequestError where a path's module did not run, or gave no tensors."""
        self._returned |= self._plan.names_of_adaptor(features)
        returned = features
        paths = {path.name: path.tensors(self._noted.get(path.name, NOTHING)) for path in self._plan.paths}
        found = {name: self._feature(each) for name, each in self._short.items() if name not in features}
        short = Features({name: feature for name, feature in found.items() if feature is not None})
        if paths or short:
            features = features.joined(Features.of(paths, f"the {self._plan.owner}")).joined(short)
        absent = self._plan.absent(features, returned)
        return features.lacking(absent) if absent else features

    def _feature(self, feature: ShortFeature) -> Feature | None:
        """With None for a layer that is not read, or did not run; None for a feature of which nothing ran."""
        read = set(self._plan.read_places(feature))
        tensors = [self._tensor(feature, place) if place in read else None for place in range(len(feature.layers))]
        ran = any(tensor is not None for tensor in tensors) or not read  # of a layer that there is not the term tells
        return known_feature(tensors, feature.axes) if ran else None

    def _tensor(self, feature: ShortFeature, place: int) -> Tensor | None:
        taps = range(len(feature.layers[place]))
        noted = (self._noted.get((feature.name, place, i)) for i in taps)
        tensor: Tensor | None = next((tensor for tensor in noted if tensor is not None), None)
        # attention to more than the tokens, such as sinks, has no place in losses between maps of tokens
        other = tensor is not None and feature.axes.endswith("L L") and tensor.shape[-1] != tensor.shape[-2]
        return None if other else tensor

    def _note_first(self, slot: Slot | None, tensor: Any) -> None:
        if slot is not None and slot not in self._noted:
            self._noted[slot] = tensor

    # A hook does as little as can be: torch.compile traces it.

    def _first_input(self, slot: Slot, pick: Callable[[Any], Any]) -> Callable[..., None]:
        noted = self._noted

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            del module
            if slot not in noted:
                noted[slot] = pick((args, kwargs))

        return note

    def _first_output(self, slot: Slot, pick: Callable[[Any], Any]) -> Callable[..., None]:
        noted = self._noted

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            if slot not in noted:
                noted[slot] = pick(output)

        return note

    def _last_input(self, name: str) -> Callable[..., None]:
        noted = self._noted

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            del module
            noted[name] = (args, kwargs)

        return note

    def _last_output(self, name: str) -> Callable[..., None]:
        noted = self._noted

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            noted[name] = output

        return note


@contextmanager
def capturing(model: nn.Module, names: Iterable[str], owner: str) -> Iterator[Capture]:
    """Note what is read of a model, for as long as the context lasts.

    names: as needs name it. owner: whose model it is, `student` or `teacher`, for the errors. Raises RequestError for a path that
    leads nowhere.
    """
    with Captures(model, names, owner).noting() as capture:
        yield capture


def submodule(model: nn.Module, name: str, owner: str) -> nn.Module:
    """The module behind a path's name. Raises RequestError where there is none."""
    return PathFeature.of(model, name, owner).module
