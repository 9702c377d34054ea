"""Places of a model where a tensor can be had while it runs.

Shapes: B rows, L tokens, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

What = Literal["input", "output", "scores", "attention"]
"""What is noted of a module: its arguments as (args, kwargs), what it returned, or what goes into and comes out of its softmax."""


@dataclass(frozen=True)
class Tap:
    """A tensor in a model.

    pick: takes it out of what is noted of the module, while the module runs: a model in parts has its biases then alone. It may
    compute nothing that saves a tensor for the backward pass, or a checkpointed layer would save another number when it runs again.
    """

    module: nn.Module
    what: What
    pick: Callable[[Any], Any]


def states_of(module: nn.Module) -> Tap:
    """The states that a layer, or what holds the layers, returns."""
    return Tap(module, "output", _first)


def states_into(module: nn.Module) -> Tap:
    """The states that a layer is given."""
    return Tap(module, "input", _first_argument)


def scores_of(attention: nn.Module) -> Tap:
    """[B, H, L, L]: what goes into the softmax of an attention module, with scale, bias and mask."""
    return Tap(attention, "scores", _itself)


def probabilities_of(attention: nn.Module) -> Tap:
    """[B, H, L, L]: what comes out of the softmax, after dropout where the module drops of it."""
    return Tap(attention, "attention", _itself)


def _itself(noted: Any) -> Any:
    return noted


def _first(output: Any) -> Any:
    """The states of an output: the only tensor, the first of a tuple, or the last hidden state of a mapping."""
    if isinstance(output, Mapping):
        return output.get("last_hidden_state")
    return output[0] if isinstance(output, (list, tuple)) else output


def _first_argument(arguments: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Any:
    args, named = arguments
    return args[0] if args else named.get("hidden_states")


# Projections of queries, keys and values

_APART = (
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    ("q_proj", "k_proj", "v_proj"),  # BART, Llama, Mistral, Qwen, Gemma
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa 2 and 3
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # T5, MPNet
)
"""What modules call their projections, where each has one of its own."""

_NAMES = ("query", "key", "value")


def projections_of(attention: nn.Module) -> Mapping[str, Tap] | None:
    """Queries, keys and values [B, L, D] of an attention module by name, all heads side by side; None where it is none.

    They are what the projections return, biases included: before rotary positions, norms of heads and scale.
    """
    inner: dict[str, nn.Module] = {name: module for name, module in attention.named_children() if module is not None}
    if any(name.endswith("_global") for name in inner):  # Longformer's have the length first
        return None
    for names in _APART:
        if all(name in inner for name in names):
            return {short: Tap(inner[name], "output", _itself) for short, name in zip(_NAMES, names, strict=True)}
    if "c_attn" in inner and "q_attn" in inner:  # GPT-2, to an encoder
        shared = inner["c_attn"]
        return {
            "query": Tap(inner["q_attn"], "output", _itself),
            "key": Tap(shared, "output", _Share(0, 2)),
            "value": Tap(shared, "output", _Share(1, 2)),
        }
    for name in ("c_attn", "Wqkv"):  # GPT-2; ModernBERT
        if name in inner and _is_threefold(inner[name]):
            return {short: Tap(inner[name], "output", _Share(i, 3)) for i, short in enumerate(_NAMES)}
    if "in_proj" in inner and hasattr(attention, "q_bias"):  # DeBERTa 1
        biases = ("q_bias", None, "v_bias")
        made = zip(_NAMES, biases, strict=True)
        return {
            short: Tap(inner["in_proj"], "output", _HeadShare(i, attention, bias))
            for i, (short, bias) in enumerate(made)
        }
    return None


def _is_threefold(projection: nn.Module) -> bool:
    """Whether queries, keys and values are as wide as what they are made of; grouped keys would be narrower."""
    sizes = [(getattr(projection, a, None), getattr(projection, b, None)) for a, b in (("nx", "nf"), _LINEAR)]
    return any(into is not None and out == 3 * into for into, out in sizes)


_LINEAR = ("in_features", "out_features")


@dataclass(frozen=True)
class _Share:
    """One of several equal parts of the last axis."""

    index: int
    of: int

    def __call__(self, output: Tensor) -> Tensor:
        return output.chunk(self.of, dim=-1)[self.index]


@dataclass(frozen=True)
class _HeadShare:
    """One third of each head, where a head's query, key and value stand side by side; with its bias, which is added later."""

    index: int
    attention: Any
    bias: str | None

    def __call__(self, output: Tensor) -> Tensor:
        heads = output.view(*output.shape[:-1], self.attention.num_attention_heads, -1)
        share = heads.chunk(3, dim=-1)[self.index].flatten(-2)
        return share if self.bias is None else share + self._added

    @property
    def _added(self) -> Tensor:
        bias: Tensor = getattr(self.attention, self.bias or "")
        return bias
