"""The registry: look-up, the words of its errors, and that nobody writes to it."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from brewer_core.components import Provenance, component
from brewer_core.errors import (
    ComponentError,
    ConflictingComponentError,
    PluginError,
    RequestError,
    UnknownComponentError,
)
from brewer_core.plugins import collect
from brewer_core.registry import Plugin, Registry
from fakes import plugin


@component(positional=("beta", "gamma"))
def flow(
    student_logits: Any,
    teacher_logits: Any,
    base_temperature: Any,
    *,
    beta: float,
    gamma: Annotated[float, Field(ge=0)] = 1.0,
    eps: float = 1e-4,
) -> Any:
    """Follow the flow."""
    return (base_temperature, beta, gamma)


def distance(student: Any, teacher: Any, mask: Any = None) -> Any:
    """A distance."""


def registry_of(*plugins: Plugin) -> Registry:
    return Registry(plugins, collect)


@pytest.fixture
def registry() -> Registry:
    hooks = plugin(
        brewer_match_losses={"hidden_mse": distance, "hidden_mae": distance, "cos": distance},
        brewer_temperature_schedulers={"flow": flow},
    )
    return registry_of(collect(hooks, Provenance("brewer-core", "0.1.0", "all")))


def unknown(registry: Registry, kind: str, name: str) -> str:
    with pytest.raises(UnknownComponentError) as caught:
        registry.get(kind, name)
    return str(caught.value)


def test_components_are_found_by_kind_and_name(registry: Registry) -> None:
    found = registry.get("match_loss", "cos")

    assert (found.kind.name, found.name, found.implementation) == ("match_loss", "cos", distance)
    assert registry.names("match_loss") == ("cos", "hidden_mae", "hidden_mse")
    assert registry.names("kd_loss") == ()


def test_components_are_listed_by_kind_and_then_by_name(registry: Registry) -> None:
    listed = [(c.kind.name, c.name) for c in registry.components()]

    assert listed == [
        ("match_loss", "cos"),
        ("match_loss", "hidden_mae"),
        ("match_loss", "hidden_mse"),
        ("temperature_scheduler", "flow"),
    ]


def test_kinds_are_understood_in_every_spelling(registry: Registry) -> None:
    assert registry.get("match-losses", "cos") is registry.get("match_loss", "cos")
    assert registry.names("match_losses") == registry.names("match_loss")


def test_an_unknown_kind_is_told(registry: Registry) -> None:
    with pytest.raises(
        RequestError, match=r"^no kind of component is called 'losses'; the kinds are kd_loss, match_loss,"
    ):
        registry.get("losses", "cos")
    with pytest.raises(RequestError, match=r"^no kind of component is called 'losses';"):
        registry.names("losses")


# The unknown name


def test_an_unknown_name_is_told_with_close_matches_and_known_names(registry: Registry) -> None:
    assert unknown(registry, "match_loss", "hiden_mse") == (
        "no match loss is called 'hiden_mse'; did you mean 'hidden_mse' or 'hidden_mae'? "
        "Known: cos, hidden_mae, hidden_mse."
    )


def test_an_unknown_name_that_is_close_to_nothing_is_told_with_known_names(registry: Registry) -> None:
    assert unknown(registry, "match_loss", "xyz") == (
        "no match loss is called 'xyz'. Known: cos, hidden_mae, hidden_mse."
    )


def test_where_a_kind_is_empty_none_are_known(registry: Registry) -> None:
    assert unknown(registry, "kd_loss", "ce") == "no kd loss is called 'ce'. Known: none."


def test_the_distribution_that_is_known_to_provide_a_name_is_told(registry: Registry) -> None:
    assert unknown(registry, "match_loss", "pkd") == (
        "no match loss is called 'pkd'. Known: cos, hidden_mae, hidden_mse. brewer-loss-pkd provides it: "
        "pip install brewer-loss-pkd (from a checkout: pip install ./plugins/brewer-loss-pkd)."
    )


def test_disabled_and_failed_plugins_are_joined_to_the_unknown_name() -> None:
    registry = registry_of(
        collect(plugin(brewer_match_losses={"cos": distance}), Provenance("brewer-core", "0.1.0", "match_losses")),
        Plugin(Provenance("brewer-loss-a", "1.0", "a"), "disabled"),
        Plugin(Provenance("brewer-loss-b", "1.0", "b"), "failed", error="import of b fails: OSError: no file"),
        Plugin(Provenance("brewer-loss-c", "1.0", "c"), "failed", error="brewer_kd_losses fails: KeyError: 'x'"),
        Plugin(Provenance("brewer-loss-d", "1.0", "d"), "disabled"),
    )

    assert unknown(registry, "match_loss", "pkd") == (
        "no match loss is called 'pkd'. Known: cos. brewer-loss-pkd provides it: pip install brewer-loss-pkd "
        "(from a checkout: pip install ./plugins/brewer-loss-pkd). Disabled: brewer-loss-a:a, brewer-loss-d:d. "
        "Plugins that failed to load: brewer-loss-b:b (import of b fails: OSError: no file); "
        "brewer-loss-c:c (brewer_kd_losses fails: KeyError: 'x')."
    )


# New registries


def test_with_plugin_gives_a_new_registry_and_leaves_the_old_one(registry: Registry) -> None:
    extended = registry.with_plugin(plugin(brewer_match_losses={"mine": distance}))

    assert extended is not registry
    assert extended.names("match_loss") == ("cos", "hidden_mae", "hidden_mse", "mine")
    assert registry.names("match_loss") == ("cos", "hidden_mae", "hidden_mse")
    assert len(registry.plugins) == 1
    assert str(extended.get("match_loss", "mine").provenance) == "(passed in Python) [SimpleNamespace]"


def test_with_plugin_refuses_an_object_without_hooks(registry: Registry) -> None:
    with pytest.raises(PluginError) as caught:
        registry.with_plugin(object())
    assert str(caught.value) == "an object has no function marked with @hookimpl; nothing would be provided."


def test_a_plugin_that_provides_a_name_again_conflicts(registry: Registry) -> None:
    extended = registry.with_plugin(plugin(brewer_match_losses={"cos": distance}))

    assert "cos" not in extended.names("match_loss")
    assert "cos" in registry.names("match_loss")


@pytest.mark.parametrize("key", ["brewer-core", "brewer-core:all", " brewer-core "])
def test_without_disables_a_plugin_and_leaves_the_old_registry(registry: Registry, key: str) -> None:
    reduced = registry.without([key])

    assert reduced.components() == ()
    assert [p.status for p in reduced.plugins] == ["disabled"]
    assert [p.status for p in registry.plugins] == ["loaded"]
    assert "Disabled: brewer-core:all." in unknown(reduced, "match_loss", "cos")


def test_without_an_unknown_name_is_refused(registry: Registry) -> None:
    with pytest.raises(RequestError) as caught:
        registry.without(["xyz"])
    assert str(caught.value) == ("cannot disable 'xyz': no plugin is called that. Known: brewer-core, brewer-core:all.")


@pytest.mark.parametrize("nothing", [[], [""], ["  "]])
def test_without_nothing_nothing_changes(registry: Registry, nothing: list[str]) -> None:
    assert registry.without(nothing).components() == registry.components()


# Options


def test_check_completes_options_with_defaults(registry: Registry) -> None:
    checked = registry.check("temperature_scheduler", "flow", {"beta": 2})

    assert checked == {"beta": 2.0, "gamma": 1.0, "eps": 1e-4}


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([2], {}, {"beta": 2.0, "gamma": 1.0, "eps": 1e-4}),
        ([2, 3], {}, {"beta": 2.0, "gamma": 3.0, "eps": 1e-4}),
        ([2], {"eps": 0.5}, {"beta": 2.0, "gamma": 1.0, "eps": 0.5}),
    ],
)
def test_the_values_of_a_list_go_to_the_options_in_declared_order(
    registry: Registry, values: list[Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert registry.check("temperature_scheduler", "flow", options, values) == expected


def test_the_values_of_a_list_are_validated_like_others(registry: Registry) -> None:
    with pytest.raises(ValidationError) as caught:
        registry.check("temperature_scheduler", "flow", {}, ["2", -1])
    assert [error["loc"] for error in caught.value.errors()] == [("beta",), ("gamma",)]


@pytest.mark.parametrize(
    ("kind", "name", "values", "text"),
    [
        (
            "temperature_scheduler",
            "flow",
            [1, 2, 3],
            "temperature scheduler `flow` takes values for beta, gamma, not [1, 2, 3]; name options in a mapping.",
        ),
        (
            "match_loss",
            "cos",
            [1],
            "match loss `cos` takes no values in a list, not [1]; name options in a mapping.",
        ),
    ],
)
def test_too_many_values_in_a_list_are_refused(
    registry: Registry, kind: str, name: str, values: list[Any], text: str
) -> None:
    with pytest.raises(RequestError) as caught:
        registry.check(kind, name, {}, values)
    assert str(caught.value) == text


def test_bind_gives_the_component_with_its_options_set(registry: Registry) -> None:
    method = registry.bind("temperature_scheduler", "flow", {"beta": 2})

    assert method("s", "t", 8.0, progress=0.5) == (8.0, 2.0, 1.0)
    assert method.component is registry.get("temperature_scheduler", "flow")


def test_bind_tells_wrong_options_in_one_sentence(registry: Registry) -> None:
    with pytest.raises(RequestError) as caught:
        registry.bind("temperature_scheduler", "flow", {"gamma": -1})
    assert str(caught.value) == (
        "options of the temperature scheduler `flow`: beta: Field required; "
        "gamma: Input should be greater than or equal to 0."
    )


# Read-only


@pytest.mark.parametrize("attribute", ["register", "add", "update", "__setitem__", "__delitem__"])
def test_there_is_no_way_to_write_to_a_registry(registry: Registry, attribute: str) -> None:
    assert not hasattr(registry, attribute)


def test_the_plugins_of_a_registry_cannot_be_replaced(registry: Registry) -> None:
    with pytest.raises(AttributeError):
        registry.plugins = ()  # type: ignore[misc]
    assert isinstance(registry.plugins, tuple)
    with pytest.raises(AttributeError):
        registry.plugins[0].status = "failed"  # type: ignore[misc]


def test_a_registry_does_not_keep_the_mapping_that_a_hook_returned() -> None:
    losses = {"cos": distance}
    registry = registry_of().with_plugin(plugin(brewer_match_losses=losses))

    losses["late"] = distance

    assert registry.names("match_loss") == ("cos",)


# One component more


def test_with_component_gives_a_new_registry_and_leaves_the_old_one(registry: Registry) -> None:
    extended = registry.with_component("match_loss", "mine", distance)

    assert extended.names("match_loss") == ("cos", "hidden_mae", "hidden_mse", "mine")
    assert extended.get("match_loss", "mine").implementation is distance
    assert registry.names("match_loss") == ("cos", "hidden_mae", "hidden_mse")
    assert len(registry.plugins) == 1


@pytest.mark.parametrize("kind", ["match_loss", "match-losses", "match_Loss", " Match-Loss "])
def test_with_component_takes_a_kind_in_every_spelling(registry: Registry, kind: str) -> None:
    assert registry.with_component(kind, "mine", distance).get("match_loss", "mine").kind.name == "match_loss"


def test_components_that_were_added_are_plugins_of_their_own(registry: Registry) -> None:
    extended = registry.with_component("match_loss", "mine", distance).with_component("kd_loss", "mine", flow)

    assert [p.key for p in extended.plugins[1:]] == [
        "(passed in Python):match_loss.mine",
        "(passed in Python):kd_loss.mine",
    ]
    assert str(extended.get("match_loss", "mine").provenance) == "(passed in Python) [match_loss.mine]"
    reduced = extended.without(["(passed in Python):match_loss.mine"])
    assert "mine" not in reduced.names("match_loss")
    assert reduced.names("kd_loss") == ("mine",)


def test_with_component_keeps_the_options_of_the_implementation(registry: Registry) -> None:
    extended = registry.with_component("temperature_scheduler", "stream", flow)

    assert extended.check("temperature_scheduler", "stream", {}, [2]) == {"beta": 2.0, "gamma": 1.0, "eps": 1e-4}
    assert extended.bind("temperature_scheduler", "stream", {"eps": 1}, [2, 3])("s", "t", 8.0) == (8.0, 2.0, 3.0)


def test_with_component_refuses_a_name_that_is_taken(registry: Registry) -> None:
    with pytest.raises(ConflictingComponentError) as caught:
        registry.with_component("match_loss", "cos", distance)
    assert str(caught.value) == (
        "match loss `cos` is provided by brewer-core 0.1.0 [all] already; choose another name, or leave out what provides "
        "it: without(['brewer-core:all'])."
    )


def test_with_component_names_all_who_provide_a_name_that_is_in_conflict(registry: Registry) -> None:
    twice = registry.with_plugin(plugin(brewer_match_losses={"cos": distance}))
    with pytest.raises(ConflictingComponentError) as caught:
        twice.with_component("match_loss", "cos", distance)
    assert str(caught.value) == (
        "match loss `cos` is provided by brewer-core 0.1.0 [all] and by (passed in Python) [SimpleNamespace] already; "
        "choose another name, or leave out what provides it: without(['brewer-core:all', "
        "'(passed in Python):SimpleNamespace'])."
    )


def test_a_name_is_free_again_where_its_plugin_is_left_out(registry: Registry) -> None:
    freed = registry.without(["brewer-core:all"]).with_component("match_loss", "cos", distance)

    assert freed.names("match_loss") == ("cos",)


def test_a_name_of_another_kind_is_not_taken(registry: Registry) -> None:
    assert registry.with_component("kd_loss", "cos", flow).names("kd_loss") == ("cos",)


@pytest.mark.parametrize(
    ("kind", "name", "implementation", "error", "text"),
    [
        (
            "losses",
            "mine",
            distance,
            RequestError,
            "no kind of component is called 'losses'; the kinds are kd_loss, match",
        ),
        ("match_loss", "my l1", distance, ComponentError, "match loss 'my l1' has a name that is not an identifier."),
        ("match_loss", "mine", 3, ComponentError, "match loss `mine` is 3, which is neither a function nor a class."),
        (
            "match_loss",
            "mine",
            lambda x: x,
            ComponentError,
            "match loss `mine` has too few positional parameters, 1; it is",
        ),
    ],
)
def test_with_component_checks_what_it_is_given(
    registry: Registry, kind: str, name: str, implementation: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        registry.with_component(kind, name, implementation)
    assert str(caught.value).startswith(text)


def test_an_option_given_twice_is_refused(registry: Registry) -> None:
    with pytest.raises(RequestError) as caught:
        registry.check("temperature_scheduler", "flow", {"beta": 1}, [2])
    assert str(caught.value) == "temperature scheduler `flow` is given beta twice, by position and by name."
