"""What a model needs so that its inside can be seen: attention that is computed as a whole, checkpoints with a graph, hooks that run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from brewer_core.modules import all_modules

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

EAGER = "eager"


def fused(settings: Sequence[Any]) -> str:
    """How a model computes attention where it never holds it as a whole, `sdpa` for example; empty where it does."""
    return next((kind for each in settings if (kind := each._attn_implementation) not in (None, EAGER)), "")


@contextmanager
def eager_attention(settings: Sequence[Any]) -> Iterator[None]:
    """Attention of the models of these configs is computed as a whole, for as long as the context lasts."""
    before = [(each, each._attn_implementation) for each in settings]
    for each, kind in before:
        if kind not in (None, EAGER):
            each._attn_implementation = EAGER
    try:
        yield
    finally:
        for each, kind in before:  # the outermost first, for its setting is handed on to those inside
            if each._attn_implementation != kind:
                each._attn_implementation = kind


@contextmanager
def graphs_in_checkpoints(model: nn.Module, eager: Sequence[Any] = ()) -> Iterator[None]:
    """Layers of transformers that are computed again in the backward pass keep a graph: reentrant checkpoints have none inside.

    The gradients are the same in both forms. eager: the configs of models whose attention is computed as a whole in this forward
    pass, and has to be when a layer is computed again, after the context.
    """
    import torch

    changed: list[tuple[Any, Any]] = []
    for module in model.modules() if torch.is_grad_enabled() and model.training else ():
        inner = vars(module).get("_gradient_checkpointing_func")
        if inner is not None and (_is_reentrant(inner) or fused(eager)):
            changed.append((module, inner))
            with_graph = functools.partial(inner, use_reentrant=False) if _is_reentrant(inner) else inner
            module._gradient_checkpointing_func = functools.partial(_checkpointed, with_graph, eager)  # type: ignore[assignment]  # no tensor
    try:
        yield
    finally:
        for module, inner in changed:
            module._gradient_checkpointing_func = inner


def _is_reentrant(checkpoint: Any) -> bool:
    """Whether a function is torch's checkpoint in the form that computes a layer without a graph at first."""
    from torch.utils.checkpoint import checkpoint as of_torch

    inner = checkpoint.func if isinstance(checkpoint, functools.partial) else checkpoint
    told = checkpoint.keywords if isinstance(checkpoint, functools.partial) else {}
    return inner is of_torch and bool(told.get("use_reentrant", True))


def _checkpointed(checkpoint: Any, eager: Sequence[Any], layer: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer's checkpoint, in which attention is computed as a whole whenever the layer is computed."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with eager_attention(eager):
            return layer(*args, **kwargs)

    return checkpoint(run, *args, **kwargs)


def running_hooks(model: nn.Module, softmaxes: bool) -> AbstractContextManager[object]:
    """Hooks run also where a model is compiled: uncompiled, unless torch looks whether hooks have changed.

    softmaxes: what goes on inside its modules is watched, which a compiled one does not show.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    import torch
    from torch._dynamo import OptimizedModule, config

    if not any(
        module._compiled_call_impl is not None or isinstance(module, OptimizedModule) for module in all_modules(model)
    ):
        return nullcontext()

    if not softmaxes and not getattr(config, "skip_nnmodule_hook_guards", True):
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
