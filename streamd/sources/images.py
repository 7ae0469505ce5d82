"""Still images as frames, for `detect`, `quantize` and `evaluate`, through the daemon's own decoder."""

from __future__ import annotations

import contextlib
import mmap
import stat
import time
from pathlib import Path

from streamd.errors import SourceError
from streamd.sources.exif import ANIMATED_WEBP, JPEG_IN_TIFF, exif_orientation, is_animated_webp, is_jpeg_in_tiff
from streamd.sources.picture import UPRIGHT, picture_of
from streamd.sources.quarantine import JpegListener
from streamd.types import Frame, Rotation, rotated_size

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm", ".ts", ".m4v", ".mpg", ".mpeg"})
"""Usual ones of videos, which are no images."""
MAX_BYTES = 256 << 20


def list_images(folder: str | Path, *, recursive: bool = False) -> list[Path]:
    """The image files directly in `folder`, and with `recursive` in folders below it, sorted by name; no hidden ones.

    Raises:
        SourceError: the folder does not exist or contains no image.
    """
    path = Path(folder)
    if not path.is_dir():
        raise SourceError("not_found", f"image folder {path}: does not exist", permanent=True)
    inside = path.rglob("*") if recursive else path.iterdir()
    found = sorted(filter(_is_image, inside))
    if not found:
        raise SourceError(
            "no_video",
            f"image folder {path}: contains no image; {_instead(path)}",
            permanent=True,
        )
    return found


def _is_image(path: Path) -> bool:
    # macOS puts a ._a.jpg beside each a.jpg, which is none.
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def _instead(folder: Path) -> str:
    """What to give instead of a folder without images."""
    inside = sorted(folder.iterdir())
    with contextlib.suppress(OSError):  # a folder that must not be read
        for below in inside:
            if below.is_dir() and any(map(_is_image, below.iterdir())):
                return f"{below} does"
    if videos := [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]:
        return f"of a video, give the file itself, such as {videos[0]}"
    return f"expected {', '.join(sorted(SUFFIXES))}"


def _turn(path: Path) -> tuple[Rotation, bool]:
    """See `exif.exif_orientation`; upright if the file says nothing.

    Raises:
        SourceError: FFmpeg would make a black picture of it.
    """
    with path.open("rb") as handle:
        try:
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if is_jpeg_in_tiff(data):
                    raise SourceError("unsupported", f"image {path}: {JPEG_IN_TIFF}", permanent=True)
                return exif_orientation(data) or UPRIGHT
        except ValueError:  # an empty file
            return UPRIGHT


def _undecodable(file: Path) -> SourceError:
    """What is wrong with an image that FFmpeg does not decode."""
    with contextlib.suppress(OSError), file.open("rb") as handle:
        if is_animated_webp(handle.read(32)):
            return SourceError("unsupported", f"image {file}: {ANIMATED_WEBP}", permanent=True)
    return SourceError("corrupt", f"image {file}: cannot be decoded as an image", permanent=True)


def read_image(path: str | Path, stream: str = "image", seq: int = 0) -> Frame:
    """Decodes one image file.

    Raises:
        SourceError: names the file: missing, unreadable, damaged, or not an image.
    """
    import av

    file = Path(path)
    started = time.monotonic_ns()
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting for whoever writes it
            kind = "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
            raise SourceError("unsupported", f"image {file}: {kind}; expected an image", permanent=True)
        if status.st_size > MAX_BYTES:
            raise SourceError(
                "unsupported", f"image {file}: larger than {MAX_BYTES} bytes; expected a smaller file", permanent=True
            )
        rotation, mirrored = _turn(file)
        # Otherwise a name with % or a run of digits would be taken for a numbered sequence.
        with av.open(str(file), options={"pattern_type": "none"} if _is_sequence_format(file) else {}) as container:
            jpeg = JpegListener() if container.streams.video[0].codec_context.name == "mjpeg" else None
            with jpeg or contextlib.nullcontext():
                native = next(container.decode(video=0))
    except OSError as error:
        if isinstance(error, av.FFmpegError):
            raise SourceError(
                "corrupt", f"image {file}: cannot be decoded: {error.strerror}", permanent=True
            ) from error
        raise SourceError("not_found", f"image {file}: {error.strerror}", permanent=True) from error
    except (av.FFmpegError, StopIteration, IndexError, ValueError) as error:
        raise _undecodable(file) from error
    if native.is_corrupt or (jpeg is not None and jpeg.damaged()):
        raise SourceError("corrupt", f"image {file}: is damaged or cut off; copy or download it again", permanent=True)
    picture = picture_of(native, rotation=rotation, mirrored=mirrored)
    width, height = rotated_size(picture.width, picture.height, picture.rotation)
    now = time.monotonic_ns()
    return Frame(stream, picture, width, height, started, time.time_ns(), now, seq=seq)


def _is_sequence_format(file: Path) -> bool:
    """True if FFmpeg reads files with this suffix using its image2 demuxer."""
    return file.suffix.lower() in SUFFIXES
