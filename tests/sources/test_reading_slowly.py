"""Real cameras over TCP, read by something that is too slow for them, or that only seems to be."""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.flow.contracts import Source
from streamd.flow.packets import PacketRing
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.sources import admission, av_connection, open_source
from streamd.sources.admission import Gate
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_open import WHOLE, Part, open_container
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame
from tests.clips import write_clip
from tests.rtsp import rtsp_server

S = 1_000_000_000
GOP, FPS = 25, 25


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every picture differs from the last ones, and is predicted from the one before. Large enough for buffers to be
    full after a few seconds."""
    path = tmp_path_factory.mktemp("clip") / "a.mp4"

    def draw(width: int, height: int, index: int, pix_fmt: str) -> av.VideoFrame:
        image = np.random.default_rng(index // 4).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
        image[:, : width // 32] = (40 + 7 * index) % 200
        return av.VideoFrame.from_ndarray(image.repeat(16, 0).repeat(16, 1), format="rgb24").reformat(format=pix_fmt)

    options = {"tune": "zerolatency", "bf": "0", "g": str(GOP), "keyint_min": str(GOP)}
    return write_clip(path, frames=8 * GOP, fps=FPS, gop=GOP, size=(192, 128), options=options, draw=draw)


def luma(native: Any) -> Any:
    plane = native.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : native.width].copy()


class Reader:
    """Reads a camera; the thread takes `self.slow_s` more for each frame."""

    def __init__(self, url: str, *, slow_s: float = 0.0, look: bool = False, **settings: Any) -> None:
        self.slow_s = slow_s
        self.settings = AvStreamSettings(id="c", url=url, **{"max_behind_ms": 1000, **settings})
        self.packets = PacketRing(30)
        self.source: Source = open_source(self.settings, packets=self.packets)
        self.frames: list[tuple[float, Frame]] = []
        """With the time at which each came."""
        self.lumas: list[Any] = []
        self.error: SourceError | None = None
        self._look = look

    def __enter__(self) -> Reader:
        self.source.open()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        try:
            for frame in self.source.frames():
                if self._look:
                    self.lumas.append(luma(frame.picture.native))
                frame.picture = None  # type: ignore[assignment]
                self.frames.append((time.monotonic(), frame))
                time.sleep(self.slow_s)
        except SourceError as error:
            self.error = error

    def ages(self, since_s: float = 0.0, until_s: float = 1e9) -> list[float]:
        """Seconds from the capture of each frame to its coming, by its time stamp: the youngest one has none."""
        least = min(at - (frame.pts_ns or 0) / S for at, frame in self.frames)
        return [at - (frame.pts_ns or 0) / S - least for at, frame in self.frames if since_s <= at < until_s]

    def is_truthful(self) -> None:
        """Frames say that they were captured when they were."""
        least = min(frame.captured_ns - (frame.pts_ns or 0) for _, frame in self.frames)
        off = [(frame.captured_ns - (frame.pts_ns or 0) - least) / S for _, frame in self.frames]
        assert max(off) < 0.5
        times = [frame.captured_ns for _, frame in self.frames]
        assert all(a < b for a, b in itertools.pairwise(times))
        assert all(abs((frame.wall_ns - frame.captured_ns) - (time.time_ns() - time.monotonic_ns())) < S // 5
                   for _, frame in self.frames)  # fmt: skip


def until(condition: Callable[[], bool], limit_s: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "not in time"
        time.sleep(0.02)
    return time.monotonic() - began


def behind(reader: Reader) -> float:
    return reader.source.behind_s or 0.0


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose decoders are in fact FFmpeg's own."""

    def software(settings: AvStreamSettings, *, live: bool, device: int | None, part: Part = WHOLE) -> Any:
        return open_container(settings, live=live, device=None, part=part)

    monkeypatch.setattr(admission, "device_gate", lambda ordinal: Gate(4))
    monkeypatch.setattr(av_connection, "open_container", software)


@pytest.mark.parametrize(("decode", "threads"), [("software", 1), ("software", 3), ("nvdec", 1)])
def test_the_newest_pictures_are_served_whole_and_all_again_once_there_is_time(
    clip: Path, hardware: None, decode: str, threads: int
) -> None:
    truth = [luma(frame) for frame in av.open(str(clip)).decode(video=0)]
    settings: dict[str, Any] = {"decode": decode, "decoder_threads": threads}
    with FakeCamera(Clip(clip), report_s=0) as camera, Reader(camera.url, look=True, **settings) as reader:
        until(lambda: len(reader.frames) > 20, 5)
        began, reader.slow_s = time.monotonic(), 0.07
        until(lambda: reader.source.overtaken > 0, 8)
        time.sleep(6)
        ended, reader.slow_s, camera_pictures = time.monotonic(), 0.0, camera.pictures
        slow = [frame for at, frame in reader.frames if began <= at < ended]
        assert max(reader.ages(began, ended)) < 2.3
        assert camera_pictures - len(reader.frames) - reader.source.overtaken < 60, "on their way"
        assert len(slow) > 0.7 * (ended - began) / 0.08, "as many as there is time for"
        until(lambda: behind(reader) < 0.1, 5)
        count, sent, overtaken = len(reader.frames), camera.pictures, reader.source.overtaken
        time.sleep(2)
        # A loaded machine sleeps longer, and the camera with it.
        assert len(reader.frames) - count == pytest.approx(camera.pictures - sent, abs=6)
        assert camera.pictures - sent > 40
        assert reader.source.overtaken == overtaken
        assert max(reader.ages(time.monotonic() - 2)) < 0.4
    reader.is_truthful()
    assert reader.source.corrupt == 0
    shown = [next((i for i, p in enumerate(truth) if np.array_equal(p, one)), None) for one in reader.lumas]
    assert None not in shown, "no picture is damaged"
    assert not any(frame.quarantined for _, frame in reader.frames)


def test_every_frame_is_numbered_served_or_dropped_as_behind(clip: Path) -> None:
    metrics = StreamMetrics("c")
    with FakeCamera(Clip(clip), report_s=0) as camera:
        slow = threading.Event()
        settings = AvStreamSettings(id="c", url=camera.url, max_behind_ms=500)

        class SlowRing(Ring[Frame]):
            def put(self, item: Frame, timeout: float | None = None) -> None:
                item.picture = None  # type: ignore[assignment]
                super().put(item, timeout)
                if slow.is_set():
                    time.sleep(0.1)

        ring = SlowRing(1000)
        runner = StreamRunner("c", lambda: open_source(settings), ring, metrics, lambda _: None)
        runner.start()
        until(lambda: metrics.received > 10, 5)
        slow.set()
        until(lambda: metrics.dropped.get("behind", 0) > 20, 10)
        runner.watch()
        assert metrics.behind_s is not None
        runner.stop()
        assert runner.join(10)
        runner.watch()
        assert metrics.behind_s is None
    frames: list[Frame] = []
    while (frame := ring.take()) is not None:
        frames.append(frame)
    dropped = metrics.dropped["behind"]
    assert metrics.received == len(frames) + dropped + metrics.dropped.get("shutdown", 0)
    numbers = [frame.seq for frame in frames]
    assert numbers == sorted(set(numbers))
    gaps = sum(b - a - 1 for a, b in itertools.pairwise(numbers))
    assert gaps == dropped
    first, last = frames[0], frames[-1]
    assert last.seq - first.seq == pytest.approx(((last.pts_ns or 0) - (first.pts_ns or 0)) / S * FPS, abs=1)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_decoder_process_tells_the_same(clip: Path, isolation: str) -> None:
    with (
        FakeCamera(Clip(clip), report_s=0) as camera,
        Reader(camera.url, slow_s=0.1, isolation=isolation, ring=2) as reader,
    ):
        until(lambda: behind(reader) > 0.5, 15)
        until(lambda: reader.source.overtaken > 20, 15)
        changed = reader.settings.model_copy(update={"max_behind_ms": 0})
        reader.source.adapt(changed)
        time.sleep(1)
        overtaken = reader.source.overtaken
        until(lambda: behind(reader) > 1.5, 15)
        assert reader.source.overtaken == overtaken, "turned off"
        reader.source.adapt(reader.settings)
        until(lambda: reader.source.overtaken > overtaken, 10)


def test_without_a_limit_nothing_is_left_out(clip: Path) -> None:
    with FakeCamera(Clip(clip), report_s=0) as camera, Reader(camera.url, max_behind_ms=0) as reader:
        until(lambda: len(reader.frames) > 20, 5)
        reader.slow_s = 0.1
        until(lambda: behind(reader) > 2.5, 12)
        assert reader.source.overtaken == 0
        assert max(reader.ages()) == pytest.approx(behind(reader), abs=1.2)
        reader.slow_s = 0.0
        until(lambda: behind(reader) < 0.1, 5)
        stamps = [round((frame.pts_ns or 0) / S * FPS) for _, frame in reader.frames]
        assert stamps == list(range(stamps[0], stamps[0] + len(stamps)))
    reader.is_truthful()


def _frames(reader: Reader, seconds: float, fps: float) -> None:
    """The reader keeps up for `seconds`."""
    count, overtaken = len(reader.frames), reader.source.overtaken
    worst, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        worst = max(worst, behind(reader))
        time.sleep(0.05)
    assert worst < 0.3
    assert len(reader.frames) - count == pytest.approx(seconds * fps, rel=0.15)
    assert reader.source.overtaken == overtaken


@pytest.mark.parametrize(
    ("fault", "fps"),
    [("none", 25), ("half_rate", 12.5), ("burst:0.4", 25), ("forward:10", 25), ("back:10", 25), ("repeat:0.3", 25)],
)
def test_a_camera_that_is_odd_is_not_read_slowly(clip: Path, fault: str, fps: float) -> None:
    with FakeCamera(Clip(clip), fault, speed=1.0003) as camera, Reader(camera.url) as reader:
        until(lambda: len(reader.frames) > 5, 5)
        _frames(reader, 6, fps)


def test_a_camera_that_stalls_and_sends_fresh_pictures_afterwards(clip: Path) -> None:
    with FakeCamera(Clip(clip)) as camera, Reader(camera.url) as reader:
        until(lambda: len(reader.frames) > 20, 5)
        camera.set("silence:0")
        time.sleep(2.5)
        camera.set("none")
        _frames(reader, 2, 25)
        camera.set("half_rate")
        _frames(reader, 3, 12.5)


class Relay:
    """Passes on what a camera sends, `delay_s` later and all that has come in `bunch_s` at once."""

    def __init__(self, port: int) -> None:
        self.delay_s, self.bunch_s = 0.0, 0.0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._camera = port
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Relay:
        self._start(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        client, _ = self._server.accept()
        camera = socket.create_connection(("127.0.0.1", self._camera))
        came: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self._start(self._upstream, client, camera)
        self._start(self._deliver, came, client)
        with camera, contextlib.suppress(OSError):
            while data := camera.recv(1 << 16):
                came.put((time.monotonic(), data))
        came.put((0.0, b""))

    def _upstream(self, client: socket.socket, camera: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                camera.sendall(data)
        with contextlib.suppress(OSError):
            camera.shutdown(socket.SHUT_RDWR)

    def _deliver(self, came: queue.SimpleQueue[tuple[float, bytes]], client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while True:
                at, data = came.get()
                if not data:
                    return
                due = at + self.delay_s
                if self.bunch_s:
                    due = math.ceil(due / self.bunch_s) * self.bunch_s
                time.sleep(max(0.0, due - time.monotonic()))
                client.sendall(data)


def test_a_relay_that_begins_to_buffer(clip: Path) -> None:
    """Everything comes later than before from now on, and in bunches: nothing can be caught up with."""
    with FakeCamera(Clip(clip)) as camera, Relay(camera.port) as relay:
        with Reader(camera.url.replace(str(camera.port), str(relay.port))) as reader:
            until(lambda: len(reader.frames) > 20, 5)
            relay.delay_s, relay.bunch_s = 2.5, 0.4
            time.sleep(2.5)
            count, sent = len(reader.frames), camera.pictures
            time.sleep(5)
            sent = camera.pictures - sent
            assert len(reader.frames) - count == pytest.approx(sent, abs=30), "what was examined comes, too"
            assert sent > 100
            _frames(reader, 3, 25)
            assert reader.source.overtaken == 0
        stamps = [round((frame.pts_ns or 0) / S * FPS) for _, frame in reader.frames]
        assert stamps == list(range(stamps[0], stamps[0] + len(stamps)))


def test_a_new_connection_begins_anew(clip: Path) -> None:
    metrics, ring = StreamMetrics("c"), Ring[Frame](1000)
    with FakeCamera(Clip(clip), speed=0.9997) as camera:
        settings = AvStreamSettings(id="c", url=camera.url)
        runner = StreamRunner("c", lambda: open_source(settings), ring, metrics, lambda _: None, initial_s=0.01)
        runner.start()
        for connection in range(3):
            until(lambda n=connection: metrics.reconnects == n and metrics.received > 0, 10)  # type: ignore[misc]
            time.sleep(1)
            runner.watch()
            assert metrics.behind_s is not None
            assert metrics.behind_s < 0.3
            camera.cut()
        runner.stop()
        assert runner.join(10)
    assert "behind" not in metrics.dropped


def test_key_frames_alone_are_overtaken_where_only_they_are_decoded(clip: Path) -> None:
    with FakeCamera(Clip(clip), report_s=0) as camera, Reader(camera.url, frames="key") as reader:
        until(lambda: len(reader.frames) >= 2, 8)
        reader.slow_s = 3.0
        until(lambda: reader.source.overtaken >= 1, 25)
        reader.slow_s = 0.0
        time.sleep(2)
        stamps = [round((frame.pts_ns or 0) / S) for _, frame in reader.frames]
        assert stamps[-1] - stamps[0] + 1 == pytest.approx(len(stamps) + reader.source.overtaken, abs=1)


@pytest.fixture(scope="module")
def gstreamer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another camera: GStreamer's server, with B-frames."""
    options = {"bf": "2", "g": "50", "keyint_min": "50", "sc_threshold": "0"}
    path = write_clip(
        tmp_path_factory.mktemp("clip") / "b.mp4", frames=1000, fps=FPS, gop=50, size=(320, 240), options=options
    )
    with rtsp_server(f"cam={path}:h264") as server:
        yield server.url("cam")


def test_gstreamer_with_b_frames(gstreamer: str) -> None:
    with Reader(gstreamer) as reader:
        until(lambda: len(reader.frames) > 20, 10)
        _frames(reader, 2, 25)
        began, reader.slow_s = time.monotonic(), 0.08
        until(lambda: reader.source.overtaken > 0, 10)
        time.sleep(3)
        assert max(reader.ages(began)) < 2.6
        reader.slow_s = 0.0
        until(lambda: behind(reader) < 0.2, 5)
        time.sleep(2.5)  # a key frame comes every two seconds
        _frames(reader, 2, 25)
    assert reader.source.corrupt == 0
    assert not any(frame.quarantined for _, frame in reader.frames)
    stamps = [frame.pts_ns or 0 for _, frame in reader.frames]
    assert stamps == sorted(stamps)
