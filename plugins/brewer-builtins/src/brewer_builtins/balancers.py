"""Balancers: how the terms of a total are weighed against one another, beside their configured weights.

The total is the sum of `weight * (factor * loss + penalty)` over the terms, the weight being the configured one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from brewer_core import Balance, Balancer, RequestError, Step, component, hookimpl

LEAST_WEIGHT = 1e-3
"""What a learned weight of `gradnorm` is at least: the paper has no bound, and below 0 a term would be unlearnt."""

NONE: Mapping[str, Tensor] = {}


@component(name="Configured weights")
class Fixed(Balancer):
    """The configured weights alone: bit by bit what is computed without a balancer."""

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Balance:
        """Nothing for any term."""
        del losses, step
        return Balance(NONE, NONE)


@component(source="NVIDIA ModelOpt, modelopt.torch.distill, LogitsAndIntermediateLossBalancer", name="Detached ratio")
class Ratio(Balancer):
    """Each term scaled to the size of a reference term: by |loss of the reference| / |its own loss|, without gradient.

    So every term counts as much as the reference, times its configured weight. The losses are the means of the whole step, over
    micro-batches and processes. With several micro-batches in a step, they take a forward pass of teacher and student more.
    Where a loss is 0, or the reference is not in the step or is 0, the factor is 1.
    Departures from ModelOpt: that scales the mean of all intermediate losses by one ratio, and what comes of it and of the loss
    between the logits by another one; it takes the ratios of each micro-batch in each process.
    Raises RequestError where the reference is no term.
    """

    reads_losses: ClassVar[bool] = True

    def __init__(
        self,
        terms: Sequence[str],
        *,
        reference: Annotated[
            str | None, Field(description="The term that others are scaled to, as it is logged; the first one if null.")
        ] = None,
    ) -> None:
        super().__init__(terms)
        _check_terms("ratio", "reference", [] if reference is None else [reference], terms)
        self.reference = reference or next(iter(terms), "")

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Balance:
        """The ratios of all terms but the reference."""
        del step
        reference = losses.get(self.reference)
        if reference is None:
            return Balance(NONE, NONE)
        return Balance({name: _ratio(reference, loss) for name, loss in losses.items() if name != self.reference}, NONE)


@component(source="Kendall et al. 2018, arXiv:1705.07115, eqs. 7 and 10", name="Learned uncertainty")
class Uncertainty(Balancer):
    """Each term weighed by a variance that is learnt: exp(-s) / 2 * loss + s / 2, with s the logarithm of the variance.

    The first factors are 1/2, of s = 0. The variances are trained by the run's optimizer, without weight decay. A term's configured
    weight multiplies both parts, so that it leaves the best s as it is, the logarithm of the loss; the losses must be above 0.
    Source: Kendall et al. 2018, eq. 7, for all terms; of those in `classification`, eq. 10: exp(-s) * loss + s / 2.
    Raises RequestError where `classification` names what is no term.
    """

    def __init__(
        self,
        terms: Sequence[str],
        *,
        classification: Annotated[
            tuple[str, ...], Field(description="Terms that are cross-entropies of classes, whose factor is exp(-s).")
        ] = (),
        learning_rate: Annotated[
            float | None, Field(gt=0, description="Of the variances; that of the optimizer if null.")
        ] = None,
    ) -> None:
        super().__init__(terms)
        _check_terms("uncertainty", "classification", classification, terms)
        self.scales = {name: 1.0 if name in classification else 0.5 for name in terms}
        self.learning_rate = learning_rate
        self.log_variances = nn.Parameter(torch.zeros(len(terms)))

    @property
    def group(self) -> Mapping[str, Any]:
        """No weight decay, and the learning rate where it has its own."""
        return {**super().group, **({} if self.learning_rate is None else {"lr": self.learning_rate})}

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Balance:
        """Factor and penalty of each term, with the variances' gradients."""
        del step
        own = {name: self.log_variances[self.terms.index(name)] for name in losses}
        factors = {name: self.scales[name] * (-log_variance).exp() for name, log_variance in own.items()}
        return Balance(factors, {name: log_variance / 2 for name, log_variance in own.items()})


@component(source="Chen et al. 2018, arXiv:1711.02257, eqs. 1 and 2 and algorithm 1", name="Gradient normalisation")
class GradNorm(Balancer):
    """Factors that are learnt so that the gradients of all terms are of like norm, and larger where a term is learnt more slowly.

    With G the norm of a term's gradient times its factor w, and r how much of its first loss is left over the mean of that of all
    terms, w goes down the gradient of |G - mean(G) * r^alpha|, the latter taken as constant; then factors are scaled so
    that they sum to the number of terms. The first are 1. They are trained by the run's optimizer, without weight decay. G is
    that of the whole step, over micro-batches and processes, of the loss as it is: configured weights multiply the balanced terms.
    The losses must be above 0, and the first is that of the first step in which the term is.

    Departures: factors are 0.001 at least before they are scaled.
    Raises RequestError where no weight of the student is one that every term depends on, or a term does not depend on `shared`.
    """

    reads_gradients: ClassVar[bool] = True
    first_losses: Tensor

    def __init__(
        self,
        terms: Sequence[str],
        *,
        alpha: Annotated[
            float,
            Field(ge=0, description="How strongly terms that are learnt slowly get larger gradients; 0 for all alike."),
        ] = 1.5,
        shared: Annotated[
            str | None,
            Field(
                description="The parameter or module of the student by which gradients are taken, such as "
                "bert.encoder.layer.2; if null the last weight that every term depends on."
            ),
        ] = None,
        learning_rate: Annotated[float, Field(gt=0, description="Of the factors.")] = 0.025,
    ) -> None:
        super().__init__(terms)
        self.alpha, self.place, self.learning_rate = alpha, shared, learning_rate
        self.factors = nn.Parameter(torch.ones(len(terms)))
        self.register_buffer("first_losses", torch.full((len(terms),), torch.nan))

    @property
    def group(self) -> Mapping[str, Any]:
        """No weight decay, and a learning rate of its own."""
        return {**super().group, "lr": self.learning_rate}

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Balance:
        """The factors; the total has no gradient by them."""
        del step
        return Balance({name: self.factors.detach()[self.terms.index(name)].clone() for name in losses}, NONE)

    def learn(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        """Set the gradient of the factors; it is 0 where a norm or a loss is not finite."""
        if not norms:
            return
        at = torch.tensor([self.terms.index(name) for name in norms], device=self.factors.device)
        loss = torch.stack([losses[name] for name in norms]).to(self.factors)
        norm = torch.stack([norms[name] for name in norms]).to(self.factors)
        first = self.first_losses[at]
        self.first_losses[at] = torch.where(first.isnan() & loss.isfinite(), loss, first)
        left = loss / self.first_losses[at].clamp(min=torch.finfo(loss.dtype).tiny)
        weighed = self.factors.detach()[at] * norm
        wanted = weighed.mean() * (left / left.mean()) ** self.alpha
        slope = (weighed - wanted).sign() * norm
        finite = torch.isfinite(slope).all()
        self.factors.grad = torch.zeros_like(self.factors).index_copy(0, at, torch.where(finite, slope, 0.0))

    @torch.no_grad()
    def stepped(self) -> None:
        """Scale the factors of the terms that were met until now, so that they sum to their number."""
        met = ~self.first_losses.isnan()
        factors = self.factors.clamp(min=LEAST_WEIGHT)
        total = torch.where(met, factors, 0.0).sum()
        self.factors.copy_(torch.where(met, factors * met.sum() / total, self.factors))


@hookimpl
def brewer_balancers() -> dict[str, type[Balancer]]:
    """The built-in balancers."""
    return {"fixed": Fixed, "gradnorm": GradNorm, "ratio": Ratio, "uncertainty": Uncertainty}


def _ratio(reference: Tensor, loss: Tensor) -> Tensor:
    reference, loss = reference.detach(), loss.detach()
    none = (loss == 0) | (reference == 0)
    return torch.where(none, 1.0, (reference / torch.where(none, 1.0, loss)).abs())


def _check_terms(balancer: str, option: str, named: Sequence[str], terms: Sequence[str]) -> None:
    for name in named:
        if name not in terms:
            raise RequestError(
                f"{option} of the balancer `{balancer}` is {name!r}, which is no term with a weight; expected one of "
                f"{', '.join(terms) or 'none'}."
            )
