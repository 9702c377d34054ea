"""`brewer new-plugin`: what it writes for each kind, what it refuses, and that nothing is overwritten.

The session `templates` of nox installs what is written here and runs its tests.
"""

from __future__ import annotations

import json
import sys
import types
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from brewer_core import KINDS, __version__
from brewer_core.cli.creating import REQUIREMENTS, Package, _compatible_versions, files_of, write
from brewer_core.cli.main import app, execute
from brewer_core.components import Component, Kind
from brewer_core.config import parse_run_config
from brewer_core.errors import BrewerError, RequestError
from brewer_core.plugins import build_registry, collect
from brewer_core.run.library import packaged_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
NAME = "first_try"

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def package(kind: Kind, name: str = NAME) -> Package:
    return Package.named(kind, name)


def module_of(written: Package) -> types.ModuleType:
    """The module of a package, from its text."""
    module = types.ModuleType(written.module)
    exec(compile(files_of(written)[f"src/{written.module}/__init__.py"], written.module, "exec"), vars(module))
    return module


def component_of(written: Package) -> Component:
    module = module_of(written)
    sys.modules[written.module] = module  # as an import leaves it: annotations are evaluated there
    try:
        (component,) = collect(module).components
    finally:
        del sys.modules[written.module]
    return component


def snippet_of(written: Package) -> dict[str, Any]:
    """The part of a config that the README shows."""
    readme = files_of(written)["README.md"]
    found: dict[str, Any] = json.loads(readme.partition("```json\n")[2].partition("```")[0])
    return found


def merged(whole: Any, part: Any) -> Any:
    """A config with a part put into it; of the stages the first of the same kind."""
    if not isinstance(whole, dict) or not isinstance(part, dict) or "name" in part:
        return part
    result = dict(whole)
    for key, value in part.items():
        if key == "stages":
            (own,) = value
            result[key] = [merged(s, own) if s["kind"] == own["kind"] else s for s in whole[key]]
        else:
            result[key] = merged(whole.get(key), value)
    return result


# What is written


@each_kind
def test_a_package_has_these_files(kind: Kind) -> None:
    module = f"brewer_{kind.family}_first_try"

    assert sorted(files_of(package(kind))) == [
        ".gitignore",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        f"src/{module}/__init__.py",
        f"src/{module}/py.typed",
        "tests/test_first_try.py",
    ]


@each_kind
def test_the_project_names_its_entry_point_and_what_it_needs(kind: Kind) -> None:
    files = files_of(package(kind))
    module = f"brewer_{kind.family}_first_try"
    table = tomllib.loads(files["pyproject.toml"])
    needed = {name for name in REQUIREMENTS if f"\nimport {name}" in files[f"src/{module}/__init__.py"]}
    needed |= {name for name in REQUIREMENTS if f"from {name}" in files[f"src/{module}/__init__.py"]}
    of_tests = {name for name in REQUIREMENTS if f"import {name}\n" in files["tests/test_first_try.py"]} - needed

    assert table["project"]["name"] == f"brewer-{kind.family}-first-try"
    assert table["project"]["entry-points"] == {"brewer": {NAME: module}}
    assert table["project"]["dependencies"] == ["brewer-core>=0.1,<0.2", *(REQUIREMENTS[n] for n in sorted(needed))]
    assert table["dependency-groups"]["test"] == ["pytest>=8", *(REQUIREMENTS[n] for n in sorted(of_tests))]
    assert table["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{module}"]
    assert table["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error"]


@each_kind
def test_the_component_follows_the_rules_and_is_described(kind: Kind) -> None:
    component = component_of(package(kind))

    assert (component.kind, component.name) == (kind, NAME)
    assert component.summary.endswith((".", ":", ","))
    assert all("description" in field for field in component.options_model.model_json_schema()["properties"].values())


@each_kind
def test_the_tests_hold_the_component_to_the_rules_of_its_kind(kind: Kind) -> None:
    text = files_of(package(kind))["tests/test_first_try.py"]

    compile(text, "test_first_try.py", "exec")
    conformance = "KDLoss" if kind.name == "kd_loss" else "".join(word.title() for word in kind.name.split("_"))
    assert f"class TestFirstTry({conformance}Conformance):\n    component = " in text
    assert "worked" in text


@each_kind
def test_the_config_of_the_readme_is_accepted(kind: Kind) -> None:
    written = package(kind)
    component = component_of(written)
    registry = build_registry().with_component(kind.name, NAME, component.implementation)
    _, whole = packaged_config("quickstart-scratch")

    parse_run_config(merged(deepcopy(whole), snippet_of(written)), "README.md", registry)


@each_kind
def test_the_readme_has_the_commands_for_its_kind(kind: Kind) -> None:
    written = package(kind)
    readme = files_of(written)["README.md"]

    assert readme.startswith(f"# {written.distribution}\n\nThe {kind.title.replace('dataset', 'data set')} `{NAME}`: ")
    assert f"$ brewer list-plugins {kind.plural.replace('_', '-')}\n" in readme
    assert "$ python -m pip install -e . --group test\n$ pytest\n" in readme


def test_the_licence_is_that_of_brewer() -> None:
    assert files_of(package(KINDS["metric"]))["LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_versions_that_a_package_asks_for_are_those_of_brewer() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]

    assert set(REQUIREMENTS.values()) <= set(asked)
    assert __version__.startswith(_compatible_versions().partition(",")[0].removeprefix(">="))


def test_every_file_of_the_templates_is_used() -> None:
    folder = resources.files("brewer_core.cli") / "templates"
    kinds = {entry.name for entry in folder.iterdir() if entry.is_dir()}

    assert kinds == set(KINDS)
    for kind in kinds:
        assert sorted(entry.name for entry in (folder / kind).iterdir()) == [
            "config.json.template",
            "module.py.template",
            "test.py.template",
        ]


# The command


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["new-plugin", *arguments])
    if done.exception:
        raise done.exception
    return done.stdout


def test_the_command_writes_a_package_and_says_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    said = run("match-losses", "hidden-l1")

    folder = tmp_path / "brewer-loss-hidden-l1"
    files = {str(f.relative_to(folder)): f.read_text(encoding="utf-8") for f in folder.rglob("*") if f.is_file()}
    assert files == files_of(Package(KINDS["match_loss"], "hidden_l1"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["brewer-loss-hidden-l1"]
    assert said == (
        "brewer-loss-hidden-l1 holds the match loss `hidden_l1`, which works as it is. Next:\n"
        "  cd brewer-loss-hidden-l1\n"
        "  python -m pip install -e . --group test\n"
        "  brewer list-plugins match-losses\n"
        "  pytest\n"
        "Then put your own in the place of what src/brewer_loss_hidden_l1/__init__.py does.\n"
    )


def test_output_names_the_folder_and_makes_what_is_above_it(tmp_path: Path) -> None:
    said = run("metric", "first", "--output", str(tmp_path / "a b" / "c"))

    assert (tmp_path / "a b" / "c" / "pyproject.toml").is_file()
    assert f"  cd '{tmp_path}/a b/c'\n" in said


def test_an_empty_folder_stays_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    before = folder.stat().st_ino
    monkeypatch.chdir(folder)

    run("metric", "first", "--output", ".")

    assert folder.stat().st_ino == before
    assert (folder / "src" / "brewer_metric_first" / "__init__.py").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    files = {"a/b": "whole", "a": "a file in the place of a folder"}

    with pytest.raises(RequestError):
        write(tmp_path / "package", files)

    assert list(tmp_path.iterdir()) == []


# What is refused


def refusal(*arguments: str) -> str:
    with pytest.raises(BrewerError) as caught:
        run(*arguments)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")

    assert refusal("metric", "first", "--output", str(tmp_path)) == (
        f"output {tmp_path} is not empty; name a new folder with --output."
    )
    assert refusal("metric", "first", "--output", str(tmp_path / "notes")) == (
        f"output {tmp_path / 'notes'} is no folder; name a new folder with --output."
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes"]
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")

    assert refusal("metric", "first", "--output", str(tmp_path / "notes" / "package")) == (
        f"output {tmp_path / 'notes' / 'package'} cannot be written: File exists; choose another with --output."
    )


def test_an_unknown_kind_is_told_with_those_there_are() -> None:
    assert refusal("loss", "first") == (f"no kind of component is called 'loss'; the kinds are {', '.join(KINDS)}.")


@pytest.mark.parametrize("name", ["2nd", "a b", "a.b", "_a", "a_", "a--b", "größe", "", "../a"])
def test_what_is_no_identifier_is_no_name(name: str) -> None:
    assert refusal("kd-loss", name) == (
        f"{name!r} cannot name a kd loss: a name is letters and digits of ASCII, begins with a letter, and may have "
        "single hyphens or underscores inside; choose another."
    )


@pytest.mark.parametrize(("word", "other"), [("lambda", "lambda_metric"), ("None", "none_metric")])
def test_a_word_of_python_is_no_name(word: str, other: str) -> None:
    assert refusal("metric", word) == (
        f"{word!r} cannot name a metric: it is a word of Python's own; choose another, such as {other}."
    )


@pytest.mark.parametrize(
    ("kind", "name", "used", "other"),
    [
        ("kd_loss", "torch", "torch", "torch_loss"),
        ("match_loss", "mask", "mask", "mask_loss"),
        ("strategy", "strategy", "Strategy", "strategy_strategy"),
        ("model", "model", "model", "model_model"),
        ("tracker", "csv", None, None),
    ],
)
def test_a_name_that_the_code_uses_for_something_else_is_refused(
    kind: str, name: str, used: str | None, other: str | None
) -> None:
    if used is None:
        assert files_of(package(KINDS[kind], name))
        return
    with pytest.raises(RequestError) as caught:
        files_of(package(KINDS[kind], name))
    assert str(caught.value) == (
        f"{name!r} cannot name a {KINDS[kind].title} here: the code that would be written uses `{used}` for something "
        f"else; choose another, such as {other}."
    )


def test_a_name_that_is_taken_is_told_with_who_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "package"

    assert refusal("kd-loss", "kl", "--output", str(folder)) == (
        f"kd loss `kl` is provided by brewer-core {__version__} [kd_losses] already; choose another name."
    )
    assert not folder.exists()


def test_a_distribution_that_is_installed_is_not_written_again() -> None:
    pytest.importorskip("brewer_loss_pkd")

    assert refusal("kd-loss", "pkd") == (
        "kd loss `pkd` would be the distribution brewer-loss-pkd, of which 0.1.0 is installed already; choose another "
        "name."
    )


def test_a_refusal_is_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["new-plugin", "metric", "2nd"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
