"""Sources of other packages: their frames are checked, their errors name the package, and none of their calls keeps
the daemon from going on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from streamd.errors import SOURCE_REASONS, SourceError
from streamd.flow.contracts import UNKNOWN_CLOCK, SenderClock, Source, SourceInfo
from streamd.flow.settings import StreamSettings
from streamd.flow.threads import NamedThread
from streamd.settings.plugins import Origin, opened, told
from streamd.types import Box, Frame, Picture
from streamd.types.pictures import rotated_size

log = structlog.get_logger(__name__)

CLOSE_S = 1.0
"""Seconds that `close` may take: what calls it also serves other streams."""
CLOCK_NS = 3_600_000_000_000
"""Farthest that `captured_ns` may be from now: another clock is farther."""
MOST_PIXELS = 65_536
"""Largest width and height of a picture."""


_END: Any = object()


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
    deadline: float

    def __init__(self, stream: str, origin: Origin, make: Callable[[], Source]) -> None:
        self._stream, self._origin = stream, origin
        self._source = opened(origin, Source, self._named, make)
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
        return getattr(self._source, name)

    @property
    def clock(self) -> SenderClock:
        """See `Source.clock`."""
        try:
            return self._source.clock
        except Exception:  # noqa: BLE001 - also asked for outside the stream's thread
            return UNKNOWN_CLOCK

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
        if not isinstance(info, SourceInfo):
            raise self._named(
                self._origin.unfit(
                    f"its source's open returned {info!r:.80}; expected streamd.flow.contracts.SourceInfo"
                )
            )
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
                except SourceError as error:
                    raise self._known(error) from error
                if frame is _END:
                    return
                if problem := unfit(frame, self._stream):
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
        if self._closing is None or not self._closing.is_alive():
            self._closing = NamedThread(self._close, f"close-{self._stream}")
            self._closing.start()
        self._closing.join(CLOSE_S)
        if self._closing.is_alive():
            log.warning("source does not close in time", stream=self._stream, package=self._origin.package)

    def _close(self) -> None:
        try:
            self._source.close()
        except BaseException as error:  # noqa: BLE001 - whatever it does, the stream's end goes on
            log.error("source failed to close", stream=self._stream, error=self._origin.failed("close", error))


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
    width, height = rotated_size(picture.width, picture.height, picture.rotation)
    if (frame.width, frame.height) != (width, height) or not 0 < width < MOST_PIXELS or not 0 < height < MOST_PIXELS:
        return f"a frame of {frame.width} x {frame.height} pixels with an upright picture of {width} x {height}"
    native = (getattr(picture.native, "width", picture.width), getattr(picture.native, "height", picture.height))
    if native != (picture.width, picture.height):
        return f"a picture of {picture.width} x {picture.height} pixels whose memory has {native[0]} x {native[1]}"
    roi = frame.roi
    if roi is not None and not isinstance(roi, Box):
        return f"a frame whose roi is {roi!r:.80}; expected streamd.types.Box"
    if any(type(each) is not int for each in (frame.width, frame.height, *(roi or ()))):
        return "a frame whose width, height or roi is not in whole pixels; expected int, not float or NumPy's numbers"
    if type(frame.begins) is not bool:
        return f"a frame whose begins is {frame.begins!r:.80}; expected True or False"
    if roi is not None:
        x, y, w, h = roi
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
            return f"a frame whose roi {tuple(roi)} is not within its picture of {width} x {height}; check crop"
    times = (frame.captured_ns, frame.wall_ns, frame.decoded_ns, 0 if frame.pts_ns is None else frame.pts_ns)
    if any(type(each) is not int for each in times):
        return "a frame with a time that is not a whole number of nanoseconds"
    now = time.monotonic_ns()
    if abs(now - frame.captured_ns) > CLOCK_NS or abs(now - frame.decoded_ns) > CLOCK_NS:
        return "a frame whose captured_ns or decoded_ns is not of time.monotonic_ns()"
    return ""
