"""How a script trains, as a run config says it: duration, batches, optimizer, schedule, clipping."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from brewer_core.migration.bindings import dotted
from brewer_core.migration.uses import TrainUse, Uses
from brewer_core.migration.values import Unknown, plain

_DECAYS = {"adamw": 0.01, "adam": 0.0, "sgd": 0.0}
"""What torch.optim decays where the script does not say."""

_SCHEDULES = {
    "get_constant_schedule": "constant",
    "get_constant_schedule_with_warmup": "constant",
    "get_linear_schedule_with_warmup": "linear",
    "get_cosine_schedule_with_warmup": "cosine",
}

_OF_PARAMETERS = ("params", "lr", "weight_decay", "momentum")
_NO_COUNTERPARTS = {
    "callback": "`evaluation` says what is measured, and when",
    "batch_postprocessor": "a run makes its batches itself; an adaptor reads them",
    "batch_postprocessors": "a run makes its batches itself; an adaptor reads them",
}
_KNOWN = {
    "optimizer",
    "dataloader",
    "dataloaders",
    "num_epochs",
    "num_steps",
    "scheduler_class",
    "scheduler_args",
    "scheduler",
    "max_grad_norm",
    "tau",
}


class Optimizing:
    """The `training` section of a stage, from a call of `train`. stand_in: makes the text for what the script does not tell."""

    def __init__(self, uses: Uses, train: TrainUse | None, stand_in: Callable[[str], str]) -> None:
        self._uses = uses
        self._arguments = dict(train.arguments) if train is not None else {}
        self._train = train
        self._stand_in = stand_in
        self.left_out: list[str] = []

    def settings(self) -> dict[str, Any]:
        """The section without what a TrainingConfig holds; what has no counterpart joins `left_out`."""
        for name, node in self._arguments.items():
            if name in _NO_COUNTERPARTS and not _is_none(node):
                self.left_out.append(f"{name}={ast.unparse(node)}: {_NO_COUNTERPARTS[name]}")
            elif name not in _KNOWN and name not in _NO_COUNTERPARTS:
                self.left_out.append(f"{name}={ast.unparse(node)}: runs pass no further arguments to models")
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
        return plain(self._uses.values.of(node), lambda unknown: self._stand_in(unknown.text))

    def _duration(self) -> dict[str, Any]:
        steps = self._arguments.get("num_steps")
        if steps is not None and not _is_none(steps):
            return {"steps": _whole(self._value(steps))}
        epochs = self._arguments.get("num_epochs")
        return {"epochs": self._stand_in("passes over the rows") if epochs is None else _whole(self._value(epochs))}

    def _batch_size(self) -> Any:
        node = self._arguments.get("dataloader", self._arguments.get("dataloaders"))
        made = self._uses.defined(node) if node is not None else None
        if isinstance(made, ast.Call) and (dotted(made.func) or "").endswith("DataLoader"):
            named = {keyword.arg: keyword.value for keyword in made.keywords}
            size = named.get("batch_size", made.args[1] if len(made.args) > 1 else None)
            if size is not None:
                return self._value(size)
        return self._stand_in("rows in one batch")

    def _max_grad_norm(self) -> Any:
        if self._train is None:
            return self._stand_in("the largest norm of the gradients, or null for no clipping")
        node = self._arguments.get("max_grad_norm")
        norm = self._value(node) if node is not None else None
        return None if isinstance(norm, (int, float)) and norm <= 0 else norm

    # Optimizer

    def _optimizer(self) -> dict[str, Any]:
        made = self._made("optimizer")
        name = (dotted(made.func) or "").rpartition(".")[2].lower() if made is not None else ""
        if made is None or name not in _DECAYS:
            found = f" in place of {ast.unparse(made.func)}" if made is not None else ""
            return {
                "name": self._stand_in(f"adamw, adam or sgd{found}"),
                "learning_rate": self._stand_in("the optimizer's learning rate"),
            }
        given = {keyword.arg: keyword.value for keyword in made.keywords if keyword.arg}
        rate = given.get("lr", made.args[1] if len(made.args) > 1 else None)
        self._note_optimizer(given)
        written = {"name": name, "learning_rate": 1e-3 if rate is None else self._value(rate)}
        decay = given.get("weight_decay")
        written["weight_decay"] = self._default_decay(made, name) if decay is None else self._value(decay)
        if "momentum" in given:
            written["momentum"] = self._value(given["momentum"])
        return written

    def _default_decay(self, made: ast.Call, name: str) -> float:
        origins = [binding.origin or "" for binding in self._uses.bindings.every(made.func)]
        text = dotted(made.func) or ""
        ours = text.startswith("transformers") or any(origin.startswith("transformers") for origin in origins)
        return 0.0 if ours else _DECAYS[name]

    def _note_optimizer(self, given: dict[str, ast.expr]) -> None:
        others = [f"{name}={ast.unparse(node)}" for name, node in given.items() if name not in _OF_PARAMETERS]
        if others:
            self.left_out.append(f"{', '.join(others)} of the optimizer: runs take torch's defaults")
        self.left_out.append(
            "the optimizer's groups: runs decay every weight but biases and norms, at one learning rate"
        )

    def _made(self, name: str) -> ast.Call | None:
        node = self._arguments.get(name)
        made = self._uses.defined(node) if node is not None else None
        return made if isinstance(made, ast.Call) else None

    # Schedule

    def _schedule(self) -> dict[str, Any]:
        if self._train is None:
            return self._unlike("what the script has")
        made = self._made("scheduler")
        maker = made.func if made is not None else self._arguments.get("scheduler_class")
        if maker is None or _is_none(maker):
            bare = self._arguments.get("scheduler")
            if bare is None or _is_none(bare):
                return {"name": "constant", "warmup": 0}
            return self._unlike(ast.unparse(bare))
        text = dotted(maker) or ast.unparse(maker)
        name = _SCHEDULES.get(text.rpartition(".")[2])
        if name is None:
            return self._unlike(text)
        return {"name": name, "warmup": 0 if text.endswith("get_constant_schedule") else self._warmup(made)}

    def _unlike(self, text: str) -> dict[str, Any]:
        choices = "constant, linear, cosine or one_cycle"
        return {"name": self._stand_in(f"{choices} in place of {text}"), "warmup": self._stand_in("share of the steps")}

    def _warmup(self, made: ast.Call | None) -> Any:
        """The share of the steps, where the script has both numbers."""
        node = self._arguments.get("scheduler_args")
        given = self._uses.values.of(node) if node is not None else {}
        if made is not None:
            given = {keyword.arg: self._uses.values.of(keyword.value) for keyword in made.keywords if keyword.arg}
        if isinstance(given, Unknown):
            return self._stand_in("share of the steps over which the rate rises")
        warm, steps = (given.get(key) for key in ("num_warmup_steps", "num_training_steps"))
        if warm == 0 and not isinstance(warm, bool):
            return 0
        if isinstance(warm, (int, float)) and isinstance(steps, (int, float)) and 0 <= warm < steps:
            return round(warm / steps, 6)
        return self._stand_in("share of the steps over which the rate rises")


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _whole(count: Any) -> Any:
    """What TextBrewer makes of a number of epochs or steps: `3.0` is 3."""
    return int(count) if isinstance(count, float) else count
