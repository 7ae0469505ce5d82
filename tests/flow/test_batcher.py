"""Batches close by size or age, streams are served fairly, priorities first."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from streamd.flow.batcher import Batcher
from streamd.flow.ring import Bell, Closed, Ring
from streamd.types import Frame


def frame(stream: str, seq: int) -> Frame:
    return Frame(stream, cast(Any, None), 1, 1, 0, 0, 0, seq=seq)


class Bench:
    """A batcher with rings by name."""

    def __init__(self, max_batch: int, age_s: float = 0.0, **priorities: int) -> None:
        self.bell = Bell()
        self.batcher = Batcher(max_batch, age_s, self.bell)
        self.rings: dict[str, Ring[Frame]] = {}
        for name, priority in priorities.items():
            self.rings[name] = Ring(64, bell=self.bell)
            self.batcher.add(name, self.rings[name], priority)

    def fill(self, **counts: int) -> None:
        for name, count in counts.items():
            for seq in range(count):
                self.rings[name].put(frame(name, seq))

    def names(self) -> str:
        return "".join(f.stream for f in self.batcher.take())


def test_round_robin_continues_after_the_stream_served_last() -> None:
    bench = Bench(2, a=0, b=0, c=0)
    bench.fill(a=4, b=4, c=4)
    assert [bench.names() for _ in range(6)] == ["ab", "ca", "bc", "ab", "ca", "bc"]


def test_a_busy_stream_fills_what_the_others_leave() -> None:
    bench = Bench(4, a=0, b=0)
    bench.fill(a=6, b=1)
    assert [bench.names(), bench.names()] == ["abaa", "aaa"]


def test_higher_priority_goes_first() -> None:
    bench = Bench(2, low=0, high=5)
    bench.fill(low=2, high=3)
    assert [bench.names() for _ in range(3)] == ["highhigh", "highlow", "low"]


def test_one_frame_at_a_time_serves_sixteen_streams_alike() -> None:
    names = [f"s{i:02d}" for i in range(16)]
    bench = Bench(1, **dict.fromkeys(names, 0))
    bench.fill(**dict.fromkeys(names, 8))
    served = [bench.names() for _ in range(64)]
    assert all(served.count(name) == 4 for name in names)


def test_age_zero_takes_what_is_there_at_once() -> None:
    bench = Bench(8, a=0)
    bench.fill(a=1)
    started = time.monotonic()
    assert bench.names() == "a"
    assert time.monotonic() - started < 0.2


def test_a_batch_waits_for_its_age_and_no_longer() -> None:
    bench = Bench(8, 0.15, a=0, b=0)
    bench.fill(a=1)
    threading.Timer(0.05, lambda: bench.fill(b=1)).start()
    started = time.monotonic()
    assert sorted(bench.names()) == ["a", "b"]
    assert time.monotonic() - started >= 0.14


def test_a_full_batch_does_not_wait() -> None:
    bench = Bench(2, 30.0, a=0)
    bench.fill(a=2)
    assert bench.names() == "aa"


def test_closed_rings_are_emptied_without_waiting_for_age() -> None:
    bench = Bench(8, 30.0, a=0)
    bench.fill(a=1)
    bench.rings["a"].close()
    bench.batcher.seal()
    assert bench.names() == "a"
    with pytest.raises(Closed):
        bench.batcher.take()


def test_an_unsealed_batcher_waits_for_streams_to_come() -> None:
    bench = Bench(1, a=0)
    bench.rings["a"].close()

    def later() -> None:
        ring: Ring[Frame] = Ring(4, bell=bench.bell)
        bench.batcher.add("b", ring)
        ring.put(frame("b", 0))

    threading.Timer(0.05, later).start()
    assert bench.names() == "b"


def test_a_removed_stream_is_served_no_longer() -> None:
    bench = Bench(4, a=0, b=0)
    bench.fill(a=1, b=1)
    bench.batcher.remove("a")
    assert bench.names() == "b"
