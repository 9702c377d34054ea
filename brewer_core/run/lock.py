"""The lock of a run's folder: the operating system's, so that a process that dies, however it dies, leaves it free."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from brewer_core.errors import OutputExistsError

WAIT_S, POLL_S = 0.3, 0.02
"""How long a lock that is held is tried again: its holder may be another that only looks whether it is held."""
WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


class Lock:
    """A file that one process at a time holds. It says which: the process's number, and its host.

    Where the file system has no locks, a process that lives and stands in the file counts as its holder.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = FileLock(file, thread_local=False, fallback_to_soft=False)
        self._taken: os.stat_result | None = None

    def take(self) -> None:
        """Hold it. Raises OutputExistsError where it is held, by this process as well; OSError where it cannot be made."""
        if not self._acquire():
            _refuse_without_locks(self.file)
            warnings.warn(
                f"the file system of {self.file.parent} has no locks: runs that start there at the same time may overwrite "
                "each other.",
                stacklevel=2,
            )
        with suppress(PermissionError):  # some systems lock the text as well
            self.file.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        self._taken = self.file.stat()

    def refuse_held(self) -> None:
        """Raise OutputExistsError where it is held. Nothing is written."""
        if not self.file.exists():
            return
        if self._acquire():
            self._lock.release()
        else:
            _refuse_without_locks(self.file)

    def release(self) -> None:
        """Give it back; the file is gone afterwards."""
        with suppress(OSError):
            if self._taken and os.path.samestat(self._taken, self.file.stat()):
                # While it is held: one that has opened this file, and gets it next, sees that it is gone, and makes another.
                self.file.unlink()
        self._taken = None
        self._lock.release()

    def _acquire(self) -> bool:
        """Whether the operating system gave it; not where the file system has no locks."""
        try:
            self._lock.acquire(timeout=WAIT_S, poll_interval=POLL_S)
        except Timeout:
            raise OutputExistsError(
                f"output {self.file.parent} belongs to a run that is going on{_named(_holder(self.file))}; choose another "
                "folder with --output."
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            return False
        return True


def _refuse_without_locks(file: Path) -> None:
    holder = _holder(file)
    if holder and (holder[1] != socket.gethostname() or _alive(int(holder[0]))):
        raise OutputExistsError(
            f"output {file.parent} belongs to a run{_named(holder)}, and its file system has no locks to tell whether that is "
            f"going on; choose another folder with --output, or remove {file} if it is over."
        )


def _holder(file: Path) -> tuple[str, str] | None:
    """The number and the host of the process that wrote the file; None where it does not say."""
    try:
        words = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    return (words[0], words[1]) if len(words) == 2 and words[0].isdecimal() else None


def _named(holder: tuple[str, str] | None) -> str:
    return f" (process {holder[0]} on {holder[1]})" if holder else ""


def _alive(process: int) -> bool:
    """Whether a process of this host lives and is another one; containers use low numbers again."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()
