"""Maps of layers: their tables, what is generated of them, the search, and that a run has what the pairs written by hand give."""

from __future__ import annotations

import itertools
import json
import random as python_random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brewer_core import DistillationConfig, Features, GeneralDistiller, ModelInfo, MultiTaskDistiller, TrainingConfig
from brewer_core.config import parse_run_config
from brewer_core.errors import BrewerError, ConfigError, RequestError, Stopped
from brewer_core.objective import Objective
from brewer_core.objective.layer_search import linear_cka, most_alike, normed_products, searched, with_pairs
from brewer_core.objective.layers import Layers, paired
from brewer_core.plugins import build_registry, default_registry
from brewer_core.registry import Registry
from brewer_core.run import run_config
from brewer_core.run.assembly import Assembly
from brewer_core.run.explaining import explain
from brewer_core.run.planning import stage_lesson
from brewer_core.stopping import StopReason, StopRequest
from fakes import plugin
from runs import bert, brewer, distill, document, films, read, training, write_config, write_csv
from tiny import Tiny, adaptor, batches, table

HIDDEN = {"layers": "uniform", "feature": "hidden", "loss": "hidden_mse", "weight": 1}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def info(name: str, layers: int, width: int = 8, heads_of: int = 6) -> ModelInfo:
    """A model whose hidden states begin with the embeddings."""
    widths = {"hidden": (width,) * (layers + 1), "attention": (heads_of,) * layers, "pooled": (width,)}
    return ModelInfo(name, widths, maps=frozenset({"attention"}))


def objective(
    match: dict[str, Any], student: ModelInfo, teacher: ModelInfo, registry: Registry | None = None
) -> Objective:
    config = DistillationConfig(intermediate_matches=[match])
    return Objective.from_config(config, registry or default_registry(), student, {"teacher": teacher})


# The tables


@pytest.mark.parametrize(
    ("word", "teacher", "student", "expected"),
    [
        ("uniform", 12, 4, [(0, 0), (3, 1), (6, 2), (9, 3), (12, 4)]),
        ("uniform", 12, 6, [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]),
        ("uniform", 12, 3, [(0, 0), (4, 1), (8, 2), (12, 3)]),
        ("uniform", 6, 4, [(0, 0), (2, 1), (3, 2), (5, 3), (6, 4)]),  # 1.5, 3, 4.5, 6
        ("uniform", 2, 5, [(0, 0), (1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]),  # 0.4, 0.8, 1.2, 1.6, 2
        ("skip", 12, 4, [(3, 1), (6, 2), (9, 3), (12, 4)]),
        ("skip", 12, 6, [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]),
        ("skip", 12, 3, [(4, 1), (8, 2), (12, 3)]),
        ("skip", 6, 4, [(2, 1), (3, 2), (5, 3), (6, 4)]),
        ("last", 12, 4, [(9, 1), (10, 2), (11, 3), (12, 4)]),
        ("last", 12, 6, [(7, 1), (8, 2), (9, 3), (10, 4), (11, 5), (12, 6)]),
        ("last", 12, 3, [(10, 1), (11, 2), (12, 3)]),
        ("last", 6, 4, [(3, 1), (4, 2), (5, 3), (6, 4)]),
        ("first", 12, 4, [(1, 1), (2, 2), (3, 3), (4, 4)]),
        ("first", 6, 4, [(1, 1), (2, 2), (3, 3), (4, 4)]),
    ],
)
def test_the_table_of_hidden_states(word: str, teacher: int, student: int, expected: list[tuple[int, int]]) -> None:
    assert list(paired(word, Layers(teacher, True), Layers(student, True))) == expected


@pytest.mark.parametrize(
    ("word", "teacher", "student", "expected"),
    [
        ("uniform", 12, 4, [(2, 0), (5, 1), (8, 2), (11, 3)]),
        ("uniform", 12, 6, [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4), (11, 5)]),
        ("uniform", 12, 3, [(3, 0), (7, 1), (11, 2)]),
        ("uniform", 6, 4, [(1, 0), (2, 1), (4, 2), (5, 3)]),
        ("skip", 12, 4, [(2, 0), (5, 1), (8, 2), (11, 3)]),
        ("last", 12, 4, [(8, 0), (9, 1), (10, 2), (11, 3)]),
        ("first", 12, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
    ],
)
def test_the_table_of_features_without_embeddings(
    word: str, teacher: int, student: int, expected: list[tuple[int, int]]
) -> None:
    assert list(paired(word, Layers(teacher, False), Layers(student, False))) == expected


def test_hidden_has_the_embeddings_first_and_other_features_have_layers_alone() -> None:
    assert Layers.of("hidden", 13) == Layers(12, embeddings=True)
    assert Layers.of("attention", 12) == Layers(12, embeddings=False)


@pytest.mark.parametrize("word", ["skip", "last", "first"])
def test_a_shallower_teacher_is_refused_where_each_layer_needs_its_own(word: str) -> None:
    assert message(RequestError, lambda: paired(word, Layers(3, True), Layers(4, True))) == (
        f'the teacher has 3 layers and the student 4, and {word!r} needs as many at least; use "uniform", or name pairs.'
    )


def test_embeddings_alone_have_no_layer_to_map() -> None:
    assert message(RequestError, lambda: paired("uniform", Layers(0, True), Layers(2, True))) == (
        "there is no layer to map; name the layers, or another feature."
    )


# What is generated


def test_a_map_gives_the_terms_that_its_pairs_written_by_hand_give() -> None:
    student, teacher = info("student", 2), info("teacher", 4)
    written = [
        {**HIDDEN, "layers": None, "layer_T": t, "layer_S": s, "weight": 0.5} for t, s in [(0, 0), (2, 1), (4, 2)]
    ]
    by_hand = Objective.from_config(
        DistillationConfig(intermediate_matches=written), default_registry(), student, {"teacher": teacher}
    )
    mapped = objective({**HIDDEN, "weight": 0.5}, student, teacher)
    assert (
        list(mapped.matches)
        == list(by_hand.matches)
        == [
            "hidden_hidden_mse_0_0",
            "hidden_hidden_mse_1_2",
            "hidden_hidden_mse_2_4",
        ]
    )
    assert mapped.factors == by_hand.factors
    assert mapped.needs() == by_hand.needs()
    assert mapped.needs().every_teacher >= {"hidden[0]", "hidden[2]", "hidden[4]"}
    assert not mapped.needs().every_teacher & {"hidden", "hidden[1]", "hidden[3]"}


def test_pairs_need_no_sizes_and_name_the_teachers_layer_first() -> None:
    made = objective({**HIDDEN, "layers": [[3, 1], [-1, 2]]}, ModelInfo("student"), ModelInfo("teacher"))
    assert list(made.matches) == ["hidden_hidden_mse_1_3", "hidden_hidden_mse_2_-1"]


def test_a_linear_projection_is_generated_for_each_pair_where_widths_differ() -> None:
    made = objective(HIDDEN, info("student", 2, width=8), info("teacher", 4, width=12))
    projections = [match.projection for match in made.matches.values()]
    assert [(p.in_features, p.out_features) for p in projections] == [(8, 12)] * 3
    assert len({id(p) for p in projections}) == 3


def test_no_projection_is_generated_where_widths_are_equal() -> None:
    made = objective(HIDDEN, info("student", 2), info("teacher", 4))
    assert [match.projection for match in made.matches.values()] == [None] * 3


def test_no_projection_is_generated_for_a_loss_that_takes_other_widths() -> None:
    def similarities(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return (student @ student.mT - teacher @ teacher.mT).square().mean()

    registry = default_registry().with_plugin(plugin(brewer_match_losses={"similarities": similarities}))
    made = objective(
        {**HIDDEN, "loss": "similarities"}, info("student", 2, width=8), info("teacher", 4, width=12), registry
    )
    assert [match.projection for match in made.matches.values()] == [None] * 3


def test_maps_of_tokens_are_as_wide_as_their_batch_and_get_no_projection() -> None:
    texts = {
        name: Features.of({"scores": [torch.rand(2, 2, length, length)] * 2}) for name, length in [("s", 5), ("t", 9)]
    }
    student, teacher = (ModelInfo.of(name, features) for name, features in texts.items())
    match = {"layers": "last", "feature": "scores", "loss": "attention_mse", "weight": 1}
    assert [term.projection for term in objective(match, student, teacher).matches.values()] == [None, None]
    told = message(ConfigError, lambda: objective({**match, "proj": "linear"}, student, teacher))
    assert told == (
        "DistillationConfig: intermediate_matches[0].proj: 'scores' are maps from tokens to tokens, as wide as the batch is long; leave it "
        "out, and take a loss that compares maps"
    )


def test_a_projection_that_is_given_is_made_for_each_pair() -> None:
    match = {**HIDDEN, "proj": "relu", "proj_optimizer": {"lr": 0.1}}
    made = objective(match, info("student", 1, width=8), info("teacher", 4, width=12))
    assert [type(m.projection) for m in made.matches.values()] == [nn.Sequential, nn.Sequential]
    assert [group["lr"] for group in made.parameter_groups()] == [0.1, 0.1]


def test_trying_a_loss_leaves_the_draws_of_projections_as_they_are() -> None:
    class Drawing(nn.Module):
        def __init__(self, *, student_dim: int, teacher_dim: int) -> None:
            super().__init__()
            self.own = nn.Linear(student_dim, teacher_dim)

        def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
            return (self.own(student) - teacher).square().mean()

    registry = default_registry().with_plugin(plugin(brewer_match_losses={"drawing": Drawing}))
    sizes = info("student", 1, width=8), info("teacher", 2, width=12)
    torch.manual_seed(0)
    made = objective({**HIDDEN, "loss": "drawing", "layers": "last"}, *sizes, registry)
    torch.manual_seed(0)
    expected = Drawing(student_dim=8, teacher_dim=12)
    (match,) = made.matches.values()
    assert match.projection is None
    assert torch.equal(match.state.own.weight, expected.own.weight)


# What is refused


@pytest.mark.parametrize(
    ("change", "student", "teacher", "expected"),
    [
        (
            {"layers": "cka"},
            info("student", 2),
            info("teacher", 4),
            'layers: the layers of "cka" are searched on a batch, and none is at hand; `brewer run` has one, and a distiller with '
            "sample=BATCH",
        ),
        (
            {},
            ModelInfo("student"),
            info("teacher", 4),
            "layers: how many layers 'student' has is not known before a batch is read; give the distiller one, sample=BATCH, or name "
            "pairs such as [[3, 1], [6, 2]]",
        ),
        (
            {"layers": [[7, 1]]},
            info("student", 2),
            info("teacher", 4),
            "layers[0].layer_T: the teacher has 5 layers of 'hidden', 0 to 4; there is no 7",
        ),
        (
            {"feature": "pooled"},
            info("student", 2),
            info("teacher", 4),
            "layers: 'pooled' has no layers to map; leave layers out, or name a feature that has some",
        ),
        (
            {"loss": "hiden_mse"},
            info("student", 2),
            info("teacher", 4),
            "loss: no match loss is called 'hiden_mse'",
        ),
    ],
)
def test_a_map_that_cannot_be_made_says_why(
    change: dict[str, Any], student: ModelInfo, teacher: ModelInfo, expected: str
) -> None:
    told = message(ConfigError, lambda: objective({**HIDDEN, **change}, student, teacher))
    assert f"intermediate_matches[0].{expected}" in told
    assert told.count("intermediate_matches[0]") == 1


def test_a_feature_that_neither_model_has_is_told_of_both() -> None:
    told = message(
        ConfigError, lambda: objective({**HIDDEN, "feature": "states"}, info("student", 2), info("teacher", 4))
    )
    assert told == (
        "DistillationConfig: 2 problems\n"
        "  intermediate_matches[0].feature: the student's adaptor returns no 'states'; it returns hidden, attention, pooled\n"
        "  intermediate_matches[0].feature: the teacher's adaptor returns no 'states'; it returns hidden, attention, pooled"
    )


@pytest.mark.parametrize("layers", ["uniform", "cka", [[3, 1]]])
def test_a_feature_that_was_looked_for_is_told_as_without_layers(layers: Any) -> None:
    why = {side: f"the {side}'s adaptor returns no 'hiden'; did you mean 'hidden'?" for side in ("student", "teacher")}
    own, taught = (layers_of(*[torch.rand(2, 3, 4)] * 3).lacking({"hiden": why[side]}) for side in why)
    match = {**HIDDEN, "feature": None, "feature_T": "hiden", "feature_S": "hiden", "layers": layers}
    config = DistillationConfig(intermediate_matches=[match])

    def made() -> Objective:
        infos = {"teacher": ModelInfo.of("teacher", taught)}
        found = searched(config, lambda _: [(own, taught)], infos)
        return Objective.from_config(with_pairs(config, found), default_registry(), ModelInfo.of("student", own), infos)

    assert message(ConfigError, made) == (
        "DistillationConfig: 2 problems\n"
        f"  intermediate_matches[0].feature_S: {why['student']}\n"
        f"  intermediate_matches[0].feature_T: {why['teacher']}"
    )


def test_a_search_tells_of_both_models_what_they_lack() -> None:
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "layers": "cka"}])
    lacking = Features.of({"logits": torch.rand(2, 3)}), Features.of({})
    assert message(ConfigError, lambda: searched(config, lambda _: [lacking], {"t": ModelInfo("t")})) == (
        "DistillationConfig: 2 problems\n"
        "  intermediate_matches[0].layers: the student has no layers of 'hidden' to compare; it has logits\n"
        "  intermediate_matches[0].layers: the teacher has no layers of 'hidden' to compare; it has nothing"
    )


def test_teachers_of_several_depths_have_no_map_in_common() -> None:
    teachers = {
        "a": ModelInfo("a", {"hidden": (8,) * 5}, tasks=("a",)),
        "b": ModelInfo("b", {"hidden": (8,) * 7}, tasks=("b",)),
    }
    config = DistillationConfig(intermediate_matches=[HIDDEN])
    told = message(ConfigError, lambda: Objective.from_config(config, default_registry(), info("student", 2), teachers))
    assert "the teachers differ in how many layers of 'hidden' they have (a 5, b 7); name one teacher" in told


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (
            {**HIDDEN, "layers": "midle"},
            "expected uniform, skip, last, first, cka, or pairs of a teacher's layer and a student's such as [[3, 1], [6, 2]], not "
            '"midle"',
        ),
        ({**HIDDEN, "layers": []}, "such as [[3, 1], [6, 2]], not []"),
        ({**HIDDEN, "layers": [[1, 2, 3]]}, "such as [[3, 1], [6, 2]], not [[1, 2, 3]]"),
        ({**HIDDEN, "layers": [[1, True]]}, "such as [[3, 1], [6, 2]], not [[1, true]]"),
        (
            {**HIDDEN, "layer_T": 1},
            "intermediate_matches[0].layers: they stand in place of layer_T and layer_S; give one or the other",
        ),
        (
            {**HIDDEN, "feature": "hidden[1]"},
            "intermediate_matches[0].layers: they map those of a feature such as `hidden`, and feature names a layer itself; leave "
            "layers out",
        ),
        (
            {**HIDDEN, "feature": None, "feature_T": "hidden", "feature_S": "encoder.layer.1"},
            "intermediate_matches[0].layers: they map those of a feature such as `hidden`, and feature_S names a module; leave layers out",
        ),
    ],
)
def test_a_config_with_other_layers_is_refused(match: dict[str, Any], expected: str) -> None:
    assert expected in message(ConfigError, lambda: DistillationConfig(intermediate_matches=[match]))


def test_a_config_keeps_layers_as_they_are_written() -> None:
    for written in ("uniform", [[3, 1], [6, 2]]):
        config = DistillationConfig(intermediate_matches=[{**HIDDEN, "layers": written}])
        assert config.to_dict()["intermediate_matches"][0]["layers"] == written
        assert DistillationConfig.from_dict(config.to_dict()) == config


# The search


def test_the_search_finds_what_trying_all_maps_finds() -> None:
    draw = python_random.Random(0)
    for _ in range(500):
        rows, columns = draw.randint(1, 4), draw.randint(1, 6)
        likeness = [[draw.choice([draw.random(), 0.5]) for _ in range(columns)] for _ in range(rows)]
        rising = itertools.combinations if columns >= rows else itertools.combinations_with_replacement
        sums = {m: sum(likeness[r][c] for r, c in enumerate(m)) for m in rising(range(columns), rows)}
        found = tuple(most_alike(likeness))
        assert found in sums
        assert sums[found] == pytest.approx(max(sums.values()))


def test_of_maps_that_are_equally_alike_the_lower_is_taken() -> None:
    assert most_alike([[1.0] * 4] * 2) == [0, 1]


def test_linear_cka_is_what_plain_loops_give() -> None:
    g = torch.Generator().manual_seed(0)
    one, other = torch.randn(5, 3, generator=g).double(), torch.randn(5, 2, generator=g).double()

    def products(states: list[list[float]]) -> list[list[float]]:
        width = len(states[0])
        means = [sum(row[d] for row in states) / len(states) for d in range(width)]
        return [[sum((a[d] - means[d]) * (b[d] - means[d]) for d in range(width)) for b in states] for a in states]

    def dot(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(x * y for row, other_row in zip(a, b, strict=True) for x, y in zip(row, other_row, strict=True))

    k, m = products(one.tolist()), products(other.tolist())
    assert linear_cka(normed_products(one), normed_products(other)) == pytest.approx(
        dot(k, m) / (dot(k, k) * dot(m, m)) ** 0.5
    )
    turned = one @ torch.linalg.qr(torch.randn(3, 3, generator=g).double())[0]
    assert linear_cka(normed_products(one), normed_products(4 * turned + 1)) == pytest.approx(1.0)
    assert linear_cka(normed_products(torch.ones(5, 2)), normed_products(other)) == 0.0


def layers_of(*states: Tensor, mask: Tensor | None = None) -> Features:
    return Features.of({"hidden": list(states), **({} if mask is None else {"inputs_mask": mask})})


def test_each_layer_of_the_student_is_paired_with_the_one_that_it_is_made_of() -> None:
    g = torch.Generator().manual_seed(0)
    taught = [torch.randn(4, 5, 6, generator=g) for _ in range(6)]
    own = [torch.randn(4, 5, 3, generator=g), taught[2][..., :3] * 2, taught[3] + 1, taught[5][..., 1:]]
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "layers": "cka"}])
    found = searched(config, lambda _: [(layers_of(*own), layers_of(*taught))], {"t": ModelInfo("t")})
    assert found == {0: ((2, 1), (3, 2), (5, 3))}
    assert with_pairs(config, found).matches[0].layers == ((2, 1), (3, 2), (5, 3))


def test_padding_takes_no_part_in_the_search() -> None:
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    taught = [torch.randn(2, 5, 4, generator=g) for _ in range(4)]
    own = [state.clone() for state in (taught[0], taught[1], taught[3])]
    own[1][mask == 0], own[2][mask == 0] = float("nan"), 1e9
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "layers": "cka"}])
    found = searched(
        config, lambda _: [(layers_of(*own, mask=mask), layers_of(*taught, mask=mask))], {"t": ModelInfo("t")}
    )
    assert found == {0: ((1, 1), (3, 2))}


def test_batches_are_compared_as_one_until_there_are_tokens_enough() -> None:
    g = torch.Generator().manual_seed(0)
    taught = [torch.randn(300, 5, 4, generator=g) for _ in range(5)]
    own = [taught[0], taught[2] + 0.5 * taught[4], taught[3] + 0.5 * taught[1]]
    asked: list[int] = []

    def compared(size: int) -> Iterator[tuple[Features, Features]]:
        for start in range(0, 300, size):
            asked.append(start)
            pair = [layers_of(*[state[start : start + size] for state in states]) for states in (own, taught)]
            yield pair[0], pair[1]

    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "layers": "cka"}])
    found = [searched(config, lambda _, size=size: compared(size), {"t": ModelInfo("t")}) for size in (300, 41, 2)]
    assert found == [{0: ((2, 1), (3, 2))}] * 3
    assert asked == [0, *range(0, 205, 41), *range(0, 205, 2)]  # 1,024 tokens are 205 rows


@pytest.mark.parametrize(
    ("change", "own", "taught", "expected"),
    [
        (
            {"feature": "attention"},
            Features.of({"attention": [torch.rand(2, 2, 3, 3)]}),
            Features.of({"attention": [torch.rand(2, 2, 3, 3)]}),
            "layers of 'attention' have the axes B H L L, and states of tokens, B L D, are compared; name pairs, or use \"uniform\"",
        ),
        (
            {},
            layers_of(*[torch.rand(2, 3, 4)] * 2),
            layers_of(*[torch.rand(2, 5, 4)] * 2),
            "the student has 6 tokens in a batch and the teacher 10; layers are compared on the same tokens, so name pairs, or use "
            '"uniform"',
        ),
        (
            {},
            Features.of({"logits": torch.rand(2, 3)}),
            layers_of(*[torch.rand(2, 5, 4)] * 2),
            "the student has no layers of 'hidden' to compare; it has logits",
        ),
        (
            {"feature": "pooled"},
            Features.of({"pooled": torch.rand(2, 4)}),
            Features.of({"pooled": torch.rand(2, 4)}),
            "'pooled' has no layers to map; leave layers out, or name a feature that has some",
        ),
        (
            {"teacher": "u"},
            layers_of(*[torch.rand(2, 3, 4)] * 2),
            layers_of(*[torch.rand(2, 3, 4)] * 2),
            "no teacher is called 'u'; expected one of t",
        ),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(
    change: dict[str, Any], own: Features, taught: Features, expected: str
) -> None:
    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "layers": "cka", **change}])
    told = message(ConfigError, lambda: searched(config, lambda _: [(own, taught)], {"t": ModelInfo("t")}))
    assert told == f"DistillationConfig: intermediate_matches[0].layers: {expected}"


# The library's doors


def distiller(folder: Path, layers: Any, sample: Any = None) -> GeneralDistiller:
    torch.manual_seed(0)
    return GeneralDistiller(
        TrainingConfig(device="cpu", output_dir=str(folder), log_dir=None),
        DistillationConfig(intermediate_matches=[{**HIDDEN, "layers": layers}]),
        Tiny(6, 4, seed=2),
        Tiny(4, 2, seed=1),
        adaptor("row_logits", "hidden", "mask"),
        adaptor("row_logits", "hidden", "mask"),
        sample=sample,
    )


def test_a_distiller_with_a_sample_knows_layers_and_widths(tmp_path: Path) -> None:
    (batch,) = batches(table(), [8])
    made = distiller(tmp_path, "uniform", batch)
    assert list(made._objective.matches) == [
        "hidden_hidden_mse_0_0",
        "hidden_hidden_mse_1_2",
        "hidden_hidden_mse_2_4",
    ]
    with made:
        made.train(torch.optim.SGD(made.model_S.parameters(), lr=0.1), [batch], num_epochs=1)
    searched_pairs = distiller(tmp_path, "cka", batch)._objective.matches
    assert [term.sources[0].layers for term in searched_pairs.values()] == [1, 2]


def test_a_sample_leaves_models_in_their_modes_and_the_generator_as_it_was(tmp_path: Path) -> None:
    (batch,) = batches(table(), [8])
    without, with_one = distiller(tmp_path, [[4, 2]]), distiller(tmp_path, [[4, 2]], batch)
    assert with_one.model_S.training
    assert with_one.model_T.training
    assert without._objective.parameter_groups() == []
    assert len(with_one._objective.parameter_groups()) == 1  # the widths are known, and differ


def test_a_sample_of_several_tasks_has_a_batch_for_each(tmp_path: Path) -> None:
    (batch,) = batches(table(), [8])

    def make(sample: Any) -> MultiTaskDistiller:
        return MultiTaskDistiller(
            TrainingConfig(device="cpu", output_dir=str(tmp_path), log_dir=None),
            DistillationConfig(intermediate_matches=[HIDDEN]),
            {"a": Tiny(4, 4, seed=2), "b": Tiny(4, 4, seed=3)},
            Tiny(4, 2, seed=1),
            adaptor("row_logits", "hidden", "mask"),
            adaptor("row_logits", "hidden", "mask"),
            sample=sample,
        )

    assert len(make({"a": batch, "b": batch})._objective.matches) == 3
    assert message(RequestError, lambda: make({"a": batch})) == (
        "sample must be a dict from task to batch, with one for the task 'b'."
    )
    assert message(RequestError, lambda: make({"a": batch, "b": {}})) == (
        "sample['b'] has no rows; the layers and widths of the models are read off a batch with at least one, so give one that the "
        "dataloader yields."
    )


@pytest.mark.parametrize("sample", [[{}], {}, (), (torch.zeros(0, 3),), {"student": {}, "teacher": {}}])
def test_a_sample_without_rows_is_refused(sample: Any, tmp_path: Path) -> None:
    assert message(RequestError, lambda: distiller(tmp_path, "uniform", sample)) == (
        "sample has no rows; the layers and widths of the models are read off a batch with at least one, so give one that the dataloader "
        "yields."
    )


def test_layers_of_a_tasks_teacher_are_searched_on_the_sample_of_that_task(tmp_path: Path) -> None:
    first, second = batches(table(), [8, 3])[:2]
    match = {**HIDDEN, "layers": "cka", "teacher": "b"}
    made = MultiTaskDistiller(
        TrainingConfig(device="cpu", output_dir=str(tmp_path), log_dir=None),
        DistillationConfig(intermediate_matches=[match]),
        {"a": Tiny(4, 2, seed=2), "b": Tiny(4, 4, seed=3)},
        Tiny(4, 2, seed=1),
        dict.fromkeys("ab", adaptor("row_logits", "hidden", "mask")),
        dict.fromkeys("ab", adaptor("row_logits", "hidden", "mask")),
        sample={"a": first, "b": second},
    )
    assert [term.sources[0].layers for term in made._objective.matches.values()] == [1, 2]


# Runs

pytest.importorskip("transformers", reason="runs need the extra hf")
pytest.importorskip("pyarrow", reason="runs need the extra hf")


def one_stage(layers: Any, **more: Any) -> dict[str, Any]:
    match = {**HIDDEN, "weight": 0.5, **({"layers": layers} if layers else {}), **more}
    distillation = {"kd_loss_type": "kl", "intermediate_matches": [match]}
    return document(
        models={"teacher": bert(16, 4, **STILL), "student": bert(8, 2, **STILL)},
        stages=[distill(distillation=distillation, training=training(steps=4, log_every_steps=1))],
    )


def figures(folder: Path) -> list[dict[str, float]]:
    """What is logged of each step, but the speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "per_s" not in name} for line in lines]


def carried_out(folder: Path, config: dict[str, Any], name: str) -> Path:
    assert brewer("run", write_config(films(folder), config, f"{name}.json"), "--output", folder / name) == 0
    return folder / name


def test_a_run_with_a_map_is_bit_by_bit_the_one_with_its_pairs_written_by_hand(tmp_path: Path) -> None:
    by_hand = one_stage("uniform")
    matches = by_hand["stages"][0]["distillation"]["intermediate_matches"]
    (mapped,) = matches
    plain = {key: value for key, value in mapped.items() if key != "layers"}
    matches[:] = [{**plain, "layer_T": t, "layer_S": s, "proj": "linear"} for t, s in [(0, 0), (2, 1), (4, 2)]]
    first = carried_out(tmp_path, one_stage("uniform"), "mapped")
    second = carried_out(tmp_path, by_hand, "by-hand")
    assert figures(first) == figures(second)
    assert "hidden_hidden_mse_2_4" in figures(first)[0]
    weights = [(each / "student" / "model.safetensors").read_bytes() for each in (first, second)]
    assert weights[0] == weights[1]
    kept = read(first / "config.json")["stages"][0]["distillation"]["intermediate_matches"]
    assert kept[0]["layers"] == "uniform"
    assert kept[0]["proj"] is None


class StopsAfter(StopRequest):
    """Asks to stop once it was asked so many times."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    @property
    def reason(self) -> StopReason:
        self.left -= 1
        return StopReason.NONE if self.left > 0 else StopReason.TIME


def test_a_run_keeps_the_layers_that_it_has_searched_and_goes_on_with_them(tmp_path: Path) -> None:
    registry = build_registry()
    models = {"teacher": bert(16, 4, **STILL), "student": bert(16, 2, **STILL)}  # no projection, which is saved
    config = parse_run_config({**one_stage("cka"), "models": models}, "config.json", registry)
    given = {"output": tmp_path / "run", "base_dir": films(tmp_path), "registry": registry, "device": "cpu"}
    with pytest.raises(Stopped):
        run_config(config, **given, stop=StopsAfter(2))
    file = tmp_path / "run" / "stages" / "distil" / "layers.json"
    ((first, second),) = read(file)["intermediate_matches"].values()
    assert (first[1], second[1]) == (1, 2)
    assert 1 <= first[0] < second[0] <= 4
    other = next([t, t + 1] for t in range(1, 4) if [t, t + 1] != [first[0], second[0]])
    file.write_text(json.dumps({"intermediate_matches": {"0": [[other[0], 1], [other[1], 2]]}}))
    run_config(config, **given, resume=True)
    terms = [{name for name in line if "hidden_mse" in name} for line in figures(tmp_path / "run") if "kd_loss" in line]
    searched_first = {f"hidden_hidden_mse_1_{first[0]}", f"hidden_hidden_mse_2_{second[0]}"}
    kept_then = {f"hidden_hidden_mse_1_{other[0]}", f"hidden_hidden_mse_2_{other[1]}"}
    assert terms == [searched_first, searched_first, kept_then, kept_then]


def test_a_search_is_of_the_same_rows_however_a_step_is_cut(tmp_path: Path) -> None:
    cuts = [{}, {"batch_size": 2, "accumulation": 2}, {"batch_size": "auto", "rows_per_step": 4}]
    found = []
    for i, cut in enumerate(cuts):
        config = one_stage("cka")
        config["stages"][0]["training"].update({"steps": 1, **cut})
        found.append(read(carried_out(tmp_path, config, f"cut-{i}") / "stages" / "distil" / "layers.json"))
    assert found == [found[0]] * 3


def test_layers_of_a_tasks_own_teacher_are_searched_on_its_own_rows(tmp_path: Path) -> None:
    write_csv(
        films(tmp_path) / "long.csv",
        [{"text": f"what a good and long story it was {i}", "label": "pn"[i % 2]} for i in range(8)],
    )
    source = document()["data"]["films"]["source"]
    match = {**HIDDEN, "layers": "cka", "teacher": "other"}
    config = document(
        tasks={"mood": {}, "length": {}},
        data={
            "films": {"source": source, "task": "mood"},
            "long": {"source": {"name": "csv", "path": {"train": "long.csv"}}, "task": "length"},
        },
        models={"teacher": bert(16, 2, **STILL), "other": bert(12, 4, **STILL), "student": bert(8, 2, **STILL)},
        stages=[
            distill(
                teachers=[{"model": "teacher", "task": "mood"}, {"model": "other", "task": "length"}],
                train=["films", "long"],
                unlabelled=[],
                strategy="multi_task",
                distillation={"intermediate_matches": [match]},
            )
        ],
        evaluation={"data": ["films"]},
    )
    registry = build_registry()
    assembly = Assembly(parse_run_config(config, "config.json", registry), tmp_path, registry, torch.device("cpu"))
    ((first, second),) = stage_lesson(assembly, 0).layers.values()
    assert (first[1], second[1]) == (1, 2)
    assert 1 <= first[0] < second[0] <= 4


def test_explain_shows_each_pair_with_its_projection(tmp_path: Path) -> None:
    registry = build_registry()
    config = parse_run_config(one_stage("last"), "config.json", registry)
    assembly = Assembly(config, films(tmp_path), registry, torch.device("cpu"))
    (stage,) = explain(assembly)
    (task,) = stage.tasks
    assert list(task.formula[1:]) == [
        "0.5 * hidden_mse(linear(student.hidden[1]: 8 -> 16), teacher.hidden[3])",
        "0.5 * hidden_mse(linear(student.hidden[2]: 8 -> 16), teacher.hidden[4])",
    ]
    lesson = stage_lesson(assembly, 0)
    assert {name for name in lesson.learner.needs.teacher("teacher") if name.startswith("hidden")} == {
        "hidden[3]",
        "hidden[4]",
    }
