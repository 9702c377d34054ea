"""Custom matches: a loss between what any module of the student and any of the teacher return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from brewer_core.captures import PREFIX, submodule
from brewer_core.config import ComponentRef
from brewer_core.config.base import plain_number
from brewer_core.config.refs import OfKind
from brewer_core.errors import RequestError, full_stop
from brewer_core.objective import Builder, MatchTerm, Source

_LOSS: TypeAdapter[ComponentRef] = TypeAdapter(Annotated[ComponentRef, OfKind("match_loss", callables=True)])
_PROJECTION: TypeAdapter[ComponentRef] = TypeAdapter(Annotated[ComponentRef, OfKind("projection", callables=True)])


@dataclass(frozen=True)
class CustomMatch:
    """A loss between what a module of the teacher and one of the student return.

    module_T, module_S: a module of the model, or its dotted name; `encoder.layer.3[0]` is the first part of a tuple. As in a config the
    name may begin with `module:`.
    weight: the factor of the loss. loss: a match loss, by name or as a callable (student, teacher, mask).
    proj_func: what the student's output is passed through first: a module, which is trained, another callable, or
    `["linear", student_dim, teacher_dim]`.
    proj_group: settings of the projection's own parameter group, such as `{"lr": 0.001}`.
    """

    module_T: nn.Module | str
    module_S: nn.Module | str
    weight: float
    loss: Any
    proj_func: Any = None
    proj_group: Mapping[str, Any] | None = None

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> CustomMatch:
        """A match from a dict of its fields. Raises RequestError for a key that is missing or unknown."""
        known = [field.name for field in fields(cls)]
        for key in dict_object:
            if key not in known:
                raise RequestError(f"a custom match has no key {key!r}; its keys are {', '.join(known)}.")
        missing = [key for key in known[:4] if key not in dict_object]
        if missing:
            raise RequestError(f"a custom match needs the key {missing[0]!r}.")
        return cls(**dict_object)

    def to_dict(self) -> dict[str, Any]:
        """Its fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def custom_terms(
    matches: Sequence[CustomMatch | Mapping[str, Any]], student: nn.Module, teacher: nn.Module
) -> Callable[[Builder], list[tuple[MatchTerm, float]]]:
    """What makes the terms of custom matches, each with its weight; problems are left with the builder."""

    def make(build: Builder) -> list[tuple[MatchTerm, float]]:
        made = []
        for i, match in enumerate(matches):
            path = f"custom_matches[{i}]"
            try:
                whole = _whole(match)
                term = _term(build, path, whole, student, teacher)
            except RequestError as error:
                build.problems.append(f"{path}: {str(error).rstrip('.')}")
                continue
            if term is not None:
                made.append((term, float(whole.weight)))
        return made

    return make


def _whole(match: Any) -> CustomMatch:
    if isinstance(match, Mapping):
        return CustomMatch.from_dict(match)
    if not isinstance(match, CustomMatch):
        raise RequestError(
            f"expected a CustomMatch or a dict of its fields, not a value of type {type(match).__name__}."
        )
    return match


def _term(build: Builder, path: str, match: CustomMatch, student: nn.Module, teacher: nn.Module) -> MatchTerm | None:
    weight = plain_number(match.weight)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise RequestError(f"weight must be a number, not {match.weight!r}.")
    names = (_name(match.module_S, student, "student"), _name(match.module_T, teacher, "teacher"))
    projection, width, group = _projection(build, f"{path}.proj_func", match)
    loss = build.method(f"{path}.loss", _ref(_LOSS, match.loss, "loss"))
    if loss is None:
        return None
    name = "_".join(["custom", loss.component.name, *names])
    sources = (Source(PREFIX + names[0]), Source(PREFIX + names[1]))
    return MatchTerm(path, name, sources, loss, projection, width=width, group=group)


def _name(module: nn.Module | str, model: nn.Module, owner: str) -> str:
    """The dotted name of a module. Raises RequestError where the model has no such module."""
    if isinstance(module, str):
        path = module.removeprefix(PREFIX)
        submodule(model, PREFIX + path, owner)
        return path
    for name, inner in model.named_modules():
        if inner is module:
            return str(name)
    raise RequestError(
        f"module_{'S' if owner == 'student' else 'T'}, of type {type(module).__name__}, is no part of the {owner}; give one of its own "
        "modules, or the dotted name of one."
    )


def _projection(build: Builder, path: str, match: CustomMatch) -> tuple[Any, int | None, dict[str, Any]]:
    """The projection, the width that it takes where that is known, and the settings of its parameter group."""
    given, group = match.proj_func, _settings("proj_group", match.proj_group)
    if isinstance(given, (str, Mapping)):
        return build.projection(path, _ref(_PROJECTION, given, "proj_func"), (None, None)), None, group
    if isinstance(given, (list, tuple)):
        if len(given) not in (3, 4) or not all(isinstance(width, int) for width in given[1:3]):
            raise RequestError(f'proj_func: expected ["linear", student_dim, teacher_dim], not {list(given)!r}.')
        name, dim_in, dim_out, *own = given
        made = build.projection(path, _ref(_PROJECTION, name, "proj_func"), (dim_in, dim_out))
        return made, dim_in, {**_settings("proj_func", *own), **group}
    if isinstance(given, type) or (given is not None and not callable(given)):
        what = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise RequestError(f"proj_func: {what} is no projection; give a module or a function of the student's output.")
    return given, None, group


def _settings(key: str, given: Any = None) -> dict[str, Any]:
    """Settings of a parameter group. Raises RequestError where they are no mapping."""
    if given is not None and not isinstance(given, Mapping):
        raise RequestError(f'{key}: expected settings of the optimizer such as {{"lr": 0.001}}, not {given!r}.')
    return dict(given or {})


def _ref(adapter: TypeAdapter[ComponentRef], value: Any, key: str) -> ComponentRef:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise RequestError(full_stop(f"{key}: {error.errors()[0]['msg']}")) from error
