"""What a run was made with: versions, plugins, seed, code and device."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from brewer_core.components import Component
from brewer_core.config import RunConfig
from brewer_core.config.refs import component_refs
from brewer_core.registry import Registry

_LIBRARIES = ("brewer-core", "torch", "transformers", "tokenizers", "datasets", "pydantic", "pluggy", "numpy")


def manifest(config: RunConfig, registry: Registry, device: torch.device, files: Mapping[str, str]) -> dict[str, Any]:
    """The manifest of a run that starts now. files: hashes of the single-file plugins by name."""
    return {
        "status": "running",
        "started": now(),
        "finished": None,
        "seed": config.seed,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name))},
        "git": _git_commit(),
        "plugins": [{**asdict(p.provenance), "status": p.status, "error": p.error} for p in registry.plugins],
        "plugin_files": dict(files),
        "components": [_described(component) for component in _used(config, registry)],
    }


def made_with(config: RunConfig, registry: Registry) -> dict[str, str]:
    """The versions of the distributions whose components a config names; plugins in single files have none."""
    origins = (component.provenance for component in _used(config, registry))
    return {origin.distribution: origin.version for origin in origins if origin.version}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _used(config: RunConfig, registry: Registry) -> list[Component]:
    return [registry.get(*used) for used in sorted({(ref.kind, ref.name) for ref in component_refs(config)})]


def _described(component: Component) -> dict[str, Any]:
    return {"kind": component.kind.name, "name": component.name, **asdict(component.provenance)}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit that is checked out where the run was started, if that is a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False, cwd=Path.cwd()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
