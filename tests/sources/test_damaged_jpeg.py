"""Motion JPEG: FFmpeg decodes a picture that is cut off as if it were whole, and says so in its log only."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from streamd.sources.av import AvStreamSettings


def _jpegs(count: int) -> list[bytes]:
    random = np.random.default_rng(1)
    pictures = [cv2.resize(random.integers(0, 255, (24, 32, 3), np.uint8), (320, 240)) for _ in range(count)]
    return [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]


def _clip(path: Path, jpegs: list[bytes]) -> Path:
    """The JPEGs as they are, ten a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        for n, data in enumerate(jpegs):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = n
            packet.is_keyframe = True
            container.mux(packet)
    return path


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_pictures_that_are_cut_off_or_overwritten_are_withheld_and_no_others(tmp_path: Path, isolation: str) -> None:
    jpegs = _jpegs(12)
    jpegs[3] = jpegs[3][: len(jpegs[3]) // 2]
    jpegs[5] = jpegs[5][:-2]  # whole, but for the mark at its end
    middle = len(jpegs[6]) // 2
    jpegs[6] = jpegs[6][:middle] + b"\x7f" * 800 + jpegs[6][middle + 800 :]
    jpegs[8] += bytes(100)
    jpegs[9] = jpegs[9][:2] + b"\xff\xe1\x00\x10Exif\0\0broken!!" + jpegs[9][2:]  # fields of a camera's own
    path = _clip(tmp_path / "clip.mkv", jpegs)
    settings = AvStreamSettings(id="a", url=str(path), pace="asap", isolation=isolation)
    source = settings.open()
    try:
        source.open()
        withheld = [frame.quarantined for frame in source.frames()]
    finally:
        source.close()
    assert [n for n, damaged in enumerate(withheld) if damaged] == [3, 6]
    assert len(withheld) == len(jpegs)
