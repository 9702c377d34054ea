"""What torch and transformers have by name, optimizers and schedules, and their options checked against signatures."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.optim import lr_scheduler

from brewer_core.errors import ConfigError, did_you_mean

NEEDS_A_METRIC = "moves with a metric, and the rate of a run moves with its steps"
REFUSED_OPTIMIZERS = {
    "lbfgs": "computes the loss several times in a step, and a run computes it once",
    "sparseadam": "trains with sparse gradients alone, and those of a run are dense",
    "muon": "trains matrices alone, and a model has vectors too",
}
REFUSED_SCHEDULES = {
    "reducelronplateau": NEEDS_A_METRIC,
    "reduce_lr_on_plateau": NEEDS_A_METRIC,
    "greedy": NEEDS_A_METRIC,
    "lambdalr": "is made of functions, which a config cannot hold",
    "multiplicativelr": "is made of functions, which a config cannot hold",
    "sequentiallr": "is made of other schedules, and a stage has one",
    "chainedscheduler": "is made of other schedules, and a stage has one",
}


@dataclass(frozen=True)
class Named:
    """What a config names: its name as it is written in a config, and the class or function."""

    name: str
    make: Callable[..., Any]

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What it takes."""
        return inspect.signature(self.make).parameters

    def problems(
        self, options: Mapping[str, Any], given: Mapping[str, Any], elsewhere: Mapping[str, str], path: str
    ) -> list[str]:
        """What is wrong with the names of options.

        given: what is handed over beside them. elsewhere: parameters that are no options, each with what to do instead.
        """
        free = sorted(self.parameters.keys() - elsewhere.keys())
        wrong = [
            f"{path}.options.{name}: {self._refusal(name, free, elsewhere)}" for name in options if name not in free
        ]
        needed = {name for name, p in self.parameters.items() if p.default is p.empty and name in free}
        missing = sorted(needed - options.keys() - given.keys())
        return wrong + [f"{path}.options.{name}: {self.name} requires it" for name in missing]

    def _refusal(self, name: str, free: Sequence[str], elsewhere: Mapping[str, str]) -> str:
        if name in self.parameters:
            return elsewhere[name]
        return f"{self.name} has no such option{did_you_mean(name, free)}"


@contextmanager
def asked(name: str, path: str) -> Iterator[None]:
    """An error of what bears the name, raised inside this, says where in the config the cause is."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        raise ConfigError([f"{path}: {name} refuses its settings: {_first_line(error)}"]) from error


def optimizer_named(name: str, path: str) -> Named:
    """The optimizer of a name. Raises ConfigError where there is none, or one that no run can use."""
    libraries = {"torch": _torch_optimizers, "transformers": _transformers_optimizers}
    return _named("optimizer", name, path, libraries, REFUSED_OPTIMIZERS)


def schedule_named(name: str, path: str, ours: Sequence[str]) -> Named:
    """The schedule of a name that is none of `ours`. Raises ConfigError where there is none, or one that no run can use."""
    libraries = {"torch": _torch_schedules, "transformers": _transformers_schedules}
    return _named("schedule", name, path, libraries, REFUSED_SCHEDULES, ours)


def _named(
    kind: str,
    name: str,
    path: str,
    libraries: Mapping[str, Callable[[], Mapping[str, Callable[..., Any]]]],
    refused: Mapping[str, str],
    ours: Sequence[str] = (),
) -> Named:
    """That of the first library which has it; `LIBRARY.NAME` is that of one library. A library is read only if need be."""
    wanted = name.lower()
    if wanted.rpartition(".")[2] in refused:
        raise ConfigError([f"{path}.name: {name!r} {refused[wanted.rpartition('.')[2]]}; take another {kind}"])
    known = {own.lower(): own for own in ours}
    for library, read in libraries.items():
        for own, make in read().items():
            written = f"{library}.{own}" if own.lower() in known else own
            if wanted in (written.lower(), f"{library}.{own}".lower()):
                return Named(written, make)
            if own.lower() not in refused:
                known[written.lower()] = written
    raise ConfigError([f"{path}.name: no {kind} is called {name!r}{_choices(wanted, known)}"])


def _choices(wanted: str, known: Mapping[str, str]) -> str:
    """The names that are close, whatever their case, those that begin alike before others; and all that are known."""
    alike = sorted(difflib.get_close_matches(wanted, known, n=8), key=lambda own: own[:3] != wanted[:3])
    close = [repr(known[own]) for own in alike[:2]]
    asked = f"; did you mean {' or '.join(close)}? Known" if close else "; known"
    return f"{asked}: {', '.join(known.values())}"


def _torch_optimizers() -> dict[str, Callable[..., Any]]:
    return _classes(torch.optim, torch.optim.Optimizer)


def _torch_schedules() -> dict[str, Callable[..., Any]]:
    return _classes(lr_scheduler, lr_scheduler.LRScheduler)


def _transformers_optimizers() -> dict[str, Callable[..., Any]]:
    optimization = _transformers_optimization()
    found = _classes(optimization, torch.optim.Optimizer) if optimization else {}
    return {name: own for name, own in found.items() if own.__module__ == optimization.__name__}  # no stand-ins


def _classes(module: Any, base: type) -> dict[str, Callable[..., Any]]:
    """The public classes of a module that are derived from a base, by name in order."""
    public = {name: own for name, own in sorted(vars(module).items()) if isinstance(own, type) and name[0] != "_"}
    return {name: own for name, own in public.items() if issubclass(own, base) and own is not base}


def _transformers_schedules() -> dict[str, Callable[..., Any]]:
    optimization = _transformers_optimization()
    functions = optimization.TYPE_TO_SCHEDULER_FUNCTION if optimization else {}
    return {str(kind.value): function for kind, function in functions.items()}


def _transformers_optimization() -> Any:
    """The module of transformers; None where transformers is not installed, and a run has torch's alone."""
    try:
        return importlib.import_module("transformers.optimization")
    except ImportError:
        return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
