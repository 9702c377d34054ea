"""Builds terms from a distillation config."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from brewer_core.components import Component, Method
from brewer_core.config import ComponentRef, DistillationConfig, IntermediateMatch
from brewer_core.errors import BrewerError, ConfigError, RequestError
from brewer_core.objective.layers import Layers, Pairs, paired
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
            raise ConfigError(list(dict.fromkeys(self.problems)), source)

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

    def match_terms(self, position: int, match: IntermediateMatch) -> list[MatchTerm]:
        """The match at a position of the list; of one with `layers` a term for each pair."""
        path = f"intermediate_matches[{position}]"
        if match.layers is None:
            written = {path: match}
        else:
            written = {f"{path}.layers[{i}]": pair for i, pair in enumerate(self._written_out(path, match))}
        terms = [self._match_term(where, each) for where, each in written.items()]
        return [term for term in terms if term is not None]

    def _match_term(self, path: str, match: IntermediateMatch) -> MatchTerm | None:
        """The term of a match that names its layers."""
        before = len(self.problems)
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
            written=match,
        )

    def _written_out(self, path: str, match: IntermediateMatch) -> list[IntermediateMatch]:
        """The match for each pair of its layers, in the student's order, each with its projection; none where there is a problem."""
        before = len(self.problems)
        named = self._named_teacher(path, match.teacher)
        self._check_loss(path, match)
        if len(self.problems) > before:
            return []
        teachers = [self.teachers[named]] if named is not None else list(self.teachers.values())
        return [self._of_pair(match, teachers[0], pair) for pair in self._pairs(path, match, teachers)]

    def _check_loss(self, path: str, match: IntermediateMatch) -> None:
        """The name and the options of the loss, once for all pairs."""
        try:
            if match.loss.implementation is None:
                self.registry.check(match.loss.kind, match.loss.name, match.loss.options, match.loss.positional)
        except RequestError as error:
            self.problems.append(f"{path}.loss: {str(error).rstrip('.')}")

    def _pairs(self, path: str, match: IntermediateMatch, teachers: list[ModelInfo]) -> Pairs:
        """The places of each pair; none where there is a problem."""
        if not isinstance(match.layers, str):
            return match.layers or ()
        try:
            return _mapped(match, self.student, teachers)
        except RequestError as error:
            self.problems.append(f"{path}.layers: {str(error).rstrip('.')}")
            return ()

    def _of_pair(self, match: IntermediateMatch, teacher: ModelInfo, pair: tuple[int, int]) -> IntermediateMatch:
        """The match of a pair; with a linear projection where none is given and the loss does not take the widths as they are."""
        own, taught = self.student.width(match.feature, pair[1]), teacher.width(match.feature, pair[0])
        change: dict[str, Any] = {"layers": None, "layer_T": pair[0], "layer_S": pair[1]}
        if match.proj is None and own is not None and taught is not None and own != taught:
            with torch.random.fork_rng(devices=[]), torch.no_grad():  # a stateful loss draws, and this one is let go of
                loss = bind_ref(self.registry, match.loss, student_dim=own, teacher_dim=taught)
                change["proj"] = None if _takes(loss, own, taught) else ComponentRef("projection", "linear")
        return match.model_copy(update=change)

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


def _mapped(match: IntermediateMatch, student: ModelInfo, teachers: list[ModelInfo]) -> Pairs:
    """The places of each pair of a map that a match names by a word. Raises RequestError where they cannot be known."""
    if match.layers == "cka":
        raise RequestError(
            'the layers of "cka" are searched on a batch, and none is at hand; `brewer run` has one, and a distiller with sample=BATCH.'
        )
    own, *taught = (len(model.widths.get(match.feature, ())) for model in (student, *teachers))
    for model, places in zip((student, *teachers), (own, *taught), strict=True):
        if not places and not model.widths:
            raise RequestError(
                f"how many layers {model.name!r} has is not known before a batch is read; give the distiller one, sample=BATCH, or "
                "name pairs such as [[3, 1], [6, 2]]."
            )
        if not places:
            raise RequestError(
                f"the adaptor of {model.name!r} returns no {match.feature!r}; it returns {', '.join(model.widths)}."
            )
    if len(set(taught)) > 1:
        each = ", ".join(f"{teacher.name} {places}" for teacher, places in zip(teachers, taught, strict=True))
        raise RequestError(
            f"the teachers differ in how many layers of {match.feature!r} they have ({each}); name one teacher."
        )
    return paired(str(match.layers), Layers.of(match.feature, taught[0]), Layers.of(match.feature, own))


def _takes(loss: Method, own: int, taught: int) -> bool:
    """Whether a loss compares states of these widths: it is tried on a few that are random."""
    for shape in ((2, 3), (2,)):
        with contextlib.suppress(BrewerError, RuntimeError, ValueError):
            loss(torch.rand(*shape, own), torch.rand(*shape, taught), None, progress=0.0)
            return True
    return False


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
