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

PROJECTED = ("query", "key", "value")


def projections_of(attention: nn.Module) -> Mapping[str, Tap] | None:
    """Queries, keys and values [B, L, D] of an attention module by name, all heads side by side; None where it is none.

    They are what the projections return, biases included: before rotary positions, norms of heads and scale. Those are left out of which
    the projection is a `joined_projection`.
    """
    inner = _children(attention)
    if any(name.endswith("_global") for name in inner):  # Longformer's have the length first
        return None
    for names in _APART:
        if all(name in inner for name in names):
            return {short: Tap(inner[name], "output", _itself) for short, name in zip(PROJECTED, names, strict=True)}
    if "c_attn" in inner and "q_attn" in inner:  # GPT-2, to an encoder
        shared = inner["c_attn"]
        return {
            "query": Tap(inner["q_attn"], "output", _itself),
            "key": Tap(shared, "output", _Share(0, 2)),
            "value": Tap(shared, "output", _Share(1, 2)),
        }
    for name, sizes in (("c_attn", _CONV), ("Wqkv", _LINEAR)):  # GPT-2; ModernBERT
        if name in inner and _is_threefold(inner[name], sizes):
            return {short: Tap(inner[name], "output", _Share(i, 3)) for i, short in enumerate(PROJECTED)}
    if "in_proj" in inner and hasattr(attention, "q_bias"):  # DeBERTa 1
        biases = ("q_bias", None, "v_bias")
        made = zip(PROJECTED, biases, strict=True)
        return {
            short: Tap(inner["in_proj"], "output", _HeadShare(i, attention, bias))
            for i, (short, bias) in enumerate(made)
        }
    if spans := _spans(attention, inner):
        return {short: Tap(inner["qkv_proj"], "output", span) for short, span in zip(PROJECTED, spans, strict=True)}
    if "kv_b_proj" in inner:  # DeepSeek 2 and 3; queries of two projections are what the second returns
        own = inner.get("q_b_proj", inner.get("q_proj"))
        return {} if own is None else {"query": Tap(own, "output", _itself)}
    return {} if joined_projection(attention) else None


_JOINED = (
    "query_key_value",  # GPT-NeoX, Bloom, Falcon
    "qkv_proj",  # CodeGen
    "c_attn",  # GPT-BigCode
    "Wqkv",  # DBRX
    "kv_b_proj",  # DeepSeek 2 and 3
)


def joined_projection(attention: nn.Module) -> str:
    """The name of a projection for several of queries, keys and values, whose parts lie as each architecture has them; empty for none."""
    inner = _children(attention)
    return next((name for name in _JOINED if name in inner), "")


def _children(attention: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in attention.named_children() if module is not None}


def _is_threefold(projection: nn.Module, sizes: tuple[str, str]) -> bool:
    """Whether queries, keys and values are as wide as what they are made of; grouped keys would be narrower."""
    into, out = (getattr(projection, size, None) for size in sizes)
    return into is not None and out == 3 * into


_LINEAR, _CONV = ("in_features", "out_features"), ("nx", "nf")
"""The widths of torch's linear layer, and of GPT-2's; one of torch's called `c_attn`, GPT-BigCode's, has each head's parts together."""


def _spans(attention: nn.Module, inner: Mapping[str, nn.Module]) -> list[_Span]:
    """Where queries, keys and values lie in Phi 3's `qkv_proj`, one after the other; none where it is built otherwise."""
    if "qkv_proj" not in inner or "o_proj" not in inner:
        return []
    queries = int(getattr(inner["o_proj"], "in_features", 0))
    keys = int(getattr(attention, "num_key_value_heads", 0)) * int(getattr(attention, "head_dim", 0))
    if not keys or getattr(inner["qkv_proj"], "out_features", None) != queries + 2 * keys:
        return []
    return [_Span(0, queries), _Span(queries, keys), _Span(queries + keys, keys)]


@dataclass(frozen=True)
class _Span:
    """So many places of the last axis from one on."""

    start: int
    width: int

    def __call__(self, output: Tensor) -> Tensor:
        return output.narrow(-1, self.start, self.width)


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
