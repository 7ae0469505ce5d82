"""The small clips that fake cameras play in the tests."""

from __future__ import annotations

from pathlib import Path

from rtp_clip import Clip

from tests.clips import write_clip

FPS = 10


def small(folder: Path, name: str = "small", size: tuple[int, int] = (160, 96), codec: str = "libx264") -> Clip:
    """Four seconds without B pictures, a key frame a second."""
    options = {"tune": "zerolatency"} if codec == "libx264" else {"x265-params": "log-level=none:bframes=0"}
    path = folder / f"{name}.mp4"
    return Clip(write_clip(path, frames=4 * FPS, size=size, fps=FPS, gop=FPS, codec=codec, options=options))
