"""What a model needs so that its inside can be seen: attention that is computed as a whole, checkpoints with a graph, hooks that run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

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
def graphs_in_checkpoints(model: nn.Module) -> Iterator[None]:
    """Layers of transformers that are computed again in the backward pass keep a graph: reentrant checkpoints have none inside.

    The gradients are the same in both forms.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    changed: list[tuple[Any, Any]] = []
    for module in model.modules() if torch.is_grad_enabled() and model.training else ():
        inner = vars(module).get("_gradient_checkpointing_func")
        if (
            isinstance(inner, functools.partial)
            and inner.func is checkpoint
            and inner.keywords.get("use_reentrant", True)
        ):
            changed.append((module, inner))
            module._gradient_checkpointing_func = functools.partial(inner, use_reentrant=False)  # type: ignore[assignment]  # no tensor
    try:
        yield
    finally:
        for module, inner in changed:
            module._gradient_checkpointing_func = inner


def running_hooks(model: nn.Module, softmaxes: bool) -> AbstractContextManager[object]:
    """Hooks run also where a model is compiled: uncompiled, unless torch looks whether hooks have changed.

    softmaxes: what goes on inside its modules is watched, which a compiled one does not show.
    """
    if "torch._dynamo" not in sys.modules or not any(map(_is_compiled, model.modules())):
        return nullcontext()
    import torch
    from torch._dynamo import config

    if not softmaxes and not getattr(config, "skip_nnmodule_hook_guards", True):
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _is_compiled(module: nn.Module) -> bool:
    from torch._dynamo import OptimizedModule

    return module._compiled_call_impl is not None or isinstance(module, OptimizedModule)
