"""The arguments of `train`, in the order of TextBrewer's release or in that of its API document."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from brewer_core.migration.bindings import dotted
from brewer_core.migration.naming import Naming

_OLD = ("optimizer", "scheduler", "dataloader", "num_epochs", "num_steps", "callback", "batch_postprocessor")
_OLD_TASKS = ("optimizer", "scheduler", "dataloaders", "num_steps", "tau", "callback", "batch_postprocessors")
_NEW = (
    "optimizer",
    "dataloader",
    "num_epochs",
    "scheduler_class",
    "scheduler_args",
    "scheduler",
    "max_grad_norm",
    "num_steps",
    "callback",
    "batch_postprocessor",
)
_NEW_TASKS = (
    "optimizer",
    "dataloaders",
    "num_steps",
    "scheduler_class",
    "scheduler_args",
    "scheduler",
    "max_grad_norm",
    "tau",
    "callback",
    "batch_postprocessors",
)
ORDERS: Mapping[tuple[bool, bool], Sequence[str]] = {
    (False, False): _NEW,
    (False, True): _OLD,
    (True, False): _NEW_TASKS,
    (True, True): _OLD_TASKS,
}
"""The order of train's arguments: for several tasks or one, in TextBrewer's API document or its release."""


def old_order(call: ast.Call, naming: Naming) -> bool:
    """Whether the scheduler stands where the loader belongs."""
    keywords = {keyword.arg for keyword in call.keywords}
    if len(call.args) < 2 or any(isinstance(argument, ast.Starred) for argument in call.args):
        return False
    second, third = call.args[1], call.args[2] if len(call.args) > 2 else None
    empty = isinstance(second, ast.Constant) and second.value is None
    taken_twice = bool(keywords & {"dataloader", "dataloaders"}) or (third is not None and "num_epochs" in keywords)
    return (
        empty
        or taken_twice
        or _looks(naming, second, "sched", "lr_")
        or (third is not None and _looks(naming, third, "loader", "dataset"))
    )


def _looks(naming: Naming, node: ast.AST, *parts: str) -> bool:
    """Whether a name, or what it is made by, has a word in it."""
    made = [definition.func for definition in naming.definitions(node) if isinstance(definition, ast.Call)]
    texts = [(dotted(n) or "").lower() for n in (node, *made)]
    return any(part in text for part in parts for text in texts)
