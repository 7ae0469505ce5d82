"""The ring of compressed packets: its bounds, its groups, and where a clip begins."""

from __future__ import annotations

import itertools
import random
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.flow.packets import PacketHead, PacketRing

SECOND = 1_000_000_000
FRAME = SECOND // 25
LIVE = PacketHead("h264", 64, 48, (1, 90_000), "nut", b"", True)
FILE = PacketHead("h264", 64, 48, (1, 25), "nut", b"", False)


def fill(ring: PacketRing, count: int, *, gop: int = 25, size: int = 100, first: int = 0) -> None:
    for i in range(first, first + count):
        ring.put(bytes(size), i * 3600, i * 3600, 3600, i % gop == 0, SECOND + i * FRAME, i)


def numbers(ring: PacketRing) -> list[int]:
    return [p.wall_ns for p in ring.since(0)]


def test_nothing_is_kept_unless_asked_for() -> None:
    ring = PacketRing()
    assert not ring.on
    ring.begin(LIVE)
    fill(ring, 50)
    assert (ring.bytes, numbers(ring)) == (0, [])


def test_whole_groups_cover_the_seconds() -> None:
    ring = PacketRing(2.0)
    ring.begin(LIVE)
    fill(ring, 210)
    kept = numbers(ring)
    assert kept == list(range(150, 210)), "the group before covers the two seconds from the newest key frame"
    assert ring.bytes == 100 * len(kept)


def test_packets_before_the_first_key_frame_are_left_out() -> None:
    ring = PacketRing(2.0)
    fill(ring, 30)
    assert numbers(ring) == [], "nobody has told their parameters"
    ring.begin(LIVE)
    fill(ring, 60, first=30)
    assert numbers(ring)[0] == 50


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400)), max_size=200), st.integers(1, 1000))
@settings(max_examples=200, deadline=None)
def test_bytes_never_exceed_their_bound_and_groups_stay_whole(
    packets: list[tuple[bool, int]], bound: int
) -> None:  # fmt: skip
    ring = PacketRing(1000.0, bound)
    ring.begin(LIVE)
    for i, (key, size) in enumerate(packets):
        ring.put(bytes(size), i, i, 1, key, SECOND + i, i)
        kept = ring.since(0)
        assert ring.bytes == sum(len(p.data) for p in kept) <= bound
        assert not kept or kept[0].key
        serials = [p.serial for p in kept]
        assert serials == list(range(serials[0], serials[0] + len(kept))) if serials else True


def test_a_group_that_is_too_large_alone_is_dropped_and_counted() -> None:
    ring = PacketRing(1000.0, 1000)
    ring.begin(LIVE)
    fill(ring, 12, gop=100)
    assert (ring.bytes, ring.overflows) == (0, 1)
    fill(ring, 5, gop=100, first=12)
    assert numbers(ring) == [], "until the next key frame"
    fill(ring, 5, gop=100, first=100)
    assert numbers(ring) == [100, 101, 102, 103, 104]


def test_a_clip_begins_at_the_key_frame_before_the_moment() -> None:
    ring = PacketRing(100.0)
    ring.begin(LIVE)
    fill(ring, 100)
    assert ring.start_before(SECOND + 60 * FRAME).wall_ns == 50  # type: ignore[union-attr]
    assert ring.start_before(SECOND + 50 * FRAME).wall_ns == 50  # type: ignore[union-attr]
    assert ring.start_before(0).wall_ns == 0  # type: ignore[union-attr]
    assert PacketRing(1.0).start_before(0) is None


def test_a_key_frame_that_is_shown_later_than_it_came_is_too_late() -> None:
    ring = PacketRing(100.0)
    ring.begin(LIVE)
    for i in range(100):  # shown two frames after it was sent
        ring.put(b"x", (i + 2) * 3600, i * 3600, 3600, i % 25 == 0, SECOND + i * FRAME, i)
    origin = ring.at(SECOND + 80 * FRAME)
    assert origin == SECOND + 80 * FRAME
    # Picture 80 is shown at 82; 31 pictures before that, at 51, the key frame that came as the 50th is not shown yet.
    back = 31 * FRAME
    assert ring.start_before(origin - back + FRAME, SECOND + 80 * FRAME, back).wall_ns == 25  # type: ignore[union-attr]
    back = 30 * FRAME
    assert ring.start_before(origin - back, SECOND + 80 * FRAME, back).wall_ns == 50  # type: ignore[union-attr]


def test_a_file_s_time_is_that_of_its_stamps_whatever_the_pace() -> None:
    ring = PacketRing(100.0)
    ring.begin(FILE)
    for i in (0, 1, 2, 3, 0, 1, 2):  # it loops
        ring.put(b"x", i, i, 1, i == 0, SECOND + i, i)
    at = [p.at_ns for p in ring.since(0)]
    assert [b - a for a, b in itertools.pairwise(at)] == [FRAME] * 6


def test_the_clock_of_an_earlier_pass_says_nothing() -> None:
    ring = PacketRing(100.0)
    ring.begin(FILE)
    for i in range(250):
        ring.put(b"x", i % 50, i % 50, 1, i % 25 == 0, SECOND + i, i)
    origin = ring.at(SECOND + 205)
    assert origin is not None
    found = ring.start_before(origin - 20 * FRAME, SECOND + 205, 20 * FRAME)
    assert found is not None
    assert found.wall_ns == 175


def test_a_live_clock_only_goes_forward() -> None:
    ring = PacketRing(100.0)
    ring.begin(LIVE)
    for at in (5, 4, 3):
        ring.put(b"x", 1, 1, 1, True, at * SECOND, 0)
    assert [p.at_ns for p in ring.since(0)] == [5 * SECOND, 5 * SECOND + 1, 5 * SECOND + 2]


def test_reading_goes_on_where_it_ended() -> None:
    ring = PacketRing(100.0)
    ring.begin(LIVE)
    fill(ring, 60)
    serial = ring.since(0)[-1].serial
    fill(ring, 10, first=60)
    assert [p.wall_ns for p in ring.since(serial + 1)] == list(range(60, 70))
    assert ring.since(serial + 100) == []


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_bounds_change_while_packets_come(seconds: float) -> None:
    ring = PacketRing(60.0)
    ring.begin(LIVE)
    fill(ring, 100)
    ring.change(seconds, 64 << 20)
    fill(ring, 100, first=100)
    assert ring.on is bool(seconds)
    assert bool(ring.bytes) is bool(seconds)
    assert len({p.part.number for p in ring.since(0)}) == bool(seconds)


def test_the_rings_of_32_streams_hold_to_their_bound_together() -> None:
    """By what the process really holds, while four threads fill them with groups of all sizes."""
    bound, streams = 200_000, 32
    rings = [PacketRing(60.0, bound) for _ in range(streams)]
    for ring in rings:
        ring.begin(LIVE)
    most = [0] * streams
    tracemalloc.start()
    try:

        def run(mine: range) -> None:
            sizes = random.Random(mine.start)
            for i in range(500):
                for number in mine:
                    key = i % (10 + number) == 0
                    size = sizes.randrange(4_000, 12_000) if key else sizes.randrange(1_000, 4_000)
                    rings[number].put(bytes(size), i, i, 1, key, SECOND + i * FRAME, i)
                    most[number] = max(most[number], rings[number].bytes)

        threads = [threading.Thread(target=run, args=(range(k, streams, 4),)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(most) <= bound
    assert min(most) > bound * 0.9, "each was full"
    assert peak < streams * bound * 1.25, "with what Python needs for a packet"
    assert all(ring.since(0)[0].key for ring in rings)
