"""Boxes drawn on pictures and videos, for people. Offline: full-size conversion is fine here."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.errors import SinkError
from streamd.types import Detections, Frame

Image = npt.NDArray[np.uint8]


def color_of(label: str) -> tuple[int, int, int]:
    """A steady, bright BGR colour for a class name."""
    import cv2

    hue = hashlib.sha256(label.encode()).digest()[0] * 179 // 255
    blue, green, red = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return int(blue), int(green), int(red)


def upright_bgr(frame: Frame) -> Image:
    """The whole picture as (H, W, 3) BGR, upright."""
    image = frame.picture.video_frame().to_ndarray(format="bgr24")
    turned = np.rot90(image, -frame.picture.rotation // 90)
    return np.ascontiguousarray(turned).astype(np.uint8, copy=False)


def draw(image: Image, detections: Detections) -> Image:
    """Draws the boxes with label and score into `image`, in place, and returns it."""
    import cv2

    scale = max(0.4, min(image.shape[:2]) / 1000)
    thickness = max(1, round(scale * 2))
    for class_id, score, box in zip(
        detections.class_id.tolist(), detections.score.tolist(), detections.xyxy.tolist(), strict=True
    ):
        label = detections.model.labels[class_id]
        color = color_of(label)
        x1, y1, x2, y2 = (round(v) for v in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), color, thickness)
        text = f"{label} {score:.2f}"
        (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        top = max(y1, height + baseline)
        cv2.rectangle(image, (x1, top - height - baseline), (x1 + width, top), color, cv2.FILLED)
        cv2.putText(
            image, text, (x1, top - baseline // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thickness, cv2.LINE_AA
        )
    return image


class Annotator:
    """Writes annotated images, and one MP4 a video, into a folder.

    Args:
        folder: made where it does not exist.

    Raises:
        SinkError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._videos: dict[str, tuple[Any, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"--save {folder}: {error.strerror}") from error

    def add(self, frame: Frame, detections: Detections, name: str, *, fps: float | None) -> None:
        """Draws one frame of input `name` and writes it: into its video of `fps` frames a second, or as an image."""
        image = draw(upright_bgr(frame), detections)
        if fps is not None:
            self._add_to_video(name, image, fps)
            return
        import cv2

        target = self._folder / Path(name).name
        if target.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            target = target.with_suffix(".png")
        if not cv2.imwrite(str(target), image):
            raise SinkError(f"--save: cannot write {target}; check the folder's owner and free space")

    def _add_to_video(self, name: str, image: Image, fps: float) -> None:
        import av

        # Encoders of 4:2:0 want even sizes.
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        if name not in self._videos:
            stem = Path(name.rsplit("/", 1)[-1].split("?", 1)[0]).stem or "stream"
            target = self._folder / f"{stem}.mp4"
            taken = {Path(c.name) for c, _ in self._videos.values()}
            number = 2
            while target in taken:
                target = self._folder / f"{stem}-{number}.mp4"
                number += 1
            container = av.open(str(target), "w")
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            self._videos[name] = (container, stream)
        container, stream = self._videos[name]
        native = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="bgr24")
        if (stream.width, stream.height) != (width, height):
            native = native.reformat(width=stream.width, height=stream.height)
        container.mux(stream.encode(native))

    def close(self) -> None:
        """Finishes every video."""
        for container, stream in self._videos.values():
            container.mux(stream.encode(None))
            container.close()
        self._videos.clear()
