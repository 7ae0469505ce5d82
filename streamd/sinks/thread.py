"""A sink's own thread and ring, which confine the effects of its readers.

Topic, numbering and encoding of every message are handled here, for all kinds of sinks.
"""

from __future__ import annotations

import time
from collections import deque

import structlog

from streamd.errors import StreamdError
from streamd.flow.backoff import Backoff
from streamd.flow.ring import Closed, Ring
from streamd.flow.status import StatusBoard
from streamd.flow.threads import NamedThread
from streamd.sinks import Sink
from streamd.sinks.envelope import Encoding, Message, MessageBuilder, Outgoing, OutgoingEvent
from streamd.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

POLL_S = 0.1
REOPEN_INITIAL_S, REOPEN_MAX_S = 0.5, 30.0
MOST_EVENTS = 10_000
"""That wait for a sink which does not take them."""
_ERROR_LOG_S = 10.0


class SinkErrorLog:
    """The errors of one sink: each is counted, and at most one in ten seconds is logged.

    Args:
        name: of the sink.
        metrics: counts.
    """

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._errors = metrics.sink_errors.labels(sink=name)
        self._last_log = -_ERROR_LOG_S
        self._quiet = 0

    def tell(self, error: Exception) -> None:
        """Counts an error."""
        self._errors.inc()
        now = time.monotonic()
        if now - self._last_log < _ERROR_LOG_S:
            self._quiet += 1
            return
        text = str(error) if isinstance(error, StreamdError) else f"{type(error).__name__}: {error}"
        trace = None if isinstance(error, StreamdError) else error
        log.error("sink failed", sink=self._name, error=text, not_logged=self._quiet or None, exc_info=trace)
        self._last_log, self._quiet = now, 0


class GuardedSink:
    """A sink that survives its own errors: after an undeclared exception, it is closed and opened again.

    For one thread, except `problem`.

    Args:
        name: in metrics and logs.
        sink: used and closed only through this object.
        metrics: counts, and shows whether the sink is up.
    """

    def __init__(self, name: str, sink: Sink, metrics: Metrics) -> None:
        self._name, self._sink = name, sink
        self._errors = SinkErrorLog(name, metrics)
        self._up = metrics.sink_up.labels(sink=name)
        self._up.set(0)
        self._dropped = metrics.sink_dropped
        self._backoff = Backoff(REOPEN_INITIAL_S, REOPEN_MAX_S)
        self._retry_at = 0.0
        self.problem: str | None = "not open yet"
        """Why the sink is not open; None while it is. Any thread reads it."""

    def open(self) -> None:
        """Opens the sink for the first time.

        Raises:
            SinkError: see `Sink.open`.
        """
        self._sink.open()
        self._opened()

    def _opened(self) -> None:
        self.problem = None
        self._up.set(1)

    def lost(self, reason: str) -> None:
        """Counts a message that some or all readers did not receive."""
        self._dropped.labels(sink=self._name, reason=reason).inc()

    def send(self, message: Message, *, counted: bool = True) -> bool:
        """Sends a message; False if it was not sent at all, which is logged and, if `counted`, counted as a drop."""
        if self.problem is not None:
            if counted:
                self.lost("error")
            return False
        try:
            reason = self._sink.send(message)
        except Exception as error:  # noqa: BLE001 - whatever a sink does, its thread continues
            if counted:
                self.lost("error")
            self._failed(error)
            return False
        if reason is not None:
            self.lost(reason)
        return True

    def poll(self) -> None:
        """Calls the sink's housekeeping, or opens it again when it is time."""
        try:
            if self.problem is None:
                self._sink.poll()
            elif time.monotonic() >= self._retry_at:
                self._sink.open()
                self._opened()
                self._backoff.reset()
                log.info("sink reopened", sink=self._name)
        except Exception as error:  # noqa: BLE001 - see `send`
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._errors.tell(error)
        if self.problem is None and isinstance(error, StreamdError):
            return  # it has reported the problem, and keeps trying
        self.problem = str(error) if isinstance(error, StreamdError) else f"{type(error).__name__}: {error}"
        self._up.set(0)
        self._retry_at = time.monotonic() + self._backoff.next()
        self._close()

    def _close(self) -> None:
        try:
            self._sink.close()
        except Exception as error:  # noqa: BLE001 - see `send`
            self._errors.tell(error)

    def close(self) -> None:
        """Closes the sink for good."""
        self._close()
        self.problem = "closed"
        self._up.set(0)


class EventQueue:
    """Events that wait for one sink. No frame ever takes their place; one that could not be sent is sent again.

    Args:
        name: of the sink.
        metrics: counts what found no room.
    """

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._lost = metrics.sink_dropped.labels(sink=name, reason="events_full")
        self._waiting: deque[OutgoingEvent] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: OutgoingEvent) -> None:
        """Queues an event. Any thread."""
        if len(self._waiting) >= MOST_EVENTS:
            self._lost.inc()
            return
        self._waiting.append(event)

    def send(self, sink: GuardedSink, builder: MessageBuilder) -> None:
        """Sends what waits, in order, until the sink does not take one. One thread."""
        while self._waiting and sink.send(builder.event(self._waiting[0]), counted=False):
            self._waiting.popleft()


class SinkThread:
    """Runs one sink.

    Args:
        name: in metrics and logs.
        sink: opened, used and closed by this thread alone (but `open` runs in the caller's, to fail early).
        capacity: most messages waiting; beyond that, the oldest is dropped and counted.
        board: statuses to send on change and as heartbeat.
        metrics: counts.
        heartbeat_s: every stream's status is sent at least this often, seconds.
        boot_id: identity of this process in every message.
        encoding: of every message.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        capacity: int,
        board: StatusBoard,
        metrics: Metrics,
        heartbeat_s: float,
        *,
        boot_id: str,
        encoding: Encoding = "json",
    ) -> None:
        self.name = name
        self._sink = GuardedSink(name, sink, metrics)
        self._board = board
        self._metrics = metrics
        self._heartbeat_s = heartbeat_s
        self._builder = MessageBuilder(boot_id, encoding)
        self._events = EventQueue(name, metrics)
        self._sent = metrics.sink_messages.labels(sink=name)
        self._dropped = {r: metrics.sink_dropped.labels(sink=name, reason=r) for r in ("ring_full", "error")}
        self._ring: Ring[Outgoing] = Ring(capacity, "drop_oldest", on_drop=self._on_drop)
        metrics.queue_depth.labels(queue=f"sink-{name}").set_function(lambda: len(self._ring))
        self._change = 0
        self._beat_at = time.monotonic() + heartbeat_s
        self._thread = NamedThread(self._run, f"sink-{name}")

    @property
    def problem(self) -> str | None:
        """Why the sink is not open; None while it is."""
        return self._sink.problem

    def open(self) -> None:
        """Opens the sink in the caller's thread, so that a port in use is detected before anything else starts."""
        self._sink.open()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, outgoing: Outgoing) -> None:
        """Queues one frame's detections; never waits."""
        try:
            self._ring.put(outgoing)
        except Closed:
            self._on_drop(outgoing, "shutdown")

    def put_event(self, event: OutgoingEvent) -> None:
        """Queues one event; never waits. Any thread."""
        self._events.put(event)

    def close(self, timeout: float) -> bool:
        """Sends queued messages and the last statuses, then closes; False if that took longer than `timeout`."""
        self._ring.close()
        if not self._thread.is_alive():
            self._sink.close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _on_drop(self, _: Outgoing, reason: str) -> None:
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
                self._events.send(self._sink, self._builder)
                if now >= next_poll:
                    self._sink.poll()
                    next_poll = now + POLL_S
                try:
                    self._publish(self._ring.get(POLL_S))
                except TimeoutError:
                    continue
        except Closed:
            self._events.send(self._sink, self._builder)
            self._statuses()
        finally:
            self._sink.close()

    def _publish(self, outgoing: Outgoing) -> None:
        message = self._builder.detections(outgoing)
        if self._sink.send(message):
            self._sent.inc()
        else:
            self._builder.not_sent(message)

    def _statuses(self) -> None:
        now = time.monotonic()
        self._change, statuses = self._board.since(self._change)
        if now >= self._beat_at:
            self._beat_at = now + self._heartbeat_s
            changed = {s.stream for s in statuses}
            statuses += [s for s in self._board.all() if s.stream not in changed]
        for status in statuses:
            counts = self._metrics.stream(status.stream).counts()
            self._sink.send(self._builder.status(status, counts))
