"""Features without editing a model: in the distillers and in runs they are read where they are, and leave nothing behind."""

from __future__ import annotations

import copy
import gc
import json
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brewer_core import DistillationConfig, GeneralDistiller, LiveTeacher, TrainingConfig
from brewer_core.captures import PathError, capturing
from brewer_core.config.optimization import Optimization
from brewer_core.errors import AdaptorError, BrewerError, ConfigError
from brewer_core.features import Features
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.plugins import default_registry
from brewer_core.protocols import Step
from brewer_core.run.training_modes import training_modes
from captured_on_two import classifier, only_logits, texts
from families import batch, built, hooks_of
from tiny import Tiny, adaptor, assert_same, batches, table, weights

CPU = torch.device("cpu")
QUERY = {"feature": "query[1]", "weight": 1, "loss": "hidden_mse"}


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def distiller(
    folder: Path,
    *matches: Mapping[str, Any],
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    adapt: Any = only_logits,
    sample: Any = None,
    **settings: Any,
) -> GeneralDistiller:
    """A distiller whose user's adaptors return logits, mask and losses alone."""
    config = TrainingConfig(output_dir=str(folder), device="cpu", **settings)
    distillation = DistillationConfig(intermediate_matches=list(matches))
    teacher, student = teacher or classifier(16, 3, 1), student or classifier(16, 2, 2)
    return GeneralDistiller(config, distillation, teacher, student, adapt, adapt, sample=sample)


def trained(made: GeneralDistiller, steps: int = 3, **more: Any) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.1)
    with made:
        made.train(optimizer, [texts(i) for i in range(steps)], num_steps=steps, **more)
    return weights(made.model_S)


# The path of a module


class Named(nn.Module):
    """Called with keywords; it returns what is nested, and has a module that is called `output`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.output = nn.Linear(3, 3)
        self.idle = nn.Linear(3, 3)
        self.held = nn.ModuleList([nn.Linear(3, 3)])

    def forward(self, states: Tensor) -> Tensor:
        made = self.inner(states, scale=torch.tensor(2.0), more={"other": states + 1})
        return self.output(made["pair"][1])


class Inner(nn.Module):
    def forward(self, states: Tensor, shift: Tensor | None = None, *, scale: Tensor, more: Any) -> dict[str, Any]:
        del shift
        return {"pair": (states, scale * more["other"]), "flag": True}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("inner.input", lambda x: x),
        ("inner.input[0]", lambda x: x),
        ("inner.input[states]", lambda x: x),
        ("inner.input[scale]", lambda x: torch.tensor(2.0)),
        ("inner.input[1]", lambda x: torch.tensor(2.0)),
        ("inner.input[more][other]", lambda x: x + 1),
        ("inner[pair][1]", lambda x: 2 * (x + 1)),
        ("inner.output[pair][-2]", lambda x: x),
        ("output.input", lambda x: 2 * (x + 1)),
        ("input", lambda x: x),
    ],
)
def test_what_a_module_is_given_and_returns_is_named(path: str, expected: Callable[[Tensor], Tensor]) -> None:
    model, states = Named(), torch.arange(6.0).view(2, 3)
    with capturing(model, [f"module:{path}"], "student") as capture:
        model(states)
    (found,) = capture.added_to(Features({}))[f"module:{path}"]
    torch.testing.assert_close(found, expected(states), rtol=0, atol=0)


@dataclass
class Returned:
    states: Tensor
    pair: Pair


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Twice(nn.Module):
    """Its one block runs twice, the second time under another name, and returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = OfDataclasses()
        self.again = self.block

    def forward(self, states: Tensor) -> Tensor:
        return self.again(self.block(states).states).pair.second


class OfDataclasses(nn.Module):
    def forward(self, states: Tensor) -> Returned:
        return Returned(states + 1, Pair(states, 10 * states))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("block[states]", lambda x: x + 2),
        ("again[states]", lambda x: x + 2),
        ("block[pair][second]", lambda x: 10 * (x + 1)),
        ("block[pair][0]", lambda x: x + 1),
        ("block.input", lambda x: x + 1),
    ],
)
def test_of_a_module_that_runs_twice_it_is_the_last_time_and_fields_are_named(
    path: str, expected: Callable[[Tensor], Tensor]
) -> None:
    states = torch.arange(6.0).view(2, 3)
    model = Twice()
    with capturing(model, [f"module:{path}"], "student") as capture:
        model(states)
    (found,) = capture.added_to(Features({}))[f"module:{path}"]
    torch.testing.assert_close(found, expected(states), rtol=0, atol=0)


def test_a_part_of_a_tensor_would_be_a_row_and_is_refused() -> None:
    model = Named()
    with capturing(model, ["module:output[0]"], "student") as capture:
        model(torch.ones(2, 3))
    assert message(PathError, lambda: capture.added_to(Features({}))) == (
        "the student's module 'module:output[0]' returned a Tensor, which has no part [0]."
    )


def test_a_module_that_is_called_output_comes_before_what_one_returns() -> None:
    model, states = Named(), torch.arange(6.0).view(2, 3)
    names = ["module:output", "module:output.output"]
    with capturing(model, names, "student") as capture:
        returned = model(states)
    found = capture.added_to(Features({}))
    assert all(torch.equal(found[name][0], returned) for name in names)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "idle.input",
            "the student's module 'idle.input' did not run in the forward pass, so it has no input to match; name one that does.",
        ),
        (
            "held.output",
            "the student's module 'held.output' did not run in the forward pass, so it has no output to match; name a module inside it, "
            "such as its '0'.",
        ),
        (
            "held",
            "the student's module 'module:held' did not run in the forward pass, so it has no output to match; name a module inside "
            "it, such as its '0'.",
        ),
        (
            "inner.input[6]",
            "the student's module 'inner.input[6]' was given states, scale, more, which has no part [6].",
        ),
        (
            "inner.input[shift]",
            "the student's module 'inner.input[shift]' was given states, scale, more, which has no part [shift].",
        ),
        (
            "inner.input[more]",
            "the student's module 'inner.input[more]' was given a dict with other; name one tensor of it, as in "
            "'inner.input[more][other]'.",
        ),
        (
            "inner",
            "the student's module 'module:inner' returned a dict with pair, flag; name one tensor of it, as in 'module:inner[pair]'.",
        ),
        ("inne", "the student has no module 'inne'; did you mean 'inner'?"),
        ("inner.outptu", "the student has no module 'inner.outptu'; known: inner, output, idle, held, held.0."),
        (
            "inner[x",
            "'inner[x' is no path of a module; expected one such as 'encoder.layer.3' or 'encoder.layer.3[0]'.",
        ),
    ],
)
def test_a_path_that_gives_nothing_is_told(path: str, text: str) -> None:
    model = Named()

    def run() -> None:
        with capturing(model, [f"module:{path}"], "student") as capture:
            model(torch.ones(2, 3))
        capture.added_to(Features({}))

    assert message(PathError, run) == text
    assert hooks_of(model) == 0


# In the distillers


def test_a_query_is_matched_where_the_adaptor_returns_logits_alone(tmp_path: Path) -> None:
    made = distiller(tmp_path, QUERY, loss_normalization="step")
    student, teacher = copy.deepcopy(made.model_S), made.model_T.eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    inputs = {name: texts(0)[name] for name in ("input_ids", "attention_mask")}
    mask = inputs["attention_mask"].bool()

    def query(model: Any) -> Tensor:
        states = model(**inputs, output_hidden_states=True).hidden_states[1]
        return F.linear(states, *model.bert.encoder.layer[1].attention.self.query.parameters())

    with torch.no_grad():
        taught, logits = query(teacher), teacher(**inputs).logits
    distance = (query(student)[mask] - taught[mask]).square().mean()
    soft = (logits / 4).softmax(-1)
    kd = -(soft * (student(**inputs).logits / 4).log_softmax(-1)).sum(-1).mean()
    (kd + distance).backward()
    optimizer.step()
    assert_same(trained(made, 1), weights(student), atol=1e-6)


@pytest.mark.parametrize("feature", ["hidden", "attention"])
def test_it_is_the_same_whether_an_adaptor_returns_a_feature_or_not(feature: str, tmp_path: Path) -> None:
    match = {
        "feature": feature,
        "layer_T": 2,
        "layer_S": 1,
        "weight": 1,
        "loss": "hidden_mse" if feature == "hidden" else "attention_mse",
    }

    def returning(batch: Any, outputs: Any) -> dict[str, Any]:
        return {**only_logits(batch, outputs), "hidden": outputs.hidden_states, "attention": outputs.attentions}

    def eager() -> dict[str, nn.Module]:
        models = {"teacher": classifier(16, 3, 1), "student": classifier(16, 2, 2)}
        for model in models.values():
            model.set_attn_implementation("eager")
        return models

    captured = trained(distiller(tmp_path / "a", match, **eager()))
    returned = distiller(tmp_path / "b", match, **eager(), adapt=returning)
    assert_same(trained(returned, output_hidden_states=True, output_attentions=True), captured)


def test_what_an_adaptor_returns_comes_before_what_is_inside(tmp_path: Path) -> None:
    def own(batch: Any, outputs: Any) -> dict[str, Any]:
        return {**only_logits(batch, outputs), "query": [outputs.logits]}

    match = {"feature": "query", "layer_T": 0, "layer_S": 0, "weight": 1, "loss": "hidden_mse"}
    seen: list[Tensor] = []

    def loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append(student)
        return (student - teacher).square().mean()

    trained(distiller(tmp_path, {**match, "loss": loss}, adapt=own), 2)
    assert [tuple(each.shape) for each in seen] == [(4, 3)] * 2


def test_a_match_of_several_features_gives_the_loss_tuples(tmp_path: Path) -> None:
    seen: list[tuple[Any, Any, Any]] = []

    def loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        seen.append((student, teacher, mask))
        return sum((own - taught).square().mean() for own, taught in zip(student, teacher, strict=True))

    match = {"feature": ["attention", "value"], "layer_T": 2, "layer_S": -1, "weight": 1, "loss": loss}
    trained(distiller(tmp_path, match), 1)
    named = {
        "feature_T": ["attention[2]", "value[2]"],
        "feature_S": ["attention[-1]", "value[-1]"],
        "weight": 1,
        "loss": loss,
    }
    trained(distiller(tmp_path / "named", named), 1)
    (student, teacher, mask), (again, *_) = seen
    assert [tuple(each.shape) for each in student] == [(4, 2, 6, 6), (4, 6, 16)]
    assert [tuple(each.shape) for each in teacher] == [(4, 2, 6, 6), (4, 6, 16)]
    assert mask is not None
    assert all(map(torch.equal, student, again))


def test_different_features_and_paths_are_matched_with_one_another(tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append((student.detach(), teacher))
        return (student - teacher).square().mean()

    match = {
        "feature_T": "hidden[3]",
        "feature_S": "bert.encoder.layer.1.attention.self.input",
        "weight": 1,
        "loss": loss,
    }
    made = distiller(tmp_path, match)
    before = copy.deepcopy(made.model_S)
    trained(made, 1)
    inputs = {name: texts(0)[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = before(**inputs, output_hidden_states=True).hidden_states[1]
        taught = made.model_T.eval()(**inputs, output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(seen[0][0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen[0][1], taught, rtol=0, atol=1e-6)


def test_paths_lead_into_any_model(tmp_path: Path) -> None:
    matches = [
        {"feature": "layers.0", "weight": 1, "loss": "hidden_mse"},
        {"feature": "module:embedding", "weight": 1, "loss": "hidden_mse"},
    ]
    teacher, student = Tiny(8, 2, seed=1), Tiny(8, 1, seed=2)
    made = distiller(tmp_path, *matches, teacher=teacher, student=student, adapt=adaptor("row_logits"))
    columns = batches(table(), [4])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    before, plain = weights(student), copy.deepcopy(student)
    with made:
        made.train(optimizer, columns, num_steps=1)
    embedded = (plain.embedding(columns[0]["ids"]), teacher.embedding(columns[0]["ids"]))
    first = (plain.layers[0](embedded[0]), teacher.layers[0](embedded[1]))
    kd = (
        -(
            (teacher(**columns[0])["row_logits"] / 4).softmax(-1)
            * (plain(**columns[0])["row_logits"] / 4).log_softmax(-1)
        )
        .sum(-1)
        .mean()
    )
    (kd + F.mse_loss(embedded[0], embedded[1].detach()) + F.mse_loss(first[0], first[1].detach())).backward()
    for name, parameter in plain.named_parameters():
        moved = before[name] - 0.1 * (parameter.grad if parameter.grad is not None else 0)
        torch.testing.assert_close(weights(student)[name], moved, rtol=0, atol=1e-6)


def test_no_hooks_are_left_and_attention_is_as_before(tmp_path: Path) -> None:
    match = {"feature": "scores[-1]", "weight": 1, "loss": "attention_mse"}
    made = distiller(tmp_path, QUERY, match)
    trained(made)
    for model in (made.model_S, made.model_T):
        assert hooks_of(model) == 0
        assert model.config._attn_implementation == "sdpa"


def test_no_hooks_are_left_where_the_training_fails(tmp_path: Path) -> None:
    def fails(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        raise ValueError("on purpose")

    made = distiller(tmp_path, {**QUERY, "feature": "scores[1]", "loss": fails})
    with pytest.raises(ValueError, match="on purpose"):
        trained(made)
    for model in (made.model_S, made.model_T):
        assert hooks_of(model) == 0
        assert model.config._attn_implementation == "sdpa"


def test_eager_attention_is_told_once_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trained(distiller(tmp_path, {"feature": "scores[1]", "weight": 1, "loss": "attention_mse"}, QUERY))
    assert sorted(record.getMessage() for record in caplog.records if record.name == "brewer_core") == [
        "the student's attention is computed as a whole (eager, not sdpa) while it is read.",
        "the teacher's attention is computed as a whole (eager, not sdpa) while it is read.",
    ]


def test_eager_attention_is_told_once_a_model_also_where_a_sample_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    match = {"feature": "scores", "layers": "uniform", "weight": 1, "loss": "attention_mse"}
    made = distiller(tmp_path, match, sample=texts(0))
    trained(made)
    trained(made)
    assert sorted(record.getMessage() for record in caplog.records if record.name == "brewer_core") == [
        "the student's attention is computed as a whole (eager, not sdpa) while it is read.",
        "the teacher's attention is computed as a whole (eager, not sdpa) while it is read.",
    ]


def test_attention_stays_as_it_is_where_no_map_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(distiller(tmp_path, QUERY))
    assert [record for record in caplog.records if record.name == "brewer_core"] == []


def test_an_evaluation_between_steps_does_not_reach_the_next(tmp_path: Path) -> None:
    def evaluate(model: nn.Module, step: int) -> None:
        with torch.no_grad():
            model.eval()
            model(input_ids=torch.ones(2, 9, dtype=torch.long))
            model.train()
            model(input_ids=torch.ones(1, 3, dtype=torch.long))

    matches = [QUERY, {"feature": "bert.encoder.layer.0.input", "weight": 1, "loss": "hidden_mse"}]
    plain = trained(distiller(tmp_path / "plain", *matches, ckpt_frequency=3))
    looked_at = trained(distiller(tmp_path / "looked at", *matches, ckpt_frequency=3), callback=evaluate)
    assert_same(looked_at, plain)


def test_what_was_captured_is_let_go_after_the_step(tmp_path: Path) -> None:
    held: list[weakref.ref[Tensor]] = []

    def loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        gc.collect()
        assert [each for each in held if each() is not None] == []
        held.extend(weakref.ref(each) for each in (student, teacher))
        return (student - teacher).square().mean()

    trained(distiller(tmp_path, {**QUERY, "loss": loss}))
    gc.collect()
    assert len(held) == 6
    assert all(each() is None for each in held)


@pytest.mark.parametrize("names", [["query[1]", "hidden[2]"], ["scores[1]", "attention[0]"]], ids=str)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_that_its_owner_compiled_is_read_and_goes_on_compiled(names: list[str], wrapped: bool) -> None:
    plain, model = built("bert").train(), built("bert").train()
    for module in [*plain.modules(), *model.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if wrapped:
        model = torch.compile(model, backend="aot_eager")
    else:
        model.compile(backend="aot_eager")
    try:
        for step in range(3):
            found = []
            for each in (plain, model):
                each.zero_grad()
                each(**batch()).logits.sum().backward()  # in the very mode in which it is read next
                with capturing(each, names, "student") as capture:
                    logits = each(**batch(rows=2 + step)).logits
                read = capture.added_to(Features({}))
                tensors = [t for name in sorted(read) for t in read[name] if t is not None]
                (logits.sum() + sum(torch.where(t > -1e4, t, 0).square().sum() for t in tensors)).backward()
                gradients = [p.grad.clone() for p in each.parameters() if p.grad is not None]
                found.append([logits, *tensors, *gradients])
            assert len(found[0]) == len(found[1])
            for ours, theirs in zip(*found, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    finally:
        torch.compiler.reset()


def test_in_a_training_that_compiles_hooks_are_compiled_once() -> None:
    model, graphs = built("bert").train(), []
    with training_modes(model, Optimization.from_dict({"steps": 1, "compile": "aot_eager"})):
        for _ in range(5):
            with capturing(model, ["query[1]", "module:bert.pooler.dense.input"], "student") as capture:
                model(**batch())
            assert len(capture.added_to(Features({}))) == 2
            model(**batch())
            with torch.no_grad():
                model.eval()(**batch())
            model.train()
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1:] == [graphs[1]] * 4


# What cannot be read


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (
            {"feature": "bert.encoder.layer.7.output"},
            "DistillationConfig: 2 problems\n"
            "  intermediate_matches[0].feature: the teacher has no module 'bert.encoder.layer.7.output'; did you mean "
            "'bert.encoder.layer.2.output' or 'bert.encoder.layer.1.output'?\n"
            "  intermediate_matches[0].feature: the student has no module 'bert.encoder.layer.7.output'; did you mean "
            "'bert.encoder.layer.1.output' or 'bert.encoder.layer.0.output'?",
        ),
        (
            {"feature": "query"},
            "DistillationConfig: 2 problems\n"
            "  intermediate_matches[0].feature: 'query' has a tensor for each layer; name one, as in \"query[0]\", or give layer_S\n"
            "  intermediate_matches[0].feature: 'query' has a tensor for each layer; name one, as in \"query[0]\", or give layer_T",
        ),
        (
            {"feature_T": ["attention[1]", "value[1]"], "feature_S": "attention[1]"},
            "DistillationConfig: intermediate_matches[0]: it reads 1 features of the student and 2 of the teacher; name as many of each",
        ),
        (
            {"feature": ["attention[1]", "value[1]"], "proj": ["linear", 16, 16]},
            "DistillationConfig: intermediate_matches[0].proj: it brings one feature to the teacher's width, and the match reads several",
        ),
    ],
)
def test_a_match_that_cannot_be_is_told_before_anything_runs(match: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert message(ConfigError, lambda: distiller(tmp_path, {"weight": 1, "loss": "hidden_mse", **match})) == text


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (
            {"feature": "query[2]"},
            "DistillationConfig: intermediate_matches[0].feature: the student has 2 layers of 'query', 0 to 1; there is no 2",
        ),
        (
            {"feature_T": "query[1]", "feature_S": "key", "layer_S": -3},
            "DistillationConfig: intermediate_matches[0].layer_S: the student has 2 layers of 'key', 0 to 1; there is no -3",
        ),
        (
            {"feature_T": "quary[1]", "feature_S": "query[1]"},
            "intermediate_matches[0].feature_T: the teacher's adaptor returns no 'quary'; it returns logits, inputs_mask, and its "
            "BertForSequenceClassification has embeddings, hidden[0..3], attention[0..2], scores[0..2], query[0..2], key[0..2], "
            "value[0..2], pooled; did you mean 'query'?",
        ),
        (
            {"feature": "bert"},
            "intermediate_matches[0].feature: the student's adaptor returns no 'bert'; it returns logits, inputs_mask, and its "
            "BertForSequenceClassification has embeddings, hidden[0..2], attention[0..1], scores[0..1], query[0..1], key[0..1], "
            "value[0..1], pooled; a module is read as 'module:bert', with no layer beside it.",
        ),
        (
            {"feature": "bert.pooler", "layer_T": 0, "layer_S": 0},
            "intermediate_matches[0].feature: the student's adaptor returns no 'bert.pooler'; it returns logits, inputs_mask, and its "
            "BertForSequenceClassification has embeddings, hidden[0..2], attention[0..1], scores[0..1], query[0..1], key[0..1], "
            "value[0..1], pooled; a module is read as 'bert.pooler', with no layer beside it.",
        ),
    ],
)
def test_what_a_model_lacks_is_told_with_what_it_has(match: dict[str, Any], text: str, tmp_path: Path) -> None:
    made = distiller(tmp_path, {"weight": 1, "loss": "hidden_mse", **match})
    assert message(BrewerError, lambda: trained(made)) == text


@pytest.mark.parametrize("layers", ["uniform", "cka"])
def test_a_map_of_layers_tells_what_a_model_lacks_with_what_it_has(layers: str, tmp_path: Path) -> None:
    captured = {"feature": "query", "layers": layers, "weight": 1, "loss": "hidden_mse"}
    match = {**captured, "feature": None, "feature_T": "hiden", "feature_S": "decoder_hidden"}
    returns = "it returns logits, inputs_mask, and its BertForSequenceClassification has embeddings,"
    assert message(ConfigError, lambda: distiller(tmp_path, captured, match, sample=texts(0))) == (
        "DistillationConfig: 2 problems\n"
        f"  intermediate_matches[1].feature_S: the student's adaptor returns no 'decoder_hidden'; {returns} hidden[0..2], attention[0..1], "
        "scores[0..1], query[0..1], key[0..1], value[0..1], pooled; did you mean 'hidden'?\n"
        f"  intermediate_matches[1].feature_T: the teacher's adaptor returns no 'hiden'; {returns} hidden[0..3], attention[0..2], "
        "scores[0..2], query[0..2], key[0..2], value[0..2], pooled; did you mean 'hidden'?"
    )


def test_a_map_of_layers_tells_why_no_short_names_are_known(tmp_path: Path) -> None:
    match = {**QUERY, "feature": "query", "layers": "uniform"}
    tinies = {"teacher": Tiny(8, 2, seed=1), "student": Tiny(8, 1, seed=2), "adapt": adaptor("row_logits")}
    (sample,) = batches(table(), [8])
    why = (
        "adaptor returns no 'query', and no short names are known of its Tiny, as they are known of models of transformers alone; name "
        "the path of a module: embedding, layers.0,"
    )
    assert message(ConfigError, lambda: distiller(tmp_path, match, sample=sample, **tinies)) == (
        "DistillationConfig: 2 problems\n"
        f"  intermediate_matches[0].feature: the student's {why} of_rows, of_tokens\n"
        f"  intermediate_matches[0].feature: the teacher's {why} layers.1, of_rows, of_tokens"
    )


def test_short_names_of_another_library_are_told_with_paths(tmp_path: Path) -> None:
    made = distiller(
        tmp_path, QUERY, teacher=Tiny(8, 2, seed=1), student=Tiny(8, 1, seed=2), adapt=adaptor("row_logits")
    )
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.1)
    assert message(AdaptorError, lambda: made.train(optimizer, batches(table(), [4]), num_steps=1)) == (
        "intermediate_matches[0].feature: the student's adaptor returns no 'query', and no short names are known of its Tiny, as they are "
        "known of models of transformers alone; name the path of a module: embedding, layers.0, of_rows, of_tokens."
    )


@pytest.mark.parametrize(
    ("match", "text"),
    [
        ({}, "intermediate_matches[0]: feature is required, or both feature_T and feature_S; feature_T is missing"),
        (
            {"feature_T": "hidden[1]"},
            "intermediate_matches[0]: feature is required, or both feature_T and feature_S; feature_S is missing",
        ),
        (
            {"feature": "query[1]", "layer_T": 1, "layer_S": 1},
            "intermediate_matches[0].feature: 'query[1]' names its layers, and they are given beside it too; give them once",
        ),
        (
            {"feature": "query[one]"},
            "intermediate_matches[0].feature: expected a name such as `hidden`, `query[11]` or the path of a module such as "
            "`encoder.layer.3`, not 'query[one]'; a path without a dot begins with 'module:'",
        ),
        (
            {"feature": "query[1.5]"},
            "intermediate_matches[0].feature: expected a name such as `hidden`, `query[11]` or the path of a module such as "
            "`encoder.layer.3`, not 'query[1.5]'; a path without a dot begins with 'module:'",
        ),
        (
            {"feature": "hidden[0]", "feature_T": "hidden[1]", "feature_S": "hidden[1]"},
            "intermediate_matches[0].feature: it is read of neither side, as feature_T and feature_S name both; leave it out",
        ),
        (
            {"feature": "module:encoder", "layer_T": 1, "layer_S": 1},
            "intermediate_matches[0].feature: the path 'module:encoder' has no layers; leave them out, or name one of the layers in "
            "the path",
        ),
        (
            {"feature_S": "a.b[", "feature_T": "hidden[0]"},
            "intermediate_matches[0].feature_S: 'a.b[' is no path of a module; expected one such as 'encoder.layer.3' or "
            "'encoder.layer.3[0]'",
        ),
        (
            {"feature": []},
            "intermediate_matches[0].feature: expected a feature such as hidden, query[11] or the path of a module, or several of them in "
            "a list, not []",
        ),
    ],
)
def test_a_name_that_is_none_is_refused(match: dict[str, Any], text: str) -> None:
    whole = {"weight": 1, "loss": "hidden_mse", **match}
    assert (
        message(ConfigError, lambda: DistillationConfig.from_dict({"intermediate_matches": [whole]}))
        == f"DistillationConfig: {text}"
    )


def test_a_match_as_textbrewer_has_it_is_written_as_it_was() -> None:
    match = {"layer_T": 1, "layer_S": [0, 1], "feature": "hidden", "loss": "fsp", "weight": 1}
    (written,) = DistillationConfig.from_dict({"intermediate_matches": [match]}).to_dict()["intermediate_matches"]
    assert list(written) == [
        "layer_T",
        "layer_S",
        "weight",
        "loss",
        "feature",
        "proj",
        "proj_dims",
        "proj_optimizer",
        "teacher",
    ]
    assert written["layer_S"] == [0, 1]


def test_a_match_of_both_forms_is_read_again_as_it_was_written() -> None:
    match = {"feature_T": ["attention[1]", "bert.x.0"], "feature_S": "query[0, 1]", "loss": "fsp", "weight": 1.5}
    config = DistillationConfig.from_dict({"intermediate_matches": [match]})
    assert DistillationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (made,) = config.matches
    assert [(name.feature, name.layers) for name in made.reads("S")] == [("query", (0, 1))]
    assert [(name.feature, name.layers) for name in made.reads("T")] == [("attention", 1), ("module:bert.x.0", None)]


@pytest.mark.parametrize(
    ("match", "name"),
    [
        ({"feature": "hidden", "layer_T": 2, "layer_S": 1}, "hidden_cos_1_2"),
        ({"feature": "query[-1]"}, "query_cos_-1_-1"),
        ({"feature": "pooled"}, "pooled_cos"),
        ({"feature_T": "value[2]", "feature_S": "key[0]"}, "key_value_cos_0_2"),
        ({"feature": ["attention", "value"], "layer_T": 1, "layer_S": 0}, "attention+value_cos_0_1"),
        ({"feature": "bert.pooler"}, "bert/pooler_cos"),
    ],
)
def test_matches_are_logged_under_what_they_read(match: dict[str, Any], name: str) -> None:
    config = DistillationConfig(intermediate_matches=[{"weight": 1, "loss": "cos", **match}])
    assert list(Objective.from_config(config, default_registry()).matches) == [name]


def test_the_mean_over_a_feature_without_tokens_is_over_rows() -> None:
    matches = [{"weight": 1, "loss": "hidden_mse", "feature": name} for name in ("pooled", "embeddings")]
    objective = Objective.from_config(DistillationConfig(intermediate_matches=matches), default_registry())
    assert [objective.over(name) for name in objective.matches] == ["rows", "tokens"]


# Encoder-decoders


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_is_matched_on_both_sides_and_between_them(family: str, tmp_path: Path) -> None:
    matches = [
        {"feature": "hidden[-1]", "weight": 1, "loss": "hidden_mse"},
        {"feature": "cross_attention[0]", "weight": 1, "loss": "attention_mse"},
        {"feature": "decoder_query[1]", "weight": 1, "loss": "hidden_mse"},
    ]
    seen: list[dict[str, float]] = []

    def masked(batch: Any, outputs: Any) -> dict[str, Any]:
        padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
        return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"], "decoder_mask": padding}

    made = distiller(tmp_path, *matches, teacher=built(family), student=built(family).train(), adapt=masked)
    with torch.no_grad():
        for parameter in made.model_S.parameters():
            parameter.mul_(0.9)
    student = copy.deepcopy(made.model_S).eval()
    for name, layer in (("hidden", -1), ("cross_attention", 0), ("decoder_query", 1)):
        values = []
        for model in (student, made.model_T):
            with capturing(model, [f"{name}[{layer}]"], "student") as capture, torch.no_grad():
                model(**batch(family))
            values.append(capture.added_to(Features({}))[name][layer])
        difference = (values[0] - values[1]).square()
        valid = torch.ones(2, 5, dtype=torch.bool) if name != "hidden" else batch(family)["attention_mask"].bool()
        if name == "decoder_query":
            valid[1, 3:] = False
        expected = difference.mean() if name == "cross_attention" else difference[valid].mean()
        seen.append({name: expected.item()})
    with made:
        figures = terms_of(made, batch(family))
    for (name, value), expected in zip(figures.items(), seen, strict=True):
        assert value == pytest.approx(next(iter(expected.values())), rel=1e-5), name


def terms_of(made: GeneralDistiller, inputs: Any) -> dict[str, float]:
    """The matches of a batch, with the student in eval mode."""
    learner = Learner(made.model_S.eval(), made.adaptor_S, made._objective, made._strategy)
    teacher = LiveTeacher(made.model_T, made.adaptor_T, CPU)
    taught = {"teacher": teacher.features(inputs, learner.needs.teacher("teacher"))}
    with torch.no_grad():
        losses = learner("", inputs, taught, Step(0, 1))
    return {name: loss.item() for name, loss in losses.items() if name != "kd_loss"}


def test_states_are_matched_of_models_whose_projections_are_joined(tmp_path: Path) -> None:
    hidden = {"feature": "hidden[0]", "weight": 1, "loss": "hidden_mse"}
    made = distiller(tmp_path, hidden, teacher=built("gpt-neox"), student=built("bloom"))
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.1)
    before = weights(made.model_S)["transformer.word_embeddings.weight"].clone()
    with made:
        made.train(optimizer, [batch("bloom")], num_steps=1)
    assert not torch.equal(weights(made.model_S)["transformer.word_embeddings.weight"], before)
    asks = distiller(tmp_path, QUERY, teacher=built("gpt-neox"), student=built("phi3"))
    optimizer = torch.optim.SGD(asks.model_S.parameters(), lr=0.1)
    assert message(AdaptorError, lambda: asks.train(optimizer, [batch("phi3")], num_steps=1)) == (
        "intermediate_matches[0].feature: the teacher's adaptor returns no 'query', and its GPTNeoXForCausalLM makes it together with "
        "others in one projection; name the path of that, such as 'gpt_neox.layers.0.attention.query_key_value'."
    )
