"""Short clips in a loop: their rate, and `max_fps` over many passes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from tests.clips import write_clip


def play(path: Path, seconds: float = 2.5, **more: Any) -> list[float]:
    """When pictures came, in seconds; the first one is at 0."""
    source = AvSource(AvStreamSettings.model_validate({"id": "s", "url": str(path), "loop": True} | more))
    source.open()
    timer = threading.Timer(seconds, source.close)
    timer.start()
    times = [time.monotonic() for _ in source.frames()]
    timer.cancel()
    source.close()
    return [at - times[0] for at in times]


def rate(times: list[float]) -> float:
    return (len(times) - 1) / times[-1]


LIMITED = [(suffix, codec, frames) for frames in (1, 3)
           for suffix, codec in ((".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4"))]  # fmt: skip


def gif(path: Path) -> Path:
    """One picture."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        for packet in (*stream.encode(picture.reformat(format="rgb8")), *stream.encode()):
            out.mux(packet)
    return path


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[object, list[float]]:
    """When the pictures of each clip came. They are played at the same time: it is all waiting."""
    folder = tmp_path_factory.mktemp("loops")
    late = {"bf": "3", "b-adapt": "0"}
    clips: dict[object, tuple[Path, float, dict[str, Any]]] = {
        (suffix, codec, frames): (
            write_clip(folder / f"{frames}{suffix}", frames=frames, fps=10, codec=codec, gop=1), 2.5, {"max_fps": 4},
        ) for suffix, codec, frames in LIMITED
    }  # fmt: skip
    clips["no dts"] = write_clip(folder / "b.mkv", frames=7, fps=10, options=late), 3.6, {}
    clips["b"] = write_clip(folder / "b.mp4", frames=40, fps=20, options=late, gop=40), 3, {"max_fps": 15}
    clips["gif"] = gif(folder / "s.gif"), 1.8, {"every_s": 0.5}
    with ThreadPoolExecutor(len(clips)) as pool:
        running = {key: pool.submit(play, path, seconds, **more) for key, (path, seconds, more) in clips.items()}
    return {key: future.result() for key, future in running.items()}


@pytest.mark.parametrize(("suffix", "codec", "frames"), LIMITED)
def test_a_rate_limit_never_takes_a_pass_for_one_without_pictures(
    played: dict[object, list[float]], suffix: str, codec: str, frames: int
) -> None:
    """Every packet of a pass may be left out where only key frames are decoded."""
    assert rate(played[suffix, codec, frames]) == pytest.approx(4, rel=0.35)


def test_b_frames_in_a_file_without_decoding_times_do_not_slow_it_down(played: dict[object, list[float]]) -> None:
    passes = played["no dts"][::7]
    assert passes[2] - passes[1] == pytest.approx(0.7, abs=0.15)


def test_b_frames_do_not_cost_pictures_of_the_limit(played: dict[object, list[float]]) -> None:
    assert rate(played["b"]) == pytest.approx(15, rel=0.2)


def test_a_limit_of_a_file_read_as_fast_as_possible_goes_by_its_own_time_over_all_passes(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mp4", frames=12, fps=10, gop=1)
    source = AvSource(
        AvStreamSettings.model_validate({"id": "s", "url": str(clip), "loop": True, "max_fps": 1, "pace": "asap"})
    )
    source.open()
    frames = source.frames()
    for _ in range(20):
        next(frames)
    assert source.skipped == pytest.approx(19 * 9, abs=15)
    source.close()


def test_a_gif_of_one_picture_is_a_still(played: dict[object, list[float]]) -> None:
    times = played["gif"]
    assert 2 <= len(times) <= 4
    assert times[1] == pytest.approx(0.5, abs=0.3)
