"""Runs of language models: what they learn and leave, and that nothing but the seed decides how they end."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from brewer_core.config import parse_run_config
from brewer_core.errors import ConfigError, Stopped
from brewer_core.run import run_config
from brewer_core.stopping import StopReason, StopRequest
from runs import brewer, distill, read, supervised, weights_in, write_config
from tiny import assert_same
from two_processes import in_each

transformers = pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

WHO, DID, WHAT = ("the cat", "a dog", "my old friend"), ("sat on", "ran to"), ("the mat.", "a river.", "the red house.")
SENTENCES = [f"{a} {b} {c}" for a in WHO for b in DID for c in WHAT]
STEADY = {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9}


def llama(width: int, layers: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
    return {"name": "hf", "config": {"model_type": "llama", **sizes, **more}}


def gpt2(width: int, layers: int, **more: Any) -> dict[str, Any]:
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": 48}
    return {"name": "hf", "config": {"model_type": "gpt2", **sizes, **still, **more}}


def training(**more: Any) -> dict[str, Any]:
    return {"steps": 6, "batch_size": 4, "log_every_steps": 1, "optimizer": {"learning_rate": 0.01}, **more}


def document(**changes: Any) -> dict[str, Any]:
    """A config of both stages on the files that `texts` writes."""
    return {
        "task": {"kind": "causal_lm"},
        "data": {"texts": {"source": {"name": "jsonl", "path": {"train": "train.jsonl", "eval": "eval.jsonl"}}}},
        "tokenizer": {"from": "train", "max_length": 40, "vocab_size": 290},
        "models": {"teacher": llama(16, 2), "student": llama(8, 1)},
        "stages": [
            supervised(train=["texts"], training=training()),
            distill(train=["texts"], unlabelled=[], training=training()),
        ],
        "evaluation": {"data": "texts", "metrics": ["perplexity", "accuracy"], "batch_size": 3},
        "trackers": [],
        "cache": "off",
        **changes,
    }


def texts(folder: Path) -> Path:
    """The folder, with texts of several lengths, and with prompts and responses."""
    rows = [" ".join(SENTENCES[(7 * i + j) % 18] for j in range(1 + i % 3)) for i in range(22)]
    pairs = [{"prompt": f"Who {b} {c}", "response": f" {a}"} for a in WHO for b in DID for c in WHAT]
    files = {
        "train": [{"text": row} for row in rows[:16]],
        "eval": [{"text": row} for row in rows[16:]],
        "pairs": pairs[::2],
        "held": pairs[1::2],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return folder


PROMPTED = {
    "texts": {
        "source": {"name": "jsonl", "path": {"train": "pairs.jsonl", "eval": "held.jsonl"}},
        "text": ["prompt", "response"],
    }
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return texts(tmp_path)


def run(folder: Path, name: str, config: dict[str, Any], **options: Any) -> Path:
    run_config(write_config(folder, config, f"{name}.json"), output=folder / name, **options)
    return folder / name


def lines_of(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def figures_by_hand(student: Path, rows: list[tuple[str, str]]) -> tuple[float, float]:
    """Perplexity and accuracy of a saved model on prompts with responses, row by row and token by token, nothing padded."""
    model = transformers.AutoModelForCausalLM.from_pretrained(student).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    losses, right = [], 0
    for prompt, response in rows:
        given, learnt = tokenizer(prompt)["input_ids"], tokenizer(response)["input_ids"]
        if given:
            learnt = [*learnt, tokenizer.eos_token_id]
        ids = [*given, *learnt][:40]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        for place in range(max(len(given), 1), len(ids)):
            likelihoods = logits[place - 1].softmax(-1)
            losses.append(-math.log(likelihoods[ids[place]]))
            right += int(likelihoods.argmax()) == ids[place]
    return math.exp(sum(losses) / len(losses)), right / len(losses)


@pytest.mark.parametrize("family", [llama, gpt2])
def test_a_student_is_distilled_evaluated_and_left_for_its_own_library(folder: Path, family: Any) -> None:
    file = write_config(folder, document(models={"teacher": family(16, 2), "student": family(8, 1)}))
    assert brewer("run", file, "-o", folder / "out") == 0

    summary = read(folder / "out/summary.json")
    rows = [("", json.loads(line)["text"]) for line in (folder / "eval.jsonl").read_text().splitlines()]
    perplexity, accuracy = figures_by_hand(folder / "out/student", rows)
    assert summary["student"]["metrics"]["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert summary["student"]["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert summary["rows"] == len(rows)
    before = lines_of(folder / "out")[0]["total_loss"]
    assert math.log(summary["teacher"]["metrics"]["perplexity"]) < before - 0.5


def test_of_prompts_with_responses_the_responses_alone_are_learnt_and_measured(folder: Path) -> None:
    out = run(folder, "out", document(data=PROMPTED))
    rows = [
        (pair["prompt"], pair["response"]) for pair in map(json.loads, (folder / "held.jsonl").read_text().splitlines())
    ]
    perplexity, accuracy = figures_by_hand(out / "student", rows)
    metrics = read(out / "summary.json")["student"]["metrics"]
    assert metrics["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(accuracy)


def test_the_loss_of_a_step_does_not_depend_on_how_the_step_is_cut(folder: Path) -> None:
    found = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        cut = training(batch_size=batch_size, accumulation=accumulation, optimizer=STEADY)
        last = distill(
            train=["texts"],
            unlabelled=[],
            training=cut,
            distillation={"kd_loss_type": "kl", "hard_label_weight": 1, "intermediate_matches": [HIDDEN]},
        )
        out = run(folder, f"by-{batch_size}", document(stages=[supervised(train=["texts"], training=training()), last]))
        found.append((lines_of(out), weights_in(out / "student")))
    for lines, weights in found[1:]:
        for line, whole in zip(lines, found[0][0], strict=True):
            for key in line.keys() - {"steps_per_s", "stage"}:
                assert line[key] == pytest.approx(whole[key], rel=2e-5, abs=1e-6), (key, line["step"])
        assert_same(weights, found[0][1], atol=2e-6)


HIDDEN = {"feature": "hidden", "layer_T": 2, "layer_S": 1, "loss": "hidden_mse", "weight": 1, "proj": "linear"}


def test_a_run_that_was_stopped_goes_on_to_the_same_student(folder: Path) -> None:
    config = document(
        stages=[
            supervised(train=["texts"], training=training()),
            distill(train=["texts"], unlabelled=["texts"], training=training(checkpoint_every_steps=2)),
        ],
        evaluation={"data": "texts", "metrics": ["perplexity"], "best": {"metric": "perplexity", "mode": "min"}},
        baselines=["labels_only"],
    )
    whole = run(folder, "whole", config)
    stop = StopRequest()
    stop.ask(StopReason.TERMINATE)
    with pytest.raises(Stopped, match="after optimizer step 1 of 6"):
        run(folder, "parts", config, stop=stop)
    parts = run(folder, "parts", config, resume=True)
    assert_same(weights_in(parts / "student"), weights_in(whole / "student"))
    ours, theirs = (read(out / "summary.json") for out in (parts, whole))
    assert ours["baselines"]["labels_only"]["metrics"] == theirs["baselines"]["labels_only"]["metrics"]
    assert ours["student"]["metrics"] == theirs["student"]["metrics"]


def test_the_best_weights_are_those_of_the_lowest_perplexity(folder: Path) -> None:
    wild = training(steps=8, optimizer={"name": "sgd", "learning_rate": 4.0})
    best = {"metric": "perplexity", "mode": "min"}
    config = document(
        stages=[supervised(train=["texts"], training=wild)],
        evaluation={"data": "texts", "best": best, "every_steps": 1},
    )
    out = run(folder, "out", config)
    seen = {line["step"]: line["eval/perplexity"] for line in lines_of(out) if "eval/perplexity" in line}
    student = read(out / "summary.json")["student"]
    assert seen[student["best_step"]] == min(seen.values()) == student["metrics"]["perplexity"]
    assert max(seen.values()) > 1.1 * min(seen.values())


@pytest.mark.parametrize(
    "cache", [{"path": "kept"}, {"path": "kept", "floats": "float16"}, {"path": "kept", "top_k": 20}]
)
@pytest.mark.parametrize("data", [None, PROMPTED])
def test_an_empty_and_a_filled_cache_give_the_student_that_a_live_teacher_gives(
    folder: Path, cache: dict[str, Any], data: Any
) -> None:
    passes = training(steps=None, epochs=3, batch_size=5, optimizer=STEADY)
    changes = {"data": data} if data else {}
    stages = [
        supervised(train=["texts"], training=training()),
        distill(train=["texts"], unlabelled=["texts"], training=passes),
    ]
    live, cold, warm = (
        run(folder, name, document(stages=stages, cache=kept, **changes))
        for name, kept in (("live", "off"), ("cold", cache), ("warm", cache))
    )
    assert_same(weights_in(warm / "student"), weights_in(cold / "student"))
    tolerance = {"path": 1e-5, "floats": 2e-3, "top_k": 5e-2}[list(cache)[-1]]
    assert_same(weights_in(cold / "student"), weights_in(live / "student"), atol=tolerance)
    (kept,) = (folder / "kept/teachers").iterdir()
    assert read(kept / "about.json")["reads"] == ["inputs_mask", "logits", "logits_mask"]


def test_a_cache_is_built_ahead_and_keeps_no_padding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "first", document(stages=[supervised(train=["texts"], training=training())]))
    models = {"teacher": {"name": "hf", "path": "first/student"}, "student": llama(8, 1)}
    config = document(
        models=models,
        tokenizer={"max_length": 40},
        stages=[distill(train=["texts"], unlabelled=[], training=training())],
        cache="kept",
    )
    file = write_config(folder, config, "ahead.json")
    assert brewer("cache", "build", file) == 0
    tokens = run_lengths(folder, folder / "first/student")
    size = sum(4 * 290 * n + 2 * n for n in tokens)
    stored = sum(part.stat().st_size for part in (folder / "kept/teachers").rglob("*.safetensors"))
    assert size <= stored < size * 1.05
    assert brewer("run", file, "-o", folder / "out") == 0


def run_lengths(folder: Path, student: Path) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    rows = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    return [min(len(tokenizer(row)["input_ids"]), 40) for row in rows]


def test_rows_under_unlabelled_are_followed_and_not_learnt(folder: Path) -> None:
    """With the same rows under both, the loss against the teacher is that of the rows, and that on labels counts each once."""
    both, labelled = (
        run(
            folder,
            name,
            document(
                stages=[
                    distill(
                        train=["texts"],
                        unlabelled=unlabelled,
                        training=training(steps=1, batch_size=size, optimizer=STEADY),
                    )
                ]
            ),
        )
        for name, unlabelled, size in (("both", ["texts"], 32), ("labelled", [], 16))
    )
    ours, theirs = ({k: v for k, v in lines_of(out)[0].items() if k.endswith("loss")} for out in (both, labelled))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert set(ours) == {"kd_loss", "hard_label_loss", "total_loss"}


def test_several_tasks_have_one_head(folder: Path) -> None:
    kind = {"kind": "causal_lm"}
    data = {
        "texts": {**document()["data"]["texts"], "task": "prose"},
        "pairs": {**PROMPTED["texts"], "task": "answers"},
    }
    config = document(
        task=None,
        tasks={"prose": kind, "answers": kind},
        data=data,
        models={"teacher": llama(16, 2), "student": llama(8, 1)},
        stages=[
            supervised(train=["texts", "pairs"], training=training()),
            distill(
                train=["texts", "pairs"],
                unlabelled=[],
                teachers=[{"model": "teacher", "task": "prose"}, {"model": "teacher", "task": "answers"}],
                strategy="multi_task",
                training=training(),
            ),
        ],
        evaluation={"data": ["texts", "pairs"]},
    )
    summary = read(run(folder, "out", config) / "summary.json")
    assert set(summary["student"]["metrics"]) == {"prose/perplexity", "answers/perplexity", "mean/perplexity"}


def in_both(rank: int) -> None:
    made = Path(os.environ["BREWER_TEST_FOLDER"])
    run_config(made / "two.json", output=made / "two")


def test_two_processes_end_with_the_student_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = training(batch_size=5, accumulation=2, optimizer=STEADY)
    config = document(
        stages=[
            supervised(train=["texts"], training=odd),
            distill(train=["texts"], unlabelled=["texts"], training=odd),
        ]
    )
    one = run(folder, "one", config)
    write_config(folder, config, "two.json")
    monkeypatch.setenv("BREWER_TEST_FOLDER", str(folder))
    in_each(in_both, folder)
    assert_same(weights_in(one / "student"), weights_in(folder / "two/student"), atol=1e-5)
    ours, theirs = (read(folder / name / "summary.json")["student"]["metrics"] for name in ("one", "two"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_dry_run_and_explain_tell_what_is_learnt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_config(folder, document())
    assert brewer("run", file, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "the next of 290 tokens; padded on the right with '<|pad|>', masked there\n" in out
    assert brewer("explain", file, "--json") == 0
    distilled = json.loads(capsys.readouterr().out)[1]
    kd = next(term for term in distilled["tasks"][0]["terms"] if term["name"] == "kd_loss")
    assert kd["over"] == "logits"
    assert [part["name"] for part in kd["reads"]] == ["student.logits", "teacher.logits", "student.logits_mask"]


def test_a_tokenizer_without_a_token_for_padding_stays_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(folder, "first", document(stages=[supervised(train=["texts"], training=training())]))
    settings = first / "student/tokenizer_config.json"
    settings.write_text(json.dumps({**read(settings), "pad_token": None, "padding_side": "left"}))
    config = document(
        models={"teacher": {"name": "hf", "path": "first/student"}, "student": llama(8, 1)},
        tokenizer={"max_length": 40},
        stages=[distill(train=["texts"], unlabelled=[], training=training())],
    )
    assert (
        "the next of 290 tokens; padded on the right with '<|endoftext|>', masked there; the tokenizer has no token for padding\n"
    ) in dry_run(folder, capsys, **config)
    out = run(folder, "out", config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "student")
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "left")
    rows = [("", json.loads(line)["text"]) for line in (folder / "eval.jsonl").read_text().splitlines()]
    metrics = read(out / "summary.json")["student"]["metrics"]
    assert metrics["perplexity"] == pytest.approx(figures_by_hand(out / "student", rows)[0], rel=1e-5)


# What is refused


def problems_of(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_run_config(document(**changes), "config.json")
    return list(caught.value.problems)


TEXT = document()["data"]["texts"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"data": {"texts": {**TEXT, "label": "stars"}}},
            "data.texts.label: a causal_lm task learns the texts themselves, without labels; leave it out",
        ),
        (
            {"data": {"texts": {**TEXT, "augmentations": ["masking"]}}},
            "data.texts.augmentations: a causal_lm task would learn what they make of the texts; leave them out",
        ),
        ({"task": {"kind": "causal_lm", "labels": ["a", "b"]}}, "task.labels: unknown key; known: eos, kind"),
        ({"task": {"kind": "causal_lm", "oes": True}}, "task.oes: unknown key; did you mean 'eos'?"),
        (
            {
                "task": None,
                "tasks": {"a": {"kind": "causal_lm"}, "b": {"kind": "text_classification"}},
                "data": {"texts": {**TEXT, "task": "a"}, "more": {**TEXT, "task": "b"}},
                "stages": [supervised(train=["texts", "more"])],
            },
            "tasks: are of the kinds text_classification and causal_lm; the tasks of a run are all of one kind",
        ),
    ],
)
def test_what_does_not_go_with_the_kind_is_refused(changes: dict[str, Any], problem: str) -> None:
    assert problems_of(**changes) == [problem]


def test_what_a_config_leaves_out_follows_from_its_kind() -> None:
    config = parse_run_config(document(evaluation={"data": "texts"}), "config.json")
    (metric,), stage = config.evaluation.metrics, config.stages[1]
    assert (metric.name, config.data["texts"].label) == ("perplexity", None)
    assert {stage.adaptors.teacher.name, stage.adaptors.student.name} == {"causal_lm"}
    assert parse_run_config(config.to_dict(), "config.json") == config
    named = distill(train=["texts"], unlabelled=[], adaptors={"student": {"name": "causal_lm", "vocab_size": 5}})
    stage = parse_run_config(document(stages=[named]), "config.json").stages[0]
    assert (stage.adaptors.student.options, stage.adaptors.teacher.name) == ({"vocab_size": 5}, "causal_lm")


def dry_run(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    status = brewer("run", write_config(folder, document(**changes)), "--dry-run")
    captured = capsys.readouterr()
    assert status in (0, 2)
    return captured.err.rstrip("\n") if status else captured.out


def test_the_best_by_the_highest_perplexity_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {"data": "texts", "best": {"metric": "perplexity"}}
    assert dry_run(folder, capsys, evaluation=evaluation) == (
        "brewer: error: config: evaluation.best.mode: of 'perplexity' less is better, and \"max\" would keep the worst; set it to "
        '"min"'
    )


def test_a_column_that_is_not_there_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(folder, capsys, data={"texts": {**TEXT, "text": ["promt", "response"]}}) == (
        "brewer: error: config: data.texts.train.text: no column 'promt'. Columns: text"
    )


def test_models_of_other_vocabularies_are_told_and_may_share_their_first_entries(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"teacher": llama(16, 1, vocab_size=300), "student": llama(8, 1)}
    run(folder, "first", document(models=models, stages=[supervised(train=["texts"], training=training())]))
    kept = {"name": "hf", "path": "first/student"}
    alone = [distill(train=["texts"], unlabelled=[], training=training())]
    same = {"tokenizer": {"max_length": 40}, "stages": alone}
    assert "no run was written" in dry_run(folder, capsys, models={"teacher": kept, "student": llama(8, 1)}, **same)

    others = {"teacher": kept, "student": llama(8, 1, vocab_size=296)}
    assert dry_run(folder, capsys, models=others, **same) == (
        "brewer: error: config: stages[0]: student logits are 296 wide and teacher logits 300; both models must predict the same "
        "classes or vocabulary"
    )
    adaptor = {"name": "causal_lm", "vocab_size": 290}
    alone[0]["adaptors"] = {"teacher": adaptor, "student": adaptor}
    assert "no run was written" in dry_run(folder, capsys, models=others, **same)
