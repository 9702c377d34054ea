"""How far a teacher runs: no further than the highest layer that is read, with the same features as in a whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brewer_builtins.strategies import General
from brewer_core import DistillationConfig, Features, default_registry
from brewer_core.config import parse_run_config
from brewer_core.engine import Duration, Engine
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.protocols import Needs, Step
from brewer_core.run.assembly import Assembly
from brewer_core.run.lessons import distill_lesson
from brewer_core.teachers import LiveTeacher
from runs import bert, distill, document, films
from tiny import CountingAdaptor, Tiny, adaptor, assert_same, batches, table, weights

CPU = torch.device("cpu")
LAYERS = 6
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "bert": SIZES,
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": LAYERS, "n_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": LAYERS, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    "llama": {**SIZES, "num_key_value_heads": 2},
}
NORMED_LAST = ("gpt2", "llama")
"""Models that norm the last hidden state, so that one layer more has to run for any before it."""


def of_kind(kind: str, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=30, num_labels=3, pad_token_id=0, **settings)
    return transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


def text(seed: int = 0) -> dict[str, Tensor]:
    """A batch of two rows, the second of them padded."""
    ids = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    return {"input_ids": ids * mask, "attention_mask": mask}


def adapted(batch: Any, outputs: Any) -> dict[str, Any]:
    return {
        "logits": outputs["logits"],
        "inputs_mask": batch["attention_mask"],
        "hidden": outputs["hidden_states"],
        "attention": outputs["attentions"],
    }


def taught_by(model: nn.Module) -> LiveTeacher:
    return LiveTeacher(model, adapted, CPU, arguments={"output_hidden_states": True, "output_attentions": True})


def layers_of(model: nn.Module) -> nn.ModuleList:
    (found,) = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == LAYERS]
    return found


@contextmanager
def layers_that_run(model: nn.Module) -> Iterator[list[int]]:
    """The layers, by number, each time that they run."""
    ran: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(layers_of(model))
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def runs(teacher: LiveTeacher, needs: set[str], batch: Any) -> tuple[Features, list[int]]:
    """The features of a batch that is not the first one, and the layers that ran for them."""
    teacher.features(batch, frozenset(needs))
    with layers_that_run(teacher.model) as ran:
        features = teacher.features(batch, frozenset(needs))
    return features, ran


@pytest.mark.parametrize("kind", KINDS)
def test_layers_above_those_that_are_read_do_not_run(kind: str) -> None:
    model = of_kind(kind, **KINDS[kind])
    _, ran = runs(taught_by(model), {"hidden[1]", "hidden[3]", "inputs_mask"}, text())
    assert ran == ([0, 1, 2, 3] if kind in NORMED_LAST else [0, 1, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_the_same_and_in_the_same_place_as_in_a_whole_run(kind: str) -> None:
    teacher, needs = taught_by(of_kind(kind, **KINDS[kind])), frozenset({"hidden[2]", "attention[-4]", "inputs_mask"})
    for seed in range(3):
        whole = teacher.features(text(seed), needs | {"logits", "hidden", "attention"})
        read = teacher.features(text(seed), needs)
        assert [len(read["hidden"]), len(read["attention"])] == [LAYERS + 1, LAYERS]
        assert torch.equal(read["hidden"][2], whole["hidden"][2])
        assert torch.equal(read["attention"][-4], whole["attention"][-4])
        assert torch.equal(read["inputs_mask"][0], whole["inputs_mask"][0])
        assert [i for i, layer in enumerate(read["hidden"]) if layer is not None] == [2]
        assert [i for i, layer in enumerate(read["attention"]) if layer is not None] == [2]


def test_a_map_of_attention_needs_its_own_layer_to_run() -> None:
    assert runs(taught_by(of_kind("bert", **SIZES)), {"attention[2]"}, text())[1] == [0, 1, 2]


def test_the_embeddings_output_needs_no_layer_or_the_first_alone() -> None:
    for kind in KINDS:
        model = of_kind(kind, **KINDS[kind])
        read, ran = runs(taught_by(model), {"hidden[0]"}, text())
        assert ran in ([], [0])
        assert torch.equal(read["hidden"][0], taught_by(model).features(text(), frozenset({"hidden"}))["hidden"][0])


@pytest.mark.parametrize(
    "needs",
    [{"hidden[1]", "logits"}, {"hidden"}, {"hidden[-1]"}, {"hidden[1]", "attention"}, {"logits"}, {"inputs_mask"}],
)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_all_layers_run_where_the_last_one_is_read_or_the_logits(kind: str, needs: set[str]) -> None:
    features, ran = runs(taught_by(of_kind(kind, **KINDS[kind])), needs, text())
    assert ran == list(range(LAYERS))
    assert "logits" in features


def test_all_layers_run_where_a_module_inside_is_read() -> None:
    model = of_kind("bert", **SIZES)
    name = "module:bert.encoder.layer.0.output"
    features, ran = runs(taught_by(model), {"hidden[1]", name}, text())
    assert ran == list(range(LAYERS))
    assert torch.equal(features[name][0], features["hidden"][1])


def test_all_layers_run_of_a_model_whose_layers_are_one_that_is_repeated() -> None:
    model = of_kind("albert", embedding_size=8, **SIZES)
    teacher = taught_by(model)
    whole = teacher.features(text(), frozenset({"hidden"}))
    for _ in range(2):
        assert torch.equal(teacher.features(text(), frozenset({"hidden[1]"}))["hidden"][1], whole["hidden"][1])


def test_the_model_has_all_its_layers_afterwards_also_where_it_fails() -> None:
    model = of_kind("bert", **SIZES)
    teacher, needs = taught_by(model), frozenset({"hidden[1]"})
    teacher.features(text(), needs)
    teacher.features(text(), needs)
    with pytest.raises(IndexError):
        teacher.features({**text(), "input_ids": torch.full((2, 7), 99)}, needs)
    assert len(layers_of(model)) == LAYERS
    assert list(model.state_dict()) == list(of_kind("bert", **SIZES).state_dict())


class Bare(Tiny):
    """A model without a config, of which tests count the layers that run."""

    def __init__(self, first: Callable[[list[Tensor]], Tensor] = lambda hidden: hidden[0]) -> None:
        super().__init__(8, 4, seed=1)
        self.first, self.ran = first, 0
        for layer in self.layers:
            layer.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.ran += 1

    def forward(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        outputs = super().forward(*arguments, **named)
        return {**outputs, "hidden": [self.first(outputs["hidden"]), *outputs["hidden"][1:]]}


def layers_run(model: Bare, adapt: Callable[..., Any] | None = None, needs: set[str] | None = None) -> int:
    """How many layers run for a batch that is not the first one."""
    teacher = LiveTeacher(model, adapt or adaptor("row_logits", "hidden", "losses", "mask"), CPU)
    read = frozenset(needs or {"hidden[2]"})
    batch = batches(table(), [4])[0]
    teacher.features(batch, read)
    model.ran = 0
    teacher.features(batch, read)
    return model.ran


def test_a_model_without_a_config_stops_too() -> None:
    assert layers_run(Bare()) == 2


def test_a_model_with_two_lists_of_layers_runs_whole() -> None:
    model = Bare()
    model.others = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
    assert layers_run(model) == 4


def test_a_config_tells_which_list_is_that_of_the_layers() -> None:
    model = Bare()
    model.others = nn.ModuleList([nn.Linear(8, 8) for _ in range(5)])
    assert layers_run(model) == 4  # four layers and their embeddings, or five layers
    model.config = type("Config", (), {"num_hidden_layers": 4})()
    assert layers_run(model) == 2


def test_a_model_whose_first_hidden_state_depends_on_its_last_layer_runs_whole() -> None:
    model = Bare(first=lambda hidden: hidden[0] + hidden[-1])
    assert layers_run(model, needs={"hidden[0]"}) == 4


def test_an_adaptor_that_fails_without_the_last_layers_has_all_of_them() -> None:
    def of_the_last(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"hidden": outputs["hidden"], "pooled": outputs["hidden"][4]}

    assert layers_run(Bare(), of_the_last) == 4


def test_features_of_an_adaptors_own_with_a_layer_each_stop_it_too() -> None:
    def own(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"states": outputs["hidden"][1:], "norms": [layer.norm(dim=-1) for layer in outputs["hidden"]]}

    assert layers_run(Bare(), own, {"states[1]", "norms[-4]"}) == 2
    assert layers_run(Bare(), own, {"states[0]", "norms"}) == 4


class Noisy(Bare):
    """A model that draws at each layer, in eval mode too."""

    def forward(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        outputs = super().forward(*arguments, **named)
        return {**outputs, "hidden": [torch.randn_like(layer) for layer in outputs["hidden"]]}


def test_finding_out_how_far_to_run_draws_nothing() -> None:
    drawn = []
    for needs in ({"hidden[2]"}, {"hidden"}):
        torch.manual_seed(0)
        teacher = LiveTeacher(Noisy(), adaptor("hidden"), CPU)
        teacher.features(batches(table(), [4])[0], frozenset(needs))
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[1]


def test_a_compiled_teacher_stops_too() -> None:
    model = of_kind("bert", **SIZES)
    teacher, needs = taught_by(model), frozenset({"hidden[2]"})
    expected = [teacher.features(text(seed), frozenset({"hidden", "logits"})) for seed in range(3)]
    model.compile(backend="eager")
    try:
        for seed, whole in enumerate(expected):
            short, again = teacher.features(text(seed), needs), teacher.features(text(seed), frozenset({"logits"}))
            torch.testing.assert_close(short["hidden"][2], whole["hidden"][2], rtol=0, atol=1e-6)
            torch.testing.assert_close(again["logits"][0], whole["logits"][0], rtol=0, atol=1e-6)
            assert "logits" not in short
    finally:
        torch.compiler.reset()


def test_a_match_alone_runs_the_teacher_to_its_layer_with_the_same_loss() -> None:
    match = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
    config = DistillationConfig(kd_loss_weight=0, intermediate_matches=[match])
    objective = Objective.from_config(config, default_registry())
    model, batch = Bare(), batches(table(), [4])[0]
    teacher = LiveTeacher(model, adaptor("row_logits", "hidden", "mask"), CPU)
    student = Features.of(adaptor("row_logits", "hidden", "mask")(batch, Tiny(8, 2, seed=2)(**batch)))
    needs = objective.needs().teacher("teacher")
    losses, ran = [], []
    for read in (needs | {"hidden", "logits"}, needs, needs):
        model.ran = 0
        terms = objective.match_terms(student, teacher.features(batch, read), Step(0, 1))
        losses.append(terms["hidden_hidden_mse_1_2"].item())
        ran.append(model.ran)
    assert losses[0] == losses[1] == losses[2]
    assert ran == [4, 6, 2]  # the second of them whole, and to layer 2 as a trial


class Rounded(Bare):
    """A model of which two runs differ by less than what counts as a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0  # forward passes

    def forward(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        outputs = super().forward(*arguments, **named)
        self.runs += 1
        off = 1e-8 if len(self.layers) < 4 else 0.0
        return {**outputs, "hidden": [layer.double() + off for layer in outputs["hidden"]]}


def test_the_first_batch_has_what_the_later_ones_would_have() -> None:
    teacher = LiveTeacher(Rounded(), adaptor("hidden"), CPU)
    first, later = (teacher.features(batches(table(), [4])[0], frozenset({"hidden[2]"})) for _ in range(2))
    assert teacher.model.runs == 3
    assert torch.equal(first["hidden"][2], later["hidden"][2])


class ReadsAll(General):
    """As the strategy `general`, and it says that it reads all of the teacher."""

    def needs(self, objective: Any) -> Needs:
        told = super().needs(objective)
        return replace(told, every_teacher=told.every_teacher | {"hidden", "logits"})


def test_training_is_the_same_whether_the_teacher_stops_or_not() -> None:
    matches = [
        {"layer_T": 2, "layer_S": -2, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
        {"layer_T": [0, 1], "layer_S": [0, 1], "feature": "hidden", "loss": "fsp", "weight": 0.5},
    ]
    config = DistillationConfig(kd_loss_weight=0, hard_label_weight=1, intermediate_matches=matches)
    trained, ran = [], []
    for strategy in (General(), ReadsAll()):
        student, teacher = Tiny(8, 2, seed=2), Bare()
        adapt = CountingAdaptor("row_logits", "hidden", "losses", "mask")
        learner = Learner(student, adapt, Objective.from_config(config, default_registry()), strategy)
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.1)
        teachers = {"teacher": LiveTeacher(teacher, adapt, CPU)}
        Engine(learner, optimizer, device=CPU, teachers=teachers).train(batches(table(), [8] * 5), Duration(epochs=1))
        trained.append(weights(student))
        ran.append(teacher.ran)
    assert_same(trained[0], trained[1])
    assert ran == [4 + 5 * 2, 5 * 4]


def test_in_a_run_a_teacher_whose_logits_are_not_read_runs_to_the_layer_of_its_match(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    films(tmp_path)
    match = {"layer_T": 1, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": "linear"}
    stage = distill(distillation={"kd_loss_weight": 0, "intermediate_matches": [match]})
    models = {"teacher": bert(16, LAYERS), "student": bert(8, 1)}
    config, registry = document(models=models, stages=[stage]), default_registry()
    assembly = Assembly(parse_run_config(config, "config.json", registry), tmp_path, registry, CPU)
    lesson = distill_lesson(assembly, assembly.config.stages[0], "stages[0]", assembly.model("student"), caching=False)
    batch, read = next(iter(lesson.loader)), lesson.learner.needs.teacher("teacher")
    ran, losses = {}, {}
    for needs in (read, read | {"logits"}):
        for _ in range(2):
            with layers_that_run(assembly.model("teacher").model) as ran[needs]:
                answers = {"teacher": lesson.teachers["teacher"].features(batch, needs)}
        losses[needs] = lesson.learner.eval()("", batch, answers, Step(0, 1))
    assert list(ran.values()) == [[0], list(range(LAYERS))]
    assert losses[read]["kd_loss"].item() == 0
    assert_same(losses[read], losses[read | {"logits"}])
    assert assembly.model("teacher").model.config._attn_implementation == "sdpa"
