"""Makes the parts of a run from its config: tokenizer, batches and models."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import ConcatDataset

from brewer_core.cache_folder import cache_root
from brewer_core.components import Method
from brewer_core.config import ComponentRef, DistillStage, RunConfig, SupervisedStage
from brewer_core.config.optimization import Optimization
from brewer_core.engine import numbered
from brewer_core.errors import BrewerError, ConfigError, DataError
from brewer_core.fingerprints import fingerprint
from brewer_core.objective import bind_ref
from brewer_core.processes import Processes
from brewer_core.protocols import Batch, LoadedModel, Task
from brewer_core.randomness import seeded
from brewer_core.registry import Registry
from brewer_core.run.augmenting import AugmentedText, Augmenter
from brewer_core.run.collating import RowView
from brewer_core.run.loading import LengthGroupedBatches, TextLoader
from brewer_core.run.sources import Sources, seed_of
from brewer_core.run.tasks import (
    columns,
    for_columns,
    side_by_side,
    task_of,
    tasks_of_model,
    tasks_of_stage,
    trained_model,
)
from brewer_core.run.text import TextDataset
from brewer_core.run.tokenizers import load_tokenizer
from brewer_core.run.tokens import TokenFiles
from brewer_core.sharding import device_mesh, is_sharded, shard_teacher, weights_of

TOKENIZER_WORDS = ("teacher", "train")
"""Values of `tokenizer.from` that are no folder, whatever folders there may be."""
_NOT_FOR_MODELS = ("row", "labels", "target_mask")
_SAMPLED_ROWS = 32
"""Rows of a batch of a sample: enough to be quick, and few enough for a teacher's memory."""


class JoinedText(ConcatDataset[Any]):
    """Several data sets as one, with the lengths that batches are grouped by.

    augmenters: what augments the rows of each part, if anything does; then of each row.
    """

    def __init__(self, parts: Sequence[TextDataset], augmenters: Sequence[Augmenter | None]) -> None:
        super().__init__(parts)
        self.augmenters = [
            augmenter for part, augmenter in zip(parts, augmenters, strict=True) for _ in range(len(part))
        ]
        self.lengths = [length for part in parts for length in part.lengths]
        self.labels = [label for part in parts for label in part.labels]
        self.collate, self.padding_side = parts[0].collate, parts[0].padding_side
        self._views = [part.view for part in parts]

    def view(self, index: int) -> RowView:
        """A row without a copy."""
        part = bisect_right(self.cumulative_sizes, index)
        return self._views[part](index - self.cumulative_sizes[part - 1] if part else index)


@dataclass(frozen=True)
class ModelFacts:
    """What is told of a model, also once it was let go of. identity: a hash of all that makes it answer as it does."""

    origin: str
    parameters: int
    identity: str = ""

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelFacts:
        """Those of a model; the parameters are counted once where they are shared."""
        return cls(loaded.origin, sum(parameter.numel() for parameter in loaded.model.parameters()))


class Assembly:
    """The parts of one run, each made when it is first needed.

    base_dir: what relative paths in the config are relative to. processes: those that share the run.
    Every method raises a BrewerError where data or models are not as the config says.
    """

    def __init__(
        self,
        config: RunConfig,
        base_dir: Path,
        registry: Registry,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or Processes()
        self.base_dir = base_dir
        self.registry = registry
        self.device = device
        self.sources = Sources(config, base_dir, registry)
        self._datasets: dict[tuple[str, str, bool], TextDataset] = {}
        self._augmenters: dict[str, Augmenter] = {}
        self._models: dict[str, LoadedModel] = {}
        self._replaced: set[str] = set()
        self._released: dict[str, ModelFacts] = {}
        self._rows_numbered = 0

    def seed(self, *purpose: str) -> int:
        """The seed of one purpose, the same in every process and unlike those of other purposes."""
        return seed_of(self.config, *purpose)

    def bind(self, ref: ComponentRef) -> Method:
        """The method that the config names."""
        return bind_ref(self.registry, ref)

    def task_of_model(self, name: str) -> Task:
        """What a model is to learn; the classes of several tasks stand side by side."""
        return side_by_side({task: self.sources.task(task) for task in tasks_of_model(self.config, name)})

    def adaptors(self, model: str, refs: ComponentRef | Mapping[str, ComponentRef]) -> dict[str, Callable[..., Any]]:
        """The adaptor of a model for each of its tasks. refs: one for all of them, or one for each."""
        tasks = {task: self.sources.task(task) for task in tasks_of_model(self.config, model)}
        bound = {task: self.bind(refs if isinstance(refs, ComponentRef) else refs[task]).target for task in tasks}
        if len(tasks) == 1 or not self.sources.kind.has_classes:
            return bound
        return {task: for_columns(bound[task], own) for task, own in columns(tasks).items()}

    @cached_property
    def tokenizer(self) -> Any:
        """The run's tokenizer: that of the first teacher, one trained on the texts that are trained on, or a folder's."""
        source = self.config.tokenizer.source
        if source == "train":
            return self.sources.kind.train_tokenizer(
                list(self.sources.training_texts()), self.config.tokenizer.vocab_size
            )
        if source != "teacher":
            return load_tokenizer(self.base_dir / source, self.sources.kind.needs_padding_token)
        first = self.teacher_names[0] if self.teacher_names else next(iter(self.config.models))
        loaded = self._build(first, None, None)
        if loaded.tokenizer is None:
            raise ConfigError(
                [f'tokenizer.from: model {first!r} has no tokenizer of its own; give a folder, or "train"'], "config"
            )
        self._models[first] = self._fitting(first, loaded)
        return loaded.tokenizer

    @cached_property
    def teacher_names(self) -> list[str]:
        """The models that teach, in order."""
        stages = [stage for stage in self.config.stages if isinstance(stage, DistillStage)]
        return list(dict.fromkeys(teacher.model for stage in stages for teacher in stage.teachers))

    def model(self, name: str) -> LoadedModel:
        """A model, as far as it is trained."""
        if name not in self._models:
            self._models[name] = self.fresh_model(name)
        return self._models[name]

    def fresh_model(self, name: str) -> LoadedModel:
        """A model as the config builds it; one that starts from its teacher starts from that as far as it is trained."""
        teacher = next(
            (s.teachers[0].model for s in self.config.stages if isinstance(s, DistillStage) and s.student == name), None
        )
        first = self.whole(teacher, self.model(teacher)) if teacher else None
        return self._fitting(name, self._build(name, first, self.tokenizer))

    def replace_model(self, name: str, loaded: LoadedModel) -> None:
        """Take a model in place of the one that bears a name."""
        self._replaced.add(name)
        self._models[name] = loaded

    def read_nothing(self) -> None:
        """Let all models compute as they did before anything was read inside them."""
        for loaded in self._models.values():
            loaded.forward_arguments(frozenset({"logits"}))

    def rebuilt(self, name: str) -> bool:
        """Whether a model can be built again as it is now: it is as the config builds it."""
        return name not in self._replaced and not self.in_parts("teachers")

    def release(self, name: str) -> None:
        """Let go of a model, which is built again when it is asked for. Only for one that can be."""
        loaded = self._models.pop(name, None)
        if loaded is not None:
            self._released[name] = replace(ModelFacts.of(loaded), identity=fingerprint(loaded.model))

    def facts(self, name: str) -> ModelFacts:
        """What is told of a model; of one that was let go of without building it again."""
        known = self._released.get(name)
        if known is not None and name not in self._models:
            return known
        return ModelFacts.of(self.model(name))

    def identity(self, name: str) -> str:
        """A hash of all that makes a model answer as it does."""
        facts = self.facts(name)
        return facts.identity or fingerprint(self.model(name).model)

    def in_parts(self, role: Literal["student", "teachers"]) -> bool:
        """Whether several processes share one model of this role, each holding a part."""
        return self.processes.several and role in self.config.fsdp

    def placed(self, model: nn.Module, role: Literal["student", "teachers"]) -> nn.Module:
        """A model that is not trained, on the device, or in parts on those of all processes."""
        if not self.in_parts(role):
            return model.to(self.device)
        if not is_sharded(model):
            shard_teacher(model, device_mesh(self.device))
        return model

    def whole(self, name: str, model: LoadedModel) -> LoadedModel:
        """The model; of one that is in parts, another with its weights, in every process."""
        if not is_sharded(model.model):
            return model
        weights, whole = weights_of(model.model), self.fresh_model(name)
        whole.model.load_state_dict(self.processes.of_first(lambda: weights))
        return whole

    @property
    def trying_device(self) -> torch.device:
        """Where a student is tried on a batch: one that is to be in parts need not fit on the device."""
        return torch.device("cpu") if self.in_parts("student") else self.device

    def training_sets(
        self, stage: SupervisedStage | DistillStage, path: str, labelled_only: bool = False
    ) -> dict[str, JoinedText]:
        """The rows that a stage trains on, by task.

        labelled_only: leave out rows under `unlabelled`. Raises ConfigError where a task then has no label to learn from.
        """
        tasks = tasks_of_stage(self.config, stage)
        listed = {task_of(self.config, ref) for ref in stage.train}
        sets = {
            task: self.training_set(stage, path, labelled_only, task)
            for task in tasks
            if task in listed or not labelled_only
        }
        without = [task for task in tasks if task not in sets or all(label < 0 for label in sets[task].labels)]
        if labelled_only and without:
            raise ConfigError([_no_label(path, task) for task in without], "config")
        return sets

    def training_set(
        self, stage: SupervisedStage | DistillStage, path: str, labelled_only: bool = False, task: str = ""
    ) -> JoinedText:
        """The rows of a task that a stage trains on: labelled ones, and unlabelled ones unless they are left out."""
        uses = [
            (*self.sources.split(ref, "train", f"{path}.train[{i}]"), True)
            for i, ref in enumerate(stage.train)
            if task_of(self.config, ref) == task
        ]
        if isinstance(stage, DistillStage) and not labelled_only:
            for i, ref in enumerate(stage.unlabelled):
                if task_of(self.config, ref) == task:
                    uses.append((*self.sources.split(ref, "unlabelled", f"{path}.unlabelled[{i}]"), False))
        parts = [self._dataset(*use) for use in uses]
        return JoinedText(parts, [self._augmenter(name, part) for (name, _, _), part in zip(uses, parts, strict=True)])

    def training_loader(
        self,
        dataset: JoinedText,
        training: Optimization,
        purpose: str,
        whole_steps: bool = False,
        processes: Processes | None = None,
    ) -> TextLoader:
        """Shuffled batches of rows to train on, augmented anew in every pass where the config says so.

        whole_steps: the rows of an optimizer step in each batch. processes: that share each batch; those of the run if None.
        """
        augmented = any(dataset.augmenters)
        rows: Any = dataset
        if augmented:
            rows = AugmentedText(dataset, dataset.augmenters, self.seed("augment", purpose))
        batches = LengthGroupedBatches(
            dataset.lengths,
            training.step_rows if whole_steps else training.micro_batch_rows,
            self.seed("batches", purpose),
            group=training.group_by_length,
            step_rows=training.step_rows,
            drop_last=training.drop_last,
        )
        if not len(batches):
            raise DataError(
                f"drop_last: {len(dataset)} rows do not fill a step of {training.step_rows}; take a smaller step."
            )
        return TextLoader(rows, batches, processes or self.processes, numbered=augmented, ahead=self._ahead)

    def evaluated_on(self, use: str) -> dict[str, tuple[str, str]]:
        """The data that models are evaluated on by task, `data` or `test`, each with its place in the config."""
        evaluation, found = self.config.evaluation, {}
        for key in ("data", "test") if use == "test" else ("data",):  # a task without test data keeps the others
            value = getattr(evaluation, key)
            for i, ref in enumerate([value] if isinstance(value, str) else value or ()):
                path = f"evaluation.{key}" if isinstance(value, str) else f"evaluation.{key}[{i}]"
                found[task_of(self.config, ref)] = (ref, path)
        return {task: found[task] for task in self.config.tasks_by_name if task in found}

    def evaluation_loader(self, use: str, task: str = "") -> TextLoader:
        """The rows of a task that models are evaluated on, `data` or `test`. Raises DataError where one has no label."""
        ref, path = self.evaluated_on(use)[task]
        name, split = self.sources.split(ref, use, path)
        dataset = self._dataset(name, split, True)
        if -100 in dataset.labels:
            raise DataError(
                f"data.{name}: row {dataset.labels.index(-100) + 1} of {split} has no label; evaluation needs one in each row."
            )
        batches = LengthGroupedBatches(dataset.lengths, self.config.evaluation.batch_size, 0, shuffle=False)
        return TextLoader(dataset, batches, self.processes, ahead=self._ahead)

    def splits_read(self) -> list[tuple[str, str]]:
        """The name and the split of all data that is trained or evaluated on, as far as it was read."""
        return sorted({(name, split) for name, split, _ in self._datasets})

    def named_rows(self, numbers: Sequence[int]) -> str:
        """Rows by the data that they are of, counted from 1 in it."""
        found: dict[str, list[int]] = {}
        for number in numbers:
            for (name, split, _), rows in self._datasets.items():
                if rows.first_row <= number < rows.first_row + len(rows):
                    found.setdefault(f"{name}.{split}", []).append(number - rows.first_row + 1)
        return "; ".join(f"data.{where} {numbered(sorted(own))}" for where, own in found.items())

    def _fitting(self, name: str, loaded: LoadedModel) -> LoadedModel:
        wanted, longest = self.config.tokenizer.max_length, loaded.max_length
        if longest is not None and wanted > longest:
            problem = f"tokenizer.max_length: model {name!r} takes {longest} tokens at most, not {wanted}"
            raise ConfigError([problem], "config")
        return loaded

    @property
    def _ahead(self) -> bool:
        """Whether batches are prepared in a thread: on a CPU it would take its time from the training."""
        return self.device.type == "cuda"

    @property
    def tokenised_folder(self) -> Path | None:
        """Where tokenised rows are kept for later runs; None where they are not."""
        root = cache_root(self.config.cache.path, self.base_dir)
        return root / "tokenised" if root else None

    @cached_property
    def _token_files(self) -> TokenFiles | None:
        folder = self.tokenised_folder
        return TokenFiles(folder, self.tokenizer, self.config.tokenizer.max_length) if folder else None

    def _dataset(self, name: str, split: str, labelled: bool) -> TextDataset:
        key = (name, split, labelled)
        if key not in self._datasets:
            data, task = self.config.data[name], self.sources.task(task_of(self.config, name))
            self.sources.kind.check_columns(data, task, f"data.{name}", f"tasks.{data.task}" if data.task else "task")
            same = self._datasets.get((name, split, not labelled))
            self._datasets[key] = TextDataset(
                self.sources.rows(name, split),
                text=data.text,
                label=data.label if labelled else None,
                classes=task.labels,
                tokenizer=self.tokenizer,
                max_length=self.config.tokenizer.max_length,
                where=f"data.{name}.{split}",
                form=self.sources.kind.form(self.config.tasks_by_name[task_of(self.config, name)], labelled),
                first_row=self._rows_numbered,
                tokens=same.tokens if same else None,
                files=self._token_files,
            )
            self._rows_numbered += len(self._datasets[key])
        return self._datasets[key]

    def _augmenter(self, name: str, rows: TextDataset) -> Augmenter | None:
        """What augments rows of some data, tried on the first of them; None where nothing does."""
        refs = self.config.data[name].augmentations
        if refs and name not in self._augmenters:
            methods, where = [self.bind(ref) for ref in refs], f"data.{name}.augmentations"
            augmenter = Augmenter(methods, self.tokenizer, self.config.tokenizer.max_length, where)
            augmenter.rehearse(rows)
            self._augmenters[name] = augmenter
        return self._augmenters.get(name)

    def _build(self, name: str, teacher: LoadedModel | None, tokenizer: Any) -> LoadedModel:
        build, task = self.bind(self.config.models[name]), self.task_of_model(name)
        try:
            with seeded(self.seed("model", name), self.device):  # whatever it draws from, and whenever it is built
                built = build(
                    role="teacher" if name in self.teacher_names else "student",
                    task=task,
                    teacher=teacher,
                    tokenizer=tokenizer,
                    num_labels=len(task.labels),
                    seed=self.seed("model", name),
                    base_dir=self.base_dir,
                    sample=None if tokenizer is None else self._sample_for(name),
                )
        except BrewerError as error:
            raise ConfigError([f"models.{name}: {str(error).rstrip('.')}"], "config") from error
        if not isinstance(built, LoadedModel):
            raise ConfigError([f"models.{name}: `{self.config.models[name].name}` returned no LoadedModel"], "config")
        return built

    def _sample_for(self, name: str) -> Callable[[int], Sequence[Batch]] | None:
        """What gives a model's builder rows to look at: of the first stage that trains the model; None where none does."""
        for i, stage in enumerate(self.config.stages):
            if trained_model(stage) == name:
                return partial(self._sample, stage, f"stages[{i}]", self.seed("sample", name))
        return None

    def _sample(self, stage: SupervisedStage | DistillStage, path: str, seed: int, count: int) -> Sequence[Batch]:
        """Rows that a stage trains on, as models take them; the same ones whenever they are asked for."""
        sets = self.training_sets(stage, path)
        rows = [(task, i) for task, data in sets.items() for i in range(len(data))]
        drawn = random.Random(seed).sample(rows, min(count, len(rows)))
        own = {task: [i for of, i in drawn if of == task] for task in sets}  # a batch is of one task
        return [
            model_inputs(sets[task].collate([sets[task].view(i) for i in numbers[start : start + _SAMPLED_ROWS]]))
            for task, numbers in own.items()
            for start in range(0, len(numbers), _SAMPLED_ROWS)
        ]


def _no_label(path: str, task: str) -> str:
    of = f" of the task {task!r}" if task else ""
    return f"{path}.train: no row{of} has a label, so there is nothing to learn from"


def model_inputs(batch: Batch) -> Batch:
    """The part of a batch that models take: labels stay with the adaptor, so that unlabelled rows are no NaN."""
    return {key: value for key, value in batch.items() if key not in _NOT_FOR_MODELS}


def attempt(problems: list[str], make: Callable[..., Any], *arguments: Any) -> Any:
    """What `make` makes of the arguments; where it raises a BrewerError, None, and its text joins the problems."""
    try:
        return make(*arguments)
    except ConfigError as error:
        problems += error.problems
    except BrewerError as error:
        problems.append(str(error).rstrip("."))
    return None
