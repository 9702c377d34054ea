"""The pytest plugin: its fixtures, what it costs to load it, and a conformance class under pytest's own hands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from brewer_core.errors import ConfigError
from brewer_core.registry import Registry
from brewer_core.testing import TinyRun
from fakes import loss_module


def under_pytest(folder: Path, text: str, *arguments: str) -> str:
    """What pytest says of a test file, in a process of its own with warnings as errors."""
    (folder / "test_it.py").write_text(dedent(text), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-W", "error", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    assert done.stderr == ""
    return done.stdout


CONFORMANCE = """
    from brewer_core.testing import WeightSchedulerConformance

    def falling(progress):
        return 1 - progress

    class TestFalling(WeightSchedulerConformance):
        component = falling
        exempt = {"pure": "nobody asks twice"}

    class TestRising(WeightSchedulerConformance):
        component = staticmethod(lambda progress: 1 + progress)
"""


@pytest.mark.parametrize("arguments", [(), ("-p", "no:brewer")], ids=["loaded", "not loaded"])
def test_a_conformance_class_runs_under_pytest(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    told = under_pytest(tmp_path, CONFORMANCE, *arguments)

    assert "FAILED test_it.py::TestRising::test_in_bounds" in told or "is 1.05 at a progress of 0.05" in told
    assert "nobody asks twice" in told
    assert "1 failed, 6 passed, 1 skipped" in told


def test_loading_the_plugin_loads_no_torch(tmp_path: Path) -> None:
    told = under_pytest(
        tmp_path,
        """
        import sys

        def test_torch_is_not_loaded(request):
            assert request.config.pluginmanager.hasplugin("brewer")
            assert "torch" not in sys.modules
        """,
    )

    assert "1 passed" in told


def test_seeded_tensors_are_the_same_for_the_same_seed(seeded_tensors: Callable[..., torch.Tensor]) -> None:
    before = torch.random.get_rng_state()

    first, again, other = seeded_tensors(2, 3), seeded_tensors(2, 3), seeded_tensors(2, 3, seed=1)

    assert first.shape == (2, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_fake_distribution_is_in_the_registry_with_what_is_installed(
    fake_distribution: Callable[..., Registry],
) -> None:
    fake_distribution(
        "brewer-loss-one", entry_points={"one": "one_plugin"}, files={"one_plugin.py": loss_module("one")}
    )
    registry = fake_distribution(
        "brewer-loss-two",
        version="2.0",
        entry_points={"two": "two_plugin"},
        files={"two_plugin.py": loss_module("two")},
    )

    assert str(registry.get("kd_loss", "two").provenance) == "brewer-loss-two 2.0 [two]"
    assert {"one", "two", "kl"} <= set(registry.names("kd_loss"))


def test_a_fake_distribution_is_forgotten_after_its_test() -> None:
    assert "one_plugin" not in sys.modules
    assert not any("site-packages" in entry and "test_a_fake" in entry for entry in sys.path)


def test_a_tiny_run_trains_the_student_and_logs_every_term(tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run(match_loss="hidden_mse", projection="linear", steps=2)

    assert run.terms == ("kd_loss", "hidden_hidden_mse_1_1", "hard_label_loss")
    assert len(run.logged) == 2
    assert all(not torch.equal(w, run.before[name]) for name, w in run.student.state_dict().items() if "head" in name)


def test_a_tiny_run_repeats_itself_whatever_was_drawn_before(tiny_run: Callable[..., TinyRun]) -> None:
    first = tiny_run(projection="linear", match_loss="hidden_mse")
    torch.rand(3)
    again = tiny_run(projection="linear", match_loss="hidden_mse")

    losses = [[figures["total_loss"] for figures in run.logged] for run in (first, again)]
    assert losses[0] == losses[1]
    assert losses[0][-1] != losses[0][0]


@pytest.mark.parametrize(
    ("components", "term"),
    [
        ({"kd_loss": {"name": "ce", "t_squared": True}}, "kd_loss"),
        ({"weight_scheduler": "linear_decay"}, "kd_loss"),
        ({"temperature_scheduler": {"name": "flsw", "beta": 1, "gamma": 2}}, "kd_loss"),
        ({"match_loss": "attention_mse", "feature": "attention"}, "attention_attention_mse_1_1"),
        ({"match_loss": "fsp", "layers": [0, 1]}, "hidden_fsp_0-1_0-1"),
        ({"match_loss": "pkd"}, "hidden_pkd_1_1"),
        ({"strategy": "emd"}, "hidden_hidden_mse_emd"),
        ({"strategy": "multi_task"}, "kd_loss"),
        ({"strategy": "supervised"}, "hard_label_loss"),
        ({"adaptor": "text_classification"}, "kd_loss"),
    ],
    ids=str,
)
def test_a_tiny_run_takes_every_kind_that_trains(
    components: dict[str, object], term: str, tiny_run: Callable[..., TinyRun]
) -> None:
    assert term in tiny_run(**components).terms


def test_a_tiny_run_takes_a_function_and_trains_a_loss_with_state(tiny_run: Callable[..., TinyRun]) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self, *, student_dim: int) -> None:
            super().__init__()
            self.factors = torch.nn.Parameter(torch.ones(student_dim))

        def forward(self, student, teacher, mask=None):
            return ((student - teacher).square() * self.factors).mean()

    run = tiny_run(match_loss=Scaled)

    (factors,) = (p for name, p in run.learner.named_parameters() if name.endswith("factors"))
    assert factors.shape == (6,)
    assert not torch.equal(factors, torch.ones(6))


def test_a_tiny_run_looks_names_up_in_the_registry_that_it_is_given(
    fake_distribution: Callable[..., Registry], tiny_run: Callable[..., TinyRun]
) -> None:
    registry = fake_distribution(
        "brewer-loss-three", entry_points={"three": "three_plugin"}, files={"three_plugin.py": loss_module("three")}
    )

    assert "kd_loss" in tiny_run(kd_loss="three", registry=registry).terms
    with pytest.raises(ConfigError, match="no kd loss is called 'three'"):
        tiny_run(kd_loss="three")
