"""A loss between intermediate features of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from brewer_core.components import Method
from brewer_core.components.facts import Over
from brewer_core.config import IntermediateMatch
from brewer_core.errors import AdaptorError, ConfigError, RequestError, ShapeError, full_stop
from brewer_core.feature_names import PREFIX
from brewer_core.features import SHORT_NAMES, Counts, Features, names_of_layers
from brewer_core.objective.scalar import scalar_loss
from brewer_core.protocols import Step

SIDES = {"S": "student", "T": "teacher"}


@dataclass(frozen=True)
class Source:
    """Where one side of a match reads its tensors: a feature and a layer of it, several layers, or None for all of it.

    more: further features, whose tensors follow. key: what the config names it under, `feature` or `feature_S`; layer_key: the same for
    its layers.
    """

    feature: str
    layers: int | tuple[int, ...] | None = None
    more: tuple[Source, ...] = ()
    key: str = "feature"
    layer_key: str = ""

    @property
    def each(self) -> tuple[Source, ...]:
        """Every feature that is read, in order."""
        return (self, *self.more)

    @property
    def names(self) -> frozenset[str]:
        """What is read, as needs name it."""
        return frozenset().union(*(names_of_layers(each.feature, each.layers) for each in self.each))

    @property
    def by_row(self) -> bool:
        """Whether it is known to have one entry a row, and no tokens."""
        return all(tuple(SHORT_NAMES.get(each.feature, {}).values()) == ("B D",) for each in self.each)

    def __str__(self) -> str:
        return "-".join(map(str, self.layers)) if isinstance(self.layers, tuple) else str(self.layers)


class MatchTerm(nn.Module):
    """A loss between intermediate features: of one layer each, or of pairs of layers.

    path: where it stands in the config. name: in the logs. teacher: the name of its teacher among several; None for the
    one that is asked. group: the optimizer's settings for what it trains. width: what the projection takes. written: the match of
    a config that it is of, with one pair of the layers where that names several.
    """

    def __init__(
        self,
        path: str,
        name: str,
        sources: tuple[Source, Source],
        loss: Method,
        projection: Any = None,
        *,
        width: int | None = None,
        group: Mapping[str, Any] | None = None,
        teacher: str | None = None,
        written: IntermediateMatch | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.name = name.replace(".", "/")  # torch refuses a dot in a module's name
        self.sources = sources
        self.loss = loss
        self.group = dict(group or {})
        self.projection = projection
        self.width = width
        self.teacher = teacher
        self.written = written
        self.state = loss.target if isinstance(loss.target, nn.Module) else None

    @property
    def over(self) -> Over | Callable[[Counts], float]:
        """What its mean is over: what the loss declares, but rows of a feature that has no tokens."""
        declared = self.loss.component.facts.over or "rows"
        return "rows" if declared in ("tokens", "token_pairs") and self.sources[0].by_row else declared

    def answering(self, teachers: Mapping[str, Features]) -> Features | None:
        """The features of its teacher; None where that one is not among these."""
        if self.teacher is not None:
            return teachers.get(self.teacher)
        if len(teachers) > 1:
            raise ConfigError([f"{self.path}.teacher: name one of {', '.join(teachers)}"], "DistillationConfig")
        return next(iter(teachers.values()), None)

    def forward(self, student: Features, teacher: Features, step: Step) -> Tensor:
        """The unweighted loss, a scalar."""
        own, taught = self._pick(student, self.sources[0], "S"), self._pick(teacher, self.sources[1], "T")
        if self.projection is not None:
            own = tuple(map(self._project, own)) if isinstance(own, tuple) else self._project(own)
        masks = [_mask(features, source) for features, source in zip((student, teacher), self.sources, strict=True)]
        try:
            loss = self.loss(
                own, taught, masks[0], teacher_mask=masks[1], labels=student.first("labels"), progress=step.progress
            )
        except (ShapeError, RequestError) as error:
            raise type(error)(f"{self.path}: {error}") from error
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

    def _pick(self, features: Features, source: Source, side: str) -> Tensor | tuple[Tensor, ...]:
        """The tensor of a side, or a tuple where it reads several layers or features."""
        if not source.more:
            return self._one(features, source, side)
        picked = [self._one(features, each, side) for each in source.each]
        return tuple(tensor for each in picked for tensor in (each if isinstance(each, tuple) else (each,)))

    def _one(self, features: Features, source: Source, side: str) -> Tensor | tuple[Tensor, ...]:
        found, layers = features.get(source.feature, ()), source.layers
        owner = SIDES[side]
        if not found:
            why = why_absent(owner, source.feature, features, features.absent)
            raise AdaptorError(full_stop(f"{self.path}.{source.key}: {why}"))
        if layers is None:
            return found[0] if len(found) == 1 else found
        for layer in layers if isinstance(layers, tuple) else (layers,):
            if not -len(found) <= layer < len(found):
                raise ConfigError(
                    [
                        f"{self.path}.{source.layer_key or f'layer_{side}'}: "
                        f"{no_such_layer(owner, source.feature, len(found), layer)}"
                    ],
                    "DistillationConfig",
                )
            if found[layer] is None:
                raise AdaptorError(
                    f"{self.path}: the {owner} has no tensor as layer {layer} of {source.feature!r}, but None; name a layer that has one."
                )
        return tuple(found[layer] for layer in layers) if isinstance(layers, tuple) else found[layers]


def teacher_meant(teacher: str | int, names: Sequence[str]) -> str | None:
    """The one of several teachers that a match means, by its name or its position in the list; None where there is none such."""
    if isinstance(teacher, int):
        return names[teacher] if -len(names) <= teacher < len(names) else None
    return teacher if teacher in names else None


def why_absent(owner: str, feature: str, known: Iterable[str], absent: Mapping[str, str]) -> str:
    """The end of an error about a feature that a model lacks.

    known: the features that there are. absent: of those that were looked for inside the model, why they are not.
    """
    returned = [name for name in known if not name.startswith(PREFIX)]  # a path's was captured
    return absent.get(
        feature, f"the {owner}'s adaptor returns no {feature!r}; it returns {', '.join(returned) or 'nothing'}"
    )


def no_such_layer(owner: str, feature: str, count: int, layer: int) -> str:
    """The end of an error about a layer that is out of range."""
    return f"the {owner} has {count} layers of {feature!r}, 0 to {count - 1}; there is no {layer}"


def _mask(features: Features, source: Source) -> Tensor | None:
    """[B, L]: the valid tokens, for features that have such a length; a pooled one, [B, D], has nothing to mask.

    Of a decoder that has an encoder it is [B, M], where the adaptor returns it as `decoder_mask`. Attention of one to the other has
    none: its queries and keys are of two lengths, and what is padding among its keys has the probability 0.
    """
    axes = {axis for each in source.each for axis in features.axes(each.feature).split()}
    mask = features.first({"L": "inputs_mask", "M": "decoder_mask"}.get("".join(axes & {"L", "M"}), ""))
    return None if mask is None else mask.bool()
