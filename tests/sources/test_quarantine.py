"""What follows a loss is withheld until the next clean key frame: the rules, and a real camera that loses packets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from rtp_clip import CLOCK

from streamd.errors import SourceError
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.quarantine import HOLD_NS, PacketLossListener, Quarantine
from streamd.sources.synthetic import SyntheticSource, SyntheticStreamSettings
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame, StreamStatus
from tests.clips import write_clip
from tests.conftest import shared
from tests.lossy_camera import camera, luma, luma_by_stamp

SECOND = 1_000_000_000
CLIPS = (
    "4ku_traffic.mp4", "finite_car.mp4", "intel_car-detection.mp4", "intel_one-by-one-person-detection.mp4",
    "ped_amir.mp4", "person-bicycle-car-detection.mp4", "rknn_people-walking.mp4", "vtest.avi",
)  # fmt: skip


def play(q: Quarantine, script: str) -> str:
    """Runs pictures in coding order: K key, P other, small damaged, C marked by the decoder. Returns + and -."""
    out = ""
    for i, what in enumerate(script):
        key = what in "Kk"
        tainted = q.packet(key=key, damaged=what.islower(), now_ns=i)
        out += "-" if q.frame(tainted=tainted, corrupt=what == "C", key=key, now_ns=i) else "+"
    return out


@pytest.mark.parametrize(
    ("script", "withheld"),
    [
        ("KPPPKPP", "+++++++"),
        ("KPpPPKPP", "++---+++"),
        ("KPpkPPKP", "++----++"),
        ("KPCPKP", "++--++"),
        ("PPKP", "++++"),
        ("KpKpK", "+-+-+"),
    ],
)
def test_from_the_loss_to_the_next_clean_key_frame(script: str, withheld: str) -> None:
    assert play(Quarantine(), script) == withheld


def test_pictures_before_a_key_frame_in_presentation_are_withheld_with_what_they_are_predicted_from() -> None:
    q = Quarantine()
    assert q.packet(key=False, damaged=True, now_ns=0)
    assert q.frame(tainted=True, corrupt=False, key=False, now_ns=0)
    assert not q.packet(key=True, damaged=False, now_ns=1)
    assert not q.packet(key=False, damaged=False, now_ns=2)
    # An open GOP: the second packet's picture is shown before the key frame's.
    assert q.frame(tainted=False, corrupt=False, key=False, now_ns=3)
    assert not q.frame(tainted=False, corrupt=False, key=True, now_ns=4)


def test_a_stream_without_key_frames_is_not_withheld_for_ever() -> None:
    q = Quarantine()
    assert q.packet(key=False, damaged=True, now_ns=0)
    for now_ns in range(0, HOLD_NS + 1, SECOND):
        assert q.frame(tainted=q.packet(key=False, damaged=False, now_ns=now_ns), corrupt=False, key=False,
                       now_ns=now_ns)  # fmt: skip
    late = HOLD_NS + SECOND
    assert not q.frame(tainted=q.packet(key=False, damaged=False, now_ns=late), corrupt=False, key=False, now_ns=late)


def test_a_loss_while_probing_withholds_what_probing_has_buffered() -> None:
    q = Quarantine()
    q.opened(10 * SECOND, 2 * SECOND, lost=1)
    assert q.packet(key=True, damaged=False, now_ns=10 * SECOND)
    assert not q.packet(key=True, damaged=False, now_ns=12 * SECOND)
    q = Quarantine()
    q.opened(10 * SECOND, 2 * SECOND, lost=0)
    assert not q.packet(key=True, damaged=False, now_ns=10 * SECOND)


def test_what_the_decoder_refuses_before_the_first_picture_is_no_loss() -> None:
    q = Quarantine()
    q.refused(0)
    assert not q.packet(key=False, damaged=False, now_ns=1)
    q.frame(tainted=False, corrupt=False, key=True, now_ns=1)
    q.refused(2)
    assert q.packet(key=False, damaged=False, now_ns=3)


def test_each_thread_hears_its_own_losses_and_nothing_else_is_printed(capfd: Any) -> None:
    started = threading.Barrier(2)
    heard = {}

    def read(lost: int) -> None:
        ear = PacketLossListener(rtp=True)
        started.wait(5)
        with ear:
            for _ in range(50):
                av.logging.log(av.logging.WARNING, "rtsp", f"RTP: missed {lost} packets\n")
                av.logging.log(av.logging.WARNING, "rtsp", "max delay reached. need to consume packet\n")
        heard[lost] = ear.take()
        assert ear.take() == 0

    threads = [threading.Thread(target=read, args=(n,)) for n in (1, 7)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert heard == {1: 50, 7: 350}
    av.logging.log(av.logging.ERROR, "rtsp", "nobody listens\n")
    assert capfd.readouterr() == ("", "")
    ear = PacketLossListener(rtp=False)
    with ear:
        pass
    assert ear.take() == 0


@pytest.mark.parametrize("clip", CLIPS)
def test_clean_clips_are_never_withheld(clip: str) -> None:
    source = AvSource(AvStreamSettings(id="s", url=str(shared(f"videos/{clip}")), pace="asap"))
    source.open()
    seen = 0
    for frame in source.frames():
        assert not frame.quarantined
        seen += 1
        if seen >= 250:
            break
    source.close()
    assert seen >= 90


@pytest.mark.parametrize("clip", [clip for clip in CLIPS if clip.endswith(".mp4")])
def test_a_clean_camera_joined_in_mid_gop_is_never_withheld(clip: str) -> None:
    with camera(shared(f"videos/{clip}"), first=17, count=160, speed=0) as cam:
        assert not cam.pictures[0].key
        frames = list(until_it_ends(AvSource(AvStreamSettings(id="s", url=cam.url, read_timeout_s=3))))
    assert len(frames) > 20
    assert not any(f.quarantined for f in frames)


def until_it_ends(source: AvSource) -> Iterator[Frame]:
    source.open()
    try:
        yield from source.frames()
    except SourceError:
        return


@pytest.mark.parametrize(
    ("clip", "picture", "packet"),
    [
        # One packet of a picture, and a whole picture: what a camera drops whose TCP stalls.
        ("ped_amir.mp4", 52, 5),
        ("4ku_traffic.mp4", 112, None),
        # H.265 conceals in silence: FFmpeg marks none of its pictures.
        ("finite_car.mp4", 168, 1),
    ],
)
def test_no_damaged_picture_passes_and_what_is_outside_the_gop_does(
    clip: str, picture: int, packet: int | None
) -> None:
    path = shared(f"videos/{clip}")
    clean = luma_by_stamp(path, 212)
    damaged: set[int] = set()
    withheld: set[int] = set()
    passed: set[int] = set()
    # Slow enough that the loss comes after probing.
    with camera(path, count=212, speed=6, lose=lambda i, k, n: i == picture and packet in (k, None)) as cam:
        units = cam.pictures
        source = AvSource(AvStreamSettings(id="s", url=cam.url, read_timeout_s=3))
        for f in until_it_ends(source):
            if f.pts_ns is not None:
                ticks = round(f.pts_ns * CLOCK / 1e9) + units[0].stamp
                (withheld if f.quarantined else passed).add(ticks)
                if not np.array_equal(luma(f.picture.native), clean[ticks]):
                    damaged.add(ticks)
    assert 1 <= source.lost <= len(cam.lost)
    assert damaged
    assert damaged <= withheld
    # The loss is heard with the picture that is being read, the one before: nothing earlier is withheld.
    key = next(u.stamp for u in units[picture:] if u.key)
    assert min(withheld) >= min(u.stamp for u in units[picture - 1 :])
    assert max(withheld) < key
    assert max(passed) > key


def test_a_damaged_file_is_withheld_too_and_only_until_the_next_key_frame(tmp_path: Path) -> None:
    """MPEG-TS with a packet cut out: the demuxer marks what is missing."""
    clip = write_clip(tmp_path / "clip.ts", frames=60, size=(640, 480), gop=20, options={"bf": "0"})
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        positions = [p.pos for p in container.demux(video=0) if p.size]
    at = positions[30]
    assert at is not None
    del data[at // 188 * 188 : at // 188 * 188 + 188]
    clip.write_bytes(bytes(data))
    marks = {}
    for choice in ("quarantine", "publish"):
        source = AvSource(AvStreamSettings(id="s", url=str(clip), pace="asap", on_corruption=choice))
        source.open()
        marks[choice] = [(f.pts_ns, f.quarantined) for f in source.frames()]
        source.close()
    assert any(withheld for _, withheld in marks["quarantine"][25:42])
    assert not any(withheld for _, withheld in marks["quarantine"][:25] + marks["quarantine"][42:])
    assert not any(withheld for _, withheld in marks["publish"])


class Withheld(SyntheticSource):
    """Ten pictures half a second apart, of which 3 to 6 are damaged."""

    def __init__(self) -> None:
        super().__init__(SyntheticStreamSettings(id="s", fps=0, count=10))
        self.lost = 4

    def frames(self) -> Iterator[Frame]:
        for i, frame in enumerate(super().frames()):
            frame.quarantined = 3 <= i <= 6
            frame.captured_ns = i * SECOND // 2
            yield frame


def test_the_account_is_exact_and_a_status_tells() -> None:
    statuses: list[StreamStatus] = []
    metrics = StreamMetrics("s")
    ring: Ring[Frame] = Ring(32, "block")
    runner = StreamRunner("s", Withheld, ring, metrics, statuses.append)
    runner.start()
    assert runner.join(10)
    passed = []
    while (frame := ring.take()) is not None:
        passed.append(frame.seq)
    assert passed == [0, 1, 2, 7, 8, 9]
    assert metrics.received == 10
    assert metrics.dropped == {"quarantine": 4}
    assert metrics.lost == 4
    told = [(s.state, s.reason) for s in statuses]
    assert told[:3] == [("CONNECTING", ""), ("LIVE", ""), ("LIVE", "corrupt")]
    assert told[-1] == ("ENDED", "eof")


def test_what_it_costs_a_frame() -> None:
    """Microseconds, not more: the two calls, and the ear around a read. The bound is wide for loaded machines."""
    q, ear = Quarantine(), PacketLossListener(rtp=True)
    rounds = 20_000
    started = time.perf_counter()
    for i in range(rounds):
        with ear:
            pass
        ear.take()
        tainted = q.packet(key=False, damaged=False, now_ns=i)
        q.frame(tainted=tainted, corrupt=False, key=False, now_ns=i)
    assert (time.perf_counter() - started) / rounds < 50e-6
