"""The types of what plugins provide and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Protocol, TypeAlias, runtime_checkable

from brewer_core.features import Counts, Features

if TYPE_CHECKING:
    from torch import Tensor, nn

    from brewer_core.sparse_logits import Kept

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
    """What is known of a model before training.

    widths: by feature, the width (last axis) of each of its layers, as far as they are known. maps: the features whose last axis is a
    length, as that of attention is; it is another one with every batch, so they have no width to be counted on.
    weight: a teacher's weight among several. tasks: those that a teacher teaches; all where there are none.
    absent: of features that are read of it and that it does not have, why.
    """

    name: str
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weight: float = 1.0
    tasks: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    maps: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, features: Features, weight: float = 1.0, tasks: Sequence[str] = ()) -> ModelInfo:
        """What the features of one batch tell of a model."""
        shaped = {
            key: tensors for key, tensors in features.items() if all(t is not None and t.dim() > 0 for t in tensors)
        }
        widths = {key: tuple(int(t.shape[-1]) for t in tensors) for key, tensors in shaped.items()}
        maps = frozenset(key for key in shaped if features.axes(key).endswith(("L", "M")))
        return cls(name, widths, weight, tuple(tasks), features.absent, maps)

    def teaches(self, task: str) -> bool:
        """Whether this teacher is asked for a task."""
        return not self.tasks or task in self.tasks

    def width(self, feature: str, layer: int | tuple[int, ...] | None) -> int | None:
        """The width of a layer, of the first of several, or of a feature without layers; None where it has none, or it is not known."""
        if feature in self.maps:
            return None
        index = layer[0] if isinstance(layer, tuple) else layer or 0
        known = self.widths.get(feature, ())
        return known[index] if -len(known) <= index < len(known) else None


@dataclass(frozen=True)
class Needs:
    """The features that a run reads: of the student, of every teacher, and of single teachers beside those."""

    student: frozenset[str]
    every_teacher: frozenset[str]
    by_teacher: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def teacher(self, name: str) -> frozenset[str]:
        """What is read of one teacher."""
        return self.every_teacher | self.by_teacher.get(name, frozenset())


class Draws(Protocol):
    """What strategies draw from: numpy's `Generator`, or what has a `choice` like it."""

    def choice(self, a: Any, /, *, p: Any = None) -> Any:
        """One of the items, with these probabilities; each alike where there are none."""
        ...


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


@runtime_checkable
class KeepingTeacher(Teacher, Protocol):
    """A teacher that keeps what it has computed, by row."""

    def rows(self, batch: Batch) -> Any:
        """What tells the rows of a batch apart, read off it before it moves to a device; passed to `features` as `rows`."""
        ...

    def features(self, batch: Batch, needs: frozenset[str], rows: Any = None) -> Features:
        """What `Teacher.features` gives. rows: what `rows` told of this batch; None where it was not asked."""
        ...

    def flush(self) -> None:
        """Have all that was computed on the disk: a checkpoint is about to be written, from which the training may go on."""
        ...

    def refresh(self) -> None:
        """See what other processes have computed."""
        ...

    def end_pass(self) -> None:
        """Be told that a pass over the data is over."""
        ...


class Objective(Protocol):
    """All terms of a run, as a strategy sees them."""

    @property
    def temperature(self) -> float:
        """The configured temperature of the loss between the logits."""
        ...

    def needs(self) -> Needs:
        """Names of the features that the terms read."""
        ...

    def kd_terms(self, student: Features, teacher: Features, step: Step) -> Mapping[str, Tensor]:
        """The unweighted loss between the logits of student and teacher, where both have logits."""
        ...

    def match_terms(
        self, student: Features, teachers: Features | Mapping[str, Features], step: Step
    ) -> Mapping[str, Tensor]:
        """The unweighted losses between intermediate features of the student and of the teachers that matches name.

        teachers: by name, or the features of the only one. A match with a teacher that is not among them is left out.
        """
        ...

    def label_terms(self, student: Features) -> Mapping[str, Tensor]:
        """The sum of the student's own losses, those on hard labels among them."""
        ...

    def refuses_sparse(self, kept: Kept) -> Sequence[str]:
        """What stands against teachers' logits of which only some are kept, a sentence each; none where they are accepted."""
        ...


class Strategy:
    """Who teaches what, batch by batch. Subclass it, with keyword-only options in `__init__`; only `terms` is required.

    A strategy never calls backward, touches an optimizer, saves or logs.
    """

    several_tasks: ClassVar[bool] = False
    """Whether `batches` takes a mapping from task to loader."""

    def needs(self, objective: Objective) -> Needs:
        """The features that are read of student and teachers; asked before any forward pass."""
        return objective.needs()

    def build(self, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> nn.Module | None:
        """What the strategy itself trains, if anything; it joins the learner."""
        del student, teachers
        return None

    def refuses_sparse(self, objective: Objective, kept: Kept) -> Sequence[str]:
        """What stands against teachers' logits of which only some are kept, a sentence each with the key that it is about.

        Asked after `build`, where a cache keeps them so. A strategy that reads logits itself adds what it has against it.
        """
        return objective.refuses_sparse(kept)

    def batches(self, loaders: Any, generator: Draws) -> Iterator[tuple[str, Batch]]:
        """The batches in order, each as (task, batch).

        loaders: an iterable of batches, to be passed over once, or a mapping from task to loader, to be drawn from without
        end. generator: what is drawn comes from it alone, so that a seed repeats it.
        """
        del generator
        for batch in loaders:
            yield "", batch

    def prepare(self, task: str, batch: Batch, student: nn.Module) -> Batch:
        """The batch to teach on, made without gradient; text that the student writes itself goes here."""
        del task, student
        return batch

    def teachers_for(self, task: str, teachers: Sequence[str]) -> Sequence[str]:
        """The names of the teachers that are asked for this task."""
        del task
        return teachers

    def weights(self, step: Step) -> Mapping[str, float]:
        """The factors of the strategy's own terms; a term that is in no list has the factor 1."""
        del step
        return {}

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


@runtime_checkable
class ResumableTracker(Tracker, Protocol):
    """A tracker of which a training can be taken up again: what it holds afterwards has each step once."""

    def flush(self) -> None:
        """Hand over to the disk all that was logged: a checkpoint is about to be written."""
        ...

    def resume(self, step: int) -> None:
        """Drop what was logged after this step of this stage, and what a killed process left half-written.

        The training goes on from there. Called before anything is logged; what other stages logged stays.
        """
        ...


class ComponentLookup(Protocol):
    """What a config needs of a registry: names and options checked."""

    def check(self, kind: str, name: str, options: Mapping[str, Any], positional: Sequence[Any] = ()) -> dict[str, Any]:
        """The validated options of a component, completed with defaults."""
        ...

    def versions(self) -> Mapping[str, str]:
        """The versions of the distributions that are installed and have plugins."""
        ...
