"""`brewer new-plugin`: a distribution with one small component that works at once, to put one's own in its place."""

from __future__ import annotations

import ast
import keyword
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from brewer_core.errors import ConflictingComponentError, OutputExistsError, RequestError

if TYPE_CHECKING:
    from brewer_core.components import Kind
    from brewer_core.registry import Registry

REQUIREMENTS = {"numpy": "numpy>=1.26", "pydantic": "pydantic>=2.11,<3", "torch": "torch>=2.6"}
"""What a template may import beside brewer, with the versions that brewer itself asks for."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")


def new_plugin(
    kind: Annotated[str, typer.Argument(help="The kind of component, such as match-loss.", show_default=False)],
    name: Annotated[
        str, typer.Argument(help="The component's name in configs; hyphens become underscores.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default="brewer-FAMILY-NAME"),
    ] = None,
) -> None:
    """Write a package with one small component that works at once, and its tests."""
    from brewer_core.components import kind_named
    from brewer_core.plugins import environment_registry

    package = Package.named(kind_named(kind), name)
    folder = (output or Path(package.distribution)).absolute()
    refuse_occupied(folder)
    refuse_taken(package, environment_registry())
    write(folder, files_of(package))
    _print_next_steps(package, output or Path(package.distribution))


@dataclass(frozen=True)
class Package:
    """A distribution with one component; its names follow from the component's kind and name."""

    kind: Kind
    name: str

    @classmethod
    def named(cls, kind: Kind, word: str) -> Package:
        """The package of a component of this name, hyphens read as underscores. Raises RequestError where it can be none."""
        name = word.replace("-", "_")
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"{word!r} cannot name a {kind.title}: a name is letters and digits of ASCII, begins with a letter, and may "
                "have single hyphens or underscores inside; choose another."
            )
        if keyword.iskeyword(name):
            raise RequestError(
                f"{word!r} cannot name a {kind.title}: it is a word of Python's own; choose another, such as "
                f"{name.lower()}_{kind.family}."
            )
        return cls(kind, name)

    @property
    def distribution(self) -> str:
        """What is installed: `brewer-loss-hidden-l1`."""
        return f"brewer-{self.kind.family}-{self.name.lower().replace('_', '-')}"

    @property
    def module(self) -> str:
        """What is imported: `brewer_loss_hidden_l1`."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """The name of a class: `HiddenL1`."""
        return "".join(part[0].upper() + part[1:] for part in self.name.split("_"))


def files_of(package: Package) -> dict[str, str]:
    """The text of every file of a package by its path.

    Raises RequestError where the name is one that the written code uses for something else.
    """
    own = package.kind.name
    names = {"name": package.name, "class_name": package.class_name, "module": package.module}
    names |= {"distribution": package.distribution, "kind": package.kind.title}
    module, test = _filled(f"{own}/module.py", names), _filled(f"{own}/test.py", names)
    _refuse_used(package, [f"{own}/module.py", f"{own}/test.py"])
    summary = (ast.get_docstring(ast.parse(module)) or "").partition("\n")[0]
    dependencies = ["brewer-core" + _compatible_versions(), *_requirements(module)]
    project = {
        "description": summary.replace("`", "").rstrip("."),
        "dependencies": _listed(dependencies),
        "test_dependencies": _listed(["pytest>=8", *(r for r in _requirements(test) if r not in dependencies)]),
    }
    readme = {
        "summary": summary,
        "kinds": package.kind.plural.replace("_", "-"),
        "config": _filled(f"{own}/config.json", names).strip(),
    }
    return {
        "pyproject.toml": _filled("pyproject.toml", {**names, **project}),
        "README.md": _filled("README.md", {**names, **readme}),
        "LICENSE": _text("LICENSE"),
        ".gitignore": _text("gitignore"),
        f"src/{package.module}/__init__.py": module,
        f"src/{package.module}/py.typed": "",
        f"tests/test_{package.name}.py": test,
    }


def refuse_occupied(folder: Path) -> None:
    """Raise OutputExistsError where something is there that is no empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "is not empty" if folder.is_dir() else "is no folder"
        raise OutputExistsError(f"output {folder} {what}; name a new folder with --output.")


def refuse_taken(package: Package, registry: Registry) -> None:
    """Raise ConflictingComponentError where an installed plugin has the name, or an installed distribution."""
    label = f"{package.kind.title} `{package.name}`"
    taken = [c for c in registry.components() if (c.kind, c.name) == (package.kind, package.name)]
    if taken:
        providers = " and by ".join(str(component.provenance) for component in taken)
        raise ConflictingComponentError(f"{label} is provided by {providers} already; choose another name.")
    try:
        version = metadata.version(package.distribution)
    except metadata.PackageNotFoundError:
        return
    raise ConflictingComponentError(
        f"{label} would be the distribution {package.distribution}, of which {version} is installed already; choose "
        "another name."
    )


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files into a folder that is empty or not there, by way of a draft beside it: all of them, or none.

    Raises RequestError where that cannot be done.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            draft = Path(beside) / "draft"
            for path, text in files.items():
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                (draft / path).write_text(text, encoding="utf-8", newline="\n")
            _publish(draft, folder)
    except OSError as error:
        raise RequestError(
            f"output {folder} cannot be written: {error.strerror}; choose another with --output."
        ) from error


def _publish(draft: Path, folder: Path) -> None:
    """Rename the draft. A folder that is there stays the same one: a shell may stand in it."""
    if not folder.exists():
        draft.rename(folder)
        return
    for entry in sorted(draft.iterdir()):
        shutil.move(entry, folder / entry.name)


def _text(path: str) -> str:
    return (resources.files("brewer_core.cli") / "templates" / path).read_text(encoding="utf-8")


def _filled(path: str, values: Mapping[str, str]) -> str:
    return Template(_text(f"{path}.template")).substitute(values)


def _refuse_used(package: Package, paths: Iterable[str]) -> None:
    """The written code binds the component's name, so nothing else in it may bear that name."""
    marks = {"name": "name_of_it", "class_name": "ClassOfIt", "module": "module_of_it", "distribution": ""}
    for path in paths:
        used = _identifiers(ast.parse(_filled(path, marks)))
        for mark, chosen in (("name", package.name), ("class_name", package.class_name)):
            if marks[mark] in used and chosen in used:
                raise RequestError(
                    f"{package.name!r} cannot name a {package.kind.title} here: the code that would be written uses "
                    f"`{chosen}` for something else; choose another, such as {package.name.lower()}_{package.kind.family}."
                )


def _identifiers(tree: ast.AST) -> set[str]:
    """The names that code binds or reads; attributes and keywords of calls are not among them."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
    return names


def _requirements(code: str) -> list[str]:
    """The requirements of what code imports beside the standard library and brewer, sorted."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
    return [REQUIREMENTS[module] for module in sorted(modules & set(REQUIREMENTS))]


def _compatible_versions() -> str:
    """`>=0.1,<0.2`: a plugin's interface may change with the minor version."""
    from brewer_core import __version__

    major, minor = __version__.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def _listed(requirements: Iterable[str]) -> str:
    return ", ".join(f'"{requirement}"' for requirement in requirements)


def _print_next_steps(package: Package, folder: Path) -> None:
    typer.echo(f"{folder} holds the {package.kind.title} `{package.name}`, which works as it is. Next:")
    for command in (
        f"cd {shlex.quote(str(folder))}",
        "python -m pip install -e . --group test",
        f"brewer list-plugins {package.kind.plural.replace('_', '-')}",
        "pytest",
    ):
        typer.echo(f"  {command}")
    typer.echo(f"Then put your own in the place of what src/{package.module}/__init__.py does.")
