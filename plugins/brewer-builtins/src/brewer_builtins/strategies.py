"""Strategies: who teaches what, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from brewer_builtins.ensembles import averaged, no_mean
from brewer_core import Draws, Features, Kept, ModelInfo, Objective, RequestError, Step, Strategy, cycle, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

Tau: TypeAlias = Annotated[
    float,
    Field(description="A task is drawn with a probability proportional to its number of batches to this power."),
]


class General(Strategy):
    """One teacher: logits, intermediate features, and the student's own losses on labels.

    Source: Hinton et al. 2015, arXiv:1503.02531, with intermediate matches as in TextBrewer, arXiv:2002.12620.
    """

    def build(self, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> None:
        """Nothing is trained here. Raises RequestError for several teachers, whose losses would stand for one another."""
        del student
        if len(teachers) != 1:
            raise RequestError(
                f"the strategy `general` learns from one teacher, not from {', '.join(teachers) or 'none'}; "
                "`multi_teacher` learns from several."
            )

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The losses against the teacher's features, and the student's own."""
        del task
        (teacher,) = teachers.values()
        return {
            **objective.kd_terms(student, teacher, step),
            **objective.match_terms(student, teachers, step),
            **objective.label_terms(student),
        }


class MultiTeacher(Strategy):
    """Several teachers: their mean logits or probabilities, and intermediate features of those that matches name.

    Teachers that give no logits take no part in the mean.
    Source: You et al. 2017, "Learning from Multiple Teacher Networks"; the mean of logits as in TextBrewer, arXiv:2002.12620.
    """

    def __init__(
        self,
        *,
        average: Annotated[
            Literal["logits", "probabilities"],
            Field(
                description="What is averaged: logits as they are, or probabilities at the configured temperature, which "
                "are then given as their logarithms."
            ),
        ] = "logits",
    ) -> None:
        self.average = average
        self._teachers: dict[str, ModelInfo] = {}

    def build(self, student: ModelInfo, teachers: Mapping[str, ModelInfo]) -> None:
        """Note the teachers; nothing is trained here. Raises RequestError where there is none."""
        del student
        if not teachers:
            raise RequestError("the strategy `multi_teacher` needs a teacher, and there is none.")
        self._teachers = dict(teachers)

    def refuses_sparse(self, objective: Objective, kept: Kept) -> Sequence[str]:
        """What stands against logits of which only some are kept: that they have no mean, where a task has several teachers."""
        giving = [info for info in self._teachers.values() if not info.widths or "logits" in info.widths]
        tasks = {task for info in giving for task in info.tasks} or {""}
        several = any(sum(info.teaches(task) for info in giving) > 1 for task in tasks)
        return [*objective.refuses_sparse(kept), *([no_mean(kept)] if several else [])]

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The losses against the mean of the teachers and against the features that matches name, and the student's own."""
        del task
        temperature = objective.temperature if self.average == "probabilities" else None
        weights = {name: self._teachers[name].weight if name in self._teachers else 1.0 for name in teachers}
        return {
            **objective.kd_terms(student, averaged(teachers, weights, temperature), step),
            **objective.match_terms(student, teachers, step),
            **objective.label_terms(student),
        }


class MultiTask(MultiTeacher):
    """Several tasks, each with its own data and teachers, drawn batch by batch by the sizes of their data.

    Source: TextBrewer, arXiv:2002.12620, with sampling by size^tau.
    """

    several_tasks: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tau: Tau = 1.0,
        average: Annotated[
            Literal["logits", "probabilities"],
            Field(description="What is averaged where a task has several teachers."),
        ] = "logits",
    ) -> None:
        super().__init__(average=average)
        self.tau = tau

    def batches(self, loaders: Any, generator: Draws) -> Iterator[tuple[str, Any]]:
        """Batches of tasks that are drawn one by one; uniformly where the size of any task is not known."""
        if not isinstance(loaders, Mapping) or not loaders:
            raise RequestError("the strategy `multi_task` needs a mapping from task to loader, with one task or more.")
        return drawn(loaders, self.tau, generator)

    def teachers_for(self, task: str, teachers: Sequence[str]) -> Sequence[str]:
        """The teachers of a task. Raises RequestError where it has none."""
        asked = [name for name in teachers if name not in self._teachers or self._teachers[name].teaches(task)]
        if not asked:
            raise RequestError(f"the task {task!r} has no teacher; there are {', '.join(teachers) or 'none'}.")
        return asked


class Supervised(Strategy):
    """No teacher: the model's own losses on labels, of one task or of several that are drawn as `multi_task` draws them."""

    several_tasks: ClassVar[bool] = True

    def __init__(self, *, tau: Tau = 1.0) -> None:
        self.tau = tau

    def batches(self, loaders: Any, generator: Draws) -> Iterator[tuple[str, Any]]:
        """The batches of one loader in its order; of a mapping from task to loader those that are drawn."""
        if isinstance(loaders, Mapping):
            return drawn(loaders, self.tau, generator)
        return super().batches(loaders, generator)

    def teachers_for(self, task: str, teachers: Sequence[str]) -> Sequence[str]:
        """None."""
        del task, teachers
        return ()

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Objective, step: Step
    ) -> Mapping[str, Tensor]:
        """The model's own losses."""
        del task, teachers, step
        return objective.label_terms(student)


def drawn(loaders: Mapping[str, Any], tau: float, generator: Draws) -> Iterator[tuple[str, Any]]:
    """Batches without end, each with its task, which is drawn by size^tau; uniformly where any size is not known."""
    names = list(loaders)
    streams = {name: cycle(loader, f"the loader of the task {name!r}") for name, loader in loaders.items()}
    probabilities = _probabilities(list(loaders.values()), tau)
    while True:
        task = names[int(generator.choice(range(len(names)), p=probabilities))]
        yield task, next(streams[task])


def _probabilities(loaders: Sequence[Any], tau: float) -> list[float] | None:
    try:
        sizes = [len(loader) for loader in loaders]
    except TypeError:  # a size that is not known
        return None
    if 0 in sizes:  # its own error comes when it is drawn; nothing to the power of a negative tau is no number
        return None
    try:
        powers = [pow(size, tau) for size in sizes]
        return [power / sum(powers) for power in powers]
    except (OverflowError, ZeroDivisionError) as error:
        raise RequestError(
            f"tau {tau:g} is too far from 0 for tasks of {', '.join(map(str, sizes))} batches; 0 to 1 is usual."
        ) from error


@hookimpl
def brewer_strategies() -> dict[str, type[Strategy]]:
    """The built-in strategies."""
    return {"general": General, "multi_task": MultiTask, "multi_teacher": MultiTeacher, "supervised": Supervised}
