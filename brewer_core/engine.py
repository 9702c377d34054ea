"""The one training loop: forward, backward, accumulate, clip, step, schedule, log, and say when a checkpoint is due.

It sees built objects alone: no registry, no plugin, no name of a config. It holds nothing process-wide and draws from no
global generator, so trainings live side by side.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from brewer_core.batches import move_to_device, rows, side
from brewer_core.checkpoints import Checkpoints
from brewer_core.errors import DataError, NonFiniteError, RequestError
from brewer_core.features import Counts
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.precision import check_precision
from brewer_core.protocols import Batch, CountingAdaptor, Step, Teacher

MicroBatch = tuple[str, Batch]
_EMPTY = "the loader is empty; it must yield at least one batch."


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
    prepare: applied to every batch that the loader yields.
    """

    accumulation: int = 1
    max_grad_norm: float | None = None
    loss_normalization: str = "micro_batch"
    precision: str = "no"
    log_every_steps: int = 10
    checkpoint_due: Callable[[int, int], bool] = lambda _step, _epoch: False
    prepare: Callable[[Batch], Batch] = lambda batch: batch


@runtime_checkable
class _Stateful(Protocol):
    """What a schedule is unless a user wrote it, who need not give it more than a `step()`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass
class _Window:
    """Sums since the last log, on the device: nothing is read from it between logs."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        for name, loss in losses.items():
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss

    def read(self) -> dict[str, float]:
        names = list(self.sums)
        values = torch.stack([self.sums[name].float() for name in names]).div(self.steps).tolist()
        return {**dict(zip(names, values, strict=True)), "steps_per_s": self.steps / (time.perf_counter() - self.since)}


class Engine:
    """Trains a learner.

    optimizer: over parameters of the learner alone; those of its objective are added here, each in a group of its own.
    schedule: makes the learning-rate schedule of the complete optimizer; None for a constant rate.
    teachers: by name. checkpoints: where the whole state is written when a checkpoint is due, before listeners hear of it.

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
        self.step = 0
        self.total_steps = 0
        self._needs = learner.strategy.needs(learner.objective)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._trained = [p for p in learner.parameters() if id(p) in held]
        self._window = _Window()

    def train(self, loader: Any, duration: Duration) -> int:
        """Train on a loader and return the number of optimizer steps done.

        After `load_state_dict` the steps that are done already count: their batches are read, and passed over.

        Raises DataError where the loader gives too little, NonFiniteError before a step on a loss that is not finite.
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
        finally:
            self._tell("end")
        return self.step

    def state_dict(self) -> dict[str, Any]:
        """All that training changes: learner, optimizer, schedule, scaler, strategy, and the steps done."""
        return {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if isinstance(self.scheduler, _Stateful) else None,
            "scaler": self.scaler.state_dict(),
            "strategy": dict(self.learner.strategy.state_dict()),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.scheduler, _Stateful):
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.learner.strategy.load_state_dict(state["strategy"])
        self.step = int(state["step"])

    def _train_step(self, micro_batches: Iterator[MicroBatch], count: int) -> bool:
        """One optimizer step; False where the scaler skipped it."""
        step = Step(self.step, self.total_steps)
        weights = self.learner.objective.weights(step)
        recorded: list[dict[str, Tensor]] = []
        for (task, batch), shares in self._weighed(micro_batches, count):
            losses = self.learner(task, batch, self._ask(task, batch), step)
            total, seen = self._total(losses, weights, shares, count)
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            recorded.append(seen)
        norm = self._gradient_norm()
        self._check_finite(recorded, norm)
        return self._apply(recorded)

    def _total(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shares: Mapping[str, float] | None, count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go backward from, and what is recorded: each term's and the total's part of the step's mean."""
        if shares is None:
            total = sum(weights.get(name, 1.0) * loss for name, loss in losses.items()) / count
            seen = {name: loss.detach() / count for name, loss in losses.items()}
        else:
            scaled = {name: loss * shares[name] for name, loss in losses.items()}
            total = sum(weights.get(name, 1.0) * loss for name, loss in scaled.items())
            seen = {name: loss.detach() for name, loss in scaled.items()}
        assert isinstance(total, Tensor)
        return total, {**seen, "total_loss": total.detach()}

    def _weighed(
        self, micro_batches: Iterator[MicroBatch], count: int
    ) -> Iterator[tuple[MicroBatch, Mapping[str, float] | None]]:
        """The micro-batches of a step on the device, each with its terms' shares of the step, if they are weighed."""
        ready = (self._prepared(task, batch) for task, batch in micro_batches)
        if self.settings.loss_normalization == "micro_batch" or count == 1:
            return ((micro_batch, None) for micro_batch in ready)
        ahead = list(ready)
        counts = [self._counts(batch) for _, batch in ahead]
        return ((micro_batch, _Shares(self.learner, counts, i)) for i, micro_batch in enumerate(ahead))

    def _prepared(self, task: str, batch: Batch) -> MicroBatch:
        moved = move_to_device(self.settings.prepare(batch), self.device)
        return task, self.learner.strategy.prepare(task, moved, self.learner.student)

    def _notice_counting(self) -> None:
        weighed = self.settings.loss_normalization == "step" and self.settings.accumulation > 1
        if weighed and not isinstance(self.learner.adaptor, CountingAdaptor):
            warnings.warn(
                "the student's adaptor cannot count, so micro-batches are weighed by their rows; give it a method "
                "counts(batch) for means over tokens, logits or labels.",
                stacklevel=3,
            )

    def _counts(self, batch: Batch) -> Counts:
        own = side(batch, "student")
        if isinstance(self.learner.adaptor, CountingAdaptor):
            return self.learner.adaptor.counts(own)
        return Counts.of_rows(rows(own))

    def _ask(self, task: str, batch: Batch) -> dict[str, Any]:
        names = self.learner.strategy.teachers_for(task, tuple(self.teachers))
        return {name: self.teachers[name].features(batch, self._needs) for name in names}

    def _gradient_norm(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        if self.settings.max_grad_norm is not None:
            return torch.nn.utils.clip_grad_norm_(self._trained, self.settings.max_grad_norm)
        return torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])

    def _check_finite(self, recorded: Sequence[Mapping[str, Tensor]], norm: Tensor) -> None:
        """Read one flag; under fp16 overflowing gradients are the scaler's business."""
        losses = torch.stack([seen["total_loss"] for seen in recorded]).sum()
        flag = losses if self.scaler.is_enabled() else losses + norm.to(losses.device)
        if math.isfinite(flag.item()):
            return
        names = [name for seen in recorded for name, loss in seen.items() if not math.isfinite(loss.item())]
        what = f"the term `{names[0]}` is not finite" if names else "the norm of the gradients is not finite"
        self.optimizer.zero_grad()
        raise NonFiniteError(
            f"optimizer step {self.step + 1} of {self.total_steps}: {what}; training stopped before the step, and nothing "
            "was changed by it. Look for empty or extreme batches, lower the learning rate, clip with max_grad_norm, or "
            "raise the temperature."
        )

    def _apply(self, recorded: Sequence[Mapping[str, Tensor]]) -> bool:
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
        rate = float(self.optimizer.param_groups[0]["lr"])
        self._tell("logged", self.step, {**self._window.read(), "learning_rate": rate})
        self._window = _Window()

    def _finish(self) -> None:
        if self._window.steps:
            self._log()
        self._checkpoint()

    def _checkpoint(self) -> None:
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
            stream = self._endless(loader, duration.steps)
            yield from ((0, itertools.islice(stream, size), size) for _ in range(duration.steps))
            return
        for epoch in range(duration.epochs or 0):
            _set_epoch(loader, epoch)
            stream, length = self.learner.strategy.batches(loader), len(loader)
            for first in range(0, length, size):
                count = min(size, length - first)
                yield epoch, _exactly(stream, count, length), count
            if next(iter(stream), None) is not None:
                raise DataError(_wrong_length(length, "more"))

    def _endless(self, loader: Any, steps: int) -> Iterator[MicroBatch]:
        for passes in itertools.count():
            _set_epoch(loader, passes)
            given = False
            for micro_batch in self.learner.strategy.batches(loader):
                given = True
                yield micro_batch
            if not given:
                raise DataError(_EMPTY if passes == 0 else _spent(self.step, steps))

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)


class _Shares(dict[str, float]):
    """A micro-batch's share of the step, for each term, computed when it is asked for."""

    def __init__(self, learner: Learner, counts: Sequence[Counts], position: int) -> None:
        super().__init__()
        self._objective, self._counts, self._position = learner.objective, counts, position

    def __missing__(self, term: str) -> float:
        items = [self._objective.items(term, counts) for counts in self._counts]
        total = sum(items)
        self[term] = items[self._position] / total if total else 0.0
        return self[term]


def steps_per_epoch(loader: Any, accumulation: int) -> int:
    """Optimizer steps in one pass over a loader. Raises RequestError where the loader has no length, or is empty."""
    try:
        batches = len(loader)
    except TypeError as error:
        raise RequestError(
            "the loader has no length, so its epochs cannot be counted; give num_steps in place of num_epochs."
        ) from error
    if batches == 0:
        raise DataError(_EMPTY)
    return math.ceil(batches / accumulation)


def add_parameter_groups(optimizer: torch.optim.Optimizer, learner: Learner) -> None:
    """Add what the objective and the strategy train to the optimizer; what it holds already stays where it is."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    groups = learner.objective.parameter_groups()
    if learner.parts is not None:
        groups.append({"params": list(learner.parts.parameters())})
    for group in groups:
        new = [p for p in group["params"] if id(p) not in held]
        if new:
            optimizer.add_param_group({**group, "params": new})


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


def _spent(done: int, steps: int) -> str:
    return (
        f"the loader can be iterated only once, and is spent after {done} of {steps} optimizer steps; pass a DataLoader or "
        "a list, or ask for fewer steps."
    )


def _set_epoch(loader: Any, epoch: int) -> None:
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(epoch)
