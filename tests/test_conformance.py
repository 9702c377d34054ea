"""Every method of this repository keeps what its kind promises: as it is by default, and with the options that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from brewer_core import component
from brewer_core.components import Component, facts_of
from brewer_core.errors import ComponentError
from brewer_core.plugins import build_registry
from brewer_core.testing import (
    AdaptorConformance,
    DatasetConformance,
    DoesNotApply,
    KDLossConformance,
    MatchLossConformance,
    MetricConformance,
    ModelConformance,
    StrategyConformance,
    WeightSchedulerConformance,
)
from brewer_core.testing.report import CLASSES, conformance_of, outcomes
from fakes import plugin
from runs import labelled, write_csv

OURS = ("brewer-core", "brewer-loss-pkd", "brewer-strategy-emd")
COMPONENTS = [c for c in build_registry().components() if c.provenance.distribution in OURS]
ALLOWED_TO_SKIP = {
    "padding_invariance": {"it sees valid positions alone: it names no `mask`"},
    "fully_masked": {"its inputs have no mask"},
    "identity": {"what it compares is learned, so where student and teacher agree is no minimum"},
    "over": {"its tensors have one item a row, which is what is meant where nothing is declared"},
    "batch_split": {'it is declared over="batch": defined on a batch as a whole'},
    "accumulation": {'it is declared over="batch": defined on a batch as a whole'},
    "t_squared": {'it does not claim it: @component(claims=("t_squared",)) does'},
    "wrong_width": {
        "it compares similarities of tokens, so student and teacher may differ in width",
        "it compares relations of tokens, so student and teacher may differ in width",
        "it compares relations of rows, so student and teacher may differ in width",
        "it compares scores of rows, so student and teacher may differ in width",
        "it compares a map over tokens, so student and teacher may differ in width",
        "it is built for the widths that it names: student_dim, teacher_dim",
    },
    "standardise": {'it does not claim it: @component(claims=("standardise",)) does'},
    "vocabulary_padding": {'it does not claim it: @component(claims=("vocabulary_padding",)) does'},
    "no_gradient_to_teacher": {"it asks no teacher"},
    "trains": {"it trains nothing"},
    "split": {"it reads the losses of the whole step"},
    "sparse_teacher": {"it needs all of the teacher's logits: it does not declare @component(sparse=True)"},
}


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: f"{c.kind.name}-{c.name}")
def test_every_component_of_this_repository_passes_and_skips_nothing_in_silence(component: Component) -> None:
    found = outcomes(conformance_of(component))

    assert {o.property: o.reason for o in found if o.result == "failed"} == {}
    for outcome in found:
        if outcome.result == "skipped":
            assert is_expected(component, outcome.property, outcome.reason or "")


def is_expected(component: Component, name: str, reason: str) -> bool:
    """Whether this property is known not to apply, for this reason."""
    if component.kind.name in ("model", "dataset"):
        return reason.startswith("without options it cannot be made;")
    return reason in ALLOWED_TO_SKIP[name]


def test_there_is_a_class_for_every_kind_that_is_provided() -> None:
    assert {c.kind.name for c in COMPONENTS} == set(CLASSES)


# With options


class TestCeWithTSquared(KDLossConformance):
    component = "ce"
    options: ClassVar = {"t_squared": True}
    claims = ("t_squared",)


class TestMseWithTSquared(KDLossConformance):
    component = "mse"
    options: ClassVar = {"t_squared": True}
    claims = ("t_squared",)


class TestJsdNormalised(KDLossConformance):
    component = "jsd"
    options: ClassVar = {"beta": 0.1, "normalise": True}


class TestJsdAtForwardKl(KDLossConformance):
    component = "jsd"
    options: ClassVar = {"beta": 0, "normalise": True}


class TestTopKWithoutTheTail(KDLossConformance):
    component = "top_k_kl"
    options: ClassVar = {"k": 2, "tail": False}


class TestTopKOfAll(KDLossConformance):
    component = "top_k_kl"
    options: ClassVar = {"k": 100}


class TestDistWithoutTSquared(KDLossConformance):
    component = "dist"
    options: ClassVar = {"t_squared": False}
    claims = ("t_squared",)


class TestSkewToTheStudent(KDLossConformance):
    component = "skew_kl"
    options: ClassVar = {"alpha": 0.9}


class TestAdaptiveToOne(KDLossConformance):
    component = "adaptive_kl"
    options: ClassVar = {"head_mass": 0.9}


class TestAttentionCeOfProbabilities(MatchLossConformance):
    component = "attention_ce"
    options: ClassVar = {"normalized": True}
    takes = "probabilities"
    exempt: ClassVar = {
        "identity": "its gradient is 0 only along the probabilities that sum to 1",
        "extreme_values": "probabilities are never as large",
    }


class TestAttentionMseOfProbabilities(MatchLossConformance):
    component = "attention_mse"
    takes = "probabilities"


class TestMinilmOfAttention(MatchLossConformance):
    component = "minilm"
    takes = "probabilities"
    exempt: ClassVar = {"wrong_width": "a teacher with padding is no other number of tokens"}


class TestMinilmOfScores(MatchLossConformance):
    component = "minilm"
    options: ClassVar = {"normalized": False}
    takes = "attention"


class TestMinilmv2OfSeveralFeatures(MatchLossConformance):
    component = "minilmv2"
    options: ClassVar = {"relation_heads": 5}
    takes = "pairs"


class TestSpOfFlattenedTokens(MatchLossConformance):
    component = "sp"
    options: ClassVar = {"pool": "flatten"}


class TestCkaOfTokens(MatchLossConformance):
    component = "cka"
    options: ClassVar = {"pool": "tokens"}


class TestDebiasedCka(MatchLossConformance):
    component = "cka"
    options: ClassVar = {"debiased": True, "pool": "tokens"}


class TestRkdOfLastTokens(MatchLossConformance):
    component = "rkd_angle"
    options: ClassVar = {"pool": "last"}


class TestRkdOfEmbeddings(MatchLossConformance):
    component = "rkd_distance"
    takes = "rows"


class TestEmbeddingMseOfSentences(MatchLossConformance):
    component = "embedding_mse"
    options: ClassVar = {"matryoshka_dims": [2, 5], "matryoshka_weights": [0.5, 1.0]}
    takes = "rows"


class TestEmbeddingCosOfSentences(MatchLossConformance):
    component = "embedding_cos"
    options: ClassVar = {"matryoshka_dims": [3]}
    takes = "rows"


class TestScoresOfQueriesAndDocuments(MatchLossConformance):
    component = "score_matrix_kl"
    options: ClassVar = {"similarity": "dot", "student_temperature": 2.0, "teacher_temperature": 2.0}
    takes = "pairs"


class TestSymmetricCrd(MatchLossConformance):
    component = "crd"
    options: ClassVar = {"symmetric": True, "projection_dim": 4}
    takes = "rows"


class TestVidWithAHiddenLayer(MatchLossConformance):
    component = "vid"
    options: ClassVar = {"hidden_dim": 3}
    takes = "rows"


class TestLateDecay(WeightSchedulerConformance):
    component = "cosine_decay"
    options: ClassVar = {"warmup": 0.3}


class TestMeanOfProbabilities(StrategyConformance):
    component = "multi_teacher"
    options: ClassVar = {"average": "probabilities"}
    teachers = 2


class TestTasksOfTwoTeachers(StrategyConformance):
    component = "multi_task"
    teachers = 2


class TestTransportOfAttention(StrategyConformance):
    component = "emd"
    options: ClassVar = {"attention_weight": 1.0, "project": "linear"}


class TestTransportByCost(StrategyConformance):
    component = "emd"
    options: ClassVar = {"layer_weights": "cost_attention"}


class TestBinaryF1(MetricConformance):
    component = "f1"
    options: ClassVar = {"average": "binary"}


class TestRowsWithoutLabels(AdaptorConformance):
    component = "text_classification"

    def batch(self) -> Any:
        return {**super().batch(), "labels": torch.tensor([1, -100, 0, -100])}


class TestLanguageModel(AdaptorConformance):
    component = "causal_lm"
    options: ClassVar = {"vocab_size": 5}
    of_tokens = True

    def batch(self) -> Any:
        made = super().batch()
        return {**made, "labels": made["labels"].clamp(max=4), "target_mask": made["attention_mask"]}


class TestModelFromConfig(ModelConformance):
    component = "hf"
    options: ClassVar = {
        "config": {
            "model_type": "bert",
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
        }
    }

    def inputs(self) -> dict[str, Any]:
        pytest.importorskip("transformers")
        from brewer_core.run.tokenizers import train_tokenizer

        return {**super().inputs(), "tokenizer": train_tokenizer(["a good film", "a bad film"], 60)}


class TestCsv(DatasetConformance):
    component = "csv"
    options: ClassVar = {"path": "rows.csv"}

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        self.base_dir = tmp_path
        write_csv(tmp_path / "rows.csv", labelled(6))

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "base_dir": self.base_dir}


class TestText(TestCsv):
    component = "text"
    options: ClassVar = {"path": "rows.csv"}


# How a class says what it tests


def squared(student_logits, teacher_logits, temperature, *, scale: float):
    return scale * (student_logits - teacher_logits.detach()).square().mean()


class OfAFunction(KDLossConformance):
    component = squared
    options: ClassVar = {"scale": 2.0}


class OfAStaticMethod(OfAFunction):
    component = staticmethod(squared)


class OfAName(KDLossConformance):
    component = "kl"


@pytest.mark.parametrize("conformance", [OfAFunction, OfAStaticMethod])
def test_a_function_is_named_as_it_is_or_as_a_static_method(conformance: type[KDLossConformance]) -> None:
    assert conformance().subject.implementation is squared
    assert conformance().chosen == {"scale": 2.0}


def test_a_name_is_looked_up_among_what_is_installed() -> None:
    assert OfAName().subject.provenance.distribution == "brewer-core"


def test_a_class_without_a_component_says_so() -> None:
    class Empty(KDLossConformance):
        pass

    with pytest.raises(ComponentError) as caught:
        _ = Empty().subject
    assert str(caught.value) == "Empty names no component; write `component = ...` in it."


def test_what_the_component_declares_and_what_the_class_says_are_joined() -> None:
    @component(exempt={"bf16": "by the component"}, example={"scale": 1.0}, claims=("t_squared",))
    def loss(student_logits, teacher_logits, temperature, *, scale: float, shift: float = 0.0):
        return squared(student_logits, teacher_logits, temperature, scale=scale)

    class Tested(KDLossConformance):
        component = loss
        options: ClassVar = {"shift": 1.0}
        exempt: ClassVar = {"identity": "by the class"}

    assert Tested().chosen == {"scale": 1.0, "shift": 1.0}
    assert Tested().exemptions == {"bf16": "by the component", "identity": "by the class"}
    assert Tested().claimed == {"t_squared"}


def test_an_exempt_property_is_skipped_with_its_reason() -> None:
    class Tested(OfAFunction):
        exempt: ClassVar = {"bf16": "it is never asked"}

    tested = Tested()
    with pytest.raises(DoesNotApply) as caught:
        tested.setup_method(tested.test_bf16)
    assert str(caught.value) == "it is never asked"
    tested.setup_method(tested.test_scalar)


@pytest.mark.parametrize(
    ("exempt", "text"),
    [
        (
            {"identiti": "none"},
            "kd loss `squared` exempts 'identiti', which is no property of this kind; did you mean 'identity'?",
        ),
        ({"bf16": " "}, "exempt={'bf16': ' '} gives no reason for 'bf16'; a property is switched off with one."),
    ],
)
def test_an_exemption_without_property_or_reason_is_an_error(exempt: dict[str, str], text: str) -> None:
    tested = type("Tested", (OfAFunction,), {"exempt": exempt})()

    with pytest.raises(ComponentError) as caught:
        tested.setup_method(tested.test_scalar)
    assert str(caught.value) == text


def test_a_match_loss_that_takes_nothing_known_is_told_what_was_tried() -> None:
    @component(over="tokens")
    def of_ids(student, teacher, mask=None):
        raise TypeError("ids only")

    tested = conformance_of(Component.passed("match_loss", of_ids))
    reasons = {o.reason for o in outcomes(tested)}

    assert reasons == {
        "takes none of hidden, attention, pairs, rows; override `inputs` (hidden: TypeError: ids only; attention: TypeError: "
        "ids only; pairs: TypeError: ids only; rows: TypeError: ids only)"
    }


def test_an_adaptor_of_another_batch_is_skipped_with_the_reason() -> None:
    def of_tuples(batch, outputs):
        return {"logits": outputs[1]}

    skipped = {o.reason for o in outcomes(conformance_of(Component.passed("adaptor", of_tuples)))}

    assert skipped == {
        "it takes another batch than Hugging Face's (KeyError: 1); override `batch` and `outputs`",
    }


# Facts


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"exempt": {"identity": ""}}, "exempt={'identity': ''} gives no reason for 'identity'; a property is switched off with one."),
        ({"exempt": ["identity"]}, "exempt=['identity'] must be a mapping from property to reason."),
        ({"claims": "t_squared"}, "claims='t_squared' must be a tuple of names of properties."),
    ],
)  # fmt: skip
def test_faulty_facts_are_refused(facts: dict[str, Any], text: str) -> None:
    with pytest.raises(ComponentError) as caught:
        component(**facts)
    assert str(caught.value) == text


def test_an_example_of_an_option_that_is_not_there_is_refused() -> None:
    loss = component(example={"size": 1})(lambda student, teacher, temperature: student.mean())

    with pytest.raises(ComponentError) as caught:
        build_registry().with_plugin(plugin(brewer_kd_losses={"loss": loss}))
    assert str(caught.value) == "kd loss `loss` declares an example of the option `size`, which it does not have."


def test_facts_are_copies_of_what_was_declared() -> None:
    exempt = {"identity": "no"}
    loss = component(exempt=exempt)(lambda student, teacher, temperature: student.mean())
    exempt.clear()

    assert facts_of(loss).exempt == {"identity": "no"}
