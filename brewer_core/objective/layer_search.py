"""The map of layers that is searched: to each layer of the student the layer of the teacher that is most alike.

Shapes: B rows, L tokens, D width, N valid tokens, S layers of the student, T layers of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from brewer_core.config import DistillationConfig, IntermediateMatch
from brewer_core.errors import ConfigError, RequestError
from brewer_core.features import Features
from brewer_core.objective.layers import Layers, Pairs
from brewer_core.objective.match_term import SIDES, teacher_meant
from brewer_core.protocols import ModelInfo

TOKENS = 1024
"""How many tokens layers are compared on at most, for which the products of all pairs are made."""

_BOTH: tuple[Literal["S", "T"], ...] = ("S", "T")

Compared: TypeAlias = Iterable[tuple[Features, Features]]
"""What a student and a teacher give for the same batches, one after the other, as far as they are asked for."""


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment of two sets of states of the same tokens, from the `normed_products` of each.

    one, other: [N, N]. Returns a number in [0, 1]; 1 where the states of one are those of the other turned, moved or scaled, and 0 where
    either do not vary.
    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3, linear CKA: |Y'X|^2 / (|X'X| |Y'Y|), of centred X and Y.
    """
    return float((one * other).sum())


def normed_products(states: Tensor) -> Tensor:
    """[N, N]: the products of centred states, of norm 1; |Y'X|^2 is the sum of products of XX' and YY'."""
    centred = states.double() - states.double().mean(0)
    products = centred @ centred.mT
    norm = products.norm()
    return (products / norm if norm > 0 else products).cpu()  # the models may be tried on different devices


def most_alike(likeness: Sequence[Sequence[float]]) -> list[int]:
    """The column of each row, from 0, with the greatest sum of all that rise from row to row.

    Where there are fewer columns than rows they do not fall. Of equal sums the one whose columns are lower from the end on.
    likeness: S rows of T columns.
    """
    width = len(likeness[0])
    least = 1 if width >= len(likeness) else 0
    best, before = list(likeness[0]), list[list[int]]()
    for row in likeness[1:]:
        leading: list[int] = []  # the best column of the row before for each one
        for column in range(width):
            allowed = range(column - least + 1)
            leading.append(max(allowed, key=lambda c: (best[c], -c), default=-1))
        best = [row[c] + best[lead] if lead >= 0 else float("-inf") for c, lead in enumerate(leading)]
        before.append(leading)
    column = max(range(width), key=lambda c: (best[c], -c))
    columns = [column]
    for leading in reversed(before):
        column = leading[column]
        columns.append(column)
    return columns[::-1]


def searched(
    config: DistillationConfig, compared: Callable[[str], Compared], infos: Mapping[str, ModelInfo]
) -> dict[int, Pairs]:
    """The pairs of each match whose `layers` are to be searched, by its position, from features of the same rows.

    compared: for the name of a teacher. infos: of each teacher by name. Layers alone are mapped, the embeddings' output is not.
    Raises ConfigError with everything for which layers cannot be compared.
    """
    found, problems = dict[int, Pairs](), list[str]()
    for position, match in enumerate(config.matches):
        if match.layers != "cka":
            continue
        try:
            found[position] = _pairs(match, compared(_teacher(match, infos)))
        except ConfigError as error:
            problems += [f"intermediate_matches[{position}].{problem}" for problem in error.problems]
        except RequestError as error:
            problems.append(f"intermediate_matches[{position}].layers: {str(error).rstrip('.')}")
    if problems:
        raise ConfigError(problems, "DistillationConfig")
    return found


def with_pairs(config: DistillationConfig, found: Mapping[int, Pairs]) -> DistillationConfig:
    """The config with pairs in place of the words that they were searched for."""
    if not found:
        return config
    matches = [
        match.model_copy(update={"layers": found[position]}) if position in found else match
        for position, match in enumerate(config.matches)
    ]
    return config.model_copy(update={"intermediate_matches": tuple(matches)})


def _teacher(match: IntermediateMatch, infos: Mapping[str, ModelInfo]) -> str:
    """The teacher that a match names; the first where it holds for the one of each task. Raises RequestError for no such one."""
    names = list(infos)
    if match.teacher is None:
        return names[0]
    meant = teacher_meant(match.teacher, names)
    if meant is None:
        raise RequestError(f"no teacher is called {match.teacher!r}; expected one of {', '.join(names)}.")
    return meant


def _pairs(match: IntermediateMatch, compared: Compared) -> Pairs:
    rows, columns = dict[int, list[Tensor]](), dict[int, list[Tensor]]()
    count = 0
    for student, teacher in compared:
        _check_read(match, student, teacher)
        own = _layers("student", student, match.reads("S")[0].feature)
        taught = _layers("teacher", teacher, match.reads("T")[0].feature)
        found = [_tokens_of(side, features) for side, features in ((own, student), (taught, teacher))]
        lengths = [next(iter(states.values())).shape[0] for states in found]
        if lengths[0] != lengths[1]:
            raise RequestError(
                f"the student has {lengths[0]} tokens in a batch and the teacher {lengths[1]}; layers are compared on the same tokens, so "
                'name pairs, or use "uniform".'
            )
        for kept, states in zip((rows, columns), found, strict=True):
            for place, tokens in states.items():
                kept.setdefault(place, []).append(tokens)
        count += lengths[0]
        if count >= TOKENS:
            break
    own_products, taught_products = (
        {place: normed_products(torch.cat(parts)[:TOKENS]) for place, parts in kept.items()} for kept in (rows, columns)
    )
    likeness = [[linear_cka(row, column) for column in taught_products.values()] for row in own_products.values()]
    places = list(taught_products)
    return tuple((places[column], place) for place, column in zip(own_products, most_alike(likeness), strict=True))


def _check_read(match: IntermediateMatch, student: Features, teacher: Features) -> None:
    """Raises ConfigError where either model, or both, lack what is compared of them."""
    problems = []
    for side, features in zip(_BOTH, (student, teacher), strict=True):
        owner, feature = SIDES[side], match.reads(side)[0].feature
        if feature in features.absent:
            problems.append(f"{match.key(side)}: {features.absent[feature]}")
        elif not features.get(feature):
            problems.append(f"layers: {_no_layers(owner, features, feature)}")
    if problems:
        raise ConfigError(problems, "a match")


def _no_layers(owner: str, features: Features, feature: str) -> str:
    return f"the {owner} has no layers of {feature!r} to compare; it has {', '.join(features) or 'nothing'}"


def _tokens_of(layers: Mapping[int, Tensor], features: Features) -> dict[int, Tensor]:
    """[N, D]: the states of valid tokens of each layer by its place."""
    return {place: _tokens(features, states) for place, states in layers.items()}


def _layers(owner: str, features: Features, feature: str) -> dict[int, Tensor]:
    """The states of each layer by its place, those that there are. Raises RequestError where they are none to compare."""
    tensors = features.get(feature, ())
    layers = Layers.of(feature, len(tensors))
    places = [place for layer in range(1, layers.count + 1) if tensors[place := layers.place(layer)] is not None]
    if not places:
        raise RequestError(f"{_no_layers(owner, features, feature)}.")
    axes = features.axes(feature)
    if axes not in ("B L D", "B D"):
        raise RequestError(
            f"layers of {feature!r} have the axes {axes}, and states of tokens, B L D, are compared; name pairs, or use "
            '"uniform".'
        )
    return {place: tensors[place] for place in places}


def _tokens(features: Features, states: Tensor) -> Tensor:
    """[N, D]: the states of valid tokens."""
    if states.dim() == 2:
        return states
    mask = features.first("inputs_mask")
    return states.flatten(0, 1) if mask is None else states[mask.bool()]
