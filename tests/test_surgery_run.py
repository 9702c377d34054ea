"""Runs whose student is cut out of its teacher: what it looks at, where it starts, and that it starts there again."""

from __future__ import annotations

import json

import pytest
import torch

from brewer_builtins.surgery import student_from_teacher
from brewer_core.config import parse_run_config
from brewer_core.errors import ConfigError, Stopped
from brewer_core.plugins import build_registry
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly
from brewer_core.stopping import StopReason, StopRequest
from runs import bert, brewer, distill, document, films, read, supervised, training, weights_in, write_config

transformers = pytest.importorskip("transformers", reason="models need the extra hf")

STILL = {"learning_rate": 1e-12, "weight_decay": 0}
CUT = {"layers": {"count": 1, "by": "block_influence"}, "hidden_size": 8, "sample_rows": 20}


@pytest.fixture(scope="module")
def registry():
    return build_registry()


def config(cut=CUT, **changes):
    models = {"teacher": bert(16, 2), "student": {"name": "hf", "from_teacher": cut}}
    return document(models=models, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return films(tmp_path_factory.mktemp("films"))


def assembled(folder, registry, document):
    parsed = parse_run_config(document, "config.json", registry)
    return Assembly(parsed, folder, registry, torch.device("cpu"))


def looked_at(assembly, name, count=1000):
    """The rows of a sample, as texts."""
    batches = assembly._sample_for(name)(count)
    return [
        assembly.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_a_sample_is_of_the_rows_that_a_student_is_trained_on_and_of_no_others(folder, registry):
    assembly = assembled(folder, registry, config())
    seen = looked_at(assembly, "student")
    assert len(seen) == 16 + 12
    trained = assembly.training_sets(assembly.config.stages[1], "stages[1]")[""]
    assert sorted(seen) == sorted(
        assembly.tokenizer.decode(trained[i]["input_ids"], skip_special_tokens=True) for i in range(len(trained))
    )
    assert not any("eval" in split for _, split in assembly.splits_read())


def test_a_sample_is_drawn_from_the_seed(folder, registry):
    first, again, other = (
        looked_at(assembled(folder, registry, config(seed=seed)), "student", 6) for seed in (1, 1, 2)
    )
    assert first == again
    assert len(first) == 6
    assert first != other


def test_batches_of_a_sample_are_what_models_take(folder, registry):
    batches = assembled(folder, registry, config())._sample_for("student")(6)
    assert all({"input_ids", "attention_mask"} <= set(batch) for batch in batches)
    assert not any({"labels", "row"} & set(batch) for batch in batches)


def test_a_model_that_no_stage_trains_has_no_sample(folder, registry):
    untrained = config(stages=[distill()])
    assert assembled(folder, registry, untrained)._sample_for("teacher") is None


def run(folder, name, document):
    assert brewer("run", write_config(folder, document, f"{name}.json"), "--output", folder / name) == 0
    return folder / name


def test_a_student_starts_from_the_trained_teacher_and_so_does_its_baseline(folder, registry):
    stages = [supervised(), distill(training=training(optimizer=STILL))]
    out = run(folder, "still", config(stages=stages, baselines=["labels_only"]))
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(out / "stages/teacher/model")
    batches = assembled(folder, registry, config(stages=stages))._sample_for("student")(20)
    expected = student_from_teacher(teacher, layers=CUT["layers"], hidden_size=8, sample=batches).state_dict()
    for kept in (out / "student", out / "baselines/labels_only/model"):
        own = weights_in(kept)
        assert list(own) == sorted(expected)
        for key, weight in own.items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-6)
    assert read(out / "summary.json")["student"]["origin"].startswith("cut out of its teacher: layers ")


class StopsAfter(StopRequest):
    """Asks to stop after so many steps, of all trainings together."""

    def __init__(self, steps):
        super().__init__()
        self._left = steps

    @property
    def reason(self):
        self._left -= 1
        return StopReason.TERMINATE if self._left <= 0 else StopReason.NONE


@pytest.mark.parametrize("steps", [2, 3, 5])  # inside the teacher's training, between the two, and inside the student's
def test_a_run_that_goes_on_has_the_same_student(folder, registry, steps):
    stages = [supervised(), distill(training=training(steps=4))]
    whole, stopped = (folder / f"{name}{steps}" for name in ("whole", "stopped"))
    file = write_config(folder, config(stages=stages), f"stops{steps}.json")
    run_config(file, output=whole, registry=registry)
    with pytest.raises(Stopped):
        run_config(file, output=stopped, registry=registry, stop=StopsAfter(steps))
    run_config(file, output=stopped, registry=registry, resume=True)
    own, expected = weights_in(stopped / "student"), weights_in(whole / "student")
    assert all(torch.equal(own[key], expected[key]) for key in expected)


def test_a_wrong_setting_is_told_with_its_place(folder, registry):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config({"hidden_size": 0, "width": 3}), "config.json", registry)
    assert caught.value.problems == (
        "models.student.from_teacher.hidden_size: input should be greater than 0, not 0",
        "models.student.from_teacher.width: the model `hf` has no such option",
    )


@pytest.mark.parametrize("layers", ["middle", True, {"count": 2}, {"encoder": "middle"}])
def test_layers_in_no_known_form_are_told_in_one_sentence(registry, layers):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config({"layers": layers}), "config.json", registry)
    assert caught.value.problems == (
        "models.student.from_teacher.layers: expected a number of layers, a list of them, one of uniform, last, first, skip, "
        'block_influence, both, as in {"count": 4, "by": "uniform"}, or one of these for each of "encoder" and "decoder", not '
        f"{json.dumps(layers)}",
    )


def test_a_teacher_that_does_not_fit_is_told_with_the_models_name(folder, capsys):
    file = write_config(folder, config({"layers": 5}), "wrong.json")
    assert brewer("run", file, "--dry-run") == 2
    assert "models.student: `from_teacher`: `layers` asks for 5 layers, and the teacher has 2; ask for 1 to 2" in (
        capsys.readouterr().err
    )
