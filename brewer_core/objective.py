"""The objective: every term of a run's loss, with its weight, schedule, projection and name.

Shapes: B rows, L length, V vocabulary or classes, N valid positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from brewer_core.components import Component, Method
from brewer_core.components.facts import Over
from brewer_core.config import ComponentRef, DistillationConfig, IntermediateMatch
from brewer_core.errors import AdaptorError, ConfigError, RequestError, ShapeError
from brewer_core.features import Counts, Features
from brewer_core.protocols import ModelInfo, Step
from brewer_core.registry import Registry

KD_TERM = "kd_loss"
LABEL_TERM = "hard_label_loss"
UNKNOWN_MODEL = ModelInfo("model")
_SIDES = {"S": "student", "T": "teacher"}


@dataclass(frozen=True)
class Weight:
    """A term's factor: its configured weight, times its schedule where it has one."""

    base: float
    schedule: Method | None = None

    def at(self, step: Step) -> float:
        """The factor at a step, from the first one on."""
        if self.schedule is None:
            return self.base
        return self.base * float(self.schedule(step.progress, step=step.step, total_steps=step.total_steps))


class Objective(nn.Module):
    """All terms of a run. What it trains (projections, stateful losses) are its submodules.

    kd: the loss between the logits, or None. matches: the losses between intermediate features. weights: the factor
    of each term by name; a term without one has the factor 1.
    """

    def __init__(
        self, kd: LogitTerm | None, matches: Sequence[MatchTerm] = (), weights: Mapping[str, Weight] | None = None
    ) -> None:
        super().__init__()
        self.kd = kd
        self.matches = nn.ModuleDict({_unique(m.name, matches[:i]): m for i, m in enumerate(matches)})
        self._weights = dict(weights or {})

    @classmethod
    def from_config(
        cls,
        config: DistillationConfig,
        registry: Registry,
        student: ModelInfo = UNKNOWN_MODEL,
        teacher: ModelInfo = UNKNOWN_MODEL,
    ) -> Objective:
        """The objective of a config; projections are drawn from torch's global generator in the order of the list.

        student, teacher: where projections without widths of their own read them.
        Raises ConfigError with every name, option or width that is wrong.
        """
        build = _Builder(registry, student, teacher)
        kd = build.logit_term(config)
        matches = [build.match_term(i, match) for i, match in enumerate(config.matches)]
        weights = {
            KD_TERM: build.weight("kd_loss_weight", config.kd_loss_weight, config.kd_loss_weight_scheduler),
            LABEL_TERM: build.weight("hard_label_weight", config.hard_label_weight, config.hard_label_weight_scheduler),
        }
        build.raise_problems()
        terms = [match for match in matches if match is not None]
        objective = cls(kd, terms, weights)
        for name, match in zip(objective.matches, config.matches, strict=True):
            objective._weights[name] = Weight(match.weight)
        return objective

    def needs(self) -> frozenset[str]:
        """Names of the features that the terms read."""
        read = {"losses", "labels", "inputs_mask"} | {match.feature for match in self._match_terms()}
        return frozenset(read | ({"logits", "logits_mask"} if self.kd else set()))

    def weights(self, step: Step) -> dict[str, float]:
        """The factor of every term at a step."""
        return {name: weight.at(step) for name, weight in self._weights.items()}

    def over(self, term: str) -> Over | Callable[[Counts], float] | Literal["labels"]:
        """What the mean of a term is over; `labels` for the student's own losses, `rows` where nothing is declared."""
        if term == LABEL_TERM:
            return "labels"
        if term == KD_TERM and self.kd is not None:
            return self.kd.over
        for name, match in self.matches.items():
            if name == term and isinstance(match, MatchTerm):
                return match.loss.component.facts.over or "rows"
        return "rows"

    def items(self, term: str, counts: Counts) -> float:
        """How many items of a batch the mean of a term is over."""
        over = self.over(term)
        if callable(over):
            return float(over(counts))
        return float(getattr(counts, "rows" if over == "batch" else over))

    def kd_terms(self, student: Features, teacher: Features, step: Step) -> dict[str, Tensor]:
        """The unweighted loss between the logits, where both sides have logits."""
        if self.kd is None or "logits" not in student or "logits" not in teacher:
            return {}
        return {KD_TERM: self.kd(student, teacher, step)}

    def match_terms(self, student: Features, teacher: Features, step: Step) -> dict[str, Tensor]:
        """The unweighted losses between intermediate features."""
        return {name: match(student, teacher, step) for name, match in self.matches.items()}

    def label_terms(self, student: Features) -> dict[str, Tensor]:
        """The sum of the student's own losses, where its adaptor returns any."""
        if not student.get("losses"):
            return {}
        means = [loss.mean() for loss in student["losses"]]
        return {LABEL_TERM: sum(means[1:], means[0])}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A parameter group for each match and loss that is trained, with the settings of its config."""
        owners: list[tuple[nn.Module | None, dict[str, Any]]] = [(self.kd, {})] + [
            (match, match.group) for match in self._match_terms()
        ]
        trained = [(list(owner.parameters()), group) for owner, group in owners if owner is not None]
        return [{"params": parameters, **group} for parameters, group in trained if parameters]

    def _match_terms(self) -> list[MatchTerm]:
        return [match for match in self.matches.values() if isinstance(match, MatchTerm)]


class LogitTerm(nn.Module):
    """The loss between the logits of student and teacher, summed over their heads.

    temperature, scheduler: the base temperature, and what adjusts it to the logits.
    probability_shift: exchange the teacher's largest logit with that of the true label.
    """

    def __init__(self, loss: Method, temperature: float, scheduler: Method | None, probability_shift: bool) -> None:
        super().__init__()
        self.loss = loss
        self.temperature = temperature
        self.scheduler = scheduler
        self.probability_shift = probability_shift
        self.state = loss.target if isinstance(loss.target, nn.Module) else None

    @property
    def over(self) -> Over | Callable[[Counts], float]:
        """What its mean is over: the whole batch where the temperature depends on the batch."""
        depends = self.scheduler is not None and self.scheduler.component.facts.over == "batch"
        return "batch" if depends else self.loss.component.facts.over or "rows"

    def forward(self, student: Features, teacher: Features, step: Step) -> Tensor:
        """The unweighted loss, a scalar."""
        heads, taught = student["logits"], teacher["logits"]
        if len(heads) != len(taught):
            raise AdaptorError(
                f"the student's adaptor returns {len(heads)} logits and the teacher's {len(taught)}; return equally many."
            )
        student_masks, teacher_masks = _masks(student, len(heads)), _masks(teacher, len(heads))
        labels = student.get("labels", ())
        losses = [
            self._head(head, teach, mask, teacher_mask, labels[i] if i < len(labels) else None, step)
            for i, (head, teach, mask, teacher_mask) in enumerate(
                zip(heads, taught, student_masks, teacher_masks, strict=True)
            )
        ]
        return sum(losses[1:], losses[0])

    def _head(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        teacher_mask: Tensor | None,
        labels: Tensor | None,
        step: Step,
    ) -> Tensor:
        if self.probability_shift:
            teacher = probability_shift(teacher, _needed(labels))
        valid = (_select(student, mask), _select(teacher, teacher_mask))
        if valid[0].shape[0] != valid[1].shape[0]:
            raise ShapeError(
                f"student logits {tuple(student.shape)} have {valid[0].shape[0]} valid positions and teacher logits "
                f"{tuple(teacher.shape)} {valid[1].shape[0]}; logits and logits_mask must agree."
            )
        temperature = self._temperature(*valid, step)
        available = {"progress": step.progress, "labels": labels}
        if "mask" in self.loss.component.signature.inputs and student.dim() == 3:
            whole = (
                torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device) if mask is None else mask.bool()
            )
            return self._scalar(
                self.loss(student, teacher, _spread(temperature, whole, self.temperature), mask=whole, **available)
            )
        if labels is not None and student.dim() == 3:
            available["labels"] = labels.flatten(0, 1) if mask is None else labels[mask.bool()]
        return self._scalar(self.loss(*valid, temperature, **available))

    def _temperature(self, student: Tensor, teacher: Tensor, step: Step) -> float | Tensor:
        if self.scheduler is None:
            return self.temperature
        scheduled = self.scheduler(student.detach(), teacher.detach(), self.temperature, progress=step.progress)
        return scheduled.detach() if isinstance(scheduled, Tensor) else float(scheduled)

    def _scalar(self, loss: Any) -> Tensor:
        return _scalar(loss, f"kd loss `{self.loss.component.name}`")


class MatchTerm(nn.Module):
    """A loss between intermediate features: of one layer each, or of pairs of layers."""

    def __init__(self, path: str, match: IntermediateMatch, loss: Method, projection: nn.Module | None) -> None:
        super().__init__()
        self.path = path
        self.feature = match.feature
        self.layers = (match.layer_S, match.layer_T)
        layers = [_layer_name(match.layer_S), _layer_name(match.layer_T)]
        feature = match.feature.replace(".", "/")  # torch refuses a dot in a module's name
        self.name = "_".join([feature, loss.component.name, *layers])
        self.loss = loss
        self.group = dict(match.proj_optimizer or {})
        self.projection = projection
        self.state = loss.target if isinstance(loss.target, nn.Module) else None

    def forward(self, student: Features, teacher: Features, step: Step) -> Tensor:
        """The unweighted loss, a scalar."""
        own, taught = self._pick(student, self.layers[0], "S"), self._pick(teacher, self.layers[1], "T")
        if self.projection is not None:
            own = tuple(map(self.projection, own)) if isinstance(own, tuple) else self.projection(own)
        masks = [self._mask(features) for features in (student, teacher)]
        try:
            loss = self.loss(
                own, taught, masks[0], teacher_mask=masks[1], labels=student.first("labels"), progress=step.progress
            )
        except ShapeError as error:
            raise ShapeError(f"{self.path}: {error}") from error
        return _scalar(loss, f"match loss `{self.loss.component.name}`")

    def _mask(self, features: Features) -> Tensor | None:
        """[B, L]: the valid tokens, for features that have a length; a pooled one, [B, D], has nothing to mask."""
        mask = features.first("inputs_mask")
        return None if mask is None or "L" not in features.axes(self.feature).split() else mask.bool()

    def _pick(self, features: Features, layers: int | tuple[int, ...], side: str) -> Tensor | tuple[Tensor, ...]:
        found = features.get(self.feature, ())
        owner = _SIDES[side]
        if not found:
            raise AdaptorError(
                f"{self.path}.feature: the {owner}'s adaptor returns no {self.feature!r}; it returns {', '.join(features) or 'nothing'}."
            )
        for layer in layers if isinstance(layers, tuple) else (layers,):
            if not -len(found) <= layer < len(found):
                raise ConfigError(
                    [f"{self.path}.layer_{side}: {_no_such_layer(owner, self.feature, len(found), layer)}"],
                    "DistillationConfig",
                )
        return tuple(found[layer] for layer in layers) if isinstance(layers, tuple) else found[layers]


def probability_shift(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with the largest exchanged for that of the true label; rows with a negative label stay.

    logits: [B, C] or [B, L, V], not changed. labels: [B] or [B, L].
    Raises ShapeError where their shapes do not belong together.
    """
    if logits.shape[:-1] != labels.shape:
        raise ShapeError(
            f"probability_shift: labels {tuple(labels.shape)} do not belong to logits {tuple(logits.shape)}."
        )
    largest = logits.argmax(-1, keepdim=True)
    truth = torch.where(labels < 0, largest.squeeze(-1), labels).unsqueeze(-1)
    shifted = logits.scatter(-1, largest, logits.gather(-1, truth))
    return shifted.scatter(-1, truth, logits.gather(-1, largest))


class _Builder:
    """Builds terms from a config and remembers every problem, so that all are told at once."""

    def __init__(self, registry: Registry, student: ModelInfo, teacher: ModelInfo) -> None:
        self.registry = registry
        self.student, self.teacher = student, teacher
        self.problems: list[str] = []

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError(self.problems, "DistillationConfig")

    def method(self, path: str, ref: ComponentRef | None, **sizes: Any) -> Method | None:
        if ref is None:
            return None
        try:
            return bind_ref(self.registry, ref, **sizes)
        except RequestError as error:
            self.problems.append(f"{path}: {str(error).rstrip('.')}")
            return None

    def weight(self, path: str, base: float, scheduler: ComponentRef | None) -> Weight:
        return Weight(base, self.method(f"{path}_scheduler", scheduler))

    def logit_term(self, config: DistillationConfig) -> LogitTerm | None:
        loss = self.method("kd_loss_type", config.kd_loss_type)
        scheduler = self.method("temperature_scheduler", config.temperature_scheduler)
        return LogitTerm(loss, config.temperature, scheduler, config.probability_shift) if loss else None

    def match_term(self, position: int, match: IntermediateMatch) -> MatchTerm | None:
        path = f"intermediate_matches[{position}]"
        if isinstance(match.layer_S, tuple) != isinstance(match.layer_T, tuple):
            self.problems.append(f"{path}: layer_S and layer_T must both be one layer, or both a list")
        before = len(self.problems)
        self._check_layers(path, match)
        dims = match.proj_dims or (
            self.student.width(match.feature, match.layer_S),
            self.teacher.width(match.feature, match.layer_T),
        )
        projection = self._projection(path, match, dims)
        own = dims[1] if match.proj else dims[0]
        loss = self.method(f"{path}.loss", match.loss, student_dim=own, teacher_dim=dims[1])
        return MatchTerm(path, match, loss, projection) if loss and len(self.problems) == before else None

    def _check_layers(self, path: str, match: IntermediateMatch) -> None:
        for side, model, layers in (("S", self.student, match.layer_S), ("T", self.teacher, match.layer_T)):
            count = len(model.widths.get(match.feature, ()))
            for layer in layers if isinstance(layers, tuple) else (layers,):
                if count and not -count <= layer < count:
                    self.problems.append(
                        f"{path}.layer_{side}: {_no_such_layer(_SIDES[side], match.feature, count, layer)}"
                    )

    def _projection(self, path: str, match: IntermediateMatch, dims: tuple[int | None, int | None]) -> nn.Module | None:
        make = self.method(f"{path}.proj", match.proj)
        if make is None:
            return None
        if None in dims:
            assert match.proj is not None
            self.problems.append(
                f'{path}.proj: the widths of the models are not known; write ["{match.proj.name}", student_dim, teacher_dim]'
            )
            return None
        module = make(*dims)
        if not isinstance(module, nn.Module):
            self.problems.append(
                f"{path}.proj: `{make.component.name}` returned a {type(module).__name__}, not a torch.nn.Module"
            )
            return None
        return module


def bind_ref(registry: Registry, ref: ComponentRef, **sizes: Any) -> Method:
    """The method that a config names, with its options set. Raises RequestError where name or options are wrong."""
    if ref.implementation is not None:
        return Component.passed(ref.kind, ref.implementation).bind(ref.options, **sizes)
    options = registry.check(ref.kind, ref.name, ref.options, ref.positional) if ref.positional else ref.options
    return registry.bind(ref.kind, ref.name, options, **sizes)


def _masks(features: Features, heads: int) -> Sequence[Tensor | None]:
    masks = features.get("logits_mask", ())
    if not masks:
        return [None] * heads
    if len(masks) not in (1, heads):
        raise AdaptorError(
            f"an adaptor returns {heads} logits and {len(masks)} under `logits_mask`; return one mask, or one for each."
        )
    return masks * heads if len(masks) == 1 else masks


def _select(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """[N, V]: the valid positions of [B, L, V]; a mask has no effect on [B, C]."""
    if tensor.dim() != 3:
        return tensor
    return tensor.reshape(-1, tensor.shape[-1]) if mask is None else tensor[mask.bool()]


def _spread(temperature: float | Tensor, mask: Tensor, base: float) -> float | Tensor:
    """[B, L]: the temperatures of the valid positions in their places, the base temperature elsewhere."""
    if not isinstance(temperature, Tensor) or temperature.dim() == 0:
        return temperature
    return torch.full(mask.shape, base, dtype=temperature.dtype, device=mask.device).masked_scatter(mask, temperature)


def _scalar(loss: Any, owner: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ShapeError(f"the {owner} returned {got}; a loss returns the mean over its items, a scalar.")
    return loss


def _needed(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise AdaptorError(
            "probability_shift needs `labels`, one for each of the logits; the student's adaptor must return them."
        )
    return labels


def _no_such_layer(owner: str, feature: str, count: int, layer: int) -> str:
    return f"the {owner} has {count} layers of {feature!r}, 0 to {count - 1}; there is no {layer}"


def _layer_name(layers: int | tuple[int, ...]) -> str:
    return "-".join(map(str, layers)) if isinstance(layers, tuple) else str(layers)


def _unique(name: str, before: Sequence[MatchTerm]) -> str:
    times = sum(match.name == name for match in before)
    return f"{name}#{times + 1}" if times else name
