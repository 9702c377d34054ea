"""Finds plugins and makes a registry of them: found (metadata only), loaded, collected, each stage immutable and sorted."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pluggy

from brewer_core import hookspecs
from brewer_core.components import KINDS, Component, Kind, Provenance
from brewer_core.errors import BrewerError, PluginError, full_stop
from brewer_core.registry import Plugin, Registry, check_plugin_names

DISABLE_VARIABLE = "BREWER_DISABLE_PLUGINS"
ALLOW_VARIABLE = "BREWER_PLUGINS"
OWN_DISTRIBUTION = "brewer-core"
COMMANDS: Final = "brewer.commands"
"""The entry-point group of commands that plugins add to `brewer`."""


@dataclass(frozen=True, order=True)
class FoundPlugin:
    """An entry point in the group `brewer`, known from metadata alone."""

    distribution: str
    entry_point: str
    target: str
    version: str
    error: str = ""  # set where the distribution's entry points cannot be read

    @property
    def key(self) -> str:
        """`distribution:entry`, by which a plugin is named where one is disabled or allowed."""
        return f"{self.distribution}:{self.entry_point}"

    @property
    def provenance(self) -> Provenance:
        """Where components of this plugin say that they come from."""
        return Provenance(self.distribution, self.version, self.entry_point)


@dataclass(frozen=True)
class LoadedPlugin:
    """An entry point with the object that it names; error says why there is none."""

    found: FoundPlugin
    plugin: object | None = None
    error: str | None = None


class PluginWarning(UserWarning):
    """A plugin was left out; the text says which and why."""


@dataclass(frozen=True)
class Choice:
    """Which plugins may be imported, each named by its distribution or as `distribution:entry`.

    disabled: those that may not. allowed: those that may, if only some; brewer's own always may.
    """

    disabled: frozenset[str] = frozenset()
    allowed: frozenset[str] | None = None

    @classmethod
    def of(cls, disable: Iterable[str] = (), allow: Iterable[str] | None = None) -> Choice:
        """A choice from names as they are typed: blanks around them do not count, and an empty list allows all."""
        return cls(_keys(disable), _keys(allow or ()) or None)

    @classmethod
    def of_environment(cls, disable: Iterable[str] = ()) -> Choice:
        """What `BREWER_PLUGINS` allows, without what `BREWER_DISABLE_PLUGINS` names, names being separated by commas."""
        off, allowed = (os.environ.get(variable, "").split(",") for variable in (DISABLE_VARIABLE, ALLOW_VARIABLE))
        return cls.of([*off, *disable], allowed)

    def takes(self, found: FoundPlugin) -> bool:
        """Whether a plugin may be imported."""
        names = {found.distribution, found.key}
        permitted = self.allowed is None or found.distribution == OWN_DISTRIBUTION or names & self.allowed
        return bool(permitted) and not names & self.disabled

    def check(self, found: Iterable[FoundPlugin]) -> None:
        """Raises RequestError for a name that no plugin bears."""
        known = {name for plugin in found for name in (plugin.distribution, plugin.key)}
        check_plugin_names("disable", self.disabled, known)
        check_plugin_names("allow", self.allowed or (), known)


def find_plugins(path: Sequence[str] | None = None, group: str = hookspecs.NAMESPACE) -> tuple[FoundPlugin, ...]:
    """The plugins of the installed distributions, sorted by distribution and entry point; nothing is imported.

    path: folders to look in, in place of `sys.path`. The first distribution of a name hides later ones. group: of their
    entry points.
    """
    seen: set[str] = set()
    found: list[FoundPlugin] = []
    for distribution in metadata.distributions(path=list(sys.path if path is None else path)):
        name = _normalised(_header(distribution, "Name"))
        if name and name not in seen:
            seen.add(name)
            found += _entry_points(distribution, name, group)
    return tuple(sorted(found))


def load_plugins(found: Iterable[FoundPlugin]) -> tuple[LoadedPlugin, ...]:
    """The objects that the entry points name; an import that fails fails alone."""
    found = tuple(found)
    names = [(f.distribution, f.entry_point) for f in found]
    return tuple(_load(f, names.count((f.distribution, f.entry_point)) > 1) for f in found)


def collect_plugins(loaded: Iterable[LoadedPlugin]) -> tuple[Plugin, ...]:
    """The components of loaded plugins; one that breaks a rule is taken not at all, with the reason."""
    return tuple(_collect_or_fail(plugin) for plugin in loaded)


def collect(plugin: object, provenance: Provenance | None = None) -> Plugin:
    """The components that a plugin object's hooks return.

    Raises PluginError where a hook is misspelt, fails or returns no mapping, ComponentError where a component breaks the
    rules of its kind.
    """
    provenance = provenance or _given_provenance(plugin)
    hooks = _hooks(plugin, provenance)
    components: list[Component] = []
    for kind in KINDS.values():
        for hook in hooks.get(kind.hook, ()):
            for name, implementation in _provided(hook, kind).items():
                components.append(Component(kind, name, implementation, provenance))
    return Plugin(provenance, "loaded", tuple(components))


def build_registry(
    *,
    path: Sequence[str] | None = None,
    disable: Iterable[str] = (),
    allow: Iterable[str] | None = None,
    files: Iterable[Path] = (),
) -> Registry:
    """A registry of every installed plugin, without those disabled, with those in single files.

    allow: import no others than these and brewer's own; all if None. A plugin in a file needs no allowance.
    Raises RequestError for an unknown name in disable or allow, PluginError for a file that is no plugin.
    """
    choice, found = Choice.of(disable, allow), find_plugins(path)
    active = [f for f in found if choice.takes(f)]
    skipped = tuple(Plugin(f.provenance, "disabled") for f in found if f not in active)
    plugins = sorted((*collect_plugins(load_plugins(active)), *skipped), key=_place)
    if choice != Choice():  # the metadata of every distribution is read again for it
        choice.check([*found, *find_plugins(path, COMMANDS)])
    registry = Registry(plugins, collect)
    for file in files:
        registry = _with_file(registry, file)
    return registry


def environment_registry(*, disable: Iterable[str] = (), files: Iterable[Path] = ()) -> Registry:
    """The registry that the command line works with: what the environment allows, less what it disables."""
    choice = Choice.of_environment(disable)
    return build_registry(disable=choice.disabled, allow=choice.allowed, files=files)


@functools.cache
def default_registry() -> Registry:
    """The registry of every installed plugin, built at the first look-up; `cache_clear()` is for tests.

    `BREWER_PLUGINS` and `BREWER_DISABLE_PLUGINS` are read here. Every plugin that failed warns here, once.
    """
    registry = environment_registry()
    for plugin in registry.plugins:
        if plugin.status == "failed":
            warnings.warn(f"plugin {plugin.key} was left out: {plugin.error}", PluginWarning, stacklevel=2)
    return registry


def load_file(file: Path) -> ModuleType:
    """The module in a single file, imported as a plugin for this process.

    Raises PluginError where the file is not there, or its import fails.
    """
    if not file.is_file():
        raise PluginError(f"plugin file {file} does not exist.")
    name = f"brewer_plugin_file_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_WithoutBytecode(name, str(file)))
    if file.suffix != ".py" or spec is None or spec.loader is None:
        raise PluginError(f"plugin file {file} is no Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that annotations in it evaluate, and classes in it pickle
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(full_stop(f"plugin file {file} fails on import: {_reason(error)}")) from error
    return module


class _WithoutBytecode(SourceFileLoader):
    """Leaves nothing beside the file: it may be a user's, and what is written there within a second may be taken for it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def _entry_points(distribution: metadata.Distribution, name: str, group: str) -> list[FoundPlugin]:
    version = _header(distribution, "Version")
    try:
        entries = [entry for entry in distribution.entry_points if entry.group == group]
    except Exception as error:  # a malformed file, of whichever distribution, is no reason for all others to fail
        if f"[{group}]" not in (distribution.read_text("entry_points.txt") or ""):
            return []
        reason = f"entry_points.txt of {name} cannot be read: {_reason(error)}"
        return [FoundPlugin(name, "entry_points.txt", "", version, reason)]
    return [FoundPlugin(name, entry.name, entry.value, version) for entry in entries]


def _header(distribution: metadata.Distribution, key: str) -> str:
    """A line of the metadata; empty where it is missing, as in what a broken uninstall leaves."""
    values = distribution.metadata.get_all(key)
    return str(values[0]) if values else ""


def _with_file(registry: Registry, file: Path) -> Registry:
    module = load_file(file)
    try:
        return registry.with_plugin(module)
    except BrewerError as error:
        raise PluginError(f"plugin file {file}: {error}") from error


def _load(found: FoundPlugin, twice: bool) -> LoadedPlugin:
    if found.error:
        return LoadedPlugin(found, error=found.error)
    if twice:
        return LoadedPlugin(
            found,
            error=f"{found.distribution} declares the entry point {found.entry_point!r} twice; {found.target} is one of them",
        )
    try:
        plugin = metadata.EntryPoint(found.entry_point, found.target, hookspecs.NAMESPACE).load()
        return LoadedPlugin(found, plugin() if isinstance(plugin, type) else plugin)
    except (Exception, SystemExit) as error:
        return LoadedPlugin(found, error=f"import of {found.target} fails: {_reason(error)}")


def _collect_or_fail(loaded: LoadedPlugin) -> Plugin:
    provenance = loaded.found.provenance
    if loaded.plugin is None:
        return Plugin(provenance, "failed", error=loaded.error or f"{loaded.found.target} is None")
    try:
        return collect(loaded.plugin, provenance)
    except BrewerError as error:
        return Plugin(provenance, "failed", error=str(error).rstrip("."))
    except (Exception, SystemExit) as error:
        return Plugin(provenance, "failed", error=f"its components cannot be read: {_reason(error)}")


def _hooks(plugin: object, provenance: Provenance) -> Mapping[str, Sequence[pluggy.HookImpl]]:
    """The functions marked with `@hookimpl` by hook, in a manager with this plugin alone: what it breaks, it breaks for itself."""
    manager = pluggy.PluginManager(hookspecs.NAMESPACE)
    manager.register(plugin, f"{provenance.distribution}:{provenance.entry_point}")
    hooks = {caller.name: caller.get_hookimpls() for caller in manager.get_hookcallers(plugin) or ()}
    if not hooks:
        raise PluginError(f"{_a(plugin)} has no function marked with @hookimpl; nothing would be provided.")
    for name, found in hooks.items():
        for hook in found:
            _check_hook(name, hook)
    manager.add_hookspecs(hookspecs)
    manager.check_pending()
    return hooks


def _check_hook(name: str, hook: pluggy.HookImpl) -> None:
    known = [kind.hook for kind in KINDS.values()]
    if name not in known and not hook.optionalhook:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {close[0]}?" if close else f"the hooks are {', '.join(known)}."
        raise PluginError(f"{name} is no hook; {meant}")
    if name in known and hook.argnames:
        raise PluginError(f"{name} takes the parameters {', '.join(hook.argnames)}; a hook takes none.")
    if hook.wrapper or hook.hookwrapper:
        raise PluginError(f"{name} is a wrapper; a hook returns a mapping of its own plugin's implementations.")


def _provided(hook: pluggy.HookImpl, kind: Kind) -> Mapping[str, Any]:
    # Called directly: pluggy's own call drops a None, which is a hook that forgot to return.
    try:
        returned: object = hook.function()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{kind.hook} fails: {_reason(error)}.") from error
    if not isinstance(returned, Mapping):
        raise PluginError(f"{kind.hook} returned {_a(returned)}; it must return a mapping from name to implementation.")
    return returned


def _keys(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.strip() for name in names) - {""}


def _place(plugin: Plugin) -> tuple[str, str]:
    return plugin.provenance.distribution, plugin.provenance.entry_point


def _given_provenance(plugin: object) -> Provenance:
    if isinstance(plugin, ModuleType):
        file = vars(plugin).get("__file__")
        return Provenance(Path(file).name if file else "(passed in Python)", "", plugin.__name__)
    return Provenance("(passed in Python)", "", type(plugin).__name__)


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}" if str(error) else type(error).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _a(thing: object) -> str:
    if thing is None:
        return "nothing"
    if isinstance(thing, ModuleType):
        return f"module {thing.__name__}"
    name = type(thing).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
