"""Small tools beside distillation: what a model's layers weigh, loaders without end, initial weights."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from brewer_core.errors import DataError, RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

MEGABYTE = 1024 * 1024
_EXTRA_STATE = "_extra_state"  # torch's own key for what a module keeps beside its tensors


@dataclass(frozen=True)
class Weight:
    """A tensor of a model, without its numbers.

    path: the names that lead to it. bytes: what its elements take.
    identity: equal for tensors that are the same weights; None where nothing else can be.
    """

    path: tuple[str, ...]
    parameters: int
    bytes: int
    identity: Hashable | None = None


@dataclass(eq=False)
class LayerNode:
    """A layer, or a single tensor, with all that is below it.

    fullname: its path in the state dict; `model` at the root.
    parameters, bytes: of everything below it; of shared weights only where they come first.
    repeated: whether it is a tensor that was counted before, under another name.
    """

    name: str
    parent: LayerNode | None = field(default=None, repr=False)
    fullname: str = ""
    parameters: int = 0
    bytes: int = 0
    repeated: bool = False
    children_name: dict[str, LayerNode] = field(default_factory=dict, repr=False)

    @property
    def value(self) -> list[float]:
        """`[parameters, megabytes]`, as in TextBrewer."""
        return [self.parameters, self.bytes / MEGABYTE]

    @property
    def shared(self) -> bool:
        """Whether all that it holds was counted before, under other names."""
        return all(child.shared for child in self.children) if self.children_name else self.repeated

    @property
    def children(self) -> tuple[LayerNode, ...]:
        """The layers directly below it."""
        return tuple(self.children_name.values())

    def __contains__(self, name: object) -> bool:
        return name in self.children_name

    def __getitem__(self, name: str) -> LayerNode:
        return self.children_name[name]

    def walk(self, max_level: int | None = None, level: int = 0) -> Iterator[tuple[int, LayerNode]]:
        """The node and those below it in order, each with its level, down to `max_level`."""
        yield level, self
        if max_level is None or level < max_level:
            for child in self.children:
                yield from child.walk(max_level, level + 1)


class _NoModelError(RequestError, TypeError):
    """Something that is neither a model nor a state dict; TextBrewer raised a TypeError."""


def display_parameters(model: nn.Module | Mapping[str, Tensor], max_level: int | None = None) -> tuple[str, LayerNode]:
    """A table of the layers of a model with the size of each, and the same as a tree.

    model: a module, whose buffers count as they do in its state dict, or a state dict.
    max_level: the lowest level to show, the model itself being level 0; the tree is always whole.
    Weights under several names count once, under the first; views that overlap only in part count in full.
    Raises RequestError for what is no model, for an entry that is no tensor, and for a lazy layer not yet initialised.
    """
    if max_level is not None and max_level < 0:
        raise RequestError(f"max_level is {max_level}; it must be 0 or more, or None for every level.")
    tree = layer_tree(_weights_of(model))
    return _table(tree, max_level), tree


def layer_tree(weights: Iterable[Weight]) -> LayerNode:
    """The tree of layers to which weights belong, by their paths."""
    root = LayerNode("model", fullname="model")
    seen: set[Hashable] = set()
    for weight in weights:
        node, above = root, [root]
        for depth, name in enumerate(weight.path, start=1):
            if name not in node:
                node.children_name[name] = LayerNode(name, node, ".".join(weight.path[:depth]))
            node = node[name]
            above.append(node)
        if weight.identity is not None and weight.identity in seen:
            node.repeated = True
            continue
        seen.add(weight.identity)
        for node in above:
            node.parameters += weight.parameters
            node.bytes += weight.bytes
    return root


def weight_of(path: tuple[str, ...], tensor: Tensor) -> Weight:
    """A tensor without its numbers; all tensors of a tree must be alive at once, since addresses tell them apart."""
    return Weight(path, tensor.numel(), tensor.numel() * tensor.element_size(), _identity(tensor))


def cycle(loader: Iterable[Any], name: str = "the loader") -> Iterator[Any]:
    """The batches of a loader without end, pass after pass, each read only when it is asked for.

    A DistributedSampler is told the number of each pass, so that it shuffles anew; no other sampler is touched.
    name: what the errors call the loader.
    Raises DataError where a pass yields nothing.
    """
    given = 0
    for number in itertools.count():
        set_epoch(loader, number)
        before = given
        for batch in loader:
            given += 1
            yield batch
        if given == 0:
            raise DataError(f"{name} is empty; it must yield at least one batch.")
        if given == before:
            batches = "1 batch" if given == 1 else f"{given} batches"
            raise DataError(
                f"{name} can be iterated only once, and is spent after {batches}; pass a DataLoader or a list, "
                "or ask for fewer steps."
            )


def set_epoch(loader: Iterable[Any], number: int) -> None:
    """Tell a loader's DistributedSampler the number of the pass, so that it shuffles anew; any other sampler is left alone."""
    from torch.utils.data.distributed import DistributedSampler

    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler.set_epoch(number)


def initializer_builder(std: float) -> Callable[[nn.Module], None]:
    """A function for `module.apply`: weights of linear and embedding layers from N(0, std), biases of linear ones 0.

    It draws what TextBrewer's drew under the same seed.
    """
    from torch import nn

    def initialize(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    return initialize


def _weights_of(model: Any) -> list[Weight]:
    from torch import Tensor, nn
    from torch.nn.parameter import is_lazy

    if isinstance(model, nn.Module):
        state: Mapping[Any, Any] = model.state_dict(keep_vars=True)  # the very parameters: on meta, all that tells ties
    elif isinstance(model, Mapping):
        state = model
    else:
        raise _NoModelError(
            f"display_parameters takes an nn.Module or a state dict, not {model!r:.80}; of a file, load the state dict "
            "first, or use `brewer inspect`."
        )
    weights = []
    for key, value in state.items():
        if not isinstance(value, Tensor):
            if str(key).rpartition(".")[2] == _EXTRA_STATE:
                continue
            raise RequestError(_no_tensor(state, key, value))
        if is_lazy(value):
            raise RequestError(f"{key!r} is not initialised yet; run a batch through the model first.")
        weights.append(weight_of(tuple(str(key).split(".")), value))
    return weights


def _no_tensor(state: Mapping[Any, Any], key: object, value: object) -> str:
    found = _weights_inside(state)
    advice = f"pass the part with the weights, state{found}" if found else "leave it out"
    return f"the entry {key!r} of the state dict is of type {type(value).__name__}, not a tensor; {advice}."


def _weights_inside(state: Mapping[Any, Any]) -> str:
    """Subscripts of the uppermost mapping inside that holds tensors; empty where there is none."""
    from torch import Tensor

    waiting = deque([("", state)])
    while waiting:
        path, values = waiting.popleft()
        if path and any(isinstance(value, Tensor) for value in values.values()):
            return path
        waiting += [(f"{path}[{key!r}]", value) for key, value in values.items() if isinstance(value, Mapping)]
    return ""


def _identity(tensor: Tensor) -> Hashable:
    """The same for tensors of the same elements in the same memory, whatever their shape; else for the same object only."""
    import torch

    if tensor.is_meta or tensor.layout != torch.strided or tensor.numel() == 0:  # these have no address
        return id(tensor)
    spans: list[tuple[int, int]] = []
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if spans and spans[-1][0] * spans[-1][1] == stride:
            spans[-1] = (spans[-1][0], spans[-1][1] * size)
        elif size > 1:
            spans.append((stride, size))
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(spans)


def _table(tree: LayerNode, max_level: int | None) -> str:
    rows = [("LAYER NAME", "#PARAMS", "RATIO", "MEM(MB)")]
    for level, node in tree.walk(max_level):
        name = f"{'  ' * level}--{node.name}{' (shared)' if node.shared else ''}"
        share = node.parameters / tree.parameters if tree.parameters else 0.0
        rows.append((name, f"{node.parameters:,}", f"{share:.2%}", f"{node.bytes / MEGABYTE:.2f}"))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = (
        [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))] for row in rows
    )
    return "\n".join("  ".join(line) for line in lines)
