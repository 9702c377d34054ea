"""A smaller student out of its teacher: fewer layers, and narrower ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from brewer_builtins.layers import list_of_layers, shortened
from brewer_builtins.surgery.activity import influences
from brewer_builtins.surgery.anatomy import Anatomy
from brewer_builtins.surgery.depth import chosen
from brewer_builtins.surgery.families import Stack, family_of
from brewer_builtins.surgery.narrowing import narrowed
from brewer_builtins.surgery.sizes import student_sizes
from brewer_core import RequestError

Sample = Callable[[int], Sequence[Mapping[str, Tensor]]] | Sequence[Mapping[str, Tensor]]
"""Batches of what the model takes, [B, L] each, or what gives as many rows of them as it is asked for."""
Look = Callable[[str], Sequence[Mapping[str, Tensor]]]
"""Gives the sample to who needs it, whose name it takes for its error."""
METHODS = ("importance", "truncate", "pca")


@dataclass(frozen=True)
class Cut:
    """A student, and what was done, for its reader."""

    model: Any
    told: str


def student_from_teacher(
    model: Any,
    *,
    layers: Any = None,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    intermediate_size: int | None = None,
    method: str = "importance",
    sample: Sample | None = None,
    sample_rows: int = 256,
) -> Any:
    """A smaller model of the same class, with weights of a larger one, which is left as it is. The vocabulary stays.

    model: a `PreTrainedModel`. layers: as in a config: a number, a list counted from 0, a word, {"count": M, "by": WORD}, or
    one of these for each of "encoder" and "decoder"; see `chosen`. The sizes follow from `hidden_size` where they are left
    out; see `student_sizes`. method: "importance", "truncate" or "pca"; see `narrowed`. Layers are left out first, and what is
    active is seen on those that are left.
    sample: rows to look at, asked for `sample_rows` of them; needed by "importance", "pca" and `block_influence` alone. On a batch
    with labels the model would compute its loss, so leave them out.
    Returns a model on the CPU, in the teacher's precision and mode, with its implementation of attention. Without any size it gives
    the teacher's outputs bit for bit.
    Raises RequestError where sizes do not fit, nothing is known of the model's family, or a sample is missing.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise RequestError(f"`model` must be a PreTrainedModel of transformers, not {type(model).__name__}.")
    student = cut_out(
        model,
        layers=layers,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        intermediate_size=intermediate_size,
        method=method,
        sample=sample,
        sample_rows=sample_rows,
    ).model
    attention = model.config._attn_implementation
    if student.config._attn_implementation != attention:
        student.set_attn_implementation(attention)
    return student


def cut_out(
    model: Any,
    *,
    layers: Any = None,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    intermediate_size: int | None = None,
    method: str = "importance",
    sample: Sample | None = None,
    sample_rows: int = 256,
) -> Cut:
    """As `student_from_teacher`, with what was done; the attention is the class's own, whatever the teacher's is at the moment."""
    with torch.random.fork_rng(devices=[]):  # a model that is made draws weights, which are then replaced
        given = (hidden_size, num_attention_heads, num_key_value_heads, intermediate_size)
        cut = _cut_out(model, layers, given, method, _looking(sample, sample_rows))
    return replace(cut, model=cut.model.to("cpu", model.dtype).train(model.training))


def _cut_out(model: Any, layers: Any, given: tuple[int | None, ...], method: str, look: Look) -> Cut:
    if method not in METHODS:
        raise RequestError(f"`method` is {method!r}; expected one of {', '.join(METHODS)}.")
    kept = _layers(model, layers, look)
    short = shortened(model, kept)
    told = _told(model, kept)
    if all(size is None for size in given):
        return Cut(short, told)
    anatomy = Anatomy.of(short.to(next(model.parameters()).device))  # where the sample is run
    sizes = student_sizes(anatomy, *given)
    if sizes == anatomy.sizes:
        return Cut(short, told)
    layer = " and ".join(
        dict.fromkeys(f"{own.heads} heads of {own.head_dim}, {own.neurons} neurons" for own in sizes.stacks.values())
    )
    batches = look(f'`method` "{method}"') if method != "truncate" else ()
    return Cut(
        narrowed(anatomy, sizes, method, batches),
        f"{told}; width {sizes.hidden} of {anatomy.sizes.hidden}, {layer}, by {method}",
    )


def _told(model: Any, kept: Mapping[str, tuple[str, Sequence[int]]]) -> str:
    named = [
        f"layers {', '.join(map(str, numbers))} of {getattr(model.config, setting)}"
        for setting, numbers in kept.values()
        if list(numbers) != list(range(getattr(model.config, setting)))
    ]
    return " and ".join(dict.fromkeys(named)) or "all layers"


def _looking(sample: Sample | None, rows: int) -> Look:
    """What gives the sample to whoever needs it, drawn once. It raises RequestError where there is none."""
    drawn: list[Sequence[Mapping[str, Tensor]]] = []

    def look(who: str) -> Sequence[Mapping[str, Tensor]]:
        if not drawn:
            given = sample(rows) if callable(sample) else sample or ()
            if not isinstance(given, Sequence) or not all(isinstance(batch, Mapping) for batch in given):
                raise RequestError(
                    "`sample` must be a sequence of batches, each a mapping from what the model calls its inputs to tensors, or "
                    "what gives one."
                )
            drawn.append(given)
        if not drawn[0]:
            raise RequestError(
                f'{who} looks at rows, and there are none; give a `sample`, or take `method` "truncate" and layers that are not '
                "chosen by block_influence."
            )
        return drawn[0]

    return look


def _layers(model: Any, layers: Any, look: Look) -> dict[str, tuple[str, list[int]]]:
    """The layers that are kept, by the name of their list."""
    stacks = _stacks(model, layers)
    each = {stack.name for stack in stacks.values()}
    by_stack = isinstance(layers, Mapping) and not {"count", "by"} & set(layers)
    for word in layers if by_stack else ():
        if word not in each or not word:
            known = "an encoder and a decoder" if "encoder" in each else "one stack of layers"
            raise RequestError(f"`layers` names {word!r}, and {type(model).__name__} has {known}.")
    kept = {}
    for path, stack in stacks.items():
        wanted = layers.get(stack.name) if by_stack else layers
        kept[path] = (stack.layers, _numbers(model, path, stack, wanted, look))
    return kept


def _numbers(model: Any, path: str, stack: Stack, wanted: Any, look: Look) -> list[int]:
    total = int(getattr(model.config, stack.layers))

    def influence() -> Sequence[float]:
        return influences(model, list(model.get_submodule(path)), look("block_influence"))

    return list(range(total)) if wanted is None else chosen(wanted, total, influence)


def _stacks(model: Any, layers: Any) -> dict[str, Stack]:
    if family_of(model) is not None:
        return Anatomy.of(model).stacks
    if layers is None:
        return {}
    return {list_of_layers(model): Stack("")}
