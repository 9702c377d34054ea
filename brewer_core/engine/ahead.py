"""When teachers answer: each micro-batch in its turn; on a GPU beside the student, and one micro-batch ahead of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import torch

from brewer_core.features import Features

Answers = Mapping[str, Features]
T = TypeVar("T")


class Side(Protocol):
    """Where teachers run beside the student."""

    def __call__(self, ask: Callable[[], Answers]) -> Answers:
        """What `ask` gives. It may still be computed: whoever reads it waits for it."""
        ...


class Awaited(Answers):
    """Answers that are still computed; `wait` is called when the first of them is read."""

    def __init__(self, answers: Answers, wait: Callable[[], None]) -> None:
        self._answers, self._wait = answers, wait
        self._waited = False

    def __getitem__(self, name: str) -> Features:
        if not self._waited:
            self._wait()
            self._waited = True
        return self._answers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


class OnStream:
    """A stream of the GPU beside the one on which the student runs.

    It begins after all that is queued for the student by then, for batches come from there; and what the student's stream
    does with an answer comes after the answer.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __call__(self, ask: Callable[[], Answers]) -> Answers:
        """What `ask` queues on the stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            answers = ask()
        done = self._stream.record_event()  # of the stream's end one would wait for the next micro-batch's answers too
        return Awaited(answers, lambda: self._hand_over(answers, done))

    def _hand_over(self, answers: Answers, done: torch.cuda.Event) -> None:
        students = torch.cuda.current_stream(self._device)
        students.wait_event(done)
        for features in answers.values():
            for tensor in (tensor for tensors in features.values() for tensor in tensors):
                if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                    tensor.record_stream(
                        students
                    )  # else its memory were free for the teachers before the student has read it


def side_of(device: torch.device) -> Side | None:
    """Where teachers run beside a student on a device; None where nothing runs beside it."""
    return OnStream(device) if device.type == "cuda" else None


def answered(
    items: Iterable[T], ask: Callable[[T], Answers], side: Side | None = None, at_hand: bool = False
) -> Iterator[tuple[T, Answers]]:
    """The micro-batches of a step, each with what its teachers answer; no answer is held here once it is given.

    side: where they are asked, in place if None. at_hand: on a side they are asked about the next micro-batch before the
    student works on this one. Of what is not at hand none is read ahead: loaders and strategies would draw at another time.
    """
    asked = ((item, _asked(item, ask, side)) for item in items)
    return _one_behind(asked) if side is not None and at_hand else asked


def _asked(item: T, ask: Callable[[T], Answers], side: Side | None) -> Answers:
    return ask(item) if side is None else side(lambda: ask(item))


def _one_behind(items: Iterator[T]) -> Iterator[T]:
    """The items, each once the next one has been made."""
    before = list(itertools.islice(items, 1))
    for item in items:
        yield before.pop()
        before.append(item)
    yield from before
