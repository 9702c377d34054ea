"""The paths of modules that matches name, looked up in the models before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from brewer_core.captures import PathError, submodule
from brewer_core.config import IntermediateMatch
from brewer_core.feature_names import PREFIX

_SIDES: tuple[Literal["T", "S"], ...] = ("T", "S")


@dataclass(frozen=True)
class _NamedPath:
    """A path in a config. where: its key. teacher: the one that its match names."""

    where: str
    path: str
    of_student: bool
    teacher: str | int | None


def path_problems(
    matches: Sequence[IntermediateMatch], student: nn.Module, teachers: Mapping[str, nn.Module]
) -> list[str]:
    """What is wrong with the paths of matches, each with its place in the config. teachers: by name, in order."""
    problems = []
    for named in _paths(matches):
        owner = "student" if named.of_student else "teacher"
        for model in [student] if named.of_student else _asked(named.teacher, teachers):
            try:
                submodule(model, named.path, owner)
            except PathError as error:
                problems.append(f"{named.where}: {str(error).rstrip('.')}")
    return list(dict.fromkeys(problems))


def places_of(path: str, matches: Sequence[IntermediateMatch]) -> list[str]:
    """Where in the config a path is named."""
    return list(dict.fromkeys(named.where for named in _paths(matches) if named.path == path))


def _paths(matches: Sequence[IntermediateMatch]) -> Iterator[_NamedPath]:
    for i, match in enumerate(matches):
        for side in _SIDES:
            where = f"intermediate_matches[{i}].{match.key(side)}"
            for read in match.reads(side):
                if read.feature.startswith(PREFIX):
                    yield _NamedPath(where, read.feature, side == "S", match.teacher)


def _asked(teacher: str | int | None, teachers: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The models that a match reads; none where it names a teacher that there is not, which is told elsewhere."""
    if teacher is None:
        return list(teachers.values())
    names = [name for i, name in enumerate(teachers) if teacher in (name, i, i - len(teachers))]
    return [teachers[name] for name in names]
