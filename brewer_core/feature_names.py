"""How a config names what a loss reads: a feature, one with its layers in brackets, or the path of a module."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "module:"
"""Before the path of a module, as a feature's name."""

_NAME = re.compile(r"(?P<feature>[^\[\]]+)(\[(?P<layers>-?\d+(\s*,\s*-?\d+)*)\])?")
_PATH = re.compile(r"(?P<module>[^\[\]]*)(?P<parts>(\[[^\[\]]+\])*)")
_PART = re.compile(r"\[([^\[\]]+)\]")


@dataclass(frozen=True)
class FeatureName:
    """A feature that is read. layers: one, several, or None for all that it has. in_brackets: the name itself has them."""

    feature: str
    layers: int | tuple[int, ...] | None = None
    in_brackets: bool = False

    @classmethod
    def of(cls, name: str, layers: int | tuple[int, ...] | None = None) -> FeatureName:
        """What a name stands for, beside the layers that are given apart from it.

        A name with a dot is the path of a module, unless it comes with layers: then it is what an adaptor calls its own.
        Raises ValueError for what is no name, and where the layers are given twice.
        """
        if is_path(name, layers):
            if layers is not None:
                raise ValueError(
                    f"the path {name!r} has no layers; leave them out, or name one of the layers in the path"
                )
            parse_path(name)
            return cls(PREFIX + name.removeprefix(PREFIX))
        matched = _NAME.fullmatch(name)
        if matched is None and layers is not None:
            return cls(name, layers)  # whatever an adaptor calls its own
        if matched is None:
            raise ValueError(
                f"expected a name such as `hidden`, `query[11]` or the path of a module such as `encoder.layer.3`, not {name!r}; a "
                f"path without a dot begins with {PREFIX!r}"
            )
        if matched["layers"] is None:
            return cls(name, layers)
        if layers is not None:
            raise ValueError(f"{name!r} names its layers, and they are given beside it too; give them once")
        read = tuple(map(int, matched["layers"].split(",")))
        return cls(matched["feature"], read if len(read) > 1 else read[0], in_brackets=True)


@dataclass(frozen=True)
class ModulePath:
    """A place inside a model: a module's dotted name as it is written, and keys into what it gives, one inside the other."""

    module: str
    parts: tuple[str, ...] = ()


def is_path(name: str, layers: int | tuple[int, ...] | None = None) -> bool:
    """Whether a name is the path of a module: one with a dot before any brackets."""
    return name.startswith(PREFIX) or ("." in name.partition("[")[0] and layers is None)


def parse_path(name: str) -> ModulePath:
    """The place that a name stands for, with the prefix or without. Raises ValueError for what is no path."""
    path = name.removeprefix(PREFIX)
    matched = _PATH.fullmatch(path)
    if matched is None:
        raise ValueError(
            f"{path!r} is no path of a module; expected one such as 'encoder.layer.3' or 'encoder.layer.3[0]'"
        )
    return ModulePath(matched["module"], tuple(_PART.findall(matched["parts"])))
