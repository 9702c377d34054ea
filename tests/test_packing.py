"""Models of tokens that compute no padding give what they gave with it, and those that would not are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_builtins.adaptors import CausalLM
from brewer_core.errors import RequestError
from brewer_core.packing import Packed, packed

transformers = pytest.importorskip("transformers", reason="the models need the extra hf")

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 37,
}
LENGTHS = (9, 6, 3, 8)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Bert": ("ForTokenClassification", {}, {"causal": False}),
    "Electra": ("ForTokenClassification", {}, {"causal": False}),
    "Roberta": ("ForTokenClassification", {"pad_token_id": 1}, {"causal": False, "first_position": 2}),
    "Llama": ("ForCausalLM", {}, {"causal": True}),
    "Qwen2": ("ForCausalLM", {"num_key_value_heads": 1}, {"causal": True}),
    "Gemma": ("ForCausalLM", {"num_key_value_heads": 1, "head_dim": 16}, {"causal": True}),
    "DistilBert": (
        "ForTokenClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 37},
        {"causal": False},
    ),
    "GPT2": ("LMHeadModel", {"bos_token_id": 1, "eos_token_id": 2}, {"causal": True}),
}


def model(family: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    head, more, _ = MODELS[family]
    config = getattr(transformers, f"{family}Config")(**SIZES, **more, attn_implementation=attention)
    return getattr(transformers, f"{family}{head}")(config).eval()


def batch(lengths: tuple[int, ...] = LENGTHS, left: bool = False) -> dict[str, Tensor]:
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    mask = mask.flip(1) if left else mask
    ids = torch.randint(5, 100, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def test_rows_stand_one_after_another_in_as_few_as_have_room() -> None:
    rows = Packed.of(batch((2, 4, 1, 3))["attention_mask"], row_tokens=6)
    assert rows.segments.tolist() == [[1, 1, 1, 1, 0, 0], [3, 3, 3, 2, -1, -1]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert Packed.of(batch((2, 4, 1, 3))["attention_mask"]).segments.tolist() == [
        [1, 1, 1, 1],
        [3, 3, 3, 2],
        [0, 0, -1, -1],
    ]


def test_what_is_packed_comes_back_with_zeros_at_padding() -> None:
    mask = batch()["attention_mask"]
    values = torch.randn(4, 9, 5)
    rows = Packed.of(mask, 100)
    assert rows.pack(values).shape == (1, 26, 5)
    assert torch.equal(rows.unpack(rows.pack(values)), values * mask[..., None])


def test_a_token_sees_its_own_row_alone() -> None:
    rows = Packed.of(torch.tensor([[1, 1], [1, 0]]), 3)
    least = torch.finfo(torch.float32).min
    assert rows.mask(False, torch.float32)[0, 0].tolist() == [[0, 0, least], [0, 0, least], [least, least, 0]]
    assert rows.mask(True, torch.float32)[0, 0].tolist() == [[0, least, least], [0, 0, least], [least, least, 0]]


@pytest.mark.parametrize("row_tokens", [0, 14, 100])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", MODELS)
def test_a_packed_model_gives_what_it_gave_padded(family: str, attention: str, row_tokens: int) -> None:
    padded, rows = model(family, attention), batch()
    given = packed(padded, rows, row_tokens=row_tokens, **MODELS[family][2])(**rows, output_hidden_states=True)
    expected = padded(**rows, output_hidden_states=True)
    valid = rows["attention_mask"].bool()
    assert type(given) is type(expected)
    assert given.logits.shape == expected.logits.shape
    assert len(given.hidden_states) == 3
    for ours, theirs in zip(
        (given.logits, *given.hidden_states), (expected.logits, *expected.hidden_states), strict=True
    ):
        torch.testing.assert_close(ours[valid], theirs[valid], atol=1e-5, rtol=1e-5)
        assert not ours[~valid].any()


def test_gradients_are_those_of_the_padded_model() -> None:
    padded, rows = model("Bert"), batch()
    valid = rows["attention_mask"].bool()
    found = []
    for each in (padded, packed(padded, rows, causal=False, row_tokens=14)):
        padded.zero_grad()
        each(**rows).logits[valid].square().sum().backward()
        found.append([p.grad.clone() for p in padded.parameters() if p.grad is not None])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_types_of_tokens_are_packed_and_padding_may_be_on_the_left() -> None:
    padded, rows = model("Bert"), batch(left=True)
    valid = rows["attention_mask"].bool()
    positions = (rows["attention_mask"].cumsum(1) - 1).clamp(min=0)
    rows["token_type_ids"] = valid.long() * (positions > 2)
    expected = padded(**rows, position_ids=positions).logits
    right = batch()
    given = packed(padded, right, causal=False)(**rows).logits
    torch.testing.assert_close(given[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_a_mask_is_in_what_attention_is_computed_in() -> None:
    padded, rows = model("Bert"), batch()
    ours = packed(padded, rows, causal=False)
    with torch.autocast("cpu", torch.bfloat16):
        given, expected = ours(**rows).logits, padded(**rows).logits
    valid = rows["attention_mask"].bool()
    torch.testing.assert_close(given[valid], expected[valid], atol=2e-2, rtol=2e-2)


def test_the_model_that_is_tried_stays_as_it_was() -> None:
    padded, rows = model("Bert"), batch()
    padded.train()
    padded.bert.encoder.eval()
    before = [part.training for part in padded.modules()]
    assert packed(padded, rows, causal=False).model is padded
    assert [part.training for part in padded.modules()] == before


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(RequestError) as caught:
        make()
    return str(caught.value)


def test_a_model_that_gives_other_values_is_refused() -> None:
    windows = {"global_attn_every_n_layers": 2, "local_attention": 4, "pad_token_id": 1}
    of_windows = transformers.ModernBertForTokenClassification(transformers.ModernBertConfig(**SIZES, **windows))
    assert "up to" in refusal(lambda: packed(of_windows, batch(), causal=False, row_tokens=14))
    text = refusal(lambda: packed(model("Bert"), batch(), causal=True))
    assert text.startswith("BertForTokenClassification cannot be packed: its logits are up to ")
    assert text.endswith(
        " from those of the padded batch. Check `causal` and `first_position`, or pass it padded batches."
    )
    assert "up to" in refusal(lambda: packed(model("Roberta"), batch(), causal=False))


def test_a_model_that_takes_no_such_mask_is_refused() -> None:
    config = transformers.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"])
    text = refusal(
        lambda: packed(transformers.DebertaV2ForTokenClassification(config), batch(), causal=False, row_tokens=14)
    )
    assert text.startswith("DebertaV2ForTokenClassification cannot be packed: ")
    assert text.endswith("; pass it padded batches.")


def test_a_model_of_whole_rows_is_refused() -> None:
    of_rows = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    assert refusal(lambda: packed(of_rows, batch(), causal=False)) == (
        "BertForSequenceClassification cannot be packed: it gives no values by token; pass it padded batches."
    )


def test_a_batch_that_tries_nothing_is_refused() -> None:
    assert refusal(lambda: packed(model("Bert"), batch((5, 5, 4)), causal=False)) == (
        "the batch of shape (3, 5) that a packed model is tried on has no two rows that fit into one; take shorter rows into it, "
        "or more `row_tokens`."
    )


@pytest.mark.parametrize("more", [{"labels": torch.zeros(4, 9, dtype=torch.long)}, {"output_attentions": True}])
def test_what_only_padded_rows_have_is_refused(more: dict[str, Any]) -> None:
    ours = packed(model("Bert"), batch(), causal=False)
    assert refusal(lambda: ours(**batch(), **more)) == (
        "a packed model takes no labels and gives no attention maps: rows stand side by side in it. Compute the loss of its "
        "logits, or pass it padded."
    )


def test_a_packed_language_model_has_the_loss_of_the_padded_one():
    padded, rows = model("Llama"), batch()
    labels = rows["input_ids"].where(rows["attention_mask"].bool(), -100)
    features = [
        CausalLM()({**rows, "labels": labels}, each(**rows))
        for each in (padded, packed(padded, rows, causal=True, row_tokens=14))
    ]
    assert features[1]["losses"].item() == pytest.approx(features[0]["losses"].item(), rel=1e-5)
    assert torch.equal(features[0]["logits_mask"], features[1]["logits_mask"])
