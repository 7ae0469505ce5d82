"""A decoder that one damaged header made slow for good is replaced; one that merely reorders is not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import av
import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.sources import holdback
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.holdback import FOR_NS, MORE, Holdback
from tests.clips import write_clip

FPS, GOP = 25, 10
SECOND = 10**9


def test_only_more_than_ever_and_for_long_counts() -> None:
    watch = Holdback()
    numbers = [watch.packet() for _ in range(400)]  # 400 packets are in: picture n is held back by 400 - n
    assert watch.picture(numbers[398], 0) == 0
    assert watch.picture(numbers[398 - MORE], 1 * SECOND) == 0
    assert watch.picture(numbers[399 - MORE], 2 * SECOND) == 0, "one that comes sooner: it is not for good"
    assert watch.picture(numbers[398 - MORE], 3 * SECOND) == 0
    assert watch.picture(numbers[390 - MORE], 3 * SECOND + FOR_NS - 1) == 0
    assert watch.picture(numbers[390 - MORE], 3 * SECOND + FOR_NS) == MORE + 8


def test_a_change_of_size_starts_anew() -> None:
    watch = Holdback()
    watch.size(1920, 1080)
    numbers = [watch.packet() for _ in range(400)]
    assert watch.picture(numbers[399], 0) == 0, "all that was held comes out when the size changes"
    watch.size(1280, 720)
    for second in range(20):
        assert watch.picture(numbers[399 - MORE - 2], second * SECOND) == 0
    watch.size(1280, 720)
    assert watch.picture(numbers[390 - MORE], 20 * SECOND) == 0
    assert watch.picture(numbers[390 - MORE], 20 * SECOND + FOR_NS) == 7, "the same size goes on where it was"


def delay(clip: Clip, bad: tuple[bytes, ...]) -> int:
    """How many pictures late the last one comes, where the second key picture's parameter sets are `bad`."""
    decoder = av.CodecContext.create("h264", "r")
    second = [k for k, picture in enumerate(clip.pictures) if picture.key][1]
    late = 0
    for k, picture in enumerate(clip.pictures[: 4 * GOP]):
        units = (bad if k == second else tuple(clip.sets)) if picture.key else ()
        units += picture.payloads[1:] if picture.key else picture.payloads
        packet = av.Packet(b"".join(b"\0\0\1" + u for u in units))
        packet.pts = k
        for frame in decoder.decode(packet):
            assert frame.pts is not None
            late = k - frame.pts
    return late


def slowed(clip: Clip) -> None:
    """Flips a bit of the fourth second's parameter sets: one that makes the decoder slow and breaks nothing else."""
    sps, pps = clip.sets
    for bit in range(len(sps) * 8 - 1, 32, -1):
        flipped = bytearray(sps)
        flipped[bit // 8] ^= 1 << bit % 8
        bad = (bytes(flipped), pps)
        try:
            found = delay(clip, bad)
        except av.error.FFmpegError:
            continue
        if MORE <= found <= 16:
            break
    else:
        pytest.fail("no bit makes this decoder slow")
    for k in range(3 * FPS, len(clip.pictures)):
        picture = clip.pictures[k]
        if picture.key:
            clip.pictures[k] = replace(picture, payloads=(clip._aggregate(list(bad)), *picture.payloads[1:]))
            return


def test_a_damaged_header_costs_no_latency_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdback, "FOR_NS", 1 * SECOND)
    clip = Clip(
        write_clip(tmp_path / "c.mp4", frames=8 * FPS, size=(160, 96), gop=GOP, options={"tune": "zerolatency"})
    )
    slowed(clip)
    with FakeCamera(clip) as camera:
        source = AvSource(AvStreamSettings(id="cam", url=camera.url))
        source.open()
        started, seen = time.monotonic(), 0
        with pytest.raises(SourceError, match="delay its output") as caught:
            for _ in source.frames():
                seen += 1
                assert time.monotonic() - started < 30
        source.close()
    assert (caught.value.reason, caught.value.permanent) == ("corrupt", False)
    assert 3 * FPS < seen < 8 * FPS


def test_reordering_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdback, "FOR_NS", 1 * SECOND)
    options = {"bf": "7", "b_strategy": "0", "x264-params": "b-pyramid=normal"}
    with FakeCamera(
        Clip(write_clip(tmp_path / "c.mp4", frames=100, size=(160, 96), gop=50, options=options))
    ) as camera:
        source = AvSource(AvStreamSettings(id="cam", url=camera.url))
        source.open()
        for k, _ in enumerate(source.frames()):
            if k == 150:
                break
        source.close()
