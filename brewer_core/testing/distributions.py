"""Fake distributions: real files that an installer would leave, so that a test of a plugin needs no mock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent


def write_distribution(
    folder: Path,
    name: str,
    version: str = "1.0",
    entry_points: Mapping[str, str] | str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write what an installer leaves of a distribution into a folder, and return the folder.

    entry_points: those of the group `brewer` by name, or the whole text of `entry_points.txt`.
    files: the text of the distribution's modules by path.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    if not isinstance(entry_points, str):
        entry_points = "[brewer]\n" + "".join(f"{entry} = {target}\n" for entry, target in entry_points.items())
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(dedent(text), encoding="utf-8")
    return folder
