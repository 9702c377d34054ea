"""Teachers: whatever answers what a teacher's features for a batch are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from brewer_core.batches import call_model, move_to_device, side, teacher_cache
from brewer_core.captures import PREFIX, Captures, Notices
from brewer_core.depth import Depth
from brewer_core.errors import RequestError
from brewer_core.features import Features
from brewer_core.fingerprints import fingerprint
from brewer_core.modules import all_modules
from brewer_core.precision import autocast
from brewer_core.protocols import Batch


class LiveTeacher:
    """A teacher that is a model: moved to the device if it is elsewhere, run in eval mode without gradient, left as it was found.

    adaptor: its adaptor. arguments: passed to every call of the model. model_inputs: the part of a batch that the
    model takes. position: its place among several teachers, whose outputs a batch may bring along as a list. again: builds the same model
    again, for one that was let go of. owner: whose model it is, for the errors, where a student is asked like a teacher.
    notices: of whoever has the model read elsewhere too.

    decodes_labels, an attribute: whether the model is an encoder-decoder, whose decoder begins with the labels where it is given no
    other inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        adaptor: Callable[..., Any],
        device: torch.device,
        *,
        precision: str = "no",
        arguments: Mapping[str, Any] | None = None,
        model_inputs: Callable[[Batch], Batch] = lambda batch: batch,
        position: int | None = None,
        again: Callable[[], nn.Module] | None = None,
        owner: str = "teacher",
        notices: Notices | None = None,
    ) -> None:
        self._model: nn.Module | None = _moved(model, device)
        self.adaptor = adaptor
        self.device = device
        self.precision = precision
        self.arguments = dict(arguments or {})
        self.model_inputs = model_inputs
        self.position = position
        self._identity = ""
        self._again = again
        self._owner = owner
        self._notices = notices or Notices()
        self._description: dict[str, Any] = {}
        self._captures: dict[frozenset[str], Captures] = {}
        self._depth = Depth(self.model)
        self.decodes_labels = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))

    @property
    def model(self) -> nn.Module:
        """The model; one that was let go of is built again."""
        if self._model is None:
            assert self._again is not None
            self._model = _moved(self._again(), self.device)
            self._depth, self._captures = Depth(self._model), {}
        return self._model

    def release(self) -> None:
        """Let go of the model until it is asked something, where it can be built again."""
        if self._again is not None:
            self._identity = self._identity or self.identity()
            self._description = self.described()
            self._model, self._depth, self._captures = None, Depth(nn.Module()), {}

    def features(self, batch: Batch, needs: frozenset[str]) -> Features:
        """The features of a batch, without gradient; `no_grad`, so that the student's graph may hold them.

        Of `hidden` and `attention` the layers in needs, in their places; and where needs name single layers and no logits, only
        what is in needs, for which the model runs no further than it has to. Without any needs all that there is.
        Outputs that the batch itself holds, under `teacher_cache` beside `teacher` and `student`, stand for the model's.
        """
        own = move_to_device(side(batch, "teacher"), self.device)
        outputs = self._brought_along(batch, needs)
        with evaluating(self.model), torch.no_grad(), autocast(self.precision, self.device):
            brought = None if outputs is None else self._adapted(own, outputs)
            found = brought if brought is not None else self._depth(needs, lambda: self._run(own, needs))
        return found.only_read(needs) if needs else found

    def _run(self, own: Batch, needs: frozenset[str]) -> Features:
        if needs not in self._captures:
            self._captures[needs] = Captures(self.model, needs, self._owner, self._notices)
        with self._captures[needs].noting() as capture:
            outputs = call_model(self.model, self.model_inputs(own), self.arguments)
        return capture.added_to(self._adapted(own, outputs))

    def _adapted(self, own: Batch, outputs: Any) -> Features:
        return Features.of(self.adaptor(own, outputs), f"the {self._owner}'s adaptor")

    def identity(self) -> str:
        """A hash of the model's weights and code, the adaptor and its options, the precision, and what each call is given."""
        if self._model is None:  # it is built again as it was
            return self._identity
        given = (self.precision, dict(self.arguments), self.model_inputs)
        self._identity = fingerprint("live", self._model, self.adaptor, *given)
        return self._identity

    def described(self) -> dict[str, Any]:
        """Class, size and precision of the model, and its adaptor."""
        if self._model is None:
            return self._description
        return {
            "model": type(self._model).__name__,
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "adaptor": getattr(self.adaptor, "__qualname__", type(self.adaptor).__qualname__),
            "precision": self.precision,
        }

    def _brought_along(self, batch: Batch, needs: frozenset[str]) -> Any:
        outputs = move_to_device(teacher_cache(batch), self.device)
        if outputs is None:
            return None
        inside = sorted(name.removeprefix(PREFIX) for name in needs if name.startswith(PREFIX))
        if inside:
            raise RequestError(
                f"the batch brings the teacher's outputs along as `teacher_cache`, but this run also reads its module {inside[0]!r}; "
                "leave out `teacher_cache`, or the custom match."
            )
        if self.position is None:
            return outputs
        if not isinstance(outputs, tuple) or len(outputs) <= self.position:
            raise RequestError(
                f"the batch's `teacher_cache` has nothing for the teacher at position {self.position}; it must be a list of the "
                "outputs of all teachers, in their order."
            )
        return outputs[self.position]


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device; one that is there is not asked to move, which quantised ones refuse.

    Raises RequestError where it is no module.
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"a teacher must be a torch.nn.Module, not a {type(model).__name__}.")
    tensors = itertools.chain(model.parameters(), model.buffers())
    return model if all(tensor.device == device for tensor in tensors) else model.to(device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards each of its modules in the mode in which it was."""
    training = [module for module in all_modules(model) if module.training]
    _set_training(training, False)
    try:
        yield
    finally:
        _set_training(training, True)


def _set_training(modules: list[nn.Module], mode: bool) -> None:
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            module.training = mode
        else:  # nn.Module's own __setattr__ looks for parameters: a millisecond in every step for a small teacher
            object.__setattr__(module, "training", mode)
