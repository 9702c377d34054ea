"""Scripts, notebooks and JSON configs as syntax trees, and where a line of the tree stands in the file."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brewer_core.config.base import read_json
from brewer_core.errors import RequestError

_EXPECTED = "expected a Python script (.py), a notebook (.ipynb) or a config (.json)"
_JSON_NAMES = "true = True; false = False; null = None; "
"""Put before JSON, whose text is then Python."""


@dataclass(frozen=True)
class Source:
    """A file as a syntax tree.

    starts: of a notebook, the first line of each cell in the tree with the cell's number. skipped: cells that are no Python.
    """

    path: Path
    kind: Literal["script", "notebook", "config"]
    tree: ast.Module
    starts: Sequence[tuple[int, int]] = ()
    skipped: Sequence[int] = ()

    def place(self, line: int) -> tuple[int | None, int]:
        """The cell of a line, None outside notebooks, and the line in it."""
        before = [(start, cell) for start, cell in self.starts if start <= line]
        return (before[-1][1], line - before[-1][0] + 1) if before else (None, line)


def read_source(path: Path) -> Source:
    """The tree of a file. Raises RequestError or ConfigError where it is missing, or not what its ending says."""
    if not path.exists():
        raise RequestError(f"{path}: there is no such file.")
    if path.is_dir():
        raise RequestError(f"{path} is a folder; {_EXPECTED}.")
    ending = path.suffix.lower()
    if ending == ".json":
        return _config(path)
    if ending == ".ipynb":
        return _notebook(path)
    if ending == ".py":
        return Source(path, "script", _parsed(_bytes(path), path))
    raise RequestError(f"{path}: {_EXPECTED}, not {ending or 'a file without an ending'}.")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: the file cannot be read: {error.strerror}.") from error


def _parsed(text: str | bytes, path: Path) -> ast.Module:
    """The tree of Python code. Raises RequestError where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old scripts have escapes that Python warns of
            return ast.parse(text)
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        raise RequestError(f"{path}: this is not Python 3{line}: {error.msg}.") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RequestError(f"{path}: this cannot be read as Python: {error or 'nested too deeply'}.") from error


def _config(path: Path) -> Source:
    """A JSON file as Python, whose tree tells the lines."""
    document = read_json(path)
    if not isinstance(document, Mapping):
        raise RequestError(f"{path}: expected an object with the settings of a config, not {type(document).__name__}.")
    return Source(path, "config", _parsed(f"{_JSON_NAMES}({path.read_text(encoding='utf-8')}\n)", path))


def _notebook(path: Path) -> Source:
    document = read_json(path)
    cells = document.get("cells") if isinstance(document, Mapping) else None
    if not isinstance(cells, list):
        raise RequestError(f'{path}: this is no notebook of format 4; it has no list "cells".')
    lines: list[str] = []
    starts, skipped = [], []
    for number, cell in enumerate(cells, 1):
        code = _code(cell)
        if _is_python(code, path):
            starts.append((len(lines) + 1, number))
            lines += code.split("\n")
        else:
            skipped.append(number)
    return Source(path, "notebook", _parsed("\n".join(lines), path), starts, skipped)


def _code(cell: Any) -> str:
    """The code of a cell, with `pass` in place of magics, line for line; nothing for a cell of text."""
    if not isinstance(cell, Mapping) or cell.get("cell_type") != "code":
        return ""
    source = cell.get("source", "")
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    return "\n".join(map(_without_magic, text.split("\n")))


def _without_magic(line: str) -> str:
    bare = line.strip()
    magic = bare.startswith(("%", "!", "?")) or bare.partition("=")[2].strip().startswith(("%", "!"))
    return f"{line[: len(line) - len(line.lstrip())]}pass" if magic else line


def _is_python(code: str, path: Path) -> bool:
    try:
        _parsed(code, path)
    except RequestError:
        return False
    return True
