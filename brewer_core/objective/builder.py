"""Builds terms from a distillation config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from brewer_core.components import Component, Method
from brewer_core.config import ComponentRef, DistillationConfig, IntermediateMatch
from brewer_core.config.kd_loss import KDLoss, misplaced_weight
from brewer_core.errors import BrewerError, ConfigError, RequestError
from brewer_core.feature_names import PREFIX
from brewer_core.features import IN_LAYERS
from brewer_core.objective.correction import MFT_THRESHOLD, MIX_WEIGHT, Correction
from brewer_core.objective.layers import Layers, Pairs, paired
from brewer_core.objective.logit_term import LogitTerm
from brewer_core.objective.match_term import SIDES, MatchTerm, Source, no_such_layer, teacher_meant, why_absent
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

    def match_terms(self, position: int, match: IntermediateMatch) -> list[MatchTerm]:
        """The match at a position of the list; of one with `layers` a term for each pair."""
        path = f"intermediate_matches[{position}]"
        before = len(self.problems)
        self._check_projected(path, match)
        if len(self.problems) > before:
            return []
        if match.layers is None:
            written = {path: match}
        else:
            written = {f"{path}.layers[{i}]": pair for i, pair in enumerate(self._written_out(path, match))}
        terms = [self._match_term(where, each) for where, each in written.items()]
        return [term for term in terms if term is not None]

    def _match_term(self, path: str, match: IntermediateMatch) -> MatchTerm | None:
        """The term of a match that names its layers."""
        before = len(self.problems)
        own, taught = sources_of(match)
        if isinstance(own.layers, tuple) != isinstance(taught.layers, tuple):
            self.problems.append(f"{path}: layer_S and layer_T must both be one layer, or both a list")
        if len(own.each) != len(taught.each):
            self.problems.append(
                f"{path}: it reads {len(own.each)} features of the student and {len(taught.each)} of the teacher; name as many of each"
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
            written=match,
        )

    def _check_projected(self, path: str, match: IntermediateMatch) -> None:
        """Note a projection of what has no width of its own, once for all pairs."""
        own = sources_of(match)[0]
        if match.proj is not None and own.more:
            self.problems.append(
                f"{path}.proj: it brings one feature to the teacher's width, and the match reads several"
            )
        elif match.proj is not None and match.proj_dims is None and own.feature in self.student.maps:
            self.problems.append(
                f"{path}.proj: {_shown(own.feature)!r} are maps from tokens to tokens, as wide as the batch is long; leave it out, and "
                "take a loss that compares maps"
            )

    def _written_out(self, path: str, match: IntermediateMatch) -> list[IntermediateMatch]:
        """The match for each pair of its layers, in the student's order, each with its projection; none where there is a problem."""
        before = len(self.problems)
        named = self._named_teacher(path, match.teacher)
        self._check_loss(path, match)
        teachers = [self.teachers[named]] if named is not None else list(self.teachers.values())
        self._check_read(path, match, teachers)
        if len(self.problems) > before:
            return []
        return [self._of_pair(match, teachers[0], pair) for pair in self._pairs(path, match, teachers)]

    def _check_read(self, path: str, match: IntermediateMatch, teachers: list[ModelInfo]) -> None:
        """Note what the models lack of what both sides read, once for all pairs; a map needs to know all of it."""
        own, taught = sources_of(match)
        for source, side, model in ((own, "S", self.student), *((taught, "T", teacher) for teacher in teachers)):
            for each in source.each:
                mapped = isinstance(match.layers, str) and model.widths and each.feature not in model.widths
                if mapped or each.feature in model.absent:
                    why = why_absent(SIDES[side], each.feature, model.widths, model.absent)
                    self.problems.append(f"{path}.{each.key}: {why}")

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
        change: dict[str, Any] = {"layers": None, "layer_T": pair[0], "layer_S": pair[1]}
        sources = sources_of(match)
        own, taught = self.student.width(sources[0].feature, pair[1]), teacher.width(sources[1].feature, pair[0])
        alone = not sources[0].more and match.proj is None  # a projection is of one feature
        if alone and own is not None and taught is not None and own != taught:
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
        meant = teacher_meant(teacher, names)
        if meant is not None:
            return meant
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


def _mapped(match: IntermediateMatch, student: ModelInfo, teachers: list[ModelInfo]) -> Pairs:
    """The places of each pair of a map that a match names by a word. Raises RequestError where they cannot be known."""
    if match.layers == "cka":
        raise RequestError(
            'the layers of "cka" are searched on a batch, and none is at hand; `brewer run` has one, and a distiller with sample=BATCH.'
        )
    own, taught = sources_of(match)
    student_layers = _layers_of(student, own)
    found = {teacher.name: _layers_of(teacher, taught) for teacher in teachers}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name} {layers.places}" for name, layers in found.items())
        raise RequestError(
            f"the teachers differ in how many layers of {taught.feature!r} they have ({each}); name one teacher."
        )
    return paired(str(match.layers), next(iter(found.values())), student_layers)


def _layers_of(model: ModelInfo, source: Source) -> Layers:
    """The layers of what is read of a model, which has it. Raises RequestError where they are not known, or not as many of each feature."""
    if not model.widths:
        raise RequestError(
            f"how many layers {model.name!r} has is not known before a batch is read; give the distiller one, sample=BATCH, or "
            "name pairs such as [[3, 1], [6, 2]]."
        )
    layers = {}
    for each in source.each:
        layers[each.feature] = Layers.of(each.feature, len(model.widths[each.feature]))
    if len(set(layers.values())) > 1:
        told = ", ".join(f"{feature} {each.places}" for feature, each in layers.items())
        raise RequestError(
            f"{model.name!r} has another number of layers of each feature ({told}), so one map does not hold for all; give each a "
            "match of its own."
        )
    return next(iter(layers.values()))


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
