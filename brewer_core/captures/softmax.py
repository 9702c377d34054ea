"""What goes into and comes out of the softmax of an attention module, whatever scale, bias, cap and mask come before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_RANK = 4
"""Of attention: [B, H, L, L]."""


class Softmaxes:
    """Notes the softmax of the attention modules that run, each while it runs.

    note: called with a module, `scores` or `attention`, and the tensor.
    """

    def __init__(self, note: Callable[[nn.Module, str, Tensor], None]) -> None:
        self._note = note
        self._running: list[Any] = []

    def begin(self, module: nn.Module, inputs: Any) -> None:
        """A forward pre-hook."""
        del module, inputs
        watching = _watching_class()()
        watching.__enter__()
        self._running.append(watching)

    def end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook, to be called also where the module raised."""
        del inputs, output
        if self._running:
            seen = self._stop()
            if seen.scores is not None:
                self._note(module, "scores", seen.scores)
                self._note(module, "attention", seen.probabilities)

    def close(self) -> None:
        """Stop watching what never ended, such as a module that was interrupted."""
        while self._running:
            self._stop()

    def _stop(self) -> Any:
        watching = self._running.pop()
        watching.__exit__(None, None, None)
        return watching


@functools.cache
def _watching_class() -> type[Any]:
    """Made when it is first needed: its base is torch's, which is not to be imported with this module."""
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    softmax = (F.softmax, torch.softmax, torch.Tensor.softmax, torch.special.softmax)
    # what may be done to probabilities before a model returns them as its attention
    followed = (F.dropout, torch.dropout, torch.Tensor.to, torch.Tensor.type, torch.Tensor.type_as, torch.Tensor.float)

    class Watching(TorchFunctionMode):
        """Sees every function of torch that is called while it lasts, and remembers the first softmax over attention."""

        def __init__(self) -> None:
            super().__init__()
            self.scores: Tensor | None = None
            self.probabilities: Tensor | None = None

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            named = kwargs or {}
            result = func(*args, **named)
            given = args[0] if args else named.get("input")
            if self.scores is None:
                if func in softmax and given is not None and given.dim() == _RANK:
                    self.scores, self.probabilities = given, result
            elif given is self.probabilities and func in followed:
                self.probabilities = result
            return result

    return Watching
