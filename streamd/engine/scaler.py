"""The letterbox on the CPU: from the decoder's own planes straight to the network's size.

Each plane is shrunk by `cv2.resize` at its own resolution, and only the small picture is converted to RGB, by swscale,
which knows every matrix and range. Measured on a 768×576 frame for a 640×640 input, one core: 0.50 ms, against 0.87 ms
for swscale alone at its fastest and 2.2 ms for swscale bilinear; it is also closer to the four-tap reference.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.engine.reference import coded_roi
from streamd.errors import FrameError
from streamd.types import Box, Frame, Letterbox, Picture

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

UInt8Array = npt.NDArray[np.uint8]


class _PlaneShape(NamedTuple):
    shift_x: int
    shift_y: int
    channels: int


class _Format(NamedTuple):
    """How a pixel format lies in memory, and what its small copy is called."""

    planes: tuple[_PlaneShape, ...]
    small: str
    bytes: int = 1
    yuv: bool = True


_Y, _C420, _C422, _C444 = _PlaneShape(0, 0, 1), _PlaneShape(1, 1, 1), _PlaneShape(1, 0, 1), _PlaneShape(0, 0, 1)
_UV420 = _PlaneShape(1, 1, 2)
_FORMATS: dict[str, _Format] = {
    "yuv420p": _Format((_Y, _C420, _C420), "yuv420p"),
    "yuvj420p": _Format((_Y, _C420, _C420), "yuv420p"),
    "yuv422p": _Format((_Y, _C422, _C422), "yuv422p"),
    "yuvj422p": _Format((_Y, _C422, _C422), "yuv422p"),
    "yuv444p": _Format((_Y, _C444, _C444), "yuv444p"),
    "yuvj444p": _Format((_Y, _C444, _C444), "yuv444p"),
    "nv12": _Format((_Y, _UV420), "nv12"),
    "yuv420p10le": _Format((_Y, _C420, _C420), "yuv420p10le", 2),
    "yuv422p10le": _Format((_Y, _C422, _C422), "yuv422p10le", 2),
    "p010le": _Format((_Y, _UV420), "p010le", 2),
    "gray": _Format((_Y,), "gray"),
    "rgb24": _Format((_PlaneShape(0, 0, 3),), "rgb24", yuv=False),
    "bgr24": _Format((_PlaneShape(0, 0, 3),), "bgr24", yuv=False),
}

_COLORSPACE = {"bt601": 5, "bt709": 1, "bt2020": 9}
"""swscale's numbers for the matrices (SWS_CS_ITU601, SWS_CS_ITU709, SWS_CS_BT2020)."""
_MATRIX_CODE = {"bt601": 6, "bt709": 1, "bt2020": 9}
"""ITU-T H.273's numbers for them."""
_CACHED_PLANS = 64


def _view(frame: VideoFrame, index: int, shape: _PlaneShape, width: int, height: int, bytes_: int) -> npt.NDArray[Any]:
    """A writable view of one plane without its padding: (H, W) or (H, W, C)."""
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
    """Everything that one geometry needs, made once: the small picture, its planes, and a swscale context."""

    def __init__(self, frame: Frame, input_width: int, input_height: int, rgb: Literal["rgb24", "bgr24"]) -> None:
        from av.video.frame import VideoFrame
        from av.video.reformatter import Interpolation, VideoReformatter

        picture = frame.picture
        whole = Box(0, 0, frame.width, frame.height)
        roi = frame.roi or whole
        if roi.x < 0 or roi.y < 0 or roi.x + roi.width > whole.width or roi.y + roi.height > whole.height:
            raise FrameError(
                f"stream {frame.stream}: crop {roi.width}×{roi.height} at {roi.x},{roi.y} does not lie inside the "
                f"{whole.width}×{whole.height} picture"
            )
        self.box = Letterbox.fit(roi, input_width, input_height)
        self.turns = picture.rotation // 90
        width, height = self.box.content_width, self.box.content_height
        if self.turns % 2:
            width, height = height, width
        self.width, self.height = width, height
        self.roi = coded_roi(roi, picture)
        self.rgb = rgb
        self.known = _FORMATS.get(picture.format)
        self.direct = (self.known is None or (width, height) == (self.roi.width, self.roi.height)) and roi == whole
        if self.known is None and roi != whole:
            raise FrameError(
                f"stream {frame.stream}: crop is not supported for pixel format {picture.format}; "
                f"supported: {', '.join(sorted(_FORMATS))}"
            )
        self._reformatter = VideoReformatter()
        full_range = picture.full_range or picture.format.startswith("yuvj")
        self._reformat: dict[str, Any] = {
            "width": width,
            "height": height,
            "format": rgb,
            "interpolation": Interpolation.BILINEAR,
        }
        if self.known is None or self.known.yuv:
            self._reformat |= {
                "src_colorspace": _COLORSPACE[picture.matrix],
                "dst_colorspace": _COLORSPACE[picture.matrix],
                "src_color_range": 2 if full_range else 1,
                "dst_color_range": 2,
            }
        self.small: VideoFrame | None = None
        self.targets: list[npt.NDArray[Any]] = []
        if not self.direct and self.known is not None:
            self.small = VideoFrame(width, height, self.known.small)
            # PyAV 17 passes BT.2020 on only where the frame itself says so.
            self.small.colorspace = _MATRIX_CODE[picture.matrix]
            self.targets = [
                _view(self.small, i, shape, width, height, self.known.bytes)
                for i, shape in enumerate(self.known.planes)
            ]

    def _shrink(self, picture: Picture) -> None:
        import cv2

        assert self.known is not None
        roi = self.roi
        for i, (shape, target) in enumerate(zip(self.known.planes, self.targets, strict=True)):
            source = _view(picture.native, i, shape, picture.width, picture.height, self.known.bytes)
            if roi.width != picture.width or roi.height != picture.height:
                x0, y0 = roi.x >> shape.shift_x, roi.y >> shape.shift_y
                x1 = (roi.x + roi.width + shape.shift_x) >> shape.shift_x
                y1 = (roi.y + roi.height + shape.shift_y) >> shape.shift_y
                source = source[y0:y1, x0:x1]
            cv2.resize(source, (target.shape[1], target.shape[0]), dst=target, interpolation=cv2.INTER_LINEAR)

    def render(self, picture: Picture, into: UInt8Array) -> None:
        """Writes the scaled, converted, upright picture into `into` (content_height, content_width, 3)."""
        source: VideoFrame = picture.native
        if self.small is not None:
            self._shrink(picture)
            source = self.small
        if source.format.name == self.rgb:
            scaled = _view(source, 0, _FORMATS[self.rgb].planes[0], self.width, self.height, 1)
        else:
            small = self._reformatter.reformat(source, **self._reformat)
            scaled = _view(small, 0, _FORMATS[self.rgb].planes[0], self.width, self.height, 1)
        # np.rot90 turns counter-clockwise and copies nothing.
        into[:] = np.rot90(scaled, -self.turns) if self.turns else scaled


class HostLetterbox:
    """Letterboxes host pictures into (H, W, 3) uint8. Used by one thread.

    Args:
        input_width: network input, pixels.
        input_height: network input, pixels.
        pad_value: grey level 0..255 around the picture.
        color: channel order of the output.
    """

    def __init__(
        self, input_width: int, input_height: int, *, pad_value: int = 114, color: Literal["RGB", "BGR"] = "RGB"
    ) -> None:
        self.input_width = input_width
        self.input_height = input_height
        self.pad_value = pad_value
        self._rgb: Literal["rgb24", "bgr24"] = "rgb24" if color == "RGB" else "bgr24"
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        import cv2

        # One small picture gains nothing from a pool of threads that the engine and the decoders need.
        cv2.setNumThreads(1)

    def _plan(self, frame: Frame) -> _Plan:
        p = frame.picture
        key = (p.format, p.width, p.height, p.matrix, p.full_range, p.rotation, frame.roi)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(frame, self.input_width, self.input_height, self._rgb)
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
            last: the letterbox that `into` holds already: its padding is kept where the geometry is the same.

        Raises:
            FrameError: the picture is on a device, or cannot be converted.
        """
        if frame.picture.device is not None:
            raise FrameError(
                f"stream {frame.stream}: the picture is in GPU memory and this backend reads host memory; "
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
        except (ValueError, OSError) as error:
            raise FrameError(
                f"stream {frame.stream}: a {frame.picture.format} picture of {frame.picture.width}×"
                f"{frame.picture.height} cannot be scaled: {error}"
            ) from error
        return box
