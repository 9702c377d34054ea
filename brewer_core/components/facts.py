"""`@component`: facts about a method that its signature cannot say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from brewer_core.errors import ComponentError

if TYPE_CHECKING:
    from brewer_core.features import Counts

Over = Literal["rows", "tokens", "token_pairs", "logits", "batch"]
OVER: tuple[str, ...] = ("rows", "tokens", "token_pairs", "logits", "batch")
ATTRIBUTE = "__brewer_component__"
AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])


@dataclass(frozen=True)
class Facts:
    """What `@component` declared; None where nothing was said."""

    over: Over | Callable[[Counts], float] | None = None
    positional: tuple[str, ...] = ()
    source: str | None = None
    title: str | None = None


def component(
    *,
    over: Over | Callable[[Counts], float] | None = None,
    positional: Sequence[str] = (),
    source: str | None = None,
    name: str | None = None,
) -> Callable[[AnyCallable], AnyCallable]:
    """Declare facts about a component and return it unchanged, but for the attribute `__brewer_component__`.

    over: what the loss's mean is over. One of rows (the default), tokens, token_pairs, logits, batch, or a function
    of `Counts` that gives the number of items.
    positional: the order in which the values of a list form, such as `["flsw", 1, 2]`, go to the options.
    source: where the method comes from: paper and equation.
    name: the method's name in full, such as "Flow of solution procedure".

    Raises ComponentError where a fact is not one of these.
    """
    if over is not None and not callable(over) and over not in OVER:
        raise ComponentError(f"over={over!r} is not one of {', '.join(OVER)}, nor a function of counts.")
    if isinstance(positional, str) or not all(isinstance(option, str) for option in positional):
        raise ComponentError(f"positional={positional!r} must be a tuple of option names.")
    facts = Facts(over=over, positional=tuple(positional), source=source, title=name)

    def declare(implementation: AnyCallable) -> AnyCallable:
        setattr(implementation, ATTRIBUTE, facts)
        return implementation

    return declare


def facts_of(implementation: Callable[..., Any]) -> Facts:
    """The facts declared about an implementation; those of the function inside a `functools.partial`."""
    inner = getattr(implementation, "func", implementation)
    facts = getattr(implementation, ATTRIBUTE, None) or getattr(inner, ATTRIBUTE, None)
    return facts if isinstance(facts, Facts) else Facts()
