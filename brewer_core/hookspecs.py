"""The hooks through which plugins provide components: one a kind, without arguments, each returning name -> implementation.

A plugin is a module (or an object) whose functions carry `@hookimpl`, named by an entry point in the group `brewer`:

    [project.entry-points.brewer]
    pkd = "brewer_loss_pkd"

Hooks are pure and quick: they are called once, when a registry is built, and return implementations without building them.
Options are keyword-only parameters with annotations; pydantic validates them, and `Annotated[..., Field(...)]` adds bounds
and a description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from brewer_core.objective import Balancer
    from brewer_core.protocols import (
        AdaptorType,
        Augmentation,
        DatasetBuilder,
        KDLoss,
        MatchLoss,
        Metric,
        ModelBuilder,
        Projection,
        Strategy,
        TemperatureScheduler,
        Tracker,
        WeightScheduler,
    )

NAMESPACE: Final = "brewer"
"""The pluggy project name, and the entry-point group of plugins."""

hookspec: Final = pluggy.HookspecMarker(NAMESPACE)
hookimpl: Final = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def brewer_kd_losses() -> Mapping[str, KDLoss]:  # type: ignore[empty-body]  # a specification has no body
    """Provide losses between the logits of student and teacher.

    Called with (student_logits [N, V], teacher_logits [N, V], temperature: float or Tensor [N]); may name `mask`, `labels`,
    `progress`. With `mask` the logits come whole, [B, L, V], and the mask as bool [B, L]. Returns a scalar mean.
    Declared `@component(sparse=True)`, teacher_logits may be `SparseLogits`: those of which a cache keeps some classes.
    A stateful loss is an `nn.Module` class: options in `__init__`, inputs in `forward`.

    Example:
        The whole of a plugin::

            def logit_l1(student_logits, teacher_logits, temperature, *, scale: float = 1.0):
                '''Mean absolute difference of the softened logits.'''
                return scale * ((student_logits - teacher_logits.detach()) / temperature).abs().mean()

            @hookimpl
            def brewer_kd_losses():
                return {"logit_l1": logit_l1}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_match_losses() -> Mapping[str, MatchLoss]:  # type: ignore[empty-body]  # a specification has no body
    """Provide losses between intermediate features of student and teacher.

    Called with (student, teacher, mask [B, L] bool or None), where student and teacher are tensors of a layer, pairs of
    tensors of two layers, or tuples of those of several features; may name `teacher_mask`, `labels`, `progress`. A class may
    name `student_dim`, `teacher_dim` in `__init__`. Returns a scalar mean over what `@component(over=...)` says.

    Example:
        The whole of a plugin::

            @component(over="tokens")
            def hidden_l1(student, teacher, mask=None):
                '''Mean absolute difference of hidden states over valid tokens.'''
                if student.shape != teacher.shape:
                    raise ShapeError("give the match a projection")
                difference = (student - teacher.detach()).abs().mean(-1)
                valid = difference if mask is None else difference[mask]
                return valid.sum() / max(valid.numel(), 1)

            @hookimpl
            def brewer_match_losses():
                return {"hidden_l1": hidden_l1}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_projections() -> Mapping[str, Projection]:  # type: ignore[empty-body]  # a specification has no body
    """Provide modules that bring the student's width to the teacher's.

    Called with (dim_in, dim_out), the last axis of student and teacher. Returns an `nn.Module` that is trained with the student.

    Example:
        The whole of a plugin::

            def bottleneck(dim_in, dim_out, *, rank: Annotated[int, Field(gt=0)] = 16):
                '''Two linear layers with a narrow middle.'''
                return nn.Sequential(nn.Linear(dim_in, rank), nn.Linear(rank, dim_out))

            @hookimpl
            def brewer_projections():
                return {"bottleneck": bottleneck}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_weight_schedulers() -> Mapping[str, WeightScheduler]:  # type: ignore[empty-body]  # a specification has no body
    """Provide factors of a term's weight over a run.

    Called with (progress in [0, 1]); may name `step`, `total_steps`. Returns a float that multiplies the configured weight.

    Example:
        The whole of a plugin::

            def square_growth(progress):
                '''Grow from 0 to 1 with the square of the progress.'''
                return progress**2

            @hookimpl
            def brewer_weight_schedulers():
                return {"square_growth": square_growth}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_temperature_schedulers() -> Mapping[str, TemperatureScheduler]:  # type: ignore[empty-body]  # a specification has no body
    """Provide temperatures that follow the logits or the progress.

    Called with (student_logits, teacher_logits, base_temperature), all detached; may name `progress`, `mask`. Returns a float,
    or a Tensor [N] with a temperature for each position.
    Declared `@component(sparse=True)`, teacher_logits may be `SparseLogits`: those of which a cache keeps some classes.

    Example:
        The whole of a plugin::

            def annealed(student_logits, teacher_logits, base_temperature, *, progress):
                '''Fall from the base temperature to 1.'''
                return 1 + (base_temperature - 1) * (1 - progress)

            @hookimpl
            def brewer_temperature_schedulers():
                return {"annealed": annealed}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_adaptors() -> Mapping[str, AdaptorType]:  # type: ignore[empty-body]  # a specification has no body
    """Provide adaptors, which turn a batch and a model's outputs into features.

    Called with (batch, model_outputs); may name `role`, "teacher" or "student". Returns `Features` or a mapping of them. A class
    with `counts(batch)` lets `loss_normalization = "step"` weigh micro-batches exactly.

    Example:
        The whole of a plugin::

            class Tagger:
                '''Logits and mask of a token tagger.'''

                def __call__(self, batch, model_outputs):
                    return {"logits": model_outputs.logits, "logits_mask": batch["attention_mask"]}

                def counts(self, batch):
                    rows, tokens = len(batch["input_ids"]), int(batch["attention_mask"].sum())
                    return Counts(rows, tokens, tokens**2 / rows, tokens, tokens)

            @hookimpl
            def brewer_adaptors():
                return {"tagger": Tagger}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_strategies() -> Mapping[str, type[Strategy]]:  # type: ignore[empty-body]  # a specification has no body
    """Provide strategies: who teaches what, batch by batch.

    A subclass of `brewer_core.Strategy`, built once a stage with its options.

    Example:
        The whole of a plugin::

            class LabelsOnly(Strategy):
                '''Learn from the labels and ask no teacher.'''

                def teachers_for(self, task, teachers):
                    return ()

                def terms(self, task, student, teachers, objective, step):
                    return objective.label_terms(student)

            @hookimpl
            def brewer_strategies():
                return {"labels_only": LabelsOnly}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_models() -> Mapping[str, ModelBuilder]:  # type: ignore[empty-body]  # a specification has no body
    """Provide models that a run config can name.

    Called by keyword with those it names of `role`, `task`, `teacher`, `tokenizer`, `num_labels`, `seed`,
    `base_dir`, `sample`. `sample` is None, or gives rows to look at: `sample(256)` is a sequence of batches of 256 rows of the data
    that the model will be trained on, drawn from the run's seed, never of those that models are evaluated on; each is a mapping of
    what models take, `input_ids` and the like, [B, L], on the CPU. Returns a `LoadedModel`.

    Example:
        The whole of a plugin::

            def tiny(*, role, task, teacher=None, num_labels, seed, hidden: int = 32):
                '''A two-layer bag of words.'''
                model = BagOfWords(hidden, num_labels)
                return LoadedModel(model, None, save=lambda folder: torch.save(model.state_dict(), folder / "model.pt"))

            @hookimpl
            def brewer_models():
                return {"tiny": tiny}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_datasets() -> Mapping[str, DatasetBuilder]:  # type: ignore[empty-body]  # a specification has no body
    """Provide sources of data that a run config can name.

    Called by keyword with those it names of `task`, `seed`, `base_dir`. Returns a mapping from split (`train`, `eval`, `test`,
    `transfer`) to a sequence of rows, each a mapping from column to value.

    Example:
        The whole of a plugin::

            def squares(*, rows: Annotated[int, Field(gt=0)] = 100):
                '''Numbers, and whether each is a square.'''
                texts = [{"text": str(n), "label": "yes" if math.isqrt(n) ** 2 == n else "no"} for n in range(rows)]
                return {"train": texts[::2], "test": texts[1::2]}

            @hookimpl
            def brewer_datasets():
                return {"squares": squares}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_metrics() -> Mapping[str, Metric]:  # type: ignore[empty-body]  # a specification has no body
    """Provide metrics for evaluation.

    Called with (predictions, references), equally long sequences of class numbers, one for each labelled row; in a language model's
    task of token numbers, one for each token that is to be predicted. May name `losses`, the negative log-likelihood of each reference in
    nats, and `task`. Returns a float, or a mapping of floats. Declared `@component(lower_is_better=True)`, less of it is better.

    Example:
        The whole of a plugin::

            def error_rate(predictions, references):
                '''Share of wrong predictions.'''
                return sum(p != r for p, r in zip(predictions, references)) / len(references)

            @hookimpl
            def brewer_metrics():
                return {"error_rate": error_rate}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_augmentations() -> Mapping[str, Augmentation]:  # type: ignore[empty-body]  # a specification has no body
    """Provide augmentations of a tokenised text.

    Called with (tokens), a list of the tokenizer's tokens without special ones; may name `generator`, a
    `numpy.random.Generator`, from which alone it should draw. Returns a new list of such tokens.

    Example:
        The whole of a plugin::

            def reverse(tokens):
                '''Read the text backwards.'''
                return tokens[::-1]

            @hookimpl
            def brewer_augmentations():
                return {"reverse": reverse}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_balancers() -> Mapping[str, type[Balancer]]:  # type: ignore[empty-body]  # a specification has no body
    """Provide balancers, which weigh the terms of a total against one another.

    A subclass of `brewer_core.Balancer`, built once a stage with (term_names, of those that may have to be weighed) and its
    options. It is an `nn.Module`: its parameters are trained, and they and its buffers are saved.

    Example:
        The whole of a plugin::

            class Mean(Balancer):
                '''The mean of the terms in place of their sum.'''

                def forward(self, losses, step):
                    share = torch.tensor(1 / max(len(losses), 1))
                    return Balance({name: share.to(loss.device) for name, loss in losses.items()}, {})

            @hookimpl
            def brewer_balancers():
                return {"mean": Mean}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """


@hookspec
def brewer_trackers() -> Mapping[str, type[Tracker]]:  # type: ignore[empty-body]  # a specification has no body
    """Provide trackers, which receive a run's figures.

    A class built with (run_dir: Path, stage: str) and its options, that has `log(step, values)` and `close()`. With `flush()` and
    `resume(step)` a run that is taken up again has each step once: `flush` is called before a checkpoint is written, and
    `resume` before anything is logged, to drop what was logged after the step of the checkpoint.

    Example:
        The whole of a plugin::

            class Printer:
                '''Print every figure.'''

                def __init__(self, run_dir, stage, *, digits: int = 3):
                    self.stage, self.digits = stage, digits

                def log(self, step, values):
                    print(self.stage, step, {name: round(value, self.digits) for name, value in values.items()})

                def close(self):
                    print(self.stage, "done")

            @hookimpl
            def brewer_trackers():
                return {"printer": Printer}

    Returns:
        A mapping from the name that configs use, an identifier, to the implementation.

    Added in 0.1.
    """
