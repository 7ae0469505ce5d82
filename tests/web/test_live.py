"""The newest picture and the motion JPEG, as other programs ask for them."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamd.telemetry.http import HttpServer
from streamd.web.guard import guard
from streamd.web.live import Live, jpeg_of
from streamd.web.page import record
from streamd.web.tap import Passed, Snapshot, Tap
from tests.frames import detections, frames


class Served:
    """Two streams, of which `gate` has pictures."""

    def __init__(self) -> None:
        self.tap = Tap()
        live = Live(self.tap, lambda names: frozenset(names) & {"gate", "yard"})
        self.http = HttpServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, {}), lambda: (True, {}))
        self.http.route("/snapshot/", guard(live.snapshot, login=False))
        self.http.route("/stream/", guard(live.stream, login=False))
        self.http.start()
        self.taken = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        frame = frames("gate", 1)[0]
        while not self._stop.wait(0.02):
            if "gate" in self.tap.wanted:
                self.taken += 1
                self.tap.take(frame, detections("gate", self.taken))

    def open(self, path: str) -> Any:
        return urllib.request.urlopen(f"http://127.0.0.1:{self.http.port}{path}", timeout=10)

    def code(self, path: str) -> int:
        try:
            with self.open(path) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.tap.close()
        self.http.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def test_a_snapshot_is_a_picture_of_the_stream(served: Served) -> None:
    with served.open("/snapshot/gate.jpg") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        image = cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (48, 64, 3)
    assert not served.tap.wanted, "nobody watches any more"


def test_however_often_it_is_asked_for_one_a_second_is_made(served: Served) -> None:
    began = time.monotonic()
    bodies = []
    for _ in range(20):
        with served.open("/snapshot/gate.jpg") as answer:
            bodies.append(answer.read())
    taken = served.taken
    assert len(bodies) == 20
    assert taken <= (time.monotonic() - began + 1) * 10 + 1, "not one for each"


def test_a_stream_that_does_not_exist_or_has_no_picture(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.web.live.WAIT_S", 0.1)
    assert served.code("/snapshot/yard.jpg") == 503
    assert [served.code(p) for p in ("/snapshot/x.jpg", "/snapshot/gate", "/snapshot/", "/stream/x.mjpg")] == [404] * 4
    assert [served.code(f"/stream/gate.mjpg?{q}") for q in ("fps=0", "fps=x", "fps=11", "width=x")] == [400] * 4


def test_motion_jpeg_is_one_picture_after_the_other(served: Served) -> None:
    with served.open("/stream/gate.mjpg?fps=10&width=64") as answer:
        kind, boundary = answer.headers["Content-Type"].split("; boundary=")
        assert kind == "multipart/x-mixed-replace"
        for _ in range(3):
            assert answer.readline() == f"--{boundary}\r\n".encode()
            assert answer.readline() == b"Content-Type: image/jpeg\r\n"
            size = int(answer.readline().split(b": ")[1])
            assert answer.readline() == b"\r\n"
            assert cv2.imdecode(np.frombuffer(answer.read(size), np.uint8), cv2.IMREAD_COLOR) is not None
            assert answer.readline() == b"\r\n"


def test_pictures_of_workers_are_the_same() -> None:
    made = Snapshot(1, detections("gate"), np.zeros((48, 64, 3), np.uint8))
    passed = Passed(2, "gate", record(made))
    assert jpeg_of(passed) == jpeg_of(made) != b""
