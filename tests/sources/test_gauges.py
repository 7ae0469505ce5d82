"""How late HLS is read: what is said is true, and what is read too slowly catches up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamd.sources.gauges import PaceGauge
from streamd.sources.pacing import Pacer
from tests.sources.reader import Reader, until
from tests.sources.test_http_inputs import Camera, camera, write_segments

__all__ = ["camera"]
MS, S = 1_000_000, 1_000_000_000
EPOCH = 1_000_000 * S


def play(reads: list[tuple[float, float]], busy: Callable[[int], float], fps: float = 25) -> list[float]:
    """Plays an input in its pace.

    Args:
        reads: (media time, when the server has it) of each picture, in seconds.
        busy: how long the reader is busy with a picture, in seconds.

    Returns:
        How late each picture was, in seconds.
    """
    pacer, now_ns, late = Pacer(round(S / fps), live=True), EPOCH, []
    for number, (media_s, there_s) in enumerate(reads):
        began_ns = now_ns
        now_ns = max(began_ns + MS // 10, EPOCH + round(there_s * S))
        due_ns = pacer.due(round(media_s * S), now_ns, now_ns - began_ns)
        now_ns = max(now_ns, due_ns)
        late.append(pacer.late_ns / S)
        now_ns += round(busy(number) * S)
    return late


def segments(
    seconds: float, *, ahead_s: float = 6.0, length_s: float = 2.0, fps: float = 25
) -> list[tuple[float, float]]:
    """A playlist: a segment is there when its last picture was taken, and the first ones before reading begins."""
    return [(i / fps, max(0.0, (i / fps // length_s + 1) * length_s - ahead_s)) for i in range(round(seconds * fps))]


def test_a_reader_that_keeps_up_is_never_late() -> None:
    assert max(play(segments(60), lambda _: 0.02)) == 0


def test_a_reader_that_is_too_slow_is_late_by_what_it_lacks_and_makes_up_for_it() -> None:
    late = play(segments(120), lambda i: 0.06 if i < 500 else 0.01)
    assert late[499] == pytest.approx(499 * 0.02, rel=0.02)
    assert late[499] > 2, "more than a jump of a file's clock"
    assert max(late[900:]) == 0


def test_what_the_server_holds_up_is_not_the_readers_fault() -> None:
    """An outage of a minute, and an encoder whose time stamps stand still meanwhile."""
    held = [(media, there + (60 if media >= 10 else 0)) for media, there in segments(40)]
    assert max(play(held, lambda _: 0.02)) < 0.01
    slow = [(i / 25, i * 0.05) for i in range(500)]
    assert max(play(slow, lambda _: 0.02)) < 0.05, "a way that is too slow for the stream"


def test_pictures_that_the_playlist_no_longer_listed_are_not_waited_for() -> None:
    reads = segments(60)
    late = play(
        [*reads[:500], *((media + 8, there) for media, there in reads[500:])], lambda i: 0.06 if i < 500 else 0.02
    )
    assert late[499] > 9
    assert late[501] == pytest.approx(late[499] - 8, abs=0.1)


@given(st.lists(st.floats(0, 0.2), min_size=50, max_size=200))
def test_it_is_never_more_than_what_the_reader_was_busy_for(busy: list[float]) -> None:
    late = play(segments(len(busy) / 25 + 1)[: len(busy)], lambda i: busy[i])
    spent = 0.0
    for number, each in enumerate(late):
        assert each <= spent + 1e-3 * (number + 1)
        spent += busy[number]


def test_settled_is_settled() -> None:
    pacer = Pacer(40 * MS, live=True)
    gauge = PaceGauge(2 * S, pacer)
    for i in range(100):
        now_ns = EPOCH + i * 100 * MS
        pacer.due(i * 40 * MS, now_ns)
        gauge.add(None, now_ns)
    assert gauge.behind_s == pytest.approx(5.5, abs=0.5)
    gauge.settle()
    assert gauge.behind_s == 0
    pacer.due(100 * 40 * MS, EPOCH + 9_940 * MS)
    gauge.add(None, EPOCH + 9_940 * MS)
    assert gauge.wait_ns == 0


def test_hls_that_is_read_too_slowly(camera: Camera, tmp_path: Path) -> None:
    write_segments(tmp_path)
    with Reader(f"{camera.url}/live.m3u8", max_behind_ms=500) as reader:
        until(lambda: reader.count >= 8, 10)
        assert reader.source.behind_s == 0
        reader.slow_s = 0.25  # ten pictures a second come
        until(lambda: (reader.source.behind_s or 0) >= 0.5, 10)
        assert reader.latency_s >= 0.25
        until(lambda: reader.source.overtaken > 0, 10)


def test_hls_makes_up_for_what_it_lacks(camera: Camera, tmp_path: Path) -> None:
    write_segments(tmp_path)
    with Reader(f"{camera.url}/live.m3u8", max_behind_ms=0) as reader:
        until(lambda: reader.count >= 5, 10)
        reader.slow_s = 0.4
        until(lambda: (reader.source.behind_s or 0) >= 0.7, 10)
        reader.slow_s = 0.0
        until(lambda: reader.source.behind_s == 0, 5)
        assert reader.source.overtaken == 0
