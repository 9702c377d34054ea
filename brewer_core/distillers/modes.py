"""The modes that models were in when a context was entered."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Modes:
    """The modes that models were in when a context was entered."""

    def __init__(self) -> None:
        self._were: list[tuple[nn.Module, bool]] = []

    def enter(self, training: Iterable[nn.Module] = (), evaluating: Iterable[nn.Module] = ()) -> None:
        """Put models in training or eval mode, and remember how each of their modules was.

        What is part of both, such as an embedding that a teacher and its student share, is put in training mode.
        """
        wanted = [(model, False) for model in evaluating] + [(model, True) for model in training]
        self._were += [(module, module.training) for model, _ in wanted for module in model.modules()]
        for model, mode in wanted:
            model.train(mode)

    def leave(self) -> None:
        """Put every module back."""
        for module, mode in self._were:
            module.training = mode
        self._were = []
