"""The engine, its teachers and its states: which batches make a step, what a step does, and when it is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from brewer_builtins.adaptors import TextClassification
from brewer_builtins.strategies import General, Supervised
from brewer_core import DistillationConfig, Features, default_registry
from brewer_core.cache import CachedTeacher
from brewer_core.checkpoints import Checkpoints
from brewer_core.engine import Duration, Engine, Settings
from brewer_core.errors import AdaptorError, BrewerError, DataError, NonFiniteError, RequestError
from brewer_core.learner import Learner
from brewer_core.listeners import Listener, TrackerListener
from brewer_core.objective import Objective
from brewer_core.progress import ProgressBar
from brewer_core.protocols import Step
from brewer_core.teachers import LiveTeacher
from tiny import CountingAdaptor, Tiny, adaptor, assert_same, batches, table, weights

CPU = torch.device("cpu")
Batch = dict[str, Tensor]


def objective(**distillation: Any) -> Objective:
    return Objective.from_config(DistillationConfig(**distillation), default_registry())


def learner(
    adapt: Callable[..., Any], terms: Objective | None = None, *, student: nn.Module | None = None, **more: Any
) -> Learner:
    """A student of a fixed seed, taught by the terms, or by labels alone where there are none."""
    strategy = Supervised() if terms is None else General()
    return Learner(student or Tiny(4, 2, seed=1), adapt, terms or Objective(None), strategy, **more)


def teacher(*names: str, **more: Any) -> LiveTeacher:
    return LiveTeacher(Tiny(6, 3, seed=2), adaptor(*names), CPU, **more)


def engine(made: Learner, *, teachers: Mapping[str, Any] | None = None, lr: float = 0.1, **settings: Any) -> Engine:
    """An engine with plain gradient descent, so that a step shows its gradient."""
    optimizer = torch.optim.SGD(made.student.parameters(), lr=lr)
    return Engine(made, optimizer, device=CPU, teachers=teachers, settings=Settings(**settings))


def by_labels(**settings: Any) -> Engine:
    return engine(learner(CountingAdaptor("losses")), **settings)


def student_of(trained: Engine) -> dict[str, Tensor]:
    return weights(trained.learner.student)


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


class Recorder(Listener):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.figures: list[Mapping[str, float]] = []

    def begin(self, total_steps: int) -> None:
        self.heard.append(("begin", total_steps))

    def stepped(self, step: int) -> None:
        self.heard.append(("stepped", step))

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        self.heard.append(("logged", step))
        self.figures.append(values)

    def checkpoint(self, step: int) -> None:
        self.heard.append(("checkpoint", step))

    def end(self) -> None:
        self.heard.append("end")


# Which batches make a step


def test_epochs_and_steps_over_the_same_batches_give_the_same_student() -> None:
    loader = batches(table(), [5] * 6)
    by_epochs, by_steps = by_labels(accumulation=2), by_labels(accumulation=2)
    assert by_epochs.train(loader, Duration(epochs=2)) == by_steps.train(loader, Duration(steps=6)) == 6
    assert_same(student_of(by_epochs), student_of(by_steps))


def test_steps_go_on_over_the_end_of_a_pass() -> None:
    loader = batches(table(), [5] * 3)
    going_on, written_out = by_labels(accumulation=2), by_labels(accumulation=2)
    going_on.train(loader, Duration(steps=3))
    written_out.train(loader * 2, Duration(epochs=1))
    assert_same(student_of(going_on), student_of(written_out))


def test_trailing_micro_batches_of_an_epoch_make_a_step_that_is_their_own_mean() -> None:
    loader = batches(table(), [5] * 5)
    trained, expected = by_labels(accumulation=3), by_labels(accumulation=1)
    assert trained.train(loader, Duration(epochs=1)) == 2
    joined = [{name: torch.cat([b[name] for b in group]) for name in group[0]} for group in (loader[:3], loader[3:])]
    expected.train(joined, Duration(epochs=1))
    assert_same(student_of(trained), student_of(expected), atol=1e-6)


def test_a_loader_shorter_than_the_accumulation_still_trains() -> None:
    trained = by_labels(accumulation=8)
    before = student_of(trained)
    assert trained.train(batches(table(), [5, 5]), Duration(epochs=3)) == 3
    assert not torch.equal(before["of_rows.weight"], student_of(trained)["of_rows.weight"])


def test_a_gradient_left_over_from_before_training_is_not_used() -> None:
    loader, clean, soiled = batches(table(), [8]), by_labels(), by_labels()
    for parameter in soiled.learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    for trained in (clean, soiled):
        trained.train(loader, Duration(steps=1))
    assert_same(student_of(clean), student_of(soiled))


def test_an_epoch_shuffles_a_distributed_sampler_anew_in_both_modes() -> None:
    class Noted(DistributedSampler[Any]):
        epochs: list[int]

        def set_epoch(self, epoch: int) -> None:
            self.epochs = [*getattr(self, "epochs", []), epoch]
            super().set_epoch(epoch)

    rows = [dict(zip(table(), row, strict=True)) for row in zip(*table(12).values(), strict=True)]
    for duration in (Duration(epochs=3), Duration(steps=9)):
        sampler = Noted(rows, num_replicas=1, rank=0)
        by_labels().train(DataLoader(rows, batch_size=4, sampler=sampler), duration)
        assert sampler.epochs == [0, 1, 2]


def test_listeners_hear_of_every_step_and_of_the_figures_when_they_are_due() -> None:
    recorder, made = Recorder(), learner(adaptor("losses"))
    due = Settings(log_every_steps=2, checkpoint_due=lambda step, epoch: step == 1)
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.1)
    Engine(made, optimizer, device=CPU, settings=due, listeners=[recorder]).train(
        batches(table(), [8] * 3), Duration(epochs=1)
    )
    assert recorder.heard == [
        ("begin", 3),
        ("stepped", 1),
        ("checkpoint", 1),
        ("stepped", 2),
        ("logged", 2),
        ("stepped", 3),
        ("logged", 3),
        ("checkpoint", 3),
        "end",
    ]


def test_figures_are_means_over_the_steps_since_the_last_log() -> None:
    recorder, loader = Recorder(), batches(table(), [8] * 4)
    made = learner(adaptor("losses"))
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.0)
    settings = Settings(log_every_steps=2, accumulation=2)
    Engine(made, optimizer, device=CPU, settings=settings, listeners=[recorder]).train(loader, Duration(epochs=1))
    with torch.no_grad():
        expected = float(torch.stack([made.student(**batch)["loss"] for batch in loader]).mean())
    (figures,) = recorder.figures
    assert set(figures) == {"hard_label_loss", "total_loss", "learning_rate", "steps_per_s"}
    assert figures["hard_label_loss"] == figures["total_loss"] == pytest.approx(expected, abs=1e-6)
    assert figures["learning_rate"] == 0.0
    assert figures["steps_per_s"] > 0


def test_listeners_hear_the_end_of_a_training_that_fails() -> None:
    recorder, made = Recorder(), learner(adaptor("losses"))
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.1)
    with pytest.raises(DataError):
        Engine(made, optimizer, device=CPU, listeners=[recorder]).train([], Duration(steps=1))
    assert recorder.heard == [("begin", 1), "end"]


# Loaders that give too little


def test_an_empty_loader_is_refused() -> None:
    expected = "the loader is empty; it must yield at least one batch."
    assert message(DataError, lambda: by_labels().train([], Duration(epochs=1))) == expected
    assert message(DataError, lambda: by_labels().train([], Duration(steps=3))) == expected
    assert message(DataError, lambda: by_labels().train(iter([]), Duration(steps=3))) == expected


def test_a_generator_that_is_spent_is_not_waited_for() -> None:
    generator = (batch for batch in batches(table(), [8] * 5))
    trained = by_labels(accumulation=2)
    assert message(DataError, lambda: trained.train(generator, Duration(steps=4))) == (
        "the loader can be iterated only once, and is spent after 5 batches; pass a DataLoader or a list, or ask for fewer "
        "steps. 2 of 4 optimizer steps are done."
    )


def test_what_a_spent_generator_taught_is_saved_without_the_step_that_it_cut_short(tmp_path: Path) -> None:
    loader, recorder = batches(table(), [8] * 5), Recorder()
    made, expected = learner(CountingAdaptor("losses")), by_labels(accumulation=2)
    expected.train(loader, Duration(steps=2))
    trained = Engine(
        made,
        torch.optim.SGD(made.student.parameters(), lr=0.1),
        device=CPU,
        settings=Settings(accumulation=2),
        listeners=[recorder],
        checkpoints=Checkpoints(tmp_path),
    )
    with pytest.raises(DataError):
        trained.train(iter(loader), Duration(steps=4))
    assert_same(student_of(trained), student_of(expected))
    saved = Checkpoints(tmp_path).load(2)
    assert saved["step"] == 2
    assert_same(saved["learner"], weights(made))
    assert recorder.heard == [
        ("begin", 4),
        ("stepped", 1),
        ("stepped", 2),
        ("logged", 2),
        ("checkpoint", 2),
        "end",
    ]
    assert all(parameter.grad is None for parameter in made.parameters())


def test_what_was_saved_when_the_generator_was_spent_is_not_saved_again() -> None:
    recorder, made = Recorder(), learner(adaptor("losses"))
    settings = Settings(checkpoint_due=lambda step, epoch: step == 2, log_every_steps=1)
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.1)
    trained = Engine(made, optimizer, device=CPU, settings=settings, listeners=[recorder])
    with pytest.raises(DataError):
        trained.train(iter(batches(table(), [8] * 2)), Duration(steps=3))
    assert recorder.heard.count(("checkpoint", 2)) == 1
    assert recorder.heard[-2:] == [("checkpoint", 2), "end"]


def test_a_generator_that_is_long_enough_trains() -> None:
    loader = batches(table(), [8] * 5)
    endless, listed = by_labels(), by_labels()
    endless.train(itertools.cycle(loader), Duration(steps=7))
    listed.train(loader, Duration(steps=7))
    assert_same(student_of(endless), student_of(listed))


def test_a_loader_without_a_length_has_no_epochs() -> None:
    generator = (batch for batch in batches(table(), [8]))
    assert message(RequestError, lambda: by_labels().train(generator, Duration(epochs=1))) == (
        "the loader has no length, so its epochs cannot be counted; give num_steps in place of num_epochs."
    )


class Lying(list[Any]):
    """A loader with a length of its own choice."""

    said = 0

    def __len__(self) -> int:
        return self.said


@pytest.mark.parametrize(("said", "fewer_or_more"), [(4, "fewer"), (2, "more")])
def test_a_loader_whose_length_is_wrong_is_named(said: int, fewer_or_more: str) -> None:
    loader = Lying(batches(table(), [8] * 3))
    loader.said = said
    assert message(DataError, lambda: by_labels().train(loader, Duration(epochs=2))) == (
        f"the loader says that it has {said} batches and yielded {fewer_or_more}; its __len__ must be right, or give num_steps. "
        f"{min(said, 3)} of {2 * said} optimizer steps are done."
    )


# What a step means


def whole_batch_losses() -> dict[str, dict[str, Any]]:
    hidden = {"layer_T": 3, "layer_S": 2, "feature": "hidden"}
    pair = {"layer_T": [0, 3], "layer_S": [0, 2], "feature": "hidden"}
    attention = {"layer_T": 2, "layer_S": 1, "feature": "attention"}
    wide = ["linear", 4, 6]
    return {
        "hidden_mse": {**hidden, "proj": wide},
        "cos": {**hidden, "proj": wide},
        "pkd": {**hidden, "proj": wide},
        "fsp": {**pair, "proj": wide},
        "nst": pair,
        "attention_mse": attention,
        "attention_mse_sum": attention,
        "attention_ce": attention,
        "attention_ce_mean": attention,
    }


SPLITS = [[5, 7], [1, 11], [3, 3, 3, 3], [6, 1, 2, 2, 1]]
TERMS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    **{f"kd {kind} of rows": (("row_logits",), {"kd_loss_type": kind}) for kind in ("ce", "kl", "mse")},
    **{f"kd {kind} of tokens": (("token_logits",), {"kd_loss_type": kind}) for kind in ("ce", "kl", "mse")},
    **{
        f"match {loss}": (
            ("hidden", "attention", "mask"),
            {"intermediate_matches": [{"loss": loss, "weight": 1, **match}]},
        )
        for loss, match in whole_batch_losses().items()
    },
    "labels": (("losses",), {"hard_label_weight": 1}),
    "all together": (
        ("token_logits", "hidden", "attention", "mask", "losses"),
        {
            "hard_label_weight": 0.5,
            "temperature": 2,
            "intermediate_matches": [
                {"loss": loss, "weight": 0.3, **match} for loss, match in whole_batch_losses().items()
            ],
        },
    ),
}


class Counting(CountingAdaptor):
    """Where the logits are of rows, as many logits as rows."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.by_rows = "row_logits" in names

    def counts(self, batch: Mapping[str, Tensor]) -> Any:
        counted = super().counts(batch)
        return replace(counted, logits=counted.rows) if self.by_rows else counted


def ragged(rows: int = 12) -> Batch:
    """Rows of very different length, a third of them without a label."""
    columns = table(rows, length=9)
    lengths = torch.arange(rows) * 9 // rows + 1
    columns["mask"] = (torch.arange(9) < lengths[:, None]).long()
    columns["labels"][1::3] = -100
    return columns


def after_one_step(term: str, sizes: Sequence[int], normalization: str) -> dict[str, Tensor]:
    names, distillation = TERMS[term]
    torch.manual_seed(0)
    made = learner(Counting(*names), objective(**distillation))
    teachers = {"teacher": teacher(*names)}
    trained = engine(made, teachers=teachers, lr=1.0, accumulation=len(sizes), loss_normalization=normalization)
    trained.train(batches(ragged(), sizes), Duration(epochs=1))
    return weights(made)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("term", TERMS)
def test_a_step_equals_one_big_batch_however_its_rows_are_split(term: str, sizes: list[int]) -> None:
    assert_same(after_one_step(term, sizes, "step"), after_one_step(term, [12], "step"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_step_equals_one_big_batch_for_splits_at_random(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    cuts = sorted({0, 12, *torch.randint(1, 12, (4,), generator=g).tolist()})
    sizes = [end - start for start, end in itertools.pairwise(cuts)]
    assert_same(
        after_one_step("all together", sizes, "step"),
        after_one_step("all together", [12], "step"),
        atol=1e-6,
        rtol=1e-6,
    )


@pytest.mark.parametrize("term", ["kd ce of tokens", "match hidden_mse", "match attention_mse", "labels"])
def test_micro_batch_normalization_is_the_mean_of_means(term: str) -> None:
    sizes, whole = [3, 4, 5], batches(ragged(), [3, 4, 5])
    names, distillation = TERMS[term]
    torch.manual_seed(0)
    made = learner(Counting(*names), objective(**distillation))
    before = weights(made)
    gradients = []
    for batch in whole:
        made.zero_grad()
        taught = {"teacher": teacher(*names).features(batch, frozenset())}
        losses, factors = made("", batch, taught, Step(0, 1)), made.objective.weights(Step(0, 1))
        sum(factors[name] * loss for name, loss in losses.items()).backward()
        gradients.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in made.named_parameters()}
        )
    expected = {n: before[n] - sum(g[n] for g in gradients) / 3 for n in gradients[0]}
    done = after_one_step(term, sizes, "micro_batch")
    assert_same({n: done[n] for n in expected}, expected, atol=1e-6)
    with pytest.raises(AssertionError):  # which is not the mean over the items, where the rows are ragged
        assert_same(done, after_one_step(term, [12], "micro_batch"), atol=1e-4)


def test_with_a_plain_function_as_adaptor_a_step_is_weighed_by_rows() -> None:
    def trained(sizes: list[int]) -> dict[str, Tensor]:
        made = learner(adaptor("row_logits"), objective())
        teachers = {"teacher": teacher("row_logits")}
        engine(made, teachers=teachers, accumulation=len(sizes), loss_normalization="step").train(
            batches(table(12), sizes), Duration(epochs=1)
        )
        return weights(made)

    whole = trained([12])
    for sizes in SPLITS:
        with pytest.warns(
            UserWarning, match=r"the student's adaptor cannot count, so micro-batches are weighed by their rows"
        ):
            assert_same(trained(sizes), whole, atol=1e-6)


def test_recorded_losses_of_a_step_equal_those_of_one_big_batch() -> None:
    def figures(sizes: list[int]) -> Mapping[str, float]:
        recorder, made = Recorder(), learner(Counting("losses"))
        settings = Settings(accumulation=len(sizes), loss_normalization="step")
        optimizer = torch.optim.SGD(made.student.parameters(), lr=0.1)
        Engine(made, optimizer, device=CPU, settings=settings, listeners=[recorder]).train(
            batches(ragged(), sizes), Duration(epochs=1)
        )
        return recorder.figures[0]

    split, whole = figures([2, 3, 7]), figures([12])
    assert split["hard_label_loss"] == pytest.approx(whole["hard_label_loss"], abs=1e-6)
    assert split["total_loss"] == pytest.approx(whole["total_loss"], abs=1e-6)


class TextModel(nn.Module):
    """A model that gives a Hugging Face model's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Tiny(4, 1, seed=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
        outputs = self.model(input_ids, attention_mask, labels, None)
        return {"logits": outputs["row_logits"], "hidden_states": outputs["hidden"]}


def texts(rows: int, labelled: int) -> Batch:
    columns = table(rows)
    columns["labels"][labelled:] = -100
    return {"input_ids": columns["ids"], "attention_mask": columns["mask"], "labels": columns["labels"]}


@pytest.mark.parametrize("normalization", ["step", "micro_batch"])
def test_a_step_without_any_labelled_row_changes_nothing(normalization: str) -> None:
    made = learner(TextClassification(), student=TextModel())
    before = weights(made)
    settings = {"accumulation": 3, "loss_normalization": normalization}
    assert engine(made, **settings).train(batches(texts(9, 0), [3, 3, 3]), Duration(epochs=1)) == 1
    assert_same(weights(made), before)


def test_micro_batches_without_a_labelled_row_do_not_thin_the_others() -> None:
    def trained(sizes: list[int]) -> dict[str, Tensor]:
        made = learner(TextClassification(), student=TextModel())
        settings = {"accumulation": len(sizes), "loss_normalization": "step"}
        engine(made, **settings).train(batches(texts(10, 4), sizes), Duration(epochs=1))
        return weights(made)

    assert_same(trained([4, 3, 3]), trained([4]), atol=1e-6)


@pytest.mark.parametrize("normalization", ["step", "micro_batch"])
def test_a_loss_that_depends_on_the_batch_as_a_whole_is_weighed_by_rows(normalization: str) -> None:
    scheduler = {"name": "flsw", "beta": 1, "gamma": 1}
    terms = objective(temperature_scheduler=scheduler, temperature=6)
    counts = Counting("token_logits").counts(ragged())
    assert terms.over("kd_loss") == "batch"
    assert terms.items("kd_loss", counts) == counts.rows == 12
    made = learner(Counting("token_logits"), terms)
    teachers = {"teacher": teacher("token_logits")}
    settings = {"accumulation": 2, "loss_normalization": normalization}
    assert engine(made, teachers=teachers, **settings).train(batches(ragged(), [4, 8]), Duration(epochs=1)) == 1


# Optimizer, schedule, clipping


def matched(proj_group: Mapping[str, Any] | None = None, weight: float = 1.0) -> Objective:
    match = {"layer_T": 3, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": weight}
    return objective(intermediate_matches=[{**match, "proj": ["linear", 4, 6, dict(proj_group or {})]}])


def test_clipping_covers_projections_too() -> None:
    made = learner(adaptor("hidden"), matched(weight=1e4))
    before = weights(made)
    engine(made, teachers={"teacher": teacher("hidden")}, lr=1.0, max_grad_norm=0.5).train(
        batches(table(), [8]), Duration(steps=1)
    )
    moved = {name: tensor - before[name] for name, tensor in weights(made).items()}
    assert math.sqrt(sum(float(change.square().sum()) for change in moved.values())) == pytest.approx(0.5, rel=1e-4)
    projection = [change for name, change in moved.items() if name.startswith("objective")]
    assert sum(float(change.square().sum()) for change in projection) > 0.01


def test_projections_join_the_optimizer_once_however_often_one_trains() -> None:
    made = learner(adaptor("hidden"), matched({"lr": 0.5}))
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.1)
    loader, teachers = batches(table(), [8] * 2), {"teacher": teacher("hidden")}
    for _ in range(3):
        Engine(made, optimizer, device=CPU, teachers=teachers).train(loader, Duration(epochs=1))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(made.student.parameters())), 2]


def test_projections_that_the_user_put_into_the_optimizer_stay_in_their_group() -> None:
    made = learner(adaptor("hidden"), matched())
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    Engine(made, optimizer, device=CPU, teachers={"teacher": teacher("hidden")})
    assert len(optimizer.param_groups) == 1


def test_the_schedule_is_built_after_projections_joined_the_optimizer() -> None:
    made = learner(adaptor("hidden"), matched({"lr": 0.5}))
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.1)
    trained = Engine(
        made,
        optimizer,
        device=CPU,
        teachers={"teacher": teacher("hidden")},
        schedule=lambda complete: torch.optim.lr_scheduler.LambdaLR(complete, lambda step: 0.5**step),
    )
    trained.train(batches(table(), [8] * 3), Duration(epochs=1))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 8, 0.5 / 8])


def test_a_parameter_outside_the_learner_is_refused() -> None:
    made, stray = learner(adaptor("losses")), nn.Linear(3, 2, bias=False)
    groups = [{"params": made.student.parameters()}, {"params": [made.student.of_rows.bias, *stray.parameters()][1:]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert message(RequestError, lambda: Engine(made, optimizer, device=CPU)) == (
        "the optimizer's group 1 holds a parameter of shape (2, 3) (number 0) that is neither the student's nor a "
        "projection's; build the optimizer over the student's parameters."
    )


def test_a_wrapped_optimizer_needs_no_defaults_where_nothing_is_added_to_it() -> None:
    class Wrapped:
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.step, self.zero_grad, self.state_dict = inner.step, inner.zero_grad, inner.state_dict
            self.param_groups = inner.param_groups

    plain, wrapped = by_labels(), by_labels()
    wrapping: Any = Wrapped(torch.optim.SGD(wrapped.learner.student.parameters(), lr=0.1))
    for trained in (plain, Engine(wrapped.learner, wrapping, device=CPU)):
        trained.train(batches(table(), [8] * 2), Duration(steps=2))
    assert_same(student_of(plain), student_of(wrapped))


def test_sparse_gradients_train_like_dense_ones() -> None:
    dense, sparse = by_labels(), by_labels()
    sparse.learner.student.embedding.sparse = True
    for trained in (dense, sparse):
        trained.train(batches(table(), [8] * 3), Duration(steps=3))
    assert sparse.learner.student.embedding.weight.grad is None
    assert_same(student_of(dense), student_of(sparse), 1e-6)


# Values that are not finite


def test_a_loss_that_is_not_a_number_stops_before_the_step() -> None:
    def taught() -> Engine:
        made = learner(adaptor("row_logits"), objective())
        return engine(made, teachers={"teacher": teacher("row_logits")}, accumulation=2)

    loader: list[Any] = batches(table(), [4] * 8)
    stopped, expected = taught(), taught()
    expected.train(loader, Duration(steps=2))
    loader[5] = {**loader[5], "gain": float("nan")}
    assert message(NonFiniteError, lambda: stopped.train(loader, Duration(steps=4))) == (
        "optimizer step 3 of 4: the term `kd_loss` is not finite, in micro-batch 2 of the step; training stopped before the step, "
        "and nothing was changed by it. Look for empty or extreme batches, lower the learning rate, clip with max_grad_norm, or "
        "raise the temperature."
    )
    assert stopped.step == 2
    assert_same(student_of(stopped), student_of(expected))
    assert all(parameter.grad is None for parameter in stopped.learner.parameters())


def test_the_first_term_that_is_not_finite_is_named() -> None:
    def nowhere(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return student.sum() / 0

    match = {"layer_T": 0, "layer_S": 1, "feature": "hidden", "loss": nowhere, "weight": 0.5}
    made = learner(adaptor("row_logits", "hidden"), objective(intermediate_matches=[match]))
    stopped = engine(made, teachers={"teacher": teacher("row_logits", "hidden")})
    text = message(NonFiniteError, lambda: stopped.train(batches(table(), [8]), Duration(epochs=5)))
    assert text.startswith(
        "optimizer step 1 of 5: the term `hidden_nowhere_1_0` is not finite, in micro-batch 1 of the step; training stopped"
    )


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_gradient_that_is_not_a_number_stops_before_the_step(max_grad_norm: float | None) -> None:
    def rooted(batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"losses": (outputs["row_logits"] * 0).sum().sqrt()}  # 0, with a gradient of infinity times 0

    made = learner(rooted)
    before = weights(made)
    stopped = engine(made, max_grad_norm=max_grad_norm)
    assert message(NonFiniteError, lambda: stopped.train(batches(table(), [8]), Duration(steps=2))) == (
        "optimizer step 1 of 2: the norm of the gradients is not finite, in micro-batch 1 of the step; training stopped "
        "before the step, and nothing was changed by it. Look for empty or extreme batches, lower the learning rate, clip with "
        "max_grad_norm, or raise the temperature."
    )
    assert_same(weights(made), before)


def test_a_batch_without_any_loss_is_refused() -> None:
    made = learner(adaptor("hidden"), objective())
    trained = engine(made, teachers={"teacher": teacher("hidden")})
    assert message(AdaptorError, lambda: trained.train(batches(table(), [8]), Duration(steps=1))) == (
        "nothing to optimise: the student's adaptor returns hidden; it must return `losses`, or `logits` or other features "
        "that a term compares with a teacher's."
    )


# Precision


def test_bf16_runs_the_student_in_bfloat16_and_the_objective_in_float32() -> None:
    seen: dict[str, Any] = {}

    def watching(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        seen["features"], seen["product"] = (student.dtype, teacher.dtype), (student @ student.mT).dtype
        return (student - teacher[..., :4]).square().mean()

    def adapt(batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Any]:
        seen["student"] = outputs["row_logits"].dtype
        return {"hidden": outputs["hidden"], "logits": outputs["row_logits"]}

    match = {"layer_T": 3, "layer_S": 2, "feature": "hidden", "loss": watching, "weight": 1}
    made = learner(adapt, objective(intermediate_matches=[match]), precision="bf16")
    before = weights(made)
    teachers = {"teacher": teacher("row_logits", "hidden", precision="bf16")}
    assert teachers["teacher"].features(batches(table(), [8])[0], frozenset())["logits"][0].dtype == torch.bfloat16
    engine(made, teachers=teachers, precision="bf16").train(batches(table(), [8] * 3), Duration(epochs=1))
    assert seen == {"student": torch.bfloat16, "features": (torch.float32, torch.float32), "product": torch.float32}
    after = weights(made)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert not torch.equal(before["student.of_rows.weight"], after["student.of_rows.weight"])


def test_the_objective_is_in_full_precision_inside_an_autocast_of_the_users() -> None:
    seen = []

    def watching(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append((student @ student.mT).dtype)
        return student.square().mean()

    match = {"layer_T": 3, "layer_S": 2, "feature": "hidden", "loss": watching, "weight": 1}
    made = learner(adaptor("hidden"), objective(intermediate_matches=[match]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine(made, teachers={"teacher": teacher("hidden")}).train(batches(table(), [8]), Duration(steps=1))
    assert seen == [torch.float32]


def test_float16_on_a_cpu_is_refused() -> None:
    assert message(RequestError, lambda: by_labels(precision="fp16")) == (
        "precision fp16 needs a GPU; on a CPU use bf16, or no mixed precision."
    )


# Teachers


def test_a_teacher_in_training_mode_answers_as_in_eval_mode_and_is_left_as_it_was() -> None:
    model = Tiny(6, 3, dropout=0.5, seed=2)
    model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    batch = batches(table(), [8])[0]
    answers = LiveTeacher(model, adaptor("row_logits", "hidden"), CPU).features(batch, frozenset())
    assert {name: module.training for name, module in model.named_modules()} == modes
    expected = model.eval()(**batch)
    torch.testing.assert_close(answers["logits"][0], expected["row_logits"], rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensors in answers.values() for tensor in tensors)


def test_a_teacher_is_left_in_its_modes_when_it_fails() -> None:
    def broken(batch: Batch, outputs: Any) -> dict[str, Any]:
        raise KeyError("logits")

    model = Tiny(6, 1)
    with pytest.raises(KeyError):
        LiveTeacher(model, broken, CPU).features(batches(table(), [8])[0], frozenset())
    assert all(module.training for module in model.modules())


def test_a_teacher_gets_no_gradient_and_does_not_change() -> None:
    taught = teacher("row_logits", "hidden")
    before = weights(taught.model)
    made = learner(adaptor("row_logits", "hidden"), matched())
    engine(made, teachers={"teacher": taught}).train(batches(table(), [8] * 3), Duration(epochs=1))
    assert all(parameter.grad is None for parameter in taught.model.parameters())
    assert all(parameter.requires_grad for parameter in taught.model.parameters())
    assert_same(weights(taught.model), before)


def test_a_frozen_teacher_teaches() -> None:
    taught = teacher("row_logits")
    taught.model.requires_grad_(False)
    made = learner(adaptor("row_logits"), objective())
    assert engine(made, teachers={"teacher": taught}).train(batches(table(), [8]), Duration(steps=1)) == 1


def test_the_engine_draws_nothing_from_torchs_global_generator(tmp_path: Path) -> None:
    made = learner(CountingAdaptor("row_logits", "hidden", "losses"), matched())
    teachers = {"teacher": LiveTeacher(Tiny(6, 3, dropout=0.5), adaptor("row_logits", "hidden"), CPU)}
    drawn = torch.get_rng_state()
    Engine(
        made,
        torch.optim.AdamW(made.student.parameters()),
        device=CPU,
        teachers=teachers,
        settings=Settings(accumulation=2, loss_normalization="step", max_grad_norm=1.0, log_every_steps=1),
        listeners=[
            ProgressBar("training"),
            TrackerListener(default_registry().bind("tracker", "tensorboard")(tmp_path, "")),
        ],
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
    ).train(batches(table(), [8] * 4), Duration(epochs=2))
    assert torch.equal(torch.get_rng_state(), drawn)


class Asked:
    """A teacher that counts how often it is asked about a row; its answer for row 7 is [7, 14]."""

    def __init__(self) -> None:
        self.times: dict[int, int] = {}

    def features(self, batch: Any, needs: frozenset[str]) -> Features:
        for row in batch["rows"].tolist():
            self.times[row] = self.times.get(row, 0) + 1
        return Features.of({"logits": torch.stack([batch["rows"], 2 * batch["rows"]], dim=1).float()})


def test_a_cached_teacher_asks_once_a_row_whatever_order_and_batches(tmp_path: Path) -> None:
    asked, g = Asked(), torch.Generator().manual_seed(0)
    taught = CachedTeacher(asked, folder=tmp_path)
    for size in (4, 5, 20, 3):
        for rows in torch.randperm(20, generator=g).split(size):
            answer = taught.features({"rows": rows}, frozenset({"logits"}))
            expected = torch.stack([rows, 2 * rows], dim=1).float()
            torch.testing.assert_close(answer["logits"][0], expected)
            assert answer.axes("logits") == "B C"
    assert asked.times == dict.fromkeys(range(20), 1)


# States and checkpoints


def resumable(folder: Path) -> Engine:
    """Everything that has a state: a projection, a stateful optimizer, two schedules, clipping."""
    matching = {"layer_T": 3, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 2}
    torch.manual_seed(0)
    terms = objective(
        kd_loss_weight_scheduler="linear_decay",
        intermediate_matches=[{**matching, "proj": ["tanh", 4, 6, {"lr": 0.01}]}],
    )
    made = learner(adaptor("row_logits", "hidden"), terms)
    return Engine(
        made,
        torch.optim.AdamW(made.student.parameters(), lr=0.05),
        device=CPU,
        teachers={"teacher": teacher("row_logits", "hidden")},
        schedule=lambda complete: torch.optim.lr_scheduler.CosineAnnealingLR(complete, T_max=6),
        settings=Settings(accumulation=2, max_grad_norm=1.0, checkpoint_due=lambda step, _epoch: True),
        checkpoints=Checkpoints(folder, keep_last=10),
    )


DURATIONS = [Duration(epochs=2), Duration(steps=6)]


@pytest.mark.parametrize("duration", DURATIONS, ids=["epochs", "steps"])
@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_a_training_continues_identically_from_a_checkpoint(done: int, duration: Duration, tmp_path: Path) -> None:
    loader = batches(table(), [6] * 5)
    straight = resumable(tmp_path / "straight")
    assert straight.train(loader, duration) == 6
    resumed = resumable(tmp_path / "resumed")
    resumed.load_state_dict(Checkpoints(tmp_path / "straight").load(done))
    assert resumed.step == done
    assert resumed.train(loader, duration) == 6
    assert_same(weights(resumed.learner), weights(straight.learner))
    assert Checkpoints(tmp_path / "resumed").steps() == list(range(done + 1, 7))
    ours, theirs = (Checkpoints(tmp_path / name).load(6) for name in ("resumed", "straight"))
    assert str(ours) == str(theirs)


class Fading(torch.optim.lr_scheduler.LRScheduler):
    """A schedule that cannot be pickled."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.share = lambda step: 0.5**step
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [rate * self.share(self.last_epoch) for rate in self.base_lrs]


def test_a_schedule_that_cannot_be_saved_trains_and_is_left_out_of_checkpoints(tmp_path: Path) -> None:
    made = learner(CountingAdaptor("losses"))
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.1)
    trained = Engine(made, optimizer, device=CPU, schedule=Fading, checkpoints=Checkpoints(tmp_path))
    with pytest.warns(UserWarning, match="checkpoints hold no state of the schedule Fading, for it cannot be saved "):
        trained.train(batches(table(), [8]), Duration(steps=3))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    state = Checkpoints(tmp_path).load(3)
    assert state["scheduler"] is None
    trained.load_state_dict(state)


def test_a_training_that_is_complete_has_nothing_to_continue(tmp_path: Path) -> None:
    loader, finished = batches(table(), [6] * 5), resumable(tmp_path)
    finished.train(loader, Duration(steps=3))
    before = weights(finished.learner)
    assert finished.train(loader, Duration(steps=3)) == 3
    assert_same(weights(finished.learner), before)
