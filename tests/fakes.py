"""Fake distributions and throw-away plugins: real files and real hooks, so that no test needs a mock."""

from __future__ import annotations

import types
from collections.abc import Callable
from textwrap import dedent
from typing import Any

from brewer_core import hookimpl
from brewer_core.testing import write_distribution as fake_distribution  # noqa: F401  # under the name that tests use


def plugin(**hooks: Any) -> types.SimpleNamespace:
    """A plugin object: `plugin(brewer_kd_losses={"l1": l1})` has that hook, returning that value."""
    return types.SimpleNamespace(**{name: _hook(name, returned) for name, returned in hooks.items()})


def _hook(name: str, returned: Any) -> Callable[[], Any]:
    def hook() -> Any:
        return returned

    hook.__name__ = name
    return hookimpl(hook)


def loss_module(*names: str, hook: str = "brewer_kd_losses") -> str:
    """The text of a healthy plugin module that provides a loss under each name."""
    return dedent(
        f'''
        from brewer_core import hookimpl

        def loss(student_logits, teacher_logits, temperature, *, scale: float = 1.0):
            """Mean difference."""
            return scale * (student_logits - teacher_logits).mean()

        @hookimpl
        def {hook}():
            return dict.fromkeys({names!r}, loss)
        '''
    )
