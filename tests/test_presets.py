"""Presets: TextBrewer's dictionaries as views of the registry, with its values, its keys, and no way to write to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brewer_core import (
    ADAPTOR_KEYS,
    FEATURES,
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    PROJ_MAP,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
    BrewerError,
    RequestError,
    default_registry,
    register_new,
)
from brewer_core.errors import ReadOnlyError
from differential.reference import presets as theirs

VIEWS: dict[str, tuple[Any, str]] = {
    "KD_LOSS_MAP": (KD_LOSS_MAP, "kd_loss"),
    "MATCH_LOSS_MAP": (MATCH_LOSS_MAP, "match_loss"),
    "PROJ_MAP": (PROJ_MAP, "projection"),
    "WEIGHT_SCHEDULER": (WEIGHT_SCHEDULER, "weight_scheduler"),
    "TEMPERATURE_SCHEDULER": (TEMPERATURE_SCHEDULER, "temperature_scheduler"),
}
each_view = pytest.mark.parametrize(("name", "view", "kind"), [(n, *v) for n, v in VIEWS.items()], ids=list(VIEWS))


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = logits(1, 4, 5), logits(2, 4, 5)


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# Textbrewer's names and values


@each_view
def test_every_name_of_textbrewers_is_there(name: str, view: Any, kind: str) -> None:
    known = getattr(theirs, name)
    assert set(getattr(known, "store", known)) <= set(view)


def test_the_lists_are_textbrewers_and_cannot_be_written_to() -> None:
    assert list(FEATURES) == theirs.FEATURES
    assert list(ADAPTOR_KEYS) == theirs.ADAPTOR_KEYS
    assert isinstance(FEATURES, tuple)
    assert isinstance(ADAPTOR_KEYS, tuple)


@pytest.mark.parametrize("name", ["ce", "mse"])
@pytest.mark.parametrize("temperature", [1, 8.0])
def test_kd_losses_give_textbrewers_values(name: str, temperature: float) -> None:
    torch.testing.assert_close(
        KD_LOSS_MAP[name](STUDENT, TEACHER, temperature), theirs.KD_LOSS_MAP[name](STUDENT, TEACHER, temperature)
    )


@pytest.mark.parametrize("name", ["hidden_mse", "cos", "pkd"])
def test_match_losses_give_textbrewers_values(name: str) -> None:
    hidden, mask = (logits(3, 2, 3, 4), logits(4, 2, 3, 4)), torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(MATCH_LOSS_MAP[name](*hidden, mask=mask), theirs.MATCH_LOSS_MAP[name](*hidden, mask))


@pytest.mark.parametrize(("name", "same"), [("gram", "fsp"), ("mmd", "nst")])
def test_both_names_of_a_loss_on_pairs_give_textbrewers_values(name: str, same: str) -> None:
    pairs = [logits(5, 2, 3, 4), logits(6, 2, 3, 4)], [logits(7, 2, 3, 4), logits(8, 2, 3, 4)]
    expected = theirs.MATCH_LOSS_MAP[name](*pairs)
    torch.testing.assert_close(MATCH_LOSS_MAP[name](*pairs), expected)
    torch.testing.assert_close(MATCH_LOSS_MAP[same](*pairs), expected)


@pytest.mark.parametrize("name", ["linear", "relu", "tanh"])
def test_projections_draw_and_compute_what_textbrewers_do(name: str) -> None:
    made: list[nn.Module] = []
    for projections in (PROJ_MAP, theirs.PROJ_MAP):
        torch.manual_seed(7)
        made.append(projections[name](8, 16))
    states = logits(9, 2, 3, 8)
    assert torch.equal(made[0](states), made[1](states))
    assert [tuple(p.shape) for p in made[0].parameters()] == [(16, 8), (16,)]


@pytest.mark.parametrize("progress", [0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["linear_decay", "linear_growth"])
def test_weight_schedulers_give_textbrewers_values(name: str, progress: float) -> None:
    assert WEIGHT_SCHEDULER[name](progress) == theirs.WEIGHT_SCHEDULER[name](progress)


@pytest.mark.parametrize("key", ["constant", ["constant"]], ids=str)
def test_the_constant_temperature_is_the_base_temperature(key: Any) -> None:
    assert theirs.TEMPERATURE_SCHEDULER["constant"](STUDENT, TEACHER, 4) == 4
    assert TEMPERATURE_SCHEDULER[key](STUDENT, TEACHER, 4) == 4


@pytest.mark.parametrize(
    "key",
    [
        ["flsw", 1, 2],
        ("flsw", 1, 2, 1e-3),
        ["flsw", {"beta": 1, "gamma": 2}],
        ["cwsm", 1],
        ("cwsm", 1),
        ("cwsm", {"beta": 1}),
    ],
    ids=str,
)
def test_temperature_schedulers_are_taken_with_their_values_in_textbrewers_forms(key: Sequence[Any]) -> None:
    expected = theirs.TEMPERATURE_SCHEDULER[key](STUDENT, TEACHER, 8)
    assert expected.shape == (4,)
    torch.testing.assert_close(TEMPERATURE_SCHEDULER[key](STUDENT, TEACHER, 8), expected)
    assert key in TEMPERATURE_SCHEDULER
    assert TEMPERATURE_SCHEDULER.get(key) is not None  # type: ignore[call-overload]  # of a mapping from str, for checkers


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [("flsw", (1, 2), {}), ("flsw", (1,), {"gamma": 2}), ("flsw", (), {"beta": 1, "gamma": 2}), ("cwsm", (3,), {})],
)
def test_temperature_schedulers_are_built_as_textbrewers_are(
    name: str, values: tuple[float, ...], named: dict[str, float]
) -> None:
    expected = theirs.TEMPERATURE_SCHEDULER[name](*values, **named)(STUDENT, TEACHER, 8)
    torch.testing.assert_close(TEMPERATURE_SCHEDULER[name](*values, **named)(STUDENT, TEACHER, 8), expected)


# Mappings


@each_view
def test_a_view_is_a_mapping_of_what_is_registered(name: str, view: Any, kind: str) -> None:
    names = default_registry().names(kind)
    assert tuple(view) == names
    assert len(view) == len(names)
    assert all(known in view for known in names)
    assert "no_such" not in view
    assert view.get("no_such") is None
    assert repr(view) == f"{name}({', '.join(names)})"


@each_view
@pytest.mark.parametrize("key", [3, None, (), [], ["no_such", 1], [["flsw"]]], ids=str)
def test_a_key_that_names_nothing_is_a_key_error(name: str, view: Any, kind: str, key: Any) -> None:
    with pytest.raises(KeyError):
        view[key]
    assert view.get(key, "none") == "none"
    assert key not in view


@pytest.mark.parametrize("key", ["flws", ["flws", 1, 2]], ids=str)
def test_an_unknown_name_is_a_key_error_with_close_names(key: Any) -> None:
    with pytest.raises(KeyError) as caught:
        TEMPERATURE_SCHEDULER[key]
    assert str(caught.value) == (
        "no temperature scheduler is called 'flws'; did you mean 'flsw'? Known: constant, cwsm, flsw."
    )


@pytest.mark.parametrize(
    ("take", "text"),
    [
        (
            lambda: TEMPERATURE_SCHEDULER[["flsw", 1]],
            "options of the temperature scheduler `flsw`: gamma: Field required.",
        ),
        (
            lambda: TEMPERATURE_SCHEDULER["cwsm"]("high"),
            "options of the temperature scheduler `cwsm`: beta: Input should be a valid number.",
        ),
        (
            lambda: TEMPERATURE_SCHEDULER[("cwsm", 1, 2)],
            "temperature scheduler `cwsm` takes values for beta, not [1, 2]; name options in a mapping.",
        ),
        (
            lambda: TEMPERATURE_SCHEDULER["cwsm"](1, 2),
            "temperature scheduler `cwsm` takes values for beta, not [1, 2]; name options in a mapping.",
        ),
        (
            lambda: TEMPERATURE_SCHEDULER["flsw"](1, 2, beta=3),
            "temperature scheduler `flsw` is given beta twice, by position and by name.",
        ),
    ],
)
def test_wrong_values_of_a_temperature_scheduler_are_told(take: Callable[[], Any], text: str) -> None:
    assert message(RequestError, take) == text


# Writing


def my_l1(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    return (student - teacher).abs().mean()


@each_view
def test_writing_to_a_view_is_answered_with_the_ways_to_add(name: str, view: Any, kind: str) -> None:
    hook = {"kd_loss": "brewer_kd_losses", "match_loss": "brewer_match_losses"}.get(kind, f"brewer_{kind}s")

    def write() -> None:
        view["l1"] = my_l1

    assert message(ReadOnlyError, write) == (
        f"{name}['l1'] = ...: components are not written into presets; pass the callable in the config, or give the "
        f"distiller registry=default_registry().with_component('{kind}', 'l1', my_l1), or make it a plugin: "
        f"@hookimpl def {hook}(): return {{'l1': my_l1}}, under an entry point in the group `brewer`."
    )
    assert "l1" not in view


def test_deleting_from_a_view_is_refused() -> None:
    def delete() -> None:
        del KD_LOSS_MAP["ce"]

    assert message(ReadOnlyError, delete) == (
        "KD_LOSS_MAP is a read-only view; disable the plugin that provides 'ce' with BREWER_DISABLE_PLUGINS."
    )
    assert "ce" in KD_LOSS_MAP


@pytest.mark.parametrize(
    ("map_name", "kind", "hook"),
    [
        ("kd_loss", "kd_loss", "brewer_kd_losses"),
        ("match_Loss", "match_loss", "brewer_match_losses"),
        ("match_loss", "match_loss", "brewer_match_losses"),
        ("projection", "projection", "brewer_projections"),
        ("weight_scheduler", "weight_scheduler", "brewer_weight_schedulers"),
        ("temperature_scheduler", "temperature_scheduler", "brewer_temperature_schedulers"),
    ],
)
def test_register_new_is_answered_with_the_ways_to_add(map_name: str, kind: str, hook: str) -> None:
    assert message(ReadOnlyError, lambda: register_new(map_name, "mine", lambda a, b: a)) == (
        f"register_new('{map_name}', 'mine', ...): components are not written into presets; pass the callable in the "
        f"config, or give the distiller registry=default_registry().with_component('{kind}', 'mine', ...), or make it a "
        f"plugin: @hookimpl def {hook}(): return {{'mine': ...}}, under an entry point in the group `brewer`."
    )


def test_every_map_name_of_textbrewers_is_known_to_register_new() -> None:
    for map_name in theirs.MAPS:
        assert message(ReadOnlyError, lambda: register_new(map_name, "mine", my_l1))  # noqa: B023  # called at once


def test_register_new_tells_which_maps_there_are() -> None:
    assert message(RequestError, lambda: register_new("losses", "mine", my_l1)).startswith(
        "no kind of component is called 'losses'; the kinds are kd_loss, match_loss, projection, weight_scheduler, "
        "temperature_scheduler, "
    )


def test_the_way_that_the_error_offers_works() -> None:
    registry = default_registry().with_component("match_Loss", "my_l1", my_l1)
    method = registry.bind("match_loss", "my_l1")
    assert method(STUDENT, TEACHER, None) == my_l1(STUDENT, TEACHER)
    assert "my_l1" not in MATCH_LOSS_MAP
