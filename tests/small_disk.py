"""A small disk that is soon full, for tests: a tmpfs in a name space of its own, which takes no rights to make."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_APART = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")


def run_on_a_small_disk(
    command: Sequence[str], folder: Path, size: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command that sees a disk of this size in the place of a folder; the test is skipped where none can be had."""
    mounted = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    if (
        shutil.which("unshare") is None
        or subprocess.run([*_APART, mounted], capture_output=True, check=False).returncode
    ):
        pytest.skip("no small disk can be had here: unshare and mount give none")
    return subprocess.run(
        [*_APART, f'{mounted} && exec "$0" "$@"', *command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
