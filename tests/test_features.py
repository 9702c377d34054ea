"""Features: what an adaptor may return, how tensors are normalised and their axes named, and the counts of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from brewer_core.errors import AdaptorError
from brewer_core.features import Counts, Feature, Features, feature_of, features_read, layers_read, names_of_layers


def zeros(*shape: int, **arguments: Any) -> torch.Tensor:
    return torch.zeros(shape, **arguments)


# Normalisation


def test_a_single_tensor_becomes_a_tuple_of_one() -> None:
    logits = zeros(2, 3)

    features = Features.of({"logits": logits})

    assert isinstance(features["logits"], tuple)
    assert len(features["logits"]) == 1
    assert features["logits"][0] is logits


@pytest.mark.parametrize("make", [list, tuple])
def test_lists_and_tuples_become_tuples_of_the_same_tensors(make: Any) -> None:
    layers = [zeros(2, 4, 3), zeros(2, 4, 3)]

    hidden = Features.of({"hidden": make(layers)})["hidden"]

    assert isinstance(hidden, tuple)
    assert [a is b for a, b in zip(hidden, layers, strict=True)] == [True, True]


def test_what_is_none_is_absent() -> None:
    features = Features.of({"logits": zeros(2, 3), "attention": None})

    assert list(features) == ["logits"]
    assert "attention" not in features
    assert features.first("attention") is None


def test_layers_that_are_all_none_are_absent() -> None:
    assert list(Features.of({"logits": zeros(2, 3), "attention": (None, None)})) == ["logits"]


@pytest.mark.parametrize("value", ["text", 3, {"a": zeros(1)}, [zeros(1), "text"], ([zeros(1)],)])
def test_what_is_no_tensor_is_left_out_under_a_name_of_the_adaptors_own(value: Any) -> None:
    assert list(Features.of({"logits": zeros(2, 3), "task": value, "pooled": zeros(2, 4)})) == ["logits", "pooled"]


def test_features_are_taken_as_they_are() -> None:
    features = Features.of({"logits": zeros(2, 3)})

    assert Features.of(features) is features


def test_an_empty_list_is_a_feature_without_tensors() -> None:
    features = Features.of({"hidden": []})

    assert features["hidden"] == ()
    assert features.first("hidden") is None


def test_first_gives_the_first_tensor() -> None:
    first, second = zeros(2, 3), zeros(2, 3)

    assert Features.of({"logits": [first, second]}).first("logits") is first


def test_the_adaptors_dict_is_not_kept() -> None:
    returned = {"logits": zeros(2, 3)}
    features = Features.of(returned)

    returned["late"] = zeros(1)

    assert list(features) == ["logits"]


# Axes


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("logits", (2, 3), "B C"),
        ("logits", (2, 4, 3), "B L V"),
        ("logits_mask", (2, 4), "B L"),
        ("labels", (2,), "B"),
        ("labels", (2, 4), "B L"),
        ("labels", (2, 4, 3), "B L C"),
        ("losses", (), ""),
        ("losses", (2,), "N"),
        ("hidden", (2, 4, 3), "B L D"),
        ("hidden", (2, 3), "B D"),
        ("attention", (2, 5, 4, 4), "B H L L"),
        ("attention", (2, 4, 4), "B L L"),
        ("inputs_mask", (2, 4), "B L"),
        ("captured", (2,), "B"),
        ("captured", (2, 4, 3), "B L D"),
        ("captured", (1, 2, 3, 4, 5), "* * * * *"),
        ("logits", (2, 3, 4, 5), "* * * *"),
    ],
)
def test_axes_follow_from_name_and_rank(name: str, shape: tuple[int, ...], axes: str) -> None:
    assert Features.of({name: zeros(*shape)}).axes(name) == axes


def test_a_feature_may_state_its_axes() -> None:
    queries = zeros(2, 5, 4, 3)

    features = Features.of({"queries": Feature((queries,), "B H L D")})

    assert features.axes("queries") == "B H L D"
    assert features["queries"] == (queries,)


# Errors


@pytest.mark.parametrize(("returned", "shown"), [(zeros(2, 3), "Tensor"), ([1], "list"), (None, "NoneType")])
def test_what_is_no_mapping_is_refused(returned: Any, shown: str) -> None:
    with pytest.raises(AdaptorError) as caught:
        Features.of(returned, "the teacher's adaptor `bert`")
    assert str(caught.value) == (f"the teacher's adaptor `bert` returned a {shown}; it must return a dict of features.")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.0, "float"),
        ("text", "str"),
        ([[zeros(1)]], "list"),
        ({"a": zeros(1)}, "dict"),
    ],
)
def test_what_is_no_tensor_is_refused(value: Any, shown: str) -> None:
    with pytest.raises(AdaptorError) as caught:
        Features.of({"hidden": value})
    assert str(caught.value) == (
        f"the adaptor returned {shown} under `hidden`; a feature is a tensor or a list of tensors."
    )


def test_single_layers_and_masks_of_single_heads_may_be_none_and_keep_their_place() -> None:
    features = Features.of({"hidden": [None, zeros(2, 3, 4)], "logits_mask": (None, zeros(2, 3))})
    assert [part is None for name in features for part in features[name]] == [True, False] * 2
    assert (features.axes("hidden"), features.axes("logits_mask")) == ("B L D", "B L")
    assert features.float().to(torch.device("cpu"))["hidden"][1].shape == (2, 3, 4)


def test_logits_may_not_have_gaps() -> None:
    with pytest.raises(AdaptorError, match=r"^the adaptor returned NoneType under `logits`; a feature is"):
        Features.of({"logits": [zeros(1, 2), None]})


@pytest.mark.parametrize("labels", [["a", "b"], [zeros(2), None], 3])
def test_labels_that_are_no_tensors_are_left_out(labels: Any) -> None:
    assert list(Features.of({"logits": zeros(2, 3), "labels": labels})) == ["logits"]


# Copies


def test_float_lifts_half_precision_and_leaves_float64_masks_and_labels() -> None:
    features = Features.of(
        {
            "logits": zeros(2, 3, dtype=torch.bfloat16),
            "hidden": [zeros(2, 4, 3, dtype=torch.float64), zeros(2, 4, 3)],
            "labels": zeros(2, dtype=torch.long),
            "inputs_mask": zeros(2, 4, dtype=torch.bool),
        }
    ).float()

    dtypes = {name: [tensor.dtype for tensor in tensors] for name, tensors in features.items()}
    assert dtypes == {
        "logits": [torch.float32],
        "hidden": [torch.float64, torch.float32],
        "labels": [torch.int64],
        "inputs_mask": [torch.bool],
    }


def test_float_copies_no_float32_and_keeps_axes() -> None:
    features = Features.of({"x": Feature((zeros(2, 3),), "B Q")})

    assert features.float()["x"][0] is features["x"][0]
    assert features.float().axes("x") == "B Q"


def test_to_moves_every_tensor_and_keeps_axes() -> None:
    features = Features.of({"hidden": [zeros(2, 4, 3), zeros(2, 4, 3)]}).to(torch.device("meta"))

    assert [tensor.device.type for tensor in features["hidden"]] == ["meta", "meta"]
    assert features.axes("hidden") == "B L D"


def test_gradients_flow_through_float() -> None:
    logits = zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)

    Features.of({"logits": logits}).float()["logits"][0].sum().backward()

    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0] * 3] * 2


def test_replace_gives_new_features_and_leaves_the_old_ones() -> None:
    features = Features.of({"logits": zeros(2, 3)})

    replaced = features.replace(logits=Feature((zeros(2, 5),), "B C"), extra=Feature((zeros(2),), "B"))

    assert (replaced["logits"][0].shape, list(replaced)) == ((2, 5), ["logits", "extra"])
    assert (features["logits"][0].shape, list(features)) == ((2, 3), ["logits"])


def test_features_are_a_mapping_that_cannot_be_written_to() -> None:
    features = Features.of({"logits": zeros(2, 3)})

    assert isinstance(features, Mapping)
    assert len(features) == 1
    with pytest.raises(TypeError):
        features["logits"] = (zeros(1),)  # type: ignore[index]


def test_features_show_shapes_and_no_numbers() -> None:
    assert repr(Features.of({"logits": zeros(2, 3), "hidden": [zeros(1), zeros(2)]})) == (
        "Features({'logits': [(2, 3)], 'hidden': [(1,), (2,)]})"
    )


# Counts


def test_counts_of_rows_count_everything_as_one_a_row() -> None:
    assert Counts.of_rows(8) == Counts(rows=8, tokens=8, token_pairs=8, logits=8, labels=8)


def test_counts_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Counts.of_rows(8).rows = 9  # type: ignore[misc]


def test_layers_stacked_in_one_tensor_are_taken_apart() -> None:
    stacked = torch.arange(3 * 2 * 4 * 5.0).reshape(3, 2, 4, 5)

    features = Features.of({"hidden": stacked, "attention": zeros(2, 1, 3, 4, 4)})

    assert [tensor.tolist() for tensor in features["hidden"]] == stacked.tolist()
    assert features.axes("hidden") == "B L D"
    assert [tuple(tensor.shape) for tensor in features["attention"]] == [(1, 3, 4, 4)] * 2


# Names in needs


def test_a_name_is_that_of_a_feature_or_of_one_layer_of_it() -> None:
    names = ["hidden", "hidden[3]", "attention[-1]", "value_states[0]"]
    assert [feature_of(name) for name in names] == ["hidden", "hidden", "attention", "value_states"]


@pytest.mark.parametrize("name", ["module:encoder.layer.3", "module:encoder.layer[0]", "module:pooler[mean]"])
def test_what_a_module_returns_is_named_as_a_whole(name: str) -> None:
    assert feature_of(name) == name
    assert layers_read({name}, name) is None


def test_needs_tell_which_layers_are_read() -> None:
    needs = frozenset({"logits", "hidden[3]", "hidden[-1]", "attention"})
    assert features_read(needs) == {"logits", "hidden", "attention"}
    assert layers_read(needs, "hidden") == {3, -1}
    assert layers_read(needs, "attention") is None
    assert layers_read(needs, "value_states") == frozenset()


def test_all_layers_are_read_where_all_of_them_or_some_are() -> None:
    assert layers_read(frozenset({"hidden[3]"}) | {"hidden"}, "hidden") is None


def test_layers_are_named_one_by_one() -> None:
    assert names_of_layers("hidden", 3) == {"hidden[3]"}
    assert names_of_layers("hidden", (0, -1)) == {"hidden[0]", "hidden[-1]"}
    assert names_of_layers("hidden", None) == {"hidden"}
    assert names_of_layers("logits", 0) == {"logits"}


def test_layers_that_are_not_read_are_let_go_and_keep_their_places() -> None:
    hidden, attention = [zeros(1, 2, 3) for _ in range(4)], [zeros(1, 1, 2, 2)]
    features = Features.of({"hidden": hidden, "attention": attention, "inputs_mask": zeros(1, 2)})

    read = features.only_read({"hidden[0]", "hidden[-2]"})

    assert list(read) == ["inputs_mask", "hidden"]
    assert [tensor is None for tensor in read["hidden"]] == [False, True, False, True]
    assert read["hidden"][-2] is hidden[2]
    assert read.axes("hidden") == "B L D"


def test_a_layer_that_there_is_not_is_no_other_layer() -> None:
    features = Features.of({"hidden": [zeros(1, 2, 3), zeros(1, 2, 3)]})
    assert features.only_read({"hidden[2]", "hidden[-3]"})["hidden"] == (None, None)


def test_features_that_are_read_whole_stay_as_they_are() -> None:
    features = Features.of({"hidden": [zeros(1, 2, 3), zeros(1, 2, 3)], "value_states": [zeros(1, 2), zeros(1, 2)]})
    read = features.only_read({"hidden", "hidden[0]", "value_states[0]"})
    assert {name: [t is None for t in read[name]] for name in read} == {
        "value_states": [False] * 2,
        "hidden": [False] * 2,
    }
