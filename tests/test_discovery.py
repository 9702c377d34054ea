"""Discovery: what is found, in which order, with which provenance, and what a broken plugin does to itself alone."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from brewer_core import hookimpl
from brewer_core.errors import ConflictingComponentError, PluginError, RequestError, UnknownComponentError
from brewer_core.plugins import (
    Choice,
    PluginWarning,
    build_registry,
    collect,
    default_registry,
    find_plugins,
    load_file,
)
from brewer_core.registry import Plugin, Registry
from fakes import fake_distribution, loss_module, plugin


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for distributions, importable; what was imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def no_default() -> Iterator[None]:
    """No cached default registry, before and after."""
    default_registry.cache_clear()
    yield
    default_registry.cache_clear()


def registry_of(site: Path, **arguments: Any) -> Registry:
    return build_registry(path=[str(site)], **arguments)


def plugins_by_key(registry: Registry) -> dict[str, Plugin]:
    return {found.key: found for found in registry.plugins}


def add_healthy(site: Path) -> None:
    """A distribution that works, to stand beside a broken one."""
    fake_distribution(site, "a-healthy", "2.1", {"good": "healthy_plugin"}, {"healthy_plugin.py": loss_module("good")})


def failure(site: Path, text: str, target: str = "broken_plugin") -> str:
    """Why a distribution with this module fails, having seen that the healthy one beside it does not."""
    add_healthy(site)
    fake_distribution(site, "b-broken", "0.1", {"bad": target}, {"broken_plugin.py": text})

    registry = registry_of(site)

    found = plugins_by_key(registry)
    assert registry.names("kd_loss") == ("good",)
    assert found["a-healthy:good"].status == "loaded"
    assert found["b-broken:bad"].status == "failed"
    assert found["b-broken:bad"].components == ()
    return found["b-broken:bad"].error or ""


# Found


def test_plugins_are_found_in_order_of_distribution_and_entry_point(site: Path) -> None:
    for name in ("zebra", "Alpha_Beta", "alpha"):
        fake_distribution(site, name, "1.0", {"second": "nothing.b", "first": "nothing.a"})

    found = [(f.distribution, f.entry_point, f.target) for f in find_plugins([str(site)])]

    assert found == [
        ("alpha", "first", "nothing.a"),
        ("alpha", "second", "nothing.b"),
        ("alpha-beta", "first", "nothing.a"),
        ("alpha-beta", "second", "nothing.b"),
        ("zebra", "first", "nothing.a"),
        ("zebra", "second", "nothing.b"),
    ]
    assert [p.key for p in registry_of(site).plugins] == [f"{name}:{entry}" for name, entry, _ in found]


def test_the_order_of_folders_does_not_change_the_registry(site: Path) -> None:
    first = fake_distribution(site / "1", "one", "1.0", {"one": "absent_one"})
    second = fake_distribution(site / "2", "two", "1.0", {"two": "absent_two"})

    forth = build_registry(path=[str(first), str(second)])
    back = build_registry(path=[str(second), str(first)])

    assert [p.key for p in forth.plugins] == [p.key for p in back.plugins] == ["one:one", "two:two"]


def test_the_first_distribution_of_a_name_hides_later_ones(site: Path) -> None:
    first = fake_distribution(site / "1", "brewer-loss-x", "2.0", {"x": "new"})
    second = fake_distribution(site / "2", "Brewer_Loss.X", "1.0", {"x": "old"})

    (found,) = find_plugins([str(first), str(second)])

    assert (found.target, found.version) == ("new", "2.0")


def test_finding_imports_nothing(site: Path) -> None:
    fake_distribution(site, "loud", "1.0", {"loud": "loud_plugin"}, {"loud_plugin.py": "raise SystemExit(3)"})

    (found,) = find_plugins([str(site)])

    assert str(found.provenance) == "loud 1.0 [loud]"
    assert "loud_plugin" not in sys.modules


def test_entry_points_of_other_groups_are_left_alone(site: Path) -> None:
    fake_distribution(site, "other", "1.0", "[console_scripts]\nx = y:z\n\n[brewer.commands]\nc = d:e\n")

    assert find_plugins([str(site)]) == ()


def test_what_a_broken_uninstall_leaves_does_not_hinder_others(site: Path) -> None:
    add_healthy(site)
    (site / "gone-1.0.dist-info").mkdir()

    assert registry_of(site).names("kd_loss") == ("good",)


def test_entry_points_that_cannot_be_read_fail_alone(site: Path) -> None:
    add_healthy(site)
    fake_distribution(site, "b-broken", "0.1", "[brewer]\nno equals sign\n")
    fake_distribution(site, "unrelated", "0.1", "[console_scripts]\nno equals sign\n")

    registry = registry_of(site)

    assert registry.names("kd_loss") == ("good",)
    assert set(plugins_by_key(registry)) == {"a-healthy:good", "b-broken:entry_points.txt"}
    broken = plugins_by_key(registry)["b-broken:entry_points.txt"]
    assert (broken.status, broken.provenance.version) == ("failed", "0.1")
    assert str(broken.error).startswith("entry_points.txt of b-broken cannot be read: ")


# Loaded and collected


def test_components_know_where_they_come_from(site: Path) -> None:
    add_healthy(site)

    component = registry_of(site).get("kd_loss", "good")

    provenance = component.provenance
    assert (provenance.distribution, provenance.version, provenance.entry_point) == ("a-healthy", "2.1", "good")
    assert str(provenance) == "a-healthy 2.1 [good]"


def test_a_class_as_entry_point_is_built(site: Path) -> None:
    text = """
        from brewer_core import hookimpl

        class Losses:
            @hookimpl
            def brewer_kd_losses(self):
                return {"l1": lambda s, t, temperature: 0}
    """
    fake_distribution(site, "classy", "1.0", {"l1": "classy_plugin:Losses"}, {"classy_plugin.py": text})

    assert registry_of(site).names("kd_loss") == ("l1",)


def test_one_plugin_may_provide_components_of_several_kinds(site: Path) -> None:
    text = loss_module("ours") + loss_module("ours", hook="brewer_match_losses")
    fake_distribution(site, "both", "1.0", {"both": "both_plugin"}, {"both_plugin.py": text})

    registry = registry_of(site)

    assert [(c.kind.name, c.name) for c in registry.components()] == [("kd_loss", "ours"), ("match_loss", "ours")]


def test_a_hook_may_provide_nothing(site: Path) -> None:
    fake_distribution(site, "empty", "1.0", {"empty": "empty_plugin"}, {"empty_plugin.py": loss_module()})

    (empty,) = registry_of(site).plugins

    assert (empty.status, empty.components, empty.error) == ("loaded", (), None)


def test_equal_entry_names_in_two_distributions_are_fine(site: Path) -> None:
    fake_distribution(site, "one", "1.0", {"loss": "one_plugin"}, {"one_plugin.py": loss_module("one")})
    fake_distribution(site, "two", "1.0", {"loss": "two_plugin"}, {"two_plugin.py": loss_module("two")})

    registry = registry_of(site)

    assert registry.names("kd_loss") == ("one", "two")
    assert {p.status for p in registry.plugins} == {"loaded"}


def test_two_equal_entry_names_in_one_distribution_are_both_left_out(site: Path) -> None:
    add_healthy(site)
    fake_distribution(
        site,
        "b-broken",
        "0.1",
        "[brewer]\nl = twice_one\nl = twice_two\n",
        {"twice_one.py": loss_module("one"), "twice_two.py": loss_module("two")},
    )

    registry = registry_of(site)

    assert registry.names("kd_loss") == ("good",)
    assert [p.error for p in registry.plugins if p.status == "failed"] == [
        "b-broken declares the entry point 'l' twice; twice_one is one of them",
        "b-broken declares the entry point 'l' twice; twice_two is one of them",
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "import brewer_absent_library",
            "import of broken_plugin fails: ModuleNotFoundError: No module named 'brewer_absent_library'",
        ),
        ("raise SystemExit(3)", "import of broken_plugin fails: SystemExit: 3"),
        ("raise RuntimeError('two\\nlines')", "import of broken_plugin fails: RuntimeError: two lines"),
        ("raise ValueError", "import of broken_plugin fails: ValueError"),
        (
            "x = 1",
            "module broken_plugin has no function marked with @hookimpl; nothing would be provided",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_or_has_no_hook_is_reported(site: Path, text: str, error: str) -> None:
    assert failure(site, text) == error


def test_a_syntax_error_is_reported_in_one_line(site: Path) -> None:
    error = failure(site, "def broken(:\n")

    assert error.startswith("import of broken_plugin fails: SyntaxError: invalid syntax (broken_plugin.py, line 1)")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (
            "absent_plugin_module",
            "import of absent_plugin_module fails: ModuleNotFoundError: No module named 'absent_plugin_module'",
        ),
        (
            "broken_plugin:absent",
            "import of broken_plugin:absent fails: AttributeError: module 'broken_plugin' has no attribute 'absent'",
        ),
        ("broken_plugin:nothing", "broken_plugin:nothing is None"),
        ("broken_plugin:number", "an int has no function marked with @hookimpl; nothing would be provided"),
        (
            "broken_plugin:Needy",
            "import of broken_plugin:Needy fails: TypeError: Needy.__init__() missing 1 required positional argument: 'x'",
        ),
    ],
)
def test_an_entry_point_that_names_no_plugin_is_reported(site: Path, target: str, error: str) -> None:
    text = """
        nothing = None
        number = 3

        class Needy:
            def __init__(self, x): ...
    """
    assert failure(site, text, target) == error


def hook(body: str, name: str = "brewer_kd_losses", parameters: str = "", marker: str = "hookimpl") -> str:
    return f"from brewer_core import hookimpl\n\n@{marker}\ndef {name}({parameters}):\n    {body}\n"


ALL_HOOKS = (
    "brewer_kd_losses, brewer_match_losses, brewer_projections, brewer_weight_schedulers, "
    "brewer_temperature_schedulers, brewer_adaptors, brewer_strategies, brewer_models, brewer_datasets, "
    "brewer_metrics, brewer_augmentations, brewer_balancers, brewer_trackers"
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (hook("raise KeyError('x')"), "brewer_kd_losses fails: KeyError: 'x'"),
        (hook("raise SystemExit"), "brewer_kd_losses fails: SystemExit"),
        (
            hook("return ['l1']"),
            "brewer_kd_losses returned a list; it must return a mapping from name to implementation",
        ),
        (hook("pass"), "brewer_kd_losses returned nothing; it must return a mapping from name to implementation"),
        (
            hook("return {}", name="brewer_kd_loses"),
            "brewer_kd_loses is no hook; did you mean brewer_kd_losses?",
        ),
        (hook("return {}", name="teach"), f"teach is no hook; the hooks are {ALL_HOOKS}"),
        (
            hook("return {}", parameters="config, seed"),
            "brewer_kd_losses takes the parameters config, seed; a hook takes none",
        ),
        (
            hook("return (yield)", marker="hookimpl(wrapper=True)"),
            "brewer_kd_losses is a wrapper; a hook returns a mapping of its own plugin's implementations",
        ),
        (
            hook("return {'l-1': lambda s, t, temperature: 0}"),
            "kd loss 'l-1' has a name that is not an identifier",
        ),
        (hook("return {3: lambda s, t, temperature: 0}"), "kd loss 3 has a name that is not an identifier"),
        (
            hook("return {'l1': lambda s, t, temperature, *, eps=1: 0}"),
            "kd loss `l1` has the option `eps` without an annotation; write its type, such as `eps: float`",
        ),
    ],
)
def test_a_hook_that_breaks_a_rule_is_reported(site: Path, text: str, error: str) -> None:
    assert failure(site, text) == error


def test_a_misspelt_hook_takes_the_plugins_other_hooks_with_it(site: Path) -> None:
    error = failure(site, loss_module("mine") + hook("return {}", name="brewer_match_loss"))

    assert error == "brewer_match_loss is no hook; did you mean brewer_match_losses?"


def test_a_plugin_that_fails_in_one_hook_is_taken_not_at_all(site: Path) -> None:
    error = failure(site, loss_module("mine") + hook("return 1 / 0", name="brewer_projections"))

    assert error == "brewer_projections fails: ZeroDivisionError: division by zero"


def test_a_mapping_that_cannot_be_read_is_reported(site: Path) -> None:
    text = """
        from collections.abc import Mapping
        from brewer_core import hookimpl

        class Broken(Mapping):
            def __getitem__(self, key): raise OSError("gone")
            def __iter__(self): return iter(["l1"])
            def __len__(self): return 1

        @hookimpl
        def brewer_kd_losses():
            return Broken()
    """
    assert failure(site, text) == "its components cannot be read: OSError: gone"


def test_an_optional_hook_of_a_later_brewer_is_left_alone(site: Path) -> None:
    text = loss_module("mine") + hook("return {}", name="brewer_oracles", marker="hookimpl(optionalhook=True)")
    fake_distribution(site, "later", "1.0", {"later": "later_plugin"}, {"later_plugin.py": text})

    assert registry_of(site).names("kd_loss") == ("mine",)


def test_keyboard_interrupts_are_not_swallowed(site: Path) -> None:
    fake_distribution(site, "slow", "1.0", {"s": "slow_plugin"}, {"slow_plugin.py": "raise KeyboardInterrupt"})

    with pytest.raises(KeyboardInterrupt):
        registry_of(site)


def test_two_providers_of_one_name_conflict_and_nothing_else_is_affected(site: Path) -> None:
    fake_distribution(site, "one", "1.0", {"l": "one_plugin"}, {"one_plugin.py": loss_module("shared", "mine")})
    fake_distribution(site, "two", "2.0", {"l": "two_plugin"}, {"two_plugin.py": loss_module("shared", "yours")})

    registry = registry_of(site)

    assert registry.names("kd_loss") == ("mine", "yours")
    assert registry.get("kd_loss", "mine").provenance.distribution == "one"
    with pytest.raises(ConflictingComponentError) as caught:
        registry.get("kd_loss", "shared")
    assert str(caught.value) == (
        "kd loss `shared` is provided by one 1.0 [l] and by two 2.0 [l]; disable one of them: --disable or "
        "BREWER_DISABLE_PLUGINS with one:l or two:l."
    )
    both = [c for c in registry.components() if c.name == "shared"]
    assert [c.provenance.distribution for c in both] == ["one", "two"]
    assert registry.conflicts(both[0]) == (both[1],)
    assert registry_of(site, disable=["two:l"]).get("kd_loss", "shared").provenance.distribution == "one"


def test_one_name_in_two_kinds_is_no_conflict(site: Path) -> None:
    files = {"one_plugin.py": loss_module("cos"), "two_plugin.py": loss_module("cos", hook="brewer_match_losses")}
    fake_distribution(site, "pair", "1.0", {"one": "one_plugin", "two": "two_plugin"}, files)

    registry = registry_of(site)

    assert registry.names("kd_loss") == registry.names("match_loss") == ("cos",)


# Disabled


@pytest.mark.parametrize("key", ["b-broken", "b-broken:bad", " b-broken "])
def test_a_disabled_plugin_is_not_even_imported(site: Path, key: str) -> None:
    add_healthy(site)
    fake_distribution(site, "b-broken", "0.1", {"bad": "broken_plugin"}, {"broken_plugin.py": "raise SystemExit(3)"})

    registry = registry_of(site, disable=[key])

    off = plugins_by_key(registry)["b-broken:bad"]
    assert (off.status, off.error, off.components) == ("disabled", None, ())
    assert registry.names("kd_loss") == ("good",)
    assert "broken_plugin" not in sys.modules


def test_a_distribution_is_disabled_with_all_its_entry_points(site: Path) -> None:
    files = {"first_plugin.py": loss_module("first"), "second_plugin.py": loss_module("second")}
    fake_distribution(site, "pair", "1.0", {"one": "first_plugin", "two": "second_plugin"}, files)

    assert registry_of(site, disable=["pair"]).names("kd_loss") == ()
    assert registry_of(site, disable=["pair:one"]).names("kd_loss") == ("second",)


def test_an_unknown_name_to_disable_is_told_with_what_is_there(site: Path) -> None:
    add_healthy(site)

    with pytest.raises(RequestError) as caught:
        registry_of(site, disable=["a-helthy"])
    assert str(caught.value) == (
        "cannot disable 'a-helthy': no plugin is called that; did you mean 'a-healthy' or 'a-healthy:good'? "
        "Known: a-healthy, a-healthy:good."
    )


@pytest.mark.parametrize(
    ("value", "names"),
    [(None, ()), ("", ()), (" , ", ()), ("one", ("one",)), ("one, two:x,", ("one", "two:x"))],
)
@pytest.mark.parametrize("variable", ["BREWER_DISABLE_PLUGINS", "BREWER_PLUGINS"])
def test_names_of_plugins_are_read_from_the_environment(
    variable: str, value: str | None, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("BREWER_DISABLE_PLUGINS", "BREWER_PLUGINS"):
        monkeypatch.delenv(each, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)

    choice = Choice.of_environment()

    of_none = Choice()
    if variable == "BREWER_PLUGINS":
        assert (choice.disabled, choice.allowed) == (of_none.disabled, frozenset(names) or None)
    else:
        assert (choice.disabled, choice.allowed) == (frozenset(names), of_none.allowed)


# An allow-list


def two_and_brewers_own(site: Path) -> None:
    for name in ("one", "two", "brewer-core"):
        module = f"of_{name.replace('-', '_')}"
        fake_distribution(site, name, "1.0", {"l": module}, {f"{module}.py": loss_module(module)})


@pytest.mark.parametrize("allowed", ["two", "two:l"])
def test_what_is_not_allowed_is_not_imported_and_brewers_own_always_is(allowed: str, site: Path) -> None:
    two_and_brewers_own(site)

    registry = registry_of(site, allow=[allowed])

    assert registry.names("kd_loss") == ("of_brewer_core", "of_two")
    assert {plugin.key: plugin.status for plugin in registry.plugins} == {
        "brewer-core:l": "loaded",
        "one:l": "disabled",
        "two:l": "loaded",
    }
    assert "of_one" not in sys.modules


def test_what_is_allowed_may_be_disabled_all_the_same(site: Path) -> None:
    two_and_brewers_own(site)

    assert registry_of(site, allow=["one", "two"], disable=["one"]).names("kd_loss") == ("of_brewer_core", "of_two")


def test_allowing_what_is_not_there_is_refused(site: Path) -> None:
    two_and_brewers_own(site)

    with pytest.raises(RequestError) as caught:
        registry_of(site, allow=["one", "tow"])
    assert str(caught.value) == (
        "cannot allow 'tow': no plugin is called that; did you mean 'two'? Known: brewer-core, brewer-core:l, "
        "one, one:l, two, two:l."
    )


def test_a_plugin_that_brings_commands_alone_may_be_allowed(site: Path) -> None:
    two_and_brewers_own(site)
    fake_distribution(site, "three", "1.0", "[brewer.commands]\ncook = cook:app\n")

    assert registry_of(site, allow=["three"]).names("kd_loss") == ("of_brewer_core",)


# The default registry


@pytest.fixture
def only_site(site: Path, monkeypatch: pytest.MonkeyPatch, no_default: None) -> Path:
    """The same folder, with no other distribution to be found."""
    real = find_plugins
    monkeypatch.setattr("brewer_core.plugins.find_plugins", lambda path=None, group="brewer": real([str(site)], group))
    monkeypatch.delenv("BREWER_DISABLE_PLUGINS", raising=False)
    return site


def test_the_default_registry_is_built_once(only_site: Path) -> None:
    add_healthy(only_site)

    assert default_registry() is default_registry()
    assert default_registry().names("kd_loss") == ("good",)


def test_the_default_registry_warns_once_of_a_plugin_that_failed(only_site: Path) -> None:
    add_healthy(only_site)
    fake_distribution(only_site, "b-broken", "0.1", {"bad": "broken_plugin"}, {"broken_plugin.py": "1 / 0"})

    with pytest.warns(PluginWarning) as caught:
        default_registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default_registry()

    assert [str(warning.message) for warning in caught] == [
        "plugin b-broken:bad was left out: import of broken_plugin fails: ZeroDivisionError: division by zero"
    ]


def test_the_environment_disables_plugins_of_the_default_registry_without_a_warning(
    only_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_healthy(only_site)
    fake_distribution(only_site, "b-broken", "0.1", {"bad": "broken_plugin"}, {"broken_plugin.py": "1 / 0"})
    monkeypatch.setenv("BREWER_DISABLE_PLUGINS", "b-broken:bad, ")

    statuses = {found.key: found.status for found in default_registry().plugins}
    assert statuses == {"a-healthy:good": "loaded", "b-broken:bad": "disabled"}


def test_failed_plugins_are_part_of_the_unknown_name_error(only_site: Path) -> None:
    fake_distribution(only_site, "b-broken", "0.1", {"bad": "broken_plugin"}, {"broken_plugin.py": "1 / 0"})

    with pytest.warns(PluginWarning), pytest.raises(UnknownComponentError, match="division by zero"):
        default_registry().get("kd_loss", "good")


# Plugin objects and single files


def test_an_object_with_hooks_is_a_plugin() -> None:
    made = collect(plugin(brewer_kd_losses={"l1": lambda s, t, temperature: 0}))

    assert [(c.kind.name, c.name) for c in made.components] == [("kd_loss", "l1")]
    assert made.status == "loaded"


def test_a_plugin_object_that_breaks_a_rule_raises_at_once() -> None:
    with pytest.raises(PluginError) as caught:
        collect(plugin(brewer_kd_losses=None))
    assert str(caught.value) == (
        "brewer_kd_losses returned nothing; it must return a mapping from name to implementation."
    )


def test_hooks_are_called_once_a_collection() -> None:
    calls = []

    class Counting:
        @hookimpl
        def brewer_kd_losses(self) -> Mapping[str, Any]:
            calls.append(1)
            return {}

    collect(Counting())

    assert len(calls) == 1


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "my loss.py"
    sys.modules.pop("brewer_plugin_file_my_loss", None)


def test_a_single_file_is_a_plugin(file: Path) -> None:
    file.write_text(loss_module("mine"))

    registry = build_registry(path=[], files=[file])

    component = registry.get("kd_loss", "mine")
    assert component.provenance.distribution == "my loss.py"
    assert component.bind({"scale": 2}).options == {"scale": 2.0}


def test_annotations_that_are_text_evaluate_in_a_single_file(file: Path) -> None:
    text = """
from __future__ import annotations
from typing import Literal
from brewer_core import hookimpl

def loss(s, t, temperature, *, reduction: Literal["mean", "sum"] = "mean"): ...

@hookimpl
def brewer_kd_losses():
    return {"mine": loss}
"""
    file.write_text(text)

    assert build_registry(path=[], files=[file]).check("kd_loss", "mine", {"reduction": "sum"}) == {"reduction": "sum"}


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        load_file(tmp_path / "absent.py")
    assert str(caught.value) == f"plugin file {tmp_path / 'absent.py'} does not exist."


def test_a_file_that_is_no_python_is_told(tmp_path: Path) -> None:
    (tmp_path / "loss.txt").write_text("x = 1")

    with pytest.raises(PluginError) as caught:
        load_file(tmp_path / "loss.txt")
    assert str(caught.value) == f"plugin file {tmp_path / 'loss.txt'} is no Python file; its name must end in .py."


@pytest.mark.parametrize(
    ("text", "reason"), [("1 / 0", "ZeroDivisionError: division by zero"), ("exit()", "SystemExit")]
)
def test_a_file_that_fails_on_import_is_told_and_forgotten(file: Path, text: str, reason: str) -> None:
    file.write_text(text)

    with pytest.raises(PluginError, match=re.escape(reason)) as caught:
        load_file(file)
    assert str(caught.value).startswith(f"plugin file {file} fails on import: {reason}")
    assert "brewer_plugin_file_my_loss" not in sys.modules


def test_a_file_that_breaks_a_rule_is_named(file: Path) -> None:
    file.write_text("x = 1")

    with pytest.raises(PluginError) as caught:
        build_registry(path=[], files=[file])
    assert str(caught.value) == (
        f"plugin file {file}: module brewer_plugin_file_my_loss has no function marked with @hookimpl; "
        "nothing would be provided."
    )


def test_a_file_whose_component_breaks_a_rule_is_named(file: Path) -> None:
    file.write_text(hook("return {'l1': lambda s, t: 0}"))

    with pytest.raises(PluginError, match=rf"^plugin file {re.escape(str(file))}: kd loss `l1` has too few"):
        build_registry(path=[], files=[file])
