"""`run_config`: a whole run from its config, through its stages and baselines, to its folder and its summary."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brewer_core.batches import move_to_device
from brewer_core.config import ComponentRef, DistillStage, RunConfig, SupervisedStage, load_run_config
from brewer_core.config.run import TeacherRef
from brewer_core.errors import BrewerError, ConfigError, RequestError
from brewer_core.plugins import default_registry
from brewer_core.precision import check_precision
from brewer_core.protocols import LoadedModel, Step
from brewer_core.registry import Registry
from brewer_core.run import folder as names
from brewer_core.run.assembly import TOKENIZER_WORDS, Assembly, attempt, model_inputs
from brewer_core.run.evaluation import Evaluator, TaskEvaluators, check_best
from brewer_core.run.folder import RunFolder
from brewer_core.run.manifest import made_with, manifest, now
from brewer_core.run.optimization import check_training
from brewer_core.run.reporting import Reporter
from brewer_core.run.stages import DEFAULT_ADAPTOR, Lesson, Outcome, distill_lesson, seeded, supervised_lesson, train
from brewer_core.run.tasks import tasks_of_model, trained_model
from brewer_core.teachers import evaluating


@dataclass(frozen=True)
class Plan:
    """What a run will do, found out by building all of it and trying one batch of each task in each stage.

    The task of a run of one bears the name "".
    """

    stages: tuple[tuple[str, str, int], ...]
    """Name, model and optimizer steps of each stage."""
    rows: Mapping[str, Mapping[str, int]]
    """Rows that are evaluated on, by task and use."""
    classes: Mapping[str, tuple[str, ...]]
    """Names of the classes by task."""
    teachers: Mapping[str, tuple[str, ...]]
    """Names of the teachers by task."""
    parameters: Mapping[str, int]
    """Parameters by model."""
    terms: Mapping[str, Mapping[str, float]]
    """Terms of each stage with their values on one batch."""


def run_config(
    config: RunConfig | Path | str,
    *,
    output: Path | str | None = None,
    base_dir: Path | str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    registry: Registry | None = None,
    reporter: Reporter | None = None,
    plugin_files: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """Carry out a run and return its summary, as it stands in `summary.json`.

    config: a RunConfig, or the path of a JSON file. output: the run's folder. base_dir: what relative paths in the config
    are relative to; the file's folder, or the current one. device: `auto` takes a GPU where there is one.
    plugin_files: single-file plugins in the registry, copied into the run's folder.

    Raises ConfigError with every problem before anything is written, OutputExistsError where the folder is in use.
    """
    registry = registry or default_registry()
    if not isinstance(config, RunConfig):
        path = Path(config)
        base_dir, stem = path.parent if base_dir is None else base_dir, path.stem
        config = load_run_config(path, registry=registry)
    else:
        stem = "run"
    base_dir = Path(base_dir or ".")
    target = Path(output or configured_output(config, base_dir) or default_output(stem))
    RunFolder.check(target, overwrite)
    assembly = Assembly(config, base_dir, registry, choose_device(device))
    reporter = reporter or Reporter()
    reporter.say("checking data and models")
    with seeded(assembly.seed("run"), assembly.device):  # also for what a plugin draws from the global generators
        plan(assembly)
        with RunFolder.open(target, overwrite) as folder:
            return _Run(assembly, folder, reporter, plugin_files).carry_out()


def plan(assembly: Assembly) -> Plan:
    """Build every part and try one batch of each task in each stage, without training.

    Raises ConfigError with every problem of data and models.
    """
    check_precision(assembly.config.precision, assembly.device)
    problems: list[str] = []
    tasks = {name: attempt(problems, assembly.task, name) for name in assembly.config.tasks_by_name}
    if problems or attempt(problems, getattr, assembly, "tokenizer") is None:
        raise ConfigError(problems, "config")
    models = {name: attempt(problems, assembly.model, name) for name in assembly.config.models}
    for i, stage in enumerate(assembly.config.stages):
        attempt(problems, assembly.training_sets, stage, f"stages[{i}]", isinstance(stage, SupervisedStage))
    if assembly.config.baselines:
        last = len(assembly.config.stages) - 1
        attempt(problems, assembly.training_sets, assembly.config.stages[last], f"stages[{last}]", True)
    evaluators = {use: _try_evaluators(problems, assembly, use) for use in ("data", "test")}
    if problems:  # a batch is tried only of what could be built
        raise ConfigError(list(dict.fromkeys(problems)), "config")
    tried = {stage.name: attempt(problems, _try_stage, assembly, i) for i, stage in enumerate(assembly.config.stages)}
    attempt(problems, _check_best, assembly, evaluators["data"])
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), "config")
    rows = {use: evaluator.rows for use, evaluator in evaluators.items()}
    return Plan(
        stages=tuple((stage.name, trained_model(stage), tried[stage.name][0]) for stage in assembly.config.stages),
        rows={task: {use: count[task] for use, count in rows.items() if task in count} for task in tasks},
        classes={name: task.labels for name, task in tasks.items()},
        teachers={task: _teachers_of(assembly.config, task) for task in tasks},
        parameters={name: count_parameters(model) for name, model in models.items()},
        terms={name: terms for name, (_, terms) in tried.items()},
    )


class _Run:
    """One run under way."""

    def __init__(
        self, assembly: Assembly, folder: RunFolder, reporter: Reporter, plugin_files: tuple[Path, ...]
    ) -> None:
        self.assembly = assembly
        self.config = assembly.config
        self.folder = folder
        self.reporter = reporter
        self.outcomes: dict[str, Outcome] = {}
        self._first_weights: dict[str, Tensor] = {}  # of the latest distillation's student, for its baselines
        files = _copy_plugins(plugin_files, folder)
        self.manifest = manifest(self.config, assembly.registry, assembly.device, files)
        self.during = _evaluators(assembly, "data")
        self.final = _evaluators(assembly, "test")

    def carry_out(self) -> dict[str, Any]:
        """Every stage, every baseline, the final figures."""
        started = time.perf_counter()
        status = "failed"
        try:
            self._write_manifest("running")
            self.folder.write_json(names.CONFIG, _resolved(self.assembly))
            for i, _ in enumerate(self.config.stages):
                self._stage(i)
            summary = self._summary(started)
            self.folder.write_json(names.SUMMARY, summary)
            status = "finished"
            return summary
        except (KeyboardInterrupt, SystemExit):
            status = "stopped"
            raise
        finally:
            self._write_manifest(status)

    def _stage(self, position: int) -> None:
        stage, path = self.config.stages[position], f"stages[{position}]"
        name = trained_model(stage)
        model = self.assembly.model(name) if name in self.outcomes else self.assembly.fresh_model(name)
        if isinstance(stage, DistillStage):
            self._first_weights = _copy(model)
            lesson = distill_lesson(self.assembly, stage, path, model)
        else:
            lesson = supervised_lesson(self.assembly, stage, path, model, stage.name)
        self.assembly.replace_model(name, model)
        folder = self.folder.stage(stage.name)
        self.outcomes[name] = self._train(lesson, folder, stage.name, model)

    def _train(self, lesson: Lesson, folder: Path, tracking: str, model: LoadedModel) -> Outcome:
        self.reporter.say(f"{tracking}: {lesson.total_steps} steps")
        outcome = train(self.assembly, lesson, folder, tracking, self.folder, self.during, self.reporter)
        _save(model, folder / "model")
        return outcome

    def _baselines(self, last: DistillStage, path: str) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for name in self.config.baselines:
            model = self.assembly.fresh_model(last.student)
            model.model.load_state_dict(self._first_weights)
            tracking = f"{names.BASELINES}/{name}"
            steps = self.outcomes[last.student].steps
            lesson = supervised_lesson(self.assembly, last, path, model, tracking, steps)
            outcome = self._train(lesson, self.folder.baseline(name), tracking, model)
            figures[name] = self._figures(last.student, model, outcome, lesson.adaptors)
        return figures

    def _summary(self, started: float) -> dict[str, Any]:
        position, last = len(self.config.stages) - 1, self.config.stages[-1]
        _publish(self.folder, last.name)
        student = trained_model(last)
        baselines = self._baselines(last, f"stages[{position}]") if isinstance(last, DistillStage) else {}
        teachers = self._teachers(last) if isinstance(last, DistillStage) else {}
        return {
            "teacher": next(iter(teachers.values()), None),
            "teachers": teachers,
            "student": self._final(student, _student_adaptor(self.config)),
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
        outcome = self.outcomes.get(name, Outcome(0, 0.0))
        return self._figures(name, self.assembly.model(name), outcome, self.assembly.adaptors(name, refs))

    def _teachers(self, last: DistillStage) -> dict[str, Any]:
        """The figures of each teacher of the last stage, by the name of its model."""
        return {name: self._final(name, self._adaptors_of(name, last)) for name in _models(last.teachers)}

    def _adaptors_of(self, teacher: str, last: DistillStage) -> dict[str, ComponentRef]:
        """Which adaptor a teacher has for each of its tasks, also for those that it does not teach in the last stage."""
        own = {ref.task or "": ref.adaptor for ref in last.teachers if ref.model == teacher}
        return {task: own.get(task) or last.adaptors.teacher for task in tasks_of_model(self.config, teacher)}

    def _metrics(
        self, model: LoadedModel, outcome: Outcome, adaptors: Mapping[str, Callable[..., Any]]
    ) -> Mapping[str, float]:
        """The final figures; those that the training ended with, where they are of the same rows."""
        if outcome.metrics and self.final.same_rows(self.during):
            return outcome.metrics
        return self.final(model.model, adaptors)

    def _figures(
        self, name: str, model: LoadedModel, outcome: Outcome, adaptors: Mapping[str, Callable[..., Any]]
    ) -> dict[str, Any]:
        return {
            "model": name,
            "origin": model.origin,
            "metrics": self._metrics(model, outcome, adaptors),
            "parameters": count_parameters(model),
            "steps": outcome.steps,
            "best_step": outcome.best_step,
            "seconds": round(outcome.seconds, 2),
        }

    def _write_manifest(self, status: str) -> None:
        finished = None if status == "running" else now()
        self.manifest |= {"status": status, "finished": finished}
        self.folder.write_json(names.MANIFEST, self.manifest)


def _models(teachers: Iterable[TeacherRef]) -> list[str]:
    """The names of the teachers' models, each once."""
    return list(dict.fromkeys(teacher.model for teacher in teachers))


def _teachers_of(config: RunConfig, task: str) -> tuple[str, ...]:
    """The models that teach a task in any stage."""
    stages = [stage for stage in config.stages if isinstance(stage, DistillStage)]
    return tuple(_models(ref for stage in stages for ref in stage.teachers if (ref.task or "") == task))


def _check_best(assembly: Assembly, evaluators: TaskEvaluators) -> None:
    """Raises ConfigError where the best checkpoint is to be chosen by a figure that no metric gives."""
    best = assembly.config.evaluation.best
    if best is not None:
        check_best(best, evaluators.known())


def _student_adaptor(config: RunConfig) -> ComponentRef:
    last = config.stages[-1]
    return last.adaptors.student if isinstance(last, DistillStage) else DEFAULT_ADAPTOR


def count_parameters(model: LoadedModel) -> int:
    """The number of a model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.model.parameters())


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one. Raises RequestError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def stage_lesson(assembly: Assembly, position: int) -> Lesson:
    """What the stage at a position trains, with the models as they are now."""
    stage, path = assembly.config.stages[position], f"stages[{position}]"
    if isinstance(stage, DistillStage):
        return distill_lesson(assembly, stage, path, assembly.model(stage.student))
    return supervised_lesson(assembly, stage, path, assembly.model(stage.model), stage.name)


def first_batches(lesson: Lesson, device: torch.device) -> dict[str, Any]:
    """The first batch of each task, as the strategy prepares it."""
    loaders = lesson.loader if isinstance(lesson.loader, Mapping) else {"": lesson.loader}
    batches = {task: move_to_device(next(iter(loader)), device) for task, loader in loaders.items()}
    learner = lesson.learner
    with torch.no_grad():
        return {task: learner.strategy.prepare(task, batch, learner.student) for task, batch in batches.items()}


def try_batch(lesson: Lesson, task: str, batch: Any) -> Mapping[str, Tensor]:
    """The unweighted terms of a batch, at the start of the stage."""
    learner = lesson.learner
    asked = learner.strategy.teachers_for(task, tuple(lesson.teachers))
    answers = {name: lesson.teachers[name].features(batch, learner.needs.teacher(name)) for name in asked}
    losses: Mapping[str, Tensor] = learner(task, batch, answers, Step(0, lesson.total_steps))
    return losses


def _try_stage(assembly: Assembly, position: int) -> tuple[int, dict[str, float]]:
    """Build a stage and compute its losses on one batch, without gradient; its steps, and its terms."""
    lesson, terms = stage_lesson(assembly, position), dict[str, float]()
    with evaluating(lesson.learner), torch.no_grad(), located(f"stages[{position}]"):
        for task, batch in first_batches(lesson, assembly.device).items():
            losses = try_batch(lesson, task, batch)
            terms |= {f"{name}/{task}" if task else name: loss.item() for name, loss in losses.items()}
    path = f"stages[{position}].training"
    check_training(assembly.config.stages[position].training, lesson.learner.student, lesson.total_steps, path)
    return lesson.total_steps, terms


@contextmanager
def located(path: str) -> Iterator[None]:
    """Errors raised inside it say where in the config the cause is."""
    try:
        yield
    except BrewerError as error:
        raise ConfigError([f"{path}: {str(error).rstrip('.')}"], "config") from error


def _evaluators(assembly: Assembly, use: str) -> TaskEvaluators:
    return TaskEvaluators({task: _evaluator(assembly, use, task) for task in assembly.evaluated_on(use)})


def _try_evaluators(problems: list[str], assembly: Assembly, use: str) -> TaskEvaluators:
    """The evaluators of each task that has any; what is wrong with the others joins the problems."""
    tried = {task: attempt(problems, _evaluator, assembly, use, task) for task in assembly.evaluated_on(use)}
    return TaskEvaluators({task: evaluator for task, evaluator in tried.items() if evaluator is not None})


def _evaluator(assembly: Assembly, use: str, task: str) -> Evaluator:
    config = assembly.config
    metrics = {_metric_name(ref, i, config): assembly.bind(ref) for i, ref in enumerate(config.evaluation.metrics)}
    loader = assembly.evaluation_loader(use, task)
    return Evaluator(loader, metrics, assembly.task(task), assembly.device, config.precision, model_inputs)


def _metric_name(ref: ComponentRef, position: int, config: RunConfig) -> str:
    before = [other.name for other in config.evaluation.metrics[:position]]
    return ref.name if ref.name not in before else f"{ref.name}_{before.count(ref.name) + 1}"


def _resolved(assembly: Assembly) -> dict[str, Any]:
    """The config with absolute paths and the versions that it was run with, as it can be run again from anywhere."""
    document = assembly.config.to_dict()
    refs = [data["source"] for data in document["data"].values()] + list(document["models"].values())
    for ref in refs:
        if "path" in ref:
            ref["path"] = _absolute(ref["path"], assembly.base_dir)
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


def _save(model: LoadedModel, folder: Path) -> None:
    """Write a model by way of a draft beside its folder, so that a kill leaves no half of one."""
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    model.save(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def _copy(model: LoadedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.model.state_dict().items()}


def _publish(folder: RunFolder, stage: str) -> None:
    shutil.copytree(folder.stage(stage) / "model", folder.path / names.STUDENT)


def _copy_plugins(files: tuple[Path, ...], folder: RunFolder) -> dict[str, str]:
    """Copy single-file plugins into the run's folder; their hashes by name."""
    hashes: dict[str, str] = {}
    for file in files:
        target = folder.path / names.PLUGINS / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
        hashes[file.name] = hashlib.sha256(target.read_bytes()).hexdigest()
    return hashes
