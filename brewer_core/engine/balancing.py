"""What a balancer is told of a step, over its micro-batches and processes, and what it makes of the step's terms.

T terms, P numbers in the parameters by which gradients are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brewer_core.engine.shares import Shares
from brewer_core.errors import RequestError, did_you_mean
from brewer_core.learner import Balanced, Learner
from brewer_core.objective import UNBALANCED, Balance, Balancer
from brewer_core.processes import Processes
from brewer_core.protocols import Step


class Balancing:
    """One step after another: `begin`, then `told` for each micro-batch, `learn`, and `stepped` if the optimizer made it.

    Where the balancer reads losses and the step has several micro-batches, `look` is told of each before them, then `agree` is called.
    Everything is the same in all processes. scaler: what scales losses under fp16, whose gradients would else vanish.
    """

    def __init__(self, learner: Learner, processes: Processes, scaler: torch.amp.GradScaler) -> None:
        self._learner, self._balancer = learner, learner.balancer
        self._processes, self._scaler = processes, scaler
        self._step = Step(0, 0)
        self._terms: tuple[str, ...] = ()
        self._ahead: Mapping[str, Tensor] | None = None
        self._losses = _Sums()
        self._gradients: dict[str, Tensor] = {}
        self._place: str | None = self._balancer.place if self._balancer else None
        self._agreed = False

    @property
    def looks_ahead(self) -> bool:
        """Whether the losses of the whole step must be known before any of it goes backward."""
        return self._balancer is not None and self._balancer.reads_losses

    @property
    def asked(self) -> tuple[Sequence[str], ...]:
        """What the learner's forward is asked beside the losses: the terms to be balanced, unless that follows from losses."""
        return () if self._balancer is None or self._balancer.reads_losses else (self._terms,)

    def begin(self, step: Step, weights: Mapping[str, float]) -> None:
        """Begin a step with these weights."""
        self._step, self._terms = step, self._learner.balanced_terms(weights)
        self._ahead, self._losses, self._gradients = None, _Sums(), {}

    def look(self, losses: Mapping[str, Tensor], shares: Shares | None, count: int) -> None:
        """Be told the losses of a micro-batch of the step, of which there are count in this process."""
        self._losses.add(self._own(losses), shares, count)

    def agree(self) -> None:
        """All micro-batches were looked at: the step's losses are known, in all processes."""
        self._ahead, self._losses = self._means(), _Sums()

    def told(self, given: Balanced, shares: Shares | None, count: int) -> Balance:
        """Be told of a micro-batch; what becomes of its terms, whose gradients by the place are taken."""
        if self._balancer is None:
            return UNBALANCED
        losses = self._own(given.losses)
        self._losses.add(losses, shares, count)
        if self._balancer.reads_gradients:
            self._take_gradients(losses, shares, count)
        if not self._balancer.reads_losses:
            return given.balance
        if self._ahead is None:  # it is the only one of the step
            self._ahead = self._means()
        known = {name: self._ahead[name].to(loss) for name, loss in losses.items() if name in self._ahead}
        made: Balance = self._balancer(known, self._step)
        return made

    def learn(self) -> None:
        """The gradients of the step are there: the balancer is told of its losses, and of the norms that it reads."""
        if self._balancer is None or type(self._balancer).learn is Balancer.learn:
            return
        with torch.no_grad():
            self._balancer.learn(self._means(), self._norms() if self._balancer.reads_gradients else {})

    def stepped(self) -> None:
        """The optimizer made the step."""
        if self._balancer is not None:
            self._balancer.stepped()

    def state_dict(self) -> dict[str, Any]:
        """The place by which gradients are taken, which was found in the first step."""
        return {"place": self._place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the place that was found."""
        self._place = state.get("place") or self._place

    def _own(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: losses[name] for name in self._terms if name in losses}

    def _means(self) -> dict[str, Tensor]:
        """The mean loss over the step of each term that was in it."""
        shares = self._processes.sums([self._losses.shares.get(name, 0.0) for name in self._terms])
        if not any(shares):
            return {}
        none = next(self._learner.student.parameters()).new_zeros((), dtype=torch.float64)
        values = [self._losses.values.get(name, none).double() for name in self._terms]
        means = zip(self._terms, self._summed(torch.stack(values)), shares, strict=True)
        return {name: value / share for name, value, share in means if share > 0}

    def _norms(self) -> dict[str, Tensor]:
        """The norm of the step's gradient of each term that has one."""
        if not self._agreed and self._processes.several:
            self._agree_on_place()
        self._agreed = True
        had = self._processes.sums([float(name in self._gradients) for name in self._terms])
        if not any(had):
            return {}
        given = next(iter(self._gradients.values()), None)
        if given is None:
            given = torch.cat([p.detach().flatten() for p in self._parameters()]).float()
        rows = [self._gradients[name] if name in self._gradients else torch.zeros_like(given) for name in self._terms]
        norms = self._summed(torch.stack(rows)).norm(dim=1) / (
            self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
        )
        return {name: norm for name, norm, count in zip(self._terms, norms, had, strict=True) if count}

    def _summed(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        if self._processes.several:
            torch.distributed.all_reduce(tensor)
        return tensor

    def _take_gradients(self, losses: Mapping[str, Tensor], shares: Shares | None, count: int) -> None:
        """Add the gradients of a micro-batch's terms, each its share of the step's mean; those that nothing trains have none."""
        trained = {
            name: loss for name, loss in losses.items() if loss.requires_grad and _share(name, shares, count) > 0
        }
        if not trained:
            return
        if self._place is None:
            self._place = last_of_all(self._learner.student, trained)
        parameters = self._parameters()
        for name, loss in trained.items():
            scaled = self._scaler.scale(loss * _share(name, shares, count))
            found = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
            if all(gradient is None for gradient in found):
                raise RequestError(
                    f"the balancer takes gradients by {self._place}, on which the term `{name}` does not depend; name another "
                    "parameter or module of the student in its option `shared`."
                )
            gradient = torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
            ).float()
            self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient

    def _parameters(self) -> list[nn.Parameter]:
        """Those by which gradients are taken. Raises RequestError where the student has none of this name that is trained."""
        assert self._place is not None
        named = dict(self._learner.student.named_parameters())
        inside = [p for name, p in named.items() if name == self._place or name.startswith(f"{self._place}.")]
        trained = [p for p in inside if p.requires_grad]
        if not trained:
            modules = [name for name, _ in self._learner.student.named_modules() if name]
            raise RequestError(
                f"the student has nothing that is trained called {self._place!r}, which the balancer's option `shared` names"
                f"{did_you_mean(self._place, [*modules, *named])}"
            )
        return trained

    def _agree_on_place(self) -> None:
        """Raises RequestError where processes have found several places."""
        found = self._processes.gathered(self._place)
        places = sorted({place for place in found if place is not None})
        if len(places) > 1:
            raise RequestError(
                f"the terms of the first batches depend on other last weights in other processes: {', '.join(places)}; name the one by "
                "which gradients are taken in the balancer's option `shared`."
            )
        self._place = next(iter(places), None)


class GradientTrial:
    """Takes the gradients that a balancer reads, of a batch after the other, before anything is trained."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._balancing = Balancing(learner, Processes(), torch.amp.GradScaler("cpu", enabled=False))

    @property
    def needed(self) -> bool:
        """Whether the balancer reads any."""
        return self._learner.balancer is not None and self._learner.balancer.reads_gradients

    def take(self, losses: Mapping[str, Tensor], step: Step) -> None:
        """Raises RequestError where a loss has none by the place at which they are taken, or there is no such place."""
        if self.needed:
            self._balancing.begin(step, self._learner.weights(step))
            self._balancing.told(Balanced(dict(losses), UNBALANCED), None, 1)


class _Sums:
    """What was added up of each term over the micro-batches of a step, and their shares of it."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.shares: dict[str, float] = {}

    def add(self, losses: Mapping[str, Tensor], shares: Shares | None, count: int) -> None:
        for name, loss in losses.items():
            share = _share(name, shares, count)
            if share > 0:  # a stand-in's, or one without an item, may be anything
                self.values[name] = self.values.get(name, 0.0) + loss.detach() * share
                self.shares[name] = self.shares.get(name, 0.0) + share


def _share(name: str, shares: Shares | None, count: int) -> float:
    return 1 / count if shares is None else shares[name]


def last_of_all(student: nn.Module, losses: Mapping[str, Tensor]) -> str:
    """The name of the last weight of a student that every loss depends on: the last in its order of two axes or more.

    Raises RequestError where there is none.
    """
    named = {name: p for name, p in student.named_parameters() if p.requires_grad and p.dim() > 1}
    reached = set(named)
    for loss in losses.values():
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}
        # a compiled model gives zeros for what a loss does not depend on; one that is 0 already gives nothing else
        reached &= {name for name, gradient in gradients.items() if gradient.any()} or set(gradients)
    last = next((name for name in reversed(named) if name in reached), None)
    if last is None:
        raise RequestError(
            f"no weight of the student is one that all of {', '.join(losses)} depend on; name a parameter or module of it in the "
            "balancer's option `shared`."
        )
    return last
