"""Configs whose fields may be given by position, as TextBrewer's signatures allow."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ValidationError

from brewer_core.config.base import Config, problems
from brewer_core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Positional(ModelMetaclass):
    """Accepts fields by position, up to the first that is keyword-only, and tells problems as ConfigError.

    Done at the call, not in an `__init__`: a model with one of its own loses the validation context of what holds it.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        by_position = inspect.signature(cls).bind_partial(*args).arguments
        try:
            return super().__call__(**by_position, **kwargs)
        except ValidationError as error:
            raise ConfigError(problems(error, cls), cls.__name__) from error  # type: ignore[arg-type]  # cls is a model


class PositionalConfig(Config, metaclass=_Positional):
    """A config with TextBrewer's signature: its fields in order, then ours as keyword-only.

    _keyword_only: names of the fields that TextBrewer does not have. _positional_defaults: the defaults that its
    signature shows, where the field holds them in another form.
    """

    _keyword_only: ClassVar[tuple[str, ...]] = ()
    _positional_defaults: ClassVar[dict[str, Any]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class the signature of its fields."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__signature__ = inspect.Signature([cls._parameter(name) for name in cls.model_fields])

    @classmethod
    def _parameter(cls, name: str) -> inspect.Parameter:
        kind = inspect.Parameter.KEYWORD_ONLY if name in cls._keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = cls._positional_defaults.get(name, cls.model_fields[name].default)
        return inspect.Parameter(name, kind, default=default)
