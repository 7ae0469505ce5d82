"""Calibration pictures from a folder, a video or a stream, through the daemon's own letterbox."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streamd.errors import ConfigError, FrameError, ModelError, SourceError
from streamd.imaging.letterbox import HostLetterbox
from streamd.models.dataset import image_folder
from streamd.security.redact import credentials, redact, remember
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.images import SUFFIXES, read_image
from streamd.types import Float32Array, Frame, ModelSpec


@dataclass
class Pictures:
    """Where calibration pictures come from, and how many to use.

    Args:
        where: folder of images, one image, video file, or URL.
        limit: most pictures. Those of a folder are evenly spaced, so that a sorted folder is covered.
        every: use every n-th frame of a video or stream, since neighbouring frames are almost identical.

    Raises:
        ConfigError: the location does not exist.
    """

    where: str
    limit: int
    every: int = 10
    unreadable: list[str] = field(default_factory=list)
    """One message per picture that could not be read in the last pass."""
    images: list[Path] = field(init=False)
    """Image files; empty for a video or stream."""

    def __post_init__(self) -> None:
        remember(credentials(self.where))
        path = Path(self.where)
        self._settings = AvStreamSettings(id="calibration", url=self.where, pace="asap", decode="software")
        if path.is_dir():
            found = image_folder(path)
            count = min(self.limit, len(found))
            self.images = [found[i * len(found) // count] for i in range(count)]
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            self.images = [path]
        else:
            self.images = []
            if not self.live and not Path(self.where.removeprefix("file:")).is_file():
                raise ConfigError(
                    f"--images {redact(self.where)}: not found; expected a folder of images, a video file or a URL"
                )

    @property
    def live(self) -> bool:
        """True if reading again yields different pictures."""
        return not self.images and self._settings.live

    def sha256(self) -> str | None:
        """Hash over everything that determines the pixels; None for a live stream."""
        if self.live:
            return None
        digest = hashlib.sha256(f"limit={self.limit if not self.images else len(self.images)}".encode())
        if not self.images:
            digest.update(f"every={self.every}".encode())
        for path in self.images or [Path(self.where.removeprefix("file:"))]:
            try:
                with path.open("rb") as handle:
                    while block := handle.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise ConfigError(f"--images {path}: cannot be read: {error.strerror}") from error
        return digest.hexdigest()

    def frames(self) -> Iterator[tuple[str, Frame]]:
        """(name, frame) pairs, at most `limit`. Images that cannot be read are recorded and skipped.

        Raises:
            SourceError: a video or stream cannot be opened, or fails before its first picture.
        """
        self.unreadable.clear()
        for path in self.images:
            try:
                yield path.name, read_image(path)
            except SourceError as error:
                self.unreadable.append(str(error))
        if self.images:
            return
        source = open_source(self._settings)
        given = 0
        try:
            source.open()
            for i, frame in enumerate(source.frames()):
                if i % self.every:
                    continue
                yield f"frame {i}", frame
                given += 1
                if given >= self.limit:
                    break
        except SourceError as error:
            # Pictures from before a stream failed remain usable.
            if not given:
                raise
            self.unreadable.append(str(error))
        finally:
            source.close()


class Feeder:
    """Turns frames into network input, (B, C, H, W) float32, with the daemon's letterbox and scaling.

    Args:
        spec: of the model; its input must be float32.

    Raises:
        ModelError: the input has another type.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if spec.input.dtype != "float32":
            raise ModelError(f"model {spec.path}: its input is {spec.input.dtype}; quantizing needs a float32 model")
        self._spec = spec
        self._letterbox = HostLetterbox(spec.input_width, spec.input_height, pad_value=spec.pad_value, color=spec.color)
        self.fixed_batch = spec.input.shape[0] if spec.input.shape[0] > 0 else None

    def input(self, frame: Frame) -> Float32Array:
        """One frame: (C, H, W), or (H, W, C) if that is the model's layout.

        Raises:
            FrameError: the picture cannot be scaled.
        """
        pixels = np.empty((self._spec.input_height, self._spec.input_width, 3), np.uint8)
        self._letterbox(frame, pixels)
        image = pixels.transpose(2, 0, 1) if self._spec.layout == "NCHW" else pixels
        out: Float32Array = np.ascontiguousarray(image, np.float32) * np.float32(self._spec.scale)
        return out

    def batches(self, frames: Iterable[tuple[str, Frame]], batch: int, unreadable: list[str]) -> Iterator[Float32Array]:
        """Batches of at most `batch` pictures, or of exactly the model's batch size if that is fixed.

        Frames that cannot be scaled are skipped and recorded in `unreadable`.
        """
        size = self.fixed_batch or batch
        waiting: list[Float32Array] = []
        for name, frame in frames:
            try:
                waiting.append(self.input(frame))
            except FrameError as error:
                unreadable.append(f"{name}: {error}")
                continue
            if len(waiting) == size:
                yield np.stack(waiting)
                waiting = []
        if waiting and self.fixed_batch is None:
            yield np.stack(waiting)
        elif waiting:
            # With a fixed batch size, the last batch is padded by repeating pictures.
            yield np.stack([waiting[i % len(waiting)] for i in range(size)])
