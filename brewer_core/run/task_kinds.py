"""The kinds of task, and what a run does differently for each: the one place that decides by it.

What a kind has where the config names nothing, its adaptor and its metrics, stands in `config.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from brewer_core.config.run import DataConfig
from brewer_core.config.tasks import CAUSAL_LM, TEXT_CLASSIFICATION, AnyTask, CausalLMTask
from brewer_core.errors import DataError
from brewer_core.protocols import Task
from brewer_core.run.collating import padding_token
from brewer_core.run.language import LanguageRows
from brewer_core.run.text import ClassifiedRows, RowForm
from brewer_core.run.tokenizers import train_byte_tokenizer, train_tokenizer


class TaskKind(Protocol):
    """What a run does for tasks of one kind.

    has_classes: whether models have a class for each label, and those of several tasks stand side by side.
    needs_padding_token: whether its models must be told of a token for padding.
    """

    has_classes: ClassVar[bool]
    needs_padding_token: ClassVar[bool]

    def task(self, declared: AnyTask) -> Task:
        """What models are to learn, by the config alone; without classes where those are to be read off the data."""
        ...

    def check_columns(self, data: DataConfig, task: Task, where: str, path: str) -> None:
        """Raises DataError where the columns with texts are not those of such a task. path: of the task in the config."""
        ...

    def form(self, declared: AnyTask, labelled: bool) -> RowForm:
        """What rows become. labelled: whether they are learnt themselves, or teachers alone answer them."""
        ...

    def train_tokenizer(self, texts: Sequence[str], vocab_size: int) -> Any:
        """A tokenizer for the texts."""
        ...

    def told(self, task: Task, tokenizer: Any) -> str:
        """What a plan says of a task."""
        ...


class _TextClassification:
    has_classes: ClassVar[bool] = True
    needs_padding_token: ClassVar[bool] = True

    def task(self, declared: AnyTask) -> Task:
        assert not isinstance(declared, CausalLMTask)
        return Task(declared.kind, declared.labels or (), declared.pair)

    def check_columns(self, data: DataConfig, task: Task, where: str, path: str) -> None:
        if isinstance(data.text, tuple) != task.pair:
            need = f"two columns, as {path}.pair is true" if task.pair else f"one column, as {path}.pair is false"
            raise DataError(f"{where}.text: expected {need}.")

    def form(self, declared: AnyTask, labelled: bool) -> RowForm:
        del declared, labelled
        return ClassifiedRows()

    def train_tokenizer(self, texts: Sequence[str], vocab_size: int) -> Any:
        return train_tokenizer(texts, vocab_size)

    def told(self, task: Task, tokenizer: Any) -> str:
        del tokenizer
        return f"{len(task.labels)} classes: {'; '.join(task.labels)}"


class _CausalLM:
    has_classes: ClassVar[bool] = False
    needs_padding_token: ClassVar[bool] = False

    def task(self, declared: AnyTask) -> Task:
        return Task(declared.kind, ())

    def check_columns(self, data: DataConfig, task: Task, where: str, path: str) -> None:
        del data, task, where, path  # one column has texts, two have prompts and responses

    def form(self, declared: AnyTask, labelled: bool) -> RowForm:
        assert isinstance(declared, CausalLMTask)
        return LanguageRows(declared.eos, labelled)

    def train_tokenizer(self, texts: Sequence[str], vocab_size: int) -> Any:
        return train_byte_tokenizer(texts, vocab_size)

    def told(self, task: Task, tokenizer: Any) -> str:
        del task
        token = tokenizer.convert_ids_to_tokens(padding_token(tokenizer))
        own = "" if tokenizer.pad_token_id is not None else "; the tokenizer has no token for padding"
        return f"the next of {len(tokenizer):,} tokens; padded on the right with {token!r}, masked there{own}"


_KINDS: Mapping[str, TaskKind] = {TEXT_CLASSIFICATION: _TextClassification(), CAUSAL_LM: _CausalLM()}


def kind_of(task: AnyTask) -> TaskKind:
    """What a run does for a task of the config."""
    return _KINDS[task.kind]
