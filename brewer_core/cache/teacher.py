"""A teacher that computes the features of a row once, keeps them on disk, and reads them from there."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from brewer_core.batches import side, teacher_cache, two_sided
from brewer_core.cache.format import CacheFormat
from brewer_core.cache.layout import Frame, Layout, packed
from brewer_core.cache.rows import Key, Rows, rows_of, without_key
from brewer_core.cache.store import Store, copied
from brewer_core.cache_folder import cache_root
from brewer_core.errors import RequestError
from brewer_core.features import Features, features_read
from brewer_core.fingerprints import changes, fingerprint
from brewer_core.protocols import Batch, Teacher

if TYPE_CHECKING:
    from typing_extensions import Self

VERSION = 1
"""Of how rows are told apart and records lie. A cache of another version is another cache, which nobody takes for a damaged one."""

TEACHERS = "teachers"
"""The folder of teacher caches inside a cache folder."""

LIMIT_GB = 20.0
"""How large a cache grows where nothing else is said."""

_MASKS = ("logits_mask", "inputs_mask")


@runtime_checkable
class IdentifiedTeacher(Teacher, Protocol):
    """A teacher that says itself what makes it answer as it does."""

    def identity(self) -> str:
        """The same for teachers that give the same answers, another one after any change of a weight or a setting.

        Asked by each cache at first, and where a module that the teacher holds has changed; of a teacher that holds none, each time.
        """
        ...

    def described(self) -> Mapping[str, Any]:
        """What people call it: JSON values."""
        ...


class CachedTeacher:
    """A teacher around another one, whose features of a row are computed once and read from disk ever after.

    Features are kept by row and without padding, so order, batches and padding may differ from pass to pass, and from run to run.
    A cache is that of the teacher's weights, its adaptor, what is read of it, and the format: a change of any of these is
    another cache. What is read is bit for bit what was computed when the row was new, in the default format; on a miss it is
    what would be read next time.

    teacher: any teacher. key: the column that tells rows apart, which no model is given, or a function from a batch to a key for each
    row; where None, a hash of what the row holds. ignore: columns that do not count for that hash.
    folder: where caches lie; where None, `BREWER_CACHE`, or the user's own cache folder. limit_gb: how large this one grows; None for
    no limit. builder, shares_lock: the number of the process where several build one cache together, and whether another has its lock.

    Raises DataError for a batch that cannot be told apart by row, AdaptorError for features that are not by row.
    """

    def __init__(
        self,
        teacher: Teacher,
        key: Key | None = None,
        ignore: Collection[str] = ("labels",),
        *,
        folder: Path | str | None = None,
        format: CacheFormat | None = None,
        limit_gb: float | None = LIMIT_GB,
        builder: int = 0,
        shares_lock: bool = False,
    ) -> None:
        if not callable(getattr(teacher, "features", None)):
            raise RequestError(
                f"CachedTeacher: a {type(teacher).__name__} is no teacher; wrap a model as LiveTeacher(model, adaptor, device) first."
            )
        self.teacher = teacher
        self.key = key
        self.ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
        self.folder = _root(folder) / TEACHERS
        self.format = format or CacheFormat()
        self.limit_bytes = None if limit_gb is None else int(limit_gb * 1e9)
        self._builder, self._shares_lock = builder, shares_lock
        device = getattr(teacher, "device", None)
        self._pinned = isinstance(device, torch.device) and device.type == "cuda"
        self._decodes_labels = bool(getattr(teacher, "decodes_labels", False))
        self._stores: dict[str, Store] = {}
        self._identified, self._identity = _Identity(teacher), ""
        self._by_needs: dict[frozenset[str], Store] = {}
        self._asked = self._found = self._passes = 0
        weakref.finalize(self, _close_all, self._stores)  # also where nobody closes it, and at the end of the process

    def rows(self, batch: Batch) -> Rows:
        """The rows of the teacher's part of a batch; quickest on the CPU, before the batch moves to a device."""
        return rows_of(side(batch, "teacher"), self.key, self.ignore, self._decodes_labels)

    def features(self, batch: Batch, needs: frozenset[str], rows: Rows | None = None) -> Features:
        """The features of a batch, on the CPU. A batch with any row that is new is computed whole, and its new rows are kept.

        rows: those of the batch, where they are known already. Outputs that the batch itself brings along are passed to
        the teacher, and not kept.
        """
        if teacher_cache(batch) is not None:
            return self.teacher.features(self._without_key(batch), needs)
        rows = rows or self.rows(batch)
        store = self.store(needs)
        numbers = store.find(rows)
        known = [number for number in numbers if number is not None]
        self._asked, self._found = self._asked + len(rows), self._found + len(known)
        if len(known) == len(rows):
            read = store.read(rows, known, self._pinned)
            if read is not None:
                return read
        answer = self.teacher.features(self._without_key(batch), needs)
        layout, computed = packed(chosen(answer, needs), rows, self.format)
        records = _kept(store, layout, rows, store.find(rows), computed)
        frame = Frame(layout, rows, self._pinned)
        frame.read(lambda row, buffers: copied(records[rows.keys[row]], buffers))
        return frame.features

    def store(self, needs: frozenset[str]) -> Store:
        """The cache of what is read of the teacher as it is now."""
        identity = self._identified()
        if identity != self._identity:  # a weight has changed since
            self._close()
            self._identity = identity
        if needs not in self._by_needs:
            read = sorted(needs)
            name = fingerprint(VERSION, identity, read, self.format.to_dict())
            if name not in self._stores:
                about = {
                    "teacher": dict(_described(self.teacher)),
                    "identity": identity,
                    "reads": read,
                    "format": self.format.to_dict(),
                    "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                }
                self._stores[name] = Store(
                    self.folder / name,
                    about,
                    limit_bytes=self.limit_bytes,
                    builder=self._builder,
                    shares_lock=self._shares_lock,
                )
            self._by_needs[needs] = self._stores[name]
        return self._by_needs[needs]

    def identity(self) -> str:
        """That of the teacher around which it stands, as it is now."""
        return self._identified()

    def flush(self) -> None:
        """Have all rows that were computed on the disk."""
        for store in self._stores.values():
            store.flush()

    def refresh(self) -> None:
        """See the rows that other processes have written."""
        for store in self._stores.values():
            store.refresh()

    def end_pass(self) -> None:
        """Be told that a pass over the data is over. Warns where a later one finds hardly any of its rows."""
        keeping = all(store.keeps_no_more is None for store in self._stores.values())
        if self._passes and keeping and self._asked > 2 * self._found:
            warnings.warn(
                f"teacher cache: {self._found} of {self._asked} rows of this pass were found, and the others computed anew. Rows look "
                "random: augmented ones are new in every pass, and so is a column that differs; name the column that tells rows apart "
                "(`key=`), or ignore the one that differs (`ignore=`). A feature without axes or mask is known again at one padded length "
                "alone; let the adaptor return `inputs_mask` and `logits_mask`.",
                stacklevel=2,
            )
        self._passes, self._asked, self._found = self._passes + 1, 0, 0

    def __enter__(self) -> Self:
        """The teacher itself; it is closed when the context is left."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush, and let other processes build. It may be asked again afterwards."""
        self._close()

    def _close(self) -> None:
        _close_all(self._stores)
        self._by_needs = {}

    def _without_key(self, batch: Batch) -> Batch:
        if not two_sided(batch):
            return without_key(batch, self.key)
        return {**batch, "teacher": without_key(batch["teacher"], self.key)}


def _kept(
    store: Store, layout: Layout, rows: Rows, numbers: Sequence[int | None], computed: Sequence[bytes]
) -> dict[bytes, bytes]:
    """The record of each key: the one that is known, else the one that was computed, which is kept."""
    records: dict[bytes, bytes] = {}
    new: dict[bytes, bytes] = {}
    for key, number, record in zip(rows.keys, numbers, computed, strict=True):
        if key not in records:
            known = None if number is None else store.record(number, layout)
            records[key] = record if known is None else known
            if known is None:
                new[key] = record
    store.keep(layout, list(new), list(new.values()))
    return records


def _close_all(stores: dict[str, Store]) -> None:
    """Close stores, and have none."""
    while stores:
        stores.popitem()[1].close()


def chosen(features: Features, needs: frozenset[str]) -> Features:
    """What is read of a teacher's features, and the masks by which padding is known."""
    wanted = features_read(needs) | set(_MASKS)
    return features.only_read(needs).without(name for name in features if name not in wanted)


def _root(folder: Path | str | None) -> Path:
    root = cache_root("auto", Path()) if folder is None else Path(folder)
    if root is None:
        raise RequestError(
            "CachedTeacher: there is no folder for caches here; give one (`folder=`), or set BREWER_CACHE."
        )
    return root


def shared(teachers: Mapping[str, Teacher]) -> dict[str, Teacher]:
    """The same teachers by name, of which those with the same cache are one: what one of them has computed another finds at once."""
    first: dict[Any, CachedTeacher] = {}
    found: dict[str, Teacher] = dict(teachers)
    for name, teacher in teachers.items():
        if isinstance(teacher, CachedTeacher):
            mark = (teacher.identity(), teacher.folder, teacher.format, teacher.key, teacher.ignore)
            found[name] = first.setdefault(mark, teacher)
    return found


class _Identity:
    """What makes a teacher answer as it does, worked out anew after a change of its weights.

    A teacher that holds no model and says itself what it is is asked each time.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._itself = isinstance(teacher, IdentifiedTeacher)  # looked up once: it is asked in every step
        self._changes: Any = None
        self._latest = ""

    def __call__(self) -> str:
        modules = [each for each in getattr(self._teacher, "__dict__", {}).values() if isinstance(each, nn.Module)]
        now = [changes(module) for module in modules]
        if now != self._changes or (self._itself and not modules):
            self._changes = now
            self._latest = self._teacher.identity() if self._itself else fingerprint(self._teacher)  # type: ignore[attr-defined]  # it has one
        return self._latest


def _described(teacher: Teacher) -> Mapping[str, Any]:
    if isinstance(teacher, IdentifiedTeacher):
        return teacher.described()
    return {"teacher": type(teacher).__qualname__}
