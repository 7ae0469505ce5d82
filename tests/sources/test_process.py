"""A decoder in a process of its own: the same pictures and errors as in a thread, and nothing left of one that dies."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from fakecam import FakeCamera
from pydantic import TypeAdapter
from rtp_clip import Clip

from streamd.errors import SourceError
from streamd.imaging.letterbox import HostLetterbox
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.process import SILENCE_LIMIT_S, ProcessSource
from streamd.sources.shared import Shape
from streamd.types import Frame
from tests.behaviour.daemon import until
from tests.clips import join, write_clip
from tests.conftest import shared

HELD = 8
RESTARTS = 15


def settings(url: Path | str, **more: Any) -> AvStreamSettings:
    return AvStreamSettings(id="s", url=str(url), **({"pace": "asap", "isolation": "process"} | more))


def segments() -> set[str]:
    """Named shared memory, but for that of clocks which other tests step."""
    return {name for name in os.listdir("/dev/shm") if "faketime" not in name}


@contextlib.contextmanager
def opened(url: Path | str, **more: Any) -> Iterator[ProcessSource]:
    source = ProcessSource(settings(url, **more), held=HELD)
    source.open()
    try:
        yield source
    finally:
        source.close()


def planes(frame: Frame) -> list[bytes]:
    """The pixels without the padding of their rows, which is nobody's."""
    components = frame.picture.video_frame().format.components
    sample = 2 if "10" in frame.picture.format or "16" in frame.picture.format else 1
    out = []
    for i, plane in enumerate(frame.picture.native.planes):
        inside = [c for c in components if c.plane == i]
        columns = inside[0].width * sample * len(inside)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: inside[0].height]
        out.append(rows[:, :columns].tobytes())
    return out


def same_as_in_a_thread(url: Path, limit: int = 10_000, **more: Any) -> int:
    """Compares everything that does not depend on the time of day; returns the number of pictures."""
    thread = AvSource(settings(url, **more))
    count = 0
    with opened(url, **more) as process:
        assert thread.open().width
        for ours, theirs in zip(process.frames(), thread.frames(), strict=False):
            count += 1
            a, b = ours.picture, theirs.picture
            for name in (
                "format",
                "width",
                "height",
                "matrix",
                "full_range",
                "rotation",
                "mirrored",
                "pixel_aspect",
                "device",
            ):
                assert getattr(a, name) == getattr(b, name), name
            assert (ours.pts_ns, ours.width, ours.height, ours.roi) == (
                theirs.pts_ns, theirs.width, theirs.height, theirs.roi,
            )  # fmt: skip
            assert planes(ours) == planes(theirs)
            if count == limit:
                break
        thread.close()
    return count


@pytest.mark.parametrize("name", ["4ku_traffic.mp4", "finite_car.mp4", "vtest.avi"])
def test_real_clips_are_the_same_bit_by_bit(name: str) -> None:
    assert same_as_in_a_thread(shared(f"videos/{name}"), limit=60) == 60


def test_every_change_in_mid_stream_is_the_same_and_can_be_letterboxed(tmp_path: Path) -> None:
    """Sizes and pixel formats, the last two of which go through swscale."""
    parts = [
        write_clip(tmp_path / f"{i}.ts", frames=4, size=size, codec=codec, pix_fmt=pix_fmt)
        for i, (codec, pix_fmt, size) in enumerate(
            [
                ("libx264", "yuv420p", (192, 108)),
                ("libx264", "yuv420p", (640, 480)),
                ("libx264", "yuv422p", (130, 70)),
                ("libx264", "yuv444p", (130, 70)),
                ("libx264", "yuv420p10le", (130, 70)),
                ("libx264", "yuv444p10le", (130, 70)),
                ("libx264rgb", "rgb24", (130, 70)),
            ]
        )
    ]
    clip = join(tmp_path / "all.ts", parts)
    assert same_as_in_a_thread(clip) == 28
    letterbox = HostLetterbox(64, 64)
    thread = AvSource(settings(clip))
    thread.open()
    formats = []
    with opened(clip) as process:
        for ours, theirs in zip(process.frames(), thread.frames(), strict=True):
            formats.append(ours.picture.format)
            images = np.zeros((2, 64, 64, 3), np.uint8)
            letterbox(ours, images[0])
            letterbox(theirs, images[1])
            assert images[0].std() > 0
            np.testing.assert_array_equal(*images)
    assert set(formats) == {"yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "gbrp"}


def test_time_stamps_that_no_clock_can_hold_are_left_out(tmp_path: Path) -> None:
    with opened(write_clip(tmp_path / "clip.mkv", frames=4, pts=lambda i: 10**16 + 40 * i)) as source:
        assert [frame.pts_ns for frame in source.frames()] == [None] * 4


def test_pictures_of_the_old_size_outlive_the_change(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "small.ts", frames=5)
    large = write_clip(tmp_path / "large.ts", frames=5, size=(640, 480))
    with opened(join(tmp_path / "both.ts", [small, large])) as source:
        frames = list(source.frames())
    thread = AvSource(settings(tmp_path / "both.ts"))
    thread.open()
    assert [planes(f) for f in frames] == [planes(f) for f in thread.frames()]
    assert {f.width for f in frames} == {192, 640}


@pytest.mark.parametrize("case", ["missing", "noise", "refused", "silent"])
def test_errors_are_those_of_a_thread(tmp_path: Path, case: str) -> None:
    (tmp_path / "noise.mp4").write_bytes(os.urandom(5000))
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
        probe.close()
        urls: dict[str, Path | str] = {
            "missing": tmp_path / "none.mp4",
            "noise": tmp_path / "noise.mp4",
            "refused": f"rtsp://user:geheim@127.0.0.1:{closed}/x",
            "silent": f"rtsp://user:geheim@127.0.0.1:{silent.getsockname()[1]}/x",
        }
        told = []
        for kind in (AvSource, lambda s: ProcessSource(s, held=HELD)):
            source = kind(settings(urls[case], open_timeout_s=0.5))
            with pytest.raises(SourceError) as caught:
                source.open()
            source.close()
            told.append((caught.value.reason, str(caught.value), caught.value.permanent))
    assert told[0] == told[1]
    assert "geheim" not in told[1][1]


def test_neither_url_nor_environment_can_be_seen_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTHER_CAMERA", "geheim")
    with opened(write_clip(tmp_path / "geheim.mp4"), loop=True) as source:
        assert source.pid is not None
        process = psutil.Process(source.pid)
        assert process.name() == "dec-s"
        assert "geheim" not in " ".join(process.cmdline())
        assert "geheim" not in str(process.environ())


@pytest.mark.parametrize(
    ("deadly", "reason"),
    [(signal.SIGSEGV, "decoder_crashed"), (signal.SIGKILL, "decoder_crashed"), (signal.SIGSTOP, "stuck")],
)
def test_a_child_that_dies_or_hangs_is_a_broken_stream(tmp_path: Path, deadly: signal.Signals, reason: str) -> None:
    with opened(write_clip(tmp_path / "clip.mp4"), loop=True, pace="realtime") as source:
        frames = source.frames()
        next(frames)
        assert source.pid is not None
        os.kill(source.pid, deadly)
        started = time.monotonic()
        with pytest.raises(SourceError) as caught:
            for _ in frames:
                pass
        assert caught.value.reason == reason
        assert not caught.value.permanent
        if reason == "decoder_crashed":
            assert deadly.name in str(caught.value)
        assert time.monotonic() - started < SILENCE_LIMIT_S + 5
        assert not psutil.pid_exists(source.pid)


def test_a_stopped_child_is_gone_soon_after_close(tmp_path: Path) -> None:
    with opened(write_clip(tmp_path / "clip.mp4"), loop=True) as source:
        assert source.pid is not None
        os.kill(source.pid, signal.SIGSTOP)
        started = time.monotonic()
        source.close()
        assert time.monotonic() - started < 4
        assert not psutil.pid_exists(source.pid)


def test_a_child_that_outlives_even_sigkill_is_left_to_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in a system call that never ends does. None can be had here: a kill that is withheld stands for it."""
    with opened(write_clip(tmp_path / "clip.mp4"), loop=True) as source:
        assert source.pid is not None
        monkeypatch.setattr(subprocess.Popen, "kill", lambda _: None)
        os.kill(source.pid, signal.SIGSTOP)
        source.close()
        thread = threading.Thread(target=lambda: list(source.frames()))
        thread.start()
        until(lambda: source.deadline <= time.monotonic(), 10)
        assert thread.is_alive()
        os.kill(source.pid, signal.SIGKILL)
        thread.join(5)
        assert not thread.is_alive()
        assert source.deadline == math.inf


def test_a_camera_over_rtsp_with_loss_and_reports() -> None:
    """Clock, losses and quarantine reach the daemon, and the camera is left politely."""
    with FakeCamera(Clip(shared("videos/rknn_people-walking.mp4"))) as camera:
        with opened(camera.url, transport="udp") as source:
            frames = source.frames()
            assert any(frame.clock == "camera" for frame in itertools.islice(frames, 200))
            assert source.clock.offset_s is not None
            assert abs(source.clock.offset_s) < 5
            assert (source.lost, source.corrupt) == (0, 0)
            camera.set("loss:0.05")
            assert any(frame.quarantined for frame in itertools.islice(frames, 500))
            assert source.lost > 0
            assert source.pid is not None
            child = psutil.Process(source.pid)
            frames.close()
        assert not child.is_running()
        until(lambda: camera.requests["TEARDOWN"] == 1, 5)


def test_an_open_that_nothing_else_can_cut_is_cut_by_close(tmp_path: Path) -> None:
    """open(2) of a FIFO that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    source = ProcessSource(settings(f"cache://{tmp_path}/pipe", open_timeout_s=60), held=HELD)
    threading.Timer(1.5, source.close).start()
    with pytest.raises(SourceError):
        source.open()
    assert source.pid is not None
    assert not psutil.pid_exists(source.pid)


def test_a_child_waits_where_no_picture_is_let_go(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=60)
    with opened(clip, ring=4) as source:
        frames = source.frames()
        held = [next(frames) for _ in range(4 + HELD + 3)]
        addresses = {f.picture.native.planes[0].buffer_ptr for f in held}
        assert len(addresses) == len(held)
        first = planes(held[0])
        time.sleep(1)  # it would overwrite one now, if it did not wait
        assert planes(held[0]) == first
        del held[3]
        assert next(frames).picture.native.planes[0].buffer_ptr in addresses
        held.clear()
        assert sum(1 for _ in frames) == 60 - (4 + HELD + 3) - 1


def test_a_stall_of_the_daemon_delays_the_next_read(tmp_path: Path) -> None:
    with opened(write_clip(tmp_path / "clip.mp4"), loop=True) as source:
        frames = source.frames()
        next(frames)
        time.sleep(1.5)  # three beats, too
        now = time.monotonic_ns()
        captured = [next(frames).captured_ns for _ in range(30)]
        # Six on their way, one waiting, and those that the decoder holds back because of B frames.
        assert 1 <= sum(stamp < now for stamp in captured) <= 11


def test_an_error_of_any_length_comes_through(tmp_path: Path) -> None:
    source = ProcessSource(settings("ä/" * 3000 + "none.mp4"), held=HELD)
    with pytest.raises(SourceError) as caught:
        source.open()
    assert caught.value.reason == "not_found"


def test_a_leaking_decoder_is_ended(tmp_path: Path) -> None:
    """Nothing leaks here on purpose: sixteen reference pictures of this size are more than the limit."""
    clip = write_clip(
        tmp_path / "large.mp4", frames=24, size=(4096, 2176), options={"preset": "ultrafast", "refs": "16"}
    )
    with opened(clip, loop=True, max_rss_mb=100) as source, pytest.raises(SourceError) as caught:
        for _ in source.frames():
            pass
    assert caught.value.reason == "decoder_memory"
    assert "max_rss_mb: 100" in str(caught.value)
    with opened(clip, max_rss_mb=2000) as source:
        assert sum(1 for _ in source.frames()) == 24


OWNER = """
import sys, time
from streamd.sources.av import AvStreamSettings
from streamd.sources.process import ProcessSource
source = ProcessSource(AvStreamSettings(id="s", url=sys.argv[1], loop=True, isolation="process"), held=8)
source.open()
print(source.pid, flush=True)
for frame in source.frames():
    pass
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_child_dies_with_its_daemon(tmp_path: Path, stopped: bool) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    before = segments()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(clip)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        child = psutil.Process(int(owner.stdout.readline()))
    if stopped:
        child.send_signal(signal.SIGSTOP)
    owner.kill()
    owner.wait()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # its new parent may be slow to reap
    assert segments() == before


def test_restarts_leave_nothing_behind(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")

    def restart() -> None:
        with opened(clip, loop=True) as source:
            frames = source.frames()
            next(frames)
            assert source.pid is not None
            os.kill(source.pid, signal.SIGKILL)
            with pytest.raises(SourceError):
                for _ in frames:
                    pass

    restart()
    me = psutil.Process()

    def held() -> tuple[int, set[str], int, int]:
        gc.collect()  # tracebacks of tests before this one
        maps = [m for m in me.memory_maps(grouped=False) if "streamd-pictures" in m.path]
        return me.num_fds(), segments(), me.num_threads(), len(maps)

    before, children = held(), me.children()  # what forks the daemons of tests is one
    for _ in range(RESTARTS):
        restart()
    assert held() == before
    assert me.children() == children


@pytest.mark.parametrize(
    "words",
    [
        b"x",
        b"O" + bytes(60) + b"{}",
        b"E" + bytes(44) + b'["no such reason", "", false]',
        b"F" + bytes(100),
        b"S" + bytes(44) + b'["yuv420p",16,16,"bt601",false,0,false,1.0,[[16,256]]]',
    ],
)
def test_a_child_that_talks_nonsense_is_a_broken_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: bytes
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport os, time\nos.write(0, {words!r})\ntime.sleep(60)\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    source = ProcessSource(settings("none.mp4"), held=HELD)
    with pytest.raises(SourceError) as caught:
        source.open()
    assert caught.value.reason == "decoder_crashed"
    assert source.pid is not None
    assert not psutil.pid_exists(source.pid)


@pytest.mark.parametrize(
    ("shape", "sound"),
    [
        ('["yuv420p",16,16,"bt601",false,0,false,1.0,[[16,256],[8,64],[8,64]]]', True),
        ('["yuv420p",16,16,"bt601",false,0,false,1.0,[[16,256],[8,64],[8,63]]]', False),
        ('["yuv420p",16,16,"bt601",false,0,false,1.0,[[16,256]]]', False),
        ('["yuv420p",16,-16,"bt601",false,0,false,1.0,[[16,256],[8,64],[8,64]]]', False),
        ('["yuv420p",16,16,"bt601",false,0,false,1.0,[[16,256],[7,64],[8,64]]]', False),
        ('["yuv420p",16,16,"bt601",false,0,false,1.0,[[-16,256],[8,64],[8,64]]]', False),
        ('["p010le",16,16,"bt601",false,0,false,1.0,[[32,512],[32,256]]]', True),
        ('["p010le",16,16,"bt601",false,0,false,1.0,[[32,512],[31,256]]]', False),
        ('["rgb565le",16,16,"bt601",false,0,false,1.0,[[32,512]]]', True),
        ('["rgb565le",16,16,"bt601",false,0,false,1.0,[[30,512]]]', False),
        ('["monob",16,16,"bt601",false,0,false,1.0,[[2,32]]]', True),
        ('["monob",17,16,"bt601",false,0,false,1.0,[[2,32]]]', False),
        ('["none such",16,16,"bt601",false,0,false,1.0,[[16,256],[8,64],[8,64]]]', False),
        ('["yuv420p",16,16,"bt601",false,0,true,0.0,[[16,256],[8,64],[8,64]]]', False),
    ],
)
def test_a_shape_has_all_its_rows(shape: str, sound: bool) -> None:
    assert TypeAdapter(Shape).validate_json(shape).sound() == sound


def test_pictures_of_every_format_are_sound_and_less_than_one_is_not() -> None:
    names: set[str] = vars(av.video.format)["names"]  # PyAV's stubs omit it
    seen = 0
    sizes = (64, 48), (641, 359), (17, 3), (1, 1)
    for name, (width, height) in itertools.product(sorted(names), sizes):
        try:
            picture = av.VideoFrame(width, height, name)
        except ValueError:  # memory of an accelerator
            continue
        planes = [(plane.line_size, plane.buffer_size) for plane in picture.planes]
        shape = Shape(name, width, height, "bt601", False, 0, False, 1.0, tuple(planes))
        assert shape.sound(), (name, width, height, planes)
        for plane in {part.plane for part in picture.format.components}:
            lines = planes[plane][1] // planes[plane][0]
            less = [(pitch, size - (i == plane) * pitch * min(lines, 2)) for i, (pitch, size) in enumerate(planes)]
            assert not shape._replace(planes=tuple(less)).sound(), (name, width, height, less)
        seen += 1
    assert seen > 4 * 200


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_raw_video_that_lies_bottom_up_is_read_as_ffmpeg_reads_it(tmp_path: Path, isolation: str) -> None:
    path = tmp_path / "raw.avi"
    ramp = np.repeat(np.arange(48, dtype=np.uint8) * 5, 64 * 3).reshape(48, 64, 3)  # dark above, light below
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb565le"
        for _ in range(2):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="rgb24").reformat(format="rgb565le")))
    content = bytearray(path.read_bytes())
    content[content.index(b"strf") + 24] = 3  # BI_BITFIELDS: FFmpeg takes the rows from the last to the first
    path.write_bytes(content)
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
    assert first.planes[0].line_size < 0
    seen = np.empty((64, 64, 3), np.uint8)
    source = open_source(settings(path, isolation=isolation))
    source.open()
    box = HostLetterbox(64, 64)(next(iter(source.frames())), seen)
    source.close()
    expected = first.to_ndarray(format="rgb24")
    assert expected.std() > 10
    assert np.abs(seen[box.pad_y : box.pad_y + 48].astype(int) - expected).max() <= 2
