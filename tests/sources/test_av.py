"""Odd inputs through FFmpeg: none of them may crash, hang, or lose a frame silently."""

from __future__ import annotations

import gc
import os
import struct
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamd.errors import SourceError
from streamd.imaging.reference import letterbox_rgb
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.testing.sources import COUNT
from streamd.types import Frame
from tests.clips import join, picture, write_clip
from tests.conftest import shared


def contract(folder: Path, paced: bool, **settings: Any) -> AvStreamSettings:
    """See tests/sources/test_contract.py."""
    clip = write_clip(folder / "clip.mp4", frames=COUNT)
    return AvStreamSettings(id="s", url=str(clip), pace="realtime" if paced else "asap", **settings)


def read(url: str | Path, **settings: Any) -> tuple[AvSource, Any, list[Frame]]:
    source = AvSource(AvStreamSettings(id="s", url=str(url), **({"pace": "asap"} | settings)))
    info = source.open()
    return source, info, list(source.frames())


def count_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mkv", "libx264", {}),
        ("a.ts", "libx264", {}),
        ("a.avi", "mpeg4", {}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none"}),
        ("a.mkv", "mpeg4", {}),
    ],
)
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    clip = write_clip(tmp_path / name, codec=codec, options=options)
    _, info, frames = read(clip)
    assert len(frames) == 30
    assert (info.width, info.height, info.fps) == (192, 108, 25)
    assert info.codec in ("h264", "hevc", "mpeg4")


def test_b_frames_come_out_in_presentation_order_and_keep_their_own_capture_time(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "b.mp4", options={"bf": "3", "b_strategy": "0"})
    _, _, frames = read(clip)
    stamps = [f.pts_ns for f in frames]
    assert stamps == sorted(stamps)  # type: ignore[type-var]
    # A reordered picture carries the time at which its own packet was read, so capture times are not in order.
    captured = [f.captured_ns for f in frames]
    assert len(set(captured)) == 30
    assert captured != sorted(captured)


def test_audio_is_ignored(tmp_path: Path) -> None:
    _, info, frames = read(write_clip(tmp_path / "sound.mp4", audio=True))
    assert (info.codec, len(frames)) == ("h264", 30)


def test_a_resolution_change_in_mid_stream_goes_on(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "small.ts", frames=10)
    large = write_clip(tmp_path / "large.ts", frames=10, size=(320, 240))
    _, _, frames = read(join(tmp_path / "both.ts", [small, large]))
    sizes = [(f.width, f.height) for f in frames]
    assert sizes[0] == (192, 108)
    assert sizes[-1] == (320, 240)
    assert sizes.count((320, 240)) >= 9


def test_ten_bit_and_odd_sizes(tmp_path: Path) -> None:
    deep = write_clip(
        tmp_path / "deep.mp4", codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none"}
    )
    assert read(deep)[2][0].picture.format == "yuv420p10le"
    odd = write_clip(tmp_path / "odd.mkv", codec="libx264", pix_fmt="yuv444p", size=(191, 107))
    frame = read(odd)[2][0]
    assert (frame.width, frame.height) == (191, 107)


def test_rotation_is_applied_to_size_and_pixels(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "flat.mp4", frames=5)
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12: the track's matrix, a quarter turn clockwise
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 108 << 16, 0, 1 << 30)
    clip.write_bytes(data)
    _, _, frames = read(clip)
    frame = frames[0]
    assert (frame.width, frame.height, frame.picture.rotation) == (108, 192, 90)
    # The brighter left half of the coded picture lies at the top once it is turned.
    upright, box = letterbox_rgb(frames[4], 108, 192, pad_value=0)
    content = upright[box.pad_y : box.pad_y + box.content_height, box.pad_x : box.pad_x + box.content_width]
    half = content.shape[0] // 2
    assert content[: half - 8].mean() > content[half + 8 :].mean() + 5


@pytest.mark.parametrize(
    ("values", "found"),
    [((-1, 0, 0, 1), (0, True)), ((1, 0, 0, -1), (180, True)), ((0, 0, 0, 0), (0, False)), ((0, 1, 1, 0), (90, True))],
)
def test_mirrored_and_senseless_matrices(
    tmp_path: Path, values: tuple[int, int, int, int], found: tuple[int, bool]
) -> None:
    clip = write_clip(tmp_path / "flat.mp4", frames=5)
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44
    a, b, c, d = (v << 16 for v in values)
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    for isolation in ("thread", "process"):
        source = open_source(AvStreamSettings(id="s", url=str(clip), pace="asap", isolation=isolation))
        source.open()
        frames = list(source.frames())
        source.close()
        assert {(f.picture.rotation, f.picture.mirrored) for f in frames} == {found}
        assert (frames[0].width, frames[0].height) == ((108, 192) if found[0] == 90 else (192, 108))


def test_oblong_pixels(tmp_path: Path) -> None:
    path = tmp_path / "dv.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for i in range(5):
            container.mux(stream.encode(picture(720, 576, i)))
        container.mux(stream.encode(None))
    assert read(path)[2][0].picture.pixel_aspect == pytest.approx(16 / 11)
    assert read(path, pixel_aspect="square")[2][0].picture.pixel_aspect == 1


def test_variable_rate_is_played_at_its_own_distances(tmp_path: Path) -> None:
    stamps = [0, 20, 40, 160, 180, 400]
    clip = write_clip(tmp_path / "vfr.mkv", frames=6, pts=lambda i: stamps[i], options={"bf": "0"})
    _, _, frames = read(clip, pace="realtime")
    assert [round((f.pts_ns or 0) / 1e6) for f in frames] == stamps
    arrivals = np.array([f.captured_ns - frames[0].captured_ns for f in frames]) / 1e6
    assert np.all(arrivals >= np.array(stamps) - 15)


def test_time_stamps_that_jump_do_not_stop_playback(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / "one.ts", frames=10),
        write_clip(tmp_path / "two.ts", frames=10, pts=lambda i: 40 * i + 50_000_000),
    ]
    started = time.monotonic()
    _, _, frames = read(join(tmp_path / "jump.ts", parts), pace="realtime")
    assert len(frames) >= 19
    assert time.monotonic() - started < 5


def test_missing_time_stamps(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "raw.h264", options={"bf": "0"})
    _, _, frames = read(clip, pace="realtime", max_fps=1000)
    assert len(frames) == 30


def test_max_fps_counts_what_it_leaves_out(tmp_path: Path) -> None:
    source, _, frames = read(write_clip(tmp_path / "a.mp4", frames=50), max_fps=5)
    assert len(frames) == 10
    assert source.skipped == 40


def test_key_frames_only(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=50, gop=10, options={"sc_threshold": "0"})
    assert len(read(clip, frames="key")[2]) == 5


def test_loop_goes_on_past_the_end(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=10)
    source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap", loop=True))
    source.open()
    frames = source.frames()
    assert len([next(frames) for _ in range(35)]) == 35
    source.close()


def test_pictures_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    """A cycle would keep pictures until a collection, and with them surfaces of a hardware decoder."""
    clip = write_clip(tmp_path / "a.mp4", frames=30, options={"g": "1"})
    source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap"))
    source.open()

    def alive() -> int:
        return sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()  # other tests' pictures
        assert sum(1 for _ in source.frames()) == 30
        assert alive() < before + 5
    finally:
        gc.enable()


def test_damage_costs_frames_not_the_stream(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=100, gop=10)
    data = bytearray(clip.read_bytes())
    random = np.random.default_rng(7)
    for at in random.integers(len(data) // 4, len(data) // 2, 60):
        data[at] ^= 0xFF
    clip.write_bytes(data)
    _, _, frames = read(clip)
    assert 50 < len(frames) <= 101


def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.ts", frames=100)
    clip.write_bytes(clip.read_bytes()[:-4000])
    frames = read(clip)[2]
    assert 20 < len(frames) < 100


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "not_found"),
        (lambda p: p.write_bytes(b""), "unsupported"),
        (lambda p: p.write_text("hello, this is no video\n" * 50), "unsupported"),
        (lambda p: p.write_bytes(os.urandom(4096)), "unsupported"),
        (lambda p: p.mkdir(), "unsupported"),
        (lambda p: os.mkfifo(p), "unsupported"),
    ],
    ids=["missing", "empty", "text", "noise", "folder", "fifo"],
)
def test_what_is_no_video_is_refused_for_good(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "thing.mp4"
    make(path)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert (caught.value.reason, caught.value.permanent) == (reason, True)
    assert str(path) in str(caught.value)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
    with pytest.raises(SourceError, match="no video") as caught:
        read(path)
    assert caught.value.reason == "no_video"


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    clip = write_clip(tmp_path / "a.mp4", frames=2)
    clip.chmod(0)
    with pytest.raises(SourceError) as caught:
        read(clip)
    assert caught.value.reason == "permission"


@pytest.mark.parametrize("clip", ["vtest.avi", "finite_car.mp4"])
def test_real_clips_lose_nothing(clip: str) -> None:
    path = shared(f"videos/{clip}")
    source, _, frames = read(path, max_fps=None)
    assert len(frames) == count_of(path)
    assert source.corrupt == 0


def test_pixels_are_the_decoders_own(tmp_path: Path) -> None:
    """Nothing is converted on the way: plane 0 is the luma that was encoded (lossless)."""
    clip = write_clip(tmp_path / "a.mkv", frames=4, options={"qp": "0"})
    for i, frame in enumerate(read(clip)[2]):
        luma = np.frombuffer(memoryview(frame.picture.native.planes[0]), np.uint8)
        wanted = np.frombuffer(memoryview(picture(192, 108, i).planes[0]), np.uint8)
        assert abs(int(luma[0]) - int(wanted[0])) <= 1


def _two_tracks(
    path: Path, *, default: int | None = None, sizes: tuple[tuple[int, int], ...] = ((64, 48), (96, 64))
) -> Path:
    with av.open(str(path), "w") as container:
        streams = []
        for i, size in enumerate(sizes):
            stream: Any = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = int(i == default)
            streams.append(stream)
        for i in range(5):
            for stream in streams:
                container.mux(stream.encode(picture(stream.width, stream.height, i)))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def test_the_default_track_or_the_largest_or_the_one_that_is_named(tmp_path: Path) -> None:
    assert read(_two_tracks(tmp_path / "largest.mkv"))[1].width == 96
    marked = _two_tracks(tmp_path / "marked.mkv", default=0)
    assert read(marked)[1].width == 64
    assert read(marked, track=1)[1].width == 96
    with pytest.raises(SourceError, match=r"track 2 is no video track; video tracks: 0: mpeg4 64x48, 1: mpeg4 96x64"):
        read(marked, track=2)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = 0x400
        container.mux(cover.encode(picture(64, 48, 0, "yuvj420p")))
        for i in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 44100, i * 1024, Fraction(1, 44100)
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
        container.mux(cover.encode(None))
    with pytest.raises(SourceError) as caught:
        read(path)
    assert caught.value.reason == "no_video"


def test_a_transport_stream_whose_pid_changes_goes_on(tmp_path: Path) -> None:
    parts = [
        write_clip(
            tmp_path / f"{i}.ts", frames=20, options={"bf": "0"}, pts=partial(lambda i, n: (i * 20 + n) * 40, i),
            container_options={"mpegts_start_pid": str(0x100 * (i + 1))},
        )
        for i in range(3)
    ]  # fmt: skip
    assert len(read(join(tmp_path / "all.ts", parts))[2]) == 60


@pytest.mark.parametrize("loop", [False, True])
def test_a_file_without_one_picture_is_an_error(tmp_path: Path, loop: bool) -> None:
    whole = write_clip(tmp_path / "whole.mp4", options={"bf": "0"}, container_options={"movflags": "faststart"})
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: data.index(b"mdat") + 24])
    with pytest.raises(SourceError) as caught:
        read(cut, loop=loop)
    assert caught.value.permanent
    assert caught.value.reason in ("corrupt", "unsupported")
    assert "without a decodable picture" in str(caught.value) or caught.value.reason == "unsupported"


def test_max_fps_of_a_short_loop(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "short.mp4", frames=10, fps=50)
    source = AvSource(AvStreamSettings(id="s", url=str(clip), loop=True, max_fps=10))
    source.open()
    began = time.monotonic()
    frames = []
    for frame in source.frames():
        frames.append(frame)
        if time.monotonic() - began > 2:
            break
    source.close()
    assert len(frames) == pytest.approx(20, abs=3)


def test_the_last_picture_of_a_pass_keeps_its_duration(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "one.mp4", frames=1, fps=10)
    source = AvSource(AvStreamSettings(id="s", url=str(clip), loop=True))
    source.open()
    frames = [frame for frame, _ in zip(source.frames(), range(6), strict=False)]
    source.close()
    assert (frames[-1].captured_ns - frames[0].captured_ns) / 1e9 == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("suffix", "read"), [("mp4", 0), ("ts", 1)])
def test_tracks_one_after_the_other(tmp_path: Path, suffix: str, read: int, capsys: pytest.CaptureFixture[str]) -> None:
    """As an editor leaves them: one is read, and the log says which are not. MP4 marks the first one as default."""
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as out:
        streams: list[Any] = [out.add_stream("libx264", rate=25, options={"bf": "0"}) for _ in range(2)]
        sizes = (192, 108), (320, 180)
        for stream, size in zip(streams, sizes, strict=True):
            (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for number, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
            for i in range(50):
                frame = picture(*size, i)
                frame.pts, frame.time_base = number * 50 + i, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=False))
    source.open()
    assert {(frame.width, frame.height) for frame in source.frames()} == {sizes[read]}
    told = capsys.readouterr().out
    assert "are not read; use a stream for each, with `track`" in told
    assert f"not_read=[{1 - read}]" in told
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=False, track=1 - read))
    source.open()
    assert {(frame.width, frame.height) for frame in source.frames()} == {sizes[1 - read]}
    assert "not_read" not in capsys.readouterr().out
