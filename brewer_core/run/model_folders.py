"""Where the models of transformers lie: in a folder, in a run's, beside a file of weights, or in an installed distribution."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from brewer_core.errors import RequestError

SUBFOLDERS = ("student", "model")
"""Where a run's folder, or that of a stage, has its model."""

_CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def model_folder(target: str) -> Path:
    """The folder of a Hugging Face model: itself, in a run's folder, beside a file of weights, or in an installed distribution.

    Raises RequestError where there is none.
    """
    path = Path(target)
    if path.is_file():
        path = path.parent
    if path.is_dir():
        for folder in (path, *_below(path)):
            if _is_model(folder / _CONFIG):
                return folder
        raise RequestError(
            f"{target} holds no model of transformers: there is no {_CONFIG} with a model_type in it, nor in its "
            f"{' or '.join(f'{name}/' for name in SUBFOLDERS)}; its features cannot be listed."
        )
    models = folders_of(target)
    if models is None:
        raise RequestError(
            f"{target} is neither a file or folder nor an installed distribution; name a model's folder, a run's, or a distribution "
            "that holds a model."
        )
    if len(models) != 1:
        raise RequestError(
            f"the distribution {target} holds {len(models)} folders with a model of transformers; expected one, so name a folder."
        )
    return models[0]


def folders_of(distribution: str) -> Sequence[Path] | None:
    """The folders with a model, config and weights, that an installed distribution brings along; None where it is not installed."""
    try:
        brought = metadata.files(distribution) or []
    except (metadata.PackageNotFoundError, ValueError):
        return None
    beside = {file.parent for file in brought if file.name.endswith(_WEIGHTS)}
    folders = [Path(str(file.locate())).parent for file in brought if file.name == _CONFIG and file.parent in beside]
    return [folder for folder in folders if _is_model(folder / _CONFIG)]


def _below(folder: Path) -> Iterator[Path]:
    for name in SUBFOLDERS:
        if (folder / name).is_dir():
            yield folder / name
            yield from _below(folder / name)


def _is_model(file: Path) -> bool:
    """Whether a file is a model's config, and not a run's, which bears the same name."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and "model_type" in settings
