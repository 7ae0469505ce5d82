"""How far behind a live stream is read: never more than it is, whatever the sender's clock does, and all of it."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.sources.behind import JITTER_NS, PATIENCE_NS, REFUTED_LIMIT, BehindGauge
from tests.sources.slow_reader import EPOCH, S, camera, read

FAST, JITTER_S = 0.002, JITTER_NS / S


def fast(now_s: float) -> float:
    return FAST


def feed(gauge: BehindGauge, stamps: list[tuple[float, float]]) -> list[float]:
    """(media, arrival) in seconds; returns the waits."""
    waits = []
    for media_s, at_s in stamps:
        gauge.add(round(media_s * S), EPOCH + round(at_s * S))
        waits.append(gauge.wait_ns / S)
    return waits


def test_nothing_is_known_before_the_first_packet() -> None:
    gauge = BehindGauge(2 * S)
    assert gauge.behind_s is None
    gauge.add(5, EPOCH)
    assert gauge.behind_s == 0
    assert not gauge.suspect


def test_what_waits_is_measured_and_forgotten_when_it_has_been_read() -> None:
    gauge = BehindGauge(2 * S)
    feed(gauge, [(i / 25, i / 25) for i in range(100)])
    # 15 of 25 pictures are read: 0.4 s of wait for each second.
    waits = feed(gauge, [(4 + i / 25, 4 + i / 15) for i in range(75)])
    assert waits[-1] == pytest.approx(74 * (1 / 15 - 1 / 25), abs=0.01)
    assert gauge.behind_s == pytest.approx(waits[-1] - 0.4, abs=0.25), "the shortest wait of the last second or so"
    assert not gauge.suspect
    feed(gauge, [(7 + i / 25, 9 + i / 15) for i in range(25)])
    assert gauge.suspect
    feed(gauge, [(8 + i / 25, 10.67 + i / 200) for i in range(69)])
    waits = feed(gauge, [(11 + i / 25, 11.02 + i / 25) for i in range(50)])
    assert max(waits) < 0.05
    assert gauge.behind_s == pytest.approx(0.02, abs=0.02)


@pytest.mark.parametrize("ppm", [-300, -100, 0, 100, 300])
def test_a_clock_that_drifts_for_a_day_does_not_count_as_a_wait(ppm: float) -> None:
    gauge = BehindGauge(2 * S)
    rng = random.Random(1)
    worst = 0
    for i in range(86_400 * 5):
        gauge.add(round(i / 5 * (1 + ppm / 1e6) * S), EPOCH + round((i / 5 + rng.random() * 0.05) * S))
        worst = max(worst, gauge.wait_ns)
        assert not gauge.suspect
    assert worst < 0.07 * S


@pytest.mark.parametrize("ppm", [-300, 300])
def test_a_wait_of_hours_is_not_forgotten(ppm: float) -> None:
    gauge = BehindGauge(10 * S)
    hours = 3
    for i in range(hours * 3600):
        gauge.add(round(i * (1 + ppm / 1e6) * S), EPOCH + i * S + (5 * S if i >= 60 else 0))
        if gauge.suspect:
            gauge.confirm()
    assert gauge.wait_ns / S == pytest.approx(5, abs=hours * 3600 * 300e-6 + 0.1)


@pytest.mark.parametrize("jump_s", [-86_400.0, -10.0, -1.1, 10.0, 3600.0, 95_443.7])
@pytest.mark.parametrize("wait_s", [0.0, 1.0])
def test_a_jump_of_the_media_clock_is_no_wait_and_hides_none(jump_s: float, wait_s: float) -> None:
    gauge = BehindGauge(2 * S)
    feed(gauge, [(i / 25, i / 25) for i in range(50)])
    feed(gauge, [(2 + i / 25, 2 + i / 25 + wait_s) for i in range(50)])
    waits = feed(gauge, [(4 + jump_s + i / 25, 4 + i / 25 + wait_s) for i in range(100)])
    assert waits == pytest.approx([wait_s] * 100, abs=0.002)
    assert gauge.behind_s == pytest.approx(wait_s, abs=0.002)


def test_a_small_step_back_is_suspected_after_a_while_and_refuted() -> None:
    gauge = BehindGauge(2 * S)
    feed(gauge, [(i / 25, i / 25) for i in range(50)])
    stamps = [(2 - 0.6 + i / 25, 2 + i / 25) for i in range(25 * 65)]
    suspected = None
    for media_s, at_s in stamps:
        gauge.add(round(media_s * S), EPOCH + round(at_s * S))
        if gauge.suspect:
            suspected = at_s
            gauge.refute()
            break
    assert suspected == pytest.approx(2 + PATIENCE_NS / S, abs=1.5)
    assert (gauge.behind_s, gauge.fit) == (0, True)


def test_a_clock_that_is_always_wrong_is_not_believed_any_more() -> None:
    gauge = BehindGauge(2 * S)
    refuted = 0
    for i in range(25 * 120):  # the camera counts 25 pictures a second, and takes 20 of them
        gauge.add(i * S // 25, EPOCH + i * S // 20)
        if gauge.suspect:
            refuted += 1
            gauge.refute()
    assert refuted == REFUTED_LIMIT
    assert gauge.behind_s is None
    at = EPOCH + 500 * S
    assert gauge.add(0, at) == at, "and corrects nothing"
    assert gauge.behind_s is None
    for second in range(800, 810):
        gauge.add(second * S, EPOCH + second * S)
    assert gauge.behind_s == 0, "it has another chance after ten minutes"


def test_packets_without_a_time_stamp_wait_as_long_as_the_one_before() -> None:
    gauge = BehindGauge(2 * S)
    feed(gauge, [(i / 25, i / 25) for i in range(50)])
    feed(gauge, [(2 + i / 25, 5 + i / 25) for i in range(50)])
    at = EPOCH + 7 * S
    assert gauge.add(None, at) == at - 3 * S
    assert BehindGauge(2 * S).add(None, at) == at


def test_pictures_in_another_order_than_they_are_shown_do_not_wait() -> None:
    gauge = BehindGauge(2 * S)
    order = [0, 4, 2, 1, 3]
    stamps = [((i // 5 * 5 + order[i % 5]) / 25, i / 25) for i in range(500)]
    assert max(feed(gauge, stamps)) < JITTER_S
    assert gauge.behind_s is not None
    assert gauge.behind_s < 0.1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), ppm=st.floats(-300, 300), fps=st.sampled_from([1.0, 5.0, 25.0, 60.0]),
    jitter_s=st.floats(0, 0.12), stall=st.tuples(st.floats(5, 20), st.floats(0, 8)),
    jump=st.tuples(st.floats(5, 40), st.one_of(st.floats(-1e5, -20), st.floats(1.2, 1e5))),
    variable=st.booleans(),
)  # fmt: skip
def test_a_reader_that_keeps_up_is_never_behind(
    seed: int, ppm: float, fps: float, jitter_s: float, stall: tuple[float, float], jump: tuple[float, float],
    variable: bool,
) -> None:  # fmt: skip
    """Drift, jitter, a camera that stalls and sends fresh pictures afterwards, a jump of its clock, a variable rate.

    At a jump the wait is taken to be that of the picture before, so that the jitter counts twice from then on."""
    rng = random.Random(seed)
    begin, length = stall

    def sends(taken_s: float) -> bool:
        return not begin <= taken_s < begin + length and (not variable or rng.random() < 0.5)

    got = read(
        camera(
            45, fps=fps, ppm=ppm, way=lambda number: rng.random() * jitter_s, sends=sends,
            media=lambda taken: taken + (jump[1] if taken >= jump[0] else 0),
        ),
        fast,
    )  # fmt: skip
    assert got.catch_up.overtaken == 0
    assert got.decoded == got.read == len(got.served)
    assert max(wait for _, wait, _ in got.estimates) < JITTER_S
    assert (got.catch_up.gauge.behind_s or 0) < JITTER_S
    times = [at for at, _ in got.captured]
    assert all(a < b for a, b in itertools.pairwise(times))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), ppm=st.floats(-300, 300), fps=st.sampled_from([5.0, 25.0]),
    jitter_s=st.floats(0, 0.1), share=st.floats(0.2, 0.95),
)  # fmt: skip
def test_a_reader_that_does_not_keep_up_is_as_far_behind_as_is_told(
    seed: int, ppm: float, fps: float, jitter_s: float, share: float
) -> None:
    """Without a limit; `share`: of the pictures can be decoded in time."""
    rng = random.Random(seed)
    got = read(
        camera(30, fps=fps, ppm=ppm, way=lambda number: rng.random() * jitter_s),
        lambda now: FAST if now < 5 else 1 / fps / share, limit_s=None,
    )  # fmt: skip
    assert got.decoded == got.read, "no limit: nothing is left out"
    for now_s, wait_s, age_s in got.estimates:
        assert age_s - jitter_s - 0.35 <= wait_s <= age_s + 0.03, now_s  # drift is followed below JITTER_NS only
    late = [(at, taken) for (at, taken), (_, wait, _) in zip(got.captured, got.estimates, strict=True) if wait > 0.6]
    assert all(abs(at - taken) < jitter_s + 0.35 for at, taken in late), "captured when it was taken"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), outage_s=st.floats(0.5, 4.5), ppm=st.floats(-300, 300))
def test_an_outage_of_the_network_is_over_when_what_it_held_up_has_been_read(
    seed: int, outage_s: float, ppm: float
) -> None:
    got = read(
        camera(30, ppm=ppm, way=lambda number: max(0.0, 10 + outage_s - number / 25) if number >= 250 else 0.0), fast
    )
    held_up = [wait for now, wait, _ in got.estimates if 10 + outage_s <= now < 10 + outage_s + 0.01]
    assert max(held_up) == pytest.approx(outage_s, abs=0.1)
    assert got.catch_up.overtaken == 0, "it was read faster than it could be left out"
    assert max(abs(at - taken) for at, taken in got.captured) < 0.5
