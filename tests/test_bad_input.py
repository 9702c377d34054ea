"""Bad input to `brewer run`: one sentence that says what is wrong and where, the right status, and nothing overwritten."""

from __future__ import annotations

import os
import socket
from importlib import metadata

import pytest

from brewer_core.run.folder import RunFolder
from fakes import fake_distribution
from runs import (
    bert,
    brewer,
    distill,
    document,
    films,
    labelled,
    read,
    supervised,
    training,
    tree,
    unlabelled,
    write_config,
    write_csv,
)

pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

MATCH = {"layer_T": 2, "layer_S": 1, "weight": 1, "loss": "hidden_mse", "feature": "hidden"}
FILMS = document()["data"]["films"]
SEE_WHERE = "(run again with --traceback to see where)"


@pytest.fixture
def folder(tmp_path):
    return films(tmp_path)


@pytest.fixture
def refused(folder, capsys):
    """What the command answers to a faulty request, which leaves every file as it was and makes none."""

    def answer(*options, **changes):
        config = write_config(folder, document(**changes))
        before = tree(folder)
        status = brewer("run", config, "--output", folder / "out", *options)
        captured = capsys.readouterr()
        assert (status, captured.out, tree(folder)) == (2, "", before)
        assert not (folder / "out").exists()
        text = captured.err.removeprefix("checking data and models\n")
        assert text.startswith("brewer: error: ")
        assert text.endswith("\n")
        return text.removeprefix("brewer: error: ").removesuffix("\n")

    return answer


def only_distill(**more):
    return {"stages": [distill(**more)]}


def matching(**match):
    return only_distill(distillation={"intermediate_matches": [{**MATCH, **match}]})


def teaching(**distillation):
    return only_distill(distillation=distillation)


# The request


def test_a_config_that_is_not_there(tmp_path, capsys):
    assert brewer("run", tmp_path / "no.json") == 2
    assert capsys.readouterr().err == f"brewer: error: {tmp_path}/no.json: there is no such file\n"


def test_a_word_that_names_no_packaged_config(capsys):
    assert brewer("run", "quikstart") == 2
    assert capsys.readouterr().err == (
        "brewer: error: no config ships under the name 'quikstart' (there are quickstart, quickstart-scratch); a path to your "
        "own has a . or a / in it.\n"
    )


def test_malformed_json(tmp_path, capsys):
    file = write_config(tmp_path, '{\n  "seed": 1\n  "data": {}\n}')
    assert brewer("run", file) == 2
    assert capsys.readouterr().err == (
        f"brewer: error: {file}: line 3, column 3: not JSON (Expecting ',' delimiter); check for a missing comma or quote there\n"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sead": 1}, "sead: unknown key; did you mean 'seed'?"),
        ({"seed": "1"}, 'seed: input should be a valid integer, not "1"'),
        (
            {"trackers": ["tensorbord"]},
            "trackers[0]: no tracker is called 'tensorbord'; did you mean 'tensorboard'? Known: jsonl, tensorboard, wandb",
        ),
        (
            only_distill(strategy="supervsed"),
            "stages[0].strategy: no strategy is called 'supervsed'; did you mean 'supervised'? Known: emd, general, multi_task, "
            "multi_teacher, pkd, supervised",
        ),
        (
            only_distill(distillation={"kd_loss_type": {"name": "kl", "t_square": True}}),
            "stages[0].distillation.kd_loss_type.t_square: the kd loss `kl` has no such option",
        ),
        (
            {"data": {"films": {"source": {"name": "csv"}}}},
            "data.films.source.path: the dataset `csv` requires this option",
        ),
        (
            {"data": {"films": {"source": {"name": "csv", "path": "a.csv", "delimiter": ";;"}}}},
            'data.films.source.delimiter: string should have at most 1 character, not ";;"',
        ),
    ],
)
def test_a_config_with_a_wrong_key_type_name_or_option(refused, folder, changes, problem):
    assert refused(**changes) == f"{folder}/config.json: {problem}"


def test_several_problems_are_told_at_once(refused, folder):
    assert refused("--set", "seed=-1", sead=1) == (
        f"{folder}/config.json: 2 problems\n"
        "  seed: input should be greater than or equal to 0, not -1\n"
        "  sead: unknown key; did you mean 'seed'?"
    )


def test_settings_devices_and_plugins_that_do_not_exist(refused, folder):
    assert refused("--set", "seed") == (
        "--set seed: expected path.to.field=value, such as stages.0.training.steps=100."
    )
    for device in ("gpu", "cuda:99"):
        assert refused("--device", device) == (
            f"device {device!r} cannot be used here; expected auto, cpu, cuda or cuda:N on a machine that has it."
        )
    assert refused("--plugin", folder / "no.py") == f"plugin file {folder}/no.py does not exist."
    assert refused("--disable", "brewer-core:adapters").startswith(
        "cannot disable 'brewer-core:adapters': no plugin is called that; did you mean 'brewer-core:adaptors'"
    )


def test_half_precision_on_a_cpu(refused):
    assert refused("--device", "cpu", precision="fp16") == (
        "precision fp16 needs a GPU; on a CPU use bf16, or no mixed precision."
    )


# Models


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            matching(layer_T=9),
            "stages[0].distillation.intermediate_matches[0].layer_T: the teacher has 3 layers of 'hidden', 0 to 2; there is no 9",
        ),
        (
            matching(layer_S=-3),
            "stages[0].distillation.intermediate_matches[0].layer_S: the student has 2 layers of 'hidden', 0 to 1; there is no -3",
        ),
        (
            matching(),
            "stages[0].distillation.intermediate_matches[0]: student is 8 wide and teacher 16; give the match a projection",
        ),
        (
            matching(feature="hiden"),
            "2 problems\n"
            "  stages[0].distillation.intermediate_matches[0].feature: the student's adaptor returns no 'hiden'; it returns logits, "
            "inputs_mask, labels, losses, and its BertForSequenceClassification has embeddings, hidden[0..1], attention[0], scores[0], "
            "query[0], key[0], value[0], pooled; did you mean 'hidden'?\n"
            "  stages[0].distillation.intermediate_matches[0].feature: the teacher's adaptor returns no 'hiden'; it returns logits, "
            "inputs_mask, labels, losses, and its BertForSequenceClassification has embeddings, hidden[0..2], attention[0..1], "
            "scores[0..1], query[0..1], key[0..1], value[0..1], pooled; did you mean 'hidden'?",
        ),
        (
            matching(loss="fsp"),
            "stages[0].distillation.intermediate_matches[0]: the student gives a single layer and this loss needs two "
            "layers; name them in a list, such as [0, 1]",
        ),
        (
            matching(loss={"name": "score_matrix_kl", "matryoshka_dims": [4], "matryoshka_weights": [1, 2]}),
            "stages[0].distillation.intermediate_matches[0]: matryoshka_weights: there are 2, and 1 matryoshka_dims; give one for each",
        ),
        (
            teaching(kd_loss_type={"name": "jsd", "beta": 0}),
            "stages[0].distillation.kd_loss_type: jsd: at beta 0 the loss is 0 for every student; set normalise to true, which makes it "
            "the forward KL divergence there, or beta to a number between 0 and 1",
        ),
        (
            teaching(kd_loss_type=["kl", {"loss": {"name": "dkd", "alpha": 0, "beta": 0}}]),
            "stages[0].distillation.kd_loss_type[1]: dkd: with alpha 0 and beta 0 the loss is 0 for every student; give one of them a "
            "weight",
        ),
        (
            {"tokenizer": {"from": "train", "max_length": 600}},
            "tokenizer.max_length: model 'teacher' takes 512 tokens at most, not 600",
        ),
        (
            {"tokenizer": {"from": "teacher"}},
            "models.teacher: a model from `config` needs the run's tokenizer for its vocabulary; let "
            '`tokenizer.from` name a folder, or "train"',
        ),
        (
            {"models": {"teacher": bert(16, 2, vocab_size=3), "student": bert(8, 1)}},
            "models.teacher: config.vocab_size is 3, and the tokenizer has 80 entries; leave it out",
        ),
        (
            {"models": {"teacher": bert(16, 2), "student": {"name": "hf", "keep_layers": [2]}}},
            "models.student: `keep_layers` names layer 2, and the teacher has 2 layers, 0 to 1",
        ),
        (
            {"models": {"teacher": bert(15, 2), "student": bert(8, 1)}},
            "models.teacher: no bert model can be made of this config (The hidden size (15) is not a multiple of "
            "the number of attention heads (2))",
        ),
        (
            {"models": {"teacher": {"name": "hf"}, "student": bert(8, 1)}},
            "models.teacher: give exactly one of `path`, `distribution`, `config`, `keep_layers` and `from_teacher`; none given",
        ),
        (
            {"evaluation": {"data": "films", "best": {"metric": "f1"}}},
            "evaluation.best.metric: no metric gives 'f1'; known: accuracy",
        ),
        (
            {"cache": "../kept", "fsdp": ["teachers"]},
            "cache.path: teacher 'teacher' cannot be cached, as all processes ask teachers in parts together, and each would ask only "
            "about rows that are new to it",
        ),
    ],
)
def test_a_config_that_does_not_fit_its_models(refused, changes, problem):
    assert refused(**changes) == f"config: {problem}"


def test_a_model_or_a_tokenizer_that_is_not_there(refused, folder):
    missing = {"teacher": {"name": "hf", "path": "./models/no"}, "student": bert(8, 1)}
    assert refused(models=missing) == (
        f"config: models.teacher: path './models/no': there is no folder {folder}/models/no"
    )
    assert refused(tokenizer={"from": "./no"}) == (
        f'config: tokenizer.from: there is no folder {folder}/no; give a folder, "teacher" or "train"'
    )


def test_problems_of_models_and_data_are_told_at_once(refused):
    models = {"teacher": bert(15, 2), "student": bert(8, 1)}
    assert refused(models=models, evaluation={"data": "films.tst"}) == (
        "config: 2 problems\n"
        "  models.teacher: no bert model can be made of this config (The hidden size (15) is not a multiple of the number of "
        "attention heads (2))\n"
        "  evaluation.data: data 'films' has no split 'tst'; it has train, transfer, eval"
    )


def test_a_teacher_with_another_vocabulary(refused, folder, capsys):
    former = document(stages=[supervised()], output="former", tokenizer={"from": "train", "vocab_size": 40})
    assert brewer("run", write_config(folder, former)) == 0
    capsys.readouterr()
    models = {"teacher": {"name": "hf", "path": "former/student"}, "student": bert(8, 1)}
    text = refused(models=models, stages=[distill()])
    assert text == (
        f"config: models.teacher: {folder}/former/student was trained with another vocabulary (59 entries) than the run's "
        "tokenizer has (80); use its tokenizer, or a model from `config` or `keep_layers`"
    )


# Data


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"data": {"films": {**FILMS, "text": "txt"}}},
            "data.films.train.text: no column 'txt'; did you mean 'text'? Columns: text, label",
        ),
        (
            {"data": {"films": {**FILMS, "label": "stars"}}},
            "data.films.train.label: no column 'stars'. Columns: text, label",
        ),
        (
            {"data": {"films": {**FILMS, "label": None}}},
            "the labelled rows have no class; classification needs two or more",
        ),
        (
            {"data": {"films": {**FILMS, "text": ["text", "label"]}}},
            "data.films.text: expected one column, as task.pair is false",
        ),
        ({"task": {"pair": True}}, "data.films.text: expected two columns, as task.pair is true"),
        (
            {"data": {"films": {**FILMS, "select": {"rows": 13}}}},
            "data.films.select.rows: transfer has 12 rows, fewer than 13",
        ),
        (
            {"evaluation": {"data": "films.tst"}},
            "evaluation.data: data 'films' has no split 'tst'; it has train, transfer, eval",
        ),
        (
            {"evaluation": {"data": "films", "test": "films.tst"}},
            "evaluation.test: data 'films' has no split 'tst'; it has train, transfer, eval",
        ),
        (
            {"stages": [supervised(train=["films.tst"])]},
            "stages[0].train[0]: data 'films' has no split 'tst'; it has train, transfer, eval",
        ),
        (
            only_distill(unlabelled=["films.more"]),
            "stages[0].unlabelled[0]: data 'films' has no split 'more'; it has train, transfer, eval",
        ),
        (
            {"evaluation": {"data": "films.transfer"}},
            "data.films: row 1 of transfer has no label; evaluation needs one in each row",
        ),
        (
            {"stages": [supervised(train=["films.transfer"])], "task": {"labels": ["n", "p"]}},
            "stages[0].train: no row has a label, so there is nothing to learn from",
        ),
    ],
)
def test_data_that_do_not_fit_the_config(refused, changes, problem):
    assert refused(**changes) == f"config: {problem}"


def test_files_of_data_that_are_missing_or_empty(refused, folder):
    def source(path):
        return {"films": {"source": {"name": "csv", "path": path}}}

    (folder / "header.csv").write_text("text,label\n")
    (folder / "empty.csv").write_text("")
    write_csv(folder / "alike.csv", [{"text": "a", "label": "p"}] * 4)
    assert refused(data=source("no.csv")) == (
        f"config: data.films: {folder}/no.csv: no such file; paths are relative to the config's folder, {folder}"
    )
    assert refused(data=source("header.csv")) == (
        f"config: data.films: {folder}/header.csv: there are no rows; a data set needs one at least"
    )
    assert refused(data=source("empty.csv")) == (
        f"config: data.films: {folder}/empty.csv: this file is empty; it needs a header and a row for each text"
    )
    assert refused(data=source("alike.csv")) == (
        "config: the labelled rows have only the class 'p'; classification needs two or more"
    )


def test_a_label_outside_the_classes(refused, folder):
    write_csv(folder / "eval.csv", [*labelled(3), *unlabelled(1, label="q")])
    assert (
        refused() == "config: data.films.eval.label: row 4 has the label 'q', which is no class; the classes are n, p"
    )


# The output folder


def ran_before(folder):
    """A folder as a finished run leaves it, as far as refusals look."""
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "summary.json").write_text('{"mine": 1}')
    return folder


def test_a_folder_that_holds_another_run_is_not_overwritten(folder, capsys):
    out = ran_before(folder / "out")
    before = tree(folder) | {"config.json": write_config(folder).read_bytes()}
    for options in ([], ["--dry-run"]):
        assert brewer("run", folder / "config.json", "-o", out, *options) == 2
        assert capsys.readouterr().err == (
            f"brewer: error: output {out} holds a run already; choose another folder with --output, or --overwrite it.\n"
        )
    assert tree(folder) == before


def test_a_folder_that_holds_no_run_is_not_overwritten_even_on_request(folder, capsys):
    (folder / "mine").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "summary.json"):
        (folder / "mine" / name).write_text("mine")
    before = tree(folder / "mine")
    for options in ([], ["--overwrite"]):
        assert brewer("run", write_config(folder), "-o", folder / "mine", *options) == 2
        assert capsys.readouterr().err == (
            f"brewer: error: output {folder}/mine holds a.txt, b.txt, c.txt and more, and no run; choose an empty or new "
            "folder with --output.\n"
        )
    assert tree(folder / "mine") == before


def test_a_run_that_is_going_on_is_left_alone(folder, capsys):
    out = ran_before(folder / "out")
    with RunFolder.reopen(out):
        before = tree(out)
        assert brewer("run", write_config(folder), "-o", out, "--overwrite") == 2
        assert capsys.readouterr().err == (
            f"brewer: error: output {out} belongs to a run that is going on (process {os.getpid()} on "
            f"{socket.gethostname()}); choose another folder with --output.\n"
        )
        assert tree(out) == before


def test_the_lock_of_a_run_that_was_killed_is_no_hindrance(folder):
    out = ran_before(folder / "out")
    (out / "lock").write_text(f"{os.getppid()} {socket.gethostname()}\n")  # which nobody holds
    assert brewer("run", write_config(folder, document(stages=[supervised()])), "-o", out, "--overwrite") == 0
    assert not (out / "lock").exists()


def test_a_folder_that_cannot_be_written(folder, capsys):
    file = folder / "train.csv"
    config = write_config(folder)
    assert brewer("run", config, "-o", file) == 2
    assert capsys.readouterr().err == f"brewer: error: output {file} is a file; name a folder with --output.\n"
    assert brewer("run", config, "-o", file / "out") == 2
    assert capsys.readouterr().err == (
        f"brewer: error: output {file}/out cannot be written: {file} is not a folder that you may write to; choose another "
        "with --output.\n"
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, where not even root may make a folder")
def test_a_folder_that_the_system_refuses(folder, capsys):
    assert brewer("run", write_config(folder), "-o", "/proc/brewer/out") == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("brewer: error: output /proc/brewer/out cannot be written: ")
    )


# Plugins


def file_plugin(folder, text):
    (folder / "mine.py").write_text(f"from brewer_core import hookimpl\n{text}")
    return ["--plugin", folder / "mine.py"]


def test_a_plugin_file_that_fails(refused, folder):
    assert refused(*file_plugin(folder, "1 / 0")) == (
        f"plugin file {folder}/mine.py fails on import: ZeroDivisionError: division by zero."
    )
    assert refused(*file_plugin(folder, "def brewer_metrics(): ...")) == (
        f"plugin file {folder}/mine.py: module brewer_plugin_file_mine has no function marked with @hookimpl; nothing would "
        "be provided."
    )


def test_a_plugin_files_component_that_takes_a_name(refused, folder):
    ours = f"brewer-core {metadata.version('brewer-core')}"
    text = "@hookimpl\ndef brewer_metrics():\n    return {'accuracy': lambda predictions, references: 0.0}\n"
    assert refused(*file_plugin(folder, text)) == (
        f"config: metric `accuracy` is provided by {ours} [metrics] and by mine.py [brewer_plugin_file_mine]; disable "
        "one of them: --disable or BREWER_DISABLE_PLUGINS with brewer-core:metrics or mine.py:brewer_plugin_file_mine"
    )


@pytest.mark.filterwarnings("default")
def test_a_broken_plugin_is_warned_of_and_hinders_no_healthy_run(folder, monkeypatch, capsys):
    site = folder / "site"
    fake_distribution(site, "brewer-broken", "0.1", {"bad": "brewer_broken"}, {"brewer_broken.py": "1 / 0"})
    monkeypatch.syspath_prepend(site)
    assert brewer("run", write_config(folder, document(stages=[supervised()])), "-o", folder / "out") == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "brewer: warning: plugin brewer-broken:bad was left out: import of brewer_broken fails: ZeroDivisionError: division by zero"
    )
    (broken,) = [p for p in read(folder / "out/manifest.json")["plugins"] if p["status"] == "failed"]
    assert broken["distribution"] == "brewer-broken"


DATASET = """
def broken():
    raise ValueError("two\\nlines")

@hookimpl
def brewer_datasets():
    return {"broken": broken}
"""
MODEL = """
def broken():
    return 3

@hookimpl
def brewer_models():
    return {"broken": broken}
"""
STRATEGY = """
from brewer_core import Strategy

class Broken(Strategy):
    def terms(self, task, student, teachers, objective, step):
        if step.step > 0:
            raise KeyError("gone")
        return objective.kd_terms(student, teachers["teacher"], step)

@hookimpl
def brewer_strategies():
    return {"broken": Broken}
"""


def test_an_error_inside_a_plugin_before_training_is_one_line_and_nothing_is_written(folder, capsys):
    config = document(data={"films": {**FILMS, "source": "broken"}})
    assert brewer("run", write_config(folder, config), "-o", folder / "out", *file_plugin(folder, DATASET)) == 1
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"brewer: error: internal error: ValueError: two lines {SEE_WHERE}"
    ]
    assert not (folder / "out").exists()


def test_a_model_plugin_that_returns_no_model(refused, folder):
    models = {"teacher": "broken", "student": bert(8, 1)}
    assert refused(*file_plugin(folder, MODEL), models=models) == (
        "config: models.teacher: `broken` returned no LoadedModel"
    )


def test_an_error_inside_a_plugin_during_training_leaves_a_failed_run(folder, capsys):
    config = write_config(folder, document(stages=[distill(strategy="broken")]))
    arguments = ["run", config, "-o", folder / "out", *file_plugin(folder, STRATEGY)]
    assert brewer(*arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"brewer: error: internal error: KeyError: 'gone' {SEE_WHERE}"
    manifest = read(folder / "out/manifest.json")
    assert (manifest["status"], manifest["finished"] is None) == ("failed", False)
    assert {path.name for path in (folder / "out").iterdir()} == {
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "plugins",
    }
    assert brewer(*arguments) == 2  # a failed run is not overwritten either


def test_rows_that_fill_no_step_are_told_where_the_last_ones_are_dropped(folder, capsys):
    config = write_config(folder, document(stages=[supervised(training=training(batch_size=100, drop_last=True))]))
    assert brewer("run", config, "-o", folder / "out") == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("drop_last: 16 rows do not fill a step of 100; take a smaller step")
    )
    assert not (folder / "out").exists()


def test_a_loss_that_is_not_finite_fails_the_run(folder, capsys):
    wild = training(steps=50, optimizer={"name": "sgd", "learning_rate": 1e30})
    config = write_config(folder, document(stages=[supervised(training=wild)]))
    assert brewer("run", config, "-o", folder / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "brewer: error: optimizer step 2 of 50: the term `hard_label_loss` is not finite, in data.films.train rows 7, 13, 14, 15; "
        "training stopped before the step, and nothing was changed by it. Look for empty or extreme batches, lower the learning "
        "rate, clip with max_grad_norm, or raise the temperature."
    )
    assert read(folder / "out/manifest.json")["status"] == "failed"
    assert not (folder / "out/student").exists()
    assert not (folder / "out/lock").exists()


def test_the_strategy_general_refuses_a_second_teacher() -> None:
    from brewer_builtins.strategies import General
    from brewer_core import ModelInfo, RequestError

    with pytest.raises(RequestError) as caught:
        General().build(ModelInfo("s"), {"a": ModelInfo("a"), "b": ModelInfo("b")})

    assert str(caught.value) == (
        "the strategy `general` learns from one teacher, not from a, b; `multi_teacher` learns from several."
    )
