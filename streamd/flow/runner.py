"""The reader of a stream: connect, read, fail, wait, reconnect. Sources raise; only this module retries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import structlog

from streamd.errors import SourceError, SourceReason
from streamd.flow import descriptors
from streamd.flow.backoff import Backoff
from streamd.flow.camera import CameraWatch
from streamd.flow.contracts import Source, SourceInfo
from streamd.flow.glimpse import Glimpse
from streamd.flow.outages import NETWORK, outages
from streamd.flow.pump import Abandoned, FramePump, ReaderThread
from streamd.flow.reporter import Event, StatusReporter
from streamd.flow.ring import Closed, Ring
from streamd.flow.settings import StreamSettings
from streamd.flow.threads import NamedThread
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame, StreamPast, StreamStatus

log = structlog.get_logger(__name__)

STEADY_S = 10.0
"""A stream that was live for this long has recovered: its next failure starts with the shortest delay again."""
ABANDONED_LIMIT = 4
"""Number of hanging threads after which their stream is FAILED: each holds memory and a connection."""


class StreamRunner:
    """One stream's thread: owns its source, numbers its frames, and reports its state.

    A stream is LIVE from its first picture. Call `watch` a few times a second: it abandons a thread that hangs in a
    call which cannot be interrupted (a resolver, a file system, a driver) and starts another.

    Args:
        stream: the stream's id.
        make_source: creates a source for every attempt.
        ring: receives the frames; closed when the stream ends.
        metrics: the stream's counters.
        on_status: called with every change; must not block.
        initial_s: first delay after a failure, seconds.
        max_s: longest delay, seconds.
        attempts: failed attempts in a row before the stream is FAILED; None for no limit.
        before: the previous runner of this stream, which has ended: epoch and seq continue from it.
        past: the same from another process, if there is no `before`.
        glimpse: takes a small picture of each frame; None where nobody needs one.
        health: watches whether the camera can see; None where nobody wants to know.
    """

    def __init__(
        self,
        stream: str,
        make_source: Callable[[], Source],
        ring: Ring[Frame],
        metrics: StreamMetrics,
        on_status: Callable[[StreamStatus], None],
        *,
        initial_s: float = 0.5,
        max_s: float = 30.0,
        attempts: int | None = None,
        before: StreamRunner | None = None,
        past: StreamPast | None = None,
        glimpse: Glimpse | None = None,
        health: CameraWatch | None = None,
    ) -> None:
        self.stream = stream
        self.ring = ring
        self._make_source = make_source
        self._metrics = metrics
        self._backoff = Backoff(initial_s, max_s)
        self._attempts = attempts
        self._connected = before is None
        """Whether the next connection counts as a reconnect, unless it is the stream's first."""
        self._stop = threading.Event()
        self._wake = threading.Event()
        """Ends a wait between two attempts: set by `stop`, and when streams come back that were lost together."""
        self._lost_at = time.monotonic()
        """When the latest connection ended; before the first one, when this runner was made."""
        self._tried_at = self._lost_at
        """When the latest attempt began."""
        epoch = before.epoch if before is not None else past.epoch if past is not None else -1
        seq: int = before._pump.seq if before is not None else past.counts.received if past is not None else 0
        self._reporter = StatusReporter(stream, metrics, on_status, epoch, watched=health is not None)
        self._pump: FramePump = FramePump(ring, metrics, self._reporter, epoch, seq, glimpse=glimpse, health=health)
        self._lock = self._reporter.lock
        self._reader = ReaderThread()
        self._start_at: float | None = None
        """When to try again to start a thread, monotonic seconds."""
        self._abandoned: list[ReaderThread] = before._abandoned if before is not None else []

    def adapt(self, settings: StreamSettings, make_source: Callable[[], Source]) -> None:
        """Adopts settings that need no new connection. Any thread.

        Args:
            settings: see `Source.adapt`.
            make_source: creates a source with them, for every later attempt.
        """
        reconnect = settings.reconnect
        with self._lock:
            self._make_source = make_source
            self._backoff.change(reconnect.initial_s, reconnect.max_s)
            self._attempts = reconnect.attempts
            source = self._reader.source
        if source is not None:
            source.adapt(settings)

    def start(self) -> None:
        """Starts the thread."""
        self._reporter.start()
        self._begin(self._too_many() if len(self._abandoned) >= ABANDONED_LIMIT else None)

    def _too_many(self) -> SourceError:
        message = f"stream {self.stream}: {len(self._abandoned)} threads hang in calls that cannot be interrupted"
        return SourceError("stuck", f"{message}; check its network, disk or driver, then restart", permanent=True)

    def _begin(self, error: SourceError | None) -> None:
        reader = self._reader = ReaderThread()
        reader.thread = NamedThread(partial(self._run, reader, error), f"source-{self.stream}")
        try:
            reader.thread.start()
        except (RuntimeError, MemoryError) as caught:
            # A limit on threads or memory may be temporary: `watch` tries again.
            message = f"stream {self.stream}: no thread can be started now ({caught or 'no memory'}); see TasksMax"
            error = error or SourceError("internal", f"{message}, pids.max and ulimit -u")
            self._metrics.fail(error.reason)
            if error.permanent:
                self._transition(reader, "gave_up", error.reason, str(error))
                self.ring.close()
                return
            delay = self._backoff.next()
            self._start_at = time.monotonic() + delay
            self._transition(reader, "broke", error.reason, str(error), retry_in_s=round(delay, 3))

    def stop(self) -> None:
        """Asks the stream to end. Sleeping and waiting for the ring end immediately, a read at its timeout. Any
        thread."""
        self._stop.set()
        self._wake.set()
        with self._lock:
            source = self._reader.source
            if self._start_at is not None:
                self._start_at = None
                self._transition(self._reader, "ended", "", "stopped")
        if source is not None:
            source.close()
        self.ring.close()

    def join(self, timeout: float) -> bool:
        """Waits for the thread; False after `timeout` seconds, or if an abandoned thread still hangs."""
        if self._reader.thread.ident is not None:
            self._reader.thread.join(timeout)
        return not self._reader.thread.is_alive() and not any(reader.thread.is_alive() for reader in self._abandoned)

    def watch(self) -> None:
        """Replaces the thread if its call into the source has exceeded its limit. To be called by one thread."""
        with self._lock:
            if self._start_at is not None and time.monotonic() >= self._start_at:
                self._start_at = None
                self._transition(self._reader, "retry")
                self._begin(None)
            if self._abandoned:
                self._abandoned = [reader for reader in self._abandoned if reader.thread.is_alive()]
                self._metrics.threads_stuck = len(self._abandoned)
            reader, source = self._reader, self._reader.source
            self._metrics.behind_s = source.behind_s if source is not None else None
            if source is None or time.monotonic() < source.deadline or self._stop.is_set() or self.over:
                return
            self._abandon(reader)
            doing = "reading" if reader.live_since is not None else "opening"
            whose = f" in the package {self.package}" if self.package is not None else ""
            message = f"stream {self.stream}: {doing}{whose} does not return and cannot be interrupted"
            many = len(self._abandoned) >= ABANDONED_LIMIT
            self._begin(self._too_many() if many else SourceError("stuck", f"{message}; its thread was abandoned"))
        source.close()

    def _abandon(self, reader: ReaderThread) -> None:
        reader.abandoned = True
        self._abandoned.append(reader)
        self._metrics.threads_stuck = len(self._abandoned)
        self._metrics.threads_abandoned += 1

    def ended(self) -> bool:
        """True once the stream's current thread has ended; abandoned ones may still hang."""
        return not self._reader.thread.is_alive() and self._start_at is None

    def abandon(self) -> None:
        """Stops waiting for a thread that `stop` could not end: the stream is over, whatever its call returns."""
        with self._lock:
            reader = self._reader
            if reader.abandoned or self.ended():
                return
            if not self.over:
                self._transition(reader, "ended", "", "stopped; its thread hangs and was abandoned")
            self._abandon(reader)

    def degrade(self, reason: SourceReason | Literal[""], detail: str, behind_s: float | None = None) -> None:
        """See `StatusReporter.degrade`. Any thread."""
        self._reporter.degrade(reason, detail, behind_s)

    def report_health(self, states: tuple[str, ...]) -> None:
        """See `StatusReporter.report_health`. Any thread."""
        self._reporter.report_health(states)

    @property
    def status(self) -> StreamStatus:
        """The last one that was reported."""
        return self._reporter.status

    @property
    def epoch(self) -> int:
        """Of the last connection; -1 if there was none."""
        return self._pump.epoch

    @property
    def package(self) -> str | None:
        """Whose source is open; None for one of streamd's own."""
        return getattr(self._reader.source, "package", None)

    @property
    def over(self) -> bool:
        """True once there will be no more frames."""
        return self.status.state in ("ENDED", "FAILED")

    def _transition(self, reader: ReaderThread, event: Event, reason: str = "", detail: str = "", **extra: Any) -> None:
        with self._lock:
            if reader.abandoned:
                raise Abandoned
            self._reporter.transition(event, self.epoch, reason, detail, **extra)

    def _run(self, reader: ReaderThread, error: SourceError | None) -> None:
        try:
            going = error is None or self._wait(reader, error)
            while going and not self._stop.is_set():
                going = self._attempt(reader)
        except Abandoned:
            log.info("an abandoned thread has ended", stream=self.stream)
        finally:
            if not reader.abandoned:
                if not self.over:
                    self._transition(reader, "ended", "", "stopped")
                self.ring.close()

    def _attempt(self, reader: ReaderThread) -> bool:
        """One connection and the wait after it. True if another should follow."""
        reader.live_since = None
        self._tried_at = time.monotonic()
        error = self._connection(reader)
        if error is None or self._stop.is_set():
            return False
        if reader.live_since is not None:
            self._lost_at = time.monotonic()
            if self._lost_at - reader.live_since >= STEADY_S:
                self._backoff.reset()
        return self._wait(reader, error)

    def _connection(self, reader: ReaderThread) -> SourceError | None:
        """One connection, from open to failure or end.

        Returns:
            Why it failed; None at its end. It has no traceback: the frames of one would keep the source, with its
            decoder and pictures, all through the wait for the next attempt.
        """
        source: Source | None = None
        try:
            source = self._make_source()
            with self._lock:
                reader.source = source
            if self._stop.is_set():
                return None
            if not descriptors.room():
                raise SourceError("internal", "too few file descriptors are left; raise LimitNOFILE or ulimit -n")
            info = source.open()
            self._pump.run(reader, source, partial(self._opened, reader, info))
            if not self._stop.is_set():
                self._transition(reader, "ended", "eof", "end of input")
            return None
        except Abandoned:
            raise
        except SourceError as caught:
            return SourceError(caught.reason, str(caught), permanent=caught.permanent)
        except Closed:
            return None
        except Exception as caught:
            log.exception("source failed unexpectedly", stream=self.stream)
            return SourceError("internal", f"{type(caught).__name__}: {caught}")
        finally:
            if source is not None:
                source.close()
            with self._lock:
                reader.source = None

    def _wait(self, reader: ReaderThread, error: SourceError) -> bool:
        if reader.abandoned:
            raise Abandoned
        self._metrics.fail(error.reason)
        if error.permanent or (self._attempts is not None and self._backoff.attempts >= self._attempts):
            self._transition(reader, "gave_up", error.reason, str(error))
            return False
        # Cameras lock an account after a few wrong passwords.
        delay = self._backoff.next(longest=error.reason == "auth")
        self._transition(reader, "broke", error.reason, str(error), retry_in_s=round(delay, 3))
        if not self._pause(delay, error.reason):
            return False
        self._transition(reader, "retry")
        return True

    def _pause(self, delay_s: float, reason: SourceReason) -> bool:
        """Waits between two attempts. False if the stream is stopped meanwhile."""
        if reason not in NETWORK:
            return not self._stop.wait(delay_s)
        self._wake.clear()
        if self._stop.is_set():
            return False
        began = time.monotonic()
        if outages.wait(self._wake, self._lost_at, self._tried_at, delay_s) and not self._stop.is_set():
            left_s = delay_s - (time.monotonic() - began)
            self._stop.wait(max(0.0, min(left_s, self._backoff.shorten())))
        return not self._stop.is_set()

    def _opened(self, reader: ReaderThread, info: SourceInfo, frame: Frame) -> None:
        """The first picture of a connection has arrived."""
        reason, detail = self._reporter.opened(info.codec, frame.captured_ns)
        self._pump.epoch += 1
        if self.epoch > 0 and self._connected:
            self._metrics.reconnects += 1
        self._connected = True
        self._metrics.codec, self._metrics.decoder = info.codec, info.decoder
        reader.live_since = time.monotonic()
        outages.back(self._lost_at)
        self._transition(
            reader, "opened", reason, detail,
            codec=info.codec, decoder=info.decoder, width=info.width, height=info.height, fps=info.fps,
        )  # fmt: skip
