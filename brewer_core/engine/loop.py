"""The loop itself: steps, what is due after each, and the state from which it goes on."""

from __future__ import annotations

import itertools
import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from torch import Tensor

from brewer_core.batches import move_to_device, rows, rows_named
from brewer_core.checkpoints import Checkpoints, why_unsavable
from brewer_core.engine.figures import Part, Window, told
from brewer_core.engine.memory import Halving
from brewer_core.engine.parameters import Trained, add_parameter_groups, check_parameters
from brewer_core.engine.position import TrackedLoader
from brewer_core.engine.running import Alone, Divided, Replicated, Running, SummedAfterwards
from brewer_core.engine.settings import Duration, Settings, steps_per_epoch
from brewer_core.engine.shares import Counted, Shares, counted, notice_counting, of_all
from brewer_core.errors import BrewerError, DataError, NonFiniteError, RequestError, SaveError, Stopped
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.precision import check_precision
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, Draws, Step, Strategy, Teacher
from brewer_core.randomness import random_states, restore_random_states
from brewer_core.sharding import device_mesh, full_norm, read_shards, regroup, shard_learner, write_shards
from brewer_core.stopping import StopReason
from brewer_core.utils import cycle

MicroBatch = tuple[str, Batch]
_Kept = list[tuple[Tensor, Tensor]]
_PARTS = "parts"


@runtime_checkable
class _Stateful(Protocol):
    """What optimizers and schedules are unless a user wrote or wrapped them, who need not give them more than a `step()`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class _Seen:
    """A micro-batch that went through a step, its number in it from 1, and what is recorded of it."""

    number: int
    batch: Batch
    parts: Mapping[str, Part]


class Engine:
    """Trains a learner.

    optimizer: over parameters of the learner alone; those of its objective are added here, each in a group of its own.
    schedule: makes the learning-rate schedule of the complete optimizer; None for a constant rate.
    teachers: by name. checkpoints: where the whole state is written when a checkpoint is due, after listeners heard of it.
    generator: what the strategy draws from; numpy's, seeded with 0, if None.
    processes: those that train together, each on its own batches; those that torch.distributed connects if None.
    in_parts: each process holds a part of the learner (FSDP2), and its checkpoints are in parts.

    Raises RequestError where the optimizer holds a parameter that the learner does not, and for what cannot be in parts.
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
        processes: Processes | None = None,
        in_parts: bool = False,
    ) -> None:
        self.settings = settings or Settings()
        check_precision(self.settings.precision, device)
        self.device = device
        self.processes = processes or Processes.current()
        self.in_parts = in_parts
        self.learner = learner
        self.teachers = dict(teachers or {})
        self.optimizer = optimizer
        self._place()
        self._trained = Trained(optimizer, learner)
        self._running = self._make_running()
        self.scheduler = schedule(optimizer) if schedule else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.precision == "fp16")
        self.listeners = tuple(listeners)
        self.checkpoints = checkpoints
        self.generator = generator or numpy.random.default_rng(0)
        self.step = 0
        self.total_steps = 0
        self._groups_read = 0  # a group is the micro-batches of one optimizer step, done or left out
        self._left_out = 0
        self._halving = Halving(device)
        self._loaders: dict[str, TrackedLoader] = {}
        self._window = Window()
        self._resumed: Mapping[str, Any] | None = None
        self._stop = StopReason.NONE
        self._save_due = False
        self._saved_at = 0
        self._saved_when = time.monotonic()

    def train(self, loader: Any, duration: Duration) -> int:
        """Train on a loader and return the number of optimizer steps done.

        loader: an iterable of batches; or, for strategies of several tasks, a mapping from task to one, to be trained on for
        a number of steps. After `load_state_dict` the training goes on exactly where the state was taken, with the batches
        that come next.

        Raises DataError where the loader gives too little, after a checkpoint of what was trained until then;
        NonFiniteError before a step on a loss that is not finite; Stopped where the settings ask to stop; RequestError where
        a loader cannot go on where it was.
        """
        if self.settings.loss_normalization == "step" and (self.settings.accumulation > 1 or self.processes.several):
            notice_counting(self.learner, stacklevel=2)
        self.total_steps = duration.total_steps(loader, self.settings.accumulation)
        tracked = self._tracked(loader)
        self._check_alike(loader, duration)
        self._tell("begin", self.total_steps)
        self.optimizer.zero_grad()
        try:
            self._take_up()
            for epoch, micro_batches, count in self._groups(tracked, duration):
                done = self._train_step(micro_batches, count)
                self._groups_read += 1
                if done:
                    self._after_step(epoch)
            if self.step < self.total_steps:  # steps that were left out kept the last one from being reached
                self._finish()
        except DataError as error:
            raise self._given_out(error) from error
        finally:
            self._tell("end")
        return self.step

    def state_dict(self) -> dict[str, Any]:
        """All that training changes, and where it stands: what it takes to go on to the same end, on all processes."""
        own = {
            "random": random_states(self.device),
            "data": {task: t.state_dict() for task, t in self._loaders.items()},
        }
        draws = self.generator.bit_generator.state if isinstance(self.generator, numpy.random.Generator) else None
        whole = {} if self.in_parts else self._whole_state()
        return {
            **whole,
            "scheduler": _state_of(self.scheduler, "schedule"),
            "scaler": self.scaler.state_dict(),
            "strategy": dict(self.learner.strategy.state_dict()),
            "step": self.step,
            "groups": self._groups_read,
            "left_out": self._left_out,
            "parts": self._halving.parts,
            "draws": draws,
            "window": self._window.state_dict(),
            "processes": self.processes.gathered(own),
            **{listener.key: listener.state_dict() for listener in self.listeners if listener.key},
        }

    def _whole_state(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "optimizer": _state_of(self.optimizer, "optimizer")}

    def _load_tensors(self, state: Mapping[str, Any]) -> None:
        """Learner and optimizer, from the state or from the parts beside it."""
        if "learner" in state:
            self.learner.load_state_dict(state["learner"])
            if state["optimizer"] is not None:
                self.optimizer.load_state_dict(state["optimizer"])
        elif self.checkpoints is not None:
            read_shards(self.checkpoints.path(int(state["step"])) / _PARTS, self.learner, self.optimizer)

    def _of_another(self, step: int, error: Exception) -> str:
        where = f"the checkpoint of step {step}" + (f" in {self.checkpoints.folder}" if self.checkpoints else "")
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        return (
            f"{where} is of another training: {reason.rstrip('.')}. Go on with the same student, distillation and optimizer, or "
            "train anew."
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave; `train` goes on from it. It may come from another number of processes.

        Of a state without learner and optimizer, the parts are read from the engine's checkpoints. Raises RequestError where it is
        of another student, objective or optimizer.
        """
        try:
            self._load_tensors(state)
            if isinstance(self.scheduler, _Stateful) and state["scheduler"] is not None:
                self.scheduler.load_state_dict(state["scheduler"])
        except (RuntimeError, ValueError, LookupError) as error:
            raise RequestError(self._of_another(int(state["step"]), error)) from error
        self.scaler.load_state_dict(state["scaler"])
        self.learner.strategy.load_state_dict(state["strategy"])
        if state["draws"] is not None and isinstance(self.generator, numpy.random.Generator):
            self.generator.bit_generator.state = state["draws"]
        self.step = self._saved_at = int(state["step"])
        self._groups_read, self._left_out = int(state["groups"]), int(state["left_out"])
        self._halving.parts = int(state["parts"])
        self._window = Window.of_state(state["window"], self.device)
        for listener in self.listeners:
            if listener.key in state:
                listener.load_state_dict(state[listener.key])
        self._resumed = state["processes"][self.processes.rank % len(state["processes"])]

    def _place(self) -> None:
        """The learner, complete, on the device, or in parts on those of all processes; and in the optimizer."""
        divided = self.in_parts and self.processes.several
        if not divided:
            self.learner.to(self.device)
        add_parameter_groups(self.optimizer, self.learner)
        check_parameters(self.optimizer, self.learner)
        if divided and self.settings.split_when_full:
            raise RequestError(
                'batch_size "auto" halves micro-batches in one process at a time, and a student in parts runs in all of them '
                "together; give a batch size, or do not shard the student."
            )
        if divided:
            before = dict(self.learner.named_parameters())
            shard_learner(self.learner, device_mesh(self.device))
            regroup(self.optimizer, before, self.learner)

    def _make_running(self) -> Running:
        if not self.processes.several:
            return Alone(self.learner)
        if self.in_parts:
            return Divided(self.learner, self.processes)
        if self.settings.split_when_full:
            return SummedAfterwards(self.learner, self.processes, self._trained)
        return Replicated(self.learner, self.processes, self.device)

    def _tracked(self, loader: Any) -> Any:
        """The loader, or the mapping from task to loader, whose places are kept."""
        if isinstance(loader, Mapping):
            named = {task: (each, f"the loader of the task {task!r}") for task, each in loader.items()}
        else:
            named = {"": (loader, "the loader")}
        self._loaders = {task: TrackedLoader(each, self.device, name) for task, (each, name) in named.items()}
        return self._loaders if isinstance(loader, Mapping) else self._loaders[""]

    def _check_alike(self, loader: Any, duration: Duration) -> None:
        """Raises RequestError where an epoch is of other lengths on other processes: they would wait for one another."""
        if duration.epochs is None or not self.processes.several:
            return
        lengths = self.processes.gathered(len(loader))
        if len(set(lengths)) > 1:
            raise RequestError(
                f"the loaders of the processes have {', '.join(map(str, lengths))} batches; all must have as many: use a "
                "DistributedSampler, or give a number of steps."
            )

    def _take_up(self) -> None:
        """Go to the place of the state that was loaded, if one was."""
        if self._resumed is None:
            return
        state, self._resumed = self._resumed, None
        for task, tracked in self._loaders.items():
            if task not in state["data"]:
                raise RequestError(
                    f"the training that is taken up had loaders for {', '.join(state['data'])}, and none for {task!r}; pass the same."
                )
            tracked.load_state_dict(state["data"][task])
        restore_random_states(state["random"], self.device)
        self._tell("resumed", self.step)

    def _train_step(self, micro_batches: Iterator[MicroBatch], count: int) -> bool:
        """One optimizer step; False where it was left out."""
        step = Step(self.step, self.total_steps)
        buffers = self._kept_buffers() if self.settings.on_nonfinite == "skip" else []
        weights = {**self.learner.objective.weights(step), **self.learner.strategy.weights(step)}
        if self.settings.split_when_full:
            recorded = self._split_step(list(micro_batches), step, weights)
        else:
            recorded = self._accumulated(self._weighed(micro_batches, count), count, step, weights)
        self._running.finish()
        norm = self._gradient_norm()
        if self._is_finite(recorded, norm):
            return self._apply(recorded)
        _put_back(buffers)
        return False

    def _kept_buffers(self) -> _Kept:
        """Buffers, such as the statistics of a BatchNorm, as they were before a step that may be left out or made again."""
        return [(buffer, buffer.clone()) for buffer in self.learner.buffers()]

    def _split_step(self, micro_batches: Sequence[MicroBatch], step: Step, weights: Mapping[str, float]) -> list[_Seen]:
        """The micro-batches in as many parts as fit into the memory of every process."""
        while True:
            states, buffers = random_states(self.device), self._kept_buffers()
            parts = self._halving.split(micro_batches)
            recorded = self._attempt(parts, step, weights)
            if recorded is not None:
                return recorded
            self.optimizer.zero_grad()
            restore_random_states(states, self.device)
            _put_back(buffers)
            (largest,) = self.processes.most([max(rows(batch) for _, batch in micro_batches)])
            self._halving.halve(largest)

    def _attempt(self, parts: Sequence[MicroBatch], step: Step, weights: Mapping[str, float]) -> list[_Seen] | None:
        """Forward and backward of a step; None in all processes where one of them has not the memory for it.

        They agree before they tell one another what they have, for which each has to be there, and afterwards.
        """
        count = len(parts)
        ready = self._halving.attempt(lambda: self._ready(iter(parts), count))
        if self._lacking(ready) or ready is None:
            return None
        recorded = self._halving.attempt(lambda: self._accumulated(self._shared(ready), count, step, weights))
        return None if self._lacking(recorded) else recorded

    def _lacking(self, made: Any) -> bool:
        """Whether any process made nothing."""
        (lacking,) = self.processes.most([int(made is None)])
        return bool(lacking)

    def _accumulated(
        self, weighed: Iterable[tuple[MicroBatch, Shares | None]], count: int, step: Step, weights: Mapping[str, float]
    ) -> list[_Seen]:
        """Forward and backward of a step's micro-batches."""
        recorded: list[_Seen] = []
        for number, ((task, batch), shares) in enumerate(weighed, 1):
            with self._running.accumulating(last=number == count):
                losses = self._running(task, batch, self._ask(task, batch), step)
                total, seen = self._total(losses, weights, shares, count)
                scale = self._running.averaged
                self.scaler.scale(total * scale if scale > 1 else total).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            recorded.append(_Seen(number, batch, told(seen, task)))
        return recorded

    def _total(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shares: Shares | None, count: int
    ) -> tuple[Tensor, dict[str, Part]]:
        """The loss to go backward from, and what is recorded: each term's and the total's part of the step's mean."""
        if shares is None:
            total = sum(_weighted(loss, weights.get(name, 1.0)) for name, loss in losses.items()) / count
            seen = {name: Part(loss.detach() / count, 1 / count) for name, loss in losses.items()}
        else:
            scaled = {name: _weighted(loss, shares[name]) for name, loss in losses.items()}
            total = sum(_weighted(loss, weights.get(name, 1.0)) for name, loss in scaled.items())
            seen = {name: Part(loss.detach(), shares[name]) for name, loss in scaled.items()}
        assert isinstance(total, Tensor)
        return total, {**seen, "total_loss": Part(total.detach(), 1 / count if shares is None else shares.of_step)}

    def _weighed(self, micro_batches: Iterator[MicroBatch], count: int) -> Iterable[tuple[MicroBatch, Shares | None]]:
        """The micro-batches of a step on the device, each with its terms' shares of the step, if they are weighed."""
        return self._shared(self._ready(micro_batches, count))

    def _ready(self, micro_batches: Iterator[MicroBatch], count: int) -> Iterable[tuple[MicroBatch, Counted | None]]:
        """The micro-batches of a step on the device, and what each has of the step's items, if they are weighed."""
        if not self.processes.several and (count == 1 or self.settings.loss_normalization != "step"):
            return (self._prepared(task, batch) for task, batch in micro_batches)
        return [self._prepared(task, batch, counting=True) for task, batch in micro_batches]

    def _shared(self, ready: Iterable[tuple[MicroBatch, Counted | None]]) -> Iterable[tuple[MicroBatch, Shares | None]]:
        if not isinstance(ready, list):  # one at a time, for none is weighed
            return ((batch, None) for batch, _ in ready)
        step = of_all(self.processes, [own for _, own in ready if own is not None])
        by_items = self.settings.loss_normalization == "step"
        return ((batch, Shares(self.learner, own, step, by_items)) for batch, own in ready if own is not None)

    def _prepared(self, task: str, batch: Batch, counting: bool = False) -> tuple[MicroBatch, Counted | None]:
        """A micro-batch on the device, and its items: read where it came from, not off the device, if that is the same."""
        strategy, own = self.learner.strategy, None
        given = self.settings.prepare(task, batch)
        changes = type(strategy).prepare is not Strategy.prepare
        if counting and not changes:
            own = counted(self.learner, task, given, self._asked(task))
        ready = strategy.prepare(task, move_to_device(given, self.device), self.learner.student)
        if counting and changes:
            own = counted(self.learner, task, ready, self._asked(task))
        return (task, ready), own

    def _asked(self, task: str) -> tuple[str, ...]:
        return tuple(self.learner.strategy.teachers_for(task, tuple(self.teachers)))

    def _ask(self, task: str, batch: Batch) -> dict[str, Any]:
        needs = self.learner.needs
        return {name: self.teachers[name].features(batch, needs.teacher(name)) for name in self._asked(task)}

    def _gradient_norm(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        if self.settings.max_grad_norm is not None:
            return full_norm(torch.nn.utils.clip_grad_norm_(self._trained(), self.settings.max_grad_norm))
        gradients = [p.grad for p in self._trained() if p.grad is not None]
        # torch has no norm of a sparse tensor
        return full_norm(
            torch.nn.utils.get_total_norm([g.coalesce().values() if g.is_sparse else g for g in gradients])
        )

    def _is_finite(self, recorded: Sequence[_Seen], norm: Tensor) -> bool:
        """Read one flag, and agree with the other processes on what follows; False where the step is to be left out.

        Under fp16 overflowing gradients are the scaler's business.
        """
        losses = torch.stack([seen.parts["total_loss"].value for seen in recorded]).sum()
        flag = losses if self.scaler.is_enabled() else losses + norm.to(losses.device)
        every = self.settings.save_every_s
        save_due = every is not None and time.monotonic() - self._saved_when >= every
        own = [int(not math.isfinite(flag.item())), int(self.settings.stop()), int(save_due)]
        bad, stop, save = self.processes.most(own)
        self._stop, self._save_due = StopReason(stop), bool(save)
        return not bad or self._despite(recorded, norm)

    def _despite(self, recorded: Sequence[_Seen], norm: Tensor) -> bool:
        """What a step that is not finite comes to: it is made all the same, left out, or the end."""
        names = [_not_finite(seen) for seen in recorded]
        found = self._where(recorded, names)
        if found and self.settings.only_gradients_stop and math.isfinite(norm.item()):
            warnings.warn(
                f"the term `{found[0]}` is not finite in some step, though its gradients are; training goes on. Its figures in "
                "the log are not finite either: look for batches in which no row has a label.",
                stacklevel=4,
            )
            return True
        what = f"the term `{found[0]}` is not finite" if found else "the norm of the gradients is not finite"
        where = found[1] if found else self._named(recorded)
        self.optimizer.zero_grad()
        self._leave_out(f"{what}, in {where}")
        return False

    def _where(self, recorded: Sequence[_Seen], names: Sequence[str | None]) -> tuple[str, str] | None:
        """The first term of any process that is not finite, and the rows in which; None where all are."""
        own = next(((n, self._named([seen])) for seen, n in zip(recorded, names, strict=True) if n is not None), None)
        return next((each for each in self.processes.gathered(own) if each is not None), None)

    def _named(self, recorded: Sequence[_Seen]) -> str:
        numbers = [number for seen in recorded for number in rows_named(seen.batch)]
        if numbers:
            return self.settings.name_rows(numbers)
        several = len(recorded) > 1
        return f"micro-batch{'es' * several} {', '.join(str(seen.number) for seen in recorded)} of the step"

    def _leave_out(self, what: str) -> None:
        """Leave a step out. Raises NonFiniteError where that is not allowed, or too often."""
        where = f"optimizer step {self.step + 1} of {self.total_steps}: {what}"
        self._left_out += 1
        if self.settings.on_nonfinite == "skip" and self._left_out <= self.settings.nonfinite_limit:
            warnings.warn(f"{where}; the step is left out.", stacklevel=5)
            return
        more = f" {self._left_out - 1} steps were left out before it." if self.settings.on_nonfinite == "skip" else ""
        raise NonFiniteError(
            f"{where}; training stopped before the step, and nothing was changed by it.{more} Look for empty or extreme "
            "batches, lower the learning rate, clip with max_grad_norm, or raise the temperature."
        )

    def _apply(self, recorded: Sequence[_Seen]) -> bool:
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
        self._window.add([seen.parts for seen in recorded])
        return True

    def _after_step(self, epoch: int) -> None:
        last = self.step == self.total_steps
        self._tell("stepped", self.step)
        if last or self.step % self.settings.log_every_steps == 0:
            self._log()
        if last or self.settings.checkpoint_due(self.step, epoch):
            self._checkpoint()
        if self._saved_at != self.step and (self._save_due or self._stop) and not last:
            self._save()
        if self._stop and not last:
            saved = ", and its state is saved" if self.checkpoints else ""
            raise Stopped(
                f"stopped {self._stop.words} after optimizer step {self.step} of {self.total_steps}{saved}",
                self._stop.exit_status,
            )

    def _log(self) -> None:
        rate = self.optimizer.param_groups[0].get("lr")  # an optimizer that finds its own has None
        rates = {} if rate is None else {"learning_rate": float(rate)}
        self._tell("logged", self.step, {**self._window.read(self.processes), **rates})
        self._window = Window()

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
        """Tell the listeners, and save with what they made of it; also where one of them fails."""
        saves = self.settings.save_at_checkpoints
        try:
            self._tell("checkpoint", self.step)
        except Exception:
            if saves and not self.processes.several:  # others may wait elsewhere
                self._save()
            raise
        if saves:
            self._save()

    def _save(self) -> None:
        self._saved_at, self._saved_when = self.step, time.monotonic()
        if self.checkpoints is None:
            return
        self._tell("saving", self.step)
        checkpoints, state = self.checkpoints, self.state_dict()
        if self.in_parts:
            self._save_parts(checkpoints, state)
        else:
            self.processes.of_first(lambda: checkpoints.save(self.step, state))

    def _save_parts(self, checkpoints: Checkpoints, state: Mapping[str, Any]) -> None:
        """The first process writes a checkpoint, into whose draft all of them write their parts."""

        def write_part(draft: Path | None) -> None:
            folder = self.processes.of_first(lambda: draft)
            assert folder is not None
            write_shards(folder / _PARTS, self.learner, self.optimizer)

        failed: BrewerError | None = None
        try:
            if self.processes.first:
                checkpoints.save(self.step, state, write_part)
            else:
                write_part(None)
        except (BrewerError, OSError) as error:
            failed = error if isinstance(error, BrewerError) else SaveError(str(error))
        self.processes.of_first(lambda: _raise(failed))

    def _groups(self, loader: Any, duration: Duration) -> Iterator[tuple[int, Iterator[MicroBatch], int]]:
        """The micro-batches of each optimizer step that is left, with the epoch and their number; read only as they are used."""
        size, batches = self.settings.accumulation, self.learner.strategy.batches
        if duration.epochs is None and not duration.whole_passes:
            stream = iter(batches(loader if isinstance(loader, Mapping) else cycle(loader), self.generator))
            left = (duration.steps or 0) - self._groups_read
            yield from ((0, itertools.islice(stream, size), size) for _ in range(left))
            return
        length = len(loader)
        first_epoch, done = divmod(self._groups_read, steps_per_epoch(loader, size))
        left = self.total_steps - self._groups_read
        for epoch in itertools.count(first_epoch):
            self.optimizer.zero_grad()  # of what a callback did at the end of the epoch before
            stream = iter(batches(loader, self.generator))
            for first in range(done * size, length, size):
                if left == 0:
                    return
                count = min(size, length - first)
                yield epoch, _exactly(stream, count, length), count
                left -= 1
            if next(iter(stream), None) is not None:
                raise DataError(_wrong_length(length, "more"))
            done = 0
            if left == 0:
                return

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)


def _put_back(kept: _Kept) -> None:
    """Give tensors the values that were kept."""
    with torch.no_grad():
        for tensor, before in kept:
            tensor.copy_(before)


def _raise(error: BrewerError | None) -> None:
    if error is not None:
        raise error


def _state_of(part: Any, what: str) -> dict[str, Any] | None:
    """The state of an optimizer or a schedule; None where it has none, or one that cannot be saved, of which is warned."""
    if not isinstance(part, _Stateful):
        return None
    state = part.state_dict()
    reason = why_unsavable(state)
    if reason is None:
        return state
    warnings.warn(
        f"checkpoints hold no state of the {what} {type(part).__name__}, for it {reason}; keep functions and objects out of it, "
        "or give it a state_dict() without them.",
        stacklevel=4,
    )
    return None


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


def _not_finite(seen: _Seen) -> str | None:
    """The first term that is not finite in a micro-batch."""
    return next((name for name, part in seen.parts.items() if not math.isfinite(part.value.item())), None)
