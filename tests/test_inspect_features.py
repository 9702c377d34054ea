"""`brewer inspect --features`: what a match can name in a model, with shapes from a dummy forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from brewer_core.architectures import anatomy_of
from brewer_core.errors import RequestError
from brewer_core.run.inside import look_inside
from brewer_core.run.model_folders import model_folder
from brewer_core.testing import write_distribution
from families import ENCODER_DECODERS, FAMILIES, JOINED, built
from runs import brewer, write_config


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a model of a family, and returns its folder."""

    def save(family: str, name: str = "model", **settings: Any) -> Path:
        built(family, **settings).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def listed(capsys: Any, target: Any) -> Any:
    assert brewer("inspect", target, "--features", "--json") == 0
    return json.loads(capsys.readouterr().out)


def error(capsys: Any, *arguments: Any) -> str:
    assert brewer("inspect", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    text: str = captured.err
    return text.strip()


def test_short_names_and_modules_are_listed_with_their_sizes(saved: Any, capsys: Any) -> None:
    folder = saved("llama", num_hidden_layers=2)
    assert brewer("inspect", folder, "--features") == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"LlamaForCausalLM in {folder}, run on 2 texts of 7 tokens",
        "",
        "short name       axes     shape",
        "logits           B L 60   2x7x60",
        "embeddings       B L 24   2x7x24",
        "hidden[0..2]     B L 24   2x7x24",
        "attention[0..1]  B 4 L L  2x4x7x7",
        "scores[0..1]     B 4 L L  2x4x7x7",
        "query[0..1]      B L 32   2x7x32",
        "key[0..1]        B L 16   2x7x16",
        "value[0..1]      B L 16   2x7x16",
        "",
        "path of a module                            class                 returns",
        "model                                       LlamaModel            [last_hidden_state] 2x7x24",
        "model.embed_tokens                          Embedding             2x7x24",
        "model.layers.0..1                           LlamaDecoderLayer     2x7x24",
        "model.layers.0..1.self_attn                 LlamaAttention        [0] 2x7x24, [1] 2x4x7x7",
        "model.layers.0..1.self_attn.q_proj          Linear                2x7x32",
        "model.layers.0..1.self_attn.k_proj          Linear                2x7x16",
        "model.layers.0..1.self_attn.v_proj          Linear                2x7x16",
        "model.layers.0..1.self_attn.o_proj          Linear                2x7x24",
        "model.layers.0..1.mlp                       LlamaMLP              2x7x24",
        "model.layers.0..1.mlp.gate_proj             Linear                2x7x36",
        "model.layers.0..1.mlp.up_proj               Linear                2x7x36",
        "model.layers.0..1.mlp.down_proj             Linear                2x7x24",
        "model.layers.0..1.mlp.act_fn                SiLUActivation        2x7x36",
        "model.layers.0..1.input_layernorm           LlamaRMSNorm          2x7x24",
        "model.layers.0..1.post_attention_layernorm  LlamaRMSNorm          2x7x24",
        "model.norm                                  LlamaRMSNorm          2x7x24",
        "model.rotary_emb                            LlamaRotaryEmbedding  [0] 1x7x8, [1] 1x7x8",
        "lm_head                                     Linear                2x7x60",
    ]


@pytest.mark.parametrize("family", [*FAMILIES, *JOINED])
def test_every_short_name_of_a_family_is_listed(family: str, saved: Any) -> None:
    inside = look_inside(saved(family))
    known = anatomy_of(built(family)).features
    assert [feature.name for feature in inside.features] == ["logits", *known]
    for feature in inside.features[1:]:
        assert len(feature.shapes) == len(known[feature.name].layers)
        assert feature.axes == known[feature.name].axes
        sizes = {"B": 2, "L": 7, "M": 5, "H": 4}
        for shape in feature.shapes:
            for axis, size in zip(feature.axes.split(), shape, strict=True):
                assert sizes.get(axis, size) == size
    assert inside.decodes == (family in ENCODER_DECODERS)
    assert not inside.reason


def test_json_has_every_tensor(saved: Any, capsys: Any) -> None:
    told = listed(capsys, saved("t5"))
    assert {key: told[key] for key in ("model", "rows", "tokens", "decoder_tokens", "reason")} == {
        "model": "T5ForConditionalGeneration",
        "rows": 2,
        "tokens": 7,
        "decoder_tokens": 5,
        "reason": None,
    }
    features = {each["name"]: each for each in told["features"]}
    assert features["cross_attention"] == {
        "name": "cross_attention",
        "layers": 2,
        "axes": ["B", "H", "M", "L"],
        "shapes": [[2, 4, 5, 7]] * 2,
    }
    assert features["embeddings"] == {
        "name": "embeddings",
        "layers": None,
        "axes": ["B", "L", "D"],
        "shapes": [[2, 7, 24]],
    }
    modules = {each["path"]: each for each in told["modules"]}
    assert modules["encoder.block.1.layer.0.SelfAttention.q"] == {
        "path": "encoder.block.1.layer.0.SelfAttention.q",
        "class": "Linear",
        "returned": [{"part": "", "shape": [2, 7, 32]}],
    }
    assert {"part": "[last_hidden_state]", "shape": [2, 5, 24]} in modules["decoder"]["returned"]


@pytest.mark.parametrize(
    ("family", "model_class"),
    [
        ("bart", transformers.BartForSequenceClassification),
        ("t5", transformers.T5ForSequenceClassification),
        ("gpt2", transformers.GPT2ForSequenceClassification),
        ("llama", transformers.LlamaForSequenceClassification),
        ("bert", transformers.BertModel),
    ],
)
def test_classifiers_and_bodies_run_too(family: str, model_class: Any, tmp_path: Path) -> None:
    _, config_class, sizes = FAMILIES[family]
    model_class(config_class(vocab_size=60, **{**sizes, "eos_token_id": 2})).save_pretrained(tmp_path)
    inside = look_inside(tmp_path)
    assert inside.model == model_class.__name__
    assert {"hidden", "query", "scores"} <= {feature.name for feature in inside.features}


def test_the_encoder_of_a_model_alone_is_given_no_tokens_for_a_decoder(tmp_path: Path) -> None:
    _, config_class, sizes = FAMILIES["t5"]
    transformers.T5EncoderModel(config_class(vocab_size=60, **sizes)).save_pretrained(tmp_path)
    assert not look_inside(tmp_path).decodes


def of_config(folder: Path, config: Any, model: str) -> Path:
    config.architectures = [model]
    config.save_pretrained(folder)
    return folder


def test_a_model_of_many_experts_takes_no_memory(tmp_path: Path) -> None:
    inside = look_inside(
        of_config(tmp_path, transformers.MixtralConfig(), "MixtralForCausalLM")
    )  # of 47 billion parameters
    (experts,) = [module for module in inside.modules if module.path == "model.layers.31.mlp.experts"]
    assert experts.returned == {"": (14, 4096)}


def test_a_large_model_that_needs_memory_to_run_is_refused(tmp_path: Path) -> None:
    config = transformers.BartConfig(
        d_model=4096, encoder_ffn_dim=16384, decoder_ffn_dim=16384, encoder_layers=3, decoder_layers=3
    )
    folder = of_config(tmp_path, config, "BartForSequenceClassification")  # it looks where the text ends
    with pytest.raises(RequestError) as caught:
        look_inside(folder)
    told = str(caught.value)
    assert told.startswith(
        "the BartForSequenceClassification of 1,640,779,779 parameters cannot be run without memory for its weights ("
    )
    assert told.endswith(
        "), and only one of 1,000,000,000 at most is made with them; name a folder with a smaller model of its kind."
    )


def test_a_model_of_a_run_of_a_file_and_of_a_distribution_is_found(
    saved: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = saved("bert", "run/student")
    write_config(tmp_path / "run")  # a run's own config bears the name of a model's
    saved("bert", "run/stages/distil/model")
    assert model_folder(str(tmp_path / "run")) == folder
    assert model_folder(str(tmp_path / "run/stages/distil")) == tmp_path / "run/stages/distil/model"
    assert model_folder(str(folder / "model.safetensors")) == folder
    brought = {f"tiny_model/{file.name}": file.read_text("utf-8", errors="ignore") for file in folder.iterdir()}
    info = write_distribution(tmp_path / "site", "tiny-model", files=brought) / "tiny_model-1.0.dist-info"
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in brought), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert model_folder("tiny-model") == tmp_path / "site/tiny_model"


def test_a_model_of_unknown_build_lists_its_modules(tmp_path: Path, capsys: Any) -> None:
    sizes = {
        "embedding_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    transformers.AlbertModel(transformers.AlbertConfig(vocab_size=30, **sizes)).save_pretrained(tmp_path)
    assert brewer("inspect", tmp_path, "--features") == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [
        "no short names are known of it, as its config tells of 3 layers, and it has the lists encoder.albert_layer_groups of 1",
        "",
    ]
    assert lines[3].split() == ["path", "of", "a", "module", "class", "returns"]
    assert any(line.startswith("encoder.albert_layer_groups.0.albert_layers.0.attention.query") for line in lines)


def test_no_weights_are_read(saved: Any, capsys: Any) -> None:
    folder = saved("bert")
    expected = listed(capsys, folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert listed(capsys, folder) == expected


def test_a_name_that_leads_to_no_model_is_told(saved: Any, tmp_path: Path, capsys: Any) -> None:
    folder = saved("bert")
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text('{"model_type": "brot"}', encoding="utf-8")
    assert error(capsys, tmp_path / "empty", "--features") == (
        f"brewer: error: {tmp_path}/empty holds no model of transformers: there is no config.json with a model_type in it, nor in its "
        "student/ or model/; its features cannot be listed."
    )
    assert error(capsys, "no-such-thing", "--features") == (
        "brewer: error: no-such-thing is neither a file or folder nor an installed distribution; name a model's folder, a run's, or a "
        "distribution that holds a model."
    )
    assert error(capsys, "pluggy", "--features") == (
        "brewer: error: the distribution pluggy holds 0 folders with a model of transformers; expected one, so name a folder."
    )
    assert error(capsys, tmp_path / "odd", "--features").startswith(
        f"brewer: error: {tmp_path}/odd holds no model that transformers knows ("
    )
    assert error(capsys, folder, "--features", "--max-level", "1") == (
        "brewer: error: --max-level is of the layers' sizes, and --features lists all of them; leave one out."
    )


def test_a_model_that_cannot_run_is_told(saved: Any) -> None:
    folder = saved("bert")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 4}), encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        look_inside(folder)
    assert str(caught.value).startswith(f"{folder}: its bert model cannot be run on 2 texts of 7 tokens (")
    assert str(caught.value).endswith("); its features cannot be listed.")


def test_only_models_are_made_of_the_names_in_a_config(saved: Any) -> None:
    folder = saved("bert")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**settings, "architectures": ["pipeline"]}), encoding="utf-8")
    assert look_inside(folder).model == "BertModel"
