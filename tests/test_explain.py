"""`brewer explain`: the total of each stage is told exactly, with what every term reads and where it comes from."""

from __future__ import annotations

import json
from textwrap import dedent

import pytest
import torch

from brewer_core.config import parse_run_config
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import ConfigError
from brewer_core.listeners import Listener
from brewer_core.plugins import build_registry
from brewer_core.run.assembly import Assembly
from brewer_core.run.explained import number
from brewer_core.run.explaining import explain
from brewer_core.run.planning import stage_lesson, try_batch
from brewer_core.teachers import evaluating
from runs import bert, brewer, distill, document, films, supervised, training, write_config
from test_several_tasks import distill_both, rows_in, several

pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

STEADY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # so that training computes the same values
HIDDEN = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "weight": 0.7, "loss": "hidden_mse", "proj": "linear"}
PAIRS = {**HIDDEN, "layer_T": [0, 1], "layer_S": [0, 1], "loss": "fsp", "weight": 1, "proj": ["tanh", 8, 16, {"lr": 1}]}
UNUSED = {"layer_T": 0, "layer_S": 0, "feature": "attention", "weight": 0, "loss": "attention_mse"}
BOTH = {"kd_loss_weight": 0.5, "hard_label_weight": 0.25}
RICH = {
    "kd_loss_type": {"name": "kl", "t_squared": False},
    "kd_loss_weight": 0.1,
    "kd_loss_weight_scheduler": "linear_decay",
    "temperature": 2.5,
    "temperature_scheduler": ["flsw", 1, 2],
    "hard_label_weight": 0.3,
    "intermediate_matches": [HIDDEN, PAIRS, UNUSED],
}


class Totals(Listener):
    """The total of every step."""

    def __init__(self):
        self.seen = []

    def logged(self, step, values):
        self.seen.append(values["total_loss"])


def models(**more):
    return {"teacher": bert(16, 2, **STEADY), "student": bert(8, 1, **STEADY), **more}


def one_stage(**more):
    return document(models=models(), stages=[distill(**more)])


@pytest.fixture(scope="session")
def registry():
    return build_registry()


@pytest.fixture
def assembled(tmp_path, registry):
    """Makes the parts of a config anew."""
    rows_in(tmp_path)

    def assemble(config):
        return Assembly(parse_run_config(config, "config.json", registry), tmp_path, registry, torch.device("cpu"))

    return assemble


def trained_total(assembly, position=0):
    """What the engine logs as the total of the first step of a stage."""
    lesson, totals = stage_lesson(assembly, position), Totals()
    loader = lesson.loader if not isinstance(lesson.loader, dict) else next(iter(lesson.loader.values()))
    Engine(
        lesson.learner,
        torch.optim.SGD(lesson.learner.student.parameters(), lr=0.0),
        device=assembly.device,
        teachers=lesson.teachers,
        settings=Settings(log_every_steps=1),
        listeners=[totals],
    ).train(loader, Duration(steps=lesson.total_steps))
    return totals.seen[0]


# The numbers are those of the engine


@pytest.mark.parametrize(
    "config",
    [
        one_stage(),
        one_stage(distillation=RICH),
        one_stage(distillation={"kd_loss_type": "ce", "probability_shift": True}, unlabelled=[]),
        one_stage(distillation={"kd_loss_type": ["kl", {"loss": "jsd", "weight": 0.5}], "kd_loss_weight": 2}),
        one_stage(distillation={"kd_loss_type": ["kl", "mse"], "teacher_correction": "drop"}, unlabelled=[]),
        one_stage(strategy={"name": "emd", "weight": 2, "attention_weight": 0.5}, distillation=RICH),
        document(models=models(), stages=[supervised()]),
        document(
            models=models(other=bert(12, 1, **STEADY)),
            stages=[
                distill(
                    teachers=["teacher", {"model": "other", "weight": 2}],
                    strategy={"name": "multi_teacher", "average": "probabilities"},
                    distillation={"kd_loss_type": "kl", "intermediate_matches": [{**HIDDEN, "teacher": "teacher"}]},
                )
            ],
        ),
    ],
    ids=["plain", "rich", "shifted", "several", "dropped", "emd", "supervised", "multi_teacher"],
)
def test_the_total_of_the_terms_is_the_engines(config, assembled):
    if "emd" in json.dumps(config):
        pytest.importorskip("brewer_strategy_emd")
    (stage,) = explain(assembled(config))
    (task,) = stage.tasks
    recomputed = sum(term.weights[0] * term.value for term in task.terms)
    assert recomputed == task.total == pytest.approx(trained_total(assembled(config)), rel=1e-6)


def test_each_task_has_a_total_of_its_own(assembled):
    config = several(stages=[distill_both(distillation=BOTH)])
    (stage,) = explain(assembled(config))
    lesson = stage_lesson(assembled(config), 0)
    expected = {}
    with evaluating(lesson.learner), torch.no_grad():
        for task, loader in lesson.loader.items():
            losses = try_batch(lesson, task, next(iter(loader)))
            expected[task] = 0.5 * losses["kd_loss"].item() + 0.25 * losses["hard_label_loss"].item()

    assert {task.task: task.total for task in stage.tasks} == pytest.approx(expected)
    assert {task.task: task.formula[0] for task in stage.tasks} == {
        "mood": "0.5 * ce(student.logits, moods.logits; T = 4)",
        "relation": "0.5 * ce(student.logits, relations.logits; T = 4)",
    }
    assert [(teacher.name, teacher.task) for teacher in stage.teachers] == [
        ("moods", "mood"),
        ("relations", "relation"),
    ]


# The words


def test_the_formula_has_every_number_schedule_projection_and_layer(assembled):
    (stage,) = explain(assembled(one_stage(distillation=RICH)))
    (task,) = stage.tasks
    assert task.formula == (
        "0.1 * linear_decay(progress) * kl(student.logits, teacher.logits; T = flsw(2.5; beta = 1.0, gamma = 2.0), "
        "t_squared = false)",
        "0.7 * hidden_mse(linear(student.hidden[1]: 8 -> 16), teacher.hidden[2])",
        "1 * fsp(tanh(student.hidden[0, 1]: 8 -> 16), teacher.hidden[0, 1])",
        "0.3 * sum(student.losses)",
    )
    assert task.left_out == {"attention_attention_mse_0_0": "its weight is 0"}


def test_a_term_tells_weights_shapes_projection_and_origins(assembled):
    (stage,) = explain(assembled(one_stage(distillation=RICH)))
    kd, hidden, pairs, labels = stage.tasks[0].terms
    assert stage.at == (0, 1, 3)
    assert kd.weights == (0.1, pytest.approx(0.1 * 2 / 3), 0.0)
    assert (kd.over, hidden.over, pairs.over, labels.over) == ("batch", "tokens", "rows", "labels")
    assert kd.temperature == 2.5
    assert [(used.role, used.name) for used in kd.used] == [
        ("loss", "kl"),
        ("temperature scheduler", "flsw"),
        ("schedule", "linear_decay"),
    ]
    assert kd.used[0].origin == "brewer-core 0.1.0 [kd_losses]"
    assert [(read.name, read.axes) for read in hidden.reads] == [
        ("student.hidden[1]", "B L D"),
        ("teacher.hidden[2]", "B L D"),
        ("student.inputs_mask", "B L"),
    ]
    assert (hidden.reads[0].shapes[0][-1], hidden.reads[1].shapes[0][-1]) == (8, 16)
    assert (hidden.projection.width, hidden.projection.to, hidden.projection.parameters) == (8, 16, 8 * 16 + 16)
    assert pairs.projection.group == {"lr": 1}
    assert len(pairs.reads[0].shapes) == 2
    assert all(term.trained for term in (kd, hidden, pairs, labels))


SEVERAL = {
    "temperature": 2,
    "kd_loss_weight": 0.7,
    "kd_loss_weight_scheduler": "linear_growth",
    "kd_loss_type": [
        "kl",
        {"loss": {"name": "jsd", "beta": 0.1}, "weight": 0.5, "weight_scheduler": "linear_decay"},
        {"loss": "kl", "weight": 0},
    ],
    "teacher_correction": {"name": "mft", "threshold": 0.1},
}


def test_each_of_several_losses_between_logits_is_told_with_its_weights_and_the_corrected_teacher(assembled):
    (stage,) = explain(assembled(one_stage(distillation=SEVERAL, unlabelled=[])))
    (task,) = stage.tasks
    taught = "mft(teacher.logits, student.labels; threshold = 0.1)"
    assert task.formula[:2] == (
        f"0.7 * linear_growth(progress) * kl(student.logits, {taught}; T = 2)",
        f"0.7 * 0.5 * linear_decay(progress) * linear_growth(progress) * jsd(student.logits, {taught}; T = 2, beta = 0.1)",
    )
    kl, jsd = task.terms[:2]
    assert (kl.name, jsd.name) == ("kd_loss_kl", "kd_loss_jsd")
    progress = [step / stage.at[-1] for step in stage.at]
    assert kl.weights == pytest.approx([0.7 * p for p in progress])
    assert jsd.weights == pytest.approx([0.35 * p * (1 - p) for p in progress])
    assert [(used.role, used.name) for used in jsd.used] == [
        ("loss", "jsd"),
        ("schedule", "linear_decay"),
        ("schedule", "linear_growth"),
    ]
    assert [read.name for read in jsd.reads] == ["student.logits", "teacher.logits"]
    assert task.left_out["kd_loss_kl#2"] == "its weight is 0"


@pytest.mark.parametrize(
    ("correction", "taught"),
    [
        ("swap", "probability_shift(teacher.logits, student.labels)"),
        ("mix", "mix(teacher.logits, student.labels; w = 0.5)"),
        ("drop", "drop(teacher.logits, student.labels)"),
    ],
)
def test_what_labels_do_to_a_teacher_is_told(correction, taught, assembled):
    config = one_stage(distillation={"kd_loss_type": "kl", "teacher_correction": correction}, unlabelled=[])
    (stage,) = explain(assembled(config))
    assert stage.tasks[0].formula[0] == f"1 * kl(student.logits, {taught}; T = 4)"


def test_terms_of_a_strategys_own_are_told_with_their_weights(assembled):
    pytest.importorskip("brewer_strategy_emd")
    (stage,) = explain(assembled(one_stage(strategy={"name": "emd", "weight": 2})))
    (task,) = stage.tasks
    own = {term.name: term for term in task.terms if term.used and term.used[0].role == "strategy"}
    assert {name: term.factor for name, term in own.items()} == {
        "hidden_hidden_mse_emd": "2",
        "embedding_hidden_mse": "2",
    }
    assert [read.name for read in own["embedding_hidden_mse"].reads] == ["student.hidden", "teacher.hidden"]
    assert stage.strategy_parameters == 2 * (8 * 16 + 16)
    assert task.left_out == {"attention_mse_emd": "its weight is 0"}


def test_the_mean_of_several_teachers_is_told_as_the_strategys(assembled):
    config = document(
        models=models(other=bert(12, 1)),
        stages=[distill(teachers=["teacher", "other"], strategy="multi_teacher", distillation={"temperature": 2})],
    )
    (stage,) = explain(assembled(config))
    assert stage.tasks[0].formula == ("1 * ce(student.logits, multi_teacher(teacher.logits, other.logits); T = 2)",)
    assert stage.tasks[0].left_out == {"hard_label_loss": "its weight is 0"}


def test_a_weight_that_a_strategy_moves_and_a_term_that_it_keeps_back(tmp_path, capsys):
    films(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(
        dedent('''
        from brewer_core import Strategy, hookimpl

        class Mine(Strategy):
            """Mine."""

            def weights(self, step):
                return {"own": 1 + step.step, "kept": 1.0}

            def terms(self, task, student, teachers, objective, step):
                return {"own": student.first("logits").detach().square().mean()}

        @hookimpl
        def brewer_strategies():
            return {"mine": Mine}
        ''')
    )
    config = write_config(tmp_path, one_stage(strategy="mine"))
    assert brewer("explain", config, "--plugin", file, "--json") == 0
    (stage,) = json.loads(capsys.readouterr().out)
    (task,) = stage["tasks"]
    (own,) = task["terms"]
    assert (own["factor"], own["weights"], own["trained"]) == ("weight(step)", [1, 2, 4], False)
    assert task["left_out"] == {
        "hard_label_loss": "the strategy mine gives no such term for this batch",
        "kd_loss": "the strategy mine gives no such term for this batch",
        "kept": "the strategy mine gives no such term for this batch",
    }


def test_a_term_of_a_strategys_own_is_told_with_the_layers_that_it_reads(tmp_path, capsys):
    films(tmp_path)
    file = tmp_path / "ends.py"
    file.write_text(
        dedent('''
        from dataclasses import replace

        from brewer_core import Strategy, hookimpl

        class Ends(Strategy):
            """The last hidden states are compared, and the teacher's embeddings' output."""

            def needs(self, objective):
                told = objective.needs()
                taught = told.every_teacher | {"hidden[0]", "hidden[-1]"}
                return replace(told, student=told.student | {"hidden"}, every_teacher=taught)

            def terms(self, task, student, teachers, objective, step):
                (teacher,) = teachers.values()
                first, last = teacher["hidden"][0], teacher["hidden"][-1]
                return {"ends": (student["hidden"][-1].mean() - first.mean() - last.mean()).square()}

        @hookimpl
        def brewer_strategies():
            return {"ends": Ends}
        ''')
    )
    config = write_config(tmp_path, one_stage(strategy="ends"))
    assert brewer("explain", config, "--plugin", file, "--json") == 0
    (term,) = json.loads(capsys.readouterr().out)[0]["tasks"][0]["terms"]
    assert [read["name"] for read in term["reads"]] == ["student.hidden", "teacher.hidden[-1, 0]"]


@pytest.mark.parametrize(("value", "text"), [(2.0, "2"), (0.1, "0.1"), (1e-5, "1e-05"), (1 / 3, "0.3333333333333333")])
def test_numbers_are_told_exactly(value, text):
    assert number(value) == text
    assert float(text) == value


# The command


def test_the_page_of_a_config(tmp_path, capsys):
    films(tmp_path)
    stages = [supervised(), distill(distillation=RICH, training=training(accumulation=2))]
    assert brewer("explain", write_config(tmp_path, document(stages=stages)), "--set", "seed=3") == 0
    printed = capsys.readouterr().out
    for part in (
        "stage teacher, supervised: teacher, 3 steps",
        "total =  1 * sum(teacher.losses)",
        "stage distil, distill: teacher -> student, 3 steps",
        "2 in a step: each term weighed by its share of the step's items, `over` below (loss_normalization step)",
        "+  0.7 * hidden_mse(linear(student.hidden[1]: 8 -> 16), teacher.hidden[2])",
        "on a batch of 4 rows",
        "0.1 at step 0, 0.0666667 at step 1, 0 at step 3",
        "the batch as a whole; it depends on how a step is split",
        "linear (brewer-core 0.1.0 [projections]), 8 -> 16, 144 parameters",
        'tanh (brewer-core 0.1.0 [projections]), 8 -> 16, 144 parameters, optimizer group {"lr": 1}',
        "attention_attention_mse_0_0  its weight is 0",
        "Values are those of the first batch, before anything is trained.",
    ):
        assert part in printed
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_json_has_formula_and_total(tmp_path, capsys):
    films(tmp_path)
    assert brewer("explain", write_config(tmp_path, one_stage(distillation=RICH)), "--json") == 0
    (stage,) = json.loads(capsys.readouterr().out)
    (task,) = stage["tasks"]
    assert task["formula"].startswith("0.1 * linear_decay(progress) * kl(")
    assert task["total"] == pytest.approx(sum(term["weights"][0] * term["value"] for term in task["terms"]))


def test_what_a_dry_run_refuses_is_refused_alike(tmp_path, capsys, assembled):
    wrong = one_stage(distillation={"intermediate_matches": [{**HIDDEN, "layer_T": 9}]})
    config = write_config(tmp_path, wrong)
    assert brewer("run", config, "--dry-run") == 2
    refused = capsys.readouterr().err
    assert brewer("explain", config) == 2
    assert capsys.readouterr().err == refused
    with pytest.raises(ConfigError) as caught:
        explain(assembled(wrong))
    assert "there is no 9" in str(caught.value)


def test_a_config_that_is_not_there_is_an_error(capsys):
    assert brewer("explain", "nowhere.json") == 2
    assert capsys.readouterr().err == "brewer: error: nowhere.json: there is no such file\n"
