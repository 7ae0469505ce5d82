"""What a source tells of its packets: parameters, parts, and the same through a decoder process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import av
import pytest

from streamd.errors import SourceError
from streamd.flow.packets import PacketRing
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.process import ProcessSource
from streamd.sources.recording import parameters
from tests.clips import write_clip

CLIP = {"zones": [{"name": "z", "points": [(0, 0), (1, 0), (1, 1)], "clip": {}}]}


def settings(url: Path, **more: Any) -> AvStreamSettings:
    return AvStreamSettings.model_validate({"id": "s", "url": str(url), "pace": "asap", **CLIP, **more})


def keys(path: Path) -> tuple[str, list[bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        name = stream.codec_context.codec.canonical_name
        return name, [bytes(p) for p in container.demux(stream) if p.is_keyframe and p.size]


@pytest.mark.parametrize(
    ("codec", "suffix", "more"),
    [
        ("libx264", "ts", {}),
        ("libx265", "ts", {"options": {"x265-params": "log-level=none"}}),
        ("mpeg4", "ts", {}),
        ("libsvtav1", "mkv", {"options": {"preset": "12"}}),
        ("mjpeg", "avi", {"pix_fmt": "yuvj420p"}),
    ],
)
def test_parameters_are_the_same_until_they_change(
    tmp_path: Path, codec: str, suffix: str, more: dict[str, Any]
) -> None:
    sizes: list[tuple[int, int]] = [(192, 108), (256, 144)]
    found = []
    for width, height in sizes:
        path = tmp_path / f"{width}.{suffix}"
        write_clip(path, frames=30, gop=10, codec=codec, size=(width, height), **more)
        name, packets = keys(path)
        assert len(packets) >= 2
        each = {parameters(name, packet) for packet in packets}
        assert len(each) == 1
        found.append(each.pop())
    assert all(found)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x00\x01", b"\xff\xd8", b"\x12", b"\x0a\xff\xff\xff\xff\xff", bytes(range(200))]
)
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "mpeg4", "mjpeg", "vp8"])
def test_damaged_packets_have_no_parameters_that_matter(codec: str, data: bytes) -> None:
    assert isinstance(parameters(codec, data), bytes)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_every_packet_of_the_stream_is_in_the_ring(tmp_path: Path, isolation: str) -> None:
    path = write_clip(tmp_path / "v.mp4", frames=40, gop=10, options={"bf": "2"})
    ring = PacketRing(60.0)
    source = open_source(settings(path, isolation=isolation), packets=ring)
    source.open()
    frames = {f.captured_ns: f.pts_ns for f in source.frames()}
    source.close()
    packets = ring.since(0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        truth = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
    assert [(p.data, p.pts, p.dts, p.key) for p in packets] == truth
    num, den = packets[0].part.head.time_base
    assert {p.captured_ns: p.pts * num * 10**9 // den for p in packets if p.pts is not None} == frames
    assert packets[0].part.head.codec == "h264"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_packets_are_kept_that_are_not_decoded(tmp_path: Path, isolation: str) -> None:
    path = write_clip(tmp_path / "v.mp4", frames=40, gop=10)
    ring = PacketRing(60.0)
    source = open_source(settings(path, isolation=isolation, frames="key"), packets=ring)
    source.open()
    assert len(list(source.frames())) < 10
    source.close()
    assert len(ring.since(0)) == 40


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_nothing_is_recorded_for_rules_that_ask_for_nothing(tmp_path: Path, isolation: str) -> None:
    path = write_clip(tmp_path / "v.mp4", frames=10)
    ring = PacketRing()
    source = open_source(settings(path, isolation=isolation, zones=[]), packets=ring)
    source.open()
    assert len(list(source.frames())) == 10
    source.close()
    assert (ring.bytes, ring.newest_ns) == (0, 0)


def test_a_decoder_process_that_is_killed_leaves_its_packets(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", frames=200, gop=10)
    ring = PacketRing(60.0)
    source = open_source(settings(path, isolation="process"), packets=ring)
    assert isinstance(source, ProcessSource)
    source.open()
    with pytest.raises(SourceError, match="SIGKILL"):
        for i, frame in enumerate(source.frames()):
            captured_ns = frame.captured_ns
            if i == 50:
                assert source.pid is not None
                os.kill(source.pid, signal.SIGKILL)
    source.close()
    assert ring.at(captured_ns) is not None, "all that belongs to the pictures that came"
    assert [p.serial for p in ring.since(0)] == list(range(1, len(ring.since(0)) + 1))
