"""The documentation tells the truth: generated pages, examples, options, floors and links are compared with the code."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer

from brewer_core import KINDS, RunConfig, hookspecs
from brewer_core.cli.main import app
from brewer_core.components import Kind
from brewer_core.config import parse_run_config
from brewer_core.config.optimization import OptimizerConfig, ScheduleConfig
from brewer_core.plugins import build_registry
from brewer_core.run.library import packaged_config
from brewer_core.run.optimization import make_optimizer, make_schedule
from brewer_core.testing.report import CLASSES, conformance_of, outcomes
from test_new_plugin import merged
from test_shape_of_the_house import CORE, FLOORS, unit_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(ROOT.glob("*.md")) + sorted(DOCS.rglob("*.md"))
HOOKS = DOCS / "reference" / "hooks"
GENERATOR = DOCS / "reference" / "generate.py"
HOOKIMPL = "@hookimpl"
REPOSITORY = ("brewer-core", "brewer-loss-pkd", "brewer-strategy-emd")

EXAMPLES = [
    ROOT / "README.md",
    *(
        DOCS / page
        for page in (
            "tutorials/first-plugin.md",
            "how-to/balancing.md",
            "how-to/features.md",
            "how-to/interrupt-and-resume.md",
            "how-to/layer-mapping.md",
            "how-to/library.md",
            "how-to/several-teachers-and-tasks.md",
            "how-to/sparse-logits.md",
            "how-to/teacher-cache.md",
            "how-to/track-a-run.md",
        )
    ),
    DOCS / "how-to" / "from-textbrewer.md",
    *sorted((DOCS / "how-to" / "plugins").glob("*.md")),
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generator", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def plugin_files(page: Path, folder: Path) -> list[Path]:
    """The examples of a page that are whole plugins, each in a file."""
    files = []
    for number, block in enumerate(blocks(page, "python")):
        if HOOKIMPL in block and "default_registry" not in block:
            files.append(folder / f"{page.stem.lower().replace('-', '_')}_{number}.py")
            files[-1].write_text(block, encoding="utf-8")
    return files


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


# Generated pages


def test_generated_pages_are_what_the_generator_gives() -> None:
    stale = [page.name for page, expected in generator().pages().items() if text(page) != expected]

    assert stale == [], f"run python {GENERATOR.relative_to(ROOT)}"


def test_every_hook_has_its_page_and_its_row_in_the_index() -> None:
    hooks = [kind.hook for kind in KINDS.values()]

    assert re.findall(r"^\| \[(\w+)\]\(\1\.md\)", text(HOOKS / "index.md"), re.MULTILINE) == hooks
    assert sorted(page.stem for page in HOOKS.glob("*.md")) == sorted([*hooks, "index"])


@pytest.mark.parametrize("kind", ["kd_loss", "match_loss"])
def test_the_table_of_losses_has_a_row_for_each_with_nothing_left_out(kind: str) -> None:
    told, losses = generator(), generator().losses_of(kind)
    ours = {
        c.name for c in build_registry().components() if c.kind.name == kind and c.provenance.distribution in REPOSITORY
    }
    page = text(DOCS / "reference" / "losses.md")

    assert [loss.name for loss in losses] == sorted(ours)
    for loss in losses:
        lacking = [name for name, statement in told.told_of(loss).items() if not statement]
        assert [name for name in lacking if name != "student" or kind == "match_loss"] == [], loss.name
        assert page.count(f"| **`{loss.name}`** ") == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_page_of_a_hook_has_its_signature_and_the_inputs_of_its_kind(kind: Kind) -> None:
    page, specification = text(HOOKS / f"{kind.hook}.md"), getattr(hookspecs, kind.hook)
    told = dict(re.findall(r"^- (.+): (`.+`)$", page, re.MULTILINE))
    returned = specification.__annotations__["return"]

    assert f"\n# {kind.hook}\n" in page
    assert list(inspect.signature(specification).parameters) == []
    assert told.pop("Signature") == f"`{kind.hook}() -> {returned}`"
    assert told.pop("Name of a distribution") == f"`brewer-{kind.family}-<name>`"
    inputs = {title: tuple(re.findall(r"`(\w+)`", names)) for title, names in told.items()}
    expected = {
        "Positional inputs": kind.positional,
        "Named inputs": kind.named,
        "Named inputs of a class's `__init__`": kind.sizes,
    }
    assert inputs == {title: names for title, names in expected.items() if names}


def test_every_field_of_a_run_config_is_described() -> None:
    undescribed = [
        f"{model.__name__}.{name}"
        for model in described_models()
        for name, field in model.model_fields.items()
        if not field.description
    ]

    assert undescribed == []


def described_models() -> list[type]:
    page = generator()
    models, waiting = [], [RunConfig]
    while waiting:
        models.append(waiting.pop())
        waiting += [m for f in models[-1].model_fields.values() for m in page._models(f.annotation) if m not in models]
    return models


# Other pages that follow the code


def commands() -> dict[str, set[str]]:
    """The options of each command, and of each command in a command, as a person types them."""
    parts = {"": typer.main.get_command(app)}
    for name, part in list(parts[""].commands.items()):  # type: ignore[attr-defined]  # a group has commands
        parts |= {name: part, **{f"{name} {inner}": of for inner, of in getattr(part, "commands", {}).items()}}
    return {name: {o for p in part.params for o in p.opts if o.startswith("--")} for name, part in parts.items()}


def test_every_command_and_option_is_on_its_page_and_no_other() -> None:
    page = text(DOCS / "reference" / "cli.md").partition("## Exit status")[0]
    sections = re.split(r"^## brewer ", page, flags=re.MULTILINE)
    told = {section.partition("\n")[0]: set(re.findall(r"`(--[a-z-]+)", section)) for section in sections[1:]}
    told[""] = set(re.findall(r"`(--[a-z-]+)", sections[0]))
    expected = {name: options - {"--help"} for name, options in commands().items()}

    assert {name: options - {"--help"} for name, options in told.items()} == expected


def test_the_floors_on_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d|ground) \| ([\w, ]+) \|$", text(DOCS / "explanation" / "architecture.md"), re.MULTILINE)
    units = {unit_of(file) for file in CORE.rglob("*.py")}  # the map also has floors for what is still to come
    floors = {floor: sorted(units & set(names)) for floor, names in FLOORS.items()}

    assert {-1 if floor == "ground" else int(floor): names.split(", ") for floor, names in rows} == floors


def test_the_index_lists_the_methods_of_this_repository() -> None:
    for plugin in ("brewer_loss_pkd", "brewer_strategy_emd", "brewer_tracker_wandb"):
        pytest.importorskip(plugin)
    rows = re.findall(r"^\| ([\w ]+) \| (`.+) \|$", text(DOCS / "index.md"), re.MULTILINE)
    listed = {(title, name) for title, names in rows for name in re.findall(r"`(\w+)`", names)}
    ours = ("brewer-core", "brewer-loss-pkd", "brewer-strategy-emd", "brewer-tracker-wandb")
    own = [c for c in build_registry().components() if c.provenance.distribution in ours]

    assert {(c.kind.title, c.name) for c in own} == {row for row in listed if row[0] in {c.kind.title for c in own}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_on_tests_has_every_property_with_what_it_means(kind: str) -> None:
    sections = re.split(r"^### ", text(DOCS / "how-to" / "test-a-plugin.md"), flags=re.MULTILINE)
    (section,) = [s for s in sections if s.startswith(f"{KINDS[kind].title.capitalize()}\n")]
    tested = CLASSES[kind]

    assert f"`{tested.__name__}`" in section
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE) == [
        (name, getattr(tested, f"test_{name}").__doc__) for name in tested.properties()
    ]


def test_the_classes_on_the_page_on_tests_pass(tmp_path: Path) -> None:
    examples = blocks(DOCS / "how-to" / "test-a-plugin.md", "python")
    (tmp_path / "test_page.py").write_text("\n\n".join(examples), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)

    assert re.search(r"^42 passed, 1 skipped in", done.stdout, re.MULTILINE), done.stdout
    module = build_registry(files=[tmp_path / "test_page.py"])
    found = outcomes(conformance_of(module.get("match_loss", "beyond_margin")))
    assert {o.property for o in found if o.result == "skipped"} == {"identity"}
    assert {o.property: o.reason for o in found if o.result == "failed"} == {}


# Examples


@each_page
def test_plugins_of_a_page_load(page: Path, tmp_path: Path) -> None:
    if page.parent == HOOKS:
        pytest.skip("these are examples without their imports, which tests of the hook specifications compile")
    for file in plugin_files(page, tmp_path):
        loaded = build_registry(files=[file]).plugins[-1]
        assert loaded.status == "loaded"
        assert len(loaded.components) == 1


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_plugins_of_a_page_are_what_their_kind_promises(page: Path, tmp_path: Path) -> None:
    loaded = [build_registry(files=[file]).plugins[-1] for file in plugin_files(page, tmp_path)]
    found = [outcome for plugin in loaded for c in plugin.components for outcome in outcomes(conformance_of(c))]

    assert [(o.component, o.property, o.reason) for o in found if o.result == "failed"] == []


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_examples_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "from transformers" in text(page):
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)
    for name, made in namespace.items():
        if name.startswith("test_"):
            made()

    assert len(namespace) > 2


def test_the_student_of_the_readme_learns_from_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    exec(compile(blocks(ROOT / "README.md", "python")[1], "README.md", "exec"), made)
    points = torch.randn(500, 20)

    agreement = (made["teacher"](points).argmax(-1) == made["student"](points).argmax(-1)).float().mean()

    assert agreement > 0.8


@pytest.mark.parametrize(
    "page",
    [
        DOCS / page
        for page in (
            "tutorials/first-plugin.md",
            "how-to/own-data.md",
            "how-to/several-teachers-and-tasks.md",
            "how-to/training-options.md",
            "how-to/editor.md",
        )
    ],
    ids=lambda p: p.name,
)
def test_whole_configs_of_a_page_are_accepted(page: Path, tmp_path: Path) -> None:
    registry = build_registry(files=plugin_files(page, tmp_path))
    documents = [json.loads(block) for block in blocks(page, "json")]
    whole = [document for document in documents if "stages" in document]

    assert whole
    for document in whole:
        parse_run_config(document, page.name, registry)


def test_optimizers_and_schedules_of_a_page_can_be_made() -> None:
    parts = [json.loads(block) for block in blocks(DOCS / "how-to" / "training-options.md", "json")]
    (whole,) = [part["stages"][0]["training"] for part in parts if "stages" in part]
    optimizers = [part for part in parts if "learning_rate" in part] + [whole["optimizer"]]
    schedules = [part for part in parts if "StepLR" in part.values()] + [whole["schedule"]]

    assert (len(optimizers), len(schedules)) == (2, 2)
    for optimizer in optimizers:
        made = make_optimizer(OptimizerConfig.from_dict(optimizer), torch.nn.Linear(2, 2))
        for schedule in schedules:
            make_schedule(ScheduleConfig.from_dict(schedule), made, 100)


def test_kd_losses_of_a_page_are_accepted_and_explained_as_it_says() -> None:
    text = (DOCS / "how-to" / "kd-losses.md").read_text(encoding="utf-8")
    _, whole = packaged_config("quickstart-scratch")
    registry = build_registry()
    parts = [json.loads(block) for block in blocks(DOCS / "how-to" / "kd-losses.md", "json")]

    assert len(parts) == 3
    for part in parts:
        parse_run_config(
            merged(whole, {"stages": [{"kind": "distill", "distillation": part}]}), "kd-losses.md", registry
        )
    for name in registry.names("kd_loss"):
        assert f"`{name}`" in text


def test_every_kind_has_its_page_of_how_to_write_a_plugin() -> None:
    pages = {page.stem for page in (DOCS / "how-to" / "plugins").glob("*.md")}

    assert pages == {kind.replace("_", "-") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_config_of_a_kind_names_what_its_page_defines(kind: Kind, tmp_path: Path) -> None:
    page = DOCS / "how-to" / "plugins" / f"{kind.name.replace('_', '-')}.md"
    (part,) = blocks(page, "json")
    first = plugin_files(page, tmp_path)[0]
    registry = build_registry(files=[first])
    (component,) = registry.plugins[-1].components
    _, whole = packaged_config("quickstart-scratch")

    parse_run_config(merged(whole, json.loads(part)), page.name, registry)

    assert component.kind == kind
    assert f'"{component.name}"' in part


@pytest.mark.parametrize(
    "page", [DOCS / "tutorials" / name for name in ("quickstart.md", "first-plugin.md")], ids=lambda p: p.name
)
def test_errors_on_a_page_are_what_the_command_says(page: Path, tmp_path: Path) -> None:
    (tmp_path / "hidden_l1.py").write_text((blocks(page, "python") or [""])[0], encoding="utf-8")
    (tmp_path / "config.json").write_text((blocks(page, "json") or [""])[0], encoding="utf-8")
    shown = re.findall(r"^\$ brewer (.+)\n(brewer: error: .+)$", text(page), re.MULTILINE)

    assert shown
    for arguments, error in shown:
        command = [sys.executable, "-m", "brewer_core", *arguments.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
        # without the pretrained teacher the one config becomes the other
        assert done.stderr.strip().replace("quickstart-scratch", "quickstart") == error
        assert done.returncode == 2


# Links


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            dead.append(target)

    assert dead == []
