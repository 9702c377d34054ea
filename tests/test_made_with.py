"""The versions that a config and a checkpoint were made with, and what is said where others are installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from brewer_core import default_registry
from brewer_core.checkpoints import Checkpoints
from brewer_core.config import parse_run_config
from brewer_core.errors import ConfigError
from runs import bert, brewer, document, films, read, supervised, training, write_config

OWN = default_registry().versions()["brewer-core"]


def made_with(**versions: Any) -> dict[str, Any]:
    return document(made_with={name.replace("_", "-"): version for name, version in versions.items()})


def test_the_versions_that_are_installed_are_not_worth_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = parse_run_config(made_with(brewer_core=OWN), "run.json", default_registry())
    assert config.made_with == {"brewer-core": OWN}


def test_another_version_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"^run\.json was made with") as caught:
        parse_run_config(made_with(brewer_core="0.0.1"), "run.json", default_registry())
    assert [str(warning.message) for warning in caught] == [
        f"run.json was made with brewer-core 0.0.1, and {OWN} is installed; results may differ: pip install brewer-core==0.0.1 "
        "gives the same again."
    ]


def test_a_plugin_that_is_missing_is_told_with_the_command_that_installs_it() -> None:
    config = made_with(brewer_loss_gone="1.2")
    config["stages"][1]["distillation"] = {"kd_loss_type": "gone"}
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config, "run.json", default_registry())
    names, missing = caught.value.problems
    assert names.startswith("stages[1].distillation.kd_loss_type: no kd loss is called 'gone'")
    assert missing == (
        "made_with.brewer-loss-gone: the config was made with brewer-loss-gone 1.2, which is not installed; pip install "
        "brewer-loss-gone==1.2, or take the line out"
    )


def test_without_a_registry_versions_are_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_run_config(made_with(brewer_core="0.0.1", brewer_loss_gone="1"), "run.json")


@pytest.mark.parametrize("value", [{"brewer-core": 1}, ["brewer-core"], "brewer-core"])
def test_versions_that_are_no_texts_are_a_problem_of_the_config(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^run.json: made_with"):
        parse_run_config(document(made_with=value), "run.json", default_registry())


def test_a_run_writes_the_versions_of_what_its_config_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    folder = films(tmp_path)
    stage = supervised(training=training(steps=1, checkpoint_every_steps=1))
    config = write_config(folder, document(stages=[stage], models={"teacher": bert(8, 1)}))
    assert brewer("run", config, "--output", folder / "out") == 0
    resolved = read(folder / "out/config.json")
    assert resolved["made_with"] == {"brewer-core": OWN}

    again = write_config(folder, {**resolved, "made_with": {"brewer-core": "0.0.1"}}, "again.json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert brewer("run", again, "--output", folder / "again", "--dry-run") == 0
    assert (
        f"brewer: warning: {again} was made with brewer-core 0.0.1, and {OWN} is installed" in capsys.readouterr().err
    )

    kept = Checkpoints(folder / "out/stages/teacher/checkpoints", made_with={"brewer-core": "9.9"})
    with pytest.warns(
        UserWarning, match=rf"step-1 was made with brewer-core {OWN}, and 9\.9 is installed; results may differ\.$"
    ):
        assert "made_with" not in kept.load(1)
