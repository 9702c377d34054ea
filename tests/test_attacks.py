"""Configs, models and checkpoints made to attack: nothing of theirs is run, and nothing outside the run's folder is touched."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from brewer_core.checkpoints import Checkpoints
from brewer_core.errors import DataError
from brewer_core.files import sha256_of
from runs import bert, brewer, distill, document, films, supervised, tree, write_config

pytest.importorskip("transformers", reason="runs need the extra hf")


class Attack:
    """What makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return films(tmp_path / "work")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What is there after an attack that succeeded."""
    return tmp_path / "trace"


@pytest.fixture
def refused(folder, trace, capsys):
    """What the command answers to a config, which leaves every file as it was."""

    def answer(config: Any, *options: str, status: int = 2) -> str:
        file = write_config(folder, config)
        before = tree(folder.parent)
        assert brewer("run", file, "--output", folder / "out", *options) == status
        assert tree(folder.parent) == before
        assert not trace.exists()
        error = capsys.readouterr().err.removeprefix("checking data and models\n")
        assert error.startswith("brewer: error: ")
        return error.removeprefix("brewer: error: ").removesuffix("\n")

    return answer


# Names that are no components


@pytest.mark.parametrize(
    "name", ["os:system", "os.system", "brewer_builtins.kd_losses:kl", "../kl", "__import__('os')", "kl\n"]
)
def test_a_config_names_installed_components_alone(name, refused):
    stages = [supervised(), distill(distillation={"kd_loss_type": name})]
    assert f"stages[1].distillation.kd_loss_type: no kd loss is called {name!r}" in refused(document(stages=stages))


def test_a_callable_in_a_config_is_not_imported(refused):
    stages = [supervised(), distill(distillation={"kd_loss_type": {"callable": "os:system"}})]
    assert refused(document(stages=stages)).endswith(
        "stages[1].distillation.kd_loss_type: 'os:system' was passed in Python; pass it again or make it a plugin"
    )


@pytest.mark.parametrize("key", ["trust_remote_code", "code_revision", "__class__"])
def test_a_model_takes_no_option_that_runs_code(key, refused):
    models = {"teacher": {**bert(16, 2), key: True}, "student": bert(8, 1)}
    assert refused(document(models=models)).endswith(f"models.teacher.{key}: the model `hf` has no such option")


# Files that hold code


def code_in_a_model(path: Path, trace: Path) -> None:
    """A model's folder that brings classes of its own."""
    (path / "own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Own: pass\n", encoding="utf-8")
    settings = {"model_type": "own", "architectures": ["Own"]}
    settings["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "own.Own")
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def pickled_weights(path: Path, trace: Path) -> None:
    """A model's folder whose weights are a pickle that calls a function."""
    from transformers import BertConfig

    BertConfig(vocab_size=50, **{k: v for k, v in bert(8, 1)["config"].items() if k != "model_type"}).save_pretrained(
        path
    )
    torch.save({"bert.embeddings.word_embeddings.weight": Attack(trace)}, path / "pytorch_model.bin")


@pytest.mark.parametrize("make", [code_in_a_model, pickled_weights])
def test_code_in_a_models_folder_is_not_run(make, folder, trace, refused):
    (folder / "model").mkdir()
    make(folder / "model", trace)
    models = {"teacher": {"name": "hf", "path": "model"}, "student": bert(8, 1)}
    assert "model" in refused(document(models=models))


def test_code_in_a_tokenizers_folder_is_not_run(folder, trace, refused):
    (folder / "words").mkdir()
    (folder / "words/own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Own: pass\n", encoding="utf-8")
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "words/tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    assert "tokenizer" in refused(document(tokenizer={"from": "words", "max_length": 16}))


def test_data_are_not_unpickled(folder, trace, refused):
    for name in ("csv", "jsonl", "parquet"):
        (folder / "rows.pkl").write_bytes(pickle.dumps(Attack(trace)))
        assert refused(document(data={"films": {"source": {"name": name, "path": "rows.pkl"}}}))


def test_a_checkpoint_is_not_unpickled(tmp_path, trace):
    kept = Checkpoints(tmp_path / "checkpoints")
    state = kept.save(1, {"step": 1}) / "state.pt"
    torch.save({"learner": Attack(trace)}, state)
    sums = {"state.pt": {"sha256": sha256_of(state), "bytes": state.stat().st_size}}
    (state.parent / "checksums.json").write_text(json.dumps(sums), encoding="utf-8")
    with pytest.raises(DataError, match=r"state.pt cannot be read: Weights only load failed; take an earlier one\.$"):
        kept.load(1)
    assert not trace.exists()


def test_a_file_of_weights_is_not_unpickled(folder, trace, capsys):
    torch.save({"weight": Attack(trace)}, folder / "weights.pt")
    assert brewer("inspect", folder / "weights.pt") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not trace.exists()


# Paths


@pytest.mark.parametrize("name", ["..", "../out", "/etc/out", "a/b", "a\\b", "a\x00b", "", "."])
def test_the_name_of_a_stage_is_no_path(name, refused):
    assert "stages[0].name: " in refused(document(stages=[supervised(name=name), distill()]))


def test_overwriting_follows_no_links_out_of_the_folder(folder, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept", encoding="utf-8")
    config = write_config(folder, document(stages=[supervised()], models={"teacher": bert(8, 1)}))
    (folder / "out").mkdir()
    (folder / "out/manifest.json").write_text("{}", encoding="utf-8")
    for name in ("student", "stages", "plugins"):
        (folder / "out" / name).symlink_to(precious, target_is_directory=True)

    assert brewer("run", config, "--output", folder / "out", "--overwrite") == 0

    assert tree(precious) == {"file": b"kept"}
    assert not (folder / "out/stages").is_symlink()
    capsys.readouterr()


# Sizes


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"data": ' + "[" * 5_000 + "]" * 5_000 + "}"])
def test_a_config_that_is_nested_without_end_is_refused_in_a_line(text, refused):
    error = refused(text)
    assert "nested too deeply" in error
    assert len(error) < 400


def test_a_setting_of_the_command_line_that_is_nested_without_end_is_refused(refused):
    assert len(refused(document(), "--set", f"data={'[' * 50_000}")) < 1000


@pytest.mark.parametrize("number", [10**30, -(10**30), 2**63])
@pytest.mark.parametrize("key", ["steps", "batch_size", "accumulation", "log_every_steps"])
def test_a_number_beyond_all_bounds_is_refused(key, number, refused):
    stages = [supervised(training={"steps": 3, "batch_size": 4, key: number}), distill()]
    assert f"stages[0].training.{key}: input should be " in refused(document(stages=stages))


def test_a_number_of_endless_digits_is_refused(refused):
    assert "not JSON that can be read" in refused(
        json.dumps(document()).replace('"max_length": 16', f'"max_length": {"9" * 5000}')
    )


def test_a_model_that_fits_no_memory_is_refused_before_anything_is_written(refused):
    models = {"teacher": bert(10**12, 1), "student": bert(8, 1)}
    assert "models.teacher" in refused(document(models=models))
