"""`brewer cache`: what is kept of teachers, how large it is, whether it is whole; building it ahead, and removing it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from brewer_core.cli.reading import ConfigName, Disabled, PluginFiles, Settings, active_registry, run_config_named
from brewer_core.errors import BrewerError, RequestError, SaveError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from brewer_core.cache.folders import Entry, Laid, Verified
    from brewer_core.cache.layout import Kept
    from brewer_core.run.building import Built
    from brewer_core.run.tokens import KeptTokens

Folder: TypeAlias = Annotated[
    str | None, typer.Option("--cache", metavar="PATH", help="The folder of caches.", show_default="the user's own")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SEEN = "%Y-%m-%d %H:%M"
TOKENISED = "tokenised"
"""The folder of tokenised rows inside a folder of caches."""

cache = typer.Typer(
    name="cache",
    help="What is kept of teachers: list, show, verify, remove, build ahead.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@cache.command("ls")
def list_caches(folder: Folder = None, as_json: AsJson = False) -> None:
    """List what is kept of teachers, and tokenised rows, each with what was used last first."""
    from brewer_core.cache.folders import entries
    from brewer_core.run.tokens import kept_tokens

    root = _root(folder)
    found, tokens = entries(root), kept_tokens(root / TOKENISED)
    if as_json:
        typer.echo(json.dumps([*map(_document, found), *map(_document_of_tokens, tokens)], indent=2))
        return
    console = _console()
    if found:
        _print_teachers(console, root, found)
    if found and tokens:
        console.print()
    if tokens:
        _print_tokens(console, root, tokens)
    if not found and not tokens:
        typer.echo(f"{root} holds no caches")


@cache.command("show")
def show(
    given: Annotated[
        str, typer.Argument(metavar="ID", help="A cache, by the beginning of its id.", show_default=False)
    ],
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a cache: teacher, what is read of it, how it lies on the disk, how far it is from its teacher."""
    from brewer_core.cache.folders import entry_in, fidelity_of, laid_out

    entry = entry_in(_named(_root(folder), [given])[0])
    laid, fidelity = laid_out(entry), fidelity_of(entry)
    if as_json:
        typer.echo(json.dumps({**_document(entry), "layouts": list(map(_laid, laid)), "fidelity": fidelity}, indent=2))
        return
    console = _console()
    _print_about(console, entry)
    for each in laid:
        _print_layout(console, each)
    if fidelity is not None:
        _print_fidelity(console, fidelity)


@cache.command("verify")
def verify_caches(
    given: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A cache, by the beginning of its id.", show_default="all")
    ] = None,
    folder: Folder = None,
    repair_them: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that it is computed again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read caches against their checksums. The status is 1 where anything is damaged."""
    from brewer_core.cache.folders import entries, entry_in, repair, verify

    root = _root(folder)
    asked = entries(root) if given is None else [entry_in(_named(root, [given])[0])]
    found = [(entry, verify(entry)) for entry in asked]
    if repair_them:
        for entry, verified in found:
            if not verified.sound or verified.drafts:
                repair(entry)
        found = [(entry, verify(entry)) for entry in asked]
    if as_json:
        typer.echo(json.dumps([{"id": entry.id, **_verified(verified)} for entry, verified in found], indent=2))
    else:
        _print_verified(root, found)
    if not all(verified.sound for _, verified in found):
        raise typer.Exit(1)


@cache.command("rm")
def remove_caches(
    given: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Caches, by the beginnings of their ids.")
    ] = None,
    folder: Folder = None,
    all_of_them: Annotated[bool, typer.Option("--all", help="Remove all caches in the folder.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --all: do not ask.")] = False,
) -> None:
    """Remove caches, of teachers and of tokenised rows; what they held is computed again when it is asked for."""
    from brewer_core.cache import readable
    from brewer_core.cache.folders import FIGURES, SHOWN_DIGITS, chosen_id
    from brewer_core.files import remove

    root = _root(folder)
    if bool(given) == all_of_them:
        raise RequestError("rm: name caches by their ids, which `brewer cache ls` lists, or take --all.")
    there = {each.id: each for each in _removable(root)}
    wanted = there if all_of_them else dict.fromkeys(chosen_id(each, list(there), root) for each in given or [])
    if all_of_them and there and not yes and sys.stdin.isatty():
        total = readable(sum(each.size_bytes for each in there.values()))
        typer.confirm(f"Remove {_counted(len(there), 'cache')}, {total}, from {root}?", abort=True)
    kept: list[BrewerError] = []
    for each in (there[name] for name in wanted):
        try:
            each.remove()
        except BrewerError as error:  # the others go all the same
            kept.append(error)
        else:
            typer.echo(f"removed {each.id[:SHOWN_DIGITS]}, {readable(each.size_bytes)}")
    if all_of_them:
        remove(root / FIGURES)
    if kept:
        raise kept[0]


@cache.command("build")
def build(
    config: ConfigName,
    settings: Settings = None,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="A distill stage.", show_default="all of them")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Tell what it takes, in space and time, and build nothing.")
    ] = False,
    fidelity_rows: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many rows to compare with the teacher afterwards; 0 for none.")
    ] = 64,
    plugin: PluginFiles = None,
    disable: Disabled = None,
) -> None:
    """Build the caches that a config's distill stages read of their teachers; go on where it was interrupted."""
    from brewer_core.cli.reporting import TerminalReporter
    from brewer_core.cli.stopping import stopping_gracefully
    from brewer_core.processes import joined
    from brewer_core.run.reporting import Reporter
    from brewer_core.stopping import StopRequest

    registry, stop = active_registry(disable or [], tuple(plugin or [])), StopRequest()
    parsed, _, base_dir = run_config_named(config, settings or [], registry)
    from brewer_core.run.assembly import Assembly
    from brewer_core.run.building import build_caches
    from brewer_core.run.pipeline import choose_device

    with stopping_gracefully(stop), joined() as processes, processes.noticing_loss():
        built = build_caches(
            Assembly(parsed, base_dir, registry, choose_device(device), processes),
            TerminalReporter() if processes.first else Reporter(),
            stop,
            stage=stage,
            only_estimate=estimate,
            fidelity_rows=fidelity_rows,
        )
        if processes.first and not estimate:
            _print_built(built)


@dataclass(frozen=True)
class _Removable:
    """Anything that is kept. remove: raises a BrewerError where that cannot be."""

    id: str
    size_bytes: int
    remove: Callable[[], None]


def _removable(root: Path) -> list[_Removable]:
    """All that is kept in a folder."""
    from brewer_core.cache.folders import entries, remove_entry
    from brewer_core.run.tokens import kept_tokens

    teachers = [_Removable(each.id, each.size_bytes, partial(remove_entry, each)) for each in entries(root)]
    tokens = kept_tokens(root / TOKENISED)
    return teachers + [_Removable(each.folder.name, each.size, partial(_remove_tokens, each)) for each in tokens]


def _remove_tokens(kept: KeptTokens) -> None:
    from brewer_core.files import system_reason
    from brewer_core.run.tokens import remove_tokens

    try:
        remove_tokens(kept)
    except OSError as error:
        raise SaveError(f"{kept.folder} cannot be changed: {system_reason(error) or error}.") from error


def _root(given: str | None) -> Path:
    from brewer_core.cache_folder import cache_root

    root = cache_root("auto", Path()) if given is None else Path(given)
    if root is None:
        raise RequestError("there is no folder for caches here; name one with --cache, or set BREWER_CACHE.")
    return root


def _named(root: Path, given: Sequence[str]) -> list[Path]:
    """The folders of the caches whose ids begin like this, each once. Raises RequestError where one is unknown or not clear."""
    from brewer_core.cache.folders import chosen_id, folders_in

    folders = {path.name: path for path in folders_in(root)}
    return list(dict.fromkeys(folders[chosen_id(each, list(folders), root)] for each in given))


def _document_of_tokens(kept: KeptTokens) -> dict[str, Any]:
    told = {name: getattr(kept, name) for name in ("where", "rows", "tokens", "tokenizer", "max_length", "created")}
    used = kept.used.isoformat(timespec="seconds")
    return {
        "kind": "tokens",
        "id": kept.folder.name,
        "folder": str(kept.folder),
        **told,
        "used": used,
        "bytes": kept.size,
        "state": _state_of_tokens(kept),
    }


def _state_of_tokens(kept: KeptTokens) -> str:
    """In a word: what says nothing of itself is being written, or was when its writer was killed."""
    return "unfinished" if kept.rows is None else "whole"


def _document(entry: Entry) -> dict[str, Any]:
    """The cache of a teacher as JSON values."""
    about = {name: entry.about.get(name) for name in ("teacher", "identity", "reads", "format", "created")}
    return {
        "kind": "teacher",
        "id": entry.id,
        "folder": str(entry.folder),
        **about,
        "used": entry.used.isoformat(timespec="seconds"),
        "rows": entry.rows,
        "parts": entry.parts,
        "bytes": entry.size_bytes,
        "state": entry.state,
        "problems": list(entry.problems),
    }


def _laid(laid: Laid) -> dict[str, Any]:
    return {
        **laid.layout.to_json(),
        "rows": laid.rows,
        "bytes": laid.size_bytes,
        "bytes_by_feature": dict(laid.by_feature),
    }


def _verified(verified: Verified) -> dict[str, Any]:
    return {
        "rows": verified.rows,
        "whole": verified.whole,
        "damaged": verified.damaged,
        "unreadable_parts": list(verified.unreadable),
        "drafts": list(verified.drafts),
        "about": verified.about,
        "sound": verified.sound,
    }


def _teacher(about: Mapping[str, Any]) -> str:
    """What people call a teacher: its class, and how large it is."""
    told = about.get("teacher", {})
    name, parameters = told.get("model") or told.get("teacher") or "unknown", told.get("parameters")
    return f"{name}, {parameters:,}" if parameters is not None else str(name)


def _form(about: Mapping[str, Any]) -> str:
    """The format in words: `float32`, `float16, top_k 8`."""
    form = about.get("format", {})
    more = [f"{name} {value}" for name, value in form.items() if name != "floats" and value is not None]
    return ", ".join([str(form.get("floats", "unknown")), *more])


def _print_teachers(console: Console, root: Path, found: Sequence[Entry]) -> None:
    from brewer_core.cache import readable
    from brewer_core.cache.folders import SHOWN_DIGITS

    table = _table("id", "teacher", "reads", "format", ">rows", ">size", "last used", "state")
    for entry in found:
        size, used = readable(entry.size_bytes), entry.used.astimezone().strftime(SEEN)
        told = (_teacher(entry.about), ", ".join(entry.about.get("reads", [])), _form(entry.about))
        table.add_row(entry.id[:SHOWN_DIGITS], *told, f"{entry.rows:,}", size, used, entry.state)
    console.print(table)
    total = readable(sum(entry.size_bytes for entry in found))
    where = f"{_counted(len(found), 'cache')} of teachers, {total}, in {root}"
    console.print(where, highlight=False, soft_wrap=True)


def _print_tokens(console: Console, root: Path, found: Sequence[KeptTokens]) -> None:
    from brewer_core.cache import readable
    from brewer_core.cache.folders import SHOWN_DIGITS

    table = _table("id", "tokenised", ">rows", ">tokens", "tokenizer", ">at most", ">size", "last used", "state")
    for kept in found:
        size, used = readable(kept.size), kept.used.astimezone().strftime(SEEN)
        numbers = ["" if n is None else f"{n:,}" for n in (kept.rows, kept.tokens, kept.max_length)]
        told = (kept.where or "", *numbers[:2], kept.tokenizer or "", numbers[2])
        table.add_row(kept.folder.name[:SHOWN_DIGITS], *told, size, used, _state_of_tokens(kept))
    console.print(table)
    where = (
        f"{_counted(len(found), 'cache')} of tokenised rows, {readable(sum(kept.size for kept in found))}, in {root}"
    )
    console.print(where, highlight=False, soft_wrap=True)


def _print_about(console: Console, entry: Entry) -> None:
    from brewer_core.cache import readable

    about, table = entry.about, _table("", "")
    for name, value in about.get("teacher", {}).items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    rows = {
        "identity": about.get("identity", "unknown"),
        "reads": ", ".join(about.get("reads", [])) or "unknown",
        "format": _form(about),
        "created": about.get("created", "unknown"),
        "last used": entry.used.isoformat(timespec="seconds"),
        "rows": f"{entry.rows:,}",
        "size": f"{readable(entry.size_bytes)} in {_counted(entry.parts, 'part')}",
        "state": "; ".join([entry.state, *entry.problems]),
        "folder": str(entry.folder),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    table.show_header = False
    console.print(f"cache {entry.id}", highlight=False)
    console.print(table)


def _print_layout(console: Console, laid: Laid) -> None:
    padded = " and ".join(map(str, laid.layout.padded_to or ()))
    table = _table("feature", "axes", ">tensors", "each row", ">bytes a row")
    for kept in laid.layout.features:
        tensors = [piece for piece in kept.pieces if piece is not None]
        size = laid.by_feature[kept.name] / max(1, laid.rows)
        table.add_row(kept.name, kept.axes, str(len(tensors)), _shapes(kept), f"{size:,.0f}")
    console.print()
    where = f", known again at a padded length of {padded} alone" if padded else ""
    console.print(
        f"{_counted(laid.rows, 'record')} of {laid.size_bytes / max(1, laid.rows):,.0f} bytes on average{where}",
        highlight=False,
    )
    console.print(table)


def _shapes(kept: Kept) -> str:
    """What a row has of a feature: `float32 [n, 16]`, n its tokens."""
    shapes = (
        f"{piece.dtype} [{', '.join('n' if dim is None else str(dim) for dim in piece.dims)}]"
        for piece in kept.pieces
        if piece is not None
    )
    return "; ".join(dict.fromkeys(shapes))


def _print_fidelity(console: Console, fidelity: Mapping[str, Any]) -> None:
    table = _table("feature", ">relative error", ">largest difference", ">mean KL", ">largest KL")
    for name, error in fidelity["features"].items():
        values = (error["relative"], error["largest"], error["kl_mean"], error["kl_max"])
        table.add_row(name, *("" if value is None else f"{value:.1e}" for value in values))
    console.print()
    console.print(
        f"read from the cache against the teacher live, stage {fidelity['stage']}, {fidelity['rows']} rows, "
        f"T = {fidelity['temperature']:g}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    terms = _table("term on a batch", ">live", ">cached")
    for name, (live, kept) in fidelity["terms"].items():
        terms.add_row(name, f"{live:.6g}", f"{kept:.6g}")
    console.print()
    console.print(terms)
    console.print(f"relative error of the student's gradient: {fidelity['gradient']:.1e}", highlight=False)


def _print_verified(root: Path, found: Sequence[tuple[Entry, Verified]]) -> None:
    from brewer_core.cache.folders import SHOWN_DIGITS

    for entry, verified in found:
        typer.echo(f"{entry.id[:SHOWN_DIGITS]}  {_verdict(verified)}")
    if not found:
        typer.echo(f"{root} holds no caches")
    if any(verified.damaged or verified.unreadable for _, verified in found):
        typer.echo(
            "What is damaged is never used: its rows are computed again when they are asked for, or `--repair` removes it."
        )
    if not all(verified.about for _, verified in found):
        typer.echo("about.json is written again by the next run that uses the cache.")


def _verdict(verified: Verified) -> str:
    told = [f"{verified.rows:,} rows, all whole"]
    if verified.damaged:
        told = [f"{verified.rows:,} rows, {verified.damaged:,} of them DAMAGED"]
    if verified.unreadable:
        told.append(f"{_counted(len(verified.unreadable), 'part')} DAMAGED, whose rows nobody can tell")
    if not verified.about:
        told.append("about.json missing or DAMAGED")
    if verified.drafts:
        told.append(f"{_counted(len(verified.drafts), 'draft')} that a kill left")
    return "; ".join(told)


def _print_built(built: Sequence[Built]) -> None:
    from brewer_core.cache.folders import SHOWN_DIGITS

    console = _console()
    for each in built:
        line = f"{each.stage}: cache of {each.teacher}: {each.folder.name[:SHOWN_DIGITS]} has all {each.estimate.rows:,} rows"
        console.print(line, highlight=False, soft_wrap=True)
        if each.fidelity is not None:
            _print_fidelity(console, each.fidelity.to_json())


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)


def _table(*columns: str) -> Table:
    """A table without lines; columns whose name begins with > are of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), header_style="dim", overflow="fold", justify="right" if right else "left"
        )
    return table
