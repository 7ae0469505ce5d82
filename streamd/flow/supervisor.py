"""The life of a stream: connect, stream, break, wait, connect again. Sources raise; only this room retries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, Protocol

import structlog

from streamd.errors import SourceError
from streamd.flow.ring import Closed, Ring
from streamd.flow.threads import NamedThread
from streamd.redact import redact
from streamd.telemetry.metrics import StreamMetrics
from streamd.types import Frame, StreamState, StreamStatus

log = structlog.get_logger(__name__)

Event = Literal["opened", "broke", "retry", "ended", "gave_up"]

TRANSITIONS: dict[tuple[StreamState, Event], StreamState] = {
    ("CONNECTING", "opened"): "LIVE",
    ("CONNECTING", "broke"): "BACKOFF",
    ("CONNECTING", "ended"): "ENDED",
    ("CONNECTING", "gave_up"): "FAILED",
    ("LIVE", "broke"): "BACKOFF",
    ("LIVE", "ended"): "ENDED",
    ("LIVE", "gave_up"): "FAILED",
    ("BACKOFF", "retry"): "CONNECTING",
    ("BACKOFF", "ended"): "ENDED",
    ("BACKOFF", "gave_up"): "FAILED",
}
"""Every way a stream may go. What is not here cannot happen."""

TELL_QUARANTINE_NS = 1_000_000_000
"""Pictures are withheld for this long before a status tells: one lost packet in a short GOP is no news."""
STEADY_S = 10.0
"""A stream that was live for this long has recovered: its next break starts with the shortest wait again."""


class _Info(Protocol):
    @property
    def codec(self) -> str: ...
    @property
    def decoder(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def fps(self) -> float: ...


class _Clock(Protocol):
    jumps: int
    offset_s: float | None
    drift: float | None


class _Source(Protocol):
    corrupt: int
    skipped: int
    lost: int

    @property
    def clock(self) -> _Clock: ...

    def open(self) -> Any: ...
    def frames(self) -> Iterator[Frame]: ...
    def close(self) -> None: ...


class Backoff:
    """Exponential waits with jitter, so that a hundred cameras behind one switch do not return in one burst.

    Args:
        initial_s: first wait, seconds.
        max_s: longest wait, seconds.
        random_source: injected by tests.
    """

    def __init__(self, initial_s: float, max_s: float, random_source: random.Random | None = None) -> None:
        self._initial, self._max = initial_s, max_s
        self._random = random_source or random.Random()  # noqa: S311 - jitter, not a secret
        self.attempts = 0

    def next(self) -> float:
        """The next wait in seconds: between half and all of the doubled bound."""
        bound: float = min(self._max, self._initial * 2 ** min(self.attempts, 32))
        self.attempts += 1
        return bound * (0.5 + 0.5 * self._random.random())

    def reset(self) -> None:
        """Starts over."""
        self.attempts = 0


class StreamRunner:
    """One stream's thread: owns its source, stamps its frames, and reports what becomes of it.

    Args:
        stream: the stream's id.
        make_source: makes a fresh source for every attempt.
        ring: where frames go; closed when the stream is over.
        metrics: the stream's counters.
        on_status: told every change; must not block.
        initial_s: first wait after a break, seconds.
        max_s: longest wait, seconds.
        attempts: failed attempts in a row before the stream is FAILED; None for no limit.
    """

    def __init__(
        self,
        stream: str,
        make_source: Callable[[], _Source],
        ring: Ring[Frame],
        metrics: StreamMetrics,
        on_status: Callable[[StreamStatus], None],
        *,
        initial_s: float = 0.5,
        max_s: float = 30.0,
        attempts: int | None = None,
    ) -> None:
        self.stream = stream
        self.ring = ring
        self._make_source = make_source
        self._metrics = metrics
        self._on_status = on_status
        self._backoff = Backoff(initial_s, max_s)
        self._attempts = attempts
        self._stop = threading.Event()
        self._source: _Source | None = None
        self._lock = threading.Lock()
        self._epoch = -1
        self._seq = 0
        self._ever_live = False
        self.status = StreamStatus(stream, "CONNECTING", "", "", 0, time.time_ns())
        self._thread = NamedThread(self._run, f"source-{stream}")

    def start(self) -> None:
        """Starts the thread."""
        self._on_status(self.status)
        self._thread.start()

    def stop(self) -> None:
        """Asks the stream to end: sleeps and a blocked ring are cut at once, a read at its time limit. Any thread."""
        self._stop.set()
        with self._lock:
            source = self._source
        if source is not None:
            source.close()
        self.ring.close()

    def join(self, timeout: float) -> bool:
        """Waits for the thread; False where `timeout` seconds passed first."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def over(self) -> bool:
        """True once no frame will come any more."""
        return self.status.state in ("ENDED", "FAILED")

    def _go(self, event: Event, reason: str = "", detail: str = "", **extra: Any) -> None:
        state = TRANSITIONS[self.status.state, event]
        keep = {k: getattr(self.status, k) for k in ("codec", "decoder", "width", "height", "fps")}
        self.status = StreamStatus(
            self.stream, state, reason, redact(detail), max(self._epoch, 0), time.time_ns(), **(keep | extra)
        )
        self._metrics.state = state
        level = log.warning if state in ("BACKOFF", "FAILED") else log.info
        level("stream " + state.lower(), stream=self.stream, reason=reason or None, detail=self.status.detail or None)
        self._on_status(self.status)

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._attempt():
                pass
        finally:
            if not self.over:
                self._go("ended", "", "stopped")
            self.ring.close()

    def _attempt(self) -> bool:
        """One connection from open to break. True where another should follow."""
        live_since: float | None = None
        error: SourceError | None = None
        source: _Source | None = None
        try:
            source = self._make_source()
            with self._lock:
                self._source = source
            if self._stop.is_set():
                return False
            info: _Info = source.open()
            self._epoch += 1
            if self._ever_live:
                self._metrics.reconnects += 1
            self._ever_live = True
            self._metrics.codec, self._metrics.decoder = info.codec, info.decoder
            self._go(
                "opened", codec=info.codec, decoder=info.decoder, width=info.width, height=info.height, fps=info.fps
            )
            live_since = time.monotonic()
            self._pump(source)
            if not self._stop.is_set():
                self._go("ended", "eof", "end of input")
            return False
        except SourceError as caught:
            error = caught
        except Closed:
            return False
        except Exception as caught:
            log.exception("source failed unexpectedly", stream=self.stream)
            error = SourceError("internal", f"{type(caught).__name__}: {caught}")
        finally:
            if source is not None:
                source.close()
            with self._lock:
                self._source = None
        if self._stop.is_set():
            return False
        if live_since is not None and time.monotonic() - live_since >= STEADY_S:
            self._backoff.reset()
        return self._wait(error)

    def _wait(self, error: SourceError) -> bool:
        if error.permanent or (self._attempts is not None and self._backoff.attempts >= self._attempts):
            self._go("gave_up", error.reason, str(error))
            return False
        delay = self._backoff.next()
        self._go("broke", error.reason, str(error), retry_in_s=round(delay, 3))
        if self._stop.wait(delay):
            return False
        self._go("retry", error.reason, str(error))
        return True

    def _pump(self, source: _Source) -> None:
        metrics, ring, epoch = self._metrics, self.ring, self._epoch
        before = (metrics.corrupt, metrics.skipped, metrics.lost, metrics.clock_jumps)
        held_since: int | None = None
        told = False
        for frame in source.frames():
            frame.epoch = epoch
            frame.seq = self._seq
            self._seq += 1
            metrics.received += 1
            metrics.last_frame_wall = time.time()  # not frame.wall_ns: a camera's clock may be wrong
            self._count(source, before)
            if frame.quarantined:
                metrics.drop("quarantine")
                if held_since is None:
                    held_since = frame.captured_ns
                elif not told and frame.captured_ns - held_since >= TELL_QUARANTINE_NS:
                    told = True
                    self._note("corrupt", "damaged pictures are withheld until the next clean key frame")
                del frame
                continue
            held_since = None
            if told:
                told = False
                self._note("", "")
            try:
                ring.put(frame)
            except Closed:
                metrics.drop("shutdown")
                raise
            del frame  # the picture must not live on here while the source waits for the next one
        self._count(source, before)

    def _count(self, source: _Source, before: tuple[int, int, int, int]) -> None:
        """Adds what this connection has counted so far to the totals `before` it."""
        metrics, clock = self._metrics, source.clock
        metrics.corrupt = before[0] + source.corrupt
        metrics.skipped = before[1] + source.skipped
        metrics.lost = before[2] + source.lost
        metrics.clock_jumps = before[3] + clock.jumps
        metrics.clock_offset_s, metrics.clock_drift = clock.offset_s, clock.drift

    def _note(self, reason: str, detail: str) -> None:
        """The state stays; what is said of it changes."""
        self.status = replace(self.status, reason=reason, detail=detail)
        log.info("stream status", stream=self.stream, reason=reason or None, detail=detail or None)
        self._on_status(self.status)
