"""Sources of other packages: their frames are checked, their errors name the package, and none of their calls keeps
the daemon from going on."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import structlog

from streamd.errors import SOURCE_REASONS, SourceError
from streamd.flow.contracts import UNKNOWN_CLOCK, SenderClock, Source, SourceInfo
from streamd.flow.settings import StreamSettings
from streamd.flow.threads import NamedThread
from streamd.settings.plugins import REMEDY, Origin, opened, told
from streamd.types import Box, Clock, ColorMatrix, ForeignPicture, Frame, Picture, Rotation
from streamd.types.pictures import rotated_size

log = structlog.get_logger(__name__)

CLOSE_S = 1.0
"""Seconds that `close` may take: what calls it also serves other streams."""
CLOCK_NS = 3_600_000_000_000
"""Farthest that `captured_ns` may be from now: another clock is farther."""
MOST_CLOSING = 4
"""Sources of a stream that may be waited for in `close`: each holds a thread, and whatever the source has."""
MOST_PIXELS = 65_536
"""Largest width and height of a picture."""
MOST_NS = 1 << 62
"""Limit of times, which compiled code and the journal keep in 64 bits."""
ASPECTS = 1 / 16, 16.0
"""Least and largest aspect ratio of a pixel."""
COUNTERS = ("corrupt", "skipped", "lost", "overtaken", "discarded")
_ROTATIONS, _MATRICES, _CLOCKS = get_args(Rotation), get_args(ColorMatrix), get_args(Clock)

_END: Any = object()
_closing: dict[str, list[NamedThread]] = {}
"""By stream, the threads that did not end in time, and may still be in `close`."""


class ForeignSource:
    """A source of another package. See `Source`.

    Args:
        stream: its id.
        origin: whose kind it is of.
        make: makes the source.

    Raises:
        SourceError: it cannot be made, or is no source.
    """

    corrupt: int
    skipped: int
    lost: int
    overtaken: int
    discarded: int
    codec: str
    deadline: float

    def __init__(self, stream: str, origin: Origin, make: Callable[[], Source]) -> None:
        self._stream, self._origin = stream, origin
        if hanging := [thread for thread in _closing.pop(stream, ()) if thread.is_alive()]:
            _closing[stream] = hanging
        if len(hanging) >= MOST_CLOSING:
            raise self._named(f"the close of {len(hanging)} sources of {origin} has not returned yet; {REMEDY}")
        self._source = opened(origin, Source, self._named, make)
        self._counted = dict.fromkeys(COUNTERS, 0)
        self._closing: NamedThread | None = None

    @property
    def package(self) -> str:
        """Name and version of the distribution."""
        return self._origin.package

    def _named(self, message: str) -> SourceError:
        return SourceError("internal", f"stream {self._stream}: {message}")

    def __getattr__(self, name: str) -> Any:
        """Counters and the deadline are the source's own."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "deadline":
            told = self._number(name)
            return math.inf if told is None else told
        if name == "codec":
            return self._codec()
        return self._count(name) if name in self._counted else getattr(self._source, name)

    def _count(self, name: str) -> int:
        """A counter, for the stream's thread. All frames are numbered by it, and every message tells of it.

        Raises:
            SourceError: it is no number of things, or fewer than before.
        """
        with told(self._origin, f"tell {name}", self._named):
            given = getattr(self._source, name)
        try:
            count = operator.index(given)  # of NumPy's numbers, too
        except TypeError:
            count = -1
        if not self._counted[name] <= count < MOST_NS:
            expected = f"expected an int of at least {self._counted[name]}, as before"
            raise self._named(self._origin.unfit(f"its source's {name} is {given!r:.80}; {expected}"))
        self._counted[name] = count
        return count

    def _codec(self) -> str:
        with told(self._origin, "tell codec", self._named):
            codec = self._source.codec
        if type(codec) is not str:
            raise self._named(self._origin.unfit(f"its source's codec is {codec!r:.80}; expected text"))
        return codec

    @property
    def clock(self) -> SenderClock:
        """See `Source.clock`. Unknown where it cannot be told."""
        try:
            clock = self._source.clock
            sound = type(clock.jumps) is int and _is_finite(clock.offset_s) and _is_finite(clock.drift)
        except Exception:  # noqa: BLE001 - also asked for outside the stream's thread
            return UNKNOWN_CLOCK
        return clock if sound else UNKNOWN_CLOCK

    @property
    def behind_s(self) -> float | None:
        """See `Source.behind_s`."""
        return self._number("behind_s")

    def _number(self, name: str) -> float | None:
        """What the thread that watches all streams asks for; None for what is no number."""
        try:
            told = float(getattr(self._source, name))
        except Exception:  # noqa: BLE001 - see above
            return None
        return None if math.isnan(told) else told

    def open(self) -> SourceInfo:
        """See `Source.open`."""
        with told(self._origin, "open", self._named):
            try:
                info = self._source.open()
            except SourceError as error:
                raise self._known(error) from error
        if problem := unfit_info(info):
            raise self._named(self._origin.unfit(f"its source's open returned {problem}"))
        return info

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        with told(self._origin, "read", self._named):
            frames = iter(self._source.frames())
        try:
            while True:
                try:
                    with told(self._origin, "read", self._named):
                        frame = next(frames, _END)
                        problem = "" if frame is _END else unfit(frame, self._stream)
                except SourceError as error:
                    raise self._known(error) from error
                if frame is _END:
                    return
                if problem:
                    raise self._named(self._origin.unfit(f"it yielded {problem}"))
                yield frame
                del frame  # else the picture stays allocated while the source waits for the next one
        finally:
            if (close := getattr(frames, "close", None)) is not None:
                with told(self._origin, "stop reading", self._named):
                    close()

    def _known(self, error: SourceError) -> SourceError:
        """The error with a reason that metrics and subscribers know."""
        if error.reason in SOURCE_REASONS:
            return error
        message = (
            f"{error} ({self._origin} gave the reason {error.reason!r}, which is none of streamd.errors.SourceReason)"
        )
        return SourceError("internal", message, permanent=error.permanent)

    def adapt(self, settings: StreamSettings) -> None:
        """See `Source.adapt`."""
        try:
            self._source.adapt(settings)
        except Exception as error:  # noqa: BLE001 - called by the reload of all streams
            log.error("source failed to adapt", stream=self._stream, error=self._origin.failed("adapt", error))

    def close(self) -> None:
        """See `Source.close`. Returns after a second at most, and raises nothing."""
        closing = self._closing
        if closing is None or not closing.is_alive():
            closing = self._closing = NamedThread(self._close, f"close-{self._stream}")
            try:
                closing.start()
            except RuntimeError as error:  # no further thread is allowed
                log.error("source not closed", stream=self._stream, package=self._origin.package, error=str(error))
                return
        closing.join(CLOSE_S)
        if closing.is_alive():
            hanging = _closing.setdefault(self._stream, [])
            if closing not in hanging:
                hanging.append(closing)
            log.warning("source does not close in time", stream=self._stream, package=self._origin.package)

    def _close(self) -> None:
        try:
            self._source.close()
        except BaseException as error:  # noqa: BLE001 - whatever it does, the stream's end goes on
            log.error("source failed to close", stream=self._stream, error=self._origin.failed("close", error))


def _is_finite(seconds: object) -> bool:
    """Whether it is a time of a clock, or None."""
    return seconds is None or (type(seconds) in (float, int) and math.isfinite(seconds))  # type: ignore[arg-type]


def unfit_info(info: SourceInfo) -> str:
    """What is wrong with what `open` says of a source, which messages and metrics repeat; empty if nothing is."""
    if not isinstance(info, SourceInfo):
        return f"{info!r:.80}; expected streamd.flow.contracts.SourceInfo"
    for name, given in (("codec", info.codec), ("decoder", info.decoder)):
        if type(given) is not str:
            return f"a SourceInfo whose {name} is {given!r:.80}; expected text"
    for name, number in (("width", info.width), ("height", info.height)):
        if type(number) is not int or not 0 <= number < MOST_PIXELS:
            return f"a SourceInfo whose {name} is {number!r:.80}; expected int, not float or NumPy's numbers"
    if type(info.fps) not in (int, float) or not 0 <= info.fps < math.inf:
        return f"a SourceInfo whose fps is {info.fps!r:.80}; expected float, 0 if it is not known"
    if type(info.live) is not bool or type(info.still) is not bool:
        return f"a SourceInfo with live={info.live!r:.80} and still={info.still!r:.80}; expected True or False"
    return ""


def unfit_picture(picture: Picture) -> str:
    """What is wrong with a picture, which the stages read by its words alone; empty if nothing is."""
    native = picture.native
    # Of a class that others may derive from, the object counts; PyAV's makes its planes anew whenever it is asked.
    if not hasattr(native if isinstance(native, ForeignPicture) else type(native), "planes"):
        made = "make it by streamd.sources.picture.picture_of"
        return f"a picture whose native is a {type(native).__qualname__}; expected PyAV's VideoFrame; {made}"
    if picture.rotation not in _ROTATIONS or picture.matrix not in _MATRICES:
        ways = f"rotation {picture.rotation!r:.80} and matrix {picture.matrix!r:.80}"
        return f"a picture with {ways}; see streamd.types.Picture"
    aspect = picture.pixel_aspect
    if type(aspect) not in (int, float) or not ASPECTS[0] <= aspect <= ASPECTS[1]:
        return f"a picture whose pixel_aspect is {aspect!r:.80}; expected a float from {ASPECTS[0]} to {ASPECTS[1]:g}"
    known = getattr(getattr(native, "format", None), "name", None)
    if known is not None and (picture.device is not None) != (known == "cuda"):
        return f"a picture of the device {picture.device!r:.80} whose memory has {known}; expected None for the host"
    if type(picture.format) is not str or (picture.device is None and picture.format != (known or picture.format)):
        return f"a picture of the format {picture.format!r:.80} whose memory has {known}"
    width, height = getattr(native, "width", picture.width), getattr(native, "height", picture.height)
    if (width, height) != (picture.width, picture.height):
        return f"a picture of {picture.width} x {picture.height} pixels whose memory has {width} x {height}"
    return ""


def unfit(frame: Frame, stream: str) -> str:
    """What is wrong with a frame, before anything reads its picture; empty if nothing is.

    Args:
        frame: as the source yielded it.
        stream: whose frame it should be.
    """
    if not isinstance(frame, Frame):
        return f"a {type(frame).__qualname__}; expected streamd.types.Frame"
    picture = frame.picture
    if not isinstance(picture, Picture):
        return f"a frame whose picture is a {type(picture).__qualname__}; use streamd.sources.picture.picture_of"
    if frame.stream != stream:
        return f"a frame of the stream {frame.stream!r}; expected its settings' id, {stream!r}"
    if problem := unfit_picture(picture):
        return problem
    width, height = rotated_size(picture.width, picture.height, picture.rotation)
    if (frame.width, frame.height) != (width, height) or not 0 < width < MOST_PIXELS or not 0 < height < MOST_PIXELS:
        return f"a frame of {frame.width} x {frame.height} pixels with an upright picture of {width} x {height}"
    roi = frame.roi
    if roi is not None and not isinstance(roi, Box):
        return f"a frame whose roi is {roi!r:.80}; expected streamd.types.Box"
    if any(type(each) is not int for each in (frame.width, frame.height, *(roi or ()))):
        return "a frame whose width, height or roi is not in whole pixels; expected int, not float or NumPy's numbers"
    if type(frame.begins) is not bool:
        return f"a frame whose begins is {frame.begins!r:.80}; expected True or False"
    if frame.clock not in _CLOCKS or frame.view is not None:
        given = f"clock is {frame.clock!r:.80} and whose view is {frame.view!r:.80}"
        return f"a frame whose {given}; expected 'arrival' or 'camera', and None"
    if roi is not None:
        x, y, w, h = roi
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
            return f"a frame whose roi {tuple(roi)} is not within its picture of {width} x {height}; check crop"
    times = (frame.captured_ns, frame.wall_ns, frame.decoded_ns, 0 if frame.pts_ns is None else frame.pts_ns)
    if any(type(each) is not int or abs(each) >= MOST_NS for each in times):
        return "a frame with a time that is not a whole number of nanoseconds, below 2**62"
    now = time.monotonic_ns()
    if abs(now - frame.captured_ns) > CLOCK_NS or abs(now - frame.decoded_ns) > CLOCK_NS:
        return "a frame whose captured_ns or decoded_ns is not of time.monotonic_ns()"
    return ""
