"""The types of what plugins provide and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Protocol, TypeAlias, runtime_checkable

from brewer_core.features import Counts, Features

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch: TypeAlias = Any
"""Whatever a loader yields: a tuple, a list, a mapping, a tensor."""

KDLoss: TypeAlias = "Callable[Concatenate[Tensor, Tensor, Any, ...], Tensor] | type[nn.Module]"
MatchLoss: TypeAlias = "Callable[Concatenate[Any, Any, ...], Tensor] | type[nn.Module]"
Projection: TypeAlias = "Callable[Concatenate[int, int, ...], nn.Module]"
WeightScheduler: TypeAlias = "Callable[Concatenate[float, ...], float]"
TemperatureScheduler: TypeAlias = "Callable[Concatenate[Tensor, Tensor, float, ...], float | Tensor]"
Adaptor: TypeAlias = "Callable[Concatenate[Any, Any, ...], Features | Mapping[str, Any]]"
AdaptorType: TypeAlias = "Adaptor | type[CountingAdaptor]"
Augmentation: TypeAlias = "Callable[Concatenate[list[Any], ...], list[Any]]"
Metric: TypeAlias = "Callable[Concatenate[Any, Any, ...], float | Mapping[str, float]]"
ModelBuilder: TypeAlias = "Callable[..., LoadedModel]"
DatasetBuilder: TypeAlias = "Callable[..., Mapping[str, Sequence[Mapping[str, Any]]]]"


@runtime_checkable
class CountingAdaptor(Protocol):
    """An adaptor that can count a batch's items before any forward pass, from the batch alone."""

    def __call__(self, batch: Batch, model_outputs: Any) -> Features | Mapping[str, Any]:
        """The features of a batch and a model's outputs for it."""
        ...

    def counts(self, batch: Batch) -> Counts:
        """How many rows, tokens, token pairs, logits and labels the batch holds."""
        ...


@dataclass(frozen=True)
class Task:
    """What a run is to learn: its kind, the names of the classes, and whether a text is a pair."""

    kind: str
    labels: tuple[str, ...]
    pair: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """What a model component returns.

    save: writes the model and its tokenizer into a folder, for the model's own library to load.
    forward_arguments: told the features a run reads, makes the model give them, and returns what to add to each call.
    origin: where its first weights come from, for the reader of a summary: `from scratch`, `pretrained NAME`.
    max_length: the longest input that the model takes, in tokens; None where there is no limit.
    """

    model: nn.Module
    tokenizer: Any
    save: Callable[[Path], None]
    forward_arguments: Callable[[frozenset[str]], Mapping[str, Any]] = field(default=lambda _: {})
    origin: str = ""
    max_length: int | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before training: by feature, the width (last axis) of each of its layers."""

    name: str
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, features: Features) -> ModelInfo:
        """What the features of one batch tell of a model."""
        shaped = {key: tensors for key, tensors in features.items() if all(t.dim() > 0 for t in tensors)}
        return cls(name, {key: tuple(int(t.shape[-1]) for t in tensors) for key, tensors in shaped.items()})

    def width(self, feature: str, layer: int | tuple[int, ...]) -> int | None:
        """The width of a layer, of the first of several; None where it is not known."""
        index = layer[0] if isinstance(layer, tuple) else layer
        known = self.widths.get(feature, ())
        return known[index] if -len(known) <= index < len(known) else None


@dataclass(frozen=True)
class Step:
    """Where a run stands: `step` optimizer steps are done of `total_steps`."""

    step: int
    total_steps: int

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.step / self.total_steps if self.total_steps else 0.0


@runtime_checkable
class Teacher(Protocol):
    """Whatever answers: what are the teacher's features for this batch?"""

    def features(self, batch: Batch, needs: frozenset[str]) -> Features:
        """The teacher's features for a batch, without gradient; at least those in needs that it has."""
        ...


class Objective(Protocol):
    """All terms of a run, as a strategy sees them."""

    def needs(self) -> frozenset[str]:
        """Names of the features that the terms read."""
        ...

    def kd_terms(self, student: Features, teacher: Features, step: Step) -> Mapping[str, Tensor]:
        """The unweighted loss between the logits of student and teacher, where both have logits."""
        ...

    def match_terms(self, student: Features, teacher: Features, step: Step) -> Mapping[str, Tensor]:
        """The unweighted losses between intermediate features of student and teacher."""
        ...

    def label_terms(self, student: Features) -> Mapping[str, Tensor]:
        """The sum of the student's own losses, those on hard labels among them."""
        ...


class Strategy:
    """Who teaches what, batch by batch. Subclass it, with keyword-only options in `__init__`; only `terms` is required.

    A strategy never calls backward, touches an optimizer, saves or logs.
    """

    def needs(self, objective: Objective) -> frozenset[str]:
        """The features that are read of student and teachers; asked before any forward pass."""
        return objective.needs()

    def build(self, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> nn.Module | None:
        """What the strategy itself trains, if anything; it joins the learner."""
        del student, teachers
        return None

    def batches(self, loader: Any) -> Iterator[tuple[str, Batch]]:
        """One pass over the loader as (task, batch)."""
        for batch in loader:
            yield "", batch

    def prepare(self, task: str, batch: Batch, student: nn.Module) -> Batch:
        """The batch to teach on, made without gradient; text that the student writes itself goes here."""
        del task, student
        return batch

    def teachers_for(self, task: str, teachers: Sequence[str]) -> Sequence[str]:
        """The names of the teachers that are asked for this task."""
        del task
        return teachers

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The unweighted losses of a batch by term; called inside the learner's forward."""
        raise NotImplementedError(f"{type(self).__name__} defines no terms")

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint must hold of the strategy."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        del state


@runtime_checkable
class Tracker(Protocol):
    """Receives a run's figures. Built with (run_dir, stage) and its options."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures of an optimizer step."""
        ...

    def close(self) -> None:
        """Flush and release what is open."""
        ...


class ComponentLookup(Protocol):
    """What a config needs of a registry: names and options checked."""

    def check(self, kind: str, name: str, options: Mapping[str, Any], positional: Sequence[Any] = ()) -> dict[str, Any]:
        """The validated options of a component, completed with defaults."""
        ...
