"""Tokens of rows, made of texts once: held in memory, or kept in files that later runs map into it.

Shapes: N rows of a piece, T tokens of a piece, L tokens of a row.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy
import xxhash
from filelock import FileLock
from numpy.typing import NDArray

from brewer_core.errors import MissingExtraError
from brewer_core.files import digest_of, findable, folder_written_whole, remove, remove_whole, system_reason

Texts: TypeAlias = tuple[str, ...]
"""A row's text, or the two of a pair."""

_FORMAT = 1
_ROWS_OF_PIECE = 1000
_ROWS_FILE, _ABOUT_FILE = "rows.arrow", "about.json"
_WAIT_S = 600.0
"""How long another run that tokenises the very same rows is waited for."""


@dataclass(frozen=True)
class Piece:
    """The tokens of some rows, one row after another.

    offsets: where each row begins, and the last ends, [N + 1]. ids: [T], int32. types: [T], int8; None where the encoding
    gives no types.
    """

    offsets: NDArray[Any]
    ids: NDArray[Any]
    types: NDArray[Any] | None


class TokenRows:
    """The tokens of rows. pieces: 1000 rows in each but the last."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = list(pieces)
        self.lengths: list[int] = [n for piece in self._pieces for n in numpy.diff(piece.offsets).tolist()]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The tokens of a row and their types, [L] each: views that are not to be written to."""
        number, place = divmod(index, _ROWS_OF_PIECE)
        piece = self._pieces[number]
        start, end = piece.offsets[place], piece.offsets[place + 1]
        return piece.ids[start:end], None if piece.types is None else piece.types[start:end]


class Encoding(Protocol):
    """How texts become tokens."""

    @property
    def form(self) -> str:
        """Tells it from other ways with the same texts; empty for the tokenizer's own."""
        ...

    def __call__(self, texts: Iterable[Texts], tokenizer: Any, max_length: int) -> Iterator[Piece]:
        """The tokens of texts, a piece at a time."""
        ...


class _Plain:
    """The tokenizer's own way."""

    form = ""

    def __call__(self, texts: Iterable[Texts], tokenizer: Any, max_length: int) -> Iterator[Piece]:
        return tokenized(texts, tokenizer, max_length)


PLAIN = _Plain()


def tokenized(texts: Iterable[Texts], tokenizer: Any, max_length: int) -> Iterator[Piece]:
    """The tokens of texts, special ones included, cut to max_length; a piece at a time."""
    for some in in_pieces(texts):
        encoded = tokenizer(*map(list, zip(*some, strict=True)), truncation=True, max_length=max_length)
        yield piece_of(encoded["input_ids"], encoded.get("token_type_ids"))


def in_pieces(texts: Iterable[Texts]) -> Iterator[list[Texts]]:
    """The texts of each piece."""
    remaining = iter(texts)
    while some := list(islice(remaining, _ROWS_OF_PIECE)):
        yield some


def piece_of(ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None) -> Piece:
    """The tokens of rows, and their types, in one piece."""
    offsets = numpy.cumsum([0, *map(len, ids)], dtype=numpy.int32)
    return Piece(offsets, _flat(ids, numpy.int32), None if types is None else _flat(types, numpy.int8))


def _flat(lists: Iterable[Iterable[int]], dtype: type[numpy.generic]) -> NDArray[Any]:
    return numpy.fromiter(chain.from_iterable(lists), dtype)


class TokenFiles:
    """Tokens kept in a folder by what they come from: the texts, the tokenizer and max_length.

    Those of texts that are known are mapped into memory, and nothing is tokenised. Files are written whole, by one run at a
    time, and have a checksum: what is damaged is made anew, with a warning. Where the folder cannot be written, rows are
    tokenised in memory, with one warning. So are they where the tokenizer is no fast one of transformers, for then what it
    does cannot be read off it.

    Raises MissingExtraError where pyarrow is not installed.
    """

    def __init__(self, folder: Path, tokenizer: Any, max_length: int) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._maker = _fingerprint(tokenizer)
        self._usable = self._maker is not None
        if self._usable:
            _arrow()

    def rows(self, texts: Callable[[], Iterable[Texts]], where: str, encoding: Encoding = PLAIN) -> TokenRows:
        """The tokens of texts. texts: gives them from the start at each call. where: what is told of their origin."""

        def pieces() -> Iterator[Piece]:
            return encoding(texts(), self.tokenizer, self.max_length)

        if self._usable:
            target = self.folder / self._key(texts(), encoding.form)
            try:
                return self._known(target) or self._made(target, pieces, where)
            except OSError as error:
                self._usable = False
                warnings.warn(
                    f"tokenised rows cannot be kept in {self.folder}: {system_reason(error) or error}; every run tokenises them "
                    "again. Let BREWER_CACHE name a folder that can be written.",
                    stacklevel=2,
                )
        return TokenRows(list(pieces()))

    def _key(self, texts: Iterable[Texts], form: str) -> str:
        digest = blake2b(f"{_FORMAT} {self.max_length} {self._maker} {form}".encode(), digest_size=16)
        for row in texts:
            for text in row:
                coded = text.encode("utf-8", "surrogatepass")
                digest.update(b"%d,%d:" % (len(row), len(coded)))
                digest.update(coded)
        return digest.hexdigest()

    def _known(self, target: Path) -> TokenRows | None:
        """Those of a folder, marked as used; None where there are none, or damaged ones, of which it warns."""
        folder = findable(target)
        if not folder.exists():
            return None
        try:
            known = _mapped(folder)
        except ValueError as error:
            warnings.warn(f"{folder} is damaged ({error}); its rows are tokenised again.", stacklevel=3)
            return None
        with suppress(OSError):  # of another user, say
            os.utime(folder / _ABOUT_FILE)
        return known

    def _made(self, target: Path, pieces: Callable[[], Iterator[Piece]], where: str) -> TokenRows:
        with _alone(target):
            if findable(target).exists():  # another run was quicker, or they are damaged
                with suppress(ValueError):
                    return _mapped(findable(target))
            with folder_written_whole(target) as draft:
                self._write(draft, pieces(), where)
        return _mapped(target)

    def _write(self, draft: Path, pieces: Iterator[Piece], where: str) -> None:
        file = draft / _ROWS_FILE
        rows, tokens = _write_pieces(file, pieces)
        about = {
            "where": where,
            "rows": rows,
            "tokens": tokens,
            "tokenizer": type(self.tokenizer).__name__,
            "max_length": self.max_length,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "xxh3_128": _checksum(file),
        }
        (draft / _ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class KeptTokens:
    """Tokens that are kept in a folder.

    size: in bytes. used: when they were written or last read. where: the data that they were first made for, such as
    `data.films.train`. All after `used` is None where a run that writes them was killed, or is under way; or they are damaged.
    """

    folder: Path
    size: int
    used: datetime
    where: str | None = None
    rows: int | None = None
    tokens: int | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    created: str | None = None


def kept_tokens(folder: Path) -> list[KeptTokens]:
    """All that is kept in a folder, what was used last first."""
    found = [_kept(path) for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda kept: kept.used, reverse=True)


def remove_tokens(kept: KeptTokens) -> None:
    """Remove what is kept; runs that have it mapped go on. Raises OSError where that cannot be done."""
    if kept.folder.name.startswith("."):  # a draft
        remove(kept.folder)
    else:
        remove_whole(kept.folder)


def _kept(folder: Path) -> KeptTokens:
    files = [path.stat() for path in folder.iterdir()]
    size = sum(each.st_size for each in files)
    used = datetime.fromtimestamp(max((each.st_mtime for each in files), default=0), timezone.utc)
    try:
        about = _about(folder)
    except (ValueError, OSError):
        return KeptTokens(folder, size, used)
    told = {name: value for name, value in about.items() if name in KeptTokens.__dataclass_fields__}
    return KeptTokens(folder, size, used, **told)


def _about(folder: Path) -> dict[str, Any]:
    """What a folder says of its rows. Raises ValueError where it is damaged."""
    file = folder / _ABOUT_FILE
    about = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if not isinstance(about, dict) or not {"rows", "xxh3_128"} <= about.keys():
        raise ValueError(f"{_ABOUT_FILE} does not say what the rows are")
    return about


def _mapped(folder: Path) -> TokenRows:
    """The rows of a folder, mapped into memory. Raises ValueError where they are not those that were written."""
    arrow, file, about = _arrow(), folder / _ROWS_FILE, _about(folder)
    if not file.exists() or _checksum(file) != about["xxh3_128"]:
        raise ValueError(f"{_ROWS_FILE} is not as it was written")
    reader = arrow.ipc.open_file(arrow.memory_map(str(file)))
    known = TokenRows([_piece(reader.get_batch(i)) for i in range(reader.num_record_batches)])
    if len(known) != about["rows"]:
        raise ValueError(f"{_ROWS_FILE} has {len(known)} rows")
    return known


def _piece(batch: Any) -> Piece:
    ids = batch.column("input_ids")
    types = batch.column("token_type_ids").values.to_numpy() if "token_type_ids" in batch.schema.names else None
    return Piece(ids.offsets.to_numpy(), ids.values.to_numpy(), types)


def _write_pieces(file: Path, pieces: Iterator[Piece]) -> tuple[int, int]:
    """Write an Arrow file with a batch for each piece, of which there is one at least; the numbers of rows and of tokens."""
    arrow, first = _arrow(), next(pieces)
    types = {"input_ids": arrow.int32()} | ({} if first.types is None else {"token_type_ids": arrow.int8()})
    schema, rows, tokens = arrow.schema({name: arrow.list_(kind) for name, kind in types.items()}), 0, 0
    with arrow.OSFile(str(file), "wb") as opened, arrow.ipc.new_file(opened, schema) as writer:
        for piece in chain([first], pieces):
            columns = [piece.ids] if piece.types is None else [piece.ids, piece.types]
            lists = [arrow.ListArray.from_arrays(piece.offsets, column) for column in columns]
            writer.write_batch(arrow.record_batch(lists, schema=schema))
            rows, tokens = rows + len(piece.offsets) - 1, tokens + len(piece.ids)
    return rows, tokens


def _checksum(file: Path) -> str:
    return digest_of(file, xxhash.xxh3_128())


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One run at a time makes what is to be at a place. Raises OSError where that cannot be had."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(f".{target.name}.lock")
    with FileLock(file, timeout=_WAIT_S, fallback_to_soft=False):
        try:
            yield
        finally:
            with suppress(OSError):  # while it is held: who gets it next sees that it is gone, and makes another
                file.unlink()


def _fingerprint(tokenizer: Any) -> str | None:
    """A hash of all that a tokenizer's tokens depend on; None where that is code of others than transformers'."""
    if type(tokenizer).__module__.partition(".")[0] != "transformers":
        return None
    import tokenizers
    import transformers

    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        return None
    serialised = json.loads(tokenizer.backend_tokenizer.to_str())
    for left_by_calls in ("truncation", "padding"):
        serialised.pop(left_by_calls, None)
    settings = [
        type(tokenizer).__qualname__,
        transformers.__version__,
        tokenizers.__version__,
        tokenizer.truncation_side,
        tokenizer.split_special_tokens,
        tokenizer.model_input_names,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        serialised,
    ]
    return blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtraError(
            "keeping tokenised rows needs pyarrow; install it with: pip install 'brewer-core[hf]'"
        ) from error
    return pyarrow
