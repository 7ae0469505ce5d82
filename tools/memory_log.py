"""Has each process of a daemon write down the memory that it has in use, for `startup.py --in-use`.

The resident memory of a process contains what malloc keeps for later, which the kernel fills with huge pages and
empties again: it moves by tens of MiB although nothing is allocated. So huge pages are off here, and what malloc and
Python have given out is written to $STREAMD_MEMORY_LOG/PID, a line each ten seconds: monotonic seconds, bytes that
malloc has given out, and memory blocks that Python has (most of them below 512 bytes, and not malloc's).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

EVERY_S = 10.0
_PR_SET_THP_DISABLE = 41
_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def _write(folder: Path) -> None:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallInfo
    with (folder / str(os.getpid())).open("a", encoding="ascii") as log:
        while True:
            time.sleep(EVERY_S)
            found = libc.mallinfo2()
            print(time.monotonic(), found.uordblks + found.hblkhd, sys.getallocatedblocks(), file=log, flush=True)


def begin() -> None:
    """Begins, where $STREAMD_MEMORY_LOG names a folder."""
    if folder := os.environ.get("STREAMD_MEMORY_LOG"):
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
        threading.Thread(target=_write, args=(Path(folder),), daemon=True, name="memory-log").start()
