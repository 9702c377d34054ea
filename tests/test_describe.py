"""`brewer describe`: what is known of one method, and the part of a config that names it."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import pytest
from pydantic import Field

from brewer_core import component
from brewer_core.cli.describing import compact, description, range_text, type_text
from brewer_core.config import parse_run_config
from brewer_core.config.snippets import IN_RUN, snippet
from brewer_core.plugins import build_registry
from fakes import plugin
from runs import brewer, distill, document, supervised

REGISTRY = build_registry()


def merged(document, part):
    """A document with the objects of a part laid over its own."""
    if not isinstance(document, dict) or not isinstance(part, dict) or "name" in part:
        return part
    return {**document, **{key: merged(document.get(key), value) for key, value in part.items()}}


def placed(shown):
    """A whole config with a snippet in its place."""
    if shown.where == IN_RUN:
        return merged(document(), shown.document)
    return document(stages=[supervised(), merged(distill(), shown.document)])


@pytest.fixture
def described(capsys):
    """The status and the objects of `brewer describe --json`."""

    def answer(*arguments):
        status = brewer("describe", "--json", *arguments)
        captured = capsys.readouterr()
        return status, json.loads(captured.out or "null"), captured.err

    return answer


# The part of a config


@pytest.mark.parametrize("one", REGISTRY.components(), ids=lambda one: f"{one.kind.name}-{one.name}")
def test_the_snippet_of_every_component_is_accepted_in_its_place(one):
    shown = snippet(one)
    config = placed(shown)
    parse_run_config(config, "config", REGISTRY)
    assert f'"{one.name}"' in json.dumps(shown.document)


def test_the_settings_of_an_option_that_is_an_object_are_told_one_by_one(capsys):
    assert brewer("describe", "model", "hf") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = [words[0] for words in shown if words]
    start = names.index("from_teacher")
    settings = ("layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "method")
    assert [name for name in names[start:] if name in settings] == list(settings)
    (told,) = [
        option for option in description(REGISTRY.get("model", "hf"))["options"] if option["name"] == "from_teacher"
    ]
    assert told["type"].startswith("object of layers, hidden_size,")
    assert "$ref" not in json.dumps(told)


def test_a_snippet_has_what_is_required_and_what_has_examples():
    def made(
        progress: float,
        *,
        share: Annotated[float, Field(gt=0, lt=0.3)],
        many: Annotated[list[Annotated[int, Field(ge=7)]], Field(min_length=2)],
        which: Literal["a", "b"],
        on: bool,
        label: Annotated[str, Field(max_length=3)],
        table: dict[str, int],
        either: int | None,
        shown: Annotated[str, Field(examples=["like this"])] = "",
        hidden: int = 1,
    ) -> float:
        """A schedule."""

    registry = REGISTRY.with_plugin(plugin(brewer_weight_schedulers={"made": made}))
    shown = snippet(registry.get("weight_scheduler", "made"))
    assert shown.document["distillation"]["hard_label_weight_scheduler"] == {
        "name": "made",
        "share": pytest.approx(0.15),
        "many": [7, 7],
        "which": "a",
        "on": True,
        "label": "LAB",
        "table": {},
        "either": 1,
        "shown": "like this",
    }
    parse_run_config(placed(shown), "config", registry)


@pytest.mark.parametrize(
    ("name", "layer", "feature"),
    [
        ("hidden_mse", 1, "hidden"),
        ("attention_mse", 1, "attention"),
        ("fsp", [0, 1], "hidden"),
        ("tinybert_attention", 1, "scores"),
        ("minilm", 1, ["attention", "value"]),
        ("minilmv2", 1, ["query", "key", "value"]),
    ],
)
def test_a_match_reads_features_that_suit_its_loss(name, layer, feature):
    (match,) = snippet(REGISTRY.get("match_loss", name)).document["distillation"]["intermediate_matches"]
    assert (match["layer_S"], match["layer_T"], match["feature"]) == (layer, layer, feature)


# The JSON


def test_the_json_has_all_that_is_known(described):
    status, (flsw,), error = described("temperature-schedulers", "flsw")
    assert (status, error) == (0, "")
    assert flsw["kind"] == "temperature_scheduler"
    assert flsw["full_name"] == "Focal loss style weights"
    assert flsw["source"] == "Wen et al. 2019, arXiv:1911.07471"
    assert flsw["text"].startswith(flsw["summary"] + "\n\nA position weighs")
    assert "Returns a Tensor [N] or [B, L], at least `floor`" in flsw["text"]
    assert flsw["over"] is None
    assert flsw["sparse"] is False
    assert (flsw["distribution"], flsw["entry_point"]) == ("brewer-core", "temperature_schedulers")
    assert [(o["name"], o["type"], o["range"], o["required"], o["default"]) for o in flsw["options"]] == [
        ("beta", "number", "", True, None),
        ("gamma", "number", ">= 0", True, None),
        ("eps", "number", ">= 0", False, 0.0001),
        ("floor", "number", "> 0", False, 0.1),
    ]
    assert flsw["where"] == "in a distill stage"
    assert flsw["snippet"] == {"distillation": {"temperature_scheduler": {"name": "flsw", "beta": 1, "gamma": 1}}}


def test_inputs_are_told_with_how_they_are_passed():
    def mine(student, teacher, *, labels, progress=0.0):
        """Mine."""

    registry = REGISTRY.with_component("match_loss", "mine", mine)
    assert description(registry.get("match_loss", "mine"))["inputs"] == [
        {"name": "student", "by": "position", "required": True},
        {"name": "teacher", "by": "position", "required": True},
        {"name": "labels", "by": "name", "required": True},
        {"name": "progress", "by": "name", "required": False},
    ]


def test_a_mean_over_the_batch_is_told_as_such(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from brewer_core import component, hookimpl\n\n\n@component(over='batch')\n"
        "def mine(student, teacher, mask=None):\n    '''Mine.'''\n\n\n"
        "@hookimpl\ndef brewer_match_losses():\n    return {'mine': mine}\n"
    )
    assert brewer("describe", "match_loss", "mine", "--plugin", file) == 0
    assert "mean over  the batch as a whole" in capsys.readouterr().out


def test_a_function_that_counts_is_told_by_its_name():
    @component(over=lambda counts: counts.rows)
    def mine(student, teacher, mask=None):
        """Mine."""

    registry = REGISTRY.with_component("match_loss", "mine", mine)
    assert description(registry.get("match_loss", "mine"))["over"] == "<lambda>"


@pytest.mark.parametrize(
    ("field", "kind", "values"),
    [
        ({"type": "string"}, "text", ""),
        ({"type": "string", "minLength": 1, "maxLength": 1}, "text", "1 character"),
        ({"type": "string", "minLength": 2}, "text", "at least 2 characters"),
        ({"type": "string", "pattern": "^a"}, "text", "matches ^a"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "number", ">= 0, < 1"),
        ({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, "integer or null", ">= 1"),
        ({"enum": ["a", 1]}, '"a" or 1', ""),
        ({"const": "a"}, '"a"', ""),
        ({"type": "boolean"}, "true or false", ""),
        (
            {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 3},
            "list of integer",
            "0 to 3 items, each >= 1",
        ),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of text", ""),
        ({"type": "object", "additionalProperties": True}, "object", ""),
        ({}, "any value", ""),
    ],
)
def test_types_and_ranges_are_words(field, kind, values):
    assert type_text(field) == kind
    assert range_text(field) == values


# The page


def test_the_page_of_a_method(capsys):
    assert brewer("describe", "kd-loss", "kl") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("kd loss kl\n\nForward KL divergence: from the student's softened distribution")
    for part in (
        "from       brewer-core 0.1.0 [kd_losses]",
        "sparse     some of the teacher's logits are enough",
        "inputs     student_logits, teacher_logits, temperature",
        "t_squared    true or false  true",
        'in a distill stage\n{"distillation": {"kd_loss_type": "kl"}}\n',
    ):
        assert part in printed


@pytest.mark.parametrize(
    ("arguments", "sparse", "line"),
    [
        (("kd-loss", "ce"), True, "sparse     some of the teacher's logits are enough"),
        (("kd-loss", "mse"), False, "sparse     no, all of the teacher's logits are needed"),
        (("temperature-scheduler", "cwsm"), True, "some of the teacher's logits are enough"),
    ],
)
def test_a_method_of_logits_says_whether_it_accepts_sparse_ones(arguments, sparse, line, described, capsys):
    _, (found,), _ = described(*arguments)
    assert found["sparse"] is sparse
    assert brewer("describe", *arguments) == 0
    assert line in capsys.readouterr().out


def test_a_method_of_other_things_says_nothing_of_sparse_logits(described, capsys):
    _, (found,), _ = described("match-loss", "cos")
    assert found["sparse"] is None
    assert brewer("describe", "match-loss", "cos") == 0
    assert "sparse" not in capsys.readouterr().out


def test_a_formula_is_a_line_of_its_own(capsys):
    assert brewer("describe", "kd-loss", "jsd") == 0
    lines = capsys.readouterr().out.splitlines()
    (formula,) = [
        i for i, line in enumerate(lines) if line.startswith("Formula: T² (β KL(p‖M) + (1-β) KL(q‖M)), with M")
    ]
    assert lines[formula + 1] == "softmax(student / T); with `normalise` this divided by β(1-β)"
    assert lines[formula + 2].startswith("temperature: a number, or a Tensor")


def test_json_stands_on_lines_that_are_short():
    value = {"a": {"b": ["x" * 30, "y" * 30], "c": {}}, "d": []}
    assert compact({"a": 1}) == '{"a": 1}'
    assert json.loads(compact(value)) == value
    assert max(map(len, compact(value).splitlines())) <= 80


# What cannot be described, and conflicts


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("loss", "kl"), "no kind of component is called 'loss'; the kinds are kd_loss, match_loss, projection, "),
        (
            ("metric", "accurracy"),
            "no metric is called 'accurracy'; did you mean 'accuracy'? Known: accuracy, f1, matthews, perplexity.",
        ),
    ],
)
def test_an_unknown_kind_or_name_is_an_error(arguments, error, capsys):
    assert brewer("describe", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"brewer: error: {error}")


def test_both_providers_of_a_name_are_described(described, tmp_path, capsys):
    file = tmp_path / "again.py"
    file.write_text(
        "from brewer_core import hookimpl\n\n\ndef kl(student_logits, teacher_logits, temperature):\n    '''Again.'''\n\n\n"
        "@hookimpl\ndef brewer_kd_losses():\n    return {'kl': kl}\n"
    )
    status, both, _ = described("kd_loss", "kl", "--plugin", file)
    assert status == 0
    assert [one["distribution"] for one in both] == ["brewer-core", "again.py"]
    assert brewer("describe", "kd_loss", "kl", "--plugin", file) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "2 plugins provide this name, and no config can use it: --disable brewer-core:kd_losses or again.py:"
    )


def test_a_plugin_that_is_left_out_is_not_described(capsys):
    assert brewer("describe", "adaptor", "text_classification", "--disable", "brewer-core:adaptors") == 2
    error = "no adaptor is called 'text_classification'. Known: none. Disabled: brewer-core:adaptors."
    assert error in capsys.readouterr().err
