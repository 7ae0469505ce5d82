"""A second connection to a camera that is open before it is needed: its frames are decoded and left uncounted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import structlog

from streamd.errors import SourceError
from streamd.flow.backoff import Backoff
from streamd.flow.contracts import SenderClock, Source, SourceInfo
from streamd.flow.settings import StreamSettings
from streamd.flow.threads import NamedThread
from streamd.types import Frame

log = structlog.get_logger(__name__)

TAKE_S = 2.0
"""Longest time to wait for the next frame, at which a connection changes hands."""


class OpenSource(Source):
    """A connection that is open already, as a source for a stream's runner.

    Args:
        source: the connection.
        info: what its `open` returned.
        frames: the rest of its frames.
        closed: called when it is closed.
    """

    def __init__(self, source: Source, info: SourceInfo, frames: Iterator[Frame], closed: Callable[[], None]) -> None:
        self._source, self._info, self._frames, self._closed = source, info, frames, closed

    @property
    def corrupt(self) -> int:  # type: ignore[override]
        """See `Source`."""
        return self._source.corrupt

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """See `Source`."""
        return self._source.skipped

    @property
    def lost(self) -> int:  # type: ignore[override]
        """See `Source`."""
        return self._source.lost

    @property
    def overtaken(self) -> int:  # type: ignore[override]
        """See `Source`."""
        return self._source.overtaken

    @property
    def discarded(self) -> int:  # type: ignore[override]
        """See `Source`."""
        return self._source.discarded

    @property
    def behind_s(self) -> float | None:
        """See `Source`."""
        return self._source.behind_s

    @property
    def deadline(self) -> float:  # type: ignore[override]
        """See `Source`."""
        return self._source.deadline

    @property
    def clock(self) -> SenderClock:
        """See `Source`."""
        return self._source.clock

    def open(self) -> SourceInfo:
        """It is open."""
        return self._info

    def frames(self) -> Iterator[Frame]:
        """The frames from now on."""
        return self._frames

    def adapt(self, settings: StreamSettings) -> None:
        """See `Source`."""
        self._source.adapt(settings)

    def close(self) -> None:
        """See `Source`."""
        self._source.close()
        self._closed()


class Standby:
    """Keeps a connection open until it is taken over or closed; connects again if it breaks.

    Args:
        stream: the stream's id.
        make_source: creates a source for every attempt.
        initial_s: first delay after a failure, seconds.
        max_s: longest delay, seconds.
    """

    def __init__(
        self, stream: str, make_source: Callable[[], Source], *, initial_s: float = 0.5, max_s: float = 30.0
    ) -> None:
        self.ready = False
        """It has pictures."""
        self._stream, self._make_source = stream, make_source
        self._backoff = Backoff(initial_s, max_s)
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._wanted, self._over, self._released = threading.Event(), threading.Event(), threading.Event()
        self._taken: OpenSource | None = None

    def start(self) -> None:
        """Starts the thread."""
        NamedThread(self._run, f"standby-{self._stream}").start()

    def take(self) -> Source | None:
        """Takes the connection over at its next frame; None if there is none. Blocks for a frame's time."""
        self._wanted.set()
        if self.ready:
            self._over.wait(TAKE_S)
        with self._lock:
            taken, self._taken = self._taken, None
            if taken is not None:
                return taken
        self.close()
        return None

    def close(self) -> None:
        """Ends the connection, if nobody has taken it."""
        self._wanted.set()
        self._released.set()
        with self._lock:
            source, taken, self._taken = self._source, self._taken, None
        if taken is not None:
            taken.close()
        elif source is not None:
            source.close()

    def _run(self) -> None:
        while not self._wanted.is_set():
            try:
                if self._attempt():
                    # Not before the connection ends: the kernel ends a decoder process with the thread that began it.
                    self._released.wait()
                return
            except SourceError as error:
                log.info("standby failed", stream=self._stream, reason=error.reason, detail=str(error))
            except Exception as error:
                log.warning("standby failed unexpectedly", stream=self._stream, error=str(error), exc_info=error)
            self.ready = False
            self._wanted.wait(self._backoff.next())
        self._over.set()

    def _attempt(self) -> bool:
        """One connection. True if it was handed over."""
        source = self._make_source()
        with self._lock:
            self._source = source
        handed = False
        try:
            if self._wanted.is_set():
                return False
            info = source.open()
            frames = iter(source.frames())
            for frame in frames:
                del frame
                self.ready = True
                if not self._wanted.is_set():
                    continue
                with self._lock:
                    self._source = None
                    if not self._released.is_set():
                        self._taken, handed = OpenSource(source, info, frames, self._released.set), True
                return handed
            raise SourceError("timeout_read", f"stream {self._stream}: the input has ended")
        finally:
            with self._lock:
                self._source = None
            if handed or self._wanted.is_set():
                self._over.set()
            if not handed:
                with contextlib.suppress(Exception):
                    source.close()
