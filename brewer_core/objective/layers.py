"""Which layer of the teacher teaches which of the student, where a match names a map of layers by a word.

Layers are counted from 1. Their places, the indices into what an adaptor returns, count from 0. Of `hidden` the first place is
that of the embeddings' output, as in the hidden states of Hugging Face's models; other features have a place for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from brewer_core.errors import RequestError
from brewer_core.features import WITHOUT_LAYERS

Pairs: TypeAlias = tuple[tuple[int, int], ...]
"""Places of a teacher's layer and of a student's."""

_WITH_EMBEDDINGS = ("hidden", "decoder_hidden")


@dataclass(frozen=True)
class Layers:
    """The layers of a feature of one model. embeddings: whether the first place is that of the embeddings' output."""

    count: int
    embeddings: bool

    @classmethod
    def of(cls, feature: str, places: int) -> Layers:
        """Those of a feature by its name and its number of places. Raises RequestError for one that has no layers."""
        if feature in WITHOUT_LAYERS and places == 1:
            raise RequestError(f"{feature!r} has no layers to map; leave layers out, or name a feature that has some.")
        embeddings = feature in _WITH_EMBEDDINGS
        return cls(places - embeddings, embeddings)

    @property
    def places(self) -> int:
        """How many tensors there are, that of the embeddings among them."""
        return self.count + self.embeddings

    def place(self, layer: int) -> int:
        """The place of a layer; layer 0 is the embeddings' output."""
        return layer if self.embeddings else layer - 1


def paired(word: str, teacher: Layers, student: Layers) -> Pairs:
    """The pairs of a map, in the order of the student's layers.

    uniform: layer m of the student learns from layer g(m) = m * L_T / L_S of the teacher; where that is no whole number, from the
    nearest one, and of two the upper. Embeddings learn from embeddings, g(0) = 0, where both features have them.
    skip: from the same layers, every (L_T / L_S)-th one, without the embeddings. last: from the last L_S layers. first: from the
    first ones.

    Raises RequestError where there are no layers, and for skip, last and first where the teacher has fewer than the student.
    Sources: uniform, Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, section 3.1, of layers that divide; skip and last, Sun et al.
    2019 (PKD), arXiv:1908.09355, section 3.2, which leaves out the student's last layer, as is not done here.
    """
    if min(teacher.count, student.count) < 1:
        raise RequestError("there is no layer to map; name the layers, or another feature.")
    if word != "uniform" and teacher.count < student.count:
        raise RequestError(
            f"the teacher has {teacher.count} layers and the student {student.count}, and {word!r} needs as many at least; use "
            '"uniform", or name pairs.'
        )
    chosen = [(_MAPS[word](m, teacher.count, student.count), m) for m in range(1, student.count + 1)]
    if word == "uniform" and teacher.embeddings and student.embeddings:
        chosen = [(0, 0), *chosen]
    return tuple((teacher.place(t), student.place(s)) for t, s in chosen)


def _spread(m: int, teacher: int, student: int) -> int:
    # half a layer is added before the division is cut off: round() would go to the even one of two
    return max(1, (2 * m * teacher + student) // (2 * student))


_MAPS: Mapping[str, Callable[[int, int, int], int]] = MappingProxyType(
    {
        "uniform": _spread,
        "skip": _spread,
        "last": lambda m, teacher, student: teacher - student + m,
        "first": lambda m, _teacher, _student: m,
    }
)
