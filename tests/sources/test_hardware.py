"""Pictures are freed by the thread that decodes, and a decoder outlives its connection. With software decoders, which
the classes cannot tell from others; tests/gpu has the real ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.sources import av_connection, closing, hardware
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_open import WHOLE, Part, open_container
from streamd.sources.av_source import AvSource
from streamd.sources.hardware import HardwareDecoder, Shelf, video_of
from tests.clips import write_clip
from tests.conftest import shared


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "a.mp4", frames=30)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The devices on which decoders were asked for; all of them are software."""
    found: list[int | None] = []

    def software(settings: AvStreamSettings, *, live: bool, device: int | None, part: Part = WHOLE) -> Any:
        found.append(device)
        return open_container(settings, live=live, device=None, part=part)

    monkeypatch.setattr(av_connection, "open_container", software)
    return found


def lost(camera: FakeCamera, stream: str) -> tuple[HardwareDecoder, int]:
    """Decoder and width of a connection that is cut after its first picture."""
    source = AvSource(AvStreamSettings(id=stream, url=camera.url), device=0)
    source.open()
    frames = source.frames()
    first = next(frames)
    decoder = source._connection.decoder
    assert isinstance(decoder, HardwareDecoder)
    camera.cut()
    with pytest.raises(SourceError):
        list(frames)
    source.close()
    return decoder, first.picture.width


def opened(clip: Path) -> tuple[HardwareDecoder, Iterator[Any]]:
    container = av.open(str(clip))
    stream = container.streams.video[0]
    return HardwareDecoder(stream.codec_context), container.demux(stream)


def test_it_keeps_what_somebody_uses_and_frees_the_rest(clip: Path) -> None:
    decoder, packets = opened(clip)
    used: list[Any] = []
    for packet in packets:
        used += decoder.decode(packet)
        used = used[-4:]
        # What was let go since is freed with the next packet.
        assert decoder.held <= 4 + 2
    assert len(used) == 4
    assert len({frame.planes[0].buffer_ptr for frame in used}) == 4


def test_another_thread_never_frees_a_picture(clip: Path) -> None:
    decoder, packets = opened(clip)
    while not (frames := decoder.decode(next(packets))):
        pass
    held = decoder.held
    gone = threading.Thread(target=frames.clear)
    gone.start()
    gone.join()
    assert decoder.held == held, "it is still here after the last user has dropped it"
    decoder.decode(next(packets))
    assert decoder.held <= 1


def test_the_next_connection_decodes_with_it(clip: Path) -> None:
    decoder, packets = opened(clip)
    for _ in range(7):
        decoder.decode(next(packets))
    with av.open(str(clip)) as again:
        stream = again.streams.video[0]
        assert video_of(stream.codec_context) == decoder.video
        decoder.context.flush_buffers()
        times = [frame.pts for packet in again.demux(stream) for frame in decoder.decode(packet)]
    with av.open(str(clip)) as fresh:
        assert times == [frame.pts for frame in fresh.decode(video=0)]


def test_pictures_that_are_left_at_the_end_are_kept_and_freed_as_well(clip: Path) -> None:
    decoder, packets = opened(clip)
    frames = [frame for _ in range(5) for frame in decoder.decode(next(packets))]
    frames += decoder.decode(None)
    assert decoder.held == len(frames) == 5
    decoder.flush_buffers()
    frames.clear()
    decoder.decode(None)
    assert decoder.held == 0


def test_the_shelf(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[HardwareDecoder] = []
    shelf = Shelf(gone.append)
    one, two, three = (opened(clip)[0] for _ in range(3))
    assert shelf.take("a", 0) is None
    shelf.put("a", one, 0)
    assert shelf.take("b", 0) is None
    assert shelf.take("a", 0) is one
    assert shelf.take("a", 0) is None, "one user only"
    shelf.put("a", one, 0)
    assert shelf.take("a", 1) is None, "it is on another GPU"
    assert gone == [one]
    shelf.put("a", one, 0)
    shelf.put("a", two, 0)
    assert gone == [one, one]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + hardware.KEEP_S + 1)
    shelf.put("b", three, 0)
    assert gone == [one, one, two], "nobody came for it"
    shelf.clear()
    assert gone == [one, one, two, three]
    assert shelf.take("b", 0) is None


def test_a_camera_that_comes_back_finds_its_decoder(asked: list[int | None]) -> None:
    with FakeCamera(Clip(str(shared("videos/4ku_traffic.mp4")))) as camera:
        seen = [lost(camera, "back") for _ in range(2)]
    assert seen[0] == seen[1], "the same decoder shows the same camera"
    assert asked == [0, None], "the second connection creates none"
    assert closing.shelf.take("back", 0) is seen[0][0]


def test_a_camera_that_shows_something_else_gets_another_decoder(asked: list[int | None]) -> None:
    seen: list[tuple[HardwareDecoder, int]] = []
    for name in ("4ku_traffic.mp4", "rknn_people-walking.mp4", "ped_amir.mp4"):
        with FakeCamera(Clip(str(shared(f"videos/{name}")))) as camera:
            seen.append(lost(camera, "other"))
    assert len({id(decoder) for decoder, _ in seen}) == 3
    assert [width for _, width in seen] == [1280, 1280, 1920]
    assert closing.shelf.take("other", 0) is seen[2][0]


def test_a_stream_that_is_stopped_keeps_no_decoder(asked: list[int | None], clip: Path) -> None:
    source = AvSource(AvStreamSettings(id="file", url=str(clip), pace="asap"), device=0)
    source.open()
    assert len(list(source.frames())) == 30
    assert closing.shelf.take("file", 0) is None
    with FakeCamera(Clip(str(shared("videos/4ku_traffic.mp4")))) as camera:
        source = AvSource(AvStreamSettings(id="stopped", url=camera.url), device=0)
        source.open()
        frames = source.frames()
        next(frames)
        source.close()
        list(frames)
    assert closing.shelf.take("stopped", 0) is None
