"""Checkpoints on disk: whole at every instant, verified before they are read, and without a pickle that is executed."""

from __future__ import annotations

import errno
import io
import json
import pickle
import re
import shutil
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from brewer_core.errors import DataError, SaveError
from brewer_core.files import (
    error_code,
    findable,
    folder_written_whole,
    remove,
    remove_whole,
    sha256_of,
    system_reason,
    write_whole,
)

STATE_FILE = "state.pt"
CHECKSUMS = "checksums.json"
TENSORS = ".safetensors"
_MADE_WITH = "made_with"
_STEP = re.compile(r"step-(\d+)(?:\.replaced)?")
_FILE_NAME = re.compile(r"\w[\w-]*", re.ASCII)
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8} | {
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
}
_UNSAVABLE = (pickle.PicklingError, AttributeError, TypeError, RecursionError)
_UNREADABLE = (
    OSError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    TypeError,
    ValueError,
    LookupError,
    SafetensorError,
)
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Checkpoints:
    """A folder of `step-{N}` folders.

    Each holds `<entry>.safetensors` for every entry of the state that is a mapping with tensors in it, `state.pt` for all
    else, and `checksums.json`. keep_last: how many of the latest to keep, those found in the folder being older than what
    is saved here, and of no use if their step is later; a pinned one, such as the best, stays beside them. made_with:
    versions of the distributions whose components are used, written into each checkpoint.
    """

    def __init__(self, folder: Path, keep_last: int = 2, made_with: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.made_with = dict(made_with or {})
        self.pinned: int | None = None
        self._saved: list[int] = []

    def save(self, step: int, state: Mapping[str, Any], write_more: Callable[[Path], None] | None = None) -> Path:
        """Write the state of a step, and then remove what is no longer kept.

        write_more: writes further files into the draft folder that it is given; they are verified with the others.

        Raises SaveError where the checkpoint cannot be written, or could not be read back; those before it stay.
        """
        target = self.folder / f"step-{step}"
        try:
            self._remove_drafts()
            with folder_written_whole(target) as draft:
                _write(draft, {**state, **({_MADE_WITH: self.made_with} if self.made_with else {})})
                if write_more is not None:
                    write_more(draft)
                _write_checksums(draft)
        except _Unsavable as error:
            raise SaveError(
                f"checkpoint of step {step} could not be written to {self.folder}: {error}; the checkpoints before it are kept."
            ) from error
        except (OSError, RuntimeError, SafetensorError) as error:
            raise SaveError(self._not_written(step, state, error)) from error
        self._saved = [*(earlier for earlier in self._saved if earlier != step), step]
        self._remove_void(step)
        self._prune()
        return target

    def load(self, step: int) -> dict[str, Any]:
        """The state of a step, on the CPU, after its files are verified. Only tensors and plain values are read, never code.

        Warns where it was made with another version of a distribution than is used here. Raises DataError where a file is
        missing or damaged, or holds code.
        """
        folder = findable(self.folder / f"step-{step}")
        state = _read(folder, _verified(folder))
        for distribution, version in state.pop(_MADE_WITH, {}).items():
            self._warn_of_other_version(folder, distribution, version)
        return state

    def newest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is whole, with a warning of each damaged one; None where none is whole."""
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                state = self.load(step)
            except _DamagedError as error:
                damaged.append(f"checkpoint {error.file.parent} is damaged ({error.file.name}: {error.reason})")
                continue
            _warn_each(damaged, f"the one of step {step} before it is used.")
            return state
        _warn_each(damaged, "no whole one is before it.")
        return None

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return findable(self.folder / f"step-{step}")

    def pin(self, step: int) -> None:
        """Keep a step beside the latest ones, in place of the one pinned before."""
        self.pinned = step
        self._prune()

    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        found = (_STEP.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted({int(match.group(1)) for match in found if match})

    def _warn_of_other_version(self, folder: Path, distribution: str, version: str) -> None:
        here = self.made_with.get(distribution, version)
        if here != version:
            warnings.warn(
                f"checkpoint {folder} was made with {distribution} {version}, and {here} is installed; results may differ.",
                stacklevel=3,
            )

    def _remove_drafts(self) -> None:
        """Remove what killed saves have left."""
        for draft in self.folder.glob(".step-*.partial"):
            remove(draft)

    def _remove_void(self, step: int) -> None:
        """Remove later steps that were found here, of a longer training or damaged: they would pass for the newest."""
        for later in (each for each in self.steps() if each > step and each not in self._saved):
            remove_whole(self.folder / f"step-{later}")

    def _prune(self) -> None:
        found = self.steps()
        oldest_first = [step for step in found if step not in self._saved] + [s for s in self._saved if s in found]
        for step in oldest_first[: -self.keep_last]:
            if step != self.pinned:
                remove_whole(self.folder / f"step-{step}")

    def _not_written(self, step: int, state: Mapping[str, Any], error: Exception) -> str:
        advice = "Free some space and take" if error_code(error) in _FULL else "Take"
        return (
            f"checkpoint of step {step} could not be written to {self.folder}: {_why_not_written(error, state, self.folder)}; "
            f"the checkpoints before it are kept. {advice} the run up again with --resume."
        )


def save_state_dict(state: Mapping[str, Any], path: Path) -> None:
    """Write a state dict to one file, whole. Raises SaveError where it cannot be written; the former one stays."""
    try:
        write_whole(path, lambda draft: _save(dict(state), draft))
    except (OSError, RuntimeError) as error:
        reason = _why_not_written(error, state, path.parent)
        raise SaveError(f"the state dict {path} could not be written: {reason}; the file before it is kept.") from error


class _Unsavable(Exception):  # no error of its own: the reason in that of `save`
    """An entry of a state that could not be read back."""


class _DamagedError(DataError):
    """A checkpoint with a file that is missing, damaged or no checkpoint's."""

    def __init__(self, file: Path, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(f"checkpoint {file} cannot be read: {reason}; take an earlier one.")


def why_unsavable(value: Any) -> str | None:
    """Why a part of a state cannot be in a checkpoint, for a sentence of which it is the subject; None where it can."""
    written = io.BytesIO()
    try:
        torch.save(_without_numpy_numbers(value), written)
    except _UNSAVABLE as error:
        return f"cannot be saved ({_first_words(error)})"
    written.seek(0)
    try:
        torch.load(written, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        name = found.group(1) if found else "something"
        return f"holds {name}, which is no tensor and no plain value"
    return None


# Writing


def _write(folder: Path, state: Mapping[str, Any]) -> None:
    """The files of a state; what is in files of tensors leaves None in its place in `state.pt`."""
    rest = {entry: _without_numpy_numbers(value) for entry, value in state.items()}
    for entry, value in state.items():
        tensors = _plain_tensors(value) if _FILE_NAME.fullmatch(entry) else {}
        if tensors:
            _save_tensors(tensors, folder / f"{entry}{TENSORS}")
            rest[entry] = _without(rest[entry], tensors)
    try:
        _save(rest, folder / STATE_FILE)
        torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)  # mapped: no tensor is read
    except (*_UNSAVABLE, pickle.UnpicklingError) as error:
        raise _Unsavable(_blame(rest, error)) from error


def _plain_tensors(value: Any) -> dict[str, Tensor]:
    """The tensors directly in a mapping that safetensors gives back as they were; all others are pickled."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {name: tensor for name, tensor in items if isinstance(name, str) and _is_plain(tensor)}


def _is_plain(value: Any) -> bool:
    return (
        type(value) is Tensor
        and value.dtype in _DTYPES
        and value.layout == torch.strided
        and value.device.type != "meta"
        and not value.requires_grad
    )


def _without(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entry with None for each of the tensors; in the order and, of a module's state, with the metadata that it has."""
    kept: dict[str, Any] = OrderedDict() if isinstance(entry, OrderedDict) else {}
    kept.update({name: None if name in tensors else value for name, value in entry.items()})
    if isinstance(entry, OrderedDict):
        vars(kept).update(vars(entry))
    return kept


def _without_numpy_numbers(value: Any) -> Any:
    """The value with Python's numbers for numpy's, such as a learning rate, which would be read back as code."""
    if isinstance(value, numpy.generic):
        return value.item()
    if type(value) is dict:
        return {key: _without_numpy_numbers(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_numpy_numbers(inner) for inner in value)
    return value


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write each tensor once; the metadata give the first name of those that are the same, as safetensors' models do."""
    first: dict[Any, str] = {}
    names = {name: first.setdefault(_identity(name, tensor), name) for name, tensor in tensors.items()}
    own = _apart({name: tensors[name] for name in dict.fromkeys(names.values())})
    save_file(own, file, metadata={name: kept for name, kept in names.items() if name != kept})


def _identity(name: str, tensor: Tensor) -> Any:
    """Equal for tensors that are the same elements in memory."""
    if not tensor.numel():
        return name
    layout = tensor.dtype, tensor.shape, tensor.stride(), tensor.device
    return tensor.data_ptr(), *layout


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, each in memory that no other one has a part of, which safetensors would refuse."""
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: tensor
        if tensor.is_contiguous() and storages[tensor.untyped_storage().data_ptr()] == 1
        else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _save(value: Any, file: Path) -> None:
    with file.open("wb") as opened:  # not by its name: torch would not tell why a write has failed
        torch.save(value, opened)


def _write_checksums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in files
    }
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def _blame(state: Mapping[str, Any], error: Exception) -> str:
    """The entry that cannot be saved and read back, and why."""
    for entry, value in state.items():
        reason = why_unsavable(value)
        if reason:
            return f"its entry `{entry}` {reason}; keep that out of its state_dict()"
    return _first_words(error)


def _why_not_written(error: Exception, state: Mapping[str, Any], folder: Path) -> str:
    reason = system_reason(error) or _first_words(error)
    return reason + (_space(state, folder) if error_code(error) in _FULL else "")


def _space(state: Mapping[str, Any], folder: Path) -> str:
    """What the state needs, and what is free, where that explains it."""
    needed, free = sum(_sizes(state)), shutil.disk_usage(folder).free
    return f" (needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free)" if needed > free else ""


def _sizes(value: Any) -> Iterator[int]:
    """The bytes of each tensor in nested containers."""
    if isinstance(value, Tensor):
        yield value.nbytes
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _sizes(inner)


def _first_words(error: BaseException) -> str:
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__


# Reading


def _verified(folder: Path) -> set[str]:
    """The files that were written. Raises _DamagedError for the first that is not as it was."""
    sums = _checksums(folder)
    for name, written in sums.items():
        file = folder / name
        if not file.is_file():
            raise _DamagedError(file, "it is missing")
        size = file.stat().st_size
        if size != written["bytes"]:
            raise _DamagedError(file, f"it has {size} bytes, and was written with {written['bytes']}")
        if sha256_of(file) != written["sha256"]:
            raise _DamagedError(file, "its content is not what was written, by its SHA-256")
    return set(sums)


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / CHECKSUMS
    if not file.exists() and (folder / STATE_FILE).exists():
        raise _DamagedError(
            file, "it is missing, and a checkpoint without it, as brewer 0.1.0 wrote them, is not verified"
        )
    try:
        sums = dict(json.loads(file.read_text(encoding="utf-8")))
        return {name: {"bytes": int(each["bytes"]), "sha256": str(each["sha256"])} for name, each in sums.items()}
    except FileNotFoundError as error:
        raise _DamagedError(file, "it is missing") from error
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise _DamagedError(file, f"it holds no checksums ({_first_words(error)})") from error


def _read(folder: Path, written: Container[str]) -> dict[str, Any]:
    file = folder / STATE_FILE
    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
        for entry, value in state.items():
            if f"{entry}{TENSORS}" in written and isinstance(value, dict):
                file = folder / f"{entry}{TENSORS}"
                value.update(_load_tensors(file))
    except _UNREADABLE as error:
        raise _DamagedError(file, _first_words(error)) from error
    return state


def _load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, those that were the same under each of their names."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        same = opened.metadata() or {}
    return {**tensors, **{name: tensors[kept] for name, kept in same.items()}}


def _warn_each(damaged: list[str], then: str) -> None:
    for text in damaged:
        warnings.warn(f"{text}; {then}", stacklevel=3)
