"""Videos that go on with another codec, on NVDEC: a file gets another decoder, a live stream a new connection."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from streamd.errors import SourceError
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame, StreamStatus
from tests.clips import write_clip
from tests.serving import files_of, udp_of

pytestmark = pytest.mark.gpu

FRAMES = 40
SIZES = {"h264": (320, 180), "hevc": (384, 216), "mpeg2video": (352, 240)}
"""Wide and high enough for NVDEC: 144 pixels is its least of HEVC."""
ENCODERS = {"h264": "libx264", "hevc": "libx265", "mpeg2video": "mpeg2video"}
LOST = 2
"""Pictures at most that FFmpeg's parser loses where a transport stream changes its codec."""


def piece(folder: Path, suffix: str, codec: str) -> bytes:
    path = folder / f"{codec}.{suffix}"
    if not path.exists():
        write_clip(path, frames=FRAMES, size=SIZES[codec], codec=ENCODERS[codec])
    return path.read_bytes()


def sizes_of(source: AvSource) -> Counter[tuple[int, int]]:
    """How many frames of each size it gives out, all of which are on the GPU."""
    source.open()
    found: Counter[tuple[int, int]] = Counter()
    for frame in source.frames():
        assert frame.picture.device == 0
        found[frame.width, frame.height] += 1
    return found


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_every_part_of_a_file_gets_a_decoder_of_the_gpu(gpu: None, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join(piece(tmp_path, suffix, codec) for codec in SIZES))
    settings = AvStreamSettings(id="s", url=str(path), pace="asap", loop=False, decode="nvdec")
    source = AvSource(settings, device=0)
    found = sizes_of(source)
    assert list(found) == list(SIZES.values())
    lost = LOST if suffix == "ts" else 0
    assert all(FRAMES - lost <= found[size] <= FRAMES for size in SIZES.values()), found
    software = AvSource(settings.model_copy(update={"decode": "software"}))
    software.open()
    assert Counter((frame.width, frame.height) for frame in software.frames()) == found


def test_a_recording_over_http_says_what_to_set(gpu: None, tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_bytes(piece(tmp_path, "ts", "h264") + piece(tmp_path, "ts", "hevc"))
    with files_of(tmp_path) as server:
        settings = AvStreamSettings(id="s", url=f"{server.url}/a.ts", pace="asap", decode="nvdec")
        with pytest.raises(SourceError, match="set decode: software") as caught:
            sizes_of(AvSource(settings, device=0))
    assert caught.value.permanent


def test_a_live_stream_connects_again(gpu: None, tmp_path: Path) -> None:
    pieces = {codec: piece(tmp_path, "ts", codec) for codec in SIZES}
    statuses, codec = list[StreamStatus](), "h264"
    ring: Ring[Frame] = Ring(1000)
    with udp_of(lambda: pieces[codec]) as url:
        stream = AvStreamSettings(id="s", url=url, decode="nvdec")
        runner = StreamRunner(
            "s", lambda: open_source(stream, device=0), ring, StreamMetrics("s"), statuses.append
        )  # fmt: skip
        runner.start()
        try:
            for codec in ("h264", "hevc", "mpeg2video", "h264"):
                deadline = time.monotonic() + 60
                good = 0
                while good < 5:
                    assert time.monotonic() < deadline, codec
                    frame = ring.get(20)
                    assert frame.picture.device == 0
                    good += runner.status.codec == codec and (frame.width, frame.height) == SIZES[codec]
                    del frame
        finally:
            runner.stop()
            assert runner.join(10)
    assert "codec_changed" in {status.reason for status in statuses}
