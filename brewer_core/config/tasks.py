"""The kinds of task that a run may have, each with the components that it takes where the config names none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, Tag

from brewer_core.config.base import Bool, Config, Text
from brewer_core.config.crossrefs import items, keys
from brewer_core.config.refs import ComponentRef

TEXT_CLASSIFICATION, CAUSAL_LM = "text_classification", "causal_lm"


class TextClassificationTask(Config):
    """One class for each text, or for each pair of texts."""

    adaptor: ClassVar[ComponentRef] = ComponentRef("adaptor", TEXT_CLASSIFICATION)
    metrics: ClassVar[tuple[ComponentRef, ...]] = (ComponentRef("metric", "accuracy"),)

    kind: Literal["text_classification"] = "text_classification"
    """The kind of task; this one where absent."""
    labels: tuple[Text, ...] | None = None
    """Names of the classes, in order; read off the labelled training data where absent."""
    pair: Bool = False
    """Whether each row holds two texts."""


def told_apart(schema: dict[str, Any]) -> None:
    """In the JSON Schema of a model that is one of several: its `kind` is required, for it says which."""
    schema["required"] = ["kind", *schema.get("required", [])]


class CausalLMTask(Config):
    """The next token, at each token of a text; of a prompt with its response, at those of the response."""

    model_config = ConfigDict(json_schema_extra=told_apart)

    adaptor: ClassVar[ComponentRef] = ComponentRef("adaptor", CAUSAL_LM)
    metrics: ClassVar[tuple[ComponentRef, ...]] = (ComponentRef("metric", "perplexity"),)

    kind: Literal["causal_lm"] = "causal_lm"
    """The kind of task."""
    eos: Bool | None = None
    """Whether a text ends in the tokenizer's end-of-text token, which is learnt as any; responses alone do where absent."""


def kind(value: Any) -> Any:
    """The kind of a task, of which the discriminator of the union is made: the first where none is given."""
    given = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return TEXT_CLASSIFICATION if given is None else given


AnyTask: TypeAlias = TextClassificationTask | CausalLMTask
TaskConfig = Annotated[
    Annotated[TextClassificationTask, Tag(TEXT_CLASSIFICATION)] | Annotated[CausalLMTask, Tag(CAUSAL_LM)],
    Discriminator(kind),
]


def kind_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """What does not go with the kind of task, one sentence for each problem, with its path. Read off the JSON itself."""
    tasks = [document["tasks"][name] for name in keys(document, "tasks")] or [document.get("task")]
    kinds = [own for own in (TEXT_CLASSIFICATION, CAUSAL_LM) if own in map(kind, tasks)]
    if len(kinds) > 1:
        yield f"tasks: are of the kinds {' and '.join(kinds)}; the tasks of a run are all of one kind"
    elif kinds == [CAUSAL_LM]:
        for name in keys(document, "data"):
            yield from _of_texts_alone(f"data.{name}", document["data"][name])


def _of_texts_alone(path: str, data: Any) -> Iterator[str]:
    if not isinstance(data, Mapping):
        return
    if data.get("label") is not None:
        yield f"{path}.label: a {CAUSAL_LM} task learns the texts themselves, without labels; leave it out"
    if items(data, "augmentations"):
        yield f"{path}.augmentations: a {CAUSAL_LM} task would learn what they make of the texts; leave them out"
