"""The parent's side of a sink: receives messages from the workers and passes them on."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from streamd.events.upkeep import Limits
from streamd.flow.settings import StreamSettings
from streamd.flow.threads import NamedThread
from streamd.sinks import Sink
from streamd.sinks.envelope import (
    DETECTIONS,
    EVENT,
    GLANCE,
    STATUS,
    Encoding,
    MessageBuilder,
    MessageKind,
)
from streamd.sinks.feed import EventFeed, TakesEvents
from streamd.sinks.guard import GuardedSink
from streamd.sinks.thread import INTERRUPT_S, POLL_S
from streamd.telemetry.metrics import Metrics
from streamd.types import StreamCounts, StreamStatus
from streamd.workers.relay import HEAD, HWM, Route

log = structlog.get_logger(__name__)


class Forwarder(TakesEvents):
    """One sink with its thread. While the sink is busy, messages of the workers wait in the relay's bounded socket
    queue.

    Args:
        name: name in metrics and logs.
        sink: used and closed by this thread only (except `open`, which runs in the caller's, to fail early).
        endpoint: ipc:// address to bind for the workers.
        encoding: encoding of this sink's messages.
        metrics: counters.
        heartbeat_s: statuses of streams without a living worker are sent at least this often, seconds.
        boot_id: identity of the daemon in every message.
        wants: see `SinkSettings.wants`.
        owed: see `SinkSettings.owed`.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        endpoint: str,
        encoding: Encoding,
        metrics: Metrics,
        *,
        heartbeat_s: float,
        boot_id: str,
        wants: frozenset[MessageKind] = frozenset({DETECTIONS, STATUS, EVENT}),
        owed: Limits | None = None,
    ) -> None:
        self.name, self.endpoint = name, endpoint
        self.encoding: Encoding = encoding
        self._sink = GuardedSink(name, sink, metrics)
        self._builder = MessageBuilder(boot_id, encoding)
        self._heartbeat_s = heartbeat_s
        self._sent = metrics.sink_messages.labels(sink=name)
        self._wants = wants
        self._events = EventFeed(name, sink, owed, metrics)
        self._close_by = float("inf")
        self._wait = metrics.sink_relay.labels(sink=name)
        self._sent_ns = 0
        """When the latest message was sent by its worker, monotonic; 0 while none comes."""
        self._uncounted = 0
        """Messages that are not counted in the metrics yet."""
        self._routes: dict[bytes, Route] = {}
        """Routes by the bytes after a message's head."""
        self._numbered: dict[str, tuple[Route, ...]] = {}
        """The routes of detections and of frames that were not looked at, by stream. Replaced, never changed."""
        self._held: dict[str, tuple[StreamStatus, StreamCounts]] = {}
        """By stream: statuses that no worker sends any more."""
        self._ended: dict[str, int] = {}
        """By stream: the last life whose statuses are obsolete."""
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._context: Any = None
        self._socket: Any = None
        self._thread = NamedThread(self._run, f"sink-{name}")

    def open(self) -> None:
        """Opens the sink and binds the relay.

        Raises:
            SinkError: see `Sink.open`.
        """
        import zmq

        self._sink.open()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, HWM)
        # A blocking receive costs half as much as a poll before each one.
        self._socket.setsockopt(zmq.RCVTIMEO, int(POLL_S * 1000))
        self._socket.bind(self.endpoint)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def hold(self, life: int, statuses: Iterable[tuple[StreamStatus, StreamCounts]]) -> None:
        """Sends these statuses, now and as a heartbeat, until another worker reports the streams. Any thread.

        Args:
            life: life of the worker that has ended: its messages still in transit are older.
            statuses: statuses of its streams.
        """
        held = {status.stream: (status, counts) for status, counts in statuses}
        self._orders.put(lambda: self._hold(life, held))

    def set_streams(self, streams: Sequence[StreamSettings]) -> None:
        """Tells the sink which streams are configured. Any thread."""
        self._orders.put(lambda: self._sink.set_streams(streams))

    def release(self, streams: Iterable[str]) -> None:
        """Stops sending the statuses of these streams. Any thread."""
        names = list(streams)
        self._orders.put(lambda: self._release(names))

    def passed(self, stream: str) -> tuple[int, int, int]:
        """For the frames of a stream: how many were passed on, the epoch of the last one, and the seq after it. Any
        thread."""
        found = self._numbered.get(stream)
        if found is None:
            return (0, -1, 0)
        return sum(r.passed for r in found), max(r.epoch for r in found), max(r.seq for r in found) + 1

    @property
    def problem(self) -> str | None:
        """Why the sink is not open; None while it is."""
        return self._sink.problem

    @property
    def package(self) -> str | None:
        """Whose sink it is; None for one of streamd's own."""
        return self._sink.package

    @property
    def unreachable(self) -> str | None:
        """Why the sink, although open, cannot reach its receiver; None while it can."""
        return self._sink.unreachable

    def close(self, timeout: float) -> bool:
        """Passes on the remaining messages, then closes; False if that took longer than `timeout` seconds."""
        self._close_by = time.monotonic() + max(0.0, timeout - 2 * INTERRUPT_S)
        self._stopping = True
        if not self._thread.is_alive():
            self._close()
            return True
        self._thread.join(max(0.0, timeout - INTERRUPT_S))
        if self._thread.is_alive():
            self._sink.interrupt()
            self._thread.join(min(timeout, INTERRUPT_S))
        return not self._thread.is_alive()

    def _close(self) -> None:
        self._sink.close()
        if self._socket is not None:
            self._socket.close(0)
            self._context.term()
            self._socket = None

    def _run(self) -> None:
        import zmq

        receive, pass_on = self._socket.recv, self._pass_on
        next_poll = 0.0
        next_beat = time.monotonic() + self._heartbeat_s
        try:
            while True:
                now = time.monotonic()
                if now >= next_poll:
                    next_poll = now + POLL_S
                    self._housekeep()
                    if now >= next_beat:
                        next_beat = now + self._heartbeat_s
                        self._tell(self._held)
                more = self._events.send(self._sink, self._builder)
                try:
                    head = receive(zmq.DONTWAIT if more else 0)
                except zmq.Again:  # nothing for POLL_S
                    self._sent_ns = 0
                    if self._stopping and (not more or time.monotonic() > self._close_by):
                        return
                    continue
                payload = receive()
                try:
                    pass_on(head, payload)
                except Exception as error:  # noqa: BLE001 - one message that cannot be read must not cost all others
                    self._sink.failed_outside(error)
        finally:
            self._housekeep()
            self._events.finish(self._sink, self._builder, self._close_by)
            self._close()

    def _housekeep(self) -> None:
        self._sink.poll()
        self._take_orders()
        self._wait.set((time.monotonic_ns() - self._sent_ns) / 1e9 if self._sent_ns else 0.0)
        if self._uncounted:
            self._sent.inc(self._uncounted)
            self._uncounted = 0

    def _route(self, name: bytes) -> Route | None:
        try:
            route = self._routes[name] = Route(name)
        except ValueError as error:
            log.error("invalid message from a worker", sink=self.name, error=str(error))
            return None
        if route.kind is DETECTIONS or route.kind is GLANCE:
            self._numbered[route.stream] = (*self._numbered.get(route.stream, ()), route)
        return route

    def _pass_on(self, head: bytes, payload: bytes) -> None:
        name = head[HEAD.size :]
        route = self._routes.get(name) or self._route(name)
        if route is None:
            return
        life, message = route.take(head, payload, self.encoding)
        self._sent_ns = route.sent_ns
        if message.after is None:
            if route.kind is GLANCE:
                self._uncounted += self._sink.send(message)
            elif route.kind is not STATUS or self._news(route.stream, life):
                self._sink.send(message)
            return
        if self._sink.send(self._builder.number(message)):
            self._uncounted += 1
        else:
            self._builder.not_sent(message)

    def _news(self, stream: str, life: int) -> bool:
        if life <= self._ended.get(stream, 0):
            return False
        self._held.pop(stream, None)
        return True

    def _take_orders(self) -> None:
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            order()

    def _hold(self, life: int, held: dict[str, tuple[StreamStatus, StreamCounts]]) -> None:
        self._held |= held
        self._ended |= dict.fromkeys(held, life)
        self._tell(held)

    def _release(self, streams: Iterable[str]) -> None:
        for stream in streams:
            self._held.pop(stream, None)

    def _tell(self, held: dict[str, tuple[StreamStatus, StreamCounts]]) -> None:
        if STATUS not in self._wants:
            return
        for status, counts in held.values():
            self._sink.send(self._builder.status(status, counts))
