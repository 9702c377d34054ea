"""What all configs share: frozen and closed models, and problems told as sentences with a path."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, ValidationError, model_validator

from brewer_core.errors import ConfigError, ReadOnlyError, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self

Key = TypeVar("Key")
Value = TypeVar("Value")

NAME_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1}
"""In the JSON Schema: a text that is not empty."""


def exactly_one(*names: str) -> ConfigDict:
    """For the JSON Schema of a model that wants one of its fields and not the others, null meaning absent."""
    given: list[Any] = [{"properties": {name: {"not": {"type": "null"}}}, "required": [name]} for name in names]
    return ConfigDict(json_schema_extra={"oneOf": given})


def plain_number(value: Any) -> Any:
    """A number of numpy's as one of Python's; anything else as it is."""
    if isinstance(value, (bool, int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]

TOO_DEEP = "nested too deeply"


class FrozenDict(dict[Key, Value]):
    """A dict that cannot be written to, yet pickles and serialises like one."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ReadOnlyError("this mapping belongs to a config and is read-only; build a new config instead.")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict[Key, Value]], tuple[dict[Key, Value]]]:
        return (FrozenDict, (dict(self),))


def freeze(value: Any) -> Any:
    """The same value with lists as tuples and mappings as read-only mappings, all the way down.

    Raises ValueError for a number that is not finite.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"every number in it should be finite, not {value}")
    if isinstance(value, Mapping):
        return FrozenDict({key: freeze(inner) for key, inner in value.items()})
    return tuple(freeze(inner) for inner in value) if isinstance(value, (list, tuple)) else value


FrozenOptions = Annotated[dict[str, Any], AfterValidator(freeze)]


class Config(BaseModel):
    """A frozen, closed config. Unknown keys and non-finite numbers are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="null",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, data: Any) -> Any:
        return {key: plain_number(value) for key, value in data.items()} if isinstance(data, Mapping) else data

    @classmethod
    def from_dict(cls, dict_object: Mapping[str, Any]) -> Self:
        """The config in a dict. Raises ConfigError with every problem in it."""
        return validated(cls, dict(dict_object), cls.__name__)

    @classmethod
    def from_json_file(cls, json_filename: str | Path) -> Self:
        """The config in a JSON file. Raises ConfigError with every problem in it, or where it is no JSON."""
        return validated(cls, read_json(Path(json_filename)), str(json_filename))

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values; components in their mapping form."""
        return self.model_dump(mode="json")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same config with some fields changed, which are validated. Raises ConfigError where they are wrong."""
        if not update:
            return super().model_copy(deep=deep)
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return type(self).model_validate({**fields, **update}, by_alias=False, by_name=True)
        except ValidationError as error:
            raise ConfigError(problems(error, type(self)), type(self).__name__) from error

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            raise ReadOnlyError(
                f"{type(self).__name__} is frozen; in place of assigning `{name}`, build a new one: "
                f"config.model_copy(update={{{name!r}: ...}}) or {type(self).__name__}(..., {name}=...)."
            )
        super().__setattr__(name, value)


Model = TypeVar("Model", bound=BaseModel)

_SHAPES = {"model_type": "an object", "dict_type": "an object", "tuple_type": "a list"}
"""What JSON calls the types of pydantic's messages."""


def validated(model: type[Model], document: Any, source: str, context: Mapping[str, Any] | None = None) -> Model:
    """The model made of a document. Raises ConfigError with all of its problems, each with its path."""
    try:
        return model.model_validate(document, context=dict(context or {}))
    except ValidationError as error:
        raise ConfigError(problems(error, model), source) from error
    except RecursionError as error:
        raise ConfigError([TOO_DEEP], source) from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ConfigError where it is not there, or is no JSON."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(["there is no such file"], str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"the file cannot be read: {error}"], str(path)) from error
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ConfigError(
            [
                f"line {error.lineno}, column {error.colno}: not JSON ({error.msg}); check for a missing comma or quote there"
            ],
            str(path),
        ) from error
    except RecursionError as error:
        raise ConfigError([TOO_DEEP], str(path)) from error
    except ValueError as error:  # Python's own, for endless numbers, goes on about a setting of Python's
        raise ConfigError([f"not JSON that can be read: {str(error).partition(';')[0]}"], str(path)) from error


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence for each problem, with its path: `stages[1].training.lr: unknown key; did you mean ...?`."""
    return [_problem(details, model) for details in error.errors(include_url=False)]


def path_text(location: Sequence[str | int]) -> str:
    """A path as configs write it: `stages[1].distillation`."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _problem(details: Any, model: type[BaseModel]) -> str:
    location = tuple(details["loc"])
    if details["type"].startswith("union_tag"):
        location += (details["ctx"]["discriminator"].strip("'()"),)
    owners, location = _owners(model, location)
    inside = details.get("ctx", {}).get("at")  # of what is wrong with one field, seen beside others
    path = path_text(location if inside is None else (*location, inside))
    return f"{path}: {_reason(details, owners, location)}" if path else _reason(details, owners, location)


def _reason(details: Any, owners: set[type[BaseModel]], location: tuple[str | int, ...]) -> str:
    if details["type"] == "missing":
        return "is required"
    if details["type"] == "extra_forbidden":
        known = sorted({field.alias or name for owner in owners for name, field in owner.model_fields.items()})
        return f"unknown key{did_you_mean(str(location[-1]), known)}"
    message = str(details["msg"]).removeprefix("Value error, ")
    if details["type"] in ("text", "value_error"):
        return message
    if details["type"] == "union_tag_not_found":
        return "is required"
    if details["type"] == "union_tag_invalid":
        return f"input should be {details['ctx']['expected_tags'].replace(', ', ' or ')}, not {shown(details['ctx']['tag'])}"
    if details["type"] in _SHAPES:
        return f"input should be {_SHAPES[details['type']]}, not {shown(details['input'])}"
    return f"{message[0].lower()}{message[1:]}, not {shown(details['input'])}"


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _owners(
    model: type[BaseModel], location: tuple[str | int, ...]
) -> tuple[set[type[BaseModel]], tuple[str | int, ...]]:
    """The models that hold the last step of a location, and the location without the tags of unions."""
    owners, path = {model}, []
    for step in location:
        tagged = {owner for owner in owners if isinstance(step, str) and _tag(owner) == step}
        if tagged:
            owners = tagged
            continue
        path.append(step)
        if step != location[-1] or len(path) < len(location):
            inner = {
                m
                for owner in owners
                if step in owner.model_fields
                for m in _models(owner.model_fields[str(step)].annotation)
            }
            owners = inner or owners
    return owners, tuple(path)


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return kind.default if kind is not None and isinstance(kind.default, str) else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a key is given twice: Python would drop the first in silence."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} is there twice in one object")
    return dict(pairs)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
