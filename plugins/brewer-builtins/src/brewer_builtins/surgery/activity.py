"""What a model does on a sample of rows: how active its channels, heads and neurons are, and where its states lie.

Shapes: B rows, L tokens, H the width that all layers share, F neurons of a layer, n heads of d dimensions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brewer_builtins.surgery.anatomy import Anatomy
from brewer_builtins.surgery.depth import Influence
from brewer_core import RequestError

_TOKENS_FIRST = ("fsmt", "xlnet")
"""Models, by `model_type`, whose layers hold states [L, B, H]."""

Batches = Sequence[Mapping[str, Tensor]]
Heard = Callable[[Tensor, Tensor, Tensor], None]
"""Told what goes into a module, what comes out, and which places [B, L] of both count."""


@dataclass(frozen=True)
class Activity:
    """Means over the tokens of a sample.

    channels: [H], mean |activation| of the outputs of each norm, summed over the norms. heads: [n] by attention, the mean
    length of what a head gives. dimensions: [n, d] by attention, the mean |activation| of what it gives. neurons: [F] by
    layer, the mean |activation| behind the activation function. pooled: as many, of what a classifier's head reads.
    moments: [H, H], the second moment of what the norms give, each norm's as large as the others'.
    Source: Muralidharan et al. 2024, Minitron, arXiv:2408.11796, section 2.2, with means over rows as well as tokens.
    """

    channels: Tensor
    heads: Mapping[str, Tensor]
    dimensions: Mapping[str, Tensor]
    neurons: Mapping[str, Tensor]
    pooled: Tensor | None
    moments: Tensor


def activity(anatomy: Anatomy, batches: Batches) -> Activity:
    """The activity of a model on a sample."""
    channels, moments, heads, dimensions, neurons = (defaultdict[str, _Mean](_Mean) for _ in range(5))
    hooks: dict[nn.Module, Heard] = {}
    for name, norm in anatomy.norms.items():
        hooks[norm] = _norm_heard(channels[name], moments[name], normal(anatomy, norm), _folds(anatomy, name))
    for name, module in anatomy.reading("context").items():
        key, dim = anatomy.attention_of(name), anatomy.sizes_of(name, anatomy.sizes).head_dim
        hooks[module] = _context_heard(heads[key], dimensions[key], dim)
    for name, module in anatomy.reading("neurons").items():
        hooks[module] = _input_heard(neurons[anatomy.layer_of(name)])
    pooled, readers = _Mean(), list(anatomy.reading("pooled").values())[:1]
    hooks |= {module: _input_heard(pooled) for module in readers}
    listen(anatomy.model, batches, hooks)
    return Activity(
        channels=torch.stack([mean.value for mean in channels.values()]).sum(0),
        heads=_values(heads),
        dimensions=_values(dimensions),
        neurons=_values(neurons),
        pooled=pooled.value if readers else None,
        moments=torch.stack([mean.value / mean.value.trace().clamp(min=1e-30) for mean in moments.values()]).sum(0),
    )


def _values(means: Mapping[str, _Mean]) -> dict[str, Tensor]:
    return {key: mean.value for key, mean in means.items()}


class _Mean:
    """The mean of what is added over its first axis, in float64."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def add(self, values: Tensor) -> None:
        self.add_sum(values.double().sum(0), len(values))

    def add_sum(self, total: Tensor, count: int) -> None:
        self._sum = self._sum + total.double()
        self._count += count

    @property
    def value(self) -> Tensor:
        return torch.as_tensor(self._sum) / max(self._count, 1)


def _folds(anatomy: Anatomy, name: str) -> bool:
    return any(name.endswith(end) for end in anatomy.family.folds)


def _norm_heard(mean: _Mean, moment: _Mean, core: Callable[[Tensor], Tensor], folds: bool) -> Heard:
    def heard(before: Tensor, after: Tensor, valid: Tensor) -> None:
        mean.add(after[valid].abs())
        states = (core(before[valid].double()) if folds else after[valid].double()).flatten(0, -2)
        moment.add_sum(states.T @ states, len(states))

    return heard


def _context_heard(heads: _Mean, dimensions: _Mean, dim: int) -> Heard:
    def heard(before: Tensor, after: Tensor, valid: Tensor) -> None:
        del after
        each = before[valid].reshape(-1, before.shape[-1] // dim, dim)
        heads.add(each.norm(dim=-1))
        dimensions.add(each.abs())

    return heard


def _input_heard(mean: _Mean) -> Heard:
    def heard(before: Tensor, after: Tensor, valid: Tensor) -> None:
        del after
        mean.add(before[valid].abs().flatten(0, -2))

    return heard


def normal(anatomy: Anatomy, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm does before its weight and bias, for states of any width."""
    eps = float(next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), 0.0))

    def core(states: Tensor) -> Tensor:
        if anatomy.family.centred:
            states = states - states.mean(-1, keepdim=True)
        return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + eps)

    return core


def influences(model: Any, layers: Sequence[nn.Module], batches: Batches) -> list[float]:
    """The influence of each layer of a model on a sample."""
    found = [Influence() for _ in layers]
    listen(model, batches, {layer: one.add for layer, one in zip(layers, found, strict=True)})
    return [one.value for one in found]


def listen(model: nn.Module, batches: Batches, heard: Mapping[nn.Module, Heard]) -> None:
    """Run a model on a sample, in eval mode and without gradient, and tell of what goes in and out of some modules.

    What is padding according to a batch's mask does not count. The model is left as it was.
    Raises RequestError where what comes out is not finite.
    """
    device = next(model.parameters()).device
    names = {module: name for name, module in model.named_modules() if module in heard}
    batch: dict[str, Tensor] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        valid = _valid(before, _mask_of(model, names[module], batch))
        if not after[valid].isfinite().all():
            raise RequestError(
                f"what {names[module]} of the teacher gives on the sample is not finite, so what is active cannot be seen; take "
                '`method` "truncate" and layers that are not chosen by block_influence, or a teacher of more precision.'
            )
        heard[module](before, after, valid)

    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in heard]
    try:
        with _evaluating(model), torch.no_grad():
            for each in batches:
                batch.clear()
                batch.update({name: tensor.to(device) for name, tensor in each.items()})
                model(**batch)
    finally:
        for handle in hooks:
            handle.remove()


def _mask_of(model: Any, name: str, batch: Mapping[str, Tensor]) -> Tensor | None:
    """The mask of the tokens that a module sees, with the axes of its states; None where the batch has none."""
    of_decoder = model.config.is_encoder_decoder and "decoder" in name.split(".")
    mask = batch.get("decoder_attention_mask" if of_decoder else "attention_mask")
    return mask.T if mask is not None and model.config.model_type in _TOKENS_FIRST else mask


def _valid(states: Tensor, mask: Tensor | None) -> Tensor:
    """Which places of states [B, L, D] count; all of them where there is no mask of their shape."""
    if mask is not None and mask.shape == states.shape[:-1]:
        return mask.bool()
    return torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
