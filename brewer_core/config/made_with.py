"""Which versions of plugins a config was made with, compared with those that are installed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from brewer_core.protocols import ComponentLookup

KEY = "made_with"


def missing_plugins(document: Mapping[str, Any], lookup: ComponentLookup | None) -> Iterator[str]:
    """A problem for each distribution that a config was made with and that is not installed."""
    for distribution, version in _made_with(document).items():
        if lookup is not None and distribution not in lookup.versions():
            yield (
                f"{KEY}.{distribution}: the config was made with {distribution} {version}, which is not installed; "
                f"pip install {distribution}=={version}, or take the line out"
            )


def warn_of_other_versions(document: Mapping[str, Any], lookup: ComponentLookup | None, source: str) -> None:
    """Warn of each distribution of which another version is installed than a config was made with."""
    installed = {} if lookup is None else lookup.versions()
    for distribution, version in _made_with(document).items():
        here = installed.get(distribution, version)
        if here != version:
            warnings.warn(
                f"{source} was made with {distribution} {version}, and {here} is installed; results may differ: "
                f"pip install {distribution}=={version} gives the same again.",
                stacklevel=2,
            )


def _made_with(document: Mapping[str, Any]) -> dict[str, str]:
    """Versions by distribution; what is malformed is left to the config's own problems."""
    given = document.get(KEY)
    pairs = given.items() if isinstance(given, Mapping) else ()
    return {str(name): version for name, version in pairs if isinstance(version, str)}
