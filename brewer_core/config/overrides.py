"""`--set path.to.field=value`: settings applied to the JSON of a config before it is validated."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from brewer_core.errors import RequestError

_STEP = re.compile(r"[^.\[\]]+")


def override(document: Any, settings: Sequence[str]) -> Any:
    """A copy of the document with the settings applied in order; keys that are not there are made.

    A value that is no JSON is a string. Raises RequestError where a setting has no `=`, or its path leads through
    something that is neither an object nor a list, or past the end of a list.
    """
    changed = copy.deepcopy(document)
    for setting in settings:
        path, separator, value = setting.partition("=")
        steps = _STEP.findall(path)
        if not separator or not steps:
            raise RequestError(f"--set {setting}: expected path.to.field=value, such as stages.0.training.steps=100.")
        _assign(changed, steps, _value(value), setting)
    return changed


def _assign(document: Any, steps: Sequence[str], value: Any, setting: str) -> None:
    for position, step in enumerate(steps):
        key = _key(document, step, steps[:position], setting)
        if position == len(steps) - 1:
            document[key] = value
        else:
            if isinstance(document, dict):
                document.setdefault(key, {})
            document = document[key]


def _key(document: Any, step: str, before: Sequence[str], setting: str) -> str | int:
    if isinstance(document, dict):
        return step
    where = ".".join(before) or "the config"
    if not isinstance(document, list):
        raise RequestError(f"--set {setting}: {where} is {json.dumps(document)}, which has no {step!r} in it.")
    if not document:
        raise RequestError(f"--set {setting}: {where} is an empty list; give it whole, such as {where}=[...].")
    if not step.isdecimal() or int(step) >= len(document):
        last = len(document) - 1
        raise RequestError(f"--set {setting}: {where} is a list; expected a number from 0 to {last}, not {step!r}.")
    return int(step)


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text


def _no_json(constant: str) -> NoReturn:
    raise ValueError(constant)
