"""How late HLS and motion JPEG over HTTP are read: what is said is true, and what is read too slowly catches up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.gauges import PaceGauge, QueueGauge
from streamd.sources.pacing import Pacer
from tests.sources.test_http_inputs import Camera, camera, write_segments

__all__ = ["camera"]
MS, S = 1_000_000, 1_000_000_000
EPOCH = 1_000_000 * S


# ----------------------------------------------------------------------------------------------------------------- HLS


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


# --------------------------------------------------------------------------------------------------------------- queue


class Queue:
    """Feeds a gauge with pictures of 1000 bytes."""

    def __init__(self, known: bool = True, limit_s: float = 2.0) -> None:
        self.waiting: int | None = 0 if known else None
        self.began_s = 0.0
        self.gauge = QueueGauge(2 * S, lambda: self.waiting, lambda: self.began_s)
        self.gauge.limit_ns = round(limit_s * S)

    def picture(self, now_s: float, *, waited_s: float = 0.0, waiting: int | None = 0) -> None:
        self.waiting, self.began_s = waiting, EPOCH / S + now_s - waited_s
        self.gauge.add(1000, EPOCH + round(now_s * S))


def test_the_least_is_what_has_arrived_by_how_fast_it_arrives() -> None:
    """25 pictures a second come; 15 are read."""
    queue = Queue(limit_s=100)
    for i in range(150):
        now_s, waits = i / 15, int(i / 15 * 25) - i
        queue.picture(now_s, waiting=waits * 1000)
        if i > 30:
            assert queue.gauge._least_ns / S <= now_s - i / 25 + 0.15
    assert queue.gauge.behind_s == pytest.approx(3.6, abs=0.5), "the shortest wait of the last second or so"
    assert queue.gauge.wait_ns / S == pytest.approx(149 / 15, abs=0.01), "the most that it can be"


def test_a_reader_that_has_to_wait_is_in_time() -> None:
    queue = Queue()
    for i in range(250):
        queue.picture(i / 25, waited_s=0.03)
        assert queue.gauge.wait_ns == 0
    assert not queue.gauge.late
    assert queue.gauge.behind_s == 0


def test_a_read_that_takes_long_while_a_picture_waits_is_no_wait() -> None:
    """A machine that is busy."""
    queue = Queue()
    for i in range(100):
        queue.picture(i / 25, waited_s=0.03, waiting=1500)
    assert queue.gauge.late


def test_bunches_are_in_time() -> None:
    queue = Queue(limit_s=0.5)
    for i in range(500):
        queue.picture(i // 5 * 0.2 + i % 5 * 0.001, waited_s=0 if i % 5 else 0.19, waiting=4000 - i % 5 * 1000)
        assert not queue.gauge.late
    assert queue.gauge.behind_s == 0


def test_it_is_late_once_it_can_be_older_than_the_limit() -> None:
    queue = Queue(known=False)
    queue.picture(0, waiting=None)
    late = []
    for i in range(100):
        queue.picture(i / 10, waiting=None)
        late.append(queue.gauge.late)
    assert late.index(True) == 20
    assert queue.gauge.behind_s is None, "the kernel does not tell"
    queue.picture(10.1, waited_s=0.02, waiting=None)
    assert not queue.gauge.late


def test_a_sender_that_always_has_more_is_not_caught_up_with_for_ever() -> None:
    queue = Queue()
    for i in range(1000):
        queue.picture(i / 100, waiting=5000)
        if queue.gauge.late:
            queue.gauge.settle()
    assert not queue.gauge.fit
    assert not queue.gauge.late
    assert queue.gauge.behind_s is None


# --------------------------------------------------------------------------------------------------------- real inputs


class Reader:
    """Reads an input; the thread takes `slow_s` more for each frame."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.slow_s = 0.0
        self.source = AvSource(AvStreamSettings(id="s", url=url, **settings))
        self.count = 0
        self.latency_s = 0.0
        """Of the latest frame, by its own time of capture."""
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reader:
        self.source.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()
        self._thread.join(15)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for frame in self.source.frames():
                self.count += 1
                self.latency_s = (time.monotonic_ns() - frame.captured_ns) / 1e9
                time.sleep(self.slow_s)
        except SourceError:
            pass


def until(condition: Callable[[], bool], limit_s: float) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "not in time"
        time.sleep(0.02)


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


class Multipart:
    """A camera that sends motion JPEG, and waits where it cannot send."""

    def __init__(self, jpeg: bytes, fps: float) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/video"
        self.sent = 0
        self._jpeg, self._fps, self._over = jpeg, fps, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Multipart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.settimeout(5)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self._jpeg)}\r\n\r\n".encode()
            part = head + self._jpeg + b"\r\n"
            due = time.monotonic()
            while not self._over.wait(max(0.0, due - time.monotonic())):
                try:
                    connection.sendall(part)
                except OSError:
                    return
                self.sent += 1
                due += 1 / self._fps


@pytest.fixture
def multipart(camera: Camera) -> Iterator[Multipart]:
    # What follows the end of a JPEG belongs to nobody: large pictures fill buffers.
    with Multipart(camera.jpeg + bytes(20_000), 25) as sender:
        yield sender


def test_motion_jpeg_that_is_read_in_time(multipart: Multipart) -> None:
    with Reader(multipart.url) as reader:
        until(lambda: reader.count >= 75, 10)
        assert reader.source.behind_s is not None
        assert reader.source.behind_s < 0.1
        assert reader.source.overtaken == 0
        assert reader.latency_s < 0.2


def test_motion_jpeg_that_is_read_too_slowly_goes_on_with_the_newest_picture(multipart: Multipart) -> None:
    with Reader(multipart.url, max_behind_ms=500) as reader:
        until(lambda: reader.count >= 25, 10)
        reader.slow_s = 0.1
        until(lambda: reader.source.overtaken > 0, 10)
        time.sleep(3)
        on_their_way = multipart.sent - reader.count - reader.source.overtaken
        assert on_their_way < 25 * 2, "less than two seconds"
        reader.slow_s = 0.0
        until(lambda: (reader.source.behind_s or 0) < 0.1, 5)


def test_motion_jpeg_without_a_limit_is_only_told(multipart: Multipart) -> None:
    with Reader(multipart.url, max_behind_ms=0) as reader:
        until(lambda: reader.count >= 25, 10)
        reader.slow_s = 0.1
        until(lambda: (reader.source.behind_s or 0) >= 0.05, 10)
        time.sleep(3)
        true_s = (multipart.sent - reader.count) / 25
        assert (reader.source.behind_s or 0) <= true_s + 0.2, "at least so much"
        assert reader.source.overtaken == 0
