"""`brewer run` with several teachers, and with several tasks: what is trained, what is told of it, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from brewer_core.config import RunConfig, parse_run_config
from brewer_core.config.run import Best
from brewer_core.errors import AdaptorError, ConfigError
from brewer_core.plugins import build_registry
from brewer_core.protocols import CountingAdaptor, Task
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly
from brewer_core.run.evaluation import named
from brewer_core.run.lessons import distill_lesson
from brewer_core.run.tasks import best_for, columns, for_columns, side_by_side, tasks_of_model
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

RELATIONS = ("same", "other", "unknown")
TASKS = {"mood": {}, "relation": {"labels": list(RELATIONS), "pair": True}}
FILMS = {**document()["data"]["films"], "task": "mood"}
PAIRS = {
    "source": {"name": "csv", "path": {"train": "pairs_train.csv", "eval": "pairs_eval.csv"}},
    "text": ["first", "second"],
    "label": "relation",
    "task": "relation",
}
DATA = {"films": FILMS, "pairs": PAIRS}
TEACHERS = [{"model": "moods", "task": "mood"}, {"model": "relations", "task": "relation"}]
HIDDEN = {"layer_T": 1, "layer_S": 1, "weight": 1, "loss": "hidden_mse", "feature": "hidden", "proj": "linear"}
ONLY_FILMS, ONLY_PAIRS = ({"name": "multi_task", "tau": tau} for tau in (60.0, -60.0))  # 7 batches against 3


@pytest.fixture(scope="session")
def registry():
    return build_registry()


def related(count):
    """Rows of pairs of texts, of three classes by turns."""
    others = {"same": "a good film", "other": "a bad story", "unknown": "what fun"}
    names = [RELATIONS[i % 3] for i in range(count)]
    return [{"first": f"good fun {i}", "second": others[name], "relation": name} for i, name in enumerate(names)]


def several(**changes):
    """A config of two tasks: a stage for each teacher, and one that distils both."""
    stages = [
        supervised(name="moods", model="moods"),
        supervised(name="relations", model="relations", train=["pairs"]),
        distill_both(),
    ]
    evaluation = {"data": ["films", "pairs"]}
    return document(
        **{"tasks": TASKS, "data": DATA, "models": models(), "stages": stages, "evaluation": evaluation, **changes}
    )


def models(**more):
    return {"moods": bert(16, 2), "relations": bert(12, 1), "student": bert(8, 1), **more}


def distill_both(**more):
    return distill(**{"teachers": TEACHERS, "train": ["films", "pairs"], "strategy": "multi_task", **more})


def only_distill(**more):
    """A config of the last stage alone, whose teachers teach as they were drawn."""
    return several(stages=[distill_both(**more)])


def rows_in(folder):
    write_csv(films(folder) / "pairs_train.csv", related(12))
    write_csv(folder / "pairs_eval.csv", related(9))
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names_logged(folder, stage):
    return {name for line in lines_of(folder) if line["stage"] == stage for name in line} - {"stage", "step"}


@pytest.fixture
def run(tmp_path, registry):
    """Carries out a config on the rows of both tasks; gives the summary and the folder."""

    def carry_out(config, name="run"):
        if not (tmp_path / "train.csv").exists():
            rows_in(tmp_path)
        return run_config(
            write_config(tmp_path, config, f"{name}.json"), output=tmp_path / name, registry=registry
        ), tmp_path / name

    return carry_out


@pytest.fixture
def assembled(tmp_path, registry):
    def assemble(config):
        rows_in(tmp_path)
        return Assembly(parse_run_config(config, "config.json", registry), tmp_path, registry, torch.device("cpu"))

    return assemble


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of two tasks with a baseline, carried out by the command."""
    folder = rows_in(tmp_path_factory.mktemp("two_tasks"))
    evaluation = {"data": ["films", "pairs"], "metrics": ["accuracy", "f1"]}
    config = several(baselines=["labels_only"], evaluation=evaluation)
    long = training(steps=120, log_every_steps=120, optimizer={"learning_rate": 0.003})  # till it tells classes apart
    config["stages"][2] = distill_both(training=long, strategy={"name": "multi_task", "tau": 0.0})
    assert brewer("run", write_config(folder, config), "-o", folder / "out") == 0
    return folder


# The student of several tasks


def test_the_classes_of_the_tasks_stand_side_by_side_in_the_saved_student(finished):
    ids = {
        folder: read(finished / "out" / folder / "config.json")["id2label"]
        for folder in ("student", "stages/relations/model")
    }
    assert list(ids["student"].values()) == [
        "mood: n",
        "mood: p",
        "relation: same",
        "relation: other",
        "relation: unknown",
    ]
    assert list(ids["stages/relations/model"].values()) == list(RELATIONS)


def test_the_figures_are_those_of_each_tasks_own_columns_of_the_saved_student(finished):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(finished / "out/student").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "out/student")

    def share_right(texts, answers, first, names):
        right = 0
        for text, answer in zip(texts, answers, strict=True):
            with torch.no_grad():
                logits = model(**tokenizer(*text, return_tensors="pt")).logits[0, first : first + len(names)]
            right += names[int(logits.argmax())] == answer
        return right / len(answers)

    moods, pairs = labelled(10), related(9)
    accuracy = {
        "mood": share_right([(row["text"],) for row in moods], [row["label"] for row in moods], 0, "np"),
        "relation": share_right(
            [(row["first"], row["second"]) for row in pairs], [row["relation"] for row in pairs], 2, RELATIONS
        ),
    }
    metrics = read(finished / "out/summary.json")["student"]["metrics"]
    assert {task: metrics[f"{task}/accuracy"] for task in accuracy} == pytest.approx(accuracy)
    assert metrics["mean/accuracy"] == pytest.approx(sum(accuracy.values()) / 2)
    assert list(metrics) == [f"{task}/{name}" for task in ("mood", "relation", "mean") for name in ("accuracy", "f1")]


def test_the_summary_has_each_teacher_with_the_figures_of_its_task(finished):
    summary = read(finished / "out/summary.json")
    assert list(summary["teachers"]) == ["moods", "relations"]
    assert summary["teacher"] == summary["teachers"]["moods"]
    assert {name: set(figures["metrics"]) for name, figures in summary["teachers"].items()} == {
        "moods": {"mood/accuracy", "mood/f1"},
        "relations": {"relation/accuracy", "relation/f1"},
    }
    assert summary["evaluated_on"] == {"mood": "films", "relation": "pairs"}
    assert summary["rows"] == {"mood": 10, "relation": 9}


def test_terms_and_figures_are_logged_by_task(finished):
    logged = names_logged(finished / "out", "distil")
    terms = {f"{term}{task}" for term in ("kd_loss", "hard_label_loss") for task in ("", "/mood", "/relation")}
    figures = {f"eval/{task}/{name}" for task in ("mood", "relation", "mean") for name in ("accuracy", "f1")}
    assert logged == terms | figures | {"total_loss", "learning_rate", "steps_per_s"}
    assert names_logged(finished / "out", "relations") >= {"hard_label_loss", "eval/relation/accuracy"}
    assert "hard_label_loss/relation" in names_logged(finished / "out", "baselines/labels_only")


def test_the_baseline_learns_both_tasks_for_as_many_steps(finished):
    summary = read(finished / "out/summary.json")
    baseline = summary["baselines"]["labels_only"]
    assert baseline["steps"] == summary["student"]["steps"] == 120
    assert list(baseline["metrics"]) == list(summary["student"]["metrics"])


def test_a_resolved_config_of_tasks_runs_again_to_the_same_weights(finished, tmp_path):
    resolved = read(finished / "out/config.json")
    assert (resolved["task"], list(resolved["tasks"])) == (None, ["mood", "relation"])
    assert brewer("run", finished / "out/config.json", "-o", tmp_path / "again") == 0
    for model in ("student", "stages/relations/model", "baselines/labels_only/model"):
        assert_same(weights_in(tmp_path / "again" / model), weights_in(finished / "out" / model))


def test_another_seed_draws_other_tasks(run):
    config = only_distill(training=training(steps=9, log_every_steps=1))
    folders = [run({**config, "seed": seed}, f"seed{seed}")[1] for seed in (0, 1)]
    drawn = [["kd_loss/mood" in line for line in lines_of(folder) if "kd_loss" in line] for folder in folders]
    assert set(drawn[0]) == {True, False}
    assert drawn[0] != drawn[1]


def test_a_task_trains_its_own_columns_alone(run, assembled):
    plain = {"learning_rate": 0.01, "weight_decay": 0.0}
    config = only_distill(strategy=ONLY_FILMS, training=training(optimizer=plain))
    before = assembled(config).fresh_model("student").model.state_dict()
    _, folder = run(config)
    after = weights_in(folder / "student")
    moved = (after["classifier.weight"] != before["classifier.weight"]).any(1).tolist()
    assert moved == [True, True, False, False, False]


# How tasks are drawn


@pytest.mark.parametrize(("strategy", "drawn"), [(ONLY_FILMS, "mood"), (ONLY_PAIRS, "relation")])
def test_tau_decides_how_tasks_are_drawn_in_distillation_and_baseline(run, strategy, drawn):
    _, folder = run({**only_distill(strategy=strategy), "baselines": ["labels_only"]})
    for stage in ("distil", "baselines/labels_only"):
        by_task = {name for name in names_logged(folder, stage) if name.startswith("hard_label_loss/")}
        assert by_task == {f"hard_label_loss/{drawn}"}


def test_an_epoch_is_as_many_steps_as_the_tasks_have_batches(run):
    # 16 labelled and 12 unlabelled films are 7 batches, 12 pairs are 3; two of the ten make a step of the second run
    for accumulation, steps in ((1, 20), (4, 6)):
        config = only_distill(training=training(steps=None, epochs=2, accumulation=accumulation))
        assert run(config, f"accumulation{accumulation}")[0]["steps"] == steps


def test_labels_of_unlabelled_rows_never_enter_a_loss(run, tmp_path):
    distillation = {"kd_loss_weight": 0, "hard_label_weight": 1}
    run(only_distill(distillation=distillation), "without")
    write_csv(tmp_path / "transfer.csv", unlabelled(12, label="p"))
    run(only_distill(distillation=distillation), "wrong")
    assert_same(weights_in(tmp_path / "without/student"), weights_in(tmp_path / "wrong/student"))


def test_a_task_may_have_unlabelled_rows_alone(run):
    data = {"films": FILMS, "pairs": {**PAIRS, "label": None}, "labelled": PAIRS}
    stage = distill_both(train=["films"], unlabelled=["pairs"], strategy=ONLY_PAIRS)
    config = several(data=data, stages=[stage], evaluation={"data": ["films", "labelled"]})
    _, folder = run(config)
    (line,) = [line for line in lines_of(folder) if "kd_loss" in line]
    assert line["hard_label_loss"] == 0 < line["kd_loss/relation"]


def test_micro_batches_of_several_tasks_make_a_step(run):
    # of a warning, that an adaptor cannot count, this would fail
    _, folder = run(only_distill(training=training(accumulation=4, loss_normalization="step")))
    assert {"kd_loss/mood", "kd_loss/relation"} <= names_logged(folder, "distil")


# Who has which task


def test_a_model_of_several_tasks_is_trained_and_teaches_each_of_them(run):
    both = [{"model": "both", "task": task} for task in ("mood", "relation")]
    stages = [
        supervised(name="both", model="both", train=["films", "pairs"], training=training(steps=None, epochs=2)),
        distill_both(teachers=both),
    ]
    summary, folder = run(several(models=models(both=bert(16, 2)), stages=stages))
    assert list(summary["teachers"]) == ["both"]
    assert set(summary["teacher"]["metrics"]) == {"mood/accuracy", "relation/accuracy", "mean/accuracy"}
    assert summary["teacher"]["steps"] == 2 * (4 + 3)
    assert "hard_label_loss/relation" in names_logged(folder, "both")
    assert weights_in(folder / "stages/both/model")["classifier.weight"].shape[0] == 5


def test_a_teacher_of_several_tasks_answers_with_the_columns_of_the_one_that_it_is_asked_for(assembled):
    both = [{"model": "both", "task": task} for task in ("relation", "mood")]
    assembly = assembled(several(models=models(both=bert(16, 2)), stages=[distill_both(teachers=both)]))
    lesson = distill_lesson(assembly, assembly.config.stages[0], "stages[0]", assembly.model("student"))
    assert list(lesson.teachers) == ["both.relation", "both.mood"]
    batch = next(iter(lesson.loader["relation"]))
    answers = {name: t.features(batch, frozenset({"logits"}))["logits"][0] for name, t in lesson.teachers.items()}
    inputs = {key: value for key, value in batch.items() if key not in ("row", "labels")}
    with torch.no_grad():
        whole = assembly.model("both").model.eval()(**inputs).logits
    assert torch.equal(answers["both.mood"], whole[:, :2])
    assert torch.equal(answers["both.relation"], whole[:, 2:])
    assert lesson.learner.strategy.teachers_for("mood", tuple(lesson.teachers)) == ["both.mood"]


def test_a_model_that_teaches_several_tasks_gives_each_what_is_read_of_it(assembled):
    both = [{"model": "both", "task": task} for task in ("relation", "mood")]
    match = {"layer_T": 1, "layer_S": 0, "feature": "attention", "loss": "attention_mse_sum", "weight": 1}
    for first, second in (("relation", "mood"), ("mood", "relation")):
        distillation = {"intermediate_matches": [{**match, "teacher": f"both.{first}"}]}
        stage = distill_both(teachers=both, distillation=distillation)
        assembly = assembled(several(models=models(both=bert(16, 2)), stages=[stage]))
        lesson = distill_lesson(assembly, assembly.config.stages[0], "stages[0]", assembly.model("student"))
        batch, needs = next(iter(lesson.loader[first])), lesson.learner.needs
        answer = lesson.teachers[f"both.{first}"].features(batch, needs.teacher(f"both.{first}"))
        assert [layer is None for layer in answer["attention"]] == [True, False]
        assert "attention" not in lesson.teachers[f"both.{second}"].features(batch, needs.teacher(f"both.{second}"))


def test_a_student_of_kept_layers_starts_from_the_first_teacher(run):
    still = training(optimizer={"learning_rate": 1e-12, "weight_decay": 0.0})
    config = several(models=models(student={"name": "hf", "keep_layers": [0]}))
    config["stages"][2] = distill_both(training=still)
    _, folder = run(config)
    teacher, student = weights_in(folder / "stages/moods/model"), weights_in(folder / "student")
    body = [name for name in student if not name.startswith("classifier")]
    assert_same({name: student[name] for name in body}, {name: teacher[name] for name in body}, atol=1e-9)
    assert student["classifier.weight"].shape == (5, 16)


def test_several_teachers_of_one_of_the_tasks_are_averaged(run):
    teachers = [*TEACHERS, {"model": "more", "task": "mood", "weight": 2}]
    summary, folder = run(several(models=models(more=bert(16, 1)), stages=[distill_both(teachers=teachers)]))
    assert list(summary["teachers"]) == ["moods", "relations", "more"]
    assert {"kd_loss/mood", "kd_loss/relation"} <= names_logged(folder, "distil")


def test_a_match_holds_for_every_task_or_for_that_of_the_teacher_that_it_names(run):
    narrow = {"moods": bert(16, 1), "relations": bert(16, 2), "student": bert(8, 1)}
    matches = [HIDDEN, {**HIDDEN, "teacher": "relations", "layer_T": 2}]
    _, folder = run(
        several(
            models=narrow,
            stages=[
                distill_both(
                    distillation={"intermediate_matches": matches}, training=training(steps=8, log_every_steps=8)
                )
            ],
        )
    )
    logged = names_logged(folder, "distil")
    assert {"hidden_hidden_mse_1_1/mood", "hidden_hidden_mse_1_1/relation"} <= logged
    assert "hidden_hidden_mse_1_2_relations/relation" in logged
    assert "hidden_hidden_mse_1_2_relations/mood" not in logged


def test_a_run_of_one_task_may_use_the_strategy_of_several(run):
    config = document(stages=[distill(strategy="multi_task", training=training(steps=None, epochs=1))])
    summary, folder = run(config)
    assert summary["steps"] == 7
    assert set(summary["student"]["metrics"]) == {"accuracy"}
    assert names_logged(folder, "distil") >= {"kd_loss", "eval/accuracy"}
    assert not any(name.startswith("kd_loss/") for name in names_logged(folder, "distil"))


def test_a_single_task_among_tasks_has_figures_of_its_name(run):
    config = several(tasks={"mood": {}}, data={"films": FILMS}, models={"moods": bert(16, 1), "student": bert(8, 1)})
    config["stages"] = [distill(teachers=TEACHERS[:1])]
    summary, folder = run({**config, "evaluation": {"data": "films"}})
    assert set(summary["student"]["metrics"]) == {"mood/accuracy"}
    assert list(read(folder / "student/config.json")["id2label"].values()) == ["n", "p"]


# Evaluation


def test_final_figures_come_from_test_rows_for_the_tasks_that_have_some(run):
    config = several(stages=[distill_both()], evaluation={"data": ["films", "pairs"], "test": "films.train"})
    summary, _ = run(config)
    assert summary["rows"] == {"mood": 16, "relation": 9}
    assert summary["evaluated_on"] == {"mood": "films.train", "relation": "pairs"}


def test_a_model_is_evaluated_on_its_own_tasks_that_are_evaluated(run):
    summary, _ = run(several(evaluation={"data": ["pairs"]}))
    assert summary["teachers"]["moods"]["metrics"] == {}
    assert set(summary["student"]["metrics"]) == {"relation/accuracy"}
    assert summary["rows"] == {"relation": 9}


def test_the_best_weights_are_chosen_by_a_task_or_by_the_mean(run):
    for metric, chosen in (("relation/accuracy", (None, 1)), ("mean/accuracy", (1, 1))):
        evaluation = {"data": ["films", "pairs"], "best": {"metric": metric}, "every_steps": 1}
        config = several(evaluation=evaluation)
        still = training(optimizer={"learning_rate": 1e-12})
        config["stages"] = [{**stage, "training": still} for stage in config["stages"]]
        summary, _ = run(config, metric.replace("/", "-"))
        teachers, student = summary["teachers"], summary["student"]
        assert (teachers["moods"]["best_step"], teachers["relations"]["best_step"]) == chosen
        assert student["best_step"] == 1


def test_means_are_of_the_figures_that_all_tasks_have():
    figures = {"a": {"accuracy": 0.5, "f1": 1.0}, "b": {"accuracy": 0.25, "spread.low": 3.0}}
    assert named(figures) == {
        "a/accuracy": 0.5,
        "a/f1": 1.0,
        "b/accuracy": 0.25,
        "b/spread.low": 3.0,
        "mean/accuracy": 0.375,
    }
    assert named({"a": {"accuracy": 0.5}}) == {"a/accuracy": 0.5}
    assert named({"": {"accuracy": 0.5}}) == {"accuracy": 0.5}
    assert named({}) == {}


@pytest.mark.parametrize(
    ("metric", "tasks", "chosen"),
    [
        ("accuracy", [""], "accuracy"),
        ("mean/accuracy", ["a", "b"], "mean/accuracy"),
        ("mean/accuracy", ["b"], "b/accuracy"),
        ("mean/accuracy", [], None),
        ("a/accuracy", ["a", "b"], "a/accuracy"),
        ("a/accuracy", ["b"], None),
    ],
)
def test_what_chooses_among_the_weights_of_a_model(metric, tasks, chosen):
    best = best_for(Best(metric=metric, mode="min"), tasks)
    assert best == (Best(metric=chosen, mode="min") if chosen else None)


# The parts of a head


def test_classes_of_several_tasks_side_by_side():
    one, other = Task("text_classification", ("n", "p")), Task("text_classification", RELATIONS, pair=True)
    joined = side_by_side({"mood": one, "relation": other})
    assert joined.labels == ("mood: n", "mood: p", "relation: same", "relation: other", "relation: unknown")
    assert joined.pair
    assert columns({"mood": one, "relation": other}) == {"mood": slice(0, 2), "relation": slice(2, 5)}
    assert side_by_side({"relation": other}) is other


def test_an_adaptor_of_a_task_sees_its_own_columns_whatever_holds_the_logits():
    logits = torch.arange(10.0).reshape(2, 5)

    def adapt(batch, outputs):
        return {"logits": outputs["logits"] if isinstance(outputs, dict) else outputs.logits}

    adaptor = for_columns(adapt, slice(2, 5))
    held = [
        {"logits": logits},
        transformers.modeling_outputs.SequenceClassifierOutput(logits=logits),
        SimpleNamespace(logits=logits),
    ]
    for outputs in held:
        assert torch.equal(adaptor(None, outputs)["logits"], logits[:, 2:])
        assert torch.equal(adapt(None, outputs)["logits"], logits)  # the model's own stay whole
    assert not isinstance(adaptor, CountingAdaptor)
    with pytest.raises(AdaptorError) as caught:
        adaptor(None, (logits,))
    assert str(caught.value) == (
        "the model returned a tuple without `logits`, of which each of its tasks has a part; it must return a mapping or an "
        "object with `logits`."
    )


def test_an_adaptor_of_a_task_counts_where_the_wrapped_one_does(registry):
    whole = registry.bind("adaptor", "text_classification").target
    own = for_columns(whole, slice(0, 2))
    batch = {"attention_mask": torch.tensor([[1, 1, 0]]), "labels": torch.tensor([-100])}
    assert isinstance(own, CountingAdaptor)
    assert own.counts(batch) == whole.counts(batch)


def test_the_tasks_of_models_follow_from_the_stages_in_the_order_of_the_config():
    config = parse_run_config(several(models=models(idle=bert(8, 1))), "config.json")
    of = {name: tasks_of_model(config, name) for name in config.models}
    assert of == {
        "moods": ["mood"],
        "relations": ["relation"],
        "student": ["mood", "relation"],
        "idle": ["mood", "relation"],
    }


# Several teachers of one task


def taught_by(*teachers, strategy="multi_teacher", **more):
    others = {"teacher": bert(16, 2), "second": bert(12, 1), "student": bert(8, 1)}
    return document(models=others, stages=[distill(teachers=list(teachers), strategy=strategy, **more)])


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_the_weight_of_a_teacher_counts(run, tmp_path, average):
    strategy = {"name": "multi_teacher", "average": average}
    run(taught_by("teacher", {"model": "second", "weight": 1e9}, strategy=strategy), "heavy")
    run(taught_by("second", strategy="general"), "alone")
    run(taught_by("teacher", "second", strategy=strategy), "alike")
    heavy, alone, alike = (
        [line["kd_loss"] for line in lines_of(tmp_path / n)[:1]] for n in ("heavy", "alone", "alike")
    )
    assert heavy == pytest.approx(alone, rel=1e-3)
    assert alike != pytest.approx(alone, rel=0.03)


def test_each_teacher_of_a_run_is_told_of(tmp_path, capsys):
    rows_in(tmp_path)
    file = write_config(tmp_path, taught_by("second", "teacher"))
    assert brewer("run", file, "-o", tmp_path / "out") == 0
    summary = read(tmp_path / "out/summary.json")
    assert list(summary["teachers"]) == ["second", "teacher"]
    assert summary["teacher"] == summary["teachers"]["second"]
    assert all(set(figures["metrics"]) == {"accuracy"} for figures in summary["teachers"].values())
    printed = capsys.readouterr().out
    for title in ("teacher second, from scratch", "teacher teacher, from scratch", "student, distilled"):
        assert title in " ".join(printed.split())


def test_a_match_names_its_teacher_or_its_place(run, tmp_path):
    for name, teacher in (("name", "second"), ("place", 1), ("from_the_end", -1)):
        matches = {"intermediate_matches": [{**HIDDEN, "teacher": teacher}]}
        _, folder = run(taught_by("teacher", "second", distillation=matches), name)
        assert "hidden_hidden_mse_1_1_second" in names_logged(folder, "distil")
    by_name, by_place, from_the_end = (weights_in(tmp_path / n / "student") for n in ("name", "place", "from_the_end"))
    assert_same(by_place, by_name)
    assert_same(from_the_end, by_name)


@pytest.mark.parametrize("teacher", ["second", 1, -1])
def test_a_teacher_gives_only_the_features_that_it_is_asked_for(assembled, teacher):
    matches = {"intermediate_matches": [{**HIDDEN, "teacher": teacher}]}
    assembly = assembled(taught_by("teacher", "second", distillation=matches))
    lesson = distill_lesson(assembly, assembly.config.stages[0], "stages[0]", assembly.model("student"), caching=False)
    asked = {name: live.arguments for name, live in lesson.teachers.items()}
    assert asked == {"teacher": {}, "second": {"output_hidden_states": True}}
    assert lesson.learner.arguments == {"output_hidden_states": True}


def test_cached_features_of_several_teachers_train_the_student_that_live_ones_do(run, tmp_path):
    long = training(steps=12, batch_size=5)  # twice over the rows, in other batches
    for name, cache in (("live", "off"), ("cached", "here")):
        run({**taught_by("teacher", "second", training=long), "cache": cache}, name)
    live, cached = (weights_in(tmp_path / name / "student") for name in ("live", "cached"))
    assert_same(cached, live, atol=1e-5)


# The command


def test_a_dry_run_tells_the_classes_and_the_teachers_of_each_task(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = write_config(rows_in(tmp_path), several(baselines=["labels_only"]))
    before = tree(tmp_path)
    assert brewer("run", file, "--dry-run") == 0
    assert tree(tmp_path) == before
    printed = capsys.readouterr().out
    for line in (
        "mood: 2 classes: n; p",
        "mood: taught by moods",
        "mood: evaluation on 10 rows of data, 10 rows of test",
        "relation: 3 classes: same; other; unknown",
        "relation: taught by relations",
        "relation: evaluation on 9 rows of data, 9 rows of test",
    ):
        assert line in printed.splitlines()
    for term in ("kd_loss/mood", "kd_loss/relation", "hard_label_loss/mood", "hard_label_loss/relation"):
        assert term in printed


def test_the_table_has_a_line_for_each_task_of_a_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    file = write_config(rows_in(tmp_path), several())
    assert brewer("run", file, "-o", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "mood: 10 rows of films, relation: 9 rows of pairs, seed 0" in printed
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in printed.splitlines() if line.startswith("│")]
    assert cells == [
        ["teacher moods, from scratch", "mood"],
        ["teacher relations, from scratch", "relation"],
        ["student, distilled", "mood"],
        ["", "relation"],
        ["", "mean"],
    ]


# Bad input


def problems_of(**changes):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(several(**changes), "config.json")
    return list(caught.value.problems)


def data_of(**tasks):
    """The data of both tasks with other tasks."""
    return {name: {**DATA[name], "task": tasks.get(name, DATA[name]["task"])} for name in DATA}


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"task": {}}, ["tasks: `task` is given as well; give one of them"]),
        ({"tasks": {}}, ["tasks: is empty; name at least one"]),
        (
            {"tasks": {**TASKS, "relation": {"kind": "tagging"}}},
            ["tasks.relation.kind: input should be 'text_classification' or 'causal_lm', not \"tagging\""],
        ),
        (
            {"data": data_of(films="mod")},
            ["data.films.task: no task is called 'mod'; did you mean 'mood'?"],
        ),
        (
            {"data": data_of(pairs=None)},
            ["data.pairs.task: is required in a run with `tasks`; name one of mood, relation"],
        ),
        (
            {"stages": [distill_both(teachers=["moods", TEACHERS[1]])]},
            ["stages[0].teachers[0].task: is required in a run with `tasks`; name one of mood, relation"],
        ),
        (
            {"stages": [distill_both(teachers=[TEACHERS[0], {"model": "relations", "task": "relations"}])]},
            ["stages[0].teachers[1].task: no task is called 'relations'; did you mean 'relation'?"],
        ),
        (
            {"stages": [distill_both(teachers=TEACHERS[:1])]},
            ["stages[0].train[1]: 'pairs' is of the task 'relation', which no teacher of the stage teaches"],
        ),
        (
            {"stages": [supervised(model="moods", train=["films", "pairs"]), distill(teachers=TEACHERS)]},
            ["stages[1].teachers[1].task: the stage trains on no data of the task 'relation'"],
        ),
        (
            {
                "stages": [
                    several()["stages"][0],
                    distill_both(teachers=[{"model": "moods", "task": "relation"}, TEACHERS[0]]),
                ]
            },
            ["stages[1].teachers[0].task: the run trains 'moods' on mood, not on 'relation'"],
        ),
        (
            {"stages": [distill_both(teachers=[*TEACHERS, TEACHERS[0]])]},
            ["stages[0].teachers[2]: 'moods' is a teacher of the stage already; name it once for the task 'mood'"],
        ),
        (
            {"stages": [supervised(model="moods")], "evaluation": {"data": "films"}},
            ["tasks.relation: no stage trains on data of this task; name such data in a stage, or leave the task out"],
        ),
        (
            {"evaluation": {"data": ["films", "pairs", "films.train"], "test": ["pears"]}},
            [
                "evaluation.test[0]: no data is called 'pears'; did you mean 'pairs'?",
                "evaluation.data[2]: 'films.train' is of the task 'mood', as 'films' is; name one for each task",
            ],
        ),
        (
            {"evaluation": {"data": []}},
            ["evaluation.data: expected a name of data, or a list of names with one for each task, not []"],
        ),
    ],
)
def test_tasks_that_do_not_fit_together_are_refused(changes, problems):
    assert problems_of(**changes) == problems


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mean", "'mean' is what figures over all tasks are called; choose another name"),
        ("a/b", "'a/b' becomes a part of names of figures; use letters, digits, - and _, beginning with a letter"),
        ("", "'' becomes a part of names of figures; use letters, digits, - and _, beginning with a letter"),
    ],
)
def test_names_that_no_task_can_have(name, reason):
    stages = [distill_both(teachers=[{"model": "moods", "task": name}, TEACHERS[1]])]
    tasks = {name: {}, "relation": TASKS["relation"]}
    assert problems_of(tasks=tasks, data=data_of(films=name), stages=stages) == [f"tasks.{name}: {reason}"]


def test_what_belongs_to_tasks_is_refused_without_them():
    stages = [distill(teachers=[{"model": "teacher", "task": "mood"}])]
    evaluation = {"data": ["films", "more"]}
    plain = {name: value for name, value in FILMS.items() if name != "task"}
    with pytest.raises(ConfigError) as caught:
        parse_run_config(document(data={"films": FILMS, "more": plain}, stages=stages, evaluation=evaluation), "c")
    assert list(caught.value.problems) == [
        "data.films.task: the run has no `tasks` to name one of; add them, or leave it out",
        "stages[0].teachers[0].task: the run has no `tasks` to name one of; add them, or leave it out",
        "evaluation.data: names 2 data, and a run without `tasks` is evaluated on one; name one",
    ]


def test_a_teacher_that_is_named_twice_is_refused():
    with pytest.raises(ConfigError) as caught:
        parse_run_config(document(stages=[distill(teachers=["teacher", {"model": "teacher", "weight": 2}])]), "c")
    assert list(caught.value.problems) == [
        "stages[0].teachers[1]: 'teacher' is a teacher of the stage already; name it once, with a weight"
    ]


@pytest.fixture
def refused(tmp_path, capsys):
    """What the command answers to a faulty request, which leaves every file as it was and makes none."""
    rows_in(tmp_path)

    def answer(config):
        file = write_config(tmp_path, config)
        before = tree(tmp_path)
        status = brewer("run", file, "--output", tmp_path / "out")
        captured = capsys.readouterr()
        assert (status, captured.out, tree(tmp_path)) == (2, "", before)
        return captured.err.removeprefix("checking data and models\nbrewer: error: config: ").removesuffix("\n")

    return answer


def matching(*teachers, **match):
    return taught_by(*teachers, distillation={"intermediate_matches": [{**HIDDEN, **match}]})


def test_what_does_not_fit_models_and_data_is_told_before_anything_is_written(refused):
    where = "stages[0].distillation.intermediate_matches[0].teacher"
    turned = {**TASKS, "mood": {"pair": True}}
    unlabelled_pairs = {"films": FILMS, "pairs": {**PAIRS, "label": None}}
    undeclared = {"mood": {}, "relation": {"pair": True}}
    told = {
        where + ": there are several teachers; name one of teacher, second": matching("teacher", "second"),
        where + ": no teacher is called 'third'; expected one of teacher, second": matching(
            "teacher", "second", teacher="third"
        ),
        where + ": no teacher is called 2; expected one of teacher, second": matching("teacher", "second", teacher=2),
        "the strategy `general` learns from one teacher, not from teacher, second; `multi_teacher` learns from "
        "several": taught_by("teacher", "second", strategy="general"),
        "stages[0].strategy: `general` trains on one task, and the data of the stage are of mood, relation; use "
        '"multi_task", or a stage for each': only_distill(strategy="general"),
        "stages[0].strategy: `multi_teacher` trains on one task, and the data of the stage are of mood, relation; use "
        '"multi_task", or a stage for each': only_distill(strategy="multi_teacher"),
        "data.films.text: expected two columns, as tasks.mood.pair is true": several(tasks=turned),
        "tasks.relation: the labelled rows have no class; classification needs two or more": several(
            tasks=undeclared, data=unlabelled_pairs, evaluation={"data": "films"}
        ),
        "stages[1].train: no row of the task 'relation' has a label, so there is nothing to learn from": several(
            data=unlabelled_pairs, evaluation={"data": "films"}
        ),
        "evaluation.best.metric: no metric gives 'accuracy'; known: mood/accuracy, relation/accuracy, mean/accuracy": several(
            evaluation={"data": ["films", "pairs"], "best": {"metric": "accuracy"}}
        ),
        "data.pairs: row 1 of eval has no label; evaluation needs one in each row": several(
            data=unlabelled_pairs, stages=[distill_both()]
        ),
    }
    assert {problem: refused(config) for problem, config in told.items()} == {problem: problem for problem in told}


def test_a_baseline_without_labels_of_a_task_is_refused_before_the_run(refused):
    data = {"films": FILMS, "pairs": {**PAIRS, "label": None}}
    config = several(data=data, stages=[distill_both(train=["films"], unlabelled=["pairs"])], baselines=["labels_only"])
    assert refused({**config, "evaluation": {"data": "films"}}) == (
        "stages[0].train: no row of the task 'relation' has a label, so there is nothing to learn from"
    )


def test_problems_of_several_tasks_are_told_at_once(refused):
    tasks = {"mood": {"labels": ["p"]}, "relation": {"labels": ["same", "other"], "pair": True}}
    text = refused(several(tasks=tasks))
    assert text.splitlines()[1:] == [
        "  data.films.train.label: row 2 has the label 'n', which is no class; the classes are p",
        "  data.pairs.train.label: row 3 has the label 'unknown', which is no class; the classes are same, other",
        "  data.films.eval.label: row 2 has the label 'n', which is no class; the classes are p",
        "  data.pairs.eval.label: row 3 has the label 'unknown', which is no class; the classes are same, other",
    ]


def test_a_config_of_tasks_is_read_as_it_was_written():
    config = parse_run_config(several(), "config.json")
    assert config.task is None
    assert parse_run_config(json.loads(json.dumps(config.to_dict())), "again") == config
    plain = parse_run_config(document(), "config.json")
    assert (plain.task, plain.tasks) == (RunConfig.model_fields["task"].default, None)
    assert parse_run_config(json.loads(json.dumps(plain.to_dict())), "again") == plain
