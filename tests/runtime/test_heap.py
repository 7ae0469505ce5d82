"""The C library's heaps: few of them, and what is free goes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, threading
import psutil
from streamd.runtime import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def work():
    blocks = [libc.malloc(60_000) for _ in range(500)]
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    keep.append(blocks.pop())  # so that the heap's top cannot be cut off: only trimming returns what is below
    barrier.wait()
    for block in blocks:
        libc.free(block)
    barrier.wait()

heap.limit_arenas()
keep, barrier = [], threading.Barrier(8)
threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
full = psutil.Process().memory_info().rss
heap.trim()
print(full - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_free_memory_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    given_back = int(done.stdout)
    assert given_back > 100e6
