"""Sizes of layers compared with textbrewer's, loaders without end, and initial weights."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from brewer_core.errors import DataError, RequestError
from brewer_core.utils import LayerNode, cycle, display_parameters, initializer_builder
from differential.reference import textbrewer
from tiny import Tiny

theirs = textbrewer.utils


def table(text: str) -> list[tuple[str, tuple[Any, ...] | None]]:
    """The rows of a table: name and numbers, which textbrewer leaves out of a layer with a single child."""
    rows = []
    for line in text.strip().splitlines()[1:]:
        cells = re.match(r"^\s*--(.*?):?\s*(?:\s([\d,]+)\s+([\d.]+%)\s+([\d.]+))?$", line)
        assert cells, line
        name, *numbers = cells.groups()
        rows.append((name.replace(" (", "("), tuple(numbers) if numbers[0] else None))
    return rows


def values(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[float]]:
    """The numbers of every node by path; textbrewer's and ours are walked alike."""
    found = {path: list(node.value)}
    for name, child in node.children_name.items():
        found |= values(child, (*path, name))
    return found


class Tied(nn.Module):
    """A model with tied weights, a buffer, a layer without weights, and one nested in a single child."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.body = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)))
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.tensor(1.0))


# Compared with textbrewer


MODELS: Mapping[str, Any] = {
    "linear": nn.Linear(3, 2),
    "tied": Tied(),
    "tiny": Tiny(6, 2),
    "half": nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 1000)).half(),
    "state dict": Tied().state_dict(),
    "transformer": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
}


@pytest.mark.parametrize("max_level", [None, 0, 1, 2, 9])
@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_textbrewers_numbers(name: str, max_level: int | None) -> None:
    expected = table(theirs.display_parameters(MODELS[name], max_level)[0])
    shown = table(display_parameters(MODELS[name], max_level)[0])

    assert [row[0] for row in shown] == [row[0] for row in expected]
    assert all(ours[1] == real[1] for ours, real in zip(shown, expected, strict=True) if real[1])
    assert all(row[1] is not None for row in shown)


@pytest.mark.parametrize("name", MODELS)
def test_the_tree_has_textbrewers_values_under_the_same_names(name: str) -> None:
    text, real = theirs.display_parameters(MODELS[name])
    _, tree = display_parameters(MODELS[name])

    assert text
    assert values(tree) == values(real)
    assert tree.value[0] == real.value[0] > 0


def test_a_hugging_face_model_has_textbrewers_numbers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=30, **sizes))

    tree = display_parameters(model)[1]

    assert values(tree) == values(theirs.display_parameters(model)[1])
    assert tree.parameters == sum(p.numel() for p in model.parameters())


# By hand


def test_the_table_by_hand() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    model[1].weight = model[0].weight

    assert display_parameters(model)[0].splitlines() == [
        "LAYER NAME             #PARAMS    RATIO  MEM(MB)",
        "--model                263,168  100.00%     1.00",
        "  --0                  262,656   99.81%     1.00",
        "    --weight           262,144   99.61%     1.00",
        "    --bias                 512    0.19%     0.00",
        "  --1                      512    0.19%     0.00",
        "    --weight (shared)        0    0.00%     0.00",
        "    --bias                 512    0.19%     0.00",
    ]


def test_nodes_keep_their_names_and_lead_up_and_down() -> None:
    tree = display_parameters(Tied())[1]
    shared = tree["head"]["weight"]

    assert (tree.name, tree.fullname, tree.parent) == ("model", "model", None)
    assert (shared.name, shared.fullname, shared.shared, shared.value) == ("weight", "head.weight", True, [0, 0.0])
    assert shared.parent is tree["head"]
    assert "head" in tree
    assert "heads" not in tree
    assert [child.name for child in tree.children] == ["gain", "embedding", "body", "head"]
    assert isinstance(tree.children_name["body"]["0"], LayerNode)
    assert tree["embedding"].value == [24, 96 / 1024 / 1024]
    assert not tree["head"].shared


def test_a_layer_is_shared_where_all_of_it_is() -> None:
    layer = nn.Linear(2, 2)
    tree = display_parameters(nn.ModuleDict({"first": layer, "second": layer}))[1]

    assert (tree["first"].shared, tree["second"].shared, tree.parameters) == (False, True, 6)


def test_max_level_cuts_the_table_and_not_the_tree() -> None:
    text, tree = display_parameters(Tied(), max_level=1)

    assert [row[0] for row in table(text)] == ["model", "gain", "embedding", "body", "head"]
    assert "weight" in tree["head"]


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), {}])
def test_what_has_no_weights_weighs_nothing(model: Any) -> None:
    text, tree = display_parameters(model)

    assert table(text) == [("model", ("0", "0.00%", "0.00"))]
    assert (tree.value, tree.children) == ([0, 0.0], ())


def test_a_single_number_is_a_parameter() -> None:
    assert display_parameters({"scale": torch.tensor(2.0)})[1]["scale"].value == [1, 4 / 1024 / 1024]


def test_a_name_may_be_a_tensor_and_a_layer() -> None:
    tree = display_parameters({"a.b": torch.ones(3), "a": torch.ones(2)})[1]

    assert (tree["a"].parameters, tree["a"]["b"].parameters, tree.parameters) == (5, 3, 5)


# Which tensors are one


WEIGHT = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("other", "parameters"),
    [
        (WEIGHT, 24),
        (WEIGHT.detach(), 24),
        (WEIGHT.t(), 24),
        (WEIGHT.view(-1), 24),
        (WEIGHT.view(2, 2, 6)[:, None], 24),
        (WEIGHT.clone(), 48),
        (WEIGHT[:2], 36),
        (WEIGHT[2:], 36),
        (WEIGHT[:, :3], 36),
        (WEIGHT[:, ::2], 36),
        (WEIGHT.view(torch.int32), 48),
    ],
)
def test_tensors_are_one_where_they_hold_the_same_elements(other: Tensor, parameters: int) -> None:
    tree = display_parameters({"weight": WEIGHT, "other": other})[1]

    assert tree.parameters == parameters
    assert tree["other"].shared == (parameters == 24)
    assert not tree["weight"].shared


def test_two_halves_of_one_storage_are_two_tensors() -> None:
    tree = display_parameters({"first": WEIGHT[:2], "second": WEIGHT[2:]})[1]

    assert [child.parameters for child in tree.children] == [12, 12]


def test_empty_tensors_are_not_shared() -> None:
    tree = display_parameters({"first": torch.ones(0, 3), "second": torch.ones(0, 3), "third": torch.ones(1)})[1]

    assert [child.shared for child in tree.children] == [False, False, False]
    assert tree.parameters == 1


def test_tensors_on_meta_are_shared_only_where_they_are_tied() -> None:
    with torch.device("meta"):
        model = Tied()

    tree, real = display_parameters(model)[1], display_parameters(Tied())[1]

    assert values(tree) == values(real)
    assert tree["head"]["weight"].shared
    apart = {"first": torch.ones(3, device="meta"), "second": torch.ones(3, device="meta")}
    assert display_parameters(apart)[1].parameters == 6


def test_sparse_tensors_count_as_in_textbrewer() -> None:
    assert display_parameters({"mask": torch.eye(3).to_sparse()})[1].parameters == 9


# What is no model


@pytest.mark.parametrize("given", ["model.pt", None, [torch.ones(2)], torch.ones(2), nn.Linear])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(RequestError) as caught:
        display_parameters(given)
    assert isinstance(caught.value, TypeError)  # as textbrewer raised
    assert str(caught.value) == (
        f"display_parameters takes an nn.Module or a state dict, not {repr(given)[:80]}; of a file, load the state dict "
        "first, or use `brewer inspect`."
    )


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            {"model": {"weight": torch.ones(2)}},
            "the entry 'model' of the state dict is of type dict, not a tensor; pass the part with the weights, state['model'].",
        ),
        (
            {"step": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "learner": {"weight": torch.ones(2)}},
            "the entry 'step' of the state dict is of type int, not a tensor; pass the part with the weights, state['learner'].",
        ),
        (
            {"state": {"epoch": 1, "model": {"weight": torch.ones(2)}}},
            "the entry 'state' of the state dict is of type dict, not a tensor; pass the part with the weights, "
            "state['state']['model'].",
        ),
        (
            {"weight": torch.ones(2), "epoch": 3},
            "the entry 'epoch' of the state dict is of type int, not a tensor; leave it out.",
        ),
    ],
)
def test_an_entry_that_is_no_tensor_is_named_with_what_to_pass(state: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError) as caught:
        display_parameters(state)
    assert str(caught.value) == text


def test_the_extra_state_of_a_module_is_passed_over() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    model = nn.Sequential(Extra(2, 2))

    assert "0._extra_state" in model.state_dict()
    assert display_parameters(model)[1].parameters == display_parameters(model.state_dict())[1].parameters == 6


def test_a_lazy_layer_is_told_what_to_do() -> None:
    with pytest.raises(RequestError) as caught:
        display_parameters(nn.Sequential(nn.LazyLinear(3)))
    assert str(caught.value) == "'0.weight' is not initialised yet; run a batch through the model first."


def test_a_negative_level_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        display_parameters(nn.Linear(2, 2), max_level=-1)
    assert str(caught.value) == "max_level is -1; it must be 0 or more, or None for every level."


# Loaders without end


def test_a_loader_is_read_pass_after_pass() -> None:
    assert list(itertools.islice(cycle([1, 2, 3]), 8)) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_every_batch_is_given_before_the_next_is_read() -> None:
    read: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[int]:
            for number in (1, 2):
                read.append(number)
                yield number

    stream, seen = cycle(Loader()), []
    assert read == []
    for _ in range(5):
        seen.append(next(stream))
        assert read == seen
    assert seen == [1, 2, 1, 2, 1]


def test_an_empty_loader_is_an_error_in_place_of_a_spin() -> None:
    with pytest.raises(DataError) as caught:
        next(cycle([]))
    assert str(caught.value) == "the loader is empty; it must yield at least one batch."
    with pytest.raises(DataError, match=r"^the loader of task 'a' is empty;"):
        next(cycle(iter(()), name="the loader of task 'a'"))


def test_a_generator_is_spent_after_its_batches() -> None:
    stream = cycle((number for number in (1, 2)), name="dataloaders['a']")

    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(DataError) as caught:
        next(stream)
    assert str(caught.value) == (
        "dataloaders['a'] can be iterated only once, and is spent after 2 batches; pass a DataLoader or a list, or ask for "
        "fewer steps."
    )


class Recording(DistributedSampler[int]):
    """A sampler that notes the epochs that it is told."""

    def __init__(self) -> None:
        super().__init__(range(4), num_replicas=2, rank=0)  # type: ignore[arg-type]  # a range will do
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)
        super().set_epoch(epoch)


def test_a_distributed_sampler_hears_of_each_pass() -> None:
    sampler = Recording()
    loader: Any = DataLoader(range(4), batch_size=1, sampler=sampler)  # type: ignore[arg-type]

    list(itertools.islice(cycle(loader), 5))

    assert sampler.told == [0, 1, 2]


def test_no_other_sampler_is_touched() -> None:
    class Own(RandomSampler):
        def set_epoch(self, epoch: int) -> None:
            raise AssertionError(epoch)

    loader: Any = DataLoader(range(4), sampler=Own(range(4)))  # type: ignore[arg-type]

    assert len(list(itertools.islice(cycle(loader), 6))) == 6


# Initial weights


@pytest.mark.parametrize("std", [0.02, 1.5, 0])
def test_initial_weights_are_those_that_textbrewer_draws(std: float) -> None:
    def model() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Embedding(7, 4, padding_idx=0),
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            nn.Linear(4, 2, bias=False),
            nn.Conv1d(2, 2, 1),
        )

    made = []
    for builder in (initializer_builder, theirs.initializer_builder):
        made.append(model().apply(builder(std)).state_dict())

    assert list(made[0]) == list(made[1])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not torch.equal(made[0]["1.weight"], model().state_dict()["1.weight"])
    assert made[0]["1.bias"].eq(0).all()


def test_initial_weights_leave_the_gradient_alone() -> None:
    layer = nn.Linear(2, 2).apply(initializer_builder(0.1))

    assert layer.weight.requires_grad
    assert layer.weight.grad_fn is None


def test_a_model_that_was_saved_and_read_again_weighs_the_same() -> None:
    buffer = io.BytesIO()
    torch.save(Tied().state_dict(), buffer)
    buffer.seek(0)

    assert values(display_parameters(torch.load(buffer))[1]) == values(display_parameters(Tied())[1])
