"""`brewer test-plugin`: what it prints, which status it has, and what it says of a distribution that is not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import fake_distribution
from runs import brewer

GOOD = '''
from brewer_core import ShapeError, component, hookimpl

@component(over="tokens", exempt={"bf16": "it is never asked in bfloat16"})
def distance(student, teacher, mask=None):
    """Mean squared difference."""
    if student.shape[-1] != teacher.shape[-1]:
        raise ShapeError("other widths.")
    values = (student - teacher.detach()).square().mean(-1)
    return values.mean() if mask is None else values.where(mask, 0).sum() / mask.sum().clamp(min=1)

@hookimpl
def brewer_match_losses():
    return {"distance": distance}
'''
LEAKY = GOOD.replace("teacher.detach()", "teacher")
UNKNOWN = GOOD.replace('"bf16"', '"bf61"')


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for distributions, importable; what was imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def add(site: Path, text: str) -> None:
    fake_distribution(site, "brewer-loss-mine", "0.3", {"mine": "mine_plugin"}, {"mine_plugin.py": text})


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    status = brewer("test-plugin", *arguments, "--json")
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, json.loads(captured.out)


def test_a_plugin_that_keeps_all_is_done_with_status_0(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(site, GOOD)

    status, document = answer(capsys, "Brewer_Loss.Mine")

    results = {row["property"]: row["result"] for row in document["properties"]}
    assert status == 0
    assert results.pop("bf16") == "skipped"
    assert set(results.values()) == {"passed"}
    assert document["failed_plugins"] == []


def test_a_property_that_fails_is_told_with_its_reason_and_status_1(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(site, LEAKY)

    status, document = answer(capsys, "brewer-loss-mine")

    assert status == 1
    assert [row for row in document["properties"] if row["result"] == "failed"] == [
        {
            "kind": "match_loss",
            "component": "distance",
            "property": "no_gradient_to_teacher",
            "result": "failed",
            "reason": "gives the teacher a gradient; take `teacher.detach()`",
        }
    ]


def test_the_table_shows_every_property_with_its_result(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(site, LEAKY)

    assert brewer("test-plugin", "brewer-loss-mine") == 1

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "component property why"
    assert "match loss distance scalar passed" in lines
    assert "no_gradient_to_teacher FAILED gives the teacher a gradient; take `teacher.detach()`" in lines
    assert "bf16 skipped it is never asked in bfloat16" in lines
    assert lines[-1] == "12 passed, 1 failed, 1 skipped of 1 components"


def test_an_exemption_of_no_property_fails_them_all(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(site, UNKNOWN)

    status, document = answer(capsys, "brewer-loss-mine")

    assert status == 1
    assert {row["reason"] for row in document["properties"]} == {
        "ComponentError: match loss `distance` exempts 'bf61', which is no property of this kind; did you mean 'bf16'?"
    }


def test_a_plugin_that_fails_to_load_is_told_with_the_reason(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(site, "import absent_library")

    assert brewer("test-plugin", "brewer-loss-mine") == 1

    assert capsys.readouterr().out.splitlines() == [
        "FAILED to load brewer-loss-mine:mine: import of mine_plugin fails: ModuleNotFoundError: No module named 'absent_library'",
        "0 passed, 0 failed, 0 skipped of 0 components",
    ]


def test_other_distributions_are_not_imported(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(site, GOOD)
    fake_distribution(site, "brewer-loss-other", "1.0", {"other": "other_plugin"}, {"other_plugin.py": "raise 1"})

    assert answer(capsys, "brewer-loss-mine")[0] == 0
    assert "other_plugin" not in sys.modules


def test_a_distribution_that_is_not_there_is_a_faulty_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert brewer("test-plugin", "brewer-strategy-edm") == 2

    told = "no distribution 'brewer-strategy-edm' with plugins is installed; did you mean 'brewer-strategy-emd'"
    assert capsys.readouterr().err.startswith(f"brewer: error: {told}")


def test_a_distribution_that_is_disabled_is_a_faulty_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BREWER_DISABLE_PLUGINS", "brewer-core")

    assert brewer("test-plugin", "brewer-core") == 2

    text = (
        "brewer: error: brewer-core is disabled by BREWER_DISABLE_PLUGINS, or not allowed by BREWER_PLUGINS; change that to test "
        "it.\n"
    )
    assert capsys.readouterr().err == text


def test_an_extra_that_is_missing_skips_what_needs_it(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(
        site,
        """
        from brewer_core import MissingExtraError, hookimpl

        def figure(predictions, references):
            raise MissingExtraError("figure needs absent; install it with: pip install absent")

        @hookimpl
        def brewer_metrics():
            return {"figure": figure}
        """,
    )

    status, document = answer(capsys, "brewer-loss-mine")

    assert status == 0
    assert {(row["result"], row["reason"]) for row in document["properties"]} == {
        ("skipped", "figure needs absent; install it with: pip install absent")
    }
