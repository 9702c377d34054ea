"""Which teachers of a stage are cached, and what that takes: decided before anything is trained.

A cache that the config names is built, or refused with an error. With `auto` a teacher stays live where a cache would be of no use, or too
large, and the run says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from brewer_core.cache import CachedTeacher, CacheFormat, chosen, packed, readable
from brewer_core.cache.layout import Layout
from brewer_core.cache.parts import INDEX_BYTES
from brewer_core.cache.rows import rows_of
from brewer_core.cache_folder import cache_root
from brewer_core.errors import AdaptorError, ConfigError, DataError
from brewer_core.features import Features
from brewer_core.learner import Learner
from brewer_core.protocols import Batch, Strategy, Teacher
from brewer_core.run.assembly import Assembly, JoinedText

NOT_OF_THE_ROW = ("labels", "row")
"""Columns of a batch that no model is given."""

_LOOKED_UP_AT_ONCE = 256

_SHARE_OF_DISK = 0.5
"""How much of what is free on the disk `auto` takes at most."""


@dataclass(frozen=True)
class Asked:
    """A teacher of a stage, what is read of it, and a batch of the rows that it is asked about with its features for that.

    task: the one that it teaches; "" where the strategy draws none.
    """

    name: str
    teacher: Teacher
    needs: frozenset[str]
    batch: Batch
    features: Features
    rows: JoinedText
    task: str = ""


@dataclass(frozen=True)
class Decision:
    """The folder of caches, or None and why there is none. size_bytes: what all rows take."""

    folder: Path | None
    reason: str = ""
    size_bytes: int = 0


def cached(assembly: Assembly, decision: Decision, asked: Asked) -> CachedTeacher:
    """The teacher with a cache."""
    settings, processes = assembly.config.cache, assembly.processes
    return CachedTeacher(
        asked.teacher,
        ignore=NOT_OF_THE_ROW,
        folder=decision.folder,
        format=form_of(assembly),
        limit_gb=settings.limit_gb,
        builder=processes.rank,
        shares_lock=not processes.first,
    )


def decided(assembly: Assembly, strategy: Strategy, asked: Asked) -> Decision:
    """Whether a teacher is cached. Raises ConfigError where the config asks for a cache that cannot be."""
    settings = assembly.config.cache
    if not settings.on:
        return Decision(None, 'the cache is "off"')
    folder = cache_root(settings.path, assembly.base_dir)
    against = _against(assembly, strategy, asked) or ("there is no folder for caches here" if folder is None else "")
    decision = Decision(folder) if against else _sized(assembly, folder, asked)
    against = against or decision.reason
    if against and settings.path != "auto":
        raise refusal(asked.name, against)
    return Decision(None, against) if against else decision


def refusal(name: str, reason: str) -> ConfigError:
    """The error for a cache that is asked for and cannot be."""
    return ConfigError([f"cache.path: teacher {name!r} cannot be cached, as {reason}"], "config")


def check_form(
    assembly: Assembly, path: str, learner: Learner, decisions: Mapping[str, Decision], asked: Mapping[str, Asked]
) -> None:
    """Raises ConfigError where the losses of a stage need more of the teachers' logits than the cache keeps. path: of its distillation."""
    kept = form_of(assembly).kept
    logits = [each.features.first("logits") for name, each in asked.items() if decisions[name].folder is not None]
    sizes = {int(head.shape[-1]) for head in logits if head is not None}
    if kept is None or not sizes:
        return
    refused = learner.strategy.refuses_sparse(learner.objective, replace(kept, size=max(sizes)))
    if refused:
        raise ConfigError([f"{path}.{problem}" for problem in refused], "config")


def _against(assembly: Assembly, strategy: Strategy, asked: Asked) -> str:
    """What stands against a cache; empty where nothing does."""
    if "teachers" in assembly.config.fsdp:
        return "all processes ask teachers in parts together, and each would ask only about rows that are new to it"
    if type(strategy).prepare is not Strategy.prepare:
        return "the strategy makes its own texts, which are new in every pass"
    if any(asked.rows.augmenters) and assembly.config.cache.path == "auto":
        return "its rows are augmented, and new in every pass"
    return ""


def _sized(assembly: Assembly, folder: Path | None, asked: Asked) -> Decision:
    settings, processes = assembly.config.cache, assembly.processes
    try:
        layout = record_layout(form_of(assembly), asked)
    except (AdaptorError, DataError) as error:
        return Decision(folder, str(error).rstrip("."))
    assert folder is not None
    there = _there(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Decision(folder, f"{there} is no folder that can be written")
    size_bytes = estimated_bytes(layout, asked.rows.lengths)
    free = processes.of_first(lambda: shutil.disk_usage(there).free)
    room = free * _SHARE_OF_DISK if settings.path == "auto" else free
    if size_bytes > settings.limit_gb * 1e9:
        return Decision(folder, f"it would take {readable(size_bytes)}, and cache.limit_gb is {settings.limit_gb:g}")
    if size_bytes > room and size_bytes > room + (held_bytes(assembly, folder, asked) if folder.exists() else 0):
        most = ", of which auto takes half at most; name it as `cache` to take all" if settings.path == "auto" else ""
        return Decision(folder, f"it would take {readable(size_bytes)}, and {folder} has {readable(free)} free{most}")
    return Decision(folder, "", size_bytes)


def holds_all(teacher: CachedTeacher, asked: Asked) -> bool:
    """Whether a cache holds every row that its teacher is asked about, as they are trained on: none is augmented."""
    store = teacher.store(asked.needs)
    numbers = range(len(asked.rows))
    if any(asked.rows.augmenters) or not len(store):
        return False
    pieces = batches_of(asked, numbers, _LOOKED_UP_AT_ONCE)
    return all(None not in store.find(teacher.rows(batch)) for _, batch in pieces)


def batches_of(asked: Asked, numbers: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], Batch]]:
    """Batches of so many of a teacher's rows, in the order of their numbers, each with those; as they stand in the data."""
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        yield some, asked.rows.collate([asked.rows.view(number) for number in some])


def form_of(assembly: Assembly) -> CacheFormat:
    """The form in which the config has features kept."""
    return CacheFormat(**assembly.config.cache.form)


def record_layout(form: CacheFormat, asked: Asked) -> Layout:
    """How records would lie, by the features of a few rows. Raises AdaptorError for features that cannot be kept by row."""
    rows = rows_of(asked.batch, ignore=NOT_OF_THE_ROW)
    return packed(chosen(asked.features, asked.needs), rows, form)[0]


def estimated_bytes(layout: Layout, lengths: Sequence[int]) -> int:
    """What rows of so many tokens take."""
    return sum(layout.size(length) for length in lengths) + INDEX_BYTES * len(lengths)


def held_bytes(assembly: Assembly, folder: Path, asked: Asked) -> int:
    """What is there of a teacher's cache already."""
    with cached(assembly, Decision(folder), asked) as teacher:
        return teacher.store(asked.needs).size_bytes


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return next((each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()), Path())


def notes(decisions: Mapping[str, Decision]) -> list[str]:
    """What is said of the caches of a stage, a line for each teacher."""
    return [
        f"cache of {name}: {readable(decision.size_bytes)} for all rows, in {decision.folder}"
        if decision.folder
        else f"no cache of {name}, as {decision.reason}"
        for name, decision in decisions.items()
    ]


@contextmanager
def closing_caches(teachers: Mapping[str, Teacher]) -> Iterator[None]:
    """Afterwards other processes may build what these teachers were building."""
    try:
        yield
    finally:
        for teacher in teachers.values():
            if isinstance(teacher, CachedTeacher):
                teacher.close()
