"""What a match can name inside a model: its short names and the paths of its modules, with shapes from one dummy forward pass.

Shapes: B rows, L tokens, M tokens of a decoder, H heads, D width, C classes, V vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brewer_core.architectures import anatomy_of
from brewer_core.captures import capturing
from brewer_core.errors import MissingExtraError, RequestError
from brewer_core.features import Features

ROWS, TOKENS, DECODED = 2, 7, 5
"""Of the dummy forward pass; few, and unlike one another, so that an axis is known by its size."""

_MOST_PARAMETERS = 1_000_000_000
"""Of a model that is made with memory for its weights, 4 GB of them, because it cannot run without."""


@dataclass(frozen=True)
class ListedFeature:
    """A short name. shapes: of each layer; of the only tensor where it has no layers."""

    name: str
    in_layers: bool
    axes: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ListedModule:
    """A module that ran. returned: the shapes of what it returned, by the keys that lead to them; "" for a single tensor."""

    path: str
    kind: str
    returned: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Inside:
    """What is inside a model.

    decodes: whether it was given tokens for its decoder. reason: why no short name is known, where none is.
    """

    model: str
    features: tuple[ListedFeature, ...]
    modules: tuple[ListedModule, ...]
    decodes: bool
    reason: str = ""


def look_inside(folder: Path) -> Inside:
    """What the model of a folder has inside: built from its config alone, and run once on two rows.

    Weights are not read; where the model can, it runs without any memory for them. Code that comes with a model is never run.
    Raises RequestError for one that transformers cannot make or run.
    """
    config, make = _told(folder)
    problems: list[Exception] = []
    found = _tried(make, config, "meta", problems) or _tried(make, config, "cpu", problems)
    if found is not None:
        return found
    raise RequestError(
        f"{folder}: its {config.model_type} model cannot be run on {ROWS} texts of {TOKENS} tokens ({_line(problems[-1])}); its features "
        "cannot be listed."
    ) from problems[-1]


def _tried(make: Callable[[Any], Any], config: Any, device: str, problems: list[Exception]) -> Inside | None:
    """What the model has inside, made on a device and run in whichever form it takes; None where none goes, and why joins the problems.

    Raises RequestError for one that runs in none on the device without memory and is too large for another.
    """
    try:
        model = _made(make, config, device)
        for masked, decoded in itertools.product((False, True), (True, False) if _decodes(model) else (False,)):
            found = _run_so(model, device, masked, decoded, problems)
            if found is not None:
                return found
    except Exception as error:  # whatever a class raises that is made of a config which is none of its own
        problems.append(error)
        return None
    count = sum(parameter.numel() for parameter in model.parameters())
    if device == "meta" and count > _MOST_PARAMETERS:
        raise RequestError(
            f"the {type(model).__name__} of {count:,} parameters cannot be run without memory for its weights ({_line(problems[-1])}), and "
            f"only one of {_MOST_PARAMETERS:,} at most is made with them; name a folder with a smaller model of its kind."
        ) from problems[-1]
    return None


def _run_so(model: Any, device: str, masked: bool, decoded: bool, problems: list[Exception]) -> Inside | None:
    try:
        return _looked(model, device, masked, decoded)
    except Exception as error:  # whatever a model raises that wants other inputs, or looks at their values
        problems.append(error)
        return None


def _decodes(model: Any) -> bool:
    """Whether a model takes tokens for a decoder; the encoder of such a model does not, and would swallow them."""
    return "decoder_input_ids" in inspect.signature(model.forward).parameters


def _told(folder: Path) -> tuple[Any, Callable[[Any], Any]]:
    """The config of a folder's model, and what makes the model of it: the class that it was saved as, else its body's."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "the features of a model need transformers; install it with: pip install 'brewer-core[hf]'"
        ) from error
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # of any library, for a folder of any age
            raise RequestError(f"{folder} holds no model that transformers knows ({_line(error)}).") from error
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    # the file may hold any name of the library's
    models = [each for each in named if isinstance(each, type) and issubclass(each, transformers.PreTrainedModel)]
    return config, models[0] if models else transformers.AutoModel.from_config


def _made(make: Callable[[Any], Any], config: Any, device: str) -> Any:
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"  # the others look at which tokens go to which expert
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0  # classifiers of decoders look for it
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0  # and those of encoder-decoders for this
    with _quiet(), torch.device(device), torch.random.fork_rng(devices=[]):
        return make(config).eval()


def _looked(model: Any, device: str, masked: bool, decoded: bool) -> Inside:
    anatomy = anatomy_of(model)
    returned: dict[str, Mapping[str, tuple[int, ...]]] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, path=path: returned.update({path: dict(_shapes(output))}))
        for path, module in model.named_modules()
        if path
    ]
    try:
        with _quiet(), torch.no_grad(), capturing(model, list(anatomy.features), "model") as capture:
            outputs = model(**_inputs(model.config, device, masked, decoded))
    finally:
        for handle in handles:
            handle.remove()
    logits = getattr(outputs, "logits", None)
    found = capture.added_to(Features.of({} if logits is None else {"logits": logits}))
    features = [_listed(name, found, anatomy.features) for name in ["logits", *anatomy.features] if found.get(name)]
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    modules = [ListedModule(path, kinds[path], returned[path]) for path in kinds if returned.get(path)]
    return Inside(type(model).__name__, tuple(features), tuple(modules), decoded, anatomy.reason)


def _inputs(config: Any, device: str, masked: bool, decoded: bool) -> dict[str, Tensor]:
    made = {"input_ids": torch.full((ROWS, TOKENS), 3, device=device)}
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < getattr(config, "vocab_size", 0) and device != "meta":
        made["input_ids"][:, -1] = end  # classifiers of encoder-decoders look for it
    made |= {"attention_mask": torch.ones_like(made["input_ids"])} if masked else {}
    return made | ({"decoder_input_ids": torch.full((ROWS, DECODED), 3, device=device)} if decoded else {})


def _listed(name: str, found: Features, known: Mapping[str, Any]) -> ListedFeature:
    shapes = tuple(tuple(tensor.shape) for tensor in found[name])
    return ListedFeature(name, name in known and known[name].in_layers, found.axes(name), shapes)


def _shapes(output: Any, path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shapes of the tensors in an output, by the keys that lead to them as a path has them: `[0]`, `[logits]`."""
    if isinstance(output, Tensor):
        yield path, tuple(output.shape)
        return
    if isinstance(output, (list, tuple)):
        output = dict(enumerate(output))
    if isinstance(output, Mapping):
        for key, inner in output.items():
            yield from _shapes(inner, f"{path}[{key}]")


def _line(error: Exception) -> str:
    """What a library said, on one line and not for long."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


@contextmanager
def _quiet() -> Iterator[None]:
    """No reports of transformers, whose settings are put back afterwards; nor warnings of what a dummy pass meets."""
    import warnings

    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # not typed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
