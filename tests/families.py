"""Hugging Face models as small as can be, of every family whose short names are promised, with random weights.

Shapes: B rows, L tokens, M tokens of a decoder, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

LENGTH, DECODED, WORDS = 7, 5, 60

_BERT: Mapping[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 40,
}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 12,
    "type_vocab_size": 0,
}
_GROUPED: Mapping[str, Any] = {**_BERT, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}

FAMILIES: Mapping[str, tuple[type[Any], type[Any], Mapping[str, Any]]] = {
    "bert": (transformers.BertForSequenceClassification, transformers.BertConfig, _BERT),
    "roberta": (transformers.RobertaForSequenceClassification, transformers.RobertaConfig, _BERT),
    "xlm-roberta": (transformers.XLMRobertaForMaskedLM, transformers.XLMRobertaConfig, _BERT),
    "camembert": (transformers.CamembertForTokenClassification, transformers.CamembertConfig, _BERT),
    "electra": (
        transformers.ElectraForSequenceClassification,
        transformers.ElectraConfig,
        {**_BERT, "embedding_size": 16},
    ),
    "deberta": (transformers.DebertaForSequenceClassification, transformers.DebertaConfig, {**_BERT, **_DEBERTA}),
    "deberta-v2": (
        transformers.DebertaV2ForSequenceClassification,
        transformers.DebertaV2Config,
        {**_BERT, **_DEBERTA, "conv_kernel_size": 3},
    ),
    "deberta-v3": (
        transformers.DebertaV2ForSequenceClassification,
        transformers.DebertaV2Config,
        {**_BERT, **_DEBERTA, "share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    ),
    "mpnet": (transformers.MPNetForSequenceClassification, transformers.MPNetConfig, _BERT),
    "distilbert": (
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig,
        {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 36, "max_position_embeddings": 40},
    ),
    "modernbert": (
        transformers.ModernBertForSequenceClassification,
        transformers.ModernBertConfig,
        {**_BERT, "pad_token_id": 0, "local_attention": 4, "global_attn_every_n_layers": 2},
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config,
        {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 40},
    ),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, _GROUPED),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, _GROUPED),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, _GROUPED),
    "gemma": (transformers.GemmaForCausalLM, transformers.GemmaConfig, _GROUPED),
    "gemma2": (
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        {**_GROUPED, "sliding_window": 4, "attn_logit_softcapping": 0.05, "query_pre_attn_scalar": 16},
    ),
    "gemma3": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, {**_GROUPED, "sliding_window": 4}),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config,
        {"d_model": 24, "d_kv": 8, "d_ff": 36, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4},
    ),
    "bart": (
        transformers.BartForConditionalGeneration,
        transformers.BartConfig,
        {
            "d_model": 24,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 36,
            "decoder_ffn_dim": 36,
            "max_position_embeddings": 40,
        },
    ),
}
"""By name: the model's class, its config's, and sizes."""

_LATENT = {
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "pad_token_id": 0,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
_OF_DECODER: Mapping[str, Any] = {**_BERT, "hidden_size": 32, "pad_token_id": 0}

JOINED: Mapping[str, tuple[type[Any], type[Any], Mapping[str, Any]]] = {
    "gpt-neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, _OF_DECODER),
    "bloom": (transformers.BloomForCausalLM, transformers.BloomConfig, _OF_DECODER),
    "falcon": (transformers.FalconForCausalLM, transformers.FalconConfig, _OF_DECODER),
    "falcon-alibi": (
        transformers.FalconForCausalLM,
        transformers.FalconConfig,
        {**_OF_DECODER, "alibi": True, "multi_query": False},
    ),
    "falcon-new": (
        transformers.FalconForCausalLM,
        transformers.FalconConfig,
        {**_OF_DECODER, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "gpt-bigcode": (transformers.GPTBigCodeForCausalLM, transformers.GPTBigCodeConfig, _OF_DECODER),
    "gpt-bigcode-heads": (
        transformers.GPTBigCodeForCausalLM,
        transformers.GPTBigCodeConfig,
        {**_OF_DECODER, "multi_query": False},
    ),
    "codegen": (transformers.CodeGenForCausalLM, transformers.CodeGenConfig, {**_OF_DECODER, "rotary_dim": 4}),
    "phi3": (transformers.Phi3ForCausalLM, transformers.Phi3Config, {**_OF_DECODER, "num_key_value_heads": 2}),
    "deepseek-v3": (
        transformers.DeepseekV3ForCausalLM,
        transformers.DeepseekV3Config,
        {**_OF_DECODER, **_LATENT, "num_key_value_heads": 4, "q_lora_rank": 12},
    ),
    "deepseek-v3-whole": (
        transformers.DeepseekV3ForCausalLM,
        transformers.DeepseekV3Config,
        {**_OF_DECODER, **_LATENT, "num_key_value_heads": 4, "q_lora_rank": None},
    ),
}
"""Those with one projection for several of queries, keys and values, likewise."""

ENCODER_DECODERS = ("t5", "bart")


def built(family: str, **settings: Any) -> Any:
    """A model of a family with weights that are large enough for attention to differ from token to token."""
    model_class, config_class, sizes = {**FAMILIES, **JOINED}[family]
    torch.manual_seed(0)
    model = model_class(config_class(vocab_size=WORDS, **{**sizes, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def batch(family: str = "bert", rows: int = 2) -> dict[str, Tensor]:
    """Texts of which the last ones end in padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WORDS, (rows, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    made = {"input_ids": ids, "attention_mask": mask}
    if family in ENCODER_DECODERS:
        made["decoder_input_ids"] = torch.randint(5, WORDS, (rows, DECODED), generator=generator)
    return made


def hooks_of(model: nn.Module) -> int:
    """How many hooks stand on its modules, but for transformers' own, which stay."""
    return sum(
        sum("output_capturing_hook" not in hook.__qualname__ for hook in hooks.values())
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    )
