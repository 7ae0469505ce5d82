"""Draws boxes on images and videos. Offline only, so full-size colour conversion is acceptable here."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.errors import SinkError
from streamd.security.text import printable
from streamd.types import Attribute, Details, Detections, Frame

Image = npt.NDArray[np.uint8]


COLORS = ("5aa9ff", "ffc04d", "4ade9c", "ff7a90", "c19bff", "38dbe6", "ff9d5c", "dbe65a")
"""The web page's colours (web/static/pictures.js), chosen by the same hash."""
DARK = (18, 14, 11)
COCO_KEYPOINTS = 17
LIMBS = (
    (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13),
    (13, 15), (12, 14), (14, 16),
)  # fmt: skip
"""Between COCO's keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles, left before right."""
SURE = 0.5
"""Keypoints of which the model is less sure are not drawn."""


def color_of(label: str) -> tuple[int, int, int]:
    """A stable, bright BGR colour for a class name."""
    total = 0
    for character in label:
        total = total * 31 + ord(character)
    red, green, blue = bytes.fromhex(COLORS[(total & 0xFFFFFFFF) % 97 % len(COLORS)])
    return blue, green, red


def upright_bgr(frame: Frame) -> Image:
    """The whole picture as (H, W, 3) BGR, upright."""
    image = frame.picture.video_frame().to_ndarray(format="bgr24")
    turned = np.rot90(image, -frame.picture.rotation // 90)
    if frame.picture.mirrored:
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned).astype(np.uint8, copy=False)


def widths(image: Image) -> tuple[float, int]:
    """The scale of text and the width of lines, in pixels, that suit a picture of this size."""
    scale = max(0.4, min(image.shape[:2]) / 1100)
    return scale, max(1, round(scale * 2.2))


def tag(image: Image, text: str, corner: tuple[int, int], color: tuple[int, int, int], scale: float) -> None:
    """Writes `text` on a filled bar above `corner` (x, y in pixels), inside the picture."""
    import cv2

    _, line = widths(image)
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    left = max(0, min(corner[0], image.shape[1] - width - 2 * line))
    top = max(0, corner[1] - height - baseline - line)
    bottom = top + height + baseline + line
    cv2.rectangle(image, (left, top), (left + width + 2 * line, bottom), color, cv2.FILLED)
    place = (left + line, bottom - baseline)
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, DARK, max(1, round(scale)), cv2.LINE_AA)


def _text(label: str, score: float, track: int, said: Sequence[Attribute]) -> str:
    parts = [f"{label} {score:.2f}", *(f"{each.label} {each.score:.2f}" for each in said)]
    return " ".join(parts) + (f" #{track}" if track else "")


def draw(image: Image, detections: Detections) -> Image:
    """Draws the boxes with label, score and the track's id into `image`, in place, and returns it."""
    import cv2

    scale, line = widths(image)
    tracks = detections.tracks.number.tolist() if detections.tracks is not None else [0] * len(detections.score)
    found = [
        (_text(label, score, track, said), color_of(label), [round(v) for v in box])
        for label, score, box, track, said in zip(
            (detections.model.labels[c] for c in detections.class_id.tolist()),
            detections.score.tolist(),
            detections.xyxy.tolist(),
            tracks,
            detections.attributes or [()] * len(detections.score),
            strict=True,
        )
    ]
    if detections.details is not None:
        _draw_details(image, detections.details, [color for _, color, _ in found], line)
    boxes = found if detections.details is None or detections.details.oriented is None else []
    for _, color, (x1, y1, x2, y2) in boxes:
        # A dark edge keeps the line visible on a bright wall.
        cv2.rectangle(image, (x1, y1), (x2, y2), DARK, line + 2, cv2.LINE_AA)
        cv2.rectangle(image, (x1, y1), (x2, y2), color, line, cv2.LINE_AA)
    # Labels are drawn last, the highest score on top, so that no box line crosses their text.
    for text, color, (x1, y1, _, _) in reversed(found):
        tag(image, text, (x1, y1), color, scale)
    return image


def _draw_details(image: Image, details: Details, colors: Sequence[tuple[int, int, int]], line: int) -> None:
    """Outlines of objects with a light fill, rotated boxes, and keypoints; of a person (17 of COCO) with limbs."""
    import cv2

    if details.polygons is not None:
        tint = image.copy()
        for points, color in zip(details.polygons, colors, strict=True):
            if len(points):
                cv2.fillPoly(tint, [np.rint(points).astype(np.int32)], color)
        cv2.addWeighted(tint, 0.35, image, 0.65, 0, image)
    for shapes, spread in ((details.polygons, 0), (details.oriented, 2)):
        for points, color in zip(shapes if shapes is not None else (), colors, strict=shapes is not None):
            if len(points):
                corners = np.rint(points).astype(np.int32)
                if spread:
                    cv2.polylines(image, [corners], True, DARK, line + spread, cv2.LINE_AA)
                cv2.polylines(image, [corners], True, color, line, cv2.LINE_AA)
    if details.keypoints is not None:
        limbs = LIMBS if details.keypoints.shape[1] == COCO_KEYPOINTS else ()
        for object_points, color in zip(details.keypoints.tolist(), colors, strict=True):
            seen = {i: (round(x), round(y)) for i, (x, y, sure) in enumerate(object_points) if sure >= SURE}
            for a, b in limbs:
                if a in seen and b in seen:
                    cv2.line(image, seen[a], seen[b], color, line, cv2.LINE_AA)
            for place in seen.values():
                cv2.circle(image, place, line + 2, DARK, cv2.FILLED, cv2.LINE_AA)
                cv2.circle(image, place, line + 1, color, cv2.FILLED, cv2.LINE_AA)


class Video:
    """Writes one H.264 file (MPEG-4 where FFmpeg has no libx264), encoding pictures as they arrive.

    Args:
        path: the file; its suffix selects the container.
        fps: frames a second.

    Raises:
        SinkError: here and later: the file cannot be written, or its suffix names no video container.
    """

    def __init__(self, path: Path, fps: float) -> None:
        import av

        self.path = path
        self._size = (0, 0)
        self._broken = False
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        with self._errors():
            self._container = av.open(str(path), "w")
            stream: Any = self._container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        self._stream = stream

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self._broken = True
            reason = getattr(error, "strerror", None) or str(error)
            raise SinkError(
                f"cannot write {self.path}: {reason}; expected a file such as out.mp4, in a folder with free space"
            ) from error

    def add(self, image: Image) -> None:
        """Encodes one picture; later pictures are scaled to the size of the first."""
        import av

        if not self._size[0]:
            # 4:2:0 encoders need even sizes.
            self._size = max(2, image.shape[1] // 2 * 2), max(2, image.shape[0] // 2 * 2)
            self._stream.width, self._stream.height = self._size
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")
        if (frame.width, frame.height) != self._size:
            frame = frame.reformat(width=self._size[0], height=self._size[1])
        with self._errors():
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finishes the file, unless writing failed or no picture came."""
        if self._size[0] and not self._broken:
            with self._errors():
                self._container.mux(self._stream.encode(None))
                self._container.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Of the file itself, whatever links lead to it; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def same_file(one: str | Path, other: str | Path) -> bool:
    """True if both name one existing file."""
    found = _identity(Path(one))
    return found is not None and found == _identity(Path(other))


class Annotator:
    """Writes annotated images, and one MP4 per video, into a folder.

    No input is ever overwritten, and neither is what another input of the same name was written to: `-2` and so on is
    added to the name then. Files of an earlier run are replaced.

    Args:
        folder: created if it does not exist.
        inputs: the files that are read.
        beneath: draws into a picture before its boxes are drawn.
        above: draws into it afterwards.

    Raises:
        SinkError: the folder cannot be created or written.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Iterable[Path] = (),
        beneath: Callable[[Image, Detections], None] | None = None,
        above: Callable[[Image, Detections], None] | None = None,
    ) -> None:
        self._folder, self._beneath, self._above = folder, beneath, above
        self._videos: dict[str, Video] = {}
        self._targets: dict[str, Path] = {}
        self._taken: set[Path] = set()
        self._inputs = {identity for path in inputs if (identity := _identity(path)) is not None}
        self.images = 0
        """Pictures written as images."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"--save {printable(str(folder))}: {error.strerror}") from error

    def add(self, frame: Frame, detections: Detections, name: str, *, fps: float | None) -> None:
        """Draws one frame of input `name` and writes it: into its video of `fps` frames a second, or as an image."""
        image = upright_bgr(frame)
        if self._beneath is not None:
            self._beneath(image, detections)
        draw(image, detections)
        if self._above is not None:
            self._above(image, detections)
        if fps is not None:
            if name not in self._videos:
                self._videos[name] = Video(self._target(name, ".mp4"), fps)
            self._videos[name].add(image)
            return
        import cv2

        suffix = Path(name).suffix
        target = self._target(name, suffix if suffix.lower() in (".jpg", ".jpeg", ".png") else ".png")
        # Not imwrite: it crashes on names that are not UTF-8.
        encoded, data = cv2.imencode(target.suffix, image)
        try:
            if not encoded:
                raise OSError(errno.EINVAL, f"a picture of {image.shape[1]} x {image.shape[0]} cannot be encoded")
            target.write_bytes(data.tobytes())
        except OSError as error:
            raise SinkError(f"--save: cannot write {printable(str(target))}: {error.strerror}") from error
        self.images += 1

    def _target(self, name: str, suffix: str) -> Path:
        """A file named after the input, which is none of the inputs and no other input's."""
        if name not in self._targets:
            # The last part of a URL may be a key, and its host says less than a number.
            stem = "stream" if "://" in name else Path(name).stem or "stream"
            target, number = self._folder / f"{stem}{suffix}", 2
            while target in self._taken or _identity(target) in self._inputs:
                target = self._folder / f"{stem}-{number}{suffix}"
                number += 1
            self._targets[name] = target
            self._taken.add(target)
        return self._targets[name]

    def written(self) -> str:
        """What was written and where, for people."""
        videos = [printable(str(video.path)) for video in self._videos.values()]
        if self.images:
            videos.append(f"{self.images} image{'s' * (self.images > 1)} in {printable(str(self._folder))}")
        return ", ".join(videos) or "nothing"

    def close(self) -> None:
        """Finishes every video."""
        for video in self._videos.values():
            video.close()
