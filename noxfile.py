"""The sessions of brewer: `nox -s tests`, `nox -s lint`, ...; Pythons and dependency groups are those of pyproject.toml."""

from __future__ import annotations

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
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def group(name: str, project: Path = ROOT) -> list[str]:
    """The requirements of a dependency group."""
    return list(nox.project.dependency_groups(nox.project.load_toml(project / "pyproject.toml"), name))


def install(session: nox.Session, *requirements: str) -> None:
    """Install with the pinned versions; torch in particular, of which other builds are gigabytes."""
    # Compiling every file of torch and transformers takes longer than unpacking them.
    session.install("--no-compile", "-c", str(ROOT / "constraints.txt"), *requirements)


def run_tests(session: nox.Session) -> None:
    """Install everything that the tests use, and run pytest with the session's arguments."""
    packages = [f"./plugins/{plugin}" for plugin in PLUGINS]
    install(session, ".[hf]", *packages, *group("test"))
    session.run("pytest", *session.posargs, env=QUIET)


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
    """Check the types of everything that is shipped."""
    install(session, ".[hf]", *group("types"))
    session.run("mypy", "--strict", "brewer_core", *map(str, sorted(ROOT.glob("plugins/*/src"))))


@nox.session(reuse_venv=False)
@nox.parametrize("plugin", PLUGINS, ids=PLUGINS)
def plugins(session: nox.Session, plugin: str) -> None:
    """Install core and one plugin of this repository in a fresh environment, and run the plugin's own tests."""
    folder = ROOT / "plugins" / plugin
    install(session, ".")
    install(session, str(folder), *group("test", folder))
    session.chdir(folder)
    session.run("pytest", "-W", "error", *session.posargs, env=QUIET)


@nox.session(name="install", reuse_venv=False)
def install_(session: nox.Session) -> None:
    """Install the package alone in a fresh environment, leave the checkout, and run the command."""
    install(session, ".")
    session.chdir(session.create_tmp())
    session.run("brewer", "--help")
    session.run("brewer", "list-plugins")
    session.run("python", "-m", "brewer_core", "--version")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the quickstart: `nox -s demo -- --output /tmp/demo`."""
    install(session, ".[quickstart]")
    session.run("brewer", "run", "quickstart", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare the time of a step with that of a bare PyTorch loop: `nox -s bench -- --rounds 3`."""
    install(session, ".[hf]")
    session.run("python", "tests/bench/step_time.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; `nox -s docs -- serve` shows it as it is written."""
    install(session, *group("docs"))
    session.run("mkdocs", *(session.posargs or ["build"]), "--strict")
