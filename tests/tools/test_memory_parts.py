"""Where the memory of a process lies."""

from __future__ import annotations

import mmap
import os
from collections import Counter

import pytest
from memory_parts import family, growth, mappings, parts

MIB = 2**20


def test_private_and_shared_memory_are_told_apart() -> None:
    before, mapped = parts(os.getpid()), mappings(os.getpid())
    private = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared = mmap.mmap(-1, 32 * MIB)
    for memory, size in ((private, 64), (shared, 32)):
        for at in range(0, size * MIB, mmap.PAGESIZE):
            memory[at] = 1
    after = parts(os.getpid())
    assert after.anon - before.anon == pytest.approx(64, abs=4)
    assert after.shared - before.shared == pytest.approx(32, abs=1)
    assert after.sum == after.anon + after.shared + after.file
    grown = growth(mapped, mappings(os.getpid()))
    assert grown["anonymous"] == pytest.approx(64, abs=4)
    assert grown["/dev/zero (deleted)"] == pytest.approx(32, abs=1)
    private.close()
    shared.close()


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
