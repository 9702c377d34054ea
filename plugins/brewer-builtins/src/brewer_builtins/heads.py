"""What a kind of task asks of a Hugging Face model: the class that it is loaded as, its settings, and its vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from brewer_core import LoadedModel, RequestError, Task


class Head(Protocol):
    """What is on top of a model for one kind of task.

    auto: the class of transformers that loads it. words: what it does, as errors tell it. pads: whether the tokenizer must be able to pad.
    """

    auto: str
    words: str
    pads: bool

    def check_task(self, task: Task, num_labels: int) -> None:
        """Raises RequestError where the classes are not as many as the task names."""
        ...

    def settings(self, config: Any, task: Task, num_labels: int) -> Any:
        """A model's config, made fit for the task."""
        ...

    def entries(self, tokenizer: Any, teacher: LoadedModel | None) -> int:
        """The entries of the vocabulary of a model whose weights are drawn."""
        ...

    def check(self, model: Any, tokenizer: Any, source: str) -> None:
        """Raises RequestError where a model cannot do the task with the tokenizer."""
        ...

    def arguments(self, model: Any) -> Mapping[str, Any]:
        """What is added to each call."""
        ...


class _Classifier:
    auto = "AutoModelForSequenceClassification"
    words = "sequence classification"
    pads = True

    def check_task(self, task: Task, num_labels: int) -> None:
        if task.labels and len(task.labels) != num_labels:
            raise RequestError(f"the task names {len(task.labels)} classes, and num_labels is {num_labels}.")

    def settings(self, config: Any, task: Task, num_labels: int) -> Any:
        names = task.labels or tuple(f"LABEL_{i}" for i in range(num_labels))
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        config.problem_type = "single_label_classification"
        return config

    def entries(self, tokenizer: Any, teacher: LoadedModel | None) -> int:
        del teacher
        return len(tokenizer)

    def check(self, model: Any, tokenizer: Any, source: str) -> None:
        del model, tokenizer, source

    def arguments(self, model: Any) -> Mapping[str, Any]:
        del model
        return {}


class _LanguageModel:
    auto = "AutoModelForCausalLM"
    words = "causal language modelling"
    pads = False

    def check_task(self, task: Task, num_labels: int) -> None:
        del task, num_labels

    def settings(self, config: Any, task: Task, num_labels: int) -> Any:
        del task, num_labels
        return config

    def entries(self, tokenizer: Any, teacher: LoadedModel | None) -> int:
        """Those of the teacher where it has more than the tokenizer, so that the two predict the same."""
        of_teacher = getattr(getattr(teacher and teacher.model, "config", None), "vocab_size", 0)
        return max(len(tokenizer), of_teacher or 0)

    def check(self, model: Any, tokenizer: Any, source: str) -> None:
        entries = model.get_input_embeddings().num_embeddings
        if entries < len(tokenizer):
            raise RequestError(
                f"{source} has a vocabulary of {entries} entries, and the run's tokenizer has {len(tokenizer)}; use the tokenizer that the "
                "model was trained with."
            )
        if _sees_what_follows(model):
            raise RequestError(
                f"{source} sees the tokens that it is to predict, as {type(model).__name__} does by default; take a decoder such as "
                'gpt2 or llama, or give "is_decoder": true in `config`.'
            )

    def arguments(self, model: Any) -> Mapping[str, Any]:
        """No keys and values are kept for writing on: nothing is written."""
        return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _sees_what_follows(model: Any) -> bool:
    """Whether another last token changes what a model says of those before it."""
    import torch

    ids = torch.tensor([[0, 1, 2], [0, 1, 0]], device=model.device)
    training, _ = model.training, model.eval()
    try:
        with torch.no_grad():
            one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :2].float()
    finally:
        model.train(training)
    return bool((one - other).abs().max() > 1e-4 * one.abs().max().clamp(min=1))


_HEADS: Mapping[str, Head] = {"text_classification": _Classifier(), "causal_lm": _LanguageModel()}


def head_of(task: Task) -> Head:
    """The head for a task. Raises RequestError for one of another kind."""
    if task.kind not in _HEADS:
        raise RequestError(f"the task {task.kind!r} is not one it knows; it knows {' and '.join(_HEADS)}.")
    return _HEADS[task.kind]
