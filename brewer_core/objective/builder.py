"""Builds terms from a distillation config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from brewer_core.components import Component, Method
from brewer_core.config import ComponentRef, DistillationConfig, IntermediateMatch
from brewer_core.config.kd_loss import KDLoss, misplaced_weight
from brewer_core.errors import ConfigError, RequestError
from brewer_core.feature_names import PREFIX
from brewer_core.features import IN_LAYERS
from brewer_core.objective.correction import MFT_THRESHOLD, MIX_WEIGHT, Correction
from brewer_core.objective.logit_term import LogitTerm
from brewer_core.objective.match_term import SIDES, MatchTerm, Source, no_such_layer
from brewer_core.objective.weight import Weight
from brewer_core.protocols import ModelInfo
from brewer_core.registry import Registry

KD_TERM = "kd_loss"
_BOTH: tuple[Literal["S"], Literal["T"]] = ("S", "T")


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
        own, taught = sources_of(match)
        if isinstance(own.layers, tuple) != isinstance(taught.layers, tuple):
            self.problems.append(f"{path}: layer_S and layer_T must both be one layer, or both a list")
        if len(own.each) != len(taught.each):
            self.problems.append(
                f"{path}: it reads {len(own.each)} features of the student and {len(taught.each)} of the teacher; name as many of each"
            )
        if own.more and match.proj is not None:
            self.problems.append(
                f"{path}.proj: it brings one feature to the teacher's width, and the match reads several"
            )
        named = self._named_teacher(path, match.teacher)
        asked = [self.teachers[named]] if named is not None else list(self.teachers.values())
        self._check_source(path, own, "S", self.student)
        for teacher in asked:
            self._check_source(path, taught, "T", teacher)
        if len(self.problems) > before:
            return None
        dims = match.proj_dims or (self.student.width(own.feature, own.layers), self._width(path, taught, match, asked))
        projection = self.projection(f"{path}.proj", match.proj, dims)
        student_dim = dims[1] if match.proj else dims[0]
        loss = self.method(f"{path}.loss", match.loss, student_dim=student_dim, teacher_dim=dims[1])
        if loss is None or len(self.problems) > before:
            return None
        return MatchTerm(
            path,
            _label(loss.component.name, own, taught, named),
            (own, taught),
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

    def _check_source(self, path: str, source: Source, side: str, model: ModelInfo) -> None:
        """Note what a model lacks of what a side of a match reads, as far as the model is known."""
        owner = SIDES[side]
        for each in source.each:
            if each.feature in IN_LAYERS and each.layers is None:
                self.problems.append(
                    f'{path}.{each.key}: {each.feature!r} has a tensor for each layer; name one, as in "{each.feature}[0]", or give '
                    f"layer_{side}"
                )
            if each.feature in model.absent:
                self.problems.append(f"{path}.{each.key}: {model.absent[each.feature]}")
            count = len(model.widths.get(each.feature, ()))
            for layer in each.layers if isinstance(each.layers, tuple) else (each.layers,):
                if layer is not None and count and not -count <= layer < count:
                    self.problems.append(
                        f"{path}.{each.layer_key or f'layer_{side}'}: {no_such_layer(owner, each.feature, count, layer)}"
                    )

    def _width(self, path: str, source: Source, match: IntermediateMatch, teachers: list[ModelInfo]) -> int | None:
        widths = {teacher.name: teacher.width(source.feature, source.layers) for teacher in teachers}
        if len(set(widths.values())) > 1 and match.proj is not None:
            each = ", ".join(f"{name} {width}" for name, width in widths.items())
            self.problems.append(
                f"{path}.teacher: the teachers' {_shown(source.feature)} differ in width ({each}); name one teacher"
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


def sources_of(match: IntermediateMatch) -> tuple[Source, Source]:
    """Where a match reads, of the student and of the teacher."""
    own, taught = (_source(match, side) for side in _BOTH)
    return own, taught


def _source(match: IntermediateMatch, side: Literal["S", "T"]) -> Source:
    key = match.key(side)
    each = [
        Source(read.feature, read.layers, key=key, layer_key=key if read.in_brackets else f"layer_{side}")
        for read in match.reads(side)
    ]
    return replace(each[0], more=tuple(each[1:]))


def _label(loss: str, own: Source, taught: Source, teacher: str | None) -> str:
    """The name of a match in the logs: `hidden_hidden_mse_2_4`; without layers where there are none."""
    names = dict.fromkeys("+".join(_shown(each.feature) for each in source.each) for source in (own, taught))
    layers = [str(source) for source in (own, taught) if source.layers is not None]
    return "_".join([*names, loss, *layers, *([teacher] if teacher else [])])


def _shown(feature: str) -> str:
    return feature.removeprefix(PREFIX)


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
