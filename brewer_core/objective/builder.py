"""Builds terms from a distillation config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from brewer_core.components import Component, Method
from brewer_core.config import ComponentRef, DistillationConfig, IntermediateMatch
from brewer_core.config.kd_loss import KDLoss, misplaced_weight
from brewer_core.errors import ConfigError, RequestError
from brewer_core.objective.correction import MFT_THRESHOLD, MIX_WEIGHT, Correction
from brewer_core.objective.logit_term import LogitTerm
from brewer_core.objective.match_term import SIDES, MatchTerm, Source, no_such_layer
from brewer_core.objective.weight import Weight
from brewer_core.protocols import ModelInfo
from brewer_core.registry import Registry

KD_TERM = "kd_loss"


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

    def logit_term(self, config: DistillationConfig) -> tuple[LogitTerm | None, dict[str, Weight]]:
        """The losses between the logits, and the factor of each by the name of its term."""
        losses = [self._kd_loss(path, each.loss) for path, each in _paths(config)]
        scheduler = self.method("temperature_scheduler", config.temperature_scheduler)
        names = kd_names([loss.component.name for loss in losses if loss is not None])
        of_all = self.weight("kd_loss_weight", config.kd_loss_weight, config.kd_loss_weight_scheduler)
        own = [
            None if path == "kd_loss_type" else self.weight(f"{path}.weight", each.weight, each.weight_scheduler)
            for path, each in _paths(config)
        ]
        found = [loss for loss in losses if loss is not None]
        if len(found) < len(losses):
            return None, {}
        term = LogitTerm(dict(zip(names, found, strict=True)), config.temperature, scheduler, _correction(config))
        return term, {name: replace(of_all, times=times) for name, times in zip(names, own, strict=True)}

    def _kd_loss(self, path: str, ref: ComponentRef) -> Method | None:
        """The loss that a config names; a weight among its options is told apart from an option of that name."""
        weights = [name for name in ("weight", "weight_scheduler") if name in ref.options]
        try:
            known = (
                {option.name for option in self.registry.get(ref.kind, ref.name).signature.options}
                if weights
                else set()
            )
        except RequestError:  # the name is wrong, which is said below
            known = set(weights)
        if set(weights) <= known:
            return self.method(path, ref)
        self.problems.append(f"{path}: {misplaced_weight({'name': ref.name, **ref.options})}")
        return None

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


def kd_names(losses: Sequence[str]) -> list[str]:
    """Names of the terms of losses between logits: `kd_loss` of one alone, else `kd_loss_kl`, and `kd_loss_kl#2` of the next."""
    if len(losses) == 1:
        return [KD_TERM]
    return [
        f"{KD_TERM}_{loss}" + (f"#{n}" if (n := losses[: i + 1].count(loss)) > 1 else "")
        for i, loss in enumerate(losses)
    ]


def _paths(config: DistillationConfig) -> Iterator[tuple[str, KDLoss]]:
    """The losses between the logits, each with its place in the config."""
    for i, each in enumerate(config.kd_losses):
        yield ("kd_loss_type" if isinstance(config.kd_loss_type, ComponentRef) else f"kd_loss_type[{i}]"), each


def _correction(config: DistillationConfig) -> Correction | None:
    given = config.correction
    if given is None:
        return None
    amounts = {
        "mix": MIX_WEIGHT if given.weight is None else given.weight,
        "mft": MFT_THRESHOLD if given.threshold is None else given.threshold,
    }
    key = "probability_shift" if config.probability_shift else "teacher_correction"
    return Correction(given.name, amounts.get(given.name, 0.0), key)


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
