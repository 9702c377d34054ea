"""The shape of the code: imports go down, core knows no plugin, only the command line prints, and starting is cheap."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

import brewer_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
CORE = ROOT / "brewer_core"
PLUGINS = ROOT / "plugins"
BUILTINS = PLUGINS / "brewer-builtins" / "src" / "brewer_builtins"

FLOORS: dict[int, tuple[str, ...]] = {
    -1: ("errors",),  # under everything
    0: (
        "cache_folder",
        "data_utils",
        "feature_names",
        "features",
        "files",
        "fingerprints",
        "modules",
        "processes",
        "randomness",
        "sparse_logits",
        "stopping",
        "utils",
    ),
    1: ("architectures", "components", "precision", "protocols"),
    2: ("batches", "captures", "config", "depth", "hookspecs", "registry"),
    3: ("checkpoints", "objective", "packing", "plugins", "sharding", "teachers"),
    4: ("cache", "learner", "listeners"),
    5: ("engine", "progress"),
    6: ("distillers", "migration", "presets", "run"),
    7: ("cli", "configurations", "distiller_utils"),
}
FLOOR_OF = {unit: floor for floor, units in FLOORS.items() for unit in units}
EXEMPT = {"__init__", "__main__", "testing"}  # testing may import everything; of cli, only a function imports it
TORCHLESS = {"config", "hookspecs", "registry"}  # not even inside a function


@dataclass(frozen=True)
class Import:
    """One run-time import: `from module import names`, or `import module` where there are no names."""

    file: Path
    line: int
    module: str
    names: tuple[str, ...] = ()
    inside_function: bool = False

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(file: Path, for_checkers: bool = False) -> list[Import]:
    """The imports of a file that are run, those inside functions included; on request those for type checkers too."""
    return list(_imports(file, tree_of(file), for_checkers, False))


def _imports(file: Path, node: ast.AST, for_checkers: bool, inside: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING") and not for_checkers:
            yield from _imports(file, ast.Module(child.orelse, []), for_checkers, inside)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, (), inside)
        elif isinstance(child, ast.ImportFrom):
            module = ("." * child.level) + (child.module or "")
            yield Import(file, child.lineno, module, tuple(alias.name for alias in child.names), inside)
        else:
            within = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(file, child, for_checkers, within)


def unit_of(file: Path) -> str:
    """The module or package directly under `brewer_core` that a file belongs to."""
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def units_imported(found: Import) -> set[str]:
    """The units of `brewer_core` that an import names."""
    package, _, rest = found.module.partition(".")
    if package != "brewer_core":
        return set()
    homes = brewer_core._MODULE_OF  # an exported name is an import of its home
    return {rest.partition(".")[0]} if rest else {homes.get(name, name) for name in found.names} - {"__version__"}


def test_the_walker_sees_the_imports_that_are_run(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "import a.b, c\nfrom d import e as f\nif TYPE_CHECKING:\n    import g\nelse:\n    import h\n"
        "try:\n    import i\nexcept ImportError:\n    pass\nclass J:\n    def k(self):\n        from l.m import n, o\n"
    )

    seen = [(found.module, found.names, found.inside_function) for found in imports(file)]

    assert seen == [
        ("a.b", (), False),
        ("c", (), False),
        ("d", ("e",), False),
        ("h", (), False),
        ("i", (), False),
        ("l.m", ("n", "o"), True),
    ]
    assert {found.module for found in imports(file, for_checkers=True)} - {found[0] for found in seen} == {"g"}


CORE_FILES = [file for file in sources(CORE) if unit_of(file) not in EXEMPT]


# Floors


def test_every_module_has_its_floor() -> None:
    homeless = sorted({unit_of(file) for file in CORE_FILES} - set(FLOOR_OF))

    assert not homeless, (
        f"place {', '.join(homeless)} on a floor: the map is FLOORS in {Path(__file__).name}, after section 5 of the "
        "contracts; an import goes to a lower floor, never sideways."
    )


def test_imports_go_to_a_lower_floor() -> None:
    wrong = [
        f"{found}: {unit_of(file)} (floor {FLOOR_OF[unit_of(file)]}) imports {unit} (floor {FLOOR_OF.get(unit, '?')})"
        for file in CORE_FILES
        if unit_of(file) in FLOOR_OF
        for found in imports(file)
        for unit in units_imported(found) - {unit_of(file), "testing"}
        if FLOOR_OF.get(unit, 99) >= FLOOR_OF[unit_of(file)]
    ]

    assert wrong == []


def test_imports_are_absolute() -> None:
    relative = [str(found) for file in sources(CORE) for found in imports(file) if found.module.startswith(".")]

    assert relative == []


def test_nothing_imports_testing_but_a_command_when_it_is_called() -> None:
    wrong = [
        str(found)
        for file in sources(CORE)
        if unit_of(file) != "testing"
        for found in imports(file)
        if "testing" in units_imported(found) and not (unit_of(file) == "cli" and found.inside_function)
    ]

    assert wrong == []


def test_the_lower_floors_import_no_torch_when_they_are_imported() -> None:
    wrong = [
        str(found)
        for file in CORE_FILES
        if FLOOR_OF.get(unit_of(file), 99) <= 2
        for found in imports(file)
        if found.module.partition(".")[0] == "torch" and (not found.inside_function or unit_of(file) in TORCHLESS)
    ]

    assert wrong == []


# Core and plugins


def test_core_never_imports_a_plugin() -> None:
    names = {package.name for package in PLUGINS.glob("*/src/*")}
    wrong = [str(found) for file in sources(CORE) for found in imports(file) if found.module.partition(".")[0] in names]

    assert "brewer_builtins" in names
    assert wrong == []


def test_built_ins_import_only_what_core_exports() -> None:
    wrong = [
        f"{found}: {', '.join(found.names) or found.module}"
        for file in sources(BUILTINS)
        for found in imports(file, for_checkers=True)
        if found.module.partition(".")[0] == "brewer_core"
        and not (found.module == "brewer_core" and found.names and set(found.names) <= set(brewer_core.__all__))
    ]

    assert wrong == []


@pytest.mark.parametrize("name", sorted(brewer_core.__all__))
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(brewer_core, name) is not None


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError) as caught:
        brewer_core.absent  # noqa: B018
    assert str(caught.value) == "module 'brewer_core' has no attribute 'absent'"


# Printing and exiting


def outlets(file: Path) -> Iterator[str]:
    """Where a file prints or exits."""
    for node in ast.walk(tree_of(file)):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
        if called in ("print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"):
            yield f"{file.relative_to(ROOT)}:{node.lineno}: {called}"
        if raised.partition("(")[0] == "SystemExit":
            yield f"{file.relative_to(ROOT)}:{node.lineno}: raise {raised}"


def test_only_the_command_line_prints_or_exits() -> None:
    core = [file for file in sources(CORE) if unit_of(file) not in ("cli", "testing")]
    plugins = [file for folder in PLUGINS.glob("*/src") for file in sources(folder)]

    assert [outlet for file in (*core, *plugins) for outlet in outlets(file)] == []


# Starting


def loaded_after(code: str) -> set[str]:
    """The packages that a fresh Python has loaded after some code."""
    show = "import json, sys; sys.stderr.write('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"import atexit\n@atexit.register\ndef show():\n    {show}\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.partition("\n[")[0]
    packages: list[str] = json.loads(done.stderr.splitlines()[-1])
    return set(packages)


def test_importing_brewer_core_loads_neither_torch_nor_a_plugin() -> None:
    loaded = loaded_after("import brewer_core")

    assert "brewer_core" in loaded
    assert loaded & {"torch", "pluggy", "brewer_builtins", "brewer_loss_pkd"} == set()


@pytest.mark.parametrize("module", ["brewer_core.testing", "brewer_core.testing.pytest_plugin"])
def test_importing_the_pytest_plugin_loads_neither_torch_nor_a_plugin(module: str) -> None:
    assert loaded_after(f"import {module}") & {"torch", "brewer_builtins", "brewer_loss_pkd"} == set()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["list-plugins", "--help"], ["test-plugin", "--help"], ["cache", "ls", "--help"]],
)
def test_the_help_loads_neither_torch_nor_a_plugin(arguments: list[str]) -> None:
    run = "import runpy; runpy.run_module('brewer_core', run_name='__main__', alter_sys=True)"
    loaded = loaded_after(f"import sys; sys.argv[1:] = {arguments!r}\n{run}")

    assert "typer" in loaded
    assert loaded & {"torch", "brewer_builtins", "brewer_loss_pkd"} == set()


# The distribution


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table: dict[str, object] = tomllib.loads(text)["project"]
    return table


@pytest.fixture(scope="module")
def installed() -> metadata.Distribution:
    try:
        return metadata.distribution("brewer-core")
    except metadata.PackageNotFoundError:
        pytest.skip("brewer-core is not installed; pip install -e . for the tests of its metadata")


@pytest.mark.parametrize("group", ["brewer", "pytest11", "console_scripts"])
def test_installed_entry_points_equal_those_in_pyproject(
    group: str, project: dict[str, object], installed: metadata.Distribution
) -> None:
    declared = project["scripts"] if group == "console_scripts" else project["entry-points"][group]  # type: ignore[index]

    assert {entry.name: entry.value for entry in installed.entry_points if entry.group == group} == declared


def test_every_module_of_the_built_ins_that_has_hooks_is_an_entry_point(project: dict[str, object]) -> None:
    targets = set(project["entry-points"]["brewer"].values())  # type: ignore[index]
    with_hooks = {
        ".".join(file.relative_to(BUILTINS.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in sources(BUILTINS)
        if any(isinstance(node, ast.FunctionDef) and node.name.startswith("brewer_") for node in tree_of(file).body)
    }

    assert with_hooks - targets == set()


def test_the_versions_agree(project: dict[str, object], installed: metadata.Distribution) -> None:
    assert brewer_core.__version__ == project["version"] == installed.version
