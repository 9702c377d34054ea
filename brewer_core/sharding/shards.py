"""Checkpoints of which every process writes its part, and which any number of processes may read, or one alone.

Tensors go through torch.distributed.checkpoint; what is no tensor, and the optimizer's groups, into one file beside them. The
optimizer's state bears the names of the learner's parameters.
"""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from brewer_core.errors import DataError, RequestError
from brewer_core.processes import Processes
from brewer_core.sharding.modules import in_group

PLAIN_FILE = "plain.pt"
_UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, TypeError, ValueError, LookupError)
_CONTENTS = {
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
}
_ByName = dict[str, dict[str, Any]]


def write_shards(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write learner and optimizer into a folder; when it returns, the parts of all processes are there. Collective.

    Raises RequestError for an optimizer whose state is in parts, but not as its parameters are, OSError on every process
    where one of them could not write.
    """
    model, extra = _split(learner.state_dict())
    tensors, numbers, groups = _unpacked(learner, optimizer)
    _check_parts(learner, optimizer, tensors)
    if Processes.current().first:
        folder.mkdir(parents=True, exist_ok=True)
        plain = {"learner": {"names": list(model), "extra": extra}, "groups": groups, "state": numbers}
        torch.save({**plain, "forms": _forms(tensors)}, folder / PLAIN_FILE)
    try:
        with _without_notice():
            save(_keyed(model, tensors), checkpoint_id=folder, no_dist=not in_group())
    except CheckpointException as error:
        raise OSError(_reason(error)) from error


def read_shards(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take up what `write_shards` wrote, on however many processes, sharded or not. Collective.

    The optimizer's groups get the settings that they had. Only tensors and plain values are read, never code.
    Raises DataError where the folder is no such checkpoint, is damaged, or is of another learner or optimizer.
    """
    model, _ = _split(learner.state_dict())
    try:
        plain = torch.load(folder / PLAIN_FILE, map_location="cpu", weights_only=True)
        _check_same("the learner has other tensors", plain["learner"]["names"], list(model))
        saved = [group["params"] for group in plain["groups"]]
        _check_same("the optimizer has other parameter groups", saved, _names(learner, optimizer))
        tensors = _empty(plain["forms"], dict(learner.named_parameters()))
        with _without_notice():
            load(_keyed(model, tensors), storage_reader=_Reader(folder), no_dist=not in_group())
    except (CheckpointException, *_UNREADABLE) as error:
        raise DataError(f"checkpoint {folder} cannot be read: {_reason(error)}; take an earlier one.") from error
    learner.load_state_dict({**model, **plain["learner"]["extra"]})
    optimizer.load_state_dict(_packed(plain, tensors))


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state, and the rest."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in state.items() if key not in tensors}


def _keyed(model: Mapping[str, Tensor], tensors: _ByName) -> dict[str, Any]:
    """All tensors of a checkpoint under one key each."""
    state = {f"optimizer/{name}/{key}": tensor for name, held in tensors.items() for key, tensor in held.items()}
    return {**{f"learner/{name}": tensor for name, tensor in model.items()}, **state}


# The optimizer by name


def _names(learner: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the optimizer's parameters, group by group."""
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _unpacked(learner: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[_ByName, _ByName, list[dict[str, Any]]]:
    """The tensors and the other values of the state by parameter, and the groups, with names for numbers."""
    packed, names = optimizer.state_dict(), _names(learner, optimizer)
    flat = list(itertools.chain.from_iterable(names))
    parts = {flat[index]: _split(state) for index, state in packed["state"].items()}
    groups = [{**group, "params": own} for group, own in zip(packed["param_groups"], names, strict=True)]
    return {name: held for name, (held, _) in parts.items()}, {name: rest for name, (_, rest) in parts.items()}, groups


def _packed(plain: Mapping[str, Any], tensors: _ByName) -> dict[str, Any]:
    """What `_unpacked` took apart, for `load_state_dict`."""
    flat = itertools.chain.from_iterable(group["params"] for group in plain["groups"])
    number = {name: index for index, name in enumerate(flat)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in plain["groups"]]
    state = {number[name]: {**rest, **tensors[name]} for name, rest in plain["state"].items()}
    return {"state": state, "param_groups": groups}


def _forms(tensors: _ByName) -> dict[str, dict[str, tuple[list[int], torch.dtype]]]:
    return {name: {key: (list(t.shape), t.dtype) for key, t in held.items()} for name, held in tensors.items()}


def _empty(forms: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> _ByName:
    """Tensors to read the optimizer's state into: what has its parameter's shape is sharded like it."""
    return {
        name: {
            key: torch.empty_like(parameters[name], dtype=dtype, requires_grad=False)
            if shape == list(parameters[name].shape)
            else torch.empty(shape, dtype=dtype)
            for key, (shape, dtype) in held.items()
        }
        for name, held in forms.items()
    }


def _check_parts(learner: nn.Module, optimizer: torch.optim.Optimizer, tensors: _ByName) -> None:
    shapes = {name: parameter.shape for name, parameter in learner.named_parameters()}
    for name, held in tensors.items():
        for key, tensor in held.items():
            if isinstance(tensor, DTensor) and tensor.shape != shapes[name]:
                raise RequestError(
                    f"{type(optimizer).__name__} keeps `{key}` of the parameter {name!r} in parts of another shape than the "
                    "parameter's, which a checkpoint in parts cannot hold; take another optimizer, such as AdamW."
                )


# Reading without running code


def _check_same(what: str, saved: Any, own: Any) -> None:
    if saved != own:
        raise ValueError(f"{what} than those saved")


def _reason(error: BaseException) -> str:
    """The first sentence about what went wrong, on this process or first on another."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__


class _Reader(FileSystemReader):
    """torch's reader of folders, but for the list of contents: torch's own would run code that it holds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with open(folder / ".metadata", "rb") as file:
            contents = _Contents(file).load()
        if not isinstance(contents, Metadata):
            raise pickle.UnpicklingError("its list of contents is none")
        self._contents = contents

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self._contents


class _Contents(pickle.Unpickler):
    """Reads the list of a checkpoint's contents, and no other class or function than those of such lists."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":  # the folder's own name, which is not used
            return PurePath
        if name not in _CONTENTS.get(module, ()):
            raise pickle.UnpicklingError(f"it holds code, {module}.{name}")
        return super().find_class(module, name)


@contextmanager
def _without_notice() -> Iterator[None]:
    """Without torch's warning that there is no process group: that is asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
