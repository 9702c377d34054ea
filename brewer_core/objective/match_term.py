"""A loss between intermediate features of student and teacher."""

from __future__ import annotations

from torch import Tensor, nn

from brewer_core.components import Method
from brewer_core.config import IntermediateMatch
from brewer_core.errors import AdaptorError, ConfigError, ShapeError
from brewer_core.features import Features
from brewer_core.objective.scalar import scalar_loss
from brewer_core.protocols import Step

SIDES = {"S": "student", "T": "teacher"}


class MatchTerm(nn.Module):
    """A loss between intermediate features: of one layer each, or of pairs of layers."""

    def __init__(
        self, path: str, match: IntermediateMatch, loss: Method, projection: nn.Module | None, width: int | None = None
    ) -> None:
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
        self.width = width
        self.state = loss.target if isinstance(loss.target, nn.Module) else None

    def forward(self, student: Features, teacher: Features, step: Step) -> Tensor:
        """The unweighted loss, a scalar."""
        own, taught = self._pick(student, self.layers[0], "S"), self._pick(teacher, self.layers[1], "T")
        if self.projection is not None:
            own = tuple(map(self._project, own)) if isinstance(own, tuple) else self._project(own)
        masks = [self._mask(features) for features in (student, teacher)]
        try:
            loss = self.loss(
                own, taught, masks[0], teacher_mask=masks[1], labels=student.first("labels"), progress=step.progress
            )
        except ShapeError as error:
            raise ShapeError(f"{self.path}: {error}") from error
        return scalar_loss(loss, f"match loss `{self.loss.component.name}`")

    def _project(self, own: Tensor) -> Tensor:
        assert self.projection is not None
        if self.width is not None and own.shape[-1] != self.width:
            raise ShapeError(
                f"{self.path}.proj: the projection takes {self.width} wide features and the student's are {own.shape[-1]} wide; "
                "give their widths as [name, student_dim, teacher_dim]."
            )
        projected: Tensor = self.projection(own)
        return projected

    def _mask(self, features: Features) -> Tensor | None:
        """[B, L]: the valid tokens, for features that have a length; a pooled one, [B, D], has nothing to mask."""
        mask = features.first("inputs_mask")
        return None if mask is None or "L" not in features.axes(self.feature).split() else mask.bool()

    def _pick(self, features: Features, layers: int | tuple[int, ...], side: str) -> Tensor | tuple[Tensor, ...]:
        found = features.get(self.feature, ())
        owner = SIDES[side]
        if not found:
            raise AdaptorError(
                f"{self.path}.feature: the {owner}'s adaptor returns no {self.feature!r}; it returns {', '.join(features) or 'nothing'}."
            )
        for layer in layers if isinstance(layers, tuple) else (layers,):
            if not -len(found) <= layer < len(found):
                raise ConfigError(
                    [f"{self.path}.layer_{side}: {no_such_layer(owner, self.feature, len(found), layer)}"],
                    "DistillationConfig",
                )
        return tuple(found[layer] for layer in layers) if isinstance(layers, tuple) else found[layers]


def no_such_layer(owner: str, feature: str, count: int, layer: int) -> str:
    """The end of an error about a layer that is out of range."""
    return f"the {owner} has {count} layers of {feature!r}, 0 to {count - 1}; there is no {layer}"


def _layer_name(layers: int | tuple[int, ...]) -> str:
    return "-".join(map(str, layers)) if isinstance(layers, tuple) else str(layers)
