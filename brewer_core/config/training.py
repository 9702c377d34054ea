"""How a model is trained, under TextBrewer's names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from brewer_core.config.base import Bool, Int, Text
from brewer_core.config.positional import PositionalConfig

if TYPE_CHECKING:
    from typing_extensions import Self

Precision = Literal["no", "bf16", "fp16"]
LossNormalization = Literal["step", "micro_batch"]
Count = Annotated[Int, Field(gt=0, lt=2**31)]


def _path_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


PathText = Annotated[Text, BeforeValidator(_path_text)]


class TrainingConfig(PositionalConfig):
    """General settings of a training. Building one creates nothing and reads nothing."""

    gradient_accumulation_steps: Count = 1
    """Micro-batches in one optimizer step."""
    ckpt_frequency: Count = 1
    """Checkpoints in an epoch."""
    ckpt_epoch_frequency: Count = 1
    """Epochs from one epoch with checkpoints to the next."""
    ckpt_steps: Count | None = None
    """With `num_steps`: optimizer steps from checkpoint to checkpoint; None for the last step alone."""
    log_dir: PathText | None = None
    """Folder of the TensorBoard log; None for no log."""
    output_dir: PathText = "./saved_models"
    """Folder of the checkpoints and of `gs{N}.pkl`."""
    device: Annotated[Text, BeforeValidator(lambda value: value if isinstance(value, str) else str(value))] = "cuda"
    """Where to train; `cuda` falls back to the CPU with a warning where there is none."""
    fp16: Bool = False
    """Mixed precision in float16 with loss scaling, by torch.amp."""
    fp16_opt_level: Text = "O1"
    """Accepted for old scripts, without effect: torch.amp has one level."""
    data_parallel: Bool = False
    """Accepted for old scripts: ignored with a warning."""
    local_rank: Int = -1
    """Accepted for old scripts; the rank is read from the environment."""
    loss_normalization: LossNormalization = "micro_batch"
    """`step`: mean over the items of the whole optimizer step. `micro_batch`: mean of the micro-batches' means."""
    precision: Precision = "no"
    """Autocast of the student's and teacher's forward passes; losses are always computed in float32."""
    log_every_steps: Count = 10
    """Optimizer steps from log line to log line."""
    keep_last: Count = 2
    """How many full checkpoints to keep; every `gs{N}.pkl` is kept."""
    resume: Bool = False
    """Go on from the newest full checkpoint in `output_dir`, to the same end; begin where there is none."""

    cache: PathText = "off"
    """Where teachers' features are kept, so that they are computed once and no more: a folder; `auto` for the one that BREWER_CACHE
    names, or the user's own for caches; `off` for none."""
    cache_key: Text | None = None
    """The column of a batch that tells its rows apart, which no model is given; None to tell them by what they hold."""

    _keyword_only: ClassVar[tuple[str, ...]] = (
        "loss_normalization",
        "precision",
        "log_every_steps",
        "keep_last",
        "resume",
        "cache",
        "cache_key",
    )

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.fp16 and self.precision == "bf16":
            raise ValueError("fp16: contradicts precision, which is 'bf16'; set one of them")
        return self

    @property
    def autocast(self) -> Precision:
        """The precision that `fp16` and `precision` ask for together."""
        return "fp16" if self.fp16 else self.precision
