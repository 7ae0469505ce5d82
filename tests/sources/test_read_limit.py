"""The limit of a read is lifted while packets come, and is there when none do."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.sources import read_limit
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_open import open_container
from streamd.sources.av_source import AvSource
from streamd.sources.read_limit import TICK_S, ReadLimit
from tests.clips import write_clip

LIMIT_S = 2.0


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCamera]:
    clip = write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", frames=50)
    with FakeCamera(Clip(clip)) as found:
        yield found


def settings(camera: FakeCamera, **more: Any) -> AvStreamSettings:
    return AvStreamSettings(id="cam", url=camera.url, read_timeout_s=LIMIT_S, transport="tcp", **more)


def numbers(source: AvSource) -> tuple[float, float]:
    """PyAV's: when the read began, and its limit."""
    limit = source._connection.limit
    assert limit is not None, "this PyAV keeps the limit of a read elsewhere; see streamd/sources/read_limit.py"
    began, limit_s = limit._numbers
    return began, limit_s


def test_no_limit_while_packets_come(camera: FakeCamera) -> None:
    camera.set("none")
    source = AvSource(settings(camera))
    source.open()
    frames = source.frames()
    for _ in range(10):
        next(frames)
        began, limit_s = numbers(source)
        assert limit_s == -1
        assert 0 <= time.monotonic() - began < LIMIT_S
    frames.close()


@pytest.mark.parametrize(("fault", "reason"), [("silence:3", "timeout_read"), ("rtcp_only:3", "rtcp_only")])
def test_silence_ends_at_the_limit(camera: FakeCamera, fault: str, reason: str) -> None:
    camera.set(fault)
    source = AvSource(settings(camera))
    source.open()
    times = [time.monotonic()]
    with pytest.raises(SourceError) as caught:
        times += (time.monotonic() for _ in source.frames())
    # FFmpeg's parser and the decoder keep pictures until the end. It asks every 100 ms.
    silence_s = max(b - a for a, b in itertools.pairwise(times))
    assert LIMIT_S - 0.1 < silence_s < LIMIT_S + 1.5
    assert time.monotonic() - times[-1] < 0.5
    assert caught.value.reason == reason


def test_a_pause_of_more_than_half_the_limit_is_survived_and_ends_it_again(camera: FakeCamera) -> None:
    camera.set("burst:1.4")  # nothing for 1.4 s, again and again
    source = AvSource(settings(camera))
    source.open()
    begun, was_set, times = time.monotonic(), False, 0
    done = threading.Event()

    def look() -> None:
        nonlocal was_set
        while not done.wait(0.02):
            was_set |= numbers(source)[1] == LIMIT_S

    looker = threading.Thread(target=look)
    frames = source.frames()
    next(frames)
    looker.start()
    try:
        for _ in frames:
            times += 1
            if time.monotonic() - begun > 6:
                break
        after = numbers(source)[1]
    finally:
        done.set()
        looker.join()
    assert times > 50
    assert was_set
    assert after == -1
    frames.close()


def test_files_short_limits_and_processes_of_one_stream_are_left_alone(camera: FakeCamera, tmp_path: Path) -> None:
    camera.set("none")
    path = write_clip(tmp_path / "a.mp4", frames=3)
    for source in (
        AvSource(AvStreamSettings(id="file", url=str(path))),
        AvSource(AvStreamSettings(id="cam", url=camera.url, read_timeout_s=4 * TICK_S - 0.01)),
        AvSource(settings(camera), alone=True),
    ):
        source.open()
        assert source._connection.limit is None
        frames = source.frames()
        next(frames)
        frames.close()


def test_it_is_found_only_where_it_certainly_is(camera: FakeCamera) -> None:
    camera.set("none")
    before = time.monotonic()
    container = open_container(settings(camera), live=True, device=None)
    try:
        assert read_limit._numbers(container, before) is not None
        assert read_limit._numbers(container, time.monotonic() + 1) is None  # began before it was opened
        packets = container.demux()
        next(packets)
        assert read_limit._numbers(container, before) is None  # a limit is set
        packets.close()  # type: ignore[attr-defined]
    finally:
        container.close()


def test_nothing_is_kept_of_a_closed_source(camera: FakeCamera) -> None:
    camera.set("none")
    source = AvSource(settings(camera))
    source.open()
    frames = source.frames()
    next(frames)
    assert source._connection.limit is not None
    kept = weakref.ref(source._connection.limit)
    assert source._connection.limit in read_limit._watch._limits
    frames.close()
    gc.collect()
    assert kept() is None


def test_checking_and_lifting_at_once_never_leave_it_off(camera: FakeCamera) -> None:
    camera.set("none")
    container = open_container(settings(camera), live=True, device=None)
    limit = ReadLimit.of(container, 0.0)
    assert limit is not None
    try:
        for _ in range(1000):
            limit.lift()
            assert not limit.is_set
            limit.check(time.monotonic() + LIMIT_S)
            assert limit.is_set
            assert limit._numbers[1] == LIMIT_S
            limit.check(time.monotonic())
    finally:
        limit.end()
        container.close()
