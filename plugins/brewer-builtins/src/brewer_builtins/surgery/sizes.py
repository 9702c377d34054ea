"""The sizes of a narrower student, and what follows from those that are given."""

from __future__ import annotations

from dataclasses import replace

from brewer_builtins.surgery.anatomy import Anatomy, Sizes, StackSizes
from brewer_builtins.surgery.families import Family
from brewer_core import RequestError


def student_sizes(
    anatomy: Anatomy,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    intermediate_size: int | None = None,
) -> Sizes:
    """The sizes of the student; what is None follows from `hidden_size`.

    Heads keep their dimensions, and there are fewer of them in proportion to the width. Where that cannot be, there are as many
    heads, of fewer dimensions. Heads of keys and values are fewer in the same proportion; where they cannot be shared by so many
    heads, there are as many heads less as it takes. Neurons are fewer in proportion.
    Raises RequestError where sizes are larger than the teacher's or do not fit together.
    """
    old = anatomy.sizes
    hidden = _at_most("hidden_size", hidden_size, old.hidden)
    stacks = {}
    for name, own in old.stacks.items():
        neurons = _at_most("intermediate_size", intermediate_size, own.neurons)
        if intermediate_size is None:
            neurons = max(1, round(own.neurons * hidden / old.hidden))
        wanted = (
            None if num_attention_heads is None else _at_most("num_attention_heads", num_attention_heads, own.heads)
        )
        grouped = (
            None if num_key_value_heads is None else _at_most("num_key_value_heads", num_key_value_heads, own.kv_heads)
        )
        if anatomy.family.free_heads:
            made = _free(own, wanted or _in_proportion(own, old.hidden, hidden, grouped), grouped)
        else:
            made = _tied(anatomy.family, own, old.hidden, hidden, wanted, grouped)
        stacks[name] = replace(made, neurons=neurons)
    return Sizes(hidden, stacks)


def _at_most(name: str, asked: int | None, have: int) -> int:
    if asked is not None and type(asked) is not int:
        raise RequestError(f"`{name}` is {asked!r}; expected a whole number from 1 to {have}.")
    if asked is not None and not 0 < asked <= have:
        raise RequestError(f"`{name}` is {asked}, and the teacher's is {have}; a student can only be made narrower.")
    return asked or have


def _in_proportion(own: StackSizes, old_hidden: int, hidden: int, grouped: int | None) -> int:
    """As many heads as are in proportion to the width, or the most below that can share heads of keys and values."""
    heads = max(1, own.heads * hidden // old_hidden)
    if grouped is not None:
        return heads
    shared = range(1, own.kv_heads + 1)
    return next(count for count in range(heads, 0, -1) if any(_groups(own, count, kv) for kv in shared))


def _free(own: StackSizes, heads: int, grouped: int | None) -> StackSizes:
    """Heads whose dimensions do not depend on the width."""
    if grouped is None:
        fitting = [kv for kv in range(1, own.kv_heads + 1) if _groups(own, heads, kv)]
        # In proportion where that can be, else as many as can be.
        in_proportion = own.kv_heads * heads / own.heads
        grouped = min(fitting, key=lambda kv: (abs(kv - in_proportion), -kv), default=own.kv_heads)
    if not _groups(own, heads, grouped):
        raise RequestError(
            f"{heads} heads and {grouped} heads of keys and values do not come of the teacher's {own.heads} and "
            f"{own.kv_heads}; `num_attention_heads` must be a multiple of `num_key_value_heads`, by "
            f"{own.heads // own.kv_heads} at most."
        )
    return replace(own, heads=heads, kv_heads=grouped)


def _groups(own: StackSizes, heads: int, kv: int) -> bool:
    """Whether so many heads can be left, each with its own heads of keys and values."""
    return kv > 0 and heads % kv == 0 and heads // kv <= own.heads // own.kv_heads


def _tied(
    family: Family, own: StackSizes, old_hidden: int, hidden: int, wanted: int | None, grouped: int | None
) -> StackSizes:
    """Heads whose dimensions give the width together."""
    if grouped is not None:
        raise RequestError(
            "`num_key_value_heads` is for teachers whose heads share keys and values, and this one's do not."
        )
    heads = wanted or _heads_of(own, hidden)
    if not _whole_heads(family, own, hidden, heads):
        raise RequestError(_no_fit(family, own, old_hidden, hidden, wanted))
    return replace(own, heads=heads, kv_heads=heads, head_dim=hidden // heads)


def _whole_heads(family: Family, own: StackSizes, hidden: int, heads: int) -> bool:
    """Whether a width gives so many heads, of no more dimensions than the teacher's have."""
    return hidden % heads == 0 and (hidden == heads * own.head_dim if family.rotary else hidden <= heads * own.head_dim)


def _heads_of(own: StackSizes, hidden: int) -> int:
    """The heads of a width where they are not said: whole ones of the teacher's, or as many, of fewer dimensions."""
    return hidden // own.head_dim if hidden % own.head_dim == 0 else own.heads


def _no_fit(family: Family, own: StackSizes, old_hidden: int, hidden: int, wanted: int | None) -> str:
    """The text about a width that does not give heads, so many if that is wanted; with widths and numbers of heads that fit."""
    fitting = [
        size for size in range(1, old_hidden + 1) if _whole_heads(family, own, size, wanted or _heads_of(own, size))
    ]
    near = sorted(sorted(fitting, key=lambda size: abs(size - hidden))[:2])
    counts = [heads for heads in range(1, own.heads + 1) if _whole_heads(family, own, hidden, heads)]
    others = f", or `num_attention_heads` {' or '.join(map(str, counts))}" if counts else ""
    reason = (
        f"of the teacher's {own.head_dim} dimensions, which rotary positions are bound to"
        if family.rotary
        else f"of whole dimensions, {own.head_dim} at most"
    )
    heads = wanted or own.heads
    return (
        f"`hidden_size` {hidden} does not give {heads} head{'s' * (heads != 1)} {reason}; take "
        f"{' or '.join(map(str, near))}{others}."
    )
