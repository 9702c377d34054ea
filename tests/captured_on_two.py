"""A training that reads inside its models, for one process and for two: all rows, or a half each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from brewer_builtins.strategies import General
from brewer_core import DistillationConfig, default_registry, sharding
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.protocols import Step
from brewer_core.teachers import LiveTeacher
from families import hooks_of

CPU = torch.device("cpu")
MATCHES = [
    {"feature": "query[1]", "weight": 1, "loss": "hidden_mse"},
    {"feature_T": "scores[2]", "feature_S": "scores[0]", "weight": 1, "loss": "attention_mse"},
    {"feature": "attention[0]", "weight": 1, "loss": "attention_mse"},
    {"feature": "bert.encoder.layer.0.intermediate.dense.input", "weight": 1, "loss": "hidden_mse"},
    {"feature_T": "hidden[3]", "feature_S": "hidden[1]", "weight": 1, "loss": "hidden_mse"},
]


def classifier(width: int, layers: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=12,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def texts(seed: int) -> dict[str, Tensor]:
    """Four rows without padding, so that halves of a batch weigh alike."""
    ids = torch.randint(30, (4, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def only_logits(batch: Any, outputs: Any) -> dict[str, Any]:
    """What a user's adaptor returns who knows of nothing inside a model."""
    return {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}


def trained_on(batches: list[dict[str, Tensor]], way: str = "") -> dict[str, Tensor]:
    """The student after a step on each batch: on one process, or on each of two as `ddp` or `sharded`."""
    return training(batches, way)[0]


def training(batches: list[dict[str, Tensor]], way: str) -> tuple[dict[str, Tensor], list[int]]:
    """The student, and how many hooks its models have after the steps more than before them."""
    config = DistillationConfig(intermediate_matches=MATCHES)
    learner = Learner(classifier(16, 2, 2), only_logits, Objective.from_config(config, default_registry()), General())
    model, run = classifier(16, 3, 1), learner
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    if way == "sharded":
        mesh, before = sharding.device_mesh(CPU), dict(learner.named_parameters())
        sharding.shard_learner(learner, mesh)
        sharding.regroup(optimizer, before, learner)
        sharding.shard_teacher(model, mesh)
    elif way == "ddp":
        run = DistributedDataParallel(learner)  # type: ignore[assignment]  # it is called as the learner is
    teacher, hooks = LiveTeacher(model, only_logits, CPU), [hooks_of(each) for each in (learner, model)]
    for number, batch in enumerate(batches):
        taught = {"teacher": teacher.features(batch, learner.needs.teacher("teacher"))}
        torch.stack(list(run("", batch, taught, Step(number, len(batches))).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            learner.student.eval()(**batch)  # as an evaluation between steps
            learner.student.train()
    after = [hooks_of(each) for each in (learner, model)]
    return sharding.full_state(learner.student), [now - then for now, then in zip(after, hooks, strict=True)]


def all_of_it(rank: int, folder: Path) -> dict[str, Any]:
    """What each of two processes ends with, both ways."""
    del folder
    halves = [{name: column[2 * rank : 2 * rank + 2] for name, column in texts(i).items()} for i in range(3)]
    found: dict[str, Any] = {}
    for way in ("ddp", "sharded"):
        found[way], found[f"{way} hooks"] = training(halves, way)
        distributed.barrier()
    return found
