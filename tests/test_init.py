"""`brewer init`: it looks at data and teacher, fills in a recipe, and what it writes runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from brewer_core.config import parse_run_config
from brewer_core.errors import RequestError, Stopped
from brewer_core.plugins import build_registry
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly
from brewer_core.run.columns import Columns, columns_of
from brewer_core.run.explaining import explain
from brewer_core.run.library import recipe_names
from brewer_core.run.recipes import OwnData, Recipe, Teacher, check_teacher, filled, recipe
from brewer_core.stopping import StopReason, StopRequest
from brewer_core.testing import write_distribution
from runs import brewer, labelled, read, weights_in, write_csv

transformers = pytest.importorskip("transformers", reason="runs need the extra hf")
tokenizers = pytest.importorskip("tokenizers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 4}


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean folder, in which the command is called."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def films(folder: Path) -> Path:
    write_csv(folder / "train.csv", labelled(24))
    write_csv(folder / "test.csv", labelled(10))
    return folder


def init(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status = brewer("init", *arguments)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert brewer("init", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.removeprefix("brewer: error: ").rstrip("\n")


def quick(config: Path, steps: int = 2) -> list[str]:
    """Settings for a run of two steps a stage, of a teacher as small as can be where the run has one of its own."""
    document = read(config)
    per_stage = [
        f"stages.{i}.training.{setting}"
        for i in range(len(document["stages"]))
        for setting in ("epochs=null", f"steps={steps}", "batch_size=4")
    ]
    sizes = ["tokenizer.vocab_size=290"] if "config" in document["models"]["teacher"] else []
    own = ["cache=off", *sizes, *per_stage]
    return [argument for setting in own for argument in ("--set", setting)]


def smaller(name: str) -> Recipe:
    """A recipe whose own teacher is tiny."""
    made = recipe(name)
    document = copy.deepcopy(dict(made.config))
    document["models"]["teacher"]["config"].update(TINY)
    return replace(made, config=document)


class StopsAfter(StopRequest):
    """Asks to stop after so many steps, of all trainings together."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def reason(self) -> StopReason:
        """Why, once the steps are over; asked after each."""
        self._left -= 1
        return StopReason.TERMINATE if self._left <= 0 else StopReason.NONE


def written(folder: Path, document: Mapping[str, Any]) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


# Recipes


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_config_as_it_stands(name: str) -> None:
    made = recipe(name)
    config = parse_run_config(made.config, name, build_registry())
    assert config.kind.kind == made.task
    assert made.notes
    assert "arXiv:" in made.source
    assert made.teachers in ("any", "encoders", "decoders")


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_recipe_has_for_its_own_teacher_is_what_fits_it(name: str) -> None:
    document = filled(recipe(name), None, None)
    own = recipe(name).config
    assert document["models"] == own["models"]
    for stage, expected in zip(document["stages"], own["stages"], strict=True):
        assert stage.get("distillation") == expected.get("distillation")
        assert stage.get("strategy") == expected.get("strategy")


def tiny_run(folder: Path, name: str) -> Path:
    """A config of a recipe for rows of one's own: of two steps a stage, and a teacher as small as can be."""
    labels = None if recipe(name).task == "causal_lm" else "label"
    source = {"name": "csv", "path": {"train": "train.csv", "eval": "test.csv"}}
    document = filled(smaller(name), OwnData(source, Columns("text", labels), 24), None)
    for stage in document["stages"]:
        stage["training"] |= {"epochs": None, "steps": 2, "batch_size": 4}
    document["tokenizer"]["vocab_size"] = 290
    return written(folder, {**document, "cache": "off"})


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_runs_on_ones_own_data_and_goes_on_where_it_was_stopped(films: Path, name: str) -> None:
    config = tiny_run(films, name)
    stages = len(read(config)["stages"])
    assert brewer("run", config, "--output", films / "whole") == 0
    with pytest.raises(Stopped):  # in the middle of the last stage
        run_config(config, output=films / "stopped", registry=build_registry(), stop=StopsAfter(2 * stages - 1))
    assert brewer("run", config, "--output", films / "stopped", "--resume") == 0
    own, expected = (weights_in(films / each / "student") for each in ("stopped", "whole"))
    assert all(torch.equal(own[key], weight) for key, weight in expected.items())
    summary = read(films / "stopped/summary.json")
    assert summary["rows"] == 10
    assert set(summary["baselines"]) == {"labels_only"}
    assert summary["student"]["origin"].startswith("cut out of its teacher: ")
    assert summary["student"]["parameters"] < summary["teacher"]["parameters"]


@pytest.mark.parametrize(
    ("name", "totals"),
    [
        (
            "tinybert",
            [
                [
                    "1 * embedding_mse(linear(student.embeddings: 4 -> 8), teacher.embeddings)",
                    "1 * tinybert_attention(student.scores[0], teacher.scores[1])",
                    "1 * tinybert_attention(student.scores[1], teacher.scores[3])",
                    "1 * hidden_mse(linear(student.hidden[1]: 4 -> 8), teacher.hidden[2])",
                    "1 * hidden_mse(linear(student.hidden[2]: 4 -> 8), teacher.hidden[4])",
                ],
                ["1 * ce(student.logits, teacher.logits; T = 1)"],
            ],
        ),
        (
            "minilm",
            [
                [
                    "1 * minilm((student.scores[-1], student.value[-1]), (teacher.scores[-1], teacher.value[-1]); normalized = false)"
                ],
                ["1 * kl(student.logits, teacher.logits; T = 2)", "0.5 * sum(student.losses)"],
            ],
        ),
        (
            "minilmv2",
            [
                [
                    "1 * minilmv2((student.query[-1], student.key[-1], student.value[-1]), "
                    "(teacher.query[-1], teacher.key[-1], teacher.value[-1]); relation_heads = 1)"
                ],
                ["1 * kl(student.logits, teacher.logits; T = 2)", "0.5 * sum(student.losses)"],
            ],
        ),
        ("distillm", [["1 * skew_kl(student.logits, teacher.logits; T = 1)"]]),
        ("gkd", [["1 * jsd(student.logits, teacher.logits; T = 1)"]]),
    ],
)
def test_what_a_recipe_minimises_is_what_its_paper_says(films: Path, name: str, totals: list[list[str]]) -> None:
    registry = build_registry()
    config = parse_run_config(read(tiny_run(films, name)), name, registry)
    explained = explain(Assembly(config, films, registry, torch.device("cpu")))
    assert [list(stage.tasks[0].formula) for stage in explained if stage.kind == "distill"] == totals


def distillations(name: str) -> list[dict[str, Any]]:
    """What each distil stage of a recipe minimises, with its strategy where it has one of its own."""
    stages = [stage for stage in recipe(name).config["stages"] if stage["kind"] == "distill"]
    return [
        {**stage["distillation"], **({"strategy": stage["strategy"]} if "strategy" in stage else {})}
        for stage in stages
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kd", [{"temperature": 2, "kd_loss_type": "kl", "kd_loss_weight": 1, "hard_label_weight": 0.5}]),
        ("kd-lm", [{"temperature": 1, "kd_loss_type": "kl", "kd_loss_weight": 0.5, "hard_label_weight": 0.5}]),
        (
            "distilbert",
            [
                {
                    "temperature": 2,
                    "kd_loss_type": "kl",
                    "kd_loss_weight": 5,
                    "hard_label_weight": 2,
                    "intermediate_matches": [
                        {"feature": "hidden", "layer_T": -1, "layer_S": -1, "loss": "cos", "weight": 1}
                    ],
                }
            ],
        ),
        (
            "tinybert",
            [
                {
                    "kd_loss_weight": 0,
                    "hard_label_weight": 0,
                    "intermediate_matches": [
                        {"feature": "embeddings", "loss": "embedding_mse", "weight": 1, "proj": "linear"},
                        {"feature": "scores", "layers": "uniform", "loss": "tinybert_attention", "weight": 1},
                        {
                            "feature": "hidden",
                            "layers": "skip",
                            "loss": "hidden_mse",
                            "weight": 1,
                            "proj": "linear",
                        },
                    ],
                },
                {"temperature": 1, "kd_loss_type": "ce", "kd_loss_weight": 1, "hard_label_weight": 0},
            ],
        ),
        (
            "minilm",
            [
                {
                    "kd_loss_weight": 0,
                    "hard_label_weight": 0,
                    "intermediate_matches": [
                        {
                            "feature": ["scores", "value"],
                            "layer_T": -1,
                            "layer_S": -1,
                            "loss": {"name": "minilm", "normalized": False},
                            "weight": 1,
                        }
                    ],
                },
                {"temperature": 2, "kd_loss_type": "kl", "kd_loss_weight": 1, "hard_label_weight": 0.5},
            ],
        ),
        (
            "minilmv2",
            [
                {
                    "kd_loss_weight": 0,
                    "hard_label_weight": 0,
                    "intermediate_matches": [
                        {
                            "feature": ["query", "key", "value"],
                            "layer_T": -1,
                            "layer_S": -1,
                            "loss": {"name": "minilmv2", "relation_heads": 8},
                            "weight": 1,
                        }
                    ],
                },
                {"temperature": 2, "kd_loss_type": "kl", "kd_loss_weight": 1, "hard_label_weight": 0.5},
            ],
        ),
        (
            "pkd",
            [
                {
                    "temperature": 10,
                    "kd_loss_type": "kl",
                    "kd_loss_weight": 0.5,
                    "hard_label_weight": 0.5,
                    "strategy": {"name": "pkd", "pattern": "skip", "weight": 0.781},
                }
            ],
        ),
        (
            "distillm",
            [
                {
                    "temperature": 1,
                    "kd_loss_type": {"name": "skew_kl", "alpha": 0.1},
                    "kd_loss_weight": 1,
                    "hard_label_weight": 0,
                }
            ],
        ),
        (
            "gkd",
            [
                {
                    "temperature": 1,
                    "kd_loss_type": {"name": "jsd", "beta": 0.5},
                    "kd_loss_weight": 1,
                    "hard_label_weight": 0,
                }
            ],
        ),
    ],
)
def test_the_settings_of_a_recipe_are_the_papers(name: str, expected: list[dict[str, Any]]) -> None:
    assert distillations(name) == expected


# Data


def test_a_config_is_written_and_told_of(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = init(capsys, "--data", "train.csv")
    assert out.splitlines()[:6] == [
        "config.json holds the recipe kd: Knowledge distillation, Hinton et al. 2015, arXiv:1503.02531.",
        "  data     train.csv, evaluated on test.csv",
        "  columns  texts in text, labels in label (2 of them)",
        "  teacher  a small one, drawn and trained on the rows; a pretrained one teaches more: --teacher",
        "  student  2 of the teacher's 4 layers, evenly spaced from the first on, as wide",
        "  stages   10 epochs each at 0.001, in place of the recipe's, as nothing is pretrained",
    ]
    assert out.splitlines()[-4:] == [
        "Next:",
        "  brewer run config.json --dry-run",
        "  brewer explain config.json",
        "  brewer run config.json",
    ]
    config = read(films / "config.json")
    assert config["data"] == {
        "own": {
            "source": {"name": "csv", "path": {"train": "train.csv", "eval": "test.csv"}},
            "text": "text",
            "label": "label",
        }
    }
    for stage in config["stages"]:
        assert (stage["training"]["epochs"], stage["training"]["optimizer"]["learning_rate"]) == (10, 1e-3)
    assert brewer("run", films / "config.json", "--dry-run") == 0


def test_a_single_file_keeps_a_tenth_of_its_rows_for_evaluation(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(folder / "all.csv", labelled(40))
    assert "all.csv, a tenth of whose rows are kept for evaluation; --eval names others" in init(
        capsys, "--data", "all.csv"
    )
    assert brewer("run", folder / "config.json", "--dry-run") == 0
    assert "evaluation on 4 rows of data" in capsys.readouterr().out


def test_paths_are_relative_to_the_config(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (films / "configs").mkdir()
    init(capsys, "--data", "train.csv", "--output", "configs/kd.json")
    assert read(films / "configs/kd.json")["data"]["own"]["source"]["path"] == {
        "train": "../train.csv",
        "eval": "../test.csv",
    }
    assert brewer("run", films / "configs/kd.json", "--dry-run") == 0


def test_texts_without_labels_make_language_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "book.txt").write_text("\n".join(f"This is line {i} of the book." for i in range(30)), encoding="utf-8")
    out = init(capsys, "--data", "book.txt")
    assert "holds the recipe kd-lm" in out
    assert "  columns  texts in text\n" in out
    assert read(folder / "config.json")["task"] == {"kind": "causal_lm"}


def test_prompts_with_responses_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"Instruction": f"Say {i}.", "id": str(i), "Output": f"It is {i}."} for i in range(20)]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    assert "  columns  prompts in Instruction, responses in Output\n" in init(capsys, "--data", "train.jsonl")
    assert read(folder / "config.json")["data"]["own"]["text"] == ["Instruction", "Output"]


def test_pairs_of_texts_make_a_task_of_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"premise": f"it is {i}", "hypothesis": "no", "relation": "ab"[i % 2]} for i in range(20)]
    write_csv(folder / "nli.csv", rows)
    out = init(capsys, "--data", "nli.csv")
    assert "  columns  texts in pairs in premise and hypothesis, labels in relation (2 of them)\n" in out
    assert read(folder / "config.json")["task"] == {"kind": "text_classification", "pair": True, "labels": ["a", "b"]}
    assert brewer("run", folder / "config.json", "--dry-run") == 0


def test_rows_without_a_label_are_not_held_out_for_evaluation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled(30)
    write_csv(folder / "some.csv", [*rows, *({**row, "label": ""} for row in rows)])
    assert "some.csv, a tenth of whose labelled rows are kept for evaluation; " in init(capsys, "--data", "some.csv")
    for seed in range(3):
        assert brewer("run", folder / "config.json", "--dry-run", "--set", f"seed={seed}") == 0
        assert "evaluation on 3 rows of data" in capsys.readouterr().out


def test_a_class_that_is_held_out_as_a_whole_is_a_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled(18)
    write_csv(folder / "rare.csv", [*rows, {**rows[0], "label": "seldom"}, {**rows[1], "label": "rare"}])
    init(capsys, "--data", "rare.csv")
    assert read(folder / "config.json")["task"]["labels"] == ["n", "p", "rare", "seldom"]
    for seed in range(8):  # of 20 rows 2 are held out, one of the two classes sooner or later
        assert brewer("run", folder / "config.json", "--dry-run", "--set", f"seed={seed}") == 0


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"id": i, "what": f"a long text {i}", "how": "xyz"[i % 3]} for i in range(12)],
            Columns("what", "how", ("x", "y", "z")),
        ),
        (
            [{"Review": f"text {i}", "stars": i % 5} for i in range(20)],
            Columns("Review", "stars", ("0", "1", "2", "3", "4")),
        ),
        ([{"a": f"{i}", "b": f"a longer text {i}"} for i in range(12)], Columns("b", None)),
        ([{"text": f"text {i}", "score": i / 7} for i in range(12)], Columns("text", None)),
        ([{"prompt": "p", "text": f"{i}", "response": "r"} for i in range(3)], Columns(("prompt", "response"), None)),
    ],
)
def test_columns_are_told_by_their_names_and_else_by_what_they_hold(
    rows: list[dict[str, Any]], expected: Columns
) -> None:
    assert columns_of(rows, "rows.csv", [], None, None) == expected


def test_columns_that_are_named_are_taken() -> None:
    rows = [{"text": f"text {i}", "other": f"{i}", "label": "ab"[i % 2], "topic": "cd"[i % 2]} for i in range(12)]
    assert columns_of(rows, "rows.csv", ["other"], "topic", None) == Columns("other", "topic", ("c", "d"))
    assert columns_of(rows, "rows.csv", ["text", "other"], None, None) == Columns(
        ("text", "other"), "label", ("a", "b")
    )
    assert columns_of(rows, "rows.csv", [], None, True) == Columns("text", None)


def test_numbers_of_classes_are_in_their_order() -> None:
    rows = [{"text": f"text {i}", "label": i % 11} for i in range(33)]
    assert columns_of(rows, "rows.jsonl", [], None, None).classes == tuple(map(str, range(11)))


def test_classes_are_those_of_all_rows_as_a_run_reads_them() -> None:
    rows = [{"text": f"text {i}", "label": None if i < 2 else i > 2000} for i in range(2004)]
    assert columns_of(rows, "rows.jsonl", [], "label", None).classes == ("false", "true")


# Teachers


def model_in(folder: Path, model: Any) -> None:
    """A model that knows no classes, with a tokenizer of words."""
    known = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "the", "good", "bad", "film"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bert_in(folder: Path, **others: int) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, **others}
    model_in(folder, transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes)))


def llama_in(folder: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    model_in(folder, transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **sizes)))


def test_a_teacher_in_a_folder_gives_its_tokenizer_and_its_sizes(
    films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert_in(films / "bert")
    out = init(capsys, "--data", "train.csv", "--teacher", "bert", "--recipe", "minilm")
    assert "  teacher  the one in bert\n" in out
    assert "  student  2 of the teacher's 4 layers, evenly spaced up to the last, 4 of 8 wide, 2 heads of 2\n" in out
    config = read(films / "config.json")
    assert config["tokenizer"]["from"] == "teacher"
    assert [stage["training"]["epochs"] for stage in config["stages"]] == [3, 10, 4]
    assert brewer("run", films / "config.json", "--dry-run") == 0


def test_texts_are_no_longer_than_the_teacher_takes(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert_in(films / "bert", max_position_embeddings=20)
    assert "  tokens   20 of each text, as the teacher takes no more\n" in init(
        capsys, "--data", "train.csv", "--teacher", "bert"
    )
    assert read(films / "config.json")["tokenizer"]["max_length"] == 20
    assert brewer("run", films / "config.json", "--dry-run") == 0


def test_few_steps_for_a_papers_rate_are_told(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert_in(films / "bert")
    steps = "  steps    4 in the last stage, few for a paper's rate: raise its epochs if its losses still fall\n"
    assert steps in init(capsys, "--data", "train.csv", "--teacher", "bert")  # 4 epochs of 24 rows, 32 in a batch
    write_csv(films / "many.csv", labelled(9000))
    assert "  steps " not in init(
        capsys, "--data", "many.csv", "--eval", "test.csv", "--teacher", "bert", "-o", "many.json"
    )


def test_a_teacher_that_knows_the_classes_is_not_trained(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert_in(films / "bert")
    init(capsys, "--data", "train.csv", "--teacher", "bert")
    config = films / "config.json"
    assert brewer("run", config, "-o", films / "first", *quick(config)) == 0
    capsys.readouterr()
    out = init(capsys, "--data", "train.csv", "--teacher", "first/stages/teacher/model", "-o", "again.json")
    assert "  stages   the teacher knows the 2 classes, and is not trained\n" in out
    again = read(films / "again.json")
    assert again["task"]["labels"] == ["n", "p"]
    assert [stage["name"] for stage in again["stages"]] == ["distil"]
    assert again["stages"][0]["training"]["optimizer"]["learning_rate"] == 5e-5
    assert brewer("run", films / "again.json", "--dry-run") == 0


def test_a_teacher_of_other_classes_is_trained_on_them() -> None:
    taught = Teacher({"name": "hf", "path": "x"}, {"id2label": {"0": "a", "1": "b"}, "n_layer": 4})
    document = filled(recipe("kd"), None, taught, ["a", "c"])
    assert [stage["name"] for stage in document["stages"]] == ["teacher", "distil"]
    assert filled(recipe("kd"), None, taught, ["b", "a"])["task"]["labels"] == ["a", "b"]


def test_a_teacher_in_a_distribution_is_its_model_and_no_other_config_in_it(
    films: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bert_in(films / "bert")
    brought = {"tiny_model/1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}'}
    brought |= {
        f"tiny_model/{file.name}": file.read_text("utf-8", errors="ignore") for file in (films / "bert").iterdir()
    }
    info = write_distribution(films / "site", "tiny-model", files=brought) / "tiny_model-1.0.dist-info"
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in brought), encoding="utf-8")
    monkeypatch.syspath_prepend(films / "site")
    out = init(capsys, "--data", "train.csv", "--teacher", "tiny-model")
    assert "  teacher  the one in the distribution tiny-model\n" in out
    assert "  student  2 of the teacher's 4 layers, evenly spaced from the first on, as wide\n" in out


def test_a_teacher_that_is_not_here_is_one_of_the_hub(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = init(capsys, "--data", "train.csv", "--teacher", "org/model-12")
    assert "  teacher  org/model-12 on the Hugging Face hub, as there is no such folder here\n" in out
    assert "  student  half of the teacher's layers, evenly spaced from the first on, and as wide; " in out


def test_a_decoder_classifies_too(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama_in(films / "llama")
    init(capsys, "--data", "train.csv", "--recipe", "kd", "--teacher", "llama")
    config = films / "config.json"
    assert brewer("run", config, "-o", films / "out", *quick(config)) == 0
    assert read(films / "out/student/config.json")["num_hidden_layers"] == 2


@pytest.mark.parametrize("name", [name for name in recipe_names() if recipe(name).teachers == "encoders"])
def test_a_decoder_is_refused_where_a_recipe_is_for_encoders(
    films: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    llama_in(films / "llama")
    assert refusal(capsys, "--data", "train.csv", "--recipe", name, "--teacher", "llama") == (
        f"--teacher llama: is a decoder (llama), and the recipe {name} is for encoders such as BERT; take the recipe kd for classes, or "
        "one of language models: distillm, gkd, kd-lm."
    )
    assert not (films / "config.json").exists()


@pytest.mark.parametrize("name", [name for name in recipe_names() if recipe(name).teachers == "decoders"])
def test_an_encoder_is_refused_where_a_recipe_is_for_language_models(
    films: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bert_in(films / "bert")
    assert refusal(capsys, "--data", "train.csv", "--recipe", name, "--teacher", "bert") == (
        f"--teacher bert: is an encoder (bert), which sees the tokens that it would have to predict, and the recipe {name} is for decoders "
        "such as GPT-2 or Llama; take one of classes: bert-emd, distilbert, kd, minilm, minilmv2, pkd, tinybert."
    )
    assert not (films / "config.json").exists()


@pytest.mark.parametrize(
    ("settings", "decoder"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2Model"]}, True),
        ({"model_type": "opt", "architectures": ["OPTForCausalLM"]}, True),
        ({"model_type": "bert", "is_decoder": True}, True),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, False),
        ({"model_type": "ernie", "architectures": ["ErnieForMaskedLM"]}, False),
        ({"model_type": "t5", "is_encoder_decoder": True}, False),
        ({"model_type": "ernie", "architectures": ["ErnieForSequenceClassification"]}, None),
        ({"model_type": "albert", "architectures": ["AlbertModel"]}, None),
        ({}, None),
    ],
)
def test_decoders_are_known_by_their_config(settings: dict[str, Any], decoder: bool | None) -> None:
    assert Teacher({}, settings).reads_left_to_right is decoder


# What is refused


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        (
            "pkd",
            {"model_type": "bert", "num_hidden_layers": 1},
            "has 1 layer, and the recipe pkd needs a student of 2 or more; take another recipe, or a deeper teacher.",
        ),
        (
            "kd-lm",
            {"model_type": "t5", "is_encoder_decoder": True, "num_layers": 4},
            "is an encoder-decoder (t5), which sees the tokens that it would have to predict, and the recipe kd-lm is for decoders such as "
            "GPT-2 or Llama; take one of classes: bert-emd, distilbert, kd, minilm, minilmv2, pkd, tinybert.",
        ),
        (
            "kd",
            {"model_type": "albert", "num_hidden_layers": 4},
            "is albert, which has one layer for all, and recipes cut the student out of the teacher's layers; take another teacher, or "
            "write a config with a student of its own.",
        ),
    ],
)
def test_a_teacher_that_a_recipe_cannot_use_is_told(name: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as error:
        check_teacher(recipe(name), Teacher({}, settings), "model")
    assert str(error.value) == f"--teacher model: {text}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--recipe", "distilbret"],
            f"--recipe distilbret: there is no such recipe; did you mean 'distilbert' or 'distillm'? Known: "
            f"{', '.join(recipe_names())}",
        ),
        (["--recipe", "zzz"], f"--recipe zzz: there is no such recipe; known: {', '.join(recipe_names())}"),
        (["--data", "trian.csv"], "--data trian.csv: there is no such file."),
        (["--data", "train.csv", "--eval", "tset.csv"], "--eval tset.csv: there is no such file."),
        (
            ["--data", "notes.doc"],
            "--data notes.doc: cannot tell what it is; expected a name that ends in .csv, .tsv, .jsonl, .ndjson, .parquet, .txt.",
        ),
        (
            ["--data", "train.csv", "--text", "texts"],
            "--text texts: train.csv has no such column; did you mean 'text'?",
        ),
        (
            ["--data", "train.csv", "--label", "stars"],
            "--label stars: train.csv has no such column; known: text, label",
        ),
        (
            ["--data", "train.csv", "--text", "text,label,text"],
            "--text text,label,text: expected one column, or two for a pair of texts.",
        ),
        (
            ["--text", "text"],
            "--eval, --text and --label are about rows of your own; name their file with --data.",
        ),
        (
            ["--data", "train.csv", "--recipe", "kd-lm", "--label", "label"],
            "--label label: the recipe kd-lm learns the texts themselves; leave it out.",
        ),
        (
            ["--data", "plain.csv", "--recipe", "kd"],
            "the recipe kd learns classes, and plain.csv has no column that looks like labels (columns: what); name it with --label, "
            "or take a recipe of language models such as kd-lm.",
        ),
        (
            ["--data", "one.csv"],
            "one.csv.label: the labelled rows have only the class 'p'; classification needs two or more. Name another column with "
            "--label.",
        ),
        (
            ["--data", "numbers.csv"],
            "numbers.csv: no column holds texts (columns: label); name one with --text, or two with a comma between them.",
        ),
        (
            ["--data", "train.csv", "--eval", "lines.jsonl"],
            "--eval lines.jsonl: is of another format than train.csv; give both in one.",
        ),
        (
            ["--data", "train.csv", "--eval", "plain.csv"],
            "plain.csv: no column 'text', which the training rows have; columns: what.",
        ),
        (["--teacher", "./nowhere"], "--teacher ./nowhere: there is no such folder."),
        (
            ["--teacher", "empty"],
            "--teacher empty: the folder holds no config.json; give one that `save_pretrained` wrote.",
        ),
        (["--teacher", "pluggy"], "--teacher pluggy: this distribution holds no model's folder; give a folder."),
        (["--output", "taken.json"], "output taken.json is there already; name a new file with --output."),
        (
            ["--output", "no/where.json"],
            "output no/where.json cannot be written: No such file or directory; choose another with --output.",
        ),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(
    films: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (films / "notes.doc").write_text("x")
    (films / "taken.json").write_text("{}")
    (films / "empty").mkdir()
    write_csv(films / "plain.csv", [{"what": f"text {i}"} for i in range(5)])
    write_csv(films / "one.csv", [{"text": f"text {i}", "label": "p"} for i in range(5)])
    write_csv(films / "numbers.csv", [{"label": "ab"[i % 2]} for i in range(8)])
    (films / "lines.jsonl").write_text('{"text": "a", "label": "p"}\n')
    assert refusal(capsys, *arguments) == text
    assert not (films / "config.json").exists()
    assert (films / "taken.json").read_text() == "{}"


def test_a_recipe_that_needs_another_distribution_names_it(
    films: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREWER_DISABLE_PLUGINS", "brewer-loss-pkd")
    assert "brewer-loss-pkd provides it: pip install brewer-loss-pkd" in refusal(
        capsys, "--data", "train.csv", "--recipe", "pkd"
    )


def test_the_recipes_are_listed_with_their_papers(capsys: pytest.CaptureFixture[str]) -> None:
    out = init(capsys, "--list")
    for name in recipe_names():
        assert f"\n{name} " in out
    assert "arXiv:1910.01108" in out
    assert brewer("init", "--help") == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"One of {', '.join(recipe_names())}." in told


def test_a_recipe_is_no_config_to_run_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("run", "distilbert") == 2
    assert capsys.readouterr().err == (
        "brewer: error: 'distilbert' is a recipe; write a config of it for your own data first: brewer init --recipe distilbert\n"
    )


def test_an_unknown_recipe_is_a_request_error() -> None:
    with pytest.raises(RequestError):
        recipe("nothing")
