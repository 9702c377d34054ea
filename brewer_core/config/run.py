"""The config of `brewer run`: data, models, stages, evaluation, all of it JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from brewer_core.config.base import (
    NAME_SCHEMA,
    TOO_DEEP,
    Config,
    Float,
    FrozenDict,
    Int,
    Text,
    exactly_one,
    problems,
    read_json,
    shown,
)
from brewer_core.config.cache import CacheConfig
from brewer_core.config.crossrefs import reference_problems
from brewer_core.config.distillation import DistillationConfig
from brewer_core.config.made_with import missing_plugins, warn_of_other_versions
from brewer_core.config.optimization import Optimization, Positive
from brewer_core.config.overrides import override
from brewer_core.config.refs import ComponentRef, OfKind, component_refs
from brewer_core.config.taskrefs import task_problems
from brewer_core.config.tasks import AnyTask, TaskConfig, TextClassificationTask, kind_problems, told_apart
from brewer_core.config.training import Count, Precision
from brewer_core.errors import ConfigError
from brewer_core.protocols import ComponentLookup

if TYPE_CHECKING:
    from typing_extensions import Self

Held = TypeVar("Held", bound=Sized)
Part = TypeVar("Part", bound=Config)


def _columns(value: Any) -> str | tuple[str, str]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, str) and v for v in value):
        return (value[0], value[1])
    raise PydanticCustomError(
        "text", "expected a column, or a list of two columns for a pair of texts, not {v}", {"v": shown(value)}
    )


class NotEmpty:
    """Marks a list or an object that must hold something, for validation and for the JSON Schema."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate what is in it first."""
        return core_schema.no_info_after_validator_function(_not_empty, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of what it marks, with the least size."""
        inner = handler(schema)
        return {**inner, "minItems" if inner["type"] == "array" else "minProperties": 1}


def _not_empty(value: Held) -> Held:
    if not value:
        raise PydanticCustomError("text", "is empty; name at least one")
    return value


def _of_names(value: DistillationConfig) -> DistillationConfig:
    for ref in component_refs(value):
        if ref.implementation is not None:
            raise PydanticCustomError(
                "text", "{r} is passed in Python; a run knows names alone, so make it a plugin", {"r": repr(ref.name)}
            )
    return value


Columns = Annotated[
    Any,
    PlainValidator(_columns),
    WithJsonSchema({"anyOf": [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA, "minItems": 2, "maxItems": 2}]}),
]


def _names_of_data(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    raise PydanticCustomError(
        "text", "expected a name of data, or a list of names with one for each task, not {v}", {"v": shown(value)}
    )


NamesOfData = Annotated[
    Any,
    PlainValidator(_names_of_data),
    WithJsonSchema({"anyOf": [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA, "minItems": 1}]}),
]


class Tokenization(Config):
    """Where the tokenizer comes from, and how long a text may be."""

    source: Text = Field("teacher", alias="from")
    """`teacher` (the first teacher's own), `train` (trained on the texts of the run), or a folder."""
    max_length: Count = 128
    """Tokens a row, special ones included; longer texts are cut."""
    vocab_size: Annotated[Int, Field(gt=0, le=10_000_000)] = 8000
    """Entries of a tokenizer that is trained here."""


class Select(Config):
    """A part of the rows, drawn by the run's seed."""

    model_config = exactly_one("rows", "share")

    rows: Count | None = None
    """How many rows."""
    share: Annotated[Float, Field(gt=0, le=1)] | None = None
    """Which share of the rows."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.rows is None) == (self.share is None):
            raise ValueError("expected one of rows and share")
        return self


class DataConfig(Config):
    """A source of rows and the columns to read."""

    source: Annotated[ComponentRef, OfKind("dataset")]
    """The data set."""
    text: Columns = "text"
    """The column with the text, or the two columns with a pair: of a `causal_lm` task, prompt and response."""
    label: Text | None = "label"
    """The column with the label; null where the rows have none, and always in a `causal_lm` task."""
    select: Select | None = None
    """Take a part of the rows only."""
    task: Text | None = None
    """Which of the run's `tasks` the rows are of; needed where there are any."""
    augmentations: tuple[Annotated[ComponentRef, OfKind("augmentation")], ...] = ()
    """Applied in order to the tokens of each row when it is trained on, anew in every pass; never to rows of evaluation."""


class SupervisedStage(Config):
    """Train a model on labels."""

    model_config = ConfigDict(json_schema_extra=told_apart)

    kind: Literal["supervised"] = "supervised"
    """The kind of stage."""
    name: Text
    """A name of its own, that of the stage's folder."""
    model: Text
    """The model to train."""
    train: Annotated[tuple[Text, ...], NotEmpty()]
    """Data to train on, `NAME` or `NAME.SPLIT`."""
    training: Optimization
    """How to train."""


class TeacherRef(Config):
    """A teacher of a stage."""

    model: Text
    """Its model."""
    adaptor: Annotated[ComponentRef | None, OfKind("adaptor", optional=True)] = None
    """Its adaptor; that of `adaptors.teacher` where absent."""
    weight: Positive = 1.0
    """Its weight among several teachers."""
    task: Text | None = None
    """Which of the run's `tasks` it teaches; needed where there are any. A teacher of several stands here once for each."""

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, data: Any) -> Any:
        return {"model": data} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The object, or the name of its model alone."""
        return {"anyOf": [{"type": "string"}, handler(schema)]}


class Adaptors(Config):
    """What turns batches and model outputs into features."""

    teacher: Annotated[ComponentRef, OfKind("adaptor")] = ComponentRef("adaptor", "text_classification")
    """The teachers' adaptor; by default that of the task's kind."""
    student: Annotated[ComponentRef, OfKind("adaptor")] = ComponentRef("adaptor", "text_classification")
    """The student's adaptor; by default that of the task's kind."""


class DistillStage(Config):
    """Distil teachers into a student."""

    model_config = ConfigDict(json_schema_extra=told_apart)

    kind: Literal["distill"] = "distill"
    """The kind of stage."""
    name: Text
    """A name of its own, that of the stage's folder."""
    student: Text
    """The model that learns."""
    teachers: Annotated[tuple[TeacherRef, ...], NotEmpty()]
    """The models that teach."""
    train: Annotated[tuple[Text, ...], NotEmpty()]
    """Labelled data to train on, `NAME` or `NAME.SPLIT`."""
    unlabelled: tuple[Text, ...] = ()
    """Data without labels, for the teachers alone to answer."""
    strategy: Annotated[ComponentRef, OfKind("strategy")] = ComponentRef("strategy", "general")
    """Who teaches what."""
    adaptors: Adaptors = Adaptors()
    """What turns batches and model outputs into features."""
    distillation: Annotated[DistillationConfig, AfterValidator(_of_names)] = DistillationConfig()
    """The terms of the loss."""
    training: Optimization
    """How to train."""


class Best(Config):
    """Which checkpoint is the best."""

    metric: Text
    """The metric to compare; where there are `tasks`, `TASK/METRIC` or `mean/METRIC`."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better."""


class Evaluation(Config):
    """How models are evaluated."""

    data: NamesOfData
    """Labelled data that is never trained on, `NAME` or `NAME.SPLIT`; where there are `tasks`, a list with one for each."""
    test: NamesOfData | None = None
    """Labelled data for the final figures; those come from `data` where absent, also those of single tasks."""
    metrics: Annotated[tuple[Annotated[ComponentRef, OfKind("metric")], ...], NotEmpty()] = (
        ComponentRef("metric", "accuracy"),
    )
    """What is measured; by default `perplexity` in a `causal_lm` task."""
    best: Best | None = None
    """Choose the best checkpoint by a metric on `data`; the last one is taken where absent."""
    every_steps: Count | None = None
    """Optimizer steps from evaluation to evaluation; at checkpoints where absent."""
    batch_size: Count = 64
    """Rows in one forward pass."""


class RunConfig(Config):
    """A whole run."""

    schema_version: Literal[1] = 1
    """The version of this format."""
    schema_: Text | None = Field(None, alias="$schema")
    """A JSON Schema, for editors."""
    made_with: Annotated[dict[Text, Text], AfterValidator(FrozenDict)] = FrozenDict()
    """Versions of the distributions whose components the config names, as a run writes them into its copy: another version is
    warned of, and one that is not installed is refused."""
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """Of everything that is drawn."""
    precision: Precision = "no"
    """Autocast of forward passes; losses are always computed in float32."""
    output: Text | None = None
    """The run's folder; `runs/<config>-<UTC time>` where absent."""
    task: TaskConfig | None = TextClassificationTask()
    """What is learnt, unless there are `tasks`."""
    tasks: Annotated[dict[Text, TaskConfig], NotEmpty()] | None = None
    """Several tasks by name, all of one kind; in this order their classes stand side by side in the head of a model of several."""
    tokenizer: Tokenization = Tokenization()
    """The tokenizer of the run."""
    data: Annotated[dict[Text, DataConfig], NotEmpty()]
    """Data by name."""
    models: Annotated[dict[Text, Annotated[ComponentRef, OfKind("model")]], NotEmpty()]
    """Models by name."""
    stages: Annotated[tuple[Annotated[SupervisedStage | DistillStage, Field(discriminator="kind")], ...], NotEmpty()]
    """What is done, in order."""
    baselines: tuple[Literal["labels_only"], ...] = ()
    """`labels_only`: the last stage's student as it was before any distillation, trained on the labels alone as the last stage
    trains, for as many steps as all of its distillations have."""
    evaluation: Evaluation
    """How models are evaluated."""
    resume: Literal["never", "auto"] = "never"
    """`auto`: go on with the run that the folder holds, if it holds an unfinished one; the option `--resume` says the same."""
    cache: CacheConfig = CacheConfig()
    """Where teachers' features are kept, so that they are computed once and no more: `auto`, `off`, or a folder."""
    fsdp: tuple[Literal["student", "teachers"], ...] = ()
    """What is split over the processes, by torch's FSDP2, where a copy is too large for each."""
    trackers: tuple[Annotated[ComponentRef, OfKind("tracker")], ...] = (ComponentRef("tracker", "tensorboard"),)
    """Where figures go beside `metrics.jsonl`."""

    @model_validator(mode="after")
    def _freeze(self) -> Self:
        object.__setattr__(self, "data", FrozenDict(self.data))
        object.__setattr__(self, "models", FrozenDict(self.models))
        object.__setattr__(self, "tasks", FrozenDict(self.tasks) if self.tasks else None)
        object.__setattr__(self, "task", None if self.tasks else self.task or TextClassificationTask())
        for name, value in self._by_kind().items():
            object.__setattr__(self, name, value)
        return self

    def _by_kind(self) -> dict[str, Any]:
        """The parts in which the task's kind decides, where the config does not."""
        kind = self.kind
        if isinstance(kind, TextClassificationTask):  # whose components are the defaults of the fields
            return {}
        data = {name: _filled_in(part, label=None) for name, part in self.data.items()}
        stages = tuple(_with_adaptor(s, kind.adaptor) if isinstance(s, DistillStage) else s for s in self.stages)
        evaluation = _filled_in(self.evaluation, metrics=kind.metrics)
        return {"data": FrozenDict(data), "stages": stages, "evaluation": evaluation}

    @property
    def tasks_by_name(self) -> Mapping[str, AnyTask]:
        """The tasks; that of a run without `tasks` bears the empty name."""
        return self.tasks or {"": self.task or TextClassificationTask()}

    @property
    def kind(self) -> AnyTask:
        """A task of the kind of which all of them are."""
        return next(iter(self.tasks_by_name.values()))

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values, under the keys that it is read from."""
        return self.model_dump(mode="json", by_alias=True)


def _filled_in(part: Part, **defaults: Any) -> Part:
    """A part of a config with these values for the fields that were not given."""
    others = {name: value for name, value in defaults.items() if name not in part.model_fields_set}
    return BaseModel.model_copy(part, update=others)


def _with_adaptor(stage: DistillStage, adaptor: ComponentRef) -> DistillStage:
    adaptors = _filled_in(stage.adaptors, teacher=adaptor, student=adaptor)
    return BaseModel.model_copy(stage, update={"adaptors": adaptors})


def load_run_config(path: Path, settings: Sequence[str] = (), registry: ComponentLookup | None = None) -> RunConfig:
    """The run config in a JSON file, with `path.to.field=value` settings applied before it is validated.

    Raises ConfigError with every problem of shape, names and options at once.
    """
    return parse_run_config(read_json(path), str(path), registry, settings)


def parse_run_config(
    document: Any, source: str, registry: ComponentLookup | None = None, settings: Sequence[str] = ()
) -> RunConfig:
    """The run config in a JSON value. With a registry, names and options of components are checked in the same go.

    Raises ConfigError with every problem at once, RequestError for a setting that cannot be applied.
    """
    try:
        return _parsed(override(document, settings), source, registry)
    except RecursionError as error:
        raise ConfigError([TOO_DEEP], source) from error


def _parsed(document: Any, source: str, registry: ComponentLookup | None) -> RunConfig:
    if not isinstance(document, Mapping):
        raise ConfigError(
            [f'expected an object with keys such as "data", "models" and "stages", not {type(document).__name__}'],
            source,
        )
    found = [
        *missing_plugins(document, registry),
        *reference_problems(document),
        *task_problems(document),
        *kind_problems(document),
    ]
    try:
        config = RunConfig.model_validate(document, context={"registry": registry})
    except ValidationError as error:
        raise ConfigError([*problems(error, RunConfig), *found], source) from error
    if found:
        raise ConfigError(found, source)
    warn_of_other_versions(document, registry, source)
    return config
