"""Evaluates a model on labelled rows, during a training and after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from brewer_core.batches import Filler, call_model, move_to_device
from brewer_core.components import Method
from brewer_core.config.run import Best
from brewer_core.config.taskrefs import MEAN
from brewer_core.errors import ConfigError
from brewer_core.features import Features
from brewer_core.fingerprints import fingerprint
from brewer_core.listeners import Listener
from brewer_core.precision import autocast
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, Task
from brewer_core.run.loading import TextLoader
from brewer_core.run.scoring import Scores, scored
from brewer_core.sharding import is_sharded, load_full_state, weights_of
from brewer_core.teachers import evaluating

_WEIGHTS = "weights."
_TRIED = Scores([0, 1], [0, 1], [0.5, 0.25])


class Evaluator:
    """Measures models on one set of labelled rows.

    metrics: by the name under which their figures are told. model_inputs: the part of a batch that models take.
    """

    def __init__(
        self,
        loader: TextLoader,
        metrics: Mapping[str, Method],
        task: Task,
        device: torch.device,
        precision: str,
        model_inputs: Callable[[Batch], Batch],
        processes: Processes | None = None,
    ) -> None:
        self.loader = loader
        self.metrics = metrics
        self.task = task
        self.device = device
        self.precision = precision
        self.model_inputs = model_inputs
        self.processes = processes or Processes()

    def __call__(self, model: nn.Module, adaptor: Callable[..., Any]) -> dict[str, float]:
        """The figures of a model, by metric; a metric that gives several is told as `metric.figure`."""
        scores = self._score(model, adaptor)
        return self.processes.of_first(lambda: self.measure(scores))

    def identity(self) -> str:
        """A hash of the rows with their labels, of the metrics with their options, and of the classes."""
        rows = self.loader.dataset
        held = [rows[i] for i in range(self.rows)]
        of_rows = [{name: torch.as_tensor(item[name]).tolist() for name in item if name != "row"} for item in held]
        methods = {
            name: (method.component.name, method.options, method.target) for name, method in self.metrics.items()
        }
        return fingerprint(of_rows, methods, self.task)

    def same_rows(self, other: Evaluator) -> bool:
        """Whether another evaluator measures on the very same rows."""
        return self.loader.dataset is other.loader.dataset

    def measure(self, scores: Scores) -> dict[str, float]:
        """The figures of what was predicted, by metric."""
        figures: dict[str, float] = {}
        for name, metric in self.metrics.items():
            value = metric(scores.predictions, scores.references, losses=scores.losses, task=self.task)
            several = value if isinstance(value, Mapping) else None
            figures |= (
                {f"{name}.{key}": float(v) for key, v in several.items()}
                if several is not None
                else {name: float(value)}
            )
        return figures

    @property
    def rows(self) -> int:
        """How many rows models are measured on."""
        return len(self.loader.dataset)  # type: ignore[arg-type]  # a data set of rows has a length

    def _score(self, model: nn.Module, adaptor: Callable[..., Any]) -> Scores:
        """What is predicted, and what is right, in the order of the rows, each of which some process has."""
        own: list[Tensor] = []
        with evaluating(model), torch.no_grad():
            for batch in self.loader:
                moved = move_to_device(batch, self.device)
                with autocast(self.precision, self.device):
                    outputs = call_model(model, self.model_inputs(moved), {})
                features = Features.of(adaptor(moved, outputs))
                if not isinstance(batch, Filler):  # which has its row from another process
                    own.append(scored(moved, features))
        everyone = self.processes.gathered(torch.cat(own) if own else torch.empty(0, 4, dtype=torch.float64))
        return Scores.of(torch.cat(everyone), self.rows)


class TaskEvaluators:
    """Measures a model on each task that it has.

    evaluators: by task. A run of one task calls it "", and its figures bear the names of the metrics; those of others are
    called `TASK/METRIC`, and where there are several, `mean/METRIC` is the mean over them.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self.evaluators = dict(evaluators)

    def __call__(self, model: nn.Module, adaptors: Mapping[str, Callable[..., Any]]) -> dict[str, float]:
        """The figures of a model. adaptors: by task, one for each that it has; the others are left out."""
        evaluators = {task: evaluator for task, evaluator in self.evaluators.items() if task in adaptors}
        return named({task: evaluator(model, adaptors[task]) for task, evaluator in evaluators.items()})

    def same_rows(self, other: TaskEvaluators) -> bool:
        """Whether other evaluators measure the same tasks on the very same rows."""
        return self.evaluators.keys() == other.evaluators.keys() and all(
            evaluator.same_rows(other.evaluators[task]) for task, evaluator in self.evaluators.items()
        )

    def known(self) -> list[str]:
        """The names of the figures that there can be."""
        return list(named({task: evaluator.measure(_TRIED) for task, evaluator in self.evaluators.items()}))

    def lower_is_better(self, figure: str) -> bool:
        """Whether a figure is of a metric that declares so."""
        name = figure.rpartition("/")[2].partition(".")[0]
        found = [evaluator.metrics[name] for evaluator in self.evaluators.values() if name in evaluator.metrics]
        return any(metric.component.facts.lower_is_better for metric in found)

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each task is measured on."""
        return {task: evaluator.rows for task, evaluator in self.evaluators.items()}


def named(by_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of several tasks under names of their own, and the means of those that each task has."""
    if "" in by_task:
        return dict(by_task[""])
    figures = {f"{task}/{name}": value for task, own in by_task.items() for name, value in own.items()}
    if len(by_task) > 1:
        first, *others = by_task.values()
        shared = [name for name in first if all(name in own for own in others)]
        figures |= {f"{MEAN}/{name}": sum(own[name] for own in by_task.values()) / len(by_task) for name in shared}
    return figures


class EvaluationListener(Listener):
    """Evaluates a model as its training goes on, and remembers its best weights.

    every_steps: optimizer steps from evaluation to evaluation; at checkpoints, so at the last step too, where None.
    report: told the step and the figures. best: by which figure weights are the best; the last ones where None.
    kept: the figures of the weights that `restore_best` leaves. seconds: what evaluation took in all.
    keep: told the step of a checkpoint that is the best so far.
    """

    key: ClassVar[str] = "evaluation"

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        model: nn.Module,
        *,
        every_steps: int | None,
        best: Best | None,
        report: Callable[[int, Mapping[str, float]], None],
        keep: Callable[[int], None] | None = None,
    ) -> None:
        self.evaluate = evaluate
        self.model = model
        self.every_steps = every_steps
        self.best = best
        self.report = report
        self.keep = keep
        self.best_step: int | None = None
        self._best_value = 0.0
        self._best_weights: dict[str, Tensor] = {}
        self.kept: Mapping[str, float] = {}
        self.seconds = 0.0
        self._evaluated = 0

    def stepped(self, step: int) -> None:
        """Evaluate where it is due by steps."""
        if self.every_steps and step % self.every_steps == 0:
            self._evaluate(step)

    def checkpoint(self, step: int) -> None:
        """Evaluate at a checkpoint, unless that was done at this very step."""
        self._evaluate(step)
        if self.keep and self.best_step == step:
            self.keep(step)

    def state_dict(self) -> dict[str, Any]:
        """The best so far, with its weights."""
        weights = {f"{_WEIGHTS}{name}": tensor for name, tensor in self._best_weights.items()}
        kept = {"kept": dict(self.kept), "seconds": self.seconds, "evaluated": self._evaluated}
        return {"best_step": self.best_step, "best_value": self._best_value, **kept, **weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the best of a checkpoint."""
        self.best_step, self._best_value, self.kept = state["best_step"], state["best_value"], state["kept"]
        self.seconds, self._evaluated = state["seconds"], state["evaluated"]
        self._best_weights = {
            name.removeprefix(_WEIGHTS): tensor for name, tensor in state.items() if name.startswith(_WEIGHTS)
        }
        if self.keep and self.best_step is not None:
            self.keep(self.best_step)

    def restore_best(self) -> None:
        """Put the best weights back into the model."""
        if self.best_step is None:
            return
        if is_sharded(self.model):
            load_full_state(self.model, self._best_weights)
        else:
            self.model.load_state_dict(self._best_weights)

    def _evaluate(self, step: int) -> None:
        if step == self._evaluated:
            return
        self._evaluated = step
        started = time.perf_counter()
        figures = self.evaluate()
        self.seconds += time.perf_counter() - started
        self.report(step, figures)
        if self.best is None:
            self.kept = figures
        elif self._is_best(self.best, figures):
            self.kept = figures
            self.best_step, self._best_value = step, figures[self.best.metric]
            self._best_weights = weights_of(self.model)

    def _is_best(self, best: Best, figures: Mapping[str, float]) -> bool:
        check_best(best, list(figures))
        value = figures[best.metric]
        if self.best_step is None:
            return True
        return value > self._best_value if best.mode == "max" else value < self._best_value


def check_best(best: Best, known: Sequence[str]) -> None:
    """Raises ConfigError where the best is to be chosen by a figure that no metric gives."""
    if best.metric not in known:
        raise ConfigError([f"evaluation.best.metric: no metric gives {best.metric!r}; known: {', '.join(known)}"])
