"""A distillation as small as can be, to see a component at work in the one training loop.

Shapes: B rows, L tokens, H heads, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from brewer_core.config import ComponentRef, DistillationConfig
from brewer_core.config.refs import OfKind
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.features import Features
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.objective import Objective, bind_ref
from brewer_core.plugins import default_registry
from brewer_core.protocols import ModelInfo, Strategy
from brewer_core.registry import Registry
from brewer_core.teachers import LiveTeacher
from brewer_core.testing.tensors import valid_tokens

Named: TypeAlias = "str | Mapping[str, Any] | Callable[..., Any]"
"""A component: its name, its name and options, or the function or class itself."""

WORDS, CLASSES, HEADS, LAYERS, ROWS, LENGTH = 20, 3, 2, 2, 4, 6
WIDTH, TEACHER_WIDTH = 6, 8
LEARNING_RATE = 0.1


class TinyModel(nn.Module):
    """Embeddings and two layers: logits of rows, three hidden states [B, L, D], and attention scores of each."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(WORDS, width)
            self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(LAYERS)])
            self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
        """What a Hugging Face classifier returns, in a dict."""
        hidden = [self.embedding(input_ids)]
        for layer in self.layers:
            hidden.append(torch.tanh(layer(hidden[-1])))
        attention = [_scores(states, attention_mask) for states in hidden]
        logits = self.head(hidden[-1][:, 0])
        return {
            "logits": logits,
            "hidden_states": hidden,
            "attentions": attention,
            "loss": F.cross_entropy(logits, labels),
        }


@dataclass(frozen=True)
class TinyRun:
    """What a tiny distillation came to.

    student: trained. learner: the student with the objective and what the strategy trains. before: the student's weights
    when it began. logged: the figures of each step, the unweighted terms by name and `total_loss` among them.
    """

    student: nn.Module
    learner: nn.Module
    before: Mapping[str, Tensor]
    logged: tuple[Mapping[str, float], ...]

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms of the loss."""
        others = ("total_loss", "learning_rate", "steps_per_s")
        return tuple(name for name in self.logged[0] if name not in others and "/" not in name)


def tiny_run(
    *,
    kd_loss: Named = "ce",
    match_loss: Named | None = None,
    projection: Named | None = None,
    weight_scheduler: Named | None = None,
    temperature_scheduler: Named | None = None,
    strategy: Named = "general",
    adaptor: Named | None = None,
    feature: str = "hidden",
    layers: int | list[int] = 1,
    steps: int = 3,
    seed: int = 0,
    registry: Registry | None = None,
) -> TinyRun:
    """Distil a tiny teacher into a tiny student, with the components that are given, and return what it came to.

    match_loss: between the features and layers that `feature` (`hidden` or `attention`) and `layers` name; [0, 1] is a pair.
    projection: of the match; with one the teacher is 8 wide and the student 6, else both are 6 wide.
    weight_scheduler: of the loss between the logits. adaptor: of a batch and outputs as Hugging Face's classifiers have.
    The same arguments give the same figures, whatever was drawn before. Raises what a run would.
    """
    known = registry or default_registry()
    student = TinyModel(WIDTH, seed)
    teacher = TinyModel(TEACHER_WIDTH if projection is not None else WIDTH, seed + 1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    adapt = _adapt if adaptor is None else _bound(known, "adaptor", adaptor)
    batches = [_batch(seed + i) for i in range(steps)]
    infos = [_info(name, model, adapt, batches[0]) for name, model in (("student", student), ("teacher", teacher))]
    config = DistillationConfig(
        temperature=2.0,
        kd_loss_type=kd_loss,
        kd_loss_weight_scheduler=weight_scheduler,
        temperature_scheduler=temperature_scheduler,
        hard_label_weight=1.0,
        intermediate_matches=_matches(match_loss, projection, feature, layers),
    )
    taught = {"teacher": infos[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = Objective.from_config(config, known, infos[0], taught)
        who = _strategy(known, strategy)
        learner = Learner(student, adapt, objective, who, parts=who.build(infos[0], taught))
        logged = _train(learner, LiveTeacher(teacher, adapt, torch.device("cpu")), batches, who.several_tasks)
    return TinyRun(student, learner, before, logged)


class _Recorder(Listener):
    def __init__(self) -> None:
        self.figures: list[Mapping[str, float]] = []

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the figures."""
        del step
        self.figures.append(dict(values))


def _train(learner: Learner, teacher: LiveTeacher, batches: list[Any], tasks: bool) -> tuple[Mapping[str, float], ...]:
    recorder = _Recorder()
    engine = Engine(
        learner,
        torch.optim.SGD(learner.student.parameters(), lr=LEARNING_RATE),
        device=torch.device("cpu"),
        teachers={"teacher": teacher},
        settings=Settings(log_every_steps=1),
        listeners=[recorder],
    )
    engine.train({"task": batches} if tasks else batches, Duration(steps=len(batches)))
    return tuple(recorder.figures)


def _strategy(registry: Registry, given: Named | Strategy) -> Strategy:
    made: Strategy = given if isinstance(given, Strategy) else _bound(registry, "strategy", given)()
    return made


def _bound(registry: Registry, kind: str, given: Named) -> Any:
    reference: TypeAdapter[ComponentRef] = TypeAdapter(Annotated[ComponentRef, OfKind(kind, callables=True)])
    return bind_ref(registry, reference.validate_python(given))


def _matches(
    loss: Named | None, projection: Named | None, feature: str, layers: int | list[int]
) -> list[dict[str, Any]]:
    if loss is None:
        return []
    match = {"feature": feature, "layer_T": layers, "layer_S": layers, "weight": 1.0, "loss": loss}
    return [match if projection is None else {**match, "proj": projection}]


def _info(name: str, model: nn.Module, adapt: Callable[..., Any], batch: Mapping[str, Tensor]) -> ModelInfo:
    with torch.no_grad():
        return ModelInfo.of(name, Features.of(adapt(batch, model(**batch))))


def _adapt(batch: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "logits": outputs["logits"],
        "hidden": outputs["hidden_states"],
        "attention": outputs["attentions"],
        "inputs_mask": batch["attention_mask"],
        "labels": batch["labels"],
        "losses": outputs["loss"],
    }


def _batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(WORDS, (ROWS, LENGTH), generator=generator),
        "attention_mask": valid_tokens().long(),
        "labels": torch.randint(CLASSES, (ROWS,), generator=generator),
    }


def _scores(states: Tensor, mask: Tensor) -> Tensor:
    """[B, H, L, L]: the products of tokens with tokens, head by head, with the mask added."""
    split = states.reshape(*states.shape[:2], HEADS, -1).transpose(1, 2)
    scores: Tensor = split @ split.mT + (1.0 - mask[:, None, None, :]) * -1e4
    return scores
