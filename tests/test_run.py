"""`brewer run`, from a config to a folder: what it writes, what it trains, and that the seed alone decides."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy
import pytest
import torch

from brewer_core.checkpoints import Checkpoints
from brewer_core.config import parse_run_config
from brewer_core.errors import Stopped
from brewer_core.listeners import Listener
from brewer_core.plugins import build_registry
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly
from brewer_core.run.lessons import distill_lesson
from brewer_core.run.library import packaged_config, packaged_names
from brewer_core.run.reporting import Reporter
from brewer_core.stopping import StopReason, StopRequest
from fakes import plugin
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
    weights_in,
    write_config,
    write_csv,
)
from tiny import assert_same

transformers = pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

PLUGIN = '''
from brewer_core import hookimpl

def first(predictions, references):
    """Whether the first row is right."""
    return float(predictions[0] == references[0])

@hookimpl
def brewer_metrics():
    return {"first": first}
'''
STILL = {"learning_rate": 1e-12, "weight_decay": 0.0}
PROJECTED = {"layer_T": 2, "layer_S": 1, "weight": 1, "loss": "hidden_mse", "feature": "hidden", "proj": "linear"}


@pytest.fixture(scope="session")
def registry():
    return build_registry()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run with all that a run can have: its config in `config.json`, its folder `out`."""
    folder = films(tmp_path_factory.mktemp("finished"))
    (folder / "train").mkdir()  # a folder of that name is no tokenizer: `tokenizer.from` says "train"
    (folder / "first_row.py").write_text(PLUGIN)
    distillation = {"kd_loss_type": "kl", "hard_label_weight": 1, "intermediate_matches": [PROJECTED]}
    last = training(steps=4, checkpoint_every_steps=1, keep_last=2, log_every_steps=2)
    config = document(
        output="out",
        stages=[supervised(), distill(distillation=distillation, training=last)],
        baselines=["labels_only"],
        evaluation={"data": "films", "metrics": ["accuracy", {"name": "f1", "average": "macro"}, "first"]},
        trackers=["tensorboard", "jsonl"],
    )
    assert brewer("run", write_config(folder, config), "--plugin", folder / "first_row.py") == 0
    return folder


@pytest.fixture
def run(tmp_path, registry):
    """Carries out a config on the usual films, with whatever plugins; gives the summary and the folder."""

    def carry_out(config, name="run", plugins=None, **options):
        if not (tmp_path / "train.csv").exists():
            films(tmp_path)
        known = registry.with_plugin(plugin(**plugins)) if plugins else registry
        file = write_config(tmp_path, config, f"{name}.json")
        return run_config(file, output=tmp_path / name, registry=known, **options), tmp_path / name

    return carry_out


def only_distill(**more):
    """A config without a stage for the teacher, which teaches as it was drawn."""
    return document(stages=[distill(**more)])


def lines_of(run_folder):
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


# The folder


def test_the_folder_holds_exactly_what_a_run_leaves(finished):
    out = finished / "out"
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "summary.json",
        "stages",
        "baselines",
        "plugins",
        "student",
    }
    assert {path.name for path in (out / "stages").iterdir()} == {"teacher", "distil"}
    assert {path.name for path in (out / "stages/teacher").iterdir()} == {"model", "tensorboard"}
    assert {path.name for path in (out / "stages/distil").iterdir()} == {"model", "tensorboard", "checkpoints"}
    assert {path.name for path in (out / "baselines").iterdir()} == {"labels_only"}
    assert {path.name for path in (out / "baselines/labels_only").iterdir()} == {"model", "tensorboard", "checkpoints"}


def test_the_latest_checkpoints_are_kept(finished):
    assert {path.name for path in (finished / "out/stages/distil/checkpoints").iterdir()} == {"step-3", "step-4"}


def test_every_line_of_metrics_has_a_stage_and_a_step(finished):
    lines = lines_of(finished / "out")
    assert [(line["stage"], line["step"]) for line in lines if "total_loss" in line] == [
        ("teacher", 3),
        ("distil", 2),
        ("distil", 4),
        ("baselines/labels_only", 2),
        ("baselines/labels_only", 4),
    ]
    assert [(line["stage"], line["step"]) for line in lines if "eval/accuracy" in line] == [
        ("teacher", 3),
        *(("distil", step) for step in (1, 2, 3, 4)),
        *(("baselines/labels_only", step) for step in (1, 2, 3, 4)),
    ]
    (terms,) = [set(line) for line in lines if line["stage"] == "distil" and line["step"] == 4 and "total_loss" in line]
    assert terms == {
        "stage",
        "step",
        "kd_loss",
        "hard_label_loss",
        "hidden_hidden_mse_1_2",
        "total_loss",
        "learning_rate",
        "steps_per_s",
    }


def test_the_summary_compares_teacher_student_and_baseline(finished):
    summary = read(finished / "out/summary.json")
    assert set(summary) == {
        "teacher",
        "teachers",
        "student",
        "baselines",
        "steps",
        "seed",
        "evaluated_on",
        "rows",
        "seconds",
    }
    assert (summary["steps"], summary["seed"], summary["evaluated_on"], summary["rows"]) == (4, 0, "films", 10)
    models = {"teacher": summary["teacher"], "student": summary["student"], **summary["baselines"]}
    assert {name: (model["model"], model["steps"]) for name, model in models.items()} == {
        "teacher": ("teacher", 3),
        "student": ("student", 4),
        "labels_only": ("student", 4),
    }
    for model in models.values():
        assert set(model["metrics"]) == {"accuracy", "f1", "first"}
        assert all(0 <= figure <= 1 for figure in model["metrics"].values())
        assert model["seconds"] >= 0
    assert models["student"]["parameters"] == models["labels_only"]["parameters"] < models["teacher"]["parameters"]
    assert models["student"]["parameters"] == sum(
        tensor.numel() for tensor in weights_in(finished / "out/student").values()
    )


def test_the_manifest_says_what_the_run_was_made_with(finished):
    manifest = read(finished / "out/manifest.json")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    assert (manifest["status"], manifest["seed"], manifest["device"]) == ("finished", 0, device)
    assert manifest["finished"] >= manifest["started"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert {p["distribution"] for p in manifest["plugins"]} >= {"brewer-core", "first_row.py"}
    used = {(c["kind"], c["name"]): c["distribution"] for c in manifest["components"]}
    assert used["metric", "first"] == "first_row.py"
    assert {name for kind, name in used if kind in ("kd_loss", "match_loss", "projection", "strategy")} == {
        "kl",
        "hidden_mse",
        "linear",
        "general",
    }


def test_a_plugin_file_is_copied_with_its_hash(finished):
    (copy,) = (finished / "out/plugins").iterdir()
    assert (copy.name, copy.read_text()) == ("first_row.py", PLUGIN)
    assert read(finished / "out/manifest.json")["plugin_files"] == {
        "first_row.py": hashlib.sha256(PLUGIN.encode()).hexdigest()
    }


def test_the_student_is_loaded_by_its_own_library(finished):
    student = finished / "out/student"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(student)
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    assert model.config.id2label == {0: "n", 1: "p"}
    with torch.no_grad():
        assert model.eval()(**tokenizer(["A good film"], return_tensors="pt")).logits.shape == (1, 2)
    assert tree(student) == tree(finished / "out/stages/distil/model")


def test_the_metrics_of_the_summary_are_those_of_the_saved_student(finished):
    student = finished / "out/student"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(student).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    right = 0
    for row in labelled(10):
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == row["label"]
    assert read(finished / "out/summary.json")["student"]["metrics"]["accuracy"] == pytest.approx(right / 10)


# The seed decides


@pytest.fixture(scope="session")
def again(finished, tmp_path_factory):
    """The resolved config of that run, carried out from another folder, with other global generators."""
    folder = tmp_path_factory.mktemp("again")
    torch.manual_seed(12345)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status = brewer("run", finished / "out/config.json", "-o", "out", "--plugin", finished / "first_row.py")
    assert status == 0
    return folder / "out"


def test_a_resolved_config_runs_from_anywhere_to_the_same_weights(finished, again):
    for model in ("student", "stages/teacher/model", "baselines/labels_only/model"):
        assert_same(weights_in(again / model), weights_in(finished / "out" / model))


def test_a_resolved_config_holds_absolute_paths_and_every_default(finished, again):
    config = read(finished / "out/config.json")
    assert config["data"]["films"]["source"]["path"] == {
        split: str(finished / f"{split}.csv") for split in ("train", "transfer", "eval")
    }
    assert (config["output"], config["tokenizer"]["from"]) == (str(finished / "out"), "train")
    assert config["stages"][0]["training"]["max_grad_norm"] == 1.0
    assert read(again / "config.json") == config


def test_equal_seeds_give_equal_students_and_others_give_others(run):
    first, second, other = (
        weights_in(run(document(seed=seed), name)[1] / "student") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same(first, second)
    name = "classifier.weight"
    assert not torch.equal(first[name], other[name])


def test_a_run_leaves_the_callers_generators_as_they_were(run):
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    run(only_distill(distillation={"intermediate_matches": [PROJECTED]}))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (numpy.random.get_state()[1] == states[2]).all()


# What is trained


def test_labels_of_unlabelled_rows_never_enter_a_loss(run, tmp_path):
    distillation = {"kd_loss_weight": 0, "hard_label_weight": 1}
    run(only_distill(distillation=distillation), "without")
    write_csv(tmp_path / "transfer.csv", unlabelled(12, label="p"))
    run(only_distill(distillation=distillation), "wrong")

    assert_same(weights_in(tmp_path / "without/student"), weights_in(tmp_path / "wrong/student"))
    losses = [[line["hard_label_loss"] for line in lines_of(tmp_path / name)[:1]] for name in ("without", "wrong")]
    assert losses[0] == losses[1]


def test_unlabelled_rows_are_taught_by_the_teacher(registry, tmp_path):
    films(tmp_path)
    config = parse_run_config(only_distill(), "config.json", registry)
    assembly = Assembly(config, tmp_path, registry, torch.device("cpu"))
    rows = assembly.training_set(config.stages[0], "stages[0]")
    assert rows.labels == [1, 0] * 8 + [-100] * 12
    assert assembly.training_set(config.stages[0], "stages[0]", labelled_only=True).labels == [1, 0] * 8
    assert sorted(rows[i]["row"] for i in range(28)) == list(range(28))


@pytest.mark.parametrize(
    "more",
    [
        {"distillation": {"intermediate_matches": [PROJECTED]}},
        {"distillation": {"intermediate_matches": [{**PROJECTED, "loss": "vid"}]}},
        {"distillation": {"intermediate_matches": [PROJECTED], "balancer": "uncertainty"}},
        {"strategy": "emd"},
    ],
)
def test_all_that_a_student_is_trained_with_is_where_its_batches_are(registry, tmp_path, monkeypatch, more):
    # the device `meta` computes shapes alone, and stands here for one that is not the CPU; these ask for values
    for name in ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa"):
        monkeypatch.setattr(transformers.masking_utils, name, lambda *_, **__: False)
    config = parse_run_config(document(stages=[distill(**more)], cache="off"), "config.json", registry)
    assembly = Assembly(config, films(tmp_path), registry, torch.device("meta"))
    learner = distill_lesson(assembly, config.stages[0], "stages[0]", assembly.model("student")).learner
    held = {name: tensor.device.type for name, tensor in (*learner.named_parameters(), *learner.named_buffers())}
    assert set(held.values()) == {"meta"}
    assert len(held) > len(learner.student.state_dict())


def test_cached_features_train_the_student_that_live_ones_do(run, tmp_path):
    long = training(steps=12, batch_size=5)  # twice over the rows, in other batches
    for name, cache in (("live", "off"), ("cached", "here")):
        run({**only_distill(training=long), "cache": cache}, name)
    live, cached = (weights_in(tmp_path / name / "student") for name in ("live", "cached"))
    assert_same(cached, live, atol=1e-5)


@pytest.fixture(scope="session")
def still(tmp_path_factory, registry):
    """A run whose student, cut out of its trained teacher, is trained at a rate that changes nothing."""
    folder = films(tmp_path_factory.mktemp("still"))
    config = document(
        models={"teacher": bert(16, 2), "student": {"name": "hf", "keep_layers": [1]}},
        stages=[supervised(), distill(training=training(optimizer=STILL))],
        baselines=["labels_only"],
    )
    run_config(write_config(folder, config), output=folder / "out", registry=registry)
    return folder / "out"


def test_a_student_of_kept_layers_starts_from_the_trained_teacher(still):
    teacher, student = weights_in(still / "stages/teacher/model"), weights_in(still / "student")
    expected = {name.replace("layer.1.", "layer.0."): t for name, t in teacher.items() if "layer.0." not in name}
    assert_same(student, {name: expected.pop(name) for name in student}, atol=1e-9)
    assert expected == {}


def test_the_baseline_starts_where_the_student_did_and_takes_as_many_steps(still):
    assert_same(weights_in(still / "baselines/labels_only/model"), weights_in(still / "student"), atol=1e-9)
    summary = read(still / "summary.json")
    assert summary["baselines"]["labels_only"]["steps"] == summary["student"]["steps"] == 3


def test_the_baseline_of_a_student_trained_before_starts_from_there(run):
    stages = [supervised(name="first", model="student"), distill(training=training(optimizer=STILL))]
    _, folder = run(document(stages=stages, baselines=["labels_only"]))
    first = weights_in(folder / "stages/first/model")
    assert_same(weights_in(folder / "baselines/labels_only/model"), first, atol=1e-9)
    assert_same(weights_in(folder / "student"), first, atol=1e-9)


def test_the_baseline_of_a_student_distilled_twice_starts_before_both_and_takes_the_steps_of_both(run):
    still = distill(training=training(optimizer=STILL))
    _, once = run(document(stages=[supervised(), still]), "once")
    stages = [supervised(), distill(name="first", training=training(steps=2)), still]
    summary, twice = run(document(stages=stages, baselines=["labels_only"]), "twice")
    baseline, drawn = weights_in(twice / "baselines/labels_only/model"), weights_in(once / "student")
    assert_same(baseline, drawn, atol=1e-9)
    assert any((weight - drawn[name]).abs().max() > 1e-4 for name, weight in weights_in(twice / "student").items())
    assert summary["steps"] == summary["student"]["steps"] == summary["baselines"]["labels_only"]["steps"] == 2 + 3


def test_a_baseline_of_an_epoch_takes_the_steps_of_the_distillation(run):
    config = only_distill(training=training(steps=None, epochs=1))  # 16 labelled and 12 unlabelled rows
    summary, _ = run({**config, "baselines": ["labels_only"]})
    assert summary["student"]["steps"] == summary["baselines"]["labels_only"]["steps"] == 7


def scripted(*figures):
    """A metric that gives these figures, call by call, and then 0."""
    left = list(figures)

    def peak(predictions, references):
        return left.pop(0) if left else 0.0

    return {"peak": peak}


def test_the_best_weights_are_kept_and_published(run):
    config = document(
        stages=[supervised(training=training(steps=5, checkpoint_every_steps=1))],
        evaluation={"data": "films", "metrics": ["peak"], "best": {"metric": "peak"}},
    )
    # The first call is the check that some metric gives that figure.
    summary, folder = run(config, plugins={"brewer_metrics": scripted(0.0, 0.1, 0.9, 0.3, 0.9, 0.2)})

    assert (summary["student"]["best_step"], summary["student"]["steps"]) == (2, 5)
    checkpoints = folder / "stages/teacher/checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"step-2", "step-4", "step-5"}
    state = Checkpoints(checkpoints).load(2)["learner"]
    best = {name.removeprefix("student."): tensor for name, tensor in state.items() if name.startswith("student.")}
    published = weights_in(folder / "student")
    assert_same(published, {name: best[name] for name in published})


def test_the_least_figure_is_the_best_where_the_config_says_so(run):
    config = document(
        stages=[supervised(training=training(steps=4))],
        evaluation={"data": "films", "metrics": ["peak"], "best": {"metric": "peak", "mode": "min"}, "every_steps": 1},
    )
    summary, folder = run(config, plugins={"brewer_metrics": scripted(0.0, 0.4, 0.3, 0.1, 0.2)})
    assert summary["student"]["best_step"] == 3
    assert not (folder / "stages/teacher/checkpoints").exists()


def test_the_last_weights_are_taken_where_no_best_is_asked_for(run):
    config = document(stages=[supervised(training=training(steps=2, keep_best=False))])
    config["evaluation"] = {"data": "films", "best": {"metric": "accuracy"}, "every_steps": 1}
    assert run(config)[0]["student"]["best_step"] is None


def test_a_later_stage_goes_on_with_a_models_best_weights(run):
    frozen = training(steps=1, optimizer=STILL)
    config = document(stages=[supervised(), supervised(name="more", training=frozen)])
    _, folder = run(config)
    assert_same(weights_in(folder / "student"), weights_in(folder / "stages/teacher/model"), atol=1e-9)


def test_figures_are_of_the_test_rows_where_there_are_any(run):
    config = document(
        stages=[supervised(name="only")], evaluation={"data": "films.eval", "test": "films.train", "every_steps": 2}
    )
    summary, folder = run(config)
    assert (summary["evaluated_on"], summary["rows"], summary["teacher"]) == ("films.train", 16, None)
    assert [line["step"] for line in lines_of(folder) if "eval/accuracy" in line] == [2, 3]


def test_a_run_in_bfloat16_trains_in_it_and_saves_float32(run):
    summary, folder = run({**only_distill(), "precision": "bf16"})
    assert all(tensor.dtype == torch.float32 for tensor in weights_in(folder / "student").values())
    plain, _ = run(only_distill(), "plain")
    assert summary["student"]["steps"] == plain["student"]["steps"]
    names = ("run", "plain")
    reduced, full = (lines_of(folder.parent / name)[0]["kd_loss"] for name in names)
    assert reduced != full
    assert reduced == pytest.approx(full, rel=0.2, abs=0.01)


def test_a_tracker_that_is_not_to_be_had_leaves_none_of_the_others_open(run):
    closed = []

    class Open:
        def __init__(self, run_dir, stage):
            self.stage = stage

        def log(self, step, values):
            raise AssertionError

        def close(self):
            closed.append(self.stage)

    def absent(run_dir, stage):
        raise ModuleNotFoundError("No module named 'cloud'")

    trackers = {"brewer_trackers": {"open": Open, "absent": absent}}
    with pytest.raises(ModuleNotFoundError):
        run({**only_distill(), "trackers": ["open", "absent"]}, plugins=trackers)
    assert closed == ["distil"]


# Other data


def test_pairs_of_texts_from_jsonl(run, tmp_path):
    rows = [{"first": row["text"], "second": "good", "same": row["label"] == "p"} for row in labelled(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {
        "source": {"name": "jsonl", "path": "pairs.jsonl"},
        "text": ["first", "second"],
        "label": "same",
        "select": {"share": 0.75},
    }
    config = document(data={"pairs": pairs}, task={"pair": True}, evaluation={"data": "pairs"})
    config["stages"] = [supervised(train=["pairs"]), distill(train=["pairs"], unlabelled=["pairs"])]
    summary, folder = run(config)
    assert summary["rows"] == 12
    assert read(folder / "student/config.json")["id2label"] == {"0": "false", "1": "true"}


def test_rows_from_parquet_with_whole_numbers_for_classes(run, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = labelled(12)
    columns = {"review": [row["text"] for row in rows], "stars": [10 if row["label"] == "p" else 2 for row in rows]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "stars.parquet")
    stars = {"source": {"name": "parquet", "path": "stars.parquet"}, "text": "review", "label": "stars"}
    config = document(data={"stars": stars}, evaluation={"data": "stars"}, stages=[supervised(train=["stars"])])
    _, folder = run(config)
    assert read(folder / "student/config.json")["id2label"] == {"0": "2", "1": "10"}


def test_a_saved_student_is_the_next_runs_teacher_and_tokenizer(finished, run):
    models = {"teacher": {"name": "hf", "path": str(finished / "out/student")}, "student": bert(8, 1)}
    summary, folder = run(document(models=models, tokenizer={"max_length": 16}, stages=[distill()]))
    assert summary["teacher"]["origin"] == f"pretrained {finished / 'out/student'}"
    assert summary["teacher"]["steps"] == 0
    assert (folder / "student/tokenizer.json").read_text() == (finished / "out/student/tokenizer.json").read_text()


# Packaged configs


@pytest.mark.parametrize("name", packaged_names())
def test_packaged_configs_fit_the_installed_plugins(name, registry):
    _, packaged = packaged_config(name)
    assert parse_run_config(packaged, name, registry).stages


def test_quickstart_is_packaged():
    assert "quickstart" in packaged_names()


# The command


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_config(films(tmp_path))
    before = tree(tmp_path)
    assert brewer("run", file, "--dry-run", "--output", tmp_path / "out") == 0
    assert brewer("run", file, "--dry-run", "--set", "output=other") == 0
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "train.csv", "transfer.csv", "eval.csv"}
    printed = capsys.readouterr().out
    for part in ("teacher", "distil", "kd_loss", "hard_label_loss", "2 classes: n; p", "no run was written"):
        assert part in printed


def test_the_command_applies_settings_and_prints_the_table(tmp_path, capsys):
    file = write_config(films(tmp_path))
    settings = ["--set", "stages.0.training.steps=1", "--set", "stages.1.training.steps=2", "--set", "seed=5"]
    assert brewer("run", file, "-o", tmp_path / "out", *settings, "--device", "cpu") == 0
    captured = capsys.readouterr()
    summary = read(tmp_path / "out/summary.json")
    assert (summary["teacher"]["steps"], summary["student"]["steps"], summary["seed"]) == (1, 2, 5)
    assert "10 rows of films, seed 5" in captured.out
    assert "student, distilled" in captured.out
    assert captured.out.endswith(
        f"{tmp_path}/out/student holds the student, {tmp_path}/out/summary.json these figures\n"
    )
    said = captured.err.splitlines()
    assert said[:3] == ["checking data and models", "teacher: 1 steps", "distil: 2 steps"]
    assert said[3].startswith("cache of teacher: ")
    assert len(said) == 4


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(finished, run, tmp_path):
    shutil.copytree(finished / "out", tmp_path / "run")
    (tmp_path / "run/notes.txt").write_text("mine")
    (tmp_path / "run/mine").mkdir()
    (tmp_path / "run/mine/stages").write_text("mine too")
    run(document(stages=[supervised(name="only")]), overwrite=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "summary.json",
        "stages",
        "student",
        "notes.txt",
        "mine",
    }
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    assert (tmp_path / "run/mine/stages").read_text() == "mine too"
    assert {path.name for path in (tmp_path / "run/stages").iterdir()} == {"only"}
    assert {line["stage"] for line in lines_of(tmp_path / "run")} == {"only"}


def test_overwriting_wins_over_a_config_that_resumes(run, tmp_path):
    run(document(stages=[supervised(name="one")], resume="auto"))
    run(document(stages=[supervised(name="two")], resume="auto"), overwrite=True)
    assert {line["stage"] for line in lines_of(tmp_path / "run")} == {"two"}


def test_a_run_without_a_folder_gets_one_by_config_and_time(tmp_path, monkeypatch, registry):
    monkeypatch.chdir(tmp_path)
    file = write_config(films(tmp_path), document(stages=[supervised()]), "mine.json")
    run_config(file, registry=registry)
    (made,) = Path("runs").iterdir()
    name, _, when = made.name.partition("-")
    assert name == "mine"
    assert len(when) == len("20260101-120000")


def test_the_output_of_a_config_is_beside_it(tmp_path, registry):
    file = write_config(films(tmp_path), document(stages=[supervised()], output="here/out"))
    run_config(file, registry=registry)
    run_config(
        parse_run_config(read(file), "config", registry), base_dir=tmp_path, output=tmp_path / "b", registry=registry
    )
    assert (tmp_path / "here/out/summary.json").is_file()
    assert_same(weights_in(tmp_path / "here/out/student"), weights_in(tmp_path / "b/student"))


def test_final_figures_come_from_the_test_split_where_data_has_one_beside_eval(tmp_path, registry) -> None:
    films(tmp_path)
    for split, label in (("eval", "p"), ("test", "n")):  # what is right on the one is wrong on the other
        write_csv(tmp_path / f"{split}.csv", [{**row, "label": label} for row in labelled(11)])
    paths = {split: f"{split}.csv" for split in ("train", "transfer", "eval", "test")}
    file = write_config(tmp_path, document(data={"films": {"source": {"name": "csv", "path": paths}}}))

    summary = run_config(file, output=tmp_path / "run", registry=registry)

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = {line["stage"]: line["eval/accuracy"] for line in lines if "eval/accuracy" in line}
    assert summary["student"]["metrics"]["accuracy"] == pytest.approx(1 - seen["distil"])
    assert summary["teacher"]["metrics"]["accuracy"] == pytest.approx(1 - seen["teacher"])


class StopsAfter(StopRequest):
    """Asks a run to stop after so many steps."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    @property
    def reason(self):
        self.left -= 1
        return StopReason.NONE if self.left > 0 else StopReason.TERMINATE


def test_a_run_that_goes_on_keeps_the_checkpoint_that_was_the_best(run):
    config = document(
        stages=[supervised(training=training(steps=6, checkpoint_every_steps=1, keep_last=1))],
        evaluation={"data": "films", "metrics": ["peak"], "best": {"metric": "peak"}},
    )
    # Each time the first call is the check that some metric gives that figure.
    plugins = {"brewer_metrics": scripted(0.0, 0.1, 0.9, 0.3, 0.2, 0.0, 0.2, 0.1)}
    with pytest.raises(Stopped, match="after optimizer step 4 of 6"):
        run(config, plugins=plugins, stop=StopsAfter(4))
    summary, folder = run(config, plugins=plugins, resume=True)
    assert summary["student"]["best_step"] == 2
    assert {path.name for path in (folder / "stages/teacher/checkpoints").iterdir()} == {"step-2", "step-6"}
    assert not list(folder.glob("*/*/finished"))


@pytest.mark.parametrize("stage", [distill(), supervised(model="student")], ids=["distilled", "supervised"])
def test_the_student_that_was_tried_is_not_kept_beside_the_one_that_is_trained(tmp_path, registry, stage):
    alive: list[int] = []

    class Counting(Listener):
        def begin(self, total_steps: int) -> None:
            gc.collect()
            models = [each for each in gc.get_objects() if type(each) is transformers.BertForSequenceClassification]
            alive.append(sum(model.config.hidden_size == 22 for model in models))

    class Watching(Reporter):
        def bar(self, title: str) -> Listener:
            return Counting()

    config = document(models={"teacher": bert(16, 2), "student": bert(22, 1)}, stages=[stage])
    file = write_config(films(tmp_path), config)
    run_config(file, output=tmp_path / "out", device="cpu", registry=registry, reporter=Watching())
    assert alive == [1]
