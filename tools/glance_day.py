"""A working day made of a clip: pieces of it with still scenes between them, in which noise, rain, light and a shaking
pole try to look like motion."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from streamd.analysis.glance.motion import LEARN_S
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.types import Frame

TROUBLES = ("noise", "rain", "slow light", "switch", "shaking")
ACTIVE = "active"
PIECE_S = 4.0
MEDIAN_OF = 64
Pauses = Literal["frozen", "empty"]
Image = npt.NDArray[np.uint8]


class Noise:
    """Sensor noise: eight fields of it, each time another one at another place.

    Args:
        height: of the picture.
        width: of the picture.
        rng: source of randomness.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._fields = [rng.standard_normal((height, width), np.float32) for _ in range(8)]

    def field(self) -> npt.NDArray[np.float32]:
        """(height, width) with a standard deviation of 1."""
        chosen = self._fields[int(self._rng.integers(len(self._fields)))]
        height, width = chosen.shape
        return np.roll(chosen, (int(self._rng.integers(height)), int(self._rng.integers(width))), axis=(0, 1))


def troubled(image: Image, trouble: str, i: int, n: int, rng: np.random.Generator, noise: Noise) -> Image:
    """A picture (height, width, 3) of a still scene with the trouble's frame `i` of `n`."""
    level = image.astype(np.float32)
    if trouble == "rain":
        height, width = image.shape[:2]
        for _ in range(height // 12):
            x, y = rng.integers(0, width), rng.integers(0, height)
            level[y : y + height // 30, x : x + 1] += 50
    elif trouble == "slow light":
        level *= np.float32(1 + 0.3 * math.sin(math.pi * i / n))
    elif trouble == "switch":
        level *= np.float32(0.75 if n // 3 <= i < 2 * n // 3 else 1.0)
    elif trouble == "shaking":
        dx, dy = (round(3 * math.sin(2 * math.pi * i / period)) for period in (11, 17))
        level = np.roll(level, (dy, dx), axis=(0, 1))
    level += noise.field()[:, :, None] * np.float32(4 if trouble == "noise" else 1.5)
    return np.clip(level, 0, 255).astype(np.uint8)


def empty(pictures: list[Image]) -> Image:
    """The scene of a clip without what moves: each pixel's median over the clip."""
    step = max(len(pictures) // MEDIAN_OF, 1)
    out: Image = np.median(np.stack(pictures[::step]), axis=0).astype(np.uint8)
    return out


def pieces(
    pictures: list[Image], rate: float, seconds: float, still: float, seed: int, plate: Image | None = None
) -> Iterator[tuple[Image, str]]:
    """The pictures of a day, and what each shows: `active` or one of `TROUBLES`.

    The scene of a pause is the last picture before it, and the clip goes on from there: nothing jumps, but people are
    frozen in mid-step. With `plate`, it is that picture: what moved is gone at once, and is back at once.

    Args:
        pictures: of the clip, (height, width, 3) each.
        rate: a second.
        seconds: of the day.
        still: share of it in which nothing happens.
        seed: of troubles and noise.
        plate: the picture of all pauses; None for the last one before each.
    """
    rng = np.random.default_rng(seed)
    height, width = pictures[0].shape[:2]
    noise = Noise(height, width, rng)
    piece = max(round(PIECE_S * rate), 1)
    pause = round(piece * still / (1 - still))
    at, left, scene = 0, round(seconds * rate), pictures[0] if plate is None else plate
    for trouble in itertools.cycle(rng.permutation(TROUBLES).tolist()):
        for i in range(min(pause, left)):
            yield troubled(scene, trouble, i, pause, rng, noise), trouble
        left -= pause
        for i in range(min(piece, left)):
            yield pictures[(at + i) % len(pictures)], ACTIVE
        left -= piece
        at += piece
        if plate is None:
            scene = pictures[(at - 1) % len(pictures)]
        if left <= 0:
            return


def make_day(
    clip: Path, seconds: float, still: float, seed: int, into: Path, height: int | None = None,
    pauses: Pauses = "frozen",
) -> Path:  # fmt: skip
    """Cuts a clip into a day, see `pieces`, and encodes it. What each frame shows is written beside it, see `parts_of`.

    Args:
        clip: a video.
        seconds: see `pieces`.
        still: see `pieces`.
        seed: see `pieces`.
        into: folder.
        height: rows to which larger pictures are scaled; None: as they are.
        pauses: what they show: the clip's last picture (`frozen`), or its scene without what moves (`empty`).
    """
    import av

    with av.open(str(clip)) as source:
        stream = source.streams.video[0]
        rate = stream.average_rate
        assert rate is not None
        rows, columns = stream.height, stream.width
        if height is not None and rows > height:
            rows, columns = height, round(columns * height / rows)
        rows, columns = rows // 2 * 2, columns // 2 * 2
        pictures = [frame.reformat(columns, rows, "bgr24").to_ndarray() for frame in source.decode(stream)]
    path = into / f"day_{clip.stem}_{seed}{'' if pauses == 'frozen' else f'_{pauses}'}.mp4"
    plate = empty(pictures) if pauses == "empty" else None
    parts: list[str] = []
    with av.open(str(path), "w") as out:
        track: Any = out.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "26"})
        track.height, track.width = rows, columns
        track.pix_fmt, track.gop_size = "yuv420p", 50
        for image, part in pieces(pictures, float(rate), seconds, still, seed, plate):
            planes = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
            out.mux(track.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            parts.append(part)
        out.mux(track.encode(None))
    path.with_suffix(".json").write_text(json.dumps(parts))
    return path


def parts_of(clip: Path) -> list[str] | None:
    """What each frame of a day shows; None of a clip that is not one."""
    beside = clip.with_suffix(".json")
    return json.loads(beside.read_text()) if beside.is_file() else None


def by_part(looked: Sequence[bool], why: Sequence[str], parts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each kind of part: its frames, the share of them that was looked at, and reasons.

    Args:
        looked: of each frame, whether it was looked at.
        why: of each frame, the reason.
        parts: what each frame shows.
    """
    out: dict[str, dict[str, float]] = {}
    for part in dict.fromkeys(parts):
        where = [i for i, each in enumerate(parts[: len(looked)]) if each == part]
        reasons = Counter(why[i] for i in where if looked[i])
        share = sum(reasons.values()) / max(len(where), 1)
        out[part] = {"frames": len(where), "looked": round(share, 4), **dict(reasons.most_common())}
    return out


def settled(looked: Sequence[bool], parts: Sequence[str], rate: float) -> tuple[float, float, float] | None:
    """Shares of frames that were looked at once the gate has learned: of the pauses, of the rest, and of a long day
    with as many pauses. What a short day has left after that is no measure: it has learned in a pause, so that too few
    pauses are left. None if one of them is missing.

    Args:
        looked: of each frame, whether it was looked at.
        parts: what each frame shows.
        rate: frames a second.
    """
    active = np.array([part == ACTIVE for part in parts[: len(looked)]], np.bool_)
    start, whether = round(LEARN_S * rate), np.array(looked, np.bool_)
    pauses, rest = (whether[start:][active[start:] == kind] for kind in (False, True))
    if not len(pauses) or not len(rest):
        return None
    still = 1 - float(active.mean())
    shares = float(pauses.mean()), float(rest.mean())
    return *shares, still * shares[0] + (1 - still) * shares[1]


def frames_of(clip: Path) -> Iterator[Frame]:
    """The frames of a clip through the daemon's own source, with the times of its media clock."""
    source = open_source(AvStreamSettings(id="clip", url=str(clip), pace="asap", decode="software"))
    source.open()
    try:
        for seq, frame in enumerate(source.frames()):
            frame.seq, frame.epoch = seq, 0
            frame.captured_ns = frame.decoded_ns = (frame.pts_ns or 0) + 1_000_000_000
            frame.wall_ns = frame.captured_ns + 1_700_000_000 * 10**9
            yield frame
    finally:
        source.close()
