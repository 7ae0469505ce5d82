"""The data that flows through the daemon. Imports no third-party library except NumPy, and no type here depends on a
source or backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Int32Array = npt.NDArray[np.int32]

ColorMatrix = Literal["bt601", "bt709", "bt2020"]
Rotation = Literal[0, 90, 180, 270]
Clock = Literal["arrival", "camera"]
"""The wall clock of a capture time: the daemon's when the packet was read, or the camera's own."""


def rotated_size(width: int, height: int, rotation: Rotation) -> tuple[int, int]:
    """Width and height after a rotation: of a coded picture, as it is seen upright, or the other way round."""
    return (height, width) if rotation in (90, 270) else (width, height)


class Box(NamedTuple):
    """A rectangle in pixels: top-left corner and size."""

    x: int
    y: int
    width: int
    height: int


class ForeignPicture:
    """A host picture that was not made by a decoder of this process; its planes are like those of PyAV's frames."""

    __slots__ = ()
    planes: Sequence[Any]

    def video_frame(self) -> VideoFrame:
        """A copy as a PyAV frame, for operations that only FFmpeg supports."""
        raise NotImplementedError


@dataclass(slots=True, frozen=True)
class Picture:
    """A decoded picture in the decoder's own pixel format, on the host or in device memory.

    `native` owns the memory: the picture's planes are valid exactly as long as it is referenced.
    In both cases, `native.planes[i].buffer_ptr` is the plane's address (a device address where `device`
    is not None) and `native.planes[i].line_size` its pitch in bytes.
    """

    native: VideoFrame | ForeignPicture
    format: str
    """FFmpeg pixel-format name of the pixels, e.g. yuv420p, nv12, p010le, bgr24 (never "cuda")."""
    width: int
    """Coded width in pixels, before rotation."""
    height: int
    """Coded height in pixels, before rotation."""
    matrix: ColorMatrix = "bt601"
    full_range: bool = False
    rotation: Rotation = 0
    """Clockwise degrees by which to rotate the coded picture to make it upright."""
    device: int | None = None
    """CUDA device ordinal, or None for host memory."""
    mirrored: bool = False
    """Whether to mirror the picture left to right after the rotation."""
    pixel_aspect: float = 1.0
    """Aspect ratio (width to height) of a pixel of the upright picture."""

    def video_frame(self) -> VideoFrame:
        """A PyAV frame: `native` itself, or a copy if it is not one."""
        native = self.native
        return native.video_frame() if isinstance(native, ForeignPicture) else native


Why = Literal[
    "motion",
    "light",
    "tracks",
    "faint",
    "hold",
    "interval",
    "learning",
    "unreadable",
    "still",
    "rate",
    "busy",
    "followed",
]
"""Why the network looks at a frame (up to `unreadable`), or does not. docs/glance.md describes each."""


@dataclass(slots=True)
class Look:
    """Whether the network looks at a frame of a stream with `look.when: motion`."""

    wanted: bool
    why: Why
    moved: Any = None
    """What the small picture shows (`analysis.glance.motion.Moved`); None where it could not be read."""
    at_ns: int = 0
    """Its time on the clock of the gate."""

    @property
    def paused(self) -> bool:
        """Whether the network does not look because nothing moves, so that time stands still for what it knows."""
        return not self.wanted and self.why in ("still", "busy")


@dataclass(slots=True)
class Frame:
    """One captured frame. A source sets everything except `epoch` and `seq`, which the stream's runner sets."""

    stream: str
    picture: Picture
    width: int
    """Upright width of the whole picture in pixels; published boxes are in these coordinates."""
    height: int
    captured_ns: int
    """Monotonic nanoseconds when the packet was read: the origin of every latency."""
    wall_ns: int
    """Unix time of capture in nanoseconds, according to `clock`. Not used for latencies."""
    decoded_ns: int
    """Monotonic nanoseconds when the decoder returned the picture."""
    pts_ns: int | None = None
    """The stream's own clock in nanoseconds; may be absent, repeat or jump."""
    roi: Box | None = None
    """The part of the upright picture to analyse, or None for all of it."""
    epoch: int = 0
    """Increases by one at every reconnect."""
    seq: int = -1
    """Numbers the captured frames without gaps while the process runs, so a gap downstream is a drop."""
    clock: Clock = "arrival"
    """Whose clock `wall_ns` is."""
    begins: bool = False
    """The first frame of a file's next pass (`loop`), unrelated to the frames before it."""
    quarantined: bool = False
    """Damaged, or predicted from a damaged picture: counted, but not analysed."""
    view: Look | None = None
    """Whether the network looks at it; None where it looks at every frame of the stream."""


@dataclass(slots=True, frozen=True)
class Placement:
    """How a picture is placed in the network's input."""

    resize: Literal["letterbox", "stretch"] = "letterbox"
    """letterbox keeps the aspect ratio and pads; stretch fills the input."""
    align: Literal["center", "top_left"] = "center"
    """Position of a letterboxed picture: padded on both sides, or on the right and below only."""


CENTERED = Placement()


@dataclass(slots=True, frozen=True)
class Letterbox:
    """The mapping between upright source pixels and network-input pixels.

    `network = (source - roi_origin) * content / roi + pad`, along each axis.
    """

    pad_x: int
    pad_y: int
    content_width: int
    """Width in pixels of the scaled picture inside the network input."""
    content_height: int
    roi: Box
    """The part of the upright source that was scaled."""
    _mapping: tuple[Float32Array, ...] | None = field(default=None, init=False, repr=False, compare=False)
    """See `_mapped`; made at first use."""

    @classmethod
    def fit(
        cls,
        roi: Box,
        input_width: int,
        input_height: int,
        placement: Placement = CENTERED,
        *,
        upscale: bool = True,
        pixel_aspect: float = 1.0,
    ) -> Letterbox:
        """The placement of `roi` in an input of `input_width` × `input_height` pixels.

        Centred, this is YOLOv5's `letterbox`: scale to fit, centre, pad. Pixels that are not square (`pixel_aspect`,
        width by height) become square there, unless the picture is stretched.
        """
        if placement.resize == "stretch":
            return cls(0, 0, input_width, input_height, roi)
        seen_width = roi.width * pixel_aspect
        scale = min(input_width / seen_width, input_height / roi.height)
        if not upscale:
            scale = min(scale, 1.0)
        content_width = max(1, min(input_width, round(seen_width * scale)))
        content_height = max(1, min(input_height, round(roi.height * scale)))
        if placement.align == "top_left":
            return cls(0, 0, content_width, content_height, roi)
        # An odd remainder puts the extra pixel right and below, as YOLOv5's round(d ± 0.1) does.
        pad_x, pad_y = (input_width - content_width) // 2, (input_height - content_height) // 2
        return cls(pad_x, pad_y, content_width, content_height, roi)

    def to_source(self, xyxy: Float32Array) -> Float32Array:
        """Maps (N, 4) boxes from network-input pixels to upright source pixels, clipped to the roi.

        Returns a new array; `xyxy` is not modified.
        """
        pad, gain, size, origin = self._mapping or self._mapped()
        # Called once per frame, mostly with a few boxes: all corners at once take 2 µs, one axis after the other took
        # three times as long.
        out: Float32Array = xyxy - pad
        out *= gain
        np.maximum(out, 0, out=out)
        np.minimum(out, size, out=out)
        out += origin
        return out

    def _mapped(self) -> tuple[Float32Array, ...]:
        """Padding, gain, size and origin, (1, 4) each. Frames share them, since backends keep their letterboxes."""
        # Per-axis scales: the content size was rounded to whole pixels, and the pixels were resampled by it.
        gain_x = self.roi.width / self.content_width
        gain_y = self.roi.height / self.content_height
        # In this shape, NumPy need not broadcast for a single box, which takes half as long.
        rows = np.array(
            (
                (self.pad_x, self.pad_y, self.pad_x, self.pad_y),
                (gain_x, gain_y, gain_x, gain_y),
                (self.roi.width, self.roi.height, self.roi.width, self.roi.height),
                (self.roi.x, self.roi.y, self.roi.x, self.roi.y),
            ),
            np.float32,
        )
        mapping = tuple(rows[:, None])
        object.__setattr__(self, "_mapping", mapping)
        return mapping

    def points_to_source(self, xy: Float32Array, *, clip: bool) -> Float32Array:
        """Maps (…, 2) points from network-input pixels to upright source pixels, on request clipped to the roi.

        Returns a new array; `xy` is left alone.
        """
        roi = self.roi
        gain = np.array((roi.width / self.content_width, roi.height / self.content_height), np.float32)
        out: Float32Array = (xy - np.array((self.pad_x, self.pad_y), np.float32)) * gain
        if clip:
            np.clip(out, 0, np.array((roi.width, roi.height), np.float32), out=out)
        out += np.array((roi.x, roi.y), np.float32)
        return out


class StageTimes(NamedTuple):
    """Monotonic nanoseconds at which a frame left each stage."""

    captured: int
    decoded: int
    batched: int
    """Taken from its ring: the end of queueing."""
    preprocessed: int
    inferred: int
    postprocessed: int


@dataclass(slots=True, frozen=True)
class Candidates:
    """Boxes of one frame above the confidence threshold, in network-input pixels."""

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


@dataclass(slots=True, frozen=True)
class ModelInfo:
    """Who made the detections."""

    name: str
    sha256: str
    labels: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Tracks:
    """The track of each box of one frame."""

    number: npt.NDArray[np.int64]
    """(N,) Unique within the process; 0 if the box has no confirmed track."""
    age_s: npt.NDArray[np.float64]
    """(N,) Observed seconds since the track's first box."""
    velocity: npt.NDArray[np.float64]
    """(N, 2) Pixels per second."""


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


@dataclass(slots=True, frozen=True)
class Detections:
    """The detections of one frame. Arrays may be empty, but never None."""

    stream: str
    epoch: int
    seq: int
    pts_ns: int | None
    wall_ns: int
    width: int
    height: int
    times: StageTimes
    model: ModelInfo
    xyxy: Float32Array
    """(N, 4) in upright source pixels."""
    score: Float32Array
    """(N,) descending."""
    class_id: Int32Array
    """(N,)"""
    clock: Clock = "arrival"
    """Whose clock `wall_ns` is."""
    tracks: Tracks | None = None
    """The tracks of the boxes; None without tracking."""
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


@dataclass(slots=True, frozen=True)
class Glanced:
    """A frame that the network did not look at, as it is published."""

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


StreamState = Literal["CONNECTING", "LIVE", "BACKOFF", "ENDED", "FAILED"]


@dataclass(slots=True, frozen=True)
class StreamCounts:
    """Totals of one stream since the process started. received = published + dropped + in flight, always."""

    received: int = 0
    published: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    reconnects: int = 0


@dataclass(slots=True, frozen=True)
class StreamPast:
    """The state of a stream in a process that has ended, from which numbers and counters continue."""

    epoch: int
    """Epoch of its last connection; -1 if there was none."""
    counts: StreamCounts
    """`received` is also the next frame's seq."""


DEGRADED = frozenset({"overload", "late"})
"""Reasons of a live stream that is degraded by load."""


@dataclass(slots=True, frozen=True)
class StreamStatus:
    """The state of one stream, for subscribers, logs and health checks. Contains no credentials."""

    stream: str
    state: StreamState
    reason: str
    """Empty while there is no problem, otherwise one of `errors.SOURCE_REASONS`."""
    detail: str
    epoch: int
    since_wall_ns: int
    """Unix nanoseconds since when the stream has been live, down (CONNECTING, BACKOFF, FAILED) or ended."""
    retry_in_s: float | None = None
    """From `at_wall_ns` on."""
    codec: str = ""
    decoder: str = ""
    """software or nvdec."""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    """As declared by the stream; 0 if unknown."""
    attempts: int = 0
    """Failed attempts in a row; 0 once it is live."""
    at_wall_ns: int = 0
    """Unix nanoseconds of this status; 0 where it does not matter."""
    camera_health: tuple[str, ...] | None = None
    """Why the camera cannot see, see `analysis.glance.health.STATES`; empty if it can, None if nobody watches."""

    @property
    def degraded(self) -> bool:
        """True for a live stream that is degraded by load."""
        return self.state == "LIVE" and self.reason in DEGRADED

    def retry_left_s(self, wall_ns: int) -> float | None:
        """Seconds from `wall_ns` (Unix nanoseconds) to the next attempt; None if none is scheduled."""
        if self.retry_in_s is None or not self.at_wall_ns:
            return self.retry_in_s
        return round(min(self.retry_in_s, max(0.0, self.retry_in_s - (wall_ns - self.at_wall_ns) / 1e9)), 3)


ElementType = Literal["float32", "float16", "uint8", "int8"]


@dataclass(slots=True, frozen=True)
class TensorSpec:
    """A named tensor. A dimension of -1 is dynamic."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(slots=True, frozen=True)
class ModelSpec:
    """What a model is and how its input is made. Read from the model and its sidecar, checked at open."""

    path: str
    sha256: str
    name: str
    input: TensorSpec
    """NCHW (or NHWC: see `layout`), the batch first."""
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    """Pixels 0..255 are multiplied by this."""
    mean: tuple[float, float, float] | None = None
    """For each channel, in the order of `color`: subtracted after `scale`."""
    std: tuple[float, float, float] | None = None
    """For each channel: the result is divided by it."""
    pad_value: int = 114
    """Grey level 0..255 around the letterboxed picture."""
    placement: Placement = CENTERED
    input_declared: bool = True
    """False if neither configuration nor sidecar declares how the input is made, and the defaults above are used."""
    max_batch: int = 1
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The model's own metadata, verbatim (ONNX metadata_props)."""
    head: Mapping[str, object] | None = None
    """The head as the sidecar declares it, in the form of the configuration's `model.head`."""

    @property
    def input_width(self) -> int:
        """Pixels."""
        return self.input.shape[3 if self.layout == "NCHW" else 2]

    @property
    def input_height(self) -> int:
        """Pixels."""
        return self.input.shape[2 if self.layout == "NCHW" else 1]

    def normalization(self) -> tuple[Float32Array, Float32Array]:
        """(3,) gain and (3,) offset: an input channel is `pixel * gain + offset`, of pixels 0..255."""
        mean = np.zeros(3) if self.mean is None else np.array(self.mean)
        std = np.ones(3) if self.std is None else np.array(self.std)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    def info(self) -> ModelInfo:
        """The part of the specification that every message includes."""
        return ModelInfo(name=self.name, sha256=self.sha256, labels=self.labels)


DeviceLayout = Literal["anchor_grids", "anchor_rows", "objectness_rows", "class_columns", "final_boxes"]
"""The layout of boxes in a model's outputs, for a device that decodes them itself; several heads may share one.

- anchor_grids: one output per stride, logits relative to cell and anchor: (B, A, H, W, 5+C) or (B, A·(5+C), H, W)
- anchor_rows: the same values after a sigmoid, joined: (B, N, 5+C), stride by stride, anchor by anchor, line by line
- objectness_rows: (B, N, 5+C): cx, cy, w, h in input pixels, objectness, class scores
- class_columns: (B, 4+C, N): cx, cy, w, h in input pixels, class scores
- final_boxes: (B, N, 6): x1, y1, x2, y2 in input pixels, score, class number
"""


@dataclass(slots=True, frozen=True)
class DecodePlan:
    """What a device needs to decode boxes itself. Created by the head; a backend may ignore it."""

    layout: DeviceLayout
    classes: int
    conf: float
    """Lowest score that any class may have; finer thresholds are applied on the host."""
    multi_label: bool
    strides: tuple[int, ...] = ()
    """anchor_grids: one for each output, in `ModelSpec.outputs` order. anchor_rows: in the order of the rows."""
    anchors: tuple[tuple[float, ...], ...] = ()
    """w,h,w,h,… in input pixels, one row per stride in the same order."""
    class_conf: tuple[float, ...] = ()
    """Lowest score of each class, if they differ or some classes are excluded (infinity). For `suppress` only."""
    suppress: bool = False
    """The device may also apply `class_conf` and NMS: all of `heads.postprocess` except the mapping to source
    pixels."""
    iou: float = 0.45
    max_det: int = 300
    agnostic: bool = False


Outputs = Sequence[FloatArray]
"""A batch's raw output arrays, in `ModelSpec.outputs` order, each with the batch as first dimension."""
