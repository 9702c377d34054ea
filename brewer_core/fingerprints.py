"""Fingerprints: hashes of what makes a model, an adaptor or a setting answer as it does.

They are made of content, never of addresses or names of files: the same in another process, and another one after any change of
a weight, of an option, or of the code of a function. The hash is xxh3, which is quick and no protection against forgery.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import xxhash

from brewer_core.errors import RequestError

if TYPE_CHECKING:
    import torch
    from torch import nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, PurePath)
_CONSTANTS = (tuple, frozenset, types.CodeType)
"""What Python itself may share or not, as it has compiled a function or read it from a file."""
_PIECE_BYTES = 1 << 26


def fingerprint(*values: Any) -> str:
    """32 hexadecimal digits: the same for values that hold the same.

    Plain values, containers, tensors, arrays, functions (by their code, defaults and what they close over), classes, modules, and
    objects by their class and attributes, but for those that a method writes. Raises RequestError for what has no end.
    """
    digest = xxhash.xxh3_128()
    try:
        _Walk(digest).add(values)
    except RecursionError as error:
        raise RequestError(
            "what a teacher or an adaptor holds goes too deep to be compared; make it plain values, tensors or modules."
        ) from error
    return digest.hexdigest()


def changes(model: nn.Module) -> tuple[tuple[int, int, int], ...]:
    """What tells, at once, that a weight was written to since: where each lies, and how often it was changed in place."""
    found, left = list[tuple[int, int, int]](), [model]
    while left:  # it is asked in every step, and torch's own walk, which gives names, takes more than twice as long
        module = left.pop()
        for tensors in (module._parameters, module._buffers):
            found += [(id(t), t.data_ptr(), _version(t)) for t in tensors.values() if t is not None]
        left += [inner for inner in module._modules.values() if inner is not None]
    return tuple(found)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Walk:
    """Adds values to a digest, each under a name of its kind, so that values of different kinds never look alike."""

    def __init__(self, digest: xxhash.xxh3_128) -> None:
        self._digest = digest
        self._met: dict[int, Any] = {}  # each is kept, so that no other takes its place and its id

    def add(self, value: Any) -> None:
        """Add a value, and what it holds."""
        if isinstance(value, _PLAIN):
            self._say(type(value).__name__, repr(value))
            return
        if not isinstance(value, _CONSTANTS):
            if id(value) in self._met:  # what holds itself, or is held twice
                self._say("again", str(list(self._met).index(id(value))))
                return
            self._met[id(value)] = value
        self._add_held(value)

    def _add_held(self, value: Any) -> None:
        import numpy
        import torch
        from torch import nn

        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, numpy.ndarray):
            self._say("array", f"{value.dtype}{value.shape}")
            self._digest.update(numpy.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            self._say("mapping", str(len(value)))
            for key in value:
                self.add(key)
                self.add(value[key])
        elif isinstance(value, (list, tuple)):
            self._say("sequence", str(len(value)))
            for each in value:
                self.add(each)
        elif isinstance(value, (set, frozenset)):
            self._say("set", " ".join(sorted(fingerprint(each) for each in value)))
        elif isinstance(value, Enum):
            self._say("enum", f"{_named(type(value))}.{value.name}")
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, functools.partial):
            self._say("partial", "")
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._say("method", value.__func__.__qualname__)
            self.add((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType, torch.dtype, torch.device)):
            self._say("name", getattr(value, "__name__", str(value)))
        else:
            self._object(value)

    def _say(self, kind: str, text: str) -> None:
        self._digest.update(f"{kind}:{len(text)}:{text};".encode())

    def _tensor(self, tensor: torch.Tensor) -> None:
        import torch

        self._say("tensor", f"{tensor.dtype}{tuple(tensor.shape)}")
        if tensor.is_meta:
            return
        flat = tensor.detach().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
        for piece in torch.split(flat, _PIECE_BYTES):  # from a GPU only so much at a time
            self._digest.update(piece.cpu().numpy().data)

    def _module(self, module: nn.Module) -> None:
        """Its weights, the classes that make it up with their code, and their settings."""
        self._say("module", _named(type(module)))
        for name, inner in module.named_modules():
            self._say("part", name)
            self._code_once(type(inner))
            self.add(_settings(inner))
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            self._say("weight", name)
            self._tensor(_whole(tensor))

    def _code_once(self, kind: type) -> None:
        self._say("class", _named(kind))
        self._digest.update(_forward_code(cast(Any, kind)))

    def _class(self, kind: type) -> None:
        self._say("class", _named(kind))
        for name, member in sorted(vars(kind).items()):
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(function, types.FunctionType):
                self._say("member", name)
                self._function(function)

    def _function(self, function: types.FunctionType) -> None:
        function = _unwrapped(function)
        self._say("function", function.__qualname__)
        self._code(function.__code__)
        self.add((function.__defaults__, function.__kwdefaults__))
        cells = [_content(cell) for cell in function.__closure__ or ()]
        self.add(tuple(cells))
        for name in sorted(_names(function.__code__)):
            found = function.__globals__.get(name)
            if _is_own(found, function):
                self._say("global", name)
                self.add(found)

    def _code(self, code: types.CodeType) -> None:
        self._digest.update(code.co_code)
        self._say("names", " ".join((*code.co_names, *code.co_varnames, *code.co_freevars)))
        for constant in code.co_consts:
            self.add(constant)

    def _object(self, value: Any) -> None:
        self._say("object", _named(type(value)))
        self._class(type(value))
        if is_dataclass(value):
            self.add({field.name: getattr(value, field.name) for field in fields(value)})
            return
        held = dict(getattr(value, "__dict__", {}))
        if not held and not any("__slots__" in vars(kind) for kind in type(value).__mro__):
            self.add(_reduced(value))
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            held |= {name: getattr(value, name) for name in _listed(slots) if hasattr(value, name)}
        written = _written(cast(Any, type(value)))
        self.add({name: held[name] for name in sorted(held) if name not in written})


def _reduced(value: Any) -> Any:
    """What a value that is written in C is made anew from; None where it cannot be, as a lock."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # whatever it raises
        return None
    return reduced[1:] if isinstance(reduced, tuple) else reduced


def _settings(module: nn.Module) -> dict[str, Any]:
    """What decides beside the weights: plain attributes, but for those that a forward pass or a method writes, and a config.

    A count of calls, say, is written by `forward`, and is no setting.
    """
    written = _written(cast(Any, type(module)))
    plain = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in written and name != "training" and _is_setting(value)
    }
    config = getattr(module, "config", None)
    to_dict = getattr(config, "to_dict", None)
    if callable(to_dict):
        plain["config"] = {k: repr(v) for k, v in sorted(to_dict().items()) if k not in _NOT_OF_THE_ANSWER}
    return {name: plain[name] for name in sorted(plain)}


_NOT_OF_THE_ANSWER = frozenset(
    ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict")
) | {"attn_implementation", "_attn_implementation", "output_attentions", "output_hidden_states"}
"""Entries of a Hugging Face config that say where a model came from, or how it is run, and not what it answers."""


def _is_setting(value: Any) -> bool:
    if isinstance(value, (bool, int, float, str)):
        return True
    return (
        isinstance(value, (tuple, list))
        and all(isinstance(each, (bool, int, float, str)) for each in value)
        and (
            isinstance(value, tuple)  # a list is where a module notes things
        )
    )


@functools.cache
def _written(kind: Any) -> frozenset[str]:
    """The attributes that methods of a class other than `__init__` assign."""
    classes = type.mro(kind) if isinstance(kind, type) else []
    return frozenset().union(*map(_written_by, classes))


@functools.cache  # nn.Module is among the classes of every module, and its methods are long
def _written_by(kind: Any) -> frozenset[str]:
    """The attributes that a class's own methods assign."""
    import dis

    store, found = dis.opmap["STORE_ATTR"], set[str]()
    for name, member in vars(kind).items():
        if name == "__init__" or not isinstance(member, types.FunctionType):
            continue
        if store in member.__code__.co_code[::2]:  # most methods assign none, and to list instructions takes long
            found |= {str(i.argval) for i in dis.get_instructions(member) if i.opname == "STORE_ATTR"}
    return frozenset(found)


@functools.cache
def _forward_code(kind: Any) -> bytes:
    digest = xxhash.xxh3_128()
    forward = getattr(kind, "forward", None)
    if isinstance(forward, types.FunctionType):
        _Walk(digest)._code(_unwrapped(forward).__code__)
    return digest.digest()


def _unwrapped(function: types.FunctionType) -> types.FunctionType:
    inner: Any = function
    while isinstance(getattr(inner, "__wrapped__", None), types.FunctionType):
        inner = inner.__wrapped__
    found: types.FunctionType = inner
    return found


def _whole(tensor: Any) -> torch.Tensor:
    """A tensor; of one that several processes hold in parts, all of it."""
    full: Callable[[], Any] | None = getattr(tensor, "full_tensor", None)
    whole: torch.Tensor = full() if full is not None else tensor
    return whole


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(_names(each) for each in inner))


def _is_own(value: Any, function: types.FunctionType) -> bool:
    """Whether a global of a function's module belongs to it: what is imported is known by its distribution's version."""
    if isinstance(value, (types.FunctionType, type)):
        return value.__module__ == function.__module__
    return isinstance(value, (bool, int, float, str, tuple))


def _named(kind: type) -> str:
    """A class by its name; not by its module, which is `__main__` in a script and another name where that is imported."""
    return kind.__qualname__


def _listed(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)
