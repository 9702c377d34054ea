"""Reads a component's interface off its Python signature: which inputs it names and which options it takes."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import NotRequired, Required, is_typeddict

from brewer_core.components.kinds import RESERVED, Kind
from brewer_core.errors import ComponentError

Parameter = inspect.Parameter
_SCALARS = (bool, int, float, str, type(None))
_MAKERS = (type, functools.partial)
_SEQUENCES = (list, tuple, Sequence)


@dataclass(frozen=True)
class Option:
    """One option: a keyword-only parameter. `default` is `inspect.Parameter.empty` where it is required."""

    name: str
    annotation: Any
    default: Any


@dataclass(frozen=True)
class Signature:
    """What a component is called with.

    positional: how many of the kind's positional inputs it takes.
    inputs: the named inputs that it asks for; required: those of them without a default.
    sizes: the inputs that its `__init__` asks for (classes only).
    """

    positional: int
    inputs: tuple[str, ...]
    required: tuple[str, ...]
    options: tuple[Option, ...]
    sizes: tuple[str, ...] = ()


def read_signature(kind: Kind, name: str, implementation: Callable[..., Any]) -> Signature:
    """The signature of an implementation. Raises ComponentError where it breaks a rule for components of its kind."""
    reader = _Reader(kind, name)
    if isinstance(implementation, type) and kind.life != "made":
        return reader.of_class(implementation)
    return reader.of_function(implementation)


class _Reader:
    """Reads one implementation, and knows how to name it in an error."""

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind = kind
        self.label = f"{kind.title} `{name}`"

    def refuse(self, reason: str) -> ComponentError:
        return ComponentError(f"{self.label} {reason}")

    def of_function(self, implementation: Callable[..., Any]) -> Signature:
        if not callable(implementation):
            raise self.refuse(f"is {implementation!r}, which is neither a function nor a class.")
        if self.kind.life == "made" and not (inspect.isroutine(implementation) or isinstance(implementation, _MAKERS)):
            wants = f"of ({', '.join(self.kind.positional)})" if self.kind.positional else "from its options"
            made = type(implementation).__name__
            raise self.refuse(f"is made already, a {made}; pass the function or class that makes it {wants}.")
        function, parameters = self._parameters(implementation)
        positional, keywords = self._split(parameters)
        return Signature(
            self._count(positional),
            *self._inputs(keywords, self.kind.named),
            options=self._options(function, keywords, self.kind.named),
        )

    def of_class(self, implementation: type) -> Signature:
        constructor, parameters = self._constructor(implementation)
        positional, keywords = self._split(parameters)
        options = self._options(constructor, keywords, self.kind.sizes)
        sizes = tuple(p.name for p in keywords if p.name in self.kind.sizes)
        if self.kind.life == "class":
            return Signature(self._count(positional), (), (), options, sizes)
        if positional and positional[0].default is Parameter.empty:
            raise self.refuse(
                f"has the positional parameter `{positional[0].name}` in `__init__`; options of a class follow a `*`."
            )
        called, named = self._split(list(_signature(self._call_of(implementation), self).parameters.values())[1:])
        count = self._count(called)
        for parameter in named:
            if parameter.name not in self.kind.named:
                raise self.refuse(
                    f"names `{parameter.name}` in its call, which is no input of this kind; "
                    "options of a class belong to its `__init__`."
                )
        return Signature(count, *self._inputs(named, self.kind.named), options=options, sizes=sizes)

    def _call_of(self, implementation: type) -> Callable[..., Any]:
        """What a call of an instance runs: `forward` of an `nn.Module`, else `__call__`."""
        if not any("__call__" in vars(c) for c in implementation.__mro__):
            raise self.refuse(
                "is a class whose instances cannot be called; give it `__call__`, or an nn.Module `forward`."
            )
        call: Callable[..., Any] = getattr(implementation, "forward", None) or implementation.__call__
        return call

    def _parameters(self, implementation: Callable[..., Any]) -> tuple[Callable[..., Any], list[Parameter]]:
        """The function behind an implementation, and its parameters as a caller of the implementation sees them."""
        if isinstance(implementation, functools.partial):
            return self._partial(implementation)
        if isinstance(implementation, type):
            return self._constructor(implementation)
        # What an nn.Module is called with stands at its `forward`; its own `__call__` takes anything.
        called = (
            implementation if inspect.isroutine(implementation) else getattr(implementation, "forward", implementation)
        )
        return called, list(_signature(called, self).parameters.values())

    def _partial(self, partial: functools.partial[Any]) -> tuple[Callable[..., Any], list[Parameter]]:
        # The partial's own signature turns parameters after a bound one into keyword-only: read the function's.
        if isinstance(partial.func, type) and self.kind.life == "called":
            raise self.refuse(
                f"is a partial of the class {partial.func.__name__}; give a subclass with other defaults."
            )
        function, parameters = self._parameters(partial.func)
        positional, _ = self._split(parameters)
        parameters = [p for p in parameters if p not in positional[: len(partial.args)]]
        called = positional[len(partial.args) :][: len(self.kind.positional)]
        for name in partial.keywords:
            if name in self.kind.named or name in [p.name for p in called]:
                raise self.refuse(f"is a partial that binds its input `{name}`; bind options only.")
            if name not in [p.name for p in parameters]:
                raise self.refuse(f"is a partial that binds `{name}`, which its function does not take.")
        bound = [p.replace(default=partial.keywords[p.name]) if p.name in partial.keywords else p for p in parameters]
        return function, bound

    def _constructor(self, implementation: type) -> tuple[Callable[..., Any], list[Parameter]]:
        owner = next(c for c in implementation.__mro__ if "__init__" in vars(c))
        # A protocol has an `__init__` that typing made, and nn.Module one that takes anything.
        home = getattr(vars(owner)["__init__"], "__module__", "")
        if owner is object or home in ("typing", "torch.nn.modules.module"):
            return implementation, []
        constructor = owner.__init__  # type: ignore[misc]  # read only, and of exactly the class that defines it
        return constructor, list(_signature(constructor, self).parameters.values())[1:]

    def _split(self, parameters: list[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
        for parameter in parameters:
            if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                stars = "*" if parameter.kind is Parameter.VAR_POSITIONAL else "**"
                raise self.refuse(f"takes `{stars}{parameter.name}`; name every input and option.")
        keywords = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY]
        return [p for p in parameters if p.kind is not Parameter.KEYWORD_ONLY], keywords

    def _count(self, positional: list[Parameter]) -> int:
        """How many of the kind's positional inputs these parameters take."""
        inputs, required = self.kind.positional, len(self.kind.positional) - self.kind.trailing
        expected = f"called with ({', '.join(inputs)})" if inputs else "called without positional inputs"
        if len(positional) < required:
            raise self.refuse(f"has too few positional parameters, {len(positional)}; it is {expected}.")
        for extra in positional[len(inputs) :]:
            if extra.default is Parameter.empty:
                raise self.refuse(
                    f"has the further positional parameter `{extra.name}`; it is {expected}, options follow a `*`."
                )
        for input_name, p in list(zip(inputs, positional, strict=False))[required:]:
            if p.default is not Parameter.empty and p.default is not None:  # the input would land in an option
                raise self.refuse(
                    f"has the positional parameter `{p.name}={p.default!r}` in the place of the input `{input_name}`; "
                    "options follow a `*`."
                )
        return min(len(positional), len(inputs))

    def _inputs(self, keywords: list[Parameter], names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        named = [p for p in keywords if p.name in names]
        return tuple(p.name for p in named), tuple(p.name for p in named if p.default is Parameter.empty)

    def _options(self, function: Any, keywords: list[Parameter], inputs: tuple[str, ...]) -> tuple[Option, ...]:
        return tuple(self._option(function, p) for p in keywords if p.name not in inputs)

    def _option(self, function: Any, parameter: Parameter) -> Option:
        name = parameter.name
        if name.startswith("_"):
            raise self.refuse(f"has the option `{name}`; an option does not begin with an underscore.")
        if name == "name":
            raise self.refuse(
                "has the option `name`, which names the component itself in a config; call it something else."
            )
        if name in RESERVED:
            own = ", ".join(self.kind.named) or "none"
            raise self.refuse(
                f"has the option `{name}`, which is the name of an input elsewhere; call it something else "
                f"(named inputs of this kind: {own})."
            )
        if parameter.annotation is Parameter.empty:
            raise self.refuse(
                f"has the option `{name}` without an annotation; write its type, such as `{name}: float`{self._hint(name)}"
            )
        annotation = self._evaluate(function, name, parameter.annotation)
        for part in _parts(annotation):
            if is_typeddict(part):
                if getattr(part, "__pydantic_config__", {}).get("extra") != "forbid":
                    raise self.refuse(
                        f"has the option `{name}` of type {part.__name__}, which takes keys that it does not know; decorate "
                        'it with `@pydantic.with_config(extra="forbid", strict=True)`.'
                    )
            elif not _is_json(part):
                raise self.refuse(
                    f"has the option `{name}` of type {_type_name(part)}, which is no JSON type{self._hint(name)}"
                )
        return Option(name, annotation, parameter.default)

    def _hint(self, name: str) -> str:
        """The end of a sentence: a full stop, or the input that was meant."""
        close = difflib.get_close_matches(name, self.kind.named, n=1, cutoff=0.5)
        return f"; did you mean the input `{close[0]}`?" if close else "."

    def _evaluate(self, function: Any, name: str, annotation: Any) -> Any:
        inner = inspect.unwrap(function)
        namespace = dict(vars(sys.modules.get(inner.__module__, types.ModuleType(""))))
        namespace.update(getattr(inner, "__globals__", {}))
        try:
            # The plugin's own source text, already imported as code: only its options' annotations are evaluated.
            while isinstance(annotation, str):
                annotation = eval(annotation, namespace)
            return annotation
        except Exception as error:
            raise self.refuse(
                f"has the option `{name}` annotated {annotation!r}, which does not evaluate ({error}); import what it "
                f"names at run time{self._hint(name)}"
            ) from error


def _signature(function: Callable[..., Any], reader: _Reader) -> inspect.Signature:
    try:
        if sys.version_info >= (3, 14):
            import annotationlib

            return inspect.signature(function, annotation_format=annotationlib.Format.STRING)
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise reader.refuse(f"has no readable signature ({error}).") from error


def _parts(annotation: Any) -> Iterator[Any]:
    """The leaf types of an annotation: those inside unions, containers and `Annotated`; a typed dict, and those inside it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_typeddict(annotation):
        yield annotation
        for inner in get_type_hints(annotation, include_extras=True).values():
            yield from _parts(inner)
    elif origin in (Annotated, Required, NotRequired):
        yield from _parts(arguments[0])
    elif (
        origin in (Union, types.UnionType)
        or origin in _SEQUENCES
        or (isinstance(origin, type) and issubclass(origin, Mapping))
    ):
        for argument in arguments:
            if argument is not Ellipsis:
                yield from _parts(argument)
    else:
        yield annotation


def _is_json(part: Any) -> bool:
    if get_origin(part) is Literal:
        return all(isinstance(value, _SCALARS) for value in get_args(part))
    return part is None or part in _SCALARS or part in (list, tuple, dict)


def _type_name(part: Any) -> str:
    return part.__name__ if isinstance(part, type) else str(part)
