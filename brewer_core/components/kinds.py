"""The thirteen kinds of component: what each is called with, and how it comes to life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from brewer_core.errors import RequestError

Life = Literal["called", "made", "class"]


@dataclass(frozen=True)
class Kind:
    """One kind of component.

    positional: inputs passed by position, whatever the implementation calls them.
    trailing: how many of the last positional inputs an implementation may leave out.
    named: inputs passed by keyword to implementations that name them.
    sizes: inputs that the `__init__` of a class may name.
    life: `called` once per use (a class is built once and then called), `made` by one call, or a `class` with
    methods of its own.
    family: the word in the name of a distribution, `brewer-<family>-<name>`.
    """

    name: str
    family: str
    positional: tuple[str, ...] = ()
    trailing: int = 0
    named: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    life: Life = "called"

    @property
    def plural(self) -> str:
        """The kind's plural: `match_losses` for `match_loss`."""
        return self.name + ("es" if self.name.endswith("ss") else "s") if self.name != "strategy" else "strategies"

    @property
    def hook(self) -> str:
        """The hook that provides this kind: `brewer_match_losses` for `match_loss`."""
        return f"brewer_{self.plural}"

    @property
    def title(self) -> str:
        """The kind as a person reads it: `match loss`."""
        return self.name.replace("_", " ")


_ALL = (
    Kind("kd_loss", "loss", ("student_logits", "teacher_logits", "temperature"), named=("mask", "labels", "progress")),
    Kind(
        "match_loss",
        "loss",
        ("student", "teacher", "mask"),
        trailing=1,
        named=("teacher_mask", "labels", "progress"),
        sizes=("student_dim", "teacher_dim"),
    ),
    Kind("projection", "projection", ("dim_in", "dim_out"), life="made"),
    Kind("weight_scheduler", "scheduler", ("progress",), named=("step", "total_steps")),
    Kind(
        "temperature_scheduler",
        "scheduler",
        ("student_logits", "teacher_logits", "base_temperature"),
        named=("progress", "mask"),
    ),
    Kind("adaptor", "adaptor", ("batch", "model_outputs"), named=("role",)),
    Kind("strategy", "strategy", life="class"),
    Kind(
        "model",
        "model",
        named=("role", "task", "teacher", "tokenizer", "num_labels", "seed", "base_dir", "sample"),
        life="made",
    ),
    Kind("dataset", "data", named=("task", "seed", "base_dir"), life="made"),
    Kind("metric", "metric", ("predictions", "references"), named=("losses", "task")),
    Kind("augmentation", "data", ("tokens",), named=("generator",)),
    Kind("balancer", "balancer", ("term_names",), life="class"),
    Kind("tracker", "tracker", ("run_dir", "stage"), life="class"),
)

KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _ALL})

RESERVED: frozenset[str] = frozenset({"name"}.union(*({*kind.positional, *kind.named, *kind.sizes} for kind in _ALL)))
"""Names that no option may bear: the inputs of every kind, and the key that names a component in a config."""


def kind_named(word: str) -> Kind:
    """The kind that a person means by `match_loss`, `match-losses`, `Match_Losses` and the like.

    Raises RequestError for any other word, with the list of kinds.
    """
    plain = word.strip().lower().replace("-", "_")
    for kind in _ALL:
        if plain in (kind.name, kind.plural):
            return kind
    raise RequestError(f"no kind of component is called {word!r}; the kinds are {', '.join(KINDS)}.")
