"""Files that `cat` or a recorder has joined: each is decoded to its end, as if its parts were files of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamd.sources.packs import PackSearch, _clock_at
from streamd.sources.part_search import AviSearch, Mp4Search, _File, search_of, searching
from streamd.sources.programs import ProgramSearch
from streamd.sources.search import NEVER, PartSearch
from tests.clips import write_clip, write_two
from tests.sources.test_parts import LARGE, SMALL, Truth, checksum, parts_of

FRAMES = 40
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
M2TS = {"mpegts_m2ts_mode": "1"}
KINDS: dict[str, dict[str, str]] = {
    "mp4": {}, "mov": {}, "front.mp4": {"movflags": "faststart"}, "fragments.mp4": FRAGMENTED, "avi": {}, "flv": {},
    "m2ts": M2TS, "ts": {}, "mkv": {}, "vob": {}, "mpg": {}, "asf": {}, "ivf": {}, "h264": {}, "hevc": {},
}  # fmt: skip
CODECS = {
    "h264": "libx264",
    "hevc": "libx265",
    "mpeg4": "mpeg4",
    "mpeg2video": "mpeg2video",
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
}


@pytest.fixture(scope="module")
def piece(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    folder = tmp_path_factory.mktemp("pieces")
    made: dict[tuple[Any, ...], bytes] = {}

    def make(kind: str, codec: str = "h264", size: tuple[int, int] = SMALL, frames: int = FRAMES) -> bytes:
        kind = codec if kind in ("h264", "hevc") else kind
        key = kind, codec, size, frames
        if key not in made:
            made[key] = write_clip(
                folder / f"{len(made)}.{kind}", frames=frames, size=size, codec=CODECS[codec],
                options={"bf": "2"} if codec == "h264" else {}, container_options=KINDS[kind],
            ).read_bytes()  # fmt: skip
        return made[key]

    return make


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Truth:
    return Truth(monkeypatch)


def with_correction(data: bytes) -> bytes:
    """Transport packets of 204 bytes."""
    return b"".join(data[at : at + 188] + bytes(16) for at in range(0, len(data), 188))


@pytest.mark.parametrize(
    ("kind", "codecs"),
    [
        *((kind, ("h264", "h264")) for kind in ("mp4", "mov", "front.mp4", "fragments.mp4", "avi", "flv", "mkv")),
        *((kind, ("h264", "hevc")) for kind in KINDS if kind not in ("avi", "flv", "mpg", "asf", "ivf", "hevc")),
        *((kind, ("hevc", "h264")) for kind in ("mp4", "fragments.mp4", "m2ts", "hevc")),
        ("avi", ("mpeg4", "h264")),
        ("vob", ("hevc", "h264")),
        ("asf", ("h264", "mpeg4")),
        ("ivf", ("vp8", "vp9")),
        *(("mpg", codecs) for codecs in (("mpeg2video", "h264"), ("h264", "mpeg2video"), ("mpeg2video", "mpeg4"))),
        ("mp4", ("mpeg4", "h264")),
    ],
)
def test_joined_files(
    tmp_path: Path, piece: Callable[..., bytes], kind: str, codecs: tuple[str, str], truth: Truth
) -> None:
    """Of MP4 and FLV, only the first was read; others gave what the first one's decoder made of the second one."""
    path = tmp_path / f"a.{kind}"
    path.write_bytes(piece(kind, codecs[0]) + piece(kind, codecs[1], LARGE) + piece(kind, codecs[0]))
    parts, source = parts_of(path)
    small, large = (codecs[0], *SMALL, FRAMES), (codecs[1], *LARGE, FRAMES)
    assert parts == [small, large, small]
    assert source.corrupt == 0
    if kind not in ("vob", "mpg"):  # FFmpeg does not tell where most packets of these begin
        assert truth.packets == 3 * FRAMES


@pytest.mark.parametrize("kind", ["mp4", "fragments.mp4", "avi", "flv"])
def test_the_same_video_again(tmp_path: Path, piece: Callable[..., bytes], kind: str, truth: Truth) -> None:
    """FFmpeg drops the first pictures of fragments whose time begins anew."""
    path = tmp_path / f"a.{kind}"
    path.write_bytes(piece(kind) * 3)
    parts, source = parts_of(path)
    assert parts == [("h264", *SMALL, FRAMES)] * 3
    assert truth.packets == 3 * FRAMES
    assert source.corrupt == 0


def test_kinds_of_mp4_one_behind_the_other(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    """FFmpeg said that it cannot read the file."""
    path = tmp_path / "a.mp4"
    path.write_bytes(piece("mp4") + piece("fragments.mp4", "hevc", LARGE) + piece("front.mp4"))
    small = ("h264", *SMALL, FRAMES)
    assert parts_of(path)[0] == [small, ("hevc", *LARGE, FRAMES), small]


def test_transport_packets_with_error_correction(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(with_correction(piece("ts") + piece("ts", "hevc", LARGE)))
    assert parts_of(path)[0] == [("h264", *SMALL, FRAMES), ("hevc", *LARGE, FRAMES)]


@pytest.mark.parametrize("kind", ["mp4", "fragments.mp4", "avi", "flv", "mkv"])
def test_one_of_them_was_cut_off(tmp_path: Path, piece: Callable[..., bytes], kind: str) -> None:
    """The power failed. Of MP4, nothing is left of it."""
    whole, cut = piece(kind), piece(kind, "h264", LARGE)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(whole + cut[: len(cut) * 9 // 10] + whole)
    parts, _ = parts_of(path)
    assert parts[0] == parts[-1] == ("h264", *SMALL, FRAMES)
    assert [part[:3] for part in parts[1:-1]] == [("h264", *LARGE)] * (kind != "mp4")


def test_a_server_repeats_what_the_fragments_begin_with(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    """The time goes on: no new part."""
    data = piece("fragments.mp4")
    data = data[: data.index(b"mfra") - 4]
    first = data.index(b"moof") - 4
    second = data.index(b"moof", first + 8) - 4
    path = tmp_path / "a.mp4"
    path.write_bytes(data[:second] + data[:first] + data[second:])
    assert parts_of(path)[0] == [("h264", *SMALL, FRAMES)]


def search(data: bytes) -> PartSearch:
    found = searching(lambda at, size: data[at : at + size], lambda: len(data))
    assert found is not None
    return found


def test_the_lists_of_a_long_avi_are_one_file(piece: Callable[..., bytes]) -> None:
    data = piece("avi")
    more = b"RIFF" + (4 + 1000).to_bytes(4, "little") + b"AVIX" + bytes(1000)
    found = search(data + more + more)
    assert isinstance(found, AviSearch)
    assert found.start(0) == 0
    found.look(1 << 40)
    assert found.next_at is None
    assert search(data + more + data).start(0) == len(data + more)


def test_an_avi_that_does_not_tell_its_length(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    data = piece("avi")
    path = tmp_path / "a.avi"
    path.write_bytes((data[:4] + bytes(4) + data[8:]) * 2)
    assert parts_of(path)[0] == [("h264", *SMALL, FRAMES)] * 2


def test_what_follows_the_last_box_is_nothing(tmp_path: Path, piece: Callable[..., bytes]) -> None:
    for rest in (b"\0" * 100, b"\xff" * 5000, b"abc", (8).to_bytes(4, "big") + b"free", b"\0\0\0\0mdat" + bytes(99)):
        path = tmp_path / "a.mp4"
        path.write_bytes(piece("mp4") + rest)
        assert parts_of(path)[0] == [("h264", *SMALL, FRAMES)]


def test_boxes_of_a_long_file_are_looked_at_as_it_is_read(piece: Callable[..., bytes]) -> None:
    data = piece("fragments.mp4")
    fragment = data[data.index(b"moof") - 4 : data.index(b"mfra") - 4]
    found = search(data[: data.index(b"moof") - 4] + fragment * (12_000_000 // len(fragment)) + data)
    assert isinstance(found, Mp4Search)
    assert found.start(0) == 0
    assert found.seen < 5_000_000
    found.look(1 << 40)
    assert found.next_at == len(found._read(0, 1 << 40)) - len(data)


def test_many_tiny_parts(tmp_path: Path, piece: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg examined five megabytes for each, and took the first one for another codec: two of 800 pictures came."""
    count, path = 400, tmp_path / "a.ts"
    path.write_bytes((piece("ts", frames=2) + piece("ts", "hevc", frames=2)) * (count // 2))
    looked = 0
    step = PartSearch.look

    def counted(search: PartSearch, until: int) -> None:
        nonlocal looked
        before = search.seen
        step(search, until)
        looked += search.seen - before

    monkeypatch.setattr(PartSearch, "look", counted)
    began = time.thread_time()
    parts, source = parts_of(path)
    assert [part[0] for part in parts] == ["h264", "hevc"] * (count // 2)
    assert {part[1:] for part in parts} == {(*SMALL, 2)}
    assert source.corrupt == 0
    assert looked < 2 * path.stat().st_size
    assert time.thread_time() - began < 10


SMALL_BOXES = 20_000
TINY = {"fragments.mp4": b"\0\0\0\x08free", "avi": b"RIFF\x04\0\0\0AVIX", "mkv": bytes(1 << 20), "ts": bytes(1 << 20)}


@pytest.mark.parametrize("kind", TINY)
def test_a_stop_ends_a_search(tmp_path: Path, piece: Callable[..., bytes], kind: str) -> None:
    """A file of a million boxes took twenty seconds, for which a stop waited."""
    path = tmp_path / "a"
    path.write_bytes(piece(kind) + TINY[kind] * (SMALL_BOXES if len(TINY[kind]) < 16 else 40))
    asked = 0

    def closed() -> bool:
        nonlocal asked
        asked += 1
        return asked > 8

    search = search_of(str(path), closed)
    assert search is not None
    search.start(0)
    search.look(NEVER)
    assert search.next_at is None
    assert asked < 50


def test_small_boxes_are_read_together(tmp_path: Path, piece: Callable[..., bytes], monkeypatch: Any) -> None:
    path = tmp_path / "a"
    path.write_bytes(piece("fragments.mp4") + TINY["fragments.mp4"] * SMALL_BOXES + piece("mp4", "hevc"))
    search = search_of(str(path))
    assert search is not None
    loads: list[int] = []
    load = _File._load

    def counted(file: _File, at: int, size: int) -> bytes:
        loads.append(at)
        return load(file, at, size)

    monkeypatch.setattr(_File, "_load", counted)
    search.start(0)
    search.look(NEVER)
    assert search.next_at == len(piece("fragments.mp4")) + 8 * SMALL_BOXES
    assert len(loads) < SMALL_BOXES / 100


def map_of(number: int, kind: int, pid: int = 0x100) -> bytes:
    """A transport packet with the map of a program of one track."""
    track = bytes((kind,)) + (0xE000 | pid).to_bytes(2, "big") + b"\xf0\0"
    body = number.to_bytes(2, "big") + b"\xc1\0\0\xe1\0\xf0\0" + track
    section = b"\x02" + (0xB000 | len(body) + 4).to_bytes(2, "big") + body
    return (b"\x47\x50\0\x10\0" + section + checksum(section)).ljust(188, b"\xff")


H264, H265 = 0x1B, 0x24


@pytest.mark.parametrize(
    ("maps", "kept"),
    [
        ([map_of(number, H264) for number in range(5000)], 5000),
        ([map_of(1, H264), map_of(2, H264, 0x200), map_of(2, H265, 0x200)], 15_000),
        ([map_of(1, H264), map_of(1, H264, 0x200)], 23_000),
    ],
)
def test_many_maps_take_neither_long_nor_much_memory(maps: list[bytes], kept: int) -> None:
    """Each was compared with all before it, and kept: a minute for this piece, and gigabytes for a file."""
    data = b"".join(maps) * (60_000 // len(maps))
    search = searching(lambda at, size: data[at : at + size], lambda: len(data))
    assert isinstance(search, ProgramSearch)
    began = time.thread_time()
    search.start(0)
    search.track = 0x100
    search.look(NEVER)
    assert search.next_at is None
    assert time.thread_time() - began < 3
    assert len(search._programs) <= kept


def test_other_threads_run_while_one_searches() -> None:
    """A search of 64 MiB, as of a recording over HTTP, kept the interpreter lock for seconds."""
    lengths: list[int] = []

    class Spy:
        def search(self, data: bytes, begin: int, end: int) -> None:
            lengths.append(min(end, len(data)) - begin)

    data = b"FLV\1\5\0\0\0\x09" + bytes(3 << 20)
    search: Any = searching(lambda at, size: data[at : at + size], lambda: len(data))
    search.begins = Spy()
    search.find(9, len(data))
    assert sum(lengths) >= 3 << 20
    assert max(lengths) < 1 << 17
    search.start(0)
    assert max(lengths) < 1 << 17


@pytest.mark.parametrize("clock", [0, 1, 32767, 32768, 123456789, 2**33 - 1])
def test_the_clock_of_a_pack(clock: int) -> None:
    """A unit of 0.36 s was too long for short parts: the third of three looked like the first going on."""
    high, middle, low = clock >> 30, clock >> 15 & 0x7FFF, clock & 0x7FFF
    second = 1 << 46 | high << 43 | 1 << 42 | middle << 27 | 1 << 26 | low << 11 | 1 << 10 | 0x3FF
    first = 2 << 36 | high << 33 | 1 << 32 | middle << 17 | 1 << 16 | low << 1 | 1
    assert _clock_at(second.to_bytes(6, "big"), 0) == clock
    assert _clock_at(first.to_bytes(5, "big") + b"\xff", 0) == clock


@pytest.mark.parametrize("kind", ["mpg", "vob"])
def test_two_videos_of_a_program_stream_at_the_same_time_are_no_parts(tmp_path: Path, kind: str) -> None:
    """Where both were in the first pack, the file was opened again and again."""
    path = tmp_path / f"a.{kind}"
    write_two({"libx264": LARGE, "mpeg2video": SMALL}, path, frames=FRAMES)
    search = search_of(str(path))
    assert isinstance(search, PackSearch)
    assert search.start(0) == 0
    search.look(NEVER)
    assert search.next_at is None
    parts, _ = parts_of(path)
    assert parts == [("h264", *LARGE, FRAMES)]


def test_two_codecs_in_one_pack_are_no_part_that_begins_where_it_ends(piece: Callable[..., bytes]) -> None:
    def without_pack(data: bytes) -> bytes:
        return data[data.index(b"\0\0\1\xe0") :]

    first, second = piece("mpg", "mpeg2video"), without_pack(piece("mpg", "mpeg4"))
    data = first[: first.index(b"\0\0\1\xba", 4)] + second
    search = searching(lambda at, size: data[at : at + size], lambda: len(data))
    assert search is not None
    search.start(0)
    search.look(NEVER)
    assert search.next_at == len(data) - len(second)
