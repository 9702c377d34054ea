"""What balancers promise."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from brewer_core.errors import RequestError
from brewer_core.objective import Balance, Balancer
from brewer_core.protocols import Step
from brewer_core.testing.conformance import SEED, Conformance, does_not_apply, require
from brewer_core.testing.tensors import same_bits

TERMS = ("kd_loss", "hard_label_loss", "hidden_hidden_mse_1_2")
STEP = Step(3, 10)
LOSSES = ((2.0, 0.5, 0.125), (1.5, 0.25, 0.125), (1.0, 0.375, 0.0625))
"""Losses of three steps, a number for each term."""
EXTREME = ((1e-6, 1.0, 1e6), (0.0, 1.0, 2.0), (0.0, 0.0, 0.0))
NORMS = (1.0, 4.0, 0.25)


class BalancerConformance(Conformance):
    """Properties of a balancer of three terms, in three steps of training."""

    kind: ClassVar[str] = "balancer"

    def test_scalars(self) -> None:
        """Factors and penalties are scalar tensors."""
        for name, tensor in self._parts(self._asked(self._built(), LOSSES[0])):
            scalar = isinstance(tensor, Tensor) and tensor.dim() == 0
            require(scalar, f"gives {_shown(tensor)} for `{name}`; a factor and a penalty are scalar tensors")

    def test_names(self) -> None:
        """There are factors and penalties of the terms that it is asked for, and of no others; also where some are missing."""
        balancer = self._built()
        for names in (TERMS, TERMS[:1], TERMS[1:], ()):
            losses = {name: loss for name, loss in _losses(LOSSES[0]).items() if name in names}
            for name, _ in self._parts(self._balance(balancer, losses)):
                require(
                    name in names, f"gives something for {name!r} where it is asked for {', '.join(names) or 'none'}"
                )

    def test_finite(self) -> None:
        """Factors are finite and at least 0, and penalties finite, for ordinary losses, for 0, and from 1e-6 to 1e6."""
        for values in (*LOSSES, *EXTREME):
            made = self._asked(self._built(), values)
            for name, factor in made.factors.items():
                value = factor.item()
                right = math.isfinite(value) and value >= 0
                require(right, f"gives the factor {value:.4g} to `{name}` for losses of {values}")
            for name, penalty in made.penalties.items():
                require(bool(penalty.isfinite()), f"gives `{name}` a penalty that is not finite for losses of {values}")

    def test_split(self) -> None:
        """Unless it `reads_losses`, factors do not depend on the losses of a micro-batch: else they would on how a step is split."""
        balancer = self._built()
        if balancer.reads_losses:
            does_not_apply("it reads the losses of the whole step")
        first, second = (self._asked(balancer, values) for values in (LOSSES[0], LOSSES[2]))
        require(
            self._same(first, second),
            "gives other factors for other losses; declare reads_losses = True, or remember them in `learn`",
        )

    def test_pure(self) -> None:
        """Being asked changes nothing: it gives the same again, and its state stays as it was."""
        balancer = self._trained(self._built(), 2)
        before = _state(balancer)
        first, second = (self._asked(balancer, LOSSES[0]) for _ in range(2))
        require(self._same(first, second), "gives other factors when it is asked again")
        require(
            _same_state(before, _state(balancer)),
            "changes its state when it is asked; that is for `learn` and `stepped`",
        )

    def test_losses_detached(self) -> None:
        """Neither factors nor penalties have a gradient by the losses."""
        losses = {name: loss.requires_grad_() for name, loss in _losses(LOSSES[0]).items()}
        parts = [tensor for _, tensor in self._parts(self._balance(self._built(), losses)) if tensor.requires_grad]
        if parts:
            found = torch.autograd.grad(sum(parts[1:], parts[0]), list(losses.values()), allow_unused=True)
            require(all(each is None for each in found), "has a gradient by the losses; detach them")

    def test_trains(self) -> None:
        """All its parameters get a finite gradient, from the total or in `learn`; one that reads losses has none."""
        balancer = self._built()
        parameters = dict(balancer.named_parameters())
        if not parameters:
            does_not_apply("it trains nothing")
        require(not balancer.reads_losses, "reads losses and has parameters, which the total would not train")
        self._gradients(balancer, LOSSES[0])
        for name, parameter in parameters.items():
            given = parameter.grad is not None and bool(parameter.grad.isfinite().all())
            require(given, f"its parameter {name} gets no finite gradient")

    def test_state(self) -> None:
        """Another one that takes up its state goes on as it would have."""
        first = self._trained(self._built(), 2)
        kept = io.BytesIO()
        torch.save(first.state_dict(), kept)
        kept.seek(0)
        second = self._built()
        second.load_state_dict(torch.load(kept, weights_only=True))
        require(
            self._same(self._asked(first, LOSSES[2]), self._asked(second, LOSSES[2])),
            "weighs otherwise after its state was saved and taken up; keep what it remembers in parameters and buffers",
        )

    def test_same_everywhere(self) -> None:
        """Two that are told the same are the same: nothing is drawn, and nothing is read of the process."""
        torch.manual_seed(SEED + 1)
        first = self._trained(self._built(), 3)
        torch.manual_seed(SEED + 2)
        second = self._trained(self._built(), 3)
        require(
            _same_state(_state(first), _state(second))
            and self._same(*(self._asked(b, LOSSES[2]) for b in (first, second))),
            "comes to other factors in another process; draw nothing",
        )

    def test_no_terms(self) -> None:
        """It can be built where no term has a weight."""
        self._made(())

    def _built(self) -> Balancer:
        return self._made(TERMS)

    def _made(self, terms: tuple[str, ...]) -> Balancer:
        try:
            made = self.bound()(terms)
        except RequestError as error:
            if terms == ():
                does_not_apply(f"with these options it needs a term: {error}")
            raise
        require(isinstance(made, Balancer), f"is a {type(made).__name__}; subclass brewer_core.Balancer")
        assert isinstance(made, Balancer)
        return made

    def _asked(self, balancer: Balancer, values: tuple[float, ...]) -> Balance:
        return self._balance(balancer, _losses(values))

    def _balance(self, balancer: Balancer, losses: Mapping[str, Tensor]) -> Balance:
        made = balancer(losses, STEP)
        require(
            isinstance(made, Balance), f"gives a {type(made).__name__}; return brewer_core.Balance(factors, penalties)"
        )
        assert isinstance(made, Balance)
        return made

    def _gradients(self, balancer: Balancer, values: tuple[float, ...]) -> None:
        """Backward from the total of a step, and what is learnt of it, as the engine does it."""
        losses = _losses(values)
        parts = [part for part in self._balance(balancer, losses).of(losses).values() if part.requires_grad]
        if parts:
            sum(parts[1:], parts[0]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        norms = dict(zip(TERMS, map(torch.tensor, NORMS), strict=True)) if balancer.reads_gradients else {}
        with torch.no_grad():
            balancer.learn(losses, norms)

    def _trained(self, balancer: Balancer, steps: int) -> Balancer:
        parameters = list(balancer.parameters())
        optimizer = torch.optim.SGD([{"params": parameters, "lr": 0.05}]) if parameters else None
        for values in LOSSES[:steps]:
            self._gradients(balancer, values)
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            balancer.stepped()
        return balancer

    def _parts(self, balance: Balance) -> list[tuple[str, Any]]:
        return [*balance.factors.items(), *balance.penalties.items()]

    def _same(self, one: Balance, other: Balance) -> bool:
        alike = [part.keys() == also.keys() for part, also in zip(one, other, strict=True)]
        return all(alike) and all(
            same_bits(part[name], also[name]) for part, also in zip(one, other, strict=True) for name in part
        )


def _losses(values: tuple[float, ...]) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in zip(TERMS, values, strict=True)}


def _state(balancer: Balancer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in balancer.state_dict().items()}


def _same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


def _shown(tensor: Any) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
