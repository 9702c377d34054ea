"""The strategy pkd: the sum over layers by a plain loop, projections, whole runs against matches by hand, and the errors' texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brewer_core import (
    BrewerError,
    DistillationConfig,
    Features,
    GeneralDistiller,
    ModelInfo,
    Needs,
    RequestError,
    Step,
    TrainingConfig,
)
from brewer_loss_pkd import PatientDistillation, brewer_strategies, pkd
from brewer_loss_pkd.patterns import layers

ROWS, LENGTH, WIDTH = 3, 4, 5


class NoTerms:
    """An objective without terms of its own."""

    temperature = 1.0

    def needs(self) -> Needs:
        return Needs(frozenset({"losses"}), frozenset({"logits"}), {"one": frozenset({"attention"})})

    def kd_terms(self, *given: Any) -> dict[str, Tensor]:
        return {}

    match_terms = label_terms = kd_terms


def states(count: int, width: int = WIDTH, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, LENGTH, width, generator=generator) for _ in range(count)]


def term(strategy: PatientDistillation, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Tensor:
    """The one term of a batch."""
    found = strategy.terms("", Features.of(student), {"teacher": Features.of(teacher)}, NoTerms(), Step(0, 1))
    assert list(found) == ["pkd"]
    return found["pkd"]


def by_loop(student: list[Tensor], teacher: list[Tensor], pairs: list[tuple[int, int]]) -> float:
    """Eq. 7 row by row, over the rows' number."""
    total = 0.0
    for taught, own in pairs:
        for row in range(ROWS):
            s, t = student[own][row, 0].double(), teacher[taught][row, 0].double()
            total += float(((s / s.norm() - t / t.norm()) ** 2).sum())
    return total / ROWS


# The term


@pytest.mark.parametrize("pattern", ["skip", "last"])
def test_the_term_is_the_papers_sum_over_layers_averaged_over_rows(pattern: Any) -> None:
    own, taught = states(5), states(13, seed=1)
    found = term(PatientDistillation(pattern=pattern), {"hidden": own}, {"hidden": taught})
    assert float(found) == pytest.approx(by_loop(own, taught, layers(pattern, 4, 12)), rel=1e-5)


def test_embeddings_the_last_layer_and_other_tokens_take_no_part() -> None:
    own, taught = [s.requires_grad_() for s in states(4)], states(7, seed=1)
    gradients = torch.autograd.grad(
        term(PatientDistillation(), {"hidden": own}, {"hidden": taught}), own, materialize_grads=True
    )
    assert [bool(gradient.any()) for gradient in gradients] == [False, True, True, False]
    assert not any(gradient[:, 1:].any() for gradient in gradients)


def test_another_feature_and_states_of_the_first_token_alone_are_compared() -> None:
    own, taught = states(3), states(5, seed=1)
    expected = term(PatientDistillation(), {"hidden": own}, {"hidden": taught})
    first = [{"pooled": [s[:, 0] for s in side]} for side in (own, taught)]
    assert torch.equal(term(PatientDistillation(feature="pooled"), *first), expected)


def test_eps_is_that_of_the_loss() -> None:
    own, taught = states(2 + 1), states(5, seed=1)
    found = term(PatientDistillation(eps=0.5), {"hidden": own}, {"hidden": taught})
    torch.testing.assert_close(found, pkd(own[1], taught[2], eps=0.5))


def test_the_weight_is_a_factor_and_the_feature_is_needed() -> None:
    strategy = PatientDistillation(weight=0.25, feature="pooled")
    assert strategy.weights(Step(5, 9)) == {"pkd": 0.25}
    needs = strategy.needs(NoTerms())
    assert needs.student == {"losses", "pooled"}
    assert needs.every_teacher == {"logits", "pooled"}
    assert needs.teacher("one") == {"logits", "pooled", "attention"}


# Projections


def built(projection: Any = "linear", **options: Any) -> PatientDistillation:
    """A strategy that knows the widths: a student of 2 layers, a teacher of 4."""
    strategy = PatientDistillation(projection=projection, **options)
    infos = ModelInfo("student", {"hidden": (5, 6, 5)}), ModelInfo("teacher", {"hidden": (7, 7, 8, 9, 7)})
    strategy.build(infos[0], {"teacher": infos[1]})
    return strategy


def test_each_taught_layer_has_its_projection_from_its_width_to_that_of_its_teacher() -> None:
    for pattern, wanted in (("skip", 8), ("last", 9)):
        strategy = built(pattern=pattern)
        assert strategy._projections is not None
        assert [(p.in_features, p.out_features) for p in strategy._projections] == [(6, wanted)]
    strategy = built({"name": "tanh"})
    assert [type(part) for part in strategy._projections[0]] == [nn.Linear, nn.Tanh]
    assert PatientDistillation().build(ModelInfo("student"), {"teacher": ModelInfo("teacher")}) is None


def test_projections_of_a_script_are_drawn_in_order_as_those_of_matches() -> None:
    torch.manual_seed(0)
    sizes = {"student_layers": 3, "student_width": 4, "teacher_width": 6}
    strategy = PatientDistillation(projection="linear", **sizes)
    drawn = strategy.build(ModelInfo("student"), {"teacher": ModelInfo("teacher")})
    torch.manual_seed(0)
    for projection in drawn:
        expected = nn.Linear(4, 6)
        nn.init.normal_(expected.weight, std=0.02)
        assert torch.equal(projection.weight, expected.weight)
        assert not projection.bias.any()
    assert len(drawn) == 2


# Training


class Tiny(nn.Module):
    """Hidden states, and a class a row."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        hidden = [self.embedding(ids)]
        for layer in self.layers:
            hidden.append(torch.tanh(layer(hidden[-1])))
        return {"hidden": hidden, "logits": self.head(hidden[-1][:, 0])}


def adapt(batch: Any, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    return outputs


def distill(
    folder: Path, width: int, matches: list[dict[str, Any]] | None = None, strategy: Any = "general", depth: int = 6
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A seeded run of 6 steps: the student, and what was trained beside it."""
    torch.manual_seed(0)
    teacher, student = Tiny(8, depth), Tiny(width, 3)
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), device="cpu"),
        DistillationConfig(temperature=2, intermediate_matches=matches),
        teacher,
        student,
        adapt,
        adapt,
        strategy=strategy,
    )
    ids = torch.randint(11, (6, ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    with distiller:
        distiller.train(torch.optim.SGD(student.parameters(), lr=0.5), [(rows,) for rows in ids], num_epochs=1)
    beside = distiller._parts or distiller._objective
    return student.state_dict(), [p.detach() for p in beside.parameters()]


@pytest.mark.parametrize("projection", [None, "linear"])
@pytest.mark.parametrize(("pattern", "taught"), [("skip", (2, 4)), ("last", (4, 5))])
def test_a_run_ends_as_one_with_the_same_matches_by_hand(
    pattern: str, taught: tuple[int, int], projection: str | None, tmp_path: Path
) -> None:
    width, sizes = (8, {}) if projection is None else (4, {"student_layers": 3, "student_width": 4, "teacher_width": 8})
    match = {"feature": "hidden", "loss": "pkd", "weight": 0.7}
    proj = {} if projection is None else {"proj": [projection, width, 8]}
    matches = [{**match, **proj, "layer_S": own, "layer_T": layer} for own, layer in zip((1, 2), taught, strict=True)]
    strategy = {"name": "pkd", "pattern": pattern, "weight": 0.7, "projection": projection, **sizes}
    by_hand = distill(tmp_path / "hand", width, matches)
    found = distill(tmp_path / "strategy", width, strategy=strategy)
    torch.testing.assert_close(found, by_hand)
    assert len(found[1]) == (0 if projection is None else 4)
    other = distill(tmp_path / "general", width)
    assert not torch.allclose(other[0]["layers.0.weight"], found[0]["layers.0.weight"], atol=1e-4)


def test_matches_of_the_config_stand_beside_the_term(tmp_path: Path) -> None:
    match = {"feature": "hidden", "loss": "hidden_mse", "weight": 1, "layer_S": 3, "layer_T": 6}
    runs = [distill(tmp_path / str(i), 8, matches, "pkd")[0] for i, matches in enumerate((None, [match]))]
    assert not torch.equal(*(run["layers.2.weight"] for run in runs))


# Errors


@pytest.mark.parametrize(("names", "told"), [((), "none"), (("a", "b"), "a, b")])
def test_one_teacher_is_needed(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(RequestError) as error:
        PatientDistillation().build(ModelInfo("student"), {name: ModelInfo(name) for name in names})
    assert str(error.value) == (
        f"the strategy `pkd` learns from one teacher, not from {told}; `multi_teacher` learns from several."
    )


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "student_layers, student_width, teacher_width"),
        ({"student_width": 4, "teacher_width": 4}, "student_layers"),
        ({"student_layers": 2}, "student_width, teacher_width"),
    ],
)
def test_projections_need_widths_before_training(given: dict[str, int], missing: str) -> None:
    with pytest.raises(RequestError) as error:
        PatientDistillation(projection="linear", **given).build(ModelInfo("student"), {"teacher": ModelInfo("teacher")})
    assert str(error.value) == (
        "the strategy `pkd` projects hidden states, and the models' widths are not known before a batch is read: give it "
        f"{missing} too."
    )


@pytest.mark.parametrize(
    ("projection", "text"),
    [
        ("linaer", "no projection is called 'linaer'; did you mean 'linear'? Known: linear, relu, tanh."),
        (
            {"name": "linear", "bias": False},
            "options of the projection `linear`: bias: Extra inputs are not permitted.",
        ),
        ({"bias": False}, 'a mapping needs a "name", that of a projection.'),
    ],
)
def test_a_projection_that_is_not_there_is_refused(projection: Any, text: str) -> None:
    with pytest.raises(RequestError) as error:
        built(projection)
    assert str(error.value) == f"strategy `pkd`: projection: {text}"


FITS = "student_layers=2, student_width=5 and teacher_width=7."


@pytest.mark.parametrize(
    ("strategy", "student", "teacher", "text"),
    [
        (
            PatientDistillation(),
            states(3),
            states(5, 7),
            'the student has 2 layers 5 wide and the teacher\'s are 7 wide; give it "projection": "linear", and in a script '
            + FITS,
        ),
        (
            built(),
            states(3),
            states(5, 7),
            f"the student has 2 layers 5 wide and the teacher's are 7 wide; its projections do not fit: give it {FITS}",
        ),
        (
            PatientDistillation(),
            states(2),
            states(5),
            "the student has 1 layer, and its last one is not taught by `pkd`; it needs 2 layers or more.",
        ),
        (
            PatientDistillation(pattern="last"),
            states(4),
            states(3),
            "the student has 3 layers and the teacher 2; `pkd` teaches a student that is no deeper than its teacher.",
        ),
        (
            PatientDistillation(),
            [],
            states(3),
            "the student's adaptor returns 0 tensors of 'hidden', expected the embeddings' output and that of each layer; it "
            "returns logits.",
        ),
        (
            PatientDistillation(),
            states(3),
            states(1),
            "the teacher's adaptor returns 1 tensors of 'hidden', expected the embeddings' output and that of each layer; it "
            "returns hidden.",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused(
    strategy: PatientDistillation, student: list[Tensor], teacher: list[Tensor], text: str
) -> None:
    own = {"hidden": student} if student else {"logits": torch.zeros(ROWS, 2)}
    with pytest.raises(BrewerError) as error:
        term(strategy, own, {"hidden": teacher})
    assert str(error.value) == f"strategy `pkd`: {text}"


# The plugin


def test_the_plugin_has_the_strategy_beside_its_loss() -> None:
    assert brewer_strategies() == {"pkd": PatientDistillation}
