"""The layers of a Hugging Face model and what lies around them: which short names it has, and where each is.

A model is taken apart by structure: its one list of layers, of which each has one attention module with projections under
names that are known. So most architectures need no entry of their own, and one that is built otherwise is told as unknown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from brewer_core.architectures.taps import (
    PROJECTED,
    Tap,
    joined_projection,
    probabilities_of,
    projections_of,
    scores_of,
    states_into,
    states_of,
)
from brewer_core.features import IN_LAYERS, SHORT_NAMES

if TYPE_CHECKING:
    from torch import nn

_CROSS = re.compile(r"cross|encdec|encoder_attn|encoder_attention", re.IGNORECASE)
"""What attention to an encoder is called inside a layer: `crossattention`, `EncDecAttention`, `encoder_attn`."""

_OTHER_AXES = frozenset({"fsmt", "prophetnet", "squeezebert"})
"""Types of models whose layers hold [L, B, D], several streams of tokens beside one another, or [B, D, L]."""

_OFFERED = 8


@dataclass(frozen=True)
class ShortFeature:
    """A feature of a model. layers: for each layer the taps that give it, the first that ran counting; one for what has no layers."""

    name: str
    axes: str
    layers: tuple[tuple[Tap, ...], ...]

    @property
    def in_layers(self) -> bool:
        """Whether it has a tensor for each layer."""
        return self.name in IN_LAYERS

    def __str__(self) -> str:
        last = len(self.layers) - 1
        return f"{self.name}[{f'0..{last}' if last else 0}]" if self.in_layers else self.name


@dataclass(frozen=True)
class Anatomy:
    """What is known of a model. features: by short name. reason: why there are none, as the end of `no short name is known of it, as`.

    settings: the configs of the models inside it, outermost first; they say how attention is computed. joined: of short names that other
    models have and this one cannot give, the path of the module that projects several of them at once.
    """

    features: Mapping[str, ShortFeature] = field(default_factory=dict)
    reason: str = ""
    joined: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[Any, ...] = ()


def anatomy_of(model: nn.Module) -> Anatomy:
    """Take a model apart: a Hugging Face model, or a module with one inside."""
    roots = _roots(model)
    if len(roots) > 1:
        return Anatomy(reason=f"it holds {len(roots)} models of transformers, and they are known of one")
    if not roots:
        return Anatomy(reason="they are known of models of transformers alone")
    (root,) = roots
    settings = _settings(root)
    root = _of_texts(root)
    stacks = _stacks(root)
    if root.config.model_type in _OTHER_AXES:
        return Anatomy(reason="its layers hold states in another form than rows, tokens, width", settings=settings)
    if _encodes_and_decodes(root) and {"encoder", "decoder"} <= {stack.side for stack in stacks} and len(stacks) == 2:
        encoder, decoder = sorted(stacks, key=lambda stack: stack.side == "decoder")
        features = [*_of_stack(encoder), *_of_stack(decoder, "decoder_", decoder=True)]
        joined = {**_joined(model, encoder), **_joined(model, decoder, "decoder_")}
    elif len(stacks) == 1 and _is_whole(root, stacks[0]):
        features = [*_of_stack(stacks[0], around=root.base_model), *_pooled(root)]
        joined = _joined(model, stacks[0])
    else:
        return Anatomy(reason=_why_unknown(root, stacks), settings=settings)
    known = {feature.name: feature for feature in features}
    return Anatomy(known, settings=settings, joined={name: path for name, path in joined.items() if name not in known})


def offered_paths(model: nn.Module) -> tuple[list[str], int]:
    """Some paths of modules that compute something, for an error, and how many there are in all."""
    from torch import nn as modules

    idle = (modules.ModuleList, modules.ModuleDict, modules.Dropout, modules.Identity)
    paths = [name for name, module in model.named_modules() if name and not isinstance(module, idle)]
    return paths[:_OFFERED], len(paths)


@dataclass(frozen=True)
class _Stack:
    """A list of layers with attention. owner: the module that runs them, one after the other. cross: attention to an encoder."""

    path: str
    owner: nn.Module
    layers: tuple[nn.Module, ...]
    own: tuple[nn.Module, ...]
    cross: tuple[nn.Module, ...]

    @property
    def side(self) -> str:
        """`encoder` or `decoder`, where its path says so; a decoder may have an `encoder` of layers inside."""
        return next((step for step in self.path.split(".") if step in ("encoder", "decoder")), "")


def _roots(model: nn.Module) -> list[Any]:
    """The model of transformers that it is, or the outermost ones inside."""
    if "transformers" not in sys.modules:
        return []
    from transformers import PreTrainedModel

    found, left = [], [model]
    while left:
        module = left.pop()
        if isinstance(module, PreTrainedModel):
            found.append(module)
        else:
            left += module.children()
    return list({id(module): module for module in found}.values())


def _of_texts(root: Any) -> Any:
    """The model of texts inside one that sees or hears too, as Gemma 3 does from 4B on; else the model itself."""
    from transformers import PreTrainedModel

    kind = getattr(getattr(root.config, "text_config", None), "model_type", None)
    inside = (module for module in root.modules() if isinstance(module, PreTrainedModel))
    return next((module for module in inside if kind is not None and module.config.model_type == kind), root)


def _settings(root: nn.Module) -> tuple[Any, ...]:
    from transformers import PreTrainedModel

    configs = [module.config for module in root.modules() if isinstance(module, PreTrainedModel)]
    return tuple({id(config): config for config in configs}.values())


def _stacks(root: nn.Module) -> list[_Stack]:
    """The outermost lists of modules that have an attention each."""
    from torch.nn import ModuleList

    found: list[_Stack] = []
    for path, module in root.named_modules():
        if not isinstance(module, ModuleList) or any(path.startswith(f"{stack.path}.") for stack in found):
            continue
        attentions = [_attentions(layer) for layer in module]
        if attentions and all(len(own) == 1 and len(cross) < 2 for own, cross in attentions):
            crosses = [layer for _, cross in attentions for layer in cross]
            owner = root.get_submodule(path.rpartition(".")[0])
            own = tuple(own[0] for own, _ in attentions)
            whole = tuple(crosses) if len(crosses) == len(attentions) else ()
            found.append(_Stack(path, owner, tuple(module), own, whole))
    return found


def _attentions(layer: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The attention modules of a layer: to itself, and to an encoder."""
    named = [(name, module) for name, module in layer.named_modules() if projections_of(module) is not None]
    cross = [module for name, module in named if _CROSS.search(name)]
    return [module for name, module in named if not _CROSS.search(name)], cross


def _encodes_and_decodes(root: Any) -> bool:
    return bool(getattr(root.config, "is_encoder_decoder", False))


def _is_whole(root: Any, stack: _Stack) -> bool:
    """Whether a list holds all layers of a model that has one list alone: an encoder, or a decoder without one."""
    alone = not (_encodes_and_decodes(root) and stack.side == "decoder")
    counts = (
        "num_hidden_layers",
        *(["decoder_layers"] if stack.side == "decoder" else []),
    )  # the first is an encoder's in BART
    return alone and len(stack.layers) in [getattr(root.config, each, None) for each in counts]


def _of_stack(
    stack: _Stack, prefix: str = "", *, decoder: bool = False, around: nn.Module | None = None
) -> Iterator[ShortFeature]:
    """The features of a list of layers, under names with a prefix.

    decoder: of a model that has an encoder too. around: the body of a model that has no other such list.
    """
    yield _feature(f"{prefix}embeddings", [(states_into(stack.layers[0]),)])
    yield _feature(f"{prefix}hidden", _hidden(stack, around))
    yield from _of_attentions(prefix, stack.own)
    if stack.cross:
        yield from _of_attentions("cross_", stack.cross, swapped=not decoder)


def _hidden(stack: _Stack, around: nn.Module | None) -> list[tuple[Tap, ...]]:
    """What goes into each layer, and at last what comes out of the body around them, or of their owner, either of which may norm it.

    A layer that does not run, as the model is cut short before it, would have been given what the one before returned.
    """
    between = [
        (states_into(layer), states_of(before)) for before, layer in zip(stack.layers, stack.layers[1:], strict=False)
    ]
    ends = [states_of(module) for module in (around, stack.owner) if module is not None]
    return [(states_into(stack.layers[0]),), *between, tuple(ends)]


def _of_attentions(prefix: str, attentions: tuple[nn.Module, ...], swapped: bool = False) -> Iterator[ShortFeature]:
    """Those of an attention module in each layer. swapped: L is the length of the queries, and M that of the encoder."""
    yield _feature(f"{prefix}attention", [(probabilities_of(each),) for each in attentions], swapped)
    yield _feature(f"{prefix}scores", [(scores_of(each),) for each in attentions], swapped)
    projections = [found for each in attentions if (found := projections_of(each)) is not None]
    for name in PROJECTED:
        if all(name in each for each in projections):
            yield _feature(f"{prefix}{name}", [(each[name],) for each in projections], swapped)


def _joined(model: nn.Module, stack: _Stack, prefix: str = "") -> dict[str, str]:
    """By the short names of projections, the path of the first module that projects several of them at once; empty where there is none."""
    paths = {module: path for path, module in model.named_modules()}
    found: dict[str, str] = {}
    for before, attentions in ((prefix, stack.own), ("cross_", stack.cross)):
        several = (f"{paths[each]}.{name}" for each in attentions if (name := joined_projection(each)))
        if path := next(several, None):
            found |= {f"{before}{short}": path for short in PROJECTED}
    return found


def _feature(name: str, layers: list[tuple[Tap, ...]], swapped: bool = False) -> ShortFeature:
    (axes,) = SHORT_NAMES[name].values()
    letters = axes.translate(str.maketrans("LM", "ML")) if swapped else axes
    return ShortFeature(name, letters, tuple(layers))


def _pooled(root: nn.Module) -> Iterator[ShortFeature]:
    """What the one module called `pooler` returns."""
    poolers = [module for name, module in root.named_modules() if name.rpartition(".")[2] == "pooler"]
    if len(poolers) == 1:
        yield _feature("pooled", [(states_of(poolers[0]),)])


def _why_unknown(root: Any, stacks: list[_Stack]) -> str:
    sides = {stack.side for stack in stacks}
    lacking = (
        sorted({"encoder", "decoder"} - sides) if _encodes_and_decodes(root) and len(stacks) == 1 and any(sides) else []
    )
    if not stacks or lacking:
        whose = f"its {lacking[0]}" if lacking else "it"
        return f"{whose} has no list of layers with an attention each whose projections bear known names"
    told = ", ".join(f"{stack.path} of {len(stack.layers)}" for stack in stacks)
    count = getattr(root.config, "num_hidden_layers", None)
    return f"its config tells of {count} layers, and it has the lists {told}"
