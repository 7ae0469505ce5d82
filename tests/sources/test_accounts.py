"""Every picture that was read is in the accounts, wherever it was held when its connection, its stream or the daemon
ended: published, dropped with a reason, skipped, or rejected by the decoder."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.sources import decoder as decoder_module
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.catch_up import CatchUp
from streamd.sources.decoder import Decoder
from streamd.sources.pacing import Pacer
from streamd.sources.packet_reader import PacketReader
from streamd.sources.process import ProcessSource
from streamd.sources.shared import Channel
from streamd.sources.slices import SliceJoiner, slice_at
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame
from tests.clips import write_clip
from tests.rtsp import rtsp_server
from tests.serving import HttpServing
from tests.sources.test_reading_slowly import Relay

FPS = 25
B_FRAMES = {"bf": "3", "b-adapt": "0", "g": "50", "sc_threshold": "0"}
PLAIN = {"tune": "zerolatency", "bf": "0", "g": "25", "keyint_min": "25"}


class Moment:
    """The end comes when pictures are held."""

    def __init__(self) -> None:
        self.end: Callable[[], None] = lambda: None
        self.armed = threading.Event()
        """Enough has been read."""
        self.held = 0
        """Pictures that were held then."""
        self._threads: list[threading.Thread] = []

    def look(self, held: int) -> None:
        """So many are held now."""
        if held and self.armed.is_set() and not self.held:
            self.held = held
            thread = threading.Thread(target=self.end)
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        while self.held and not self._threads:
            time.sleep(0.001)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def moment() -> Moment:
    return Moment()


class Truth:
    """The pictures that FFmpeg has passed on, whatever became of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pictures = 0
        demux = PacketReader._demux

        def watched(reader: PacketReader, wanted: Any) -> Iterator[Any]:
            frames, stream = reader._connection.settings.frames, reader._connection.stream
            for packet in demux(reader, wanted):
                if packet.stream is stream and packet.size and not _goes_on(packet):
                    self.pictures += frames == "all" or packet.is_keyframe
                yield packet

        monkeypatch.setattr(PacketReader, "_demux", watched)


def _goes_on(packet: Any) -> bool:
    """It is a further slice of a picture."""
    found = slice_at("h264", bytes(packet), 4 if bytes(packet)[:3] not in (b"\0\0\1", b"\0\0\0") else 0)
    return found is not None and not found[1]


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Truth:
    return Truth(monkeypatch)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")

    def noise(width: int, height: int, index: int, pix_fmt: str) -> av.VideoFrame:
        image = np.random.default_rng(index // 4).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
        return av.VideoFrame.from_ndarray(image.repeat(16, 0).repeat(16, 1), format="rgb24").reformat(format=pix_fmt)

    sliced = PLAIN | {"slices": "4", "g": "5", "keyint_min": "5"}
    kinds = {"plain": PLAIN, "b": B_FRAMES, "sliced": sliced}
    return {
        name: write_clip(folder / f"{name}.mp4", frames=500, fps=FPS, size=(192, 128), options=options, draw=noise)
        for name, options in kinds.items()
    }


class Stream:
    """A stream with its runner; its frames are taken out of the ring at the end."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.settings = AvStreamSettings(
            id="c", url=url, **{"read_timeout_s": 1.0, "max_behind_ms": 500, "loop": False, **settings}
        )
        self.metrics = StreamMetrics("c")
        self.slow_s = 0.0
        stream = self

        class SlowRing(Ring[Frame]):
            def put(self, item: Frame, timeout: float | None = None) -> None:
                item.picture = None  # type: ignore[assignment]
                super().put(item, timeout)
                if stream.slow_s:
                    time.sleep(stream.slow_s)

        self.ring = SlowRing(100_000)
        self.make: Callable[[], Any] = lambda: open_source(self.settings)
        self.runner = StreamRunner("c", lambda: self.make(), self.ring, self.metrics, lambda _: None, initial_s=60)

    def until(self, condition: Callable[[], bool], limit_s: float = 15.0) -> None:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < limit_s, "not in time"
            time.sleep(0.01)

    def over(self) -> None:
        """The connection has ended, or the stream."""
        self.until(lambda: self.runner.status.state not in ("CONNECTING", "LIVE") or self.runner.ended())
        self.runner.stop()
        assert self.runner.join(10)

    def add_up(self, truth: Truth) -> list[Frame]:
        """Checks the accounts. Returns the frames that were given out."""
        metrics, frames = self.metrics, []
        while (frame := self.ring.take()) is not None:
            frames.append(frame)
        assert metrics.received + metrics.skipped + metrics.corrupt == truth.pictures
        assert metrics.received == len(frames) + sum(metrics.dropped.values())
        numbers = [frame.seq for frame in frames]
        assert numbers == sorted(set(numbers))
        assert self.runner._pump.seq == metrics.received
        return frames


def the_end(how: str, camera: FakeCamera, stream: Stream) -> Callable[[], None]:
    ends: dict[str, Callable[[], None]] = {
        "cut": camera.cut,  # a reset
        "hung up": lambda: camera.cut(orderly=True),
        "silent": lambda: camera.set("silence:0"),
        "stopped": stream.runner.stop,
        "failed stage": stream.ring.close,
    }
    return ends[how]


ends = pytest.mark.parametrize("how", ["cut", "hung up", "silent", "stopped", "failed stage"])
GIVEN_OUT = ("cut", "hung up", "silent")
"""What was read before such an end is decoded and given out."""


@contextlib.contextmanager
def playing(
    clip: Path, how: str, moment: Moment, *, relayed: bool = False, speed: float = 1, enough: int = 20, **settings: Any
) -> Iterator[Any]:
    """A camera and its stream, until the end."""
    with contextlib.ExitStack() as stack:
        camera = stack.enter_context(FakeCamera(Clip(clip), report_s=0, speed=speed))
        relay = stack.enter_context(Relay(camera.port)) if relayed else None
        url = camera.url if relay is None else camera.url.replace(str(camera.port), str(relay.port))
        stream = Stream(url, **settings)
        moment.end = the_end(how, camera, stream)
        stream.runner.start()
        stream.until(lambda: stream.metrics.received >= enough)
        yield stream, relay
        stream.until(lambda: moment.held > 0)
        moment.join()
        stream.over()


def watch(monkeypatch: pytest.MonkeyPatch, moment: Moment, step: str, held: str) -> None:
    """The moment looks at what is held after each such step of catching up, once that is three packets."""
    real = getattr(CatchUp, step)

    def watched(catch_up: CatchUp, arrived: Any) -> Any:
        given = real(catch_up, arrived)
        count = len(getattr(catch_up, held))
        moment.look(count if count >= 3 else 0)
        return given

    monkeypatch.setattr(CatchUp, step, watched)


@ends
def test_packets_that_an_examination_holds(
    clips: dict[str, Path], how: str, moment: Moment, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay begins to buffer: everything is late from now on. It takes a moment to find out that nothing waits."""
    watch(monkeypatch, moment, "_probe", "_held")
    with playing(clips["plain"], how, moment, relayed=True) as (stream, relay):
        moment.armed.set()
        relay.delay_s = 0.9
    assert moment.held >= 3
    stream.add_up(truth)
    assert stream.metrics.dropped.get("behind", 0) == 0
    if how in GIVEN_OUT:
        assert not stream.metrics.dropped
    else:
        assert stream.metrics.dropped["shutdown"] >= moment.held


@ends
def test_packets_kept_while_a_stream_catches_up(
    clips: dict[str, Path], how: str, moment: Moment, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(monkeypatch, moment, "_skip", "_kept")
    with playing(clips["plain"], how, moment) as (stream, _):
        moment.armed.set()
        stream.slow_s = 0.15
    stream.add_up(truth)
    assert stream.metrics.dropped["behind"] > 0


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        *(({}, how) for how in ("cut", "hung up", "silent", "stopped", "failed stage")),
        *(
            (settings, how)
            for settings in ({"max_fps": 10}, {"max_fps": 1}, {"frames": "key"}, {"decoder_threads": 3})
            for how in ("cut", "stopped")
        ),
    ],
    ids=str,
)
def test_pictures_that_the_decoder_keeps_back(
    clips: dict[str, Path], how: str, settings: dict[str, Any], moment: Moment, truth: Truth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    read = PacketReader.packets

    def watched(reader: PacketReader) -> Iterator[Any]:
        for number, packet in enumerate(read(reader)):
            moment.look(number > 60)
            yield packet

    monkeypatch.setattr(PacketReader, "packets", watched)
    few = settings.get("frames") == "key" or settings.get("max_fps") == 1
    with playing(clips["b"], how, moment, speed=4, enough=1 if few else 20, **settings) as (stream, _):
        moment.armed.set()
    frames = stream.add_up(truth)
    if how in GIVEN_OUT:
        assert not stream.metrics.dropped
        stamps = [frame.pts_ns for frame in frames if frame.pts_ns is not None]
        assert stamps == sorted(stamps)


@pytest.mark.parametrize("how", ["killed", "stopped", "failed stage"])
def test_slices_of_a_picture_that_may_go_on(
    clips: dict[str, Path], how: str, moment: Moment, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GStreamer's server puts parameter sets in front of every slice of a key frame."""
    put = SliceJoiner.put

    def watched(joiner: SliceJoiner, packet: Any) -> Any:
        given = put(joiner, packet)
        moment.look(len(joiner._pieces))
        return given

    monkeypatch.setattr(SliceJoiner, "put", watched)
    with rtsp_server(f"cam={clips['sliced']}:h264") as server:
        stream = Stream(server.url("cam"))
        moment.end = {"killed": server.kill, "stopped": stream.runner.stop, "failed stage": stream.ring.close}[how]
        stream.runner.start()
        stream.until(lambda: stream.metrics.received >= 20)
        moment.armed.set()
        stream.until(lambda: moment.held > 0)
        moment.join()
        stream.over()
    stream.add_up(truth)
    if how == "killed":  # in the middle of a picture, perhaps
        assert set(stream.metrics.dropped) <= {"quarantine"}


@pytest.mark.parametrize("how", ["killed", "stopped", "failed stage"])
def test_gstreamer_with_b_frames(clips: dict[str, Path], how: str, truth: Truth) -> None:
    with rtsp_server(f"cam={clips['b']}:h264") as server:
        stream = Stream(server.url("cam"))
        stream.runner.start()
        stream.until(lambda: stream.metrics.received >= 60)
        {"killed": server.kill, "stopped": stream.runner.stop, "failed stage": stream.ring.close}[how]()
        stream.over()
    stream.add_up(truth)


@ends
def test_damaged_pictures(clips: dict[str, Path], how: str, moment: Moment, truth: Truth) -> None:
    with FakeCamera(Clip(clips["plain"]), "truncate:0.05", report_s=0, speed=4) as camera:
        stream = Stream(camera.url)
        stream.runner.start()
        stream.until(lambda: stream.metrics.dropped.get("quarantine", 0) >= 20)
        the_end(how, camera, stream)()
        stream.over()
    stream.add_up(truth)


def test_the_picture_that_a_paced_file_waits_for(
    clips: dict[str, Path], moment: Moment, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = Pacer.due

    def watched(pacer: Pacer, *args: Any) -> int:
        at = due(pacer, *args)
        moment.look(1)
        return at

    monkeypatch.setattr(Pacer, "due", watched)
    stream = Stream(str(clips["b"]), max_behind_ms=None, read_timeout_s=5)
    moment.end = stream.runner.stop
    stream.runner.start()
    stream.until(lambda: stream.metrics.received >= 10)
    moment.armed.set()
    stream.over()
    moment.join()
    assert moment.held
    stream.add_up(truth)


class Server(HttpServing):
    """Sends a part of a file over HTTP/1.0, without a length, and hangs up."""

    def __init__(self, body: bytes) -> None:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        super().__init__(Answer)
        self.url += "/a.ts"


def test_a_file_whose_server_does_not_say_where_it_ends(tmp_path: Path, truth: Truth) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=100, options=B_FRAMES)
    with Server(clip.read_bytes()) as server:
        stream = Stream(server.url, pace="asap", max_behind_ms=None)
        stream.runner.start()
        stream.over()
    frames = stream.add_up(truth)
    assert len(frames) == truth.pictures >= 99


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_a_file_that_is_cut_off(tmp_path: Path, suffix: str, truth: Truth) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if suffix == "mp4" else {}
    gops = B_FRAMES | {"g": "10"}
    clip = write_clip(tmp_path / f"a.{suffix}", frames=100, options=gops, container_options=options)
    clip.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * 0.7)])
    stream = Stream(str(clip), pace="asap", max_behind_ms=None)
    stream.runner.start()
    stream.over()
    frames = stream.add_up(truth)
    assert len(frames) + stream.metrics.corrupt == truth.pictures > 50


class Child:
    """The decoder process of a stream as a thread of this one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoder_module, "os", SimpleNamespace(**{**vars(os), "_exit": lambda status: sys.exit()}))
        self.pid, self.returncode = 0, 0
        self.threads: list[threading.Thread] = []

    def start(self, source: ProcessSource) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        source._channel, source._process = Channel(ours), self  # type: ignore[assignment]
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        child = Decoder(theirs, source._settings)

        def run() -> None:
            child.run()
            theirs.shutdown(socket.SHUT_RDWR)

        def watch() -> None:
            with contextlib.suppress(SystemExit):
                child.watch()

        self.threads = [threading.Thread(target=run), threading.Thread(target=watch)]
        for thread in self.threads:
            thread.start()

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def kill(self) -> None: ...


@ends
@pytest.mark.parametrize("ring_policy", ["drop_oldest", "block"])
def test_a_decoder_process(
    clips: dict[str, Path], how: str, ring_policy: str, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures on their way from it are counted, too, and those for which there was no buffer."""
    child = Child(monkeypatch)
    monkeypatch.setattr(ProcessSource, "_start", lambda source: child.start(source))
    with FakeCamera(Clip(clips["b"]), report_s=0, speed=4) as camera:
        stream = Stream(camera.url, isolation="process", ring=2, max_behind_ms=0)
        stream.runner.start()
        stream.until(lambda: stream.metrics.received >= 30)
        if ring_policy == "block":
            stream.slow_s = 0.05  # so that pictures wait between both
            time.sleep(0.5)
        the_end(how, camera, stream)()
        stream.over()
    for thread in child.threads:
        thread.join(10)
        assert not thread.is_alive()
    stream.add_up(truth)


def test_what_is_read_is_given_out_before_the_error(clips: dict[str, Path], truth: Truth) -> None:
    with FakeCamera(Clip(clips["b"]), "hangup:40", report_s=0) as camera:
        source = AvSource(AvStreamSettings(id="s", url=camera.url))
        source.open()
        frames: list[Frame] = []
        with pytest.raises(SourceError, match="closed the connection") as caught:
            frames.extend(source.frames())
    assert caught.value.reason == "disconnected"
    assert len(frames) == truth.pictures == 40
