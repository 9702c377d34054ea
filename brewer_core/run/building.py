"""Builds the caches that the stages of a config read of their teachers, before anything is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from brewer_core.batches import rows as count_rows
from brewer_core.cache import CachedTeacher, CacheFormat, chosen, packed, readable
from brewer_core.cache.folders import FIDELITY, SHOWN_DIGITS
from brewer_core.cache.rows import rows_of
from brewer_core.config import DistillStage, RunConfig
from brewer_core.errors import RequestError, SaveError, Stopped
from brewer_core.files import system_reason, write_whole
from brewer_core.precision import check_precision
from brewer_core.processes import Processes
from brewer_core.randomness import seeded
from brewer_core.run.assembly import Assembly
from brewer_core.run.caching import (
    NOT_OF_THE_ROW,
    Asked,
    batches_of,
    closing_caches,
    estimated_bytes,
    form_of,
    record_layout,
    refusal,
)
from brewer_core.run.fidelity import Fidelity, measured
from brewer_core.run.lessons import Lesson, distill_lesson
from brewer_core.run.reporting import Reporter
from brewer_core.run.tasks import named_teachers, trained_model
from brewer_core.stopping import StopReason, StopRequest

FLUSH_EVERY_S = 30.0
"""What a kill costs at most."""


@dataclass(frozen=True)
class Estimate:
    """What building a cache takes: its rows, those of them that are not there yet, and what these take."""

    rows: int
    missing: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class Built:
    """The cache of a teacher of a stage. fidelity: None where nothing was compared, or only an estimate was asked for."""

    stage: str
    teacher: str
    folder: Path
    estimate: Estimate
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class _Work:
    """A cache to build. numbers: this process's rows that are not there yet, the longest first."""

    stage: str
    teacher: str
    folder: Path
    estimate: Estimate
    numbers: Sequence[int]


def build_caches(
    assembly: Assembly,
    reporter: Reporter,
    stop: StopRequest,
    *,
    stage: str | None = None,
    only_estimate: bool = False,
    fidelity_rows: int = 64,
) -> list[Built]:
    """Build the caches of all distill stages, or of one, as far as their rows are not there yet.

    Teachers that the run trains before are left out, for their weights are others then. fidelity_rows: how many rows are compared
    with the teacher afterwards. All processes call it, each builds its share of the rows, and the first alone reports.

    Raises RequestError where there is nothing to build, or a cache is being built by others; ConfigError where a cache cannot be,
    or has not the room; SaveError where it cannot be completed; Stopped where it was asked to stop: what was computed is kept.
    """
    check_precision(assembly.config.precision, assembly.device)
    wanted = _positions(assembly.config, stage)
    reporter.say("checking data and models")
    with seeded(assembly.seed("run"), assembly.device):
        planned = {position: _planned(assembly, position, reporter) for position in wanted}
        works = [work for _, each in planned.values() for work in each]
        if not works:
            raise RequestError(
                "nothing to build: the run trains every teacher before it asks it, and builds the caches itself."
            )
        if only_estimate:
            return [Built(work.stage, work.teacher, work.folder, work.estimate) for work in works]
        return [
            built
            for position, (lesson, of_stage) in planned.items()
            for built in _of_stage(assembly, position, lesson, of_stage, reporter, stop, fidelity_rows, len(wanted) > 1)
        ]


def _positions(config: RunConfig, stage: str | None) -> list[int]:
    """Which stages' caches are asked for."""
    names = {s.name: i for i, s in enumerate(config.stages) if isinstance(s, DistillStage)}
    if not names:
        raise RequestError("nothing to build: the config has no distill stage, so no teacher is asked for anything.")
    if stage is not None and stage not in names:
        raise RequestError(f"--stage: the config has no distill stage {stage!r}; it has {', '.join(names)}.")
    return list(names.values()) if stage is None else [names[stage]]


def _planned(assembly: Assembly, position: int, reporter: Reporter) -> tuple[Lesson, list[_Work]]:
    """What a stage is about, and which caches it asks for; says what each takes, and which are left out."""
    lesson, stage, works = _lesson(assembly, position), assembly.config.stages[position], list[_Work]()
    assert isinstance(stage, DistillStage)
    for name, ref in named_teachers(stage).items():
        trained = _trained_by(assembly.config, position, ref.model)
        if trained is not None:
            reporter.say(
                f"{stage.name}: no cache of {name} ahead, as the stage {trained} trains it before; the run builds it"
            )
            continue
        work = _work(assembly, stage.name, lesson, lesson.asked[name])
        reporter.say(f"{stage.name}: cache of {name}: {_told(work.estimate)}, in {work.folder}")
        works.append(work)
    return lesson, works


def _lesson(assembly: Assembly, position: int) -> Lesson:
    stage = assembly.config.stages[position]
    assert isinstance(stage, DistillStage)
    return distill_lesson(assembly, stage, f"stages[{position}]", assembly.model(stage.student))


def _trained_by(config: RunConfig, position: int, model: str) -> str | None:
    """The stage before a position that trains a model."""
    return next((stage.name for stage in config.stages[:position] if trained_model(stage) == model), None)


def _work(assembly: Assembly, stage: str, lesson: Lesson, asked: Asked) -> _Work:
    teacher, decision = lesson.teachers[asked.name], lesson.decisions[asked.name]
    against = decision.reason or _against_ahead(asked)
    if against or not isinstance(teacher, CachedTeacher):
        raise refusal(asked.name, against)
    numbers = _missing(teacher, asked, assembly.processes, lesson.training.micro_batch_rows)
    form = form_of(assembly)
    lengths = [asked.rows.lengths[number] for number in numbers]
    seconds = sum(lengths) * _seconds_per_token(form, asked)
    size_bytes = estimated_bytes(record_layout(form, asked), lengths)
    missing, size = assembly.processes.sums([len(numbers), size_bytes])
    estimate = Estimate(len(asked.rows), int(missing), int(size), max(assembly.processes.gathered(seconds)))
    return _Work(stage, asked.name, teacher.store(asked.needs).folder, estimate, numbers)


def _against_ahead(asked: Asked) -> str:
    """What stands against building a cache before the run that reads it; empty where nothing does."""
    if any(asked.rows.augmenters):
        return "its rows are augmented, and new in every pass"
    if asked.rows.padding_side == "left":
        return "its tokenizer pads before a row, which moves the row's tokens, so that each batch has rows of its own"
    if record_layout(CacheFormat(), asked).padded_to is not None:
        return (
            "a feature that is read of it cannot be cut to a row's tokens, and is known again at one padded length alone; let its "
            "adaptor return `inputs_mask` and `logits_mask`"
        )
    return ""


def _missing(teacher: CachedTeacher, asked: Asked, processes: Processes, size: int) -> list[int]:
    """Rows of the process that are not there yet, the longest first: what the memory does not hold is met at once."""
    lengths, store = asked.rows.lengths, teacher.store(asked.needs)
    own = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[processes.rank :: processes.count]
    found = []
    for numbers, batch in batches_of(asked, own, size):
        held = store.find(teacher.rows(batch))
        found += [number for number, place in zip(numbers, held, strict=True) if place is None]
    return found


def _seconds_per_token(form: CacheFormat, asked: Asked) -> float:
    """How long the teacher takes for a token, padding counted, by a batch that it has seen before."""
    rows, started = rows_of(asked.batch, ignore=NOT_OF_THE_ROW), time.perf_counter()
    features = asked.teacher.features(asked.batch, asked.needs)
    packed(chosen(features, asked.needs), rows, form)  # waits for the device, too
    return (time.perf_counter() - started) / (count_rows(asked.batch) * (rows.length or 1))


def _told(estimate: Estimate) -> str:
    missing = estimate.missing
    if not missing:
        return f"all {estimate.rows:,} rows are there"
    which = (
        f"{estimate.rows:,} rows" if missing == estimate.rows else f"{missing:,} of {estimate.rows:,} rows are missing"
    )
    return f"{which}, {readable(estimate.size_bytes)}, about {_duration(estimate.seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _of_stage(
    assembly: Assembly,
    position: int,
    lesson: Lesson,
    works: Sequence[_Work],
    reporter: Reporter,
    stop: StopRequest,
    fidelity_rows: int,
    again: bool,
) -> Iterator[Built]:
    """Build the caches of a stage. again: other stages were planned since, and have set the models to what they read."""
    lesson = _lesson(assembly, position) if again else lesson
    with closing_caches(lesson.teachers):
        for work in works:
            teacher, asked = lesson.teachers[work.teacher], lesson.asked[work.teacher]
            assert isinstance(teacher, CachedTeacher)
            if work.estimate.missing:
                _build(assembly, work, teacher, asked, lesson.training.micro_batch_rows, reporter, stop)
            compared = partial(_compared, assembly, work, lesson, asked, teacher, fidelity_rows)
            fidelity = assembly.processes.of_first(compared) if fidelity_rows else None
            yield Built(work.stage, work.teacher, work.folder, work.estimate, fidelity)


def _build(
    assembly: Assembly,
    work: _Work,
    teacher: CachedTeacher,
    asked: Asked,
    size: int,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    processes, store = assembly.processes, teacher.store(asked.needs)
    processes.of_first(lambda: _reserve(teacher, asked))
    asked_for, flushed = 0, time.monotonic()
    bar = reporter.bar(f"{work.stage}: {work.teacher}")
    bar.begin(len(work.numbers))
    try:
        with stop.heeding():
            for numbers, batch in batches_of(asked, work.numbers, size):
                if stop.reason or store.keeps_no_more:
                    break
                teacher.features(batch, asked.needs)
                asked_for += len(numbers)
                if time.monotonic() - flushed > FLUSH_EVERY_S:
                    teacher.flush()
                    flushed = time.monotonic()
                bar.stepped(asked_for)
    finally:
        bar.end()
        teacher.close()
    _conclude(processes, work, asked_for, stop.reason, store.keeps_no_more)


def _conclude(processes: Processes, work: _Work, asked_for: int, reason: StopReason, full: str | None) -> None:
    """Raise where any process did not come to the end of its rows."""
    (stopped,), (done,) = processes.most([reason]), processes.sums([asked_for])
    ends = [each for each in processes.gathered(full) if each is not None]
    if ends:
        raise SaveError(
            f"the cache of teacher {work.teacher!r} is not complete: it keeps no more rows, as {ends[0]}. Make room, or raise "
            "cache.limit_gb, and the same command goes on."
        )
    if stopped and done < work.estimate.missing:
        why, told = StopReason(stopped), f"{int(done):,} of {work.estimate.missing:,} rows"
        raise Stopped(f"stopped {why.words} after {told}, which are kept; the same command goes on", why.exit_status)


def _reserve(teacher: CachedTeacher, asked: Asked) -> None:
    store = teacher.store(asked.needs)
    try:
        if store.reserve():
            return
    except OSError as error:
        raise SaveError(f"{store.folder} cannot be written: {system_reason(error) or error}.") from error
    raise RequestError(
        f"the cache {store.folder.name[:SHOWN_DIGITS]} of teacher {asked.name!r} is being built by another process now; wait until "
        "that is done, or stop it."
    )


def _compared(
    assembly: Assembly, work: _Work, lesson: Lesson, asked: Asked, teacher: CachedTeacher, count: int
) -> Fidelity:
    """How far the cache is from its teacher, which is written beside it."""
    fidelity = measured(assembly, work.stage, lesson, asked, teacher, count)
    text = json.dumps(fidelity.to_json(), indent=2) + "\n"
    try:
        write_whole(work.folder / FIDELITY, lambda draft: draft.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise SaveError(f"{work.folder} cannot be written: {system_reason(error) or error}.") from error
    return fidelity
