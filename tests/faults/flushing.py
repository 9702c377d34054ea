"""The command `brewer`, which kills itself inside its n-th flush of a file to the disk; counts them where n is 0.

Usage: python tests/faults/flushing.py N run config.json ...
"""

import os
import signal
import sys
from itertools import count

from brewer_core.cli import main

_flush = os.fsync
_last = int(sys.argv.pop(1))
_numbers = count(1)


def flush(descriptor: int) -> None:
    if next(_numbers) == _last:
        os.kill(os.getpid(), signal.SIGKILL)
    _flush(descriptor)


os.fsync = flush
try:
    main()
finally:
    print(f"flushes: {next(_numbers) - 1}", file=sys.stderr)
