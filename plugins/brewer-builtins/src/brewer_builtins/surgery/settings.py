"""What a config says of a student that is cut out of its teacher."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import NotRequired, TypedDict

By = Literal["uniform", "last", "first", "skip", "block_influence"]
Method = Literal["importance", "truncate", "pca"]
_STRICT = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(gt=0)]


@with_config(_STRICT)
class LayersBy(TypedDict):
    """How many layers, and which ones."""

    count: Annotated[int, Field(gt=0, description="How many of the teacher's layers the student has.")]
    by: Annotated[By, Field(description="Which ones.")]


@with_config(_STRICT)
class LayersOfStacks(TypedDict):
    """The layers of a model that has an encoder and a decoder; all of those of a stack that is left out."""

    encoder: NotRequired[Annotated[Count | list[int] | By | LayersBy, Field(description="The encoder's layers.")]]
    decoder: NotRequired[Annotated[Count | list[int] | By | LayersBy, Field(description="The decoder's layers.")]]


def _told_once(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """The value. What is none of the forms is told in one sentence, and not in one for each form."""
    try:
        return handler(value)
    except ValidationError as error:
        raise PydanticCustomError("text", "{text}", {"text": f"expected {FORMS}"}) from error


FORMS = (
    f"a number of layers, a list of them, one of {', '.join(get_args(By))}, both, as in "
    '{"count": 4, "by": "uniform"}, or one of these for each of "encoder" and "decoder"'
)
Layers = Annotated[Count | list[int] | By | LayersBy | LayersOfStacks, WrapValidator(_told_once)]


@with_config(_STRICT)
class FromTeacher(TypedDict):
    """The student's sizes, and what is kept of the teacher. What is left out is as in the teacher."""

    layers: NotRequired[
        Annotated[
            Layers,
            Field(
                description="Which layers: a number (evenly spaced), a list counted from 0, a word (half of them), or "
                'both, {"count": 4, "by": "block_influence"}; for each stack, {"encoder": ..., "decoder": ...}.'
            ),
        ]
    ]
    hidden_size: NotRequired[Annotated[Count, Field(description="The width that all layers share.")]]
    num_attention_heads: NotRequired[
        Annotated[Count, Field(description="Heads of a layer; by default fewer in proportion, of as many dimensions.")]
    ]
    num_key_value_heads: NotRequired[
        Annotated[Count, Field(description="Heads of keys and values, where several heads share them.")]
    ]
    intermediate_size: NotRequired[
        Annotated[Count, Field(description="Neurons of a layer; by default fewer in proportion to the width.")]
    ]
    method: NotRequired[
        Annotated[
            Method,
            Field(
                description="What is kept where it gets narrower: what is most active on a sample of the training rows "
                "(importance, the default), what comes first (truncate), or principal components (pca)."
            ),
        ]
    ]
    sample_rows: NotRequired[
        Annotated[Count, Field(description="Training rows that are looked at, 256 by default; never evaluation data.")]
    ]
