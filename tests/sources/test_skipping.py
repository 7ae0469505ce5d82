"""Decoding less where less is asked for: what is left out is never needed, and all of it is counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.skipping import first_slice, nal_length_size
from streamd.types import Frame
from tests.clips import write_clip

FLAT = {"tune": "zerolatency"}
B_FRAMES = {"bf": "2", "b_strategy": "0", "x264-params": "b-pyramid=none:scenecut=0"}
HEVC = {"x265-params": "log-level=none:bframes=2:b-adapt=0:b-pyramid=0:scenecut=0:open-gop=0"}


def read(clip: Path, max_fps: float, **settings: Any) -> tuple[AvSource, list[Frame]]:
    source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap", max_fps=max_fps, **settings))
    source.open()
    return source, list(source.frames())


def decoded(source: AvSource, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the packets that go into the decoder from now on."""
    sizes: list[int] = []
    decode = source._decoding.decode

    def counted(packet: Any, *, alone: bool) -> Any:
        if packet.size:
            sizes.append(packet.size)
        return decode(packet, alone=alone)

    monkeypatch.setattr(source._decoding, "decode", counted)
    return sizes


def play(
    clip: Path, max_fps: float, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[AvSource, list[Frame], int]:
    """The source, its frames, and how many packets were decoded."""
    source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap", max_fps=max_fps, **settings))
    source.open()
    sizes = decoded(source, monkeypatch)
    frames = list(source.frames())
    return source, frames, len(sizes)


def native(frame: Frame) -> Any:
    return frame.picture.native


def intervals(frames: list[Frame], after_s: float) -> list[float]:
    stamps = [f.pts_ns / 1e9 for f in frames if f.pts_ns is not None and f.pts_ns >= after_s * 1e9]
    return [round(b - a, 3) for a, b in pairwise(stamps)]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", B_FRAMES), ("a.ts", "libx264", B_FRAMES), ("a.mkv", "libx265", HEVC)],
)
def test_pictures_that_are_no_reference_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str, options: dict[str, str]
) -> None:
    clip = write_clip(tmp_path / name, frames=300, fps=25, gop=25, codec=codec, options=options)
    source, frames, packets = play(clip, 5, monkeypatch)
    # Two groups of pictures are decoded whole; of the other ten a third and a little.
    assert 50 + 80 <= packets <= 50 + 100
    assert len(frames) + source.skipped == 300
    assert source.corrupt == 0
    # What is left is 8.3 pictures a second: of these 5 are chosen, as near to evenly as they lie.
    assert len(frames) == pytest.approx(60, abs=6)
    assert max(intervals(frames, 3)) <= 0.361


def test_every_picture_that_is_left_is_the_one_of_a_whole_decoding(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=200, fps=25, gop=25, options=B_FRAMES)
    _, sparse = read(clip, 5)
    with av.open(str(clip)) as container:
        whole = {frame.pts: frame.to_ndarray(format="gray") for frame in container.decode(video=0)}
        base = container.streams.video[0].time_base
    assert base is not None
    for frame in sparse:
        assert frame.pts_ns is not None
        pts = round(frame.pts_ns / 1e9 / base)
        assert (native(frame).to_ndarray(format="gray") == whole[pts]).all()


@pytest.mark.parametrize("options", [FLAT, B_FRAMES])
def test_key_frames_are_enough_for_one_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=300, fps=25, gop=12, options=options)
    source, frames, packets = play(clip, 1, monkeypatch)
    # A key frame every 0.48 s: two groups whole, then every second or third key frame, chosen before the decoder.
    assert packets <= 24 + 13
    assert len(frames) + source.skipped == 300
    assert len(frames) == pytest.approx(12, abs=1)
    assert all(native(f).key_frame for f in frames[2:])


def test_a_key_frame_is_not_held_back_until_the_next(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=250, fps=25, gop=25, options=B_FRAMES)
    source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap", max_fps=1))
    source.open()
    order: list[tuple[str, int]] = []
    decode = source._decoding.decode

    def noted(packet: Any, *, alone: bool) -> Any:
        order.append(("fed", packet.pts or 0))
        return decode(packet, alone=alone)

    source._decoding.decode = noted  # type: ignore[method-assign]
    order.extend(("out", native(frame).pts) for frame in source.frames())
    last = [step for step in order if step != ("fed", 0)][-8:]  # the end of the input is fed, too
    assert [what for what, _ in last] == ["fed", "out"] * 4
    assert [pts for _, pts in last[::2]] == [pts for _, pts in last[1::2]]


def test_key_frames_come_out_at_once_where_only_they_are_decoded(tmp_path: Path) -> None:
    """The decoder would wait for pictures to reorder, which never come."""
    clip = write_clip(tmp_path / "a.mp4", frames=200, fps=25, gop=25, options=B_FRAMES)
    source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap", frames="key"))
    source.open()
    order: list[tuple[str, int]] = []
    decode = source._decoding.decode

    def noted(packet: Any, *, alone: bool) -> Any:
        if packet.is_keyframe and packet.size:
            order.append(("fed", packet.pts))
        return decode(packet, alone=alone)

    source._decoding.decode = noted  # type: ignore[method-assign]
    order.extend(("out", native(frame).pts) for frame in source.frames())
    assert [what for what, _ in order] == ["fed", "out"] * 8
    assert [pts for _, pts in order[::2]] == [pts for _, pts in order[1::2]]


def test_where_more_is_asked_for_everything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=200, fps=25, gop=25, options=B_FRAMES)
    source, frames, packets = play(clip, 12.5, monkeypatch)
    assert packets == 200
    assert (len(frames), source.skipped) == (100, 100)
    _, frames, packets = play(clip, 100, monkeypatch)
    assert (len(frames), packets) == (200, 200)


def test_a_stream_of_key_frames_alone_is_chosen_from_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "a.avi", frames=200, fps=25, codec="mjpeg", pix_fmt="yuvj420p")
    source, frames, packets = play(clip, 5, monkeypatch)
    assert packets <= 42
    assert (len(frames), source.skipped) == (40, 160)


def test_a_looped_file_goes_on(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=100, fps=25, gop=25, options=B_FRAMES)
    source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap", max_fps=5, loop=True))
    source.open()
    frames = source.frames()
    for _ in range(100):
        next(frames)
    source.close()
    assert source.corrupt == 0


# Two units in front of the slice: a delimiter and parameters, then a P-picture.
H264_B = b"\x00\x00\x00\x01\x09\xf0\x00\x00\x01\x67\x42\x00\x00\x01\x01\x9a"
H264_P = b"\x00\x00\x00\x01\x09\xf0\x00\x00\x01\x41\x9a"


def lengths(data: bytes, size: int) -> bytes:
    units = [unit for unit in data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01") if unit]
    return b"".join(len(unit).to_bytes(size, "big") + unit for unit in units)


@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_the_first_slice_is_found_in_either_form(size: int) -> None:
    for data, expected in ((H264_B, (1, 0)), (H264_P, (1, 2))):
        assert first_slice("h264", lengths(data, size) if size else data, size) == expected
    hevc = b"\x00\x00\x00\x01\x46\x01\x50\x00\x00\x01\x02\x03\xd0"
    assert first_slice("hevc", lengths(hevc, size) if size else hevc, size) == (1, 2)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x00\x00\x01", b"\x00\x00\x01\x41", b"\xff" * 40, b"\x00\x00\x00\x05abc"]
)
@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_damage_is_no_slice(data: bytes, size: int) -> None:
    for codec in ("h264", "hevc"):
        first_slice(codec, data, size)  # returns


def test_the_form_is_told_by_the_parameters() -> None:
    assert nal_length_size("h264", None) == 0
    assert nal_length_size("h264", b"\x00\x00\x00\x01\x67") == 0
    assert nal_length_size("h264", b"\x01\x64\x00\x1f\xff") == 4
    assert nal_length_size("hevc", b"\x01" + bytes(20) + b"\x0d" + b"\x00") == 2
    assert nal_length_size("hevc", b"\x01" * 10) == 0
