"""Batches close by size or age, streams are served fairly, priorities first."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from streamd.flow.batcher import TURN, Batcher
from streamd.flow.ring import Bell, Closed, Ring
from streamd.types import Frame


def frame(stream: str, seq: int) -> Frame:
    return Frame(stream, cast(Any, None), 1, 1, 0, 0, time.monotonic_ns(), seq=seq)


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


def test_no_stream_starves_beyond_the_stated_bound() -> None:
    """Three busy streams of high priority, five of low: each is served at least once in 8 x 8 frames."""
    names = {f"high{i}": 5 for i in range(3)} | {f"low{i}": 0 for i in range(5)}
    bench = Bench(1, **names)
    bench.fill(**dict.fromkeys(names, 4))
    last = dict.fromkeys(names, 0)
    longest = dict.fromkeys(names, 0)
    for turn in range(1, 801):
        (taken,) = bench.batcher.take()
        bench.rings[taken.stream].put(frame(taken.stream, turn))
        longest[taken.stream] = max(longest[taken.stream], turn - last[taken.stream])
        last[taken.stream] = turn
    assert max(longest.values()) <= TURN * len(names)
    low = [longest[name] for name in names if name.startswith("low")]
    assert min(low) > TURN, "priorities count for nothing"


def test_one_in_eight_frames_is_all_that_priority_gives_up() -> None:
    bench = Bench(4, low=0, high=5)
    served = {"low": 0, "high": 0}
    for _ in range(200):
        bench.fill(low=4 - len(bench.rings["low"]), high=4 - len(bench.rings["high"]))
        for f in bench.batcher.take():
            served[f.stream] += 1
    assert served == {"low": 100, "high": 700}


def test_a_frame_that_waited_too_long_is_dropped_when_its_turn_comes() -> None:
    bench = Bench(8, a=0)
    dropped: list[tuple[str, int, str]] = []
    ring: Ring[Frame] = Ring(8, on_drop=lambda f, reason: dropped.append((f.stream, f.seq, reason)), bell=bench.bell)
    bench.batcher.add("b", ring, max_age_s=0.05)
    bench.fill(a=2)
    ring.put(frame("b", 0))
    ring.put(frame("b", 1))
    time.sleep(0.06)
    ring.put(frame("b", 2))
    assert sorted((f.stream, f.seq) for f in bench.batcher.take()) == [("a", 0), ("a", 1), ("b", 2)]
    assert dropped == [("b", 0, "too_old"), ("b", 1, "too_old")]


def test_a_batch_of_nothing_but_old_frames_is_no_batch() -> None:
    bench = Bench(8)
    dropped: list[int] = []
    ring: Ring[Frame] = Ring(8, on_drop=lambda f, _: dropped.append(f.seq), bell=bench.bell)
    bench.batcher.add("a", ring, max_age_s=0.02)
    ring.put(frame("a", 0))
    time.sleep(0.03)
    threading.Timer(0.05, lambda: ring.put(frame("a", 1))).start()
    assert [f.seq for f in bench.batcher.take()] == [1]
    assert dropped == [0]


def test_streams_come_and_go_while_another_thread_takes() -> None:
    """Nothing is lost, doubled or out of order for the stream that stays, whatever happens beside it."""
    bench = Bench(4, stays=0)
    taken: list[Frame] = []

    def take() -> None:
        while True:
            try:
                taken.extend(bench.batcher.take())
            except Closed:
                return

    thread = threading.Thread(target=take)
    thread.start()
    visitors: dict[str, Ring[Frame]] = {}
    for seq in range(300):
        bench.rings["stays"].put(frame("stays", seq), timeout=1)
        name = f"v{seq}"
        ring = visitors[name] = Ring(4, bell=bench.bell)
        bench.batcher.add(name, ring, priority=seq % 3)
        ring.put(frame(name, 0))
        while bench.rings["stays"] or ring:
            time.sleep(0.0005)
        bench.batcher.remove(name)
    bench.rings["stays"].close()
    bench.batcher.seal()
    thread.join(5)
    assert not thread.is_alive()
    assert [f.seq for f in taken if f.stream == "stays"] == list(range(300))
    assert len(taken) == 600
