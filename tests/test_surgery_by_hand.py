"""What a student that is cut out of its teacher has of it, picked by hand; and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="models need the extra hf")

from brewer_builtins.surgery import student_from_teacher  # noqa: E402  # after the skip
from brewer_builtins.surgery.activity import influences  # noqa: E402
from brewer_builtins.surgery.depth import chosen  # noqa: E402
from brewer_builtins.surgery.projection import principal  # noqa: E402
from brewer_core import RequestError  # noqa: E402
from surgery_models import LAYERS, WIDTH, logits, rows, sample, tiny  # noqa: E402

HALF = WIDTH // 2


def cut(name, **sizes):
    """A teacher and what is cut out of it, as mappings from name to weight."""
    teacher = tiny(name)
    return teacher.state_dict(), student_from_teacher(teacher, **sizes).state_dict()


def refusal(model, **sizes):
    with pytest.raises(RequestError) as caught:
        student_from_teacher(model, **sizes)
    return str(caught.value)


def no_influence():
    raise AssertionError("the influence of layers was asked for")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (12, list(range(12))),
        (4, [2, 5, 8, 11]),  # TinyBERT's g(m) = 3m, counted from 1
        (5, [1, 3, 6, 8, 11]),
        (1, [11]),
        ([0, 4, 8], [0, 4, 8]),
        ([3, 0], [3, 0]),
        ("uniform", [1, 3, 5, 7, 9, 11]),
        ("skip", [0, 2, 4, 6, 8, 10]),
        ("first", [0, 1, 2, 3, 4, 5]),
        ("last", [6, 7, 8, 9, 10, 11]),
        ({"count": 3, "by": "uniform"}, [3, 7, 11]),
        ({"count": 3, "by": "skip"}, [0, 4, 8]),
        ({"count": 3, "by": "first"}, [0, 1, 2]),
        ({"count": 3, "by": "last"}, [9, 10, 11]),
    ],
)
def test_layers_are_picked_out_of_twelve(layers, expected):
    assert chosen(layers, 12, no_influence) == expected


def test_the_layers_of_most_influence_stay_and_of_equal_ones_the_first():
    assert chosen({"count": 2, "by": "block_influence"}, 4, lambda: [0.1, 0.5, 0.3, 0.5]) == [1, 3]
    assert chosen({"count": 2, "by": "block_influence"}, 4, lambda: [0.5, 0.5, 0.5, 0.5]) == [0, 1]
    assert chosen("block_influence", 4, lambda: [0.1, 0.5, 0.3, 0.2]) == [1, 2]


def test_influence_is_one_minus_the_cosine_of_what_goes_in_and_out_over_tokens():
    teacher = tiny("bert")
    batch = rows("bert")
    with torch.no_grad():
        states = teacher(**batch, output_hidden_states=True).hidden_states
    influence = []
    for before, after in itertools.pairwise(states):
        cosines = []
        for row in range(len(batch["input_ids"])):
            for token in range(int(batch["attention_mask"][row].sum())):
                x, y = before[row, token].tolist(), after[row, token].tolist()
                dot = math.fsum(a * b for a, b in zip(x, y, strict=True))
                cosines.append(dot / math.hypot(*x) / math.hypot(*y))
        influence.append(1 - math.fsum(cosines) / len(cosines))
    best = sorted(sorted(range(LAYERS), key=lambda layer: -influence[layer])[:2])
    student = student_from_teacher(teacher, layers={"count": 2, "by": "block_influence"}, sample=[batch])
    kept = student_from_teacher(teacher, layers=best)
    assert torch.equal(logits(student, "bert"), logits(kept, "bert"))

    assert influences(teacher, list(teacher.bert.encoder.layer), [batch]) == pytest.approx(influence, abs=1e-6)


def test_padding_does_not_count_where_layers_hold_tokens_before_rows():
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=32, d_model=16, n_layer=3, n_head=2, d_inner=24, pad_token_id=0)
    teacher = transformers.XLNetModel(config).eval()
    for length in (4, 3):  # as many tokens as rows too
        words = torch.randint(1, 32, (3, length))
        mask = torch.ones(3, length, dtype=torch.long)
        mask[1, 0] = mask[2, 1] = 0
        batch = {"input_ids": words, "attention_mask": mask}
        with torch.no_grad():
            states = teacher(**batch, output_hidden_states=True).hidden_states
        expected = [
            float(1 - torch.cosine_similarity(before, after, -1)[mask.bool()].double().mean())
            for before, after in itertools.pairwise(states)
        ]
        assert influences(teacher, list(teacher.layer), [batch]) == pytest.approx(expected, abs=1e-6)


def test_a_layer_that_changes_nothing_is_what_block_influence_leaves_out():
    teacher = tiny("llama")
    with torch.no_grad():
        for layer in (0, 2):
            teacher.model.layers[layer].self_attn.o_proj.weight.zero_()
            teacher.model.layers[layer].mlp.down_proj.weight.zero_()
    student = student_from_teacher(teacher, layers={"count": 2, "by": "block_influence"}, sample=sample("llama"))
    assert torch.equal(logits(student, "llama"), logits(teacher, "llama"))
    assert torch.equal(student.model.layers[1].mlp.up_proj.weight, teacher.model.layers[3].mlp.up_proj.weight)


def test_an_encoder_and_a_decoder_have_layers_of_their_own():
    teacher, student = cut("bart", layers={"encoder": [0, 3], "decoder": {"count": 1, "by": "last"}})
    assert torch.equal(student["model.encoder.layers.1.fc1.weight"], teacher["model.encoder.layers.3.fc1.weight"])
    assert torch.equal(student["model.decoder.layers.0.fc1.weight"], teacher["model.decoder.layers.3.fc1.weight"])
    assert "model.encoder.layers.2.fc1.weight" not in student
    assert "model.decoder.layers.1.fc1.weight" not in student
    teacher, student = cut("bart", layers={"decoder": 2})
    assert torch.equal(student["model.encoder.layers.3.fc1.weight"], teacher["model.encoder.layers.3.fc1.weight"])
    assert torch.equal(student["model.decoder.layers.0.fc1.weight"], teacher["model.decoder.layers.1.fc1.weight"])


def test_the_relative_bias_of_a_t5_stays_in_the_first_layer_whichever_that_is():
    teacher, student = cut("t5", layers=[2, 0])
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for stack in ("encoder", "decoder"):
        assert torch.equal(student[f"{stack}.{bias}"], teacher[f"{stack}.{bias}"])
        query = "layer.0.SelfAttention.q.weight"
        assert torch.equal(student[f"{stack}.block.0.{query}"], teacher[f"{stack}.block.2.{query}"])
        assert torch.equal(student[f"{stack}.block.1.{query}"], teacher[f"{stack}.block.0.{query}"])


def test_types_of_attention_go_with_their_layers():
    teacher = tiny("gemma2")
    types = teacher.config.layer_types
    student = student_from_teacher(teacher, layers=[1, 2, 3])
    assert student.config.layer_types == types[1:]
    assert student.config.num_hidden_layers == 3


def test_what_a_config_has_for_each_layer_goes_with_it():
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "pad_token_id": 0}
    smol = transformers.AutoConfig.for_model("smollm3", **sizes, num_hidden_layers=4, num_key_value_heads=2)
    assert smol.no_rope_layers == [1, 1, 1, 0]
    student = student_from_teacher(transformers.AutoModelForCausalLM.from_config(smol), layers=[0, 3])
    assert student.config.no_rope_layers == [1, 0]
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_heads": 2, "window_size": 3, "num_layers": 4}
    neo = transformers.AutoConfig.for_model("gpt_neo", **sizes, attention_types=[[["global", "local"], 2]])
    student = student_from_teacher(transformers.AutoModelForCausalLM.from_config(neo), layers=[1, 2, 3])
    again = type(neo).from_dict(student.config.to_dict())
    assert student.config.attention_layers == again.attention_layers == ["local", "global", "local"]
    assert [block.attn.attention_type for block in student.transformer.h] == again.attention_layers


def test_truncation_takes_the_first_heads_channels_and_neurons_of_a_bert():
    teacher, student = cut("bert", hidden_size=HALF, method="truncate")
    layer = "bert.encoder.layer.2"
    expected = {
        "bert.embeddings.word_embeddings.weight": (slice(None), slice(0, 12)),
        "bert.embeddings.LayerNorm.bias": (slice(0, 12),),
        f"{layer}.attention.self.query.weight": (slice(0, 12), slice(0, 12)),  # two heads of 6
        f"{layer}.attention.self.value.bias": (slice(0, 12),),
        f"{layer}.intermediate.dense.weight": (slice(0, 10), slice(0, 12)),
        f"{layer}.output.dense.weight": (slice(0, 12), slice(0, 10)),
        "classifier.weight": (slice(None), slice(0, 12)),
    }
    for key, part in expected.items():
        assert torch.equal(student[key], teacher[key][part]), key


def test_heads_of_keys_and_values_stay_with_the_heads_that_share_them():
    teacher, student = cut("llama", hidden_size=HALF, method="truncate")  # 4 heads over 2, then 2 heads over 1
    layer = "model.layers.0.self_attn"
    assert torch.equal(student[f"{layer}.q_proj.weight"], teacher[f"{layer}.q_proj.weight"][:12, :12])
    assert torch.equal(student[f"{layer}.k_proj.weight"], teacher[f"{layer}.k_proj.weight"][:6, :12])
    assert torch.equal(student[f"{layer}.o_proj.weight"], teacher[f"{layer}.o_proj.weight"][:12, :12])
    teacher, student = cut("llama", num_attention_heads=2, num_key_value_heads=2, method="truncate")
    own = [*range(6), *range(12, 18)]  # the first head of each of the two
    assert torch.equal(student[f"{layer}.q_proj.weight"], teacher[f"{layer}.q_proj.weight"][own])
    assert torch.equal(student[f"{layer}.k_proj.weight"], teacher[f"{layer}.k_proj.weight"])
    assert torch.equal(student[f"{layer}.o_proj.weight"], teacher[f"{layer}.o_proj.weight"][:, own])


def test_the_three_parts_of_a_fused_weight_are_cut_apart():
    teacher, student = cut("gpt2", hidden_size=HALF, method="truncate")
    fused = "transformer.h.1.attn.c_attn.weight"  # [in, queries | keys | values]
    columns = [*range(12), *range(24, 36), *range(48, 60)]
    assert torch.equal(student[fused], teacher[fused][:12][:, columns])
    teacher, student = cut("deberta", hidden_size=HALF, method="truncate")
    fused = "deberta.encoder.layer.1.attention.self.in_proj.weight"  # for each head its query, key and value
    assert torch.equal(student[fused], teacher[fused][: 2 * 18, :12])
    teacher, student = cut("modernbert", hidden_size=HALF, layers=[0], method="truncate")
    gated = "model.layers.0.mlp.Wi.weight"  # [neurons | gates, in]
    assert torch.equal(student[gated], teacher[gated][[*range(10), *range(20, 30)], :12])


def test_as_many_heads_of_fewer_dimensions_score_what_the_dimensions_that_are_left_did():
    teacher, student = cut("bert", hidden_size=HALF, num_attention_heads=4, method="truncate")
    rows_of_heads = [head * 6 + dimension for head in range(4) for dimension in range(3)]
    query, key = (f"bert.encoder.layer.0.attention.self.{side}.weight" for side in ("query", "key"))
    assert torch.equal(student[key], teacher[key][rows_of_heads, :12])
    # Scores are divided by sqrt(3) in place of sqrt(6), so the queries are smaller by that.
    torch.testing.assert_close(student[query], teacher[query][rows_of_heads, :12] * math.sqrt(3 / 6))


def test_the_most_active_channels_heads_and_neurons_stay():
    teacher = tiny("bert")
    block = teacher.bert.encoder.layer[0]
    heads, neurons, channels = {}, {}, torch.zeros(WIDTH)
    batch = rows("bert")
    valid = batch["attention_mask"].bool()
    hooks = [
        block.attention.output.dense.register_forward_pre_hook(lambda _, inputs: heads.update(seen=inputs[0])),
        block.output.dense.register_forward_pre_hook(lambda _, inputs: neurons.update(seen=inputs[0])),
    ]

    def count(norm, inputs, output):
        channels.add_(output[valid].abs().mean(0))

    hooks += [norm.register_forward_hook(count) for norm in teacher.modules() if isinstance(norm, torch.nn.LayerNorm)]
    with torch.no_grad():
        teacher(**batch)
    for hook in hooks:
        hook.remove()
    lengths = heads["seen"][valid].view(-1, 4, 6).norm(dim=-1).mean(0)
    two = sorted(lengths.topk(2).indices.tolist())
    ten = sorted(neurons["seen"][valid].abs().mean(0).topk(10).indices.tolist())
    twelve = sorted(channels.topk(12).indices.tolist())
    student = student_from_teacher(teacher, hidden_size=HALF, sample=[batch])
    own = student.bert.encoder.layer[0]
    outputs = [head * 6 + dimension for head in two for dimension in range(6)]
    assert torch.equal(own.attention.self.query.weight, block.attention.self.query.weight[outputs][:, twelve])
    assert torch.equal(own.attention.output.dense.weight, block.attention.output.dense.weight[twelve][:, outputs])
    assert torch.equal(own.intermediate.dense.weight, block.intermediate.dense.weight[ten][:, twelve])


@pytest.mark.parametrize("centred", [False, True])
def test_a_basis_is_orthonormal_and_at_full_width_no_change(centred):
    states = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 11)
    moments = states.T @ states
    basis = principal(moments, torch.tensor([4, 5, 6, 8, 9]), centred).basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    whole = principal(moments, torch.arange(10), centred).basis
    torch.testing.assert_close(whole, torch.eye(10, dtype=torch.float64))
    if centred:  # the mean of the student's channels is that of the teacher's, so both norms subtract the same
        torch.testing.assert_close(basis.sum(1), torch.full((10,), (5 / 10) ** 0.5, dtype=torch.float64))


def test_a_basis_holds_as_much_of_the_states_as_any_of_its_width():
    states = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.randn(
        6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    basis = principal(states.T @ states, torch.tensor([0, 1, 2]), centred=False).basis
    kept = (states @ basis).square().sum()
    most = torch.linalg.svd(states).S[:3].square().sum()
    torch.testing.assert_close(kept, most)


def test_a_student_is_in_its_teachers_precision_and_mode():
    teacher = tiny("bert").double().train()
    student = student_from_teacher(teacher, hidden_size=HALF, layers=2, sample=sample("bert"))
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    assert student.training
    assert teacher.training
    assert not student_from_teacher(tiny("bert").half(), layers=1).training
    assert {p.dtype for p in student_from_teacher(tiny("bert").half(), layers=1).parameters()} == {torch.float16}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_student_has_the_teachers_implementation_of_attention(attention):
    teacher = tiny("qwen2")
    teacher.set_attn_implementation(attention)
    student = student_from_teacher(teacher)
    assert student.config._attn_implementation == teacher.config._attn_implementation == attention
    assert torch.equal(logits(student, "qwen2"), logits(teacher, "qwen2"))


@pytest.mark.parametrize(
    ("hidden_size", "heads", "shared"), [(24, 12, 6), (22, 10, 5), (14, 6, 3), (4, 2, 1), (1, 1, 1)]
)
def test_there_are_as_many_heads_as_can_share_keys_and_values(hidden_size, heads, shared):
    sizes = {"hidden_size": 24, "num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 4}
    teacher = tiny("qwen2", **sizes)  # in proportion 11 heads would be of a width of 22, and 7 of 14
    student = student_from_teacher(teacher, hidden_size=hidden_size, method="truncate")
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (heads, shared)
    assert logits(student, "qwen2").isfinite().all()


def test_a_family_that_nothing_is_known_of_can_be_made_shorter_and_no_narrower():
    config = transformers.AutoConfig.for_model(
        "ernie", vocab_size=40, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8
    )
    teacher = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    student = student_from_teacher(teacher, layers=[0, 2])
    assert torch.equal(
        student.ernie.encoder.layer[1].output.dense.weight, teacher.ernie.encoder.layer[2].output.dense.weight
    )
    assert refusal(teacher, hidden_size=4) == (
        "the widths of ErnieForSequenceClassification cannot be changed, as nothing is known of the weights of 'ernie'; "
        "what can be made narrower is bert, roberta, xlm-roberta, camembert, electra, deberta, deberta-v2, mpnet, distilbert, "
        "gpt2, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, t5, mt5, bart, modernbert. Give `layers` alone, or a "
        "`config` with sizes of its own."
    )


def test_what_is_no_model_of_transformers_is_refused():
    assert refusal(torch.nn.Linear(2, 2)) == "`model` must be a PreTrainedModel of transformers, not Linear."


@pytest.mark.parametrize("sizes", [{"hidden_size": HALF}, {"layers": "block_influence"}])
def test_a_teacher_that_gives_no_numbers_on_the_sample_is_told(sizes):
    teacher = tiny("bert")
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.bias[3] = math.inf
    told = refusal(teacher, sample=sample("bert"), **sizes)
    where = "bert.encoder.layer.1.output.dense" if "hidden_size" in sizes else "bert.encoder.layer.1"
    assert told == (
        f"what {where} of the teacher gives on the sample is not finite, so what is active cannot be seen; take `method` "
        '"truncate" and layers that are not chosen by block_influence, or a teacher of more precision.'
    )


def test_tokens_of_a_decoder_count_by_its_own_mask():
    teacher = tiny("bart")
    batch = rows("bart")
    longer = {**batch, "decoder_input_ids": batch["input_ids"].clone()}  # as many tokens as the encoder has
    shorter = {**longer, "decoder_attention_mask": torch.ones_like(batch["input_ids"])}
    shorter["decoder_attention_mask"][:, 4:] = 0
    layers = list(teacher.model.decoder.layers)
    whole, part, first = (
        influences(teacher, layers, [one])
        for one in (longer, shorter, {**batch, "decoder_input_ids": longer["decoder_input_ids"][:, :4]})
    )
    assert part == pytest.approx(first)  # a decoder does not look ahead
    assert whole != pytest.approx(first)


def test_encoder_decoders_of_other_families_and_layers_in_blocks_cannot_be_made_shorter():
    sizes = {"vocab_size": 40, "d_model": 8, "encoder_layers": 4, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    mbart = transformers.AutoConfig.for_model("mbart", **sizes, **heads)
    assert refusal(transformers.AutoModelForSeq2SeqLM.from_config(mbart), layers=2) == (
        "`layers` needs a teacher with one list of layers, and MBartForConditionalGeneration has an encoder and a decoder; use "
        "`config` instead."
    )
    sizes = {"vocab_size": 40, "block_sizes": [1, 1], "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 8}
    funnel = transformers.AutoConfig.for_model("funnel", **sizes)
    assert refusal(transformers.AutoModelForSequenceClassification.from_config(funnel), layers=1) == (
        "`layers` cannot make FunnelForSequenceClassification shorter, whose config refuses another `num_hidden_layers`; use "
        "`config` instead."
    )


WORDS = "uniform, last, first, skip, block_influence"


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("bert", {"layers": 5}, "`layers` asks for 5 layers, and the teacher has 4; ask for 1 to 4."),
        ("bert", {"layers": [0, 4]}, "`layers` names layer 4, and the teacher has 4 layers, 0 to 3."),
        (
            "bert",
            {"layers": [0, True]},
            "`layers` names True, which is no number of a layer; give whole numbers, 0 to 3.",
        ),
        (
            "bert",
            {"layers": [0, "1"]},
            "`layers` names '1', which is no number of a layer; give whole numbers, 0 to 3.",
        ),
        ("bert", {"layers": []}, "`layers` is empty; name one layer at least."),
        (
            "bert",
            {"layers": "even"},
            f"`layers` is 'even'; expected a number of layers, a list of them, one of {WORDS}, both, as in "
            '{"count": 4, "by": "uniform"}, or one of these for each of "encoder" and "decoder".',
        ),
        (
            "bert",
            {"layers": {"encoder": 2}},
            "`layers` names 'encoder', and BertForSequenceClassification has one stack of layers.",
        ),
        (
            "bart",
            {"layers": {"middle": 2}},
            "`layers` names 'middle', and BartForConditionalGeneration has an encoder and a decoder.",
        ),
        ("bert", {"method": "slice"}, "`method` is 'slice'; expected one of importance, truncate, pca."),
        (
            "bert",
            {"hidden_size": 48},
            "`hidden_size` is 48, and the teacher's is 24; a student can only be made narrower.",
        ),
        (
            "bert",
            {"intermediate_size": 21},
            "`intermediate_size` is 21, and the teacher's is 20; a student can only be made narrower.",
        ),
        (
            "bert",
            {"hidden_size": 10},
            "`hidden_size` 10 does not give 4 heads of whole dimensions, 6 at most; take 8 or 12, or "
            "`num_attention_heads` 2.",
        ),
        (
            "bert",
            {"num_attention_heads": 2},
            "`hidden_size` 24 does not give 2 heads of whole dimensions, 6 at most; take 10 or 12, or `num_attention_heads` 4.",
        ),
        (
            "bert",
            {"hidden_size": 12, "num_attention_heads": 1},
            "`hidden_size` 12 does not give 1 head of whole dimensions, 6 at most; take 5 or 6, or "
            "`num_attention_heads` 2 or 3 or 4.",
        ),
        (
            "modernbert",
            {"hidden_size": 16},
            "`hidden_size` 16 does not give 4 heads of the teacher's 6 dimensions, which rotary positions are bound to; "
            "take 12 or 18.",
        ),
        (
            "bert",
            {"num_key_value_heads": 1},
            "`num_key_value_heads` is for teachers whose heads share keys and values, and this one's do not.",
        ),
        (
            "llama",
            {"num_attention_heads": 3},
            "3 heads and 2 heads of keys and values do not come of the teacher's 4 and 2; `num_attention_heads` must be "
            "a multiple of `num_key_value_heads`, by 2 at most.",
        ),
        (
            "bert",
            {"hidden_size": 12},
            '`method` "importance" looks at rows, and there are none; give a `sample`, or take `method` "truncate" and '
            "layers that are not chosen by block_influence.",
        ),
        (
            "bert",
            {"layers": "block_influence"},
            'block_influence looks at rows, and there are none; give a `sample`, or take `method` "truncate" and layers '
            "that are not chosen by block_influence.",
        ),
        ("bert", {"hidden_size": 12.0}, "`hidden_size` is 12.0; expected a whole number from 1 to 24."),
        (
            "bert",
            {"num_attention_heads": 0},
            "`num_attention_heads` is 0, and the teacher's is 4; a student can only be made narrower.",
        ),
        (
            "bert",
            {"hidden_size": 12, "sample": [torch.zeros(1, 2)]},
            "`sample` must be a sequence of batches, each a mapping from what the model calls its inputs to tensors, or what gives one.",
        ),
        (
            "electra",
            {"hidden_size": 8, "num_attention_heads": 2, "method": "truncate"},
            "`hidden_size` 8 is the width of the teacher's embeddings, whose projection to its own width the student "
            "would not have; take another.",
        ),
        (
            "modernbert",
            {"layers": 2},
            "layers [1, 3] of the teacher do not fit ModernBertForSequenceClassification of 2 layers, whose first "
            "layer may be of another form; let `layers` begin with 0.",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(name, sizes, expected):
    assert refusal(tiny(name), **sizes) == expected


def test_what_cannot_be_rotated_is_refused():
    assert refusal(tiny("bert-mlm"), hidden_size=12, method="pca", sample=sample("bert-mlm")) == (
        '`method` "pca" cannot rotate the head of BertForMaskedLM; take "importance".'
    )
    name = "deberta-v2-convolution"
    assert refusal(tiny(name), hidden_size=12, method="pca", sample=sample(name)) == (
        '`method` "pca" cannot rotate the convolution of this DebertaV2ForSequenceClassification; take "importance".'
    )
    assert refusal(tiny("bart", scale_embedding=True), hidden_size=12, method="truncate") == (
        "the width of BartForConditionalGeneration with `scale_embedding` cannot be changed; give `layers` alone."
    )
