"""The teacher cache: what a teacher gives for a row of data is computed once, kept on disk by row, and read ever after.

`CachedTeacher` (`teacher`) stands around any teacher. It knows rows by what they hold (`rows`), lays their features out as records without
padding (`layout`), in a form (`format`), and has them kept in a folder (`store`): parts that are written whole (`parts`), and an
index of their keys (`index`).
"""

from brewer_core.cache.format import CacheFormat
from brewer_core.cache.layout import packed
from brewer_core.cache.rows import without_key
from brewer_core.cache.store import Store, readable
from brewer_core.cache.teacher import LIMIT_GB, TEACHERS, CachedTeacher, chosen, shared

__all__ = [
    "LIMIT_GB",
    "TEACHERS",
    "CacheFormat",
    "CachedTeacher",
    "Store",
    "chosen",
    "packed",
    "readable",
    "shared",
    "without_key",
]
