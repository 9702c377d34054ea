"""Figures of teachers: what is measured of one on the same rows is measured once, and read in every later run.

They lie in the folder of caches, under `figures/`, each in a folder that is called by a hash of all that decides them: the teacher's
weights and code, its adaptors, the precision, the rows with their labels, and the metrics with their options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from brewer_core.cache.about import read_about, write_about
from brewer_core.cache.folders import FIGURES
from brewer_core.cache_folder import cache_root
from brewer_core.errors import DataError
from brewer_core.fingerprints import fingerprint
from brewer_core.run.assembly import Assembly
from brewer_core.run.evaluation import TaskEvaluators


def figures_of_teacher(
    assembly: Assembly,
    evaluators: TaskEvaluators,
    name: str,
    adaptors: Mapping[str, Callable[..., Any]],
    measure: Callable[[], Mapping[str, float]],
) -> Mapping[str, float]:
    """The figures of a teacher, by the name of its model.

    measure: measures them, in all processes; called where they are not known, or there is no cache.
    """
    root = cache_root(assembly.config.cache.path, assembly.base_dir)
    if root is None or assembly.config.fsdp:  # of a model in parts no process has all weights
        return measure()
    measured = {
        task: (adaptors[task], evaluators.evaluators[task].identity())
        for task in adaptors
        if task in evaluators.evaluators
    }
    folder = root / FIGURES / fingerprint(assembly.identity(name), assembly.config.precision, measured)

    def known() -> Mapping[str, float] | None:
        with suppress(DataError):
            figures: Mapping[str, float] = read_about(folder)["figures"]
            return figures
        return None

    def keep(figures: Mapping[str, float]) -> None:
        with suppress(OSError):  # it is measured again then
            write_about(folder, {"figures": dict(figures)})

    figures = assembly.processes.of_first(known)
    if figures is None:
        figures = measure()
        assembly.processes.of_first(lambda: keep(figures or {}))
    return figures
