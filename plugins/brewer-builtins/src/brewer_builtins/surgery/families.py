"""What the weights of each family of transformers are along their axes: the knowledge that shapes alone do not give.

In BERT the query's weight is [H, H]: one axis is the width that all layers share, and the other the heads side by side. Which is
which stands here, by the name of the module. An axis that no rule names belongs to the shared width where it is as long, and
stays as it is where it does not depend on the sizes of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from brewer_core import RequestError

Axis = str
"""What runs along an axis of a weight.

`residual`: the width of the stream that all layers read and write. `query`, `key`, `value`: what is made for each head;
`context`: what the heads give, side by side. `heads`: a number for each head. `neurons`: the intermediate width. `pooled`: what a
head of a classifier makes of the stream. Parts that lie one after the other are joined by "+"; where each head has all of
its parts together, by "&". The empty name is whatever does not depend on a size.
"""
Rule = tuple[str, Axis, Axis]
"""The end of a module's or a parameter's name, and what runs along its output and its input."""


@dataclass(frozen=True)
class Stack:
    """A list of layers: how its name ends, and what its sizes are called in a config. name: "encoder", "decoder" or ""."""

    path: str
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    neurons: str = "intermediate_size"
    name: str = ""


@dataclass(frozen=True)
class Family:
    """What is known of a family.

    free_heads: heads times their dimensions need not give the width. rotary: the dimensions of a head are bound to
    frequencies, so a head is kept or left out as a whole. shared_heads: a bias is added to the same head of all layers.
    scaled: attention scores are divided by the root of a head's dimensions.
    centred: its norms subtract the mean. norm_offset: what is added to a norm's weight when it is used.
    folds: norms that stand before a layer and whose outputs only linear layers read: the end of the norm's name, and
    those of its readers, in the same layer, or anywhere in the model after a "/".
    embeddings: the embeddings that are multiplied by the root of the width.
    unties: whether the matrix of the logits can be another than that of the embeddings.
    """

    stacks: tuple[Stack, ...]
    rules: tuple[Rule, ...]
    width: str = "hidden_size"
    free_heads: bool = False
    rotary: bool = False
    shared_heads: bool = False
    scaled: bool = True
    centred: bool = True
    norm_offset: float = 0.0
    folds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    embeddings: str = ""
    unties: bool = True


_HEADS: tuple[Rule, ...] = (
    ("pooler.dense", "pooled", "residual"),
    ("classifier.dense", "pooled", "residual"),
    ("classifier.out_proj", "", "pooled"),
    ("classification_head.dense", "pooled", "residual"),
    ("classification_head.out_proj", "", "pooled"),
    ("pre_classifier", "pooled", "residual"),
    ("seq_relationship", "", "pooled"),
)
_BERT_BLOCK: tuple[Rule, ...] = (
    ("attention.output.dense", "residual", "context"),
    ("intermediate.dense", "neurons", "residual"),
    ("output.dense", "residual", "neurons"),
)
_BERT = Family(
    (Stack("encoder.layer"),),
    (
        *_HEADS,
        ("self.query", "query", "residual"),
        ("self.key", "key", "residual"),
        ("self.value", "value", "residual"),
        *_BERT_BLOCK,
    ),
)
_DEBERTA = Family(
    (Stack("encoder.layer"),),
    (
        *_HEADS,
        ("self.in_proj", "query&key&value", "residual"),
        ("self.q_bias", "query", ""),
        ("self.v_bias", "value", ""),
        ("self.pos_proj", "key", "residual"),
        ("self.pos_q_proj", "query", "residual"),
        *_BERT_BLOCK,
    ),
)
_DEBERTA_V2 = Family(
    (Stack("encoder.layer"),),
    (
        *_HEADS,
        ("self.query_proj", "query", "residual"),
        ("self.key_proj", "key", "residual"),
        ("self.value_proj", "value", "residual"),
        ("self.pos_key_proj", "key", "residual"),
        ("self.pos_query_proj", "query", "residual"),
        *_BERT_BLOCK,
    ),
)
_MPNET = Family(
    (Stack("encoder.layer"),),
    (
        *_HEADS,
        ("attn.q", "query", "residual"),
        ("attn.k", "key", "residual"),
        ("attn.v", "value", "residual"),
        ("attn.o", "residual", "context"),
        ("relative_attention_bias", "", "heads"),
        *_BERT_BLOCK,
    ),
    shared_heads=True,
)
_DISTILBERT = Family(
    (Stack("transformer.layer", "n_layers", "n_heads", "hidden_dim"),),
    (
        *_HEADS,
        ("q_lin", "query", "residual"),
        ("k_lin", "key", "residual"),
        ("v_lin", "value", "residual"),
        ("out_lin", "residual", "context"),
        ("ffn.lin1", "neurons", "residual"),
        ("ffn.lin2", "residual", "neurons"),
    ),
    width="dim",
)
_GPT2 = Family(
    (Stack("h", "n_layer", "n_head", "n_inner"),),
    (
        ("attn.c_attn", "query+key+value", "residual"),
        ("attn.c_proj", "residual", "context"),
        ("mlp.c_fc", "neurons", "residual"),
        ("mlp.c_proj", "residual", "neurons"),
    ),
    width="n_embd",
    folds={"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",), "ln_f": ("/lm_head", "/score", "/classifier")},
)
_ATTENTION: tuple[Rule, ...] = (
    ("attn.q_proj", "query", "residual"),
    ("attn.k_proj", "key", "residual"),
    ("attn.v_proj", "value", "residual"),
)
_LLAMA_RULES: tuple[Rule, ...] = (
    *_ATTENTION,
    ("attn.o_proj", "residual", "context"),
    ("mlp.gate_proj", "neurons", "residual"),
    ("mlp.up_proj", "neurons", "residual"),
    ("mlp.down_proj", "residual", "neurons"),
)
_LLAMA_FOLDS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "model.norm": ("/lm_head", "/score"),
}
_LLAMA = Family((Stack("layers"),), _LLAMA_RULES, free_heads=True, rotary=True, centred=False, folds=_LLAMA_FOLDS)
_GEMMA = replace(_LLAMA, norm_offset=1.0, embeddings="embed_tokens")
_GEMMA2 = replace(
    _GEMMA,
    folds={
        "input_layernorm": _LLAMA_FOLDS["input_layernorm"],
        "pre_feedforward_layernorm": _LLAMA_FOLDS["post_attention_layernorm"],
        "model.norm": _LLAMA_FOLDS["model.norm"],
    },
)
_T5_READERS = ("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1")
_T5 = Family(
    (
        Stack("encoder.block", "num_layers", "num_heads", "d_ff", "encoder"),
        Stack("decoder.block", "num_decoder_layers", "num_heads", "d_ff", "decoder"),
    ),
    (
        *_HEADS,
        ("Attention.q", "query", "residual"),
        ("Attention.k", "key", "residual"),
        ("Attention.v", "value", "residual"),
        ("Attention.o", "residual", "context"),
        ("relative_attention_bias", "", "heads"),
        ("DenseReluDense.wi", "neurons", "residual"),
        ("DenseReluDense.wi_0", "neurons", "residual"),
        ("DenseReluDense.wi_1", "neurons", "residual"),
        ("DenseReluDense.wo", "residual", "neurons"),
    ),
    width="d_model",
    free_heads=True,
    shared_heads=True,
    scaled=False,
    centred=False,
    folds={
        "layer.0.layer_norm": ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v"),
        "layer.1.layer_norm": ("EncDecAttention.q", *(f"layer.1.{reader}" for reader in _T5_READERS)),
        "layer.2.layer_norm": tuple(f"layer.2.{reader}" for reader in _T5_READERS),
        "encoder.final_layer_norm": ("/EncDecAttention.k", "/EncDecAttention.v"),
        "decoder.final_layer_norm": ("/lm_head", "/classification_head.dense"),
    },
    unties=False,
)
_BART = Family(
    (
        Stack("encoder.layers", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "encoder"),
        Stack("decoder.layers", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "decoder"),
    ),
    (
        *_HEADS,
        *_ATTENTION,
        ("attn.out_proj", "residual", "context"),
        ("fc1", "neurons", "residual"),
        ("fc2", "residual", "neurons"),
    ),
    width="d_model",
)
_MODERNBERT = Family(
    (Stack("layers"),),
    (
        ("attn.Wqkv", "query+key+value", "residual"),
        ("attn.Wo", "residual", "context"),
        ("mlp.Wi", "neurons+neurons", "residual"),
        ("mlp.Wo", "residual", "neurons"),
        ("head.dense", "pooled", "residual"),
        ("head.norm", "pooled", ""),
    ),
    rotary=True,
    folds={"attn_norm": ("attn.Wqkv",), "mlp_norm": ("mlp.Wi",), "final_norm": ("/head.dense",)},
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA_V2,
    "mpnet": _MPNET,
    "distilbert": _DISTILBERT,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "t5": _T5,
    "mt5": _T5,
    "bart": _BART,
    "modernbert": _MODERNBERT,
}
"""By `model_type` of a config."""


def family_of(model: Any) -> Family | None:
    """What is known of a model's family; None where nothing is."""
    return FAMILIES.get(model.config.model_type)


def known_family(model: Any) -> Family:
    """What is known of a model's family. Raises RequestError where nothing is."""
    family = family_of(model)
    if family is None:
        raise RequestError(
            f"the widths of {type(model).__name__} cannot be changed, as nothing is known of the weights of "
            f"{model.config.model_type!r}; what can be made narrower is {', '.join(FAMILIES)}. Give `layers` alone, or a "
            "`config` with sizes of its own."
        )
    return family


def rule_of(family: Family, name: str) -> Rule | None:
    """The rule for a module or a parameter by its name: the most specific one whose end it bears."""
    fitting = [rule for rule in family.rules if ends(name, rule[0])]
    return max(fitting, key=lambda rule: len(rule[0]), default=None)


def ends(name: str, end: str) -> bool:
    """Whether a name ends so: `attn.q_proj` is the end of `self_attn.q_proj` too, and `fc1` of names whose last part is that."""
    return name.endswith(end) if "." in end else name.rpartition(".")[2] == end
