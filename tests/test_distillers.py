"""TextBrewer's doors: distillers, configs and presets, as an old script meets them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from brewer_core import (
    BasicDistiller,
    BasicTrainer,
    DistillationConfig,
    GeneralDistiller,
    TrainingConfig,
    default_registry,
)
from brewer_core.errors import BrewerError, ConfigError, DataError, ReadOnlyError, RequestError, SaveError
from brewer_core.teachers import evaluating
from fakes import plugin
from tiny import Tiny, adaptor, assert_same, batches, table, weights

NAMES = ("row_logits", "hidden", "mask", "losses")
MATCH = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 4, 6]}
DOORS = ["BasicTrainer", "BasicDistiller", "GeneralDistiller"]


def training(folder: Path, **settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"output_dir": str(folder), "device": "cpu", **settings})


def models() -> tuple[nn.Module, nn.Module]:
    return Tiny(6, 2, dropout=0.1, seed=2), Tiny(4, 1, dropout=0.1, seed=1)


def made(door: str, config: TrainingConfig, **distillation: Any) -> Any:
    teacher, student = models()
    adapt = adaptor(*NAMES)
    if door == "BasicTrainer":
        return BasicTrainer(config, student, adapt)
    kind = {"BasicDistiller": BasicDistiller, "GeneralDistiller": GeneralDistiller}[door]
    return kind(config, DistillationConfig(**distillation), teacher, student, adapt, adapt)


def student_of(distiller: Any) -> nn.Module:
    return distiller.model if isinstance(distiller, BasicTrainer) else distiller.model_S


def sgd(distiller: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(student_of(distiller).parameters(), lr=0.1)


def message(kind: type[BrewerError], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# What train is called with


@pytest.mark.parametrize("door", DOORS)
def test_a_schedule_in_the_loaders_place_is_answered_with_the_new_call(door: str, tmp_path: Path) -> None:
    distiller = made(door, training(tmp_path))
    optimizer = sgd(distiller)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    assert message(RequestError, lambda: distiller.train(optimizer, schedule, batches(table(), [8]), 1)) == (
        "train: expected a dataloader as the second argument, not a LambdaLR; the schedule comes after it: "
        "train(optimizer, dataloader, num_epochs, scheduler_class=..., scheduler_args=...)."
    )


@pytest.mark.parametrize("door", DOORS)
def test_without_epochs_and_without_steps_there_is_nothing_to_do(door: str, tmp_path: Path) -> None:
    distiller = made(door, training(tmp_path))
    assert message(RequestError, lambda: distiller.train(sgd(distiller), batches(table(), [8]))) == (
        "train: give num_epochs or num_steps."
    )


def test_scheduler_args_without_a_class_are_refused(tmp_path: Path) -> None:
    distiller, arguments = made("BasicDistiller", training(tmp_path)), {"gamma": 0.5}
    assert message(
        RequestError, lambda: distiller.train(sgd(distiller), batches(table(), [8]), 1, scheduler_args=arguments)
    ) == ("train: scheduler_args come with scheduler_class, which is None.")


def test_a_loader_that_only_has_items_trains(tmp_path: Path) -> None:
    class Items:
        def __init__(self) -> None:
            self.items = batches(table(), [8] * 3)

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, position: int) -> Any:
            return self.items[position]

    distiller, steps = made("BasicDistiller", training(tmp_path)), []
    distiller.train(sgd(distiller), Items(), 2, callback=lambda model, step: steps.append(step))
    assert steps == [3, 6]


@pytest.mark.parametrize("door", DOORS)
def test_steps_need_neither_epochs_nor_ckpt_steps_nor_a_length(door: str, tmp_path: Path) -> None:
    distiller, steps = made(door, training(tmp_path)), []
    generator = (batch for batch in batches(table(), [4] * 6))
    distiller.train(sgd(distiller), generator, num_steps=5, callback=lambda model, step: steps.append(step))
    assert steps == [5]


@pytest.mark.parametrize("door", DOORS)
def test_fewer_steps_than_ckpt_steps_are_saved_at_the_end(door: str, tmp_path: Path) -> None:
    distiller = made(door, training(tmp_path, ckpt_steps=100))
    distiller.train(sgd(distiller), batches(table(), [8]), num_steps=3)
    assert [path.name for path in tmp_path.glob("gs*.pkl")] == ["gs3.pkl"]


def test_trailing_micro_batches_of_an_epoch_are_trained_on(tmp_path: Path) -> None:
    distiller, steps = made("BasicDistiller", training(tmp_path, gradient_accumulation_steps=4)), []
    before = weights(distiller.model_S)
    distiller.train(sgd(distiller), batches(table(), [4] * 3), 2, callback=lambda model, step: steps.append(step))
    assert steps == [1, 2]
    assert not torch.equal(before["of_rows.weight"], weights(distiller.model_S)["of_rows.weight"])


def test_a_schedule_of_ones_own_needs_no_more_than_a_step(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path))
    optimizer = sgd(distiller)

    class Halving:
        def step(self) -> None:
            for group in optimizer.param_groups:
                group["lr"] /= 2

    distiller.train(optimizer, batches(table(), [8] * 2), 2, scheduler=Halving())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 16)


def test_train_may_be_called_twice_with_the_same_optimizer(tmp_path: Path) -> None:
    distiller = made("GeneralDistiller", training(tmp_path), intermediate_matches=[{**MATCH, "proj": ["tanh", 4, 6]}])
    optimizer, loader = sgd(distiller), batches(table(), [8] * 2)
    distiller.train(optimizer, loader, 1)
    once = weights(distiller.model_S)
    distiller.train(optimizer, loader, 1)
    assert len(optimizer.param_groups) == 2
    assert not torch.equal(once["of_rows.weight"], weights(distiller.model_S)["of_rows.weight"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="DataParallel would need the parameters on a GPU")
def test_gs_files_hold_what_is_inside_a_wrapper_for_several_devices(tmp_path: Path) -> None:
    teacher, student = models()
    adapt = adaptor(*NAMES)
    distiller = BasicDistiller(
        training(tmp_path), DistillationConfig(), teacher, nn.DataParallel(student), adapt, adapt
    )
    distiller.train(sgd(distiller), batches(table(), [8]), 1)
    assert_same(torch.load(tmp_path / "gs1.pkl", weights_only=True), weights(student))


def test_the_tensorboard_file_has_textbrewers_tags(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pair = {**MATCH, "layer_T": [0, 2], "layer_S": [0, 1], "loss": "fsp"}
    config = training(tmp_path, log_dir=str(log), log_every_steps=1)
    distiller = made("GeneralDistiller", config, hard_label_weight=1, intermediate_matches=[MATCH, pair])
    distiller.train(sgd(distiller), batches(table(), [8]), num_steps=3)
    events = EventAccumulator(str(log)).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == {
        "scalar/total_loss",
        "scalar/unweighted_kd_loss",
        "scalar/unweighted_hard_label_loss",
        "scalar/unweighted_hidden_hidden_mse_1_2",
        "scalar/unweighted_hidden_fsp_0-1_0-2",
        "scalar/learning_rate",
        "scalar/steps_per_s",
    }
    series = {tag: [event.value for event in events.Scalars(tag)] for tag in tags}
    assert [event.step for event in events.Scalars("scalar/total_loss")] == [1, 2, 3]
    parts = [series[tag] for tag in tags if "unweighted" in tag]
    assert series["scalar/total_loss"] == pytest.approx([sum(values) for values in zip(*parts, strict=True)], rel=1e-5)


def test_building_a_config_creates_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    TrainingConfig(log_dir="./log")
    TrainingConfig.from_dict({"output_dir": "there/and/there"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_half_written_does_not_bear_the_name(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path))

    class Unwritable(nn.Module):
        def get_extra_state(self) -> Any:
            return lambda: None

        def set_extra_state(self, state: Any) -> None: ...

    distiller.model_S.broken = Unwritable()
    with pytest.raises(SaveError, match=r"its entry `learner` cannot be saved \(.*pickle"):
        distiller.train(sgd(distiller), batches(table(), [8]), 1)
    assert not (tmp_path / "gs1.pkl").exists()


# Modes and callbacks


@pytest.mark.parametrize("door", DOORS)
def test_a_context_gives_the_distiller_and_restores_every_modules_mode(door: str, tmp_path: Path) -> None:
    distiller = made(door, training(tmp_path))
    student = student_of(distiller)
    student.eval()
    student.layers.train()
    taught = [] if door == "BasicTrainer" else [distiller.model_T]
    modes = [[module.training for module in model.modules()] for model in (student, *taught)]
    with distiller as entered:
        assert entered is distiller
        assert all(module.training for module in student.modules())
        assert not any(module.training for model in taught for module in model.modules())
    assert [[module.training for module in model.modules()] for model in (student, *taught)] == modes


def test_what_teacher_and_student_share_is_in_training_mode_in_the_context(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path))
    teacher, student = distiller.model_T, distiller.model_S
    teacher.pupil = student
    student.layers.eval()
    modes = [module.training for module in teacher.modules()]
    with distiller:
        assert all(module.training for module in student.modules())
        assert not teacher.training
        assert not teacher.layers.training
    assert [module.training for module in teacher.modules()] == modes


@pytest.mark.parametrize("door", DOORS)
def test_a_callback_sees_the_student_itself_which_trains_on_in_training_mode(door: str, tmp_path: Path) -> None:
    distiller = made(door, training(tmp_path))
    student, batch, seen = student_of(distiller), batches(table(), [8])[0], []

    def callback(model: nn.Module, step: int) -> None:
        assert model is student
        assert model.training == (step == 1 or seen[-1][1])
        model.eval()
        seen.append((step, True, model(**batch)["loss"].requires_grad))

    with distiller:
        distiller.train(sgd(distiller), [batch], 3, callback=callback)
        assert all(module.training for module in student.modules())
    assert seen == [(1, True, True), (2, True, True), (3, True, True)]


def test_the_checkpoint_is_written_before_the_callback_hears_of_it(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path))

    def callback(model: nn.Module, step: int) -> None:
        assert_same(torch.load(tmp_path / f"gs{step}.pkl", weights_only=True), weights(model))

    distiller.train(sgd(distiller), batches(table(), [8]), 2, callback=callback)


def test_a_training_that_fails_leaves_the_context_with_the_modes_restored(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path))
    distiller.model_S.eval()
    with pytest.raises(DataError), distiller:
        distiller.train(sgd(distiller), [], num_steps=1)
    assert not distiller.model_S.training
    assert distiller.model_T.training


# Devices, and settings without effect


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("door", DOORS)
def test_cuda_without_a_gpu_is_the_cpu_with_one_warning_that_points_here(door: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="device") as caught:
        distiller = made(door, TrainingConfig(output_dir=str(tmp_path)))
    assert [str(warning.message) for warning in caught] == ["device 'cuda' is not available here; training on the CPU."]
    assert caught[0].filename == __file__
    distiller.train(sgd(distiller), batches(table(), [8]), 1)
    assert (tmp_path / "gs1.pkl").exists()


def test_a_device_may_be_a_torch_device(tmp_path: Path) -> None:
    assert training(tmp_path, device=torch.device("cpu")).device == "cpu"


def test_a_device_that_torch_does_not_know_is_refused(tmp_path: Path) -> None:
    assert message(RequestError, lambda: made("BasicTrainer", training(tmp_path, device="cuba"))) == (
        "device 'cuba' is none that torch knows; use cpu, cuda or cuda:N."
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"data_parallel": True},
            "data_parallel is ignored: start one process for each device with torchrun in its place.",
        ),
        ({"fp16_opt_level": "O2"}, "fp16_opt_level='O2' is ignored: torch.amp has one level."),
    ],
)
@pytest.mark.parametrize("door", DOORS)
def test_a_setting_without_effect_warns_once(door: str, settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is ignored") as caught:
        made(door, training(tmp_path, **settings))
    assert [str(warning.message) for warning in caught] == [text]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("door", DOORS[1:])
def test_is_caching_logits_has_an_effect_and_stays_in_the_config(door: str, tmp_path: Path) -> None:
    distiller = made(door, training(tmp_path), is_caching_logits=True)
    asked = []
    distiller.model_T.register_forward_pre_hook(lambda *_: asked.append(1))
    distiller.train(sgd(distiller), batches(table(), [8] * 2), 3)
    assert len(asked) == 2
    assert distiller.d_config.is_caching_logits is True


def test_a_local_rank_is_accepted(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path, local_rank=0))
    distiller.train(sgd(distiller), batches(table(), [8]), 1)


def test_several_processes_without_a_launcher_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    trainer = made("BasicTrainer", training(tmp_path))
    assert message(RequestError, lambda: trainer.train(sgd(trainer), batches(table(), [8]), 1)) == (
        "WORLD_SIZE is 2 and RANK is not set; start several processes with torchrun or accelerate launch, which set both, "
        "or unset WORLD_SIZE."
    )


def test_fp16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path, fp16=True))
    assert message(RequestError, lambda: distiller.train(sgd(distiller), batches(table(), [8]), 1)) == (
        "precision fp16 needs a GPU; on a CPU use bf16, or no mixed precision."
    )
    assert list(tmp_path.iterdir()) == []


def test_bf16_trains(tmp_path: Path) -> None:
    distiller = made("GeneralDistiller", training(tmp_path, precision="bf16"), intermediate_matches=[MATCH])
    distiller.train(sgd(distiller), batches(table(), [8] * 2), 1)
    assert all(tensor.dtype == torch.float32 for tensor in weights(distiller.model_S).values())


def test_the_basic_distiller_warns_that_it_leaves_out_matches(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="leaves out") as caught:
        distiller = made("BasicDistiller", training(tmp_path), intermediate_matches=[MATCH])
    assert [str(warning.message) for warning in caught] == [
        "BasicDistiller leaves out intermediate_matches; use GeneralDistiller for them."
    ]
    assert caught[0].filename == __file__
    optimizer = sgd(distiller)
    distiller.train(optimizer, batches(table(), [8]), 1)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("none", [None, [], ()])
def test_no_custom_matches_are_no_terms(none: Any, tmp_path: Path) -> None:
    def student(*matches: Any) -> dict[str, Tensor]:
        teacher, own = models()
        adapt = adaptor(*NAMES)
        distiller = GeneralDistiller(training(tmp_path), DistillationConfig(), teacher, own, adapt, adapt, *matches)
        torch.manual_seed(0)
        distiller.train(sgd(distiller), batches(table(), [8]), 2)
        return weights(own)

    assert_same(student(none), student())


def test_a_registry_of_ones_own_is_looked_up(tmp_path: Path) -> None:
    def l1(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        return (student_logits - teacher_logits).abs().mean()

    registry = default_registry().with_plugin(plugin(brewer_kd_losses={"l1": l1}))
    teacher, student = models()
    adapt = adaptor("row_logits")
    config = DistillationConfig(kd_loss_type="l1")
    distiller = BasicDistiller(training(tmp_path), config, teacher, student, adapt, adapt, registry=registry)
    distiller.train(sgd(distiller), batches(table(), [8]), 1)


def test_assigning_to_a_config_is_refused() -> None:
    config = DistillationConfig()

    def assign() -> None:
        config.temperature = 2

    assert message(ReadOnlyError, assign) == (
        "DistillationConfig is frozen; in place of assigning `temperature`, build a new one: "
        "config.model_copy(update={'temperature': ...}) or DistillationConfig(..., temperature=...)."
    )
    assert config.temperature == 4


def test_a_seeded_training_with_a_shuffling_loader_repeats_itself(tmp_path: Path) -> None:
    def trained() -> dict[str, Tensor]:
        distiller = made("GeneralDistiller", training(tmp_path), intermediate_matches=[MATCH])
        torch.manual_seed(11)
        rows = [dict(zip(table(), row, strict=True)) for row in zip(*table(12).values(), strict=True)]
        with distiller:
            distiller.train(sgd(distiller), DataLoader(rows, batch_size=4, shuffle=True), 2)
        return weights(distiller.model_S)

    assert_same(trained(), trained())


def test_no_warning_comes_of_a_plain_training(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller = made("GeneralDistiller", training(tmp_path), intermediate_matches=[MATCH])
        distiller.train(
            sgd(distiller),
            batches(table(), [8] * 2),
            2,
            scheduler_class=torch.optim.lr_scheduler.StepLR,
            scheduler_args={"step_size": 1},
        )


# What old scripts do beside the documents


def without_labels(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**columns, "labels": torch.full_like(columns["labels"], -100)}


def with_cross_entropy(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs["row_logits"], "losses": F.cross_entropy(outputs["row_logits"], batch["labels"])}


def test_a_loss_without_any_label_adds_nothing_where_its_weight_is_0(tmp_path: Path) -> None:
    teacher, student = models()
    config = DistillationConfig(hard_label_weight=0)
    distiller = BasicDistiller(training(tmp_path), config, teacher, student, with_cross_entropy, with_cross_entropy)
    labelled, unlabelled = batches(table(), [8, 8])
    distiller.train(sgd(distiller), [labelled, without_labels(unlabelled)], 1)
    kept = weights(student)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher, student = models()
        adapt = adaptor("row_logits")
        distiller = BasicDistiller(training(tmp_path), config, teacher, student, adapt, adapt)
        distiller.train(sgd(distiller), [labelled, unlabelled], 1)
    assert_same(weights(student), kept)


def test_a_loss_that_is_no_number_with_gradients_that_are_is_warned_of(tmp_path: Path) -> None:
    teacher, student = models()
    config = DistillationConfig(hard_label_weight=1)
    distiller = BasicDistiller(training(tmp_path), config, teacher, student, with_cross_entropy, with_cross_entropy)
    labelled, unlabelled = batches(table(), [8, 8])
    with pytest.warns(
        UserWarning, match="the term `hard_label_loss` is not finite in some step, though its gradients are"
    ):
        distiller.train(sgd(distiller), [labelled, without_labels(unlabelled)], 1)
    assert all(tensor.isfinite().all() for tensor in weights(student).values())


@pytest.mark.parametrize("name", ["t_config", "d_config"])
def test_a_distillers_config_cannot_be_replaced(name: str, tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path))
    kept = getattr(distiller, name)
    text = message(ReadOnlyError, lambda: setattr(distiller, name, kept.model_copy()))
    assert text == (
        f"BasicDistiller.{name} cannot be replaced: the distiller is built of it; build another distiller with the new config."
    )
    assert getattr(distiller, name) is kept


def test_what_a_callback_leaves_in_the_gradients_is_gone_in_the_next_epoch(tmp_path: Path) -> None:
    def student(callback: Callable[..., Any]) -> dict[str, Tensor]:
        distiller = made("BasicDistiller", training(tmp_path))
        distiller.train(sgd(distiller), batches(table(), [8] * 2), 3, callback=callback)
        return weights(distiller.model_S)

    def forward(model: nn.Module, step: int) -> Tensor:
        return model(**batches(table(), [8])[0])["loss"]

    def backward(model: nn.Module, step: int) -> None:
        forward(model, step).backward()

    assert_same(student(backward), student(forward))


def test_what_a_callback_adds_to_the_optimizer_is_clipped_too(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path), kd_loss_weight=1e4)
    student = distiller.model_S
    optimizer = torch.optim.SGD(student.of_rows.parameters(), lr=0.1)
    norms: list[float] = []

    def note(*_: Any) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])))

    def unfreeze(model: nn.Module, step: int) -> None:
        if step == 1:
            optimizer.add_param_group({"params": list(model.embedding.parameters())})

    optimizer.register_step_pre_hook(note)
    distiller.train(optimizer, batches(table(), [8]), 2, callback=unfreeze, max_grad_norm=1.0)
    assert norms == [pytest.approx(1.0, rel=1e-4)] * 2


def test_an_optimizer_that_finds_its_own_learning_rate_logs_none(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path, log_dir=str(tmp_path / "log"), log_every_steps=1))
    optimizer = sgd(distiller)
    optimizer.register_step_pre_hook(lambda *_: optimizer.param_groups[0].update(lr=0.1))
    optimizer.register_step_post_hook(lambda *_: optimizer.param_groups[0].update(lr=None))
    distiller.train(optimizer, batches(table(), [8]), 1)
    (file,) = (tmp_path / "log").iterdir()
    assert b"learning_rate" not in file.read_bytes()


def test_a_teacher_that_is_on_the_device_is_not_asked_to_move(tmp_path: Path) -> None:
    distiller = made("BasicDistiller", training(tmp_path))
    distiller.model_T.to = None
    distiller.train(sgd(distiller), batches(table(), [8]), 1)


def test_a_teacher_that_is_no_module_is_refused(tmp_path: Path) -> None:
    adapt = adaptor("row_logits")
    distiller = BasicDistiller(training(tmp_path), DistillationConfig(), None, models()[1], adapt, adapt)
    assert message(RequestError, lambda: distiller.train(sgd(distiller), batches(table(), [8]), 1)) == (
        "a teacher must be a torch.nn.Module, not a NoneType."
    )


def test_numbers_of_numpys_are_numbers(tmp_path: Path) -> None:
    match = {**MATCH, "layer_T": numpy.int64(MATCH["layer_T"]), "weight": numpy.float32(0.5)}
    config = DistillationConfig(temperature=numpy.float64(2), intermediate_matches=[match])
    assert config == DistillationConfig(temperature=2, intermediate_matches=[{**MATCH, "weight": 0.5}])
    accumulating = training(tmp_path, gradient_accumulation_steps=numpy.int64(2))
    assert accumulating == training(tmp_path, gradient_accumulation_steps=2)
    assert message(ConfigError, lambda: DistillationConfig(temperature=numpy.array([2.0]))).startswith(
        "DistillationConfig: "
    )


def test_a_batch_of_any_other_kind_is_spread_over_the_models_arguments(tmp_path: Path) -> None:
    class Columns:
        def __init__(self, batch: dict[str, Tensor]) -> None:
            self.batch = batch

        def __iter__(self) -> Any:
            return iter(self.batch.values())

    def student(make: Callable[..., Any]) -> dict[str, Tensor]:
        distiller = made("BasicDistiller", training(tmp_path))
        distiller.adaptor_T = distiller.adaptor_S = lambda batch, outputs: {"logits": outputs["row_logits"]}
        distiller.train(sgd(distiller), [make(batch) for batch in batches(table(), [8] * 2)], 1)
        return weights(distiller.model_S)

    assert_same(student(Columns), student(lambda batch: tuple(batch.values())))


def test_a_scripted_teacher_teaches_in_eval_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is to go
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    with evaluating(scripted):
        assert not any(module.training for module in scripted.modules())
        assert torch.equal(scripted(torch.ones(8, 3)), scripted(torch.ones(8, 3)))
    assert all(module.training for module in scripted.modules())
