"""The registry: every component of every plugin by kind and name, built once and never written to."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from brewer_core.components import KINDS, Component, Kind, Method, Provenance, kind_named
from brewer_core.errors import ConflictingComponentError, RequestError, UnknownComponentError

Status = Literal["loaded", "failed", "disabled"]

KNOWN_PROVIDERS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("match_loss", "pkd"): "brewer-loss-pkd",
        ("strategy", "emd"): "brewer-strategy-emd",
        ("strategy", "pkd"): "brewer-loss-pkd",
        ("tracker", "wandb"): "brewer-tracker-wandb",
    }
)
"""Components of distributions that may not be installed, for the text of the unknown-name error."""


@dataclass(frozen=True)
class Plugin:
    """One entry point, what became of it, and the components that it provides."""

    provenance: Provenance
    status: Status
    components: tuple[Component, ...] = ()
    error: str | None = None

    @property
    def key(self) -> str:
        """`distribution:entry`, by which a plugin is disabled."""
        return f"{self.provenance.distribution}:{self.provenance.entry_point}"


class Registry:
    """Components by kind and name. Read-only: `with_plugin` and `with_component` give a new registry.

    plugins: every plugin that was found, failed and disabled ones included.
    collect: makes a `Plugin` of an object with hooks.
    """

    def __init__(self, plugins: Iterable[Plugin], collect: Callable[[object], Plugin]) -> None:
        self._plugins = tuple(plugins)
        self._collect = collect
        self._providers: dict[tuple[str, str], list[Component]] = {}
        for plugin in self._plugins:
            for component in plugin.components:
                self._providers.setdefault((component.kind.name, component.name), []).append(component)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """Every plugin that was found, in order of distribution and entry point."""
        return self._plugins

    def versions(self) -> Mapping[str, str]:
        """The versions of the installed distributions that have plugins, disabled and failed ones included."""
        origins = (plugin.provenance for plugin in self._plugins)
        return {origin.distribution: origin.version for origin in origins if origin.version}

    def with_plugin(self, plugin: object) -> Registry:
        """A registry with the components of one plugin object more, this one staying as it is.

        Raises PluginError or ComponentError where the object breaks a rule for plugins.
        """
        return Registry((*self._plugins, self._collect(plugin)), self._collect)

    def with_component(self, kind: str, name: str, implementation: Callable[..., Any]) -> Registry:
        """A registry with one component more, this one staying as it is.

        kind: in any spelling, such as `match_loss` or `match-losses`.
        Raises ComponentError where the implementation breaks a rule of its kind, ConflictingComponentError where the name is
        taken (two plugins may both bring a name; who adds one by hand is told at once), RequestError for an unknown kind.
        """
        of_kind = kind_named(kind)
        origin = Provenance(entry_point=f"{of_kind.name}.{name}")
        component = Component(of_kind, name, implementation, origin)
        self._refuse_taken(of_kind, name)
        return Registry((*self._plugins, Plugin(origin, "loaded", (component,))), self._collect)

    def without(self, keys: Iterable[str]) -> Registry:
        """A registry with some plugins disabled, each named by its distribution or as `distribution:entry`.

        Raises RequestError for a name that no plugin bears.
        """
        wanted = {key.strip() for key in keys} - {""}
        known = {name for plugin in self._plugins for name in (plugin.key, plugin.provenance.distribution)}
        check_plugin_names("disable", wanted, known)
        return Registry(
            (_disabled(p) if wanted & {p.key, p.provenance.distribution} else p for p in self._plugins), self._collect
        )

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of the components of a kind that can be used, sorted."""
        kind = kind_named(kind).name
        return tuple(sorted(name for (k, name), found in self._providers.items() if k == kind and len(found) == 1))

    def components(self) -> tuple[Component, ...]:
        """Every component, those in conflict included, in the order of kinds and then by name."""
        order = {kind: position for position, kind in enumerate(KINDS)}
        every = (component for found in self._providers.values() for component in found)
        return tuple(sorted(every, key=lambda c: (order[c.kind.name], c.name, str(c.provenance))))

    def conflicts(self, component: Component) -> tuple[Component, ...]:
        """The other providers of a component's name."""
        return tuple(c for c in self._providers[component.kind.name, component.name] if c is not component)

    def get(self, kind: str, name: str) -> Component:
        """The component of this kind and name.

        Raises UnknownComponentError or ConflictingComponentError, whose texts say what to do, and RequestError for an
        unknown kind.
        """
        found = self.providers(kind, name)
        if len(found) > 1:
            raise ConflictingComponentError(self._conflict(found))
        return found[0]

    def providers(self, kind: str, name: str) -> tuple[Component, ...]:
        """Every component of this kind and name: more than one where plugins are in conflict.

        Raises UnknownComponentError where there is none, and RequestError for an unknown kind.
        """
        kind = kind_named(kind).name
        found = self._providers.get((kind, name), [])
        if not found:
            raise UnknownComponentError(self._unknown(kind, name))
        return tuple(found)

    def check(self, kind: str, name: str, options: Mapping[str, Any], positional: Sequence[Any] = ()) -> dict[str, Any]:
        """The options of a component, validated and completed; `positional` are the values of a list form.

        Raises what `get` raises, RequestError for too many values, and pydantic.ValidationError for a wrong option.
        """
        component = self.get(kind, name)
        return component.check(_named(component, options, positional))

    def bind(
        self,
        kind: str,
        name: str,
        options: Mapping[str, Any] | None = None,
        positional: Sequence[Any] = (),
        **sizes: Any,
    ) -> Method:
        """The component with its options set, ready to be called; `positional` are the values of a list form.

        Raises what `get` raises, and RequestError for a wrong option or too many values.
        """
        component = self.get(kind, name)
        return component.bind(_named(component, options or {}, positional), **sizes)

    def _refuse_taken(self, kind: Kind, name: str) -> None:
        found = self._providers.get((kind.name, name), [])
        if found:
            raise ConflictingComponentError(
                f"{kind.title} `{name}` is provided by {' and by '.join(str(c.provenance) for c in found)} already; choose "
                f"another name, or leave out what provides it: without([{', '.join(repr(_key(c)) for c in found)}])."
            )

    def _conflict(self, found: Sequence[Component]) -> str:
        first = found[0]
        providers = " and by ".join(str(c.provenance) for c in found)
        keys = " or ".join(_key(c) for c in found)
        return (
            f"{first.kind.title} `{first.name}` is provided by {providers}; disable one of them: "
            f"--disable or BREWER_DISABLE_PLUGINS with {keys}."
        )

    def _unknown(self, kind: str, name: str) -> str:
        title, known = KINDS[kind].title, self.names(kind)
        text = f"no {title} is called {name!r}{_close(name, known)} Known: {', '.join(known) or 'none'}."
        provider = KNOWN_PROVIDERS.get((kind, name))
        if provider:
            text += (
                f" {provider} provides it: pip install {provider} (from a checkout: pip install ./plugins/{provider})."
            )
        disabled = [p.key for p in self._plugins if p.status == "disabled"]
        if disabled:
            text += f" Disabled: {', '.join(disabled)}."
        failed = [f"{p.key} ({p.error})" for p in self._plugins if p.status == "failed"]
        return text + (f" Plugins that failed to load: {'; '.join(failed)}." if failed else "")


def check_plugin_names(verb: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises RequestError for a name that no plugin bears. verb: what cannot be done with it."""
    for name in sorted(set(names).difference(known)):
        raise RequestError(
            f"cannot {verb} {name!r}: no plugin is called that{_close(name, known)} Known: {', '.join(sorted(known))}."
        )


def _named(component: Component, options: Mapping[str, Any], positional: Sequence[Any]) -> dict[str, Any]:
    """The options with those that a list form gives by position."""
    order, label = component.facts.positional, f"{component.kind.title} `{component.name}`"
    if len(positional) > len(order):
        takes = f"values for {', '.join(order)}" if order else "no values in a list"
        raise RequestError(f"{label} takes {takes}, not {list(positional)!r}; name options in a mapping.")
    values = dict(zip(order, positional, strict=False))
    twice = [name for name in values if name in options]
    if twice:
        raise RequestError(f"{label} is given {', '.join(twice)} twice, by position and by name.")
    return {**values, **options}


def _key(component: Component) -> str:
    return f"{component.provenance.distribution}:{component.provenance.entry_point}"


def _disabled(plugin: Plugin) -> Plugin:
    return replace(plugin, status="disabled", components=(), error=None)


def _close(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: a full stop, or the names that are close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
