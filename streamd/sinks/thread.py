"""A sink's own thread and ring: whatever happens to a reader happens here and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import structlog

from streamd.errors import StreamdError
from streamd.flow.ring import Closed, Ring
from streamd.flow.status import StatusBoard
from streamd.flow.threads import NamedThread
from streamd.telemetry.metrics import Metrics
from streamd.types import Detections, StreamCounts, StreamStatus

log = structlog.get_logger(__name__)

POLL_S = 0.1
_ERROR_LOG_S = 10.0


class _Sink(Protocol):
    def open(self) -> None: ...
    def publish(self, detections: Detections) -> str | None: ...
    def status(self, status: StreamStatus, counts: StreamCounts) -> None: ...
    def poll(self) -> None: ...
    def close(self) -> None: ...


class SinkErrorLog:
    """The errors of one sink: each is counted, and one in ten seconds is logged.

    Args:
        name: of the sink.
        metrics: counts.
    """

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._errors = metrics.sink_errors.labels(sink=name)
        self._last_log = -_ERROR_LOG_S
        self._quiet = 0

    def guard(self, call: Callable[[], None]) -> None:
        """Calls, and tells of the error that comes of it."""
        try:
            call()
        except StreamdError as error:
            self.tell(error)

    def tell(self, error: StreamdError) -> None:
        """One more error."""
        self._errors.inc()
        now = time.monotonic()
        if now - self._last_log < _ERROR_LOG_S:
            self._quiet += 1
            return
        log.error("sink failed", sink=self._name, error=str(error), not_logged=self._quiet or None)
        self._last_log, self._quiet = now, 0


class SinkThread:
    """Runs one sink.

    Args:
        name: in metrics and logs.
        sink: opened, used and closed by this thread alone (but `open_sink` runs in the caller's, to fail early).
        capacity: messages waiting at most; the oldest is dropped and counted.
        board: statuses to send on change and as heartbeat.
        metrics: counts.
        heartbeat_s: every stream's status is sent at least this often, seconds.
    """

    def __init__(
        self, name: str, sink: _Sink, capacity: int, board: StatusBoard, metrics: Metrics, heartbeat_s: float
    ) -> None:
        self.name = name
        self._sink = sink
        self._board = board
        self._metrics = metrics
        self._heartbeat_s = heartbeat_s
        self._sent = metrics.sink_messages.labels(sink=name)
        self._troubles = SinkErrorLog(name, metrics)
        self._dropped = {r: metrics.sink_dropped.labels(sink=name, reason=r) for r in ("ring_full", "error")}
        self._ring: Ring[Detections] = Ring(capacity, "drop_oldest", on_drop=self._on_drop)
        metrics.queue_depth.labels(queue=f"sink-{name}").set_function(lambda: len(self._ring))
        self._change = 0
        self._beat_at = time.monotonic() + heartbeat_s
        self._thread = NamedThread(self._run, f"sink-{name}")

    def open(self) -> None:
        """Opens the sink in the caller's thread, so that a port in use is found before anything else starts."""
        self._sink.open()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, detections: Detections) -> None:
        """Queues one frame's detections; never waits."""
        try:
            self._ring.put(detections)
        except Closed:
            self._on_drop(detections, "shutdown")

    def close(self, timeout: float) -> bool:
        """Sends what is queued and the last statuses, then closes; False where that took longer than `timeout`."""
        self._ring.close()
        if not self._thread.is_alive():
            self._sink.close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _on_drop(self, _: Detections, reason: str) -> None:
        counter = self._dropped.get(reason)
        if counter is None:
            counter = self._dropped[reason] = self._metrics.sink_dropped.labels(sink=self.name, reason=reason)
        counter.inc()

    def _run(self) -> None:
        next_poll = 0.0
        try:
            while True:
                self._statuses()
                now = time.monotonic()
                if now >= next_poll:
                    self._troubles.guard(self._sink.poll)
                    next_poll = now + POLL_S
                try:
                    self._publish(self._ring.get(POLL_S))
                except TimeoutError:
                    continue
        except Closed:
            self._statuses()
        finally:
            self._troubles.guard(self._sink.close)

    def _publish(self, detections: Detections) -> None:
        try:
            lost = self._sink.publish(detections)
        except StreamdError as error:
            self._on_drop(detections, "error")
            self._troubles.tell(error)
            return
        if lost is not None:
            self._on_drop(detections, lost)
        self._sent.inc()

    def _statuses(self) -> None:
        now = time.monotonic()
        self._change, statuses = self._board.since(self._change)
        if now >= self._beat_at:
            self._beat_at = now + self._heartbeat_s
            changed = {s.stream for s in statuses}
            statuses += [s for s in self._board.all() if s.stream not in changed]
        for status in statuses:
            counts = self._metrics.stream(status.stream).counts()
            try:
                self._sink.status(status, counts)
            except StreamdError as error:
                self._troubles.tell(error)
