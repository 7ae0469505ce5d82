"""Files: whether one can be read at all, and where playing begins."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from streamd.errors import SourceError
from streamd.sources.av_errors import describe

if TYPE_CHECKING:
    from av.container import InputContainer


LEAD_S = 12
"""More than cameras and encoders leave between two key frames."""


def check_file(path: str) -> None:
    """Whether `path` may hold a video.

    Raises:
        SourceError: it is missing, unreadable, empty or no regular file.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
            raise SourceError("unsupported", f"{path}: {kind}; expected a video file", permanent=True)
        if os.stat(path).st_size == 0:
            raise SourceError("unsupported", f"{path}: is empty; expected a video file", permanent=True)
        with open(path, "rb"):
            pass
    except PermissionError as error:
        raise SourceError("permission", describe(path, "permission"), permanent=True) from error
    except OSError as error:
        raise SourceError("not_found", f"{path}: {error.strerror}; check the path", permanent=True) from error


def _length_s(container: InputContainer) -> float:
    import av

    return (container.duration or 0) / av.time_base


def length_s(path: str) -> float:
    """Seconds that the clip lasts; 0 where it does not say, or is none."""
    import av

    try:
        with av.open(path) as container:
            return _length_s(container)
    except (av.FFmpegError, OSError):
        return 0.0


def too_short(path: str, start_s: float, end: str = "") -> SourceError:
    """The error of a clip that is over before `start_s`."""
    text = f"{path}: start_s is {start_s:g}, but the clip ends{end or ' before'}; choose an earlier start"
    return SourceError("unsupported", text, permanent=True)


def begin_at(container: InputContainer, path: str, start_s: float) -> int:
    """Moves to the last key frame before `start_s`; a container that cannot be moved in stays where it is.

    Args:
        container: just opened.
        path: of the file, for messages.
        start_s: seconds from the clip's beginning, above 0.

    Returns:
        The time stamp in nanoseconds of the first frame that is wanted; those before it are only decoded.

    Raises:
        SourceError: the clip is not that long.
    """
    import av

    length = _length_s(container)
    if length and start_s >= length:
        raise too_short(path, start_s, f" after {length:g} s")
    at = int(start_s * av.time_base) + max(0, container.start_time or 0)
    # MPEG streams have no index: what a search by time stamps finds there is a picture, but no key frame.
    lead_s = LEAD_S if container.format.name in ("mpegts", "mpeg") else 0
    with contextlib.suppress(av.FFmpegError):
        container.seek(max(0, at - lead_s * av.time_base))
    return at * (10**9 // av.time_base)
