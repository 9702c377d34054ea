"""A run ends with the same student however its steps are split into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from brewer_core.run import run_config
from runs import films, weights_in, write_config
from test_many_processes import CONFIGS, assert_same_weights

SPLITS = ((12, 1), (6, 2), (1, 12))


def split(config: Mapping[str, Any], rows: int, accumulation: int) -> dict[str, Any]:
    more = {"batch_size": rows, "accumulation": accumulation}
    stages = [{**stage, "training": {**stage["training"], **more}} for stage in config["stages"]]
    return {**config, "stages": stages}


@pytest.mark.parametrize("name", ["general", "multi_teacher", "multi_task"])
def test_every_split_of_a_step_ends_with_the_same_student(tmp_path: Path, name: str) -> None:
    films(tmp_path)
    students = []
    for rows, accumulation in SPLITS:
        file = write_config(tmp_path, split(CONFIGS[name](), rows, accumulation), f"{rows}.json")
        summary = run_config(file, output=tmp_path / str(rows))
        students.append((summary["steps"], weights_in(tmp_path / str(rows) / "student")))
    for steps, student in students[1:]:
        assert steps == students[0][0]
        assert_same_weights(student, students[0][1])


def test_the_rows_of_a_step_are_the_same_however_it_is_split() -> None:
    from brewer_core.run.loading import LengthGroupedBatches

    lengths = torch.randint(1, 40, (101,), generator=torch.Generator().manual_seed(0)).tolist()

    def steps(batch_size: int) -> list[list[set[int]]]:
        made = LengthGroupedBatches(lengths, batch_size, 5, step_rows=12)
        passes = [list(made) for _ in range(3)]
        size = 12 // batch_size
        return [[set().union(*each[i : i + size]) for i in range(0, len(each), size)] for each in passes]

    whole = steps(12)
    assert [[len(step) for step in each] for each in whole] == [[12] * 8 + [5]] * 3
    assert steps(6) == steps(4) == steps(1) == whole
