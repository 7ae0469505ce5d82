"""What was found in a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from streamd.types.pictures import Clock, Float32Array, Int32Array, Look, Why


class StageTimes(NamedTuple):
    """Monotonic nanoseconds at which a frame left each stage."""

    captured: int
    decoded: int
    batched: int
    """Taken from its ring: the end of queueing."""
    preprocessed: int
    inferred: int
    postprocessed: int


@dataclass(slots=True, eq=False)  # not frozen: that takes several times as long to make, once a frame
class Candidates:
    """Boxes of one frame above the confidence threshold, in network-input pixels. Never modified."""

    xyxy: Float32Array
    """(M, 4)"""
    score: Float32Array
    """(M,)"""
    class_id: Int32Array
    """(M,)"""
    suppressed: bool = False
    """True if the device has applied all thresholds, filters and NMS: these are the boxes to publish, best first."""
    extra: Float32Array | None = None
    """(M, E) what the head needs of each box for its `suppress` and `details`, in its own form; None for most heads."""

    def take(self, which: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Candidates:
        """Those of them, by number or mask."""
        extra = None if self.extra is None else self.extra[which]
        return Candidates(self.xyxy[which], self.score[which], self.class_id[which], self.suppressed, extra)


@dataclass(slots=True, frozen=True)
class Details:
    """What a model says of each box beyond class and score; None where it says nothing of the kind. Never modified."""

    keypoints: Float32Array | None = None
    """(N, K, 3) x and y in upright source pixels, and 0..1 how sure the model is that the point is there."""
    oriented: Float32Array | None = None
    """(N, 4, 2) corners of the rotated rectangle in upright source pixels, in order around it; not clipped."""
    polygons: Sequence[Float32Array] | None = None
    """Of each box the outline of the object: (V, 2) points in upright source pixels, none where there is no mask."""

    def take(self, which: npt.NDArray[np.bool_]) -> Details:
        """Those of the boxes in a mask (N,)."""
        polygons = None
        if self.polygons is not None:
            polygons = [p for p, kept in zip(self.polygons, which.tolist(), strict=True) if kept]
        return Details(
            None if self.keypoints is None else self.keypoints[which],
            None if self.oriented is None else self.oriented[which],
            polygons,
        )


class Found(NamedTuple):
    """What the network found in one frame. Arrays may share memory with those of other frames; never modified."""

    xyxy: Float32Array
    """(N, 4) in upright source pixels."""
    score: Float32Array
    """(N,) descending."""
    class_id: Int32Array
    """(N,)"""
    rejected: Mapping[str, int]
    """Invalid boxes that were left out, by reason."""
    details: Details | None = None
    """Of the boxes; None where the model gives none."""


@dataclass(slots=True, frozen=True)
class ModelInfo:
    """Who made the detections."""

    name: str
    sha256: str
    labels: tuple[str, ...]


class Tracks(NamedTuple):
    """The track of each box of one frame. Never modified."""

    number: npt.NDArray[np.int64]
    """(N,) Unique within the process; 0 if the box has no confirmed track."""
    age_s: npt.NDArray[np.float64]
    """(N,) Observed seconds since the track's first box."""
    velocity: npt.NDArray[np.float64]
    """(N, 2) Pixels per second."""


class Boxes(NamedTuple):
    """The boxes of one frame as arrays, which may be empty. Never modified."""

    xyxy: Float32Array
    """(N, 4) in upright source pixels."""
    score: Float32Array
    """(N,) descending."""
    class_id: Int32Array
    """(N,)"""
    tracks: Tracks | None = None
    """The tracks of the boxes; None without tracking."""

    @property
    def classes(self) -> list[int]:
        """The same as `class_id`."""
        numbers: list[int] = self.class_id.tolist()
        return numbers


class BoxColumns(Protocol):
    """Boxes as arrays, of one frame or of a batch."""

    @property
    def xyxy(self) -> Float32Array:
        """(N, 4) in upright source pixels."""

    @property
    def score(self) -> Float32Array:
        """(N,)"""

    @property
    def class_id(self) -> Int32Array:
        """(N,)"""

    @property
    def classes(self) -> list[int]:
        """The same as `class_id`."""


class FrameBoxes(BoxColumns, Protocol):
    """`Boxes`, or those of a frame in the arrays of its batch."""

    @property
    def tracks(self) -> Tracks | None:
        """See `Boxes`."""


@dataclass(slots=True, frozen=True)
class Attribute:
    """What a second-stage classifier says of an object."""

    classifier: str
    """The classifier's name in the configuration."""
    label: str
    score: float
    """0 to 1: the mean of the crops of the object, recent ones counting more."""
    observed_seq: int
    """Sequence number of the frame of the last crop."""
    crops: int
    """Number of crops that were classified."""
    others: tuple[tuple[str, float], ...] = ()
    """The next best labels and their scores, descending."""


@dataclass(slots=True, eq=False)  # not frozen: that takes several times as long to make, once a frame
class Detections:
    """The detections of one frame. Never modified."""

    stream: str
    epoch: int
    seq: int
    pts_ns: int | None
    wall_ns: int
    width: int
    height: int
    times: StageTimes
    model: ModelInfo
    boxes: FrameBoxes
    clock: Clock = "arrival"
    """Whose clock `wall_ns` is."""
    counts: Mapping[str, Any] | None = None
    """Counters of the stream's zones and lines as plain values, shared; None where it has none."""
    details: Details | None = None
    """Keypoints, rotated boxes or outlines of the boxes; None for models that detect only."""
    attributes: Sequence[tuple[Attribute, ...]] | None = None
    """What classifiers have said of each box's track so far; None if they have said nothing of any."""
    unlooked: int = 0
    """Frames of the stream, of those published so far, that the network did not look at. Only differences matter."""
    why: Why | None = None
    """Why the network looked; None where it looks at every frame."""

    @property
    def xyxy(self) -> Float32Array:
        """(N, 4) in upright source pixels."""
        return self.boxes.xyxy

    @property
    def score(self) -> Float32Array:
        """(N,) descending."""
        return self.boxes.score

    @property
    def class_id(self) -> Int32Array:
        """(N,)"""
        return self.boxes.class_id

    @property
    def tracks(self) -> Tracks | None:
        """The tracks of the boxes; None without tracking."""
        return self.boxes.tracks


@dataclass(slots=True, eq=False)  # not frozen: that takes several times as long to make, once a frame
class Glanced:
    """A frame that the network did not look at, as it is published. Never modified."""

    stream: str
    epoch: int
    seq: int
    pts_ns: int | None
    wall_ns: int
    width: int
    height: int
    clock: Clock
    look: Look
    looked_seq: int | None
    """The last frame that the network looked at; None where there was none."""
    looked_wall_ns: int | None
    """When that one was captured, Unix nanoseconds."""
    unlooked: int
    """Frames since then, this one included."""
    counts: Mapping[str, Any] | None = None
    """Counters of the stream's zones and lines."""
