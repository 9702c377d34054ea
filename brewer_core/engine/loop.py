"""The loop itself: steps, what is due after each, and the state from which it goes on."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from brewer_core.checkpoints import Checkpoints
from brewer_core.engine.feeding import Feed, MicroBatch
from brewer_core.engine.figures import Window
from brewer_core.engine.finite import Judge, Seen
from brewer_core.engine.running import placed, running
from brewer_core.engine.saving import Saving
from brewer_core.engine.settings import Duration, Settings
from brewer_core.engine.shares import notice_counting
from brewer_core.engine.stepping import Gradients, put_back
from brewer_core.errors import DataError, RequestError, Stopped, full_stop
from brewer_core.learner import Learner
from brewer_core.listeners import Listener
from brewer_core.precision import check_precision
from brewer_core.processes import Processes
from brewer_core.protocols import Draws, KeepingTeacher, Step, Teacher
from brewer_core.randomness import random_states, restore_random_states, stir
from brewer_core.stopping import StopReason


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
        self.device, self.processes = device, processes or Processes.current()
        divided, repeating = in_parts and self.processes.several, self.settings.split_when_full
        if divided and learner.balancer is not None and learner.balancer.reads_gradients:
            raise RequestError(
                f"the balancer {type(learner.balancer).__name__} takes gradients by a weight of the student, of which each process has "
                "a part; do not shard the student, or take another balancer."
            )
        self.learner, trained = placed(learner, optimizer, device, divided, repeating)
        self.teachers = dict(teachers or {})
        self.optimizer = optimizer
        self.scheduler = schedule(optimizer) if schedule else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.precision == "fp16")
        self.listeners = tuple(listeners)
        self.checkpoints = checkpoints
        self.generator = generator or numpy.random.default_rng(0)
        self.step = 0
        self.total_steps = 0
        self._gradients = Gradients(
            learner,
            running(learner, trained, self.processes, device, divided, repeating),
            trained,
            optimizer,
            self.scaler,
            self.teachers,
            self.settings,
            self.processes,
            device,
        )
        self._keeping = [each for each in self.teachers.values() if isinstance(each, KeepingTeacher)]
        self._judge = Judge(self.settings, self.processes, self.scaler.is_enabled())
        self._saving = Saving(learner, optimizer, self.scheduler, self.processes, in_parts)
        self._window = Window()
        self._feed: Feed | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._stop = StopReason.NONE
        self._save_due = self._pass_over = False
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
        if self.settings.loss_normalization == "step" and (self.settings.several_parts or self.processes.several):
            notice_counting(self.learner, stacklevel=2)
        feed = Feed(loader, duration, self.settings.accumulation, self.device, self.processes)
        if self._feed is not None and self._resumed is None:  # it was called before: what it did then counts
            feed.load_state_dict(self._feed.state_dict(), self._feed.read)
        self._feed, self.total_steps = feed, feed.total_steps
        self._tell("begin", self.total_steps)
        self.optimizer.zero_grad()
        try:
            self._take_up(feed)
            epoch_before = None
            for epoch, micro_batches, count in feed.groups(self.learner.strategy, self.generator):
                if epoch != epoch_before:
                    self.optimizer.zero_grad()  # of what a callback did at the end of the epoch before
                done, epoch_before = self._train_step(micro_batches, count), epoch
                feed.read += 1
                if self._pass_over:
                    self._share_answers()
                if done:
                    self._after_step(epoch)
            if self.step < self.total_steps:  # steps that were left out kept the last one from being reached
                self._finish()
        except DataError as error:
            raise self._given_out(error) from error
        finally:
            for teacher in self._keeping:
                teacher.flush()
            self._tell("end")
        return self.step

    def state_dict(self) -> dict[str, Any]:
        """All that training changes, and where it stands: what it takes to go on to the same end, on all processes."""
        own = {
            "random": random_states(self.device),
            "data": self._feed.state_dict() if self._feed else {},
            "window": self._window.state_dict(),
        }
        draws = self.generator.bit_generator.state if isinstance(self.generator, numpy.random.Generator) else None
        return {
            **self._saving.state_dict(),
            "scaler": self.scaler.state_dict(),
            "strategy": dict(self.learner.strategy.state_dict()),
            "step": self.step,
            "groups": self._feed.read if self._feed else 0,
            "left_out": self._judge.left_out,
            "parts": self._gradients.halving.parts,
            "draws": draws,
            "processes": self.processes.gathered(own),
            **({"balancing": self._gradients.balancing.state_dict()} if self.learner.balancer is not None else {}),
            **{listener.key: listener.state_dict() for listener in self.listeners if listener.key},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that `state_dict` gave; `train` goes on from it. It may come from another number of processes.

        Of a state without learner and optimizer, the parts are read from the engine's checkpoints. Raises RequestError where it is
        of another student, objective or optimizer.
        """
        try:
            self._saving.load_state_dict(state, self.checkpoints)
        except (RuntimeError, ValueError, LookupError) as error:
            raise RequestError(self._of_another(int(state["step"]), error)) from error
        self.scaler.load_state_dict(state["scaler"])
        self.learner.strategy.load_state_dict(state["strategy"])
        if state["draws"] is not None and isinstance(self.generator, numpy.random.Generator):
            self.generator.bit_generator.state = state["draws"]
        self.step = self._saved_at = int(state["step"])
        self._judge.left_out = int(state["left_out"])
        self._gradients.halving.parts = int(state["parts"])
        self._gradients.balancing.load_state_dict(state.get("balancing", {}))
        for listener in self.listeners:
            if listener.key in state:
                listener.load_state_dict(state[listener.key])
        self._resumed = state

    def _of_another(self, step: int, error: Exception) -> str:
        where = f"the checkpoint of step {step}" + (f" in {self.checkpoints.folder}" if self.checkpoints else "")
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        return (
            f"{where} is of another training: {full_stop(reason)} Go on with the same student, distillation and optimizer, or "
            "train anew."
        )

    def _take_up(self, feed: Feed) -> None:
        """Go to the place of the state that was loaded, if one was: each process to its own, further ones to the first's."""
        if self._resumed is None:
            return
        saved, rank = self._resumed["processes"], self.processes.rank
        own = saved[rank] if rank < len(saved) else saved[0]
        feed.load_state_dict(own["data"], int(self._resumed["groups"]))
        mine = [own]
        if len(saved) != self.processes.count:  # the figures are summed over all, so the first takes those of all
            mine = saved if self.processes.first else []
        self._window = Window.of_states([each["window"] for each in mine], self.device)
        restore_random_states(own["random"], self.device)
        if rank >= len(saved):
            stir(rank)
        self._resumed = None
        self._tell("resumed", self.step)

    def _train_step(self, micro_batches: Iterator[MicroBatch], count: int) -> bool:
        """One optimizer step; False where it was left out."""
        step = Step(self.step, self.total_steps)
        buffers = self._gradients.kept_buffers() if self.settings.on_nonfinite == "skip" else []
        recorded, norm = self._gradients(micro_batches, count, step)
        every = self.settings.save_every_s
        save_due = every is not None and time.monotonic() - self._saved_when >= every
        pass_over = bool(self._keeping) and self._feed is not None and self._feed.ends_pass
        asked = [self._judge.flag(recorded, norm), int(self.settings.stop()), int(save_due), int(pass_over)]
        agreed = self.processes.most(asked)
        self._stop, self._save_due, self._pass_over = StopReason(agreed[1]), bool(agreed[2]), bool(agreed[3])
        if agreed[0] and not self._judged(recorded, norm, step):
            put_back(buffers)
            return False
        return self._apply(recorded)

    def _share_answers(self) -> None:
        """At the end of a pass: what any process has had computed of a teacher is there for all."""
        for teacher in self._keeping:
            teacher.flush()
        self.processes.most([0])  # all have
        for teacher in self._keeping:
            teacher.refresh()
            teacher.end_pass()

    def _judged(self, recorded: Sequence[Seen], norm: Tensor, step: Step) -> bool:
        """Whether a step that is not finite is made all the same; else nothing is left of its gradients."""
        made = False
        try:
            made = self._judge.despite(recorded, norm, step)
        finally:
            if not made:
                self.optimizer.zero_grad()
        return made

    def _apply(self, recorded: Sequence[Seen]) -> bool:
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.is_enabled() and self.scaler.get_scale() < scale
        if self.scheduler is not None and not skipped:
            self.scheduler.step()
        self.optimizer.zero_grad()
        if skipped:
            return False
        self._gradients.balancing.stepped()
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
        for teacher in self._keeping:  # from here on they answer as they did until now
            teacher.flush()
        self._tell("saving", self.step)
        self._saving.save(self.checkpoints, self.step, self.state_dict())

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)
