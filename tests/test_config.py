"""Configs: TextBrewer's names and defaults, frozen and closed, and every problem told at once with its path."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import subprocess
import sys

import pytest

from brewer_core.config import (
    ComponentRef,
    DistillationConfig,
    IntermediateMatch,
    RunConfig,
    TrainingConfig,
    load_run_config,
    parse_run_config,
)
from brewer_core.config.overrides import override
from brewer_core.errors import ConfigError, ReadOnlyError, RequestError
from brewer_core.plugins import build_registry
from runs import bert, distill, document, supervised, training, write_config

MATCH = {"layer_T": 4, "layer_S": 2, "weight": 1, "loss": "hidden_mse", "feature": "hidden"}


@pytest.fixture(scope="module")
def registry():
    return build_registry()


def problems_of(make, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        make(*arguments, **options)
    assert caught.value.exit_status == 2
    return list(caught.value.problems)


def run_problems(registry=None, **changes):
    return problems_of(parse_run_config, document(**changes), "config.json", registry)


def my_loss(student_logits, teacher_logits, temperature):
    return (student_logits - teacher_logits).mean()


# TextBrewer's names, defaults and calls


def test_the_defaults_of_a_distillation_are_textbrewers():
    assert DistillationConfig().to_dict() == {
        "temperature": 4,
        "temperature_scheduler": None,
        "hard_label_weight": 0,
        "hard_label_weight_scheduler": None,
        "kd_loss_type": {"name": "ce"},
        "kd_loss_weight": 1,
        "kd_loss_weight_scheduler": None,
        "probability_shift": False,
        "intermediate_matches": None,
        "is_caching_logits": False,
        "teacher_correction": None,
        "balancer": None,
    }


def test_the_defaults_of_a_training_are_textbrewers_and_then_ours():
    assert TrainingConfig().to_dict() == {
        "gradient_accumulation_steps": 1,
        "ckpt_frequency": 1,
        "ckpt_epoch_frequency": 1,
        "ckpt_steps": None,
        "log_dir": None,
        "output_dir": "./saved_models",
        "device": "cuda",
        "fp16": False,
        "fp16_opt_level": "O1",
        "data_parallel": False,
        "local_rank": -1,
        "loss_normalization": "micro_batch",
        "precision": "no",
        "log_every_steps": 10,
        "keep_last": 2,
        "resume": False,
        "cache": "off",
        "cache_key": None,
    }


def test_configs_take_their_fields_by_position_and_ours_by_keyword_alone():
    assert TrainingConfig(2, 3, 4, None, "logs") == TrainingConfig(
        gradient_accumulation_steps=2, ckpt_frequency=3, ckpt_epoch_frequency=4, log_dir="logs"
    )
    assert DistillationConfig(8, "none", 0.5).hard_label_weight == 0.5
    kinds = [parameter.kind.name for parameter in inspect.signature(TrainingConfig).parameters.values()]
    assert kinds == ["POSITIONAL_OR_KEYWORD"] * 11 + ["KEYWORD_ONLY"] * 7
    with pytest.raises(TypeError):
        TrainingConfig(*[1] * 12)
    with pytest.raises(TypeError):
        TrainingConfig(1, gradient_accumulation_steps=1)


def test_a_training_config_creates_no_folder(tmp_path):
    config = TrainingConfig(output_dir=tmp_path / "models", log_dir=tmp_path / "logs", device="cpu")
    assert (config.output_dir, config.log_dir) == (str(tmp_path / "models"), str(tmp_path / "logs"))
    assert list(tmp_path.iterdir()) == []


def test_fp16_and_precision_name_one_autocast():
    assert [c.autocast for c in (TrainingConfig(), TrainingConfig(fp16=True), TrainingConfig(precision="bf16"))] == [
        "no",
        "fp16",
        "bf16",
    ]
    assert problems_of(TrainingConfig, fp16=True, precision="bf16") == [
        "fp16: contradicts precision, which is 'bf16'; set one of them"
    ]


def test_none_and_null_both_mean_absent():
    absent = {"temperature_scheduler": "none", "hard_label_weight_scheduler": None, "kd_loss_weight_scheduler": "none"}
    assert DistillationConfig.from_dict(absent) == DistillationConfig()
    assert IntermediateMatch(**MATCH, proj="none") == IntermediateMatch(**MATCH, proj=None)


def test_a_temperature_scheduler_is_read_in_all_of_its_forms(registry):
    forms = (
        ["flsw", 1, 2],
        ["flsw", {"beta": 1, "gamma": 2}],
        {"name": "flsw", "beta": 1, "gamma": 2},
    )
    for form in forms:
        stage = distill(distillation={"temperature_scheduler": form})
        config = parse_run_config(document(stages=[supervised(), stage]), "config.json", registry)
        written = config.to_dict()["stages"][1]["distillation"]["temperature_scheduler"]
        assert {key: written[key] for key in ("name", "beta", "gamma")} == {"name": "flsw", "beta": 1, "gamma": 2}
    assert DistillationConfig(temperature_scheduler=["flsw", 1, 2]).to_dict()["temperature_scheduler"] == ["flsw", 1, 2]


def test_a_projection_is_read_in_all_of_its_forms():
    listed = IntermediateMatch(**MATCH, proj=["linear", 312, 768, {"lr": 0.001}])
    assert (listed.proj.name, listed.proj_dims, listed.proj_optimizer) == ("linear", (312, 768), {"lr": 0.001})
    assert IntermediateMatch(**MATCH, proj=["linear", 312, 768]).proj_optimizer is None
    assert IntermediateMatch(**MATCH, proj=["linear", 312, 768], proj_optimizer={"lr": 1}).proj_optimizer == {"lr": 1}
    for form in ("linear", {"name": "linear"}):
        assert (IntermediateMatch(**MATCH, proj=form).proj.name, IntermediateMatch(**MATCH, proj=form).proj_dims) == (
            "linear",
            None,
        )


@pytest.mark.parametrize("proj", [["linear"], ["linear", 312], ["linear", "312", 768], ["linear", 1, 2, {}, 3], 5])
def test_another_form_of_a_projection_is_refused(proj):
    config = {"intermediate_matches": [{**MATCH, "proj": proj}]}
    assert problems_of(DistillationConfig.from_dict, config) == [
        f"intermediate_matches[0].proj: {json.dumps(proj)} names no projection; expected "
        '"linear", {"name": "linear"} or ["linear", student_dim, teacher_dim, optimizer group]'
    ]


@pytest.mark.parametrize(
    ("key", "proj", "value"),
    [("proj_dims", ["linear", 312, 768], [1, 2]), ("proj_optimizer", ["linear", 312, 768, {"lr": 1}], {"lr": 2})],
)
def test_what_a_list_gives_is_not_given_again(key, proj, value):
    config = {"intermediate_matches": [{**MATCH, "proj": proj, key: value}]}
    assert problems_of(DistillationConfig.from_dict, config) == [
        f"intermediate_matches[0]: {key} is given twice, in the list of proj too"
    ]


def test_layers_are_a_number_or_several():
    pair = IntermediateMatch(**{**MATCH, "layer_T": [0, 4], "layer_S": [0, 2]})
    assert (pair.layer_T, pair.layer_S) == ((0, 4), (0, 2))
    for layer in ("2", 2.0, True, []):
        assert problems_of(DistillationConfig.from_dict, {"intermediate_matches": [{**MATCH, "layer_T": layer}]}) == [
            f"intermediate_matches[0].layer_T: expected a layer such as 3, or several such as [3, 4], not {json.dumps(layer)}"
        ]


# Frozen


def test_assigning_to_a_config_says_how_to_get_another():
    config = DistillationConfig()
    with pytest.raises(ReadOnlyError) as caught:
        config.temperature = 8
    assert str(caught.value) == (
        "DistillationConfig is frozen; in place of assigning `temperature`, build a new one: "
        "config.model_copy(update={'temperature': ...}) or DistillationConfig(..., temperature=...)."
    )
    assert config.temperature == 4


def test_mappings_in_a_config_cannot_be_written_to():
    options = DistillationConfig(kd_loss_type={"name": "kl", "t_squared": True}).kd_loss_type.options
    run = parse_run_config(document(), "config.json")
    for mapping in (options, run.data, run.models, run.models["teacher"].options["config"]):
        for change in (
            lambda m: m.update(x=1),
            lambda m: m.__setitem__("x", 1),
            lambda m: m.clear(),
            lambda m: m.pop("x"),
        ):
            with pytest.raises(ReadOnlyError) as caught:
                change(mapping)
        assert str(caught.value) == "this mapping belongs to a config and is read-only; build a new config instead."


def test_lists_are_stored_as_tuples_and_the_callers_values_are_never_kept():
    given = document(baselines=["labels_only"])
    before = json.dumps(given)
    config = parse_run_config(given, "config.json")
    written = config.to_dict()

    given["models"]["teacher"]["config"]["hidden_size"] = 999
    given["data"]["films"]["source"]["path"]["train"] = "other.csv"
    given["stages"][1]["teachers"].append("student")
    given["baselines"].clear()

    assert config.to_dict() == written
    assert (config.baselines, config.stages[1].train) == (("labels_only",), ("films",))
    assert json.dumps(document(baselines=["labels_only"])) == before


def test_the_callers_matches_are_never_kept():
    match = {**MATCH, "layer_T": [3, 4], "layer_S": [1, 2], "proj_optimizer": {"betas": [0.9, 0.99]}}
    config = DistillationConfig(intermediate_matches=[match])
    match["layer_T"].append(5)
    match["proj_optimizer"]["betas"].append(1)
    (kept,) = config.matches
    assert (kept.layer_T, kept.proj_optimizer) == ((3, 4), {"betas": (0.9, 0.99)})


# There and back


def every_config():
    distillation = DistillationConfig(
        temperature=8,
        temperature_scheduler=["flsw", 1, 2],
        kd_loss_type={"name": "kl", "t_squared": True},
        intermediate_matches=[{**MATCH, "proj": ["linear", 312, 768, {"lr": 0.001}]}, {**MATCH, "layer_T": [3, 4]}],
    )
    run = parse_run_config(document(baselines=["labels_only"]), "config.json")
    return [distillation, TrainingConfig(2, log_dir="logs"), run]


@pytest.mark.parametrize("config", every_config(), ids=lambda config: type(config).__name__)
def test_configs_go_through_json_files_and_pickle(config, tmp_path):
    file = write_config(tmp_path, config.to_dict())
    assert type(config).from_dict(config.to_dict()) == config
    assert type(config).from_json_file(file) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


def test_a_resolved_config_names_every_option(registry):
    stage = distill(distillation={"temperature_scheduler": ["cwsm", 3], "kd_loss_type": "ce"})
    config = parse_run_config(document(stages=[supervised(), stage]), "config.json", registry)
    resolved = config.to_dict()
    scheduler = resolved["stages"][1]["distillation"]["temperature_scheduler"]
    assert (scheduler["name"], scheduler["beta"]) == ("cwsm", 3)
    assert set(scheduler) > {"name", "beta"}
    assert parse_run_config(resolved, "config.json", registry) == config


def test_callables_stand_in_for_names_and_are_not_read_back():
    config = DistillationConfig(
        kd_loss_type=my_loss, intermediate_matches=[{**MATCH, "loss": my_loss, "proj": my_loss}]
    )
    assert config.kd_loss_type.implementation is my_loss
    written = config.to_dict()
    assert written["kd_loss_type"] == {"callable": f"{__name__}:my_loss"}
    assert problems_of(DistillationConfig.from_dict, written) == [
        f"{path}: '{__name__}:my_loss' was passed in Python; pass it again or make it a plugin"
        for path in ("kd_loss_type", "intermediate_matches[0].loss", "intermediate_matches[0].proj")
    ]


def test_a_run_config_takes_no_callables():
    config = document(models={"teacher": {"name": "hf"}, "student": "hf"})
    config["stages"][1]["distillation"] = DistillationConfig(intermediate_matches=[{**MATCH, "loss": my_loss}])
    assert problems_of(parse_run_config, config, "config.json") == [
        "stages[1].distillation: 'my_loss' is passed in Python; a run knows names alone, so make it a plugin"
    ]
    assert run_problems(models={"teacher": my_loss})[0].startswith('models.teacher: "<function my_loss')


def test_configs_import_no_torch():
    script = "import brewer_core.config, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


# Every problem at once


def test_every_problem_of_shape_names_and_options_is_told_at_once(registry):
    stage = distill(
        teachers=["techer"],
        train=["film"],
        distillation={
            "temperature": -1,
            "kd_loss_type": {"name": "kl", "tsquared": True},
            "intermediate_matches": [{**MATCH, "loss": "hidden_ms"}],
        },
        training=training(epochs=1, optimiser={}),
    )
    found = run_problems(
        registry,
        sed=3,
        precision="bf32",
        models={"teacher": {"name": "hff"}, "student": bert(8, 1)},
        stages=[supervised(), stage],
        evaluation={"data": "films", "metrics": [{"name": "f1", "average": "mcro"}]},
    )
    assert sorted(found) == [
        "evaluation.metrics[0].average: input should be 'macro', 'micro', 'weighted' or 'binary', not \"mcro\"",
        "models.teacher: no model is called 'hff'; did you mean 'hf'? Known: hf",
        "precision: input should be 'no', 'bf16' or 'fp16', not \"bf32\"",
        "sed: unknown key; did you mean 'seed'?",
        "stages[1].distillation.intermediate_matches[0].loss: no match loss is called 'hidden_ms'; did you mean "
        f"'hidden_mse'? Known: {', '.join(registry.names('match_loss'))}",
        "stages[1].distillation.kd_loss_type.tsquared: the kd loss `kl` has no such option",
        "stages[1].distillation.temperature: input should be greater than 0, not -1",
        "stages[1].teachers[0]: no model is called 'techer'; did you mean 'teacher'?",
        "stages[1].train[0]: no data is called 'film'; did you mean 'films'?",
        "stages[1].training.optimiser: unknown key; did you mean 'optimizer'?",
        "stages[1].training: expected one of epochs and steps",
    ]


def test_several_problems_stand_one_a_line_under_their_source():
    with pytest.raises(ConfigError) as caught:
        parse_run_config(document(seed=-1, sed=1), "runs/my.json")
    assert str(caught.value) == (
        "runs/my.json: 2 problems\n"
        "  seed: input should be greater than or equal to 0, not -1\n"
        "  sed: unknown key; did you mean 'seed'?"
    )


def test_names_and_options_are_checked_with_a_registry_alone(registry):
    nonsense = {"name": "no_such_loss", "no_such_option": [1, {"x": None}]}
    config = document(stages=[supervised(), distill(distillation={"kd_loss_type": nonsense})])
    kept = parse_run_config(config, "config.json").stages[1].distillation.kd_loss_type
    assert kept == ComponentRef("kd_loss", "no_such_loss", {"no_such_option": (1, {"x": None})})
    (problem,) = problems_of(parse_run_config, config, "config.json", registry)
    assert problem.startswith("stages[1].distillation.kd_loss_type: no kd loss is called 'no_such_loss'. Known: ")


@pytest.mark.parametrize(
    ("make", "arguments", "problem"),
    [
        (
            DistillationConfig,
            {"temprature": 2},
            "temprature: unknown key; did you mean 'temperature' or 'temperature_scheduler'?",
        ),
        (DistillationConfig, {"temperature": "4"}, 'temperature: input should be a valid number, not "4"'),
        (DistillationConfig, {"temperature": True}, "temperature: input should be a valid number, not true"),
        (DistillationConfig, {"temperature": 0}, "temperature: input should be greater than 0, not 0"),
        (DistillationConfig, {"probability_shift": 1}, "probability_shift: input should be a valid boolean, not 1"),
        (
            DistillationConfig,
            {"kd_loss_type": None},
            'kd_loss_type: null names no kd loss; expected a name or {"name": ..., options}',
        ),
        (
            DistillationConfig,
            {"kd_loss_type": ""},
            'kd_loss_type: "" names no kd loss; expected a name or {"name": ..., options}',
        ),
        (
            DistillationConfig,
            {"kd_loss_type": []},
            "kd_loss_type: an empty list names no kd loss; with kd_loss_weight 0 none is computed",
        ),
        (
            DistillationConfig,
            {"kd_loss_type": [[]]},
            'kd_loss_type[0]: [] names no kd loss; expected a name or {"name": ..., options}',
        ),
        (
            DistillationConfig,
            {"kd_loss_type": {"t_squared": True}},
            'kd_loss_type: a mapping needs a "name", that of a kd loss',
        ),
        (DistillationConfig, {"intermediate_matches": {}}, "intermediate_matches: input should be a list, not {}"),
        (
            DistillationConfig,
            {"intermediate_matches": [3]},
            "intermediate_matches[0]: input should be an object, not 3",
        ),
        (TrainingConfig, {"ckpt_frequency": 0}, "ckpt_frequency: input should be greater than 0, not 0"),
        (TrainingConfig, {"ckpt_steps": 1.5}, "ckpt_steps: input should be a valid integer, not 1.5"),
        (TrainingConfig, {"output_dir": None}, "output_dir: input should be a valid string, not null"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_path(make, arguments, problem):
    assert problems_of(make, **arguments) == problems_of(make.from_dict, arguments) == [problem]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(number):
    refused = f"every number in it should be finite, not {number}"
    assert problems_of(DistillationConfig, temperature=number)[0].startswith(
        "temperature: input should be a finite number"
    )
    for scheduler in (["flsw", number, 2], {"name": "flsw", "beta": [{"x": number}]}):
        assert problems_of(DistillationConfig, temperature_scheduler=scheduler) == [f"temperature_scheduler: {refused}"]
    match = {**MATCH, "proj_optimizer": {"lr": number}}
    assert problems_of(DistillationConfig, intermediate_matches=[match]) == [
        f"intermediate_matches[0].proj_optimizer: {refused}"
    ]


def test_huge_integers_are_refused():
    huge = 10**40
    steps = training(steps=huge)
    assert run_problems(seed=huge, stages=[supervised(training=steps)]) == [
        f"seed: input should be less than 4294967296, not {huge}",
        f"stages[0].training.steps: input should be less than 2147483648, not {huge}",
    ]
    assert problems_of(DistillationConfig, temperature=10**400)[0].startswith("temperature: input should be a")


def test_the_schema_key_of_editors_is_accepted():
    config = parse_run_config({"$schema": "run.schema.json", **document()}, "config.json")
    assert config.to_dict()["$schema"] == "run.schema.json"
    assert parse_run_config(config.to_dict(), "config.json") == config


def test_another_version_of_the_format_is_refused():
    assert run_problems(schema_version=2) == ["schema_version: input should be 1, not 2"]


def test_a_config_that_is_no_object_is_refused():
    assert problems_of(parse_run_config, [document()], "config.json") == [
        'expected an object with keys such as "data", "models" and "stages", not list'
    ]


# References between the parts of a run config


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        (
            {"stages": [supervised(model="studnt")]},
            ["stages[0].model: no model is called 'studnt'; did you mean 'student'?"],
        ),
        ({"stages": [supervised(model="x")]}, ["stages[0].model: no model is called 'x'; known: teacher, student"]),
        (
            {"stages": [distill(student="pupil")]},
            ["stages[0].student: no model is called 'pupil'; known: teacher, student"],
        ),
        (
            {"stages": [distill(unlabelled=["film.train"])]},
            ["stages[0].unlabelled[0]: no data is called 'film'; did you mean 'films'?"],
        ),
        (
            {"evaluation": {"data": "films.eval", "test": "tests"}},
            ["evaluation.test: no data is called 'tests'; known: films"],
        ),
        (
            {"stages": [distill(teachers=["teacher", {"model": "student"}])]},
            ["stages[0].teachers[1]: 'student' is the student itself; name another model"],
        ),
        (
            {"stages": [supervised(), supervised()]},
            ["stages[1].name: 'teacher' is the name of stages[0] already; give each stage its own"],
        ),
        (
            {"stages": [supervised(name="../up")]},
            ["stages[0].name: '../up' becomes a folder's name; use letters, digits, - and _, beginning with a letter"],
        ),
        (
            {"stages": [supervised(training=training(epochs=1))]},
            ["stages[0].training: expected one of epochs and steps"],
        ),
        ({"stages": [supervised(training={})]}, ["stages[0].training: expected one of epochs and steps"]),
        (
            {"stages": [supervised()], "baselines": ["labels_only"]},
            ["baselines: labels_only needs a distill stage at the end, whose student it trains"],
        ),
        (
            {"stages": [distill(kind="distil")], "baselines": ["labels_only"]},
            ["stages[0].kind: input should be 'supervised' or 'distill', not \"distil\""],
        ),
        ({"stages": [{"name": "x"}]}, ["stages[0].kind: is required"]),
        ({"stages": [distill(teachers=[])]}, ["stages[0].teachers: is empty; name at least one"]),
        ({"stages": []}, ["stages: is empty; name at least one"]),
        ({"stages": {}}, ["stages: input should be a list, not {}"]),
        (
            {"stages": 3, "evaluation": None},
            ["stages: input should be a list, not 3", "evaluation: input should be an object, not null"],
        ),
        (
            {"data": {"films": {"source": "csv", "text": ["one"]}}},
            ['data.films.text: expected a column, or a list of two columns for a pair of texts, not ["one"]'],
        ),
        (
            {"data": {"films": {"source": "csv", "select": {"rows": 3, "share": 0.5}}}},
            ["data.films.select: expected one of rows and share"],
        ),
        (
            {"task": {"kind": "regression"}},
            ["task.kind: input should be 'text_classification' or 'causal_lm', not \"regression\""],
        ),
        ({"tokenizer": {"form": "train"}}, ["tokenizer.form: unknown key; did you mean 'from'?"]),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, problems):
    assert run_problems(**changes) == problems


def test_two_stages_may_train_one_model():
    config = parse_run_config(document(stages=[supervised(), supervised(name="longer-1")]), "config.json")
    assert [stage.model for stage in config.stages] == ["teacher", "teacher"]


# Files


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"seed": 1\n "data": 2}',
            "line 2, column 2: not JSON (Expecting ',' delimiter); check for a missing comma or quote there",
        ),
        ("", "line 1, column 1: not JSON (Expecting value); check for a missing comma or quote there"),
        (
            "{'seed': 1}",
            "line 1, column 2: not JSON (Expecting property name enclosed in double quotes); check for a missing comma or quote there",
        ),
        ('{"seed": NaN}', "not JSON that can be read: NaN is not a JSON number"),
        ('{"models": {"a": 1, "a": 2}}', "not JSON that can be read: the key 'a' is there twice in one object"),
        (
            '{"seed": ' + "1" * 5000 + "}",
            "not JSON that can be read: Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=["comma", "empty", "quotes", "nan", "twice", "digits", "deep"],
)
@pytest.mark.parametrize("read", [load_run_config, DistillationConfig.from_json_file, TrainingConfig.from_json_file])
def test_a_file_that_is_no_json_is_refused_with_the_place(read, text, problem, tmp_path):
    file = write_config(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert str(caught.value) == f"{file}: {problem}"


def test_json_of_any_depth_is_refused_without_a_crash(tmp_path):
    for depth in (300, 900):
        file = write_config(tmp_path, '{"models": {"m": ' * depth + "1" + "}}" * depth)
        with pytest.raises(ConfigError):
            load_run_config(file)
    deep = "[" * 400 + "]" * 400
    file = write_config(tmp_path, json.dumps(document()).replace('"films": {', f'"films": {{"text": {deep}, ', 1))
    with pytest.raises(ConfigError):
        load_run_config(file, ["seed=1"])


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    assert problems_of(load_run_config, tmp_path / "no.json") == ["there is no such file"]
    assert problems_of(load_run_config, tmp_path) == [
        f"the file cannot be read: [Errno 21] Is a directory: '{tmp_path}'"
    ]
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    assert problems_of(load_run_config, tmp_path / "x.json") == [
        "the file cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    ]


# --set


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("seed = 3", ("seed ",), 3),
        ("stages.1.training.steps=7", ("stages", 1, "training", "steps"), 7),
        ("stages[1].name=x", ("stages", 1, "name"), "x"),
        ('data.films.select={"share": 0.5}', ("data", "films", "select"), {"share": 0.5}),
        ("models.teacher.path=a=b", ("models", "teacher", "path"), "a=b"),
        ("stages.0.training.max_grad_norm=null", ("stages", 0, "training", "max_grad_norm"), None),
        ("precision=bf16", ("precision",), "bf16"),
        ("output=", ("output",), ""),
        ("new.keys.are.made=true", ("new", "keys", "are", "made"), True),
        ("seed=NaN", ("seed",), "NaN"),
        ('seed="3"', ("seed",), "3"),
    ],
)
def test_a_setting_goes_through_objects_and_lists(setting, path, value):
    given = document()
    changed = override(given, [setting])
    assert given == document()
    for step in path:
        changed = changed[step]
    assert changed == value


def test_settings_are_applied_in_order_and_before_the_one_validation(registry):
    settings = ["stages.1.training={}", "stages.1.training.epochs=2", "sed=1", 'evaluation.metrics=["acuracy"]']
    assert problems_of(parse_run_config, document(), "config.json", registry, settings) == [
        f"evaluation.metrics[0]: no metric is called 'acuracy'; did you mean 'accuracy'? Known: {', '.join(registry.names('metric'))}",
        "sed: unknown key; did you mean 'seed'?",
    ]
    config = parse_run_config(document(), "config.json", registry, settings[:2])
    assert (config.stages[1].training.epochs, config.stages[1].training.steps) == (2, None)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("seed", "expected path.to.field=value, such as stages.0.training.steps=100."),
        ("=3", "expected path.to.field=value, such as stages.0.training.steps=100."),
        ("stages.2.name=x", "stages is a list; expected a number from 0 to 1, not '2'."),
        ("stages.-1.name=x", "stages is a list; expected a number from 0 to 1, not '-1'."),
        ("stages.teacher.name=x", "stages is a list; expected a number from 0 to 1, not 'teacher'."),
        ("trackers.0=tensorboard", "trackers is an empty list; give it whole, such as trackers=[...]."),
        ("stages.0.model.path=x", "stages.0.model is \"teacher\", which has no 'path' in it."),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(setting, error):
    with pytest.raises(RequestError) as caught:
        override(document(), [setting])
    assert str(caught.value) == f"--set {setting}: {error}"
    assert caught.value.exit_status == 2


def test_the_keys_of_a_run_config_are_those_of_its_json():
    assert (RunConfig(**document(seed=7)).seed, RunConfig(**document()).tokenizer.source) == (7, "train")
    assert run_problems(tokenizer={"source": "train"}) == [
        "tokenizer.source: unknown key; known: from, max_length, vocab_size"
    ]
