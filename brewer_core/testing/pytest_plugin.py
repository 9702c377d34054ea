"""The pytest plugin `brewer`: fixtures for the tests of plugins. Importing it loads no torch; a fixture does when it is used."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from brewer_core.registry import Registry
    from brewer_core.testing.tiny import TinyRun


@pytest.fixture
def seeded_tensors() -> Callable[..., Tensor]:
    """`seeded_tensors(*shape, seed=0)`: normally distributed numbers, the same for the same seed."""
    from brewer_core.testing.tensors import seeded_tensors

    return seeded_tensors


@pytest.fixture
def tiny_run() -> Callable[..., TinyRun]:
    """`tiny_run(match_loss="pkd", steps=3)`: a distillation of tiny models, in a tenth of a second; see `TinyRun`."""
    from brewer_core.testing.tiny import tiny_run

    return tiny_run


@pytest.fixture
def fake_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry]]:
    """`fake_distribution(name, version="1.0", entry_points={...}, files={...})`: a registry with one distribution more.

    Its files are written into a folder of the test, which is importable until the test is over; what was imported from it
    is forgotten then. Called again, it adds another one.
    """
    site = tmp_path / "site-packages"
    site.mkdir()
    before = set(sys.modules)
    yield functools.partial(_added, site, monkeypatch)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(site)):
            del sys.modules[name]


def _added(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    version: str = "1.0",
    entry_points: Mapping[str, str] | str = "",
    files: Mapping[str, str] | None = None,
) -> Registry:
    from brewer_core.plugins import environment_registry
    from brewer_core.testing.distributions import write_distribution

    write_distribution(site, name, version, entry_points, files)
    monkeypatch.syspath_prepend(site)
    return environment_registry()
