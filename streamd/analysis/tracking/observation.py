"""A tracker's input and output for each frame."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamd.analysis.tracking.tracks import Matrix, StreamTracks
from streamd.types import Box, Float32Array, FoundBatch, Int32Array
from streamd.types.batches import ByFrame

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

EndReason = Literal["lost", "lost: outage", "loop", "size", "crop", "restart", "failed"]
"""Why a track ended.

`lost`: not seen for `lost_s`. `lost: outage`: no picture was processed for longer than `outage_s`. `loop`: the file
started again. `size`, `crop`: the size of the picture or of the analysed part changed. `restart`: requested by the
caller. `failed`: the tracker failed on this stream. """


@dataclass(slots=True)
class Observation:
    """The boxes of one processed frame, and the state of the stream that they belong to."""

    tracks: StreamTracks
    """The stream's state; it is replaced by `Tracker.step`."""
    time_ns: int
    """Time of capture in nanoseconds on a clock that does not jump with the wall clock."""
    xyxy: Float32Array
    """(N, 4) corners in upright source pixels, including boxes with low scores."""
    score: Float32Array
    """(N,) 0 to 1."""
    class_id: Int32Array
    """(N,)"""
    width: int
    """Upright width of the picture in pixels."""
    height: int
    roi: Box | None = None
    """The analysed part of the picture; None for all of it."""
    missed: int = 0
    """Frames of this stream that were captured since its previous observation but not processed."""
    begin: Literal["loop", "restart"] | None = None
    """Ends all tracks before this frame: the file started again (`loop`), or the caller requests it (`restart`)."""


FrameFacts = tuple[StreamTracks, int, int, Literal["loop", "restart"] | None, int, int, Box | None]
"""Of a frame, as in `Observation`: tracks, time_ns, missed, begin, width, height, roi."""


class ObservationBatch(ByFrame[Observation]):
    """Frames with the boxes of all of them in one block of memory.

    Args:
        frames: of each frame everything but its boxes.
        boxes: of the same frames.
    """

    __slots__ = ("boxes", "frames")

    def __init__(self, frames: Sequence[FrameFacts], boxes: FoundBatch) -> None:
        self.frames, self.boxes = frames, boxes

    @classmethod
    def of(cls, batch: Sequence[Observation]) -> ObservationBatch:
        """Raises ValueError: boxes, scores and classes of a frame do not go together."""
        frames: list[FrameFacts] = [
            (o.tracks, o.time_ns, o.missed, o.begin, o.width, o.height, o.roi) for o in batch
        ]  # fmt: skip
        boxes = FoundBatch.of([o.xyxy for o in batch], [o.score for o in batch], [o.class_id for o in batch])
        return cls(frames, boxes)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def _frame(self, i: int) -> Observation:
        tracks, time_ns, missed, begin, width, height, roi = self.frames[i]
        xyxy, score, class_id, _, _ = self.boxes[i]
        return Observation(tracks, time_ns, xyxy, score, class_id, width, height, roi, missed, begin)


@dataclass(slots=True, frozen=True)
class EndedTrack:
    """A confirmed track that has ended for good: its id is never reused."""

    id: int
    reason: EndReason
    class_id: int
    age_s: float
    """Observed seconds from its first box to its last."""
    unseen_s: float
    """Elapsed seconds from its last box to its end."""


@dataclass(slots=True)
class Tracked:
    """The results for each box of one frame, in the order of the boxes; and the tracks that ended with the frame."""

    id: Int64Array
    """(N,) the track; 0 if the box belongs to none or to one that is not confirmed yet."""
    age_s: Matrix
    """(N,) observed seconds since the track's first box; 0 without a track."""
    velocity: Matrix
    """(N, 2) right and down in pixels per second; 0 without a track."""
    class_id: Int32Array
    """(N,) the track's class by the votes of all its boxes; the box's own without a track."""
    ended: tuple[EndedTrack, ...] = ()
    error: Exception | None = None
    """The error if the tracker failed on the stream and its tracks were discarded; its boxes have no tracks."""

    @classmethod
    def nothing(
        cls, class_id: Int32Array, ended: tuple[EndedTrack, ...] = (), error: Exception | None = None
    ) -> Tracked:
        """A result in which no box of the frame belongs to a track."""
        n = len(class_id)
        return cls(
            np.zeros(n, np.int64), np.zeros(n), np.zeros((n, 2)), class_id, ended, error,
        )  # fmt: skip

    @property
    def confirmed(self) -> BoolArray:
        """(N,) whether the box belongs to a confirmed track. Made when asked: NumPy lets go of the interpreter lock to
        compare the ids of a whole batch, and getting it back takes longer than the batch."""
        return self.id > 0


class TrackedBatch(ByFrame[Tracked]):
    """The results of a step: by frame, and of the boxes of all frames together.

    Args:
        joined: the boxes of all frames, one frame after the other; or the memory with their ids, ages, velocities and
            classes.
        bounds: the first box of each frame, and the end.
        ended: by number of a frame the tracks that ended with it.
        errors: by number of a frame see `Tracked.error`.
        address: of ids, ages, velocities and classes one after the other, in memory that `joined` refers to; 0 where
            they are not.
    """

    __slots__ = ("_bounds", "_ended", "_joined", "address", "errors")

    def __init__(
        self,
        joined: Tracked | Matrix,
        bounds: Sequence[int],
        ended: dict[int, tuple[EndedTrack, ...]] | None = None,
        errors: dict[int, Exception] | None = None,
        address: int = 0,
    ) -> None:
        self._joined, self.address = joined, address
        self._bounds = bounds
        self._ended, self.errors = ended or {}, errors or {}

    @classmethod
    def of(cls, frames: Sequence[Tracked]) -> TrackedBatch:
        """From the results of each frame."""
        if isinstance(frames, cls):
            return frames
        bounds = [0, *itertools.accumulate([len(frame.id) for frame in frames])]
        joined = frames[0] if len(frames) == 1 else Tracked.nothing(np.empty(0, np.int32))
        if len(frames) > 1:
            joined = Tracked(
                np.concatenate([frame.id for frame in frames]),
                np.concatenate([frame.age_s for frame in frames]), np.concatenate([frame.velocity for frame in frames]),
                np.concatenate([frame.class_id for frame in frames]),
            )  # fmt: skip
        ended = {i: frame.ended for i, frame in enumerate(frames) if frame.ended}
        errors = {i: frame.error for i, frame in enumerate(frames) if frame.error is not None}
        return cls(joined, bounds, ended, errors)

    @property
    def joined(self) -> Tracked:
        """The boxes of all frames."""
        if not isinstance(self._joined, Tracked):
            n, columns = self._bounds[-1], self._joined
            self._joined = Tracked(
                columns[:n].view(np.int64), columns[n : 2 * n], columns[2 * n : 4 * n].reshape(n, 2),
                columns[4 * n : 5 * n + 1].view(np.int32)[:n],
            )  # fmt: skip
        return self._joined

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._bounds) - 1

    def _frame(self, i: int) -> Tracked:
        j = self.joined
        cut = slice(self._bounds[i], self._bounds[i + 1])
        return Tracked(
            j.id[cut], j.age_s[cut], j.velocity[cut], j.class_id[cut], self._ended.get(i, ()),
            self.errors.get(i),
        )  # fmt: skip
