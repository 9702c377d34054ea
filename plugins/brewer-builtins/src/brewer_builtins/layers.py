"""Shorter models: some layers of a transformer, with everything around them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from brewer_core import RequestError


def shortened(model: Any, layers: Sequence[int]) -> Any:
    """A model of the same class and config with some of its layers, in the order given, and copies of their weights.

    model: a `PreTrainedModel` with one list of layers; embeddings, pooler and head are copied too.
    Raises RequestError where it has no such list or no such layer, and where a layer does not fit into its new place.
    """
    prefix = _list_of_layers(model)
    _check_layers(layers, model.config.num_hidden_layers)
    short = type(model)(_with_layers(copied(model.config), layers))
    try:
        short.load_state_dict(_renumbered(model.state_dict(), prefix, layers))
    except RuntimeError as error:
        raise RequestError(
            f"layers {list(layers)} of the teacher do not fit a {type(model).__name__} of {len(layers)} layers, "
            "whose first layer may be of another form; let `keep_layers` begin with 0."
        ) from error
    return short


def _list_of_layers(model: Any) -> str:
    """The name of the one list of layers that is as long as the model's config says."""
    from torch.nn import ModuleList

    count = model.config.num_hidden_layers
    names = [name for name, part in model.named_modules() if isinstance(part, ModuleList) and len(part) == count]
    if len(names) != 1:
        raise RequestError(
            f"`keep_layers` needs a teacher with one list of {count} layers, and {type(model).__name__} has "
            f"{len(names)}; use `config` instead."
        )
    return str(names[0])


def _check_layers(layers: Sequence[int], count: int) -> None:
    if not layers:
        raise RequestError("`keep_layers` is empty; name one layer at least.")
    for layer in layers:
        if not 0 <= layer < count:
            raise RequestError(
                f"`keep_layers` names layer {layer}, and the teacher has {count} layers, 0 to {count - 1}."
            )


def copied(config: Any) -> Any:
    """A config for another model of the same class, whose attention is the class's own, not what a stage made of it."""
    config = copy.deepcopy(config)
    if not config.output_attentions:
        config._attn_implementation = None
    return config


def _with_layers(short: Any, layers: Sequence[int]) -> Any:
    kinds = getattr(short, "layer_types", None)
    if kinds is not None:
        short.layer_types = [kinds[layer] for layer in layers]
    short.num_hidden_layers = len(layers)
    return short


def _renumbered(state: Mapping[str, Any], prefix: str, layers: Sequence[int]) -> dict[str, Any]:
    kept = {key: value for key, value in state.items() if not key.startswith(f"{prefix}.")}
    for new, old in enumerate(layers):
        start = f"{prefix}.{old}."
        kept |= {f"{prefix}.{new}.{key[len(start) :]}": state[key] for key in state if key.startswith(start)}
    return kept
