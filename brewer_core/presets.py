"""TextBrewer's preset dictionaries, as read-only views of the default registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from brewer_core.components import Component, kind_named
from brewer_core.errors import ReadOnlyError, RequestError
from brewer_core.plugins import default_registry

FEATURES = ("hidden", "attention")
"""Features that intermediate matches read."""

ADAPTOR_KEYS = ("logits", "logits_mask", "losses", "inputs_mask", "labels", *FEATURES)
"""Keys of what an adaptor returns."""


class PresetView(Mapping[str, Callable[..., Any]]):
    """The components of one kind, callable as TextBrewer's entries were. Writing to it raises ReadOnlyError."""

    def __init__(self, variable: str, kind: str) -> None:
        self._variable, self._kind = variable, kind

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return _entry(self._component(name))

    def __contains__(self, name: object) -> bool:
        return name in default_registry().names(self._kind)

    def __iter__(self) -> Iterator[str]:
        return iter(default_registry().names(self._kind))

    def __len__(self) -> int:
        return len(default_registry().names(self._kind))

    def __repr__(self) -> str:
        return f"{self._variable}({', '.join(self)})"

    def __setitem__(self, name: str, implementation: Callable[..., Any]) -> NoReturn:
        raise ReadOnlyError(_registration(f"{self._variable}[{name!r}] = ...", self._kind, name, implementation))

    def __delitem__(self, name: str) -> NoReturn:
        raise ReadOnlyError(
            f"{self._variable} is a read-only view; disable the plugin that provides {name!r} with BREWER_DISABLE_PLUGINS."
        )

    def _component(self, name: object) -> Component:
        if not isinstance(name, str):
            raise KeyError(name)
        try:
            return default_registry().get(self._kind, name)
        except RequestError as error:
            raise _LookupError(str(error)) from error


class ListedPresetView(PresetView):
    """A view that also takes `["flsw", 1, 2]` and `["flsw", {"beta": 1, "gamma": 2}]`, the entry with its options set."""

    def __getitem__(self, name: str | Sequence[Any]) -> Callable[..., Any]:
        if not isinstance(name, (list, tuple)) or not name:
            return super().__getitem__(name)  # type: ignore[index]  # of any other key it says that there is none
        component, values = self._component(name[0]), list(name[1:])
        options = dict(values.pop()) if len(values) == 1 and isinstance(values[0], Mapping) else {}
        return default_registry().bind(self._kind, component.name, options, values)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name[0] if isinstance(name, (list, tuple)) and name else name)


class _LookupError(KeyError):
    """A KeyError whose text is a sentence, not the repr of one."""

    def __str__(self) -> str:
        return str(self.args[0])


KD_LOSS_MAP = PresetView("KD_LOSS_MAP", "kd_loss")
MATCH_LOSS_MAP = PresetView("MATCH_LOSS_MAP", "match_loss")
PROJ_MAP = PresetView("PROJ_MAP", "projection")
WEIGHT_SCHEDULER = PresetView("WEIGHT_SCHEDULER", "weight_scheduler")
TEMPERATURE_SCHEDULER = ListedPresetView("TEMPERATURE_SCHEDULER", "temperature_scheduler")


def register_new(map_name: str, name: str, func: Callable[..., Any]) -> NoReturn:
    """TextBrewer's way to add a component. Raises ReadOnlyError that says how it is done here.

    map_name: TextBrewer's own keys, `match_Loss` among them, or a kind in any spelling. Raises RequestError for any other.
    """
    raise ReadOnlyError(_registration(f"register_new({map_name!r}, {name!r}, ...)", map_name, name, func))


def _entry(component: Component) -> Callable[..., Any]:
    """The implementation; of a component whose options a list gives, the function that takes those, as TextBrewer's builders did."""
    order = component.facts.positional
    if not order:
        return component.implementation

    def build(*values: Any, **options: Any) -> Callable[..., Any]:
        return default_registry().bind(component.kind.name, component.name, options, values)

    return build


def _registration(attempt: str, map_name: str, name: str, implementation: object) -> str:
    kind = kind_named(map_name)
    given = getattr(implementation, "__name__", "")
    given = given if given.isidentifier() else "..."
    return (
        f"{attempt}: components are not written into presets; pass the callable in the config, or give the distiller "
        f"registry=default_registry().with_component({kind.name!r}, {name!r}, {given}), or make it a plugin: "
        f"@hookimpl def {kind.hook}(): return {{{name!r}: {given}}}, under an entry point in the group `brewer`."
    )
