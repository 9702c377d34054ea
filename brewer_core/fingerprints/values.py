"""Hashes of values: of plain ones, tensors, functions, classes, modules and objects.

They are made of content, never of addresses or names of files: the same in another process, and another one after any change of
a weight, of an option, or of the code of a function. The hash is xxh3, which is quick and no protection against forgery.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import xxhash

from brewer_core.errors import RequestError
from brewer_core.fingerprints.code import assigned, changed_by, globals_read, is_local, names, unwrapped, written

if TYPE_CHECKING:
    import torch
    from torch import nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, PurePath)
_CONSTANTS = (tuple, frozenset, types.CodeType)
"""What Python itself may share or not, as it has compiled a function or read it from a file."""
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_PIECE_BYTES = 1 << 26
_LOOKED_AT = 16
"""Of how many weights at most a number is looked at, to see whether they were written to."""

_DEEPEST = 20


def fingerprint(*values: Any) -> str:
    """32 hexadecimal digits: the same for values that hold the same.

    Plain values, containers, tensors, arrays, functions (by their code, defaults, what they close over and the globals they name),
    classes, modules, and objects by their class and attributes, but for those that a call writes, as a count of calls. Of code that is
    installed the names count, and of modules `forward`; of other code all that it leads to. Raises RequestError for what has no end.
    """
    digest = xxhash.xxh3_128()
    try:
        _Walk(digest).add(values)
    except RecursionError as error:
        raise RequestError(
            "what a teacher or an adaptor holds goes too deep to be compared; make it plain values, tensors or modules."
        ) from error
    return digest.hexdigest()


def changes(model: nn.Module) -> tuple[Any, ...]:
    """What tells, at once, that a weight was written to since: where each lies, how often it was changed in place, and of some a number.

    The number tells what torch does not count: writing to `.data`, a fused optimizer. Only on the CPU, for a GPU would be waited for.
    """
    tensors, left = list["torch.Tensor"](), [model]
    while left:  # it is asked in every step, and torch's own walk, which gives names, takes more than twice as long
        module = left.pop()
        for held in (module._parameters, module._buffers):
            tensors += [tensor for tensor in held.values() if tensor is not None]
        left += [inner for inner in module._modules.values() if inner is not None]
    found = tuple((id(tensor), tensor.data_ptr(), _version(tensor)) for tensor in tensors)
    return (*found, *map(_first_number, tensors[:: 1 + len(tensors) // _LOOKED_AT]))


def _first_number(tensor: torch.Tensor) -> str:
    if tensor.device.type != "cpu" or not tensor.numel() or tensor.is_quantized or hasattr(tensor, "full_tensor"):
        return ""
    return repr(tensor.detach()[(0,) * tensor.dim()].item())


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
            self.add(value.__func__)
            self._owner(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType, torch.dtype, torch.device)):
            self._say("name", getattr(value, "__name__", str(value)))
            owner = getattr(value, "__self__", None)
            if not isinstance(owner, (types.ModuleType, type)):  # a tensor's own method, say
                self.add(owner)
        else:
            self._object(value)

    def _say(self, kind: str, text: str) -> None:
        self._digest.update(f"{kind}:{len(text)}:{text};".encode())

    def _tensor(self, tensor: torch.Tensor) -> None:
        import torch

        self._say("tensor", f"{tensor.dtype}{tuple(tensor.shape)}")
        if tensor.is_meta:
            return
        tensor = tensor.dequantize() if tensor.is_quantized else tensor
        flat = tensor.detach().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
        for piece in torch.split(flat, _PIECE_BYTES):  # from a GPU only so much at a time
            self._digest.update(piece.cpu().numpy().data)

    def _module(self, module: nn.Module) -> None:
        """Its weights, the classes that make it up with their code, and their settings."""
        self._say("module", _named(type(module)))
        for name, inner in module.named_modules():
            self._say("part", name)
            self._module_code(inner)
            self.add(_settings(inner))
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            self._say("weight", name)
            self._tensor(_whole(tensor))
        if any(
            _saves_more(cast(Any, type(inner))) for inner in module.modules()
        ):  # quantised layers, which have no parameters
            weights = {name for name, _ in itertools.chain(module.named_parameters(), module.named_buffers())}
            self.add({name: value for name, value in module.state_dict().items() if name not in weights})

    def _module_code(self, module: nn.Module) -> None:
        import torch

        kind = type(module)
        self._say("class", _named(kind))
        if isinstance(module, torch.jit.ScriptModule):  # its class says nothing of what it does
            self._say("script", re.sub(r"___torch_mangle_\d+", "", str(getattr(module, "code", ""))))
        elif is_local(kind.__module__):
            self.add(kind)
        else:
            self._digest.update(_forward_code(cast(Any, kind)))

    def _class(self, kind: type) -> None:
        """Its functions; of one that is not installed also the values that it holds, and what it inherits from."""
        self._say("class", _named(kind))
        for each in (kind, *(base for base in type.mro(kind)[1:] if is_local(base.__module__))):
            passed = written(cast(Any, kind)) if is_local(each.__module__) else None
            for name, member in sorted(vars(each).items()):
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(function, types.FunctionType):
                    self._say("member", name)
                    self._function(function)
                elif passed is not None and not name.startswith("__") and name not in passed and _is_data(member):
                    self._say("member", name)
                    self.add(member)

    def _function(self, function: types.FunctionType) -> None:
        self._say("function", function.__qualname__)
        self._code(function.__code__)
        self.add((function.__defaults__, function.__kwdefaults__))
        changed = changed_by(function.__code__)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self.add(tuple(_content(cell) for name, cell in cells if name not in changed))
        for name in sorted(globals_read(function.__code__) - changed):
            self._global(name, function.__globals__.get(name), function)
        if isinstance(getattr(function, "__wrapped__", None), types.FunctionType):
            self.add(cast(Any, function).__wrapped__)

    def _global(self, name: str, value: Any, function: types.FunctionType) -> None:
        """What a function names: of its own module, or of another that is not installed; else the name says enough."""
        local = is_local(function.__module__)
        if isinstance(value, (types.ModuleType, *_NAMESPACES)):
            if local and (isinstance(value, _NAMESPACES) or is_local(value.__name__)):
                for inner in sorted(names(function.__code__) & vars(value).keys()):
                    self._global(f"{name}.{inner}", vars(value)[inner], function)
        elif isinstance(value, (types.FunctionType, type)):
            own = value.__module__ == function.__module__ or (local and is_local(value.__module__))
            self._say("global", name if own else f"{name} {value.__qualname__}")
            if own:
                self.add(value)
        elif isinstance(value, (bool, int, float, str, tuple)) or (local and _is_data(value)):
            self._say("global", name)
            self.add(value)

    def _code(self, code: types.CodeType) -> None:
        self._digest.update(code.co_code)
        self._say("names", " ".join((*code.co_names, *code.co_varnames, *code.co_freevars)))
        for constant in code.co_consts:
            self.add(constant)

    def _owner(self, method: types.MethodType) -> None:
        """What a method is bound to; what this method writes is no setting of it."""
        import torch

        owner: Any = method.__self__
        if isinstance(owner, (type, torch.nn.Module, torch.Tensor, *_PLAIN)) or id(owner) in self._met:
            self.add(owner)
        else:
            self._met[id(owner)] = owner
            self._object(owner, method.__func__.__name__)

    def _object(self, value: Any, called: str = "__call__") -> None:
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
        passed = written(cast(Any, type(value)), called)
        self.add({name: held[name] for name in sorted(held) if name not in passed})


def _reduced(value: Any) -> Any:
    """What a value that is written in C is made anew from; None where it cannot be, as a lock."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # whatever it raises
        return None
    return reduced[1:] if isinstance(reduced, tuple) else reduced


def _settings(module: nn.Module) -> dict[str, Any]:
    """What decides beside the weights: attributes, but for those that a forward pass writes, and a config.

    A count of calls, say, is written by `forward`, and is no setting. Of classes that are installed only plain ones count.
    """
    kind = type(module)
    local, passed = is_local(kind.__module__), written(cast(Any, kind)) | _of_every_module()
    own = assigned(cast(Any, kind)) if local else frozenset()
    found = {
        name: value
        for name, value in vars(module).items()
        if name not in passed
        and name != "name_or_path"  # which Hugging Face models have outside their config too
        and (name in own or not name.startswith("_"))
        and (_is_data(value) if local else _is_setting(value))
    }
    config = getattr(module, "config", None)
    to_dict = getattr(config, "to_dict", None)
    if callable(to_dict):
        found["config"] = {k: repr(v) for k, v in sorted(to_dict().items()) if k not in _NOT_OF_THE_ANSWER}
    return {name: found[name] for name in sorted(found)}


@functools.cache
def _saves_more(kind: Any) -> bool:
    """Whether the modules of a class save more than parameters and buffers, or in a way of their own."""
    from torch import nn

    return any(
        getattr(kind, name) is not getattr(nn.Module, name) for name in ("_save_to_state_dict", "get_extra_state")
    )


@functools.cache
def _of_every_module() -> frozenset[str]:
    from torch import nn

    return frozenset(vars(nn.Module()))


_NOT_OF_THE_ANSWER = frozenset(
    ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict")
) | {"attn_implementation", "_attn_implementation", "output_attentions", "output_hidden_states"}
"""Entries of a Hugging Face config that say where a model came from, or how it is run, and not what it answers."""


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):  # a list is where a module notes things
        return all(isinstance(each, (bool, int, float, str)) for each in value)
    functions = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
    return isinstance(value, (bool, int, float, str, *functions))


def _is_data(value: Any, depth: int = 0) -> bool:
    """Whether a value says what it is by what it holds, and is no logger, lock or other object of an installed class."""
    import numpy
    import torch

    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        held = itertools.chain(value, value.values()) if isinstance(value, Mapping) else value
        return depth < _DEEPEST and all(_is_data(each, depth + 1) for each in held)
    functions = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
    known = (Enum, torch.Tensor, torch.nn.Module, numpy.ndarray, torch.dtype, torch.device, *_NAMESPACES)
    if isinstance(value, (*_PLAIN, *functions, *known)):
        return True
    return is_local((value if isinstance(value, type) else type(value)).__module__)


@functools.cache
def _forward_code(kind: Any) -> bytes:
    digest = xxhash.xxh3_128()
    forward = getattr(kind, "forward", None)
    if isinstance(forward, types.FunctionType):
        _Walk(digest)._code(unwrapped(forward).__code__)
    return digest.digest()


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


def _named(kind: type) -> str:
    """A class by its name; not by its module, which is `__main__` in a script and another name where that is imported."""
    return kind.__qualname__


def _listed(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)
