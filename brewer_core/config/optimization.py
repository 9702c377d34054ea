"""How a stage of a run trains: its steps, the optimizer and the schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from brewer_core.config.base import (
    NAME_SCHEMA,
    Bool,
    Config,
    Float,
    FrozenDict,
    FrozenOptions,
    Text,
    exactly_one,
    shown,
)
from brewer_core.config.training import Count, LossNormalization

if TYPE_CHECKING:
    from typing_extensions import Self

Positive = Annotated[Float, Field(gt=0)]
Identifier = Annotated[Text, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
Share = Annotated[Float, Field(ge=0, lt=1)]


class RowsOrAuto:
    """Marks a number of rows that may be `auto`, with the errors of a number where it is neither."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A count, but for that word."""
        del source
        return core_schema.no_info_wrap_validator_function(
            _auto_or_rows, handler.generate_schema(Count), serialization=core_schema.simple_ser_schema("any")
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Either."""
        return {"anyOf": [{"const": "auto", "type": "string"}, handler(schema)]}


def _auto_or_rows(value: Any, rows: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else rows(value)


class OptimizerConfig(Config):
    """An optimizer of torch.optim, or of transformers. Names and options are looked up when a run is planned."""

    name: Identifier = "adamw"
    """A class of torch.optim in any case: `adamw`, `sgd`, `RAdam`. `transformers.Adafactor` is that of transformers."""
    learning_rate: Positive = 1e-3
    """The highest learning rate of the schedule."""
    weight_decay: Annotated[Float, Field(ge=0)] = 0.01
    """Decay of every weight of the model, but for those that `no_decay` spares."""
    momentum: Share = 0.0
    """Momentum of `sgd`, and of others that have a setting of that name."""
    options: FrozenOptions = FrozenDict()
    """Further settings under the names that the class has for them: `{"betas": [0.9, 0.98], "eps": 1e-6}`."""
    fused: Bool | None = None
    """Whether the step is one fused kernel, where the class has one; null for torch's own choice."""
    no_decay: Literal["biases_and_norms", "none"] = "biases_and_norms"
    """What does not decay: biases, parameters of norms, and other vectors; or nothing."""


class ScheduleConfig(Config):
    """How the learning rate moves over the stage. Names and options are looked up when a run is planned."""

    name: Identifier = "linear"
    """After the warm-up `constant`, `linear` to 0 or `cosine` to 0; `one_cycle`; a schedule of transformers such as
    `cosine_with_restarts`; or a class of torch.optim.lr_scheduler such as `StepLR`, in any case."""
    warmup: Share | None = None
    """Share of the steps over which the rate rises (its peak, for `one_cycle`). Null is 0.1, and none for torch's classes."""
    options: FrozenOptions = FrozenDict()
    """Further settings under the names that the schedule has for them: `{"num_cycles": 3}`. Counts are of optimizer steps."""


def _backend(value: Any) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value):
        return value
    raise PydanticCustomError("text", "expected true, false or the name of a backend, not {v}", {"v": shown(value)})


Backend = Annotated[Any, PlainValidator(_backend), WithJsonSchema({"anyOf": [{"type": "boolean"}, NAME_SCHEMA]})]


class Optimization(Config):
    """How a stage trains: exactly one of epochs and steps, and the rest."""

    model_config = exactly_one("epochs", "steps")

    epochs: Count | None = None
    """Passes over the training rows."""
    steps: Count | None = None
    """Optimizer steps."""
    batch_size: Annotated[int | Literal["auto"], RowsOrAuto()] = 16
    """Rows in one forward pass, over all processes. `auto`: as many of a step's as the memory holds, found by halving."""
    accumulation: Count = 1
    """Forward passes in one optimizer step; with batch_size `auto`, rows_per_step says how large a step is."""
    rows_per_step: Count | None = None
    """With batch_size `auto`: rows in one optimizer step, over all processes; 16 where absent."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning-rate schedule."""
    max_grad_norm: Positive | None = 1.0
    """Clip the gradients of all that is trained to this norm; null for no clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where a loss or a gradient is not finite: stop before the step, or leave the step out with a warning."""
    nonfinite_limit: Count = 10
    """With on_nonfinite `skip`: how many steps of the stage may be left out before it stops all the same."""
    loss_normalization: LossNormalization = "step"
    """`step`: mean over the items of the whole optimizer step. `micro_batch`: mean of the micro-batches' means."""
    drop_last: Bool = False
    """Leave out, in each pass, the rows that do not fill an optimizer step."""
    group_by_length: Bool = True
    """Put texts of like length into a batch, so that less is padded."""
    log_every_steps: Count = 10
    """Optimizer steps from log line to log line."""
    checkpoint_every_steps: Count | None = None
    """Optimizer steps from checkpoint to checkpoint, each evaluated and kept; null for none but what save_every_minutes asks for."""
    save_every_minutes: Positive | None = 10.0
    """Minutes after which the state is saved once more, so that a run that is killed loses no more; null for never."""
    keep_last: Count = 2
    """How many of the latest checkpoints to keep."""
    gradient_checkpointing: Bool = False
    """Compute the student's inner states again in the backward pass instead of keeping them: less memory, more time."""
    compile: Backend = False
    """Compile the student and its teachers by torch.compile; the name of a backend, or true for torch's own."""
    keep_best: Bool = True
    """Keep the checkpoint that `evaluation.best` names beside the latest ones."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.batch_size == "auto" and self.accumulation > 1:
            raise ValueError('accumulation: batch_size is "auto", which finds it; give rows_per_step in its place')
        if self.batch_size != "auto" and self.rows_per_step is not None:
            raise ValueError(
                'rows_per_step: goes with batch_size "auto"; a step has batch_size x accumulation rows else'
            )
        if self.batch_size == "auto" and self.loss_normalization == "micro_batch":
            raise ValueError(
                'loss_normalization: with batch_size "auto" the mean of micro-batches would depend on the memory; use "step"'
            )
        return self

    @property
    def micro_batch_rows(self) -> int:
        """Rows in one forward pass, as long as the memory holds them."""
        return (self.rows_per_step or 16) if self.batch_size == "auto" else self.batch_size

    @property
    def step_rows(self) -> int:
        """Rows in one optimizer step."""
        return self.micro_batch_rows * self.accumulation
