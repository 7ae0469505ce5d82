"""The camera's clock: unit rules, and real cameras whose sender reports are right, wrong, stepping or absent."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rtp_clip import CLOCK

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.clock import WINDOW_NS, StreamClock
from streamd.types import Frame
from tests.clips import write_clip
from tests.conftest import shared
from tests.lossy_camera import camera
from tests.rtsp import rtsp_server

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND


class Packet:
    """A packet as far as the clock looks: its time stamp and its producer reference time."""

    def __init__(self, pts: int | None, wall_ns: int | None) -> None:
        self.pts = pts
        self._side = b"" if wall_ns is None else struct.pack("=qi", wall_ns // 1000, 24)

    def get_sidedata(self, kind: str) -> bytes:
        assert kind == "prft"
        return self._side


def stamp(clock: StreamClock, pts: int | None, wall_ns: int | None, arrival_ns: int) -> tuple[int, str]:
    packet: Any = Packet(pts, wall_ns)
    return clock.stamp(packet, arrival_ns, SECOND / CLOCK)


def test_arrival_until_the_camera_reports_and_then_the_camera() -> None:
    clock = StreamClock(10)
    assert stamp(clock, 0, None, NOW) == (NOW, "arrival")
    # FFmpeg gives the packet before the first report the time of the one after it: it is not believed.
    assert stamp(clock, 3600, NOW - SECOND, NOW) == (NOW, "arrival")
    assert clock.offset_s is None
    assert stamp(clock, 7200, NOW - SECOND, NOW) == (NOW - SECOND, "camera")
    assert clock.offset_s == pytest.approx(-1)
    assert stamp(clock, None, NOW - SECOND, NOW) == (NOW - SECOND, "camera")
    assert clock.jumps == 0


@pytest.mark.parametrize(
    ("wall_ns", "bound", "believed"),
    [
        (NOW - 9 * SECOND, 10, True),
        (NOW + 9 * SECOND, 10, True),
        (NOW - 11 * SECOND, 10, False),
        (NOW + 3600 * SECOND, 10, False),
        (NOW + 3600 * SECOND, 4000, True),
        (NOW, 0, True),
        (NOW - 1_000_000, 0, False),
        (0, 10, False),
        (-2_208_988_800 * SECOND, 10, False),
    ],
    ids=["late", "early", "too late", "an hour off", "wide bound", "exact", "never", "1970", "1900"],
)
def test_an_absurd_clock_is_reported_and_not_believed(wall_ns: int, bound: float, believed: bool) -> None:
    clock = StreamClock(bound)
    stamp(clock, 0, wall_ns, NOW)
    assert stamp(clock, 0, wall_ns, NOW) == ((wall_ns, "camera") if believed else (NOW, "arrival"))
    assert clock.offset_s == pytest.approx((wall_ns - NOW) / SECOND)


def test_a_step_of_the_cameras_wall_clock_is_one_jump() -> None:
    clock = StreamClock(10)
    for i in range(50):
        stamp(clock, i * 3600, NOW + i * 40_000_000 + (5 * SECOND if i >= 25 else 0), NOW + i * 40_000_000)
    assert clock.jumps == 1
    assert clock.offset_s == pytest.approx(5)


def test_the_offset_is_smoothed() -> None:
    clock = StreamClock(10)
    for i in range(200):
        late_ns = 20_000_000 if i % 2 else 60_000_000
        stamp(clock, i * 3600, NOW + i * 40_000_000, NOW + i * 40_000_000 + late_ns)
    assert clock.offset_s == pytest.approx(-0.04, abs=0.002)


def ticks(clock: StreamClock, stamps: list[float], arrivals: list[float] | None = None) -> int:
    """Jumps seen in pictures at `stamps` seconds that arrive at `arrivals` (25 a second)."""
    for i, at in enumerate(stamps):
        arrival = i / 25 if arrivals is None else arrivals[i]
        clock.tick(int(at * SECOND), int(arrival * SECOND) + 10**15)
    return clock.jumps


def regular(count: int, start: float = 0.0) -> list[float]:
    return [start + i / 25 for i in range(count)]


def test_jumps_forward_back_and_repeats_are_counted_once_each() -> None:
    assert ticks(StreamClock(), regular(100)) == 0
    assert ticks(StreamClock(), regular(50) + regular(50, 3600)) == 1
    assert ticks(StreamClock(), regular(50, 3600) + regular(50)) == 1
    assert ticks(StreamClock(), [0, 0.04, 0.04, *regular(70, 0.08), 2.84, 2.88]) == 2
    # Pictures of a B pyramid come out in another order than they were stamped in.
    assert ticks(StreamClock(), [0, 0.04, 10.08, 0.12, 10.16, 0.2, 10.24, 10.28, 10.32]) == 1


def test_a_slow_network_is_no_jump() -> None:
    # Probing hands out two seconds at once; later three seconds arrive late, in one burst.
    assert ticks(StreamClock(), regular(100), [0.0] * 50 + regular(50, 0.04)) == 0
    late = [max(a, 7.0) if 4 <= a < 7 else a for a in regular(250)]
    assert ticks(StreamClock(), regular(250), late) == 0
    # A camera that stalls for five seconds, and one that drops what it could not send.
    assert ticks(StreamClock(), regular(50) + regular(50, 7), regular(50) + regular(50, 7)) == 0
    assert ticks(StreamClock(), regular(50) + regular(50, 5), regular(50) + [7.0] * 50) == 0


@pytest.mark.parametrize("gain", [50e-6, -200e-6, 0.0])
def test_drift_is_found_under_jitter(gain: float) -> None:
    clock = StreamClock()
    minutes = 20
    for i in range(minutes * 60 * 5):
        jitter = (i * 7919 % 101) / 1000
        clock.tick(int(i / 5 * (1 + gain) * SECOND), int((i / 5 + jitter) * SECOND))
        if i / 5 < WINDOW_NS / SECOND:
            assert clock.drift is None
    assert clock.drift == pytest.approx(gain, abs=5e-6)
    assert clock.jumps == 0


def watch(url: str, count: int, *, believed: int = 1 << 30, **settings: Any) -> tuple[AvSource, list[Frame]]:
    """The first `count` frames, or fewer where `believed` of them had the camera's time before."""
    source = AvSource(AvStreamSettings(id="s", url=url, read_timeout_s=3, **settings))
    source.open()

    def until_it_ends() -> Iterator[Frame]:
        try:
            yield from source.frames()
        except SourceError:
            return

    seen: list[Frame] = []
    for frame in itertools.islice(until_it_ends(), count):
        seen.append(frame)
        believed -= frame.clock == "camera"
        if believed < 0:
            break
    source.close()
    for frame in seen:
        frame.picture = seen[0].picture  # lets the decoder's pictures go
    return source, seen


def is_sane(frames: list[Frame]) -> None:
    """Latencies are never negative, and no time is absurd, whatever the camera's clocks did."""
    for frame in frames:
        assert 0 <= frame.decoded_ns - frame.captured_ns < 10 * SECOND
        assert frame.captured_ns <= time.monotonic_ns()
        assert abs(frame.wall_ns - time.time_ns()) < 60 * SECOND


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each picture fits one packet, the case in which FFmpeg's parser could mix up neighbours' times."""
    path = tmp_path_factory.mktemp("clips") / "small.mp4"
    return write_clip(path, frames=150, gop=25, options={"bf": "0", "g": "25", "keyint_min": "25"})


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_captured_at_is_the_cameras_to_the_microsecond(small: Path, transport: str) -> None:
    """A camera three seconds behind: every picture after the first report has its own time by that clock."""
    started: list[float] = []

    def wall(i: int, true: float) -> float:
        started.append(true - i / 25)
        return true - 3

    with camera(small, speed=2, wall=wall) as cam:
        source, frames = watch(cam.url, 120, transport=transport)
    is_sane(frames)
    by_camera = [f for f in frames if f.clock == "camera"]
    assert len(by_camera) > 60
    assert [f.clock for f in frames] == ["arrival"] * (len(frames) - len(by_camera)) + ["camera"] * len(by_camera)
    for frame in by_camera:
        assert frame.pts_ns is not None
        assert frame.wall_ns / 1e9 == pytest.approx(started[0] - 3 + frame.pts_ns / 1e9, abs=2e-5)
    assert source.clock.offset_s is not None
    assert source.clock.jumps == 0


def test_a_camera_with_b_frames_behind_gstreamer() -> None:
    """Another server: GStreamer's own sender reports carry this machine's time."""
    with rtsp_server(f"cam={shared('videos/rknn_people-walking.mp4')}:h264") as server:
        source, frames = watch(server.url("cam"), 240, believed=30)  # the first report comes within five seconds
    is_sane(frames)
    by_camera = [f for f in frames if f.clock == "camera"]
    assert len(by_camera) > 20
    # The first ones lack neighbours: reports come in coding order.
    spacing = {round((b.wall_ns - a.wall_ns) / 1e6) for a, b in itertools.pairwise(by_camera[4:])}
    assert spacing <= {33, 34}
    assert source.clock.offset_s == pytest.approx(0, abs=1)


@pytest.mark.parametrize(
    ("wall", "offset"),
    [(lambda i, true: i / 25, -1.7e9), (lambda i, true: true + 3600, 3600.0)],
    ids=["1970", "an hour ahead"],
)
def test_an_absurd_camera_falls_back_to_arrival(small: Path, wall: Any, offset: float) -> None:
    with camera(small, speed=4, wall=wall) as cam:
        source, frames = watch(cam.url, 120)
    is_sane(frames)
    assert {f.clock for f in frames} == {"arrival"}
    assert source.clock.offset_s == pytest.approx(offset, rel=0.1)


def test_a_camera_without_reports(small: Path) -> None:
    with camera(small, speed=4, report_every=0) as cam:
        source, frames = watch(cam.url, 60)
    is_sane(frames)
    assert {f.clock for f in frames} == {"arrival"}
    assert source.clock.offset_s is None


def test_a_camera_that_sets_its_clock_while_streaming(small: Path) -> None:
    with camera(small, speed=2, wall=lambda i, true: true + (7200 if i < 70 else 0)) as cam:
        source, frames = watch(cam.url, 130)
    is_sane(frames)
    assert frames[-1].clock == "camera"
    assert source.clock.jumps == 1


@pytest.mark.parametrize(
    ("stamp", "jumps"),
    [
        (lambda i, true: true + (1_000 * CLOCK if i >= 70 else 0), 1),
        (lambda i, true: true + (0 if i >= 70 else 1_000 * CLOCK), 1),
        (lambda i, true: true - (CLOCK // 25 if i % 20 == 13 else 0), None),
        (lambda i, true: true + (1 << 32) - 40 * CLOCK // 25, 0),
    ],
    ids=["forward", "backward", "repeats", "wraps"],
)
def test_time_stamps_that_jump(small: Path, stamp: Any, jumps: int | None) -> None:
    with camera(small, speed=4, stamp=stamp) as cam:
        source, frames = watch(cam.url, 130)
    assert len(frames) >= 100
    is_sane(frames)
    assert source.clock.jumps == jumps if jumps is not None else source.clock.jumps >= 1
    assert not any(f.quarantined for f in frames)
    assert source.lost == 0


def test_what_it_costs_a_frame() -> None:
    """Microseconds. The bound is wide for loaded machines."""
    import av

    clock, packet = StreamClock(10), av.Packet(b"x" * 1000)
    rounds = 20_000
    started = time.perf_counter()
    for i in range(rounds):
        clock.stamp(packet, NOW, 11111.1)
        clock.tick(i * 40_000_000, i * 40_000_000)
    assert (time.perf_counter() - started) / rounds < 100e-6
