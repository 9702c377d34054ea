"""Custom matches: losses between what modules inside the student and the teacher return."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from brewer_core import CustomMatch, DistillationConfig, GeneralDistiller, TrainingConfig
from brewer_core.errors import BrewerError, ConfigError, RequestError, ShapeError
from tiny import Tiny, adaptor, assert_same, batches, table, weights

Match = Mapping[str, Any] | CustomMatch
Matches = Callable[[nn.Module, nn.Module], list[Match]]
EMBEDDINGS = {"module_T": "embedding", "module_S": "embedding", "weight": 1, "loss": "hidden_mse"}
PROJ = ["linear", 8, 16]


def tokens_too(*names: str) -> Callable[..., Any]:
    """An adaptor that returns the states of tokens before and after the last layer under names of their own."""

    def adapt(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **adaptor("row_logits", "mask", *names)(batch, outputs),
            "embedded": outputs["hidden"][:1],
            "tokens": [outputs["token_logits"]],
        }

    return adapt


def distiller(
    folder: Path,
    *matches: Match | Matches,
    adapt: Callable[..., Any] | None = None,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    training: Mapping[str, Any] | None = None,
    **distillation: Any,
) -> GeneralDistiller:
    """A distiller of a fixed seed; matches may be made from the teacher and the student."""
    torch.manual_seed(0)
    teacher, student = teacher or Tiny(16, 3), student or Tiny(8, 2)
    config = TrainingConfig(output_dir=str(folder), device="cpu", **(training or {}))
    adapt = adapt or tokens_too()
    listed = [each for match in matches for each in (match(teacher, student) if callable(match) else [match])]
    return GeneralDistiller(config, DistillationConfig(**distillation), teacher, student, adapt, adapt, listed)


def trained(made: GeneralDistiller, steps: int = 3, **more: Any) -> dict[str, Tensor]:
    """The student after some steps of plain gradient descent on batches of unlike lengths."""
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, batches(table(), [5, 3, 6]), num_steps=steps, **more)
    return weights(made.model_S)


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# What is compared


def scaled_difference(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, scale: float = 3.0) -> Tensor:
    """A loss of one's own, with an option, over valid tokens."""
    assert mask is not None
    return scale * (student - teacher).square()[mask].mean()


class Weighted(nn.Module):
    """A match loss that learns how much each of five classes counts."""

    def __init__(self, *, start: float = 1.0) -> None:
        super().__init__()
        self.importance = nn.Parameter(torch.full((5,), start))

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return (self.importance * (student - teacher).square()).mean()


LOSSES: dict[str, Any] = {
    "name": "hidden_mse",
    "options": {"name": "pkd", "eps": 1e-3},
    "function": scaled_difference,
    "lambda": lambda student, teacher: (student - teacher).abs().mean(),
    "class": Weighted,
}


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_custom_match_is_the_intermediate_match_of_the_same_tensors(
    loss: str, accumulation: int, tmp_path: Path
) -> None:
    training = {"gradient_accumulation_steps": accumulation}
    of_feature = {"layer_T": 0, "layer_S": 0, "feature": "tokens", "weight": 2, "loss": LOSSES[loss]}
    expected = trained(distiller(tmp_path, intermediate_matches=[of_feature], training=training))
    of_module = {"module_T": "of_tokens", "module_S": "of_tokens", "weight": 2, "loss": LOSSES[loss]}
    assert_same(trained(distiller(tmp_path, of_module, training=training)), expected)
    assert not torch.equal(expected["of_tokens.weight"], trained(distiller(tmp_path))["of_tokens.weight"])


NAMED: dict[str, Matches] = {
    "names in a dict": lambda teacher, student: [{**EMBEDDINGS, "proj_func": PROJ}],
    "modules in a dict": lambda teacher, student: [
        {**EMBEDDINGS, "module_T": teacher.embedding, "module_S": student.embedding, "proj_func": PROJ}
    ],
    "names": lambda teacher, student: [CustomMatch("embedding", "embedding", 1, "hidden_mse", PROJ)],
    "modules": lambda teacher, student: [
        CustomMatch(teacher.embedding, student.embedding, weight=1.0, loss="hidden_mse", proj_func=tuple(PROJ))
    ],
}


@pytest.mark.parametrize("named", NAMED)
def test_modules_are_given_as_such_or_by_dotted_names(named: str, tmp_path: Path) -> None:
    of_feature = {"layer_T": 0, "layer_S": 0, "feature": "embedded", "weight": 1, "loss": "hidden_mse", "proj": PROJ}
    expected = trained(distiller(tmp_path, intermediate_matches=[of_feature]))
    assert_same(trained(distiller(tmp_path, NAMED[named])), expected)


def test_a_step_is_the_one_worked_by_hand(tmp_path: Path) -> None:
    made = distiller(
        tmp_path, {**EMBEDDINGS, "weight": 3, "proj_func": nn.Linear(8, 16)}, kd_loss_weight=0, adapt=tokens_too()
    )
    batch = batches(table(), [4])[0]
    by_hand, projection = copy.deepcopy(made.model_S), copy.deepcopy(made._objective.matches)
    (bridge,) = [module for module in projection.modules() if isinstance(module, nn.Linear)]
    own, taught = bridge(by_hand.embedding(batch["ids"])), made.model_T.embedding(batch["ids"]).detach()
    total, count = torch.zeros(()), 0
    for row, column in batch["mask"].nonzero().tolist():
        total, count = total + (own[row, column] - taught[row, column]).square().mean(), count + 1
    (3 * total / count).backward()
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, [batch], num_steps=1)
    moved = by_hand.embedding.weight - 0.5 * by_hand.embedding.weight.grad
    torch.testing.assert_close(made.model_S.embedding.weight, moved.detach())
    assert_same(
        {name: tensor for name, tensor in weights(made.model_S).items() if name != "embedding.weight"},
        {name: tensor for name, tensor in weights(by_hand).items() if name != "embedding.weight"},
    )


def test_custom_and_intermediate_matches_stand_side_by_side(tmp_path: Path) -> None:
    of_feature = {"layer_T": 0, "layer_S": 0, "feature": "tokens", "weight": 0.5, "loss": "hidden_mse"}
    both = distiller(
        tmp_path,
        {"module_T": "of_tokens", "module_S": "of_tokens", "weight": 0.5, "loss": "hidden_mse"},
        intermediate_matches=[of_feature],
    )
    assert_same(
        trained(both), trained(distiller(tmp_path, intermediate_matches=[{**of_feature, "weight": 1}])), atol=1e-7
    )


def test_two_matches_of_one_module_are_two_terms(tmp_path: Path) -> None:
    tokens = {"module_T": "of_tokens", "module_S": "of_tokens", "loss": "hidden_mse"}
    whole = trained(distiller(tmp_path, {**tokens, "weight": 2}))
    halves = trained(distiller(tmp_path, {**tokens, "weight": 0.5}, {**tokens, "weight": 1.5}))
    assert_same(halves, whole, atol=1e-7)


# Projections


class Doubled(nn.Module):
    """A projection of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, states: Tensor) -> Tensor:
        return torch.cat([self.inner(states), states], dim=-1)


@pytest.mark.parametrize(
    ("projection", "group", "lr"),
    [
        (Doubled, None, 0.5),
        (Doubled, {"lr": 0.01, "weight_decay": 0.1}, 0.01),
        (lambda: PROJ, None, 0.5),
        (lambda: [*PROJ, {"lr": 0.01}], None, 0.01),
        (lambda: [*PROJ, {"lr": 0.2}], {"lr": 0.01}, 0.01),
        (lambda: ["tanh", 8, 16, None], {"lr": 0.01}, 0.01),
    ],
)
def test_a_projection_is_trained_with_its_own_settings(
    projection: Callable[[], Any], group: Any, lr: float, tmp_path: Path
) -> None:
    made = distiller(tmp_path, {**EMBEDDINGS, "proj_func": projection(), "proj_group": group})
    before = weights(made._objective)
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, batches(table(), [8]), num_steps=1)
    assert [entry["lr"] for entry in optimizer.param_groups] == [0.5, lr]
    assert len(optimizer.param_groups[1]["params"]) == 2
    assert all(not torch.equal(tensor, before[name]) for name, tensor in weights(made._objective).items())


def test_a_projection_may_be_a_function(tmp_path: Path) -> None:
    made = distiller(tmp_path, {**EMBEDDINGS, "proj_func": lambda states: torch.cat([states, states], -1)})
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    before = weights(made.model_S)
    made.train(optimizer, batches(table(), [8]), num_steps=1)
    assert len(optimizer.param_groups) == 1
    assert not torch.equal(before["embedding.weight"], weights(made.model_S)["embedding.weight"])


def test_one_projection_of_two_matches_is_one_group(tmp_path: Path) -> None:
    shared = nn.Linear(8, 16)
    first = {**EMBEDDINGS, "proj_func": shared, "proj_group": {"lr": 0.01}}
    made = distiller(tmp_path, first, {**first, "module_S": "layers.1", "proj_group": {"lr": 0.3}})
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, batches(table(), [8]), num_steps=1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.01]


def test_a_loss_with_a_state_is_trained(tmp_path: Path) -> None:
    match = {
        "module_T": "of_tokens",
        "module_S": "of_tokens",
        "weight": 1,
        "loss": Weighted,
        "proj_group": {"lr": 0.05},
    }
    made = distiller(tmp_path, match)
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    made.train(optimizer, batches(table(), [8]), num_steps=2)
    (importance,) = made._objective.parameters()
    assert bool((importance < 1).all())
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


# Models whose modules do more than return one tensor


class Parts(nn.Module):
    """A model with modules that return tuples and mappings, one that runs twice, one shared, and one that never runs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.several = _Several(width)
        self.twice = nn.Linear(width, width)
        self.again = self.twice
        self.idle = nn.Linear(width, width)
        self.out = nn.Linear(width, 4)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor, tags: Tensor) -> dict[str, Any]:
        states = self.embedding(ids)
        first, _, named = self.several(states)
        once = torch.tanh(self.twice(first + named["key"]))
        last = self.again(once)
        return {
            "row_logits": self.out(last[:, 0]),
            "first": [first],
            "all": [first, named["key"]],
            "key": [named["key"]],
            "last": [last],
        }


class _Several(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, width), _Named(width)

    def forward(self, states: Tensor) -> tuple[Tensor, None, dict[str, Tensor]]:
        return self.one(states), None, self.other(states)


class _Named(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        return {"key": self.inner(states), "number": 3}  # type: ignore[dict-item]  # as the models of libraries do


def parts(batch: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: outputs[name] for name in ("first", "all", "key", "last")}
    return {"logits": outputs["row_logits"], "inputs_mask": batch["mask"], **named}


def of_parts(folder: Path, *matches: Match | Matches, **distillation: Any) -> GeneralDistiller:
    torch.manual_seed(0)
    return distiller(folder, *matches, teacher=Parts(8), student=Parts(8), adapt=parts, **distillation)


@pytest.mark.parametrize(
    ("module", "feature", "loss"),
    [
        ("several[0]", "first", "hidden_mse"),
        ("several.other[key]", "key", "cos"),
        ("twice", "last", "hidden_mse"),
        ("again", "last", "hidden_mse"),
    ],
)
def test_one_part_of_an_output_and_the_last_run_of_a_module_are_matched(
    module: str, feature: str, loss: str, tmp_path: Path
) -> None:
    match = {"layer_T": 0, "layer_S": 0, "feature": feature, "weight": 1, "loss": loss}
    expected = trained(of_parts(tmp_path, intermediate_matches=[match]))
    custom = {"module_T": module, "module_S": module, "weight": 1, "loss": loss}
    assert_same(trained(of_parts(tmp_path, custom)), expected)


def test_a_shared_module_is_found_as_an_object(tmp_path: Path) -> None:
    def shared(teacher: nn.Module, student: nn.Module) -> list[Match]:
        return [CustomMatch(teacher.again, student.again, 1, "hidden_mse")]

    custom = {"module_T": "twice", "module_S": "twice", "weight": 1, "loss": "hidden_mse"}
    assert_same(trained(of_parts(tmp_path, shared)), trained(of_parts(tmp_path, custom)))


class Stacked(nn.Module):
    """A module that returns several layers of one model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        first = self.inner[0](states)
        return first, self.inner[1](first)


class Tall(Tiny):
    def __init__(self) -> None:
        super().__init__(8, 1)
        self.stack = Stacked(8)

    def forward(self, ids: Tensor, *more: Any, **named: Any) -> dict[str, Any]:
        return {**super().forward(ids, *more, **named), "stack": list(self.stack(self.embedding(ids)))}


def test_an_output_of_two_layers_is_a_pair(tmp_path: Path) -> None:
    def adapt(batch: Any, outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"logits": outputs["row_logits"], "stack": outputs["stack"]}

    def made(*matches: Match, **distillation: Any) -> GeneralDistiller:
        torch.manual_seed(0)
        return distiller(tmp_path, *matches, teacher=Tall(), student=Tall(), adapt=adapt, **distillation)

    pair = {"layer_T": [0, 1], "layer_S": [0, 1], "feature": "stack", "weight": 1, "loss": "fsp"}
    custom = {"module_T": "stack", "module_S": "stack", "weight": 1, "loss": "fsp"}
    assert_same(trained(made(custom)), trained(made(intermediate_matches=[pair])))


# Hooks, callbacks and logs


def hooks(made: GeneralDistiller) -> int:
    modules = [module for model in (made.model_T, made.model_S) for module in model.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def test_models_have_no_hooks_in_the_callback_and_after_training(tmp_path: Path) -> None:
    made, seen = distiller(tmp_path, {**EMBEDDINGS, "proj_func": PROJ}), []
    trained(made, callback=lambda model, step: seen.append(hooks(made)))
    assert seen == [0]
    assert hooks(made) == 0


def test_a_training_that_fails_leaves_no_hooks(tmp_path: Path) -> None:
    made = distiller(tmp_path, EMBEDDINGS)
    with pytest.raises(ShapeError):
        trained(made)
    assert hooks(made) == 0


def test_hooks_of_the_users_own_stay(tmp_path: Path) -> None:
    made, heard = distiller(tmp_path, {**EMBEDDINGS, "proj_func": PROJ}), []
    made.model_S.embedding.register_forward_hook(lambda *_: heard.append(1))
    trained(made)
    assert len(heard) == 3
    assert hooks(made) == 1


def test_an_evaluation_in_the_callback_does_not_reach_the_next_step(tmp_path: Path) -> None:
    def student(callback: Callable[..., None]) -> dict[str, Tensor]:
        made = distiller(tmp_path, {**EMBEDDINGS, "proj_func": PROJ}, training={"ckpt_steps": 1})
        return trained(made, steps=4, callback=callback)

    def evaluate(model: nn.Module, step: int) -> None:
        with torch.no_grad():
            model(**batches(table(seed=9), [7])[0])

    assert_same(student(evaluate), student(lambda model, step: None))


def test_the_student_is_saved_and_copied_as_any_model(tmp_path: Path) -> None:
    made = distiller(tmp_path, {**EMBEDDINGS, "proj_func": PROJ})
    trained(made)
    buffer = io.BytesIO()
    torch.save(made.model_S, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert_same(weights(loaded), weights(made.model_S))
    assert_same(torch.load(tmp_path / "gs3.pkl", weights_only=True), weights(copy.deepcopy(made.model_S)))


def test_every_custom_match_is_logged_under_its_own_name(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tokens = {"module_T": "of_tokens", "module_S": "of_tokens", "weight": 3, "loss": "hidden_mse"}
    made = distiller(
        tmp_path,
        {**EMBEDDINGS, "module_S": "layers.1", "proj_func": PROJ},
        tokens,
        {**tokens, "loss": "cos", "weight": 1},
        {**tokens, "weight": 0},
        training={"log_dir": str(log), "log_every_steps": 1},
    )
    trained(made, steps=2)
    events = EventAccumulator(str(log)).Reload()
    values = {tag.removeprefix("scalar/unweighted_"): events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert sorted(name for name in values if name.startswith("custom")) == [
        "custom_cos_of_tokens_of_tokens",
        "custom_hidden_mse_layers/1_embedding",
        "custom_hidden_mse_of_tokens_of_tokens",
        "custom_hidden_mse_of_tokens_of_tokens#2",
    ]
    first = {name: series[0].value for name, series in values.items()}
    assert first["custom_hidden_mse_of_tokens_of_tokens"] == first["custom_hidden_mse_of_tokens_of_tokens#2"]
    assert first["scalar/total_loss"] == pytest.approx(
        first["kd_loss"]
        + first["custom_hidden_mse_layers/1_embedding"]
        + 3 * first["custom_hidden_mse_of_tokens_of_tokens"]
        + first["custom_cos_of_tokens_of_tokens"]
    )


def test_what_modules_return_is_kept_by_row_too(tmp_path: Path) -> None:
    expected = trained(distiller(tmp_path, {**EMBEDDINGS, "proj_func": PROJ}))
    for _ in range(2):  # the second one reads what the first one kept
        made = distiller(tmp_path, {**EMBEDDINGS, "proj_func": PROJ}, is_caching_logits=True)
        assert_same(trained(made), expected)


# CustomMatch itself


def test_a_custom_match_goes_to_a_dict_and_back() -> None:
    match = CustomMatch("a", "b", 2.0, "cos", proj_group={"lr": 0.1})
    assert match.to_dict() == {
        "module_T": "a",
        "module_S": "b",
        "weight": 2.0,
        "loss": "cos",
        "proj_func": None,
        "proj_group": {"lr": 0.1},
    }
    assert CustomMatch.from_dict(match.to_dict()) == match
    assert (match.weight, match.loss) == (2.0, "cos")


# What is refused


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"module_S": "embeding"}, ": the student has no module 'embeding'; did you mean 'embedding'?"),
        ({"module_T": "of_token"}, ": the teacher has no module 'of_token'; did you mean 'of_tokens'?"),
        ({"module_T": "layers.9"}, ": the teacher has no module 'layers.9'; did you mean 'layers.2' or 'layers.1'?"),
        (
            {"module_T": "xyz"},
            ": the teacher has no module 'xyz'; known: embedding, layers, layers.0, layers.1, layers.2, dropout, of_rows, "
            "of_tokens",
        ),
        (
            {"module_S": "layers[0"},
            ": 'layers[0' is no path of a module; expected one such as 'encoder.layer.3' or 'encoder.layer.3[0]'",
        ),
        ({"weight": "2"}, ": weight must be a number, not '2'"),
        ({"weight": True}, ": weight must be a number, not True"),
        ({"weight": float("nan")}, ": weight must be a number, not nan"),
        (
            {"wieght": 1},
            ": a custom match has no key 'wieght'; its keys are module_T, module_S, weight, loss, proj_func, proj_group",
        ),
        ({"loss": 3}, ': loss: 3 names no match loss; expected a name or {"name": ..., options}'),
        (
            {"proj_func": ["linear", 8]},
            ": proj_func: expected [\"linear\", student_dim, teacher_dim], not ['linear', 8]",
        ),
        (
            {"proj_func": "linear"},
            '.proj_func: the widths of the models are not known; write ["linear", student_dim, teacher_dim]',
        ),
        (
            {"proj_func": 3},
            ": proj_func: a int is no projection; give a module or a function of the student's output",
        ),
        (
            {"proj_func": nn.Linear},
            ": proj_func: the class Linear is no projection; give a module or a function of the student's output",
        ),
        (
            {"proj_func": ["linear", 8, 16, 0.1]},
            ': proj_func: expected settings of the optimizer such as {"lr": 0.001}, not 0.1',
        ),
        ({"proj_group": 0.1}, ': proj_group: expected settings of the optimizer such as {"lr": 0.001}, not 0.1'),
    ],
)
def test_a_match_that_cannot_be_made_is_told_with_its_place(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    first = {**EMBEDDINGS, "proj_func": PROJ}
    assert message(ConfigError, lambda: distiller(tmp_path, first, {**EMBEDDINGS, **changes})) == (
        f"GeneralDistiller: custom_matches[1]{text}"
    )


@pytest.mark.parametrize("key", ["module_T", "module_S", "weight", "loss"])
def test_a_match_without_a_key_is_refused(key: str, tmp_path: Path) -> None:
    match = {name: value for name, value in EMBEDDINGS.items() if name != key}
    assert message(ConfigError, lambda: distiller(tmp_path, match)) == (
        f"GeneralDistiller: custom_matches[0]: a custom match needs the key {key!r}"
    )


@pytest.mark.parametrize("match", [None, "embedding", ("a", "b")], ids=str)
def test_what_is_no_match_is_refused(match: Any, tmp_path: Path) -> None:
    assert message(ConfigError, lambda: distiller(tmp_path, match)) == (
        f"GeneralDistiller: custom_matches[0]: expected a CustomMatch or a dict of its fields, not a value of type {type(match).__name__}"
    )


def test_a_module_of_another_model_is_refused(tmp_path: Path) -> None:
    def swapped(teacher: nn.Module, student: nn.Module) -> list[Match]:
        return [CustomMatch(student.embedding, teacher.embedding, 1, "hidden_mse")]

    assert message(ConfigError, lambda: distiller(tmp_path, swapped)) == (
        "GeneralDistiller: custom_matches[0]: module_S, of type Embedding, is no part of the student; give one of its own "
        "modules, or the dotted name of one"
    )


def test_unknown_losses_and_wrong_matches_are_told_together_with_those_of_the_config(tmp_path: Path) -> None:
    text = message(
        ConfigError,
        lambda: distiller(
            tmp_path, {**EMBEDDINGS, "loss": "hidden_msee"}, {**EMBEDDINGS, "weight": None}, kd_loss_type="sse"
        ),
    )
    lines = text.splitlines()
    assert lines[0] == "GeneralDistiller: 3 problems"
    assert lines[1].strip().startswith("kd_loss_type: no kd loss is called 'sse'")
    assert (
        lines[2]
        .strip()
        .startswith("custom_matches[0].loss: no match loss is called 'hidden_msee'; did you mean 'hidden_mse'?")
    )
    assert lines[3].strip() == "custom_matches[1]: weight must be a number, not None"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            "idle",
            "the teacher's module 'module:idle' did not run in the forward pass, so it has no output to match; name one that does.",
        ),
        (
            "several",
            "the teacher's module 'module:several' returned a tuple of 3; name one tensor of it, as in 'module:several[0]'.",
        ),
        (
            "several.other",
            "the teacher's module 'several.other' returned a dict with key, number; name one tensor of it, as in "
            "'several.other[key]'.",
        ),
        (
            "several.other[number]",
            "the teacher's module 'several.other[number]' returned a int; name one tensor of it, as in "
            "'several.other[number][0]'.",
        ),
        ("module:several[7]", "the teacher's module 'module:several[7]' returned a tuple of 3, which has no part [7]."),
        (
            "several.other[kye]",
            "the teacher's module 'several.other[kye]' returned a dict with key, number, which has no part [kye].",
        ),
    ],
)
def test_an_output_that_is_no_tensor_is_told_when_it_is_seen(module: str, text: str, tmp_path: Path) -> None:
    made = of_parts(tmp_path, {"module_T": module, "module_S": "twice", "weight": 1, "loss": "hidden_mse"})
    assert message(RequestError, lambda: trained(made)) == text


def test_a_projection_of_another_width_is_told(tmp_path: Path) -> None:
    made = distiller(tmp_path, {**EMBEDDINGS, "proj_func": ["linear", 7, 16]})
    assert message(ShapeError, lambda: trained(made)) == (
        "custom_matches[0].proj: the projection takes 7 wide features and the student's are 8 wide; give their widths as "
        "[name, student_dim, teacher_dim]."
    )


def test_outputs_that_the_batch_brings_along_have_no_modules(tmp_path: Path) -> None:
    made = distiller(tmp_path, {**EMBEDDINGS, "proj_func": PROJ})
    batch = batches(table(), [4])[0]
    brought = {"teacher": batch, "student": batch, "teacher_cache": made.model_T(**batch)}
    optimizer = torch.optim.SGD(made.model_S.parameters(), lr=0.5)
    assert message(RequestError, lambda: made.train(optimizer, [brought], num_steps=1)) == (
        "the batch brings the teacher's outputs along as `teacher_cache`, but this run also reads its module 'embedding'; "
        "leave out `teacher_cache`, or the custom match."
    )
