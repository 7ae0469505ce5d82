"""The letterbox on the CPU: from the decoder's own planes straight to the network's size.

Each plane is scaled by `cv2.resize` from its own resolution to the network's, and only that small picture is converted
to RGB, by one 3×4 matrix. There is never a full-size RGB picture, and chroma is interpolated once, as in the reference.
Formats that are not in the table below are converted entirely by swscale.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.errors import FrameError
from streamd.imaging.reference import analysed_part, coded_roi, yuv_to_rgb_matrix
from streamd.types import CENTERED, Float32Array, ForeignPicture, Frame, Letterbox, ModelSpec, Picture, Placement

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

UInt8Array = npt.NDArray[np.uint8]


class _PlaneShape(NamedTuple):
    shift_x: int
    shift_y: int
    channels: int


class _Format(NamedTuple):
    """Memory layout of a pixel format."""

    planes: tuple[_PlaneShape, ...]
    bytes: int = 1
    factor: float = 1.0
    """Samples times this are 8-bit code values."""
    kind: Literal["yuv", "gray", "RGB", "BGR"] = "yuv"


_Y, _C420, _C422, _C444 = _PlaneShape(0, 0, 1), _PlaneShape(1, 1, 1), _PlaneShape(1, 0, 1), _PlaneShape(0, 0, 1)
_UV420 = _PlaneShape(1, 1, 2)
FORMATS: dict[str, _Format] = {
    "yuv420p": _Format((_Y, _C420, _C420)),
    "yuvj420p": _Format((_Y, _C420, _C420)),
    "yuv422p": _Format((_Y, _C422, _C422)),
    "yuvj422p": _Format((_Y, _C422, _C422)),
    "yuv444p": _Format((_Y, _C444, _C444)),
    "yuvj444p": _Format((_Y, _C444, _C444)),
    "nv12": _Format((_Y, _UV420)),
    "yuv420p10le": _Format((_Y, _C420, _C420), 2, 1 / 4),
    "yuv422p10le": _Format((_Y, _C422, _C422), 2, 1 / 4),
    "p010le": _Format((_Y, _UV420), 2, 1 / 256),
    "gray": _Format((_Y,), kind="gray"),
    "rgb24": _Format((_PlaneShape(0, 0, 3),), kind="RGB"),
    "bgr24": _Format((_PlaneShape(0, 0, 3),), kind="BGR"),
}
"""By name of the pixel format."""

_COLORSPACE = {"bt601": 5, "bt709": 1, "bt2020": 9}
"""swscale's numbers for the matrices (SWS_CS_ITU601, SWS_CS_ITU709, SWS_CS_BT2020)."""
_CACHED_PLANS = 64


def _matrix(picture: Picture, kind: _Format, color: Literal["RGB", "BGR"]) -> Float32Array:
    """(3, 4): the network's channels from samples, as three factors and an offset each."""
    matrix, offset = yuv_to_rgb_matrix(picture.matrix, picture.full_range or picture.format.startswith("yuvj"))
    out = np.concatenate([matrix * kind.factor, (-matrix @ offset)[:, None]], axis=1).astype(np.float32)
    return np.ascontiguousarray(out[::-1] if color == "BGR" else out)


def plane_view(
    frame: VideoFrame | ForeignPicture, index: int, shape: _PlaneShape, width: int, height: int, bytes_: int
) -> npt.NDArray[Any]:
    """A view of one plane without its padding: (H, W) or (H, W, C)."""
    plane = frame.planes[index]
    rows = (height + 1) >> 1 if shape.shift_y else height
    columns = (width + 1) >> 1 if shape.shift_x else width
    raw = np.frombuffer(memoryview(plane), np.uint8)
    pitch = plane.line_size
    out: npt.NDArray[Any] = np.ndarray(
        (rows, columns, shape.channels) if shape.channels > 1 else (rows, columns),
        np.uint8 if bytes_ == 1 else np.dtype("<u2"),
        raw,
        strides=(pitch, shape.channels * bytes_, bytes_) if shape.channels > 1 else (pitch, bytes_),
    )
    return out


class _Plan:
    """Everything that one geometry needs, created once: the small planes, the merged picture and the matrix."""

    def __init__(
        self, frame: Frame, input_width: int, input_height: int, color: Literal["RGB", "BGR"], placement: Placement
    ) -> None:
        picture = frame.picture
        roi = analysed_part(frame)
        self.box = Letterbox.fit(roi, input_width, input_height, placement, pixel_aspect=picture.pixel_aspect)
        self.turns = picture.rotation // 90
        self.mirrored = picture.mirrored
        width, height = self.box.content_width, self.box.content_height
        if self.turns % 2:
            width, height = height, width
        self.size = width, height
        self.roi = coded_roi(roi, picture)
        self.color = color
        known = FORMATS.get(picture.format)
        if known is None:
            self._make_fallback(picture)
        self.known = known
        dtype = np.dtype(np.uint8 if known is None or known.bytes == 1 else "<u2")
        self._planes = [
            np.empty((height, width, p.channels) if p.channels > 1 else (height, width), dtype)
            for p in (known.planes if known is not None else ())
        ]
        self._merged = np.empty((height, width, 3), dtype)
        self._rgb = np.empty((height, width, 3), np.uint8)
        self._matrix = _matrix(picture, known, color) if known is not None and known.kind == "yuv" else None

    def _make_fallback(self, picture: Picture) -> None:
        """Converts the whole picture with swscale."""
        import av
        import av.video.reformatter

        self._reformatter = av.video.reformatter.VideoReformatter()
        # Of a crop, the whole picture is converted first: swscale takes no part of one.
        self._cropped = (self.roi.width, self.roi.height) != (picture.width, picture.height)
        width, height = (picture.width, picture.height) if self._cropped else self.size
        self._reformat: dict[str, Any] = {
            "width": width,
            "height": height,
            "format": "rgb24" if self.color == "RGB" else "bgr24",
            "interpolation": av.video.reformatter.Interpolation.BILINEAR,
            "src_colorspace": _COLORSPACE[picture.matrix],
            "dst_colorspace": _COLORSPACE[picture.matrix],
            "src_color_range": 2 if picture.full_range else 1,
            "dst_color_range": 2,
        }

    def _shrink(self, picture: Picture, kind: _Format) -> None:
        import cv2

        roi = self.roi
        for i, (shape, target) in enumerate(zip(kind.planes, self._planes, strict=True)):
            source = plane_view(picture.native, i, shape, picture.width, picture.height, kind.bytes)
            if roi.width != picture.width or roi.height != picture.height:
                x0, y0 = roi.x >> shape.shift_x, roi.y >> shape.shift_y
                x1 = (roi.x + roi.width + shape.shift_x) >> shape.shift_x
                y1 = (roi.y + roi.height + shape.shift_y) >> shape.shift_y
                source = source[y0:y1, x0:x1]
            cv2.resize(source, self.size, dst=target, interpolation=cv2.INTER_LINEAR)

    def _convert(self, kind: _Format, into: UInt8Array) -> None:
        """The small planes as RGB or BGR."""
        import cv2

        if self._matrix is None:
            if kind.kind == "gray":
                cv2.merge([self._planes[0]] * 3, into)
            else:
                into[:] = self._planes[0] if kind.kind == self.color else self._planes[0][..., ::-1]
            return
        cv2.merge(self._planes, self._merged)
        if kind.bytes == 1:
            cv2.transform(self._merged, self._matrix, into)
        else:
            cv2.convertScaleAbs(cv2.transform(self._merged, self._matrix), into)

    def render(self, picture: Picture, into: UInt8Array) -> None:
        """Writes the scaled, converted, upright picture into `into` (content_height, content_width, 3)."""
        import cv2

        if self.known is None:
            small = self._reformatter.reformat(picture.video_frame(), **self._reformat)
            scaled = plane_view(small, 0, _PlaneShape(0, 0, 3), small.width, small.height, 1)
            if self._cropped:
                roi = self.roi
                part = scaled[roi.y : roi.y + roi.height, roi.x : roi.x + roi.width]
                scaled = cv2.resize(part, self.size, dst=self._rgb, interpolation=cv2.INTER_LINEAR)
            # np.rot90 rotates counter-clockwise without copying.
            into[:] = self._upright(scaled)
            return
        self._shrink(picture, self.known)
        if self.turns == 0 and not self.mirrored:
            self._convert(self.known, into)
            return
        self._convert(self.known, self._rgb)
        into[:] = self._upright(self._rgb)

    def _upright(self, picture: UInt8Array) -> UInt8Array:
        turned = np.rot90(picture, -self.turns)
        return turned[:, ::-1] if self.mirrored else turned


class HostLetterbox:
    """Letterboxes host pictures into (H, W, 3) uint8. Used by one thread.

    Args:
        input_width: network input, pixels.
        input_height: network input, pixels.
        pad_value: grey level 0..255 around the picture.
        color: channel order of the output.
        placement: where the picture goes.
    """

    def __init__(
        self,
        input_width: int,
        input_height: int,
        *,
        pad_value: int = 114,
        color: Literal["RGB", "BGR"] = "RGB",
        placement: Placement = CENTERED,
    ) -> None:
        self.input_width = input_width
        self.input_height = input_height
        self.pad_value = pad_value
        self._color: Literal["RGB", "BGR"] = color
        self._placement = placement
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        import cv2

        # One small picture gains nothing from a thread pool, whose threads the engine and the decoders need.
        cv2.setNumThreads(1)
        self._refused: type[Exception] = cv2.error

    @classmethod
    def of(cls, spec: ModelSpec) -> HostLetterbox:
        """The letterbox that makes the model's input."""
        return cls(
            spec.input_width,
            spec.input_height,
            pad_value=spec.pad_value,
            color=spec.color,
            placement=spec.placement,
        )

    def _plan(self, frame: Frame) -> _Plan:
        p = frame.picture
        key = (p.format, p.width, p.height, p.matrix, p.full_range, p.rotation, p.mirrored, p.pixel_aspect, frame.roi)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(frame, self.input_width, self.input_height, self._color, self._placement)
            if len(self._plans) > _CACHED_PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan

    def __call__(self, frame: Frame, into: UInt8Array, last: Letterbox | None = None) -> Letterbox:
        """Letterboxes `frame` into `into` (input_height, input_width, 3).

        Args:
            frame: any supported pixel format, on the host.
            into: the slot's own input, written in place.
            last: the letterbox that `into` already contains: its padding is kept if the geometry is the same.

        Raises:
            FrameError: the picture is on a device, or cannot be converted.
        """
        if frame.picture.device is not None:
            raise FrameError(
                f"stream {frame.stream}: the picture is in GPU memory, but this backend reads host memory; "
                "set decode: software"
            )
        plan = self._plan(frame)
        box = plan.box
        if last is None or last != box:
            into[:] = self.pad_value
        try:
            plan.render(
                frame.picture,
                into[box.pad_y : box.pad_y + box.content_height, box.pad_x : box.pad_x + box.content_width],
            )
        except (ValueError, OSError, self._refused) as error:
            raise FrameError(
                f"stream {frame.stream}: a {frame.picture.format} picture of {frame.picture.width}×"
                f"{frame.picture.height} cannot be scaled: {error}"
            ) from error
        return box
