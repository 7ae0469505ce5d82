"""Where the memory of a process lies."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from memory_parts import family, growth, mappings, parts

MIB = 2**20


_CHILD = """
import mmap, sys
parts = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), mmap.mmap(-1, 32 << 20)
print("ready", flush=True)
sys.stdin.readline()
for memory in parts:
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = 1
print("written", flush=True)
sys.stdin.readline()
"""


def test_private_and_shared_memory_are_told_apart() -> None:
    """Of a process in which nothing else happens: threads of other tests would allocate in this one."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        before, mapped = parts(child.pid), mappings(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "written\n"
        after, grown = parts(child.pid), growth(mapped, mappings(child.pid))
    assert after.anon - before.anon == pytest.approx(64, abs=1)
    assert after.shared - before.shared == pytest.approx(32, abs=1)
    assert after.sum == after.anon + after.shared + after.file
    assert grown["anonymous"] == pytest.approx(64, abs=1)
    assert grown["/dev/zero (deleted)"] == pytest.approx(32, abs=1)


def test_looking_takes_no_memory_worth_mentioning() -> None:
    """Also of a process with thousands of mappings, each a kilobyte of text: it may be the one that looks."""
    with contextlib.ExitStack() as stack:
        for n in range(2000):
            # Neighbours that are alike would be one mapping.
            access = mmap.PROT_READ | (mmap.PROT_WRITE if n % 2 else 0)
            stack.enter_context(mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=access))
        assert Path("/proc/self/maps").read_bytes().count(b"\n") > 2000
        tracemalloc.start()
        try:
            mappings(os.getpid())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < MIB / 4


def test_growth_tells_the_largest_changes_only() -> None:
    before, after = Counter(a=1024, b=2048, c=5), Counter(a=3072, b=1024, c=5, d=512)
    assert growth(before, after, most=2) == {"a": 2, "b": -1}
    assert growth(before, before) == {}


def test_a_process_without_children_is_its_family() -> None:
    assert family(os.getpid())["daemon"] == os.getpid()


def test_a_process_that_has_ended_is_an_error() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="No such"):
        parts(child)
    with pytest.raises(OSError, match="No such"):
        mappings(child)
