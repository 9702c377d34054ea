"""Forward and backward of one optimizer step: its micro-batches, what each weighs, and the gradients that come of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brewer_core.batches import move_to_device, rows
from brewer_core.engine.ahead import answered, side_of
from brewer_core.engine.balancing import Balancing
from brewer_core.engine.feeding import MicroBatch
from brewer_core.engine.figures import Part, told
from brewer_core.engine.finite import Seen
from brewer_core.engine.memory import Halving, ran_out
from brewer_core.engine.parameters import Trained
from brewer_core.engine.running import Divided, Running
from brewer_core.engine.settings import Settings
from brewer_core.engine.shares import Counted, Shares, counted, of_all
from brewer_core.errors import MemoryFullError
from brewer_core.features import Features
from brewer_core.learner import Learner
from brewer_core.objective import Balance
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, KeepingTeacher, Step, Strategy, Teacher
from brewer_core.randomness import random_states, restore_random_states
from brewer_core.sharding import full_norm

Kept = list[tuple[Tensor, Tensor]]
FACTOR = "factor/"
"""What the name of a term in the figures begins with, where it is what the balancer multiplies the term by."""


class Ready(NamedTuple):
    """A micro-batch on the device. rows: what tells its rows apart, for each teacher that keeps what it has computed."""

    task: str
    batch: Batch
    rows: Mapping[str, Any]


class Gradients:
    """Makes the gradients of a step. halving: in how many parts micro-batches are run."""

    def __init__(
        self,
        learner: Learner,
        running: Running,
        trained: Trained,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        teachers: Mapping[str, Teacher],
        settings: Settings,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self._learner, self._running, self._trained = learner, running, trained
        self._optimizer, self._scaler, self._teachers = optimizer, scaler, teachers
        self._keeping = {name: each for name, each in teachers.items() if isinstance(each, KeepingTeacher)}
        self._settings, self._processes, self._device = settings, processes, device
        self.balancing = Balancing(learner, processes, scaler)
        beside = settings.teachers_beside and bool(teachers) and not isinstance(running, Divided)
        self._side = side_of(device) if beside else None
        self.halving = Halving(device, settings.parts, in_step=isinstance(running, Divided))

    def __call__(self, micro_batches: Iterator[MicroBatch], count: int, step: Step) -> tuple[list[Seen], Tensor]:
        """What is recorded of the micro-batches, and the norm of the gradients, clipped as the settings ask."""
        weights = self._learner.weights(step)
        if self._settings.split_when_full:
            recorded = self._fitting_step(list(micro_batches), step, weights)
        else:
            if self.halving.parts > 1:
                parts = self.halving.split(list(micro_batches))
                micro_batches, count = iter(parts), len(parts)
            with _naming_full_memory():
                recorded = self._made(self._weighed(micro_batches, count), count, step, weights)
        self._running.finish()
        norm = self._norm()
        self.balancing.learn()  # only now: its gradients are no part of the norm, and are not clipped
        return recorded, norm

    def kept_buffers(self) -> Kept:
        """Buffers, such as the statistics of a BatchNorm, as they were before a step that may be left out or made again."""
        return [(buffer, buffer.clone()) for buffer in self._learner.buffers()]

    def _fitting_step(
        self, micro_batches: Sequence[MicroBatch], step: Step, weights: Mapping[str, float]
    ) -> list[Seen]:
        """The micro-batches in as many parts as fit into the memory of every process."""
        while True:
            states, buffers = random_states(self._device), self.kept_buffers()
            recorded = self._attempt(self.halving.split(micro_batches), step, weights)
            if recorded is not None:
                return recorded
            self._optimizer.zero_grad()
            restore_random_states(states, self._device)
            put_back(buffers)
            (largest,) = self._processes.most([max(rows(batch) for _, batch in micro_batches)])
            self.halving.halve(largest)

    def _attempt(self, parts: Sequence[MicroBatch], step: Step, weights: Mapping[str, float]) -> list[Seen] | None:
        """Forward and backward of a step; None in all processes where one of them has not the memory for it.

        They agree before they tell one another what they have, for which each has to be there, and afterwards.
        """
        count = len(parts)
        ready = self.halving.attempt(lambda: self._ready(iter(parts), count))
        if self._lacking(ready) or ready is None:
            return None
        weighed = self._shared(ready)
        self.balancing.begin(step, weights)
        if self._looks_ahead(count):
            given = weighed
            looked = self.halving.attempt(lambda: self._looked_at(given, count, step))
            if self._lacking(looked) or looked is None:
                return None
            self.balancing.agree()
            weighed = looked
        recorded = self.halving.attempt(lambda: self._accumulated(weighed, count, step, weights))
        return None if self._lacking(recorded) else recorded

    def _made(
        self, weighed: Iterable[tuple[Ready, Shares | None]], count: int, step: Step, weights: Mapping[str, float]
    ) -> list[Seen]:
        """Forward and backward of a step's micro-batches, once the losses are known that must be before."""
        self.balancing.begin(step, weights)
        if self._looks_ahead(count):
            weighed = self._looked_at(weighed, count, step)
            self.balancing.agree()
        return self._accumulated(weighed, count, step, weights)

    def _looks_ahead(self, count: int) -> bool:
        """Whether the losses of the step must be known before, and are not those of its one forward pass.

        Processes that may each do their part again tell one another nothing in the midst of it.
        """
        alone = count == 1 and not (self._settings.split_when_full and self._processes.several)
        return self.balancing.looks_ahead and not alone

    def _looked_at(
        self, weighed: Iterable[tuple[Ready, Shares | None]], count: int, step: Step
    ) -> list[tuple[Ready, Shares | None]]:
        """The micro-batches of a step, whose losses were computed without anything being changed or drawn by it."""
        states, buffers, looked = random_states(self._device), self.kept_buffers(), list(weighed)
        with torch.no_grad():
            for ready, shares in looked:
                losses = self._learner(ready.task, ready.batch, self._ask(ready), step)
                self.balancing.look(losses, shares, count)
        restore_random_states(states, self._device)
        put_back(buffers)
        return looked

    def _lacking(self, made: Any) -> bool:
        """Whether any process made nothing."""
        (lacking,) = self._processes.most([int(made is None)])
        return bool(lacking)

    def _accumulated(
        self, weighed: Iterable[tuple[Ready, Shares | None]], count: int, step: Step, weights: Mapping[str, float]
    ) -> list[Seen]:
        """Forward and backward of a step's micro-batches."""
        recorded: list[Seen] = []
        asked = answered(
            enumerate(weighed, 1), lambda each: self._ask(each[1][0]), self._side, at_hand=isinstance(weighed, list)
        )
        for (number, (ready, shares)), answers in asked:
            task, batch = ready.task, ready.batch
            with self._running.accumulating(last=number == count):
                given = self._running(task, batch, answers, step, *self.balancing.asked)
                del answers  # what no gradient needs of them is free before the next are there
                balance = self.balancing.told(given, shares, count)
                total, seen = self._total(given.losses, balance, weights, shares, count)
                scale = self._running.averaged
                self._scaler.scale(total * scale if scale > 1 else total).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            recorded.append(Seen(number, batch, told(seen, task)))
        return recorded

    def _total(
        self,
        losses: Mapping[str, Tensor],
        balance: Balance,
        weights: Mapping[str, float],
        shares: Shares | None,
        count: int,
    ) -> tuple[Tensor, dict[str, Part]]:
        """The loss to go backward from, and what is recorded: each term's and the total's part of the step's mean, and the factors."""
        of_step, balanced = 1 / count if shares is None else shares.of_step, balance.of(losses)
        if shares is None:
            total = sum(_weighted(loss, weights.get(name, 1.0)) for name, loss in balanced.items()) / count
            seen = {name: Part(loss.detach() / count, 1 / count) for name, loss in losses.items()}
        else:
            scaled = {name: _weighted(loss, shares[name]) for name, loss in balanced.items()}
            total = sum(_weighted(loss, weights.get(name, 1.0)) for name, loss in scaled.items())
            seen = {name: Part(_weighted(loss.detach(), shares[name]), shares[name]) for name, loss in losses.items()}
        assert isinstance(total, Tensor)
        factors = {f"{FACTOR}{name}": Part(f.detach() * of_step, of_step) for name, f in balance.factors.items()}
        return total, {**seen, **factors, "total_loss": Part(total.detach(), of_step)}

    def _weighed(self, micro_batches: Iterator[MicroBatch], count: int) -> Iterable[tuple[Ready, Shares | None]]:
        """The micro-batches of a step on the device, each with its terms' shares of the step, if they are weighed."""
        return self._shared(self._ready(micro_batches, count))

    def _ready(self, micro_batches: Iterator[MicroBatch], count: int) -> Iterable[tuple[Ready, Counted | None]]:
        """The micro-batches of a step on the device, and what each has of the step's items, if they are weighed."""
        if not self._processes.several and (count == 1 or self._settings.loss_normalization != "step"):
            return (self._prepared(task, batch) for task, batch in micro_batches)
        return [self._prepared(task, batch, counting=True) for task, batch in micro_batches]

    def _shared(self, ready: Iterable[tuple[Ready, Counted | None]]) -> Iterable[tuple[Ready, Shares | None]]:
        if not isinstance(ready, list):  # one at a time, for none is weighed
            return ((batch, None) for batch, _ in ready)
        step = of_all(self._processes, [own for _, own in ready if own is not None])
        by_items = self._settings.loss_normalization == "step"
        return [(batch, Shares(self._learner, own, step, by_items)) for batch, own in ready if own is not None]

    def _prepared(self, task: str, batch: Batch, counting: bool = False) -> tuple[Ready, Counted | None]:
        """A micro-batch on the device, with what is read of it where it came from and not off the device, if that is the same."""
        strategy = self._learner.strategy
        given = self._settings.prepare(task, batch)
        if type(strategy).prepare is Strategy.prepare:
            read = self._read(task, given, counting)
            return Ready(task, move_to_device(given, self._device), read[0]), read[1]
        ready = strategy.prepare(task, move_to_device(given, self._device), self._learner.student)
        read = self._read(task, ready, counting)
        return Ready(task, ready, read[0]), read[1]

    def _read(self, task: str, batch: Batch, counting: bool) -> tuple[Mapping[str, Any], Counted | None]:
        """What tells a batch's rows apart, and its items where they are counted."""
        asked = self._asked(task)
        rows = {name: self._keeping[name].rows(batch) for name in asked if name in self._keeping}
        return rows, counted(self._learner, task, batch, asked) if counting else None

    def _asked(self, task: str) -> tuple[str, ...]:
        return tuple(self._learner.strategy.teachers_for(task, tuple(self._teachers)))

    def _ask(self, ready: Ready) -> dict[str, Any]:
        return {name: self._answer(name, ready) for name in self._asked(ready.task)}

    def _answer(self, name: str, ready: Ready) -> Features:
        needs = self._learner.needs.teacher(name)
        if name in self._keeping:
            return self._keeping[name].features(ready.batch, needs, ready.rows[name])
        return self._teachers[name].features(ready.batch, needs)

    def _norm(self) -> Tensor:
        self._scaler.unscale_(self._optimizer)
        if self._settings.max_grad_norm is not None:
            return full_norm(torch.nn.utils.clip_grad_norm_(self._trained(), self._settings.max_grad_norm))
        gradients = [p.grad for p in self._trained() if p.grad is not None]
        # torch has no norm of a sparse tensor
        return full_norm(
            torch.nn.utils.get_total_norm([g.coalesce().values() if g.is_sparse else g for g in gradients])
        )


def _weighted(loss: Tensor, weight: float) -> Tensor:
    """A term's share of the total; one of weight 0 adds 0, were it not finite, and leaves its parameters their gradient of 0."""
    return weight * (torch.nan_to_num(loss) if weight == 0 else loss)


@contextmanager
def _naming_full_memory() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise MemoryFullError(
            "the memory does not hold a micro-batch with what is trained; take a smaller batch_size and more accumulation, which "
            'batch_size "auto" does by itself.'
        ) from error


def put_back(kept: Kept) -> None:
    """Give tensors the values that were kept."""
    with torch.no_grad():
        for tensor, before in kept:
            tensor.copy_(before)
