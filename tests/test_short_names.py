"""Features of short names: of every family they are what its own modules compute, and gradients go through them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from brewer_core.architectures import anatomy_of
from brewer_core.captures import capturing
from brewer_core.features import Features
from families import DECODED, ENCODER_DECODERS, FAMILIES, JOINED, LENGTH, WORDS, batch, built, hooks_of

ALL = list(FAMILIES)
LAYERS = 3
Projected = tuple[Tensor, Tensor, Tensor]

OWN_ATTENTION: Mapping[str, str] = {
    "bert": "bert.encoder.layer.{}.attention.self",
    "roberta": "roberta.encoder.layer.{}.attention.self",
    "xlm-roberta": "roberta.encoder.layer.{}.attention.self",
    "camembert": "roberta.encoder.layer.{}.attention.self",
    "electra": "electra.encoder.layer.{}.attention.self",
    "deberta": "deberta.encoder.layer.{}.attention.self",
    "deberta-v2": "deberta.encoder.layer.{}.attention.self",
    "deberta-v3": "deberta.encoder.layer.{}.attention.self",
    "mpnet": "mpnet.encoder.layer.{}.attention.attn",
    "distilbert": "distilbert.transformer.layer.{}.attention",
    "modernbert": "model.layers.{}.attn",
    "gpt2": "transformer.h.{}.attn",
    "llama": "model.layers.{}.self_attn",
    "qwen2": "model.layers.{}.self_attn",
    "qwen3": "model.layers.{}.self_attn",
    "gemma": "model.layers.{}.self_attn",
    "gemma2": "model.layers.{}.self_attn",
    "gemma3": "model.layers.{}.self_attn",
    "t5": "encoder.block.{}.layer.0.SelfAttention",
    "bart": "model.encoder.layers.{}.self_attn",
}
"""The attention module of a layer. Where they are is written down here, and found by the code that is tested."""

OF_DECODERS = {
    "t5": ("decoder.block.{}.layer.0.SelfAttention", "decoder.block.{}.layer.1.EncDecAttention"),
    "bart": ("model.decoder.layers.{}.self_attn", "model.decoder.layers.{}.encoder_attn"),
}


def apart(*names: str) -> Callable[[Any, Tensor, Tensor], Projected]:
    """Three projections: queries of one sequence of states, keys and values of another."""

    def project(attention: Any, states: Tensor, others: Tensor) -> Projected:
        query, key, value = (getattr(attention, name) for name in names)
        return linear(query, states), linear(key, others), linear(value, others)

    return project


def linear(module: Any, states: Tensor) -> Tensor:
    return F.linear(states, module.weight, module.bias)


def of_gpt2(attention: Any, states: Tensor, others: Tensor) -> Projected:
    del others
    projected = states @ attention.c_attn.weight + attention.c_attn.bias
    width = states.shape[-1]
    return projected[..., :width], projected[..., width : 2 * width], projected[..., 2 * width :]


def of_modernbert(attention: Any, states: Tensor, others: Tensor) -> Projected:
    del others
    third = attention.Wqkv.weight.shape[0] // 3
    query, key, value = (F.linear(states, attention.Wqkv.weight[i * third : (i + 1) * third]) for i in range(3))
    return query, key, value


def of_deberta(attention: Any, states: Tensor, others: Tensor) -> Projected:
    """Head after head: its query, its key, its value; the biases of queries and values stand apart."""
    del others
    size = attention.attention_head_size
    heads: list[list[Tensor]] = [[], [], []]
    for head, which in itertools.product(range(attention.num_attention_heads), range(3)):
        start = (3 * head + which) * size
        heads[which].append(F.linear(states, attention.in_proj.weight[start : start + size]))
    query, key, value = (torch.cat(each, -1) for each in heads)
    return query + attention.q_bias, key, value + attention.v_bias


PROJECTED: Mapping[str, Callable[[Any, Tensor, Tensor], Projected]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), apart("query", "key", "value")),
    **dict.fromkeys(("deberta-v2", "deberta-v3"), apart("query_proj", "key_proj", "value_proj")),
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "bart"), apart("q_proj", "k_proj", "v_proj")
    ),
    **dict.fromkeys(("mpnet", "t5"), apart("q", "k", "v")),
    "distilbert": apart("q_lin", "k_lin", "v_lin"),
    "deberta": of_deberta,
    "modernbert": of_modernbert,
    "gpt2": of_gpt2,
}


def captured(model: nn.Module, inputs: Mapping[str, Tensor], *names: str, **arguments: Any) -> Features:
    """What is captured of a model in one run; every short name that it has where none is given."""
    read = names or tuple(anatomy_of(model).features)
    with capturing(model, read, "student") as capture:
        model(**inputs, **arguments)
    return capture.added_to(Features({}))


def given(model: nn.Module, path: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The states that an attention module is given for its queries, and for its keys."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        del module
        states = args[0] if args else kwargs["hidden_states"]
        others = args[1] if len(args) > 1 and "key_value_states" not in kwargs else kwargs.get("key_value_states")
        seen.append((states, states if others is None or others.dim() != states.dim() else others))

    handle = model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
    model(**inputs)
    handle.remove()
    return seen[0]


# What they are


@pytest.mark.parametrize("family", ALL)
def test_hidden_states_and_attention_are_those_that_the_model_returns(family: str) -> None:
    model, inputs = built(family), batch(family)
    found = captured(model, inputs)
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    if family in ENCODER_DECODERS:
        expected = {
            "hidden": outputs.encoder_hidden_states,
            "attention": outputs.encoder_attentions,
            "decoder_hidden": outputs.decoder_hidden_states,
            "decoder_attention": outputs.decoder_attentions,
            "cross_attention": outputs.cross_attentions,
        }
    else:
        expected = {"hidden": outputs.hidden_states, "attention": outputs.attentions}
    for name, layers in expected.items():
        assert len(found[name]) == len(layers)
        for ours, theirs in zip(found[name], layers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ALL)
def test_queries_keys_and_values_are_what_the_projections_make_of_the_states(family: str) -> None:
    model, inputs = built(family), batch(family)
    found = captured(model, inputs)
    for layer in range(LAYERS):
        path = OWN_ATTENTION[family].format(layer)
        expected = PROJECTED[family](model.get_submodule(path), *given(model, path, inputs))
        for name, tensor in zip(("query", "key", "value"), expected, strict=True):
            torch.testing.assert_close(found[name][layer], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("prefix", ["decoder_", "cross_"])
def test_a_decoder_has_names_of_its_own(family: str, prefix: str) -> None:
    model, inputs = built(family), batch(family)
    found = captured(model, inputs)
    for layer in range(2):
        path = OF_DECODERS[family][prefix == "cross_"].format(layer)
        states, others = given(model, path, inputs)
        expected = PROJECTED[family](model.get_submodule(path), states, others)
        for name, tensor in zip(("query", "key", "value"), expected, strict=True):
            torch.testing.assert_close(found[f"{prefix}{name}"][layer], tensor, rtol=0, atol=1e-5)
    assert found[f"{prefix}query"][0].shape[1] == DECODED
    assert found[f"{prefix}key"][0].shape[1] == (LENGTH if prefix == "cross_" else DECODED)


@pytest.mark.parametrize("family", ALL)
def test_the_softmax_of_scores_is_attention(family: str) -> None:
    found = captured(built(family), batch(family))
    for scores, attention in [(name, name.replace("scores", "attention")) for name in found if name.endswith("scores")]:
        for before, after in zip(found[scores], found[attention], strict=True):
            torch.testing.assert_close(before.softmax(-1), after, rtol=0, atol=1e-6)
            assert (before > -1e4).any()
            assert after.std() > 0.01, "all alike"


@pytest.mark.parametrize("family", ALL)
def test_embeddings_are_what_goes_into_the_first_layer(family: str) -> None:
    found = captured(built(family), batch(family))
    torch.testing.assert_close(found["embeddings"][0], found["hidden"][0], rtol=0, atol=0)
    if family in ENCODER_DECODERS:
        torch.testing.assert_close(found["decoder_embeddings"][0], found["decoder_hidden"][0], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bert", "deberta", "deberta-v2"])
def test_pooled_is_what_the_pooler_returns(family: str) -> None:
    model, inputs = built(family), batch(family)
    found = captured(model, inputs, "pooled", "hidden[-1]")
    body = model.get_submodule("bert" if family == "bert" else "deberta")
    pooler = body.pooler if family == "bert" else model.pooler
    first = linear(pooler.dense, found["hidden"][-1][:, 0])
    activation = torch.tanh if family == "bert" else F.gelu
    torch.testing.assert_close(found["pooled"][0], activation(first), rtol=0, atol=1e-6)


def test_the_axes_say_what_is_a_length_and_of_what() -> None:
    found = captured(built("t5"), batch("t5"))
    axes = {name: found.axes(name) for name in found}
    assert axes == {
        "attention": "B H L L",
        "cross_attention": "B H M L",
        "cross_key": "B L D",
        "cross_query": "B M D",
        "cross_scores": "B H M L",
        "cross_value": "B L D",
        "decoder_attention": "B H M M",
        "decoder_embeddings": "B M D",
        "decoder_hidden": "B M D",
        "decoder_key": "B M D",
        "decoder_query": "B M D",
        "decoder_scores": "B H M M",
        "decoder_value": "B M D",
        "embeddings": "B L D",
        "hidden": "B L D",
        "key": "B L D",
        "query": "B L D",
        "scores": "B H L L",
        "value": "B L D",
    }
    for name in found:
        assert len(set(axes[name].split()) - set("BHLMD")) == 0
        assert found[name][0].dim() == len(axes[name].split())
        assert found.stated(name) == ("M" not in axes[name])


def test_keys_of_grouped_heads_are_as_narrow_as_their_heads_are_few() -> None:
    found = captured(built("llama"), batch(), "query[0]", "key[0]", "value[0]", "attention[0]")
    assert {name: found[name][0].shape[-1] for name in ("query", "key", "value")} == {
        "query": 32,
        "key": 16,
        "value": 16,
    }
    assert found["attention"][0].shape == (2, 4, LENGTH, LENGTH)


# Scores by hand


def heads(states: Tensor, count: int) -> Tensor:
    return states.unflatten(-1, (count, -1)).transpose(1, 2)


def test_scores_of_bert_are_scaled_products_with_the_mask_added() -> None:
    found, lowest = captured(built("bert"), batch()), torch.finfo(torch.float32).min
    query, key, scores = (found[name][1] for name in ("query", "key", "scores"))
    mask, size = batch()["attention_mask"], query.shape[-1] // 4
    for row, head, i, j in itertools.product(range(2), range(4), range(LENGTH), range(LENGTH)):
        span = slice(head * size, (head + 1) * size)
        product = (query[row, i, span] @ key[row, j, span]).item() / math.sqrt(size)
        expected = product if mask[row, j] else product + lowest
        assert scores[row, head, i, j].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_scores_of_t5_have_no_scale_and_a_bias_of_positions() -> None:
    model, inputs = built("t5"), batch("t5")
    found = captured(model, inputs)
    bias = model.encoder.block[0].layer[0].SelfAttention.compute_bias(LENGTH, LENGTH)
    seen = inputs["attention_mask"].bool()[:, None, None].expand(-1, 4, LENGTH, -1)
    for layer in range(LAYERS):  # the bias of the first layer is that of all
        expected = heads(found["query"][layer], 4) @ heads(found["key"][layer], 4).mT + bias
        torch.testing.assert_close(found["scores"][layer][seen], expected[seen], rtol=0, atol=1e-5)
        assert (found["scores"][layer][~seen] < -1e30).all()


def test_scores_of_gemma_are_capped_before_the_mask_is_added() -> None:
    from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb, repeat_kv

    model, inputs = built("gemma2"), batch("gemma2")
    found = captured(model, inputs)
    query, key = heads(found["query"][0], 4), heads(found["key"][0], 2)
    places = torch.arange(LENGTH)[None]
    cosine, sine = model.model.rotary_emb(found["embeddings"][0], places)
    query, key = apply_rotary_pos_emb(query, key, cosine, sine)
    products = query @ repeat_kv(key, 2).mT * 16**-0.5
    distance = places.T - places
    seen = (distance >= 0) & (distance < 4) & inputs["attention_mask"].bool()[:, None, None]
    seen = seen.expand(-1, 4, -1, -1)
    torch.testing.assert_close(found["scores"][0][seen], 0.05 * torch.tanh(products / 0.05)[seen], rtol=0, atol=1e-6)
    assert found["scores"][0][seen].abs().max() > 0.04, "the cap was never felt"
    assert (found["scores"][0][~seen] < -1e30).all()


def test_scores_of_deberta_hold_contents_and_distances() -> None:
    """He et al. 2021, arXiv:2006.03654, eq. 4, in a plain loop; the place of a key's distance as transformers has it."""
    model, inputs = built("deberta-v3", position_buckets=-1, norm_rel_ebd="none"), batch()
    found = captured(model, inputs)
    attention, span = model.deberta.encoder.layer[1].attention.self, 12
    relative = model.deberta.encoder.rel_embeddings.weight
    of_places = {name: linear(getattr(attention, f"{name}_proj"), relative) for name in ("query", "key")}
    query, key, scores = (found[name][1] for name in ("query", "key", "scores"))
    size, mask = query.shape[-1] // 4, inputs["attention_mask"]
    for row, head, i, j in itertools.product(range(2), range(4), range(LENGTH), range(LENGTH)):
        if not (mask[row, i] and mask[row, j]):
            assert scores[row, head, i, j] == torch.finfo(torch.float32).min
            continue
        part = slice(head * size, (head + 1) * size)
        place = min(max(i - j + span, 0), 2 * span - 1)
        total = (
            query[row, i, part] @ key[row, j, part]
            + query[row, i, part] @ of_places["key"][place, part]
            + key[row, j, part] @ of_places["query"][place, part]
        )
        assert scores[row, head, i, j].item() == pytest.approx(total.item() / math.sqrt(3 * size), abs=1e-5)


def test_attention_is_what_the_model_returns_also_under_dropout() -> None:
    for family in ("bert", "t5", "deberta-v2", "llama", "gpt2"):
        model = built(family)
        model.set_attn_implementation("eager")
        for module in model.modules():
            for name in ("attention_dropout", "dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.5)
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        model.train()
        with capturing(model, ["attention", "scores"], "student") as capture:
            outputs = model(**batch(family), output_attentions=True)
        found = capture.added_to(Features({}))
        returned = outputs.encoder_attentions if family in ENCODER_DECODERS else outputs.attentions
        for ours, theirs in zip(found["attention"], returned, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            assert (ours == 0).float().mean() > 0.3, family


# What is captured, and what it leaves behind


@pytest.mark.parametrize("family", ALL)
def test_gradients_go_through_every_short_name(family: str) -> None:
    model, inputs = built(family).train(), batch(family)
    for name, feature in anatomy_of(model).features.items():
        model.zero_grad()
        read = f"{name}[1]" if feature.in_layers else name
        found = captured(model, inputs, read)[name]
        tensor = found[1] if feature.in_layers else found[0]
        assert tensor is not None
        torch.where(tensor > -1e4, tensor, 0).square().sum().backward()
        norm = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
        assert norm > 0, name


def test_only_the_layers_that_are_read_are_captured_and_count_from_either_end() -> None:
    model, inputs = built("bert"), batch()
    whole, some = captured(model, inputs), captured(model, inputs, "query[-1]", "hidden[0]", "scores[1]")
    assert set(some) == {"query", "hidden", "scores"}
    assert [t is not None for t in some["query"]] == [False, False, True]
    assert [t is not None for t in some["hidden"]] == [True, False, False, False]
    assert [t is not None for t in some["scores"]] == [False, True, False]
    torch.testing.assert_close(some["query"][-1], whole["query"][2], rtol=0, atol=0)


@pytest.mark.parametrize("family", ALL)
def test_the_model_is_as_before_afterwards(family: str) -> None:
    model, inputs = built(family), batch(family)
    kind = model.config._attn_implementation
    expected = model(**inputs).logits
    captured(model, inputs)
    assert hooks_of(model) == 0
    assert {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")} == {kind}
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_model_is_as_before_where_it_fails(error: type[BaseException]) -> None:
    model, inputs = built("bert"), batch()

    def fail(*_: Any) -> None:
        raise error

    handle = model.bert.encoder.layer[1].attention.self.value.register_forward_hook(fail)
    with pytest.raises(error):
        captured(model, inputs)
    handle.remove()
    assert hooks_of(model) == 0
    assert model.config._attn_implementation == "sdpa"
    assert torch._C._len_torch_function_stack() == 0
    assert captured(model, inputs)["scores"][1] is not None


def test_what_is_computed_is_the_same_as_without_captures() -> None:
    for family in ALL:
        model, inputs = built(family), batch(family)
        model.set_attn_implementation("eager")
        with capturing(model, list(anatomy_of(model).features), "student"):
            watched = model(**inputs).logits
        torch.testing.assert_close(watched, model(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_under_autocast_queries_are_what_the_model_computes_there(family: str) -> None:
    model, inputs = built(family), batch(family)
    with torch.autocast("cpu", torch.bfloat16):
        found = captured(model, inputs)
    assert found["query"][0].dtype == torch.bfloat16
    exact = captured(model, inputs)
    torch.testing.assert_close(found["query"][0].float(), exact["query"][0], rtol=0.05, atol=0.05)
    assert found.float()["scores"][0].dtype == torch.float32


def test_a_model_inside_another_module_is_found() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = built("bert")

        def forward(self, **inputs: Tensor) -> Any:
            return self.inner(**inputs)

    model = Around()
    for name, layers in captured(model, batch()).items():
        expected = captured(model.inner, batch())[name]
        for ours, theirs in zip(layers, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_decoder_of_berts_that_looks_at_an_encoder_has_names_for_both() -> None:
    model = built("bert", is_decoder=True, add_cross_attention=True)
    states = torch.randn(2, DECODED, 24)
    found = captured(model.bert, batch(), encoder_hidden_states=states)
    assert found.axes("cross_scores") == "B H L M"
    assert found["cross_scores"][0].shape == (2, 4, LENGTH, DECODED)
    assert found["cross_key"][0].shape == (2, DECODED, 24)
    torch.testing.assert_close(
        found["cross_key"][1], linear(model.bert.encoder.layer[1].crossattention.self.key, states), rtol=0, atol=1e-6
    )


def test_a_bart_decoder_alone_has_as_many_layers_as_its_config_tells_of_decoders() -> None:
    model = transformers.BartForCausalLM(transformers.BartConfig(vocab_size=WORDS, **FAMILIES["bart"][2])).eval()
    found = captured(model, batch())
    outputs = model(**batch(), output_hidden_states=True)
    assert len(found["query"]) == 2
    for ours, theirs in zip(found["hidden"], outputs.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_two_berts_as_encoder_and_decoder_have_names_for_both() -> None:
    sizes = {"vocab_size": WORDS, **FAMILIES["bert"][2]}
    encoder = transformers.BertConfig(**sizes)
    decoder = transformers.BertConfig(**{**sizes, "num_hidden_layers": 2}, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.EncoderDecoderModel(config).eval()
    found = captured(model, batch("t5"))
    model.set_attn_implementation("eager")
    outputs = model(**batch("t5"), output_hidden_states=True, output_attentions=True)
    for name, layers in {
        "hidden": outputs.encoder_hidden_states,
        "decoder_hidden": outputs.decoder_hidden_states,
        "decoder_attention": outputs.decoder_attentions,
        "cross_attention": outputs.cross_attentions,
    }.items():
        for ours, theirs in zip(found[name], layers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_of_a_model_that_sees_too_they_are_those_of_its_texts() -> None:
    sees = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.Gemma3Config(
        text_config={**FAMILIES["gemma3"][2], "vocab_size": WORDS},
        vision_config={**sees, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=58,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    found = captured(model, batch())
    model.set_attn_implementation("eager")
    outputs = model(**batch(), output_hidden_states=True, output_attentions=True)
    for name, layers in {"hidden": outputs.hidden_states, "attention": outputs.attentions}.items():
        for ours, theirs in zip(found[name], layers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_last_hidden_state_is_after_a_norm_of_the_body_around_the_layers() -> None:
    config = transformers.RobertaPreLayerNormConfig(vocab_size=WORDS, **FAMILIES["roberta"][2])
    model = transformers.RobertaPreLayerNormForSequenceClassification(config).eval()
    last = captured(model, batch(), "hidden[-1]")["hidden"][-1]
    expected = model(**batch(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(last, expected, rtol=0, atol=0)
    torch.testing.assert_close(last.mean(-1), torch.zeros(2, LENGTH), rtol=0, atol=1e-5)


# Gradient checkpointing


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "t5", "llama", "modernbert"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_those_without_checkpoints(family: str, reentrant: bool) -> None:
    names = ["query[1]", "scores[2]", "hidden[1]", "value[0]", "hidden[-1]", "attention[0]"]

    def gradients(model: Any) -> dict[str, Tensor]:
        model.zero_grad()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with capturing(model, names, "student") as capture:
            logits = (
                model(**batch(family), use_cache=False).logits
                if family in ("t5", "llama")
                else model(**batch(family)).logits
            )
        found = capture.added_to(Features({}))
        read = [t for name in found for t in found[name] if t is not None]
        assert len(read) == len(names)
        (logits.square().mean() + sum(torch.where(t > -1e4, t, 0).square().mean() for t in read)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    dropped = {"dropout_rate": 0.0} if family == "t5" else {}
    model = built(family, **dropped)
    expected = gradients(model)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    funcs = [m._gradient_checkpointing_func for m in model.modules() if "_gradient_checkpointing_func" in vars(m)]
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    after = [m._gradient_checkpointing_func for m in model.modules() if "_gradient_checkpointing_func" in vars(m)]
    assert funcs
    assert all(f is g for f, g in zip(funcs, after, strict=True))


# One projection for several of queries, keys and values


@pytest.mark.parametrize("family", JOINED)
def test_states_and_maps_need_no_projection_of_their_own(family: str) -> None:
    model, inputs = built(family), batch(family)
    found = captured(model, inputs, "hidden", "attention", "scores", "embeddings")
    model.config._attn_implementation = "eager"  # Falcon's refuses set_attn_implementation
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    for name, layers in {"hidden": outputs.hidden_states, "attention": outputs.attentions}.items():
        for ours, theirs in zip(found[name], layers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["embeddings"][0], found["hidden"][0], rtol=0, atol=0)
    for before, after in zip(found["scores"], found["attention"], strict=True):
        torch.testing.assert_close(before.softmax(-1), after, rtol=0, atol=1e-6)
        assert (before > -1e4).any()
        assert after.std() > 0.01, "all alike"


def test_queries_keys_and_values_of_phi3_lie_one_after_the_other() -> None:
    model, inputs = built("phi3"), batch("phi3")
    found = captured(model, inputs)
    for layer in range(LAYERS):
        path = f"model.layers.{layer}.self_attn"
        states, _ = given(model, path, inputs)
        weights = model.get_submodule(path).qkv_proj.weight.split([32, 16, 16])  # 4 heads of 8, and 2 of keys
        for name, weight in zip(("query", "key", "value"), weights, strict=True):
            torch.testing.assert_close(found[name][layer], F.linear(states, weight), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["deepseek-v3", "deepseek-v3-whole"])
def test_queries_of_deepseek_are_what_their_last_projection_returns(family: str) -> None:
    model, inputs = built(family), batch(family)
    found = captured(model, inputs)
    for layer in range(LAYERS):
        attention = model.model.layers[layer].self_attn
        states, _ = given(model, f"model.layers.{layer}.self_attn", inputs)
        if family == "deepseek-v3":
            expected = linear(attention.q_b_proj, attention.q_a_layernorm(linear(attention.q_a_proj, states)))
        else:
            expected = linear(attention.q_proj, states)
        torch.testing.assert_close(found["query"][layer], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "path", "absent"),
    [
        ("gpt-neox", "gpt_neox.layers.0.attention.query_key_value", ("query", "key", "value")),
        ("bloom", "transformer.h.0.self_attention.query_key_value", ("query", "key", "value")),
        ("falcon", "transformer.h.0.self_attention.query_key_value", ("query", "key", "value")),
        ("gpt-bigcode", "transformer.h.0.attn.c_attn", ("query", "key", "value")),
        ("gpt-bigcode-heads", "transformer.h.0.attn.c_attn", ("query", "key", "value")),
        ("codegen", "transformer.h.0.attn.qkv_proj", ("query", "key", "value")),
        ("deepseek-v3", "model.layers.0.self_attn.kv_b_proj", ("key", "value")),
    ],
)
def test_what_is_made_together_is_told_as_absent_with_the_path_of_what_makes_it(
    family: str, path: str, absent: tuple[str, ...]
) -> None:
    model = built(family)
    assert path in dict(model.named_modules())
    found = captured(model, batch(family), "query[0]", "key[0]", "value[0]", "hidden[0]")
    assert found.absent == {
        name: f"the student's adaptor returns no {name!r}, and its {type(model).__name__} makes it together with others in one "
        f"projection; name the path of that, such as {path!r}"
        for name in absent
    }


# What is not there


def test_an_architecture_of_another_build_says_why_and_offers_paths() -> None:
    config = transformers.AlbertConfig(
        vocab_size=60, embedding_size=8, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.AlbertForSequenceClassification(config)
    found = captured(model, batch(), "query[1]", "hidden[2]")
    assert not found
    assert found.absent["query"] == (
        "the student's adaptor returns no 'query', and no short names are known of its AlbertForSequenceClassification, as its config "
        "tells of 3 layers, and it has the lists albert.encoder.albert_layer_groups of 1; name the path of a module: albert, "
        "albert.embeddings, albert.embeddings.word_embeddings, albert.embeddings.position_embeddings, "
        "albert.embeddings.token_type_embeddings, albert.embeddings.LayerNorm, albert.encoder, "
        "albert.encoder.embedding_hidden_mapping_in and 15 more"
    )
    assert set(found.absent) == {"query", "hidden"}


def test_of_two_models_side_by_side_no_short_name_is_known() -> None:
    pair = nn.ModuleList([built("bert"), built("roberta")])
    assert anatomy_of(pair).reason == "it holds 2 models of transformers, and they are known of one"
    shared = nn.ModuleDict({"queries": pair[0], "documents": pair[0]})
    assert "query" in anatomy_of(shared).features


def test_of_a_model_that_runs_twice_it_is_the_first_time() -> None:
    model = built("bert")
    with capturing(model, ["hidden[-1]"], "student") as capture:
        first = model.bert(**batch()).last_hidden_state
        model.bert(**{**batch(), "input_ids": batch()["input_ids"].flip(1)})
    torch.testing.assert_close(capture.added_to(Features({}))["hidden"][-1], first, rtol=0, atol=0)


def test_a_name_that_a_model_lacks_is_told_with_those_that_it_has() -> None:
    found = captured(built("roberta"), batch(), "pooled", "quary[1]")
    has = (
        "its RobertaForSequenceClassification has embeddings, hidden[0..3], attention[0..2], scores[0..2], query[0..2], key[0..2], "
        "value[0..2]"
    )
    assert found.absent == {
        "pooled": f"the student's adaptor returns no 'pooled'; it returns nothing, and {has}",
        "quary": f"the student's adaptor returns no 'quary'; it returns nothing, and {has}; did you mean 'query'?",
    }


SMALL = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}


@pytest.mark.parametrize(
    ("model_class", "config", "reason"),
    [
        (
            transformers.LEDForConditionalGeneration,
            transformers.LEDConfig(
                vocab_size=60, encoder_attention_heads=2, decoder_attention_heads=2, attention_window=4, **SMALL
            ),
            "its encoder has no list of layers with an attention each whose projections bear known names",
        ),
        (
            transformers.FSMTForConditionalGeneration,
            transformers.FSMTConfig(
                langs=["en", "de"],
                src_vocab_size=60,
                tgt_vocab_size=60,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                **SMALL,
            ),
            "its layers hold states in another form than rows, tokens, width",
        ),
        (
            transformers.SqueezeBertModel,
            transformers.SqueezeBertConfig(
                vocab_size=60,
                hidden_size=8,
                embedding_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
            ),
            "its layers hold states in another form than rows, tokens, width",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_only_looks_like_a_known_one_is_told_as_unknown(
    model_class: Any, config: Any, reason: str
) -> None:
    anatomy = anatomy_of(model_class(config))
    assert (dict(anatomy.features), anatomy.reason) == ({}, reason)


@pytest.mark.parametrize(
    "model",
    [
        transformers.GptOssForCausalLM(  # attends to a sink beside the tokens
            transformers.GptOssConfig(
                vocab_size=60,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                intermediate_size=8,
                num_local_experts=2,
                num_experts_per_tok=1,
                pad_token_id=0,
                eos_token_id=1,
            )
        ),
        transformers.XGLMForCausalLM(  # has the heads among the rows
            transformers.XGLMConfig(vocab_size=60, d_model=16, num_layers=2, attention_heads=2, ffn_dim=16)
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_maps_that_are_not_from_tokens_to_tokens_are_told_as_absent(model: Any) -> None:
    found = captured(model.eval(), batch(), "scores[0]", "attention[1]", "query[1]", "hidden[-1]")
    assert set(found) == {"query", "hidden"}
    name = type(model).__name__
    assert found.absent == {
        each: f"the student's adaptor returns no {each!r}, and no softmax over B H L L ran in the layers of its {name} that are read; name "
        "the path of a module"
        for each in ("attention", "scores")
    }


def test_attention_to_an_encoder_that_is_not_there_is_told_as_absent() -> None:
    found = captured(built("bert", is_decoder=True, add_cross_attention=True), batch(), "cross_key[0]")
    assert found.absent == {
        "cross_key": "the student's adaptor returns no 'cross_key', and what computes it did not run in the layers of its "
        "BertForSequenceClassification that are read; name the path of a module"
    }
