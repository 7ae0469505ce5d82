"""Pictures of several slices from senders that repeat parameters, or a delimiter, in front of each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from streamd.flow.packets import PacketRing
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.slices import slice_at
from tests import marked

START = b"\x00\x00\x00\x01"
H264 = {"tune": "zerolatency", "x264-params": "sliced-threads=0:slices=4"}
HEVC = {"x265-params": "log-level=none:slices=2:bframes=0"}


def units(data: bytes) -> list[bytes]:
    """NAL units of an Annex B stream, without start codes."""
    return [part.rstrip(b"\x00") for part in data.split(b"\x00\x00\x01")][1:]


def in_front(data: bytes, codec: str, kinds: tuple[int, ...], what: bytes | None = None) -> bytes:
    """Puts `what`, or the parameter sets, in front of each slice of these types."""

    def kind_of(unit: bytes) -> int:
        return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63

    sets = (7, 8) if codec == "h264" else (32, 33, 34)
    found = units(data)
    known = dict.fromkeys(u for u in found if kind_of(u) in sets)
    repeated = what if what is not None else b"".join(START + u for u in known)
    return b"".join((repeated if kind_of(u) in kinds else b"") + START + u for u in found)


def read(path: Path, **settings: Any) -> tuple[AvSource, list[tuple[int, bool]]]:
    """Number of each picture, and whether it is withheld."""
    source = AvSource(AvStreamSettings.model_validate({"id": "s", "url": str(path), "pace": "asap", **settings}))
    source.open()
    return source, [
        (marked.number(f.picture.video_frame().to_ndarray(format="gray")), f.quarantined) for f in source.frames()
    ]


@pytest.mark.parametrize(
    ("codec", "encoder", "options", "kinds", "what"),
    [
        ("h264", "libx264", H264, (5,), None),
        ("h264", "libx264", H264, (1, 5), START + b"\x09\xf0"),  # a delimiter in front of every slice
        ("hevc", "libx265", HEVC, (19, 20, 21), None),
        ("h264", "libx264", H264, (), None),
    ],
    ids=["h264 parameters", "h264 delimiters", "hevc parameters", "h264 as it should be"],
)
def test_every_picture_is_whole(
    tmp_path: Path, codec: str, encoder: str, options: dict[str, str], kinds: tuple[int, ...], what: bytes | None
) -> None:
    plain = marked.write_marked(tmp_path / f"v.{codec}", frames=60, gop=10, codec=encoder, options=options)
    broken = tmp_path / f"broken.{codec}"
    broken.write_bytes(in_front(plain.read_bytes(), codec, kinds, what))
    if kinds:
        with av.open(str(broken)) as container:
            first = [slice_at(codec, bytes(packet), 0) for packet in container.demux() if packet.size]
        assert any(each is not None and not each[1] for each in first), "FFmpeg takes slices for pictures"
    source, seen = read(broken)
    assert seen == [(i, False) for i in range(60)]
    assert source.corrupt == 0


def test_slices_in_packets_of_their_own_are_joined_in_mp4(tmp_path: Path) -> None:
    plain = marked.write_marked(tmp_path / "v.mp4", frames=30, gop=10, options=H264)
    broken = tmp_path / "broken.mkv"
    with av.open(str(plain)) as source, av.open(str(broken), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            data, at = bytes(packet), 0
            while at < len(data):
                size = 4 + int.from_bytes(data[at : at + 4], "big")
                piece = av.Packet(data[at : at + size])
                piece.stream, piece.time_base, piece.is_keyframe = stream, packet.time_base, packet.is_keyframe
                piece.pts, piece.dts = packet.pts, packet.pts
                at += size
                out.mux_one(piece)
    _, seen = read(broken)
    assert [number for number, _ in seen] == list(range(30))


def test_a_picture_whose_beginning_was_lost_is_no_part_of_the_one_before(tmp_path: Path) -> None:
    plain = marked.write_marked(tmp_path / "v.h264", frames=30, gop=10, options=H264)
    slices = units(plain.read_bytes())
    first_of_5 = [i for i, u in enumerate(slices) if u[0] & 31 in (1, 5) and u[1] >= 0x80][5]
    torn = tmp_path / "torn.h264"
    torn.write_bytes(b"".join(START + u for i, u in enumerate(slices) if i != first_of_5))
    _, seen = read(torn)
    assert [number for number, held in seen if not held] == [0, 1, 2, 3, 4, *range(10, 30)]


def test_clips_get_whole_pictures(tmp_path: Path) -> None:
    plain = marked.write_marked(tmp_path / "v.h264", frames=30, gop=10, options=H264)
    broken = tmp_path / "broken.h264"
    broken.write_bytes(in_front(plain.read_bytes(), "h264", (5,)))
    ring = PacketRing(100.0)
    source = AvSource(AvStreamSettings(id="s", url=str(broken), pace="asap"), packets=ring)
    source.open()
    frames = list(source.frames())
    assert len(ring.since(0)) == len(frames) == 30
    assert {p.part.number for p in ring.since(0)} == {1}
    assert all(ring.at(frame.captured_ns) is not None for frame in frames)


@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_damage_is_no_slice(codec: str, size: int) -> None:
    for data in (b"", b"\x00", b"\x00\x00\x01", b"\x00\x00\x01\x65", b"\xff" * 20, b"\x00\x00\x00\x00" * 3, bytes(9)):
        slice_at(codec, data, size)  # returns
    assert slice_at("h264", START + b"\x67\x01\x02" + START + b"\x65\x88\x80", 0) == (8, True)
    assert slice_at("h264", START + b"\x65\x10\x80", 0) == (1, False)
