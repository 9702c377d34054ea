"""Fake distributions and throw-away plugins: real files and real hooks, so that no test needs a mock."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

from brewer_core import hookimpl


def fake_distribution(
    folder: Path,
    name: str,
    version: str = "1.0",
    entry_points: Mapping[str, str] | str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write what an installer leaves of a distribution into a folder, and return the folder.

    entry_points: those of the group `brewer` by name, or the whole text of `entry_points.txt`.
    files: the text of the distribution's modules by path.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if not isinstance(entry_points, str):
        entry_points = "[brewer]\n" + "".join(f"{entry} = {target}\n" for entry, target in entry_points.items())
    (info / "entry_points.txt").write_text(entry_points)
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(dedent(text))
    return folder


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
