"""Losses equal those of other public libraries, in value and gradient, where both are about the same formula.

The libraries are those of the dependency group `peers`; `nox -s peers` installs them and runs this file.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from brewer_core.plugins import default_registry


def peer(module: str, name: str) -> Any:
    """A name of another library, whose import may warn of anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module.partition(".")[0], reason="`nox -s peers` installs and runs it")
        return getattr(importlib.import_module(module), name)


def ours(kind: str, name: str, **options: Any) -> Callable[..., Tensor]:
    sizes = {key: options.pop(key) for key in ("student_dim", "teacher_dim") if key in options}
    return default_registry().bind(kind, name, options, **sizes)


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same_value_and_gradient(one: Tensor, other: Tensor, student: Tensor) -> None:
    """The gradients are by what the student gives."""
    torch.testing.assert_close(one, other)
    (own,), (theirs,) = torch.autograd.grad(one, student, retain_graph=True), torch.autograd.grad(other, student)
    assert own.any()
    torch.testing.assert_close(own, theirs)


# TRL: the generalised Jensen-Shannon divergence of GKD, whose ends are the two KL divergences


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jsd_is_that_of_trl(beta: float, temperature: float) -> None:
    trainer = peer("trl.experimental.gkd", "GKDTrainer")
    student, teacher = random(2, 5, 11, seed=1, scale=3).requires_grad_(), random(2, 5, 11, seed=2, scale=3)
    labels = torch.tensor([[-100, 1, 2, 3, -100], [1, 1, 1, 1, 1]])
    theirs = trainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=temperature)
    jsd = ours("kd_loss", "jsd", beta=beta, normalise=beta in (0, 1), t_squared=False)

    same_value_and_gradient(jsd(student[labels != -100], teacher[labels != -100], temperature), theirs, student)


@pytest.mark.parametrize(("name", "beta"), [("kl", 0.0), ("reverse_kl", 1.0)])
def test_the_kl_divergences_are_the_ends_of_trls_jsd(name: str, beta: float) -> None:
    trainer = peer("trl.experimental.gkd", "GKDTrainer")
    student, teacher = random(7, 13, seed=3).requires_grad_(), random(7, 13, seed=4)
    theirs = trainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=2.0)

    same_value_and_gradient(ours("kd_loss", name, t_squared=False)(student, teacher, 2.0), theirs, student)


# sentence-transformers: losses for retrievers and rerankers


@pytest.mark.parametrize("negatives", [1, 3])
def test_margin_mse_is_that_of_sentence_transformers(negatives: int) -> None:
    loss = peer("sentence_transformers.sentence_transformer.losses", "MarginMSELoss")(model=None)
    query, documents = random(4, 6, seed=5).requires_grad_(), random(negatives + 1, 4, 6, seed=6)
    taught = random(4, negatives + 1, seed=7)
    theirs = loss.compute_loss_from_embeddings([query, *documents], taught)
    scores = torch.einsum("bd,cbd->bc", query, documents)

    same_value_and_gradient(ours("match_loss", "margin_mse")(scores, taught), theirs, query)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_listwise_kl_is_that_of_sentence_transformers(temperature: float) -> None:
    kind = peer("sentence_transformers.sentence_transformer.losses", "DistillKLDivLoss")
    loss = kind(model=None, temperature=temperature)
    query, documents = random(4, 6, seed=8).requires_grad_(), random(3, 4, 6, seed=9)
    taught = random(4, 3, seed=10)
    theirs = loss.compute_loss_from_embeddings([query, *documents], taught)
    scores = torch.einsum("bd,cbd->bc", query, documents)
    options = {"student_temperature": temperature, "teacher_temperature": temperature}

    same_value_and_gradient(ours("match_loss", "listwise_kl", **options)(scores, taught), theirs, query)


@pytest.mark.parametrize(("name", "metric"), [("embedding_mse", "mse"), ("embedding_cos", "cosine")])
def test_losses_of_embeddings_are_those_of_sentence_transformers(name: str, metric: str) -> None:
    module = torch.nn.Linear(1, 1)  # its parameters say where the loss is computed
    kind = peer("sentence_transformers.sentence_transformer.losses", "EmbedDistillLoss")
    theirs_of = kind(module, distance_metric=metric).compute_loss_from_embeddings
    student, teacher = random(5, 8, seed=11).requires_grad_(), random(5, 8, seed=12)

    same_value_and_gradient(ours("match_loss", name)(student, teacher), theirs_of([student], [teacher]), student)


# pytorch-metric-learning: contrast within a batch


def test_crd_without_projections_is_ntxent_of_pytorch_metric_learning() -> None:
    loss = peer("pytorch_metric_learning.losses", "NTXentLoss")(temperature=0.07)
    student, teacher = random(6, 8, seed=13).requires_grad_(), random(6, 8, seed=14)
    crd = ours("match_loss", "crd", student_dim=8, teacher_dim=8, projection_dim=8)
    module: Any = crd.target  # type: ignore[attr-defined]
    for projection in (module.student_projection, module.teacher_projection):
        torch.nn.init.eye_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    module.double()
    rows, others = torch.arange(6), torch.arange(6)  # one tensor of labels alone would stand for one set of rows
    theirs = loss(student, rows, ref_emb=teacher, ref_labels=others)

    same_value_and_gradient(crd(student, teacher), theirs, student)
