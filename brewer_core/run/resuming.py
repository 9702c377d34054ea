"""Whether a run may go on in a folder: with the config, the data and the plugin files that it was begun with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brewer_core.errors import ConfigError
from brewer_core.files import sha256_of
from brewer_core.run.assembly import Assembly
from brewer_core.run.text import text_columns

_MAY_DIFFER = ("$schema", "schema_version", "made_with", "output", "resume")
_SHOWN = 8
_ABSENT = "absent"


def check_same_config(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError with each field in which the config that a run was begun with differs from the one of now."""
    known = [{key: value for key, value in each.items() if key not in _MAY_DIFFER} for each in (then, now)]
    _refuse(path, list(_differences("", *known)), "its own config again")


def check_same_data(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError with what `fingerprints` found otherwise when the run was begun."""
    _refuse(path, list(_differences("data.", then, now)), "its own data again")


def check_same_plugin_files(path: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises ConfigError where a single-file plugin is another than the one that the run was begun with, by its hash."""
    _refuse(path, list(_differences("--plugin ", then, now)), "its own plugin files again")


def hashes(files: Sequence[Path]) -> dict[str, str]:
    """The sha256 of files by name."""
    return {file.name: sha256_of(file) for file in files}


def fingerprints(assembly: Assembly) -> dict[str, dict[str, Any]]:
    """The number of rows, and a hash of the columns that are read, of each split of data that a run uses."""
    found = {}
    for name, split in assembly.splits_read():
        data, digest, rows = assembly.config.data[name], hashlib.sha256(), assembly.sources.rows(name, split)
        columns = [*text_columns(data.text), *([data.label] if data.label else [])]
        for row in rows:
            digest.update(json.dumps([row.get(column) for column in columns], default=str).encode())
        found[f"{name}.{split}"] = {"rows": len(rows), "sha256": digest.hexdigest()}
    return found


def _refuse(path: Path, differences: Sequence[str], what: str) -> None:
    if differences:
        more = [f"and {len(differences) - _SHOWN} more"] if len(differences) > _SHOWN else []
        raise ConfigError(
            [*differences[:_SHOWN], *more],
            f"output {path} holds a run that was begun otherwise; give it {what}, or another folder with --output",
        )


def _differences(path: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*then, *now]):
            inner = f"{path}{'.' if path and path[-1] not in '. ' else ''}{key}"
            yield from _differences(inner, then.get(key, _ABSENT), now.get(key, _ABSENT))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _differences(f"{path}[{i}]", old, new)
    elif then != now:
        yield f"{path} was {_shown(then)} when the run was begun, and is {_shown(now)}"


def _shown(value: Any) -> str:
    text = value if value is _ABSENT else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
