"""Tiny models of every family that can be cut, with weights that are no initialisation, and rows for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WIDTH, HEADS, LAYERS, NEURONS, ENTRIES = 24, 4, 4, 20, 40
_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
_GROUPED = {
    **{key: value for key, value in _SIZES.items() if key != "layer_norm_eps"},
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-12,
}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "layer_norm_epsilon": 1e-12}
_T5 = {
    "d_model": WIDTH,
    "d_kv": 5,
    "d_ff": NEURONS,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
    "layer_norm_epsilon": 1e-12,
}
_BART = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": NEURONS,
    "decoder_start_token_id": 2,
}
_DISTILBERT = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "SequenceClassification", _SIZES),
    "bert-tokens": ("bert", "TokenClassification", _SIZES),
    "bert-mlm": ("bert", "MaskedLM", _SIZES),
    "roberta": ("roberta", "SequenceClassification", _SIZES),
    "xlm-roberta": ("xlm-roberta", "SequenceClassification", _SIZES),
    "electra": ("electra", "SequenceClassification", {**_SIZES, "embedding_size": 8}),
    "electra-wide": ("electra", "SequenceClassification", {**_SIZES, "embedding_size": WIDTH}),
    "deberta": ("deberta", "SequenceClassification", {**_SIZES, **_RELATIVE}),
    "deberta-v2": (
        "deberta-v2",
        "SequenceClassification",
        {**_SIZES, **_RELATIVE, "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False},
    ),
    "deberta-v2-own-keys": ("deberta-v2", "SequenceClassification", {**_SIZES, **_RELATIVE, "share_att_key": False}),
    "deberta-v2-convolution": (
        "deberta-v2",
        "SequenceClassification",
        {**_SIZES, **_RELATIVE, "share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "mpnet": ("mpnet", "SequenceClassification", _SIZES),
    "distilbert": ("distilbert", "SequenceClassification", _DISTILBERT),
    "gpt2": ("gpt2", "CausalLM", _GPT2),
    "gpt2-classes": ("gpt2", "SequenceClassification", _GPT2),
    "llama": ("llama", "CausalLM", _GROUPED),
    "llama-tied": ("llama", "CausalLM", {**_GROUPED, "tie_word_embeddings": True}),
    "llama-classes": ("llama", "SequenceClassification", _GROUPED),
    "mistral": ("mistral", "CausalLM", _GROUPED),
    "qwen2": ("qwen2", "CausalLM", _GROUPED),
    "qwen3": ("qwen3", "CausalLM", _GROUPED),
    "gemma": ("gemma", "CausalLM", _GROUPED),
    "gemma2": ("gemma2", "CausalLM", _GROUPED),
    "gemma3": ("gemma3_text", "CausalLM", _GROUPED),
    "t5": ("t5", "Seq2SeqLM", _T5),
    "t5-gated": ("t5", "Seq2SeqLM", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "mt5": ("mt5", "Seq2SeqLM", _T5),
    "t5-classes": ("t5", "SequenceClassification", _T5),
    "bart": ("bart", "Seq2SeqLM", _BART),
    "bart-classes": ("bart", "SequenceClassification", _BART),
    "modernbert": (
        "modernbert",
        "SequenceClassification",
        {**{key: value for key, value in _SIZES.items() if key != "layer_norm_eps"}, "norm_eps": 1e-12},
    ),
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def tiny(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model of four layers, in eval mode, every weight of which was moved away from where it begins."""
    import transformers

    kind, head, sizes = MODELS[name]
    config = transformers.AutoConfig.for_model(kind, **{"vocab_size": ENTRIES, **sizes, **_TOKENS, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn(weight.shape) / (weight.shape[-1] ** 0.5 if weight.dim() > 1 else 1))
    return model


def rows(name: str, seed: int = 0, count: int = 8, length: int = 9) -> dict[str, Tensor]:
    """A batch, whose first row is shorter where the model can do with padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, ENTRIES, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    if name in ("bart-classes", "t5-classes"):
        ids[:, -1] = 2  # these read the state of the last token, which ends a text
    else:
        ids[0, -3:], mask[0, -3:] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "decoder_input_ids": ids[:, :5]} if name in ("t5", "t5-gated", "mt5", "bart") else batch


def sample(name: str, batches: int = 8) -> list[dict[str, Tensor]]:
    """Rows to look at, none of which `rows(name)` gives."""
    return [rows(name, seed) for seed in range(100, 100 + batches)]


def logits(model: Any, name: str) -> Tensor:
    """What a model answers to `rows`."""
    with torch.no_grad():
        answer: Tensor = model.eval()(**rows(name)).logits
    return answer
