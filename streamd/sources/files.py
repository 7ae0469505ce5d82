"""Files: whether one can be read, and where playback starts."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import stat
from typing import TYPE_CHECKING

from streamd.errors import SourceError
from streamd.sources.av_errors import describe, lack

if TYPE_CHECKING:
    from av.container import InputContainer

_LIST = b"ffconcat version"
_LONGEST_LIST = 1 << 20
"""Characters of a list that are looked at for other lists."""
_DEEPEST = 4
"""Lists in lists."""
PROBED = 100
"""Packets from which a clip's reordering is read."""
LEAD_S = 12
"""More than the usual distance between two key frames of cameras and encoders."""


def check_file(path: str) -> None:
    """Checks that `path` may be a video.

    Raises:
        SourceError: it is missing, unreadable, empty or not a regular file.
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
        _check_list(path, ())
    except PermissionError as error:
        raise SourceError("permission", describe(path, "permission"), permanent=True) from error
    except OSError as error:
        if (lacking := lack(error.errno)) is not None:
            raise SourceError(lacking[0], f"{path}: {lacking[1]} ({error.strerror})") from error
        what = "a camera at this machine is /dev/video" + path if path.isdecimal() else "check the path"
        raise SourceError("not_found", f"{path}: {error.strerror}; {what}", permanent=True) from error


def is_list(path: str) -> bool:
    """Whether FFmpeg takes the file for a list of files (ffconcat). False for what cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_LIST)) == _LIST
    except OSError:
        return False


def _check_list(path: str, inside: tuple[str, ...]) -> None:
    """Raises SourceError for a list that contains itself, which FFmpeg would open without end."""
    if not is_list(path):
        return
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read(_LONGEST_LIST).splitlines()
    inside = (*inside, os.path.realpath(path))
    for line in dict.fromkeys(lines):
        keyword, _, name = line.strip().partition(" ")
        if keyword != "file":
            continue
        with contextlib.suppress(ValueError):  # FFmpeg has its own word about quotes that do not match
            name = shlex.split(name)[0] if name.strip() else ""
        named = os.path.join(os.path.dirname(path), name)
        if not os.path.isfile(named) or not is_list(named):
            continue
        if os.path.realpath(named) in inside or len(inside) >= _DEEPEST:
            text = f"{path}: the list contains itself, by way of {name}; name videos in it"
            raise SourceError("unsupported", text, permanent=True)
        _check_list(named, inside)


def _length_s(container: InputContainer) -> float:
    import av

    return (container.duration or 0) / av.time_base


def length_s(path: str) -> float:
    """Duration of the clip in seconds; 0 if unknown or not a clip."""
    import av

    try:
        with av.open(path) as container:
            return _length_s(container)
    except (av.FFmpegError, OSError):
        return 0.0


def reordering_s(path: str) -> tuple[float, float]:
    """How long the clip's pictures wait in the decoder because of B-frames: mean and maximum, seconds.

    A picture's packet is read at its decoding time, and the picture is put out at its presentation time, however fast
    the decoder is. (0, 0) if nothing is known, or the file is not a clip.
    """
    import av

    try:
        with av.open(path) as container:
            packets = itertools.islice(container.demux(video=0), PROBED)
            waits = [float((p.pts - p.dts) * p.time_base) for p in packets if p.pts is not None and p.dts is not None]
    except (av.FFmpegError, OSError, IndexError):
        return 0.0, 0.0
    if not waits or min(waits) < 0:
        return 0.0, 0.0
    return sum(waits) / len(waits), max(waits)


def too_short(path: str, start_s: float, end: str = "") -> SourceError:
    """The error for a clip that ends before `start_s`."""
    text = f"{path}: start_s is {start_s:g}, but the clip ends{end or ' before'}; choose an earlier start"
    return SourceError("unsupported", text, permanent=True)


def begin_at(container: InputContainer, path: str, start_s: float) -> int:
    """Seeks to the last key frame before `start_s`; a container that cannot seek stays where it is.

    Args:
        container: a newly opened container.
        path: the file, for messages.
        start_s: seconds from the start of the clip, above 0.

    Returns:
        The time stamp of the first frame wanted, in nanoseconds; frames before it are decoded and discarded.

    Raises:
        SourceError: the clip is shorter.
    """
    import av

    length = _length_s(container)
    if length and start_s >= length:
        raise too_short(path, start_s, f" after {length:g} s")
    at = int(start_s * av.time_base) + max(0, container.start_time or 0)
    # MPEG streams have no index: a search by time stamp finds a picture there, but not a key frame.
    lead_s = LEAD_S if container.format.name in ("mpegts", "mpeg") else 0
    with contextlib.suppress(av.FFmpegError):
        container.seek(max(0, at - lead_s * av.time_base))
    return at * (10**9 // av.time_base)
