"""What code reads and what it writes, told from its bytecode: which attributes, globals and closed-over variables."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from pathlib import PurePath
from typing import Any

_ENTRIES = ("__call__", "forward", "features")
"""The methods by which an adaptor, a model or a teacher is called."""
_MUTATORS = ("append", "appendleft", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update")
_OURS = ("brewer_core", "brewer_builtins")


@functools.cache
def is_local(module: str) -> bool:
    """Whether a module is a script, a notebook or a file of the user's own; what is installed is known by its names."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in _OURS:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(PurePath(file).parts)


@functools.cache
def assigned(kind: Any) -> frozenset[str]:
    """The attributes that the methods of a class that is not installed assign, `__init__` too."""
    local = [each for each in type.mro(kind) if is_local(each.__module__)]
    functions = [member for each in local for member in vars(each).values() if isinstance(member, types.FunctionType)]
    return frozenset().union(*(changed_by(function.__code__) for function in functions))


@functools.cache
def written(kind: Any, called: str = "__call__") -> frozenset[str]:
    """The attributes that a call writes: what the methods assign or add to by which it is called, and those that these name."""
    found: set[str] = set()
    waiting, seen = [*_ENTRIES, called], set[str]()
    while waiting:
        name = waiting.pop()
        member = next((vars(each)[name] for each in type.mro(kind) if name in vars(each)), None)
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if name in seen or not isinstance(function, types.FunctionType):
            continue
        seen.add(name)
        for code in {function.__code__, unwrapped(function).__code__}:
            found |= changed_by(code)
            waiting += names(code)
    return frozenset(found)


@functools.cache
def globals_read(code: types.CodeType) -> frozenset[str]:
    """The globals that a function reads; its attributes may have the same names as others."""
    import dis

    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(own).union(*map(globals_read, inner))


@functools.cache
def changed_by(code: types.CodeType) -> frozenset[str]:
    """The attributes, globals and closed-over variables that a function assigns, or that it adds to, as a list of what it has seen."""
    import dis

    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PUSH_NULL")]
    found = {str(step.argval) for step in steps if step.opname in ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")}
    for step, then in itertools.pairwise(steps):
        loads = step.opname.startswith("LOAD_") and isinstance(step.argval, str)
        if loads and then.opname in ("LOAD_ATTR", "LOAD_METHOD") and then.argval in _MUTATORS:
            found.add(step.argval)
    for held, key, then in zip(steps, steps[1:], steps[2:], strict=False):  # `self.seen[key] = value`
        if (
            then.opname == "STORE_SUBSCR"
            and key.opname.startswith(("LOAD_FAST", "LOAD_CONST"))
            and held.opname == "LOAD_ATTR"
        ):
            found.add(held.argval)
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(found).union(*map(changed_by, inner)) - set(code.co_cellvars)


def unwrapped(function: types.FunctionType) -> types.FunctionType:
    """The function inside decorators that say what they wrap."""
    inner: Any = function
    while isinstance(getattr(inner, "__wrapped__", None), types.FunctionType):
        inner = inner.__wrapped__
    found: types.FunctionType = inner
    return found


def names(code: types.CodeType) -> set[str]:
    """All names that a function uses which are not its own variables."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(names(each) for each in inner))
