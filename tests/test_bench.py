"""The benchmark: the smallest comparison of its sides, and what its report makes of figures. No time is asserted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from bench import measuring, report
from bench.compare import PAGE, compared
from bench.work import Setup, Work

MODELS = {"width": 16, "teacher_layers": 3, "student_layers": 2, "vocab_size": 300}
SIDES = ("bare", "student_only", "hand_cached", "brewer_live", "brewer_cold", "brewer_warm", "no_teacher")


def here(function: str, threads: int = 1, **arguments: Any) -> Any:
    """Call what is named `module:function` in this process, as JSON would carry it."""
    module, _, name = function.partition(":")
    return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**arguments)))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison of all sides but TextBrewer on 84 rows, of which the last step has 4."""
    setup = Setup(str(tmp_path_factory.mktemp("bench")), rows=84, **MODELS)
    return compared(
        setup, sides=SIDES, kinds=["hidden"], epochs=[2], rounds=2, batch_size=8, ask=here, say=lambda _: None
    )


def test_every_side_is_measured_in_every_round(result: dict[str, Any]) -> None:
    measured = [(run["round"], run["side"]) for run in result["runs"]]
    assert sorted(measured) == sorted((number, side) for number in range(2) for side in SIDES)
    assert [side for number, side in measured if number == 1] == [*SIDES[1:], SIDES[0]]


def test_the_windows_of_every_side_hold_all_steps(result: dict[str, Any]) -> None:
    for run in result["runs"]:
        assert run["windows"]["steps"] == [10, 10, 2], run["side"]  # 2 epochs of 11 steps
        assert all(seconds > 0 for seconds in run["windows"]["seconds"])
        assert sum(run["windows"]["seconds"]) <= run["seconds"]


def test_all_sides_with_the_same_rows_have_the_loss_curve_of_the_bare_loop(result: dict[str, Any]) -> None:
    curves = {each["side"]: each["curve"] for each in result["figures"]}
    assert curves.pop("no_teacher") is None
    assert curves.pop("bare") is None
    assert set(curves) == {"student_only", "hand_cached", "brewer_live", "brewer_cold", "brewer_warm"}
    assert all(difference < 1e-4 for difference in curves.values()), curves


def test_relations_that_hooks_hear_are_those_that_brewer_captures(tmp_path: Path) -> None:
    found = compared(
        Setup(str(tmp_path), rows=84, **MODELS),
        sides=("bare", "hand_cached", "textbrewer", "brewer_live", "brewer_warm"),
        kinds=["relations"],
        epochs=[2],
        rounds=1,
        batch_size=8,
        reading=False,
        ask=here,
        say=lambda _: None,
    )
    curves = {each["side"]: each["curve"] for each in found["figures"]}
    assert list(curves) == ["bare", "hand_cached", "brewer_live", "brewer_warm"]  # not TextBrewer, which reads none
    assert all(curves[side] < 1e-4 for side in ("hand_cached", "brewer_live", "brewer_warm")), curves
    losses = found["runs"][0]["windows"]["losses"]
    assert losses[0] - losses[-1] > 1e-3


def test_the_losses_fall_so_that_equal_curves_say_something(result: dict[str, Any]) -> None:
    losses = next(run["windows"]["losses"] for run in result["runs"] if run["side"] == "bare")
    assert losses[0] - losses[-1] > 1e-2


def test_every_figure_is_told_and_none_is_negative(result: dict[str, Any]) -> None:
    assert [each["side"] for each in result["figures"]] == list(SIDES)
    for each in result["figures"]:
        assert each["rounds"] == 2
        assert each["rows_per_s"] == pytest.approx(8 / each["step_s"])
        assert min(each["seconds"], each["cpu_seconds"], each["step_s"], each["step_cpu_s"]) > 0
        assert each["peak_bytes"] > 0


def test_the_aims_that_need_textbrewer_are_left_out_without_it(result: dict[str, Any]) -> None:
    assert [each["name"] for each in result["aims"]] == [
        "live step / bare loop",
        "warm step / bare loop, features given",
        "2 epochs, brewer, cold cache / bare loop with a dict",
        "peak memory, brewer, warm cache / labels alone",
        "reading the cache / a copy in memory: hidden states, 768 wide",
        "reading the cache / a copy in memory: logits of 8 classes",
    ]
    for each in result["aims"]:
        assert each["met"] == (each["ratio"] <= each["limit"])


def test_every_way_to_read_is_measured_for_each_case(result: dict[str, Any]) -> None:
    ways = [
        "a copy in memory",
        "brewer's cache",
        "Arrow, mapped",
        "safetensors, mapped",
        "safetensors, sliced",
        "a file for each row",
    ]
    cases = dict.fromkeys(each["case"] for each in result["reading"])
    assert list(cases) == ["hidden states, 768 wide", "logits of 8 classes"]
    for case in cases:
        own = [each for each in result["reading"] if each["case"] == case]
        assert [each["way"] for each in own] == ways
        assert all(each["disk_bytes"] >= each["bytes"] for each in own[1:])


def test_textbrewer_trains_on_the_same_work(tmp_path: Path) -> None:
    setup = Setup(str(tmp_path), rows=20, **MODELS)
    here("bench.work:prepare", **setup.__dict__)
    run = here("bench.measuring:measure", side="textbrewer", work=Work(setup, "hidden", 2, 8).to_json())
    assert run["windows"]["steps"] == [6]
    assert run["windows"]["losses"] == [None]


def test_a_side_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    own = measuring.isolated("os:getpid")
    assert own != here("os:getpid")


def test_what_fails_in_a_process_of_its_own_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"os:listdir\(\{'path': '.*none'\}\) failed:\n(.|\n)*FileNotFoundError"):
        measuring.isolated("os:listdir", path=str(tmp_path / "none"))


def test_a_step_is_the_sum_of_each_windows_median_over_rounds() -> None:
    # windows of 10 and 5 steps: medians 2 and 1 of (1, 2, 9) and (1, 1, 4), so 3 seconds for 15 steps
    found = report.figures([run(seconds=[1, 1]), run(seconds=[2, 1]), run(seconds=[9, 4])], batch_size=16)
    assert found[0].step_s == pytest.approx(0.2)
    assert found[0].rows_per_s == pytest.approx(80)


def test_an_aim_is_the_ratio_of_medians_with_the_ratios_of_rounds() -> None:
    runs = [run("bare", [1, 1]), run("bare", [1, 1]), run("brewer_live", [1, 1]), run("brewer_live", [2, 1])]
    (aim,) = report.aims(runs, [])
    assert (aim.name, aim.limit, aim.at_least) == ("live step / bare loop", 1.03, False)
    assert aim.ratio == pytest.approx(1.25)  # medians 1.5 and 1 against 1 and 1
    assert aim.by_round == pytest.approx((1.0, 1.5))
    assert not aim.met


def test_a_curve_differs_by_its_largest_window() -> None:
    runs = [run("bare", losses=[1.0, 0.5]), run("brewer_live", losses=[1.25, 0.0])]
    assert [each.curve for each in report.figures(runs, 16)] == [None, 0.5]


def test_a_page_gets_the_figures_between_its_marks(result: dict[str, Any]) -> None:
    old = f"# Before\n\n{report.BEGIN}\nformer figures\n{report.END}\nafter\n"
    new = report.page(old, result)
    assert new.startswith(f"# Before\n\n{report.BEGIN}\n")
    assert new.endswith(f"{report.END}\nafter\n")
    assert "former figures" not in new
    assert report.page(new, result) == new


def test_a_page_without_a_place_for_figures_is_refused(result: dict[str, Any]) -> None:
    with pytest.raises(SystemExit) as caught:
        report.page("# Benchmarks\n", result)
    assert str(caught.value) == (
        "the page has no place for figures; it needs the lines <!-- figures: written by tests/bench/compare.py --> and "
        "<!-- end of the figures -->."
    )


def test_the_page_of_benchmarks_has_a_place_for_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert report.BEGIN in text
    assert report.END in text


def test_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^there are \d+ rows to train on, fewer than 1000000\.$"):
        here("bench.work:prepare", folder=str(tmp_path), rows=1_000_000)


def run(side: str = "bare", seconds: Any = (1, 1), losses: Any = (1.0, 1.0)) -> dict[str, Any]:
    """What is measured of a side in a round: two windows, of 10 and of 5 steps."""
    windows = {"steps": [10, 5], "seconds": list(seconds), "cpu_seconds": list(seconds), "losses": list(losses)}
    whole = {"seconds": 3.0, "cpu_seconds": 3.0, "peak_bytes": 10, "peak_bytes_after_imports": 5}
    return {"side": side, "kind": "logits", "epochs": 1, **whole, "windows": windows}
