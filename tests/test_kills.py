"""A run that is killed with SIGKILL inside its saves ends as if nothing had happened; `nox -s faults` kills many more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from faults.kill_runs import Kills, compare, configs

pytest.importorskip("transformers", reason="runs need the extra hf")


@pytest.mark.parametrize("name", ["general", "a cached teacher"])
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    kills = Kills(2, random.Random(3), inside=1.0)  # at flushes that are counted, so the same ones every time
    assert compare(name, {**configs()[name], "seed": 3}, tmp_path, kills) == []
    assert kills.moments.total() == 2
