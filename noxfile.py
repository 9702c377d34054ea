"""The sessions of brewer: `nox -s tests`, `nox -s lint`, ...; Pythons and dependency groups are those of pyproject.toml."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # with CI set, `pythons` would otherwise need every one of them
nox.options.download_python = "never"

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
PLUGINS = sorted(file.parent.name for file in ROOT.glob("plugins/*/pyproject.toml"))
# Bytecode is written, whatever the caller's environment says: tests start many processes, each of which imports torch.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "",
}

WRITE_ALL = """
import sys
from brewer_core import KINDS
from brewer_core.cli.main import execute
sys.exit(max(execute(["new-plugin", kind, f"new_{kind}", "--output", f"{sys.argv[1]}/{kind}"]) for kind in KINDS))
"""


def group(name: str, project: Path = ROOT) -> list[str]:
    """The requirements of a dependency group."""
    return list(nox.project.dependency_groups(nox.project.load_toml(project / "pyproject.toml"), name))


def install(session: nox.Session, *requirements: str) -> None:
    """Install with the pinned versions; torch in particular, of which other builds are gigabytes."""
    # Compiling every file of torch and transformers takes longer than unpacking them.
    session.install("--no-compile", "-c", str(ROOT / "constraints.txt"), *requirements)


def written(session: nox.Session) -> list[Path]:
    """The folders of what `brewer new-plugin` writes, one a kind, each called as its kind."""
    folder = (Path(session.create_tmp()) / "written").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-c", WRITE_ALL, str(folder), silent=True)  # one process, for each imports torch
    return sorted(folder.iterdir())


def run_tests(session: nox.Session) -> None:
    """Install everything that the tests use, and run pytest with the session's arguments, a file of tests on a core."""
    packages = [f"./plugins/{plugin}" for plugin in PLUGINS]
    install(session, ".[hf]", *packages, *group("test"))
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs, env=QUIET)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on this Python: `nox -s tests -- -k discovery`."""
    run_tests(session)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run the tests on every supported Python that is installed: `nox -s pythons-3.12`."""
    run_tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format: `nox -s lint -- --fix` mends what it can."""
    install(session, *group("lint"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of everything that is shipped, and of what `brewer new-plugin` writes."""
    install(session, ".[hf]", *group("types"))
    session.run("mypy", "--strict", "brewer_core", *map(str, sorted(ROOT.glob("plugins/*/src"))))
    sources = [source for package in written(session) for source in package.glob("src/*")]
    modules = [argument for source in sources for argument in ("-p", source.name)]
    session.run("mypy", "--strict", *modules, env={"MYPYPATH": os.pathsep.join(str(s.parent) for s in sources)})


@nox.session(reuse_venv=False)
@nox.parametrize("plugin", PLUGINS, ids=PLUGINS)
def plugins(session: nox.Session, plugin: str) -> None:
    """Install core and one plugin of this repository in a fresh environment, and run the plugin's own tests."""
    folder = ROOT / "plugins" / plugin
    install(session, ".")
    install(session, str(folder), *group("test", folder))
    session.chdir(folder)
    session.run("pytest", "-W", "error", *session.posargs, env=QUIET)


@nox.session(reuse_venv=False)
def templates(session: nox.Session) -> None:
    """Install core and what `brewer new-plugin` writes for every kind in a fresh environment, and run the tests of that."""
    install(session, ".", "hatchling", "pytest", *group("lint"))
    packages = written(session)
    install(session, "--no-deps", "--no-build-isolation", *map(str, packages))
    listed = str(session.run("brewer", "list-plugins", "--json", silent=True))
    if missing := [package.name for package in packages if f'"name": "new_{package.name}"' not in listed]:
        session.error(f"brewer list-plugins does not show what was written for {', '.join(missing)}")
    settings = [
        "-c",
        str(packages[0] / "pyproject.toml"),
        "--rootdir",
        str(packages[0].parent),
    ]  # those of all packages
    session.run("pytest", *settings, *session.posargs, *map(str, packages), env=QUIET)
    plain = ["--isolated", "--line-length", "120", "--no-respect-gitignore", "--exclude", "build"]  # not .nox, as else
    for package in packages:
        session.chdir(package)
        session.run("ruff", "check", *plain, "--extend-select", "I,UP,B", ".")
        session.run("ruff", "format", *plain, "--check", ".")


@nox.session(name="install", reuse_venv=False)
def install_(session: nox.Session) -> None:
    """Install the package alone in a fresh environment, leave the checkout, and run the command."""
    install(session, ".")
    session.chdir(session.create_tmp())
    session.run("brewer", "--help")
    session.run("brewer", "list-plugins")
    session.run("python", "-m", "brewer_core", "--version")


@nox.session
def peers(session: nox.Session) -> None:
    """Compare losses with those of other public libraries."""
    install(session, ".[hf]", *group("peers"))
    session.run("pytest", "tests/test_peers.py", *session.posargs, env=QUIET)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the quickstart: `nox -s demo -- --output /tmp/demo`."""
    install(session, ".[quickstart]")
    session.run("brewer", "run", "quickstart", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare brewer with bare PyTorch loops and TextBrewer in time and memory: `nox -s bench -- --rounds 3`."""
    install(session, ".[hf]", "textbrewer")
    session.run("python", "tests/bench/compare.py", *session.posargs, env=QUIET)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill runs at random moments, go on with them, and compare bit for bit: `nox -s faults -- --kills 50 --seed 0`."""
    install(session, ".[hf]")
    session.run("python", "tests/faults/kill_runs.py", *session.posargs, env=QUIET)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; `nox -s docs -- serve` shows it as it is written."""
    install(session, *group("docs"))
    session.run("mkdocs", *(session.posargs or ["build"]), "--strict")
