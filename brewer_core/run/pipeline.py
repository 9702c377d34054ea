"""`run_config`: a whole run from its config, through its stages and baselines, to its folder and its summary."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from brewer_core.cache_folder import CACHE_WORDS
from brewer_core.checkpoints import Checkpoints
from brewer_core.config import ComponentRef, DistillStage, RunConfig, load_run_config
from brewer_core.errors import RequestError, SaveError, Stopped
from brewer_core.files import findable, folder_written_whole, system_reason
from brewer_core.plugins import default_registry
from brewer_core.processes import Processes, own_gpu
from brewer_core.protocols import LoadedModel
from brewer_core.randomness import seeded
from brewer_core.registry import Registry
from brewer_core.run import folder as names
from brewer_core.run.assembly import TOKENIZER_WORDS, Assembly, ModelFacts
from brewer_core.run.figures import figures_of_teacher
from brewer_core.run.folder import RunFolder, UnwrittenFolder, holds_run, latest_run
from brewer_core.run.lessons import Lesson, distill_lesson, supervised_lesson
from brewer_core.run.manifest import made_with, manifest, now
from brewer_core.run.planning import evaluators_for, plan, teacher_models
from brewer_core.run.reporting import Reporter
from brewer_core.run.resuming import check_same_config, check_same_data, check_same_plugin_files, fingerprints, hashes
from brewer_core.run.stages import CHECKPOINTS, Outcome, Session, train
from brewer_core.run.tasks import adaptor_of, tasks_of_model, trained_model
from brewer_core.sharding import weights_of
from brewer_core.stopping import StopRequest

_FINISHED = "finished"


def run_config(
    config: RunConfig | Path | str,
    *,
    output: Path | str | None = None,
    base_dir: Path | str | None = None,
    overwrite: bool = False,
    resume: bool | None = None,
    device: str = "auto",
    registry: Registry | None = None,
    reporter: Reporter | None = None,
    plugin_files: tuple[Path, ...] = (),
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Carry out a run and return its summary, as it stands in `summary.json`.

    config: a RunConfig, or the path of a JSON file. output: the run's folder. base_dir: what relative paths in the config
    are relative to; the file's folder, or the current one. device: `auto` takes a GPU where there is one.
    resume: go on with the run that the folder holds, to the end that it would have had; begin it where there is none. As
    the config says where None, unless overwrite is asked for.
    plugin_files: single-file plugins in the registry, copied into the run's folder. stop: asks the run to save and stop.

    Where torch.distributed connects several processes, all of them call it; the first one writes.
    Raises ConfigError with every problem before anything is written, and where a run is taken up with another config, other
    data or other plugin files; OutputExistsError where the folder is in use; Stopped where it was asked to stop.
    """
    registry = registry or default_registry()
    if not isinstance(config, RunConfig):
        path = Path(config)
        base_dir, stem = path.parent if base_dir is None else base_dir, path.stem
        config = load_run_config(path, registry=registry)
    else:
        stem = "run"
    base_dir, processes = Path(base_dir or "."), Processes.current()
    resume = config.resume == "auto" and not overwrite if resume is None else resume
    target = processes.of_first(lambda: choose_output(config, base_dir, stem, output, resume))
    resuming = processes.of_first(lambda: resume and holds_run(target))
    processes.of_first(lambda: RunFolder.check_going_on(target) if resuming else RunFolder.check(target, overwrite))
    assembly = Assembly(config, base_dir, registry, choose_device(device), processes)
    run = _Run(assembly, target, reporter or Reporter(), plugin_files, stop or StopRequest(), resuming)
    with processes.noticing_loss():
        return run.carry_out(overwrite)


def choose_output(config: RunConfig, base_dir: Path, stem: str, output: Path | str | None, resume: bool) -> Path:
    """The folder of a run: the one that is asked for, else the config's; else the latest that may go on, or a new one."""
    given = Path(output) if output else configured_output(config, base_dir)
    return given or (latest_run(Path("runs"), stem) if resume else None) or default_output(stem)


class _Run:
    """One run under way."""

    def __init__(
        self,
        assembly: Assembly,
        target: Path,
        reporter: Reporter,
        plugin_files: tuple[Path, ...],
        stop: StopRequest,
        resuming: bool,
    ) -> None:
        self.assembly = assembly
        self.config = assembly.config
        self.processes = assembly.processes
        self.folder: RunFolder = UnwrittenFolder(target)  # until it is opened
        self.reporter = reporter
        self.plugin_files = plugin_files
        self.stop = stop
        self.resuming = resuming
        self.outcomes: dict[str, Outcome] = {}
        # of each student before its first distillation, for its baselines
        self._first_weights: dict[str, dict[str, Tensor]] = {}
        self._distilled: dict[str, Outcome] = {}  # of each student, of all of its distillations together
        self.manifest: dict[str, Any] = {}

    def carry_out(self, overwrite: bool = False) -> dict[str, Any]:
        """Every stage, every baseline, the final figures."""
        started = time.perf_counter()
        if self.resuming:
            self.manifest = self.processes.of_first(self._begun)
            if self.manifest["status"] == "finished":
                self.reporter.say(f"the run in {self.folder.path} is finished already")
                return self.processes.of_first(lambda: self.folder.read_json(names.SUMMARY))
        self.reporter.say("checking data and models")
        # seeded also for what a plugin draws from the global generators
        with seeded(self.assembly.seed("run"), self.assembly.device):
            plan(self.assembly)
            with self._opened(overwrite):
                with self._recorded():
                    summary = self._carried_out(started)
                self._once(self._forget)
        return summary

    def _carried_out(self, started: float) -> dict[str, Any]:
        self.during, self.final = (evaluators_for(self.assembly, use) for use in ("data", "test"))
        self.session = Session(self.folder, self.during, self.reporter, self.stop, self.resuming)
        for i, _ in enumerate(self.config.stages):
            self._stage(i)
        summary = self._summary(started)
        self._once(lambda: self.folder.write_json(names.SUMMARY, summary))
        return summary

    @contextmanager
    def _opened(self, overwrite: bool) -> Iterator[None]:
        """The run's folder, which the first process alone opens and writes."""
        data = fingerprints(self.assembly)
        if self.resuming:
            check_same_data(self.folder.path, self.manifest["data"], data)
        opened = [self.folder]

        def open_it() -> None:
            path = self.folder.path
            opened.append(RunFolder.reopen(path) if self.resuming else RunFolder.open(path, overwrite))

        self.processes.of_first(open_it)
        with opened[-1] as self.folder:
            self._begin(data)
            yield

    def _begun(self) -> dict[str, Any]:
        """The manifest of the run that goes on. Raises ConfigError where it was begun with another config or plugin file."""
        check_same_config(self.folder.path, self.folder.read_json(names.CONFIG), _resolved(self.assembly))
        then: dict[str, Any] = self.folder.read_json(names.MANIFEST)
        check_same_plugin_files(self.folder.path, then["plugin_files"], hashes(self.plugin_files))
        return then

    def _begin(self, data: Mapping[str, Any]) -> None:
        if self.resuming:
            self.manifest["resumed"] = [*self.manifest["resumed"], now()]
            return
        self.manifest = manifest(self.config, self.assembly.registry, self.assembly.device, hashes(self.plugin_files))
        self.manifest |= {"processes": self.processes.count, "data": data, "resumed": []}
        self._once(self._write_beginning)

    def _write_beginning(self) -> None:
        """What the run is made of. The manifest comes last, for a folder with one can go on."""
        for file in self.plugin_files:
            target = self.folder.path / names.PLUGINS / file.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
        self.folder.write_json(names.CONFIG, _resolved(self.assembly))
        self.folder.write_json(names.MANIFEST, self.manifest)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """The manifest says how the run goes, and how what is inside ended."""
        status = "failed"
        try:
            self._once(lambda: self._write_manifest("running"))
            yield
            status = "finished"
        except Stopped as error:
            status = "stopped"
            raise Stopped(f"{error}; go on with --resume --output {self.folder.path}", error.exit_status) from error
        except (KeyboardInterrupt, SystemExit):
            status = "stopped"
            raise
        finally:
            with contextlib.suppress(*((OSError, SaveError) if status != "finished" else ())):  # a full disk, say
                self._write_manifest(status)

    def _write_manifest(self, status: str) -> None:
        finished = None if status == "running" else now()
        self.manifest |= {"status": status, "finished": finished}
        self.folder.write_json(names.MANIFEST, self.manifest)

    def _once(self, write: Callable[[], None]) -> None:
        """Let the first process write, and the others wait. Raises SaveError in all of them where that fails."""

        def writing() -> None:
            try:
                write()
            except (OSError, RuntimeError, SafetensorError) as error:
                reason = system_reason(error)
                if reason is None:
                    raise
                raise SaveError(
                    f"{self.folder.path} cannot be written: {reason}; what was written before is kept. Mend that, and go on with --resume."
                ) from error

        self.processes.of_first(writing)

    def _stage(self, position: int) -> None:
        stage, path = self.config.stages[position], f"stages[{position}]"
        name, folder = trained_model(stage), self.folder.stage(stage.name)
        model = self.assembly.model(name) if name in self.outcomes else self.assembly.fresh_model(name)
        if isinstance(stage, DistillStage) and self.config.baselines and name not in self._first_weights:
            self._first_weights[name] = weights_of(model.model)
        if not isinstance(stage, DistillStage) or name not in teacher_models(stage.teachers):
            self.assembly.replace_model(name, model)  # the one that was tried is not kept beside it
        outcome = self._finished(folder, model)
        if outcome is None:
            if isinstance(stage, DistillStage):
                lesson = self._distillation(stage, path, model)
            else:
                lesson = supervised_lesson(self.assembly, stage, path, model, stage.name)
            outcome, model = self._train(lesson, folder, stage.name, name, model)
        self.assembly.replace_model(name, model)
        self.assembly.read_nothing()
        self.outcomes[name] = self._in_all(name, outcome) if isinstance(stage, DistillStage) else outcome

    def _in_all(self, name: str, outcome: Outcome) -> Outcome:
        """How a distillation went, with the steps and seconds of the student's earlier ones."""
        before = self._distilled.get(name, Outcome(0, 0.0))
        told = replace(outcome, steps=before.steps + outcome.steps, seconds=before.seconds + outcome.seconds)
        self._distilled[name] = told
        return told

    def _distillation(self, stage: DistillStage, path: str, model: LoadedModel) -> Lesson:
        """The lesson of a distillation; layers that it searched are kept, for a stage that goes on must have the same."""
        kept = self.processes.of_first(lambda: self.folder.layers(stage.name)) if self.resuming else None
        lesson = distill_lesson(self.assembly, stage, path, model, layers=kept)
        if lesson.layers and kept is None:
            self._once(lambda: self.folder.write_layers(stage.name, lesson.layers))
        return lesson

    def _finished(self, folder: Path, model: LoadedModel) -> Outcome | None:
        """How a training ended that is not to be repeated, with the model as it left it; None where it is to be done."""
        done = Checkpoints(folder / _FINISHED)
        state = self.processes.of_first(done.newest) if self.resuming else None
        if state is None:
            return None
        model.model.load_state_dict(state["model"])
        return Outcome(**state["outcome"])

    def _train(
        self, lesson: Lesson, folder: Path, tracking: str, name: str, model: LoadedModel
    ) -> tuple[Outcome, LoadedModel]:
        """Train and keep a model; how it went, and the model in one piece."""
        self.reporter.say(f"{tracking}: {lesson.total_steps} steps")
        for note in lesson.notes:
            self.reporter.say(note)
        outcome = train(self.assembly, lesson, folder, tracking, self.session)
        whole = self.assembly.whole(name, model)
        self._once(lambda: self._keep(folder, whole, outcome))
        if not lesson.training.checkpoint_every_steps and self.processes.first:  # all were saved on the way alone
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return outcome, whole

    def _keep(self, folder: Path, model: LoadedModel, outcome: Outcome) -> None:
        """Write a model that is trained, for its own library; and until the run is finished, for going on after it."""
        with folder_written_whole(folder / "model") as draft:
            model.save(draft)
        state = {"model": model.model.state_dict(), "outcome": asdict(outcome)}
        Checkpoints(folder / _FINISHED).save(outcome.steps, state)

    def _forget(self) -> None:
        """Remove what was kept for going on; only now, for a run whose manifest does not say that it is finished may need it."""
        for record in self.folder.path.glob(f"*/*/{_FINISHED}"):
            shutil.rmtree(record)

    def _baselines(self, last: DistillStage, path: str) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name in self.config.baselines:
            model = self.assembly.fresh_model(last.student)
            model.model.load_state_dict(self._first_weights[last.student])
            tracking, folder = f"{names.BASELINES}/{name}", self.folder.baseline(name)
            lesson = supervised_lesson(self.assembly, last, path, model, tracking, self.outcomes[last.student].steps)
            outcome = self._finished(folder, model)
            if outcome is None:
                outcome, model = self._train(lesson, folder, tracking, last.student, model)
            metrics = self._metrics(model, outcome, lesson.adaptors)
            figures[name] = _figures(last.student, ModelFacts.of(model), outcome, metrics)
        return figures

    def _summary(self, started: float) -> dict[str, Any]:
        position, last = len(self.config.stages) - 1, self.config.stages[-1]
        self._once(lambda: _publish(self.folder, last.name))
        student = trained_model(last)
        baselines = self._baselines(last, f"stages[{position}]") if isinstance(last, DistillStage) else {}
        teachers = self._teachers(last) if isinstance(last, DistillStage) else {}
        return {
            "teacher": next(iter(teachers.values()), None),
            "teachers": teachers,
            "student": self._final(student, adaptor_of(self.config, last)),
            "baselines": baselines,
            "steps": self.outcomes[student].steps,
            "seed": self.config.seed,
            "evaluated_on": self._unnamed({task: ref for task, (ref, _) in self.assembly.evaluated_on("test").items()}),
            "rows": self._unnamed(self.final.rows),
            "seconds": round(time.perf_counter() - started, 2),
        }

    def _unnamed(self, by_task: Mapping[str, Any]) -> Any:
        """A value for each task; in a run without `tasks` the only one."""
        return by_task if self.config.tasks else by_task[""]

    def _final(self, name: str, refs: ComponentRef | Mapping[str, ComponentRef]) -> dict[str, Any]:
        outcome, adaptors = self.outcomes.get(name, Outcome(0, 0.0)), self.assembly.adaptors(name, refs)

        def measure() -> Mapping[str, float]:
            return self._metrics(self.assembly.model(name), outcome, adaptors)

        taught = name in self.assembly.teacher_names and not self._known_by(outcome)
        metrics = figures_of_teacher(self.assembly, self.final, name, adaptors, measure) if taught else measure()
        return _figures(name, self.assembly.facts(name), outcome, metrics)

    def _teachers(self, last: DistillStage) -> dict[str, Any]:
        """The figures of each teacher of the last stage, by the name of its model."""
        return {name: self._final(name, self._adaptors_of(name, last)) for name in teacher_models(last.teachers)}

    def _adaptors_of(self, teacher: str, last: DistillStage) -> dict[str, ComponentRef]:
        """Which adaptor a teacher has for each of its tasks, also for those that it does not teach in the last stage."""
        own = {ref.task or "": ref.adaptor for ref in last.teachers if ref.model == teacher}
        return {task: own.get(task) or last.adaptors.teacher for task in tasks_of_model(self.config, teacher)}

    def _known_by(self, outcome: Outcome) -> bool:
        """Whether a training ended with figures of the very rows of the final ones."""
        return bool(outcome.metrics) and self.final.same_rows(self.during)

    def _metrics(
        self, model: LoadedModel, outcome: Outcome, adaptors: Mapping[str, Callable[..., Any]]
    ) -> Mapping[str, float]:
        """The final figures; those that the training ended with, where they are of the same rows."""
        if self._known_by(outcome):
            return outcome.metrics
        return self.final(self.assembly.placed(model.model, "student"), adaptors)


def _figures(name: str, facts: ModelFacts, outcome: Outcome, metrics: Mapping[str, float]) -> dict[str, Any]:
    """A model's entry in the summary."""
    return {
        "model": name,
        "origin": facts.origin,
        "metrics": metrics,
        "parameters": facts.parameters,
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "seconds": round(outcome.seconds, 2),
    }


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one. Raises RequestError for one that is not there."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return own_gpu()
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"device {name!r} cannot be used here; expected auto, cpu, cuda or cuda:N on a machine that has it."
        ) from error
    return device


def configured_output(config: RunConfig, base_dir: Path) -> Path | None:
    """The folder that the config names for its run, relative to the config as all its paths are."""
    return base_dir / config.output if config.output else None


def default_output(stem: str) -> Path:
    """`runs/<stem>-<UTC time>`."""
    return Path("runs") / f"{stem}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"


def _resolved(assembly: Assembly) -> dict[str, Any]:
    """The config with absolute paths and the versions that it was run with, as it can be run again from anywhere."""
    document = assembly.config.to_dict()
    refs = [data["source"] for data in document["data"].values()] + list(document["models"].values())
    for ref in refs:
        if "path" in ref:
            ref["path"] = _absolute(ref["path"], assembly.base_dir)
    if document["cache"]["path"] not in CACHE_WORDS:
        document["cache"]["path"] = str((assembly.base_dir / document["cache"]["path"]).resolve())
    tokenizer, output = document["tokenizer"], configured_output(assembly.config, assembly.base_dir)
    if tokenizer["from"] not in TOKENIZER_WORDS:
        tokenizer["from"] = _absolute(tokenizer["from"], assembly.base_dir)
    versions = made_with(assembly.config, assembly.registry)
    return document | {"output": str(output.resolve()) if output else None, "made_with": versions}


def _absolute(path: Any, base_dir: Path) -> Any:
    """A path that is there made absolute, in a mapping each of them; anything else, a hub name say, as it is."""
    if isinstance(path, Mapping):
        return {key: _absolute(inner, base_dir) for key, inner in path.items()}
    return str((base_dir / path).resolve()) if isinstance(path, str) and (base_dir / path).exists() else path


def _publish(folder: RunFolder, stage: str) -> None:
    with folder_written_whole(folder.path / names.STUDENT) as draft:
        shutil.copytree(findable(folder.stage(stage) / "model"), draft, dirs_exist_ok=True)
