"""All terms of a run's loss, with their weights and names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from brewer_core.components.facts import Over
from brewer_core.config import DistillationConfig
from brewer_core.features import Counts, Features
from brewer_core.objective.builder import KD_TERM as KD_TERM
from brewer_core.objective.builder import Builder
from brewer_core.objective.logit_term import LogitTerm
from brewer_core.objective.match_term import MatchTerm
from brewer_core.objective.weight import Weight
from brewer_core.protocols import ModelInfo, Needs, Step
from brewer_core.registry import Registry
from brewer_core.sparse_logits import Kept

LABEL_TERM = "hard_label_loss"
UNKNOWN_STUDENT = ModelInfo("student")
UNKNOWN_TEACHERS = MappingProxyType({"teacher": ModelInfo("teacher")})


class Objective(nn.Module):
    """All terms of a run. What it trains (projections, stateful losses) are its submodules.

    kd: the losses between the logits, or None. matches: the losses between intermediate features. weights: the factor
    of each term by name; a term without one has the factor 1.
    """

    def __init__(
        self, kd: LogitTerm | None, matches: Sequence[MatchTerm] = (), weights: Mapping[str, Weight] | None = None
    ) -> None:
        super().__init__()
        self.kd = kd
        self.matches = nn.ModuleDict({_unique(m.name, matches[:i]): m for i, m in enumerate(matches)})
        self._weights = dict(weights or {})

    @classmethod
    def from_config(
        cls,
        config: DistillationConfig,
        registry: Registry,
        student: ModelInfo = UNKNOWN_STUDENT,
        teachers: Mapping[str, ModelInfo] = UNKNOWN_TEACHERS,
        extra: Callable[[Builder], Sequence[tuple[MatchTerm, float]]] = lambda _: (),
        source: str = "DistillationConfig",
    ) -> Objective:
        """The objective of a config; projections are drawn from torch's global generator in the order of the list.

        student, teachers: where projections without widths of their own read them, and the names that matches may bear.
        extra: makes matches beside those of the config, each with its weight. source: what the error says was read.
        Raises ConfigError with every name, option or width that is wrong.
        """
        build = Builder(registry, student, teachers)
        kd, kd_weights = build.logit_term(config)
        matches = [
            (term, match.weight) for i, match in enumerate(config.matches) for term in build.match_terms(i, match)
        ]
        weights = {
            **kd_weights,
            LABEL_TERM: build.weight("hard_label_weight", config.hard_label_weight, config.hard_label_weight_scheduler),
        }
        further = list(extra(build))
        build.raise_problems(source)
        terms = [*matches, *further]
        objective = cls(kd, [term for term, _ in terms], weights)
        for name, (_, factor) in zip(objective.matches, terms, strict=True):
            objective._weights[name] = Weight(factor)
        return objective

    @property
    def temperature(self) -> float:
        """The configured temperature of the losses between the logits; 1 where there is no such loss."""
        return self.kd.temperature if self.kd else 1.0

    @property
    def factors(self) -> Mapping[str, Weight]:
        """The factor of every term over the run."""
        return MappingProxyType(self._weights)

    def needs(self) -> Needs:
        """Names of the features that the terms read, of single layers where only those are: `hidden[3]`."""
        matches = self._match_terms()
        logits = frozenset({"logits", "logits_mask"})
        taught = frozenset({"inputs_mask"}) | (logits if self._compares_logits else frozenset())
        own = frozenset({"losses", "labels", "inputs_mask"}) | (logits if self.kd else frozenset())
        named = {match.teacher for match in matches if match.teacher is not None}
        return Needs(
            student=own.union(*(match.sources[0].names for match in matches)),
            every_teacher=taught.union(*(match.sources[1].names for match in matches if match.teacher is None)),
            by_teacher={
                name: frozenset().union(*(match.sources[1].names for match in matches if match.teacher == name))
                for name in named
            },
        )

    @property
    def _compares_logits(self) -> bool:
        """Whether a loss between the logits ever counts: one of weight 0 is not computed."""
        return bool(self._counted_kd)

    @property
    def kd_names(self) -> tuple[str, ...]:
        """The names of the terms of losses between the logits, in the order of the config."""
        return tuple(self.kd.losses) if self.kd else ()

    @property
    def _counted_kd(self) -> list[str]:
        return [name for name in self.kd_names if name not in self._weights or not self._weights[name].never_counts]

    def weights(self, step: Step) -> dict[str, float]:
        """The factor of every term at a step."""
        return {name: weight.at(step) for name, weight in self._weights.items()}

    def over(self, term: str) -> Over | Callable[[Counts], float] | Literal["labels"]:
        """What the mean of a term is over; `labels` for the student's own losses, `rows` where nothing is declared."""
        if term == LABEL_TERM:
            return "labels"
        if self.kd is not None and term in self.kd.losses:
            return self.kd.over(term)
        for name, match in self.matches.items():
            if name == term and isinstance(match, MatchTerm):
                return match.over
        return "rows"

    def items(self, term: str, counts: Counts, teachers: Collection[str] | None = None) -> float:
        """How many items of a batch the mean of a term is over; teachers: those that are asked for it, all if None."""
        match = dict(self.matches).get(term)
        if teachers is not None and isinstance(match, MatchTerm) and match.teacher not in (None, *teachers):
            return 0.0
        over = self.over(term)
        if callable(over):
            return float(over(counts))
        return float(getattr(counts, "rows" if over == "batch" else over))

    def refuses_sparse(self, kept: Kept) -> list[str]:
        """What stands against teachers' logits of which only some are kept, a sentence each; none where they are accepted."""
        return self.kd.refuses_sparse(kept, self._counted_kd or None) if self.kd else []

    def kd_terms(self, student: Features, teacher: Features, step: Step) -> dict[str, Tensor]:
        """The unweighted losses between the logits, where both sides have logits; 0 where the weight is, whatever they are."""
        if self.kd is None or "logits" not in student:
            return {}
        counted = self._counted_kd
        if counted and "logits" not in teacher:
            return {}
        losses = self.kd(student, teacher, step, counted) if counted else {}
        # A gradient of 0 is not none: an optimizer decays the weights of a head that has it.
        return {name: losses[name] if name in losses else _nothing(student["logits"]) for name in self.kd_names}

    def match_terms(
        self, student: Features, teachers: Features | Mapping[str, Features], step: Step
    ) -> dict[str, Tensor]:
        """The unweighted losses between intermediate features, of the matches whose teacher is among these."""
        losses: dict[str, Tensor] = {}
        for name, match in zip(self.matches, self._match_terms(), strict=True):
            teacher = teachers if isinstance(teachers, Features) else match.answering(teachers)
            if teacher is not None:
                losses[name] = match(student, teacher, step)
        return losses

    def label_terms(self, student: Features) -> dict[str, Tensor]:
        """The sum of the student's own losses, where its adaptor returns any."""
        if not student.get("losses"):
            return {}
        means = [loss.mean() for loss in student["losses"]]
        return {LABEL_TERM: sum(means[1:], means[0])}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A parameter group for each match and loss that is trained, with the settings of its config.

        What several of them share is in the group of the first.
        """
        owners: list[tuple[nn.Module | None, dict[str, Any]]] = [(self.kd, {})] + [
            (match, match.group) for match in self._match_terms()
        ]
        groups, seen = [], set[nn.Parameter]()
        for owner, settings in owners:
            new = [p for p in owner.parameters() if p not in seen] if owner is not None else []
            seen.update(new)
            if new:
                groups.append({"params": new, **settings})
        return groups

    def _match_terms(self) -> list[MatchTerm]:
        return [match for match in self.matches.values() if isinstance(match, MatchTerm)]


def _nothing(heads: Sequence[Tensor]) -> Tensor:
    """0, with a gradient of 0 to each of the heads."""
    return sum((head[..., :0].sum() for head in heads), torch.zeros(()))


def _unique(name: str, before: Sequence[MatchTerm]) -> str:
    times = sum(match.name == name for match in before)
    return f"{name}#{times + 1}" if times else name
