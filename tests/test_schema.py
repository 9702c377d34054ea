"""`brewer schema`: it accepts every config that a run accepts, and refuses what is wrong within a value."""

from __future__ import annotations

import copy
import functools
import json
import random
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from brewer_core.config import parse_run_config
from brewer_core.config.crossrefs import reference_problems
from brewer_core.config.schema import run_schema
from brewer_core.config.taskrefs import task_problems
from brewer_core.errors import ConfigError
from brewer_core.plugins import build_registry
from brewer_core.run.library import packaged_names
from fakes import plugin
from runs import brewer, distill, document, read, supervised, training, write_config
from test_docs import DOCS, ROOT, blocks, plugin_files

CONFIGS = ROOT / "brewer_core" / "run" / "configs"
NOT_BOTH = "expected one of epochs and steps"  # the one problem between two keys that a schema can tell

VALUES = [
    *(None, "none", "", "x", 0, -1, 1, 0.5, True, [], {}, ["x"], [1, 2], [-1], ["a", "b"]),
    *(["flsw", 1, 2], ["flsw", 1], ["flsw", {"beta": 1, "gamma": 2}], ["flsw", {"beta": 1}], ["cwsm", 1], ["constant"]),
    *(["flsw", 1, 2, 3, 4], {"name": "flsw", "beta": 1, "gamma": 2}, {"name": "flsw", "beta": 1}, "flsw", "constant"),
    *(["linear", 1, 2], ["linear", 1, 2, {}], ["linear", 1, 2, {"lr": 1}], ["linear", 1], ["none", 1, 2]),
    *([None, 1, 2, None], ["linear", 1, True], ["linear", 1, 2, 0], "linear", {"name": "linear"}),
    *("kl", "accuracy", {"name": "kl", "t_squared": True}, {"name": "kl", "t_squared": "x"}, {"name": "kl", "T": 1}),
]


@pytest.fixture(scope="module")
def registry():
    return build_registry()


@pytest.fixture(scope="module")
def schema(registry):
    return run_schema(registry.components())


@pytest.fixture(scope="module")
def validator(schema):
    return Draft202012Validator(schema)


def whole():
    """A config that gives nearly every key."""
    made = document(
        **{"$schema": "schema.json", "schema_version": 1, "seed": 1, "precision": "no", "output": "x", "tasks": None},
        task={"kind": "text_classification", "labels": ["a", "b"], "pair": False},
        baselines=["labels_only"],
        trackers=["jsonl", {"name": "tensorboard"}],
        evaluation={
            "data": "films",
            "test": ["films.eval"],
            "metrics": ["accuracy", {"name": "f1", "average": "macro"}],
            "best": {"metric": "f1", "mode": "max"},
            "every_steps": 3,
            "batch_size": 4,
        },
    )
    films = made["data"]["films"]
    films |= {"text": "text", "label": "label", "select": {"rows": 3, "share": None}, "task": None}
    films |= {"augmentations": ["deleting", {"name": "masking", "p": 0.1}]}
    made["models"]["other"] = "hf"
    made["stages"] = [supervised(), distilling()]
    return made


def distilling():
    return distill(
        teachers=["teacher", {"model": "other", "weight": 1, "adaptor": "text_classification", "task": None}],
        strategy={"name": "multi_teacher", "average": "logits"},
        adaptors={"teacher": "text_classification", "student": {"name": "text_classification"}},
        distillation={
            "temperature": 2,
            "temperature_scheduler": ["flsw", 1, 2],
            "hard_label_weight": 1,
            "hard_label_weight_scheduler": "linear_decay",
            "kd_loss_type": {"name": "kl", "t_squared": True},
            "kd_loss_weight_scheduler": {"name": "constant", "warmup": 0.1},
            "probability_shift": False,
            "is_caching_logits": False,
            "intermediate_matches": [
                match(layer_S=[0, 1], layer_T=[0, 1], proj=["linear", 8, 16, {"lr": 1}]),
                match(proj="linear", proj_dims=[8, 16], proj_optimizer={"lr": 1}),
            ],
        },
        training=training(
            epochs=None,
            accumulation=2,
            schedule={"name": "linear", "warmup": 0.1},
            max_grad_norm=1.0,
            checkpoint_every_steps=2,
        ),
    )


def match(**more):
    return {
        "layer_T": 1,
        "layer_S": 1,
        "weight": 1,
        "loss": {"name": "hidden_mse"},
        "feature": "hidden",
        "teacher": "teacher",
        **more,
    }


def paths(value, before=()):
    """Where the values of a config stand, itself first."""
    yield before
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*before, key))


def at(value, path):
    return functools.reduce(lambda inner, key: inner[key], path, value)


def with_value(config, path, value):
    changed = copy.deepcopy(config)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def without(config, path):
    changed = copy.deepcopy(config)
    del at(changed, path[:-1])[path[-1]]
    return changed


def refused(config, registry):
    """The problems of a config that lie within one value."""
    try:
        parse_run_config(config, "config", registry)
    except ConfigError as error:
        between = [p for p in (*reference_problems(config), *task_problems(config)) if NOT_BOTH not in p]
        return [problem for problem in error.problems if problem not in between]
    return []


def in_distillation(**changes):
    return document(stages=[supervised(), distill(distillation=changes)])


# What it accepts


def test_the_schema_is_one(schema):
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert "$id" not in schema
    assert "x-brewer-component" not in json.dumps(schema, default=str)


@pytest.mark.parametrize("name", packaged_names())
def test_configs_that_ship_are_accepted(name, validator):
    assert [*validator.iter_errors(read(CONFIGS / f"{name}.json"))] == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_whole_configs_on_pages_are_accepted(page, tmp_path):
    components = build_registry(files=plugin_files(page, tmp_path) if page.parent.name != "hooks" else []).components()
    documents = [json.loads(block) for block in blocks(page, "json")]
    validator = Draft202012Validator(run_schema(components))
    assert [e for found in documents if {"stages", "data"} <= found.keys() for e in validator.iter_errors(found)] == []


@pytest.mark.parametrize(
    ("task", "accepted"),
    [
        ({}, True),
        ({"pair": True}, True),
        ({"kind": "causal_lm"}, True),
        ({"kind": "causal_lm", "eos": True}, True),
        (None, True),
        ({"kind": "causal_lm", "pair": True}, False),
        ({"eos": True}, False),
        ({"kind": "tagging"}, False),
    ],
)
def test_a_task_is_of_one_kind_which_is_classification_where_it_says_nothing(task, accepted, validator, registry):
    config = {**document(), "task": task}
    assert validator.is_valid(config) == accepted == (refused(config, registry) == [])


def test_a_config_as_a_run_writes_it_is_accepted(registry, validator):
    resolved = parse_run_config(whole(), "config", registry).to_dict()
    assert [*validator.iter_errors(resolved)] == []


# What it refuses, each but a step from a config that it accepts


@pytest.mark.parametrize(
    "wrong",
    [
        in_distillation(kd_loss_type={"name": "kl", "t_sqared": True}),
        in_distillation(kd_loss_type={"name": "kl", "t_squared": "yes"}),
        in_distillation(kd_loss_type={"t_squared": True}),
        in_distillation(kd_loss_type="kll"),
        in_distillation(kd_loss_type="fsp"),
        in_distillation(kd_loss_type="none"),
        in_distillation(temperature=0),
        in_distillation(temperature="4"),
        in_distillation(temprature=4),
        in_distillation(temperature_scheduler="flsw"),
        in_distillation(temperature_scheduler=["flsw", 1]),
        in_distillation(temperature_scheduler=["flsw", 1, -1]),
        in_distillation(hard_label_weight_scheduler={"name": "linear_decay", "warmup": 1}),
        in_distillation(intermediate_matches=[match(proj=["linear", 8])]),
        in_distillation(intermediate_matches=[match(proj=["linnear", 8, 16])]),
        document(seed=-1),
        document(seed=1.5),
        document(stages=[]),
        document(models={"teacher": {"name": "hf", "confg": {}}}),
        document(trackers=["wandbee"]),
        document(stages=[supervised(training={"steps": 1, "epochs": 1})]),
        document(stages=[supervised(training={})]),
        document(stages=[{k: v for k, v in supervised().items() if k != "kind"}]),
        document(extra=1),
    ],
    ids=lambda wrong: json.dumps(wrong["stages"][-1:])[-60:],
)
def test_what_is_wrong_fails_here_as_it_fails_a_run(wrong, validator, registry):
    assert refused(wrong, registry)
    assert not validator.is_valid(wrong)


def test_schema_and_run_agree_about_configs_with_one_change(validator, registry):
    config = whole()
    assert validator.is_valid(config)
    assert refused(config, registry) == []
    places = [path for path in paths(config) if path and path != ("schema_version",)]  # python takes true for 1
    changed = [with_value(config, path, value) for path in places for value in VALUES]
    changed += [without(config, path) for path in places]
    changed += [with_value(config, (*path, "odd"), 1) for path in places if isinstance(at(config, path), dict)]
    tried = random.Random(0).sample(changed, 150)

    verdicts = [(validator.is_valid(one), not refused(one, registry)) for one in tried]

    assert [one for one, (ours, runs) in zip(tried, verdicts, strict=True) if ours != runs] == []
    assert {ours for ours, _ in verdicts} == {True, False}


# Plugins


def test_a_plugin_of_ones_own_is_in_it_with_its_options(registry):
    def mine(student_logits, teacher_logits, temperature, *, title: list[str], schema: int | None = 3):
        """Mine alone."""

    made = run_schema(registry.with_plugin(plugin(brewer_kd_losses={"mine": mine})).components())

    assert made["$defs"]["kd_loss.mine"] == {
        "description": "Mine alone.",
        "type": "object",
        "properties": {
            "name": {"const": "mine", "description": "Mine alone."},
            "title": {"type": "array", "items": {"type": "string"}},
            "schema": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": 3},
        },
        "required": ["name", "title"],
        "additionalProperties": False,
    }
    validator = Draft202012Validator(made)
    assert validator.is_valid(in_distillation(kd_loss_type={"name": "mine", "title": ["a"], "schema": None}))
    assert not validator.is_valid(in_distillation(kd_loss_type="mine"))


def test_a_kind_without_components_accepts_nothing():
    validator = Draft202012Validator(run_schema([]))
    assert not validator.is_valid(document())


# The command


def test_the_schema_is_printed(schema, capsys):
    assert brewer("schema") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == schema
    assert captured.err == ""


def test_the_schema_is_written_and_written_again(schema, tmp_path, capsys):
    file = tmp_path / "brewer.json"
    assert brewer("schema", "--output", file) == brewer("schema", "-o", file) == 0
    assert read(file) == schema
    assert [path.name for path in tmp_path.iterdir()] == ["brewer.json"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f'{file} is written; name it under "$schema" in a config'


def test_a_config_is_not_overwritten_by_a_schema(tmp_path, capsys):
    file = write_config(tmp_path)
    before = file.read_bytes()
    assert brewer("schema", "-o", file) == 2
    error = f"brewer: error: output {file} is there already and is no schema of brewer's; name another file.\n"
    assert capsys.readouterr().err == error
    assert file.read_bytes() == before


def test_a_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    file = tmp_path / "no" / "schema.json"
    assert brewer("schema", "-o", file) == 2
    error = (
        f"brewer: error: output {file} cannot be written: No such file or directory; choose another with --output.\n"
    )
    assert capsys.readouterr().err == error


def test_plugins_are_added_and_left_out(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from brewer_core import hookimpl\n\n\ndef mine(batch, model_outputs):\n    '''Mine.'''\n\n\n"
        "@hookimpl\ndef brewer_adaptors():\n    return {'mine': mine}\n"
    )
    assert brewer("schema", "--plugin", file, "--disable", "brewer-core:strategies") == 0
    definitions = json.loads(capsys.readouterr().out)["$defs"]
    assert "adaptor.mine" in definitions
    assert "strategy.general" not in definitions


def test_what_two_plugins_provide_is_in_no_schema(tmp_path: Path, capsys):
    file = tmp_path / "again.py"
    file.write_text(
        "from brewer_core import hookimpl\n\n\ndef kl(student_logits, teacher_logits, temperature):\n    '''Again.'''\n\n\n"
        "@hookimpl\ndef brewer_kd_losses():\n    return {'kl': kl}\n"
    )
    assert brewer("schema", "--plugin", file) == 0
    definitions = json.loads(capsys.readouterr().out)["$defs"]
    assert "kd_loss.kl" not in definitions
    assert definitions["kd_loss"]["anyOf"][0]["enum"][:4] == ["adaptive_kl", "ce", "dist", "dkd"]
