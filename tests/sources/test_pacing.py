"""Pacing by time stamps, and rate limits."""

from __future__ import annotations

import pytest

from streamd.sources.pacing import MediaClock, Pacer, RateLimit

MS = 1_000_000


def test_packets_are_due_at_their_own_distances() -> None:
    pacer = Pacer(40 * MS)
    assert [pacer.due(stamp * MS, 0) // MS for stamp in (0, 40, 120, 130)] == [0, 40, 120, 130]


def test_absent_and_jumping_stamps_fall_back_to_the_nominal_rate() -> None:
    pacer = Pacer(40 * MS)
    assert [pacer.due(stamp, 0) // MS for stamp in (None, None, 0, 90_000 * MS, 0, 40 * MS)] == [
        0,
        40,
        80,
        120,
        160,
        200,
    ]


def test_a_reader_far_behind_starts_anew() -> None:
    pacer = Pacer(40 * MS)
    pacer.due(0, 0)
    assert pacer.due(40 * MS, 10_000 * MS) == 10_000 * MS


def test_rate_limit_lets_an_even_share_through() -> None:
    limit = RateLimit(10)
    assert sum(limit.admit(i * 40 * MS) for i in range(250)) == 100


def test_rate_limit_at_the_streams_own_rate_loses_nothing() -> None:
    limit = RateLimit(25)
    jitter = (0, 300_000, -300_000)
    assert all(limit.admit(i * 40 * MS + jitter[i % 3]) for i in range(250))


def test_rate_limit_survives_a_clock_that_jumps_back() -> None:
    limit = RateLimit(10)
    assert limit.admit(10**15)
    assert limit.admit(0)
    assert not limit.admit(40 * MS)


def test_the_last_picture_of_a_pass_is_seen_as_long_as_the_others() -> None:
    pacer = Pacer(40 * MS)
    assert pacer.end() is None
    assert [pacer.due(stamp * MS, 0) // MS for stamp in (0, 40)] == [0, 40]
    assert pacer.end() == 80 * MS
    assert [pacer.due(stamp * MS, 0) // MS for stamp in (0, 40)] == [80, 120]
    assert pacer.end() == 160 * MS
    assert pacer.due(0, 9_000 * MS) == 9_000 * MS  # a pause between two passes is not made up for


def test_a_files_time_goes_on_whatever_its_stamps_are() -> None:
    clock = MediaClock(40 * MS)
    stamps = (0, 30, 60, None, None, 60, 60, 60, 90_000, 90_020, 0, 40)
    assert [clock.at(None if s is None else s * MS) // MS for s in stamps] == [
        40, 70, 100, 140, 180, 220, 260, 300, 340, 360, 400, 440,
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 12, 25, 62])
def test_a_limit_is_kept_over_the_passes_of_a_short_loop(length: int) -> None:
    """10 frames a second, over and over: a fifth is to be left, however short the clip."""
    clock, limit = MediaClock(100 * MS), RateLimit(2)
    passed = sum(limit.admit(clock.at(i % length * 100 * MS)) for i in range(1000))
    assert passed == 200


def test_a_limit_by_arrival_bears_the_jitter_of_a_network() -> None:
    limit = RateLimit(25)
    limit.jittery = True
    late = [0, 11, 3, 17, 0, 8, 15, 2]
    assert all(limit.admit((i * 40 + late[i % 8]) * MS) for i in range(250))
    limit = RateLimit(5)
    limit.jittery = True
    assert sum(limit.admit((i * 40 + late[i % 8]) * MS) for i in range(1000)) in (200, 201)
