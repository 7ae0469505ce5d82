"""When a live stream counts as degraded, from its counters alone."""

from __future__ import annotations

import pytest

from streamd.flow.load import WINDOW_S, LoadGauge
from streamd.telemetry.streams import StreamMetrics


def play(gauge: LoadGauge, counters: StreamMetrics, *seconds: tuple[int, int], reason: str = "ring_full") -> str:
    """Seconds of (frames published, frames dropped)."""
    for published, dropped in seconds:
        counters.received += published + dropped
        counters.published += published
        if dropped:
            counters.drop(reason, dropped)
        gauge.look(counters)
    return gauge.reason


def fresh() -> tuple[LoadGauge, StreamMetrics]:
    gauge, counters = LoadGauge(), StreamMetrics("s")
    gauge.look(counters)
    return gauge, counters


def test_a_stream_that_drops_most_frames_is_overloaded_until_it_does_not() -> None:
    gauge, counters = fresh()
    assert play(gauge, counters, *[(4, 21)] * (WINDOW_S - 1)) == ""  # the window is not full yet
    assert play(gauge, counters, (4, 21)) == "overload"
    assert gauge.detail.startswith("84 % of its frames were dropped in the last 10 s")
    assert play(gauge, counters, *[(25, 0)] * (WINDOW_S - 1)) == "overload"  # 21 of 250 are still in the window
    assert play(gauge, counters, (25, 0)) == ""
    assert gauge.detail == ""


@pytest.mark.parametrize("reason", ["ring_full", "too_old"])
def test_both_kinds_of_drops_for_want_of_speed_count(reason: str) -> None:
    gauge, counters = fresh()
    assert play(gauge, counters, *[(5, 5)] * WINDOW_S, reason=reason) == "overload"


@pytest.mark.parametrize("reason", ["quarantine", "frame_error", "shutdown", "worker_died"])
def test_other_drops_do_not(reason: str) -> None:
    gauge, counters = fresh()
    assert play(gauge, counters, *[(5, 5)] * WINDOW_S, reason=reason) == ""


def test_a_burst_is_no_overload() -> None:
    gauge, counters = fresh()
    assert play(gauge, counters, *[(25, 0)] * 5, (0, 60), *[(25, 0)] * 10) == ""


def test_a_few_drops_are_no_overload() -> None:
    gauge, counters = fresh()
    assert play(gauge, counters, *[(24, 1)] * 20) == ""  # 4 %


def test_a_slow_stream_is_judged_by_the_seconds_in_which_it_has_frames() -> None:
    gauge, counters = fresh()
    assert play(gauge, counters, *[(0, 1), (0, 0)] * 5) == "overload"  # a frame every two seconds, all dropped


def test_it_recovers_below_half_of_what_made_it_degraded() -> None:
    gauge, counters = fresh()
    assert play(gauge, counters, *[(20, 5)] * WINDOW_S) == "overload"
    assert play(gauge, counters, *[(24, 1)] * WINDOW_S) == "overload"  # 4 %
    assert play(gauge, counters, *[(49, 1)] * WINDOW_S) == ""  # 2 %


def test_a_missed_objective() -> None:
    gauge, counters = LoadGauge(), StreamMetrics("s")
    counters.objective_s, counters.objective_share = 0.2, 0.99
    gauge.look(counters)
    for _ in range(WINDOW_S):
        counters.received += 25
        counters.published += 25
        counters.late += 5
        gauge.look(counters)
    assert gauge.reason == "late"
    assert gauge.detail == (
        "20 % of its frames were later than 200 ms or dropped in the last 10 s: its objective is missed"
    )
    counters.objective_s = None
    gauge.look(counters)
    assert gauge.reason == "late"  # nothing is known yet
    assert play(gauge, counters, *[(25, 0)] * WINDOW_S) == ""


def test_reset_forgets() -> None:
    gauge, counters = fresh()
    play(gauge, counters, *[(4, 21)] * WINDOW_S)
    gauge.reset()
    assert (gauge.reason, gauge.detail) == ("", "")
    assert play(gauge, counters, *[(4, 21)] * WINDOW_S) == ""


def seconds(gauge: LoadGauge, counters: StreamMetrics, *each: tuple[float | None, int]) -> list[str]:
    """Seconds of (how far behind, frames left out); 25 frames come in each. Returns the reason after each."""
    reasons: list[str] = []
    for behind_s, left_out in each:
        counters.behind_s = behind_s
        counters.received += 25
        counters.published += 25 - left_out
        if left_out:
            counters.drop("behind", left_out)
        gauge.look(counters)
        reasons.append(gauge.reason)
    return reasons


def test_a_stream_that_is_behind_for_seconds_is_told_until_it_is_not() -> None:
    gauge, counters = fresh()
    assert set(seconds(gauge, counters, *[(0.1, 0)] * 20)) == {""}
    assert seconds(gauge, counters, (2.5, 0), (3, 0), (3.5, 0)) == ["", "", "behind"]
    assert gauge.behind_s == 3.5
    assert gauge.detail.startswith(
        "read up to 3.5 s later than it is sent: this machine (decoder, CPU) is too slow for so"
    )
    assert seconds(gauge, counters, (1.5, 0), (1.1, 0), (0.9, 0)) == ["behind", "behind", ""]
    assert gauge.detail == ""


def test_a_stream_that_has_to_catch_up_again_and_again_is_behind() -> None:
    gauge, counters = fresh()
    assert set(seconds(gauge, counters, *[(0.5, 0), (1.9, 0), (0.0, 20), (0.3, 3)])) == {""}, "once: an outage, maybe"
    assert seconds(gauge, counters, *[(1.0, 0)] * 6, (1.9, 20))[-1] == "behind"
    assert "; 16 % of its frames were left out in the last minute" in gauge.detail
    assert set(seconds(gauge, counters, *[(0.1, 0)] * 59)) == {"behind"}
    assert seconds(gauge, counters, (0.1, 0), (0.1, 0))[-1] == ""


def test_an_outage_that_was_made_up_for_is_no_reason() -> None:
    gauge, counters = fresh()
    assert set(seconds(gauge, counters, (3.0, 0), (1.0, 24), (0.1, 1), *[(0.1, 0)] * 80)) == {""}


def test_being_behind_comes_before_what_follows_from_it_and_a_break_ends_it() -> None:
    gauge, counters = fresh()
    counters.objective_s, counters.objective_share = 0.2, 0.9
    for _ in range(WINDOW_S + 1):
        counters.late += 25
        seconds(gauge, counters, (4.0, 0))
    assert gauge.reason == "behind"
    counters.late += 25
    assert seconds(gauge, counters, (0.1, 0)) == ["late"]
    gauge.reset()
    assert gauge.behind_s is None
    assert seconds(gauge, counters, (4.0, 0)) == [""]
