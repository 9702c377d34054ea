"""TextBrewer's classes for one model, and for one teacher and its student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from brewer_core.config import DistillationConfig, TrainingConfig
from brewer_core.distillers.custom_matches import CustomMatch, custom_terms
from brewer_core.distillers.door import Door, warn
from brewer_core.distillers.lesson import Adaptor, Lesson, TaughtBy
from brewer_core.distillers.modes import Modes
from brewer_core.distillers.trains import Trains
from brewer_core.objective import Builder, MatchTerm, Objective, balancer_of, path_problems
from brewer_core.plugins import default_registry
from brewer_core.protocols import ModelInfo, Strategy
from brewer_core.registry import Registry


class BasicTrainer(Trains):
    """Supervised training of one model, a teacher for example.

    train_config: general settings. model: trained in place. adaptor: must return `losses`.
    registry: where components are looked up; the default one if None.
    """

    def __init__(
        self, train_config: TrainingConfig, model: nn.Module, adaptor: Adaptor, *, registry: Registry | None = None
    ) -> None:
        self.t_config = train_config
        self.model = model
        self.adaptor = adaptor
        self._door = Door(train_config, registry or default_registry())
        self._modes = Modes()

    def _lesson(self) -> Lesson:
        return Lesson(self.model, self.adaptor, Objective(None), self._door.strategy("supervised"))


class BasicDistiller(Trains):
    """Distillation of one teacher on one task, without intermediate matches.

    train_config: general settings. distill_config: the terms of the loss. model_T, model_S: teacher and student; the
    student is trained in place.
    In the place of a teacher's model a Teacher may stand, such as a CachedTeacher; its adaptor is None then.
    adaptor_T, adaptor_S: turn (batch, model outputs) into features.
    registry: where components are looked up; the default one if None.
    strategy: who teaches what, by name, as `{"name": ..., options}`, or as a Strategy.
    sample: a batch, which the models are run on here, so that numbers and widths of their layers are known: matches may then
    name `layers` by a word, and projections need no widths. The models must give what matches read without further arguments.
    Under torchrun it is the same batch in each process.
    Raises ConfigError where the distillation config names what does not exist.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
        *,
        registry: Registry | None = None,
        strategy: str | Mapping[str, Any] | Strategy | type[Strategy] = "general",
        sample: Any = None,
    ) -> None:
        self.t_config = train_config
        self.d_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        self._door = Door(train_config, registry or default_registry())
        self._modes = Modes()
        self._terms_read = self._terms(distill_config)
        known = self._door.known(sample, model_S, adaptor_S, self._taught_by(), self._terms_read)
        self._objective = Objective.from_config(
            known.config,
            self._door.registry,
            known.student,
            known.teachers,
            extra=self._checked_terms,
            source=self._source,
        )
        self._strategy = self._door.strategy(strategy)
        self._parts = self._door.build(self._strategy, known.student, known.teachers)
        self._balancer = balancer_of(known.config, self._door.registry, self._objective, self._strategy)

    @property
    def _source(self) -> str:
        """What an error about the terms says was read."""
        return "DistillationConfig"

    def _taught_by(self) -> Sequence[TaughtBy]:
        return [TaughtBy("teacher", self.model_T, self.adaptor_T)]

    def _infos(self) -> dict[str, ModelInfo]:
        return {teacher.name: teacher.info for teacher in self._taught_by()}

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        if config.matches:
            warn("BasicDistiller leaves out intermediate_matches; use GeneralDistiller for them.")
        return config.model_copy(update={"intermediate_matches": None})

    def _checked_terms(self, build: Builder) -> Sequence[tuple[MatchTerm, float]]:
        """Further terms; the paths of the config's matches are looked up in the models beside."""
        models = {each.name: each.model for each in self._taught_by() if isinstance(each.model, nn.Module)}
        build.problems += path_problems(self._terms_read.matches, self.model_S, models)
        return self._further_terms(build)

    def _further_terms(self, build: Builder) -> Sequence[tuple[MatchTerm, float]]:
        del build
        return ()

    def _lesson(self) -> Lesson:
        return Lesson(
            self.model_S,
            self.adaptor_S,
            self._objective,
            self._strategy,
            self._parts,
            self._balancer,
            self._taught_by(),
            remembering=self.d_config.is_caching_logits,
        )


class GeneralDistiller(BasicDistiller):
    """Distillation of one teacher on one task, with intermediate matches.

    The arguments are those of BasicDistiller. Projections are drawn here, in the order of `intermediate_matches`.
    custom_matches: losses between what modules inside the models return, each a CustomMatch or a dict of its fields.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
        custom_matches: Sequence[CustomMatch | Mapping[str, Any]] | None = None,
        *,
        registry: Registry | None = None,
        strategy: str | Mapping[str, Any] | Strategy | type[Strategy] = "general",
        sample: Any = None,
    ) -> None:
        self._custom_matches = tuple(custom_matches or ())
        super().__init__(
            train_config,
            distill_config,
            model_T,
            model_S,
            adaptor_T,
            adaptor_S,
            registry=registry,
            strategy=strategy,
            sample=sample,
        )

    def _terms(self, config: DistillationConfig) -> DistillationConfig:
        return config

    @property
    def _source(self) -> str:
        return "GeneralDistiller" if self._custom_matches else super()._source

    def _further_terms(self, build: Builder) -> Sequence[tuple[MatchTerm, float]]:
        return custom_terms(self._custom_matches, self.model_S, self.model_T)(build)
