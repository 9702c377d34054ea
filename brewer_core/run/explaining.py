"""`explain`: the total loss of every stage, exactly, found by computing one batch of each task and watching what is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brewer_core.config import ComponentRef, DistillStage
from brewer_core.config.kd_loss import KDLoss
from brewer_core.feature_names import PREFIX
from brewer_core.features import Features, features_read, layers_read
from brewer_core.objective import LABEL_TERM, MatchTerm, Objective, Source, Weight
from brewer_core.protocols import Step, Strategy
from brewer_core.randomness import seeded
from brewer_core.registry import Registry
from brewer_core.run.assembly import Assembly, model_inputs
from brewer_core.run.explained import (
    Balanced,
    ExplainedStage,
    ExplainedTask,
    ExplainedTeacher,
    ExplainedTerm,
    Projected,
    Read,
    Used,
    number,
)
from brewer_core.run.lessons import Lesson
from brewer_core.run.planning import first_batches, located, plan, stage_lesson, try_batch
from brewer_core.run.tasks import adaptor_of, named_teachers, trained_model
from brewer_core.teachers import evaluating


def explain(assembly: Assembly) -> tuple[ExplainedStage, ...]:
    """What each stage of a run minimises, with the models as the run begins.

    Raises ConfigError with every problem of data and models, as a dry run does.
    """
    with seeded(assembly.seed("run"), assembly.device):
        plan(assembly)
        return tuple(_Stage(assembly, position).explained() for position in range(len(assembly.config.stages)))


class _Watching(Strategy):
    """A strategy as it is, that remembers the features it was given."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.student: Features = Features({})
        self.teachers: Mapping[str, Features] = {}

    def teachers_for(self, task: str, teachers: Sequence[str]) -> Sequence[str]:
        return self.inner.teachers_for(task, teachers)

    def terms(
        self, task: str, student: Features, teachers: Mapping[str, Features], objective: Any, step: Step
    ) -> Mapping[str, Tensor]:
        self.student, self.teachers = student, teachers
        return self.inner.terms(task, student, teachers, objective, step)


class _Stage:
    """One stage under examination."""

    def __init__(self, assembly: Assembly, position: int) -> None:
        self.assembly = assembly
        self.config = assembly.config.stages[position]
        self.path = f"stages[{position}]"
        self.lesson: Lesson = stage_lesson(assembly, position)
        self.objective = self.lesson.learner.objective
        self.own = trained_model(self.config)
        self.strategy = self.lesson.learner.strategy
        distills = isinstance(self.config, DistillStage)
        ref = self.config.strategy if isinstance(self.config, DistillStage) else ComponentRef("strategy", "supervised")
        self.strategy_used = self._used("strategy", ref)
        balancer = getattr(self._distillation(), "balancer", None)
        self.balancer_used = None if balancer is None else self._used("balancer", balancer)
        self.kind = "distill" if distills else "supervised"
        total = self.lesson.total_steps
        self.at = (0, total // 2, total)

    def explained(self) -> ExplainedStage:
        learner = self.lesson.learner
        watching = _Watching(self.strategy)
        batches = first_batches(self.lesson, self.assembly.trying_device)
        learner.strategy = watching
        with evaluating(learner), located(self.path):
            tasks = tuple(self._task(task, batch, watching) for task, batch in batches.items())
        adaptor = adaptor_of(self.assembly.config, self.config)
        return ExplainedStage(
            self.config.name,
            self.kind,
            self.own,
            self.at,
            self.config.training.loss_normalization,
            self.config.training.accumulation,
            (self.strategy_used, self._model(self.own), self._used("adaptor", adaptor)),
            _parameters(learner.parts),
            tuple(self._teachers()),
            tasks,
            self.balancer_used,
            _parameters(learner.balancer),
        )

    def _task(self, task: str, batch: Any, watching: _Watching) -> ExplainedTask:
        with ExitStack() as stack:
            heard = _Heard(self.objective, stack)
            losses = try_batch(self.lesson, task, batch)
        weights = [{**self.objective.weights(step), **self.strategy.weights(step)} for step in self._steps()]
        counted = {name: tuple(each.get(name, 1.0) for each in weights) for name in losses}
        balance = self._balance(losses, {name: each[0] for name, each in counted.items()})
        terms = tuple(
            replace(self._term(name, loss, counted[name], watching, heard), balance=balance.get(name))
            for name, loss in losses.items()
            if any(counted[name])
        )
        left_out = {name: "its weight is 0" for name in losses if not any(counted[name])}
        for name in {**weights[0]}.keys() - losses.keys():
            left_out[name] = self._absent(name, [each[name] for each in weights], watching)
        balancer = self.balancer_used.name if self.balancer_used else ""
        return ExplainedTask(task, _rows(batch), terms, dict(sorted(left_out.items())), balancer)

    def _balance(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Balanced]:
        """What the balancer makes of terms, those that it changes."""
        learner = self.lesson.learner
        factors, penalties = learner.balance(losses, learner.balanced_terms(weights), Step(0, self.at[-1]))
        return {
            name: Balanced(
                factors[name].item() if name in factors else 1.0, penalties[name].item() if name in penalties else 0.0
            )
            for name in losses
            if name in factors or name in penalties
        }

    def _steps(self) -> list[Step]:
        return [Step(step, self.at[-1]) for step in self.at]

    def _term(
        self, name: str, loss: Tensor, weights: tuple[float, ...], watching: _Watching, heard: _Heard
    ) -> ExplainedTerm:
        make = self._other
        if name in heard.read:
            make = self._kd if name in self.objective.kd_names else self._match
        elif name == LABEL_TERM and watching.student.get("losses"):
            make = self._labels
        parts = make(name, heard, watching)
        factor, schedule = self._factor(name, weights)
        over = self.objective.over(name)
        return ExplainedTerm(
            name=name,
            factor=factor,
            weights=weights,
            value=loss.item(),
            over=over if isinstance(over, str) else getattr(over, "__name__", repr(over)),
            trained=loss.requires_grad,
            **{**parts, "used": (*parts["used"], *schedule)},
        )

    def _factor(self, name: str, weights: tuple[float, ...]) -> tuple[str, tuple[Used, ...]]:
        """The weight as a formula, and its schedule if it has one."""
        factor = self.objective.factors.get(name)
        if factor is None or name in self.strategy.weights(Step(0, self.at[-1])):  # the strategy has the last word
            return (number(weights[0]) if len(set(weights)) == 1 else "weight(step)"), ()
        used = tuple(self._used("schedule", ref) for ref in self._schedules(name))
        # the schedule of a term's own weight is told before that of the weight of all losses between logits
        first, *own = _factors(factor)
        bases = [number(first.base), *(number(each.base) for each in own if each.base != 1)]
        return " * ".join([*bases, *(each.call("progress") for each in used)]), used

    def _schedules(self, name: str) -> list[ComponentRef]:
        """The schedules of a term's weight."""
        config = self._distillation()
        if config is None:
            return []
        found = [config.hard_label_weight_scheduler] if name == LABEL_TERM else []
        if name in self.objective.kd_names:
            found = [self._kd_config(name).weight_scheduler, config.kd_loss_weight_scheduler]
        return [ref for ref in found if ref is not None]

    def _kd_config(self, name: str) -> KDLoss:
        """What the config says of a loss between logits."""
        losses: tuple[KDLoss, ...] = self._distillation().kd_losses
        return losses[self.objective.kd_names.index(name)]

    def _kd(self, name: str, heard: _Heard, watching: _Watching) -> dict[str, Any]:
        config, (student, teacher) = self._distillation(), heard.read[name]
        used = [self._used("loss", self._kd_config(name).loss)]
        temperature = number(config.temperature)
        if config.temperature_scheduler is not None:
            used.append(self._used("temperature scheduler", config.temperature_scheduler))
            temperature = used[-1].call(temperature)
        taught = self._taught(teacher, watching)
        if self.objective.kd is not None and self.objective.kd.correction is not None:
            taught = self.objective.kd.correction.call(taught, f"{self.own}.labels")
        reads = [_read(self.own, student, "logits"), *(_read(n, f, "logits") for n, f in _giving(watching.teachers))]
        return {
            "expression": used[0].call(f"{self.own}.logits", taught, T=temperature),
            "reads": (*reads, *_masks(self.own, student, "logits", "logits_mask")),
            "used": tuple(used),
            "temperature": float(config.temperature),
        }

    def _taught(self, teacher: Features, watching: _Watching) -> str:
        """The teacher's logits: one teacher's own, or what the strategy makes of those of several."""
        giving = _giving(watching.teachers)
        own = [name for name, features in giving if features is teacher]
        if len(giving) == 1 and all(map(_alike, giving[0][1]["logits"], teacher["logits"])):  # a mean of one
            own = [giving[0][0]]
        return f"{own[0]}.logits" if own else self.strategy_used.call(*(f"{name}.logits" for name, _ in giving))

    def _match(self, name: str, heard: _Heard, watching: _Watching) -> dict[str, Any]:
        match, (student, teacher) = heard.matches[name], heard.read[name]
        config = match.written
        assert config is not None  # a run's matches are those of its config
        owner = match.teacher or next(iter(watching.teachers))
        loss, own = self._used("loss", config.loss), _place(self.own, match.sources[0])
        used, expression, projected = [loss], own, None
        if config.proj is not None and match.projection is not None:
            used.append(self._used("projection", config.proj))
            width, to = heard.widths[name]
            expression = f"{used[-1].call(own)[:-1]}: {width} -> {to})"
            projected = Projected(width, to, _parameters(match.projection), match.group)
        reads = [_read(self.own, student, *_source(each)) for each in match.sources[0].each]
        reads += [_read(owner, teacher, *_source(each)) for each in match.sources[1].each]
        return {
            "expression": loss.call(expression, _place(owner, match.sources[1])),
            "reads": (*reads, *_masks(self.own, student, match.sources[0].feature, "inputs_mask")),
            "used": tuple(used),
            "projection": projected,
        }

    def _labels(self, name: str, heard: _Heard, watching: _Watching) -> dict[str, Any]:
        del name, heard
        read = _read(self.own, watching.student, "losses")
        return {"expression": f"sum({read.name})", "reads": (read,), "used": ()}

    def _other(self, name: str, heard: _Heard, watching: _Watching) -> dict[str, Any]:
        """A term of the strategy's own: what it reads beside the objective's terms."""
        del heard
        told, plain = self.strategy.needs(Objective(None)), Objective(None).needs()
        reads = _further(self.own, watching.student, told.student, plain.student)
        for teacher, features in watching.teachers.items():
            reads += _further(teacher, features, told.teacher(teacher), plain.every_teacher)
        return {"expression": name, "reads": tuple(reads), "used": (self.strategy_used,)}

    def _absent(self, name: str, weights: Sequence[float], watching: _Watching) -> str:
        """Why a term that has a weight is not among those of a batch."""
        match = dict(self.objective.matches).get(name)
        if not any(weights):
            return "its weight is 0"
        if isinstance(match, MatchTerm) and match.teacher not in (None, *watching.teachers):
            return f"its teacher {match.teacher} is not asked here"
        if name == LABEL_TERM and not watching.student.get("losses"):
            return f"the adaptor of {self.own} returns no losses"
        return f"the strategy {self.strategy_used.name} gives no such term for this batch"

    def _teachers(self) -> Iterator[ExplainedTeacher]:
        if not isinstance(self.config, DistillStage):
            return
        for name, ref in named_teachers(self.config).items():
            adaptor = self._used("adaptor", ref.adaptor or self.config.adaptors.teacher)
            yield ExplainedTeacher(name, ref.weight, ref.task or "", (self._model(ref.model), adaptor))

    def _distillation(self) -> Any:
        return self.config.distillation if isinstance(self.config, DistillStage) else None

    def _model(self, name: str) -> Used:
        return self._used("model", self.assembly.config.models[name])

    def _used(self, role: str, ref: ComponentRef) -> Used:
        return used(self.assembly.registry, role, ref)


class _Heard:
    """What the terms of an objective were given, by their names, while a stack is open."""

    def __init__(self, objective: Objective, stack: ExitStack) -> None:
        self.read: dict[str, tuple[Features, Features]] = {}
        self.widths: dict[str, tuple[int, int]] = {}
        self.matches = {name: match for name, match in objective.matches.items() if isinstance(match, MatchTerm)}
        if objective.kd is not None:
            stack.callback(objective.kd.register_forward_pre_hook(self._reading(*objective.kd_names)).remove)
        for name, term in self.matches.items():
            stack.callback(term.register_forward_pre_hook(self._reading(name)).remove)
        for name, match in self.matches.items():
            if match.projection is not None:
                stack.callback(match.projection.register_forward_hook(self._projecting(name)).remove)

    def _reading(self, *names: str) -> Any:
        def heard(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.read.update(dict.fromkeys(names, arguments[:2]))

        return heard

    def _projecting(self, name: str) -> Any:
        def heard(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            self.widths[name] = (int(arguments[0].shape[-1]), int(output.shape[-1]))

        return heard


def used(registry: Registry, role: str, ref: ComponentRef) -> Used:
    """A component that a config names, with all of its options."""
    component = registry.get(ref.kind, ref.name)
    options = registry.check(ref.kind, ref.name, ref.options, ref.positional)
    defaults = {option.name: option.default for option in component.signature.options}
    changed = {name: value for name, value in options.items() if value != defaults[name]}
    return Used(role, ref.name, options, str(component.provenance), changed)


def _factors(weight: Weight) -> list[Weight]:
    """The factors of which a weight is the product."""
    return [weight] if weight.times is None else [weight, *_factors(weight.times)]


def _read(owner: str, features: Features, name: str, layers: Sequence[int] | None = None) -> Read:
    found = features[name]
    picked = found if layers is None else tuple(found[layer] for layer in layers)
    return Read(_named(owner, name, layers), features.axes(name), tuple(tuple(t.shape) for t in picked))


def _named(owner: str, feature: str, layers: Sequence[int] | None) -> str:
    """`student.hidden[2]`."""
    where = "" if layers is None else f"[{', '.join(map(str, layers))}]"
    return f"{owner}.{feature.removeprefix(PREFIX)}{where}"


def _source(source: Source) -> tuple[str, Sequence[int] | None]:
    layers = source.layers
    return source.feature, layers if isinstance(layers, tuple) or layers is None else (layers,)


def _place(owner: str, source: Source) -> str:
    """What a side of a match reads, in brackets where it is several features."""
    places = [_named(owner, *_source(each)) for each in source.each]
    return places[0] if len(places) == 1 else f"({', '.join(places)})"


def _further(owner: str, features: Features, told: Collection[str], plain: Collection[str]) -> list[Read]:
    """What is read beside the features that always are, as far as there is any."""
    names = sorted((features_read(told) - features_read(plain)) & set(features))
    layers = {name: layers_read(told, name) for name in names}
    return [_read(owner, features, name, None if (n := layers[name]) is None else sorted(n)) for name in names]


def _masks(owner: str, features: Features, feature: str, mask: str) -> list[Read]:
    """The mask of a feature, where it has one."""
    return [_read(owner, features, mask)] if features.get(mask) and "L" in features.axes(feature).split() else []


def _giving(teachers: Mapping[str, Features]) -> list[tuple[str, Features]]:
    return [(name, features) for name, features in teachers.items() if features.get("logits")]


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other)


def _parameters(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


def _rows(batch: Any) -> int:
    return len(next(iter(model_inputs(batch).values())))
