"""A camera that waits for its decoder keeps its packets since the last key frame, and decodes them when let in."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.flow.packets import PacketRing
from streamd.sources import admission, av_connection, backlog
from streamd.sources.admission import Gate, Ticket
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_open import WHOLE, Part, open_container
from streamd.sources.av_source import AvSource
from streamd.sources.backlog import Arrived, Backlog, Room
from streamd.types import Frame
from tests.clips import write_clip

S = 1_000_000_000
GOP, FPS = 100, 25


def packet(size: int = 100, key: bool = False) -> Any:
    made = av.Packet(size)
    made.is_keyframe = key
    return made


def arrived(at_s: float, size: int = 100, key: bool = False) -> Arrived:
    return Arrived(packet(size, key), int(at_s * S), 0, False)


def sizes(kept: Backlog) -> list[int]:
    return [each.packet.size for each in kept.take()]


def test_it_keeps_everything_since_the_latest_key_frame() -> None:
    kept = Backlog(shared=Room(10_000))
    kept.opened(0)
    assert not kept.put(arrived(0.1, 10))
    assert kept.put(arrived(0.2, 20, key=True))
    assert kept.put(arrived(0.3, 30))
    assert kept.put(arrived(0.4, 40, key=True))
    assert kept.put(arrived(0.5, 50))
    assert sizes(kept) == [40, 50]
    assert sizes(kept) == []
    assert not kept.put(arrived(0.6, 60)), "what it belongs to is gone"


def test_a_group_that_is_too_long_or_too_large_is_let_go_until_the_next_key_frame() -> None:
    kept = Backlog(shared=Room(1 << 40))
    kept.opened(0)
    kept.put(arrived(1, 10, key=True))
    assert kept.put(arrived(1 + backlog.LONGEST_NS / S, 20))
    assert len(kept) == 2
    # Decoding can begin anywhere by then, since no key frame has come for long; only the latest packet is kept.
    assert kept.put(arrived(1.1 + backlog.LONGEST_NS / S, 30))
    assert kept.put(arrived(1.2 + backlog.LONGEST_NS / S, 40))
    assert sizes(kept) == [40]
    kept.put(arrived(20, 10, key=True))
    assert not kept.put(arrived(20.1, backlog.LARGEST))
    assert not kept.put(arrived(20.2, 20))
    assert kept.put(arrived(21, 30, key=True))
    assert sizes(kept) == [30]


def test_all_streams_of_a_process_share_their_room_and_give_it_back() -> None:
    room = Room(100)
    one, two = Backlog(shared=room), Backlog(shared=room)
    assert one.put(arrived(1, 60, key=True))
    assert two.put(arrived(1, 30, key=True))
    assert not two.put(arrived(1.1, 30)), "there is no room"
    assert room.left == 40
    assert two.put(arrived(2, 30, key=True))
    assert room.left == 10
    one.take()
    two.clear()
    assert room.left == 100


def test_a_key_frame_without_room_can_be_decoded_at_once_but_is_not_kept() -> None:
    kept = Backlog(shared=Room(10))
    kept.opened(0)
    assert kept.put(arrived(1, 50, key=True))
    assert not kept.put(arrived(1.1, 5))
    assert len(kept) == 0


def test_a_camera_that_marks_no_key_frame_is_decoded_from_any_packet_on() -> None:
    kept = Backlog(shared=Room(10_000))
    kept.opened(100 * S)
    assert not kept.put(arrived(100 + backlog.KEY_WAIT_NS / S - 0.1, 10))
    assert kept.put(arrived(100 + backlog.KEY_WAIT_NS / S, 20))
    assert kept.put(arrived(100 + backlog.KEY_WAIT_NS / S + 0.1, 30))
    assert sizes(kept) == [30]


def test_where_only_key_frames_are_decoded_only_the_latest_is_kept() -> None:
    kept = Backlog(keys_only=True, shared=Room(10_000))
    kept.opened(0)
    assert not kept.put(arrived(0, 10))
    assert kept.put(arrived(1, 20, key=True))
    assert kept.put(arrived(60, 30)), "however long ago it was"
    assert sizes(kept) == [20]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The gate of a GPU whose decoders are in fact FFmpeg's own."""
    gate = Gate(1)
    monkeypatch.setattr(admission, "device_gate", lambda ordinal: gate)

    def software(settings: AvStreamSettings, *, live: bool, device: int | None, part: Part = WHOLE) -> Any:
        return open_container(settings, live=live, device=None, part=part)

    monkeypatch.setattr(av_connection, "open_container", software)
    return gate


@pytest.fixture
def taken(device: Gate) -> Ticket:
    ticket = device.try_enter(60)
    assert ticket is not None
    return ticket


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"

    def draw(width: int, height: int, index: int, pix_fmt: str) -> av.VideoFrame:
        image = np.random.default_rng(index // 4).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
        image[:, : width // 32] = (40 + 7 * index) % 200
        return av.VideoFrame.from_ndarray(image.repeat(16, 0).repeat(16, 1), format="rgb24").reformat(format=pix_fmt)

    return write_clip(path, frames=2 * GOP, fps=FPS, gop=GOP, size=(96, 64), options={"tune": "zerolatency"}, draw=draw)


def luma(frame: Any) -> Any:
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : frame.width].copy()


class Reader:
    """A source that is read by a thread."""

    def __init__(self, url: str, count: int, **settings: Any) -> None:
        self.packets = PacketRing(30)
        self.source = AvSource(AvStreamSettings(id="c", url=url, **settings), device=0, packets=self.packets)
        self.frames: list[Frame] = []
        self.lumas: list[Any] = []
        self.error: SourceError | None = None
        self.source.open()
        self._count = count
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            for frame in self.source.frames():
                self.frames.append(frame)
                self.lumas.append(luma(frame.picture.native))
                if len(self.frames) == self._count:
                    return
        except SourceError as error:
            self.error = error


def test_a_place_that_becomes_free_is_used_at_once_and_the_pictures_are_whole(
    device: Gate, taken: Ticket, clip: Path
) -> None:
    truth = [luma(frame) for frame in av.open(str(clip)).decode(video=0)]
    with FakeCamera(Clip(clip)) as camera:
        reader = Reader(camera.url, 5)
        time.sleep(1.5)
        assert not reader.frames
        freed_ns = time.monotonic_ns()
        taken.leave()
        reader.thread.join(1.5)  # the next key frame comes later
        assert len(reader.frames) == 5
        reader.source.close()
    shown = [next(i for i, picture in enumerate(truth) if np.array_equal(picture, one)) for one in reader.lumas]
    assert shown == list(range(shown[0], shown[0] + 5)), "one after the other"
    assert 25 < shown[0] < GOP, "in the middle of a group of pictures"
    # Those that were old when they were decoded are not served.
    assert abs(reader.frames[0].captured_ns - freed_ns) < 0.2 * S
    assert [frame.quarantined for frame in reader.frames] == [False] * 5
    assert (reader.source.skipped, reader.source.corrupt) == (0, 0)
    assert backlog.room.left == backlog.LARGEST_OF_ALL
    assert device.try_enter(1) is not None, "the place is free again"


def test_a_camera_that_is_closed_while_it_waits_gives_everything_back(taken: Ticket, clip: Path) -> None:
    with FakeCamera(Clip(clip)) as camera:
        reader = Reader(camera.url, 1)
        deadline = time.monotonic() + 5
        while backlog.room.left == backlog.LARGEST_OF_ALL and time.monotonic() < deadline:
            time.sleep(0.01)
        assert backlog.room.left < backlog.LARGEST_OF_ALL
        reader.source.close()
        reader.thread.join(2)
        assert not reader.thread.is_alive()
    assert backlog.room.left == backlog.LARGEST_OF_ALL
    assert (reader.frames, reader.error) == ([], None)


def test_max_fps_and_recording_are_not_disturbed_by_it(taken: Ticket, clip: Path) -> None:
    with FakeCamera(Clip(clip)) as camera:
        reader = Reader(camera.url, 10, max_fps=5)
        time.sleep(0.3)
        before = reader.packets.bytes
        time.sleep(0.7)
        assert reader.packets.bytes > before > 0, "packets are recorded while it waits"
        taken.leave()
        reader.thread.join(5)
        reader.source.close()
    times = [frame.captured_ns / S for frame in reader.frames]
    assert len(times) == 10
    assert 9 / 5 * 0.85 < times[-1] - times[0] < 9 / 5 * 1.25
    assert 30 < reader.source.skipped < 50, "four of five, from the first picture on"


def test_an_input_that_ends_while_it_waits_waits_for_its_place(taken: Ticket, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "short.mp4", frames=10, gop=10, size=(64, 64), options={"tune": "zerolatency"})
    with FakeCamera(Clip(clip), "hangup:10") as camera:
        reader = Reader(camera.url, 10)
        threading.Timer(1.0, taken.leave).start()
        reader.thread.join(5)
        assert not reader.thread.is_alive()
    assert len(reader.frames) == 1, "the newest picture"
    assert reader.error is not None
    assert reader.error.reason == "disconnected"
