"""The one training loop: forward, backward, accumulate, clip, step, schedule, log, and say when a checkpoint is due.

It sees built objects alone: no registry, no plugin, no name of a config. It holds nothing process-wide and draws from no
global generator, so trainings live side by side.
"""

from __future__ import annotations

import difflib
import itertools
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from torch import Tensor, nn

from brewer_core.batches import move_to_device, rows, side
from brewer_core.checkpoints import Checkpoints
from brewer_core.errors import DataError, NonFiniteError, RequestError, did_you_mean
from brewer_core.features import Counts
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.precision import check_precision
from brewer_core.protocols import Batch, CountingAdaptor, Draws, Step, Teacher
from brewer_core.utils import cycle, set_epoch

MicroBatch = tuple[str, Batch]


@dataclass(frozen=True)
class Duration:
    """How long a training is: exactly one of epochs and steps."""

    epochs: int | None = None
    steps: int | None = None

    def total_steps(self, loader: Any, accumulation: int) -> int:
        """Optimizer steps in all; the trailing micro-batches of an epoch make a step of their own."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch(loader, accumulation)


@dataclass(frozen=True)
class Settings:
    """How the engine steps.

    max_grad_norm: clip the gradients of everything trained to this norm; None for no clipping.
    loss_normalization: `step` weighs each micro-batch by its share of the items of the whole step, `micro_batch`
    takes the mean of the micro-batches' means.
    checkpoint_due: told the steps done and the epoch, says whether a checkpoint is due; always after the last step.
    prepare: applied to the task and every batch that its loader yields.
    only_gradients_stop: go on, with a warning, where a loss is not finite and its gradients are, as TextBrewer does: the
    cross-entropy of a batch in which no row has a label is such a loss.
    """

    accumulation: int = 1
    max_grad_norm: float | None = None
    loss_normalization: str = "micro_batch"
    precision: str = "no"
    log_every_steps: int = 10
    checkpoint_due: Callable[[int, int], bool] = lambda _step, _epoch: False
    prepare: Callable[[str, Batch], Batch] = lambda _task, batch: batch
    only_gradients_stop: bool = False


@runtime_checkable
class _Stateful(Protocol):
    """What optimizers and schedules are unless a user wrote or wrapped them, who need not give them more than a `step()`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class _Part:
    """A micro-batch's part of a step's mean of a term, and its share of the step."""

    value: Tensor
    share: float


@dataclass
class _Window:
    """Sums since the last log, on the device: nothing is read from it between logs."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, parts: Mapping[str, _Part]) -> None:
        for name, part in parts.items():
            self.sums[name] = self.sums[name] + part.value if name in self.sums else part.value
            self.shares[name] = self.shares.get(name, 0.0) + part.share

    def read(self) -> dict[str, float]:
        """The mean of each term over the steps in which it was; a term of some tasks alone over those."""
        names = [name for name in self.sums if self.shares[name] > 0]
        sums = torch.stack([self.sums[name].float() for name in names]).tolist()
        means = {name: value / self.shares[name] for name, value in zip(names, sums, strict=True)}
        return {**means, "steps_per_s": self.steps / (time.perf_counter() - self.since)}


class Engine:
    """Trains a learner.

    optimizer: over parameters of the learner alone; those of its objective are added here, each in a group of its own.
    schedule: makes the learning-rate schedule of the complete optimizer; None for a constant rate.
    teachers: by name. checkpoints: where the whole state is written when a checkpoint is due, before listeners hear of it.
    generator: what the strategy draws from; numpy's, seeded with 0, if None.

    Raises RequestError where the optimizer holds a parameter that the learner does not.
    """

    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        teachers: Mapping[str, Teacher] | None = None,
        schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
        settings: Settings | None = None,
        listeners: Sequence[Listener] = (),
        checkpoints: Checkpoints | None = None,
        generator: Draws | None = None,
    ) -> None:
        self.settings = settings or Settings()
        check_precision(self.settings.precision, device)
        self.device = device
        self.learner = learner.to(device)
        self.teachers = dict(teachers or {})
        self.optimizer = optimizer
        add_parameter_groups(optimizer, learner)
        check_parameters(optimizer, learner)
        self.scheduler = schedule(optimizer) if schedule else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.precision == "fp16")
        self.listeners = tuple(listeners)
        self.checkpoints = checkpoints
        self.generator = generator or numpy.random.default_rng(0)
        self.step = 0
        self.total_steps = 0
        self._trained: list[torch.nn.Parameter] = []
        self._group_sizes: list[int] = []
        self._window = _Window()
        self._saved_at = 0

    def train(self, loader: Any, duration: Duration) -> int:
        """Train on a loader and return the number of optimizer steps done.

        loader: an iterable of batches; or, for strategies of several tasks, a mapping from task to one, to be trained on for
        a number of steps. After `load_state_dict` the steps that are done already count: their batches are read, and
        passed over.

        Raises DataError where the loader gives too little, after a checkpoint of what was trained until then;
        NonFiniteError before a step on a loss that is not finite.
        """
        self._notice_counting()
        self.total_steps = duration.total_steps(loader, self.settings.accumulation)
        self._tell("begin", self.total_steps)
        self.optimizer.zero_grad()
        try:
            for epoch, micro_batches, count in self._remaining(loader, duration):
                if self._train_step(micro_batches, count):
                    self._after_step(epoch)
            if self.step < self.total_steps:  # the scaler skipped steps, which kept the last one from being reached
                self._finish()
        except DataError as error:
            raise self._given_out(error) from error
        finally:
            self._tell("end")
        return self.step

    def state_dict(self) -> dict[str, Any]:
        """All that training changes: learner, optimizer, schedule, scaler, strategy, and the steps done."""
        return {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict() if isinstance(self.optimizer, _Stateful) else None,
            "scheduler": self._schedule_state(),
            "scaler": self.scaler.state_dict(),
            "strategy": dict(self.learner.strategy.state_dict()),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        self.learner.load_state_dict(state["learner"])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.scheduler, _Stateful) and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.learner.strategy.load_state_dict(state["strategy"])
        self.step = int(state["step"])

    def _schedule_state(self) -> dict[str, Any] | None:
        """The schedule's state; None where it has none, or one that cannot be saved, of which is warned."""
        if not isinstance(self.scheduler, _Stateful):
            return None
        state = self.scheduler.state_dict()
        try:
            pickle.dumps(state)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            warnings.warn(
                f"checkpoints hold no state of the schedule {type(self.scheduler).__name__}, for it cannot be saved: {error}; "
                "keep functions out of its attributes, or give it a state_dict() without them.",
                stacklevel=2,
            )
            return None
        return state

    def _train_step(self, micro_batches: Iterator[MicroBatch], count: int) -> bool:
        """One optimizer step; False where the scaler skipped it."""
        step = Step(self.step, self.total_steps)
        weights = {**self.learner.objective.weights(step), **self.learner.strategy.weights(step)}
        recorded: list[dict[str, _Part]] = []
        for (task, batch), shares in self._weighed(micro_batches, count):
            losses = self.learner(task, batch, self._ask(task, batch), step)
            total, seen = self._total(losses, weights, shares, count)
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            recorded.append(_told(seen, task))
        norm = self._gradient_norm()
        self._check_finite(recorded, norm)
        return self._apply(recorded)

    def _total(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shares: Mapping[str, float] | None, count: int
    ) -> tuple[Tensor, dict[str, _Part]]:
        """The loss to go backward from, and what is recorded: each term's and the total's part of the step's mean."""
        if shares is None:
            total = sum(_weighted(loss, weights.get(name, 1.0)) for name, loss in losses.items()) / count
            seen = {name: _Part(loss.detach() / count, 1 / count) for name, loss in losses.items()}
        else:
            scaled = {name: loss * shares[name] for name, loss in losses.items()}
            total = sum(_weighted(loss, weights.get(name, 1.0)) for name, loss in scaled.items())
            seen = {name: _Part(loss.detach(), shares[name]) for name, loss in scaled.items()}
        assert isinstance(total, Tensor)
        return total, {**seen, "total_loss": _Part(total.detach(), 1 / count)}

    def _weighed(
        self, micro_batches: Iterator[MicroBatch], count: int
    ) -> Iterator[tuple[MicroBatch, Mapping[str, float] | None]]:
        """The micro-batches of a step on the device, each with its terms' shares of the step, if they are weighed."""
        ready = (self._prepared(task, batch) for task, batch in micro_batches)
        if self.settings.loss_normalization == "micro_batch" or count == 1:
            return ((micro_batch, None) for micro_batch in ready)
        ahead = list(ready)
        counts = [(self._counts(task, batch), self._asked(task)) for task, batch in ahead]
        return ((micro_batch, _Shares(self.learner, counts, i)) for i, micro_batch in enumerate(ahead))

    def _prepared(self, task: str, batch: Batch) -> MicroBatch:
        moved = move_to_device(self.settings.prepare(task, batch), self.device)
        return task, self.learner.strategy.prepare(task, moved, self.learner.student)

    def _notice_counting(self) -> None:
        weighed = self.settings.loss_normalization == "step" and self.settings.accumulation > 1
        adaptor = self.learner.adaptor
        adaptors = list(adaptor.values()) if isinstance(adaptor, Mapping) else [adaptor]
        if weighed and not all(isinstance(each, CountingAdaptor) for each in adaptors):
            warnings.warn(
                "the student's adaptor cannot count, so micro-batches are weighed by their rows; give it a method "
                "counts(batch) for means over tokens, logits or labels.",
                stacklevel=3,
            )

    def _counts(self, task: str, batch: Batch) -> Counts:
        own, adaptor = side(batch, "student"), self.learner.adaptor_for(task)
        if isinstance(adaptor, CountingAdaptor):
            return adaptor.counts(own)
        return Counts.of_rows(rows(own))

    def _asked(self, task: str) -> tuple[str, ...]:
        return tuple(self.learner.strategy.teachers_for(task, tuple(self.teachers)))

    def _ask(self, task: str, batch: Batch) -> dict[str, Any]:
        needs = self.learner.needs
        return {name: self.teachers[name].features(batch, needs.teacher(name)) for name in self._asked(task)}

    def _gradient_norm(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        self._find_trained()
        if self.settings.max_grad_norm is not None:
            return torch.nn.utils.clip_grad_norm_(self._trained, self.settings.max_grad_norm)
        gradients = [p.grad for p in self._trained if p.grad is not None]
        # torch has no norm of a sparse tensor
        return torch.nn.utils.get_total_norm([g.coalesce().values() if g.is_sparse else g for g in gradients])

    def _find_trained(self) -> None:
        """The learner's parameters that the optimizer holds, looked up again only where a callback has added some."""
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        if sizes != self._group_sizes:
            held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
            self._trained = [p for p in self.learner.parameters() if id(p) in held]
            self._group_sizes = sizes

    def _check_finite(self, recorded: Sequence[Mapping[str, _Part]], norm: Tensor) -> None:
        """Read one flag; under fp16 overflowing gradients are the scaler's business."""
        losses = torch.stack([seen["total_loss"].value for seen in recorded]).sum()
        flag = losses if self.scaler.is_enabled() else losses + norm.to(losses.device)
        if math.isfinite(flag.item()):
            return
        names = [name for seen in recorded for name, part in seen.items() if not math.isfinite(part.value.item())]
        if names and self.settings.only_gradients_stop and math.isfinite(norm.item()):
            warnings.warn(
                f"the term `{names[0]}` is not finite in some step, though its gradients are; training goes on. Its figures in "
                "the log are not finite either: look for batches in which no row has a label.",
                stacklevel=3,
            )
            return
        what = f"the term `{names[0]}` is not finite" if names else "the norm of the gradients is not finite"
        self.optimizer.zero_grad()
        raise NonFiniteError(
            f"optimizer step {self.step + 1} of {self.total_steps}: {what}; training stopped before the step, and nothing "
            "was changed by it. Look for empty or extreme batches, lower the learning rate, clip with max_grad_norm, or "
            "raise the temperature."
        )

    def _apply(self, recorded: Sequence[Mapping[str, _Part]]) -> bool:
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.is_enabled() and self.scaler.get_scale() < scale
        if self.scheduler is not None and not skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        if skipped:
            return False
        self.step += 1
        self._window.steps += 1
        for seen in recorded:
            self._window.add(seen)
        return True

    def _after_step(self, epoch: int) -> None:
        last = self.step == self.total_steps
        self._tell("stepped", self.step)
        if last or self.step % self.settings.log_every_steps == 0:
            self._log()
        if last or self.settings.checkpoint_due(self.step, epoch):
            self._checkpoint()

    def _log(self) -> None:
        rate = self.optimizer.param_groups[0].get("lr")  # an optimizer that finds its own has None
        rates = {} if rate is None else {"learning_rate": float(rate)}
        self._tell("logged", self.step, {**self._window.read(), **rates})
        self._window = _Window()

    def _finish(self) -> None:
        if self._window.steps:
            self._log()
        self._checkpoint()

    def _given_out(self, error: DataError) -> DataError:
        """The error of a loader that gave out, after a checkpoint of the steps that are done."""
        self.optimizer.zero_grad()
        if self._window.steps:
            self._log()
        if self._saved_at == self.step == 0:
            return error
        if self._saved_at != self.step:
            self._checkpoint()
        saved = " and saved" if self.checkpoints else ""
        return DataError(f"{error} {self.step} of {self.total_steps} optimizer steps are done{saved}.")

    def _checkpoint(self) -> None:
        self._saved_at = self.step
        if self.checkpoints:
            self.checkpoints.save(self.step, self.state_dict())
        self._tell("checkpoint", self.step)

    def _remaining(self, loader: Any, duration: Duration) -> Iterator[tuple[int, Iterator[MicroBatch], int]]:
        """What `_groups` gives, after the steps that are done."""
        groups = self._groups(loader, duration)
        for _, micro_batches, _ in itertools.islice(groups, self.step):
            for _ in micro_batches:
                pass
        return groups

    def _groups(self, loader: Any, duration: Duration) -> Iterator[tuple[int, Iterator[MicroBatch], int]]:
        """The micro-batches of each optimizer step, with the epoch and their number; read only as they are used."""
        size = self.settings.accumulation
        if duration.steps is not None:
            batches = self.learner.strategy.batches
            stream = iter(batches(loader if isinstance(loader, Mapping) else cycle(loader), self.generator))
            yield from ((0, itertools.islice(stream, size), size) for _ in range(duration.steps))
            return
        for epoch in range(duration.epochs or 0):
            set_epoch(loader, epoch)
            self.optimizer.zero_grad()  # of what a callback did at the end of the epoch before
            stream, length = iter(self.learner.strategy.batches(loader, self.generator)), len(loader)
            for first in range(0, length, size):
                count = min(size, length - first)
                yield epoch, _exactly(stream, count, length), count
            if next(iter(stream), None) is not None:
                raise DataError(_wrong_length(length, "more"))

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)


class _Shares(dict[str, float]):
    """A micro-batch's share of the step, for each term, computed when it is asked for."""

    def __init__(self, learner: Learner, counts: Sequence[tuple[Counts, Sequence[str]]], position: int) -> None:
        super().__init__()
        self._objective, self._counts, self._position = learner.objective, counts, position

    def __missing__(self, term: str) -> float:
        items = [self._objective.items(term, counts, asked) for counts, asked in self._counts]
        total = sum(items)
        self[term] = items[self._position] / total if total else 0.0
        return self[term]


def steps_per_epoch(loader: Any, accumulation: int) -> int:
    """Optimizer steps in one pass over a loader.

    Raises RequestError where it has no length, or there are several loaders, and DataError where it is empty.
    """
    if isinstance(loader, Mapping):
        raise RequestError("several loaders have no epochs in common; give a number of steps.")
    try:
        batches = len(loader)
    except TypeError as error:
        raise RequestError(
            "the loader has no length, so its epochs cannot be counted; give num_steps in place of num_epochs."
        ) from error
    if batches == 0:
        raise DataError("the loader is empty; it must yield at least one batch.")
    return math.ceil(batches / accumulation)


def add_parameter_groups(optimizer: torch.optim.Optimizer, learner: Learner) -> None:
    """Add what the objective and the strategy train to the optimizer; what it holds already stays where it is."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    groups = learner.objective.parameter_groups()
    if learner.parts is not None:
        groups.append({"params": list(learner.parts.parameters())})
    _check_settings(optimizer, groups)
    for group in groups:
        new = [p for p in group["params"] if id(p) not in held]
        if new:
            optimizer.add_param_group({**group, "params": new})


def _check_settings(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises RequestError for a setting that is misspelt; others that the optimizer does not have may be a schedule's."""
    defaults = getattr(optimizer, "defaults", {})  # what wraps an optimizer may have none
    known = {key for group in (defaults, *optimizer.param_groups) for key in group} - {"params"}
    for key in [key for group in groups for key in group if key not in known | {"params"}]:
        if difflib.get_close_matches(key, known, cutoff=0.75):
            raise RequestError(
                f"the settings of a projection's parameter group: {type(optimizer).__name__} has no setting "
                f"{key!r}{did_you_mean(key, sorted(known))}."
            )


def check_parameters(optimizer: torch.optim.Optimizer, learner: nn.Module) -> None:
    """Raises RequestError for a parameter of the optimizer that is no part of the learner."""
    own = {id(p) for p in learner.parameters()}
    for position, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if id(parameter) not in own:
                raise RequestError(
                    f"the optimizer's group {position} holds a parameter of shape {tuple(parameter.shape)} (number {index}) that is "
                    "neither the student's nor a projection's; build the optimizer over the student's parameters."
                )


def _exactly(stream: Iterable[MicroBatch], count: int, length: int) -> Iterator[MicroBatch]:
    given = 0
    for micro_batch in itertools.islice(stream, count):
        given += 1
        yield micro_batch
    if given < count:
        raise DataError(_wrong_length(length, "fewer"))


def _wrong_length(length: int, yielded: str) -> str:
    return f"the loader says that it has {length} batches and yielded {yielded}; its __len__ must be right, or give num_steps."


def _weighted(loss: Tensor, weight: float) -> Tensor:
    """A term's share of the total; one of weight 0 adds 0, were it not finite, and leaves its parameters their gradient of 0."""
    return weight * (torch.nan_to_num(loss) if weight == 0 else loss)


def _told(parts: Mapping[str, _Part], task: str) -> dict[str, _Part]:
    """The parts by name, and those of a task's terms under `name/task` as well."""
    terms = {f"{name}/{task}": part for name, part in parts.items() if name != "total_loss"}
    return {**parts, **(terms if task else {})}
