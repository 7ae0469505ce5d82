"""Calibration pictures from a folder, a video or a stream, through the daemon's own letterbox."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streamd.errors import ConfigError, FrameError, ModelError, SourceError
from streamd.imaging.letterbox import HostLetterbox
from streamd.models.dataset import image_folder, shared_pictures
from streamd.security.redact import credentials, redact, remember
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings, check_url
from streamd.sources.images import SUFFIXES, read_image
from streamd.types import Float32Array, Frame, ModelSpec

KEPT_BACK = 4
"""Of so many pictures one is kept back, where there is nothing else to judge on."""
KEPT_FRAMES = 32
"""Decoded frames of a live stream held in memory, 3 MB each at 1080p."""


@dataclass
class Pictures:
    """Where calibration pictures come from, and how many to use.

    Args:
        where: folder of images, one image, video file, or URL.
        limit: most pictures. Those of a folder are evenly spaced, so that a sorted folder is covered.
        every: use every n-th frame of a video or stream, since neighbouring frames are almost identical.
        keep_back: hold some out for `judged`: of a folder those not taken, and at least a quarter; of a video or stream
            every fourth frame.

    Raises:
        ConfigError: the location does not exist.
    """

    where: str
    limit: int
    every: int = 10
    keep_back: bool = False
    unreadable: list[str] = field(default_factory=list)
    """One message per picture that could not be read since `frames` last began."""
    images: list[Path] = field(init=False)
    """Image files; empty for a video or stream."""
    others: list[Path] = field(init=False, default_factory=list)
    """The files of the folder that were held out."""
    _kept: list[tuple[str, Frame]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        remember(credentials(self.where))
        path = Path(self.where)
        self._settings = AvStreamSettings(id="calibration", url=self.where, pace="asap", decode="software")
        if path.is_dir():
            found = image_folder(path)
            most = len(found) - max(1, len(found) // KEPT_BACK) if self.keep_back and len(found) > 1 else len(found)
            count = min(self.limit, most)
            taken = [i * len(found) // count for i in range(count)]
            self.images = [found[i] for i in taken]
            if self.keep_back:
                others = [found[i] for i in sorted(set(range(len(found))) - set(taken))]
                copies = {path for _, path in shared_pictures(self.images, others)}
                self.others = [path for path in others if path not in copies]
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            self.images = [path]
        else:
            self.images = []
            check_url(self.where)
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
            if self.keep_back:
                digest.update(f"kept back={KEPT_BACK}".encode())
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
        if self.images:
            yield from self._read(self.images)
            return
        self._kept.clear()
        for i, found in enumerate(self._sampled()):
            if not self.keep_back or i % KEPT_BACK != KEPT_BACK - 1:
                yield found
            elif self.live and len(self._kept) < KEPT_FRAMES:
                self._kept.append(found)

    def judged(self, limit: int) -> Iterator[tuple[str, Frame]]:
        """(name, frame) of those kept back, at most `limit`; of a live stream those that `frames` came by.

        Raises:
            ConfigError: there are none.
        """
        if self.images:
            count = min(limit, len(self.others))
            if not count:
                raise ConfigError(
                    f"--images {redact(self.where)}: no picture is left to judge on that is not calibrated with; "
                    "give other ones with --eval-images"
                )
            yield from self._read([self.others[i * len(self.others) // count] for i in range(count)])
            return
        kept = self._kept if self.live else self._back()
        given = 0
        for given, found in enumerate(kept, 1):
            yield found
            if given >= limit:
                break
        if not given:
            raise ConfigError(
                f"--images {redact(self.where)}: too short to keep frames back for judging; give pictures with "
                "--eval-images, or a smaller --every"
            )

    def _back(self) -> Iterator[tuple[str, Frame]]:
        for i, found in enumerate(self._sampled()):
            if i % KEPT_BACK == KEPT_BACK - 1:
                yield found

    def _read(self, images: list[Path]) -> Iterator[tuple[str, Frame]]:
        for path in images:
            try:
                yield path.name, read_image(path)
            except SourceError as error:
                self.unreadable.append(str(error))

    def _sampled(self) -> Iterator[tuple[str, Frame]]:
        """Every n-th frame of the video or stream, as many as are wanted and those kept back among them."""
        limit = self.limit * KEPT_BACK // (KEPT_BACK - 1) if self.keep_back else self.limit
        source = open_source(self._settings)
        given = 0
        try:
            source.open()
            for i, frame in enumerate(source.frames()):
                if i % self.every:
                    continue
                yield f"frame {i}", frame
                given += 1
                if given >= limit:
                    break
        except SourceError as error:
            # Pictures from before a stream failed remain usable.
            if not given:
                raise
            self.unreadable.append(str(error))
        finally:
            source.close()


def refuse_shared(first: Pictures, second: Pictures, first_option: str, second_option: str) -> None:
    """No picture may be in both.

    Raises:
        ConfigError: one is, by its content, or both are the same video.
    """

    def files(of: Pictures) -> list[Path]:
        path = Path(of.where.removeprefix("file:"))
        return of.images or ([path] if path.is_file() else [])

    if pairs := shared_pictures(files(first), files(second)):
        one, other = pairs[0]
        raise ConfigError(
            f"{second_option} {other}: is also among the pictures of {first_option} ({one.name}; {len(pairs)} such), "
            "and a model is not judged on what it was made with; give other pictures"
        )


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
        self._letterbox = HostLetterbox.of(spec)
        self._gain, self._offset = spec.normalization()
        self.fixed_batch = spec.input.shape[0] if spec.input.shape[0] > 0 else None

    def input(self, frame: Frame) -> Float32Array:
        """One frame: (C, H, W), or (H, W, C) if that is the model's layout.

        Raises:
            FrameError: the picture cannot be scaled.
        """
        pixels = np.empty((self._spec.input_height, self._spec.input_width, 3), np.uint8)
        self._letterbox(frame, pixels)
        out = pixels.astype(np.float32)
        out *= self._gain
        out += self._offset
        return np.ascontiguousarray(out.transpose(2, 0, 1)) if self._spec.layout == "NCHW" else out

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
