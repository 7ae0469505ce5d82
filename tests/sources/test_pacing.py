"""Pacing by time stamps, and rate limits."""

from __future__ import annotations

from streamd.sources.pacing import Pacer, RateLimit

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
