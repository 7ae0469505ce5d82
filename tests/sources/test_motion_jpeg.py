"""How late motion JPEG over HTTP is read, which has no clock to go by; and what is left out where it is too late."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from av import Packet

from streamd.sources.backlog import Arrived
from streamd.sources.catch_up import CatchUp
from streamd.sources.gauges import EXAM_BYTES, QueueGauge
from tests.sources.reader import Reader, until
from tests.sources.test_http_inputs import Camera, camera

__all__ = ["camera"]
S = 1_000_000_000
EPOCH = 1_000_000 * S


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


def examine(queue: Queue, from_s: float, pictures: list[tuple[float, float]], size: int = 1000) -> bool | None:
    """What reading without decoding shows.

    Args:
        queue: of a reader that was last in time at 0.
        from_s: when it begins.
        pictures: for how long each was waited for, and how long its read took, in seconds; what waits is there before.
        size: of a picture, bytes.
    """
    gauge, now_s = queue.gauge, from_s
    for waited_s, took_s in pictures:
        assert gauge.suspect
        if gauge.verdict is not None:
            break
        now_s += waited_s + took_s
        queue.waiting, queue.began_s = 0 if waited_s else 10 * size, EPOCH / S + now_s - waited_s - took_s
        gauge.add(size, EPOCH + round(now_s * S))
    return gauge.verdict


def late(fps: float, seconds: float = 2.0) -> Queue:
    """A reader that never has to wait, and decodes so many pictures a second."""
    queue = Queue()
    for i in range(round(fps * seconds) + 1):
        queue.picture(i / fps, waiting=5000)
    assert queue.gauge.late
    return queue


@pytest.mark.parametrize("fps", [0.7, 1, 5, 25, 100])
def test_a_camera_shows_its_pace_once_what_waited_is_read(fps: float) -> None:
    waiting = [(0.0, 0.0005)] * round(2 * fps)
    assert examine(late(5), 2.0, waiting + [(1 / fps, 0.0005)] * 60) is True


def test_a_camera_whose_pictures_come_in_bunches() -> None:
    bunch = [(0.19, 0.001), *[(0.0, 0.001)] * 3, (0.006, 0.001)]
    assert examine(late(5), 2.0, [(0.0, 0.001)] * 40 + bunch * 5) is True


@pytest.mark.parametrize("pause_s", [0.0, 0.15])
@pytest.mark.parametrize("decoded", [5, 60, 500])
def test_a_sender_that_is_as_fast_as_its_reader_has_no_pace(decoded: float, pause_s: float) -> None:
    """Also if its process pauses now and then."""
    queue = late(decoded)
    assert examine(queue, 2.0, [(0.0, 0.001)] * 10 + [(pause_s, 0.001)] + [(0.0, 0.001)] * 1000) is False
    queue.gauge.refute()
    assert not queue.gauge.late
    assert not queue.gauge.suspect


def test_an_examination_takes_neither_long_nor_much_memory() -> None:
    assert examine(late(5), 2.0, [(0.0, 0.02)] * 200) is False, "two seconds without having had to wait"
    big = late(5)
    assert examine(big, 2.0, [(0.0, 0.005)] * 200, size=1 << 20) is False
    assert big.gauge._exam_bytes <= EXAM_BYTES + (1 << 20)


def test_nothing_is_left_out_if_that_was_turned_off_meanwhile() -> None:
    queue = late(5)
    catch_up = CatchUp(2 * S, gauge=queue.gauge)
    found: list[Arrived] = []
    for i in range(12):
        packet = Packet(bytes(1000))
        packet.is_keyframe = True
        if i:
            queue.picture(2 + i / 25, waited_s=0.039)
        arrived = Arrived(packet, i, i, damaged=False)
        wanted = queue.gauge.late or queue.gauge.suspect or catch_up.active
        found.extend(catch_up.take(arrived) if wanted else [arrived])
        if i == 2:
            assert not found
            catch_up.change(None)
    assert [each.now_ns for each in found] == list(range(12))
    assert not catch_up.overtaken


def test_a_sender_with_a_pace_is_not_examined_again() -> None:
    queue = late(5)
    queue.gauge.confirm()
    queue.gauge.restart()
    for i in range(1, 20):
        queue.picture(2 + i / 5, waiting=5000)
        assert not queue.gauge.suspect
    assert queue.gauge.late


class Multipart:
    """Sends motion JPEG, and waits where it cannot send.

    Args:
        jpeg: each picture.
        fps: a camera's rate; inf: as fast as it is read.
        pictures: after so many, the connection ends.
    """

    def __init__(self, jpeg: bytes, fps: float, pictures: float = math.inf) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/video"
        self.sent = 0
        self._pictures = pictures
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
            while self.sent < self._pictures and not self._over.wait(max(0.0, due - time.monotonic())):
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


@pytest.mark.parametrize("first", [1, 25])
def test_motion_jpeg_that_is_read_too_slowly_goes_on_with_the_newest_picture(multipart: Multipart, first: int) -> None:
    """From the beginning, and from a second on."""
    with Reader(multipart.url, max_behind_ms=500) as reader:
        until(lambda: reader.count >= first, 10)
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


def test_a_recording_that_is_sent_as_fast_as_it_is_read_loses_nothing(camera: Camera) -> None:
    """It is never waited for, but no clock that one could be behind stands at its sender."""
    with Multipart(camera.jpeg + bytes(20_000), math.inf, 1500) as server, Reader(server.url) as reader:
        reader.slow_s = 0.006  # far longer than it takes to send one
        until(lambda: reader.count + reader.source.overtaken >= 1500, 60)
        assert reader.source.overtaken == 0
        assert reader.count == 1500
