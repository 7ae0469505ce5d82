"""A sink's own thread and ring, which confine the effects of its readers.

Topic, numbering and encoding of every message are handled here, for all kinds of sinks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from streamd.events.upkeep import Limits
from streamd.flow.ring import Closed, Ring
from streamd.flow.settings import StreamSettings
from streamd.flow.status import StatusBoard
from streamd.flow.threads import NamedThread
from streamd.sinks import Sink
from streamd.sinks.envelope import (
    CLASSIFIED,
    COUNTS,
    DETECTIONS,
    EVENT,
    GLANCE,
    STATUS,
    Encoding,
    Message,
    MessageBuilder,
    MessageKind,
    Outgoing,
    OutgoingClasses,
    OutgoingGlance,
)
from streamd.sinks.feed import CountsBoard, EventFeed, TakesEvents
from streamd.sinks.guard import GuardedSink
from streamd.telemetry.metrics import Metrics

POLL_S = 0.1
INTERRUPT_S = 0.5
"""Before a thread's time to close is over, a wait for its receiver is interrupted."""


class SinkThread(TakesEvents):
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
        wants: see `SinkSettings.wants`.
        owed: see `SinkSettings.owed`.
        generations: see `MessageBuilder`.
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
        wants: frozenset[MessageKind] = frozenset({DETECTIONS, STATUS, EVENT}),
        owed: Limits | None = None,
        generations: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self._wants = wants
        # Asked for every frame, and a kind's hash is that of five fields.
        self._wants_detections, self._wants_counts = DETECTIONS in wants, COUNTS in wants
        self._sink = GuardedSink(name, sink, metrics)
        self._board = board
        self._metrics = metrics
        self._heartbeat_s = heartbeat_s
        self._builder = MessageBuilder(boot_id, encoding, generations)
        self._events = EventFeed(name, sink, owed, metrics)
        self._counts = CountsBoard()
        self._streams: Sequence[StreamSettings] | None = None
        """Configured streams that the sink has not been told of yet."""
        self._close_by = float("inf")
        self._sent = metrics.sink_messages.labels(sink=name)
        self._dropped = {r: metrics.sink_dropped.labels(sink=name, reason=r) for r in ("ring_full", "error")}
        self._ring: Ring[Outgoing | OutgoingClasses | OutgoingGlance] = Ring(
            capacity, "drop_oldest", on_drop=self._on_drop
        )
        metrics.queue_depth.labels(queue=f"sink-{name}").set_function(lambda: len(self._ring))
        self._change = 0
        self._beat_at = time.monotonic() + heartbeat_s
        self._thread = NamedThread(self._run, f"sink-{name}")

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

    def open(self) -> None:
        """Opens the sink in the caller's thread, so that a port in use is detected before anything else starts."""
        self._sink.open()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, outgoing: Outgoing) -> None:
        """Queues one frame's detections; never waits."""
        if not self._wants_detections and (not self._wants_counts or outgoing.detections.counts is None):
            return
        try:
            self._ring.put(outgoing)
        except Closed:
            self._on_drop(outgoing, "shutdown")

    def put_classes(self, found: OutgoingClasses) -> None:
        """Queues what a classifier says of a frame; never waits. Any thread."""
        if CLASSIFIED in self._wants:
            try:
                self._ring.put(found)
            except Closed:
                self._on_drop(found, "shutdown")

    def put_glance(self, glance: OutgoingGlance) -> None:
        """Queues a frame that the network did not look at; never waits."""
        if GLANCE not in self._wants:
            return
        try:
            self._ring.put(glance)
        except Closed:
            self._on_drop(glance, "shutdown")

    def set_streams(self, streams: Sequence[StreamSettings]) -> None:
        """Tells the sink which streams are configured. Any thread."""
        self._streams = streams

    def close(self, timeout: float) -> bool:
        """Sends queued messages and the last statuses, then closes; False if that took longer than `timeout`."""
        self._close_by = time.monotonic() + max(0.0, timeout - 2 * INTERRUPT_S)
        self._ring.close()
        if not self._thread.is_alive():
            self._sink.close()
            return True
        self._thread.join(max(0.0, timeout - INTERRUPT_S))
        if self._thread.is_alive():
            self._sink.interrupt()
            self._thread.join(min(timeout, INTERRUPT_S))
        return not self._thread.is_alive()

    def _on_drop(self, _: Outgoing | OutgoingClasses | OutgoingGlance, reason: str) -> None:
        counter = self._dropped.get(reason)
        if counter is None:
            counter = self._dropped[reason] = self._metrics.sink_dropped.labels(sink=self.name, reason=reason)
        counter.inc()

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._turns()
                except Closed:
                    raise
                except Exception as error:  # noqa: BLE001 - one message that cannot be made must not cost all others
                    self._sink.failed_outside(error)
                    time.sleep(POLL_S)
        except Closed:
            self._events.finish(self._sink, self._builder, self._close_by)
            self._statuses(time.monotonic())
        finally:
            self._sink.close()

    def _turns(self) -> None:
        """Raises Closed when the ring is closed and empty."""
        next_poll = 0.0
        while True:
            if (streams := self._streams) is not None:
                self._streams = None
                self._counts.keep({each.id for each in streams})
                self._sink.set_streams(streams)
            now = time.monotonic()
            if now >= self._beat_at or self._board.changes != self._change:
                self._statuses(now)
            more = self._events.send(self._sink, self._builder)
            if now >= next_poll:
                self._sink.poll()
                next_poll = now + POLL_S
            try:
                outgoing = self._ring.get(0.0 if more else POLL_S)
            except TimeoutError:
                continue
            try:
                self._publish(outgoing)
            except Exception:
                self._on_drop(outgoing, "error")
                raise

    def _publish(self, outgoing: Outgoing | OutgoingClasses | OutgoingGlance) -> None:
        if not isinstance(outgoing, Outgoing):
            build = self._builder
            message = build.glance(outgoing) if isinstance(outgoing, OutgoingGlance) else build.classified(outgoing)
            if self._sink.send(message):
                self._sent.inc()
            return
        detections = outgoing.detections
        if self._wants_counts and (counts := detections.counts) is not None:
            stream = detections.stream
            if self._counts.changed(stream, counts):
                self._sink.send(self._builder.counts(stream, counts))
        if not self._wants_detections:
            return
        message = self._builder.detections(outgoing)
        if self._sink.send(message):
            self._sent.inc()
        else:
            self._builder.not_sent(message)

    def _statuses(self, now: float) -> None:
        """Sends what has changed, and at the time of the heartbeat everything. `now`: monotonic seconds."""
        self._change, statuses = self._board.since(self._change)
        if now >= self._beat_at:
            self._beat_at = now + self._heartbeat_s
            changed = {s.stream for s in statuses}
            statuses += [s for s in self._board.all() if s.stream not in changed]
            for stream, told in self._counts.all():
                self._tell(partial(self._builder.counts, stream, told))
        if STATUS not in self._wants:
            return
        for status in statuses:
            self._tell(partial(self._builder.status, status, self._metrics.stream(status.stream).counts()))

    def _tell(self, make: Callable[[], Message]) -> None:
        """Sends a message. One that cannot be made does not cost those of the other streams."""
        try:
            message = make()
        except Exception as error:  # noqa: BLE001 - whatever a message was to be made of
            self._sink.failed_outside(error)
            return
        self._sink.send(message)
