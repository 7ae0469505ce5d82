"""Clips made on the spot: the odd inputs that no camera here produces."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def picture(width: int, height: int, index: int, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """A frame whose grey level tells its index."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, : width // 2] = 40 + 8 * (index % 24)
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)


@contextlib.contextmanager
def same_priority() -> Iterator[None]:
    """Undoes what SVT-AV1 does to root: it gives the calling thread real-time priority, and with it all that the tests
    start later. A busy process then stops everything else on its processor."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_clip(
    path: Path,
    *,
    frames: int = 30,
    size: tuple[int, int] = (192, 108),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    options: dict[str, str] | None = None,
    pts: Callable[[int], int] | None = None,
    gop: int = 10,
    audio: bool = False,
    container_options: dict[str, str] | None = None,
    draw: Callable[[int, int, int, str], av.VideoFrame] = picture,
) -> Path:
    """Encodes a clip. `pts(i)` gives frame i's time stamp in milliseconds."""
    with same_priority(), av.open(str(path), "w", options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pix_fmt, gop
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound: Any = out.add_stream("aac", rate=44100) if audio else None
        for i in range(frames):
            frame = draw(*size, i, pix_fmt)
            if pts is not None:
                frame.pts, frame.time_base = pts(i), Fraction(1, 1000)
            out.mux(stream.encode(frame))
            if sound is not None:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1764), np.float32), format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 44100, i * 1764, Fraction(1, 44100)
                out.mux(sound.encode(samples))
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return path


def join(path: Path, parts: Iterable[Path]) -> Path:
    """Bytes of several MPEG-TS files one after the other: a change of everything in mid-stream."""
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    return path


def write_two(videos: Mapping[str, tuple[int, int]], path: Path, *, frames: int) -> None:
    """Encodes videos at the same time, black, in a track each. `videos`: the size by encoder."""
    with av.open(str(path), "w") as out:
        streams: list[Any] = [out.add_stream(codec, rate=25) for codec in videos]
        for stream, size in zip(streams, videos.values(), strict=True):
            (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for i in range(frames):
            for stream in streams:
                frame = av.VideoFrame(stream.width, stream.height, "yuv420p")
                frame.pts = i
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
