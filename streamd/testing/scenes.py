"""Made-up objects for trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.analysis.tracking import Observation, StreamTracks, Tracked
from streamd.analysis.tracking.batch import Tracker

SIZE = (1920, 1080)
Frame = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]


def boxes(*rows: tuple[float, ...], score: float = 0.9, class_id: int = 0) -> Frame:
    """Boxes (x, y, width, height), or with a score as the fifth and a class as the sixth."""
    corners = np.array([(r[0], r[1], r[0] + r[2], r[1] + r[3]) for r in rows], np.float32).reshape(-1, 4)
    scores = np.array([r[4] if len(r) > 4 else score for r in rows], np.float32)
    classes = np.array([r[5] if len(r) > 5 else class_id for r in rows], np.int32)
    return corners, scores, classes


NOTHING = boxes()


def wild(seed: int, frames: int, objects: int = 12, classes: int = 3) -> list[Frame]:
    """Objects that cross, vanish and come back among boxes of nothing: ugly on purpose."""
    rng = np.random.default_rng(seed)
    size = np.stack((rng.uniform(20, 120, objects), rng.uniform(40, 300, objects)), axis=1)
    place, speed = rng.uniform((0, 0), SIZE, (objects, 2)), rng.normal(0, 200, (objects, 2))
    kind = rng.integers(0, classes, objects)
    out: list[Frame] = []
    for _ in range(frames):
        place = place + speed / 25
        seen = rng.random(objects) < 0.8
        center = (place + rng.normal(0, 0.05, place.shape) * size)[seen]
        noise = rng.uniform((0, 0), SIZE, (rng.integers(0, 6), 2))
        center, half = np.vstack((center, noise)), np.vstack((size[seen], rng.uniform(10, 200, noise.shape))) / 2
        flipped = rng.random(objects) < 0.1
        class_id = np.where(flipped, rng.integers(0, classes, objects), kind)[seen]
        class_id = np.concatenate((class_id, rng.integers(0, classes, len(noise))))
        out.append(
            (
                np.hstack((center - half, center + half)).astype(np.float32),
                rng.uniform(0.05, 1, len(center)).astype(np.float32),
                class_id.astype(np.int32),
            )
        )
    return out


@dataclass
class Play:
    """One stream and its tracker, driven by seconds."""

    tracker: Tracker
    state: StreamTracks

    def __call__(self, at_s: float, frame: Frame, **facts: Any) -> Tracked:
        """One frame; a failure of the tracker is raised."""
        width, height = facts.pop("size", SIZE)
        observation = Observation(self.state, round(at_s * 1e9), *frame, width, height, **facts)
        (tracked,) = self.tracker.step([observation])
        if tracked.error is not None:
            raise tracked.error
        return tracked


def play(tracker: Tracker) -> Play:
    """A stream of which nothing was seen yet."""
    return Play(tracker, StreamTracks())
