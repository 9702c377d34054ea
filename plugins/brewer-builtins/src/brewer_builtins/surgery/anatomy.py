"""A transformer's parts and sizes by its family: stacks, attentions, norms, and what runs along each weight's axes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from brewer_builtins.surgery.families import Axis, Family, Stack, known_family, rule_of
from brewer_core import RequestError

_CROSS = re.compile(r"encoder_attn|EncDecAttention|crossattention")


def transposed(linear: nn.Module) -> bool:
    """Whether the input comes first in a linear layer's weight, as in GPT-2's."""
    return type(linear).__name__ == "Conv1D"


@dataclass(frozen=True)
class StackSizes:
    """Sizes of a layer. kv_heads: heads of keys and values, fewer where several heads share them."""

    heads: int
    kv_heads: int
    head_dim: int
    neurons: int


@dataclass(frozen=True)
class Sizes:
    """The width that all layers share, and the sizes of each stack's layers, by its name."""

    hidden: int
    stacks: Mapping[str, StackSizes]


@dataclass(frozen=True)
class Anatomy:
    """A `PreTrainedModel` of a known family."""

    model: Any
    family: Family

    @classmethod
    def of(cls, model: Any) -> Anatomy:
        """Of a model. Raises RequestError where its family is not known."""
        return cls(model, known_family(model))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """All modules by name."""
        return dict(self.model.named_modules())

    @cached_property
    def stacks(self) -> dict[str, Stack]:
        """The stacks that the model has, by the full names of their lists of layers."""
        return {
            name: stack
            for name, module in self.modules.items()
            for stack in self.family.stacks
            if isinstance(module, nn.ModuleList) and (name == stack.path or name.endswith(f".{stack.path}"))
        }

    @cached_property
    def sizes(self) -> Sizes:
        """As the model's config says."""
        config = self.model.config
        hidden = int(getattr(config, self.family.width))
        stacks = {}
        for stack in self.stacks.values():
            heads = int(getattr(config, stack.heads))
            stacks[stack.name] = StackSizes(
                heads,
                int(getattr(config, "num_key_value_heads", None) or heads),
                int((getattr(config, "head_dim", None) if self.family.free_heads else None) or hidden // heads),
                int(getattr(config, stack.neurons) or 4 * hidden),
            )
        return Sizes(hidden, stacks)

    def stack_of(self, name: str) -> str:
        """The full name of the list of layers that something belongs to; of the only one where it stands outside."""
        inside = [path for path in self.stacks if name.startswith(f"{path}.")]
        beside = [path for path in self.stacks if name.startswith(f"{path.rpartition('.')[0]}.")]
        return (inside or beside or list(self.stacks))[0]

    def layer_of(self, name: str) -> str:
        """The full name of the layer that something is in."""
        stack = self.stack_of(name)
        return f"{stack}.{name.removeprefix(f'{stack}.').partition('.')[0]}"

    def sizes_of(self, name: str, sizes: Sizes) -> StackSizes:
        """Of these sizes those of the stack that something belongs to."""
        return sizes.stacks[self.stacks[self.stack_of(name)].name]

    def attention_of(self, name: str) -> str:
        """What has its own choice of heads: an attention, or all of a stack's where they share a bias for each head."""
        if _CROSS.search(name):
            return f"{self.layer_of(name)}/cross"
        return self.stack_of(name) if self.family.shared_heads else self.layer_of(name)

    def axes(self, student: Mapping[str, tuple[int, ...]], hidden: int) -> dict[str, tuple[Axis, ...]]:
        """What runs along the axes of each weight.

        student: the shapes of the student's weights, by which the shared width is told from an axis that happens to be as long.
        """
        found = {}
        for name, tensor in self.model.state_dict().items():
            known = self.by_rule(name, tensor.dim())
            shape = student.get(name, ())
            if known is None and len(shape) == tensor.dim():
                pairs = zip(tensor.shape, shape, strict=True)
                known = tuple("residual" if pair == (self.sizes.hidden, hidden) else "" for pair in pairs)
            if known is None:
                raise RequestError(
                    f"the student has no weight {name}, which the teacher has; take another `hidden_size`."
                )
            found[name] = known
        return found

    def by_rule(self, name: str, rank: int) -> tuple[Axis, ...] | None:
        """What runs along the axes of a weight, by its name and the number of its axes; None where no rule names it."""
        owner = name.rpartition(".")[0]
        rule = rule_of(self.family, owner) or rule_of(self.family, name)
        if owner == "classifier" and self._pools:
            rule = ("classifier", "", "pooled")
        if rule is None:
            return None
        out, into = (self._pooled(axis) for axis in rule[1:])
        if rank == 1:
            return (out,)
        return (into, out) if transposed(self.modules[owner]) else (out, into)

    def _pooled(self, axis: Axis) -> Axis:
        """What a head of a language model makes of the stream goes to the embeddings, so it is of their width."""
        return "residual" if axis == "pooled" and self.masked_lm else axis

    @cached_property
    def masked_lm(self) -> bool:
        """Whether the head is that of a masked language model."""
        return type(self.model).__name__.endswith(("ForMaskedLM", "ForPreTraining"))

    @cached_property
    def _pools(self) -> bool:
        return any((rule_of(self.family, name) or ("", "", ""))[1] == "pooled" for name in self.modules)

    def reading(self, axis: Axis) -> dict[str, nn.Module]:
        """The modules whose input runs along an axis, by name."""
        found = {}
        for name, module in self.modules.items():
            axes = (
                self.by_rule(f"{name}.weight", 2) if isinstance(getattr(module, "weight", None), nn.Parameter) else None
            )
            if axes and axes[0 if transposed(module) else 1] == axis:
                found[name] = module
        return found

    @cached_property
    def norms(self) -> dict[str, nn.Module]:
        """The norms of the width that all layers share."""
        return {name: norm for name, norm in self._wide_norms.items() if name not in self.pooled_norms}

    @cached_property
    def pooled_norms(self) -> dict[str, nn.Module]:
        """The norms of what a classifier's head makes of the stream."""
        return {
            name: norm for name, norm in self._wide_norms.items() if self.by_rule(f"{name}.weight", 1) == ("pooled",)
        }

    @cached_property
    def _wide_norms(self) -> dict[str, nn.Module]:
        return {
            name: module
            for name, module in self.modules.items()
            if "norm" in type(module).__name__.lower()
            and tuple(getattr(module, "weight", nn.Parameter()).shape) == (self.sizes.hidden,)
            and not name.endswith(("q_norm", "k_norm"))
        }
