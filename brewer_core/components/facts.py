"""`@component`: facts about a method that its signature cannot say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from brewer_core.errors import ComponentError

if TYPE_CHECKING:
    from brewer_core.features import Counts
    from brewer_core.sparse_logits import Kept

Over = Literal["rows", "tokens", "token_pairs", "logits", "batch"]
OVER: tuple[str, ...] = ("rows", "tokens", "token_pairs", "logits", "batch")
Sparse: TypeAlias = "bool | Callable[[Kept, Mapping[str, Any]], str]"
ATTRIBUTE = "__brewer_component__"
AnyCallable = TypeVar("AnyCallable", bound=Callable[..., Any])


@dataclass(frozen=True)
class Facts:
    """What `@component` declared; None where nothing was said."""

    over: Over | Callable[[Counts], float] | None = None
    positional: tuple[str, ...] = ()
    source: str | None = None
    title: str | None = None
    exempt: Mapping[str, str] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    sparse: Sparse = False
    lower_is_better: bool = False


def component(
    *,
    over: Over | Callable[[Counts], float] | None = None,
    positional: Sequence[str] = (),
    source: str | None = None,
    name: str | None = None,
    exempt: Mapping[str, str] | None = None,
    example: Mapping[str, Any] | None = None,
    claims: Sequence[str] = (),
    sparse: Sparse = False,
    lower_is_better: bool = False,
) -> Callable[[AnyCallable], AnyCallable]:
    """Declare facts about a component and return it unchanged, but for the attribute `__brewer_component__`.

    over: what the loss's mean is over. One of rows (the default), tokens, token_pairs, logits, batch, or a function
    of `Counts` that gives the number of items.
    positional: the order in which the values of a list form, such as `["flsw", 1, 2]`, go to the options.
    source: where the method comes from: paper and equation.
    name: the method's name in full, such as "Flow of solution procedure".
    exempt: properties of `brewer_core.testing` that do not apply, each with the reason, which every report shows.
    example: options to test it with; needed where an option has no default.
    claims: properties that hold only where they are claimed, `t_squared` among them.
    sparse: whether `SparseLogits` may be its `teacher_logits`: logits of which a cache kept only some classes. Or a function of what
    is kept and of the options: what stands against it, as a sentence after the component's name, and "" where nothing does.
    lower_is_better: of a metric, whether less of it is better.

    Raises ComponentError where a fact is not one of these.
    """
    if over is not None and not callable(over) and over not in OVER:
        raise ComponentError(f"over={over!r} is not one of {', '.join(OVER)}, nor a function of counts.")
    if isinstance(positional, str) or not all(isinstance(option, str) for option in positional):
        raise ComponentError(f"positional={positional!r} must be a tuple of option names.")
    if isinstance(claims, str) or not all(isinstance(claim, str) for claim in claims):
        raise ComponentError(f"claims={claims!r} must be a tuple of names of properties.")
    if not isinstance(sparse, bool) and not callable(sparse):
        raise ComponentError(
            f"sparse={sparse!r} must be True or False, or a function of what is kept and of the options."
        )
    if not isinstance(lower_is_better, bool):
        raise ComponentError(f"lower_is_better={lower_is_better!r} must be True or False.")
    check_exempt(exempt or {})
    facts = Facts(
        over=over,
        positional=tuple(positional),
        source=source,
        title=name,
        exempt=dict(exempt or {}),
        example=dict(example or {}),
        claims=tuple(claims),
        sparse=sparse,
        lower_is_better=lower_is_better,
    )

    def declare(implementation: AnyCallable) -> AnyCallable:
        setattr(implementation, ATTRIBUTE, facts)
        return implementation

    return declare


def check_exempt(exempt: Mapping[str, str]) -> None:
    """Raises ComponentError where a property is switched off without a reason."""
    if not isinstance(exempt, Mapping):
        raise ComponentError(f"exempt={exempt!r} must be a mapping from property to reason.")
    for name, reason in exempt.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ComponentError(
                f"exempt={exempt!r} gives no reason for {name!r}; a property is switched off with one."
            )


def facts_of(implementation: Callable[..., Any]) -> Facts:
    """The facts declared about an implementation; those of the function inside a `functools.partial`."""
    inner = getattr(implementation, "func", implementation)
    facts = getattr(implementation, ATTRIBUTE, None) or getattr(inner, ATTRIBUTE, None)
    return facts if isinstance(facts, Facts) else Facts()
