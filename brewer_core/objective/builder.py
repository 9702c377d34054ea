"""Builds terms from a distillation config."""

from __future__ import annotations

from typing import Any

from torch import nn

from brewer_core.components import Component, Method
from brewer_core.config import ComponentRef, DistillationConfig, IntermediateMatch
from brewer_core.errors import ConfigError, RequestError
from brewer_core.objective.logit_term import LogitTerm
from brewer_core.objective.match_term import SIDES, MatchTerm, no_such_layer
from brewer_core.objective.weight import Weight
from brewer_core.protocols import ModelInfo
from brewer_core.registry import Registry


class Builder:
    """Builds terms from a config and remembers every problem, so that all are told at once."""

    def __init__(self, registry: Registry, student: ModelInfo, teacher: ModelInfo) -> None:
        self.registry = registry
        self.student, self.teacher = student, teacher
        self.problems: list[str] = []

    def raise_problems(self) -> None:
        """Raises ConfigError where there is any problem."""
        if self.problems:
            raise ConfigError(self.problems, "DistillationConfig")

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
        self._check_layers(path, match)
        if len(self.problems) > before:
            return None
        dims = match.proj_dims or (
            self.student.width(match.feature, match.layer_S),
            self.teacher.width(match.feature, match.layer_T),
        )
        projection = self._projection(path, match, dims)
        own = dims[1] if match.proj else dims[0]
        loss = self.method(f"{path}.loss", match.loss, student_dim=own, teacher_dim=dims[1])
        return MatchTerm(path, match, loss, projection, dims[0]) if loss and len(self.problems) == before else None

    def _check_layers(self, path: str, match: IntermediateMatch) -> None:
        for side, model, layers in (("S", self.student, match.layer_S), ("T", self.teacher, match.layer_T)):
            count = len(model.widths.get(match.feature, ()))
            for layer in layers if isinstance(layers, tuple) else (layers,):
                if count and not -count <= layer < count:
                    self.problems.append(
                        f"{path}.layer_{side}: {no_such_layer(SIDES[side], match.feature, count, layer)}"
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
