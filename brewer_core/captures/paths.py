"""The path of a module as a feature: what the module is given or returns, as a whole or a part of it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from brewer_core.errors import RequestError, did_you_mean, full_stop
from brewer_core.feature_names import PREFIX, is_path, parse_path

if TYPE_CHECKING:
    from torch import nn

_ENDS: tuple[Literal["input", "output"], ...] = ("input", "output")
NOTHING = object()


class PathError(RequestError):
    """A path leads nowhere, or to no tensor. name: the feature's."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name

    def __reduce__(self) -> tuple[type[PathError], tuple[str, str]]:
        """Pickle both, for another process."""
        return type(self), (str(self), self.name)


@dataclass(frozen=True)
class PathFeature:
    """A feature that a module gives. name: with the prefix. what: its arguments as (args, kwargs), or what it returned."""

    name: str
    module: nn.Module
    what: Literal["input", "output"]
    parts: tuple[str, ...]
    owner: str

    @classmethod
    def of(cls, model: nn.Module, name: str, owner: str) -> PathFeature:
        """The feature of a name. owner: whose model it is, for the errors. Raises PathError where it leads nowhere.

        A path that ends in `.input` or `.output` may also be that of a module of this name, which comes first.
        """
        try:
            path = parse_path(name)
        except ValueError as error:
            raise PathError(f"{error}.", name) from error
        module = _inside(model, path.module)
        if module is not None:
            return cls(name, module, "output", path.parts, owner)
        before, _, end = path.module.rpartition(".")
        around = _inside(model, before)
        for what in _ENDS:
            if end == what and around is not None:
                return cls(name, around, what, path.parts, owner)
        known = [inner for inner, _ in model.named_modules() if inner]
        shown = difflib.get_close_matches(path.module, known) or known[:12]  # a large model has hundreds
        raise PathError(full_stop(f"the {owner} has no module {path.module!r}{did_you_mean(path.module, shown)}"), name)

    def tensors(self, noted: Any) -> Any:
        """The tensor, or list of tensors, in what was noted of the module. Raises PathError where there is none."""
        import torch

        path = _written(self.name)
        if noted is NOTHING:
            inside = next((name for name, _ in self.module.named_children()), "")
            one = (
                f"a module inside it, such as its {inside!r}"
                if _never_runs(self.module) and inside
                else "one that does"
            )
            raise PathError(
                f"the {self.owner}'s module {path!r} did not run in the forward pass, so it has no {self.what} to match; name {one}.",
                self.name,
            )
        verb = "was given" if self.what == "input" else "returned"
        found = _arguments(self.module, noted) if self.what == "input" else noted
        told = found
        for part in self.parts:
            found = self._part(path, verb, found, part)
            told = found
        if not self.parts and self.what == "input":
            found = next((each for each in told.values() if isinstance(each, torch.Tensor)), told)
        if isinstance(found, torch.Tensor):
            return found
        tensors = [each for each in found if each is not None] if isinstance(found, (list, tuple)) else []
        if tensors and all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            return tensors
        raise PathError(
            f"the {self.owner}'s module {path!r} {verb} {_shown(told)}; name one tensor of it, as in "
            f"{f'{path}[{_first_key(told)}]'!r}.",
            self.name,
        )

    def _part(self, path: str, verb: str, found: Any, part: str) -> Any:
        numbered = part.lstrip("-").isdigit()
        try:
            if isinstance(found, _Arguments):
                return found.at(int(part)) if numbered else found[part]
            fields = _fields(found)
            if part in fields:
                return fields[part]
            return _parts_of(found)[int(part) if numbered else part]
        except (KeyError, IndexError, TypeError) as error:
            raise PathError(
                f"the {self.owner}'s module {path!r} {verb} {_shown(found)}, which has no part [{part}].", self.name
            ) from error


def _written(name: str) -> str:
    """A path as a config may name it: without the prefix where a dot tells that it is one."""
    path = name.removeprefix(PREFIX)
    return path if is_path(path) else name


def _never_runs(module: nn.Module) -> bool:
    """Whether a module only holds others."""
    from torch import nn as modules

    return isinstance(module, (modules.ModuleList, modules.ModuleDict))


def _inside(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


class _Arguments(dict[str, Any]):
    """What a module was called with, by the names of its parameters, and in their order."""

    def at(self, position: int) -> Any:
        return list(self.values())[position]


def _arguments(module: nn.Module, noted: tuple[tuple[Any, ...], Mapping[str, Any]]) -> _Arguments:
    args, named = noted
    known = list(inspect.signature(module.forward).parameters)
    names = [known[i] if i < len(known) else str(i) for i in range(len(args))]
    given = {**dict(zip(names, args, strict=True)), **named}
    order = sorted(given, key=lambda name: known.index(name) if name in known else len(known))
    return _Arguments({name: given[name] for name in order})


def _parts_of(found: Any) -> Any:
    """What has parts itself. Raises TypeError for a tensor, whose parts are rows of the batch."""
    import torch

    if isinstance(found, torch.Tensor):
        raise TypeError("a tensor has no parts")
    return found


def _fields(found: Any) -> Mapping[str, Any]:
    """The fields of a named tuple or a dataclass that is no mapping, by name."""
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return dict(zip(found._fields, found, strict=True))
    if dataclasses.is_dataclass(found) and not isinstance(found, (type, Mapping)):
        return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return {}


def _first_key(found: Any) -> Any:
    return next(iter(found if isinstance(found, Mapping) else _fields(found)), 0)


def _shown(found: Any) -> str:
    if isinstance(found, _Arguments):
        return f"{', '.join(found) or 'nothing'}"
    if isinstance(found, Mapping) or _fields(found):
        named = found if isinstance(found, Mapping) else _fields(found)
        return f"a {type(found).__name__} with {', '.join(map(str, named))}"
    if isinstance(found, (list, tuple)):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"
