"""Pictures, frames, and where a picture is in the network's input."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(slots=True, eq=False)  # not frozen: that takes several times as long to make, once a frame
class Picture:
    """A decoded picture in the decoder's own pixel format, on the host or in device memory. Never modified.

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
    "overload",
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
    heat: Any = None
    """(rows, columns) of the upright picture: how often something moved there lately, 0 to 1, as float32. Changes."""
    strayed: Any = None
    """Of a look: what has moved since the one before (`analysis.glance.gate.Strayed`)."""

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
    """Monotonic nanoseconds when the packet was read, or could have been if it had not waited: the origin of every
    latency."""
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
    """The first frame of a file's next pass (`loop`), or of another video in it, unrelated to the frames before it."""
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


def _mapped_back(
    xyxy: Float32Array, pad: Float32Array, gain: Float32Array, size: Float32Array, origin: Float32Array
) -> Float32Array:
    out: Float32Array = xyxy - pad
    out *= gain
    np.maximum(out, 0, out=out)
    np.minimum(out, size, out=out)
    out += origin
    return out


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
    _packed: bytes | None = field(default=None, init=False, repr=False, compare=False)

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
        # All corners at once take a third of the time of one axis after the other.
        return _mapped_back(xyxy, *(self._mapping or self._mapped()))

    @staticmethod
    def all_to_source(boxes: Sequence[Letterbox], counts: Sequence[int], xyxy: Float32Array) -> Float32Array:
        """The same for the boxes of several frames, (N, 4): `counts` of each, one frame after the other."""
        first = boxes[0]
        if all(box is first for box in boxes):
            return first.to_source(xyxy)
        rows = zip(*(box._mapping or box._mapped() for box in boxes), strict=True)
        return _mapped_back(xyxy, *(np.concatenate(row).repeat(counts, axis=0) for row in rows))

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
        object.__setattr__(self, "_packed", rows.tobytes())
        object.__setattr__(self, "_mapping", mapping)
        return mapping

    @property
    def packed(self) -> bytes:
        """Padding, gain, size and origin of x1, y1, x2, y2: sixteen float32, for compiled code."""
        if self._packed is None:
            self._mapped()
        assert self._packed is not None
        return self._packed

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
