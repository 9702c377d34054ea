"""What modules inside a model return, as features: hooks that live no longer than one forward pass.

A feature of the name `module:PATH` is what the submodule at the dotted PATH returned; `module:PATH[2]` and
`module:PATH[key]` are one part of a tuple or a mapping.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from brewer_core.errors import RequestError, did_you_mean
from brewer_core.features import Features

if TYPE_CHECKING:
    from torch import nn

PREFIX = "module:"
_NAME = re.compile(rf"{PREFIX}(?P<path>[^\[\]]*)(\[(?P<part>[^\[\]]+)\])?")
_NOTHING = object()


class Capture:
    """What hooked modules returned in a forward pass; where one ran several times, what it returned last."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._outputs: dict[str, Any] = {}

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook that notes an output under a feature's name."""
        self._outputs[name] = _NOTHING

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            self._outputs[name] = output

        return note

    def added_to(self, features: Features) -> Features:
        """The features with what was captured. Raises RequestError where a module did not run, or gave no tensors."""
        if not self._outputs:
            return features
        found = {name: self._tensors(name, output) for name, output in self._outputs.items()}
        return features.joined(Features.of(found, f"the {self._owner}"))

    def _tensors(self, name: str, output: Any) -> Any:
        if output is _NOTHING:
            raise RequestError(
                f"the {self._owner}'s module {_path(name)!r} did not run in the forward pass, so it has no output to match; name "
                "one that does."
            )
        part = _matched(name)["part"]
        if part is not None:
            output = self._part(name, output, part)
        import torch

        if isinstance(output, torch.Tensor):
            return output
        tensors = [each for each in output if each is not None] if isinstance(output, (list, tuple)) else []
        if tensors and all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            return tensors
        raise RequestError(
            f"the {self._owner}'s module {_path(name)!r} returned {_shown(output)}; name one tensor of it, as in "
            f"{f'{_path(name)}[{_first_key(output)}]'!r}."
        )

    def _part(self, name: str, output: Any, part: str) -> Any:
        try:
            return output[int(part)] if part.lstrip("-").isdigit() else output[part]
        except (KeyError, IndexError, TypeError) as error:
            raise RequestError(
                f"the {self._owner}'s module {_path(name)!r} returned {_shown(output)}, which has no part [{part}]."
            ) from error


@contextmanager
def capturing(model: nn.Module, names: Iterable[str], owner: str) -> Iterator[Capture]:
    """Note what the modules behind features return, for as long as the context lasts; other features are passed over.

    owner: whose model it is, `student` or `teacher`, for the errors. Raises RequestError for a path that leads nowhere.
    """
    capture, handles = Capture(owner), []
    try:
        for name in sorted(name for name in names if name.startswith(PREFIX)):
            handles.append(submodule(model, name, owner).register_forward_hook(capture.hook(name)))
        yield capture
    finally:
        for handle in handles:
            handle.remove()


def submodule(model: nn.Module, name: str, owner: str) -> nn.Module:
    """The module behind a feature's name. Raises RequestError where there is none."""
    path = str(_matched(name)["path"])
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        known = [inner for inner, _ in model.named_modules() if inner]
        shown = difflib.get_close_matches(path, known) or known[:12]  # a large model has hundreds
        raise RequestError(f"the {owner} has no module {path!r}{did_you_mean(path, shown)}.") from error


def _matched(name: str) -> re.Match[str]:
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise RequestError(
            f"{_path(name)!r} is no path of a module; expected one such as 'encoder.layer.3' or 'encoder.layer.3[0]'."
        )
    return matched


def _path(name: str) -> str:
    return name.removeprefix(PREFIX)


def _first_key(output: Any) -> Any:
    return next(iter(output), 0) if isinstance(output, Mapping) else 0


def _shown(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(str, output))}"
    if isinstance(output, (list, tuple)):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
