"""A narrower model with the weights of a wider one.

Shapes: H and K widths of teacher and student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brewer_builtins.layers import copied, made
from brewer_builtins.surgery.activity import Batches, activity
from brewer_builtins.surgery.anatomy import Anatomy, Sizes, transposed
from brewer_builtins.surgery.choice import Choice, choice, kept, positions
from brewer_builtins.surgery.norms import Fitted, fitted, folded_bias
from brewer_builtins.surgery.projection import Projection, Selection, principal
from brewer_core import RequestError

State = dict[str, Tensor]


def narrowed(anatomy: Anatomy, sizes: Sizes, method: str, batches: Batches) -> Any:
    """A model of the same class and of other sizes, with what a method keeps of the weights.

    method: `importance` keeps what is most active on the sample; `truncate` what comes first; `pca` rotates the stream to its
    principal components, and keeps heads and neurons as `importance` does. batches: the sample, which `truncate` does without.
    At the width that it has, the stream is left as it is. Raises RequestError where the model cannot have these sizes.
    """
    _check(anatomy, sizes, method)
    seen = None if method == "truncate" else activity(anatomy, batches)
    what = choice(anatomy, sizes, seen)
    thinner = sizes.hidden != anatomy.sizes.hidden
    projection: Projection = Selection(what.channels)
    norms: Mapping[str, Fitted] = {}
    if thinner and seen is not None:
        if method == "pca":
            projection = principal(seen.moments, what.channels, anatomy.family.centred)
        norms = fitted(anatomy, projection, Selection(what.pooled), batches)
    readers = _folds(anatomy) if thinner and method == "pca" else {}
    state = {name: tensor.detach().clone() for name, tensor in anatomy.model.state_dict().items()}
    biases = _fold(anatomy, state, readers)
    untied = any(reader == "lm_head" for own in readers.values() for reader in own)
    state = _cut(anatomy, sizes, what, projection, state)
    _set_norms(anatomy, state, norms, readers, biases)
    _rescale(anatomy, sizes, state, untied)
    return _filled(anatomy, sizes, state, untied)


def _check(anatomy: Anatomy, sizes: Sizes, method: str) -> None:
    config = anatomy.model.config
    kind, thinner = type(anatomy.model).__name__, sizes.hidden != anatomy.sizes.hidden
    if thinner and method == "pca" and anatomy.masked_lm:
        raise RequestError(f'`method` "pca" cannot rotate the head of {kind}; take "importance".')
    if thinner and method == "pca" and any(name.endswith("encoder.conv") for name in anatomy.modules):
        raise RequestError(f'`method` "pca" cannot rotate the convolution of this {kind}; take "importance".')
    if thinner and getattr(config, "scale_embedding", False):
        raise RequestError(f"the width of {kind} with `scale_embedding` cannot be changed; give `layers` alone.")
    embedding = getattr(config, "embedding_size", anatomy.sizes.hidden)
    if thinner and embedding == sizes.hidden and embedding != anatomy.sizes.hidden:
        raise RequestError(
            f"`hidden_size` {sizes.hidden} is the width of the teacher's embeddings, whose projection to its own width "
            "the student would not have; take another."
        )


def _folds(anatomy: Anatomy) -> dict[str, list[str]]:
    """The norms whose weights go into the linear layers that read them, with the names of these."""
    found = {}
    for name in anatomy.norms:
        for end, readers in anatomy.family.folds.items():
            if name.endswith(end):
                own = [reader for wanted in readers for reader in _readers(anatomy, name, wanted)]
                if own and (anatomy.family.unties or "lm_head" not in own):
                    found[name] = own
    return found


def _readers(anatomy: Anatomy, norm: str, wanted: str) -> list[str]:
    scope = "" if wanted.startswith("/") else f"{anatomy.layer_of(norm)}."
    end = wanted.removeprefix("/")
    return [name for name in anatomy.modules if name.startswith(scope) and (name == end or name.endswith(f".{end}"))]


def _fold(anatomy: Anatomy, state: State, readers: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """Multiply readers by the weight of their norm, and give them its bias; what readers without a bias lack, by reader."""
    lacking = {}
    for norm, own in readers.items():
        scale = state[f"{norm}.weight"] + anatomy.family.norm_offset
        bias = state.get(f"{norm}.bias")
        for reader in own:
            input_first = transposed(anatomy.modules[reader])
            weight = state[f"{reader}.weight"]
            matrix = weight.T if input_first else weight
            if bias is not None and f"{reader}.bias" in state:
                state[f"{reader}.bias"] = state[f"{reader}.bias"] + matrix @ bias
            elif bias is not None:
                lacking[reader] = matrix @ bias
            state[f"{reader}.weight"] = weight * (scale[:, None] if input_first else scale)
    return lacking


def _cut(anatomy: Anatomy, sizes: Sizes, what: Choice, projection: Projection, state: State) -> State:
    """Each weight with the student's sizes along its axes."""
    student = _shapes(anatomy, sizes)
    cut = {}
    for name, axes in anatomy.axes(student, sizes.hidden).items():
        tensor = state[name]
        for i, axis in enumerate(axes):
            if axis == "residual":
                tensor = projection(tensor, i) if sizes.hidden != anatomy.sizes.hidden else tensor
            elif axis:
                tensor = tensor.index_select(i, _index(anatomy, what, name, axis).to(tensor.device))
        cut[name] = _sharper(anatomy, sizes, name, axes, tensor)
        if tuple(tensor.shape) != student.get(name):
            raise RequestError(
                f"the weight {name} of {type(anatomy.model).__name__} does not get narrower as its config says; give "
                "`layers` alone, or a `config` with sizes of its own."
            )
    return cut


def _index(anatomy: Anatomy, what: Choice, name: str, axis: str) -> Tensor:
    if axis == "pooled":
        return what.pooled
    old = anatomy.sizes_of(name, anatomy.sizes)
    if axis.startswith("neurons"):
        own = what.neurons[anatomy.layer_of(name)]
        return torch.cat([own + part * old.neurons for part in range(axis.count("+") + 1)])
    return kept(axis, what.heads[anatomy.attention_of(name)], old)


def _sharper(anatomy: Anatomy, sizes: Sizes, name: str, axes: tuple[str, ...], tensor: Tensor) -> Tensor:
    """Queries of fewer dimensions, by sqrt(d'/d): scores are divided by the root of fewer, so those that are left count alike."""
    old, new = anatomy.sizes_of(name, anatomy.sizes), anatomy.sizes_of(name, sizes)
    axis = next((i for i, axis in enumerate(axes) if "query" in axis), None)
    if axis is None or new.head_dim == old.head_dim or not anatomy.family.scaled:
        return tensor
    factor = torch.ones(tensor.shape[axis], dtype=tensor.dtype, device=tensor.device)
    factor[positions(axes[axis], new)["query"].flatten()] = (new.head_dim / old.head_dim) ** 0.5
    return tensor * factor.view([-1 if i == axis else 1 for i in range(tensor.dim())])


def _set_norms(
    anatomy: Anatomy,
    state: State,
    norms: Mapping[str, Fitted],
    readers: Mapping[str, list[str]],
    lacking: Mapping[str, Tensor],
) -> None:
    for name, fit in norms.items():
        weight, bias = fit.weight, fit.bias
        if name in readers:
            weight = torch.full_like(weight, fit.scale)
            without = [reader for reader in readers[name] if reader in lacking]
            bias = torch.zeros_like(bias)
            if without:
                bias = folded_bias([state[f"{each}.weight"] for each in without], [lacking[each] for each in without])
        own = state[f"{name}.weight"]
        state[f"{name}.weight"] = (weight - anatomy.family.norm_offset).to(own)
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = bias.to(own)


def _rescale(anatomy: Anatomy, sizes: Sizes, state: State, untied: bool) -> None:
    """Undo factors that a model takes from its width: of embeddings, and of T5's tied logits."""
    factor = (anatomy.sizes.hidden / sizes.hidden) ** 0.5
    if factor == 1.0:
        return
    offset, embedded = anatomy.family.norm_offset, anatomy.family.embeddings
    last = [name for name in anatomy.norms if name.endswith(("model.norm", "decoder.final_layer_norm"))]
    tied = _tied(anatomy.model) and not untied
    if embedded:
        for name in state:
            if name.endswith(f"{embedded}.weight") or (tied and name == "lm_head.weight"):
                state[name] = state[name] * factor
    scaled = (embedded and tied) or (
        getattr(anatomy.model.config, "scale_decoder_outputs", False) and "lm_head" in anatomy.modules
    )
    for name in last if scaled else []:
        state[f"{name}.weight"] = (state[f"{name}.weight"] + offset) / factor - offset


def _tied(model: Any) -> bool:
    out, into = model.get_output_embeddings(), model.get_input_embeddings()
    return out is not None and out.weight is into.weight


def _config(anatomy: Anatomy, sizes: Sizes, untied: bool = False) -> Any:
    family, config = anatomy.family, copied(anatomy.model.config)
    if getattr(config, "embedding_size", None) == anatomy.sizes.hidden:
        config.embedding_size = sizes.hidden
    if getattr(config, "pooler_hidden_size", None) == anatomy.sizes.hidden:
        config.pooler_hidden_size = sizes.hidden
    setattr(config, family.width, sizes.hidden)
    for stack in anatomy.stacks.values():
        own = sizes.stacks[stack.name]
        setattr(config, stack.heads, own.heads)
        if own != anatomy.sizes.stacks[stack.name]:
            setattr(config, stack.neurons, own.neurons)
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = own.kv_heads
        if family.free_heads and family.rotary:
            config.head_dim = own.head_dim
    if untied:
        config.tie_word_embeddings = False
    return config


def _shapes(anatomy: Anatomy, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The shapes of the student's weights, without any memory for them."""
    with torch.device("meta"):
        model = _made(anatomy, sizes)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _made(anatomy: Anatomy, sizes: Sizes, untied: bool = False) -> Any:
    config = _config(anatomy, sizes, untied)
    try:
        type(config).from_dict(config.to_dict())  # what a saved student's config is read by
        return made(type(anatomy.model), config, anatomy.model.dtype)
    except Exception as error:  # configs and models of transformers check sizes in ways of their own
        raise RequestError(
            f"{type(anatomy.model).__name__} cannot have these sizes ({' '.join(str(error).split())}); take another "
            "`hidden_size`."
        ) from error


def _filled(anatomy: Anatomy, sizes: Sizes, state: State, untied: bool) -> nn.Module:
    model: nn.Module = _made(anatomy, sizes, untied)
    model.load_state_dict(state)
    return model
