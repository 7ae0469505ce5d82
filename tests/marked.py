"""Clips whose pictures tell their number and where something bright is in them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from tests.clips import write_clip

BITS = 9
SIZE = (320, 160)
_STRIPE = 32
_SPOT = 40


def box(index: int) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the bright square in picture `index`."""
    x = (index * 8) % (SIZE[0] - _SPOT)
    return x, 90, x + _SPOT, 90 + _SPOT


def marked(width: int, height: int, index: int, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """Picture `index`: its number as black and white stripes, below them a bright square."""
    image = np.full((height, width, 3), 40, np.uint8)
    for bit in range(BITS):
        image[:64, bit * _STRIPE : (bit + 1) * _STRIPE] = 230 if index >> bit & 1 else 16
    x1, y1, x2, y2 = box(index)
    image[y1:y2, x1:x2] = 230
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)


def number(image: npt.NDArray[Any]) -> int:
    """The number of a picture, given as (H, W) grey."""
    return sum(
        1 << bit for bit in range(BITS) if image[16:48, bit * _STRIPE + 8 : (bit + 1) * _STRIPE - 8].mean() > 120
    )


def bright(image: npt.NDArray[Any]) -> tuple[float, float]:
    """Left and right edge of the bright square, in pixels."""
    columns = np.nonzero(image[100:120].mean(axis=0) > 130)[0]
    return float(columns[0]), float(columns[-1] + 1)


def write_marked(path: Path, **settings: Any) -> Path:
    """Encodes a clip of marked pictures; see `write_clip`."""
    return write_clip(path, size=SIZE, draw=marked, **settings)


def shown(path: Path) -> list[tuple[float, npt.NDArray[Any]]]:
    """Every picture of a file: its time in seconds, and (H, W) grey."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return [
            (float(frame.pts * stream.time_base), frame.to_ndarray(format="gray"))
            for frame in container.decode(stream)
            if frame.pts is not None
        ]


def write_heard(
    path: Path,
    *,
    frames: int,
    beep: int,
    sound: str = "aac",
    codec: str = "libx264",
    gop: int = 10,
    options: dict[str, str] | None = None,
) -> Path:
    """Marked pictures, 25 a second, with sound that is silent until a tone begins with picture `beep`."""
    rate = 48_000
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream(codec, rate=25, options=options or {"bf": "0"})
        video.width, video.height, video.pix_fmt, video.gop_size = *SIZE, "yuv420p", gop
        audio: Any = out.add_stream(sound, rate=8_000 if sound.startswith("pcm_") else rate)
        audio.layout = "mono"
        at = np.arange(rate // 25) / rate
        for i in range(frames):
            out.mux(video.encode(marked(*SIZE, i)))
            tone = 0.6 * np.sin(2 * np.pi * 400 * at) if i >= beep else np.zeros_like(at)
            samples = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = rate, i * len(at), Fraction(1, rate)
            out.mux(audio.encode(samples))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    return path


def heard_from(path: Path) -> float:
    """When the tone begins, in seconds."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            values = frame.to_ndarray()
            loud = np.nonzero(np.abs(values.astype(float)).max(axis=0) > 0.2 * _loudest(values))[0]
            if len(loud):
                assert frame.time is not None
                return float(frame.time + loud[0] / frame.sample_rate)
    raise AssertionError("silence")


def _loudest(values: npt.NDArray[Any]) -> float:
    return 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
