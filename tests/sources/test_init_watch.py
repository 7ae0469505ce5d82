"""HLS of fragmented MP4 whose init segment changes: decoded to its end, or ended with one error that says why."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.init_watch import InitWatch
from tests.clips import write_clip
from tests.serving import HttpServing
from tests.sources.test_parts import LARGE, SMALL, Truth, parts_of

FRAMES, SEGMENT_S = 50, 1
KINDS: dict[str, dict[str, Any]] = {
    "small": {}, "large": {"size": LARGE}, "same": {}, "hevc": {"codec": "libx265", "size": LARGE},
    "plain": {"options": {"bf": "0", "refs": "1"}}, "rate": {"fps": 30},
}  # fmt: skip


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind: an init segment, and two segments of a second."""
    folder = tmp_path_factory.mktemp("hls")
    for name, settings in KINDS.items():
        clip = write_clip(
            folder / f"{name}.mp4", frames=FRAMES, gop=25,
            container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}, **settings,
        )  # fmt: skip
        data = clip.read_bytes()
        (folder / name).mkdir()
        starts = [at - 4 for at in range(len(data)) if data[at : at + 4] == b"moof"] + [data.index(b"mfra") - 4]
        (folder / name / "init.mp4").write_bytes(data[: starts[0]])
        for i, (begin, end) in enumerate(itertools.pairwise(starts)):
            (folder / name / f"{i}.m4s").write_bytes(data[begin:end])
    return folder


def lines_of(folder: Path, *names: str, breaks: bool = True) -> list[str]:
    lines: list[str] = []
    for name in names:
        if breaks and lines:
            lines.append("#EXT-X-DISCONTINUITY")
        lines.append(f'#EXT-X-MAP:URI="{name}/init.mp4"')
        for segment in sorted((folder / name).glob("*.m4s"), key=lambda path: int(path.stem)):
            lines += [f"#EXTINF:{SEGMENT_S}.0,", f"{name}/{segment.name}"]
    return lines


HEAD = ["#EXTM3U", "#EXT-X-VERSION:7", f"#EXT-X-TARGETDURATION:{SEGMENT_S}"]


class Server(HttpServing):
    """Serves the folder, and a live playlist; notes what is asked for."""

    def __init__(self, folder: Path, version: str) -> None:
        self.asked: list[str] = []
        self.live: Callable[[], str] = lambda: ""
        server = self

        class Answer(http.server.SimpleHTTPRequestHandler):
            protocol_version = version

            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                server.asked.append(self.path)
                if self.path != "/live.m3u8":
                    super().do_GET()
                    return
                body = server.live().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

            def log_message(self, *_: Any) -> None: ...

        super().__init__(Answer)


@pytest.fixture(params=["file", "HTTP/1.0", "HTTP/1.1"])
def given(request: pytest.FixtureRequest, segments: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Settings of a source that reads a playlist of these parts."""

    def write(*names: str, breaks: bool = True) -> Path:
        path = segments / f"{'-'.join(names)}-{breaks}.m3u8"
        lines = [*HEAD, *lines_of(segments, *names, breaks=breaks), "#EXT-X-ENDLIST", ""]
        path.write_text("\n".join(lines))
        return path

    if request.param == "file":
        yield lambda *names, **how: {"url": str(write(*names, **how))}
        return
    with Server(segments, request.param) as server:  # 1.1: segments are fetched ahead
        yield lambda *names, **how: {"url": f"{server.url}/{write(*names, **how).name}"}


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Truth:
    return Truth(monkeypatch)


@pytest.mark.parametrize("breaks", [True, False])
def test_another_size(given: Callable[..., dict[str, Any]], breaks: bool, truth: Truth) -> None:
    """A third of the pictures was missing, and the rest was what the parameters of the first part made of them."""
    source = AvSource(
        AvStreamSettings(id="s", pace="asap", loop=False, **given("small", "large", "plain", breaks=breaks))
    )
    source.open()
    sizes = [(frame.width, frame.height, frame.quarantined) for frame in source.frames()]
    assert sizes == [(*SMALL, False)] * FRAMES + [(*LARGE, False)] * FRAMES + [(*SMALL, False)] * FRAMES
    assert source.corrupt == 0
    assert truth.packets == 3 * FRAMES


def test_other_parameters_give_the_right_pictures(given: Callable[..., dict[str, Any]], segments: Path) -> None:
    def pictures(settings: dict[str, Any]) -> list[bytes]:
        source = AvSource(AvStreamSettings(id="s", pace="asap", loop=False, **settings))
        source.open()
        return [frame.picture.native.to_ndarray().tobytes() for frame in source.frames()]  # type: ignore[union-attr]

    with av.open(str(segments / "plain.mp4")) as container:
        right = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
    assert len(right) == FRAMES
    assert pictures(given("small", "plain"))[FRAMES:] == right


def test_the_same_again(given: Callable[..., dict[str, Any]], truth: Truth) -> None:
    """An encoder that was started anew. FFmpeg does not show what comes until the time is that of before."""
    settings = given("small", "same", "small")
    parts, source = parts_of(Path("a"), **settings)
    assert parts == [("h264", *SMALL, 3 * FRAMES)]
    assert source.corrupt == 0
    assert truth.packets == 3 * FRAMES


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("small", "hevc"), "was h264, is hevc"),
        (("hevc", "small"), "was hevc, is h264"),
        (("small", "rate"), "its time scale changed"),
    ],
)
def test_what_needs_another_connection(
    given: Callable[..., dict[str, Any]], names: tuple[str, str], what: str, truth: Truth
) -> None:
    source = AvSource(AvStreamSettings(id="s", pace="asap", loop=False, **given(*names)))
    source.open()
    frames = 0
    with pytest.raises(SourceError, match=rf"{what} in mid-stream \(EXT-X-MAP\).*give the playlist of each") as caught:
        for _ in source.frames():
            frames += 1
    assert caught.value.reason == "codec_changed"
    assert caught.value.permanent
    assert frames == FRAMES
    assert frames + source.corrupt == truth.packets


def live(folder: Path, *names: str) -> Callable[[], str]:
    """A playlist of the latest four segments, of which one is added each second."""
    began = time.monotonic()
    groups: list[list[str]] = []
    head: list[str] = []
    for line in lines_of(folder, *names):
        head.append(line)
        if not line.startswith("#"):
            groups.append(head)
            head = []
    maps = [next(line for group in groups[i::-1] for line in group if "MAP" in line) for i in range(len(groups))]

    def text() -> str:
        count = min(len(groups), 4 + int((time.monotonic() - began) / SEGMENT_S))
        first = count - 4
        lines = [*HEAD, f"#EXT-X-MEDIA-SEQUENCE:{first}"]
        if not any("MAP" in line for line in groups[first]):
            lines.append(maps[first])
        return "\n".join([*lines, *(line for group in groups[first:count] for line in group), ""])

    return text


def test_a_live_playlist_asks_for_little_more(segments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg fetches the init segment at each update; it is looked at once, and where the time begins anew."""
    looked: list[str] = []
    read = InitWatch._read

    def counted(watch: InitWatch, address: str) -> Any:
        looked.append(address.rpartition("/")[2])
        return read(watch, address)

    monkeypatch.setattr(InitWatch, "_read", counted)
    with Server(segments, "HTTP/1.1") as server:
        server.live = live(segments, "small", "small", "small", "large")
        source = AvSource(AvStreamSettings(id="s", url=f"{server.url}/live.m3u8", pace="asap"))
        source.open()
        sizes = []
        for frame in source.frames():
            sizes.append((frame.width, frame.height))
            if sizes.count(LARGE) == FRAMES // 2:
                break
        source.close()
    assert sizes.count(SMALL) + FRAMES // 2 == len(sizes)
    assert sizes == sorted(sizes)
    assert len(sizes) % (FRAMES // 2) == 0
    assert server.asked.count("/small/init.mp4") >= 3
    assert len(looked) <= 5


def test_a_server_that_begins_each_segment_anew(
    segments: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without an init segment, each segment begins with what it would tell."""
    looked: list[str] = []
    read = InitWatch._read

    def counted(watch: InitWatch, address: str) -> Any:
        looked.append(address)
        return read(watch, address)

    monkeypatch.setattr(InitWatch, "_read", counted)
    clip = write_clip(
        tmp_path / "a.mp4", frames=300, gop=25,
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    ).read_bytes()  # fmt: skip
    starts = [at - 4 for at in range(len(clip)) if clip[at : at + 4] == b"moof"] + [clip.index(b"mfra") - 4]
    lines = [*HEAD]
    for i, (begin, end) in enumerate(itertools.pairwise(starts)):
        (tmp_path / f"{i}.mp4").write_bytes(clip[: starts[0]] + clip[begin:end])
        lines += ["#EXTINF:1.0,", f"{i}.mp4"]
    (tmp_path / "l.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    with Server(tmp_path, "HTTP/1.1") as server:
        parts, source = parts_of(tmp_path / "a", url=f"{server.url}/l.m3u8")
    assert parts == [("h264", *SMALL, 300)]
    assert source.corrupt == 0
    assert 0 < len(looked) <= 6


def test_a_live_playlist_with_another_codec_is_reconnected(segments: Path) -> None:
    with Server(segments, "HTTP/1.1") as server:
        server.live = live(segments, "small", "small", "hevc", "hevc")
        source = AvSource(AvStreamSettings(id="s", url=f"{server.url}/live.m3u8", pace="asap"))
        source.open()
        with pytest.raises(SourceError, match=r"was h264, is hevc .*; reconnecting") as caught:
            list(source.frames())
    assert caught.value.reason == "codec_changed"
    assert not caught.value.permanent


def later(segment: bytes, by: int) -> bytes:
    """The same segment at a later time, in units of its time scale (ISO 14496-12, 8.8.12)."""
    out, at = bytearray(segment), segment.index(b"tfdt")
    place = slice(at + 8, at + 8 + (8 if out[at + 4] else 4))
    out[place] = (int.from_bytes(out[place], "big") + by).to_bytes(place.stop - place.start, "big")
    return bytes(out)


def test_two_that_take_turns(segments: Path) -> None:
    """As advertisements do, while the time goes on. The second one was decoded with the parameters of the first."""
    with av.open(str(segments / "small.mp4")) as container:
        base = container.streams.video[0].time_base
    assert base is not None
    lines = []
    for k, name in enumerate(names := ("small", "large") * 3):
        folder = segments / f"turn{k}"
        folder.mkdir()
        lines += ["#EXT-X-DISCONTINUITY", f'#EXT-X-MAP:URI="{name}/init.mp4"']
        for i in range(FRAMES // 25):
            moved = later((segments / name / f"{i}.m4s").read_bytes(), int(k * FRAMES / 25 / base))
            (folder / f"{i}.m4s").write_bytes(moved)
            lines += [f"#EXTINF:{SEGMENT_S}.0,", f"turn{k}/{i}.m4s"]
    (segments / "turns.m3u8").write_text("\n".join([*HEAD, *lines[1:], "#EXT-X-ENDLIST", ""]))
    with Server(segments, "HTTP/1.1") as server:
        source = AvSource(AvStreamSettings(id="s", pace="asap", url=f"{server.url}/turns.m3u8"))
        source.open()
        found = [(frame.width, frame.height, frame.quarantined) for frame in source.frames()]
    sizes = {"small": SMALL, "large": LARGE}
    assert found == [(*sizes[name], False) for name in names for _ in range(FRAMES)]


def test_a_playlist_from_a_network_names_no_file_of_this_machine(
    given: Callable[..., dict[str, Any]], segments: Path
) -> None:
    settings = AvStreamSettings(id="s", pace="asap", loop=False, **given("small"))
    source = AvSource(settings)
    source.open()
    watch = source._reader._slices
    assert isinstance(watch, InitWatch)
    file, network = str(segments / "large" / "init.mp4"), f"{settings.url.rpartition('/')[0]}/large/init.mp4"
    assert watch._read(network) is not None
    assert (watch._read(file) is None) == (watch._read(f"file:{file}") is None) == settings.live
    source.close()
    list(source.frames())


def test_a_stop_asks_for_no_more(segments: Path) -> None:
    """Of up to eight addresses, each with a time limit of its own."""
    path = segments / "stop.m3u8"
    path.write_text("\n".join([*HEAD, *lines_of(segments, "small"), "#EXT-X-ENDLIST", ""]))
    source = AvSource(AvStreamSettings(id="s", pace="asap", url=str(path)))
    source.open()
    watch = source._reader._slices
    assert isinstance(watch, InitWatch)
    address = str(segments / "large" / "init.mp4")
    assert watch._read(address) is not None
    source.close()
    assert watch._read(address) is None
    list(source.frames())
