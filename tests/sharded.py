"""What each of two processes does with sharded models, for the tests of sharding; on one process the same, unsharded.

B rows, L tokens. Two processes take half of the rows each.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from brewer_builtins.adaptors import TextClassification
from brewer_builtins.strategies import General
from brewer_core import DistillationConfig, default_registry, sharding
from brewer_core.learner import Learner
from brewer_core.objective import Objective
from brewer_core.protocols import Step
from brewer_core.teachers import LiveTeacher
from tiny import weights

CPU = torch.device("cpu")
ARGUMENTS = {"output_hidden_states": True, "output_attentions": True}
MATCH = {"layer_S": 2, "layer_T": 3, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 32, 48]}
MATCHES = [MATCH, {"layer_S": 1, "layer_T": 2, "feature": "attention", "loss": "attention_mse", "weight": 1}]
STEPS = 4
MADE = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
}


def config(width: int, layers: int) -> BertConfig:
    return BertConfig(
        vocab_size=30,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=12,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )


def classifier(width: int, layers: int, seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(config(width, layers))


def student(seed: int) -> nn.Module:
    """Parts of it are frozen, unused or smaller than the number of processes; one buffer is saved."""
    model = classifier(32, 2, seed)
    model.bert.embeddings.position_embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].attention.requires_grad_(False)
    model.spare = nn.Linear(2, 1)
    model.register_buffer("seen", torch.tensor(seed))
    return model


def learner(seed: int) -> Learner:
    model = student(seed)
    objective = Objective.from_config(
        DistillationConfig(temperature=2, intermediate_matches=MATCHES), default_registry()
    )
    return Learner(model, TextClassification(), objective, General(), arguments=ARGUMENTS)


def teacher() -> nn.Module:
    return classifier(48, 3, seed=7)


def optimizer_of(made: Learner, kind: str) -> torch.optim.Optimizer:
    """Groups of their own for biases and for the projection, of the same sort as the engine makes."""
    trained = [(name, p) for name, p in made.student.named_parameters() if p.requires_grad]
    biases = [p for name, p in trained if name.endswith("bias")]
    rest = [p for name, p in trained if not name.endswith("bias")]
    optimizer = MADE[kind]([{"params": rest, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}])
    for group in made.objective.parameter_groups():
        optimizer.add_param_group({**group, "lr": 0.02})
    return optimizer


class Training:
    """A learner with its optimizer, teacher and schedule, sharded where there are processes to shard it over."""

    def __init__(self, kind: str, seed: int = 0, *, sharded: bool = True) -> None:
        self.learner, model = learner(seed), teacher()
        self.optimizer = optimizer_of(self.learner, kind)
        self.done = 0
        if sharded:
            mesh, before = sharding.device_mesh(CPU), dict(self.learner.named_parameters())
            sharding.shard_learner(self.learner, mesh)
            sharding.regroup(self.optimizer, before, self.learner)
            sharding.shard_teacher(model, mesh)
        self.teacher = LiveTeacher(model, TextClassification(), CPU, arguments=ARGUMENTS)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, total_iters=STEPS)

    def step(self) -> float:
        """One optimizer step of two micro-batches; returns the norm of the gradients before clipping."""
        for micro in range(2):
            batch = share(rows(2 * self.done + micro))
            with sharding.no_sync(self.learner) if micro == 0 else nullcontext():
                taught = {"teacher": self.teacher.features(batch, self.learner.needs.teacher("teacher"))}
                losses = self.learner("", batch, taught, Step(self.done, STEPS))
                (torch.stack(list(losses.values())).sum() / 2).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 0.5)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.done += 1
        return sharding.full_norm(norm).item()

    def logits(self, mode: bool) -> Tensor:
        """What the student alone says, as evaluation asks it."""
        self.learner.student.train(mode)
        with torch.no_grad():
            answer = self.learner.student(**share(rows(99))).logits
        self.learner.student.train()
        return answer

    def run(self, steps: int) -> dict[str, Any]:
        """The figures of some steps, with looks at the student before, between and after."""
        figures: dict[str, Any] = {"norms": [], "logits": [self.logits(False)]}
        for _ in range(steps):
            figures["norms"].append(self.step())
            figures["logits"] += [self.logits(False), self.logits(True)]
        return {**figures, "state": sharding.full_state(self.learner), "groups": settings(self.optimizer)}


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: group[key] for key in ("lr", "weight_decay")} for group in optimizer.param_groups]


def rows(seed: int) -> dict[str, Tensor]:
    """Four rows without padding, so that halves of a batch weigh alike."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(30, (4, 6), generator=g)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(3, (4,), generator=g)}


def share(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The process's half of the rows; all of them where there is but one process."""
    if not distributed.is_initialized():
        return batch
    rank = distributed.get_rank()
    return {name: column[2 * rank : 2 * rank + 2] for name, column in batch.items()}


def held_parts(module: nn.Module) -> dict[str, Any]:
    """Of each parameter, how many rows it has and how many this process holds; None where it is not in parts."""
    return {
        name: [len(p), len(p.to_local())] if isinstance(p, DTensor) else None for name, p in module.named_parameters()
    }


def gradients(model: nn.Module, batch: dict[str, Tensor], of: str) -> dict[str, Tensor]:
    """The gradients of a loss that reads one output alone; of what got none, nothing."""
    model.zero_grad()
    outputs = model(input_ids=batch["input_ids"], **ARGUMENTS)
    read = {"logits": outputs.logits, "attention": outputs.attentions[-1], "hidden": outputs.hidden_states[-2]}[of]
    read.square().mean().backward()
    return {name: sharding.full_norm(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def masked_model() -> BertForMaskedLM:
    """Its decoder's weight is that of its embeddings, a module that it names as not to be split."""
    torch.manual_seed(3)
    return BertForMaskedLM(config(32, 2))


def all_of_it(rank: int, folder: Path) -> dict[str, Any]:
    """Everything that the tests of two processes look at, in one start."""
    mesh = sharding.device_mesh(CPU)
    return {
        **{kind: trained_and_read(kind, rank, folder / kind) for kind in MADE},
        "read from one": read_from_one(folder / "from one"),
        "gradients": {of: of_shards(classifier(32, 2, seed=4), mesh, of) for of in ("logits", "attention", "hidden")},
        "tied": of_shards(masked_model(), mesh, "logits"),
        "teacher": taught(mesh),
        "loaded": loaded(rank, mesh),
    }


def trained_and_read(kind: str, rank: int, folder: Path) -> dict[str, Any]:
    """Two steps, a checkpoint, two steps more; and the latter once more from the checkpoint."""
    training = Training(kind, seed=1000 * rank)
    parts = held_parts(training.learner)
    first = training.run(2)
    schedule = training.schedule.state_dict()
    sharding.write_shards(folder, training.learner, training.optimizer)
    straight = training.run(2)
    return {
        "parts": parts,
        "first": first,
        "schedule": schedule,
        "straight": straight,
        "read": continued(kind, folder, schedule),
    }


def continued(kind: str, folder: Path, schedule: dict[str, Any], *, sharded: bool = True) -> dict[str, Any]:
    """Two steps by other objects, from a checkpoint after two."""
    training = Training(kind, seed=5, sharded=sharded)
    sharding.read_shards(folder, training.learner, training.optimizer)
    training.schedule.load_state_dict(schedule)
    training.done = 2
    return training.run(2)


def read_from_one(folder: Path) -> dict[str, Any]:
    """The state that one process wrote."""
    training = Training("adamw", seed=5)
    sharding.read_shards(folder, training.learner, training.optimizer)
    return sharding.full_state(training.learner)


def of_shards(model: nn.Module, mesh: DeviceMesh, of: str) -> dict[str, Any]:
    """The whole gradients of a sharded model, and its state."""
    sharding.shard(model, mesh)
    return {"gradients": gradients(model, share(rows(1)), of), "state": sharding.full_state(model)}


def taught(mesh: DeviceMesh) -> dict[str, Any]:
    """The features of a sharded teacher that is left in training mode between its calls, asked twice."""
    model = teacher()
    sharding.shard_teacher(model, mesh)
    live = LiveTeacher(model, TextClassification(), CPU, arguments=ARGUMENTS)
    features = [dict(live.features(share(rows(seed)), frozenset())) for seed in (1, 2)]
    return {
        "features": [{"logits": f["logits"][0], "last": f["hidden"][-1]} for f in features],
        "parts": held_parts(model),
    }


def loaded(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """A whole state taken up from the first process, and what is said where a name is missing."""
    model, state = student(1), weights(student(2)) if rank == 0 else {}
    sharding.shard(model, mesh)
    sharding.load_full_state(model, state)
    whole = sharding.full_state(model)
    state.pop("spare.bias", None)
    try:
        sharding.load_full_state(model, state)
    except RuntimeError as error:
        return {"state": whole, "error": str(error)}
    return {"state": whole, "error": ""}
