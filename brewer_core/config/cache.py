"""Whether teachers' features are kept for later epochs and runs, where, and in which form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from brewer_core.config.base import NAME_SCHEMA, Config, Float, Text
from brewer_core.config.training import Count

if TYPE_CHECKING:
    from typing_extensions import Self


class CacheConfig(Config):
    """What is computed of a teacher once, and read ever after. Short forms: `"auto"`, `"off"`, or a path."""

    path: Text = Field("auto", min_length=1)
    """`auto`: the folder that the environment variable BREWER_CACHE names, or the user's own for caches, and the teacher live where that
    does not pay or has not the room; `off`: nowhere; or a folder, in which all of it must have room."""
    floats: Literal["float32", "float16", "bfloat16"] = "float32"
    """How numbers are kept: exactly as computed, or rounded to 16 bits."""
    top_k: Count | None = None
    """Keep only so many of each position's logits, the largest, and what the others add up to."""
    samples: Count | None = None
    """Keep so many draws from each position's distribution: gradients are right on average, at temperature 1."""
    limit_gb: Annotated[Float, Field(gt=0)] = 20.0
    """How large the cache of one teacher may grow, in gigabytes."""

    @model_validator(mode="before")
    @classmethod
    def _read_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.top_k is not None and self.samples is not None:
            raise ValueError("samples: contradicts top_k; give one of them")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The object, or its path alone."""
        return {"anyOf": [NAME_SCHEMA, handler(schema)]}

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self.path != "off"

    @property
    def form(self) -> Mapping[str, Any]:
        """The settings of the form in which features are kept."""
        return {"floats": self.floats, "top_k": self.top_k, "samples": self.samples}
