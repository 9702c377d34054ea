"""The adaptors of text classification and of causal language modelling: features and counts."""

from __future__ import annotations

import math

import pytest
import torch

from brewer_builtins.adaptors import CausalLM, TextClassification
from brewer_core import AdaptorError, Counts, Features
from brewer_core.protocols import CountingAdaptor

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
LOGITS = [[0.0, math.log(3)], [0.0, 0.0]]


def batch(labels=None):
    filled = {"input_ids": MASK * 5, "attention_mask": MASK, "row": torch.tensor([0, 1])}
    return filled if labels is None else filled | {"labels": torch.tensor(labels)}


def test_it_can_count():
    assert isinstance(TextClassification(), CountingAdaptor)


def test_losses_are_the_mean_over_labelled_rows():
    logits = torch.tensor(LOGITS)
    both = TextClassification()(batch([1, 0]), {"logits": logits})
    # Probabilities of the labels are 3/4 and 1/2.
    assert both["losses"].item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    one = TextClassification()(batch([1, -100]), {"logits": logits})
    assert one["losses"].item() == pytest.approx(math.log(4 / 3))
    assert one["losses"].shape == ()
    assert torch.equal(one["labels"], torch.tensor([1, -100]))


@pytest.mark.parametrize("unlabelled", [-100, -1])
def test_without_labelled_rows_the_loss_is_zero_and_so_is_its_gradient(unlabelled):
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = TextClassification()(batch([unlabelled] * 2), {"logits": logits})["losses"]
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(2, 2))


def test_losses_are_float32_whatever_the_logits_are():
    loss = TextClassification()(batch([1, 0]), {"logits": torch.tensor(LOGITS).bfloat16()})["losses"]
    assert loss.dtype == torch.float32


def test_features_are_those_that_batch_and_model_have():
    outputs = {"logits": torch.zeros(2, 2), "hidden_states": (torch.zeros(2, 3, 4),) * 3, "attentions": None}
    features = Features.of(TextClassification()(batch(), outputs))
    assert set(features) == {"logits", "inputs_mask", "hidden"}
    assert len(features["hidden"]) == 3
    assert torch.equal(features["inputs_mask"][0], MASK)
    attention = {"logits": torch.zeros(2, 2), "attentions": (torch.zeros(2, 1, 3, 3),)}
    assert len(Features.of(TextClassification()(batch(), attention))["attention"]) == 1


def test_counts_come_from_the_batch_alone():
    assert TextClassification().counts(batch([1, -100])) == Counts(rows=2, tokens=4, token_pairs=10, logits=2, labels=1)
    assert TextClassification().counts(batch()).labels == 0


def test_features_of_a_hugging_face_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config).eval()
    asked = batch([1, -100])
    outputs = model(input_ids=asked["input_ids"], attention_mask=MASK, output_hidden_states=True)
    features = Features.of(TextClassification()(asked, outputs))
    assert set(features) == {"logits", "inputs_mask", "hidden", "labels", "losses"}
    assert [features.axes(name) for name in ("logits", "hidden", "losses")] == ["B C", "B L D", ""]


# Language models

ROWS, LENGTH, VOCABULARY = 3, 5, 7


def texts(dtype=torch.float32, side="right", **columns):
    """Rows of 5, 3 and 1 tokens, padded on a side, and random logits for them."""
    places, lengths = torch.arange(LENGTH), torch.tensor([[5], [3], [1]])
    mask = places < lengths if side == "right" else places >= LENGTH - lengths
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    logits = torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64).to(dtype)
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.where(mask, -100), **columns}
    return batch, logits.requires_grad_()


def by_hand(batch, logits, wanted):
    """The pairs (row, place) at which a token is predicted, and the mean negative log-likelihood, in plain loops."""
    ids, attended = batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    places, losses = [], []
    for b in range(ROWS):
        for t in range(LENGTH - 1):
            if attended[b][t] and attended[b][t + 1] and wanted[b][t + 1]:
                places.append((b, t))
                scores = [math.exp(x) for x in logits[b, t].tolist()]
                losses.append(-math.log(scores[ids[b][t + 1]] / sum(scores)))
    return places, sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_labels_and_mask_are_shifted_together(dtype, side):
    batch, logits = texts(dtype, side)
    features = CausalLM()(batch, {"logits": logits})
    places, expected = by_hand(batch, logits, [[1] * LENGTH] * ROWS)

    assert [tuple(place) for place in features["logits_mask"].nonzero().tolist()] == places
    assert features["labels"].tolist() == [
        [batch["input_ids"][b, t + 1].item() if (b, t) in places else -100 for t in range(LENGTH)] for b in range(ROWS)
    ]
    assert features["losses"].dtype == dtype
    assert features["losses"].item() == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-12)
    assert CausalLM().counts(batch) == Counts(rows=3, tokens=9, token_pairs=35, logits=6, labels=6)


def test_selected_logits_are_those_before_the_labels_that_count():
    batch, logits = texts()
    features = CausalLM()(batch, {"logits": logits})
    counting = batch["labels"][:, 1:] >= 0

    assert torch.equal(features["logits"][features["logits_mask"]], logits[:, :-1][counting])
    assert torch.equal(features["labels"][features["logits_mask"]], batch["labels"][:, 1:][counting])


def test_the_loss_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model, (batch, _) = transformers.LlamaForCausalLM(config).eval(), texts()
    outputs = model(**batch)
    assert CausalLM()(batch, outputs)["losses"].item() == pytest.approx(outputs.loss.item(), rel=1e-6)


def test_tokens_of_a_prompt_are_not_predicted():
    batch, logits = texts()
    targets = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    batch["labels"] = batch["input_ids"].where(targets.bool(), -100)
    features = CausalLM()(batch, {"logits": logits})
    places, expected = by_hand(batch, logits, targets.tolist())

    assert len(places) == 5
    assert [tuple(place) for place in features["logits_mask"].nonzero().tolist()] == places
    assert features["losses"].item() == pytest.approx(expected)


def test_rows_without_labels_are_followed_by_the_teacher_alone():
    batch, logits = texts(target_mask=torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]))
    batch["labels"][0] = -100
    features = CausalLM()(batch, {"logits": logits})

    assert features["logits_mask"].sum(1).tolist() == [4, 2, 0]
    assert (features["labels"] >= 0).sum(1).tolist() == [0, 2, 0]
    assert features["losses"].item() == pytest.approx(by_hand(batch, logits, (batch["labels"] >= 0).tolist())[1])
    assert CausalLM().counts(batch) == Counts(rows=3, tokens=9, token_pairs=35, logits=6, labels=2)


def test_without_labels_every_token_is_predicted_and_there_is_no_loss():
    batch, logits = texts()
    del batch["labels"]
    features = CausalLM()(batch, {"logits": logits})
    assert set(features) == {"logits", "logits_mask", "inputs_mask"}
    assert features["logits_mask"].sum().item() == 6
    assert CausalLM().counts(batch) == Counts(rows=3, tokens=9, token_pairs=35, logits=6, labels=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_stands_where_nothing_is_predicted_reaches_neither_loss_nor_gradient(value):
    batch, clean = texts()
    expected = CausalLM()(batch, {"logits": clean})["losses"]
    (gradient,) = torch.autograd.grad(expected, clean)
    spoilt = clean.detach().clone()
    spoilt[~CausalLM()(batch, {"logits": clean})["logits_mask"]] = value
    loss = CausalLM()(batch, {"logits": spoilt.requires_grad_()})["losses"]
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(spoilt.grad, gradient)


def test_rows_without_anything_to_predict_give_a_loss_of_zero_and_a_gradient_of_zero():
    batch, logits = texts(labels=torch.full((ROWS, LENGTH), -100))
    loss = CausalLM()(batch, {"logits": logits})["losses"]
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_losses_of_a_language_model_are_float32_at_least():
    batch, logits = texts(torch.bfloat16)
    assert CausalLM()(batch, {"logits": logits})["losses"].dtype == torch.float32


def test_hidden_states_and_attention_are_as_they_are():
    batch, logits = texts()
    outputs = {"logits": logits, "hidden_states": (torch.zeros(3, 5, 4),) * 2, "attentions": (torch.zeros(3, 2, 5, 5),)}
    features = Features.of(CausalLM()(batch, outputs))
    assert [features.axes(name) for name in ("logits", "labels", "hidden", "attention")] == [
        "B L V",
        "B L",
        "B L D",
        "B H L L",
    ]
    assert torch.equal(features["inputs_mask"][0], batch["attention_mask"])
    assert len(features["hidden"]) == 2


def test_models_of_one_tokenizer_may_be_compared_where_their_vocabularies_are_padded():
    batch, logits = texts()
    padded = torch.cat([logits, torch.full((ROWS, LENGTH, 2), 9.0)], -1)
    one, other = (CausalLM(vocab_size=VOCABULARY)(batch, {"logits": each}) for each in (logits, padded))
    assert torch.equal(one["logits"], other["logits"])
    assert torch.equal(one["losses"], other["losses"])


def test_logits_that_are_no_language_models_are_refused():
    batch, logits = texts()
    with pytest.raises(AdaptorError) as caught:
        CausalLM()(batch, {"logits": logits[:, 0]})
    assert str(caught.value) == (
        "causal_lm: the model returned logits (3, 7) for tokens (3, 5); a language model returns one row of logits for each token."
    )
    with pytest.raises(AdaptorError) as caught:
        CausalLM(vocab_size=8)(batch, {"logits": logits})
    assert str(caught.value) == (
        "causal_lm: vocab_size is 8, and the model has logits of 7 entries; take the size of the smaller model, or the tokenizer's."
    )
