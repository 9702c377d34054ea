"""What models and data sets promise: both are made from a seed, in a run."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import nn

from brewer_core.errors import BrewerError
from brewer_core.protocols import LoadedModel, Task
from brewer_core.testing.conformance import SEED, Conformance, does_not_apply, require
from brewer_core.testing.tensors import same_bits

TASK = Task("text_classification", ("negative", "positive"))
ROWS_LOOKED_AT = 100


class MadeConformance(Conformance):
    """What is made by one call, from its options and the inputs of a run."""

    def inputs(self) -> dict[str, Any]:
        """What a run gives it by name: `task`, `seed`, `base_dir` and more. Override it to add a tokenizer or a teacher."""
        return {"task": TASK, "seed": SEED, "base_dir": Path.cwd()}

    def made(self, **changes: Any) -> Any:
        """What it makes; a property is skipped where it cannot be made without options, and none are given."""
        try:
            return self.bound()(**{**self.inputs(), **changes})
        except (BrewerError, OSError, ImportError) as error:  # what is missing: an option, a file, a network, a library
            if self.chosen:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            does_not_apply(f"without options it cannot be made; give `options`, or @component(example=...) ({reason})")

    def test_global_generators(self) -> None:
        """The global generators of Python, numpy and torch are left as they were."""
        before = global_generators()
        self.made()
        for name, state in global_generators().items():
            require(state == before[name], f"draws from the global generator of {name}; use one made from `seed`")


class ModelConformance(MadeConformance):
    """Properties of a model that a run config can name."""

    kind: ClassVar[str] = "model"

    def inputs(self) -> dict[str, Any]:
        """What a run gives it by name: a task of two classes, for a student."""
        return {**super().inputs(), "role": "student", "num_labels": len(TASK.labels)}

    def test_loaded(self) -> None:
        """It gives a LoadedModel of an nn.Module with parameters, in float32, on the CPU."""
        made = self.made()
        require(isinstance(made, LoadedModel), f"makes a {type(made).__name__}; return brewer_core.LoadedModel")
        require(isinstance(made.model, nn.Module), f"makes a model that is a {type(made.model).__name__}, no nn.Module")
        parameters = list(made.model.parameters())
        require(bool(parameters), "makes a model without parameters")
        numbers = [p for p in parameters if p.is_floating_point()]
        require(
            all(p.dtype == torch.float32 and p.device.type == "cpu" for p in numbers), "is not in float32 on the CPU"
        )

    def test_seeded(self) -> None:
        """One seed gives the same weights."""
        first, again = (self.made().model.state_dict() for _ in range(2))
        same = list(first) == list(again) and all(same_bits(first[name], again[name]) for name in first)
        require(same, "draws other weights from the same seed; draw from `seed`")

    def test_saved(self) -> None:
        """Its `save` writes files into a folder that is there."""
        made = self.made()
        with tempfile.TemporaryDirectory() as folder:
            made.save(Path(folder))
            require(any(Path(folder).iterdir()), "writes nothing when it is saved")


class DatasetConformance(MadeConformance):
    """Properties of a source of data that a run config can name."""

    kind: ClassVar[str] = "dataset"

    def test_splits(self) -> None:
        """It gives a mapping from the names of splits to rows, of which there are some."""
        splits = self.made()
        named = isinstance(splits, Mapping) and bool(splits) and all(isinstance(name, str) for name in splits)
        require(named, f"gives {type(splits).__name__}; expected a mapping from the names of splits to rows")
        for name, rows in splits.items():
            require(len(rows) > 0, f"gives no rows of `{name}`")

    def test_rows(self) -> None:
        """Every row is a mapping, and the rows of a split have the same columns."""
        for name, rows in self.made().items():
            columns: set[tuple[str, ...]] = set()
            for row in _head(rows):
                require(
                    isinstance(row, Mapping), f"gives a row of `{name}` as {type(row).__name__}; expected a mapping"
                )
                columns.add(tuple(sorted(row)))
            require(len(columns) <= 1, f"gives rows of `{name}` with different columns: {sorted(columns)}")

    def test_seeded(self) -> None:
        """One seed gives the same rows, in the same order."""
        first, again = ({name: _head(rows) for name, rows in self.made().items()} for _ in range(2))
        require(first == again, "gives other rows for the same seed; draw from `seed`")


def global_generators() -> dict[str, str]:
    """The states of the global generators of Python, numpy and torch."""
    return {
        "Python": repr(random.getstate()),
        "numpy": repr([part.tolist() if hasattr(part, "tolist") else part for part in numpy.random.get_state()]),
        "torch": repr(torch.random.get_rng_state().tolist()),
    }


def _head(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [rows[i] for i in range(min(len(rows), ROWS_LOOKED_AT))]
