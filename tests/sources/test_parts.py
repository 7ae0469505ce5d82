"""Files that consist of several, one behind the other: every part is decoded, and every packet accounted for."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamd.errors import SourceError
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import MOST_UNREADABLE, AvSource
from streamd.sources.packet_reader import PacketReader
from streamd.sources.part_search import MatroskaSearch, searching
from streamd.sources.parts import CodecWatch, PartEnds, PartWatch
from streamd.sources.programs import ProgramSearch, programs_of
from streamd.sources.recording import DELIMITER
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame, StreamStatus
from tests.clips import write_clip, write_two
from tests.serving import files_of, udp_of

FRAMES = 60
SMALL, LARGE = (192, 108), (320, 180)
CODECS = {"h264": "libx264", "hevc": "libx265", "mpeg4": "mpeg4", "mpeg2video": "mpeg2video", "mjpeg": "mjpeg"}
LOST = 2
"""Pictures at most that FFmpeg's parser loses where a transport stream changes its codec."""


@pytest.fixture(scope="module")
def piece(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    folder = tmp_path_factory.mktemp("pieces")
    made: dict[tuple[Any, ...], bytes] = {}

    def make(suffix: str, codec: str, size: tuple[int, int] = SMALL, pid: int = 0x100) -> bytes:
        key = suffix, codec, size, pid
        if key not in made:
            options = {"bf": "2"} if codec == "h264" else {}
            made[key] = write_clip(
                folder / f"{len(made)}.{suffix}", frames=FRAMES, size=size, codec=CODECS[codec], options=options,
                pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p",
                container_options={"mpegts_start_pid": str(pid)} if suffix == "ts" else {},
            ).read_bytes()  # fmt: skip
        return made[key]

    return make


class Truth:
    """The packets of the video that FFmpeg has passed on, but those that are read again in the next part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packets = 0
        demux, put = PacketReader._demux, PartWatch.put

        def demuxed(reader: PacketReader, wanted: Any) -> Iterator[Any]:
            stream = reader._connection.stream
            for packet in demux(reader, wanted):
                # FFmpeg's parser makes packets of fragments where it changes to another codec.
                whole = packet.size > DELIMITER and packet.pos is not None
                self.packets += packet.stream is stream and whole
                yield packet

        def watched(watch: PartWatch, packet: Any) -> Any:
            try:
                return put(watch, packet)
            except PartEnds as end:
                self.packets -= not end.joined
                raise

        look = CodecWatch._look

        def looked(watch: CodecWatch, packet: Any) -> None:
            try:
                look(watch, packet)
            except PartEnds as end:
                self.packets += end.joined  # two pictures in one packet
                raise

        monkeypatch.setattr(CodecWatch, "_look", looked)
        monkeypatch.setattr(PacketReader, "_demux", demuxed)
        monkeypatch.setattr(PartWatch, "put", watched)


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Truth:
    return Truth(monkeypatch)


@pytest.fixture(params=[True, False], ids=["end known", "end unknown"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the next part is found before this one is opened, as it is unless it is far away."""
    if not request.param:
        for kind in (ProgramSearch, MatroskaSearch):
            start = kind.start
            monkeypatch.setattr(kind, "start", lambda search, begin, start=start: start(search, begin) * 0)
    return request.param  # type: ignore[no-any-return]


Part = tuple[str, int, int, int]
"""Codec, width, height and number of frames."""


def parts_of(path: Path, **settings: Any) -> tuple[list[Part], AvSource]:
    """What a source gives out, by `begins`."""
    source = AvSource(AvStreamSettings(id="s", **{"url": str(path), "pace": "asap", "loop": False} | settings))
    source.open()
    parts: list[list[Any]] = []
    for frame in source.frames():
        if not parts or frame.begins:
            parts.append([source.codec, frame.width, frame.height, 0])
        assert parts[-1][1:3] == [frame.width, frame.height]
        parts[-1][3] += 1
    return [(codec, width, height, count) for codec, width, height, count in parts], source


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(("h264", "hevc", "mpeg4", "mpeg2video"), 2)))
@pytest.mark.parametrize("pid", [0x100, 0x200])
def test_a_transport_stream_that_changes_its_codec(
    tmp_path: Path, piece: Callable[..., bytes], before: str, after: str, pid: int, truth: Truth, known: bool
) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(piece("ts", before) + piece("ts", after, LARGE, pid))
    (first, second), source = parts_of(path)
    assert second == (after, *LARGE, FRAMES)
    assert first[:3] == (before, *SMALL)
    assert FRAMES - LOST * (not known) <= first[3] <= FRAMES
    assert source.corrupt <= 1 - known
    assert first[3] + second[3] + source.corrupt == truth.packets


@pytest.mark.parametrize("after", ["h264", "hevc", "mpeg4", "mpeg2video", "mjpeg"])
@pytest.mark.parametrize("before", ["h264", "mjpeg"])
def test_a_matroska_document_behind_another(
    tmp_path: Path, piece: Callable[..., bytes], before: str, after: str, truth: Truth, known: bool
) -> None:
    """Also of the same codec: its parameters are in its header."""
    path = tmp_path / "a.mkv"
    path.write_bytes(piece("mkv", before) + piece("mkv", after, LARGE))
    parts, source = parts_of(path)
    assert parts == [(before, *SMALL, FRAMES), (after, *LARGE, FRAMES)]
    assert source.corrupt == 0
    assert truth.packets == 2 * FRAMES


@pytest.mark.parametrize("pid", [0x100, 0x200])
def test_a_transport_stream_that_changes_its_size_goes_on_with_its_decoder(
    tmp_path: Path, piece: Callable[..., bytes], pid: int, truth: Truth
) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(piece("ts", "h264") + piece("ts", "h264", LARGE, pid))
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=False))
    source.open()
    sizes = [(frame.width, frame.height) for frame in source.frames()]
    assert len(sizes) == truth.packets == 2 * FRAMES
    # FFmpeg's parser may join the last picture with the next one.
    assert FRAMES - 1 <= sizes.count(SMALL) <= FRAMES
    assert sizes == sorted(sizes)
    assert source.corrupt == 0


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_several_parts_one_of_them_cut_off(
    tmp_path: Path, piece: Callable[..., bytes], suffix: str, truth: Truth, known: bool
) -> None:
    path = tmp_path / f"a.{suffix}"
    cut = piece(suffix, "h264", LARGE)
    parts = [piece(suffix, "hevc"), cut[: len(cut) * 2 // 3 + 50], piece(suffix, "mpeg4"), piece(suffix, "h264", LARGE)]
    path.write_bytes(b"".join(parts))
    found, source = parts_of(path)
    assert [part[:3] for part in found] == [
        ("hevc", *SMALL), ("h264", *LARGE), ("mpeg4", *SMALL), ("h264", *LARGE),
    ]  # fmt: skip
    counts = [part[3] for part in found]
    assert min(counts[0], counts[2]) >= FRAMES - LOST
    assert FRAMES // 4 < counts[1] < FRAMES
    assert counts[3] == FRAMES
    assert sum(counts) + source.corrupt == truth.packets


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
@pytest.mark.parametrize("rest", ["junk", "stub"])
def test_a_rest_that_is_no_video_ends_the_file(
    tmp_path: Path, piece: Callable[..., bytes], suffix: str, rest: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    junk = bytes(range(256)) * 100 if rest == "junk" else piece(suffix, "hevc")[: 188 * 6]
    path.write_bytes(piece(suffix, "h264") + junk)
    parts, source = parts_of(path)
    assert [part[:3] for part in parts] == [("h264", *SMALL)]
    assert parts[0][3] >= FRAMES - 1
    assert source.corrupt <= 1


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_stream_says_so_and_loops(tmp_path: Path, piece: Callable[..., bytes], isolation: str) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(piece("mkv", "h264") + piece("mkv", "mpeg4", LARGE))
    settings = AvStreamSettings(id="s", url=str(path), pace="asap", loop=True, isolation=isolation, ring=8)
    metrics, statuses = StreamMetrics("s"), list[StreamStatus]()
    ring: Ring[Frame] = Ring(8, "block")
    runner = StreamRunner("s", lambda: open_source(settings), ring, metrics, statuses.append)
    runner.start()
    frames = []
    for _ in range(5 * FRAMES):
        frame = ring.get(10)
        frames.append((frame.width, frame.height, frame.begins))
        del frame
    runner.stop()
    assert runner.join(10)
    one = [(*size, i == 0) for size in (SMALL, LARGE) for i in range(FRAMES)]
    assert frames[1:] == (one * 3)[1 : 5 * FRAMES]
    assert not frames[0][2]
    told = [status.codec for status in statuses if status.reason == "codec_changed"]
    assert told
    assert {status.codec for status in statuses if status.state == "LIVE"} == {"h264", "mpeg4"}
    assert metrics.reconnects == 0


def test_a_name_that_needs_care(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path = tmp_path / "a,,:b %d [c].mkv"
    path.write_bytes(piece("mkv", "h264") + piece("mkv", "hevc"))
    for url in (path, Path(f"file:{path}")):
        parts, _ = parts_of(url)
        assert [part[0] for part in parts] == ["h264", "hevc"]


def test_start_s_is_in_the_first_part(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(piece("mkv", "h264") + piece("mkv", "hevc"))
    parts, _ = parts_of(path, start_s=1.0)
    assert [part[0] for part in parts] == ["h264", "hevc"]
    assert 0 < parts[0][3] < FRAMES - 20
    assert parts[1][3] == FRAMES


def test_two_videos_at_the_same_time_are_no_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    write_two({"libx264": LARGE, "mpeg2video": SMALL}, path, frames=FRAMES)
    parts, _ = parts_of(path)
    assert parts == [("h264", *LARGE, FRAMES)]


def test_the_next_part_needs_a_decoder_too(tmp_path: Path, piece: Callable[..., bytes], monkeypatch: Any) -> None:
    """What may succeed later is an error, not the end."""
    path = tmp_path / "a.mkv"
    path.write_bytes(piece("mkv", "h264") + piece("mkv", "hevc"))
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=False))
    source.open()
    monkeypatch.setattr(source, "_open_part", lambda begin: (_ for _ in ()).throw(SourceError("decoder", "none free")))
    with pytest.raises(SourceError, match="none free"):
        list(source.frames())


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_repeats_play_the_whole_file(tmp_path: Path, piece: Callable[..., bytes], suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(piece(suffix, "h264") + piece(suffix, "hevc", LARGE))
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=True, start_s=1.0))
    source.open()
    begins = [i for i, frame in zip(range(3 * FRAMES), source.frames(), strict=False) if frame.begins]
    source.close()
    assert begins[0] < FRAMES - 20
    assert FRAMES - LOST <= begins[2] - begins[1] <= FRAMES


def test_a_file_that_is_still_written(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    for suffix in ("ts", "mkv"):
        path = tmp_path / f"a.{suffix}"
        first = piece(suffix, "h264")
        path.write_bytes(first[: len(first) * 2 // 3])
        source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=False))
        source.open()
        frames = source.frames()
        assert next(frames).width == SMALL[0]
        with path.open("ab") as file:
            file.write(first[len(first) * 2 // 3 :] + piece(suffix, "mpeg4", LARGE))
        assert [frame.width for frame in frames].count(LARGE[0]) == FRAMES


def test_a_list_of_protocols_for_the_file_is_enough(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(piece("mkv", "h264") + piece("mkv", "hevc"))
    parts, _ = parts_of(path, options={"protocol_whitelist": "file"})
    assert [part[0] for part in parts] == ["h264", "hevc"]


PIECE = 4 << 20
MAP_PID = 0x1000
"""FFmpeg's muxer gives it to the program map."""


def units_of(data: bytes, pid: int) -> list[int]:
    """Where the units of a track begin."""
    return [i for i in range(0, len(data) - 187, 188) if int.from_bytes(data[i + 1 : i + 3], "big") & 0x1FFF == pid]


def test_what_is_left_of_another_recording_in_front(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    """A map of which FFmpeg takes no notice, since it has not seen that it is one. The file was opened for ever."""
    other, path = piece("ts", "hevc", pid=0x200), tmp_path / "a.ts"
    at = units_of(other, MAP_PID)[0]
    path.write_bytes(other[at : at + 188] + piece("ts", "h264"))
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=False))
    late = threading.Timer(10, source.close)
    late.start()
    source.open()
    assert FRAMES - LOST <= sum(1 for _ in source.frames()) <= FRAMES
    late.cancel()


def test_a_damaged_map_begins_no_part(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path, data = tmp_path / "a.ts", bytearray(piece("ts", "h264"))
    maps = units_of(bytes(data), MAP_PID)
    kind = data.index(b"\x1b", maps[len(maps) // 2] + 17)
    data[kind] = 0x24
    path.write_bytes(data)
    assert parts_of(path)[0] == [("h264", *SMALL, FRAMES)]


def test_bytes_that_look_like_units_cost_little() -> None:
    """Half of them begin one, but no unit follows: each was tried on its own, two seconds for this piece."""
    data = (b"\x47\0" * 94 + b"\0\x47" * 94) * (PIECE // 376)
    began = time.thread_time()
    assert list(programs_of(data)) == []
    assert time.thread_time() - began < 0.3


def checksum(section: bytes) -> bytes:
    """Of a section (ISO 13818-1, annex A)."""
    rest = 0xFFFFFFFF
    for byte in section:
        rest ^= byte << 24
        for _ in range(8):
            rest = rest << 1 ^ (0x104C11DB7 if rest & 0x80000000 else 0)
    return rest.to_bytes(4, "big")


def with_announced_maps(data: bytes) -> bytes:
    """The same transport stream, with a map of H.265 after each of its own, which is not valid yet (ISO 13818-1,
    2.4.4.8, current_next_indicator)."""
    out, maps = bytearray(), set(units_of(data, MAP_PID))
    counter = 0
    for at in range(0, len(data) - 187, 188):
        unit = data[at : at + 188]
        if at not in maps:
            out += unit
            continue
        size = int.from_bytes(unit[6:8], "big") & 0xFFF
        section = bytearray(unit[5 : 8 + size - 4])
        section[5] = 0xC0 | 1 << 1  # version 1, not valid
        section[section.index(b"\x1b", 12)] = 0x24
        for each in (unit[4:], (b"\0" + section + checksum(bytes(section))).ljust(184, b"\xff")):
            out += bytes((*unit[:3], 0x10 | counter & 15)) + each
            counter += 1
    return bytes(out)


def test_a_map_that_is_announced_begins_no_part(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(with_announced_maps(piece("ts", "h264")) + piece("ts", "hevc", LARGE))
    (first, second), _ = parts_of(path)
    assert (first[:3], second) == (("h264", *SMALL), ("hevc", *LARGE, FRAMES))
    assert first[3] >= FRAMES - LOST


def with_long_maps(data: bytes) -> bytes:
    """The same transport stream, whose maps need two units: they have descriptors of 200 bytes more."""
    out, counter, maps = bytearray(), 0, set(units_of(data, MAP_PID))
    for at in range(0, len(data) - 187, 188):
        unit = data[at : at + 188]
        if at not in maps:
            out += unit
            continue
        size = int.from_bytes(unit[6:8], "big") & 0xFFF
        section, told = unit[5 : 8 + size - 4], int.from_bytes(unit[15:17], "big") & 0xFFF
        more = b"\x80\xc6" + bytes(198)
        section = (
            section[:1] + (0xB000 | size + 200).to_bytes(2, "big") + section[3:10]
            + (0xF000 | told + 200).to_bytes(2, "big") + more + section[12:]
        )  # fmt: skip
        section += checksum(section)
        for start, part in ((0x40, b"\0" + section[:183]), (0, section[183:])):
            head = bytes((0x47, start | MAP_PID >> 8, MAP_PID & 255, 0x10 | counter & 15))
            out += (head + part).ljust(188, b"\xff")
            counter += 1
    return bytes(out)


def test_maps_of_two_units(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(with_long_maps(piece("ts", "h264")) + with_long_maps(piece("ts", "hevc", LARGE)))
    (first, second), _ = parts_of(path)
    assert (first[:3], second) == (("h264", *SMALL), ("hevc", *LARGE, FRAMES))


def test_a_document_inside_another_is_no_part(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    """As an attached file is."""

    def element(name: str, content: bytes) -> bytes:
        return bytes.fromhex(name) + (1 << 56 | len(content)).to_bytes(8, "big") + content

    outer, path = piece("mkv", "h264"), tmp_path / "a.mkv"
    segment, cluster = outer.index(b"\x18\x53\x80\x67"), outer.index(b"\x1f\x43\xb6\x75")
    named = element("466e", b"b.mkv") + element("4660", b"video/x-matroska") + element("46ae", b"\1")
    attached = element("1941a469", element("61a7", named + element("465c", piece("mkv", "mpeg4", LARGE))))
    content = outer[segment + 12 : cluster] + attached + outer[cluster:]
    path.write_bytes(outer[:segment] + element("18538067", content) + piece("mkv", "hevc"))
    assert parts_of(path)[0] == [("h264", *SMALL, FRAMES), ("hevc", *SMALL, FRAMES)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """URL of a folder, whose files have a known length."""
    with files_of(tmp_path) as server:
        yield server.url


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(("h264", "hevc", "mpeg4", "mpeg2video"), 2)))
def test_a_recording_over_http_gets_another_decoder(
    tmp_path: Path, served: str, piece: Callable[..., bytes], before: str, after: str, truth: Truth
) -> None:
    """It cannot be opened in the middle."""
    (tmp_path / "a.ts").write_bytes(piece("ts", before) + piece("ts", after, LARGE))
    (first, second), source = parts_of(Path("a.ts"), url=f"{served}/a.ts")
    assert (first[:3], second[:3]) == ((before, *SMALL), (after, *LARGE))
    assert min(first[3], second[3]) >= FRAMES - LOST
    assert source.corrupt <= 2
    assert first[3] + second[3] + source.corrupt == truth.packets


def test_a_recording_over_http_cannot_change_the_decoder_of_a_gpu(
    tmp_path: Path, served: str, piece: Callable[..., bytes]
) -> None:
    (tmp_path / "a.ts").write_bytes(piece("ts", "h264") + piece("ts", "hevc"))
    source = AvSource(AvStreamSettings(id="s", url=f"{served}/a.ts", pace="asap"))
    source.open()
    frames = source.frames()
    assert next(frames).width
    source._device = 0  # there is none here: as if it had opened one
    with pytest.raises(SourceError, match=r"was h264, is hevc; .* set decode: software") as caught:
        list(frames)
    assert caught.value.reason == "codec_changed"
    assert caught.value.permanent


@pytest.mark.parametrize("local", [False, True])
def test_hls_changes_its_codec_between_two_segments(
    tmp_path: Path, served: str, piece: Callable[..., bytes], local: bool, truth: Truth
) -> None:
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:3"]
    for name, codec, size in (("a", "h264", SMALL), ("b", "hevc", LARGE), ("c", "h264", SMALL)):
        (tmp_path / f"{name}.ts").write_bytes(piece("ts", codec, size))
        lines += ["#EXTINF:2.4,", f"{name}.ts", "#EXT-X-DISCONTINUITY"]
    playlist = tmp_path / "l.m3u8"
    playlist.write_text("\n".join([*lines[:-1], "#EXT-X-ENDLIST", ""]))
    parts, source = parts_of(playlist, **({} if local else {"url": f"{served}/l.m3u8"}))
    assert [part[:3] for part in parts] == [("h264", *SMALL), ("hevc", *LARGE), ("h264", *SMALL)]
    assert min(part[3] for part in parts) >= FRAMES - LOST
    assert sum(part[3] for part in parts) + source.corrupt == truth.packets


@pytest.mark.parametrize("settings", [{}, {"max_fps": 5}, {"isolation": "process"}], ids=str)
def test_a_live_transport_stream_goes_on_without_a_new_connection(
    piece: Callable[..., bytes], settings: dict[str, Any]
) -> None:
    codec = "h264"
    statuses, metrics = list[StreamStatus](), StreamMetrics("s")
    ring: Ring[Frame] = Ring(1000)
    with udp_of(lambda: piece("ts", codec, SMALL if codec == "h264" else LARGE)) as url:
        stream = AvStreamSettings(id="s", url=url, **settings)
        runner = StreamRunner("s", lambda: open_source(stream), ring, metrics, statuses.append)
        runner.start()
        try:
            for codec in ("h264", "hevc", "mpeg2video", "h264"):
                size = SMALL if codec == "h264" else LARGE
                deadline = time.monotonic() + 60
                good = 0
                while good < 5:
                    assert time.monotonic() < deadline
                    frame = ring.get(20)
                    assert frame.epoch == 0
                    good += runner.status.codec == codec and (frame.width, frame.height) == size
        finally:
            runner.stop()
            assert runner.join(10)
    assert "BACKOFF" not in {status.state for status in statuses}


def test_a_later_start_does_not_read_what_is_before(
    tmp_path: Path, piece: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, path = piece("ts", "h264"), tmp_path / "a.ts"
    half = len(first) // 188 // 2 * 188
    nothing = (b"\x47\x1f\xff\x10" + bytes(184)) * (96 * PIECE // 4 // 188)
    path.write_bytes(first[:half] + nothing + first[half:] + piece("ts", "hevc", LARGE))
    reads, step = [], ProgramSearch._step

    def counted(search: ProgramSearch) -> None:
        reads.append(search.seen)
        step(search)

    monkeypatch.setattr(ProgramSearch, "_step", counted)
    parts, _ = parts_of(path, start_s=2.0)
    assert [part[0] for part in parts] == ["h264", "hevc"]
    assert 0 < parts[0][3] < FRAMES // 2
    assert len(reads) <= 8, "of 26 pieces of 4 MiB"


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (b"\0\0\1\x67\x64\0\x1e\0\0\1\x68\xee", b"\0\0\1\x40\1"),
        (b"\0\0\1\x40\1\x0c\1\xff\xff\0\0\1\x42\1", b"\0\0\1\x67"),
        (b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska", b"\x1a\x45\xdf\xa3"),
    ],
)
def test_bytes_that_look_like_another_begin_cost_little(begin: bytes, end: bytes) -> None:
    """The bytes behind each were looked at up to 200 times: four seconds for this piece, while no other thread ran."""
    data = begin + end * (PIECE // len(end))
    search = searching(lambda at, size: data[at : at + size], lambda: len(data))
    assert search is not None
    began = time.thread_time()
    assert search.start(0) == 0
    assert time.thread_time() - began < 0.3


JUNK = {"mp4": b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08mdat", "avi": b"RIFF\0\0\0\0"}
"""Looks like the begin of another file."""


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_thousands_of_parts_that_cannot_be_read_are_given_up(
    tmp_path: Path, piece: Callable[..., bytes], suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(piece(suffix, "h264") + JUNK[suffix] * 3000)
    with capture_logs() as logs:
        parts, _ = parts_of(path)
    assert parts == [("h264", *SMALL, FRAMES)]
    assert len(logs) == MOST_UNREADABLE + 1
    assert logs[-1]["event"].startswith("rest of the file not read")


def test_what_is_behind_a_part_that_cannot_be_read_is_repeated_too(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(piece("mp4", "h264") + JUNK["mp4"] + piece("mp4", "hevc", LARGE))
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap", loop=True))
    source.open()
    with capture_logs() as logs:
        widths = [frame.width for frame, _ in zip(source.frames(), range(4 * FRAMES), strict=False)]
        source.close()
    one = [width for width, _ in (SMALL, LARGE) for _ in range(FRAMES)]
    assert widths == 2 * one
    assert [each["event"] for each in logs] == ["part of the file not read"]


def test_a_stop_between_two_parts_opens_no_other(
    tmp_path: Path, piece: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(piece("mp4", "h264") + JUNK["mp4"] * 50)
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap"))
    source.open()
    opened: list[int] = []

    def fails(begin: int) -> Any:
        opened.append(begin)
        parts = source._connection.parts
        assert parts is not None
        parts.start(begin)
        source.close()
        raise SourceError("corrupt", "odd")

    monkeypatch.setattr(source, "_open_part", fails)
    assert sum(1 for _ in source.frames()) == FRAMES
    assert len(opened) == 1


def test_a_part_that_is_not_ahead_is_not_opened_again(
    tmp_path: Path, piece: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a search finds, a file is not read for ever."""
    path = tmp_path / "a.mp4"
    path.write_bytes(piece("mp4", "h264"))
    monkeypatch.setattr(PacketReader, "next_at", 0)
    source = AvSource(AvStreamSettings(id="s", url=str(path), pace="asap"))
    source.open()
    assert sum(1 for _ in itertools.islice(source.frames(), 2 * FRAMES)) == FRAMES
