"""Shorter models: some layers of a transformer, with everything around them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from brewer_core import RequestError

_OF_FIRST_LAYERS = "relative_attention_bias.weight"
"""T5's bias stands in the first layer, whichever that is, and is used by all of them."""
_BY_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "attention_layers",
    "attention_window",
    "no_rope_layers",
    "layer_rope_theta",
)
"""What a config of transformers may have a list of, with one entry for each layer."""


def keep_layers(model: Any, layers: Sequence[int]) -> Any:
    """A model of the same class and config with some of its layers, in the order given, and copies of their weights.

    model: a `PreTrainedModel` with one list of layers; embeddings, pooler and head are copied too.
    Raises RequestError where it has no such list or no such layer, and where a layer does not fit into its new place.
    """
    prefix = list_of_layers(model, "keep_layers")
    check_layers(layers, model.config.num_hidden_layers, "keep_layers")
    return shortened(model, {prefix: ("num_hidden_layers", layers)}, "keep_layers")


def shortened(model: Any, kept: Mapping[str, tuple[str, Sequence[int]]], option: str = "layers") -> Any:
    """A model of the same class with some of its layers.

    kept: by the name of a list of layers, what its length is called in a config, and which layers, in the order given.
    Raises RequestError where a layer does not fit into its new place. option: what named them, for its text.
    """
    config, state = copied(model.config), dict(model.state_dict())
    for prefix, (setting, layers) in kept.items():
        try:
            _with_layers(config, setting, layers)
        except NotImplementedError as error:  # as of a model whose layers are of several blocks
            raise RequestError(
                f"`{option}` cannot make {type(model).__name__} shorter, whose config refuses another `{setting}`; use "
                "`config` instead."
            ) from error
        state = _renumbered(state, prefix, layers)
    short = made(type(model), config, model.dtype)
    try:
        short.load_state_dict(state)
    except RuntimeError as error:
        named = " and ".join(str(list(layers)) for _, layers in kept.values())
        count = " and ".join(str(len(layers)) for _, layers in kept.values())
        raise RequestError(
            f"layers {named} of the teacher do not fit {type(model).__name__} of {count} layers, "
            f"whose first layer may be of another form; let `{option}` begin with 0."
        ) from error
    return short


def list_of_layers(model: Any, option: str = "layers") -> str:
    """The name of the one list of layers that is as long as the model's config says."""
    from torch.nn import ModuleList

    if getattr(model.config, "is_encoder_decoder", False):
        raise RequestError(
            f"`{option}` needs a teacher with one list of layers, and {type(model).__name__} has an encoder and a decoder; use "
            "`config` instead."
        )
    count = model.config.num_hidden_layers
    names = [name for name, part in model.named_modules() if isinstance(part, ModuleList) and len(part) == count]
    if len(names) != 1:
        raise RequestError(
            f"`{option}` needs a teacher with one list of {count} layers, and {type(model).__name__} has "
            f"{len(names)}; use `config` instead."
        )
    return str(names[0])


def check_layers(layers: Sequence[Any], count: int, option: str = "layers") -> None:
    """Raises RequestError where layers that are kept are none, or not among so many."""
    if not layers:
        raise RequestError(f"`{option}` is empty; name one layer at least.")
    if strange := [layer for layer in layers if not isinstance(layer, int) or isinstance(layer, bool)]:
        raise RequestError(
            f"`{option}` names {strange[0]!r}, which is no number of a layer; give whole numbers, 0 to {count - 1}."
        )
    for layer in layers:
        if not 0 <= layer < count:
            raise RequestError(f"`{option}` names layer {layer}, and the teacher has {count} layers, 0 to {count - 1}.")


def made(kind: Any, config: Any, dtype: Any) -> Any:
    """A model of a class of transformers, with weights to be replaced: in float64 for another's float64, else in float32."""
    import torch

    model = kind(config)
    return model.double() if dtype == torch.float64 else model


def copied(config: Any) -> Any:
    """A config for another model of the same class, whose attention is the class's own, not what a stage made of it."""
    config = copy.deepcopy(config)
    if not config.output_attentions:
        config._attn_implementation = None
    return config


def _with_layers(config: Any, setting: str, layers: Sequence[int]) -> None:
    count = getattr(config, setting)
    for name in _BY_LAYER:
        by_layer = getattr(config, name, None)
        if isinstance(by_layer, (list, tuple)) and len(by_layer) == count:
            setattr(config, name, [by_layer[layer] for layer in layers])
    if hasattr(
        config, "attention_types"
    ):  # what a GPT-Neo's `attention_layers` are made of again when its config is read
        config.attention_types = [[config.attention_layers, 1]]
    setattr(config, setting, len(layers))
    if setting == "encoder_layers":  # what a BART's config also calls so
        config.num_hidden_layers = len(layers)


def _renumbered(state: Mapping[str, Any], prefix: str, layers: Sequence[int]) -> dict[str, Any]:
    kept = {key: value for key, value in state.items() if not key.startswith(f"{prefix}.")}
    for new, old in enumerate(layers):
        start, first = f"{prefix}.{old}.", f"{prefix}.0."
        own = {key[len(start) :]: state[key] for key in state if key.startswith(start)}
        shared = {
            key[len(first) :]: state[key] for key in state if key.startswith(first) and key.endswith(_OF_FIRST_LAYERS)
        }
        own = {key: value for key, value in own.items() if key not in shared} | (shared if new == 0 else {})
        kept |= {f"{prefix}.{new}.{key}": value for key, value in own.items()}
    return kept
