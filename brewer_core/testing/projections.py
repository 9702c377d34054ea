"""What projections promise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from brewer_core.testing.conformance import SEED, Conformance, does_not_apply, require
from brewer_core.testing.tensors import LENGTH, ROWS, finite, same_bits, seeded_tensors

STUDENT_WIDTH, TEACHER_WIDTH = 5, 8


class ProjectionConformance(Conformance):
    """Properties of a projection, made for states 5 wide of the student and 8 wide of the teacher."""

    kind: ClassVar[str] = "projection"

    def states(self) -> Tensor:
        """The student's states, [B, L, 5]."""
        return seeded_tensors(ROWS, LENGTH, STUDENT_WIDTH, seed=1)

    def made(self, seed: int = SEED) -> nn.Module:
        """The projection, drawn from a seed."""
        method = self.bound()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = method(STUDENT_WIDTH, TEACHER_WIDTH)
        require(isinstance(module, nn.Module), f"makes a {type(module).__name__}; a projection is an nn.Module")
        return module  # type: ignore[no-any-return]  # the line above sees to it

    def test_shape(self) -> None:
        """The last axis becomes the teacher's width, and the others stay, for [B, D] and for [B, L, D]."""
        states = self.states()
        for given in (states, states[:, 0]):
            expected, found = (*given.shape[:-1], TEACHER_WIDTH), tuple(self.made()(given).shape)
            require(found == expected, f"maps {tuple(given.shape)} to {found}; expected {expected}")

    def test_dtype(self) -> None:
        """Float32 states stay float32, and with a bfloat16 module bfloat16 ones stay so."""
        for dtype in (torch.float32, torch.bfloat16):
            found = self.made().to(dtype)(self.states().to(dtype))
            require(found.dtype == dtype, f"maps {dtype} to {found.dtype}; it must stay")
            require(finite(found), f"gives values in {dtype} that are not finite")

    def test_trained(self) -> None:
        """All that it learns are parameters that an optimizer finds, and each gets a gradient."""
        module = self.made().train()
        states = self.states().requires_grad_()
        output = module(states)
        require(output.requires_grad, "gives no gradient to what is before it")
        parameters = dict(module.named_parameters())
        hidden = [leaf for leaf in _leaves(output) if all(leaf is not p for p in parameters.values())]
        hidden = [leaf for leaf in hidden if leaf is not states]
        require(
            not hidden, f"trains {len(hidden)} tensors that are no nn.Parameter of the module; an optimizer misses them"
        )
        output.square().sum().backward()
        idle = [name for name, p in parameters.items() if p.requires_grad and p.grad is None]
        require(not idle, f"has parameters that get no gradient: {', '.join(idle)}")

    def test_gradient_to_student(self) -> None:
        """The student's states get a gradient that is finite and not 0."""
        states = self.states().requires_grad_()
        output = self.made()(states)
        require(output.requires_grad, "gives the student no gradient")
        (gradient,) = torch.autograd.grad(output.square().sum(), [states], allow_unused=True)
        require(gradient is not None and bool(gradient.any()), "gives the student no gradient")
        require(finite(gradient), "gives the student a gradient that is not finite")

    def test_seeded(self) -> None:
        """Its weights come from torch's global generator alone: one seed gives the same, another one others."""
        first, again, other = (self.made(seed).state_dict() for seed in (SEED, SEED, SEED + 1))
        if not first:
            does_not_apply("it has no weights")
        require(_equal(first, again), "draws other weights from the same seed; draw from torch's global generator")
        require(
            not _equal(first, other), "draws the same weights from another seed; draw from torch's global generator"
        )

    def test_deterministic(self) -> None:
        """The same states give the same bits."""
        module = self.made()
        require(same_bits(module(self.states()), module(self.states())), "gives other bits for the same states")

    def test_inputs_unchanged(self) -> None:
        """The states are left as they were."""
        states = self.states()
        self.made()(states)
        require(same_bits(states, self.states()), "changes its input in place; make a new tensor")


def _leaves(output: Tensor) -> list[Tensor]:
    """The tensors that the gradient of an output ends in."""
    found, waiting, seen = [], [output.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(same_bits(tensor, other[name]) for name, tensor in one.items())
