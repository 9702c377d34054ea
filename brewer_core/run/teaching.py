"""The teachers of a stage: what is asked of them, what they answer to a few rows, and whether they are needed at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from brewer_core.architectures import anatomy_of
from brewer_core.cache import CachedTeacher, chosen
from brewer_core.captures import fused
from brewer_core.config import DistillationConfig, DistillStage, IntermediateMatch
from brewer_core.config.run import TeacherRef
from brewer_core.features import ATTENTION, Features, features_read
from brewer_core.learner import Learner
from brewer_core.objective import Objective, teacher_meant
from brewer_core.protocols import Batch, LoadedModel, ModelInfo, Needs, Strategy, Teacher
from brewer_core.run.assembly import Assembly, JoinedText, model_inputs
from brewer_core.run.caching import Asked, holds_all
from brewer_core.run.tasks import named_teachers
from brewer_core.teachers import LiveTeacher


class Teaching:
    """The teachers of a stage, live, by their names in it.

    arguments: what is added to each call of the student, so that it gives what is read of it. needs: what is read, all layers of it.
    notes: of each model whose attention is computed otherwise, as it is read.
    """

    def __init__(self, assembly: Assembly, stage: DistillStage, strategy: Strategy, student: LoadedModel) -> None:
        self._assembly, self._stage = assembly, stage
        self._refs, self._several_tasks = named_teachers(stage), strategy.several_tasks
        self.needs = _needs(strategy, stage.distillation, list(self._refs))
        self.notes: list[str] = []
        self._read = _asked_of_models(self.needs, stage.student, self._refs)
        self.arguments = dict(self._told(stage.student, student))
        given = {name: self._arguments(name) for name in self._read if name != stage.student}
        given.setdefault(stage.student, self.arguments)
        self.live = {name: self._teacher(ref, given[ref.model]) for name, ref in self._refs.items()}

    def answers(self, samples: Mapping[str, Batch]) -> dict[str, Features]:
        """All layers of what is read of each teacher, for a few rows of its task."""
        return {name: self.answer(name, samples[self.task_of(name)]) for name in self._refs}

    def answer(self, name: str, sample: Batch) -> Features:
        """All layers of what is read of a teacher, for rows of its task."""
        return self.live[name].features(sample, features_read(self.needs.teacher(name)))

    def task_of(self, name: str) -> str:
        """The task that a teacher teaches; empty where there is one alone."""
        return self._refs[name].task or ""

    def infos(self, answers: Mapping[str, Features]) -> dict[str, ModelInfo]:
        """What is known of each teacher by what it answers."""
        return {
            name: ModelInfo.of(name, answers[name], ref.weight, (ref.task,) if ref.task else ())
            for name, ref in self._refs.items()
        }

    def asked(
        self,
        learner: Learner,
        samples: Mapping[str, Batch],
        answers: Mapping[str, Features],
        sets: Mapping[str, JoinedText],
    ) -> dict[str, Asked]:
        """What the learner asks of each teacher."""
        return {
            name: Asked(
                name,
                self.live[name],
                learner.needs.teacher(name),
                samples[ref.task or ""],
                chosen(answers[name], learner.needs.teacher(name)),
                sets[ref.task or ""],
                (ref.task or "") if self._several_tasks else "",
            )
            for name, ref in self._refs.items()
        }

    def _arguments(self, model: str) -> Mapping[str, Any]:
        """What is added to each call of a model, which is made to give what is read of it."""
        return self._told(model, self._assembly.model(model))

    def _told(self, name: str, model: LoadedModel) -> Mapping[str, Any]:
        settings = anatomy_of(model.model).settings
        before = fused(settings)
        arguments = model.forward_arguments(self._read[name])
        if before and not fused(settings):
            read = ", ".join(sorted(ATTENTION & self._read[name]))
            self.notes.append(f"{name} computes attention as a whole (eager, not {before}), which {read} need")
        return arguments

    def _teacher(self, ref: TeacherRef, arguments: Mapping[str, Any]) -> LiveTeacher:
        assembly = self._assembly
        return LiveTeacher(
            assembly.placed(assembly.model(ref.model).model, "teachers"),
            assembly.adaptors(ref.model, ref.adaptor or self._stage.adaptors.teacher)[ref.task or ""],
            assembly.device,
            precision=assembly.config.precision,
            arguments=arguments,
            model_inputs=model_inputs,
            again=lambda: self._built_again(ref.model),
        )

    def _built_again(self, model: str) -> nn.Module:
        self._arguments(model)
        return self._assembly.placed(self._assembly.model(model).model, "teachers")


def released(
    assembly: Assembly, stage: DistillStage, teachers: Mapping[str, Teacher], asked: Mapping[str, Asked]
) -> frozenset[str]:
    """Let go of the models of teachers whose cache holds every row that is trained on; the names of these teachers.

    A model that this run trains is not let go of. Should one be needed all the same, it is built again.
    """
    models = {name: ref.model for name, ref in named_teachers(stage).items()}
    warm = {
        name
        for name, teacher in teachers.items()
        if isinstance(teacher, CachedTeacher) and assembly.rebuilt(models[name]) and holds_all(teacher, asked[name])
    }
    needed = {models[name] for name in models if name not in warm} | {stage.student}
    gone = frozenset(name for name in warm if models[name] not in needed)
    for name in gone:
        live = asked[name].teacher
        if isinstance(live, LiveTeacher):
            live.release()
        assembly.release(models[name])
    return gone


def _needs(strategy: Strategy, config: DistillationConfig, teachers: Sequence[str]) -> Needs:
    """What the models must give: asked before the objective is there, which needs the widths of all layers."""
    own = strategy.needs(Objective(None))
    logits = frozenset({"logits"})
    of_all = {name for match in config.matches if match.teacher is None for name in _names(match, "T")}
    of_all |= logits if config.compares_logits else frozenset()
    meant = [(teacher_meant(m.teacher, teachers), _names(m, "T")) for m in config.matches if m.teacher is not None]
    by_teacher = {
        name: own.teacher(name).union(*(names for teacher, names in meant if teacher == name)) for name in teachers
    }
    matched = {name for match in config.matches for name in _names(match, "S")}
    return Needs(own.student | logits | matched, own.every_teacher | of_all, by_teacher)


def _names(match: IntermediateMatch, side: Literal["T", "S"]) -> frozenset[str]:
    return frozenset(read.feature for read in match.reads(side))


def _asked_of_models(needs: Needs, student: str, teachers: Mapping[str, TeacherRef]) -> dict[str, frozenset[str]]:
    """The features that each model is asked for, by its name: one that stands for several teachers for those of all."""
    asked = {student: features_read(needs.student)}
    for name, ref in teachers.items():
        asked[ref.model] = asked.get(ref.model, frozenset()) | features_read(needs.teacher(name))
    return asked
