"""Gradient checkpointing and torch.compile, on a student and its teachers for as long as it is trained and no longer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from brewer_core.config.optimization import Optimization
from brewer_core.errors import ConfigError, did_you_mean
from brewer_core.sharding import is_sharded


@contextmanager
def training_modes(
    student: nn.Module,
    training: Optimization,
    path: str = "training",
    teachers: Sequence[nn.Module] = (),
    several_backward: bool = False,
) -> Iterator[None]:
    """Switch on what a training asks for, and off again however it ends.

    path: where the training stands in the config. teachers: compiled with the student, each once, unless it is in parts.
    several_backward: a graph goes backward more than once, for the gradient of each term.
    Raises ConfigError where the student or torch does not have it.
    """
    with contextlib.ExitStack() as modes:
        if training.gradient_checkpointing:
            modes.enter_context(_checkpointing(student, f"{path}.gradient_checkpointing"))
        if training.compile and several_backward:
            modes.enter_context(_keeping_graphs())
        if training.compile:
            whole = [
                teacher for teacher in dict.fromkeys(teachers) if teacher is not student and not is_sharded(teacher)
            ]
            modes.enter_context(_compiled([student, *whole], training.compile, f"{path}.compile"))
        yield


@contextmanager
def _checkpointing(student: nn.Module, path: str) -> Iterator[None]:
    """With reentrant checkpoints hooks inside a layer would see tensors without a graph."""
    if any(getattr(module, "gradient_checkpointing", False) for module in student.modules()):
        yield  # whoever made the model wants it so
        return
    enable, disable = _switches(student, path)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError([_no_checkpointing(student, path)]) from error
    try:
        yield
    finally:
        disable()


def _switches(student: nn.Module, path: str) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """The methods of a Hugging Face model, which were `gradient_...` before they became `activation_...`."""
    for kind in ("activation", "gradient"):
        enable = getattr(student, f"{kind}_checkpointing_enable", None)
        disable = getattr(student, f"{kind}_checkpointing_disable", None)
        if enable is not None and disable is not None:
            return enable, partial(_disable, student, disable)
    raise ConfigError([_no_checkpointing(student, path)])


def _disable(student: nn.Module, disable: Callable[[], Any]) -> None:
    disable()
    with contextlib.suppress(AttributeError):  # a model without them, or a release that has put none on
        student.disable_input_require_grads()  # type: ignore[operator]  # hooks on embeddings, which `disable` leaves


def _no_checkpointing(student: nn.Module, path: str) -> str:
    return f"{path}: {type(student).__name__} has no gradient checkpointing; leave it out"


def _keeping_graphs() -> AbstractContextManager[Any]:
    """Compiled backward passes write over what was saved for them, and refuse to run again, unless torch is told before."""
    import torch._functorch.config as functorch

    patched: AbstractContextManager[Any] = functorch.patch(donated_buffer=False)
    return patched


@contextmanager
def _compiled(models: Sequence[nn.Module], backend: bool | str, path: str) -> Iterator[None]:
    """In place, so that the names of their weights stay."""
    _check_backend(backend, path)
    before = [model._compiled_call_impl for model in models]
    for model in models:
        model.compile(**({} if backend is True else {"backend": backend}))
    try:
        # Hooks come and go with what is captured in a forward pass; torch would not look whether they have.
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            yield
    finally:
        for model, call in zip(models, before, strict=True):
            model._compiled_call_impl = call  # torch has no public way back
        torch.compiler.reset()  # what was compiled counts against torch's limit for the next stage


def _check_backend(backend: bool | str, path: str) -> None:
    """Raises ConfigError for a name that torch does not know; nothing is traced."""
    if backend is not True and backend not in torch.compiler.list_backends(exclude_tags=()):
        usual = [*torch.compiler.list_backends(), "aot_eager", "eager"]  # the others are torch's own tests
        raise ConfigError([f"{path}: torch has no backend {backend!r}{did_you_mean(str(backend), usual)}"])
