"""Writes config.md, losses.md and the pages in hooks/, beside this file, from the code: `python docs/reference/generate.py`.

A test compares the pages with what this gives, so they cannot fall behind.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from brewer_core import KINDS, RunConfig, TrainingConfig, hookspecs
from brewer_core.components import Component, Kind
from brewer_core.config import ComponentRef
from brewer_core.config.refs import OfKind
from brewer_core.plugins import build_registry

HERE = Path(__file__).parent
NOTICE = "<!-- Written by docs/reference/generate.py from the code: edit the docstrings there, and run it again. -->"
DISTRIBUTIONS = ("brewer-core", "brewer-loss-pkd")
UNFORMATTED = "<!-- fmt: off -->"  # the examples stand in docstrings, where a formatter leaves them alone
WIDE = "---\nhide:\n  - toc\n---\n"  # its tables need the room
PLAIN = {int: "integer", float: "number", bool: "true or false", str: "text", NoneType: "null", Any: "any value"}
BOUNDS = {Gt: ("gt", ">"), Ge: ("ge", ">="), Lt: ("lt", "<"), Le: ("le", "<=")}

CONFIG_HEAD = """# Configs

Every field that a config may have. A config is JSON; keys that are not listed here are refused, numbers are numbers
(`"3"` is no integer), and all problems are told at once, each with its path in the file.

`brewer run` reads a [RunConfig](#runconfig). A script builds a [DistillationConfig](#distillationconfig) and a
[TrainingConfig](#trainingconfig). All of them are frozen: `config.model_copy(update={...})` gives another.

## Components

Where the type is a kind of component, such as *kd loss*, the value is a name, `"kl"`, or an object with the name and
options, `{"name": "kl", "t_squared": false}`. `brewer list-plugins` lists the names and the options.
[DistillationConfig](#distillationconfig) also takes a callable when it is built in Python.
"""

HOOKS_HEAD = """# Hooks

A plugin is a module whose functions are marked with `@hookimpl` and named by an entry point in the group `brewer`. There
is one hook a kind of component. A hook takes no arguments and returns a mapping from name to implementation.

Positional inputs are passed by position, so an implementation may call them what it likes. A named input is passed to an
implementation that has a keyword-only parameter of that name. Every other keyword-only parameter is an option.

A distribution that provides a kind is called `brewer-<family>-<name>`, and its module `brewer_<family>_<name>`.

| hook | provides | family | how to write one |
|---|---|---|---|
"""

LOSSES_HEAD = """# Losses

Every loss of this repository: what it computes, what it reads and is the mean over, and what it costs beside the models.
`brewer describe kd-loss NAME` and `brewer describe match-loss NAME` tell all of one, with the options and how to write it in a config.

Letters: p the teacher's distribution at the temperature T, softmax(teacher / T), q the student's; S and T as indices student and
teacher; B rows, L tokens, N valid positions, V vocabulary or classes, C candidates, H heads, D width. Logits are [N, V] or [B, L, V].
Losses are computed in float32, or in float64 where that is given, and padding has no part in them.
"""

LOSS_KINDS = {
    "kd_loss": "Between logits",
    "match_loss": "Between features",
}
DEFINED = re.compile(r",? *(with )?p = softmax\(teacher / T\) and q = softmax\(student / T\)")
"""What the head of the page defines for all of them."""
SECTION = re.compile(r"^(Formula|Cost|Source): |^(Returns|Raises) |^[a-z_]+(, [a-z_]+)*: ")
"""The lines of a docstring with which something new begins."""


def config_page() -> str:
    """The page of configs: a section for each model, in the order in which they are first named."""
    sections = [*_sections([RunConfig]), *_sections([TrainingConfig])]
    return "\n".join([NOTICE, "", CONFIG_HEAD, *sections]).rstrip() + "\n"


def hooks_index() -> str:
    """The page that lists the hooks, in the order of the kinds."""
    return "\n".join([NOTICE, "", HOOKS_HEAD.rstrip(), *map(_row, KINDS.values())]) + "\n"


def hook_page(kind: Kind) -> str:
    """The page of a hook: its text, its signature, the inputs of its components, and an example."""
    return "\n".join([NOTICE, UNFORMATTED, "", _hook(kind)]).rstrip() + "\n"


def losses_page() -> str:
    """The page of losses: a table for each kind."""
    return "\n".join([WIDE, NOTICE, "", LOSSES_HEAD, *map(_losses, LOSS_KINDS)]).rstrip() + "\n"


def losses_of(kind: str) -> list[Component]:
    """The losses of a kind that this repository's distributions provide, by name."""
    return [
        component
        for component in build_registry().components()
        if component.kind.name == kind and component.provenance.distribution in DISTRIBUTIONS
    ]


def pages() -> dict[Path, str]:
    """Each generated page with its text."""
    hooks = {HERE / "hooks" / f"{kind.hook}.md": hook_page(kind) for kind in KINDS.values()}
    fixed = {"config.md": config_page(), "losses.md": losses_page(), "hooks/index.md": hooks_index()}
    return {**{HERE / name: text for name, text in fixed.items()}, **hooks}


def _sections(roots: Sequence[type[BaseModel]]) -> Iterator[str]:
    waiting, told = list(roots), set()
    while waiting:
        model = waiting.pop(0)
        if model not in told:
            told.add(model)
            yield _section(model)
            inner = (m for f in model.model_fields.values() for m in _models(f.annotation))
            waiting += [m for m in inner if m not in told]


def _section(model: type[BaseModel]) -> str:
    lines = [f"## {model.__name__}", "", _paragraph(model), ""]
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        cells = (f"`{field.alias or name}`", _type(field.annotation, field.metadata), _default(field))
        lines.append(f"| {' | '.join(cells)} | {' '.join((field.description or '').split())} |")
    return "\n".join([*lines, ""])


def _paragraph(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "")


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type as a person reads it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*_flat(arguments[1:]), *metadata])
    for mark in metadata:
        if isinstance(mark, OfKind):
            return _reference(mark)
        if isinstance(mark, WithJsonSchema):
            return _schema_type(mark.json_schema or {})
    if origin in (Union, UnionType):
        return " or ".join(_type(a, metadata if a is not NoneType else ()) for a in arguments)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}" if arguments[-1] is Ellipsis else f"list of {len(arguments)}"
    if origin is dict:
        return f"object of {_type(arguments[1])}" if arguments[1] is not Any else "object"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return f"{PLAIN[annotation]} {' and '.join(_bounds(metadata))}".strip()


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for mark in metadata:
        yield from mark.metadata if isinstance(mark, FieldInfo) else [mark]


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for mark in metadata:
        if type(mark) in BOUNDS:
            attribute, sign = BOUNDS[type(mark)]
            limit = getattr(mark, attribute)
            power = isinstance(limit, int) and limit >= 2**16 and limit.bit_count() == 1
            yield f"{sign} 2^{limit.bit_length() - 1}" if power else f"{sign} {limit}"


def _reference(mark: OfKind) -> str:
    forms = [f"[{KINDS[mark.kind].title}](hooks/{KINDS[mark.kind].hook}.md)"]
    forms += ["list"] if mark.listed or mark.widths else []
    return " or ".join([*forms, *(["null"] if mark.optional else [])])


def _schema_type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_schema_type, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_schema_type(schema['items'])}"
    return "text" if schema["type"] == "string" else str(schema["type"])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    return f"`{json.dumps(_plain(default))}`" if not isinstance(default, BaseModel) else "its defaults"


def _plain(value: Any) -> Any:
    if isinstance(value, ComponentRef):
        return {"name": value.name, **value.options} if value.options else value.name
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _row(kind: Kind) -> str:
    about = _paragraph(getattr(hookspecs, kind.hook)).partition("\n")[0].removeprefix("Provide ").rstrip(".")
    return f"| [{kind.hook}]({kind.hook}.md) | {about} | `{kind.family}` | [{kind.title}]({_how_to(kind)}) |"


def _how_to(kind: Kind) -> str:
    return f"../../how-to/plugins/{kind.name.replace('_', '-')}.md"


def _hook(kind: Kind) -> str:
    specification = getattr(hookspecs, kind.hook)
    text, _, rest = _paragraph(specification).partition("Example:\n")
    example, _, returns = rest.partition("Returns:\n")
    title, _, code = textwrap.dedent(example).strip().partition("::\n")
    returned, _, added = textwrap.dedent(returns).strip().partition("\n\n")
    return "\n".join(
        [
            f"# {kind.hook}",
            "",
            text.strip(),
            "",
            *_facts(kind, specification),
            "",
            f"Returns: {returned} {added.strip()}",
            "",
            f"{title}:",
            "",
            "```python",
            textwrap.dedent(code).strip("\n"),
            "```",
            "",
            f"[How to write a plugin of this kind]({_how_to(kind)}) has an example with its imports, and the rules.",
            "",
        ]
    )


def _facts(kind: Kind, specification: Any) -> Iterator[str]:
    yield f"- Signature: `{kind.hook}{inspect.signature(specification)}`".replace("'", "")
    if kind.positional:
        yield f"- Positional inputs: {_codes(kind.positional)}"
    if kind.named:
        yield f"- Named inputs: {_codes(kind.named)}"
    if kind.sizes:
        yield f"- Named inputs of a class's `__init__`: {_codes(kind.sizes)}"
    yield f"- Name of a distribution: `brewer-{kind.family}-<name>`"


def _losses(kind: str) -> str:
    lines = [f"## {LOSS_KINDS[kind]}", "", "| name | formula | reads | range | options | cost | source |"]
    return "\n".join([*lines, "|---" * 7 + "|", *map(_loss, losses_of(kind)), ""])


def _loss(loss: Component) -> str:
    told = told_of(loss)
    name = f"**`{loss.name}`** {loss.facts.title or told['first'].rstrip('.')}"
    options = ", ".join(f"`{option.name}`" for option in loss.signature.options)
    cells = (name, told["Formula"], _reads(loss, told), told["Returns"], options, told["Cost"], told["Source"])
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def told_of(loss: Component) -> dict[str, str]:
    """The statements of a loss's docstring by how they begin, each up to the first end of a sentence; "" where there is none."""
    told = dict.fromkeys(("first", "Formula", "Cost", "Source", "Returns", "student"), "")
    told["first"], current = loss.summary, ""
    for line in loss.text.splitlines()[1:]:
        begins = SECTION.match(line)
        if begins or not line.strip():
            current = re.split(r"[:, ]", line)[0]
            line = line.partition(": ")[2] if begins and current != "Returns" else line
        if current in told:
            told[current] = f"{told[current]} {line}".strip()
    told["Returns"] = re.sub(r"^Returns (a scalar)?,? ?", "", told["Returns"])
    told["Formula"] = DEFINED.sub("", told["Formula"]).rstrip(".;, ")
    return {name: text if name == "Formula" else _first_sentence(text) for name, text in told.items()}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!eq)(?<!al)(?<!sec)[.;](?: |$)", text)[0]


def _reads(loss: Component, told: Mapping[str, str]) -> str:
    main = "logits" if loss.kind.name == "kd_loss" else told["student"]
    over = str(loss.facts.over or "rows").replace("_", " ").replace("logits", "positions")
    further = [f"`{name}`" for name in loss.signature.inputs if name in ("labels", "mask")]
    return f"{', '.join([main, *further])}; mean over {'the batch as a whole' if over == 'batch' else over}"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    for page, text in pages().items():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page}")
