"""How a script trains, as a run config says it: duration, batches, optimizer, schedule, clipping."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from brewer_core.migration.bindings import dotted
from brewer_core.migration.names import TRAIN_ARGUMENTS
from brewer_core.migration.uses import TrainUse, Uses, is_given
from brewer_core.migration.values import Unknown

REPLACE = "REPLACE: "
"""How a text begins that stands for what the script does not tell."""

_WITHOUT_COUNTERPART = {
    "callback": "`evaluation` says what is measured, and when",
    **dict.fromkeys(
        ("batch_postprocessor", "batch_postprocessors"), "a run makes its batches itself; an adaptor reads them"
    ),
}
_DECAYS = {"AdamW": 0.01, "Adam": 0.0, "SGD": 0.0}
"""Optimizers of torch.optim, each with what it decays where the script does not say."""
_SCHEDULES = {
    "get_constant_schedule": "constant",
    "get_constant_schedule_with_warmup": "constant",
    "get_linear_schedule_with_warmup": "linear",
    "get_cosine_schedule_with_warmup": "cosine",
}
_KNOWN = {name for order in TRAIN_ARGUMENTS.values() for name in order}
_SCHEDULE_ARGUMENTS = ("optimizer", "num_warmup_steps", "num_training_steps")


def replace(text: str) -> str:
    """A text in place of what the script does not tell. text: what belongs there."""
    return f"{REPLACE}{text}"


def written(value: Any) -> Any:
    """A value as JSON, with the text of what is not known in its place."""
    if isinstance(value, Unknown):
        return replace(value.text)
    if isinstance(value, Mapping):
        return {key: written(inner) for key, inner in value.items()}
    return list(map(written, value)) if isinstance(value, list) else value


class Training:
    """Reads the `training` of a stage off a call of `train`. left_out: what has no counterpart in it."""

    def __init__(self, uses: Uses, train: TrainUse | None) -> None:
        self._uses = uses
        self._is_whole = train is not None and not train.unread
        self._loaders = train.loaders if train is not None else None
        self._arguments: Mapping[str, ast.expr] = train.arguments if train is not None else {}
        self.left_out = [
            f"{name}={ast.unparse(node)}: {_WITHOUT_COUNTERPART.get(name, 'runs pass no further arguments to models')}"
            for name, node in self._arguments.items()
            if is_given(node) and (name in _WITHOUT_COUNTERPART or name not in _KNOWN)
        ]

    def section(self) -> dict[str, Any]:
        """The section, without what a TrainingConfig holds."""
        return {
            **self._duration(),
            "batch_size": self._batch_size(),
            "optimizer": self._optimizer(),
            "schedule": self._schedule(),
            "max_grad_norm": self._max_grad_norm(),
            "loss_normalization": "micro_batch",  # TextBrewer's mean of means
            "group_by_length": False,  # the loader's own order
        }

    def _value(self, node: ast.expr) -> Any:
        return written(self._uses.values.of(node))

    def _made(self, node: ast.expr | None) -> tuple[str, ast.Call | None]:
        """The name of what is called to make an object, and the call; None where the text does not tell."""
        made = self._uses.bindings.definition(node) if node is not None else None
        return (self._name(made.func), made) if isinstance(made, ast.Call) else ("", None)

    def _name(self, node: ast.expr) -> str:
        return next(iter(self._uses.bindings.origins(node)), dotted(node) or ast.unparse(node))

    def _duration(self) -> dict[str, Any]:
        key = "steps" if is_given(self._arguments.get("num_steps")) else "epochs"
        node = self._arguments.get(f"num_{key}")
        count = self._value(node) if node is not None and is_given(node) else replace("passes over the rows")
        return {key: int(count) if isinstance(count, float) else count}  # as in TextBrewer, 3.0 is 3

    def _batch_size(self) -> Any:
        """That of the loader, or of all of them where they have the same."""
        several = self._uses.bindings.entries(self._loaders) if self._loaders is not None else None
        sizes = []
        for loader in [self._loaders] if several is None else several.values():
            name, made = self._made(loader)
            given = self._uses.arguments(made, ("dataset", "batch_size"))[0] if made is not None else {}
            size = given.get("batch_size") if name.endswith("DataLoader") else None
            sizes.append(replace("rows in one batch") if size is None else self._value(size))
        return sizes[0] if sizes.count(sizes[0]) == len(sizes) else replace("rows in one batch")

    def _max_grad_norm(self) -> Any:
        node = self._arguments.get("max_grad_norm")
        if node is None:
            return None if self._is_whole else replace("the largest norm of the gradients, or null for no clipping")
        norm = self._value(node)
        return None if isinstance(norm, (int, float)) and norm <= 0 else norm

    def _optimizer(self) -> dict[str, Any]:
        name, made = self._made(self._arguments.get("optimizer"))
        kind, rate = name.rpartition(".")[2], replace("the optimizer's learning rate")
        if made is None or kind not in _DECAYS:
            found = f" in place of {name}" if name else ""
            return {"name": replace(f"adamw, adam or sgd{found}"), "learning_rate": rate}
        given, unread = self._uses.arguments(made, ("params", "lr"))
        defaults = {"lr": 1e-3, "weight_decay": 0.0 if name.startswith("transformers") else _DECAYS[kind]}
        values: dict[str, Any] = dict.fromkeys(defaults, replace("a setting of the optimizer")) if unread else defaults
        values |= {key: self._value(node) for key, node in given.items()}
        keys = {"lr": "learning_rate", "weight_decay": "weight_decay", "momentum": "momentum"}
        others = ", ".join(f"{name}={ast.unparse(given[name])}" for name in given if name not in ("params", *keys))
        self.left_out += [f"{others} of the optimizer: runs take torch's defaults"] if others else []
        self.left_out.append("the optimizer's groups: runs decay all but biases and norms, at one learning rate")
        return {"name": kind.lower(), **{keys[key]: value for key, value in values.items() if key in keys}}

    def _schedule(self) -> dict[str, Any]:
        built, maker = self._arguments.get("scheduler"), self._arguments.get("scheduler_class")
        node = self._arguments.get("scheduler_args")
        given = self._uses.bindings.entries(node) if node is not None else None
        name = self._name(maker) if maker is not None and is_given(maker) else ""
        if built is not None and is_given(built):
            name, made = self._made(built)
            given = self._uses.arguments(made, _SCHEDULE_ARGUMENTS)[0] if made is not None else None
            name = name or ast.unparse(built)
        elif not name and self._is_whole:
            return {"name": "constant", "warmup": 0}
        kind = name.rpartition(".")[2]
        if kind not in _SCHEDULES:
            choices = f"constant, linear, cosine or one_cycle in place of {name or 'what the script has'}"
            return {"name": replace(choices), "warmup": replace("share of the steps")}
        return {"name": _SCHEDULES[kind], "warmup": 0 if kind == "get_constant_schedule" else self._warmup(given or {})}

    def _warmup(self, given: Mapping[str, ast.expr]) -> Any:
        """The share of the steps, where the script has both numbers."""
        keys = ("num_warmup_steps", "num_training_steps")
        warm, steps = (self._uses.values.of(given[key]) if key in given else None for key in keys)
        if warm == 0 and not isinstance(warm, bool):
            return 0
        if isinstance(warm, (int, float)) and isinstance(steps, (int, float)) and 0 <= warm < steps:
            return round(warm / steps, 6)
        return replace("share of the steps over which the rate rises")
