"""TextBrewer's 45 defects, in the order of `docs/explanation/textbrewer.md`: what brewer does in their place.

Where the real textbrewer shows a defect quickly and always, the same test shows it.
"""

from __future__ import annotations

import random
import re
import runpy
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

import brewer_core
from brewer_core import (
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    TEMPERATURE_SCHEDULER,
    ConfigError,
    CustomMatch,
    DataError,
    DistillationConfig,
    RequestError,
    TrainingConfig,
    data_utils,
    default_registry,
    register_new,
)
from brewer_core.checkpoints import Checkpoints
from brewer_core.errors import AdaptorError, ReadOnlyError
from brewer_core.learner import Learner
from differential.reference import data_utils as their_data_utils
from differential.reference import losses as their_losses
from differential.reference import presets as their_presets
from differential.reference import projections as their_projections
from differential.reference import textbrewer
from tiny import Tiny, adaptor, assert_same, batches, mappings, table, weights

TheirMatch = textbrewer.distiller_utils.CustomMatch
MATCH: dict[str, Any] = {
    "layer_T": 2,
    "layer_S": 1,
    "feature": "hidden",
    "loss": "hidden_mse",
    "weight": 1,
    "proj": ["linear", 4, 6],
}
CUSTOM: dict[str, Any] = {
    "module_T": "dropout",
    "module_S": "dropout",
    "loss": "hidden_mse",
    "proj_func": ["linear", 4, 6],
}
DOCS = Path(__file__).parents[1] / "docs"

Test = TypeVar("Test", bound=Callable[..., None])
TESTS: dict[int, list[Callable[..., None]]] = {}


def defect(number: int) -> Callable[[Test], Test]:
    """Notes the number of a test's defect in the table."""

    def note(test: Test) -> Test:
        TESTS.setdefault(number, []).append(test)
        return test

    return note


def test_every_defect_has_a_test_in_the_order_of_the_table() -> None:
    assert list(TESTS) == list(range(1, 46))


# What the tests build


class Bench:
    """Builds what is under test, of either library, in the test's own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def settings(self, library: Any = brewer_core, **settings: Any) -> Any:
        return library.TrainingConfig(output_dir=str(self.folder), device="cpu", **settings)

    def make(
        self,
        library: Any = brewer_core,
        door: str = "GeneralDistiller",
        *features: str,
        adaptors: Any = None,
        models: Any = None,
        settings: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **distillation: Any,
    ) -> Any:
        """A distiller. adaptors, models: of teacher and student. arguments: further ones of the door's."""
        adaptors = adaptors or [adaptor(*features or ["row_logits"])] * 2
        teacher, student = models or (Tiny(6, 2, seed=2), Tiny(4, 1, seed=1))
        torch.manual_seed(0)  # for projections
        configs = (self.settings(library, **settings or {}), library.DistillationConfig(**distillation))
        return getattr(library, door)(*configs, teacher, student, *adaptors, **arguments or {})

    def tags(self) -> set[str]:
        """What the TensorBoard file holds."""
        return set(EventAccumulator(str(self.folder)).Reload().Tags()["scalars"])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def train(distiller: Any, loader: Any = None, **arguments: Any) -> dict[str, Tensor]:
    """The student's weights after an epoch of four batches, or what the arguments say."""
    loader = batches(table(), [8] * 4) if loader is None else loader
    distiller.train(sgd(distiller.model_S), loader, **{"num_epochs": 1, **arguments})
    return weights(distiller.model_S)


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def rows_of(batch: Mapping[str, Tensor]) -> frozenset[tuple[int, ...]]:
    return frozenset(map(tuple, batch["ids"].tolist()))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Seen(list[Tensor]):
    """A loss between logits that keeps those of the teacher."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        self.append(teacher_logits.clone())
        return student_logits.mean()


# 1 to 6: custom matches


@defect(1)
def test_a_custom_match_keeps_its_loss_and_its_weight_as_they_are() -> None:
    theirs, ours = TheirMatch(**CUSTOM, weight=0.5), CustomMatch(**CUSTOM, weight=0.5)
    assert (theirs.weight, theirs.loss) == ((0.5,), ("hidden_mse",))
    assert (ours.weight, ours.loss) == (0.5, "hidden_mse")
    assert CustomMatch.from_dict(ours.to_dict()) == ours


@defect(2)
def test_a_custom_match_trains_as_an_intermediate_match_of_the_same_tensors_does(bench: Bench) -> None:
    teacher, student = Tiny(6, 2), Tiny(4, 1)
    match = TheirMatch(teacher.dropout, student.dropout, 0.5, their_losses.hid_mse_loss, nn.Linear(4, 6))
    arguments: dict[str, Any] = {"custom_matches": [match]}
    with pytest.raises(KeyError, match="match_weghts"):
        train(bench.make(textbrewer, models=(teacher, student), arguments=arguments))
    features = ("row_logits", "hidden", "mask")
    arguments = {"custom_matches": [CustomMatch(**CUSTOM, weight=0.5)]}  # dropout returns the last hidden states
    custom = train(bench.make(brewer_core, "GeneralDistiller", *features, arguments=arguments))
    intermediate = [{**MATCH, "weight": 0.5}]
    assert_same(
        custom, train(bench.make(brewer_core, "GeneralDistiller", *features, intermediate_matches=intermediate))
    )


@defect(3)
def test_a_custom_loss_is_called_like_any_other_and_logged_under_its_name(bench: Bench) -> None:
    masks = []

    def distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        masks.append(mask)
        return (student.mean() - teacher.mean()).abs()

    match = {**CUSTOM, "weight": 1, "loss": distance}
    settings = {"log_dir": str(bench.folder)}
    train(
        bench.make(
            brewer_core,
            "GeneralDistiller",
            "row_logits",
            "mask",
            settings=settings,
            arguments={"custom_matches": [match]},
        )
    )
    assert [mask.shape for mask in masks if mask is not None] == [(8, 6)] * 4
    assert "scalar/unweighted_custom_distance_dropout_dropout" in bench.tags()


def hooks(distiller: Any) -> int:
    return sum(len(module._forward_hooks) for m in (distiller.model_T, distiller.model_S) for module in m.modules())


@defect(4)
def test_custom_matches_leave_no_hooks_behind(bench: Bench) -> None:
    teacher, student = Tiny(6, 2), Tiny(4, 1)
    pairs = [(teacher.dropout, student.dropout), (teacher.layers[0], student.layers[0])]
    arguments = {"custom_matches": [TheirMatch(*pair, 1, their_losses.hid_mse_loss) for pair in pairs]}
    theirs = bench.make(textbrewer, models=(teacher, student), arguments=arguments)
    theirs.handles_T.remove()
    theirs.handles_S.remove()
    assert hooks(theirs) == 2  # of the first match, whose handles are lost
    matches = [CustomMatch(**CUSTOM, weight=1), CustomMatch(**{**CUSTOM, "module_T": "layers.0"}, weight=1)]
    ours = bench.make(arguments={"custom_matches": matches})
    assert hooks(ours) == 0
    train(ours)
    assert hooks(ours) == 0


@defect(5)
def test_what_the_callback_runs_never_reaches_a_custom_match(bench: Bench) -> None:
    def evaluate(model: nn.Module, step: int) -> None:
        model(**batches(table(), [3])[0])

    teacher, student = Tiny(6, 2), Tiny(4, 1)
    match = TheirMatch(teacher.dropout, student.dropout, 1, their_losses.hid_mse_loss)
    theirs = bench.make(textbrewer, models=(teacher, student), arguments={"custom_matches": [match]})
    theirs.save_and_callback(1, 0, 0, evaluate)
    assert len(theirs.custom_matches_cache["hook_outputs_S"]) == 1
    ours, other = (bench.make(arguments={"custom_matches": [CustomMatch(**CUSTOM, weight=1)]}) for _ in range(2))
    hooked: list[int] = []

    def evaluate_ours(model: nn.Module, step: int) -> None:
        hooked.append(hooks(ours))
        evaluate(model, step)

    assert_same(train(ours, num_epochs=3, callback=evaluate_ours), train(other, num_epochs=3))
    assert hooked == [0, 0, 0]


@defect(6)
def test_all_that_is_trained_is_in_the_module_whose_forward_gives_the_losses(bench: Bench) -> None:
    custom = CustomMatch(**{**CUSTOM, "proj_func": nn.Linear(4, 6)}, weight=1, proj_group={"lr": 0.5})
    distiller = bench.make(
        brewer_core,
        "GeneralDistiller",
        "row_logits",
        "hidden",
        arguments={"custom_matches": [custom]},
        intermediate_matches=[MATCH],
    )
    optimizer = sgd(distiller.model_S)
    learners: list[nn.Module] = []
    handle = register_module_forward_hook(
        lambda module, *_: learners.append(module) if isinstance(module, Learner) else None
    )
    distiller.train(optimizer, batches(table(), [8]), 1)
    handle.remove()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0, 0.5]
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in learners[0].parameters()}


# 7 to 9: logits, their masks and labels


@defect(7)
def test_one_mask_holds_for_several_heads(bench: Bench) -> None:
    def heads(masks: int, batch: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"logits": [outputs["token_logits"], -outputs["token_logits"]], "logits_mask": [batch["mask"]] * masks}

    with pytest.raises(RuntimeError, match="expand"):
        train(bench.make(textbrewer, adaptors=[partial(heads, 1)] * 2))
    assert_same(
        train(bench.make(adaptors=[partial(heads, 1)] * 2)),
        train(bench.make(adaptors=[partial(heads, 2)] * 2)),
    )


@defect(8)
def test_the_labels_of_masked_tokens_are_left_out_of_the_probability_shift(bench: Bench) -> None:
    with pytest.raises(IndexError):
        train(bench.make(textbrewer, "BasicDistiller", "token_logits", "tags", probability_shift=True))
    seen, batch = Seen(), batches(table(), [8])[0]
    features = ("token_logits", "tags")
    train(bench.make(brewer_core, "BasicDistiller", *features, probability_shift=True, kd_loss_type=seen), [batch])
    assert torch.equal(seen[0].argmax(-1), batch["tags"][batch["mask"].bool()])


@defect(9)
def test_the_probability_shift_passes_over_negative_labels_and_leaves_the_teachers_tensor(bench: Bench) -> None:
    batch = batches(table(), [4])[0]
    batch["labels"][:2] = -100
    logits = drawn(4, 4)
    with pytest.raises(IndexError):
        textbrewer.distiller_utils.probability_shift_(logits.clone(), batch["labels"])
    outputs: dict[str, Any] = {"row_logits": logits, "token_logits": None, "hidden": [], "attention": [], "loss": None}
    loader, seen, before = [{"teacher": batch, "student": batch, "teacher_cache": outputs}], Seen(), logits.clone()
    features = ("row_logits", "labels")
    train(bench.make(brewer_core, "BasicDistiller", *features, probability_shift=True, kd_loss_type=seen), loader)
    assert torch.equal(seen[0][:2], before[:2])
    assert torch.equal(seen[0][2:].argmax(-1), batch["labels"][2:])
    assert torch.equal(logits, before)


# 10 to 13: losses


def gradient_norm(loss: Callable[..., Tensor], temperature: float, **options: Any) -> float:
    student = drawn(6, 5, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, drawn(6, 5, seed=2), temperature, **options), student)
    return float(gradient.norm())


@defect(10)
def test_t_squared_keeps_the_gradient_and_kl_reaches_zero() -> None:
    theirs, ce, kl = their_losses.kd_ce_loss, KD_LOSS_MAP["ce"], KD_LOSS_MAP["kl"]
    assert gradient_norm(theirs, 32) == pytest.approx(gradient_norm(theirs, 16) / 4, rel=0.05)
    assert gradient_norm(ce, 16) == pytest.approx(gradient_norm(theirs, 16), rel=1e-5)
    assert gradient_norm(ce, 32, t_squared=True) == pytest.approx(gradient_norm(ce, 16, t_squared=True), rel=0.05)
    assert gradient_norm(kl, 32) == pytest.approx(gradient_norm(kl, 16), rel=0.05)
    logits = drawn(6, 5)
    assert theirs(logits, logits, 2.0).item() > 1
    assert kl(logits, logits, 2.0).item() == pytest.approx(0, abs=1e-6)


@defect(11)
def test_attentions_that_are_probabilities_are_taken_as_they_are() -> None:
    attention = (5 * drawn(1, 2, 4, 4)).softmax(-1)
    entropy = -(attention * attention.log()).sum(-1).mean().item()
    assert their_losses.att_ce_loss(attention, attention).item() > entropy + 0.5
    loss = MATCH_LOSS_MAP["attention_ce"]
    assert loss(attention, attention, normalized=True).item() == pytest.approx(entropy, rel=1e-5)
    assert loss(attention, attention).item() == pytest.approx(their_losses.att_ce_loss(attention, attention).item())


@defect(12)
def test_with_a_mask_negative_scores_count_and_infinite_ones_at_padding_do_not() -> None:
    student, teacher, mask = -torch.ones(1, 1, 3, 3), -3 * torch.ones(1, 1, 3, 3), torch.tensor([[1, 1, 0]])
    theirs, ours = their_losses.att_mse_loss, MATCH_LOSS_MAP["attention_mse"]
    assert theirs(student, teacher).item() == ours(student, teacher).item() == 0  # -1 and -3 are taken for padding
    assert ours(student, teacher, mask).item() == 4
    student[..., 2], teacher[..., 2] = -torch.inf, -torch.inf
    assert theirs(student, teacher, mask).isnan()
    assert ours(student, teacher, mask).item() == 4


@defect(13)
def test_zero_states_and_rows_without_valid_tokens_give_finite_losses() -> None:
    states, zeros, none = drawn(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3)
    assert their_losses.pkd_loss(zeros, states).isnan()
    assert MATCH_LOSS_MAP["pkd"](zeros, states).item() == pytest.approx(1)
    assert their_losses.hid_mse_loss(states, zeros, none).isnan()
    assert MATCH_LOSS_MAP["hidden_mse"](states, zeros, none).item() == 0
    assert their_losses.fsp_loss([states] * 2, [zeros] * 2, none).isnan()
    assert MATCH_LOSS_MAP["fsp"]([states] * 2, [zeros] * 2, none).item() == 0


# 14 to 16: schedules of temperatures and weights


@defect(14)
def test_a_temperature_scheduler_without_its_values_is_refused_when_the_distiller_is_built(bench: Bench) -> None:
    with pytest.raises(TypeError):
        train(bench.make(textbrewer, temperature_scheduler="flsw"))
    with pytest.raises(ConfigError, match=r"temperature_scheduler: .*beta.*gamma"):
        bench.make(temperature_scheduler="flsw")
    train(bench.make(temperature_scheduler=["flsw", 1, 2]))  # where textbrewer's own example has a full-width comma


@defect(15)
def test_scheduled_temperatures_have_a_floor() -> None:
    student, teacher = 5 * drawn(20, 50), drawn(20, 50, seed=1)
    student[0] = 0  # an even guess among 50 classes
    theirs, ours = (presets.TEMPERATURE_SCHEDULER["cwsm"](1) for presets in (their_presets, brewer_core.presets))
    assert theirs(student, teacher, 4).min() < -10
    assert ours(student, teacher, 4).min() == pytest.approx(0.1)
    assert TEMPERATURE_SCHEDULER["cwsm"](1, floor=2.0)(student, teacher, 4).min() == 2
    bounded = theirs(student, teacher, 4).clamp(min=0.1)
    torch.testing.assert_close(ours(student, teacher, 4), bounded)


@defect(16)
def test_a_weight_schedule_multiplies_the_configured_weight_from_the_first_step_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors: list[float] = []

    def probe(student_logits: Any, teacher_logits: Tensor, temperature: float) -> Any:
        student_logits.register_hook(lambda gradient: factors.append(float(gradient.sum())))
        return student_logits.mean()

    monkeypatch.setitem(their_presets.KD_LOSS_MAP, "probe", probe)
    schedule: dict[str, Any] = {"kd_loss_weight": 0.5, "kd_loss_weight_scheduler": "linear_growth"}
    theirs, ours = bench.make(textbrewer, kd_loss_type="probe", **schedule), bench.make(kd_loss_type=probe, **schedule)
    train(theirs)
    train(ours)
    assert factors == pytest.approx([0.5, 0.25, 0.5, 0.75, 0, 0.125, 0.25, 0.375])
    assert (theirs.d_config.kd_loss_weight, ours.d_config.kd_loss_weight) == (1, 0.5)


# 17 to 24: train


def norms_at_steps(distiller: Any, **arguments: Any) -> list[float]:
    """The norm of all gradients, at each step."""
    optimizer, norms = sgd(distiller.model_S), []

    def note(*_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    optimizer.register_step_pre_hook(note)
    distiller.train(optimizer, batches(table(), [8]), 1, **arguments)
    return norms


@defect(17)
def test_projections_are_clipped_with_the_student(bench: Bench) -> None:
    matches = [{**MATCH, "weight": 1e5}]
    theirs, ours = (
        bench.make(library, "GeneralDistiller", "hidden", intermediate_matches=matches)
        for library in (textbrewer, brewer_core)
    )
    assert norms_at_steps(theirs, max_grad_norm=1.0)[0] > 1000
    assert norms_at_steps(ours, max_grad_norm=1.0) == [pytest.approx(1, rel=1e-4)]


@defect(18)
def test_train_may_be_called_again_with_the_same_optimizer(bench: Bench) -> None:
    theirs, ours = (
        bench.make(library, "GeneralDistiller", "hidden", intermediate_matches=[MATCH])
        for library in (textbrewer, brewer_core)
    )
    optimizer = sgd(theirs.model_S)
    theirs.train(optimizer, batches(table(), [8]), 1)
    with pytest.raises(ValueError, match="more than one parameter group"):
        theirs.train(optimizer, batches(table(), [8]), 1)
    optimizer = sgd(ours.model_S)
    for groups in (2, 2):
        ours.train(optimizer, batches(table(), [8]), 1)
        assert len(optimizer.param_groups) == groups


@defect(18)
def test_a_projection_that_two_custom_matches_share_is_trained_once(bench: Bench) -> None:
    shared = {**CUSTOM, "proj_func": nn.Linear(4, 6), "weight": 1}
    matches = [CustomMatch(**shared), CustomMatch(**{**shared, "module_T": "layers.0"})]
    ours = bench.make(arguments={"custom_matches": matches})
    optimizer = sgd(ours.model_S)
    ours.train(optimizer, batches(table(), [8]), 1)
    assert [len(group["params"]) for group in optimizer.param_groups][1:] == [2]


@defect(19)
def test_a_number_of_steps_needs_no_ckpt_steps(bench: Bench) -> None:
    with pytest.raises(TypeError):
        train(bench.make(textbrewer), num_steps=3)
    train(bench.make(), num_steps=3)
    assert [path.name for path in bench.folder.glob("gs*.pkl")] == ["gs3.pkl"]


@defect(20)
def test_fewer_steps_than_ckpt_steps_are_saved_at_the_last_one(bench: Bench) -> None:
    theirs, ours = (
        bench.make(
            library,
            "MultiTaskDistiller",
            adaptors=[{"a": adaptor("row_logits")}] * 2,
            models=({"a": Tiny(6, 2)}, Tiny(4, 1)),
            settings={"ckpt_steps": 100},
        )
        for library in (textbrewer, brewer_core)
    )
    loaders = {"a": batches(table(), [8] * 2)}
    with pytest.raises(IndexError):
        theirs.train(sgd(theirs.model_S), loaders, 3)
    ours.train(sgd(ours.model_S), loaders, 3)
    assert [path.name for path in bench.folder.glob("gs*.pkl")] == ["gs3.pkl"]


@defect(21)
def test_an_empty_loader_and_a_spent_generator_are_errors_and_not_waited_for(bench: Bench) -> None:
    with pytest.raises(DataError, match="the loader is empty"):
        train(bench.make(), [], num_steps=3)
    generator = (batch for batch in batches(table(), [8] * 2))
    with pytest.raises(DataError, match=r"can be iterated only once.* 2 of 3 optimizer steps are done and saved"):
        train(bench.make(), generator, num_steps=3)
    train(bench.make(), (batch for batch in batches(table(), [8] * 3)), num_steps=3)


class NotingSampler(DistributedSampler[Any]):
    """A sampler of one process that notes the epochs that it is told."""

    def __init__(self, rows: Any, told: list[int]) -> None:
        super().__init__(rows, num_replicas=1, rank=0)
        self.told = told

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)
        super().set_epoch(epoch)


@defect(22)
def test_steps_shuffle_anew_in_every_pass_and_start_without_gradients(bench: Bench) -> None:
    def trained(library: Any, leftover: float, told: list[int]) -> dict[str, Tensor]:
        rows: Any = mappings(table(8))
        distiller, sampler = bench.make(library, settings={"ckpt_steps": 6}), NotingSampler(rows, told)
        for parameter in distiller.model_S.parameters():
            parameter.grad = torch.full_like(parameter, leftover)
        return train(distiller, DataLoader(rows, 4, sampler=sampler), num_steps=6)

    theirs: list[int] = []
    assert not same(trained(textbrewer, 1, theirs), trained(textbrewer, 0, theirs))
    ours: list[int] = []
    assert_same(trained(brewer_core, 1, ours), trained(brewer_core, 0, ours))
    assert (theirs, ours) == ([], [0, 1, 2] * 2)


@defect(23)
def test_only_a_distributed_sampler_is_told_the_epoch(bench: Bench) -> None:
    class Plain(RandomSampler):
        def set_epoch(self, epoch: int) -> None:
            raise AssertionError("this sampler is the user's own")

    rows: Any = mappings(table(8))
    told: list[int] = []
    for sampler in (Plain(rows), NotingSampler(rows, told)):
        train(bench.make(), DataLoader(rows, 4, sampler=sampler), num_epochs=2)
    assert told == [0, 1]


@defect(24)
def test_the_last_micro_batches_of_an_epoch_make_a_step(bench: Bench) -> None:
    loader, steps = batches(table(), [8] * 3), []
    theirs, ours = (
        bench.make(library, settings={"gradient_accumulation_steps": 4}) for library in (textbrewer, brewer_core)
    )
    before = weights(theirs.model_S)
    assert same(train(theirs, loader, num_epochs=2), before)
    assert not same(train(ours, loader, num_epochs=2, callback=lambda model, step: steps.append(step)), before)
    assert steps == [1, 2]


# 25 to 27: remembered logits


class ShuffledBatches(list[Any]):
    """The same batches in every pass, in an order drawn anew."""

    def __iter__(self) -> Iterator[Any]:
        random.shuffle(self)
        return super().__iter__()


@defect(25)
def test_remembered_logits_are_of_rows_and_leave_the_batches_of_an_epoch_free(bench: Bench) -> None:
    def run(library: Any, remembered: bool = True, frozen: bool = False) -> tuple[dict[str, Tensor], Any, Any]:
        asked, taught, adapt, rows = [], [], adaptor("row_logits"), cast("Any", mappings(table(12)))

        def of_teacher(batch: Any, outputs: Any) -> Any:
            asked.append(rows_of(batch))
            return adapt(batch, outputs)

        def of_student(batch: Any, outputs: Any) -> Any:
            taught.append(rows_of(batch))
            return adapt(batch, outputs)

        adaptors = [of_teacher, of_student]
        distiller = bench.make(library, "BasicDistiller", adaptors=adaptors, is_caching_logits=remembered)
        torch.manual_seed(3)
        random.seed(3)
        loader: Any = DataLoader(rows, batch_size=4, shuffle=True)
        return train(distiller, ShuffledBatches(loader) if frozen else loader, num_epochs=3), asked, taught

    theirs, _, taught = run(textbrewer)
    assert len(set(taught)) == 3  # the same three batches in every epoch
    student, asked, taught = run(brewer_core)
    assert [len(rows) for rows in asked] == [4, 4, 4]
    assert len(frozenset.union(*asked)) == 12
    assert len(set(taught)) == 9
    assert_same(student, run(brewer_core, remembered=False)[0], atol=1e-6)
    assert not same(student, theirs)
    assert_same(run(brewer_core, frozen=True)[0], theirs)


@defect(26)
def test_batches_with_two_sides_and_mappings_that_are_no_dicts_are_remembered(bench: Bench) -> None:
    taught = batches(table(seed=4), [4] * 3)
    taught.append(taught[0])  # the teacher's side of a row is what it is known by
    sides = [{"teacher": t, "student": s} for t, s in zip(taught, batches(table(), [4] * 4), strict=True)]
    encodings = [UserDict(batch) for batch in batches(table(), [4] * 3)]  # a tokenizer's BatchEncoding is one
    several = (nn.ModuleList([Tiny(6, 2, seed=2)]), Tiny(4, 1, seed=1))
    asked: list[int] = []
    for door, models, loader in (("BasicDistiller", None, sides), ("MultiTeacherDistiller", several, encodings)):
        make = partial(bench.make, models=models, is_caching_logits=True)
        with pytest.raises(TypeError):
            train(make(textbrewer, door), loader)
        distiller = make(brewer_core, door)
        teacher = distiller.model_T if door == "BasicDistiller" else distiller.model_T[0]
        teacher.register_forward_hook(lambda *_: asked.append(1))
        train(distiller, loader, num_epochs=2)
    assert len(asked) == 3 + 3


@defect(27)
def test_a_distiller_leaves_the_users_config_as_it_is(bench: Bench) -> None:
    theirs = bench.make(textbrewer, is_caching_logits=True)
    assert theirs.d_config.is_caching_logits is False
    config = DistillationConfig(is_caching_logits=True)
    before = config.to_dict()
    adapt = adaptor("row_logits")
    ours = brewer_core.GeneralDistiller(bench.settings(), config, Tiny(6, 2), Tiny(4, 1), adapt, adapt)
    train(ours)
    assert ours.d_config is config
    assert config.to_dict() == before


# 28 to 32: adaptors and models


def two_teachers() -> tuple[list[nn.Module], nn.Module]:
    return [Tiny(6, 2, seed=2), Tiny(6, 2, seed=5)], Tiny(4, 1, seed=1)


@defect(28)
@pytest.mark.parametrize("door", ["BasicDistiller", "MultiTeacherDistiller"])
def test_without_logits_the_loss_between_them_is_left_out(door: str, bench: Bench) -> None:
    models = ([Tiny(6, 2)], Tiny(4, 1)) if door == "MultiTeacherDistiller" else None
    make = partial(bench.make, door=door, adaptors=[adaptor("losses")] * 2, models=models, hard_label_weight=1)
    with pytest.raises(KeyError, match="logits"):
        train(make(textbrewer))
    train(make(brewer_core, settings={"log_dir": str(bench.folder)}))
    assert "scalar/unweighted_hard_label_loss" in bench.tags()
    assert "scalar/unweighted_kd_loss" not in bench.tags()


@defect(29)
def test_heads_that_differ_in_number_are_refused(bench: Bench) -> None:
    adaptors = [adaptor("two_heads"), adaptor("row_logits")]
    train(bench.make(textbrewer, "BasicDistiller", adaptors=adaptors))
    with pytest.raises(AdaptorError, match="returns 1 logits and the teacher's 2"):
        train(bench.make(brewer_core, "BasicDistiller", adaptors=adaptors))


@defect(30)
def test_a_teacher_that_was_left_in_training_mode_teaches_in_eval_mode(bench: Bench) -> None:
    def taught(library: Any, mode: bool) -> dict[str, Tensor]:
        teacher = Tiny(6, 2, dropout=0.5, seed=2).train(mode)
        student = train(bench.make(library, models=(teacher, Tiny(4, 1, seed=1))))
        assert teacher.training is mode
        return student

    assert not same(taught(textbrewer, True), taught(textbrewer, False))
    assert_same(taught(brewer_core, True), taught(brewer_core, False))


@defect(31)
def test_the_context_gives_the_distiller_and_puts_teachers_in_eval_and_the_student_in_training_mode(
    bench: Bench,
) -> None:
    (teachers, student), adapt = two_teachers(), adaptor("row_logits")

    def modes() -> list[bool]:
        return [model.training for model in (*teachers, student)]

    theirs = bench.make(textbrewer, "MultiTeacherDistiller", models=(teachers, [student]))
    with theirs as entered:
        assert entered is None
        assert modes() == [False, False, False]
    named, by_task = dict(zip("ab", teachers, strict=True)), dict.fromkeys("ab", adapt)
    student.eval()
    for ours in (
        bench.make(brewer_core, "MultiTeacherDistiller", models=(teachers, student)),
        bench.make(brewer_core, "MultiTaskDistiller", models=(named, student), adaptors=[by_task] * 2),
    ):
        with ours as entered:
            assert entered is ours
            assert modes() == [False, False, True]
        assert modes() == [True, True, False]


@defect(32)
def test_a_frozen_teacher_teaches_and_is_never_wrapped(bench: Bench) -> None:
    teacher = Tiny(6, 2, seed=2).requires_grad_(False)
    called: list[nn.Module] = []
    teacher.register_forward_hook(lambda module, *_: called.append(module))
    distiller = bench.make(models=(teacher, Tiny(4, 1, seed=1)))
    assert_same(train(distiller), train(bench.make()))
    assert distiller.model_T is teacher
    assert called == [teacher] * 4


# 33 to 36: devices, several teachers, masks


@defect(33)
def test_one_flag_is_read_from_the_device_in_an_optimizer_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def read(self: Tensor, *arguments: Any) -> Any:
            reads.append(name)
            return original(self, *arguments)

        return read

    for name in ("item", "tolist", "cpu", "__float__", "__bool__", "numpy"):
        monkeypatch.setattr(Tensor, name, counted(name))
    settings = {"gradient_accumulation_steps": 2}
    train(bench.make(textbrewer, "GeneralDistiller", "row_logits", "losses", settings=settings), num_epochs=2)
    assert reads.count("item") == 3 * 8  # each of three losses in each of eight micro-batches, with no log
    reads.clear()
    train(bench.make(brewer_core, "GeneralDistiller", "row_logits", "losses", settings=settings), num_epochs=2)
    assert reads == ["item"] * 4 + ["tolist"]  # the last, of all figures together, for the log at the end


@defect(34)
def test_teachers_have_weights(bench: Bench) -> None:
    seen, models, batch = Seen(), two_teachers(), batches(table(), [8])[0]
    make = partial(bench.make, brewer_core, "MultiTeacherDistiller", models=models, kd_loss_type=seen)
    train(make(arguments={"weights": [3, 1]}), [batch])
    first, second = (teacher(**batch)["row_logits"].detach() for teacher in models[0])
    torch.testing.assert_close(seen[0], (3 * first + second) / 4)


@defect(34)
def test_each_teacher_has_its_own_mask(bench: Bench) -> None:
    def shifted(batch: Any, outputs: Any) -> dict[str, Any]:
        logits, mask = outputs["token_logits"], batch["mask"]
        return {
            "logits": torch.cat([torch.full_like(logits[:, :1], 9), logits], 1),
            "logits_mask": torch.cat([torch.zeros_like(mask[:, :1]), mask], 1),
        }

    plain = adaptor("token_logits")

    def taught(library: Any, second: Any) -> dict[str, Tensor]:
        adaptors = [[plain, second], plain]
        return train(bench.make(library, "MultiTeacherDistiller", models=two_teachers(), adaptors=adaptors))

    with pytest.raises(RuntimeError, match="expand"):
        taught(textbrewer, shifted)
    assert_same(taught(brewer_core, shifted), taught(brewer_core, plain))


@defect(34)
def test_matches_name_one_of_the_teachers(bench: Bench) -> None:
    def taught(library: Any, *matches: Mapping[str, Any]) -> dict[str, Tensor]:
        make = partial(bench.make, library, "MultiTeacherDistiller", "row_logits", "hidden", models=two_teachers())
        return train(make(intermediate_matches=list(matches)))

    assert_same(taught(textbrewer, MATCH), taught(textbrewer))
    students = [taught(brewer_core), *(taught(brewer_core, {**MATCH, "teacher": i}) for i in (0, 1))]
    assert not any(same(a, b) for i, a in enumerate(students) for b in students[:i])
    with pytest.raises(ConfigError, match=r"intermediate_matches\[0\].teacher: .* name one of 0, 1"):
        taught(brewer_core, MATCH)


@defect(35)
def test_teacher_and_student_may_be_padded_to_different_lengths(bench: Bench) -> None:
    def means(student: Tensor, teacher: Tensor, mask: Tensor, *, teacher_mask: Tensor) -> Tensor:
        pairs = ((student, mask), (teacher, teacher_mask))
        own, taught = ((states * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True) for states, valid in pairs)
        return (own - taught).square().mean()

    def longer(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: nn.functional.pad(column, (0, 3 if column.dim() == 2 else 0)) for name, column in batch.items()}

    make = partial(bench.make, brewer_core, "GeneralDistiller", "token_logits", "hidden", "mask")
    plain = batches(table(), [8] * 4)
    sides = [{"teacher": longer(batch), "student": batch} for batch in plain]
    matches = [{**MATCH, "loss": means}]
    ours = train(make(intermediate_matches=matches), sides)
    assert_same(ours, train(make(intermediate_matches=matches), plain), atol=1e-6)


@defect(36)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_masks_are_bool_whatever_the_adaptor_gives(
    dtype: torch.dtype, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = []

    def noting(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        masks.append(mask)
        return student[mask].square().mean()

    def typed(batch: Any, outputs: Any) -> Any:
        return {"hidden": outputs["hidden"], "inputs_mask": batch["mask"].to(dtype)}

    loader = batches(table(), [8])
    train(bench.make(adaptors=[typed] * 2, intermediate_matches=[{**MATCH, "loss": noting}]), loader)
    (mask,) = masks
    assert torch.equal(mask, loader[0]["mask"].bool())
    monkeypatch.setattr(torch, "__version__", "1.13.1")
    assert runpy.run_path(textbrewer.compatibility.__file__)["mask_dtype"] == torch.uint8


# 37 to 41: tools


@defect(37)
def test_registering_a_match_loss_is_answered_with_a_way_that_works(bench: Bench) -> None:
    def distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return (student.mean() - teacher.mean()).abs()

    with pytest.raises(AssertionError):
        their_presets.register_new("match_loss", "distance", distance)
    with pytest.raises(
        ReadOnlyError, match=r"registry=default_registry\(\).with_component\('match_loss', 'distance', distance\)"
    ):
        register_new("match_loss", "distance", distance)
    registry = default_registry().with_component("match_loss", "distance", distance)
    match = {**MATCH, "loss": "distance"}
    arguments = {"registry": registry}
    train(bench.make(brewer_core, "GeneralDistiller", "hidden", arguments=arguments, intermediate_matches=[match]))


@defect(38)
def test_a_projection_with_any_activation_is_a_function_of_the_widths_or_a_custom_matchs_module(bench: Bench) -> None:
    def gelu(dim_in: int, dim_out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim_in, dim_out), nn.GELU())

    with pytest.raises(TypeError):
        their_projections.projection_with_activation(nn.GELU())
    make = partial(bench.make, brewer_core, "GeneralDistiller", "hidden")
    train(make(intermediate_matches=[{**MATCH, "proj": [gelu, 4, 6]}]))
    custom = [CustomMatch(**{**CUSTOM, "proj_func": gelu(4, 6)}, weight=1)]
    before = weights(custom[0].proj_func)
    train(make(arguments={"custom_matches": custom}))
    assert not same(weights(custom[0].proj_func), before)
    with pytest.raises(ConfigError, match=r"is made already, a Sequential; pass the function or class that makes it"):
        make(intermediate_matches=[{**MATCH, "proj": [gelu(4, 6), 4, 6]}])


@defect(39)
def test_a_text_shorter_than_the_n_gram_is_given_whole() -> None:
    with pytest.raises(ValueError):
        their_data_utils.n_gram_sampling(["a", "b"], [1.0], [5])
    assert data_utils.n_gram_sampling(["a", "b"], [1.0], [5]) == ["a", "b"]
    assert data_utils.n_gram_sampling([]) == []


@defect(40)
def test_a_text_too_short_for_a_long_disorder_stays_in_order() -> None:
    assert data_utils.long_disorder([0, 1], p=1, length=0.4) == [0, 1]
    assert data_utils.long_disorder([], p=1, length=0.4) == []
    assert data_utils.long_disorder([0, 1, 2, 3], p=1, length=0.5) == [1, 0, 3, 2]


@defect(41)
def test_a_trainer_takes_steps_without_epochs(bench: Bench) -> None:
    theirs, ours = (
        library.BasicTrainer(bench.settings(library, ckpt_steps=3), Tiny(4, 1), adaptor("losses"))
        for library in (textbrewer, brewer_core)
    )
    with pytest.raises(TypeError, match="num_epochs"):
        theirs.train(sgd(theirs.model), batches(table(), [8]), num_steps=3)
    ours.train(sgd(ours.model), batches(table(), [8]), num_steps=3)
    assert [path.name for path in bench.folder.glob("gs*.pkl")] == ["gs3.pkl"]


# 42 to 45: configs, checkpoints, documents, precision


@defect(42)
def test_a_config_makes_no_folder_checks_its_values_and_comes_back_from_a_dict(tmp_path: Path) -> None:
    textbrewer.TrainingConfig(output_dir=str(tmp_path / "theirs"))
    TrainingConfig(output_dir=str(tmp_path / "ours"))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    textbrewer.DistillationConfig(temperature=-1, kd_loss_type="cee")
    with pytest.raises(ConfigError, match=r"temperature: .* greater than 0"):
        DistillationConfig(temperature=-1)
    config = DistillationConfig(temperature_scheduler=["flsw", 1, 2], intermediate_matches=[MATCH])
    again = DistillationConfig.from_dict(config.to_dict())
    assert again == config
    assert config.to_dict()["intermediate_matches"][0]["proj_dims"] == [4, 6]


@defect(42)
def test_a_name_that_does_not_exist_is_refused_when_the_distiller_is_built(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"kd_loss_type: .*`?cee`?.*did you mean 'ce'"):
        bench.make(kd_loss_type="cee")


@defect(43)
def test_a_checkpoint_holds_all_that_training_changes(bench: Bench) -> None:
    distiller = bench.make(brewer_core, "GeneralDistiller", "row_logits", "hidden", intermediate_matches=[MATCH])
    schedule = {"scheduler_class": torch.optim.lr_scheduler.StepLR, "scheduler_args": {"step_size": 1}}
    train(distiller, **schedule)
    state = Checkpoints(bench.folder / "checkpoints").load(4)
    assert {"learner", "optimizer", "scaler", "scheduler", "step", "strategy", "processes", "draws"} <= state.keys()
    assert {"random", "data", "window"} == state["processes"][0].keys()
    student = {name.removeprefix("student."): t for name, t in state["learner"].items() if name.startswith("student.")}
    assert_same(student, weights(distiller.model_S))
    assert [tuple(t.shape) for name, t in state["learner"].items() if "projection" in name] == [(6, 4), (6,)]
    assert (state["step"], state["scheduler"]["last_epoch"], len(state["optimizer"]["param_groups"])) == (4, 4, 2)


@defect(44)
def test_a_schedule_in_the_loaders_place_is_answered_with_the_call(bench: Bench) -> None:
    distiller = bench.make(brewer_core, "MultiTeacherDistiller", models=([Tiny(6, 2)], Tiny(4, 1)))
    optimizer = sgd(distiller.model_S)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(
        RequestError, match=r"not a ConstantLR; .* train\(optimizer, dataloader, num_epochs, scheduler_class=\.\.\."
    ):
        distiller.train(optimizer, schedule, batches(table(), [8]), 1)


@defect(44)
def test_every_loss_that_the_documents_name_is_there() -> None:
    named = set(re.findall(r"textbrewer\.losses\.(\w+)", source_of(their_presets)))
    assert {name for name in named if not hasattr(their_losses, name)} == {"hid_mseloss", "nst_loss"}
    text = "".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))
    losses = set(re.findall(r'"loss": "(\w+)"', text))
    assert losses
    assert losses <= set(MATCH_LOSS_MAP) | set(KD_LOSS_MAP)  # a loss of the list that kd_loss_type may be, too
    soft = set(re.findall(r'"?kd_loss_type"?[:=] ?"(\w+)"', text)) - {
        "absolute"
    }  # registered on the page that names it
    assert soft
    assert soft <= set(KD_LOSS_MAP)


def source_of(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")


@defect(45)
def test_half_precision_is_torchs_own(bench: Bench) -> None:
    assert bench.settings(fp16=True).autocast == "fp16"
    with pytest.raises(RequestError, match="precision fp16 needs a GPU; on a CPU use bf16"):
        train(bench.make(settings={"fp16": True}))
    before = weights(bench.make().model_S)
    after = train(bench.make(settings={"precision": "bf16"}))
    assert not same(after, before)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
