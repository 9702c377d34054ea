"""Builds terms from a distillation config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from brewer_core.components import Component, Method
from brewer_core.config import ComponentRef, DistillationConfig, IntermediateMatch
from brewer_core.errors import ConfigError, RequestError
from brewer_core.objective.logit_term import LogitTerm
from brewer_core.objective.match_term import SIDES, MatchTerm, Source, no_such_layer
from brewer_core.objective.weight import Weight
from brewer_core.protocols import ModelInfo
from brewer_core.registry import Registry


class Builder:
    """Builds terms from a config and remembers every problem, so that all are told at once."""

    def __init__(self, registry: Registry, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> None:
        self.registry = registry
        self.student, self.teachers = student, dict(teachers)
        self.problems: list[str] = []

    def raise_problems(self, source: str) -> None:
        """Raises ConfigError where there is any problem. source: what was read."""
        if self.problems:
            raise ConfigError(self.problems, source)

    def method(self, path: str, ref: ComponentRef | None, **sizes: Any) -> Method | None:
        """The method that a field names; None where it is absent, or a problem."""
        if ref is None:
            return None
        try:
            return bind_ref(self.registry, ref, **sizes)
        except RequestError as error:
            self.problems.append(f"{path}: {str(error).rstrip('.')}")
            return None

    def weight(self, path: str, base: float, scheduler: ComponentRef | None) -> Weight:
        """A factor with its schedule, the field beside it."""
        return Weight(base, self.method(f"{path}_scheduler", scheduler))

    def logit_term(self, config: DistillationConfig) -> LogitTerm | None:
        """The loss between the logits."""
        loss = self.method("kd_loss_type", config.kd_loss_type)
        scheduler = self.method("temperature_scheduler", config.temperature_scheduler)
        return LogitTerm(loss, config.temperature, scheduler, config.probability_shift) if loss else None

    def match_term(self, position: int, match: IntermediateMatch) -> MatchTerm | None:
        """The match at a position of the list."""
        path, before = f"intermediate_matches[{position}]", len(self.problems)
        if isinstance(match.layer_S, tuple) != isinstance(match.layer_T, tuple):
            self.problems.append(f"{path}: layer_S and layer_T must both be one layer, or both a list")
        named = self._named_teacher(path, match.teacher)
        asked = [self.teachers[named]] if named is not None else list(self.teachers.values())
        self._check_layers(path, match, asked)
        if len(self.problems) > before:
            return None
        dims = match.proj_dims or (
            self.student.width(match.feature, match.layer_S),
            self._width(path, match, asked),
        )
        projection = self.projection(f"{path}.proj", match.proj, dims)
        own = dims[1] if match.proj else dims[0]
        loss = self.method(f"{path}.loss", match.loss, student_dim=own, teacher_dim=dims[1])
        if loss is None or len(self.problems) > before:
            return None
        sources = (Source(match.feature, match.layer_S), Source(match.feature, match.layer_T))
        label = "_".join([match.feature, loss.component.name, *map(str, sources), *([named] if named else [])])
        return MatchTerm(
            path,
            label,
            sources,
            loss,
            projection,
            width=dims[0],
            group=match.proj_optimizer,
            teacher=named,
        )

    def _named_teacher(self, path: str, teacher: str | int | None) -> str | None:
        """The teacher that a match names; None where each task has one alone."""
        names = list(self.teachers)
        if teacher is None:
            if _several_at_once(self.teachers):
                self.problems.append(f"{path}.teacher: there are several teachers; name one of {', '.join(names)}")
            return None
        if isinstance(teacher, int) and -len(names) <= teacher < len(names):
            return names[teacher]
        if teacher in names:
            return str(teacher)
        self.problems.append(f"{path}.teacher: no teacher is called {teacher!r}; expected one of {', '.join(names)}")
        return names[0]

    def _check_layers(self, path: str, match: IntermediateMatch, teachers: list[ModelInfo]) -> None:
        sides = [("S", self.student, match.layer_S), *(("T", teacher, match.layer_T) for teacher in teachers)]
        for side, model, layers in sides:
            count = len(model.widths.get(match.feature, ()))
            for layer in layers if isinstance(layers, tuple) else (layers,):
                if count and not -count <= layer < count:
                    self.problems.append(
                        f"{path}.layer_{side}: {no_such_layer(SIDES[side], match.feature, count, layer)}"
                    )

    def _width(self, path: str, match: IntermediateMatch, teachers: list[ModelInfo]) -> int | None:
        widths = {teacher.name: teacher.width(match.feature, match.layer_T) for teacher in teachers}
        if len(set(widths.values())) > 1 and match.proj is not None:
            each = ", ".join(f"{name} {width}" for name, width in widths.items())
            self.problems.append(
                f"{path}.teacher: the teachers' {match.feature} differ in width ({each}); name one teacher"
            )
        return next(iter(widths.values()), None)

    def projection(self, path: str, ref: ComponentRef | None, dims: tuple[int | None, int | None]) -> nn.Module | None:
        """The projection that a field names, from the student's width to the teacher's; None where it is absent, or a problem."""
        make = self.method(path, ref)
        if make is None:
            return None
        if None in dims:
            self.problems.append(
                f"{path}: the widths of the models are not known; write [{_spelt(ref)}, student_dim, teacher_dim]"
            )
            return None
        module = make(*dims)
        if not isinstance(module, nn.Module):
            self.problems.append(
                f"{path}: `{make.component.name}` returned a {type(module).__name__}, not a torch.nn.Module"
            )
            return None
        return module


def _spelt(ref: ComponentRef | None) -> str:
    """A component as a list form names it: in quotes, or a function as it is."""
    if ref is None or ref.implementation is None:
        return f'"{ref.name}"' if ref else ""
    return ref.name if ref.name.isidentifier() else "your function"


def _several_at_once(teachers: Mapping[str, ModelInfo]) -> bool:
    """Whether any task has more than one of these teachers."""
    taught = [task for teacher in teachers.values() for task in teacher.tasks or ("",)]
    everything = any(not teacher.tasks for teacher in teachers.values())
    return len(teachers) > 1 and (everything or len(taught) > len(set(taught)))


def bind_ref(registry: Registry, ref: ComponentRef, **sizes: Any) -> Method:
    """The method that a config names, with its options set. Raises RequestError where name or options are wrong."""
    if ref.implementation is not None:
        return Component.passed(ref.kind, ref.implementation).bind(ref.options, **sizes)
    options = registry.check(ref.kind, ref.name, ref.options, ref.positional) if ref.positional else ref.options
    return registry.bind(ref.kind, ref.name, options, **sizes)
