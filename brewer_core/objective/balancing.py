"""How the terms of a total are weighed against one another, beside the weights of a config, and who does it in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from brewer_core.config import DistillationConfig
from brewer_core.errors import ConfigError, RequestError
from brewer_core.objective.builder import bind_ref
from brewer_core.objective.objective import Objective
from brewer_core.protocols import Step, Strategy
from brewer_core.registry import Registry


class Balance(NamedTuple):
    """What becomes of terms: `factor * loss + penalty`, each a scalar; a term without either stays as it is."""

    factors: Mapping[str, Tensor]
    penalties: Mapping[str, Tensor]

    def of(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The balanced losses by term; one that nothing is done to is the very same tensor."""
        return {name: self._of(name, loss) for name, loss in losses.items()}

    def _of(self, name: str, loss: Tensor) -> Tensor:
        if name in self.factors:
            loss = self.factors[name] * loss
        return loss + self.penalties[name] if name in self.penalties else loss


UNBALANCED = Balance({}, {})


class Balancer(nn.Module):
    """Weighs terms against one another. Subclass it, with keyword-only options in `__init__`; only `forward` is required.

    terms: the names of those that may have to be weighed, in the order of the log: those of the objective that have a weight, and
    those that a strategy gives weights of its own. The configured weight of a term, with its schedule, multiplies what becomes
    of it here: the total is the sum of `weight * (factor * loss + penalty)`. Other terms stay as they are.

    Parameters are trained by the optimizer of the run, in a group of their own, and are saved; so are buffers. They are the same in
    all processes.
    """

    reads_losses: ClassVar[bool] = False
    """Whether factors depend on the losses of the step: these are then found before anything goes backward, for which a step of
    several micro-batches takes a forward pass more. Such a balancer trains nothing by the total."""

    reads_gradients: ClassVar[bool] = False
    """Whether `learn` is told the norms of the terms' gradients by the parameters at `place`."""

    place: str | None = None
    """A parameter or a module of the student, by its dotted name, by which the norms of gradients are; None for the last weight
    that every term depends on."""

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self.terms = tuple(terms)

    @property
    def group(self) -> Mapping[str, Any]:
        """Settings of the parameters' own group in the optimizer, such as `{"lr": 0.01}`; those that it does not have are left out."""
        return {"weight_decay": 0.0}

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Balance:
        """Factors and penalties of the terms of a batch whose weight is not 0 now.

        losses: scalars without gradient by term. With `reads_losses` the means over the whole step, over micro-batches and
        processes; without, those of a micro-batch, of which the names alone may count.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def learn(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        """Be told of a step, before the optimizer makes it: set the `grad` of parameters, or change buffers.

        losses: the means over the whole step, over micro-batches and processes, without gradient. norms: of the gradients of these by
        the parameters at `place`, neither weighted nor balanced; none unless `reads_gradients`.
        """

    def stepped(self) -> None:
        """Be told that the optimizer has made a step, to put parameters back into their range."""


def balancer_of(
    config: DistillationConfig,
    registry: Registry,
    objective: Objective,
    strategy: Strategy,
    source: str = "DistillationConfig",
) -> Balancer | None:
    """The balancer that a config names, of the terms of objective and strategy; None where it names none.

    source: what the error says was read. Raises ConfigError where the balancer is none, or cannot be made.
    """
    if config.balancer is None:
        return None
    try:
        made = bind_ref(registry, config.balancer)(terms_of(objective, strategy))
    except RequestError as error:
        raise ConfigError([f"balancer: {str(error).rstrip('.')}"], source) from error
    if not isinstance(made, Balancer):
        raise ConfigError([f"balancer: `{config.balancer.name}` is no brewer_core.Balancer"], source)
    return made


def terms_of(objective: Objective, strategy: Strategy) -> tuple[str, ...]:
    """The terms that may count: those of the objective with a weight other than 0, and those that the strategy weighs itself."""
    weighted = [name for name, weight in objective.factors.items() if weight.base]
    return tuple(dict.fromkeys([*weighted, *strategy.weights(Step(0, 1))]))
