"""Which heads, dimensions of heads, neurons and channels a narrower model keeps, and where these lie in each weight.

Shapes: n heads of d dimensions, g heads of keys and values, F neurons of a layer, P outputs of a classifier's head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from brewer_builtins.surgery.activity import Activity
from brewer_builtins.surgery.anatomy import Anatomy, Sizes, StackSizes
from brewer_builtins.surgery.families import Axis


@dataclass(frozen=True)
class Heads:
    """What is kept of an attention.

    heads: [n'], which heads; kv: [g'], which heads of keys and values. scored: [n, d'], which dimensions of queries and keys,
    by head of the teacher; given: [n, d'], which of values and of what the heads give.
    """

    heads: Tensor
    kv: Tensor
    scored: Tensor
    given: Tensor


@dataclass(frozen=True)
class Choice:
    """What is kept: channels [H'], heads by attention, neurons [F'] by layer, and of what a classifier's head makes, [P']."""

    channels: Tensor
    heads: Mapping[str, Heads]
    neurons: Mapping[str, Tensor]
    pooled: Tensor


def choice(anatomy: Anatomy, sizes: Sizes, seen: Activity | None) -> Choice:
    """What is kept: what is most active; without anything seen, what comes first."""
    old = anatomy.sizes
    attentions = {anatomy.attention_of(name): name for name in anatomy.reading("context")}
    layers = {anatomy.layer_of(name): name for name in anatomy.reading("neurons")}
    return Choice(
        channels=best(seen.channels if seen else torch.zeros(old.hidden), sizes.hidden),
        heads={
            key: _heads(anatomy, key, anatomy.sizes_of(name, old), anatomy.sizes_of(name, sizes), seen)
            for key, name in attentions.items()
        },
        neurons={
            key: best(
                seen.neurons[key] if seen else torch.zeros(anatomy.sizes_of(name, old).neurons),
                anatomy.sizes_of(name, sizes).neurons,
            )
            for key, name in layers.items()
        },
        pooled=best(seen.pooled if seen and seen.pooled is not None else torch.zeros(old.hidden), sizes.hidden),
    )


def best(scores: Tensor, count: int) -> Tensor:
    """The places of the highest scores, in order; of equal ones the first. Over the last axis."""
    order = torch.sort(scores.cpu(), dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.sort(order, dim=-1).values


def _heads(anatomy: Anatomy, key: str, old: StackSizes, new: StackSizes, seen: Activity | None) -> Heads:
    """Heads of keys and values by what all heads that share them give, and then the best of those in each group."""
    scores = (seen.heads[key] if seen else torch.zeros(old.heads)).cpu().view(old.kv_heads, -1)
    group = new.heads // new.kv_heads
    kv = best(scores.sum(1), new.kv_heads)
    heads = best(scores[kv], group) + kv[:, None] * scores.shape[1]
    given = seen.dimensions[key].cpu() if seen else torch.zeros(old.heads, old.head_dim)
    scored = _scored(anatomy, key, old) if seen else torch.zeros(old.heads, old.head_dim)
    return Heads(heads.flatten(), kv, best(scored, new.head_dim), best(given, new.head_dim))


def _scored(anatomy: Anatomy, key: str, old: StackSizes) -> Tensor:
    """[n, d]: how much each dimension of a head can add to its scores, |W_q| |W_k| of its rows.

    Only asked for where dimensions of heads are left out, which no attention with shared keys does.
    """
    total = torch.ones(old.heads, old.head_dim, dtype=torch.float64)
    if old.heads != old.kv_heads:
        return total
    sums = {"query": torch.zeros_like(total), "key": torch.zeros_like(total)}
    for name, module in anatomy.modules.items():
        weight = getattr(module, "weight", None)
        axes = anatomy.by_rule(f"{name}.weight", 2)
        if weight is None or not axes or anatomy.attention_of(name) != key:
            continue
        for side in sums:
            for axis, where in positions(next((a for a in axes if side in a), ""), old).items():
                if axis == side:
                    rows = weight.detach().cpu().double().movedim(next(i for i, a in enumerate(axes) if side in a), 0)
                    sums[side] += rows.flatten(1).square().sum(1)[where]
    return (sums["query"] * sums["key"]).sqrt()


def positions(axis: Axis, sizes: StackSizes) -> dict[str, Tensor]:
    """Where the parts of an axis lie in it: [n, d] or [g, d] of the parts of an attention, each by its name."""
    kv, dim = (sizes.kv_heads, sizes.head_dim), sizes.head_dim
    shapes = {"query": (sizes.heads, dim), "context": (sizes.heads, dim), "key": kv, "value": kv}
    if "&" in axis:
        parts = axis.split("&")
        whole = torch.arange(sizes.heads * len(parts) * dim).view(sizes.heads, len(parts), dim)
        return {part: whole[:, i] for i, part in enumerate(parts)}
    found, start = {}, 0
    for part in axis.split("+"):
        if part in shapes:
            rows, width = shapes[part]
            found[part] = torch.arange(start, start + rows * width).view(rows, width)
            start += rows * width
    return found


def kept(axis: Axis, own: Heads, sizes: StackSizes) -> Tensor:
    """The places along an axis of an attention that are kept, in the student's order."""
    if axis == "heads":
        return own.heads
    group = sizes.heads // sizes.kv_heads
    chosen = {
        "query": (own.heads, own.scored[own.heads]),
        "key": (own.kv, own.scored[own.kv * group]),
        "value": (own.kv, own.given[own.kv * group]),
        "context": (own.heads, own.given[own.heads]),
    }
    parts = [where[chosen[part][0]].gather(1, chosen[part][1]) for part, where in positions(axis, sizes).items()]
    return torch.stack(parts, 1).flatten() if "&" in axis else torch.cat([part.flatten() for part in parts])
