"""What is captured in whole runs, of teachers that run no further than they must, in caches and on two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import captured_on_two
from brewer_core import CachedTeacher, DistillationConfig, LiveTeacher
from brewer_core.captures import capturing
from brewer_core.config import parse_run_config
from brewer_core.errors import BrewerError, ConfigError
from brewer_core.features import Features
from brewer_core.objective import Objective
from brewer_core.plugins import build_registry, default_registry
from brewer_core.protocols import Step
from brewer_core.run.assembly import Assembly
from brewer_core.run.lessons import distill_lesson
from captured_on_two import classifier, texts, trained_on
from families import batch, built
from runs import bert, brewer, distill, document, films, supervised, training, weights_in, write_config
from tiny import assert_same, weights
from two_processes import in_each

CPU = torch.device("cpu")
STEADY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# How far a teacher runs, and what is kept of it


def adapted(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({"query[1]", "inputs_mask"}, [0, 1]),
        ({"scores[0]", "value[-2]", "inputs_mask"}, [0, 1]),
        ({"hidden[2]"}, [0, 1]),
        ({"query[1]", "module:bert.pooler"}, [0, 1, 2]),
        ({"query[1]", "logits"}, [0, 1, 2]),
        ({"embeddings"}, [0, 1, 2]),
    ],
)
def test_a_teacher_runs_no_further_than_what_is_captured(needs: set[str], expected: list[int]) -> None:
    model = built("bert")
    ran: list[int] = []
    for number, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    teacher = LiveTeacher(model, adapted, CPU)
    first = teacher.features(batch(), frozenset(needs))
    ran.clear()
    found = teacher.features(batch(), frozenset(needs))
    assert ran == expected
    for name, layers in found.items():
        for again, once in zip(layers, first[name], strict=True):
            assert (again is None and once is None) or torch.equal(again, once)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "deberta-v2"])
@pytest.mark.parametrize("needs", [{"hidden[1]"}, {"hidden[2]", "query[0]"}, {"hidden[-1]"}, {"key[1]"}])
def test_a_shortened_teacher_gives_what_a_whole_one_gives(family: str, needs: set[str]) -> None:
    model = built(family)
    teacher = LiveTeacher(model, adapted, CPU)
    for seed in range(2):
        inputs = {**batch(family), "input_ids": batch(family)["input_ids"].roll(seed, 1)}
        found = teacher.features(inputs, frozenset(needs))
        with capturing(model, list(needs), "teacher") as capture, torch.no_grad():
            model(**inputs)
        for name, layers in capture.added_to(Features({})).items():
            for ours, whole in zip(found[name], layers, strict=True):
                assert (ours is None) == (whole is None)
                assert ours is None or torch.allclose(ours, whole, atol=1e-6)


def test_what_is_captured_is_kept_by_row_without_its_padding(tmp_path: Path) -> None:
    model = built("bert")
    needs = frozenset({"query[1]", "scores[0]", "pooled", "embeddings", "inputs_mask"})
    live = LiveTeacher(model, adapted, CPU)
    plain = {**batch(), "input_ids": batch()["input_ids"] * batch()["attention_mask"]}
    padded = {name: F.pad(tensor, (0, 4)) for name, tensor in plain.items()}
    with CachedTeacher(live, folder=tmp_path) as cached:
        cached.features(plain, needs)
        model.bert.register_forward_pre_hook(lambda *_: pytest.fail("it was asked again"))
        found = cached.features(padded, needs)
        model.bert._forward_pre_hooks.clear()
        expected = live.features(padded, needs)
    mask = padded["attention_mask"].bool()
    torch.testing.assert_close(found["query"][1][mask], expected["query"][1][mask], rtol=0, atol=1e-6)
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand(-1, 4, -1, -1)
    torch.testing.assert_close(found["scores"][0][pairs], expected["scores"][0][pairs], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["pooled"][0], expected["pooled"][0], rtol=0, atol=1e-6)


def test_what_stands_in_the_padding_reaches_neither_loss_nor_gradient() -> None:
    matches = [
        {"feature": "query[1]", "weight": 1, "loss": "hidden_mse"},
        {"feature": "scores[1]", "weight": 1, "loss": "attention_mse"},
        {"feature": "value[0]", "weight": 1, "loss": "cos"},
    ]
    objective = Objective.from_config(DistillationConfig(intermediate_matches=matches), default_registry())

    def features(seed: int, width: int, padding: float) -> Features:
        model = built("bert")
        torch.manual_seed(seed)
        inputs = batch()
        with capturing(model, sorted(objective.needs().student), "student") as capture:
            model(**inputs)
        found = capture.added_to(Features.of({"inputs_mask": inputs["attention_mask"]}))
        made = {}
        for name in ("query", "scores", "value"):
            layers = [None if t is None else t.detach().clone() for t in found[name]]
            for layer in layers:
                if layer is not None and name != "scores":
                    layer[-1, -2:] = padding
            made[name] = layers
        return Features.of({"inputs_mask": inputs["attention_mask"], **made})

    values = [
        objective.match_terms(features(0, 24, padding), features(1, 24, 0.0), Step(0, 1))
        for padding in (0.0, float("nan"))
    ]
    for name, value in values[0].items():
        assert torch.isfinite(values[1][name])
        torch.testing.assert_close(values[1][name], value, rtol=0, atol=0)


# In runs


def features_of_both() -> list[dict[str, Any]]:
    return [
        {"feature": "query[-1]", "weight": 1, "loss": "hidden_mse", "proj": "linear"},
        {"feature": "scores[0]", "weight": 1, "loss": "attention_mse"},
        {"feature": "pooled", "weight": 1, "loss": "hidden_mse", "proj": "linear"},
        {
            "feature_T": "bert.encoder.layer.1.intermediate",
            "feature_S": "bert.encoder.layer.0.output.dense.input",
            "weight": 1,
            "loss": "hidden_mse",
            "proj": "linear",
        },
    ]


def captured_run(**options: Any) -> dict[str, Any]:
    stage = distill(
        distillation={"kd_loss_type": "kl", "hard_label_weight": 1, "intermediate_matches": features_of_both()},
        training=training(log_every_steps=1, **options),
    )
    models = {"teacher": bert(16, 2, **STEADY), "student": bert(8, 1, **STEADY)}
    evaluation = {"data": "films", "every_steps": 1}
    return document(models=models, stages=[supervised(), stage], evaluation=evaluation, cache="off")


def run(folder: Path, name: str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The figures of the distillation, and the student."""
    config = write_config(folder, captured_run(**options), f"{name}.json")
    assert brewer("run", config, "--output", folder / name) == 0
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["stage"] == "distil" and "total_loss" in line], weights_in(
        folder / name / "student"
    )


@pytest.mark.parametrize(
    "options",
    [{"compile": "aot_eager"}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "compile": "eager"}],
    ids=str,
)
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, of both modes at once
def test_a_run_reads_the_same_under_every_mode(options: dict[str, Any], tmp_path: Path) -> None:
    films(tmp_path)
    plain, expected = run(tmp_path, "plain")
    found, student = run(tmp_path, "mode", **options)
    terms = [name for name in plain[0] if name not in ("steps_per_s", "stage")]
    assert len(plain) == 3
    assert any("query" in name for name in terms)
    for ours, theirs in zip(found, plain, strict=True):
        assert {name: ours[name] for name in terms} == pytest.approx({name: theirs[name] for name in terms}, abs=1e-5)
    assert_same(student, expected, atol=1e-5)


def test_a_run_says_once_that_attention_is_eager_and_puts_it_back(tmp_path: Path, capsys: Any) -> None:
    films(tmp_path)
    run(tmp_path, "out")
    said = [line for line in capsys.readouterr().err.splitlines() if "eager" in line]
    assert said == [
        "student computes attention as a whole (eager, not sdpa), which scores need",
        "teacher computes attention as a whole (eager, not sdpa), which scores need",
    ]
    registry = build_registry()
    assembly = Assembly(parse_run_config(captured_run(), "config.json", registry), tmp_path, registry, CPU)
    lesson = distill_lesson(assembly, assembly.config.stages[1], "stages[1]", assembly.model("student"))
    models = [lesson.learner.student, *lesson.taught_by]
    assert [model.config._attn_implementation for model in models] == ["eager", "eager"]
    assembly.read_nothing()
    assert [model.config._attn_implementation for model in models] == ["sdpa", "sdpa"]


def test_explain_tells_what_is_read_inside(tmp_path: Path, capsys: Any) -> None:
    films(tmp_path)
    assert brewer("explain", write_config(tmp_path, captured_run()), "--json") == 0
    stage = json.loads(capsys.readouterr().out)[1]
    (task,) = stage["tasks"]
    told = {
        term["name"]: [(each["name"], each["axes"], each["shapes"]) for each in term["reads"]] for term in task["terms"]
    }
    length = told["query_hidden_mse_-1_-1"][0][2][0][1]
    assert told["query_hidden_mse_-1_-1"] == [
        ("student.query[-1]", "B L D", [[4, length, 8]]),
        ("teacher.query[-1]", "B L D", [[4, length, 16]]),
        ("student.inputs_mask", "B L", [[4, length]]),
    ]
    assert told["scores_attention_mse_0_0"][0] == ("student.scores[0]", "B H L L", [[4, 2, length, length]])
    assert told["pooled_hidden_mse"] == [("student.pooled", "B D", [[4, 8]]), ("teacher.pooled", "B D", [[4, 16]])]
    (path,) = [name for name in told if name.startswith("bert")]
    assert [name for name, *_ in told[path]] == [
        "student.bert.encoder.layer.0.output.dense.input",
        "teacher.bert.encoder.layer.1.intermediate",
        "student.inputs_mask",
    ]
    (expression,) = [term["expression"] for term in task["terms"] if term["name"] == "scores_attention_mse_0_0"]
    assert expression == "attention_mse(student.scores[0], teacher.scores[0])"


@pytest.mark.parametrize(
    ("match", "problem"),
    [
        (
            {"feature": "bert.encoder.layer.1"},
            "stages[1].distillation.intermediate_matches[0].feature: the student has no module 'bert.encoder.layer.1'; did you mean "
            "'bert.encoder.layer.0' or 'bert.encoder.layer'?",
        ),
        (
            {"feature": "bert.encoder.layer"},
            "stages[1].distillation.intermediate_matches[0].feature: the student's module 'bert.encoder.layer' did not run in the forward "
            "pass, so it has no output to match; name a module inside it, such as its '0'",
        ),
        (
            {"feature": "query[1]"},
            "stages[1].distillation.intermediate_matches[0].feature: the student has 1 layers of 'query', 0 to 0; there is no 1",
        ),
    ],
)
def test_a_run_tells_what_cannot_be_read_with_its_place(match: dict[str, Any], problem: str, tmp_path: Path) -> None:
    films(tmp_path)
    config = captured_run()
    config["stages"][1]["distillation"]["intermediate_matches"] = [
        {"weight": 1, "loss": "hidden_mse", "proj": "linear", **match}
    ]
    registry = build_registry()
    assembly = Assembly(parse_run_config(config, "config.json", registry), tmp_path, registry, CPU)
    stage = assembly.config.stages[1]
    found = message(ConfigError, lambda: distill_lesson(assembly, stage, "stages[1]", assembly.model("student")))
    assert found == f"config: {problem}"


# On two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("captured")
    return in_each(partial(captured_on_two.all_of_it, folder=folder), folder)


@pytest.mark.parametrize("way", ["ddp", "sharded"])
def test_two_processes_train_as_one(way: str, both: list[dict[str, Any]]) -> None:
    expected = trained_on([texts(i) for i in range(3)])
    assert_same(both[0][way], expected, atol=1e-5)
    assert (
        max((both[0][way][name] - before).abs().max() for name, before in weights(classifier(16, 2, 2)).items()) > 1e-3
    )
    assert both[0][f"{way} hooks"] == both[1][f"{way} hooks"]
